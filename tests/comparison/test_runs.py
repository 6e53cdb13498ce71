"""Runs held against one another: thresholds, differences, intervals and disagreement against plain loops."""

import json
import re
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from conftest import reset_accelerate
from fake_encoders import fake_encoders, write_raw
from sklearn.metrics import f1_score, log_loss

from fl_i2moe.cache import build_cache
from fl_i2moe.comparison.runs import (
    common_seeds,
    common_threshold,
    compare_predictions,
    to_markdown,
)
from fl_i2moe.metrics.calibration import best_thresholds
from fl_i2moe.metrics.tasks import METRICS_BY_PROBLEM, compute_metrics
from fl_i2moe.training import experiment
from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.experiment import fit, start_job
from fl_i2moe.training.loop import Predictions
from fl_i2moe.training.runs import Run, find_runs

RECIPE = "recipes/compare_runs.py"


def predictions(problem_type, seed, num_samples=40, num_experts=3, num_classes=4, labels_seed=0) -> Predictions:
    generator = torch.Generator().manual_seed(labels_seed)
    shape = (num_samples, num_classes)
    if problem_type == "multi_label_classification":
        labels = (torch.rand(shape, generator=generator) < 0.4).float()
        signal = 2 * labels - 1
    elif problem_type == "single_label_classification":
        labels = torch.randint(num_classes, (num_samples,), generator=generator)
        signal = torch.nn.functional.one_hot(labels, num_classes).float()
    else:
        labels = signal = torch.randn(shape, generator=generator)
    generator.manual_seed(1 + seed)
    expert_logits = signal[:, None] + torch.randn((num_samples, num_experts, num_classes), generator=generator)
    weights = torch.full((num_samples, num_experts), 1 / num_experts)
    ids = [str(x) for x in range(num_samples)]
    return Predictions(ids, expert_logits.mean(dim=1), expert_logits, weights, labels)


def told_by(problem_type, names=("first", "second"), num_seeds=2):
    return {
        name: [
            {
                split: predictions(problem_type, seed=100 * r + 10 * s + v, labels_seed=v)
                for v, split in enumerate(("validation", "test"))
            }
            for s in range(num_seeds)
        ]
        for r, name in enumerate(names)
    }


@pytest.mark.parametrize("problem_type", METRICS_BY_PROBLEM)
def test_differences_and_intervals_against_a_plain_loop(problem_type):
    told = told_by(problem_type)
    report = compare_predictions(told, problem_type, threshold=0.3, num_resamples=10, seed=5)

    @cache
    def metrics(name, seed, draw=None):
        x = told[name][seed]["test"]
        rows = np.arange(40) if draw is None else np.repeat(np.arange(40), draws[draw])
        return compute_metrics(x.logits[rows], x.labels[rows], problem_type, threshold=0.3)

    draws = np.random.default_rng(5).multinomial(40, [1 / 40] * 40, size=10)
    for metric in METRICS_BY_PROBLEM[problem_type]:
        values = {name: [metrics(name, s)[metric] for s in range(2)] for name in told}
        for name in told:
            entry = report["metrics"][name][metric]
            assert entry["values"] == pytest.approx(values[name])
            assert entry["mean"] == pytest.approx(np.mean(values[name]))
        changes = np.subtract(values["second"], values["first"])
        difference = report["metrics"]["second"][metric]["difference"]
        assert difference["value"] == pytest.approx(changes.mean())
        assert difference["std"] == pytest.approx(changes.std(ddof=1))
        resampled = []
        for draw in range(10):
            resampled.append(
                np.mean([metrics("second", s, draw)[metric] - metrics("first", s, draw)[metric] for s in range(2)])
            )
        assert difference["interval"] == pytest.approx(np.nanpercentile(resampled, [2.5, 97.5]))
    assert "difference" not in report["metrics"]["first"]["mAP" if "mAP" in report["metrics"]["first"] else "mae"]
    assert ("own_thresholds" in report) == (problem_type == "multi_label_classification")
    for part in ("log_loss", "disagreement"):
        assert (report[part] is None) == (problem_type == "regression")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_run_held_against_itself_differs_nowhere():
    told = told_by("multi_label_classification", names=("first",))
    report = compare_predictions({**told, "again": told["first"]}, "multi_label_classification", num_resamples=20)
    for table in (report["metrics"], report["own_thresholds"], report["log_loss"]):
        for entry in table["again"].values():
            assert entry["difference"] == {"value": 0, "std": 0, "interval": [0, 0]}
    assert report["disagreement"]["again"]["first"] == report["disagreement"]["again"]["own"]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_log_losses_against_scikit_learn(problem_type):
    told = told_by(problem_type)
    report = compare_predictions(told, problem_type, num_resamples=10, seed=5)["log_loss"]

    def loss(name, seed, rows):
        x = told[name][seed]["test"]
        logits, labels = x.logits.double()[rows], x.labels[rows]
        if problem_type == "single_label_classification":
            return log_loss(labels, logits.softmax(-1), labels=range(4))
        return np.mean([log_loss(labels[:, c], logits[:, c].sigmoid(), labels=[0, 1]) for c in range(4)])

    values = {name: [loss(name, s, range(40)) for s in range(2)] for name in told}
    for name in told:
        assert report[name]["log_loss"]["values"] == pytest.approx(values[name])
    difference = report["second"]["log_loss"]["difference"]
    assert difference["value"] == pytest.approx(np.mean(values["second"]) - np.mean(values["first"]))
    resampled = []
    for draw in np.random.default_rng(5).multinomial(40, [1 / 40] * 40, size=10):
        rows = np.repeat(np.arange(40), draw)
        resampled.append(np.mean([loss("second", s, rows) - loss("first", s, rows) for s in range(2)]))
    assert difference["interval"] == pytest.approx(np.percentile(resampled, [2.5, 97.5]))


