"""Metrics of a prediction task, computed by scikit-learn: of a whole split, and the same as an `evaluate.Metric`."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Features, List, Value
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

METRICS_BY_PROBLEM = {
    "multi_label_classification": dict.fromkeys(("micro_f1", "macro_f1", "mAP", "auroc", "subset_accuracy"), True),
    "single_label_classification": dict.fromkeys(("accuracy", "micro_f1", "macro_f1", "mAP", "auroc"), True),
    "regression": {"mae": False, "rmse": False, "pearson": True, "sign_accuracy": True},
}
"""Problem type → metric → whether greater is better; the first one picks the best checkpoint by default."""


def default_metric(problem_type: str) -> tuple[str, bool]:
    """The metric that picks the best checkpoint, and whether greater is better; `ValueError` for an unknown type."""
    if problem_type not in METRICS_BY_PROBLEM:
        raise ValueError(f"problem_type must be one of {sorted(METRICS_BY_PROBLEM)}, got {problem_type!r}")
    return next(iter(METRICS_BY_PROBLEM[problem_type].items()))


def compute_metrics(
    logits: ArrayLike | torch.Tensor,
    labels: ArrayLike | torch.Tensor,
    problem_type: str,
    threshold: float | ArrayLike = 0.5,
) -> dict[str, float]:
    """All metrics of one split.

    Args:
        logits: (N, C).
        labels: multi-label (N, C) of 0 and 1; single-label (N,) class indices; regression (N, C), or (N,) if C = 1.
        threshold: multi-label only, one or (C,); a label is predicted where `sigmoid(logit) > threshold`.

    Returns:
        Those of `METRICS_BY_PROBLEM`; `subset_accuracy`: all labels of a sample right; `sign_accuracy`: the right sign
        (the papers' accuracy of a sentiment). `mAP`, `auroc`, `pearson` and `sign_accuracy` are means over the labels
        or outputs that have a value: a label without a positive has no average precision (scikit-learn counts 0), one
        without a positive or a negative no AUROC, a constant output no correlation, and references of 0 no sign (as in
        MultiBench). What none has is NaN.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, labels outside the classes, no samples.
    """
    scores, targets = check_predictions(logits, labels, problem_type)
    if problem_type == "regression":
        return {
            "mae": float(mean_absolute_error(targets, scores)),
            "rmse": float(root_mean_squared_error(targets, scores)),
            "pearson": _mean_pearson(targets, scores),
            "sign_accuracy": _mean_sign_accuracy(targets, scores),
        }
    predictions = predict(scores, problem_type, threshold)
    accuracy_name = "accuracy" if problem_type == "single_label_classification" else "subset_accuracy"
    indicators, scores = ranking_inputs(targets, scores, problem_type)
    return {
        "micro_f1": float(f1_score(targets, predictions, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(targets, predictions, average="macro", zero_division=0)),
        "mAP": _mean_over_labels(average_precision_score, indicators, scores, indicators.any(0)),
        "auroc": _mean_over_labels(roc_auc_score, indicators, scores, indicators.any(0) & ~indicators.all(0)),
        accuracy_name: float(accuracy_score(targets, predictions)),
    }


def defined(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON takes them: None instead of NaN."""
    return {name: None if np.isnan(value) else value for name, value in metrics.items()}


def is_share(metric: str) -> bool:
    """Whether it is told in per cent: all but log losses, correlations, and what has the unit of values."""
    return metric == "sign_accuracy" or metric not in (*METRICS_BY_PROBLEM["regression"], "log_loss")


def difference(value: float | None, other: float | None) -> float | None:
    """None where a metric is undefined or there is nothing to compare with."""
    return None if value is None or other is None else value - other


def predict(logits: FloatArray, problem_type: str, threshold: float | ArrayLike = 0.5) -> NDArray[Any]:
    """Decisions from logits (…, C): class indices (…), 0 or 1 per label (…, C), or in regression the values themselves.

    The threshold is exclusive, as rounding the probability at 0.5 is in the published I²MoE code.
    """
    if problem_type == "regression":
        return logits
    if problem_type == "single_label_classification":
        return logits.argmax(-1)
    threshold = np.asarray(threshold, np.float64)
    if not ((threshold > 0) & (threshold < 1)).all():
        raise ValueError(f"threshold is a probability between 0 and 1 (both excluded), got {threshold.tolist()}")
    return (torch.tensor(logits).sigmoid().numpy() > threshold).astype(np.int64)


def ranking_inputs(targets: IntArray, logits: FloatArray, problem_type: str) -> tuple[IntArray, FloatArray]:
    """Indicators and scores, both (N, C), that labels are ranked by, from what `check_predictions` gives of a
    classification: the logits of labels, the probabilities of classes."""
    if problem_type == "multi_label_classification":
        return targets, logits
    # Ranking needs probabilities here; sigmoids would keep the logits' order and only add ties where they saturate.
    return np.eye(logits.shape[1], dtype=np.int64)[targets], torch.tensor(logits).softmax(-1).numpy()


def _mean_pearson(references: FloatArray, predictions: FloatArray) -> float:
    varies = (np.ptp(references, axis=0) > 0) & (np.ptp(predictions, axis=0) > 0)
    correlations = [np.corrcoef(references[:, c], predictions[:, c])[0, 1] for c in np.flatnonzero(varies)]
    return float(np.mean(correlations)) if correlations else np.nan


def _mean_sign_accuracy(references: FloatArray, predictions: FloatArray) -> float:
    signed = references != 0
    right = signed & ((predictions > 0) == (references > 0))
    counts = signed.sum(axis=0)
    return float(np.mean(right.sum(axis=0)[counts > 0] / counts[counts > 0])) if counts.any() else np.nan


def check_predictions(
    logits: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor, problem_type: str
) -> tuple[FloatArray, NDArray[Any]]:
    """Logits as float64 (N, C), labels as int64 (regression: float64), or a `ValueError` naming what does not fit."""
    default_metric(problem_type)
    scores, targets = to_float_array(logits, "logits"), to_float_array(labels, "labels")
    is_single = problem_type == "single_label_classification"
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"logits must have shape (samples, classes) with at least one sample, got {scores.shape}")
    num_samples, num_classes = scores.shape
    if problem_type == "regression":
        targets = targets[:, None] if targets.ndim == 1 else targets
    elif num_classes < 2:
        raise ValueError(f"problem_type {problem_type!r} needs two classes or more, the logits have {num_classes}")
    expected = (num_samples,) if is_single else scores.shape
    if targets.shape != expected:
        raise ValueError(f"{problem_type} with logits {scores.shape} needs labels {expected}, got {targets.shape}")
    if problem_type == "regression":
        return scores, targets
    num_values = num_classes if is_single else 2
    unknown = ~np.isin(targets, np.arange(num_values))
    if unknown.any():
        sample = int(np.argwhere(unknown)[0][0])
        raise ValueError(
            f"labels of sample {sample} hold {targets[unknown][0]:g}; {problem_type} knows 0 to {num_values - 1}"
        )
    return scores, targets.astype(np.int64)


