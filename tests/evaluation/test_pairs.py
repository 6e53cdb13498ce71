"""Bins, alignment, pair masking and curves: worked out by hand, and on predictors whose truth is known."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_i2moe.evaluation.alignment import alignment, bin_edges, importance_bins, pair_bins, universe_bins
from fl_i2moe.evaluation.pairs import (
    pair_curve_logits,
    pair_curves,
    pair_masking_logits,
    pair_masking_table,
    random_pairs,
    top_pairs,
)
from fl_i2moe.explain.attribution import top_features
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.interactions import cross_modal_pairs
from fl_i2moe.explain.pair_table import PairTable
from fl_i2moe.metrics.tasks import compute_metrics

PLAYERS = (*(Player("text", i) for i in (1, 2, 3)), *(Player("image", i) for i in (0, 1, 2)))
PAIRS = cross_modal_pairs([player.modality for player in PLAYERS])
ENDS = [(PLAYERS[u], PLAYERS[v]) for u, v in PAIRS]


EVERYONE = [*PLAYERS[:3], Player("image", 0), Player("image", 1), Player("image", 2), Player("image", 3)]


class Conjunction:
    """An even sample is of class 1, seen where token 1 and patches 0 and 1 are all there; an odd one is of class 0."""

    players = EVERYONE

    def __init__(self, number: int):
        self.number, self.seen = number, []

    def mixture(self, coalitions, players):
        assert players == EVERYONE
        self.seen.append(coalitions)
        there = coalitions[:, [0, 3, 4]].all(axis=1) & (self.number % 2 == 0)
        score = np.where(there, 1.0, -1.0)
        return np.stack([-score, score], axis=1), None, None


def make_table(sii) -> PairTable:
    sii = np.asarray(sii, np.float64)
    nothing = np.zeros(len(sii))
    scores = {"sii": sii, "redundancy": -sii, "redundancy_both": nothing}
    return PairTable(PAIRS, scores, dict.fromkeys(scores, nothing), nothing.astype(int), 0, "per_pair", 0, PLAYERS)


def of_samples(measure, num_samples: int, sii, **options) -> dict:
    """Measured on every sample, which have equal scores, and joined."""
    parts = [measure(Conjunction(number), make_table(sii), number, **options) for number in range(num_samples)]
    return {
        name: np.concatenate([part[name] for part in parts], axis=-1 if name.startswith("num_") else -2)
        for name in parts[0]
    }


# ---- bins and alignment --------------------------------------------------------------------------------------------


def test_importance_bins_by_hand():
    """Of ten candidates 2, then 1, then 2; of three always one at least, rounded up."""
    scores = {
        "a": torch.tensor([[0.9, 0.1, 0.5, 0.5, 0.8, 0.0, 0.2, 0.3, 0.4, 0.05, 5.0]]),
        "b": torch.tensor([[1.0, 3.0, 2.0, 9.0]]),
    }
    candidates = {"a": torch.tensor([[True] * 10 + [False]]), "b": torch.tensor([[True] * 3 + [False]])}
    bins = importance_bins(scores, candidates, (0.2, 0.3, 0.5))
    assert bins["a"].tolist() == [[0, -1, 1, 2, 0, -1, -1, -1, 2, -1, -1]]  # the earlier of the two 0.5 is before
    assert bins["b"].tolist() == [[-1, 0, 2, -1]]  # limits 1, 1, 2: bin 1 is empty


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_importance_bins_hold_their_shares(num_candidates, seed):
    scores = {"a": torch.randn(2, 60, generator=torch.Generator().manual_seed(seed))}
    candidates = {"a": (torch.arange(60) < num_candidates).expand(2, -1)}
    bins = importance_bins(scores, candidates)["a"]
    for last, percent in enumerate((10, 20, 30)):
        assert ((bins >= 0) & (bins <= last)).sum(dim=1).tolist() == [-(-num_candidates * percent // 100)] * 2
    ranked = scores["a"].masked_fill(bins < 0, -9).argsort(dim=1, descending=True)
    in_order = bins.gather(1, ranked)[:, : int((bins[0] >= 0).sum())]
    assert (in_order.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("share", [2 / 3, 1 / 6, 1 / 7, 0.3, 1e-12])
def test_the_bins_are_the_top_features(share):
    for number in range(1, 200):
        scores, candidates = {"a": torch.rand(1, number)}, {"a": torch.ones(1, number, dtype=torch.bool)}
        bins = importance_bins(scores, candidates, bin_edges(share))["a"]
        for last, edge in enumerate((share / 3, share * 2 / 3, share)):
            top = top_features(scores, candidates, edge)["a"]
            assert top.any()
            assert torch.equal((bins >= 0) & (bins <= last), top), (number, edge)


def test_pair_bins():
    bins = {Player("text", 1): 0, Player("text", 2): 1, Player("image", 0): 1, Player("image", 1): 0}
    by_pair = dict(zip(map(tuple, PAIRS.tolist()), pair_bins(ENDS, bins).tolist(), strict=True))
    assert {pair: bin_of for pair, bin_of in by_pair.items() if bin_of >= 0} == {(0, 4): 0, (1, 3): 1}


def test_the_universe_and_its_bins():
    """Of ten candidates the three highest, one in each bin; of four two, in the first and the last; special ones and
    the rest are outside. With a limit each modality's universe is cut in three alike."""
    scores = {"text": np.array([9, 0.1, 0.5, 0.2, 0.9, 0.0, 0.3, 0.7, 0.4, 0.6, 0.05]), "image": np.arange(4.0)}
    candidates = {"text": range(1, 11), "image": range(4)}
    assert universe_bins(scores, candidates, 0.3) == {
        Player("text", 4): 0,
        Player("text", 7): 1,
        Player("text", 9): 2,
        Player("image", 2): 2,
        Player("image", 3): 0,
    }
    capped = universe_bins(scores, candidates, 1.0, most=6)
    assert [capped[Player("text", place)] for place in (4, 7, 9, 2, 8, 6)] == [0, 0, 1, 1, 2, 2]
    assert len(capped) == 6 + 4


