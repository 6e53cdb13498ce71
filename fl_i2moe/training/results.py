"""What `results.json` holds, of a run and of one seed; one that was edited, or is another's, is refused by its keys."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..metrics.calibration import DECISION_METRICS
from ..metrics.classes import CLASS_METRICS
from ..metrics.tasks import METRICS_BY_PROBLEM
from ..utils.checked_json import read_json

RESULTS_FILE = "results.json"
SPLITS = ("test", "validation")

_METRICS = {str: (float, None)}
_SUMMARIES = {str: {"mean": (float, None), "std": (float, None)}}  # over the seeds
_BY_SPLIT = dict.fromkeys(SPLITS, _METRICS)
_CALIBRATION = {when: {"log_loss": float, "ece": float} for when in ("before", "after")}
SEED_RESULTS = {
    **_BY_SPLIT,
    # what follows earlier versions did not measure, see `measure` in `calibration.py`
    "own_thresholds?": _BY_SPLIT,
    "calibration?": dict.fromkeys(SPLITS, _CALIBRATION),
    "log_loss_of_frequencies?": dict.fromkeys(SPLITS, (float, None)),
    "per_class?": {str: _METRICS},
    "confusion_matrix?": {str: {str: int}},
    "best_epoch": int,
    "epochs": int,
    "training_seconds": float,
    "parameters": int,
    "weights?": str,  # fingerprint of the model, by which a resumed run knows it again; older versions wrote none
}
RESULTS = {
    "metric": str,  # that picked the best epochs and the best seed
    "best_seed": int,
    "test": _SUMMARIES,
    "validation": _SUMMARIES,
    "own_thresholds?": dict.fromkeys(SPLITS, _SUMMARIES),
    "calibration?": dict.fromkeys(SPLITS, dict.fromkeys(("before", "after"), _SUMMARIES)),
    "seeds": {str: SEED_RESULTS},
    "warnings?": [str],
    "samples": {"test": int, str: int},  # by split
    "settings": dict,
    "encoders": ({str: dict}, None),
    "machine": {"device": str, "processes": int, "torch": str, "transformers": str, str: Any},
}


def read_results(file: Path, problem_type: str) -> dict[str, Any]:
    """
    The results of a run.

    Raises:
        ValueError: the file is damaged or was edited, or is of another task; names it and the key.
    """
    results = read_json(file, RESULTS)
    if (best := str(results["best_seed"])) not in results["seeds"]:
        raise ValueError(f"{file}: `best_seed` is {best}, which is none of `seeds`: {', '.join(results['seeds'])}.")
    for split in SPLITS:
        _check_metrics(file, split, results[split], [results["metric"]], problem_type)
        if "own_thresholds" in results:
            _check_metrics(file, f"own_thresholds.{split}", results["own_thresholds"][split], [], problem_type)
    for seed, run in results["seeds"].items():
        _check_seed(file, f"seeds.{seed}.", run, results, problem_type)
    return results


def read_seed_results(file: Path, problem_type: str) -> dict[str, Any]:
    """The results of one seed; raises as [`read_results`]."""
    results = read_json(file, SEED_RESULTS)
    _check_seed(file, "", results, dict.fromkeys(SPLITS, METRICS_BY_PROBLEM[problem_type]), problem_type)
    return results


def _check_seed(
    file: Path, place: str, run: Mapping[str, Any], needed: Mapping[str, Iterable[str]], problem_type: str
) -> None:
    for split in SPLITS:
        _check_metrics(file, f"{place}{split}", run[split], needed[split], problem_type)
        if "own_thresholds" in run:
            own = run["own_thresholds"][split]
            _check_metrics(file, f"{place}own_thresholds.{split}", own, DECISION_METRICS, problem_type)
    known = CLASS_METRICS[problem_type]
    for name, metrics in run.get("per_class", {}).items():
        _check_metrics(file, f"{place}per_class.{name}", metrics, known, problem_type, known)


def _check_metrics(
    file: Path,
    key: str,
    found: Iterable[str],
    needed: Iterable[str],
    problem_type: str,
    known: Collection[str] | None = None,
) -> None:
    known = known or METRICS_BY_PROBLEM[problem_type]
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{file}: `{key}.{unknown[0]}` is no metric of {problem_type}, which has {', '.join(known)}.")
    if missing := sorted(set(needed) - set(found)):
        raise ValueError(f"{file}: `{key}` lacks {', '.join(missing)}.")
