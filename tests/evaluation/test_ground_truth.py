"""The measurement on cases whose answer is known: by hand, by construction, and by scikit-learn."""

import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from fl_i2moe.evaluation.ground_truth.truth import (
    EvidenceProbe,
    ExpertOutputs,
    describe,
    find_carriers,
    grow,
    grow_in_time,
    micro_f1,
    patches_in_boxes,
    patches_to_features,
    precision_at,
    replacement_costs,
    right_experts,
    right_pairs,
    stretches_in_seconds,
    tokens_in_spans,
)
from fl_i2moe.explain.game import Player
from fl_i2moe.metrics.summaries import resample, weighted_means
from fl_i2moe.metrics.weighted import weighted_f1, weighted_ranking

EXPERTS = ["uniqueness_image", "uniqueness_text", "synergy", "redundancy"]
LABELS = ["picture", "word", "both differ", "both say it"]


# --- where the truth lies ---------------------------------------------------------------------------------------------


def test_patches_of_a_box_by_hand():
    """A picture of 90 × 60, whose middle 60 × 60 is covered by 3 × 3 patches of 20 × 20: centres at x 25, 45, 65."""
    geometry = {"width": 90, "height": 60, "left": 15, "top": 0, "right": 75, "bottom": 60}
    # y from 5 to 35 holds the centres 10 and 30, x from 40 to 66 the centres 45 and 65
    found = patches_in_boxes([[40, 5, 66, 35]], geometry, (3, 3))
    assert found.tolist() == [[0, 1, 1], [0, 1, 1], [0, 0, 0]]
    # a small box between the centres belongs to the patch that its own centre, (36, 21), lies in
    assert patches_in_boxes([[34, 20, 38, 22]], geometry, (3, 3)).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    # left of what the grid covers, and exactly on its outer border
    assert not patches_in_boxes([[0, 0, 10, 60], [75, 0, 90, 60]], geometry, (3, 3)).any()
    both = patches_in_boxes([[40, 5, 66, 35], [16, 41, 30, 60]], geometry, (3, 3))
    assert both.tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]


def test_growing_reaches_all_neighbours_and_stays_inside():
    patches = np.zeros((4, 5), bool)
    patches[0, 0] = patches[3, 3] = True
    assert grow(patches).astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]


def test_tokens_of_a_span_by_hand():
    #        [CLS]   "The"   "violin", in two   "."       [SEP]
    offsets = [[0, 0], [0, 3], [4, 7], [7, 10], [10, 11], [0, 0]]
    assert tokens_in_spans([[4, 10]], offsets).tolist() == [0, 0, 1, 1, 0, 0]
    assert tokens_in_spans([[3, 4]], offsets).tolist() == [0, 0, 0, 0, 0, 0]
    assert tokens_in_spans([[0, 1], [9, 11]], offsets).tolist() == [0, 1, 0, 1, 1, 0]
    assert not tokens_in_spans([[40, 44]], offsets).any()


def test_stretches_of_a_tone_by_hand():
    """Two special features, then stretches of 0.2 s, whose middles are 0.1, 0.3, 0.5, 0.7 and, of the last, 0.85."""
    seconds = [[0, 0], [0, 0], [0, 0.2], [0.2, 0.4], [0.4, 0.6], [0.6, 0.8], [0.8, 0.9]]
    assert stretches_in_seconds([[0.25, 0.6]], seconds).tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert stretches_in_seconds([[0.31, 0.42]], seconds).tolist() == [0, 0, 0, 1, 0, 0, 0]  # no middle: most of it
    assert stretches_in_seconds([[0.0, 0.15], [0.8, 2]], seconds).tolist() == [0, 0, 1, 0, 0, 0, 1]
    assert not stretches_in_seconds([[1.0, 1.2]], seconds).any()  # behind what was encoded
    near = grow_in_time(np.array([0, 0, 1, 0, 0, 0, 1], bool), [1, 1, 0, 0, 0, 0, 0])
    assert near.tolist() == [0, 0, 1, 1, 0, 1, 1]


def test_patches_keep_their_places_among_special_features():
    patches = np.array([[True, False], [False, True]])
    assert patches_to_features(patches, [1, 0, 0, 0, 0, 1]).tolist() == [0, 1, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="4 patches do not fit a sequence of 3"):
        patches_to_features(patches, [1, 0, 0, 0])


# --- metrics and intervals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_weighted_metrics_equal_scikit_learn_on_repeated_samples(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.4  # many equal scores
    weights = resample(40, 20, seed)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 40).all()
    f1, precision = weighted_f1(scores > 0.5, labels, weights), weighted_ranking(scores, labels, weights)[0]
    for r, row in enumerate(weights.astype(int)):
        y, s = np.repeat(labels, row), np.repeat(scores, row)
        assert f1[r] == pytest.approx(f1_score(y, s > 0.5, zero_division=0))
        assert precision[r] == pytest.approx(average_precision_score(y, s))