def test_alignment_by_hand():
    scores = [np.array([1.0, 5.0, 3.0, 2.0]), np.array([4.0, 0.0, 7.0])]
    bins = [np.array([0, 0, 0, 1]), np.array([0, 0, -1])]
    found = alignment(scores, bins, num_bins=3, shares=(0.5, 1.0), num_resamples=50)
    first, second, third = found["bins"]
    # halves, rounded up: 2 of 3 pairs (5, 3) and 1 of 2 (4)
    assert first["top"]["0.5"]["mean"] == 4.0
    assert first["top"]["0.5"]["interval"] == [4.0, 4.0]
    assert first["top"]["1"]["mean"] == (3.0 + 2.0) / 2
    assert first["top"]["1"]["interval"] == [2.0, 3.0]
    assert (first["num_samples"], first["num_pairs"]) == (2, 2.5)
    assert (second["num_samples"], second["top"]["1"]["mean"]) == (1, 2.0)
    assert third == {
        "num_samples": 0,
        "num_pairs": None,
        "top": {share: {"mean": None, "interval": None} for share in ("0.5", "1")},
    }
    json.dumps(found, allow_nan=False)

    # ranked by one estimate, valued by the other
    values = [np.array([0.0, 1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])]
    held_out = alignment(scores, bins, values=values, num_bins=1, shares=(0.5,), num_resamples=50)
    assert held_out["bins"][0]["top"]["0.5"]["mean"] == (1.5 + 10) / 2
    assert held_out["ranked_and_valued_by"] != found["ranked_and_valued_by"]


def test_the_best_of_noise_looks_good_unless_valued_independently():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 200, 40))
    bins = [np.zeros(40, int)] * 200
    same = alignment(first, bins, num_bins=1, num_resamples=200)["bins"][0]["top"]["0.05"]
    independent = alignment(first, bins, values=second, num_bins=1, num_resamples=200)["bins"][0]["top"]["0.05"]
    assert same["interval"][0] > 1
    assert independent["interval"][0] < 0 < independent["interval"][1]


# ---- choosing pairs ------------------------------------------------------------------------------------------------


