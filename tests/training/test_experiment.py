"""Whole jobs in this process, on numbers: other kinds of labels, trackers, and what is refused at the start."""

import json
import shutil
from inspect import signature

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, MLflowTracker
from datasets import Features, List, Value
from fake_encoders import fake_encoders, take_away, write_raw
from safetensors.torch import load_file, save_file
from scipy.special import expit, softmax
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from transformers import AutoModel

from fl_i2moe.cache import build_cache, open_cache
from fl_i2moe.cache.batching import create_data_loader
from fl_i2moe.data.raw import RawDataset
from fl_i2moe.training import features as run_features
from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.experiment import fit, start_job
from fl_i2moe.training.features import EncoderChoice, encode
from fl_i2moe.training.recipe import RUN_NAMES
from fl_i2moe.training.runs import Run, find_cache, find_runs
from fl_i2moe.utils.checked_json import read_json

SIZES = {"train": 96, "validation": 32, "test": 20}


@pytest.fixture
def run(tmp_path, monkeypatch, fresh_accelerate, no_figures):
    """Runs a job with fake encoders on the CPU; returns its results."""

    def start(raw, *, model=None, resume=False, cache="cache", **training):
        options = {"num_epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "num_threads": 1, **training}
        job = Job(
            EncodingArguments(cache_dir=str(tmp_path / cache), encoding_workers=0),
            ModelArguments(hidden_size=16, num_attention_heads=2, num_fusion_layers=1, dropout=0.1, **(model or {})),
            TrainingArguments(**options),
            OutputArguments(str(tmp_path / "run"), resume=resume),
        )
        fresh_accelerate()
        choices = {"image": EncoderChoice("fake"), "text": EncoderChoice("fake")}
        accelerator = start_job(job)
        return fit(encode(raw, choices, job, accelerator), job, accelerator, job.settings())

    monkeypatch.setattr(run_features, "load_encoder", lambda folder, kind, **options: fake_encoders()[kind])
    return start


def with_labels(raw, problem_type, label_names, label_of, feature) -> RawDataset:
    """The same samples with other labels: `label_of` gets the number of words."""
    for split, rows in raw.splits.items():
        labels = [label_of(len(text.split())) for text in rows["text"]]
        features = Features({**rows.features, "labels": feature})
        raw.splits[split] = rows.remove_columns("labels").add_column("labels", labels, feature=features["labels"])
    return RawDataset(raw.splits, raw.modalities, label_names, problem_type)


def predict_test(folder):
    """Logits and labels of the test split, from what lies on the disk."""
    cache = open_cache(folder / "cache")
    model = AutoModel.from_pretrained(folder / "run").eval()
    loader = create_data_loader(cache.splits["test"], model.config.modality_order, batch_size=64, shuffle=False)
    batch = next(iter(loader))
    with torch.no_grad():
        logits = model(features=batch["features"], feature_masks=batch["feature_masks"]).logits
    return logits, batch["labels"]


def check_carriers(run_dir, results, config, rows, split):
    """Those of the test split, from what its predictions say that each expert adds to the logits."""
    statistics = json.loads((run_dir / "interaction_statistics.json").read_text())
    assert config.interaction_statistics == statistics
    labels = np.array(split["labels"])
    parts = np.stack([np.stack(rows[f"contribution_{e}"]) for e in config.expert_names]) / (config.temperature or 1)
    first = {"regression": "rmse"}.get(config.problem_type, "log_loss")

    def score(logits, c):
        if config.problem_type == "regression":
            return np.sqrt(np.mean((logits - labels)[:, c] ** 2))
        if labels.ndim == 1:
            return log_loss(labels[labels == c], softmax(logits, axis=1)[labels == c], labels=range(logits.shape[1]))
        return log_loss(labels[:, c], expit(logits[:, c]), labels=[0, 1])

    for c, name in enumerate(config.label_names):
        entry = statistics["carriers"]["labels"][name]
        if labels.ndim == 1 and not (labels == c).any():
            continue
        assert entry["score"][first] == pytest.approx(score(parts.sum(axis=0), c), abs=1e-4)
        for e, expert in enumerate(config.expert_names):
            changed = np.delete(parts, e, axis=0).sum(axis=0) + parts[e].mean(axis=0)
            lost = score(changed, c) - score(parts.sum(axis=0), c)
            assert entry["losses"][expert][first]["value"] == pytest.approx(lost, abs=1e-4)
        for metric in ("recall", "f1", "mae"):
            if metric in entry["score"]:
                assert entry["score"][metric] == pytest.approx(results["per_class"][name][metric], rel=1e-4)


def check_what_is_told(run_dir, results, cache_dir):
    """Predictions, calibration and metrics of classes of one seed, or of the best one on top, from its model alone."""
    cache, model = open_cache(cache_dir), AutoModel.from_pretrained(run_dir).eval()
    config, table = model.config, pq.read_table(run_dir / "predictions.parquet").to_pandas()
    names, experts = config.label_names, config.expert_names
    check_carriers(run_dir, results, config, table[table["split"] == "test"], cache.splits["test"])
    assert list(table["split"]) == [split for split in ("train", "validation", "test") for _ in cache.splits[split]]
    for split, rows in table.groupby("split"):
        assert list(rows["id"]) == list(cache.splits[split]["id"])
        loader = create_data_loader(cache.splits[split], config.modality_order, batch_size=96, shuffle=False)
        batch = next(iter(loader))
        with torch.no_grad():
            output = model(features=batch["features"], feature_masks=batch["feature_masks"])
        by_expert = np.stack([np.stack(rows[f"contribution_{e}"]) for e in experts], axis=1)  # (N, E, C)
        weights = rows[[f"weight_{e}" for e in experts]].to_numpy()
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(by_expert, weights[:, :, None] * output.expert_logits.numpy(), atol=1e-4)
        logits, labels = by_expert.sum(axis=1), batch["labels"].numpy()
        np.testing.assert_allclose(logits, output.logits.numpy(), atol=1e-4)
        if config.problem_type == "regression":
            np.testing.assert_allclose(rows["predicted"], logits[:, 0], atol=1e-4)
            np.testing.assert_allclose(rows["label"], labels[:, 0])
            assert config.temperature is None
            assert config.thresholds is None
            assert not any(name.startswith("probability_") for name in rows)
            if split == "test":
                found = results["per_class"][names[0]]
                assert found["rmse"] == pytest.approx(np.sqrt(np.mean((logits - labels) ** 2)), rel=1e-4)
                assert found["pearson"] == pytest.approx(np.corrcoef(logits[:, 0], labels[:, 0])[0, 1], rel=1e-3)
            continue
        probabilities = rows[[f"probability_{name}" for name in names]].to_numpy()
        scaled = torch.tensor(logits) / config.temperature
        if labels.ndim == 1:
            np.testing.assert_allclose(probabilities, scaled.softmax(-1), atol=1e-4)
            assert list(rows["label"]) == [names[y] for y in labels]
            assert list(rows["predicted"]) == [names[c] for c in probabilities.argmax(axis=1)]
            true, said, kept = rows["label"], rows["predicted"], {"labels": names}
        else:
            np.testing.assert_allclose(probabilities, scaled.sigmoid(), atol=1e-4)
            said = probabilities > np.array(config.thresholds)
            for kind, flags in (("label", labels > 0), ("predicted", said)):
                shown = [[name for name, flag in zip(names, row, strict=True) if flag] for row in flags]
                assert [list(x) for x in rows[kind]] == shown
            true, kept = labels, {}
        if split == "train":
            continue
        losses = [
            log_loss(labels, p, labels=range(len(names)))
            if labels.ndim == 1
            else np.mean([log_loss(labels[:, c], p[:, c], labels=[0, 1]) for c in range(len(names))])
            for p in (probabilities, _plain(logits, labels))
        ]
        if labels.ndim == 2:
            for average in ("micro", "macro"):
                expected = f1_score(labels, said, average=average, zero_division=0)
                assert results["own_thresholds"][split][f"{average}_f1"] == pytest.approx(expected)
        train = open_cache(cache_dir).splits["train"].with_format("numpy")[:]["labels"]
        if labels.ndim == 1:
            shares = np.bincount(train, minlength=len(names)) / len(train)
            constant = log_loss(labels, np.tile(shares, (len(labels), 1)), labels=range(len(names)))
        else:
            constant = np.mean(
                [
                    log_loss(labels[:, c], np.full(len(labels), np.mean(train[:, c])), labels=[0, 1])
                    for c in range(len(names))
                ]
            )
        assert results["log_loss_of_frequencies"][split] == pytest.approx(constant)
        found = results["calibration"][split]
        assert [found["after"]["log_loss"], found["before"]["log_loss"]] == pytest.approx(losses, rel=1e-3)
        if split == "validation":
            assert losses[0] <= losses[1] + 1e-6
        if split == "test":
            rates = precision_recall_fscore_support(true, said, average=None, zero_division=0, **kept)
            for name, *values in zip(names, *rates, strict=True):
                found = results["per_class"][name]
                assert [found[x] for x in ("precision", "recall", "f1", "support")] == pytest.approx(values)
            if labels.ndim == 1:
                matrix = [[results["confusion_matrix"].get(a, {}).get(b, 0) for b in names] for a in names]
                assert matrix == confusion_matrix(true, said, labels=names).tolist()


def _plain(logits, labels):
    x = torch.tensor(logits)
    return (x.softmax(-1) if labels.ndim == 1 else x.sigmoid()).numpy()


def best_epochs(folder, metric):
    """Per seed: the epochs of the largest and of the smallest validation metric, counted from 1."""
    best = {}
    for history in sorted(folder.glob("run/seed-*/history.json")):
        values = [entry[f"validation_{metric}"] for entry in json.loads(history.read_text())]
        best[history.parent.name.removeprefix("seed-")] = int(np.argmax(values)) + 1, int(np.argmin(values)) + 1
    return best


def test_single_labels(run, tmp_path):
    """Short, middling or long text."""
    raw = write_raw(tmp_path / "raw", SIZES)
    raw = with_labels(
        raw,
        "single_label_classification",
        ["short", "middling", "long"],
        lambda n: (n > 3) + (n > 6),
        Value("int64"),
    )
    results = run(raw, num_epochs=12)
    assert results["metric"] == "accuracy"
    assert results["seeds"]["0"]["best_epoch"] == best_epochs(tmp_path, "accuracy")["0"][0]
    logits, labels = predict_test(tmp_path)
    assert logits.shape == (20, 3)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert results["test"]["accuracy"]["mean"] == pytest.approx(accuracy)
    assert accuracy > 0.7
    assert AutoModel.from_pretrained(tmp_path / "run").config.id2label == {0: "short", 1: "middling", 2: "long"}
    check_what_is_told(tmp_path / "run", results["seeds"]["0"], tmp_path / "cache")


def test_regression(run, tmp_path):
    """The number of words, a fifth of it."""
    raw = write_raw(tmp_path / "raw", SIZES)
    raw = with_labels(raw, "regression", ["words"], lambda n: [n / 5], List(Value("float32"), length=1))
    results = run(raw, num_epochs=12, seeds=[0, 1])
    assert results["metric"] == "mae"
    for seed, (worst, best) in best_epochs(tmp_path, "mae").items():
        assert results["seeds"][seed]["best_epoch"] == best != worst
    by_seed = {int(seed): x["validation"]["mae"] for seed, x in results["seeds"].items()}
    assert results["best_seed"] == min(by_seed, key=by_seed.get)
    logits, labels = predict_test(tmp_path)
    assert logits.shape == labels.shape == (20, 1)
    mae = (logits - labels).abs().mean().item()
    assert results["seeds"][str(results["best_seed"])]["test"]["mae"] == pytest.approx(mae, rel=1e-4)
    check_what_is_told(tmp_path / "run", results["seeds"][str(results["best_seed"])], tmp_path / "cache")
    # better than saying the mean each time
    train_labels = torch.tensor(np.array(raw.splits["train"]["labels"]))
    assert mae < 0.7 * (labels - train_labels.mean()).abs().mean()


class ListTracker(GeneralTracker):
    name = "list"
    requires_logging_directory = False
    main_process_only = True
    configuration = None
    logged = ()
    finished = False

    def __init__(self, run_name, **options):
        super().__init__()
        self.run_name = run_name
        type(self).project, type(self).options = run_name, options

    @property
    def tracker(self):
        return self.run_name

    def store_init_configuration(self, values):
        type(self).configuration = values

    def log(self, values, step=None, **options):
        type(self).logged = (*self.logged, (step, values))

    def finish(self):
        type(self).finished = True


def test_trackers_get_settings_losses_and_metrics(run, tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "list", ListTracker)  # what register_tracker_class does
    monkeypatch.setitem(RUN_NAMES, "list", "name")
    raw, names = write_raw(tmp_path / "raw", SIZES), {"tracker_project": "films", "run_name": "first"}
    results = run(raw, report_to="list", num_epochs=2, seeds=[3, 5], **names)
    assert ListTracker.configuration["learning_rate"] == "0.01"
    assert not names.keys() & ListTracker.configuration.keys()
    assert (ListTracker.project, ListTracker.options) == ("films", {"name": "first"})
    assert ListTracker.finished
    best = tmp_path / "run" / f"seed-{results['best_seed']}"
    check_what_is_told(tmp_path / "run", results["seeds"][str(results["best_seed"])], tmp_path / "cache")
    told = [(folder / "predictions.parquet").read_bytes() for folder in (tmp_path / "run", best)]
    assert told[0] == told[1]
    for split in ("test", "validation"):
        values = [x["own_thresholds"][split]["micro_f1"] for x in results["seeds"].values()]
        assert results["own_thresholds"][split]["micro_f1"]["mean"] == pytest.approx(np.mean(values))
        values = [x["calibration"][split]["after"]["ece"] for x in results["seeds"].values()]
        assert results["calibration"][split]["after"]["ece"]["std"] == pytest.approx(np.std(values, ddof=1))
    logged = ListTracker.logged
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)
    for first_step, seed in ((0, 3), (12, 5)):
        losses = {step: x[f"seed-{seed}/loss"] for step, x in logged if f"seed-{seed}/loss" in x}
        assert list(losses) == [first_step + i for i in range(1, 13)]  # 6 batches an epoch
        names = {name for _, x in logged for name in x if name.startswith(f"seed-{seed}/interaction_loss/")}
        assert len(names) == 4
        history = json.loads((tmp_path / "run" / f"seed-{seed}" / "history.json").read_text())
        assert np.mean(list(losses.values())[:6]) == pytest.approx(history[0]["loss"])
        values = [
            (step, x[f"seed-{seed}/validation/micro_f1"])
            for step, x in logged
            if f"seed-{seed}/validation/micro_f1" in x
        ]
        assert values == [(first_step + 6 * i, history[i - 1]["validation_micro_f1"]) for i in (1, 2)]
        assert results["seeds"][str(seed)]["validation"]["micro_f1"] == pytest.approx(max(value for _, value in values))


