"""Streamed batches are those of a cache on the disk, in an order of their own; read from a Hub on the loopback."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_encoders import fake_encoders, write_raw
from huggingface_hub import HfApi
from loopback_hub import running_hub

from fl_i2moe.cache import build_cache
from fl_i2moe.cache.batching import FeatureRows, feature_means, mean_of_batches
from fl_i2moe.cache.streaming import FeatureStream, StreamedSplit
from fl_i2moe.data.raw import SampleError
from fl_i2moe.publishing.features import write_features
from fl_i2moe.publishing.repository import push

ROOT = Path(__file__).parents[2]
MODALITIES = ["image", "text"]
SIZES = {"train": 58, "validation": 6, "test": 9}  # six shards of ten rows, the last one of eight


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    raw = write_raw(folder / "raw", SIZES)
    return build_cache(raw, fake_encoders(), folder / "cache", progress=False, num_workers=0, shard_size=10)


@pytest.fixture(scope="module")
def split(cache):
    shards = sorted((cache.path / "train").glob("*.arrow"))
    rows = tuple(pa.ipc.open_stream(shard).read_all().num_rows for shard in shards)
    return StreamedSplit("train", f"{cache.path}/train/data-*.arrow", rows, cache.modalities, buffer_size=16)


def ids(stream):
    return [sample_id for batch in stream for sample_id in batch["ids"]]


def test_batches_are_those_of_the_cache(cache, split):
    stream = FeatureStream(split, MODALITIES, batch_size=4, pad_to_multiple_of=1)
    rows = FeatureRows(cache.splits["train"], MODALITIES)
    batches = list(stream)
    assert len(batches) == len(stream) == 15
    for number, batch in enumerate(batches):
        expected = rows[list(range(4 * number, min(58, 4 * number + 4)))]
        assert batch["ids"] == expected["ids"]
        assert torch.equal(batch["labels"], expected["labels"])
        for part in ("features", "feature_masks", "special_masks"):
            for name in MODALITIES:
                assert torch.equal(batch[part][name], expected[part][name])


def test_a_shuffled_epoch_has_every_row_once(cache, split):
    stream = FeatureStream(split, MODALITIES, batch_size=4, shuffle=True, seed=3)
    whole = FeatureRows(cache.splits["train"], MODALITIES)
    place = {sample_id: row for row, sample_id in enumerate(cache.splits["train"]["id"])}
    batches = list(stream)
    assert Counter(x for batch in batches for x in batch["ids"]) == Counter(place.keys())
    assert len(batches) == len(stream)
    for batch in batches:
        expected = whole[[place[x] for x in batch["ids"]]]
        assert torch.equal(batch["labels"], expected["labels"])
        for name in MODALITIES:
            length = expected["features"][name].shape[1]
            assert torch.equal(batch["features"][name][:, :length], expected["features"][name])
            assert not batch["feature_masks"][name][:, length:].any()


def test_the_order_depends_on_seed_epoch_and_buffer_alone(split):
    def order(epoch=0, seed=3, buffer_size=16, **options):
        own = replace(split, buffer_size=buffer_size)
        stream = FeatureStream(own, MODALITIES, batch_size=4, shuffle=True, seed=seed, **options)
        stream.set_epoch(epoch)
        return ids(stream)

    again = FeatureStream(split, MODALITIES, batch_size=4, shuffle=True, seed=3)
    first, second = ids(again), ids(again)
    assert first == second == order()
    again.set_epoch(2)
    assert ids(again) == order(epoch=2)
    orders = [order(), order(epoch=1), order(epoch=2), order(seed=4), order(buffer_size=20)]
    assert len(set(map(tuple, orders))) == 5
    # rows of a batch come from several shards, and the first ones not from the first shard alone
    shards = {int(x.split("-")[1]) // 10 for x in order()[:16]}
    assert len(shards) > 3


def test_length_buckets_within_the_buffer(cache, split):
    split = replace(split, buffer_size=58)
    plain = FeatureStream(split, MODALITIES, batch_size=4, shuffle=True, seed=1)
    bucketed = FeatureStream(split, MODALITIES, batch_size=4, shuffle=True, seed=1, bucket=True)
    lengths = FeatureRows(cache.splits["train"], MODALITIES).lengths().sum(axis=1)
    length = dict(zip(cache.splits["train"]["id"], lengths, strict=True))

    def spread(batches):
        return np.mean([np.ptp([length[x] for x in batch["ids"]]) for batch in batches])

    batches = list(bucketed)
    assert sorted(x for batch in batches for x in batch["ids"]) == sorted(length)
    assert spread(batches) < 0.5 * spread(plain)
    shortest = [min(length[x] for x in batch["ids"]) for batch in batches]
    assert shortest != sorted(shortest)  # long and short ones in turn
    assert ids(bucketed) == [x for batch in batches for x in batch["ids"]]
    with pytest.raises(ValueError, match="needs shuffle"):
        FeatureStream(split, MODALITIES, batch_size=4, bucket=True)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_share_the_shards_out(split, num_processes):
    streams = [
        FeatureStream(split, MODALITIES, batch_size=4, shuffle=True, process_index=index, num_processes=num_processes)
        for index in range(num_processes)
    ]
    for epoch in range(3):
        parts = []
        for stream in streams:
            stream.set_epoch(epoch)
            batches = list(stream)
            assert len(batches) == len(stream) == len(streams[0])
            parts.append({x for batch in batches for x in batch["ids"]})
        assert len(set.union(*parts)) == sum(map(len, parts)) == 58  # nothing is left out, nothing has two readers


def test_means_without_a_copy(cache, split):
    expected = feature_means(cache.splits["train"], MODALITIES)
    found = mean_of_batches(FeatureStream(split, MODALITIES, batch_size=7), MODALITIES)
    for name in MODALITIES:
        torch.testing.assert_close(found[name], expected[name])


def test_what_is_refused(split, tmp_path):
    with pytest.raises(ValueError, match=r"has 6 of them for 7 processes: start at most 6, or fetch"):
        FeatureStream(split, MODALITIES, batch_size=4, num_processes=7)
    with pytest.raises(ValueError, match=r"`shuffle_buffer_size` can be at most 67,108,863 for these features"):
        replace(split, buffer_size=10**8).check(1)
    with pytest.raises(ValueError, match="are 6 shards, not 7"):
        FeatureStream(replace(split, rows_per_shard=(10,) * 7), MODALITIES, batch_size=4)


def test_bad_features_name_the_sample(cache, split, tmp_path):
    shards = sorted((cache.path / "train").glob("*.arrow"))
    for shard in shards:
        table = pa.ipc.open_stream(shard).read_all()
        if shard == shards[2]:
            column = table["text_features"]
            rows = [[[np.float16(np.nan)] * 2] * 3, *column.to_pylist()[1:]]
            storage = pa.array(rows, column.type.storage_type)
            column = pa.ExtensionArray.from_storage(column.type, storage)
            table = table.set_column(table.schema.get_field_index("text_features"), "text_features", column)
        with pa.ipc.new_stream(tmp_path / shard.name, table.schema) as writer:
            writer.write_table(table)
    broken = replace(split, files=f"{tmp_path}/data-*.arrow")
    with pytest.raises(SampleError, match=r"'train-20' of split 'train' has a bad 'text'.*tell who published them"):
        list(FeatureStream(broken, MODALITIES, batch_size=4))


@pytest.fixture(scope="module")
def hub(cache, tmp_path_factory):
    with running_hub() as hub:
        publish(hub, cache, tmp_path_factory.mktemp("published") / "features", "someone/films")
        yield hub


def publish(hub, cache, folder, repo_id):
    write_features(cache, folder, repo_id, license="other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        push(folder, repo_id, repo_type="dataset", api=HfApi(endpoint=hub.address, token="hf_someone"))


IMPATIENT = """
import runpy, sys, time
from datasets import config
from huggingface_hub.utils import _http
config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 2
config.STREAMING_READ_RETRY_INTERVAL = config.STREAMING_OPEN_RETRY_INTERVAL = 0
_http.time = type("NoWaiting", (), {"sleep": staticmethod(lambda seconds: None), "time": time.time})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a recipe that tries a broken connection again at once, and twice only."""


def train(hub, home, run, *options):
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment |= {"FL_I2MOE_CACHE": str(home / "own"), "ACCELERATE_USE_CPU": "true"}
    command = ["recipes/train_mmimdb.py", "--features=someone/films", "--stream_features", f"--output_dir={run}"]
    command += ["--shuffle_buffer_size=16", "--num_epochs=3", "--batch_size=4", "--hidden_size=8", "--num_threads=1"]
    command += ["--num_attention_heads=2", "--reweighting_hidden_size=8", "--checkpoint_steps=4", *options]
    command = [sys.executable, "-c", IMPATIENT, *command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_run_on_streamed_features(hub, cache, tmp_path):
    """Twice, the second one cut off and resumed: the same weights, and nothing of the training split on the disk."""
    done = train(hub, tmp_path / "home", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 58 samples are read in every epoch from hf://datasets/someone/films@" in done.stdout
    found = {x.parent.name for x in (tmp_path / "home").rglob("*.arrow")}
    assert found == {"validation", "test"}
    expected = (tmp_path / "run" / "model.safetensors").read_bytes()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["samples"] == SIZES
    assert "predictions.parquet will have none of them" in done.stdout
    told = pq.read_table(tmp_path / "run" / "predictions.parquet")["split"].to_pylist()
    assert told == ["validation"] * SIZES["validation"] + ["test"] * SIZES["test"]

    hub.downloads_left = 10  # within the second epoch
    broken = train(hub, tmp_path / "home", tmp_path / "again", "--num_workers=1")
    hub.downloads_left = None
    assert broken.returncode == 1
    [message] = [line for line in broken.stderr.splitlines() if line.startswith("error: ")]
    assert "hf://datasets/someone/films@" in message
    assert "could not be read on" in message
    assert "run again with --resume" in message
    assert list((tmp_path / "again").rglob("step-*"))
    assert not (tmp_path / "again" / "results.json").exists()
    done = train(hub, tmp_path / "home", tmp_path / "again", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == expected


def test_two_processes_that_stream_equal_one_that_has_fetched(hub, tmp_path, launch, run_here):
    """A whole epoch is one batch, in which no order shows, and nothing is drawn: dropout 0, zero perturbation."""
    raw = write_raw(tmp_path / "raw", {**SIZES, "train": 40})
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", progress=False, num_workers=0, shard_size=10)
    publish(hub, cache, tmp_path / "published", "someone/even")
    options = ["--hidden_size=8", "--num_attention_heads=2", "--reweighting_hidden_size=8", "--num_epochs=2"]
    options += ["--dropout=0", "--reweighting_dropout=0", "--perturbation=zero", "--learning_rate=0.01"]
    options += ["--num_threads=1"]
    recipe, one, two = "recipes/train_mmimdb.py", tmp_path / "one", tmp_path / "two"
    run_here(recipe, f"--features={cache.path}", "--batch_size=40", f"--output_dir={one}", *options)
    hub.requests.clear()
    streamed = ["--features=someone/even", "--stream_features", "--batch_size=20", f"--output_dir={two}"]
    variables = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    launch(recipe, *streamed, *options, forked=2, variables=variables)
    histories = [json.loads((run / "seed-0" / "history.json").read_text()) for run in (one, two)]
    for epoch_one, epoch_two in zip(*histories, strict=True):
        assert epoch_two == pytest.approx(epoch_one, rel=1e-3, abs=1e-4)
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    assert [x["machine"]["processes"] for x in results] == [1, 2]
    for name, value in results[0]["test"].items():
        assert results[1]["test"][name]["mean"] == pytest.approx(value["mean"], abs=1e-3), name
    read = [x for x in hub.requests if x.startswith("GET") and "/train/" in x and x.endswith(".arrow")]
    assert len(read) == 2 * 4 + 2  # each shard once an epoch; and each process looks up the columns in the first


def test_a_folder_is_not_streamed(cache, tmp_path, capsys, run_here):
    with pytest.raises(SystemExit, match=r"is for a data set on the Hub; .* lies on this disk"):
        run_here("recipes/train_mmimdb.py", f"--features={cache.path}", "--stream_features", f"--output_dir={tmp_path}")