def test_top_pairs():
    assert top_pairs(np.array([1.0, 3.0, 2.0, 3.0]), 0.5).tolist() == [1, 3]
    assert top_pairs(np.arange(20.0), 0.15).tolist() == [19, 18, 17]  # 0.15 · 20 is not 3 in floating point
    assert top_pairs(np.arange(20.0), 0.151).tolist() == [19, 18, 17, 16]
    assert top_pairs(np.arange(5.0), 0.001).tolist() == [4]
    for share in (0, 1.2):
        with pytest.raises(ValueError, match="share of pairs"):
            top_pairs(np.arange(5.0), share)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.data())
def test_random_pairs_have_the_features_asked_for(sizes, data):
    modalities = [str(m) for m, size in enumerate(sizes) for _ in range(size)]
    pairs = cross_modal_pairs(modalities)
    number = data.draw(st.integers(2, len(modalities)))
    chosen = random_pairs(pairs, number, np.random.default_rng(data.draw(st.integers(0, 1000))))
    assert len(set(pairs[chosen].ravel().tolist())) == number
    assert len(set(chosen.tolist())) == len(chosen)


def test_random_pairs_that_cannot_be():
    with pytest.raises(ValueError, match="found no choice among 2 pairs that has 3 distinct features"):
        random_pairs(np.array([[0, 1], [2, 3]]), 3, np.random.default_rng(0))


# ---- masking -------------------------------------------------------------------------------------------------------


STAR = np.array([2, 2.01, 0.05, 0.3, 0.2, 0.01, 0.4, 0.1, 0.02])
"""The pairs of token 1 with patches 0 and 1 score highest, that of token 2 with patch 2 lowest."""


def test_masks_and_their_number():
    subject = Conjunction(2)
    found = pair_masking_logits(subject, make_table(STAR), 2, share=0.2, num_draws=4)
    [seen] = subject.seen  # all at once
    none, ranked, *draws = seen
    assert none.all()
    # token 1 and patches 0 and 1
    assert ranked.tolist() == [False, True, True, False, False, True, True]
    assert [(~draw).sum() for draw in draws[:4]] == [3] * 4  # as many as ranked
    assert all(draw[6] for draw in draws)  # patch 3 plays in no pair
    assert found["num_features_same_pairs"].tolist() == [[(~draw).sum()] for draw in draws[4:]]
    assert found["num_pairs"].tolist() == [2]
    assert found["num_features"].tolist() == [3]
    assert {name: found[name].shape for name in ("none", "ranked", "random_same_features", "random_same_pairs")} == {
        "none": (1, 2),
        "ranked": (1, 2),
        "random_same_features": (4, 1, 2),
        "random_same_pairs": (4, 1, 2),
    }
    # draws differ between samples and between draws, but not with what else is measured
    assert len({tuple(draw) for draw in draws[:4]}) > 1
    together = of_samples(pair_masking_logits, 3, STAR, share=0.2, num_draws=4)
    assert (together["num_features_same_pairs"][:, 2] == found["num_features_same_pairs"][:, 0]).all()
    other = Conjunction(2)
    pair_masking_logits(other, make_table(STAR), 5, share=0.2, num_draws=4)
    assert not np.array_equal(other.seen[0], seen)


def test_masking_by_another_score():
    """The published gap of these scores is their negative: the lowest go."""
    found = {}
    for kind in ("sii", "redundancy"):
        found[kind] = of_samples(pair_masking_logits, 2, STAR, kind=kind, share=0.1)
    assert found["sii"]["ranked"][0].tolist() == [1, -1]  # seen no more
    assert found["redundancy"]["ranked"][0].tolist() == [-1, 1]


