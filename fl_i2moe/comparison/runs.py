"""
Trained runs compared with the first of them, sample by sample: metrics, thresholds, log losses, disagreeing experts.

    output_dir/
      run.json                  what the numbers depend on; a folder with another one is refused
      runs.json, runs.md

Shapes: N samples · E experts · C classes · R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from markupsafe import Markup
from numpy.typing import NDArray
from rich.console import Console

from ..metrics import markdown
from ..metrics.calibration import DECISION_METRICS, best_thresholds, log_losses
from ..metrics.statistics import experts_disagree
from ..metrics.summaries import CONFIDENCE, describe_draws, interval, plain, resample, weighted_means
from ..metrics.tasks import METRICS_BY_PROBLEM, FloatArray, difference, predict
from ..metrics.weighted import weighted_metrics
from ..training.arguments import check_options, option
from ..training.features import EVALUATION_SPLITS, check_splits
from ..training.loop import Predictions, predict_split
from ..training.recipe import create_console
from ..training.runs import Run, check_cache, fingerprint, load_model
from ..utils.files import write_json, write_text
from ..utils.run_folder import JobFiles, check_run_folder, held_run_folder

OUTPUT_FILES = JobFiles("comparison of runs", ("runs.json", "runs.md"))


@dataclass
class RunComparisonArguments:
    """Which runs, and how they are compared."""

    runs: list[str] = option([], "Folders of runs, two or more; each is compared with the first.")
    output_dir: str = option("runs/compared", "Folder for the tables.")
    overwrite: bool = option(False, "Replace what is in --output_dir.")
    seeds: list[str] = option([], "Seeds that are compared; all, the same in every run, if not given.")
    threshold: float | None = option(
        None, "Probability from which a label counts (multi-label); the runs' own if not given.", within="(0, 1)"
    )
    batch_size: int = option(64, "Samples a step.", at_least=1)
    num_resamples: int = option(1000, "Bootstrap samples behind an interval.", at_least=1)
    seed: int = option(0, "Seed of the bootstrap.", at_least=0)
    cache_dir: str | None = option(None, "Folder of the feature cache; the one of the training runs if not given.")

    def __post_init__(self):
        if len(self.runs) < 2:
            raise ValueError("`runs` names fewer than two runs: give --runs runs/published runs/specialised.")
        check_options(self)


def compare_runs(runs: Sequence[Run], arguments: RunComparisonArguments, accelerator: Accelerator) -> dict[str, Any]:
    """
    Evaluates the models of all runs, which have the same features, on validation and test split, compares each run with
    the first, and writes the tables. Returns the content of `runs.json`.

    Raises:
        ValueError: it is one run only, runs have different seeds or thresholds, a model cannot be read or does not go
            with the features, or the output folder holds something else.
    """
    console, output_dir = create_console(accelerator), Path(arguments.output_dir)
    flags: dict[str, Any] = {"resume": not arguments.overwrite, "overwrite": arguments.overwrite}
    check_run_folder(output_dir, OUTPUT_FILES, **flags)
    if len(runs) < 2:
        raise ValueError(f"`runs` names one run alone, {runs[0].folder}.")
    seeds, threshold, cache = common_seeds(runs), common_threshold(runs, arguments.threshold), runs[0].cache
    check_splits(cache.splits, f"The feature cache {cache.path}")
    weights: dict[str, list[str]] = {run.name: [] for run in runs}
    for run in runs:
        for folder in run.models.values():
            model = load_model(folder)
            check_cache(model, cache)
            weights[run.name].append(fingerprint(model))
    settings = {
        "runs": [run.name for run in runs],
        "seeds": seeds,
        "weights": weights,
        "features": {name: x["encoder"] for name, x in cache.modalities.items()},
        "threshold": threshold,
        "num_resamples": arguments.num_resamples,
        "seed": arguments.seed,
    }
    with held_run_folder(output_dir, settings, OUTPUT_FILES, **flags):
        predictions = {
            run.name: [_predict(run, seed, arguments.batch_size, accelerator, console) for seed in seeds]
            for run in runs
        }
        report = {
            "settings": settings,
            "folders": {run.name: str(run.folder) for run in runs},
            "samples": {split: len(cache.splits[split]) for split in EVALUATION_SPLITS},
            **compare_predictions(predictions, cache.problem_type, threshold, arguments.num_resamples, arguments.seed),
        }
        text = to_markdown(report)
        write_json(output_dir / "runs.json", report)
        write_text(output_dir / "runs.md", text)
    console.print(text)
    console.print(f"Written to {output_dir}")
    return report


def common_seeds(runs: Sequence[Run]) -> list[str]:
    """Raises `ValueError` where runs have different ones."""
    own = {run.folder: " ".join(run.models) for run in runs}
    _refuse_different("The runs have different seeds; name those to compare by --seeds", own)
    return list(runs[0].models)


def common_threshold(runs: Sequence[Run], wanted: float | None) -> float:
    """The wanted threshold, or that of the training runs; raises `ValueError` where these have different ones."""
    own = {run.folder: run.settings.get("threshold", 0.5) for run in runs}
    if wanted is None:
        _refuse_different("The runs were evaluated with different thresholds; give one by --threshold", own)
    return wanted or next(iter(own.values()))


def _refuse_different(message: str, own: Mapping[Path, Any]) -> None:
    if len(set(own.values())) > 1:
        raise ValueError(f"{message}:\n" + "\n".join(f"  {folder}: {value}" for folder, value in own.items()))


def _predict(
    run: Run, seed: str, batch_size: int, accelerator: Accelerator, console: Console
) -> dict[str, Predictions]:
    console.print(f"{run.name}, seed {seed}")
    model, predictions = load_model(run.models[seed]).to(accelerator.device), {}
    order = model.config.modality_order
    for split in EVALUATION_SPLITS:
        x = predict_split(model, run.cache.splits[split], order, accelerator, batch_size, f"Evaluating {split}")
        if not x.expert_logits.isfinite().all():
            raise ValueError(f"The model in {run.models[seed]} predicts NaN or infinite values on the {split} split.")
        predictions[split] = x
    return predictions


def compare_predictions(
    predictions: Mapping[str, Sequence[Mapping[str, Predictions]]],
    problem_type: str,
    threshold: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Args:
        predictions: run → seed by seed, split → predictions; seeds and samples in the same order in every run.

    Returns:
        Plain JSON; figures are of the test split, and a description is {`mean`, `std`, `min`, `max`} over the seeds.

        - `metrics`, and of multi-label problems `own_thresholds`, where each label has its threshold of
          [`~fl_i2moe.metrics.calibration.best_thresholds`] on the validation split: run → metric → a description with
          `values` by seed and, but for the first run, `difference` to it: {`value` of the means over the seeds, `std`
          of the seeds' differences, `interval`, the middle 95 % of a bootstrap over test samples, drawn alike for all
          runs and seeds}.
        - `log_loss`, `None` for regression: the same of the mean negative log-likelihood of a label, in nats, which
          overconfident probabilities do not improve.
        - `disagreement`, `None` for regression: run → `own`, about the decisions on which two experts of the model
          itself disagree (Table 3 of I²MoE), and `first`, about those on which experts of the first run's model of the
          same seed do: descriptions {`num_decisions`, `share` of all, `accuracy` of the mixture there, over the seeds
          that have such decisions}; `None` for a single expert. A decision is a class, or yes or no to a label.
    """
    test = {name: [seed["test"] for seed in seeds] for name, seeds in predictions.items()}
    logits = {name: [_double(x.logits) for x in seeds] for name, seeds in test.items()}
    labels = next(iter(test.values()))[0].labels.numpy()
    draws = resample(len(labels), num_resamples, seed)

    def metrics(logits: Mapping[str, Sequence[FloatArray]], threshold: float) -> dict[str, Any]:
        return _against_first(logits, lambda x: weighted_metrics(x, labels, problem_type, draws, threshold))

    report: dict[str, Any] = {"metrics": metrics(logits, threshold)}
    if problem_type == "multi_label_classification":
        # a logit less its label's threshold is positive where the label is predicted
        shifted = {
            name: [_double(x["test"].logits) - _thresholds(x["validation"]) for x in seeds]
            for name, seeds in predictions.items()
        }
        report["own_thresholds"] = {
            name: {metric: table[metric] for metric in DECISION_METRICS}
            for name, table in metrics(shifted, threshold=0.5).items()
        }
    if problem_type == "regression":
        return report | {"log_loss": None, "disagreement": None}
    report["log_loss"] = _against_first(logits, lambda x: {"log_loss": weighted_means(log_losses(x, labels), draws)})
    where = {
        name: [experts_disagree(x.expert_logits.numpy(), problem_type, threshold) for x in seeds]
        if seeds[0].expert_logits.shape[1] > 1
        else None
        for name, seeds in test.items()
    }
    first = next(iter(where.values()))
    report["disagreement"] = {}
    for name, seeds in logits.items():
        right = [predict(x, problem_type, threshold) == labels for x in seeds]
        report["disagreement"][name] = {"own": _accuracy(right, where[name]), "first": _accuracy(right, first)}
    return report


