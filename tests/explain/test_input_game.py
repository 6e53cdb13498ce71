"""Games on the raw input, beside plain loops that encode the sample anew for every coalition."""

import itertools

import numpy as np
import pytest
import torch
from published import make_published

from fl_i2moe.explain import explain
from fl_i2moe.explain.attribution import Importance
from fl_i2moe.explain.explain_sample import described
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.input_attribution import attribute_input, contributed_scores, shapley_values
from fl_i2moe.explain.input_sample import InputSample
from fl_i2moe.explain.interactions import score_pairs
from fl_i2moe.explain.players import effects, strongest_players
from fl_i2moe.model.places import UnitOptions

KINDS = {"text": "text", "image": "image", "visits": "array"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model, raw, cache = make_published(tmp_path_factory.mktemp("made"), modalities=KINDS, splits=True)
    return model.eval(), raw, cache


@pytest.fixture
def sample(made):
    model, _, cache = made
    return InputSample(model, cache.splits["test"][2], described(model, cache), UnitOptions(cells=(2, 2)))


@torch.no_grad()
def by_hand(sample, made, coalition, experts=None):
    """Logits (E, C) of the experts: every modality encoded anew, what is not in the coalition taken out by hand."""
    model, _, cache = made
    row = cache.splits["test"][2]
    projected = {}
    for name in model.config.modality_order:
        units = sample.modalities[name].units
        out = [unit for unit in units.places.candidates if Player(name, unit) not in coalition]
        gone = sorted(feature for unit in out for feature in units.features[unit])
        features = torch.tensor(np.asarray(row[f"{name}_features"], np.float32))[None]
        if KINDS[name] != "array":
            encoder = model.raw_inputs.load(name)
            inputs = encoder.preprocess([row[name]]).inputs
            if KINDS[name] == "text":
                mask = inputs["attention_mask"].clone()
                mask[0, gone] = 0
                features = encoder.model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            else:
                pixels = inputs["pixels"].clone()
                mean = pixels[0].float().mean(dim=(0, 1)).round().to(torch.uint8)
                for feature in gone:  # patches of 8 × 8 behind CLS
                    top, left = 8 * ((feature - 1) // 4), 8 * ((feature - 1) % 4)
                    pixels[0, top : top + 8, left : left + 8] = mean
                features = encoder.encode({"pixels": pixels}).features
        x = model.stems[model.config.modality_order.index(name)].projection(features.half().float())
        x[0, gone] = 0
        projected[name] = x
    return model.run_experts(projected, experts=experts)[0].double().numpy()


def test_values_are_those_of_a_loop_that_encodes_every_coalition(sample, made):
    model = made[0]
    rng = np.random.default_rng(0)
    coalitions = np.concatenate([rng.random((12, len(sample.players))) < 0.5, [[False] * len(sample.players)]])
    found = sample.expert_logits(coalitions, sample.players)
    for coalition, values in zip(coalitions, found, strict=True):
        members = {player for player, is_in in zip(sample.players, coalition, strict=True) if is_in}
        np.testing.assert_allclose(values, by_hand(sample, made, members), atol=1e-5)
    game = sample.game("synergy", 1, sample.players[1:4])
    value = by_hand(sample, made, {sample.players[1], sample.players[3]}, ["synergy"])[0, 1]
    assert game([True, False, True])[0] == pytest.approx(value, abs=1e-5)
    whole = model(
        features={x: torch.tensor(np.asarray(made[2].splits["test"][2][f"{x}_features"]))[None] for x in KINDS}
    )
    everything = sample.mixture(np.ones((1, len(sample.players)), bool), sample.players)
    for one, other in zip(everything, (whole.logits, whole.expert_logits, whole.expert_weights), strict=True):
        np.testing.assert_allclose(one, other.detach(), atol=2e-4)


def test_each_distinct_subset_is_encoded_once(sample):
    """A pair's four values of all pairs of one draw need one encoding of each modality, and one for each player."""
    players = sample.players
    counts = {name: len(x.units.places.candidates) for name, x in sample.modalities.items()}
    told = []
    sample._on_progress = told.append
    table = score_pairs(sample.game("synergy", 0), num_coalitions=2, seed=0)
    encoded = sum(x.encodings for x in sample.modalities.values())
    assert encoded <= 2 * (len(players) + len(counts))
    assert encoded == sum(told)
    assert len(table.pairs) == sum(a * b for a, b in itertools.combinations(counts.values(), 2))
    sample.game("redundancy", 0)(np.ones((1, len(players)), bool))
    score_pairs(sample.game("synergy", 0), num_coalitions=2, seed=0)
    assert sum(x.encodings for x in sample.modalities.values()) <= encoded + len(counts)


def test_leaving_one_out_and_shapley_values_by_enumeration(sample, made):
    model = made[0]
    players = sample.players
    raw = attribute_input(sample, 1, "leave_one_out").raw
    everything = by_hand(sample, made, set(players))
    for player in players:
        lost = everything - by_hand(sample, made, set(players) - {player})
        np.testing.assert_allclose(raw[player.modality][0, :, player.place], lost[:, 1], atol=1e-5)
    some = [player for player in players if player.modality != "image"][:6]

    orders = np.array(list(itertools.permutations(range(6))))
    coalitions = (np.arange(64)[:, None] >> np.arange(6) & 1).astype(bool)
    values = sample.expert_logits(coalitions, some)[:, :, 1]
    exact = np.zeros((len(model.config.expert_names), 6))
    for order in orders:
        members = 0
        for player in order:
            exact[:, player] += (values[members | 1 << player] - values[members]) / len(orders)
            members |= 1 << player

    class Table:
        """The game of these six units alone, whose values are known."""

        model, players = sample.model, some

        def remembered(self, key, compute):
            return compute()

        def expert_logits(self, coalitions, players, experts=None):
            return np.broadcast_to(values[coalitions @ (1 << np.arange(6)), :, None], (len(coalitions), len(exact), 2))

    drawn = np.stack([shapley_values(Table(), 1, 3, seed) for seed in range(200)])
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - exact) < 4.5 * error + 1e-6).all()
    assert (drawn.std(axis=0) < 0.5 * np.abs(exact).max()).all()


