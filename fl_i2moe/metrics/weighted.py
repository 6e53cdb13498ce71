"""The metrics of `compute_metrics` for many weightings of the samples at once, as a bootstrap needs them.

Sample n counts `weights[r, n]` times: a resample of a split is a row of whole numbers that sum to N. Values, and what
is undefined (NaN), are those of `compute_metrics` on the samples repeated that often.

Shapes: N samples, C classes or outputs, R weightings, U distinct scores.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from .tasks import FloatArray, IntArray, check_predictions, predict, ranking_inputs

_CHUNK = 2**16
"""Numbers of a ranking that are worked on at once: they stay in a CPU's cache."""
_DRAWS = 32
"""Weightings that average precision works on at once, for the same reason."""


def weighted_metrics(
    logits: ArrayLike | torch.Tensor,
    labels: ArrayLike | torch.Tensor,
    problem_type: str,
    weights: ArrayLike,
    threshold: float = 0.5,
) -> dict[str, FloatArray]:
    """
    All metrics of one split under each of the weightings (R, N): metric → (R,), NaN where it is undefined. Other
    arguments, and the order, are as in `compute_metrics`. `ValueError` as there, and for weights of another shape,
    negative, or all 0.
    """
    scores, targets = check_predictions(logits, labels, problem_type)
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(scores):
        raise ValueError(f"weights must have shape (weightings, {len(scores)}), got {weights.shape}")
    if (weights < 0).any() or not (weights.sum(axis=1) > 0).all():
        raise ValueError("weights must not be negative, and those of one weighting not all 0")
    if problem_type == "regression":
        errors, outputs = scores - targets, list(zip(targets.T, scores.T, strict=True))
        return {
            "mae": _means(np.abs(errors), weights).mean(axis=1),
            "rmse": np.sqrt(_means(errors**2, weights)).mean(axis=1),
            "pearson": _defined_mean([_pearson(*output, weights) for output in outputs]),
            "sign_accuracy": _defined_mean([_sign_accuracy(*output, weights) for output in outputs]),
        }
    decisions = predict(scores, problem_type, threshold)
    indicators, scores = ranking_inputs(targets, scores, problem_type)
    if problem_type == "single_label_classification":
        right, accuracy_name = decisions == targets, "accuracy"
        predicted = np.eye(scores.shape[1], dtype=np.int64)[decisions]
        # scikit-learn's mean is over the classes that occur, as a label or as a decision
        occurs = weights @ (predicted | indicators) > 0
    else:
        right, accuracy_name = (decisions == targets).all(axis=1), "subset_accuracy"
        predicted, occurs = decisions, np.ones((len(weights), scores.shape[1]), np.bool_)
    rankings = [weighted_ranking(scores[:, c], indicators[:, c], weights) for c in range(scores.shape[1])]
    return {
        "micro_f1": weighted_f1(predicted, indicators, weights, average="micro"),
        "macro_f1": weighted_f1(predicted, indicators, weights).mean(axis=1, where=occurs),
        "mAP": _defined_mean([precision for precision, _ in rankings]),
        "auroc": _defined_mean([auroc for _, auroc in rankings]),
        accuracy_name: _means(right, weights),
    }


def weighted_f1(
    predictions: ArrayLike, labels: ArrayLike, weights: FloatArray, average: str | None = None
) -> FloatArray:
    """F1 of decisions, 0 without a true positive: (N,) or (N, C) of 0 and 1 → (R,) or (R, C); with `average="micro"`
    that of all decisions together, (R,)."""
    predicted, true = np.asarray(predictions, np.bool_), np.asarray(labels, np.bool_)
    counts: list[NDArray[Any]] = [predicted & true, predicted, true]
    if average == "micro":
        counts = [count.sum(axis=1) for count in counts]
    hits, predicted, true = (weights @ count for count in counts)
    both = predicted + true
    return np.divide(2 * hits, both, out=np.zeros(both.shape), where=both > 0)


