"""Scores to an error that is asked for: no bias, the error is reached, more coalitions only where they are needed."""

import json

import numpy as np
import pytest

from fl_i2moe.explain.game import Game, Player
from fl_i2moe.explain.interactions import exact, score_pairs
from fl_i2moe.explain.pair_table import PairTable

PLAYERS = [Player(name, place) for name in "ab" for place in range(4)]


def uneven_game(seed: int) -> Game:
    """8 players; the first three of each modality interact, some more than others, the last ones only add up."""
    rng = np.random.default_rng(seed)
    weights, out = 0.6 * rng.normal(size=(8, 12)), 2 * rng.normal(size=12)
    weights[[3, 7]] = 0
    adds = np.array([0, 0, 1, -2, 0, 0, 3, 0.5])
    return Game(lambda s: np.tanh(s @ weights) @ out + s @ adds, PLAYERS)


def truth_of(game: Game, table: PairTable) -> dict[str, np.ndarray]:
    return exact(game, 8, table.pairs).scores


def test_what_is_drawn_has_no_bias():
    """Means over 120 seeds lie within 4.5 standard errors of the enumeration, though some pairs got many more draws."""
    game = uneven_game(0)
    runs = [score_pairs(game, num_coalitions=8, seed=seed, target_error=0.25) for seed in range(120)]
    counts = np.stack([run.num_coalitions for run in runs])
    assert counts.min() == 8
    assert counts.max() > 40
    assert counts[:, 0].std() > 3  # what is drawn decides
    truth = truth_of(game, runs[0])["sii"]
    estimates = np.stack([run.scores["sii"] for run in runs])
    error = estimates.std(axis=0, ddof=1) / 120**0.5
    assert (np.abs(estimates.mean(axis=0) - truth) <= 4.5 * error + 1e-12).all()
    low, high = np.stack([run.intervals["sii"] for run in runs]).transpose(2, 0, 1)
    interacting = np.abs(truth) > 1e-9
    assert interacting.sum() == 9
    assert 0.92 < ((low <= truth) & (truth <= high))[:, interacting].mean() <= 1
    shapley = np.stack([run.shapley.values for run in runs])
    error = shapley.std(axis=0, ddof=1) / 120**0.5
    assert (np.abs(shapley.mean(axis=0) - exact(game, 8, runs[0].pairs).shapley.values) <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("kind", ["sii", "redundancy", "redundancy_both"])
@pytest.mark.parametrize("estimator", ["shared_context", "per_pair"])
def test_the_error_that_was_asked_for_is_reached(estimator, kind):
    game = uneven_game(3)
    how = {"estimator": estimator, "num_coalitions": 32}

    def error_of_strongest(table):
        strongest = np.argsort(-np.abs(table.scores[kind]))[:10]
        true_errors = np.abs(table.scores[kind] - truth_of(game, table)[kind])[strongest]
        return (table.intervals[kind][:, 1] - table.scores[kind])[strongest].max(), true_errors

    target = error_of_strongest(score_pairs(game, **how))[0] / 3
    reached, right = [], []
    for seed in range(12):
        table = score_pairs(game, **how, seed=seed, target_error=target, max_coalitions=4096, kind=kind)
        assert table.num_coalitions.max() > 64
        error, true_errors = error_of_strongest(table)
        assert bool(error <= target) == (table.note == "")
        reached.append(error <= target)
        right.extend(true_errors <= target)
    assert np.mean(reached) >= 0.7
    assert np.mean(right) >= 0.95


def test_only_pairs_whose_rank_is_open_get_more():
    table = score_pairs(uneven_game(2), num_coalitions=8, target_error=0.05, max_coalitions=2000)
    more = dict(zip(map(tuple, table.pairs.tolist()), table.num_coalitions > 8, strict=True))
    assert sum(more.values()) >= 9
    assert not more[3, 7]  # these only add up
    plain = score_pairs(uneven_game(2), num_coalitions=8, target_error=50)
    assert (plain.num_coalitions == 8).all()
    assert plain.note == ""


def test_a_maximum_is_kept_and_told(tmp_path):
    game = uneven_game(0)
    table = score_pairs(game, num_coalitions=8, target_error=1e-3, max_coalitions=21)
    assert table.num_coalitions.max() == 20
    assert table.note.endswith("after 20 coalitions, not to ± 0.001 as was asked for; more than 21 were not allowed.")
    back = PairTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert (back.note, back.num_coalitions.tolist()) == (table.note, table.num_coalitions.tolist())
    assert PairTable.from_dict({key: x for key, x in table.to_dict().items() if key != "note"}).note == ""


def test_evaluations_are_distinct_coalitions_and_the_seed_decides():
    asked = []
    inner = uneven_game(0)

    def value(coalitions):
        asked.extend(map(tuple, coalitions))
        return inner(coalitions)

    runs = [score_pairs(Game(value, PLAYERS), num_coalitions=8, seed=3, target_error=0.2) for _ in range(2)]
    assert 2 * runs[0].evaluations == len(asked)
    assert runs[0].to_dict() == runs[1].to_dict()
    assert runs[0].seed == 3
    other = score_pairs(Game(value, PLAYERS), num_coalitions=8, seed=4, target_error=0.2)
    assert other.scores["sii"].tolist() != runs[0].scores["sii"].tolist()


def test_enumeration_has_no_error_to_reach():
    table = score_pairs(uneven_game(0), estimator="exact", target_error=0.1)
    assert (table.note, table.estimator) == ("", "exact")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_error": 0}, "target_error must be a positive number, got 0"),
        ({"target_error": -0.1}, "positive number, got -0.1"),
        ({"target_error": float("nan")}, "positive number, got nan"),
        ({"target_error": float("inf")}, "positive number, got inf"),
        ({"target_error": "0.1"}, "positive number, got '0.1'"),
        ({"num_coalitions": 3}, "from 4 to max_coalitions, which is 256, got 3"),
        ({"num_coalitions": 300}, "4 to max_coalitions, which is 256, got 300"),
        ({"num_coalitions": 8.0}, "a whole number from 4 to max_coalitions, which is 256, got 8.0"),
        ({"max_coalitions": 2}, "4 to max_coalitions, which is 2, got 16"),
        ({"max_coalitions": 99.5}, "which is 99.5, got 16"),
        ({"kind": "SII"}, "no score 'SII'"),
        ({"pairs": [(0, 9)]}, "0 to 7, got 0 to 9"),
        ({"estimator": "all"}, "no estimator 'all'"),
    ],
)
def test_errors_that_cannot_be_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        score_pairs(uneven_game(0), **{"target_error": 0.1, **options})
