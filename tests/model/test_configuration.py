import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from fl_i2moe import FLI2MoEConfig

MODALITIES = {"text": {"feature_size": 4, "max_features": 3}, "image": {"feature_size": 5, "max_features": 2}}


def test_order_and_expert_names_survive_saving(tmp_path):
    config = FLI2MoEConfig(modalities=MODALITIES, num_labels=5)
    assert config.expert_names == ["uniqueness_text", "uniqueness_image", "synergy", "redundancy"]
    config.save_pretrained(tmp_path)
    loaded = FLI2MoEConfig.from_pretrained(tmp_path)
    assert loaded.modality_order == ["text", "image"]
    assert loaded.to_dict() == config.to_dict()


def test_typo_is_refused_with_a_proposal():
    with pytest.raises(ValueError, match=r"`hiden_size`.*`hidden_size`"):
        FLI2MoEConfig(modalities=MODALITIES, hiden_size=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": {"text": MODALITIES["text"]}}, "at least two"),
        ({"modality_order": ["text", "text"]}, "each of `modalities`"),
        ({"modalities": {**MODALITIES, "image": {"feature_size": 5}}}, "`max_features`"),
        ({"modalities": {**MODALITIES, "image": {"feature_size": 0, "max_features": 1}}}, "positive integer"),
        ({"modalities": {**MODALITIES, "": MODALITIES["text"]}}, "non-empty"),
        ({"modalities": {**MODALITIES, "../../etc": MODALITIES["text"]}}, "must not start with a dot or hold slashes"),
        ({"level": "pooled", "num_patches": 6}, "`num_patches` must be at most 5, .* got 6"),
        ({"level": "pool"}, "'feature', 'pooled'"),
        ({"hidden_size": 10}, "divisible.*10 and 4"),
        ({"hidden_size": 0}, "at least 1"),
        ({"attention_dropout": 1.0}, r"\[0, 1\)"),
        ({"reweighting_temperature": 0}, "positive"),
        ({"reweighting_temperature": float("nan")}, "`reweighting_temperature` must be a finite number"),
        ({"interaction_loss_weight": float("inf")}, "`interaction_loss_weight` must be a finite number"),
        ({"interaction_loss_weight": -1}, "at least 0, got -1"),
        ({"num_perturbed_views": 1}, "at least 2, got 1"),
        ({"num_perturbed_views": 3}, "2 … 2"),
        ({"num_labels": 1}, "regression"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_labels": 3, "class_weights": [1.0, 2.0]}, "`class_weights` must hold 3 positive, finite numbers"),
        ({"num_labels": 2, "class_weights": [1.0, 0]}, r"`class_weights` must hold 2 .* got \[1.0, 0\]"),
        ({"num_labels": 2, "class_weights": [1.0, float("nan")]}, "`class_weights` must hold 2"),
        ({"num_labels": 2, "class_weights": "balanced"}, "class_weights"),
        ({"problem_type": "regression", "class_weights": [1.0, 1.0]}, "`class_weights` is for classification"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must lie in \[0, 1\)"),
        ({"problem_type": "regression", "label_smoothing": 0.1}, "`label_smoothing` is for classification"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"problem_type": "regression", "temperature": 2}, "`temperature` is for classification"),
        ({"num_labels": 2, "thresholds": [0.5, 1.0]}, "`thresholds` must hold 2 probabilities between 0 and 1"),
        ({"num_labels": 2, "thresholds": [0.5, "0.5"]}, "`thresholds` must hold 2"),
        ({"problem_type": "single_label_classification", "thresholds": [0.5, 0.5]}, "`thresholds` is for multi_label"),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        FLI2MoEConfig(**{"modalities": MODALITIES, **changes})


@pytest.mark.parametrize(("field", "value"), [("router_depth", 3), ("fusion", "mamba")])
def test_a_configuration_from_the_future(tmp_path, field, value):
    FLI2MoEConfig(modalities=MODALITIES).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(ValueError, match=rf"(?s)`{field}`.* newer version of fl_i2moe .*update fl_i2moe"):
        AutoConfig.from_pretrained(tmp_path)


def test_one_label_is_regression():
    config = FLI2MoEConfig(modalities=MODALITIES, num_labels=1, problem_type="regression")
    assert config.num_labels == 1


def test_whole_numbers_pass_for_real_ones():
    assert FLI2MoEConfig(modalities=MODALITIES, attention_dropout=0, interaction_loss_weight=1).attention_dropout == 0