def test_a_resumed_job_knows_a_finished_seed(run, tmp_path):
    """It clears the checkpoints that a kill left, and refuses weights that are not those that were trained."""
    raw = write_raw(tmp_path / "raw", SIZES)
    expected = run(raw, num_epochs=1)
    checkpoint = tmp_path / "run" / "seed-0" / "checkpoints" / "step-00000006-epoch-0001"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "results.json").unlink()
    assert run(raw, num_epochs=1, resume=True)["test"] == expected["test"]
    assert not checkpoint.parent.exists()
    told = tmp_path / "run" / "seed-0" / "predictions.parquet"
    told.unlink()
    with pytest.raises(ValueError, match=r"seed-0 has no predictions.parquet: remove it, and run again"):
        run(raw, num_epochs=1, resume=True)
    # as 0.1.0 left it
    file, new = tmp_path / "run" / "seed-0" / "results.json", ("own_thresholds", "calibration", "per_class")
    file.write_text(json.dumps({k: x for k, x in json.loads(file.read_text()).items() if k not in new}))
    (tmp_path / "run" / "predictions.parquet").unlink()
    results = run(raw, num_epochs=1, resume=True)
    assert results["test"] == expected["test"]
    assert not {*new} & {*results, *results["seeds"]["0"]}
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    weights = tmp_path / "run" / "seed-0" / "model" / "model.safetensors"
    save_file({name: x + 1 for name, x in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"seed-0.model does not hold the weights that were trained: remove "):
        run(raw, num_epochs=1, resume=True)


@pytest.mark.parametrize(
    ("training", "model", "message"),
    [
        ({"report_to": "nosuch"}, {}, "nosuch"),
        ({"tracker_project": "../films"}, {}, r"`tracker_project` \.\./films leads out of the run's folder"),
        ({"tracker_project": ""}, {}, "`tracker_project` is empty"),
        ({"run_name": " "}, {}, "`run_name` is empty"),
        ({"report_to": "clearml"}, {}, "`report_to` clearml: no such tracker is installed"),
        ({"mixed_precision": "fp16"}, {}, "fp16 needs a GPU"),
        ({"metric": "mae"}, {}, "micro_f1"),
        ({}, {"level": "pooled", "num_patches": 1000}, "^`num_patches` must be at most 3, .* got 1000"),
        ({}, {"num_perturbed_views": 3}, "^`num_perturbed_views` must lie in 2 … 2"),
    ],
)
def test_refused_before_anything_is_encoded(run, tmp_path, training, model, message):
    with pytest.raises(ValueError, match=message):
        run(write_raw(tmp_path / "raw", SIZES), model=model, **training)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


def test_a_run_finds_its_features_again(run, tmp_path, monkeypatch):
    """Also where samples lack a modality, and where both have moved."""
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path / "user"))
    raw = take_away(write_raw(tmp_path / "raw", {"train": 20, "validation": 8, "test": 6}), "test", "text", [1])
    run(raw, model={"fill_missing": "zero"}, num_epochs=1)
    features, folder = tmp_path / "cache", tmp_path / "run"
    assert find_cache(folder).path == find_cache(folder / "seed-0" / "model").path == features
    assert Run.open(folder).cache.missing == {"test": {"text": 1}}
    before = read_json(folder / "run.json", dict)

    features.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=rf"not in {tmp_path}/user/features, and {features}, .*is gone: .*--cache_dir"):
        find_cache(folder)
    (tmp_path / "away").rename(folder / "kept")
    run(
        raw, model={"fill_missing": "zero"}, num_epochs=1, resume=True, cache="run/kept"
    )  # another place is no obstacle
    assert read_json(folder / "run.json", dict) == before | {"cache_dir": "kept"}
    folder.rename(tmp_path / "elsewhere")
    assert find_runs([str(tmp_path / "elsewhere")])[0].cache.path == tmp_path / "elsewhere" / "kept"

    other = write_raw(tmp_path / "other", {"train": 3, "validation": 3, "test": 3}, seed=1)
    shutil.rmtree(tmp_path / "elsewhere" / "kept")
    build_cache(other, fake_encoders(), tmp_path / "elsewhere" / "kept", num_workers=0, progress=False)
    with pytest.raises(ValueError, match=r"kept, where it was, holds other features now: give its folder by --cache"):
        find_cache(tmp_path / "elsewhere")


def test_run_names_are_arguments_that_trackers_take():
    assert RUN_NAMES["mlflow"] in signature(MLflowTracker).parameters
    assert set(RUN_NAMES) <= set(LOGGER_TYPE_TO_CLASS)


def test_a_split_that_is_missing_is_named(run, tmp_path):
    """In raw data; in a feature cache below."""
    raw = write_raw(tmp_path / "raw", SIZES)
    del raw.splits["validation"]
    with pytest.raises(ValueError, match="The raw data has no split validation, only train, test"):
        run(raw)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("recipe", ["train_mmimdb", "compare"])
def test_features_without_a_split_are_refused(recipe, tmp_path, run_here):
    raw = write_raw(tmp_path / "raw", {"train": 20, "test": 4})
    build_cache(raw, fake_encoders(), tmp_path / "cache", num_workers=0, progress=False)
    with pytest.raises(SystemExit, match=rf"{tmp_path / 'cache'} has no split validation, only train, test"):
        run_here(f"recipes/{recipe}.py", f"--features={tmp_path / 'cache'}", f"--output_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
