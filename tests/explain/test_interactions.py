"""Pair interactions against plain enumeration, shapiq's exact computer, values worked out by hand, and axioms."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import shapiq
import torch
from tiny_models import one_sample

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.explain import interactions
from fl_i2moe.explain.feature_game import feature_game, feature_players
from fl_i2moe.explain.game import Game, Player
from fl_i2moe.explain.inputs import Inputs
from fl_i2moe.explain.interactions import (
    ESTIMATORS,
    cross_modal_pairs,
    exact,
    per_pair,
    sample_seed,
    score_pairs,
    shared_context,
)
from fl_i2moe.explain.pair_table import PairTable

SAMPLING = [per_pair, shared_context]


def table_game(num_players: int, seed: int):
    """A random value for every coalition, with a part that depends on its size: no symmetry hides a weight."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=2**num_players) + 3 * rng.normal(size=num_players + 1)[popcounts(num_players)]
    return lambda coalitions: values[np.asarray(coalitions) @ (1 << np.arange(num_players))]


def popcounts(num_players: int) -> np.ndarray:
    return np.array([number.bit_count() for number in range(2**num_players)])


def unanimity_game(num_players: int, seed: int):
    """`v(S) = Σ_T a_T [T ⊆ S]`, random T of 1 to 6 players. Its index: the sum of a_T / (|T| − 1) over T ∋ u, v."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=80)
    members = rng.random((80, num_players)).argsort(axis=1).argsort(axis=1) < sizes[:, None]
    weights = rng.normal(size=80)

    def index(u: int, v: int) -> float:
        return float(sum(a / (t.sum() - 1) for a, t in zip(weights, members, strict=True) if t[u] and t[v]))

    return lambda s: (np.asarray(s, np.float64) @ members.T == sizes) @ weights, index


def numbered(num_players: int) -> tuple[Player, ...]:
    return tuple(Player("ab"[number % 2], number) for number in range(num_players))


def all_pairs(num_players: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(num_players), 2)))


def plain(game, num_players: int, u: int, v: int) -> tuple[float, float, float]:
    """SII and both redundancy gaps as equations 2 to 5 of the FL-I²MoE paper say, one coalition at a time."""

    def value(members) -> float:
        return float(game(np.array([[i in members for i in range(num_players)]]))[0])

    sii = span = published = both = 0.0
    others = [i for i in range(num_players) if i not in (u, v)]
    for size in range(num_players - 1):
        for members in itertools.combinations(others, size):
            weight = math.factorial(size) * math.factorial(num_players - size - 2) / math.factorial(num_players - 1)
            start = value(members)
            gain_u, gain_v = value({*members, u}) - start, value({*members, v}) - start
            gain = value({*members, u, v}) - start
            sii += weight * (gain - gain_u - gain_v)
            span += weight * abs(gain - max(gain_u, gain_v))
            published += weight * max(0, min(gain, max(gain_u, gain_v)))
            both += weight * max(0, min(gain_u, gain_v, gain))
    return sii, published / (1 + span), both / (1 + span)


# ---- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_players", [2, 3, 4, 6])
def test_exact_is_the_enumeration(num_players):
    game, pairs = table_game(num_players, seed=num_players), all_pairs(num_players)[:, ::-1]
    scores = exact(game, num_players, pairs)
    expected = np.array([plain(game, num_players, u, v) for u, v in pairs.tolist()])
    np.testing.assert_allclose(scores.scores["sii"], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(scores.scores["redundancy"], expected[:, 1], atol=1e-12)
    np.testing.assert_allclose(scores.scores["redundancy_both"], expected[:, 2], atol=1e-12)
    assert (scores.standard_errors["sii"] == 0).all()
    assert (scores.num_coalitions == 2 ** (num_players - 2)).all()
    assert scores.evaluations == 2**num_players


@pytest.mark.parametrize("seed", range(3))
def test_exact_is_shapiqs(seed):
    game, pairs = table_game(7, seed), all_pairs(7)
    truth = shapiq.ExactComputer(game, n_players=7)("SII", order=2)
    expected = [truth[tuple(pair)] for pair in pairs.tolist()]
    scores = exact(game, 7, pairs)
    np.testing.assert_allclose(scores.scores["sii"], expected, atol=1e-9)
    shapley = shapiq.ExactComputer(game, n_players=7)("SV", order=1)
    np.testing.assert_allclose(scores.shapley.values, [shapley[(i,)] for i in range(7)], atol=1e-9)
    some = exact(game, 7, pairs[:2])  # (0, 1), (0, 2): the other players are in no pair
    np.testing.assert_allclose(some.shapley.values, [*scores.shapley.values[:3], *[np.nan] * 4])
    assert (some.shapley.values[:3] == some.shapley.intervals[:3].T).all()


def test_exact_takes_16_players_and_no_more():
    weights = np.arange(16.0)
    scores = exact(lambda coalitions: (coalitions @ weights) ** 2, 16, [(3, 5), (0, 9)])
    np.testing.assert_allclose(scores.scores["sii"], [2 * 3 * 5, 0])
    with pytest.raises(ValueError, match="at most 16 players, got 17"):
        exact(lambda coalitions: coalitions.sum(1), 17, [(0, 1)])


# ---- by hand -------------------------------------------------------------------------------------------------------

BY_HAND = {
    # v(∅), v(u), v(v), v(uv)    SII, published, both
    "and": ((0, 0, 0, 1), (1, 0, 0)),  # gains 0, 0, 1: base min(1, 0) = 0
    "or": ((0, 1, 1, 1), (-1, 1, 1)),  # gains 1, 1, 1: base 1, span 0
    "xor": ((0, 1, 1, 0), (-2, 0, 0)),  # gains 1, 1, 0: base min(0, 1) = 0
    "unique and dummy": ((0, 1, 0, 1), (0, 1, 0)),  # gains 1, 0, 1: base min(1, 1) = 1, or min(1, 0, 1) = 0
    "additive": ((0, 1, 1, 2), (0, 0.5, 0.5)),  # gains 1, 1, 2: base 1, span 1
    "harmful copy": ((0, -1, -1, -1), (1, 0, 0)),  # gains −1: base max(0, −1) = 0
    "shifted or": ((5, 6, 6, 6), (-1, 1, 1)),  # gains are against v(S)
}


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("num_players", [2, 5])
@pytest.mark.parametrize("name", list(BY_HAND))
def test_by_hand(name, num_players, estimator):
    """Two players decide and the others are dummies, so that every coalition gives the same gains."""
    values, expected = BY_HAND[name]
    u, v = 0, num_players - 1

    def game(coalitions):
        return np.array(values)[coalitions[:, u] + 2 * coalitions[:, v]]

    scores = ESTIMATORS[estimator](game, num_players, [(u, v)], num_coalitions=3, seed=0)
    found = (scores.scores["sii"][0], scores.scores["redundancy"][0], scores.scores["redundancy_both"][0])
    assert found == pytest.approx(expected, abs=1e-12)
    assert scores.standard_errors["sii"][0] == pytest.approx(0, abs=1e-12)
    assert scores.standard_errors["redundancy"][0] == pytest.approx(0, abs=1e-12)
    assert [scores.score(kind)[0] for kind in ("sii", "redundancy", "redundancy_both")] == list(found)
    assert scores.standard_errors["redundancy_both"][0] == pytest.approx(0, abs=1e-12)


def test_by_hand_where_the_coalition_matters():
    """A third player w switches the pair on; it is there in half of the coalitions ∅ and {w}, sizes 0 and 1."""
    conjunction = exact(lambda s: s.all(axis=1), 3, [(0, 1)])
    assert (conjunction.scores["sii"][0], conjunction.scores["redundancy_both"][0]) == (0.5, 0)
    switched_or = exact(lambda s: (s[:, 0] | s[:, 1]) & s[:, 2], 3, [(0, 1)])
    assert (switched_or.scores["sii"][0], switched_or.scores["redundancy"][0]) == (-0.5, 0.5)
    # for (u, w): gains at ∅ 0, 0, 1, at {v} 0, 1, 1, so base 0 then 1, span 1 then 0, and for both 0 then 0
    other = exact(lambda s: (s[:, 0] | s[:, 1]) & s[:, 2], 3, [(0, 2)])
    assert {kind: x[0] for kind, x in other.scores.items()} == {
        "sii": 0.5,
        "redundancy": 0.5 / 1.5,
        "redundancy_both": 0,
    }


# ---- axioms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_a_dummy_has_index_0(estimator):
    inner = table_game(5, seed=1)
    scores = ESTIMATORS[estimator](lambda s: inner(s[:, :5]), 6, [(0, 5), (5, 3), (1, 2)], num_coalitions=4, seed=0)
    np.testing.assert_allclose(scores.scores["sii"][:2], 0, atol=1e-12)
    np.testing.assert_allclose(scores.scores["redundancy_both"][:2], 0, atol=1e-12)
    assert abs(scores.scores["sii"][2]) > 0.01


def test_symmetric_players_score_alike():
    inner = table_game(4, seed=2)
    # players 0 and 1 count together, whichever is there
    scores = exact(lambda s: inner(np.column_stack([s[:, 0] ^ s[:, 1], s[:, 0] & s[:, 1], s[:, 2:]])), 4, all_pairs(4))
    by_pair = dict(zip(map(tuple, scores.pairs.tolist()), scores.scores["sii"], strict=True))
    assert by_pair[0, 2] == pytest.approx(by_pair[1, 2])
    assert by_pair[0, 3] == pytest.approx(by_pair[1, 3])
    assert by_pair[0, 2] != pytest.approx(by_pair[0, 3])


@pytest.mark.parametrize("estimator", SAMPLING)
def test_the_seed_decides(estimator):
    game, pairs = table_game(6, seed=0), all_pairs(6)
    first, again, other = (estimator(game, 6, pairs, 4, seed) for seed in (1, 1, 2))
    tables = [replace(one, players=numbered(6)).to_dict() for one in (first, again, other)]
    assert json.dumps(tables[0]) == json.dumps(tables[1]) != json.dumps(tables[2])
    assert (first.scores["sii"] != other.scores["sii"]).any()


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_players", [2, 4, 5])
def test_shared_draws_in_their_proportions_give_the_exact_scores(num_players, monkeypatch):
    """A coalition S has probability ∫ q^|S| (1−q)^(N−|S|) dq = 1 / ((N+1) C(N, |S|)): each comes as often as that."""
    game, pairs = table_game(num_players, seed=6), all_pairs(num_players)
    often = math.lcm(*(math.comb(num_players, size) for size in range(num_players + 1)))
    draws = [
        coalition
        for coalition in itertools.product([False, True], repeat=num_players)
        for _ in range(often // math.comb(num_players, sum(coalition)))
    ]
    assert len(draws) == often * (num_players + 1)
    monkeypatch.setattr(interactions, "_draw_shared", lambda *_: np.array(draws))
    truth, scores = exact(game, num_players, pairs), shared_context(game, num_players, pairs, len(draws), 0)
    for kind in truth.scores:
        np.testing.assert_allclose(scores.scores[kind], truth.scores[kind], atol=1e-12)
    np.testing.assert_allclose(scores.shapley.values, truth.shapley.values, atol=1e-12)
    assert scores.evaluations == 2**num_players


def test_shared_draws_have_those_proportions():
    drawn = interactions._draw_shared(40_000, 4, np.random.default_rng(0)) @ (1 << np.arange(4))
    expected = [1 / (5 * math.comb(4, number.bit_count())) for number in range(16)]
    np.testing.assert_allclose(np.bincount(drawn) / 40_000, expected, atol=0.005)


def test_a_draw_of_two_modalities_asks_for_few_parts_of_them():
    """(a+1)(b+1) coalitions, which are a+1 parts of one modality with b+1 parts of the other."""
    asked = []

    def game(coalitions):
        asked.extend(coalitions)
        return coalitions.sum(axis=1)

    pairs = cross_modal_pairs(["a"] * 3 + ["b"] * 4)
    shared_context(game, 7, pairs, 1, seed=3)
    assert len(asked) == 4 * 5
    assert len({tuple(x[:3]) for x in asked}) == 4
    assert len({tuple(x[3:]) for x in asked}) == 5


@pytest.mark.parametrize("estimator", SAMPLING)
def test_unbiased(estimator):
    """The mean over 600 seeds lies within 4.5 standard errors of the enumeration for 10 pairs, Banzhaf's does not."""
    game, pairs, num_seeds = table_game(5, seed=3), all_pairs(5), 600
    truth = exact(game, 5, pairs)
    runs = [estimator(game, 5, pairs, 4, seed) for seed in range(num_seeds)]
    estimates = np.stack([run.scores["sii"] for run in runs])
    error = estimates.std(axis=0, ddof=1) / num_seeds**0.5
    assert (np.abs(estimates.mean(axis=0) - truth.scores["sii"]) < 4.5 * error).all()
    banzhaf = shapiq.ExactComputer(game, n_players=5)("BII", order=2)
    wrong = np.array([banzhaf[tuple(pair)] for pair in pairs.tolist()])
    assert (np.abs(estimates.mean(axis=0) - wrong) > 4.5 * error).any()
    shapley = np.stack([run.shapley.values for run in runs])
    error = shapley.std(axis=0, ddof=1) / num_seeds**0.5
    assert (np.abs(shapley.mean(axis=0) - truth.shapley.values) < 4.5 * error).all()
    claimed = np.sqrt(np.mean([run.shapley.errors**2 for run in runs], axis=0))
    np.testing.assert_allclose(claimed, shapley.std(axis=0, ddof=1), rtol=0.15)
    # the stated standard errors are right on average
    claimed = np.sqrt(np.mean([run.standard_errors["sii"] ** 2 for run in runs], axis=0))
    np.testing.assert_allclose(claimed, estimates.std(axis=0, ddof=1), rtol=0.15)


