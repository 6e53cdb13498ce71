"""What labels lose without an expert: by hand, against plain loops and scikit-learn, and on mixtures that are known."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from fl_i2moe.metrics import carriers as module
from fl_i2moe.metrics.calibration import log_loss_of_frequencies
from fl_i2moe.metrics.carrier_table import carrier_table, carriers_in_words, loss_table
from fl_i2moe.metrics.carriers import compute_carriers
from fl_i2moe.metrics.summaries import resample

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"
EXPERTS = ["uniqueness_image", "synergy", "redundancy"]
LABELS = ["comedy", "drama"]


def carriers_of(logits, weights, labels, problem_type=MULTI, **options):
    names = {"expert_names": EXPERTS[: logits.shape[1]], "label_names": [f"label {c}" for c in range(logits.shape[2])]}
    inputs = {"expert_logits": logits, "expert_weights": weights, "labels": np.asarray(labels)}
    return compute_carriers(**inputs, problem_type=problem_type, **{**names, **options})


def random_mixture(problem_type, num_samples=40, seed=0):
    rng = np.random.default_rng(seed)
    logits, weights = rng.normal(0, 3, (num_samples, 3, 2)), rng.dirichlet(np.ones(3), num_samples)
    labels = {
        MULTI: rng.integers(2, size=(num_samples, 2)),
        SINGLE: rng.integers(2, size=num_samples),
        REGRESSION: rng.normal(size=(num_samples, 2)),
    }[problem_type]
    return logits, weights, labels


def test_by_hand():
    """One expert says ±4 with weight 0.5 and is right, the other always 1: the mixture says 2.5 or −1.5."""
    labels = np.array([[1], [1], [0], [0]])
    logits = np.stack([8.0 * labels - 4, np.ones((4, 1))], axis=1)
    entry = carriers_of(logits, np.full((4, 2), 0.5), labels)["labels"]["label 0"]
    whole = (math.log(1 + math.exp(-2.5)) + math.log(1 + math.exp(-1.5))) / 2
    constant = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.5))) / 2  # of 0.5, which is all that is left
    assert entry["score"] == pytest.approx({"log_loss": whole, "f1": 1, "average_precision": 1})
    lost = {name: {measure: x["value"] for measure, x in by.items()} for name, by in entry["losses"].items()}
    # all are predicted, half of them rightly: F1 is 2/3
    gone = {"log_loss": constant - whole, "f1": 1 / 3, "average_precision": 0.5}
    assert lost["uniqueness_image"] == pytest.approx(gone)
    assert lost["synergy"] == {"log_loss": 0, "f1": 0, "average_precision": 0}
    assert {name: x["value"] for name, x in entry["all_experts"].items()} == pytest.approx(gone)
    # a temperature of 2 halves the mixture's logits, and at a threshold of 0.7 nothing is predicted without the expert
    options = {"temperature": 2.0, "threshold": 0.7}
    entry = carriers_of(logits, np.full((4, 2), 0.5), labels, **options)["labels"]["label 0"]
    assert entry["score"]["log_loss"] == pytest.approx(
        (math.log(1 + math.exp(-1.25)) + math.log(1 + math.exp(-0.75))) / 2
    )
    assert entry["losses"]["uniqueness_image"]["f1"]["value"] == 1


def measure_plainly(problem_type, logits, labels, column, threshold, temperature):
    """With scikit-learn, of samples (n, C); of class C all samples."""
    if problem_type == REGRESSION:
        errors = logits[:, column] - labels[:, column]
        return {"rmse": math.sqrt(sum(x * x for x in errors) / len(errors)), "mae": sum(map(abs, errors)) / len(errors)}
    if problem_type == MULTI:
        p, y = expit(logits[:, column] / temperature), labels[:, column]
        return {
            "log_loss": sk.log_loss(y, p, labels=[0, 1]),
            "f1": sk.f1_score(y, p > threshold[column], zero_division=0),
            "average_precision": sk.average_precision_score(y, p) if y.any() else None,
        }
    own = [n for n in range(len(labels)) if column == 2 or labels[n] == column]
    p, y = softmax(logits[own] / temperature, axis=1), labels[own]
    loss, right = sk.log_loss(y, p, labels=[0, 1]), sk.accuracy_score(y, p.argmax(axis=1))
    return {"log_loss": loss, "accuracy" if column == 2 else "recall": right}


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
def test_losses_and_intervals_equal_a_plain_loop(problem_type):
    logits, weights, labels = random_mixture(problem_type)
    threshold, temperature = [0.5, 0.3], 1 if problem_type == REGRESSION else 1.7
    options = {"threshold": threshold, "temperature": temperature, "num_resamples": 8, "seed": 5}
    found = carriers_of(logits, weights, labels, problem_type, **options)
    json.dumps(found, allow_nan=False)
    parts = [[weights[n, e] * logits[n, e] for n in range(40)] for e in range(3)]
    whole = np.array([sum(part[n] for part in parts) for n in range(40)])
    changed = {
        name: np.array([whole[n] - parts[e][n] + sum(parts[e]) / 40 for n in range(40)])
        for e, name in enumerate(EXPERTS)
    }
    changed["all_experts"] = np.array([sum(sum(part) / 40 for part in parts)] * 40)
    draws = [np.repeat(np.arange(40), row.astype(int)) for row in resample(40, 8, seed=5)]
    entries = [*found["labels"].values(), *([found["overall"]] if problem_type == SINGLE else [])]
    assert (found["overall"] is None) == (problem_type != SINGLE)
    for column, entry in enumerate(entries):
        before = [measure_plainly(problem_type, whole[x], labels[x], column, threshold, temperature) for x in draws]
        assert entry["score"] == pytest.approx(before[0])
        for name, lost in (entry["losses"] | {"all_experts": entry["all_experts"]}).items():
            after = [
                measure_plainly(problem_type, changed[name][x], labels[x], column, threshold, temperature)
                for x in draws
            ]
            for measure, x in lost.items():
                sign = 1 if measure in ("log_loss", "rmse", "mae") else -1
                values = [sign * (b[measure] - a[measure]) for a, b in zip(before, after, strict=True)]
                assert x["value"] == pytest.approx(values[0], abs=1e-9)
                assert x["interval"] == pytest.approx(np.percentile(values[1:], [2.5, 97.5]), abs=1e-9)


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
@settings(deadline=None, max_examples=10)
@example(seed=26828894)  # whose rounding errors are all above 0
@given(seed=st.integers(0, 2**32 - 1))
def test_an_expert_that_says_the_same_of_all_samples_loses_nothing(problem_type, seed):
    logits, weights, labels = random_mixture(problem_type, 12, seed)
    logits[:, 1] = logits[0, 1]
    weights[:, 1] = 0.2
    found = carriers_of(logits, weights, labels, problem_type, num_resamples=20)
    for entry in [*found["labels"].values(), *filter(None, [found["overall"]])]:
        assert entry["carrier"] != "synergy"
        for loss in entry["losses"]["synergy"].values():
            assert [loss["value"], *loss["interval"]] == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
def test_each_label_is_carried_by_the_one_expert_that_tells_it(problem_type):
    """The others hum: their noise tells nothing, and the model is better off without it."""
    rng = np.random.default_rng(1)
    logits, weights, labels = random_mixture(problem_type, 300)
    told = np.eye(2)[labels] if problem_type == SINGLE else labels
    weights = np.full((300, 3), 1 / 3)
    logits = rng.normal(0, 0.3, (300, 3, 2))
    logits[:, 2, 0] += 3 * told[:, 0] * (3 if problem_type != REGRESSION else 1)
    logits[:, 0, 1] += 3 * told[:, 1] * (3 if problem_type != REGRESSION else 1)
    found = carriers_of(logits, weights, labels, problem_type)
    assert [x["carrier"] for x in found["labels"].values()] == ["redundancy", "uniqueness_image"]
    assert found["labels"]["label 0"]["losses"]["synergy"][module.MEASURES[problem_type][0]]["value"] < 0.05


def test_nobody_carries_what_no_expert_tells_or_the_split_lacks():
    logits, weights, labels = random_mixture(MULTI, 200)
    labels[:, 1] = 0
    logits[:, 0, 1] = -9  # sure that it is not there, and right
    found = carriers_of(logits, weights, labels)["labels"]
    assert found["label 0"]["carrier"] is None
    assert found["label 1"]["carrier"] is None
    assert found["label 1"]["losses"]["synergy"]["average_precision"] == {"value": None, "interval": None}
    logits, weights, labels = random_mixture(SINGLE, 20)
    missing = carriers_of(logits, weights, np.zeros(20, int), SINGLE)["labels"]["label 1"]
    assert missing["carrier"] is None
    assert missing["score"] == {"log_loss": None, "recall": None}


def test_an_interval_holds_the_loss_of_all_data():
    rng = np.random.default_rng(2)

    def draw(num_samples):
        labels = rng.integers(2, size=(num_samples, 1))
        logits = rng.normal(0, 2, (num_samples, 2, 1))
        logits[:, 0] += 2 * (2 * labels - 1)
        return logits, rng.dirichlet([5, 5], num_samples), labels

    def loss(mixture, **options):
        return carriers_of(*mixture, **options)["labels"]["label 0"]["losses"]["uniqueness_image"]["log_loss"]

    truth = loss(draw(100_000), num_resamples=1)["value"]
    ends = np.array([loss(draw(100), num_resamples=200, seed=seed)["interval"] for seed in range(100)])
    assert 0.88 <= ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() <= 0.99


def test_a_large_split_gets_fewer_resamples_and_says_so(monkeypatch):
    mixture = random_mixture(MULTI)
    assert carriers_of(*mixture)["num_resamples"] == 1000
    monkeypatch.setattr(module, "BUDGET", 40 * 5 * 2 * 300)  # samples × variants × labels × resamples
    assert carriers_of(*mixture)["num_resamples"] == 300
    monkeypatch.setattr(module, "BUDGET", 1)
    assert carriers_of(*mixture)["num_resamples"] == 200


def test_a_dense_model_has_none():
    logits, weights, labels = random_mixture(MULTI)
    assert carriers_of(logits[:, :1], weights[:, :1], labels) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": {"noir": "synergy"}}, "`truth` names the label noir; there are label 0, label 1"),
        ({"temperature": 0}, "`temperature` must be a positive number, got 0"),
        ({"temperature": math.nan}, "got nan"),
        ({"threshold": [0.5] * 3}, "`threshold` must be one number, or 2; got 3"),
        ({"threshold": 1.0}, "threshold is a probability between 0 and 1"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        carriers_of(*random_mixture(MULTI), **options)


# --- as tables and in words -------------------------------------------------------------------------------------------


def statistics_of(carriers, problem_type=MULTI, labels=LABELS):
    """By hand: label → carrier and, where it is known, what was planted."""

    def entry(carrier, planted=None):
        measures = module.MEASURES[problem_type]
        loss = {x: {"value": 0.25, "interval": [-0.0001, 0.5]} for x in measures}
        told = {"score": dict.fromkeys(measures, 0.5), "losses": dict.fromkeys(EXPERTS, loss), "carrier": carrier}
        return told | {"all_experts": loss} | ({"planted": planted} if planted else {})

    told = {label: entry(*x) for label, x in zip(labels, carriers, strict=True)}
    own = {"labels": told, "overall": None, "num_resamples": 9, "num_samples": 9, "temperature": 1.0}
    names = {"label_names": labels, "expert_names": EXPERTS}
    return {"carriers": own, "problem_type": problem_type, "num_samples": 9, **names}


def test_tables():
    statistics = statistics_of([("synergy",), (None,)])
    assert carrier_table(statistics) == (
        ["label", "carried by", "log loss (nats)", "F1 (%)"],
        [["comedy", "Synergy", "0.250 [0.000, 0.500]", "25.0 [0.0, 50.0]"], ["drama", "none", "–", "–"]],
    )
    header, rows = carrier_table(statistics, all_measures=True)
    assert header[-1] == "average precision (%)"
    assert len(rows[0]) == len(rows[1]) == 5
    header, rows = loss_table(statistics)
    assert header == ["label", "Uniqueness: image", "Synergy", "Redundancy", "all experts"]
    assert rows[1] == ["drama", *["0.250 [0.000, 0.500]"] * 4]
    header, rows = carrier_table(statistics_of([("synergy", "redundancy"), (None,)]))
    assert header[:3] == ["label", "planted as", "carried by"]
    assert [row[:3] for row in rows] == [["comedy", "Redundancy", "Synergy"], ["drama", "–", "none"]]
    statistics = statistics_of([("synergy",), (None,)], REGRESSION)
    assert carrier_table(statistics)[0] == ["target", "carried by", "root mean squared error", "mean absolute error"]


@pytest.mark.parametrize(
    ("carriers", "problem_type", "said"),
    [
        ([("synergy",), (None,)], MULTI, "Carried, of 2 labels: 1 by Synergy, 1 by none."),
        ([("synergy",)] * 2, SINGLE, "Carried, of 2 classes: 2 by Synergy."),
        (
            [("synergy", "synergy"), ("synergy", "uniqueness_text")],  # the latter is none of this model's
            MULTI,
            "1 of 2 labels are carried by the expert named after their interaction; chance is 0.33.",
        ),
    ],
)
def test_in_words(carriers, problem_type, said):
    assert carriers_in_words(statistics_of(carriers, problem_type)) == said


# --- against a prediction that looks at no sample ---------------------------------------------------------------------


def test_class_frequencies_equal_scikit_learn():
    rng = np.random.default_rng(0)
    train, labels = rng.integers(3, size=50), rng.integers(3, size=20)
    shares = [np.mean(train == c) for c in range(3)]
    assert log_loss_of_frequencies(train, labels, 3) == pytest.approx(
        sk.log_loss(labels, [shares] * 20, labels=range(3))
    )
    train, labels = rng.random((50, 2)) < 0.3, (rng.random((20, 2)) < 0.3).astype(float)
    expected = np.mean([sk.log_loss(labels[:, c], [train[:, c].mean()] * 20, labels=[0, 1]) for c in range(2)])
    assert log_loss_of_frequencies(train, labels, 2) == pytest.approx(expected)
    # nothing lost on what never occurs; infinite where it occurs after all
    assert log_loss_of_frequencies(np.zeros((9, 2)), np.zeros((4, 2)), 2) == 0
    assert log_loss_of_frequencies(np.zeros((9, 2)), np.ones((4, 2)), 2) is None
    assert log_loss_of_frequencies(np.array([0, 1, 1]), np.array([2]), 3) is None