def test_micro_f1_equals_scikit_learn():
    rng = np.random.default_rng(0)
    seeds = [ExpertOutputs(rng.normal(size=(30, 2, 3)), rng.random((30, 2))) for _ in range(2)]
    labels = rng.integers(0, 2, (30, 3))
    expected = [
        f1_score(labels, np.einsum("ne,nec->nc", x.expert_weights, x.expert_logits) > 0, average="micro") for x in seeds
    ]
    found = micro_f1(seeds, labels, num_resamples=50)
    assert found["seeds"] == pytest.approx(expected)
    assert found["interval"][0] < found["mean"] < found["interval"][1]


def test_what_is_undefined_stays_so():
    ones = np.ones((1, 3))
    assert np.isnan(weighted_ranking([1, 2, 3], [0, 0, 0], ones)[0]).all()
    assert weighted_f1([0, 0, 0], [0, 0, 0], ones).tolist() == [0]
    means = weighted_means(np.array([[1, np.nan, 3], [np.nan] * 3]), np.array([[1, 1, 1], [3, 5, 1]]))
    assert means[0].tolist() == [2, 1.5]
    assert np.isnan(means[1]).all()
    assert describe(means[1:]) == {"mean": None, "std": None, "interval": [None, None], "seeds": [None]}


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        sample = rng.normal(1.0, 2.0, (1, 60))
        low, high = describe(weighted_means(sample, resample(60, 300, seed)))["interval"]
        hits += low < 1 < high
    assert 0.88 <= hits / 200 <= 0.99
    two = describe(np.array([[1.0, 0.5, 1.5], [3.0, 2.5, 4.5]]))
    assert (two["mean"], two["std"], two["seeds"]) == (2, pytest.approx(2**0.5), [1, 3])
    assert two["interval"] == pytest.approx([1.5 + 0.025 * 1.5, 1.5 + 0.975 * 1.5])


# --- the right expert -------------------------------------------------------------------------------------------------


def each_carries_one(num_samples=200, seed=0):
    """Labels of four kinds and a mixture in which expert e alone tells label e, with equal weights."""
    rng = np.random.default_rng(seed)
    picture, word, agreed = rng.random((3, num_samples)) < 0.5
    labels = np.stack([picture, word, picture != word, agreed], axis=1).astype(int)
    logits = rng.normal(0, 0.1, (num_samples, 4, 4))
    for e in range(4):
        logits[:, e, e] += 4 * (2 * labels[:, e] - 1)
    return ExpertOutputs(logits, np.full((num_samples, 4), 0.25)), labels


@pytest.mark.parametrize("replaced", ["logits", "contribution"])
def test_experts_that_carry_one_kind_each_are_all_right_and_permuted_all_wrong(replaced):
    outputs, labels = each_carries_one()
    truth = dict(zip(LABELS, EXPERTS, strict=True))
    report = right_experts([outputs], labels, LABELS, EXPERTS, truth, num_resamples=50)
    json.dumps(report, allow_nan=False)
    for metric in ("f1", "average_precision"):
        part = report[replaced][metric]
        assert part["share_right"] == {"mean": 1, "std": None, "interval": [1, 1], "seeds": [1]}
        for label, right in truth.items():
            entry = part["labels"][label]
            assert entry["carriers"] == [entry["right"]] == [right]
            assert entry["score"]["mean"] == 1
            costs = {name: cost["mean"] for name, cost in entry["costs"].items()}
            assert costs.pop(right) > 0.3
            assert max(costs.values()) < 0.05
            assert entry["margin"]["mean"] == pytest.approx(entry["costs"][right]["mean"] - max(costs.values()))
    wrong = dict(zip(LABELS, EXPERTS[1:] + EXPERTS[:1], strict=True))
    report = right_experts([outputs], labels, LABELS, EXPERTS, wrong, num_resamples=50)
    assert report[replaced]["f1"]["share_right"]["mean"] == 0
    assert all(entry["margin"]["mean"] < -0.25 for entry in report[replaced]["f1"]["labels"].values())
    # and with the experts' outputs permuted, every label follows its expert
    for order in itertools.islice(itertools.permutations(range(4)), 1, None, 5):
        moved = ExpertOutputs(outputs.expert_logits[:, list(order)], outputs.expert_weights)
        report = right_experts([moved], labels, LABELS, EXPERTS, truth, num_resamples=2)
        fixed = sum(place == e for place, e in enumerate(order))
        assert report[replaced]["f1"]["share_right"]["mean"] == fixed / 4


def test_costs_equal_a_plain_loop():
    rng = np.random.default_rng(1)
    logits, weights = rng.normal(size=(30, 3, 2)), rng.dirichlet(np.ones(3), 30)
    labels = rng.integers(0, 2, (30, 2))
    costs = {
        kind: replacement_costs(ExpertOutputs(logits, weights), labels, np.ones((1, 30)), replaced=kind)
        for kind in ("logits", "contribution")
    }
    for e, c in np.ndindex(3, 2):
        mean_logit = sum(logits[n, e, c] for n in range(30)) / 30
        mean_part = sum(weights[n, e] * logits[n, e, c] for n in range(30)) / 30
        whole = [sum(weights[n, i] * logits[n, i, c] for i in range(3)) for n in range(30)]
        for kind in costs:
            changed = [
                whole[n] - weights[n, e] * logits[n, e, c] + (mean_part, weights[n, e] * mean_logit)[kind == "logits"]
                for n in range(30)
            ]
            before, after = (f1_score(labels[:, c], [x > 0 for x in values]) for values in (whole, changed))
            assert costs[kind]["f1"][1][0, e, c] == pytest.approx(before - after)
            before, after = (average_precision_score(labels[:, c], values) for values in (whole, changed))
            assert costs[kind]["average_precision"][1][0, e, c] == pytest.approx(before - after)