@pytest.mark.parametrize("estimator", SAMPLING)
def test_redundancy_gap_comes_near_with_its_jackknife_error(estimator):
    game, pairs, num_seeds = table_game(5, seed=4), all_pairs(5), 150
    truth = exact(game, 5, pairs)
    runs = [estimator(game, 5, pairs, 64, seed) for seed in range(num_seeds)]
    for kind in ("redundancy", "redundancy_both"):
        estimates = np.stack([run.scores[kind] for run in runs])
        # of a ratio the bias is of the order 1/coalitions, below its error
        np.testing.assert_array_less(
            np.abs(estimates.mean(axis=0) - truth.scores[kind]), 0.25 * estimates.std(axis=0) + 1e-12
        )
        claimed = np.sqrt(np.mean([run.standard_errors[kind] ** 2 for run in runs], axis=0))
        np.testing.assert_allclose(claimed, estimates.std(axis=0, ddof=1), rtol=0.3, atol=1e-9)


def test_jackknife_is_the_plain_one():
    """With N = 3 a coalition is ∅ or {w}: each draw's terms are known from which of the two it was."""
    values = {(0, 0): 0.0, (1, 0): 1.0, (0, 1): 0.5, (1, 1): 2.0}, {(0, 0): 0.0, (1, 0): 2.0, (0, 1): 3.0, (1, 1): 2.5}
    drawn = []

    def game(coalitions):
        return np.array([values[int(w)][int(u), int(v)] for u, v, w in coalitions])

    scores = per_pair(game, 3, [(0, 1)], 7, seed=5)
    # sii is 0.5 at ∅ and −2.5 at {w}: its mean tells how often {w} was drawn
    with_w = round(float((0.5 - scores.scores["sii"][0]) * 7 / 3))
    assert 0 < with_w < 7
    drawn = [(1.0, 1.0)] * (7 - with_w) + [(2.5, 0.5)] * with_w  # base and span
    left_out = []
    for i in range(7):
        rest = drawn[:i] + drawn[i + 1 :]
        left_out.append(np.mean([base for base, _ in rest]) / (1 + np.mean([span for _, span in rest])))
    expected = np.sqrt(6 / 7 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert scores.standard_errors["redundancy"][0] == pytest.approx(expected)


@pytest.mark.parametrize("num_coalitions", [4, 16])
def test_shared_context_has_at_most_half_of_the_squared_error_at_equal_evaluations(num_coalitions):
    """`per_pair` gets as many coalitions as it takes to have at least as many evaluations."""
    pairs = np.array(list(itertools.product(range(8), range(8, 20))))
    shared_errors, own_errors = [], []
    for seed in range(10):
        game, index = unanimity_game(20, seed)
        truth = np.array([index(u, v) for u, v in pairs.tolist()])
        shared = shared_context(game, 20, pairs, num_coalitions, seed)
        coalitions = max(1, shared.evaluations // (4 * len(pairs)))
        while (own := per_pair(game, 20, pairs, coalitions, seed)).evaluations < shared.evaluations:
            coalitions += 1
        shared_errors.append(np.mean((shared.scores["sii"] - truth) ** 2))
        own_errors.append(np.mean((own.scores["sii"] - truth) ** 2))
    assert np.mean(shared_errors) <= 0.5 * np.mean(own_errors)


def test_index_of_a_unanimity_game():
    game, index = unanimity_game(9, seed=0)
    pairs = all_pairs(9)
    np.testing.assert_allclose(
        exact(game, 9, pairs).scores["sii"], [index(u, v) for u, v in pairs.tolist()], atol=1e-12
    )


@pytest.mark.parametrize("estimator", SAMPLING)
@pytest.mark.parametrize("num_players", [2, 3, 9])
def test_every_pair_has_its_coalitions_and_none_is_evaluated_twice(estimator, num_players):
    asked = []

    def game(coalitions):
        asked.extend(map(tuple, coalitions.tolist()))
        return np.zeros(len(coalitions))

    scores = estimator(game, num_players, all_pairs(num_players), 5, seed=0)
    assert (scores.num_coalitions == 5).all()
    assert scores.evaluations == len(asked) == len(set(asked))


def test_shared_context_asks_only_what_its_pairs_need():
    """Only the pair (2, 5) counts: no other player is put in or taken out."""
    asked = []

    def game(coalitions):
        asked.extend(map(tuple, coalitions.tolist()))
        return np.zeros(len(coalitions))

    scores = shared_context(game, 8, [(2, 5)], 6, seed=1)
    rest = {tuple(on for i, on in enumerate(coalition) if i not in (2, 5)) for coalition in asked}
    assert len(asked) == 4 * len(rest)
    assert len(rest) <= scores.num_coalitions[0]


def test_one_coalition_has_no_error():
    scores = per_pair(table_game(4, 0), 4, [(0, 1), (2, 3)], 1, seed=0)
    assert np.isnan(scores.standard_errors["sii"]).all()
    plain_json = json.loads(json.dumps(replace(scores, players=numbered(4)).to_dict(), allow_nan=False))
    assert plain_json["standard_errors"] == {kind: [None, None] for kind in scores.scores}
    assert plain_json["scores"]["sii"] == scores.scores["sii"].tolist()
    assert (plain_json["seed"], plain_json["estimator"], plain_json["num_coalitions"]) == (0, "per_pair", [1, 1])


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, 4)], "0 to 3, got 0 to 4"),
        ([(1, 1)], r"two players, got \[1, 1\]"),
        ([], "at least one"),
        ([0, 1], "P, 2"),
    ],
)
def test_pairs_that_are_none(estimator, pairs, message):
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[estimator](table_game(4, 0), 4, pairs, num_coalitions=2, seed=0)