def test_thresholds_are_those_of_the_validation_split():
    told = told_by("multi_label_classification", num_seeds=1)
    report = compare_predictions(told, "multi_label_classification", num_resamples=1)
    for name, (seed,) in told.items():
        validation, test = seed["validation"], seed["test"]
        cuts = best_thresholds(validation.logits.double().numpy(), validation.labels.long().numpy())
        right = f1_score(test.labels, test.logits.double().numpy() > cuts, average="macro")
        assert report["own_thresholds"][name]["macro_f1"]["mean"] == pytest.approx(right)
        assert list(report["own_thresholds"][name]) == ["micro_f1", "macro_f1", "subset_accuracy"]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_disagreement_against_a_plain_loop(problem_type):
    told = told_by(problem_type)
    report = compare_predictions(told, problem_type, threshold=0.3, num_resamples=1)["disagreement"]

    def decisions(logits):
        if problem_type == "single_label_classification":
            return [[row.argmax().item()] for row in logits]
        return [[int(value.sigmoid() > 0.3) for value in row] for row in logits]

    def where(x):
        experts = [decisions(x.expert_logits[:, e]) for e in range(3)]
        return [[len({e[n][c] for e in experts}) > 1 for c in range(len(experts[0][n]))] for n in range(40)]

    for name, seeds in told.items():
        for kind, judges in (("own", seeds), ("first", told["first"])):
            counts, accuracies = [], []
            for seed, judge in zip(seeds, judges, strict=True):
                x, places = seed["test"], where(judge["test"])
                labels = x.labels.reshape(40, -1).tolist()
                said = decisions(x.logits)
                hits = [said[n][c] == labels[n][c] for n in range(40) for c in range(len(said[n])) if places[n][c]]
                counts.append(len(hits))
                accuracies.append(np.mean(hits))
            assert report[name][kind]["num_decisions"]["mean"] == np.mean(counts)
            assert report[name][kind]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
            assert report[name][kind]["accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))


def test_experts_that_never_disagree_have_no_accuracy_where_they_do():
    told = told_by("multi_label_classification", names=("dense", "unanimous", "divided"))
    for seed in told["dense"]:
        x = seed["test"]
        x.expert_logits = x.logits[:, None]
    for seed in told["unanimous"]:
        x = seed["test"]
        x.expert_logits = x.logits[:, None].expand(-1, 3, -1)
    report = compare_predictions(told, "multi_label_classification", num_resamples=1)
    disagreement = report["disagreement"]
    assert disagreement["dense"] == {"own": None, "first": None}
    assert disagreement["unanimous"]["own"]["num_decisions"]["max"] == 0
    assert disagreement["unanimous"]["own"]["accuracy"]["mean"] is None
    assert disagreement["divided"]["own"]["num_decisions"]["mean"] > 0
    settings = {"seeds": ["0", "1"], "threshold": 0.5, "num_resamples": 1}
    text = to_markdown({**report, "settings": settings, "samples": {"test": 40}})
    assert "| dense | – | – | – |" in text
    assert "| unanimous | 0\u00a0±\u00a00 (0.0\u00a0±\u00a00.0 %) | – | – |" in text


def test_seeds_and_thresholds_that_differ_are_named(tmp_path):
    runs = [
        Run(name, tmp_path / name, dict.fromkeys(seeds, tmp_path), {"threshold": threshold}, None)
        for name, seeds, threshold in (("a", "01", 0.5), ("b", "12", 0.3))
    ]
    with pytest.raises(ValueError, match=r"--seeds:\n.*a: 0 1\n.*b: 1 2"):
        common_seeds(runs)
    with pytest.raises(ValueError, match=r"--threshold:\n.*a: 0\.5\n.*b: 0\.3"):
        common_threshold(runs, None)
    assert common_threshold(runs, 0.4) == 0.4
    assert common_threshold(runs[1:], None) == 0.3


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A feature cache and two runs on it, a mixture and a pooled dense model."""
    folder = tmp_path_factory.mktemp("trained")
    raw = write_raw(folder / "raw", {"train": 32, "validation": 16, "test": 20})
    cache = build_cache(raw, fake_encoders(), folder / "cache", num_workers=0, progress=False)
    for name, changes in (("moe", {}), ("dense", {"architecture": "dense", "level": "pooled", "num_patches": 2})):
        job = Job(
            EncodingArguments(),
            ModelArguments(hidden_size=8, num_attention_heads=2, num_fusion_layers=1, **changes),
            TrainingArguments(num_epochs=1, batch_size=16, learning_rate=1e-2, num_threads=1, seeds=[0, 1]),
            OutputArguments(str(folder / name)),
        )
        reset_accelerate()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "true")
            patch.setattr(experiment, "save_statistics_figures", lambda *_: None)
            fit(cache, job, start_job(job), {}, quiet=True)
    reset_accelerate()
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of one's own."""
    return shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)