def test_weights_alone_can_carry_a_label():
    """The expert says the same of every sample; what tells the label is how much it counts."""
    labels = np.tile([[0], [1]], (50, 1))
    logits = np.tile([[4.0], [0.0], [-2.0]], (100, 1, 1))
    weights = np.where(labels == 1, [[0.4, 0.1, 0.5]], [[0.1, 0.4, 0.5]])  # the mixture says 0.6, or -0.6
    costs = {
        kind: replacement_costs(ExpertOutputs(logits, weights), labels, np.ones((1, 100)), replaced=kind)["f1"][1]
        for kind in ("logits", "contribution")
    }
    assert costs["logits"].tolist() == [[[0], [0], [0]]]
    assert costs["contribution"].tolist() == [[[1], [0], [0]]]


def test_nothing_carries_where_nothing_stands_out():
    costs = np.array([[0.5, 0.0, 0.3, -0.1], [0.1, 0.0, 0.3, -0.2]])
    assert find_carriers(costs).tolist() == [0, -1, -1, -1]


def test_seeds_are_averaged():
    good, labels = each_carries_one()
    bad = ExpertOutputs(good.expert_logits[:, [1, 0, 2, 3]], good.expert_weights)
    truth = dict(zip(LABELS, EXPERTS, strict=True))
    share = right_experts([good, bad], labels, LABELS, EXPERTS, truth, num_resamples=20)["logits"]["f1"]["share_right"]
    assert share["seeds"] == [1, 0.5]
    assert share["mean"] == 0.75
    assert share["std"] == pytest.approx(0.5 / 2**0.5)


def test_truth_that_does_not_fit_is_refused():
    outputs, labels = each_carries_one(20)
    with pytest.raises(ValueError, match=r"picture: uniqueness_sound.*there are uniqueness_image"):
        right_experts(
            [outputs], labels, LABELS, EXPERTS, {**dict.fromkeys(LABELS, "synergy"), "picture": "uniqueness_sound"}
        )
    with pytest.raises(ValueError, match="the labels are"):
        right_experts([outputs], labels, LABELS, EXPERTS, {"picture": "synergy"})


# --- evidence and pairs -----------------------------------------------------------------------------------------------


def test_precision_by_hand():
    right = [1, 0, 1, 0, 0]
    assert precision_at([5, 4, 3, 2, 1], right, 1) == 1
    assert precision_at([5, 4, 3, 2, 1], right, 2) == 0.5
    assert precision_at([5, 4, 3, 2, 1], right, 3) == pytest.approx(2 / 3)
    assert precision_at([5, 4, 3, 2, 1], right, 99) == 0.4
    # one certain, then two of the four equal ones, of which one is right: 1 + 2 · 1/4
    assert precision_at([9, 2, 2, 2, 2], right, 3) == pytest.approx((1 + 0.5) / 3)
    with pytest.raises(ValueError, match="NaN"):
        precision_at([1, np.nan], [1, 0], 1)
    with pytest.raises(ValueError, match="candidates"):
        precision_at([], [], 1)


def test_precision_of_random_scores_is_the_share_of_right_ones():
    rng = np.random.default_rng(0)
    right = np.arange(20) < 5
    assert precision_at(np.zeros(20), right, 3) == 0.25
    mean = np.mean([precision_at(rng.random(20), right, 3) for _ in range(3000)])
    assert mean == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 3 / 3000) ** 0.5)


def test_a_pair_is_right_when_both_ends_are():
    found = {"image": np.array([1, 0, 1], bool), "text": np.array([0, 1], bool)}
    pairs = [(Player("image", i), Player("text", t)) for i in range(3) for t in range(2)]
    assert right_pairs(pairs, found).tolist() == [0, 1, 0, 0, 0, 1]


def test_a_probe_finds_the_position_that_shows_a_state():
    """States are the signs of one direction, which other positions do not use."""
    rng = np.random.default_rng(0)
    states = [None, "on", "off"] * 80
    features = rng.normal(0, 0.3, (240, 6))
    features[:, 0] += [{"on": 2, "off": -2, None: 0}[state] for state in states]
    probe = EvidenceProbe(features, states)
    for state, sign in (("on", 2), ("off", -2)):
        places = rng.normal(0, 0.3, (9, 6))
        places[4, 0] += sign
        places[7, 0] -= sign  # the other state is no evidence of this one
        scores = probe.score(places, state)
        assert scores.argmax() == 4
        assert scores[7] < 0.1
    with pytest.raises(ValueError, match="two states"):
        EvidenceProbe(features, ["on"] * 240)
