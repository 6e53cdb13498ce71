"""What `results.json` holds, of a run and of one seed; one that was edited, or is another's, is refused by its keys."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..metrics.tasks import METRICS_BY_PROBLEM
from ..utils.checked_json import read_json

RESULTS_FILE = "results.json"


_METRICS = {str: (float, None)}
_SUMMARIES = {str: {"mean": (float, None), "std": (float, None)}}  # over the seeds
SEED_RESULTS = {
    "test": _METRICS,
    "validation": _METRICS,
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
    "seeds": {str: SEED_RESULTS},
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
    for split in ("test", "validation"):
        _check_metrics(file, split, results[split], [results["metric"]], problem_type)
        for seed, run in results["seeds"].items():
            _check_metrics(file, f"seeds.{seed}.{split}", run[split], results[split], problem_type)
    return results


def read_seed_results(file: Path, problem_type: str) -> dict[str, Any]:
    """The results of one seed; raises as [`read_results`]."""
    results = read_json(file, SEED_RESULTS)
    for split in ("test", "validation"):
        _check_metrics(file, split, results[split], METRICS_BY_PROBLEM[problem_type], problem_type)
    return results


def _check_metrics(file: Path, key: str, found: Iterable[str], needed: Iterable[str], problem_type: str) -> None:
    known: Mapping[str, bool] = METRICS_BY_PROBLEM[problem_type]
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{file}: `{key}.{unknown[0]}` is no metric of {problem_type}, which has {', '.join(known)}.")
    if missing := sorted(set(needed) - set(found)):
        raise ValueError(f"{file}: `{key}` lacks {', '.join(missing)}.")
