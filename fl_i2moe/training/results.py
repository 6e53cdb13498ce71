"""What `results.json` holds, of a run and of one seed; one that was edited, or is another's, is refused by its keys."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..metrics.tasks import METRICS_BY_PROBLEM
from ..utils.checked_json import read_checked

RESULTS_FILE = "results.json"


class Summary(TypedDict):
    """A metric over the seeds; None where it is not defined, the deviation also of one seed."""

    mean: float | None
    std: float | None


class SeedResults(TypedDict):
    """Of one seed, metric by metric."""

    test: dict[str, float | None]
    validation: dict[str, float | None]
    best_epoch: int
    epochs: int
    training_seconds: float
    parameters: int
    weights: NotRequired[str]
    """Fingerprint of the model, by which a resumed run knows it again; older versions wrote none."""


class Results(TypedDict):
    """Of a whole run."""

    metric: str
    """That picked the best epochs and the best seed."""

    best_seed: int
    test: dict[str, Summary]
    validation: dict[str, Summary]
    seeds: dict[str, SeedResults]
    samples: dict[str, int]
    """Split → their number."""

    settings: dict[str, Any]
    encoders: dict[str, dict[str, Any]] | None
    machine: dict[str, Any]


def read_results(file: Path, problem_type: str) -> dict[str, Any]:
    """
    The results of a run.

    Raises:
        ValueError: the file is damaged or was edited, or is of another task; names it and the key.
    """
    results = read_checked(file, Results)
    if (best := str(results["best_seed"])) not in results["seeds"]:
        raise ValueError(f"{file}: `best_seed` is {best}, which is none of `seeds`: {', '.join(results['seeds'])}.")
    for key, run in {"": results, **{f"seeds.{seed}.": run for seed, run in results["seeds"].items()}}.items():
        for split in ("test", "validation"):
            _check_metrics(file, f"{key}{split}", run[split], problem_type)
            if missing := {results["metric"], *results[split]} - set(run[split]):
                raise ValueError(f"{file}: `{key}{split}` lacks {', '.join(sorted(missing))}.")
    if "test" not in results["samples"]:
        raise ValueError(f"{file}: `samples.test` is missing.")
    for key, kind in (("device", str), ("processes", int), ("torch", str), ("transformers", str)):
        if not isinstance(results["machine"].get(key), kind):
            raise ValueError(f"{file}: `machine.{key}` is missing or no {'text' if kind is str else 'number'}.")
    return results


def read_seed_results(file: Path, problem_type: str) -> dict[str, Any]:
    """The results of one seed; raises as [`read_results`]."""
    results = read_checked(file, SeedResults)
    for split in ("test", "validation"):
        _check_metrics(file, split, results[split], problem_type)
        if missing := set(METRICS_BY_PROBLEM[problem_type]) - set(results[split]):
            raise ValueError(f"{file}: `{split}` lacks {', '.join(sorted(missing))}.")
    return results


def _check_metrics(file: Path, key: str, names: Iterable[str], problem_type: str) -> None:
    known: Mapping[str, bool] = METRICS_BY_PROBLEM[problem_type]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{file}: `{key}.{unknown[0]}` is no metric of {problem_type}, which has {', '.join(known)}.")