@pytest.mark.parametrize("estimator", SAMPLING)
def test_no_coalitions(estimator):
    with pytest.raises(ValueError, match="num_coalitions must be a whole number, at least 1, got 0"):
        estimator(table_game(4, 0), 4, [(0, 1)], 0, 0)
    with pytest.raises(ValueError, match="no score 'SII'; there are sii, redundancy, redundancy_both"):
        estimator(table_game(4, 0), 4, [(0, 1)], 1, 0).score("SII")


# ---- games with players --------------------------------------------------------------------------------------------


def test_pairs_of_three_modalities():
    assert cross_modal_pairs(["b", "a", "b", "c"]).tolist() == [[0, 1], [0, 3], [1, 2], [1, 3], [2, 3]]
    with pytest.raises(ValueError, match="no pair between modalities"):
        cross_modal_pairs(["a", "a"])


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_a_game_of_words_and_regions(estimator):
    """Players of any kind: nothing but the value function knows what their places mean."""
    words = [Player("text", (0, 1), "soup"), Player("text", (5,), "violin")]
    regions = [Player("image", ((0, 0), (2, 3)), "left half"), Player("image", "sky")]
    game = Game(lambda s: (s[:, 0] & s[:, 2]) + 2.0 * (s[:, 1] | s[:, 3]), [*words, *regions])
    table = score_pairs(game, estimator=estimator, num_coalitions=3)
    assert [[str(end) for end in ends] for ends in table.ends] == [
        ["soup", "left half"],
        ["soup", "image sky"],
        ["violin", "left half"],
        ["violin", "image sky"],
    ]
    np.testing.assert_allclose(table.score("sii"), [1, 0, 0, -2], atol=1e-12)
    assert table.score("redundancy_both")[3] == pytest.approx(2)
    some = score_pairs(game, [(0, 1)], estimator=estimator, num_coalitions=3)
    assert some.ends == [(words[0], words[1])]
    back = PairTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert (back.players, back.ends) == (game.players, table.ends)


