"""The feature cache against what the fake encoders give by hand, and against everything that can go wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from fake_encoders import fake_encoders, image_features, replace_text, text_features, write_raw
from filelock import FileLock

from fl_i2moe.cache import CacheMismatchError, CorruptCacheError, build_cache, cache_key, open_cache
from fl_i2moe.cache import building as cache_module
from fl_i2moe.data.raw import SampleError

SIZES = {"train": 41, "validation": 6, "test": 9}
OPTIONS = {"batch_size": 4, "shard_size": 8, "num_workers": 0, "progress": False}
TESTS = Path(__file__).parents[1]


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw", SIZES)


def shard_files(cache_dir):
    return sorted(cache_dir.rglob("data-*.arrow"))


def contents(cache_dir):
    """Every file of a cache but the lock."""
    return {
        str(path.relative_to(cache_dir)): path.read_bytes()
        for path in cache_dir.rglob("*")
        if path.is_file() and path.name != "build.lock"
    }


# ---- building and opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_round_trip(raw, tmp_path, num_workers):
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", **{**OPTIONS, "num_workers": num_workers})
    assert {split: len(rows) for split, rows in cache.splits.items()} == SIZES
    for split, rows in cache.splits.items():
        for row, raw_row in zip(rows, raw.splits[split], strict=True):
            assert {name: row[name] for name in raw_row} == raw_row
            image = image_features(Path(raw_row["image"]["path"]).read_bytes())
            np.testing.assert_array_equal(row["image_features"], image.astype(np.float16))
            assert row["image_special_mask"] == [False] * 4
            assert row["image_geometry"] == {"width": 4, "height": 1, "left": 0, "top": 0, "right": 4, "bottom": 1}
            text = text_features(raw_row["text"])
            np.testing.assert_array_equal(row["text_features"], text.astype(np.float16))
            assert row["text_special_mask"] == [True] + [False] * (len(text) - 1)
            words = [raw_row["text"][start:end] for start, end in row["text_offsets"]]
            assert words == ["", *raw_row["text"].split()[:7]]


def test_load_from_disk_reads_a_split(raw, tmp_path):
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    rows = datasets.load_from_disk(tmp_path / "cache" / "train")
    assert rows.features["image_features"] == datasets.Array2D((None, 3), "float16")
    assert rows.features["text_offsets"] == datasets.List(datasets.List(datasets.Value("int32"), length=2))
    assert rows.features["image"] == datasets.Image(decode=False)
    assert rows.split == "train"
    assert rows.to_list() == cache.splits["train"].to_list()


def test_says_what_it_is(raw, tmp_path):
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    assert cache.label_names == ["a", "b", "c"]
    assert cache.problem_type == "multi_label_classification"
    assert list(cache.modalities) == ["image", "text"]
    assert cache.modalities["image"] == {
        "kind": "image",
        "feature_size": 3,
        "max_features": 4,
        "grid": [1, 4],
        "encoder": {"name": "fake-image", "revision": "a"},
    }
    assert cache.skipped == []


def test_counts_cut_texts(raw, tmp_path):
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    num_tokens = np.array([len(text.split()) + 1 for text in raw.splits["train"]["text"]])
    cut = num_tokens[num_tokens > 8]
    assert 0 < len(cut) < SIZES["train"]
    counts = cache.counts["train"]
    assert counts["samples"] == SIZES["train"]
    assert counts["cut"]["text"] == {"samples": len(cut), "mean_share": pytest.approx(np.mean(1 - 8 / cut))}
    assert any(note.startswith(f"train: {len(cut)} of 41 texts") for note in cache.notes)


def test_second_build_encodes_nothing(raw, tmp_path):
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    encoders = fake_encoders()
    build_cache(raw, encoders, tmp_path / "cache", **OPTIONS)
    assert encoders["image"].calls == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()} == before


def test_leaves_the_random_numbers_of_the_run_alone(raw, tmp_path):
    before = torch.get_rng_state()
    build_cache(raw, fake_encoders(), tmp_path / "cache", **{**OPTIONS, "num_workers": 1})
    assert torch.equal(torch.get_rng_state(), before)


def test_lost_shard_alone_is_encoded_again(raw, tmp_path):
    """Whatever shard size is asked for: a folder keeps the one that it was begun with."""
    build_cache(raw, fake_encoders(), tmp_path / "whole", **OPTIONS)
    build_cache(raw, fake_encoders(), tmp_path / "mended", **OPTIONS)
    (tmp_path / "mended" / "train" / "data-00001-of-00006.arrow").unlink()
    encoders = fake_encoders()
    build_cache(raw, encoders, tmp_path / "mended", **{**OPTIONS, "shard_size": 100})
    assert encoders["image"].calls == 2
    assert contents(tmp_path / "mended") == contents(tmp_path / "whole")


def test_open_refuses_what_is_no_cache_or_unfinished(raw, tmp_path):
    with pytest.raises(ValueError, match=r"no feature cache.*key\.json"):
        open_cache(tmp_path)
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    (tmp_path / "cache" / "info.json").unlink()
    with pytest.raises(ValueError, match="not finished"):
        open_cache(tmp_path / "cache")


def test_refuses_encoders_that_do_not_fit(raw, tmp_path):
    with pytest.raises(ValueError, match=r"\['text'\] do not fit the modalities \['image', 'text'\]"):
        build_cache(raw, {"text": fake_encoders()["text"]}, tmp_path / "cache")


@pytest.mark.parametrize("name", ["image_features", "image_special_mask", "image_geometry", "image_sha256"])
def test_refuses_modalities_whose_columns_would_have_one_name(raw, tmp_path, name):
    raw.splits = raw.splits.rename_column("text", name)
    raw.modalities = {"image": "image", name: "text"}
    encoders = dict(zip(("image", name), fake_encoders().values(), strict=True))
    with pytest.raises(ValueError, match=f"needs the name '{name}' for the modality 'image': rename the other"):
        build_cache(raw, encoders, tmp_path / "cache", **OPTIONS)


def test_refuses_an_empty_split(tmp_path):
    raw = write_raw(tmp_path / "raw", {"train": 3})
    raw.splits["test"] = raw.splits["train"].select([])
    with pytest.raises(ValueError, match="split 'test' of the raw data has no samples"):
        build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)


def test_two_builds_at_once_are_refused(raw, tmp_path):
    (tmp_path / "cache").mkdir()
    with (
        FileLock(tmp_path / "cache" / "build.lock"),
        pytest.raises(ValueError, match=rf"another run( \(process {os.getpid()}\))? is building"),
    ):
        build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)


def test_other_folders_are_refused_and_left_alone(raw, tmp_path):
    before = contents(tmp_path / "raw")
    with pytest.raises(ValueError, match=rf"in {tmp_path / 'raw'}, which holds .* and no feature cache; give a folder"):
        build_cache(raw, fake_encoders(), tmp_path / "raw", **OPTIONS)
    assert contents(tmp_path / "raw") == before


# ---- the key -------------------------------------------------------------------------------------------------------


def test_key_depends_on_content_not_on_place(tmp_path):
    raw = write_raw(tmp_path / "raw", SIZES)
    key = cache_key(raw, fake_encoders())
    assert json.loads(json.dumps(key)) == key
    assert cache_key(write_raw(tmp_path / "elsewhere", SIZES), fake_encoders()) == key

    picture = Path(raw.splits["test"][2]["image"]["path"])
    original = picture.read_bytes()
    picture.write_bytes(b"1234")
    assert cache_key(raw, fake_encoders()) != key
    picture.write_bytes(original)
    assert cache_key(raw, fake_encoders()) == key
    replace_text(raw, "test", 0, "another text")
    assert cache_key(raw, fake_encoders()) != key


def test_mismatch_names_every_field_with_both_values(raw, tmp_path):
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    encoders = fake_encoders()
    encoders["text"].max_length = 16
    encoders["image"].revision = "b"
    with pytest.raises(CacheMismatchError) as caught:
        build_cache(raw, encoders, tmp_path / "cache", **OPTIONS)
    assert "encoders.text.max_length: the cache has 8, asked for is 16" in str(caught.value)
    assert 'encoders.image.revision: the cache has "a", asked for is "b"' in str(caught.value)
    assert "data" not in str(caught.value).replace(str(tmp_path), "")

    key = cache_key(raw, fake_encoders())
    build_cache(raw, fake_encoders(), tmp_path / "cache", key=key, **OPTIONS)
    del key["encoders"]["text"]["preprocessing"]["lower"]
    with pytest.raises(CacheMismatchError, match=r"text\.preprocessing\.lower: the cache has true, asked for is \(abs"):
        build_cache(raw, fake_encoders(), tmp_path / "cache", key=key, **OPTIONS)


# ---- bad samples ---------------------------------------------------------------------------------------------------

BAD_TEXTS = {"x notanumber": "NaN", "overflowing x": "65504", "x nothing": "no feature"}


@pytest.mark.parametrize(("text", "reason"), BAD_TEXTS.items())
def test_bad_features_stop_the_build(raw, tmp_path, text, reason):
    replace_text(raw, "train", 18, text)
    with pytest.raises(SampleError, match=reason) as caught:
        build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    assert (caught.value.split, caught.value.sample_id, caught.value.field) == ("train", "train-18", "text")
    assert len(shard_files(tmp_path / "cache")) == 2  # rows 0-15; what was whole stays
    assert not list((tmp_path / "cache").rglob(".unfinished-*"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_picture_stops_the_build(raw, tmp_path, num_workers):
    path = raw.splits["validation"][3]["image"]["path"]
    Path(path).write_bytes(b"bad")
    with pytest.raises(SampleError, match="truncated") as caught:
        build_cache(raw, fake_encoders(), tmp_path / "cache", **{**OPTIONS, "num_workers": num_workers})
    error = caught.value
    assert (error.split, error.sample_id, error.field, error.file) == ("validation", "validation-3", "image", path)


def test_bad_samples_are_skipped_and_written_down(raw, tmp_path):
    raw.bad_samples.append(SampleError("train", "lost", "image", "lost.jpeg", "the file is missing"))
    for row, text in zip((3, 8, 9), BAD_TEXTS, strict=True):
        replace_text(raw, "train", row, text)
    for row in (0, 9, 20, 21, 22, 23):  # 9 is bad twice over; 20-23 are a whole batch
        Path(raw.splits["train"][row]["image"]["path"]).write_bytes(b"bad")
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", on_bad_sample="skip", **OPTIONS)

    left_out = {0, 3, 8, 9, 20, 21, 22, 23}
    good = raw.splits["train"].select([i for i in range(SIZES["train"]) if i not in left_out])
    assert cache.splits["train"]["id"][:] == good["id"][:]
    for row, raw_row in zip(cache.splits["train"], good, strict=True):
        np.testing.assert_array_equal(row["text_features"], text_features(raw_row["text"]).astype(np.float16))
    lines = [json.loads(line) for line in (tmp_path / "cache" / "skipped.jsonl").read_text().splitlines()]
    assert lines == cache.skipped
    assert lines[0] == {
        "id": "lost",
        "split": "train",
        "field": "image",
        "file": "lost.jpeg",
        "reason": "the file is missing",
    }
    assert {line["id"] for line in lines[1:]} == {f"train-{i}" for i in left_out}
    assert len(lines) == 9
    assert cache.counts["train"]["skipped"] == 8
    assert "9 samples were left out" in cache.notes[-1]

    with pytest.raises(SampleError, match="train-0"):  # a later run that does not want to skip is told
        build_cache(raw, fake_encoders(), tmp_path / "cache", on_bad_sample="stop", **OPTIONS)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_flipped_byte_is_found_and_mended(raw, tmp_path):
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    whole = contents(tmp_path / "cache")
    shard = shard_files(tmp_path / "cache")[3]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for use in (
        lambda: open_cache(tmp_path / "cache"),
        lambda: build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS),
    ):
        with pytest.raises(CorruptCacheError, match=rf"{shard} does not match its checksum; delete it and"):
            use()
    shard.unlink()
    with pytest.raises(CorruptCacheError, match=str(shard)):
        open_cache(tmp_path / "cache", verify=False)
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    assert contents(tmp_path / "cache") == whole


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
@pytest.mark.parametrize("name", ["key.json", "info.json", "record"])
def test_damage_of_what_describes_it_is_named(raw, tmp_path, name, content):
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    file = shard_files(tmp_path / "cache")[2].with_suffix(".json") if name == "record" else tmp_path / "cache" / name
    file.write_bytes(content)
    with pytest.raises(CorruptCacheError, match=rf"^{file} is missing or damaged .*; delete the feature cache"):
        open_cache(tmp_path / "cache")


@pytest.mark.parametrize("content", [None, b"{", b"[]\n[", b"\xff"])
@pytest.mark.parametrize("name", ["skipped.jsonl", "train/state.json", "test/dataset_info.json"])
def test_damage_of_small_files_is_named_and_mended(raw, tmp_path, name, content):
    cache_dir = tmp_path / "cache"
    build_cache(raw, fake_encoders(), cache_dir, **OPTIONS)
    whole = contents(cache_dir)
    file = cache_dir / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CorruptCacheError, match=rf"{file}.* is missing or damaged .*; delete info\.json"):
        open_cache(cache_dir)
    (cache_dir / "info.json").unlink()
    encoders = fake_encoders()
    build_cache(raw, encoders, cache_dir, **OPTIONS)
    assert encoders["image"].calls == 0
    assert contents(cache_dir) == whole


def test_full_disk(raw, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:  # key, then shard and record twice
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk is full") as caught:
        build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    left = sum(SIZES.values()) - 24  # the third shard has been encoded but not written
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "cache") in str(caught.value)
    assert f"up to {(left + 8) * 2 * (4 * 3 + 8 * 2):,} bytes more" in str(caught.value)
    assert [path.name for path in shard_files(tmp_path / "cache")] == [f"data-0000{i}-of-00006.arrow" for i in (0, 1)]
    assert not list((tmp_path / "cache").rglob(".unfinished-*"))

    monkeypatch.setattr(os, "fsync", fsync)
    encoders = fake_encoders()
    build_cache(raw, encoders, tmp_path / "cache", **OPTIONS)
    assert encoders["image"].calls == len(range(16, 41, 4)) + 2 + 3


BUILD = """
import os
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_encoders import fake_encoders, write_raw
from fl_i2moe.cache import build_cache
raw = write_raw(Path(sys.argv[2]), {"train": 41, "validation": 6, "test": 9})
encoders = fake_encoders()
build_cache(raw, encoders, sys.argv[3], batch_size=4, shard_size=8, num_workers=int(sys.argv[4]))
print(f"built {os.environ.get('RANK')}: {encoders['image'].calls} batches", flush=True)
"""


def test_killed_build_goes_on(raw, tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    command = [sys.executable, script, TESTS, tmp_path / "raw", tmp_path / "killed", "1"]
    process = subprocess.Popen(command, env={**os.environ, "FAKE_ENCODER_SECONDS": "0.3"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    third_shard = tmp_path / "killed" / "train" / ".unfinished-data-00002-of-00006.arrow"
    while not third_shard.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    before = {path: path.stat().st_mtime_ns for path in shard_files(tmp_path / "killed")}
    assert len(before) == 2
    encoders = fake_encoders()
    build_cache(raw, encoders, tmp_path / "killed", **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert encoders["image"].calls == len(range(16, 41, 4)) + 2 + 3
    build_cache(raw, fake_encoders(), tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_build_that_was_killed_while_it_wrote_its_key_begins_anew(raw, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".unfinished-key.json").write_text("{")
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    assert not list((tmp_path / "cache").rglob(".unfinished-*"))


# ---- several processes ---------------------------------------------------------------------------------------------


def test_two_processes_build_what_one_builds(raw, tmp_path, launch):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    result = launch(script, TESTS, tmp_path / "raw", tmp_path / "two", "0", forked=2)
    # shards of 8 8 8 8 8 1, 6 and 8 1 samples are dealt out in turn and encoded in batches of 4
    assert "built 0: 9 batches\n" in result.stdout
    assert "built 1: 7 batches\n" in result.stdout
    build_cache(raw, fake_encoders(), tmp_path / "one", **OPTIONS)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_waiting_ends_when_another_process_fails_or_all_are_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "STALL_SECONDS", 0)
    monkeypatch.setattr(cache_module, "POLL_SECONDS", 0.01)
    with pytest.raises(TimeoutError, match="no process has written"):
        cache_module._wait_for([tmp_path / "shard.json"], tmp_path)
    (tmp_path / "failed-1.txt").write_text("SampleError: no such picture")
    with pytest.raises(RuntimeError, match=r"another process failed .* no such picture"):
        cache_module._wait_for([tmp_path / "shard.json"], tmp_path)


def test_failing_process_tells_the_others(raw, tmp_path, monkeypatch):
    class SecondOfTwo:
        process_index, num_processes, is_main_process, is_local_main_process = 1, 2, False, False

        def wait_for_everyone(self):
            """What the main process does meanwhile."""
            cache_module._begin(tmp_path / "cache", cache_key(raw, fake_encoders()), 8, FileLock(tmp_path / "lock"))

    replace_text(raw, "train", 9, "x notanumber")
    monkeypatch.setattr(cache_module, "PartialState", lambda **_: SecondOfTwo())
    with pytest.raises(SampleError):
        build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    assert "train-9" in (tmp_path / "cache" / "failed-1.txt").read_text()


def test_moved_cache_opens(raw, tmp_path):
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    assert len(open_cache(tmp_path / "moved").splits["train"]) == SIZES["train"]
