"""Games of features against one model call per coalition, and shapiq's estimators on them."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import shapiq
import torch

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.explain.feature_game import feature_game, feature_players
from fl_i2moe.explain.game import CachedValues, Player
from fl_i2moe.explain.inputs import Inputs
from fl_i2moe.explain.interactions import cross_modal_pairs, exact
from fl_i2moe.explain.masked_expert import MaskedExpert, MaskedSequence

LENGTHS = {"text": 6, "image": 5, "audio": 4}


def make_model(num_modalities=2, **changes) -> FLI2MoEModel:
    modalities = {name: {"feature_size": 4, "max_features": LENGTHS[name]} for name in list(LENGTHS)[:num_modalities]}
    config = FLI2MoEConfig(modalities=modalities, num_labels=3, hidden_size=8, num_attention_heads=2, **changes)
    torch.manual_seed(0)
    model = FLI2MoEModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_inputs(model: FLI2MoEModel, padding: str = "end") -> Inputs:
    """One sample; the text starts with a special feature."""
    generator = torch.Generator().manual_seed(1)
    batch = {"features": {}, "feature_masks": {}, "special_masks": {}}
    for name in model.config.modality_order:
        length = LENGTHS[name]
        batch["features"][name] = torch.randn(1, length, 4, generator=generator)
        mask = torch.ones(1, length, dtype=torch.bool)
        if padding != "none":
            mask[0, -1 if padding == "end" else 2] = False
        batch["feature_masks"][name] = mask
        batch["special_masks"][name] = (torch.arange(length) == 0)[None] & (name == "text")
    return Inputs.from_batch(model, batch)


def features(*places: tuple[str, int]) -> list[Player]:
    return [Player(name, position) for name, position in places]


def all_coalitions(num_players: int) -> np.ndarray:
    return np.array(list(itertools.product((False, True), repeat=num_players)))


def one_by_one(model: FLI2MoEModel, inputs: Inputs, expert: str, target: int, players: list, coalitions) -> np.ndarray:
    values = []
    for coalition in coalitions:
        projected = {name: x.clone() for name, x in inputs.projected.items()}
        for name, candidates in inputs.candidate_masks.items():
            projected[name][candidates] = 0
        for player, plays in zip(players, coalition, strict=True):
            if plays:
                name, position = player.modality, player.place
                projected[name][0, position] = inputs.projected[name][0, position]
        logits = model.run_experts(projected, inputs.feature_masks)
        values.append(float(logits[0, model.config.expert_names.index(expert), target]))
    return np.array(values)


@torch.no_grad()
@pytest.mark.parametrize("general_path", [False, True])
@pytest.mark.parametrize(
    ("num_modalities", "padding", "changes"),
    [(2, "end", {}), (2, "none", {}), (2, "middle", {}), (3, "end", {}), (2, "end", {"num_fusion_layers": 1})],
)
def test_values_are_those_of_single_calls(num_modalities, padding, changes, general_path, monkeypatch):
    if general_path:
        monkeypatch.setattr(MaskedExpert, "supports", lambda model: False)
    model = make_model(num_modalities, **{"num_fusion_layers": 3, **changes})
    inputs = make_inputs(model, padding)
    players = features(("image", 1), ("text", 4), ("text", 1), ("image", 3))
    players += features(("audio", 0)) * (num_modalities == 3)
    coalitions = all_coalitions(len(players))
    game = feature_game(model, inputs, "synergy", 2, players, batch_size=7)
    values = game(coalitions)
    assert values.dtype == np.float64
    expected = one_by_one(model, inputs, "synergy", 2, players, coalitions)
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert np.unique(expected.round(4)).size > len(coalitions) // 2  # the players matter
    assert game.evaluations == len(coalitions)
    assert game.players == tuple(players)


@torch.no_grad()
@pytest.mark.parametrize("expert", ["uniqueness_image", "synergy", "redundancy"])
def test_values_of_specialised_experts(expert):
    model = make_model(3, objective="specialised")
    inputs = make_inputs(model, "end")
    players = features(("image", 1), ("text", 4), ("image", 3), ("audio", 0))
    coalitions = all_coalitions(len(players))
    expected = one_by_one(model, inputs, expert, 2, players, coalitions)
    np.testing.assert_allclose(feature_game(model, inputs, expert, 2, players)(coalitions), expected, atol=2e-6)
    by_coalition = dict(zip(map(tuple, coalitions.tolist()), expected, strict=True))
    moved = by_coalition[True, True, True, True] != by_coalition[True, False, True, True]
    assert moved == (expert != "uniqueness_image")  # the text's feature


@torch.no_grad()
@pytest.mark.parametrize("objective", ["published", "specialised"])
@pytest.mark.parametrize(
    ("num_modalities", "num_layers", "padding", "chosen"),
    [(2, 1, "middle", "some"), (2, 3, "end", "all"), (3, 2, "middle", "all but the image's"), (3, 3, "none", "some")],
)
def test_values_of_every_expert(num_modalities, num_layers, padding, chosen, objective):
    model = make_model(num_modalities, num_fusion_layers=num_layers, objective=objective)
    inputs = make_inputs(model, padding)
    candidates = {name: mask[0].nonzero().flatten().tolist() for name, mask in inputs.candidate_masks.items()}
    players = features(*((name, position) for name, positions in candidates.items() for position in positions))
    if chosen == "some":
        players = players[::-2]
    elif chosen != "all":
        players = [player for player in players if player.modality != "image"]
    coalitions = np.random.default_rng(0).random((12, len(players))) < 0.5
    coalitions[0], coalitions[1] = False, True
    expected = []
    for coalition in coalitions:
        keep = {name: ~mask for name, mask in inputs.candidate_masks.items()}
        for player, plays in zip(players, coalition.tolist(), strict=True):
            keep[player.modality][0, player.place] = plays
        expected.append(model.run_experts(inputs.projected, inputs.feature_masks, keep)[0, :, 1])
    for expert, values in zip(model.config.expert_names, torch.stack(expected, dim=1), strict=True):
        found = feature_game(model, inputs, expert, 1, players, batch_size=5)(coalitions)
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=5e-6)
        assert found.std() > 1e-3 or (objective == "specialised" and "image" in expert and "but" in chosen)


@torch.no_grad()
def test_values_where_every_feature_plays():
    """Nothing is special, so no key of the first layer is always the same."""
    model = make_model()
    inputs = make_inputs(model, "none")
    inputs = Inputs(inputs.projected, inputs.feature_masks, inputs.feature_masks)
    players = features(*((name, i) for name in model.config.modality_order for i in range(LENGTHS[name])))
    coalitions = np.random.default_rng(0).random((9, len(players))) < 0.5
    expected = one_by_one(model, inputs, "synergy", 0, players, coalitions)
    np.testing.assert_allclose(feature_game(model, inputs, "synergy", 0, players)(coalitions), expected, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_values_of_sharp_attention(scale):
    """Scores of hundreds: the joint weight of many keys must neither overflow nor vanish."""
    model = make_model(num_fusion_layers=1)
    model.experts.layers[0].attention.qkv.weight.mul_(scale)
    inputs, players = make_inputs(model), features(("text", 1), ("image", 0), ("image", 2))
    expected = one_by_one(model, inputs, "synergy", 1, players, all_coalitions(3))
    found = feature_game(model, inputs, "synergy", 1, players)(all_coalitions(3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("expert", "expected"), [("uniqueness_image", 4), ("redundancy", 4 + 2 + 2), ("synergy", 16)])
def test_modalities_read_apart_run_under_their_own_coalitions(expert, expected, monkeypatch):
    model = make_model(3, objective="specialised")
    players = features(("image", 1), ("text", 4), ("image", 3), ("audio", 0))
    rows = []
    original = MaskedSequence.__call__
    monkeypatch.setattr(MaskedSequence, "__call__", lambda self, plays: rows.append(plays) or original(self, plays))
    feature_game(model, make_inputs(model), expert, 0, players)(all_coalitions(4))
    assert sum(map(len, rows)) == expected


def test_a_game_is_freed_with_its_last_name():
    model = make_model()
    inputs = make_inputs(model)
    gc.disable()
    try:
        game = feature_game(model, inputs, "synergy", 0, features(("text", 1), ("image", 0)))
        game(all_coalitions(2))
        found = weakref.ref(game)
        del game
        assert found() is None
    finally:
        gc.enable()


def test_eager_attention_and_a_dense_model():
    model = make_model(architecture="dense")
    model.set_attn_implementation("eager")
    inputs, players = make_inputs(model), features(("text", 1), ("image", 0), ("image", 2))
    with torch.no_grad():
        expected = one_by_one(model, inputs, "dense", 1, players, all_coalitions(3))
    np.testing.assert_allclose(feature_game(model, inputs, "dense", 1, players)(all_coalitions(3)), expected, atol=2e-6)


def test_players_of_masks():
    masks = {"text": torch.tensor([[False, True, False, True]]), "image": torch.tensor([True, False])}
    players = feature_players(masks)
    assert players == features(("text", 1), ("text", 3), ("image", 0))
    assert [str(player) for player in players] == ["text 1", "text 3", "image 0"]


def test_every_coalition_is_evaluated_once():
    asked = []

    def count(coalitions):
        asked.extend(map(tuple, coalitions.tolist()))
        return coalitions.sum(axis=1)

    game = CachedValues(count, 10)
    coalitions = np.random.default_rng(0).random((50, 10)) < 0.5
    twice = np.concatenate([coalitions, coalitions[::-1]])
    first, second = game(twice), game(coalitions.astype(int))
    assert (first == twice.sum(axis=1)).all()
    assert (second == coalitions.sum(axis=1)).all()
    distinct = len(np.unique(coalitions, axis=0))
    assert game.evaluations == len(asked) == len(set(asked)) == distinct
    assert game(np.empty((0, 10), bool)).shape == (0,)


def test_model_runs_only_for_new_coalitions(monkeypatch):
    model = make_model()
    game = feature_game(
        model, make_inputs(model), "synergy", 0, features(("text", 1), ("image", 0), ("image", 1)), batch_size=2
    )
    rows = []
    original = MaskedSequence.__call__
    monkeypatch.setattr(
        MaskedSequence, "__call__", lambda self, plays: rows.append(len(plays)) or original(self, plays)
    )
    first = game(all_coalitions(3)[[0, 5, 5, 3, 0, 1, 5]])
    assert rows == [2, 2]
    assert (game(all_coalitions(3)[[5, 0]]) == first[[1, 0]]).all()
    assert rows == [2, 2]


@pytest.mark.parametrize("estimator", [shapiq.KernelSHAPIQ, shapiq.PermutationSamplingSII, shapiq.SHAPIQ])
def test_shapiq_estimators_run_on_it_unchanged(estimator):
    model = make_model()
    players = features(("text", 1), ("text", 2), ("image", 0), ("image", 2), ("image", 3))
    game = feature_game(model, make_inputs(model), "synergy", 1, players)
    truth = exact(game, 5, cross_modal_pairs([player.modality for player in players]))
    options = {} if estimator is shapiq.PermutationSamplingSII else {"index": "SII"}
    budget = 20_000 if estimator is shapiq.PermutationSamplingSII else 2**5
    found = estimator(5, max_order=2, random_state=0, **options).approximate(budget, game)
    estimates = np.array([found[tuple(pair)] for pair in truth.pairs.tolist()])
    tolerance = 0.03 * np.abs(truth.scores["sii"]).max() if estimator is shapiq.PermutationSamplingSII else 1e-6
    np.testing.assert_allclose(estimates, truth.scores["sii"], atol=tolerance)


def test_bad_input():
    model = make_model()
    inputs = make_inputs(model)
    two = Inputs(
        *({name: x.repeat(2, *[1] * (x.dim() - 1)) for name, x in field.items()} for field in vars(inputs).values())
    )
    players = features(("text", 1), ("image", 0))
    for arguments, message in [
        ((two, "synergy", 0, players), "one sample, got 2"),
        ((inputs, "sinergy", 0, players), r"no expert 'sinergy'.*'synergy'"),
        ((inputs, "synergy", 3, players), "no class 3; this model has classes 0 to 2"),
        ((inputs, "synergy", -1, players), "no class -1"),
        ((inputs, "synergy", 0, []), "no players"),
        ((inputs, "synergy", 0, [*players, *features(("text", 1))]), "twice: text 1$"),
        ((inputs, "synergy", 0, features(("text", 0))), "no candidates.*: text 0"),  # special
        ((inputs, "synergy", 0, features(("image", 4))), "no candidates"),  # padding
        ((inputs, "synergy", 0, features(("image", 9))), "no candidates"),
        ((inputs, "synergy", 0, features(("audio", 0))), "no candidates"),
    ]:
        with pytest.raises(ValueError, match=message):
            feature_game(model, *arguments)
    with pytest.raises(ValueError, match="batch_size"):
        feature_game(model, inputs, "synergy", 0, players, batch_size=0)
    game = feature_game(model, inputs, "synergy", 0, players)
    for coalitions in (np.zeros(3, bool), np.zeros((1, 3), bool), np.full((1, 2), 0.5)):
        with pytest.raises(ValueError, match="coalitions must"):
            game(coalitions)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        game(np.zeros((1, 2), bool))
    assert game.evaluations == 0
