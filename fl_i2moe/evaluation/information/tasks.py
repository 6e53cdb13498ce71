"""
Log losses of calibrated predictions, by the kind of labels.

Shapes: K columns (predictions that are weighed against each other) · N samples · C labels, classes or targets · R rows
of a decomposition: one for each of the C, and one for all together, last.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from ...metrics.tasks import FloatArray

PRIOR = 0.5
"""Standard deviation of a weight or bias before a sample is seen, as of log T in [`~fl_i2moe.metrics.calibration`]."""


@dataclass(frozen=True)
class Calibration:
    """What makes one prediction (N, C) of K columns."""

    weights: FloatArray  # (K, C)
    bias: FloatArray  # (C,)
    spread: FloatArray  # (C,), standard deviation of real numbers around their prediction; 1 of others

    def __call__(self, columns: FloatArray) -> FloatArray:
        """(K, N, C) → (N, C)"""
        return np.einsum("kc,knc->nc", self.weights, columns) + self.bias


class LabelKind(ABC):
    """
    Labels of one kind, and how often which of them occurs in the training split, whose labels it is made of.

    A calibration is the most probable one under normal priors: of weights around 1 / K, so that without a sample the
    columns count alike, and of biases around 0, with a standard deviation of `PRIOR`.
    """

    prior: FloatArray
    """(C,), what is best said of all training samples alike, as a column."""

    is_real = False
    """Whether labels are real numbers, which models learn, and columns tell, as [`Regression.scale`] makes them."""

    is_one_choice = False
    """Whether the C outputs are one prediction, and not one each."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels

    @abstractmethod
    def calibrate(self, columns: FloatArray, labels: NDArray[Any]) -> Calibration:
        """From columns (K, N, C) and labels of a validation split."""

    @abstractmethod
    def losses(self, predicted: FloatArray, labels: NDArray[Any], spread: FloatArray) -> FloatArray:
        """(N, R), in bits, of calibrated predictions (N, C)."""

    def prior_losses(self, validation: NDArray[Any], test: NDArray[Any]) -> FloatArray:
        """
        (N, R), in bits, of the test split, when all samples are told the same: what training says, calibrated as models
        are, so that splits which differ in how often a label occurs are no information.
        """

        def columns(labels: NDArray[Any]) -> FloatArray:
            return np.broadcast_to(self.prior, (1, len(labels), self.num_labels))

        calibration = self.calibrate(columns(validation), validation)
        return self.losses(calibration(columns(test)), test, calibration.spread)


class MultiLabel(LabelKind):
    """(N, C) of 0 and 1; each label has a calibration of its own, and all together lose the sum."""

    def __init__(self, labels: NDArray[Any], num_labels: int):
        super().__init__(num_labels)
        # half a sample more on either side: a label that training never showed is unlikely, not impossible
        frequencies = ((labels > 0).sum(axis=0) + 0.5) / (len(labels) + 1)
        self.prior = np.log(frequencies) - np.log1p(-frequencies)

    def calibrate(self, columns: FloatArray, labels: NDArray[Any]) -> Calibration:
        num_columns, truth = len(columns), (labels > 0).astype(np.float64)

        def loss(x: FloatArray) -> tuple[float, FloatArray]:
            *weights, bias = x.reshape(num_columns + 1, -1)
            logits = np.einsum("kc,knc->nc", weights, columns) + bias
            wrong = expit(logits) - truth
            gradient = np.vstack([np.einsum("knc,nc->kc", columns, wrong), wrong.sum(axis=0)])
            return float(_softplus(logits, truth).sum()), gradient.ravel()

        expected = np.vstack([np.full((num_columns, self.num_labels), 1 / num_columns), np.zeros(self.num_labels)])
        *weights, bias = _most_probable(loss, expected.ravel()).reshape(expected.shape)
        return Calibration(np.array(weights), bias, np.ones(self.num_labels))

    def losses(self, predicted: FloatArray, labels: NDArray[Any], spread: FloatArray) -> FloatArray:
        return _with_sum(_softplus(predicted, labels > 0) / np.log(2))