def test_bad_games():
    with pytest.raises(ValueError, match="no players"):
        Game(len, [])
    with pytest.raises(ValueError, match=r"players come twice: soup$"):
        Game(len, [Player("text", 1, "soup"), Player("text", 2), Player("text", 1, "soup")])
    with pytest.raises(ValueError, match="no estimator 'all'; there are exact, per_pair, shared_context"):
        score_pairs(Game(len, numbered(4)), estimator="all")
    with pytest.raises(ValueError, match="no pair between modalities"):
        score_pairs(Game(len, [Player("text", 1), Player("text", 2)]))


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(estimator, number):
    game = Game(lambda s: np.where(s[:, 1] & s[:, 2], number, 0), numbered(4))
    with pytest.raises(ValueError, match=rf"must be finite, that of players \[.*1, 2.*\] is {number}"):
        score_pairs(game, estimator=estimator, num_coalitions=8)


@pytest.mark.parametrize("number", [2.5, "4", None])
def test_parts_of_coalitions(number):
    with pytest.raises(ValueError, match=f"a whole number, at least 1, got {number!r}"):
        score_pairs(Game(lambda s: s.sum(axis=1), numbered(4)), num_coalitions=number)


def test_samples_have_seeds_of_their_own():
    seeds = {sample_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert sample_seed(4, 7) == sample_seed(4, 7)


# ---- a model's samples ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_and_inputs():
    modalities = {name: {"feature_size": 3, "max_features": length} for name, length in (("text", 6), ("image", 4))}
    torch.manual_seed(0)
    config = FLI2MoEConfig(modalities=modalities, num_labels=3, hidden_size=8, num_attention_heads=2)
    model = FLI2MoEModel(config).eval()
    masks = {"text": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool(), "image": torch.ones(2, 4, dtype=torch.bool)}
    special = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    special["text"][:, 0] = True
    features = {name: torch.randn(*mask.shape, 3) for name, mask in masks.items()}
    return model, Inputs.from_batch(model, {"features": features, "feature_masks": masks, "special_masks": special})


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_padding_plays_no_part(model_and_inputs, estimator):
    """A sample of a batch is scored as without its padding."""
    model, inputs = model_and_inputs
    options = {"estimator": estimator, "num_coalitions": 3, "seed": 4}
    tables = []
    for sample in (inputs.select([1]), one_sample(inputs, 1)):
        players = feature_players(sample.candidate_masks)
        tables.append(score_pairs(feature_game(model, sample, "synergy", 0, players), **options))
    padded, alone = tables
    assert len(alone.players) == 7
    assert (padded.players, padded.seed) == (alone.players, alone.seed)
    np.testing.assert_allclose(padded.score("sii"), alone.score("sii"), atol=1e-5)
    pairs = cross_modal_pairs(["text"] * 3 + ["image"] * 4)
    own = ESTIMATORS[estimator](feature_game(model, sample, "synergy", 0, players), 7, pairs, num_coalitions=3, seed=4)
    assert (own.pairs == alone.pairs).all()
    np.testing.assert_array_equal(own.score("sii"), alone.score("sii"))
    assert np.abs(own.score("sii")).max() > 1e-4


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_an_expert_of_one_modality_has_no_pairs(model_and_inputs, estimator):
    """A specialised uniqueness expert reads one modality: every index is 0, and exactly, for equal runs are one."""
    published, inputs = model_and_inputs
    row = one_sample(inputs, 1)
    torch.manual_seed(1)
    model = FLI2MoEModel(FLI2MoEConfig(**{**published.config.to_dict(), "objective": "specialised"})).eval()
    found = {}
    for expert in ("uniqueness_text", "synergy", "redundancy"):
        game = feature_game(model, row, expert, 1, feature_players(row.candidate_masks))
        found[expert] = np.abs(score_pairs(game, estimator=estimator, num_coalitions=2).score("sii")).max()
    assert found["uniqueness_text"] < 1e-12
    assert min(found["synergy"], found["redundancy"]) > 1e-6
