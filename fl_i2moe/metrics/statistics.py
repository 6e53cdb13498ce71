"""What a trained mixture says about a data set: carriers, experts against the mixture, agreement, expert weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..utils.checked_json import read_json
from .carriers import CARRIERS, check_carriers, compute_carriers
from .tasks import METRICS_BY_PROBLEM, FloatArray, check_predictions, compute_metrics, defined, predict, to_float_array

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


_WEIGHTS = {"mean": float, "std": float, "quantiles": {str: float}}
_CELL = {"count": int, "share": float}
_CELLS = dict.fromkeys(("agree_right", "agree_wrong", "disagree_right", "disagree_wrong"), _CELL)
_DECISIONS = {"num_decisions": int, "table": _CELLS, "pairwise": [[float]]}
STATISTICS = {
    "num_samples": int,
    "problem_type": tuple(METRICS_BY_PROBLEM),
    "threshold": (float, None),
    "expert_names": [str],
    "label_names": [str],
    "carriers?": (CARRIERS, None),  # 0.1.0 did not ask
    "expert_weights": {
        "overall": {str: _WEIGHTS},
        "per_class": ({str: {"num_samples": int, "experts": ({str: _WEIGHTS}, None)}}, None),
    },
    "metrics": {"mixture": {str: (float, None)}, "experts": {str: {str: (float, None)}}},
    "agreement": ({"per_sample": _DECISIONS, "per_label": (_DECISIONS, None)}, None),
}
"""What [`compute_statistics`] returns, see [`~fl_i2moe.utils.checked_json.check_json`]."""


def read_statistics(file: Path, expert_names: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """
    The statistics in a file, of a model with these experts and classes.

    Raises:
        ValueError: the file is damaged or was edited, or is of another model; names it and the key.
    """
    statistics = read_json(file, STATISTICS)
    weights, metrics = statistics["expert_weights"], statistics["metrics"]
    per_class = weights["per_class"] or {}
    experts, labels = list(expert_names), list(label_names)
    for key, found, expected in (
        ("expert_names", statistics["expert_names"], experts),
        ("label_names", statistics["label_names"], labels),
        ("expert_weights.overall", weights["overall"], experts),
        ("expert_weights.per_class", per_class or labels, labels),
        *((f"expert_weights.per_class.{x}", y["experts"] or experts, experts) for x, y in per_class.items()),
        ("metrics.experts", metrics["experts"], experts),
    ):
        same_order = isinstance(found, list)  # of JSON's objects the order says nothing
        if found != expected if same_order else set(found) != set(expected):
            raise ValueError(f"{file}: `{key}` names {', '.join(found)}; the model has {', '.join(expected)}.")
    quantiles = {str(q) for q in QUANTILES}
    for name in experts:
        if set(metrics["experts"][name]) != set(metrics["mixture"]):
            raise ValueError(f"{file}: `metrics.experts.{name}` has other metrics than `metrics.mixture`.")
        if set(weights["overall"][name]["quantiles"]) != quantiles:
            raise ValueError(f"{file}: `expert_weights.overall.{name}.quantiles` are not {', '.join(quantiles)}.")
    if carriers := statistics.get("carriers"):
        check_carriers(file, carriers, experts, labels, statistics["problem_type"])
    return statistics


def compute_statistics(
    *,
    logits: ArrayLike | torch.Tensor,
    expert_logits: ArrayLike | torch.Tensor,
    expert_weights: ArrayLike | torch.Tensor,
    labels: ArrayLike | torch.Tensor,
    expert_names: Sequence[str],
    label_names: Sequence[str],
    problem_type: str,
    threshold: float = 0.5,
    temperature: float | None = None,
    own_thresholds: Sequence[float] | None = None,
    truth: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Interaction statistics of a split: which expert carries what, and sections 5.4, 6.1 and 6.2 of the I²MoE paper
    (Figures 4 and 5, Table 3).

    Args:
        logits, expert_logits: (N, C), of the mixture, and (N, E, C).
        expert_weights: (N, E); of a dense model E = 1, and its weights are 1.
        expert_names, label_names: the E and C names, each unique.
        labels, problem_type, threshold: as in `compute_metrics`.
        temperature, own_thresholds: of the model's configuration, which `carriers` are measured with; `threshold` where
            labels have none of their own.
        truth: label → the expert that it was made for, as far as it is known.

    Returns:
        As plain JSON; what is undefined is None.

        - `num_samples`, `problem_type`, `threshold` (None unless multi-label), `expert_names`, `label_names`
        - `carriers`, None of a dense model: what [`~fl_i2moe.metrics.carriers.compute_carriers`] returns
        - `expert_weights`: `overall` is {expert: {`mean`, `std` (of the population), `quantiles`: {"0.05": …}}};
          `per_class` is {label: {`num_samples`, `experts`: the same over the samples that carry the label, or None}},
          itself None for regression
        - `metrics`: `mixture` and `experts` (each expert alone as the predictor), as `compute_metrics` names them
        - `agreement`, None for regression (real numbers are never equal, and any tolerance would be arbitrary).
          `per_sample`, as in Table 3: experts agree if all predict the same (multi-label: the same set of labels), the
          mixture is right if its prediction is exactly the truth. `per_label` (multi-label, else None): each of the N·C
          yes-or-no decisions by itself, most of them easy. Both hold `num_decisions`, `table` ({`agree_right`,
          `agree_wrong`, `disagree_right`, `disagree_wrong`: {`count`, `share`}}) and `pairwise`, the share of decisions
          on which two experts agree, (E, E) in the order of `expert_names`

    Raises:
        ValueError: for shapes, names or labels that do not fit each other, or values that are not finite.
    """
    scores, targets = check_predictions(logits, labels, problem_type)
    num_samples, num_classes = scores.shape
    if len(label_names) != num_classes:
        raise ValueError(
            f"label_names holds {len(label_names)} names, but there are {num_classes} classes in the logits"
        )
    for argument, names in (("expert_names", expert_names), ("label_names", label_names)):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{argument} must hold at least one name and none twice, got {list(names)}")
    expert_scores = _checked(expert_logits, "expert_logits", (num_samples, len(expert_names), num_classes))
    weights = _checked(expert_weights, "expert_weights", (num_samples, len(expert_names)))

    per_class = None
    if problem_type != "regression":
        carries = targets[:, None] == np.arange(num_classes) if targets.ndim == 1 else targets == 1
        per_class = {
            name: {"num_samples": int(own.sum()), "experts": _describe_weights(weights[own], expert_names)}
            for name, own in zip(label_names, carries.T, strict=True)
        }
    return {
        "num_samples": num_samples,
        "problem_type": problem_type,
        "threshold": float(threshold) if problem_type == "multi_label_classification" else None,
        "expert_names": list(expert_names),
        "label_names": list(label_names),
        "carriers": compute_carriers(
            expert_logits=expert_scores,
            expert_weights=weights,
            labels=targets,
            expert_names=list(expert_names),
            label_names=list(label_names),
            problem_type=problem_type,
            threshold=threshold if own_thresholds is None else own_thresholds,
            temperature=temperature,
            truth=truth,
        ),
        "expert_weights": {"overall": _describe_weights(weights, expert_names), "per_class": per_class},
        "metrics": {
            "mixture": defined(compute_metrics(scores, targets, problem_type, threshold)),
            "experts": {
                name: defined(compute_metrics(expert_scores[:, e], targets, problem_type, threshold))
                for e, name in enumerate(expert_names)
            },
        },
        "agreement": _agreement(scores, expert_scores, targets, problem_type, threshold),
    }


