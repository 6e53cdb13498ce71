"""Metrics of each class, label or target by itself, and which classes are taken for which."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from .tasks import check_predictions, compute_metrics, defined, predict, ranking_inputs

CLASS_METRICS = {
    "multi_label_classification": ("precision", "recall", "f1", "support", "average_precision"),
    "single_label_classification": ("precision", "recall", "f1", "support", "average_precision"),
    "regression": ("mae", "rmse", "pearson"),
}
"""Problem type → metrics of each class, label or target."""


def metrics_per_class(
    logits: ArrayLike | torch.Tensor,
    labels: ArrayLike | torch.Tensor,
    problem_type: str,
    label_names: Sequence[str],
    threshold: float | ArrayLike = 0.5,
) -> dict[str, dict[str, float | None]]:
    """
    Name → metric of `CLASS_METRICS` → value, by scikit-learn. What nothing was predicted for has a precision of 0, what
    is never true a recall of 0; `support` is how many samples are of it; a class that is never true has no average
    precision (None), a constant target no correlation. Arguments, and what is raised, are as in `compute_metrics`.
    """
    scores, targets = check_predictions(logits, labels, problem_type)
    if problem_type == "regression":
        columns = [
            defined(compute_metrics(scores[:, [c]], targets[:, [c]], problem_type)) for c in range(len(label_names))
        ]
        rows = [[column[name] for name in CLASS_METRICS[problem_type]] for column in columns]
    else:
        indicators, ranked = ranking_inputs(targets, scores, problem_type)
        decisions = predict(scores, problem_type, threshold)
        counted = precision_recall_fscore_support(
            targets, decisions, labels=range(len(label_names)), average=None, zero_division=0
        )
        precisions = [
            float(average_precision_score(y, x)) if y.any() else None
            for y, x in zip(indicators.T, ranked.T, strict=True)
        ]
        rows = [[float(p), float(r), float(f), int(n), a] for p, r, f, n, a in zip(*counted, precisions, strict=True)]
    return {
        name: dict(zip(CLASS_METRICS[problem_type], row, strict=True))
        for name, row in zip(label_names, rows, strict=True)
    }


def confusion(
    logits: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor, label_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """
    The confusion matrix of single labels without its zeros: true class → predicted class → number of samples. With
    many classes most of the matrix is empty. Raises as `compute_metrics`.
    """
    scores, targets = check_predictions(logits, labels, "single_label_classification")
    pairs, counts = np.unique(np.stack([targets, scores.argmax(axis=1)]), axis=1, return_counts=True)
    found: dict[str, dict[str, int]] = {}
    for true, predicted, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(label_names[true], {})[label_names[predicted]] = count
    return found
