"""Explanations as data: where features lie, what `explain` gives for a row, round trips, and what is refused."""

import json
import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from explained import SENTENCE, make_explainable, make_explanation

from fl_i2moe.explain import Explanation
from fl_i2moe.explain import explain as explain_sample
from fl_i2moe.explain.attribution import MIXTURE
from fl_i2moe.explain.inputs import Inputs, feature_batch
from fl_i2moe.explain.pages.sample_page import render_page
from fl_i2moe.model.configuration_fl_i2moe import FLI2MoEConfig
from fl_i2moe.model.kind_text import Piece
from fl_i2moe.model.kinds import places_in
from fl_i2moe.model.probabilities import decide, probabilities

explain = partial(explain_sample, units="features", interactions=None)

# ---- where features lie ----------------------------------------------------------------------------------------------


def image_row(special, width=200, height=100, region=(0, 0, 200, 100)):
    geometry = dict(zip(("width", "height", "left", "top", "right", "bottom"), (width, height, *region), strict=True))
    return {"image": {"path": None, "bytes": None}, "image_special_mask": special, "image_geometry": geometry}


def test_patches_behind_a_special_feature_in_pixels_of_the_picture():
    image = places_in(image_row([True] + [False] * 6), "image", grid=[2, 3])
    assert image.kind == "image"
    assert image.cell(0) is None
    assert image.box(0) is None
    assert image.cell(1) == (0, 0)
    assert image.box(1) == pytest.approx((0, 0, 200 / 3, 50))
    assert image.cell(6) == (1, 2)
    assert image.box(6) == pytest.approx((400 / 3, 50, 200, 100))
    assert image.name_of(6) == "row 2, column 3"


def test_patches_of_a_centre_crop_cover_the_crop_alone():
    image = places_in(image_row([False] * 4, region=(50, 0, 150, 100)), "image", grid=[2, 2])
    boxes = [image.box(index) for index in range(4)]
    assert boxes == [(50, 0, 100, 50), (100, 0, 150, 50), (50, 50, 100, 100), (100, 50, 150, 100)]


def test_patches_in_the_padding_have_no_extent():
    """Of a wide picture on a square, the first and the last row of patches show nothing."""
    image = places_in(image_row([False] * 4, region=(0, -100, 200, 300)), "image", grid=[4, 1])
    assert [image.box(index) for index in range(4)] == [(0, 0, 200, 0), (0, 0, 200, 100), *[(0, 100, 200, 100)] * 2]


def test_the_grid_follows_from_the_input_size_where_it_is_not_given():
    encoder = {"preprocessing": {"input_size": [224, 448]}}
    assert places_in(image_row([False] * 8), "image", encoder).grid == (2, 4)
    assert places_in(image_row([False] * 7), "image", encoder).grid is None
    assert places_in(image_row([False] * 7), "image", encoder, [2, 4]).grid is None  # does not fit


def test_a_text_is_cut_into_tokens_and_what_lies_between():
    text = "Ein 🎬-Film, cut"
    offsets = [[0, 0], [0, 3], [4, 5], [4, 5], [5, 6], [6, 10], [0, 0]]
    row = {"text": text, "text_offsets": offsets, "text_special_mask": [True] + [False] * 5 + [True]}
    modality = places_in(row, "text")
    assert modality.pieces() == [
        Piece(0, 3, (1,)),
        Piece(3, 4),
        Piece(4, 5, (2, 3)),  # two tokens of one character
        Piece(5, 6, (4,)),
        Piece(6, 10, (5,)),
        Piece(10, 15),
    ]
    assert "".join(text[piece.start : piece.end] for piece in modality.pieces()) == text
    assert modality.span(0) is None
    assert modality.name_of(5) == "“Film”"