class SingleLabel(LabelKind):
    """(N,) classes. Columns have one weight for all classes; each class is also seen against the rest."""

    is_one_choice = True

    def __init__(self, labels: NDArray[Any], num_labels: int):
        super().__init__(num_labels)
        counts = np.bincount(labels, minlength=num_labels) + 0.5
        self.prior = np.log(counts / counts.sum())

    def calibrate(self, columns: FloatArray, labels: NDArray[Any]) -> Calibration:
        num_columns, truth = len(columns), np.eye(self.num_labels)[labels]

        def loss(x: FloatArray) -> tuple[float, FloatArray]:
            logits = np.tensordot(x[:num_columns], columns, 1) + x[num_columns:]
            wrong = softmax(logits, axis=1) - truth
            gradient = np.append(np.tensordot(columns, wrong, 2), wrong.sum(axis=0))
            return -float((log_softmax(logits, axis=1) * truth).sum()), gradient

        fitted = _most_probable(loss, np.append(np.full(num_columns, 1 / num_columns), np.zeros(self.num_labels)))
        weights = np.repeat(fitted[:num_columns, None], self.num_labels, axis=1)
        return Calibration(weights, fitted[num_columns:], np.ones(self.num_labels))

    def losses(self, predicted: FloatArray, labels: NDArray[Any], spread: FloatArray) -> FloatArray:
        log_chances = log_softmax(predicted, axis=1)
        truth = np.eye(self.num_labels, dtype=np.bool_)[labels]
        # the logarithm of what is left to the other classes; summed anew for the largest, which may take nearly all
        largest = log_chances.argmax(axis=1)[:, None]
        with np.errstate(divide="ignore"):
            rest = np.log1p(-np.exp(log_chances))
        others = log_chances.copy()
        np.put_along_axis(others, largest, -np.inf, axis=1)
        np.put_along_axis(rest, largest, np.logaddexp.reduce(others, axis=1)[:, None], axis=1)
        by_class = -np.where(truth, log_chances, rest)
        return np.column_stack([by_class, -log_chances[truth]]) / np.log(2)


class Regression(LabelKind):
    """
    (N, C) real numbers, by [`scale`], taken as normal around their prediction, with one variance for each target that
    the validation split decides: held out, a prediction tells ½ log₂ of the ratio of variances, before and after.
    """

    is_real = True

    def __init__(self, labels: NDArray[Any], num_labels: int):
        super().__init__(num_labels)
        self.mean, self.deviation, self.prior = labels.mean(axis=0), labels.std(axis=0), np.zeros(num_labels)

    def scale(self, labels: NDArray[Any]) -> FloatArray:
        """In units of the training split's standard deviation, from its mean on."""
        return (labels - self.mean) / self.deviation

    def calibrate(self, columns: FloatArray, labels: NDArray[Any]) -> Calibration:
        num_columns, truth = len(columns), labels
        expected = np.append(np.full(num_columns, 1 / num_columns), 0.0)
        fitted, spread = np.empty((num_columns + 1, self.num_labels)), np.ones(self.num_labels)
        for c in range(self.num_labels):
            inputs = np.vstack([columns[:, :, c], np.ones(len(truth))])
            for _ in range(20):  # weights by the variance around them, and that by the weights
                precision = inputs @ inputs.T / spread[c] ** 2 + np.eye(num_columns + 1) / PRIOR**2
                fitted[:, c] = np.linalg.solve(precision, inputs @ truth[:, c] / spread[c] ** 2 + expected / PRIOR**2)
                # one sample more, of the training split's variance: no target is ever told whole
                spread[c] = np.sqrt((((truth[:, c] - fitted[:, c] @ inputs) ** 2).sum() + 1) / (len(truth) + 1))
        return Calibration(fitted[:-1], fitted[-1], spread)

    def losses(self, predicted: FloatArray, labels: NDArray[Any], spread: FloatArray) -> FloatArray:
        wrong = (labels - predicted) / spread
        return _with_sum((wrong**2 / 2 + np.log(spread) + np.log(2 * np.pi) / 2) / np.log(2))


LABEL_KINDS: Mapping[str, Callable[[NDArray[Any], int], LabelKind]] = {
    "multi_label_classification": MultiLabel,
    "single_label_classification": SingleLabel,
    "regression": Regression,
}


def _softplus(logits: FloatArray, truth: NDArray[Any]) -> FloatArray:
    """The log loss, in nats, of logits of yes and no."""
    return np.logaddexp(0, np.where(truth, -logits, logits))


def _most_probable(loss: Callable[[FloatArray], tuple[float, FloatArray]], expected: FloatArray) -> FloatArray:
    """What minimises a loss, given with its gradient, and the prior around what is expected."""

    def both(x: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = loss(x)
        return value + float(((x - expected) ** 2).sum()) / (2 * PRIOR**2), gradient + (x - expected) / PRIOR**2

    return minimize(both, expected, jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "maxfun": 10**5}).x


def _with_sum(losses: FloatArray) -> FloatArray:
    return np.column_stack([losses, losses.sum(axis=1)])