def to_float_array(values: ArrayLike | torch.Tensor, name: str) -> FloatArray:
    """`values` as a float64 array; `ValueError` naming the first position that is not finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        position = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise ValueError(f"{name} must be finite, but hold {array[position]} at {position}")
    return array


def _mean_over_labels(score: Callable[..., float], indicators: IntArray, scores: FloatArray, has_value: Any) -> float:
    values = [score(indicators[:, c], scores[:, c]) for c in np.flatnonzero(has_value)]
    return float(np.mean(values)) if values else np.nan


class TaskMetrics(evaluate.Metric):
    """
    [`compute_metrics`] as a metric of the `evaluate` library: with `add_batch`, `compute` and `evaluate.combine`.

    It is constructed, not loaded by name, so that it needs no network, and it touches no disk. Predictions are logits.
    Under several processes gather first (`Accelerator.gather_for_metrics`) and compute in one.

    ```python
    >>> metrics = TaskMetrics("multi_label_classification")
    >>> metrics.add_batch(predictions=logits, references=labels)
    >>> metrics.compute()["micro_f1"]
    ```"""

    def __init__(self, problem_type: str, threshold: float = 0.5):
        default_metric(problem_type)
        self.threshold = threshold
        super().__init__(problem_type, keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""  # evaluate's own makes a folder in the user's cache even when everything stays in memory

    def _info(self) -> evaluate.MetricInfo:
        values = List(Value("float64"))
        references = Value("int64") if self.config_name == "single_label_classification" else values
        features = Features({"predictions": values, "references": references})
        return evaluate.MetricInfo(description=cleandoc(type(self).__doc__ or ""), citation="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return compute_metrics(predictions, references, self.config_name, self.threshold)