def test_one_command_holds_trained_runs_against_each_other(trained, run_here):
    where = [f"--cache_dir={trained / 'cache'}", f"--output_dir={trained / 'out'}", "--num_resamples=20"]
    command = [RECIPE, "--runs", trained / "moe", trained / "dense", *where]
    output = run_here(*command)
    report = json.loads((trained / "out" / "runs.json").read_text())
    assert (trained / "out" / "runs.md").read_text() in output
    for name in ("moe", "dense"):
        results = json.loads((trained / name / "results.json").read_text())
        for metric, entry in report["metrics"][name].items():
            assert entry["values"] == [
                x if x is None else pytest.approx(x, abs=1e-6)
                for x in (results["seeds"][seed]["test"][metric] for seed in "01")
            ]
    # Table 3, as the training run counted it
    shares = []
    for seed in "01":
        statistics = json.loads((trained / "moe" / f"seed-{seed}" / "interaction_statistics.json").read_text())
        table = statistics["agreement"]["per_label"]["table"]
        shares.append(table["disagree_right"]["share"] + table["disagree_wrong"]["share"])
    assert report["disagreement"]["moe"]["own"]["share"]["mean"] == pytest.approx(np.mean(shares))
    assert report["disagreement"]["dense"]["own"] is None
    assert (
        report["disagreement"]["dense"]["first"]["num_decisions"]
        == report["disagreement"]["moe"]["own"]["num_decisions"]
    )

    assert run_here(*command) == output  # a second start says the same
    with pytest.raises(SystemExit, match=r"threshold: 0\.5 then, 0\.4 now"):
        run_here(*command, "--threshold=0.4")
    with pytest.raises(SystemExit, match="runs: "):  # another one would be held against
        run_here(RECIPE, "--runs", trained / "dense", trained / "moe", *where)


