"""
Which expert carries a label: what the label loses when an expert says the same of every sample.

The mixture's logits are the sum of its experts' contributions, weight × logits. Those of one expert are replaced by
their mean over the split, and the rest stays as the model computes it. This asks the model that was trained; it needs
no truth, and no trust in an expert's name or weight.

Shapes: N samples, E experts, C labels, classes or targets, R resamples, V variants of the mixture's logits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import log_losses
from .summaries import drop, plain, resample, weighted_means, with_interval
from .tasks import FloatArray, predict
from .weighted import weighted_average_precision, weighted_f1

MEASURES = {
    "multi_label_classification": ("log_loss", "f1", "average_precision"),
    "single_label_classification": ("log_loss", "recall"),
    "regression": ("rmse", "mae"),
}
"""Problem type → measures of a label, class or target; the first decides which expert carries it."""
LABEL_NOUNS = {
    "multi_label_classification": "label",
    "single_label_classification": "class",
    "regression": "target",
}
OVERALL = ("log_loss", "accuracy")
"""Those of all samples of single labels."""
_GREATER_IS_BETTER = ("f1", "average_precision", "recall")
RESAMPLES = (200, 1000)
"""Fewest and most."""
ROUNDING = 1e-9
"""What a loss may be of an expert that says the same of all samples."""
BUDGET = 3e8
"""Resamples × samples × variants × labels, within those: about two seconds, whatever the split."""

_ENTRY = {
    "score": {str: (float, None)},
    "losses": {str: {str: {"value": (float, None), "interval": ([float], None)}}},
    "all_experts": {str: {"value": (float, None), "interval": ([float], None)}},
    "carrier": (str, None),
    "planted?": str,
}
CARRIERS = {
    "num_samples": int,
    "num_resamples": int,
    "temperature": float,
    "overall": (_ENTRY, None),
    "labels": {str: _ENTRY},
}
"""What [`compute_carriers`] returns, see [`~fl_i2moe.utils.checked_json.check_json`]."""


def compute_carriers(
    *,
    expert_logits: FloatArray,
    expert_weights: FloatArray,
    labels: NDArray[Any],
    expert_names: Sequence[str],
    label_names: Sequence[str],
    problem_type: str,
    threshold: float | ArrayLike = 0.5,
    temperature: float | None = None,
    truth: Mapping[str, str] | None = None,
    num_resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """
    What each label of a split loses without each expert, with 95 % intervals of a bootstrap over the samples, in which
    the means that stand for an expert stay those of the split.

    Args:
        expert_logits, expert_weights, labels: (N, E, C), (N, E), and as `compute_metrics` takes them.
        threshold: of labels, one or (C,): predicted are those with a higher probability.
        temperature: what the mixture's logits are divided by; 1 if not given.
        truth: label → the expert that it was made for, as far as it is known.
        num_resamples: R; if not given 1,000, of large splits fewer, not less than 200.

    Returns:
        As plain JSON, where what is undefined is None; of a single expert None altogether.

        - `num_samples`, `num_resamples`, `temperature`
        - `labels`: label, class or target → `score` of the whole mixture, measure → value; `losses`: expert → measure →
          {`value`, `interval`}, how much worse the score is without the expert; `all_experts`, the same without any;
          `carrier`: the expert whose loss of the first measure is the largest of those whose interval lies above 0,
          None where there is none, or the split lacks what a measure needs; `planted`, of `truth`
        - `overall`: the same of all samples of single labels, None for others

        The measures are those of [`MEASURES`]: of labels the log loss (nats), F1 and average precision; of a class the
        log loss and recall of its samples, overall accuracy; of a target the root mean squared and the mean absolute
        error, in its unit. A loss is greater than 0 where the expert does good, whatever the measure.

    Raises:
        ValueError: `truth` names a label that there is not, `temperature` is not positive, or `threshold` holds other
            than probabilities, or not one for each label.
    """
    if temperature is not None and not 0 < temperature < np.inf:
        raise ValueError(f"`temperature` must be a positive number, got {temperature}.")
    if np.shape(threshold) not in ((), (len(label_names),)):
        raise ValueError(f"`threshold` must be one number, or {len(label_names)}; got {np.size(threshold)}.")
    if unknown := [name for name in truth or {} if name not in label_names]:
        raise ValueError(f"`truth` names the label {unknown[0]}; there are {', '.join(label_names)}.")
    if len(expert_names) == 1:
        return None
    variants = replace_experts(expert_logits, expert_weights) / (temperature or 1)
    count = num_resamples or int(np.clip(BUDGET / variants.size, *RESAMPLES))
    weights = resample(len(labels), count, seed)
    measured = _MEASURING[problem_type](variants, labels, weights, threshold)  # (1 + R, V, rows)
    losses = {name: drop(x[:, :1], x, name in _GREATER_IS_BETTER) for name, x in measured.items()}

    def describe(row: int, names: Sequence[str]) -> dict[str, Any]:
        *lost, without_any = (
            {name: with_interval(x[:, v, row]) for name, x in zip(names, losses.values(), strict=True)}
            for v in range(1, len(variants))
        )
        entry = {
            "score": {name: plain(x[0, 0, row]) for name, x in zip(names, measured.values(), strict=True)},
            "losses": dict(zip(expert_names, lost, strict=True)),
            "all_experts": without_any,
        }
        return entry | {"carrier": _carrier(entry)}

    told = {label: describe(row, MEASURES[problem_type]) for row, label in enumerate(label_names)}
    for label, expert in (truth or {}).items():
        told[label]["planted"] = expert
    is_single = problem_type == "single_label_classification"
    return {
        "num_samples": len(labels),
        "num_resamples": count,
        "temperature": float(temperature or 1),
        "overall": describe(-1, OVERALL) if is_single else None,
        "labels": told,
    }


def check_carriers(
    file: Path, carriers: Mapping[str, Any], expert_names: Sequence[str], label_names: Sequence[str], problem_type: str
) -> None:
    """Raises `ValueError` that names the file and the key where what has the shape of [`CARRIERS`] is of other labels,
    experts or measures."""

    def compare(key: str, found: Iterable[str], expected: Sequence[str]) -> None:
        if set(found) != set(expected):
            raise ValueError(f"{file}: `carriers.{key}` names {', '.join(found)}; there are {', '.join(expected)}.")

    compare("labels", carriers["labels"], label_names)
    entries = {f"labels.{name}": (x, MEASURES[problem_type]) for name, x in carriers["labels"].items()}
    if carriers["overall"]:
        entries["overall"] = carriers["overall"], OVERALL
    for key, (entry, measures) in entries.items():
        compare(f"{key}.losses", entry["losses"], expert_names)
        compare(f"{key}.score", entry["score"], measures)
        for name, lost in {**entry["losses"], "all_experts": entry["all_experts"]}.items():
            compare(f"{key}.losses.{name}", lost, measures)
            if bad := [x for x, loss in lost.items() if loss["interval"] is not None and len(loss["interval"]) != 2]:
                raise ValueError(f"{file}: `carriers.{key}.losses.{name}.{bad[0]}.interval` must hold two numbers.")
        if entry["carrier"] not in (None, *expert_names):
            raise ValueError(f"{file}: `carriers.{key}.carrier` is {entry['carrier']}, which is no expert.")


def replace_experts(
    expert_logits: FloatArray, expert_weights: FloatArray, replaced: str = "contribution"
) -> FloatArray:
    """
    (1 + E + 1, N, C): the mixture's logits; those without each expert; those without any.

    Args:
        replaced: by its mean over the samples: an expert's `contribution`, weight × logits, or its `logits` alone,
            with weights as they are.
    """
    weight_NE1 = expert_weights[:, :, None]
    contributions = weight_NE1 * expert_logits
    if replaced == "contribution":
        means = contributions.mean(axis=0)
    else:
        means = weight_NE1 * expert_logits.mean(axis=0)
    whole = contributions.sum(axis=1)
    without = whole[:, None] - contributions + means  # (N, E, C)
    none = np.broadcast_to(means, contributions.shape).sum(axis=1)
    return np.concatenate([whole[None], without.swapaxes(0, 1), none[None]])


def label_metrics(
    variants: FloatArray, labels: NDArray[Any], weights: FloatArray, threshold: float | ArrayLike = 0.5
) -> dict[str, FloatArray]:
    """F1 and average precision of each of the labels (N, C), by each variant of the logits (V, N, C), under each of the
    weightings (R, N) of the samples: (R, V, C)."""
    shape = (len(weights), len(variants), variants.shape[2])
    true = np.tile(labels, len(variants))

    def side_by_side(values: NDArray[Any]) -> NDArray[Any]:
        return np.swapaxes(values, 0, 1).reshape(len(labels), -1)

    decided = predict(variants, "multi_label_classification", threshold)
    return {
        "f1": weighted_f1(side_by_side(decided), true, weights).reshape(shape),
        "average_precision": weighted_average_precision(side_by_side(variants), true, weights).reshape(shape),
    }


def _label_measures(
    variants: FloatArray, labels: NDArray[Any], weights: FloatArray, threshold: float | ArrayLike
) -> dict[str, FloatArray]:
    losses = np.logaddexp(0, np.where(labels > 0, -variants, variants))
    return {"log_loss": _means(losses, weights), **label_metrics(variants, labels, weights, threshold)}


def _class_measures(
    variants: FloatArray, labels: NDArray[Any], weights: FloatArray, threshold: float | ArrayLike
) -> dict[str, FloatArray]:
    """Of the samples of each class and, in the last column, of all."""
    belongs = np.column_stack([labels[:, None] == np.arange(variants.shape[2]), np.ones(len(labels), np.bool_)])

    def by_class(values: NDArray[Any]) -> FloatArray:
        return np.concatenate([_means(np.where(belongs, x[None, :, None], np.nan), weights) for x in values], axis=1)

    return {
        "log_loss": by_class(np.stack([log_losses(x, labels) for x in variants])),
        "recall": by_class(variants.argmax(axis=2) == labels),
    }


def _target_measures(
    variants: FloatArray, labels: NDArray[Any], weights: FloatArray, threshold: float | ArrayLike
) -> dict[str, FloatArray]:
    errors = variants - labels
    return {"rmse": np.sqrt(_means(errors**2, weights)), "mae": _means(np.abs(errors), weights)}


_MEASURING: dict[str, Callable[..., dict[str, FloatArray]]] = {
    "multi_label_classification": _label_measures,
    "single_label_classification": _class_measures,
    "regression": _target_measures,
}
"""Problem type → what measures variants (V, N, C) under weightings (R, N): measure → (R, V, rows)."""


def _means(values: FloatArray, weights: FloatArray) -> FloatArray:
    """(V, N, rows) and (R, N) → (R, V, rows)"""
    return np.moveaxis(weighted_means(np.moveaxis(values, 1, 2), weights), 2, 0)


def _carrier(entry: Mapping[str, Any]) -> str | None:
    if None in entry["score"].values():
        return None
    first = next(iter(entry["score"]))
    lost = {name: x[first] for name, x in entry["losses"].items()}
    sure = {name: x["value"] for name, x in lost.items() if x["interval"] is not None and x["interval"][0] > ROUNDING}
    return max(sure, key=sure.__getitem__, default=None)
