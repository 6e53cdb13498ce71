"""Intervals of pairs and players: against a plain loop, and how often they hold what enumeration says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from explained import make_explanation
from scipy import stats

from fl_i2moe.explain import Explanation
from fl_i2moe.explain.game import Game, Player
from fl_i2moe.explain.interactions import cross_modal_pairs, exact, per_pair, score_pairs, shared_context
from fl_i2moe.explain.intervals import with_intervals
from fl_i2moe.explain.pair_table import PairTable

MODALITIES = ["a"] * 4 + ["b"] * 4
PAIRS = cross_modal_pairs(MODALITIES)


def network_game(seed: int):
    """A random network of 8 players whose values grow fastest in small coalitions, as trained models' do."""
    rng = np.random.default_rng(seed)
    weights, out = rng.normal(size=(8, 12)) * rng.exponential(1, (8, 1)), rng.normal(size=12)
    return lambda coalitions: np.tanh(coalitions @ weights - 0.5) @ out


def plain_intervals(draws, ends, antithetic):
    """As the docstring says, one mean at a time."""
    num_draws, num_means = draws.shape
    single = [np.var(draws[:, p], ddof=1) for p in range(num_means)]
    pairs = [(draws[i] + draws[i + 1]) / 2 for i in range(0, num_draws - 1, 2)]
    freedom = len(pairs) - 1 if antithetic else num_draws - 1
    own, ratio = single, 1.0
    if antithetic and freedom:
        own = [2 * np.var([pair[p] for pair in pairs], ddof=1) for p in range(num_means)]
        ratio = (freedom * np.sum(own) / np.sum(single) + 0.5) / (freedom + 0.5)
    intervals = []
    for p in range(num_means):
        shares = [np.mean([single[o] for o in range(num_means) for e in ends[o] if e == end]) for end in ends[p]]
        expected = (single[p] + shares[0] + shares[1]) / 3
        variance = (freedom * own[p] + 4 * ratio * expected) / (freedom + 4)
        if antithetic and num_draws % 2:
            variance = ((num_draws - 1) * variance + expected) / num_draws
        width = stats.t(freedom + 4).ppf(0.975) * np.sqrt(variance / num_draws)
        intervals.append([draws[:, p].mean() - width, draws[:, p].mean() + width])
    return np.array(intervals)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("num_draws", [2, 3, 4, 7, 8])
def test_intervals_are_those_of_the_plain_loop(num_draws, antithetic):
    draws = np.random.default_rng(num_draws).exponential(size=(num_draws, 6)) * [1, 1, 5, 0, 1, 9]
    ends = np.array([(0, 3), (0, 4), (1, 3), (1, 4), (2, 3), (2, 4)])
    found = with_intervals(draws.mean(axis=0), draws, ends, antithetic=antithetic)
    np.testing.assert_allclose(found.intervals, plain_intervals(draws, ends, antithetic))
    if not antithetic:
        np.testing.assert_allclose(found.errors, stats.sem(draws))
    wider = with_intervals(draws.mean(axis=0), draws, ends, antithetic=antithetic, rounding=0.1)
    assert (wider.intervals[:, 0] < found.intervals[:, 0]).all()


@pytest.mark.parametrize("num_coalitions", [4, 8, 16])
def test_intervals_hold_in_19_of_20_cases(num_coalitions):
    """On games that nobody chose the method on; pairs of a run are not independent, so 30 seeds say ± 2 %."""
    hits = {kind: [] for kind in ("sii", "redundancy", "redundancy_both", "shapley")}
    for number in range(3):
        game = network_game(number)
        truth = exact(game, 8, PAIRS)
        for seed in range(30):
            table = shared_context(game, 8, PAIRS, num_coalitions, seed)
            for kind, expected in truth.scores.items():
                low, high = table.intervals[kind].T
                hits[kind].append((low <= expected + 1e-12) & (expected - 1e-12 <= high))
            low, high = table.shapley.intervals.T
            hits["shapley"].append((low <= truth.shapley.values) & (truth.shapley.values <= high))
    for kind, hit in hits.items():
        assert 0.91 <= np.mean(hit) <= 0.99, kind


def test_every_second_draw_is_the_complement_and_pays():
    asked = {}

    def squared_error(estimates, truth):
        return np.mean((estimates - truth) ** 2)

    errors = {shared_context: [], per_pair: []}
    for number in range(4):
        game = network_game(number)
        truth = exact(game, 8, PAIRS).scores["sii"]
        for estimator, values in errors.items():
            values.extend(squared_error(estimator(game, 8, PAIRS, 8, seed).scores["sii"], truth) for seed in range(10))
    assert np.mean(errors[shared_context]) < 0.7 * np.mean(errors[per_pair])  # with as many draws
    for num_coalitions in (2, 3):
        rows = asked[num_coalitions] = []
        shared_context(lambda s, rows=rows: rows.extend(map(tuple, s)) or s.sum(axis=1), 8, PAIRS, num_coalitions, 5)
    assert set(asked[2]) <= set(asked[3])  # more draws go on with the ones before
    assert {tuple(not x for x in row) for row in asked[2]} == set(asked[2])