def test_masking_table():
    labels = (np.arange(40) % 2 == 0).astype(int)
    logits = of_samples(pair_masking_logits, 40, STAR, share=0.2, num_draws=2)
    table = pair_masking_table(logits, labels, "single_label_classification", num_resamples=25)
    json.dumps(table, allow_nan=False)
    assert (table["num_samples"], table["num_pairs"], table["num_features"]) == (40, 2, 3)
    accuracy = table["metrics"]["accuracy"]
    assert (accuracy["none"], accuracy["ranked"]) == (1, 0.5)
    for name in ("random_same_features", "random_same_pairs"):
        single = [compute_metrics(draw, labels, "single_label_classification")["accuracy"] for draw in logits[name]]
        expected = {"mean": np.mean(single), "std": np.std(single, ddof=1), "min": min(single), "max": max(single)}
        assert accuracy[name] == pytest.approx(expected)
        assert accuracy["drop"][name]["value"] == pytest.approx(1 - np.mean(single))
    low, high = accuracy["drop"]["ranked"]["interval"]
    assert low < accuracy["drop"]["ranked"]["value"] == 0.5 < high
    assert 0.2 < high - low < 0.45  # 2 · 1.96 · sqrt(0.25 / 40) is 0.31
    expected = 0.5 - (1 - accuracy["random_same_features"]["mean"])
    assert accuracy["ranked_minus_random"]["value"] == pytest.approx(expected)


def test_undefined_metrics_are_none():
    logits = of_samples(pair_masking_logits, 4, STAR, num_draws=2)
    table = pair_masking_table(logits, np.zeros(4, int), "single_label_classification", num_resamples=5)
    assert table["metrics"]["auroc"]["none"] is None
    assert table["metrics"]["auroc"]["drop"]["ranked"] == {"value": None, "interval": None}
    json.dumps(table, allow_nan=False)


# ---- curves --------------------------------------------------------------------------------------------------------


def test_curves_end_where_they_must():
    labels = torch.tensor([1, 0] * 5)
    shares = (0.0, 0.2, 0.5, 1.0)
    options = {"shares": shares, "num_draws": 2}
    deletion = of_samples(pair_curve_logits, 10, STAR, **options)
    insertion = of_samples(pair_curve_logits, 10, STAR, direction="insertion", **options)
    assert deletion["num_features"][:, 0].tolist() == [0, 3, 5, 6]  # 0, 2, 5 and 9 pairs
    assert insertion["num_features"][:, 0].tolist() == [6, 3, 1, 0]
    assert (deletion["num_features_random"][:, [0, -1]] == [[0] * 10, [6] * 10]).all()

    down = pair_curves(deletion, labels, "single_label_classification", shares=shares, num_resamples=5)
    up = pair_curves(insertion, labels, "single_label_classification", shares=shares, num_resamples=1)
    json.dumps([down, up], allow_nan=False)
    accuracy = down["metrics"]["accuracy"]
    assert accuracy["ranked"] == {"values": [1, 0.5, 0.5, 0.5], "area": pytest.approx(0.15 + 0.4)}
    assert up["metrics"]["accuracy"]["ranked"] == {"values": [0.5, 1, 1, 1], "area": pytest.approx(0.95)}
    random = accuracy["random"]
    assert (random["values"][0], random["values"][-1]) == (1, 0.5)
    area = np.trapezoid(random["values"], shares)
    assert random["area"]["mean"] == pytest.approx(area)
    difference = accuracy["area_ranked_minus_random"]
    assert difference["value"] == pytest.approx(0.55 - area)
    assert difference["interval"][0] < difference["interval"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "both"}, "`direction` must be"),
        ({"shares": (0.5, 0.2)}, "shares must be"),
        ({"shares": (0.5, 1.2)}, "shares must be"),
        ({"num_draws": 0}, "num_draws must be at least 1"),
        ({"kind": "gap"}, "no score 'gap'"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        pair_curve_logits(Conjunction(0), make_table(STAR), 0, **change)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="edges must rise"):
        importance_bins({"a": torch.zeros(2)}, {"a": torch.ones(2, dtype=torch.bool)}, (0.2, 0.1))
    with pytest.raises(ValueError, match="same samples: 1, 2"):
        alignment([np.zeros(2)], [np.zeros(2)] * 2)
    with pytest.raises(ValueError, match=r"sample 0 are of different pairs: \(2, 2, 3\)"):
        alignment([np.zeros(2)], [np.zeros(2)], values=[np.zeros(3)])
    with pytest.raises(ValueError, match="share of pairs"):
        alignment([np.zeros(2)], [np.zeros(2)], shares=(0,))
    logits = of_samples(pair_curve_logits, 2, STAR, shares=(0, 1))
    with pytest.raises(ValueError, match="logits are of 2 shares, got 3"):
        pair_curves(logits, [0, 1], "single_label_classification", shares=(0, 0.5, 1))
