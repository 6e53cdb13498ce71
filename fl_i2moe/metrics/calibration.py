"""
How good probabilities are, and what is chosen on a validation split to make them and the decisions by them better.

Shapes: N samples · C classes or labels.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

from .tasks import FloatArray, IntArray

TEMPERATURES = (0.1, 10.0)
"""Between these a temperature is looked for."""
PRIOR = 0.5
"""Standard deviation of log T before a sample is seen: a few samples that are right would make any probability 1."""
NUM_BINS = 15
DECISION_METRICS = ("micro_f1", "macro_f1", "subset_accuracy")
"""Those metrics of labels that thresholds change."""


def log_losses(logits: FloatArray, labels: IntArray) -> FloatArray:
    """Negative log-likelihood of each sample's labels: (N, C) and (N,) classes, or (N, C) and its mean over labels."""
    if labels.ndim == 1:
        return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels.astype(np.int64)]
    return np.logaddexp(0, np.where(labels > 0, -logits, logits)).mean(axis=1)


def log_loss_of_frequencies(train_labels: IntArray, labels: IntArray, num_classes: int) -> float | None:
    """
    The mean of the [`log_losses`] of (N,) classes or (N, C) labels where every sample is told how frequent each is
    among the training samples: what a prediction that looks at no sample is worth. None where it is infinite, since
    something occurs that no training sample has.
    """
    with np.errstate(divide="ignore"):
        if labels.ndim == 1:
            counts = np.bincount(np.asarray(train_labels, np.int64), minlength=num_classes)
            logits = np.log(counts / counts.sum())
        else:
            logits = logit((np.asarray(train_labels) > 0).mean(axis=0))
        loss = float(log_losses(np.broadcast_to(logits, (len(labels), num_classes)), labels).mean())
    return loss if np.isfinite(loss) else None


def best_temperature(logits: FloatArray, labels: IntArray) -> float:
    """
    The most probable T, within `TEMPERATURES`: it has the smallest sum of the [`log_losses`] of `logits / T` (Guo et
    al., 2017) and of (log T)² / (2 · `PRIOR`²), which keeps it near 1 where there are few samples.
    """

    def loss(log_temperature: float) -> float:
        prior = log_temperature**2 / (2 * PRIOR**2)
        return float(log_losses(logits / np.exp(log_temperature), labels).sum() + prior)

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def best_thresholds(logits: FloatArray, labels: IntArray) -> FloatArray:
    """
    (C,): for each label the logit above which predicting it has the best F1, halfway between two of (N, C) logits. Of
    equally good ones it is the nearest to 0; it is 0 for a label without positives.
    """
    found = np.zeros(logits.shape[1])
    for label in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-logits[:, label], kind="stable")
        scores, hits = logits[order, label], labels[order, label].cumsum()
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        ends = np.append(scores[1:] < scores[:-1], True)  # equal scores are predicted together
        between = (scores + np.append(scores[1:], scores[-1] - 2)) / 2
        best = between[ends & (f1 >= f1[ends].max())]
        found[label] = best[np.abs(best).argmin()]
    return found


def calibration_error(logits: FloatArray, labels: IntArray) -> float:
    """
    Expected calibration error in 15 bins of equal width: the mean over the samples of how far, in a sample's bin, the
    mean probability is from the share that came true. Of (N,) classes, the probability is the predicted one's (Guo et
    al., 2017); of (N, C) labels it is each label's, and the result is the mean over the labels.
    """
    if labels.ndim == 1:
        probabilities = softmax(logits, axis=1)
        chosen = logits.argmax(axis=1)
        return _gap(probabilities[np.arange(len(chosen)), chosen], chosen == labels)
    return float(np.mean([_gap(p, y > 0) for p, y in zip(expit(logits).T, labels.T, strict=True)]))


def _gap(probabilities: FloatArray, came_true: NDArray[np.bool_]) -> float:
    """(N,) and (N,)"""
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return float(np.abs(np.bincount(bins, probabilities - came_true)).sum() / len(bins))