def experts_disagree(expert_logits: FloatArray, problem_type: str, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Logits (N, E, C) → where not all experts decide alike: (N,) of classes, (N, C) of labels."""
    decisions = predict(expert_logits, problem_type, threshold)
    return (decisions != decisions[:, :1]).any(axis=1)


def _describe_weights(weights: FloatArray, expert_names: Sequence[str]) -> dict[str, Any] | None:
    if len(weights) == 0:
        return None
    quantiles = np.quantile(weights, QUANTILES, axis=0)
    return {
        name: {
            "mean": float(weights[:, e].mean()),
            "std": float(weights[:, e].std()),
            "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, quantiles[:, e], strict=True)},
        }
        for e, name in enumerate(expert_names)
    }


def _agreement(
    logits: FloatArray, expert_logits: FloatArray, labels: NDArray[Any], problem_type: str, threshold: float
) -> dict[str, Any] | None:
    if problem_type == "regression":
        return None
    N, E, _ = expert_logits.shape
    mixture, experts = predict(logits, problem_type, threshold), predict(expert_logits, problem_type, threshold)
    per_label = None
    if problem_type == "multi_label_classification":
        each = experts.transpose(0, 2, 1).reshape(-1, E, 1)
        per_label = _count_agreement(each, mixture.reshape(-1, 1), labels.reshape(-1, 1))
    per_sample = _count_agreement(experts.reshape(N, E, -1), mixture.reshape(N, -1), labels.reshape(N, -1))
    return {"per_sample": per_sample, "per_label": per_label}


def _count_agreement(experts: NDArray[Any], mixture: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    """`experts` (D, E, K), `mixture` and `labels` (D, K): D decisions of K values each, equal only if all K are."""
    agree, right = (experts == experts[:, :1]).all((1, 2)), (mixture == labels).all(1)
    cells = {
        "agree_right": agree & right,
        "agree_wrong": agree & ~right,
        "disagree_right": ~agree & right,
        "disagree_wrong": ~agree & ~right,
    }
    return {
        "num_decisions": len(mixture),
        "table": {name: {"count": int(cell.sum()), "share": float(cell.mean())} for name, cell in cells.items()},
        "pairwise": [(experts == one[:, None]).all(2).mean(0).tolist() for one in experts.swapaxes(0, 1)],
    }


def _checked(values: ArrayLike | torch.Tensor, name: str, shape: tuple[int, ...]) -> FloatArray:
    array = to_float_array(values, name)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to fit the logits and names, got {array.shape}")
    return array