def test_a_modality_that_is_neither_picture_nor_text():
    modality = places_in({"audio_special_mask": [False, False]}, "audio")
    assert modality.kind == "array"
    assert modality.name_of(1) == "feature 1"


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_explain_gives_the_models_own_numbers(tmp_path):
    model, cache = make_explainable(tmp_path)
    row = cache.splits["test"][2]
    explanation = explain(model, row, "b", cache=cache)
    features = {name: torch.tensor(np.array(row[f"{name}_features"], np.float32))[None] for name in ("image", "text")}
    with torch.no_grad():
        output = model(features)
    assert explanation.target == 1
    assert explanation.target_name == "b"
    np.testing.assert_allclose(explanation.expert_weights, output.expert_weights[0], atol=1e-6)
    np.testing.assert_allclose(explanation.expert_logits, output.expert_logits[0], atol=1e-5)
    np.testing.assert_allclose(explanation.expert_weights @ explanation.expert_logits, explanation.logits, atol=1e-5)
    assert list(explanation.importance) == [*model.config.expert_names, MIXTURE]
    for scores in explanation.importance.values():
        assert scores["image"].shape == (4,)
        assert scores["text"].shape == (len(row["text_features"]),)
        assert scores["text"][0] == 0  # special
        assert {scores["image"].min(), scores["image"].max()} == {0, 1}
    # from its parts: the mean of the experts' scores by their weights, scaled anew
    mean = sum(
        weight * explanation.importance[name]["text"][1:]
        for name, weight in zip(explanation.expert_names, explanation.expert_weights, strict=True)
    )
    scaled = (mean - mean.min()) / (mean.max() - mean.min())
    np.testing.assert_allclose(explanation.importance[MIXTURE]["text"][1:], scaled, atol=1e-5)


def test_pairs_link_patches_and_tokens_best_first(tmp_path):
    model, cache = make_explainable(tmp_path)
    row = cache.splits["test"][2]
    explanation = explain(model, row, interactions="exact", universe_share=0.5, cache=cache)
    for expert, kind in (("synergy", "sii"), ("redundancy", "redundancy_both")):
        pairs = explanation.pairs(expert, top=3)
        table = explanation.pair_tables[expert]
        assert [pair.score for pair in pairs] == sorted(table.scores[kind], key=abs, reverse=True)[:3]
        for pair in pairs:
            assert (pair.kind, pair.standard_error) == (kind, 0)
            assert pair.evaluations == table.evaluations
            patch, token = sorted((pair.first, pair.second), key=lambda end: end.modality)
            assert patch.box == (patch.index, 0, patch.index + 1, 1)  # a picture of 4 × 1 pixels
            assert token.token == row["text"][slice(*token.span)]
    with pytest.raises(ValueError, match=r"'uniqueness_text' were not scored, only those of synergy, redundancy"):
        explanation.pairs("uniqueness_text")
    with pytest.raises(ValueError, match="sii, redundancy, redundancy_both"):
        explanation.pairs("synergy", kind="banzhaf")


def test_a_row_alone_is_enough(tmp_path):
    model, cache = make_explainable(tmp_path)
    row = cache.splits["test"][2]
    alone, with_cache = explain(model, row, "a"), explain(model, row, "a", cache=cache)
    np.testing.assert_array_equal(alone.importance["synergy"]["text"], with_cache.importance["synergy"]["text"])
    assert alone.modalities["text"].pieces() == with_cache.modalities["text"].pieces()


def test_pairs_lie_between_what_acts_most_on_the_expert_whatever_the_method(tmp_path):
    """By a plain loop: the effect on the whole sample, and on one of which nothing else is left."""
    model, cache = make_explainable(tmp_path)
    row = cache.splits["test"][2]
    how = {"interactions": "per_pair", "num_coalitions": 1, "universe_share": 0.3}
    found = {method: explain(model, row, 0, method=method, **how) for method in ("grad_attnroll", "ig", "random")}
    inputs = Inputs.from_batch(model, feature_batch(row, model.config.modality_order))

    def synergy(kept):
        keep = {name: ~mask for name, mask in inputs.candidate_masks.items()}
        for name, place in kept:
            keep[name][0, place] = True
        logits = model.run_experts(inputs.projected, inputs.feature_masks, keep, ["synergy"])
        return float(logits[0, 0, 0])

    everything = {(name, int(x)) for name, mask in inputs.candidate_masks.items() for x in mask[0].nonzero()}
    expected = set()
    for modality in model.config.modality_order:
        own = [player for player in everything if player[0] == modality]
        lost = {x: abs(synergy(everything) - synergy(everything - {x})) for x in own}
        added = {x: abs(synergy({x}) - synergy(set())) for x in own}
        own.sort(key=lambda x: -max(lost[x], added[x]))
        expected.update(own[: math.ceil(0.3 * len(own))])
    for explanation in found.values():
        ends = explanation.pair_tables["synergy"].ends
        assert {(end.modality, end.place) for pair in ends for end in pair} == expected
    assert "universe_by" not in found["grad_attnroll"].settings


