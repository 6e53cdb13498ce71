"""Temperatures by a grid, thresholds by brute force, calibration errors by plain loops."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn.metrics import f1_score, log_loss

from fl_i2moe import FLI2MoEConfig
from fl_i2moe.metrics.calibration import (
    TEMPERATURES,
    best_temperature,
    best_thresholds,
    calibration_error,
    log_losses,
)
from fl_i2moe.training.calibration import calibrate, measure
from fl_i2moe.training.loop import Predictions

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def drawn(problem_type, true_temperature, num_samples=300, num_classes=4, seed=0):
    """Labels from probabilities of `logits / true_temperature`, so that this is about the best temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(num_samples, num_classes))
    if problem_type == MULTI:
        return logits, (rng.random(logits.shape) < expit(logits / true_temperature)).astype(np.int64)
    chances = softmax(logits / true_temperature, axis=1)
    return logits, np.array([rng.choice(num_classes, p=row) for row in chances])


def loss(logits, labels, temperature):
    scaled = logits / temperature
    if labels.ndim == 1:
        return log_loss(labels, softmax(scaled, axis=1), labels=range(logits.shape[1]))
    return np.mean([log_loss(y, expit(x), labels=[0, 1]) for x, y in zip(scaled.T, labels.T, strict=True)])


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("num_samples", [12, 300])
def test_no_temperature_of_a_grid_is_better(problem_type, true_temperature, num_samples):
    logits, labels = drawn(problem_type, true_temperature, num_samples)

    def cost(temperature):
        return num_samples * loss(logits, labels, temperature) - norm(scale=0.5).logpdf(np.log(temperature))

    found = best_temperature(logits, labels)
    grid = np.geomspace(*TEMPERATURES, 41)
    losses = [cost(t) for t in grid]
    assert cost(found) <= min(losses) + 1e-9
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.08)
    if num_samples == 300:
        assert found == pytest.approx(true_temperature, rel=0.3)


def test_temperatures_have_bounds():
    logits, labels = np.tile([[0.2, 0.0], [0.0, 0.2]], (10**5, 1)), np.tile([0, 1], 10**5)
    assert best_temperature(logits, labels) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert best_temperature(logits, 1 - labels) == pytest.approx(TEMPERATURES[1], rel=1e-3)
    assert 3 * best_temperature(logits, labels) < best_temperature(logits[:20], labels[:20]) < 1  # few say little
    assert best_temperature(np.zeros((3, 2)), np.array([0, 1, 1])) == 1  # nothing to choose by
    assert best_temperature(np.array([[800.0, -800.0]]), np.array([1])) == pytest.approx(TEMPERATURES[1], rel=1e-3)


@given(
    values=st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_no_other_threshold_has_a_better_f1(values):
    """Against every way to cut the distinct logits in two, and predicting all."""
    logits = np.array([[value / 2] for value, _ in values])
    labels = np.array([[int(label)] for _, label in values])
    threshold = best_thresholds(logits, labels)[0]
    if not labels.any():
        assert threshold == 0
        return
    distinct = sorted(set(logits[:, 0].tolist()))
    cuts = [distinct[0] - 1, *((low + high) / 2 for low, high in pairwise(distinct))]
    scores = {cut: f1_score(labels, logits > cut) for cut in cuts}
    best = max(scores.values())
    assert f1_score(labels, logits > threshold) == pytest.approx(best)
    assert abs(threshold) == min(abs(cut) for cut, score in scores.items() if score == pytest.approx(best))


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_calibration_error_by_a_plain_loop(problem_type):
    logits, labels = drawn(problem_type, 2.5)
    asked = []
    if problem_type == SINGLE:
        chances = softmax(logits, axis=1)
        asked.append([(max(row), row.argmax() == y) for row, y in zip(chances, labels, strict=True)])
    else:
        asked += [list(zip(expit(x), y == 1, strict=True)) for x, y in zip(logits.T, labels.T, strict=True)]
    errors = []
    for pairs in asked:
        error = 0.0
        for number in range(15):
            inside = [(p, y) for p, y in pairs if number / 15 <= p < (number + 1) / 15 or (number == 14 and p == 1)]
            if inside:
                gap = abs(np.mean([p for p, _ in inside]) - np.mean([y for _, y in inside]))
                error += len(inside) / len(pairs) * gap
        errors.append(error)
    assert calibration_error(logits, labels) == pytest.approx(np.mean(errors))


def predictions(logits, labels):
    weights = torch.full((len(logits), 4), 0.25)
    mixture = torch.tensor(logits)
    labels = torch.tensor(labels if labels.ndim == 1 else labels.astype(np.float32))
    ids = [str(number) for number in range(len(logits))]
    return Predictions(ids, mixture, mixture[:, None].expand(-1, 4, -1), weights, labels)


def config_of(problem_type, num_labels=4):
    return FLI2MoEConfig(problem_type=problem_type, num_labels=num_labels)


def test_thresholds_of_calibrated_probabilities_by_brute_force():
    logits, labels = drawn(MULTI, 2.0, num_samples=60)
    labels[:, 3] = 0
    config = config_of(MULTI)
    calibrate(config, predictions(logits, labels))
    assert config.thresholds[3] == 0.5
    chances = expit(logits / config.temperature)
    for c in range(3):
        scores = [f1_score(labels[:, c], chances[:, c] > cut) for cut in [0.0, *np.sort(chances[:, c])[:-1]]]
        assert f1_score(labels[:, c], chances[:, c] > config.thresholds[c]) == pytest.approx(max(scores))
    measured = measure(
        {"validation": predictions(logits, labels), "test": predictions(logits[:40], labels[:40])}, config, 0.3
    )
    assert measured["validation"]["micro_f1"] == pytest.approx(f1_score(labels, expit(logits) > 0.3, average="micro"))
    own = f1_score(labels, chances > config.thresholds, average="macro", zero_division=0)
    assert measured["own_thresholds"]["validation"]["macro_f1"] == pytest.approx(own)
    assert measured["per_class"]["LABEL_3"] == {
        "precision": 0, "recall": 0, "f1": 0, "support": 0, "average_precision": None
    }  # fmt: skip


def test_thresholds_stay_probabilities():
    """Of logits so large that every probability is 0 or 1."""
    logits = np.array([[900.0, -900.0], [800.0, -800.0], [850.0, -700.0]])
    config = config_of(MULTI, num_labels=2)
    calibrate(config, predictions(logits, np.array([[1, 0], [0, 0], [1, 1]])))
    assert all(0 < x < 1 for x in config.thresholds)
    FLI2MoEConfig(**{k: getattr(config, k) for k in ("problem_type", "thresholds", "temperature")}, num_labels=2)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_model_that_predicts_nan_is_named():
    logits, labels = drawn(SINGLE, 1.0, num_samples=5)
    logits[2, 1] = np.nan
    config = config_of(SINGLE)
    calibrate(config, predictions(logits, labels))
    with pytest.raises(ValueError, match=r"logits must be finite, but hold nan at \(2, 1\)"):
        measure({"test": predictions(logits, labels)}, config, 0.5)


def test_logits_of_a_temperature_have_thresholds_of_that_scale():
    logits, labels = drawn(MULTI, 1.0, num_samples=50)
    assert best_thresholds(logits / 4, labels) == pytest.approx(best_thresholds(logits, labels) / 4)


def test_a_log_loss_is_finite_however_sure_a_prediction_is():
    logits, sure = np.array([[800.0, -800.0]]), np.array([[1, 1]])
    assert log_losses(logits, sure) == pytest.approx([400])
    assert log_losses(logits, np.array([1])) == pytest.approx([1600])