def _double(x: torch.Tensor) -> FloatArray:
    return x.double().numpy()


def _thresholds(validation: Predictions) -> FloatArray:
    return best_thresholds(_double(validation.logits), validation.labels.long().numpy())


def _against_first(
    logits: Mapping[str, Sequence[FloatArray]], measure: Callable[[FloatArray], Mapping[str, FloatArray]]
) -> dict[str, Any]:
    """Run → metric → its entry in [`compare_predictions`]' report; `measure` gives metric → (1 + R,) for one seed."""
    values = {name: [measure(x) for x in seeds] for name, seeds in logits.items()}
    first = next(iter(values))
    table: dict[str, Any] = {name: {} for name in values}
    for metric in values[first][0]:
        by_run = {name: np.stack([x[metric] for x in seeds]) for name, seeds in values.items()}  # (seeds, 1 + R)
        for name, x in by_run.items():
            table[name][metric] = {**describe_draws(x[:, 0]), "values": plain(x[:, 0])}
            if name == first:
                continue
            changes = x - by_run[first]
            table[name][metric]["difference"] = {
                "value": difference(table[name][metric]["mean"], table[first][metric]["mean"]),
                "std": describe_draws(changes[:, 0])["std"],
                "interval": interval(changes.mean(axis=0)[1:]),
            }
    return table