def test_scores_compare_across_experts_and_modalities():
    raw = {"a": torch.tensor([[[1.0, -2.0], [0.5, 0.0]]]), "b": torch.tensor([[[0.0], [4.0]]])}
    importance = Importance({}, ["one", "two"], raw, None, {})
    found = contributed_scores(importance, torch.tensor([[0.8, 0.2]]))
    # weight × value: one (0.8, −1.6 | 0), two (0.1, 0 | 0.8), together (0.9, −1.6 | 0.8)
    expected = {
        "one": {"a": [0.8 / 0.9, 0], "b": [0]},
        "two": {"a": [0.1 / 0.9, 0], "b": [0.8 / 0.9]},
        "mixture": {"a": [1, 0], "b": [0.8 / 0.9]},
    }
    for expert, scores in expected.items():
        for name, values in scores.items():
            np.testing.assert_allclose(found[expert][name][0], values, atol=1e-6)
    [alone] = contributed_scores(
        Importance({}, ["dense"], {"b": -raw["b"][:, :1]}, None, {}), torch.ones(1, 1)
    ).values()
    assert alone["b"].tolist() == [[0.0]]


def test_players_are_chosen_by_what_they_do(sample):
    game = sample.game("synergy", 0)
    lost, added = effects(game)
    strength = np.maximum(np.abs(lost), np.abs(added))
    for name, x in sample.modalities.items():
        own = [number for number, player in enumerate(game.players) if player.modality == name]
        best = sorted(own, key=lambda number: -strength[number])[: -(-len(own) // 2)]
        chosen = [player for player in strongest_players(game, 0.5) if player.modality == name]
        assert chosen == [game.players[number] for number in sorted(best)]
        assert len([player for player in strongest_players(game, 0.5, most=1) if player.modality == name]) == 1
        assert len(x.units.places.candidates) == len(own)
    with pytest.raises(ValueError, match=r"share of players must lie in \(0, 1\]"):
        strongest_players(game, 0)


def test_explain_takes_raw_values_rows_of_data_and_rows_of_a_cache(made):
    model, raw, cache = made
    source, row = raw.splits["test"][2], cache.splits["test"][2]
    stages = []
    how = {"num_coalitions": 1, "on_stage": lambda *now: stages.append(now[:2])}
    given = {
        "raw": {
            "text": source["text"],
            "image": source["image"]["path"],
            "visits": np.frombuffer(source["visits"], "f4").reshape(-1, 4),
        },
        "row of data": {**source, "unknown": 3},
        "row of a cache": row,
    }
    found = {name: explain(model, x, "Comedy", **how) for name, x in given.items()}
    for explanation in found.values():
        np.testing.assert_allclose(explanation.logits, found["raw"].logits, atol=1e-4)
        for name, scores in explanation.importance["synergy"].items():
            np.testing.assert_allclose(scores, found["raw"].importance["synergy"][name], atol=1e-2)
        assert [feature.name for feature, _ in explanation.top_features("mixture", "text", None)]
        assert explanation.modalities["text"].noun == "words"
        assert explanation.settings["encodings"] > 0
        assert "left out of the encoder's attention" in " ".join(explanation.notes)
    assert found["row of data"].labels == source["labels"]
    assert found["raw"].labels is None
    assert stages[0] == ("Encoding the sample", 0)
    assert stages[-1][0] == "Pairs of the redundancy expert"
    assert [count for _, count in stages[-3:]] == sorted(count for _, count in stages[-3:])


def test_what_cannot_be_explained_is_a_sentence(made, tmp_path):
    model, raw, cache = made
    source, row = raw.splits["test"][2], dict(cache.splits["test"][2])
    for sample, words in [
        ({**source, "text": None}, "has no text"),
        ({"texts": "a fox", "image": source["image"], "visits": [0.0] * 4}, r"has no text.*Did you mean `texts`"),
        ({**source, "text": " \u00a0\n"}, "The sample has no text, only "),
        ([source], r"A sample is a dictionary with \['text', 'image', 'visits'\].*; got \["),
        ("a fox", "got 'a fox'"),
        (None, "got None"),
        ({**row, "image": None}, "has no image, only its features: give it, or explain the features"),
        ({**row, "text": "another text"}, "cannot be cut into parts: the text is not the one that was encoded"),
        ({**source, "image": str(tmp_path / "gone.png")}, "gone.png"),
    ]:
        with pytest.raises(ValueError, match=words):
            explain(model, sample, "Comedy")
    for options, words in [
        ({"removals": {"image": "melt"}}, "no removal 'melt' of this image encoder; there are mean, blur, drop"),
        ({"removals": {"sound": "silence"}}, "`removals` names"),
        ({"removals": {"visits": "blur"}}, "no removal 'blur' of visits"),
        ({"cut": UnitOptions(cells=(9, 9))}, "9 x 9 cells are finer"),
        ({"method": "grad_attnroll"}, "`method` must be one of"),
        ({"units": "atoms"}, "`units` must be one of"),
    ]:
        with pytest.raises(ValueError, match=words):
            explain(model, source, "Comedy", **options)


def test_small_and_large_samples(made):
    model, raw, _ = made
    source = raw.splits["test"][2]
    for text in ("fox", "🦊🦊", "the quick " * 1500):
        explanation = explain(model, {**source, "text": text}, "Comedy", num_coalitions=1, method="leave_one_out")
        assert explanation.pairs("synergy", 3)
        cut = "The text is longer than its encoder reads: the last 2,993 of 3,000 words play no part."
        assert (cut in explanation.remarks) == (len(text) > 1000)
    picture = np.zeros((3, 3, 3), np.uint8)
    assert explain(model, {**source, "image": picture}, "Comedy", num_coalitions=1).pairs("synergy", 1)


@pytest.mark.parametrize("options", [{"cells": (0, 3)}, {"cells": (2,)}, {"most": 0}, {"text": "pages"}])
def test_cuts_that_are_none(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        UnitOptions(**options)


def test_a_model_that_names_no_encoder(made):
    """Raw values cannot be explained, rows can, and the sentence says how."""
    model, raw, cache = made
    row, encoders, model.config.encoders = cache.splits["test"][2], model.config.encoders, None
    try:
        for sample, words in ((raw.splits["test"][2], "give a row of a feature cache, and "), (row, "")):
            with pytest.raises(ValueError, match=rf"names no encoder of 'text': {words}explain the features \(units="):
                explain(model, sample, "Comedy")
        explain(model, row, "Comedy", units="features", num_coalitions=1)
    finally:
        model.config.encoders = encoders


@pytest.mark.parametrize("removals", [{"image": "blur"}, {"image": "drop"}, {"text": "mask"}])
def test_other_ways_to_take_out(made, removals):
    model, _, cache = made
    row = cache.splits["test"][2]
    explanation = explain(model, row, "Comedy", interactions=None, method="leave_one_out", removals=removals)
    plain = explain(model, row, "Comedy", interactions=None, method="leave_one_out")
    (name,) = removals
    assert not np.allclose(explanation.importance["synergy"][name], plain.importance["synergy"][name])
    assert explanation.notes != plain.notes


def test_rollout_goes_on_through_the_encoder(made):
    """By a plain loop over the layers of the text's encoder, whose attention is asked for by hand."""
    model, _, cache = made
    encoder = model.raw_inputs.load("text")
    inputs = encoder.preprocess([cache.splits["test"][2]["text"]]).inputs
    encoder.model.set_attn_implementation("eager")
    with torch.no_grad():
        ids = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        attentions = encoder.model(**ids, output_attentions=True).attentions
    encoder.model.set_attn_implementation("sdpa")
    expected = torch.eye(inputs["input_ids"].shape[1]).double()
    for layer in attentions:
        expected = (0.5 * layer[0].mean(0).double() + 0.5 * torch.eye(len(expected))) @ expected
    found = encoder.rollout(inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)).double())
    assert encoder.model.config._attn_implementation == "sdpa"
