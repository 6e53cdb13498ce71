"""Samples that lack a modality."""

import pytest
import torch
from tiny_models import SIZES, make_config, make_inputs, make_model


def make(level="feature", **changes):
    config = make_config(3, level=level, keep_feature_means=True, **changes)
    model = make_model(config)
    model.set_feature_means({name: torch.randn(SIZES[name][0]) for name in config.modality_order})
    return model, *make_inputs(config)[:2]


def stand_in(model, name, fill, shape):
    """What stands for the modality in the hidden space, in plain words."""
    stem = model.stems[model.config.modality_order.index(name)]
    if fill == "zero":
        return torch.zeros(shape)
    return stem.project_mean().expand(shape)


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_rows_without_a_feature_are_filled(fill):
    """As if the sequence were of full length and every feature of it replaced; the other rows do not change."""
    model, features, masks = make()
    expected = model(features=features, feature_masks=masks)
    masks["image"][[1, 3]] = False
    features["image"][1] = torch.nan
    output = model(features=features, feature_masks=masks, fill_missing=fill)
    for row in (0, 2):
        torch.testing.assert_close(output.logits[row], expected.logits[row], rtol=1e-5, atol=1e-5)

    whole = {"image": torch.ones_like(masks["image"])}
    features["image"][1] = 0
    projected = model.embed(features, {**masks, **whole})
    projected["image"] = stand_in(model, "image", fill, projected["image"].shape)
    replaced = model.run_mixture(projected, {**masks, **whole})
    for field in ("logits", "expert_logits", "expert_weights"):
        torch.testing.assert_close(output[field][[1, 3]], replaced[field][[1, 3]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["feature", "pooled"])
def test_a_modality_may_be_absent_altogether(level):
    model, features, masks = make(level)
    full = model.embed(features, {name: torch.ones_like(mask) for name, mask in masks.items()})
    del features["audio"], masks["audio"]
    output = model(features=features, feature_masks=masks, fill_missing="mean")
    projected = model.embed({**features, "audio": torch.zeros(4, 4, 4)}, masks)
    projected["audio"] = stand_in(model, "audio", "mean", full["audio"].shape)
    expected = model.run_mixture(projected, masks if level == "feature" else None)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_noise_is_that_of_the_views():
    model, features, masks = make()
    masks["text"][2] = False
    torch.manual_seed(5)
    output = model(features=features, feature_masks=masks, fill_missing="random")
    whole = masks["text"].clone()
    whole[2] = True
    projected = model.embed(features, {**masks, "text": whole})
    torch.manual_seed(5)
    projected["text"][2] = torch.randn_like(projected["text"])[2]
    expected = model.run_mixture(projected, {**masks, "text": whole})
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_the_batch_plays_no_part():
    """A missing sequence has `max_features` features, or as many as the user says, however long the batch is."""
    model, features, masks = make()
    masks["image"][1] = False
    expected = model(features=features, feature_masks=masks, fill_missing="zero").logits[1]
    short = {name: x[:2, :3] for name, x in features.items()}
    short_masks = {name: x[:2, :3].clone() for name, x in masks.items()}
    short["text"], short_masks["text"] = features["text"][:2], masks["text"][:2]
    short["audio"], short_masks["audio"] = features["audio"][:2], masks["audio"][:2]
    assert torch.allclose(
        model(features=short, feature_masks=short_masks, fill_missing="zero").logits[1], expected, atol=1e-5
    )
    two = model(features=short, feature_masks=short_masks, fill_missing="zero", missing_lengths={"image": 2}).logits[1]
    assert not torch.allclose(two, expected, atol=1e-5)


def test_pooled_vectors_are_missing_where_they_are_nan():
    model, _, _ = make("pooled")
    features = {name: torch.randn(3, SIZES[name][0]) for name in model.config.modality_order}
    expected = model(features=features).logits
    features["text"][1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        model(features=features)
    logits = model(features=features, fill_missing="zero").logits
    torch.testing.assert_close(logits[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-5)
    projected = model.embed({**features, "text": torch.zeros(3, SIZES["text"][0])})
    replaced = model.replace_modality(projected, "text", "zero")
    torch.testing.assert_close(logits[1], model.run_mixture(replaced).logits[1], rtol=1e-5, atol=1e-5)


def test_nothing_missing_changes_nothing():
    model, features, masks = make()
    expected = model(features=features, feature_masks=masks)
    output = model(features=features, feature_masks=masks, fill_missing="random")
    assert torch.equal(output.logits, expected.logits)


def test_what_cannot_be_filled_is_refused():
    model, features, masks = make()
    masks["image"][1] = False
    with pytest.raises(ValueError, match=r"rows \[1\]; `fill_missing`"):
        model(features=features, feature_masks=masks)
    with pytest.raises(ValueError, match="'random', 'zero', 'mean', got 'noise'"):
        model(features=features, feature_masks=masks, fill_missing="noise")
    with pytest.raises(ValueError, match=r"`missing_lengths\['image'\]`.*got 6"):
        model(features=features, feature_masks=masks, fill_missing="zero", missing_lengths={"image": 6})
    nothing = {name: mask.clone() for name, mask in masks.items()}
    for mask in nothing.values():
        mask[3] = False
    with pytest.raises(ValueError, match=r"rows \[3\] have no modality at all"):
        model(features=features, feature_masks=nothing, fill_missing="zero")
    with pytest.raises(ValueError, match="`features` is empty"):
        model(features={}, fill_missing="zero")
    plain = make_model(make_config(3))
    with pytest.raises(ValueError, match="keep_feature_means"):
        plain(features=features, feature_masks=masks, fill_missing="mean")
    projected = plain.embed(features, {name: torch.ones_like(mask) for name, mask in masks.items()})
    with pytest.raises(ValueError, match="keep_feature_means"):
        plain.replace_modality(projected, "image", "mean")
    with pytest.raises(ValueError, match=r"\['picture'\]"):
        plain.replace_modality(projected, "picture")
    with pytest.raises(ValueError, match="'shuffle'"):
        plain.replace_modality(projected, "image", "shuffle")


def test_a_dense_model_of_one_modality_fills_it():
    """What it says without its modality is what it says of zeros."""
    config = make_config(1, architecture="dense")
    model, (features, masks, _) = make_model(config), make_inputs(config)
    masks["text"][2] = False
    output = model(features=features, feature_masks=masks, fill_missing="zero")
    zeros = {"text": torch.zeros(1, *features["text"].shape[1:2], config.hidden_size)}
    torch.testing.assert_close(output.logits[2:3], model.run_mixture(zeros).logits)
