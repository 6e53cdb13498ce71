import json

import numpy as np
import pytest
import torch

from fl_i2moe.metrics.statistics import compute_statistics
from fl_i2moe.metrics.tasks import compute_metrics

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"
EXPERTS = ["uniqueness_image", "uniqueness_text", "synergy", "redundancy"]
LABELS = ["comedy", "drama", "noir"]


def random_outputs(problem_type, num_samples=60, expert_names=EXPERTS, seed=0):
    """Arguments of `compute_statistics`, in which `noir` has no sample (the value lists of a regression apart)."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(len(expert_names), 3.0), size=num_samples)
    expert_logits = rng.normal(size=(num_samples, len(expert_names), len(LABELS)))
    labels = {
        MULTI: rng.integers(2, size=(num_samples, 3)) * np.array([1, 1, 0]),
        SINGLE: rng.integers(2, size=num_samples),
        REGRESSION: rng.normal(size=(num_samples, 3)),
    }[problem_type]
    return {
        "logits": np.einsum("ne,nec->nc", weights, expert_logits),
        "expert_logits": expert_logits,
        "expert_weights": weights,
        "labels": labels,
        "expert_names": expert_names,
        "label_names": LABELS,
        "problem_type": problem_type,
    }


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
def test_is_plain_json_without_nan(problem_type):
    outputs = random_outputs(problem_type)
    statistics = compute_statistics(**outputs)
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    assert statistics["num_samples"] == 60
    assert statistics["expert_names"] == EXPERTS
    assert statistics["label_names"] == LABELS
    # One class only: AUROC is undefined, which JSON says with null.
    if problem_type == SINGLE:
        outputs["labels"] = np.zeros(60, dtype=int)
        assert compute_statistics(**outputs)["metrics"]["mixture"]["auroc"] is None


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE])
def test_weights_overall_and_per_class(problem_type):
    outputs = random_outputs(problem_type)
    weights, labels = outputs["expert_weights"], outputs["labels"]
    statistics = compute_statistics(**outputs)["expert_weights"]

    def check(description, column):
        assert description["mean"] == pytest.approx(sum(column) / len(column))
        assert description["std"] == pytest.approx(np.sqrt(np.mean(column**2) - np.mean(column) ** 2))
        assert list(description["quantiles"]) == ["0.05", "0.25", "0.5", "0.75", "0.95"]
        assert description["quantiles"]["0.5"] == pytest.approx(np.median(column))
        below = np.mean(column <= description["quantiles"]["0.95"])
        assert below == pytest.approx(0.95, abs=1 / len(column))

    for e, name in enumerate(EXPERTS):
        check(statistics["overall"][name], weights[:, e])
        for c, label in enumerate(LABELS[:2]):
            carrying = [i for i in range(60) if (labels[i] == c if problem_type == SINGLE else labels[i][c])]
            assert statistics["per_class"][label]["num_samples"] == len(carrying)
            check(statistics["per_class"][label]["experts"][name], weights[carrying, e])
    assert statistics["per_class"]["noir"] == {"num_samples": 0, "experts": None}


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE, REGRESSION])
def test_each_expert_alone_beside_the_mixture(problem_type):
    outputs = random_outputs(problem_type)
    metrics = compute_statistics(**outputs)["metrics"]
    assert metrics["mixture"] == compute_metrics(outputs["logits"], outputs["labels"], problem_type)
    assert list(metrics["experts"]) == EXPERTS
    for e, name in enumerate(EXPERTS):
        alone = compute_metrics(outputs["expert_logits"][:, e], outputs["labels"], problem_type)
        assert metrics["experts"][name] == alone


def test_agreement_by_hand_single_label():
    # Rows: all agree on 0; all agree on 1; experts split; experts split.
    experts = np.eye(2)[[[0, 0], [1, 1], [0, 1], [1, 0]]]
    mixture = np.eye(2)[[0, 1, 0, 1]]
    agreement = compute_statistics(
        logits=mixture,
        expert_logits=experts,
        expert_weights=np.full((4, 2), 0.5),
        labels=[0, 0, 0, 0],
        expert_names=["synergy", "redundancy"],
        label_names=["no", "yes"],
        problem_type=SINGLE,
    )["agreement"]
    one = {"count": 1, "share": 0.25}
    assert agreement == {
        "per_sample": {
            "num_decisions": 4,
            "table": {"agree_right": one, "agree_wrong": one, "disagree_right": one, "disagree_wrong": one},
            "pairwise": [[1.0, 0.5], [0.5, 1.0]],
        },
        "per_label": None,
    }


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_agreement_multi_label_against_a_plain_loop(threshold):
    outputs = random_outputs(MULTI, num_samples=25, seed=3)
    # Copies of one expert, so that some samples agree on all their labels.
    outputs["expert_logits"][:10] = outputs["expert_logits"][:10, :1]
    agreement = compute_statistics(**outputs, threshold=threshold)["agreement"]

    def decide(logits):
        return [1 / (1 + np.exp(-x)) > threshold for x in logits]

    cells = ["agree_right", "agree_wrong", "disagree_right", "disagree_wrong"]
    per_sample, per_label = dict.fromkeys(cells, 0), dict.fromkeys(cells, 0)
    same_sample, same_label = np.zeros((4, 4)), np.zeros((4, 4))
    for mixture, experts, labels in zip(outputs["logits"], outputs["expert_logits"], outputs["labels"], strict=True):
        mixture, experts, labels = decide(mixture), [decide(expert) for expert in experts], list(labels)
        agree = "agree" if all(expert == experts[0] for expert in experts) else "disagree"
        per_sample[f"{agree}_{'right' if mixture == labels else 'wrong'}"] += 1
        for c in range(3):
            agree = "agree" if len({expert[c] for expert in experts}) == 1 else "disagree"
            per_label[f"{agree}_{'right' if mixture[c] == labels[c] else 'wrong'}"] += 1
        for i in range(4):
            for j in range(4):
                same_sample[i, j] += experts[i] == experts[j]
                same_label[i, j] += sum(a == b for a, b in zip(experts[i], experts[j], strict=True))

    for part, counts, same, total in [
        (agreement["per_sample"], per_sample, same_sample, 25),
        (agreement["per_label"], per_label, same_label, 75),
    ]:
        assert part["num_decisions"] == total
        assert {name: cell["count"] for name, cell in part["table"].items()} == counts
        assert {name: cell["share"] for name, cell in part["table"].items()} == pytest.approx(
            {name: count / total for name, count in counts.items()}
        )
        np.testing.assert_allclose(part["pairwise"], same / total)
    assert per_sample["agree_wrong"] + per_sample["agree_right"] >= 10


def test_regression_has_no_agreement_and_no_classes():
    statistics = compute_statistics(**random_outputs(REGRESSION))
    assert statistics["agreement"] is None
    assert statistics["expert_weights"]["per_class"] is None
    assert statistics["threshold"] is None


def test_dense_model():
    outputs = random_outputs(MULTI, expert_names=["dense"])
    outputs |= {"expert_weights": np.ones((60, 1)), "logits": outputs["expert_logits"][:, 0]}
    statistics = compute_statistics(**outputs)
    assert statistics["metrics"]["experts"]["dense"] == statistics["metrics"]["mixture"]
    assert statistics["expert_weights"]["overall"]["dense"]["std"] == 0
    assert statistics["expert_weights"]["overall"]["dense"]["quantiles"]["0.05"] == 1
    assert statistics["agreement"]["per_sample"]["table"]["disagree_wrong"]["count"] == 0
    assert statistics["agreement"]["per_sample"]["pairwise"] == [[1.0]]


def test_tensors_and_arrays_give_the_same():
    outputs = random_outputs(MULTI)
    tensors = {
        name: torch.tensor(value, requires_grad=value.dtype == np.float64) if isinstance(value, np.ndarray) else value
        for name, value in outputs.items()
    }
    assert compute_statistics(**tensors) == compute_statistics(**outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_logits": np.zeros((60, 3, 3))}, r"expert_logits must have shape \(60, 4, 3\).*got \(60, 3, 3\)"),
        ({"expert_weights": np.zeros((4, 60))}, r"expert_weights must have shape \(60, 4\)"),
        ({"labels": np.zeros((60, 2))}, r"needs labels \(60, 3\), got \(60, 2\)"),
        ({"label_names": ["comedy", "drama"]}, "label_names holds 2 names, but there are 3 classes"),
        ({"expert_names": ["synergy", "synergy", "a", "b"]}, "expert_names must hold at least one name and none twice"),
        ({"expert_names": []}, "expert_names must hold at least one name"),
        ({"expert_weights": np.full((60, 4), np.nan)}, r"expert_weights must be finite, but hold nan at \(0, 0\)"),
        ({"problem_type": "ranking"}, "problem_type must be one of"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        compute_statistics(**(random_outputs(MULTI) | change))