def test_every_sample_draws_random_importance_of_its_own(tmp_path):
    model, cache = make_explainable(tmp_path)
    row = cache.splits["test"][2]
    drawn = [explain(model, row, method="random", seed=1, sample_number=n).importance["synergy"] for n in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0]["image"], drawn[1]["image"])
    assert (drawn[0]["image"] != drawn[2]["image"]).any()


def test_strongest_pairs_are_the_largest_whatever_their_sign():
    """A negative index as large as the positive ones together must not be hidden by small positive ones."""
    explanation = make_explanation()
    table = explanation.pair_tables["synergy"]
    table.scores["sii"][:] = 0.002
    table.scores["sii"][[1, 4, 7]] = [-0.181, 0.05, np.nan]
    strongest = [pair.score for pair in explanation.pairs("synergy", None)]
    assert strongest[:3] == [-0.181, 0.05, 0.002]
    assert np.isnan(strongest[-1])
    page = render_page(explanation)
    assert re.findall(r'class="score">(.\d\.\d{3})', page)[:3] == ["−0.181", "+0.050", "+0.002"]
    assert "strongest pairs by the size of the Shapley interaction index" in page
    assert "The largest come first, whatever their sign." in page


def test_the_default_target_is_the_true_class_with_the_highest_logit(tmp_path):
    model, cache = make_explainable(tmp_path)
    row = dict(cache.splits["test"][0])
    logits = explain(model, row, 0).logits
    best, *_, worst = np.argsort(-logits)
    middle = 3 - best - worst
    for labels, expected in (
        ([0, 0, 0], best),
        (np.eye(3)[worst], worst),
        (np.eye(3)[worst] + np.eye(3)[middle], middle),
    ):
        assert explain(model, {**row, "labels": list(labels)}).target == expected


