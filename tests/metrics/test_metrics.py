import socket
import warnings

import evaluate
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from fl_i2moe.metrics import METRICS_BY_PROBLEM, TaskMetrics, compute_metrics, default_metric

# No metric may warn, whatever the labels.
pytestmark = pytest.mark.filterwarnings("error")

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"


@st.composite
def multi_label_splits(draw):
    """Logits and labels in which labels without positives, without negatives, and tied scores are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_samples, num_labels = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    frequency = rng.choice([0.0, 0.2, 0.5, 1.0], size=num_labels)
    labels = (rng.random((num_samples, num_labels)) < frequency).astype(np.float32)
    return rng.normal(size=labels.shape).round(draw(st.integers(0, 8))), labels


@settings(deadline=None, max_examples=80)
@given(split=multi_label_splits(), threshold=st.sampled_from([0.1, 0.5, 0.9]))
def test_multi_label_equals_scikit_learn(split, threshold):
    logits, labels = split
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compute_metrics(logits, labels, MULTI, threshold)

    predictions = expit(logits) > threshold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result["micro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="micro"))
        assert result["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro"))
        assert result["subset_accuracy"] == pytest.approx((predictions == labels).all(1).mean())
        # scikit-learn counts a label without positives as 0 and warns; we leave it out of the mean.
        per_label = sk.average_precision_score(labels, logits, average=None)
        expected = per_label[labels.any(0)].mean() if labels.any() else np.nan
        assert result["mAP"] == pytest.approx(expected, nan_ok=True)
        defined = [c for c, column in enumerate(labels.T) if 0 < column.sum() < len(column)]
        aurocs = [sk.roc_auc_score(labels[:, c], expit(logits[:, c])) for c in defined]
        assert result["auroc"] == pytest.approx(np.mean(aurocs) if aurocs else np.nan, nan_ok=True)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), num_classes=st.integers(2, 5), num_samples=st.integers(1, 20))
def test_single_label_equals_scikit_learn(seed, num_classes, num_samples):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(num_samples, num_classes)), rng.integers(num_classes, size=num_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compute_metrics(logits, labels, SINGLE)

    predictions = logits.argmax(1)
    assert result["accuracy"] == result["micro_f1"] == pytest.approx((predictions == labels).mean())
    assert result["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro"))
    if len(set(labels)) == 1:
        assert np.isnan(result["auroc"])
    elif len(set(labels)) == num_classes:
        probabilities = softmax(logits, axis=1)
        if num_classes == 2:
            expected = sk.roc_auc_score(labels, probabilities[:, 1])
        else:
            expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
            assert result["mAP"] == pytest.approx(sk.average_precision_score(labels, probabilities, average="macro"))
        assert result["auroc"] == pytest.approx(expected)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_regression_equals_scikit_learn(num_outputs):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(50, num_outputs))
    predictions = labels + rng.normal(size=labels.shape) * np.arange(1, num_outputs + 1)
    result = compute_metrics(predictions, labels, REGRESSION)
    assert result["mae"] == pytest.approx(sk.mean_absolute_error(labels, predictions))
    squared_errors = sk.mean_squared_error(labels, predictions, multioutput="raw_values")
    assert result["rmse"] == pytest.approx(np.sqrt(squared_errors).mean())
    z_scores = [(values - values.mean(0)) / values.std(0) for values in (labels, predictions)]
    assert result["pearson"] == pytest.approx((z_scores[0] * z_scores[1]).mean())
    signs = [sk.accuracy_score(labels[:, c] > 0, predictions[:, c] > 0) for c in range(num_outputs)]
    assert result["sign_accuracy"] == pytest.approx(np.mean(signs))
    if num_outputs == 1:
        assert compute_metrics(predictions, labels[:, 0], REGRESSION) == result


def test_sign_accuracy_leaves_out_what_has_no_sign():
    predictions, labels = [[1.0], [-2.0], [0.0], [3.0]], [[0.5], [1.0], [-1.0], [0.0]]
    assert compute_metrics(predictions, labels, REGRESSION)["sign_accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(compute_metrics(predictions, [[0.0]] * 4, REGRESSION)["sign_accuracy"])


def test_known_values():
    logits = [[2.0, -1.0], [1.0, -1.0], [-1.0, -2.0], [3.0, -1.0]]
    labels = [[1, 0], [0, 0], [1, 0], [1, 0]]
    # Label 0: 2 hits, 1 false alarm, 1 miss; ranking right, right, wrong, right. Label 1 has no positive.
    assert compute_metrics(logits, labels, MULTI) == pytest.approx(
        {
            "micro_f1": 2 / 3,
            "macro_f1": 1 / 3,
            "mAP": (1 + 1 + 3 / 4) / 3,
            "auroc": 2 / 3,
            "subset_accuracy": 1 / 2,
        }
    )


def test_threshold_is_exclusive_and_ranking_survives_saturation():
    assert compute_metrics([[0.0, 0.1]], [[0, 1]], MULTI)["subset_accuracy"] == 1.0
    # Sigmoids of 50 and 60 are both 1.0, but the ranking is perfect.
    assert compute_metrics([[60.0, 0.0], [50.0, 0.0]], [[1, 0], [0, 0]], MULTI)["auroc"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_and_arrays_give_the_same(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, generator=generator).to(dtype).requires_grad_()
    labels = (torch.rand(30, 4, generator=generator) < 0.3).float()
    arrays = compute_metrics(logits.detach().float().numpy(), labels.numpy().astype(int), MULTI)
    assert compute_metrics(logits, labels, MULTI) == arrays


def test_constant_predictions_have_no_correlation():
    result = compute_metrics([[0.1]] * 5, list(range(5)), REGRESSION)
    assert np.isnan(result["pearson"])
    assert result["mae"] == pytest.approx(1.94)


@pytest.mark.parametrize(
    ("logits", "labels", "problem_type", "message"),
    [
        ([[0.0, 1.0]], [0], "classification", "problem_type must be one of"),
        ([[0.0, 1.0]], [0, 1], SINGLE, r"needs labels \(1,\), got \(2,\)"),
        ([[0.0, 1.0]], [1], MULTI, r"needs labels \(1, 2\), got \(1,\)"),
        ([[0.0, 1.0], [0.0, 1.0]], [0, 2], SINGLE, "labels of sample 1 hold 2; .* knows 0 to 1"),
        ([[0.0, 1.0], [0.0, 1.0]], [[0, 1], [0.5, 1]], MULTI, "labels of sample 1 hold 0.5"),
        ([[0.0, 1.0], [0.0, np.nan]], [0, 1], SINGLE, r"logits must be finite, but hold nan at \(1, 1\)"),
        ([[0.0]], [[1]], MULTI, "needs two classes or more"),
        (np.zeros((0, 2)), np.zeros((0, 2)), MULTI, "at least one sample"),
        ([0.0, 1.0], [0.0, 1.0], REGRESSION, r"shape \(samples, classes\)"),
    ],
)
def test_bad_input_is_named(logits, labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(logits, labels, problem_type)


@pytest.mark.parametrize("threshold", [0, 1, 50])
def test_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="threshold"):
        compute_metrics([[0.0, 1.0]], [[0, 1]], MULTI, threshold)


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
def test_every_metric_is_listed_and_points_the_right_way(problem_type):
    """A perfect prediction beats a wrong one in the stated direction."""
    labels = {MULTI: [[1, 0], [0, 1]], SINGLE: [0, 1], REGRESSION: [[5.0, -5.0], [-5.0, 5.0]]}[problem_type]
    right = compute_metrics([[5.0, -5.0], [-5.0, 5.0]], labels, problem_type)
    wrong = compute_metrics([[-5.0, 5.0], [5.0, -5.0]], labels, problem_type)
    assert right.keys() == METRICS_BY_PROBLEM[problem_type].keys()
    for name, greater_is_better in METRICS_BY_PROBLEM[problem_type].items():
        assert right[name] != wrong[name]
        assert (right[name] > wrong[name]) == greater_is_better


def test_default_metrics():
    assert [default_metric(problem) for problem in (MULTI, SINGLE, REGRESSION)] == [
        ("micro_f1", True),
        ("accuracy", True),
        ("mae", False),
    ]


def random_split(problem_type):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, 3))
    labels = {
        MULTI: rng.integers(2, size=(40, 3)).astype(float),
        SINGLE: rng.integers(3, size=40),
        REGRESSION: rng.normal(size=(40, 3)),
    }
    return logits, labels[problem_type]


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
def test_the_evaluate_metric_equals_scikit_learn_in_batches_and_at_once(problem_type):
    logits, labels = random_split(problem_type)
    metric = TaskMetrics(problem_type, threshold=0.6)
    at_once = metric.compute(predictions=logits, references=labels)
    name, expected = {
        MULTI: ("macro_f1", lambda: sk.f1_score(labels, expit(logits) > 0.6, average="macro")),
        SINGLE: ("accuracy", lambda: sk.accuracy_score(labels, logits.argmax(1))),
        REGRESSION: ("rmse", lambda: sk.root_mean_squared_error(labels, logits)),
    }[problem_type]
    assert at_once[name] == pytest.approx(expected())
    assert at_once == compute_metrics(logits, labels, problem_type, 0.6)
    for start in range(0, 40, 16):
        batch = slice(start, start + 16)
        metric.add_batch(predictions=torch.tensor(logits[batch]), references=torch.tensor(labels[batch]))
    assert metric.compute() == at_once


def test_the_evaluate_metric_needs_no_network_and_leaves_no_file(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    first, second = TaskMetrics(SINGLE), TaskMetrics(SINGLE)
    for logits, labels in [([[2.0, 1.0], [0.0, 1.0]], [0, 1]), ([[0.0, 1.0], [0.0, 1.0]], [0, 1])]:  # nothing is shared
        first.add_batch(predictions=logits, references=labels)
        second.add_batch(predictions=logits[::-1], references=labels)
    assert first.compute()["accuracy"] == 0.75
    assert second.compute()["accuracy"] == 0.25
    together = evaluate.combine([TaskMetrics(SINGLE)]).compute(predictions=[[2.0, 1.0], [0.0, 1.0]], references=[0, 1])
    assert together["accuracy"] == 1.0
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_problem_type_is_refused():
    with pytest.raises(ValueError, match="problem_type must be one of"):
        TaskMetrics("macro")