def weighted_average_precision(scores: ArrayLike, labels: ArrayLike, weights: FloatArray) -> FloatArray:
    """Average precision of K labels, whose scores and labels are (N, K) → (R, K); NaN without a positive."""
    columns = zip(np.asarray(scores, np.float64).T, np.asarray(labels, np.bool_).T, strict=True)
    steps = [_steps(*column) for column in columns]
    found = np.full((len(weights), len(steps)), np.nan)
    for start in range(0, len(weights), _DRAWS):
        drawn = np.ascontiguousarray(weights[start : start + _DRAWS].T)
        for k, step in enumerate(steps):
            if step.shape[0]:
                positives, negatives = (step @ drawn).reshape(2, -1, drawn.shape[1])
                hits = positives.cumsum(axis=0)
                seen = hits + negatives.cumsum(axis=0)
                seen[seen == 0] = 1  # where nothing is seen, nothing is hit
                total = hits[-1]
                found[start : start + _DRAWS, k] = _ratio((positives * hits / seen).sum(axis=0), total, total > 0)
    return found


def _steps(scores: FloatArray, true: NDArray[np.bool_]) -> csr_array:
    """
    (2 G, N), of one label whose positives have G distinct scores: what adds up the weights of the positives of each of
    these scores, the highest first; and below, of the negatives that have it or lie between it and the one before.
    """
    order = np.argsort(-scores, kind="stable")
    true, is_next = true[order], np.append(False, np.diff(scores[order]) != 0)
    group = is_next.cumsum()
    holds = np.bincount(group, true) > 0
    place = (holds.cumsum() - holds)[group]  # equal scores come together
    size = int(holds.sum())
    counted = place < size
    row = np.where(true, place, size + place)[counted]
    return csr_array((np.ones(len(row)), (row, order[counted])), shape=(2 * size, len(scores)))


def weighted_ranking(scores: ArrayLike, labels: ArrayLike, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Average precision (R,) and area under the ROC curve (R,) of one label's scores and labels (N,); NaN without a
    positive, the area also without a negative."""
    scores, true = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    precision = weighted_average_precision(scores[:, None], true[:, None], weights)[:, 0]
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores come together
    rows = max(1, _CHUNK // len(scores))
    parts = [_areas(weights[x : x + rows, order], true[order], ends) for x in range(0, len(weights), rows)]
    return precision, np.concatenate(parts) if parts else np.zeros(0)


def _areas(weights: FloatArray, true: NDArray[np.bool_], ends: IntArray) -> FloatArray:
    """Under the ROC curve (R,), of samples by falling score; `ends` (U,) are the last of each score."""
    hits, seen = (weights * true).cumsum(axis=1)[:, ends], weights.cumsum(axis=1)[:, ends]
    steps, positives = np.diff(hits, axis=1, prepend=0), hits[:, -1]
    passed = seen - hits  # negatives that score as high or higher
    negatives = passed[:, -1]
    lower = negatives[:, None] - passed + np.diff(passed, axis=1, prepend=0) / 2  # of equal ones one half
    won, couples = (steps * lower).sum(axis=1), positives * negatives
    return _ratio(won, couples, couples > 0)


def _pearson(references: FloatArray, predictions: FloatArray, weights: FloatArray) -> FloatArray:
    """(N,) values → (R,); NaN where either side is constant."""
    varies, deviations = np.ones(len(weights), np.bool_), []
    for values in (references, predictions):
        drawn = np.where(weights > 0, values, np.nan)
        varies &= np.nanmax(drawn, axis=1, initial=-np.inf) > np.nanmin(drawn, axis=1, initial=np.inf)
        deviations.append(values - _means(values, weights)[:, None])
    a, b = deviations
    covariance = (weights * a * b).sum(axis=1)
    scale = np.sqrt((weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1))
    return _ratio(covariance, scale, varies & (scale > 0))


def _sign_accuracy(references: FloatArray, predictions: FloatArray, weights: FloatArray) -> FloatArray:
    """(N,) values → (R,), the share with the sign of their reference; NaN where all references are 0."""
    signed = references != 0
    right, counts = weights @ (signed & ((predictions > 0) == (references > 0))), weights @ signed
    return _ratio(right, counts, counts > 0)


def _means(values: NDArray[Any], weights: FloatArray) -> FloatArray:
    """(N,) or (N, C) → (R,) or (R, C)"""
    return ((weights @ values).T / weights.sum(axis=1)).T


def _defined_mean(by_label: list[FloatArray]) -> FloatArray:
    """(R,): the mean over the labels that have a value in a weighting, NaN where none has."""
    values = np.stack(by_label)
    defined = ~np.isnan(values)
    counts = defined.sum(axis=0)
    return _ratio(np.where(defined, values, 0).sum(axis=0), counts, counts > 0)


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any], defined: NDArray[np.bool_]) -> FloatArray:
    """NaN where it is not `defined`."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=defined)