def test_what_is_no_finished_run_is_refused_before_anything_is_written(trained, run_here, monkeypatch):
    cache, out = f"--cache_dir={trained / 'cache'}", trained / "out"

    def refusal(*runs, output_dir=out, options=()):
        with pytest.raises(SystemExit) as error:
            run_here(RECIPE, "--runs", *runs, cache, f"--output_dir={output_dir}", *options)
        assert not out.exists()
        return str(error.value)

    moe, dense = trained / "moe", trained / "dense"
    assert "has no model of the seeds ['7'], but of ['0', '1']" in refusal(moe, dense, options=["--seeds", "0", "7"])
    assert "`runs` names one run alone" in refusal(moe, f"{moe}/../moe")
    weights = moe / "seed-1" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    # a comparison never takes the place of what it compares
    assert "holds a run of another job, training" in refusal(moe, dense, output_dir=moe, options=["--overwrite"])
    assert weights.read_bytes() == whole

    weights.write_bytes(whole[: len(whole) // 2])
    assert f"The weights in {weights.parent} cannot be read" in refusal(moe, dense)
    weights.write_bytes(whole)
    (dense / "seed-1" / "results.json").unlink()
    assert f"{dense / 'seed-1'} has no results.json, its training has not ended" in refusal(moe, dense)
    shutil.rmtree(dense / "seed-1")
    assert "different seeds" in refusal(moe, dense)
    (dense / "run.json").write_text("{")
    assert f"{dense / 'run.json'}, which says what the run was trained on, is damaged" in refusal(moe, dense)


def test_runs_are_found_with_their_seeds_and_names(trained, monkeypatch):
    cache = trained / "cache"
    link = trained / "published"
    link.symlink_to(trained / "moe")
    (run,) = find_runs([str(link)], str(cache))
    assert (run.name, list(run.models)) == ("published", ["0", "1"])
    (run,) = find_runs([str(trained / "moe" / "seed-1" / "model")], str(cache))
    assert list(run.models) == ["1"]
    shutil.copytree(trained / "moe" / "seed-1", trained / "moe" / "seed-1-old")
    shutil.copytree(trained / "moe" / "seed-1", trained / "moe" / "seed-10")
    shutil.copytree(trained / "moe" / "seed-1", trained / "moe" / "seed-2")
    assert list(find_runs([str(trained / "moe")], str(cache))[0].models) == ["0", "1", "2", "10"]
    settings = json.loads((trained / "dense" / "run.json").read_text())
    (trained / "dense" / "run.json").rename(trained / "dense" / "run.txt")  # as a model that was copied alone
    assert len(find_runs([str(trained / "moe"), str(trained / "dense")], str(cache))) == 2
    (trained / "dense" / "run.json").write_text(json.dumps({**settings, "features": "another"}))
    (trained / "moe" / "run.json").write_text(json.dumps({**settings, "features": "one"}))
    with pytest.raises(ValueError, match=r"different features.*\n.*moe: one\n.*dense: another"):
        find_runs([str(trained / "moe"), str(trained / "dense")], str(cache))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "a"], "`runs` names fewer than two runs"),
        (["--runs", "a", "b", "--seed", "-1"], "`seed` must be at least 0, got -1"),
        (["--runs", "a", "b", "--threshold", "1"], r"`threshold` must lie in \(0, 1\), got 1.0"),
        (["--runs", "a", "b", "--num_resamples", "0"], "`num_resamples` must be at least 1, got 0"),
        (["--runs", "nowhere", "elsewhere"], "nowhere holds no model"),
    ],
)
def test_bad_options_are_refused_at_the_start(options, message, run_here, capsys):
    with pytest.raises(SystemExit) as error:
        run_here(RECIPE, *options)
    said = str(error.value) + capsys.readouterr().err
    assert re.search(message, said)
