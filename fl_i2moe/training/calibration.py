"""What a finished seed's model gets from the validation split, and what it is worth on validation and test split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from ..metrics.calibration import (
    DECISION_METRICS,
    best_temperature,
    best_thresholds,
    calibration_error,
    log_loss_of_frequencies,
    log_losses,
)
from ..metrics.classes import confusion, metrics_per_class
from ..metrics.tasks import FloatArray, IntArray, compute_metrics
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from .loop import Predictions

SAFE = 1e-6
"""How near a threshold may come to 0 and 1: nearer, probabilities of 32 bits are all alike."""


def calibrate(config: FLI2MoEConfig, validation: Predictions) -> None:
    """
    Chooses `config.temperature`, by the log loss, and of labels `config.thresholds`, each by its F1 with probabilities
    under that temperature; a label without positives in the validation split keeps 0.5. Nothing of a regression.
    """
    if config.problem_type == "regression":
        return
    logits, labels = _arrays(validation)
    config.temperature = best_temperature(logits, labels)
    if config.problem_type == "multi_label_classification":
        thresholds = expit(best_thresholds(logits / config.temperature, labels))
        config.thresholds = thresholds.clip(SAFE, 1 - SAFE).tolist()


def measure(predictions: Mapping[str, Predictions], config: FLI2MoEConfig, threshold: float) -> dict[str, Any]:
    """
    What `results.json` says of a seed's predictions, split by split, of which one is `test`, in plain JSON:

    - each split's name: its metrics, labels predicted above `threshold`
    - `own_thresholds`, of labels: split → those metrics that change where each label has its own of `config.thresholds`
    - `calibration`, not of a regression: split → `before` and `after` the temperature → `log_loss` (nats) and `ece`
    - `per_class`: class, label or target → its metrics on the test split, by the model's own thresholds
    - `confusion_matrix`, of classes: true class → predicted class → samples of the test split; zeros are left out

    Raises:
        ValueError: predictions are not finite.
    """
    problem_type, names = config.problem_type, config.label_names
    measured: dict[str, Any] = {split: x.metrics(problem_type, threshold) for split, x in predictions.items()}
    arrays = {split: _arrays(x) for split, x in predictions.items()}
    logits, labels = arrays["test"]
    own: Any = 0.5
    if problem_type != "regression":
        measured["calibration"] = {
            split: {"before": _calibration(x, y), "after": _calibration(x / config.temperature, y)}
            for split, (x, y) in arrays.items()
        }
        logits = logits / config.temperature
    if problem_type == "multi_label_classification":
        own = config.thresholds
        with_own = {
            split: compute_metrics(x / config.temperature, y, problem_type, own) for split, (x, y) in arrays.items()
        }
        measured["own_thresholds"] = {split: {k: x[k] for k in DECISION_METRICS} for split, x in with_own.items()}
    if problem_type == "single_label_classification":
        measured["confusion_matrix"] = confusion(logits, labels, names)
    measured["per_class"] = metrics_per_class(logits, labels, problem_type, names, own)
    return measured


def measure_frequencies(predictions: Mapping[str, Predictions], config: FLI2MoEConfig) -> dict[str, Any]:
    """
    `log_loss_of_frequencies`, not of a regression: split → the log loss where every sample is told the frequencies that
    classes or labels have in the split `train`; None where it is infinite.
    """
    if config.problem_type == "regression":
        return {}
    labels = {split: _arrays(x)[1] for split, x in predictions.items()}
    train, num_labels = labels.pop("train"), config.num_labels
    losses = {split: log_loss_of_frequencies(train, x, num_labels) for split, x in labels.items()}
    return {"log_loss_of_frequencies": losses}


def _calibration(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    return {"log_loss": float(log_losses(logits, labels).mean()), "ece": calibration_error(logits, labels)}


def _arrays(predictions: Predictions) -> tuple[FloatArray, Any]:
    labels = predictions.labels.numpy()
    return predictions.logits.double().numpy(), labels if labels.dtype == np.int64 else labels.astype(np.float64)
