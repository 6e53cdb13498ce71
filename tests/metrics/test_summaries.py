"""Drops, areas, spreads, intervals and their JSON by hand and by plain loops; pairs and inputs chosen and put back."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from explained import make_explainable
from tiny_models import make_batch, make_config, make_model

from fl_i2moe.evaluation.pairs import pair_curves, pair_masking_table
from fl_i2moe.explain.game import Game, Player
from fl_i2moe.explain.inputs import Inputs
from fl_i2moe.explain.interactions import score_pairs
from fl_i2moe.explain.pair_table import PairTable
from fl_i2moe.metrics.summaries import (
    area_under,
    describe_draws,
    drop,
    from_plain,
    interval,
    plain,
    resample,
    spread,
    weighted_means,
)
from fl_i2moe.metrics.tasks import compute_metrics
from fl_i2moe.training.runs import check_cache


def test_a_drop_is_greater_the_worse():
    assert drop(0.8, np.array([0.5, 0.9]), True) == pytest.approx([0.3, -0.1])
    assert drop(0.8, np.array([0.5, 0.9]), False) == pytest.approx([-0.3, 0.1])


def test_areas_and_spreads_by_hand():
    assert area_under(np.array([[1.0, 3.0, 0.0], [1.0, 1.0, 1.0]]), (0.0, 0.5, 2.0)).tolist() == [1 + 2.25, 2]
    values = np.array([[1.0, 2.0], [3.0, 2.0]])
    assert spread(values) == pytest.approx([2**0.5, 0])
    assert np.isnan(spread(values[:1])).all()
    assert describe_draws(np.array([1.0, 3.0])) == {"mean": 2, "std": 2**0.5, "min": 1, "max": 3}
    assert describe_draws(np.array([np.nan])) == dict.fromkeys(("mean", "std", "min", "max"))


def test_an_interval_leaves_out_what_is_undefined():
    assert interval(np.append(np.arange(101.0), np.nan)) == [2.5, 97.5]
    assert interval(np.array([np.nan])) is None
    assert interval(np.zeros(0)) is None


def test_the_bootstrap_draws_as_many_as_there_are_and_covers_the_mean():
    weights = resample(50, 400, seed=1)
    assert weights.shape == (401, 50)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 50).all()
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = interval(weighted_means(rng.normal(size=50), weights[1:]))
        covered += low < 0 < high
    assert 0.88 < covered / 200 < 0.99


def test_numbers_as_json_and_back():
    values = np.array([[1.0, np.nan], [2.0, 3.0]])
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == [[1, None], [2, 3]]
    np.testing.assert_array_equal(from_plain(plain(values[0])), values[0])
    assert plain(np.float32("nan")) is None
    with pytest.raises(ValueError, match="Out of range"):  # an infinite number is a mistake that shows
        json.dumps(plain(np.inf), allow_nan=False)


# ---- pair tables ---------------------------------------------------------------------------------------------------


def draw_logits(rng, num_samples, num_classes, num_draws=3, num_shares=None):
    points = () if num_shares is None else (num_shares,)
    return {
        "none": rng.normal(size=(num_samples, num_classes)),
        "ranked": rng.normal(size=(*points, num_samples, num_classes)),
        "random": rng.normal(size=(num_draws, *points, num_samples, num_classes)),
        "random_same_features": rng.normal(size=(num_draws, num_samples, num_classes)),
        "random_same_pairs": rng.normal(size=(num_draws, num_samples, num_classes)),
        **{name: np.ones((*points, num_samples)) for name in ("num_pairs", "num_features", "num_features_same_pairs")},
        "num_features_random": np.ones((num_draws, *points, num_samples)),
    }


@pytest.mark.parametrize(
    ("problem_type", "metric", "sign"),
    [
        ("multi_label_classification", "mAP", 1),
        ("single_label_classification", "macro_f1", 1),
        ("regression", "rmse", -1),
        ("regression", "pearson", 1),
    ],
)
def test_intervals_equal_a_loop_over_resamples(problem_type, metric, sign):
    rng = np.random.default_rng(0)
    logits = draw_logits(rng, 12, 3)
    labels = {
        "multi_label_classification": (rng.random((12, 3)) < 0.4).astype(int),
        "single_label_classification": rng.integers(3, size=12),
        "regression": rng.normal(size=(12, 3)),
    }[problem_type]
    found = pair_masking_table(logits, labels, problem_type, num_resamples=40, seed=3)["metrics"][metric]

    def measure(values, rows):
        return compute_metrics(values[rows], labels[rows], problem_type)[metric]

    def differences(rows):
        base, ranked = measure(logits["none"], rows), measure(logits["ranked"], rows)
        random = np.mean([measure(draw, rows) for draw in logits["random_same_features"]])
        return sign * (base - ranked), sign * (random - ranked)  # greater is worse, of errors too

    loop = [differences(np.repeat(np.arange(12), times.astype(int))) for times in resample(12, 40, seed=3)[1:]]
    low, high = np.quantile(loop, (0.025, 0.975), axis=0)
    values = differences(np.arange(12))
    for i, entry in enumerate((found["drop"]["ranked"], found["ranked_minus_random"])):
        assert entry["value"] == pytest.approx(values[i])
        assert entry["interval"] == pytest.approx([low[i], high[i]])


def test_areas_of_curves_equal_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    logits, labels, shares = draw_logits(rng, 10, 2, num_shares=3), rng.integers(2, size=10), (0.0, 0.1, 0.5)
    how = {"shares": shares, "num_resamples": 30, "seed": 1}
    found = pair_curves(logits, labels, "single_label_classification", **how)["metrics"]["accuracy"]

    def height(points, rows):
        values = [(point[rows].argmax(axis=1) == labels[rows]).mean() for point in points]
        return (0.1 * (values[0] + values[1]) / 2 + 0.4 * (values[1] + values[2]) / 2) / 0.5

    def difference(rows):
        return height(logits["ranked"], rows) - np.mean([height(draw, rows) for draw in logits["random"]])

    assert found["ranked"]["area"] == pytest.approx(height(logits["ranked"], np.arange(10)))
    loop = [difference(np.repeat(np.arange(10), times.astype(int))) for times in resample(10, 30, seed=1)[1:]]
    expected = {"value": difference(np.arange(10)), "interval": list(np.quantile(loop, (0.025, 0.975)))}
    assert found["area_ranked_minus_random"]["value"] == pytest.approx(expected["value"])
    assert found["area_ranked_minus_random"]["interval"] == pytest.approx(expected["interval"])
    without = pair_curves(logits, labels, "single_label_classification", shares=shares, num_resamples=0)
    assert without["metrics"]["accuracy"]["area_ranked_minus_random"] == {
        "value": pytest.approx(expected["value"]),
        "interval": None,
    }


# ---- choosing and putting back -------------------------------------------------------------------------------------


def test_pairs_go_into_a_table_and_come_back():
    players = [Player("text", 4), Player("image", 2), Player("text", 1), Player("audio", 0)]
    weights = np.random.default_rng(0).normal(size=16)
    game = Game(lambda s: weights[s @ (1 << np.arange(4))], players)
    scores = score_pairs(game, estimator="per_pair", num_coalitions=3, seed=5)
    plain_json = json.loads(json.dumps(scores.to_dict()))
    assert plain_json["ends"][0] == ["text", 4, "image", 2]
    back = PairTable.from_dict(plain_json)
    assert back.ends == scores.ends
    for kind in ("sii", "redundancy", "redundancy_both"):
        np.testing.assert_array_equal(back.score(kind), scores.score(kind))
        np.testing.assert_array_equal(back.standard_errors[kind], scores.standard_errors[kind])
    assert (back.seed, back.estimator, back.evaluations) == (5, "per_pair", scores.evaluations)

    some = back.select(np.array([3, 0]))
    assert some.ends == [scores.ends[3], scores.ends[0]]
    for item in fields(scores):
        whole, part = getattr(back, item.name), getattr(some, item.name)
        if isinstance(whole, dict):
            assert {name: x.tolist() for name, x in part.items()} == {n: x[[3, 0]].tolist() for n, x in whole.items()}
        elif isinstance(whole, np.ndarray):
            assert part.tolist() == whole[[3, 0]].tolist()
        else:
            assert part == whole


def test_loaded_players_keep_their_numbers():
    """What is drawn at random over players is then drawn alike."""
    players = [Player(name, place) for name, place in (("a", 3), ("a", 1), ("b", 0), ("b", 5), ("c", 2), ("c", 1))]
    table = score_pairs(Game(lambda s: s.sum(axis=1), players), num_coalitions=1)
    back = PairTable.from_dict(table.to_dict())
    assert back.players == table.players
    assert (back.pairs == table.pairs).all()


def test_samples_are_selected():
    config = make_config()
    inputs = Inputs.from_batch(make_model(config), make_batch(config))
    for rows in ([2, 0, 2], torch.tensor([2, 0, 2])):
        chosen = inputs.select(rows)
        assert len(chosen) == 3
        for item in fields(Inputs):
            for name, x in getattr(inputs, item.name).items():
                assert torch.equal(getattr(chosen, item.name)[name], torch.stack([x[2], x[0], x[2]]))


def test_only_what_differs_between_encoders_is_named(tmp_path):
    """Two numbers are two numbers, in a tuple here and in a list in the model's config.json."""
    model, cache = make_explainable(tmp_path)
    image = cache.modalities["image"]
    encoder = image["encoder"]
    model.config.encoders = {**model.config.encoders, "image": {**encoder, "size": [4, 1], "revision": "b"}}
    other = {**cache.modalities, "image": {**image, "encoder": {**encoder, "size": (4, 1)}}}
    with pytest.raises(ValueError, match=r"than the model's:\n  revision: 'a', the model's 'b'$"):
        check_cache(model, replace(cache, modalities=other))