def test_explaining_leaves_the_model_as_it_was(tmp_path):
    model, cache = make_explainable(tmp_path)
    model.train()
    model.set_attn_implementation("sdpa")
    explain(model, cache.splits["test"][0], interactions="per_pair", num_coalitions=1)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_explained_is_refused(tmp_path):
    model, cache = make_explainable(tmp_path)
    row = cache.splits["test"][2]
    for target, message in (
        ("B", r"There is no class 'B'; there are a, b, c. Did you mean 'b'\?"),
        (3, "There is no class 3; there are 0: a, 1: b, 2: c"),
        (-1, "There is no class -1"),
        (1.7, "There is no class 1.7"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(model, row, target)
    with pytest.raises(ValueError, match="'exact', 'per_pair', 'shared_context', got 'guess'"):
        explain(model, row, interactions="guess")
    with pytest.raises(ValueError, match=r"Unknown experts \['gut'\]"):
        explain(model, row, interactions="exact", pair_experts=["gut"])
    with pytest.raises(ValueError, match="lacks text_features"):
        explain(model, {name: value for name, value in row.items() if name != "text_features"})
    with pytest.raises(ValueError, match=r"share .* must lie in \(0, 1\], got 0"):
        explain(model, row, interactions="exact", universe_share=0)
    with pytest.raises(ValueError, match=f"Sample {row['id']} has no text feature that is not special"):
        explain(model, {**row, "text_special_mask": [True] * len(row["text_special_mask"])})
    with pytest.raises(ValueError, match=r"seed.*-1"):
        explain(model, row, seed=-1)
    with pytest.raises(ValueError, match=r"classes are .* those of the feature cache"):
        explain(model, row, cache=replace(cache, label_names=["a", "b", "d"]))
    with pytest.raises(ValueError, match=f"Sample {row['id']} has image features that are NaN"):
        explain(model, {**row, "image_features": np.full((4, 3), np.nan)})


# ---- round trips -----------------------------------------------------------------------------------------------------


def test_round_trip_through_json(tmp_path):
    explanation = make_explanation()
    explanation.pair_tables["synergy"].standard_errors["sii"][0] = np.nan
    path = explanation.save(tmp_path / "new" / "film.json")
    assert "NaN" not in path.read_text()
    back = Explanation.load(path)
    assert json.dumps(back.to_dict()) == json.dumps(explanation.to_dict())
    assert back.modalities == explanation.modalities
    assert sum(np.isnan(pair.standard_error) for pair in back.pairs("synergy", None)) == 1
    assert back.pairs("redundancy") == explanation.pairs("redundancy")
    assert back.modalities["text"].text == SENTENCE


def test_a_file_of_another_kind_or_format_is_refused(tmp_path):
    explanation = make_explanation()
    with pytest.raises(ValueError, match=r"\.html, \.png or \.json, not as '\.pdf'"):
        explanation.save(tmp_path / "film.pdf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="`format` is 99"):
        Explanation.from_dict({**explanation.to_dict(), "format": 99})


def test_predictions_by_kind_of_task():
    explanation = make_explanation()
    explanation.logits = np.array([0.5, -1.0, 2.0])
    assert explanation.predicted_classes == [0, 2]
    np.testing.assert_allclose(explanation.probabilities, 1 / (1 + np.exp(-explanation.logits)))
    explanation.problem_type, explanation.labels = "single_label_classification", [1.0]
    assert (explanation.predicted_classes, explanation.true_classes) == ([2], [1])
    assert explanation.probabilities.sum() == pytest.approx(1)
    explanation.problem_type = "regression"
    assert (explanation.predicted_classes, explanation.true_classes, explanation.probabilities) == ([], [], None)


def test_probabilities_and_predictions_are_the_calibrated_models():
    explanation = make_explanation()
    explanation.logits = np.array([0.5, -1.0, 2.0])
    explanation.temperature, explanation.thresholds = 2.0, [0.6, 0.3, 0.5]
    calibrated = FLI2MoEConfig(
        modalities={"image": {"feature_size": 2, "max_features": 2}, "text": {"feature_size": 2, "max_features": 2}},
        id2label=dict(enumerate(explanation.label_names)),
        problem_type=explanation.problem_type,
        temperature=2.0,
        thresholds=[0.6, 0.3, 0.5],
    )
    expected = probabilities(torch.tensor(explanation.logits), calibrated)
    np.testing.assert_allclose(explanation.probabilities, expected)
    assert explanation.predicted_classes == [1, 2] == decide(expected, calibrated).nonzero().flatten().tolist()

    saved = explanation.to_dict()
    assert Explanation.from_dict(saved).predicted_classes == [1, 2]
    with pytest.raises(ValueError, match="`thresholds` does not fit"):
        Explanation.from_dict({**saved, "thresholds": [0.5]})
    before = Explanation.from_dict({key: x for key, x in saved.items() if key not in ("temperature", "thresholds")})
    assert before.predicted_classes == [0, 2]


def test_features_without_importance_are_not_ranked():
    explanation = make_explanation()
    expert, modality = explanation.expert_names[0], next(iter(explanation.modalities))
    scores = explanation.importance[expert][modality]
    candidates = explanation.modalities[modality].candidates
    scores[:] = 0
    scores[candidates[2]], scores[candidates[0]] = 1.0, 0.5
    ranked = explanation.top_features(expert, modality)
    assert [(feature.index, score) for feature, score in ranked] == [(candidates[2], 1.0), (candidates[0], 0.5)]