def _accuracy(right: Sequence[NDArray[Any]], where: Sequence[NDArray[Any]] | None) -> dict[str, Any] | None:
    if where is None:
        return None
    counts = np.array([x.sum() for x in where], np.float64)
    hits = [(r & x).sum() / x.sum() for r, x in zip(right, where, strict=True) if x.any()]
    return {
        "num_decisions": describe_draws(counts),
        "share": describe_draws(counts / where[0].size),
        "accuracy": describe_draws(np.array(hits or [np.nan])),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """The tables of [`compare_runs`]' report for reading."""
    settings, first = report["settings"], next(iter(report["metrics"]))
    seeds = settings["seeds"]
    spread = "mean ± standard deviation of the seeds" if len(seeds) > 1 else "seed"
    thresholds = f", labels predicted above {settings['threshold']:g}" if "own_thresholds" in report else ""
    parts = [
        f"Test split, {report['samples']['test']:,} samples{thresholds}; {spread} {', '.join(seeds)}; shares in per "
        f"cent. Differences are to {markdown.escape(first)}, with their standard deviation over the seeds and, in "
        f"brackets, their {CONFIDENCE:.0%} interval by {settings['num_resamples']:,} bootstrap resamples of the test "
        "samples."
    ]
    for title, table in (
        ("Metrics", report["metrics"]),
        ("With a threshold for each label from the validation split", report.get("own_thresholds")),
        ("How good the probabilities are", report["log_loss"]),
    ):
        if table:
            parts += [f"### {title}", *_metric_tables(table)]
    if report["disagreement"]:
        header = [
            "run",
            "decisions on which its experts disagree",
            "its mixture is right there",
            Markup(f"right where experts of {markdown.escape(first)} disagree"),
        ]
        rows = [
            [name, *_own_cells(x["own"]), _share(x["first"] and x["first"]["accuracy"])]
            for name, x in report["disagreement"].items()
        ]
        parts += ["### Where experts disagree", str(markdown.table(header, rows)).rstrip()]
    return "\n\n".join(parts) + "\n"


def _metric_tables(table: Mapping[str, Any]) -> list[str]:
    """Values, and differences to the first run."""
    metrics = list(next(iter(table.values())))
    lower = {"log_loss", *(m for known in METRICS_BY_PROBLEM.values() for m, greater in known.items() if not greater)}
    header = [Markup(f"{metric} (lower is better)" if metric in lower else metric) for metric in metrics]
    values = [[name, *(markdown.spread(m, entry[m]) for m in metrics)] for name, entry in table.items()]
    changes = [[name, *(_change(m, entry[m]) for m in metrics)] for name, entry in list(table.items())[1:]]
    return [
        str(markdown.table([head, *header], rows)).rstrip() for head, rows in (("run", values), ("difference", changes))
    ]


def _change(metric: str, entry: Mapping[str, Any]) -> str:
    change = entry["difference"]
    if change["value"] is None:
        return "–"
    around = "" if change["std"] is None else f"\u00a0±\u00a0{markdown.shown(metric, change['std'])}"
    limits = ",\u00a0".join(markdown.signed(metric, x) for x in change["interval"] or [])
    return Markup(markdown.signed(metric, change["value"]) + around + (f" [{limits}]" if limits else ""))


def _own_cells(own: Mapping[str, Any] | None) -> list[str]:
    if own is None:
        return ["–", "–"]
    count = own["num_decisions"]
    around = "" if count["std"] is None else f"\u00a0±\u00a0{count['std']:,.0f}"
    return [f"{count['mean']:,.0f}{around} ({_share(own['share'])} %)", _share(own["accuracy"])]


def _share(value: Mapping[str, Any] | None) -> str:
    return markdown.spread("accuracy", value)
