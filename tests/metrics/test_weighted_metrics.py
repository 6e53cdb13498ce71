"""Metrics of weighted samples against `compute_metrics` on repeated ones, and against scikit-learn's weights."""

import time

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_i2moe.metrics.tasks import compute_metrics
from fl_i2moe.metrics.weighted import weighted_metrics, weighted_ranking

pytestmark = pytest.mark.filterwarnings("error")

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"


def draw_split(rng, problem_type, num_samples, num_classes, decimals):
    """Tied scores, labels without positives, classes that do not occur and constant outputs are common."""
    logits = rng.normal(size=(num_samples, num_classes)).round(decimals)
    match problem_type:
        case "multi_label_classification":
            labels = (rng.random(logits.shape) < rng.choice([0.0, 0.2, 0.5, 1.0], size=num_classes)).astype(int)
        case "single_label_classification":
            labels = rng.integers(num_classes, size=num_samples)
        case "regression":
            labels = rng.normal(size=logits.shape).round(decimals)
    return logits, labels


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(1, 12), num_classes=st.integers(2, 5))
def test_a_weight_counts_a_sample_so_often(problem_type, seed, num_samples, num_classes):
    rng = np.random.default_rng(seed)
    logits, labels = draw_split(rng, problem_type, num_samples, num_classes, rng.integers(0, 4))
    drawn = [rng.integers(num_samples, size=num_samples) for _ in range(4)]
    weights = np.stack([np.bincount(rows, minlength=num_samples) for rows in drawn])
    found = weighted_metrics(logits, labels, problem_type, weights, threshold=0.4)
    for r, rows in enumerate(drawn):
        expected = compute_metrics(logits[rows], labels[rows], problem_type, threshold=0.4)
        assert list(found) == list(expected)
        assert {name: x[r] for name, x in found.items()} == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_rankings_equal_scikit_learn_for_any_weights():
    rng = np.random.default_rng(0)
    scores, labels, weights = rng.normal(size=300).round(1), rng.random(300) < 0.3, rng.random((400, 300))
    precision, auroc = weighted_ranking(scores, labels, weights)  # more than are worked on at once
    for r in (0, 217, 399):
        assert precision[r] == pytest.approx(sk.average_precision_score(labels, scores, sample_weight=weights[r]))
        assert auroc[r] == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=weights[r]))


def test_no_weighting_at_all():
    found = weighted_metrics(np.eye(3), [0, 1, 2], SINGLE, np.zeros((0, 3)))
    assert {x.shape for x in found.values()} == {(0,)}


def test_a_thousand_resamples_in_the_time_of_a_few():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(64, 23)), (rng.random((64, 23)) < 0.2).astype(int)
    weights = rng.multinomial(64, [1 / 64] * 64, size=1000)
    start = time.perf_counter()
    weighted_metrics(logits, labels, MULTI, weights)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(20):
        compute_metrics(logits, labels, MULTI)
    assert fast < 2 * (time.perf_counter() - start)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], r"shape \(weightings, 2\), got \(2,\)"),
        ([[1.0, 1.0, 1.0]], r"got \(1, 3\)"),
        ([[1.0, -1.0]], "negative"),
        ([[1.0, 1.0], [0.0, 0.0]], "all 0"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_metrics(np.eye(2), [0, 1], SINGLE, weights)
