"""What an explanation costs, counted, and what fits into a time."""

import math

import numpy as np
import pytest
from published import make_published

from fl_i2moe.explain import explain
from fl_i2moe.explain.budget import Plan, fit_draws, fit_pairs, fit_units
from fl_i2moe.explain.explain_sample import open_sample
from fl_i2moe.explain.input_sample import Clock

KINDS = {"text": "text", "image": "image", "visits": "array"}
PLAN = Plan("shapley", 5, 2, "shared_context", 0.5, 16, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model, _, cache = make_published(tmp_path_factory.mktemp("made"), modalities=KINDS, splits=True)
    return model.eval(), {**cache.splits["test"][3]}


@pytest.fixture
def sample(made):
    """5 words, 16 cells, 1 position; an encoding takes a second, an answer of an expert 1 ms."""
    sample = open_sample(*made)
    assert sample.num_units == {"text": 5, "image": 16, "visits": 1}
    for modality in sample.modalities.values():
        modality.clock = Clock(10, 10.0)
    sample.run_clock = Clock(1000, 1.0)
    return sample


@pytest.mark.parametrize(
    ("method", "estimator"),
    [("shapley", "shared_context"), ("leave_one_out", "per_pair"), ("rollout", "exact"), ("shapley", None)],
)
def test_as_many_encodings_as_expected(made, method, estimator):
    """Fewer only where importance and the pairs of both experts ask for the same."""
    told = []
    how = {"interactions": estimator, "method": method, "num_coalitions": 2, "universe_share": 0.15}
    explanation = explain(*made, "Comedy", **how, on_stage=lambda *now: told.append(now))
    counts, expected = [count for _, count, _ in told], told[-1][2]
    assert counts == sorted(counts)
    assert counts[-1] == explanation.settings["encodings"]
    assert 0.6 * expected <= counts[-1] <= expected
    first = next(now for now in told if now[0] == "Importance")
    assert 0.5 * first[2] <= counts[-1] <= first[2]


def test_units_are_put_together_as_far_as_the_time_needs(sample, monkeypatch):
    monkeypatch.setattr("fl_i2moe.explain.budget.LEAST_UNITS", 3)
    fit_units(PLAN, sample, 51)  # two contexts, 6 + 17 + 2 encodings each, and 23 answers of 5 experts
    assert sample.num_units == {"text": 5, "image": 16, "visits": 1}
    fit_units(PLAN, sample, 36)  # 20 s are left for cells: 8 of them
    assert sample.num_units == {"text": 5, "image": 4, "visits": 1}
    sample.coarsen("image", 256)
    fit_units(PLAN, sample, 0.1)
    assert sample.num_units == {"text": 3, "image": 1, "visits": 1}
    assert sample.places["text"].name_of(0) == "“the quick”"


def test_draws_and_pairs_fit(sample):
    costs = {draws: (2 + draws) * (6 + 17 + 23 * 5 / 1000) + min(2, 2 + draws) for draws in (0, 2, 4)}
    for seconds in (1, 60, 120, 200, 1000):
        plan = fit_draws(PLAN, sample, seconds)
        assert costs[plan.draws] <= seconds or plan.draws == 0
        assert plan.draws == 4 or costs[plan.draws + 2] > seconds
    amounts = []
    for seconds in (0, 30, 60, 100, 1000):
        plan = fit_pairs(PLAN, sample, seconds)
        amounts.append((plan.most_players, plan.num_coalitions))
        players = [min(plan.most_players, number) for number in (3, 8)]  # half of the units
        assert 2 * sum(min(2**a, plan.num_coalitions * (a + 1)) for a in players) <= seconds or amounts[-1] == (3, 2)
    assert amounts[0] == (3, 2)
    assert amounts[-1] == (16, 4)
    assert amounts == sorted(amounts)


def test_much_time_changes_nothing_and_little_leaves_the_least(made):
    how = {"target": "Comedy", "num_coalitions": 2, "pair_experts": ["synergy"]}
    plain, much, little = (explain(*made, **how, max_seconds=seconds) for seconds in (None, 1e6, 1e-6))
    for expert, scores in plain.importance.items():
        for name, x in scores.items():
            np.testing.assert_allclose(much.importance[expert][name], x, atol=1e-5)
    found, expected = (x.pair_tables["synergy"].scores["sii"] for x in (much, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert much.settings.items() >= {"max_seconds": 1e6, "num_coalitions": 2}.items()
    assert little.remarks[0] == (
        "Chosen to answer in about 1e-06 s: words of the text: 5 (2 in pairs), cells of the image: 16 (3 in pairs), "
        "features of the visits: 1 (1 in pairs), coalitions for importance: 2, coalitions a pair: 2."
    )
    assert little.pairs("synergy", 3)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "5"])
def test_a_time_that_is_none(made, seconds):
    with pytest.raises(ValueError, match="`max_seconds` must be a positive number, got"):
        explain(*made, max_seconds=seconds)


def test_what_a_time_excludes(made):
    for how in ({"units": "features"}, {"target_error": 0.1}):
        with pytest.raises(ValueError, match="`max_seconds` needs units='input', and excludes `target_error`"):
            explain(*made, max_seconds=5, **how)