def test_players_that_only_add_up_have_narrow_intervals_that_hold_0():
    """Also where values are rounded as a model's are: what is left of an index is then noise."""
    weights = np.random.default_rng(0).normal(size=8).astype(np.float32)
    for game in (lambda s: s @ weights.astype(np.float64), lambda s: s.astype(np.float32) @ weights):
        for seed in range(20):
            table = shared_context(game, 8, PAIRS, 4, seed)
            assert not table.found("sii")
            assert np.abs(table.intervals["sii"]).max() < 1e-5
            np.testing.assert_allclose(table.shapley.values, weights, atol=1e-5)
            assert np.abs(table.shapley.intervals - weights[:, None]).max() < 1e-4
    # one interacting pair does not hide that the others do not, nor the other way round
    one = shared_context(lambda s: s @ weights + 3.0 * (s[:, 0] & s[:, 5]), 8, PAIRS, 8, 0)
    low, high = one.intervals["sii"].T
    assert one.found("sii")
    assert PAIRS[(low > 0) | (high < 0)].tolist() == [[0, 5]]


def test_enumerated_scores_are_points_and_a_single_draw_has_none():
    game = network_game(0)
    table = exact(game, 8, PAIRS)
    for kind, scores in table.scores.items():
        np.testing.assert_array_equal(table.intervals[kind], np.stack([scores, scores], axis=1))
    assert table.found("sii")
    assert (table.shapley.errors == 0).all()
    table = shared_context(game, 8, PAIRS, 1, 0)
    assert np.isnan(table.intervals["redundancy"]).all()
    assert np.isnan(table.shapley.intervals).all()
    assert not table.found("sii")
    for kind in ("redundancy", "redundancy_both"):
        assert shared_context(game, 8, PAIRS, 2, 0).intervals[kind].min() >= 0  # as the gap itself


# ---- saved ---------------------------------------------------------------------------------------------------------


def test_intervals_are_selected_saved_and_loaded():
    game = Game(network_game(1), [Player(name, (place, 0)) for place, name in enumerate(MODALITIES)])
    table = score_pairs(game, num_coalitions=4)
    back = PairTable.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False)))
    for kind, limits in table.intervals.items():
        np.testing.assert_array_equal(back.intervals[kind], limits)
        np.testing.assert_array_equal(table.select(np.array([5, 2])).intervals[kind], limits[[5, 2]])
    np.testing.assert_array_equal(back.shapley.columns, table.shapley.columns)
    some = PairTable.from_dict(table.select(np.array([5])).to_dict())
    numbers = [game.players.index(player) for player in some.players]
    np.testing.assert_array_equal(some.shapley.columns, table.shapley.columns[numbers])

    saved = {key: x for key, x in table.to_dict().items() if key not in ("intervals", "shapley")}
    older = PairTable.from_dict(saved)
    assert {kind: x.shape for kind, x in older.intervals.items()} == dict.fromkeys(table.scores, (16, 2))
    assert np.isnan(older.intervals["sii"]).all()
    assert older.shapley is None
    assert not older.found("sii")
    with pytest.raises(ValueError, match="no score 'SII'"):
        older.found("SII")
    assert PairTable.from_dict(older.to_dict()).shapley is None


def test_an_explanations_pairs_have_their_intervals(tmp_path):
    explanation = make_explanation()
    table = explanation.pair_tables["synergy"]
    table.intervals["sii"][3] = np.nan
    for pair in Explanation.load(explanation.save(tmp_path / "film.json")).pairs("synergy", None):
        row = table.scores["sii"].tolist().index(pair.score)
        np.testing.assert_array_equal(pair.interval, table.intervals["sii"][row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["intervals"]["sii"].pop(), r"pair_tables\.synergy\.intervals` does not fit"),
        (lambda t: t["intervals"]["sii"][0].append(1.0), r"pair_tables\.synergy\.intervals` does not fit"),
        (lambda t: t["intervals"].pop("redundancy"), r"pair_tables\.synergy\.intervals` does not fit"),
        (lambda t: t["intervals"]["sii"][0].__setitem__(1, "wide"), r"synergy\.intervals\.sii\[0\]\[1\]` must be"),
        (lambda t: t.update(intervals=[1]), r"synergy\.intervals` must be an object"),
        (lambda t: t.update(shapley=[["image", 1, 0.5]]), r"shapley\[0\]` does not fit"),
        (lambda t: t.update(shapley=[["image", 99, 0.5, 0.1, 0.3, 0.7]]), r"shapley\[0\]` does not fit"),
        (lambda t: t.update(shapley=[["image", 1, "x", 0.1, 0.3, 0.7]]), r"shapley\[0\]` does not fit"),
        (lambda t: t.update(shapley=3), r"synergy\.shapley` must be a list"),
    ],
)
def test_edited_intervals_are_named(change, message):
    saved = json.loads(json.dumps(make_explanation().to_dict()))
    change(saved["pair_tables"]["synergy"])
    with pytest.raises(ValueError, match=message):
        Explanation.from_dict(saved)


def test_a_table_made_by_hand_may_lack_intervals():
    table = score_pairs(Game(network_game(1), [Player(name, place) for place, name in enumerate(MODALITIES)]))
    bare = replace(table, intervals={}, shapley=None)
    assert np.isnan(bare.intervals["redundancy"]).all()
