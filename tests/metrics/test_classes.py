"""Metrics of single classes and confusion matrices against scikit-learn and NumPy."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import average_precision_score, classification_report, confusion_matrix

from fl_i2moe.metrics.classes import confusion, metrics_per_class

NAMES = ["a", "b", "c", "never"]


def test_of_classes():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal([0, 0, 0, -9], size=(50, 4)), rng.integers(3, size=50)
    found = metrics_per_class(logits, labels, "single_label_classification", NAMES)
    said = logits.argmax(axis=1)
    report = classification_report(labels, said, labels=range(4), target_names=NAMES, output_dict=True, zero_division=0)
    chances = softmax(logits, axis=1)
    for c, name in enumerate(NAMES):
        for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("support",) * 2):
            assert found[name][ours] == pytest.approx(report[name][theirs])
        precision = average_precision_score(labels == c, chances[:, c]) if c < 3 else None
        assert found[name]["average_precision"] == (precision and pytest.approx(precision))
    table = confusion(logits, labels, NAMES)
    assert "never" not in table
    assert all(all(row.values()) for row in table.values())
    matrix = [[table.get(true, {}).get(predicted, 0) for predicted in NAMES] for true in NAMES]
    assert matrix == confusion_matrix(labels, said, labels=range(4)).tolist()


def test_of_labels_with_a_threshold_each():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 4)), rng.integers(2, size=(40, 4))
    labels[:, 3] = 0
    thresholds = [0.2, 0.5, 0.7, 0.5]
    found = metrics_per_class(logits, labels, "multi_label_classification", NAMES, thresholds)
    said = 1 / (1 + np.exp(-logits)) > thresholds
    report = classification_report(labels, said, target_names=NAMES, output_dict=True, zero_division=0)
    for c, name in enumerate(NAMES):
        assert found[name]["f1"] == pytest.approx(report[name]["f1-score"])
        assert found[name]["support"] == report[name]["support"] == labels[:, c].sum()
    assert found["b"]["average_precision"] == pytest.approx(average_precision_score(labels[:, 1], logits[:, 1]))
    assert found["never"]["average_precision"] is None


def test_of_targets():
    rng = np.random.default_rng(2)
    values, labels = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    labels[:, 3] = 2
    found = metrics_per_class(values, labels, "regression", NAMES)
    assert list(found["a"]) == ["mae", "rmse", "pearson"]
    for c, name in enumerate(NAMES):
        errors = values[:, c] - labels[:, c]
        assert found[name]["mae"] == pytest.approx(np.abs(errors).mean())
        assert found[name]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert found["b"]["pearson"] == pytest.approx(np.corrcoef(values[:, 1], labels[:, 1])[0, 1])
    assert found["never"]["pearson"] is None


def test_threshold_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="threshold is a probability between 0 and 1"):
        metrics_per_class(np.zeros((2, 2)), np.eye(2), "multi_label_classification", NAMES[:2], [0.5, 1.0])
