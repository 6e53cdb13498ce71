"""The papers' settings, against the rows of their tables as printed, and the recipes that offer them."""

import runpy

import pytest
from conftest import ROOT

from fl_i2moe.training.arguments import ModelArguments, TrainingArguments
from fl_i2moe.training.published import DATA_SETS, ENCODERS, published_settings

# I²MoE, tables 7 to 10: ADNI, MIMIC, IMDB, MOSI, ENRICO
PRINTED = {
    "transformer": """
        lr                       0.0001 0.0001 0.0001 0.0001 0.0001
        temperature_rw           1      2      2.0    2.0    2.0
        hidden_dim_rw            256    128    256    256    256
        num_layer_rw             2      2      3      3      3
        interaction_loss_weight  0.5    0.01   0.5    0.005  0.5
        train_epochs             50     30     40     30     50
        batch_size               32     32     32     32     32
        num_layers_fus           2      2      2      1      2
        num_heads                4      1      4      1      4
        hidden_dim               256    128    256    256    256
        num_patches              16     8      4      4      8""",
    "switch": """
        lr                       0.0001 0.0001 0.0001 0.0001 0.0001
        temperature_rw           2      2      2.0    2.0    1
        hidden_dim_rw            256    256    256    128    128
        num_layer_rw             2      2      2      1      3
        interaction_loss_weight  0.01   0.5    0.5    0.001  0.01
        train_epochs             30     30     40     50     30
        batch_size               8      64     64     32     8
        num_experts              16     16     16     4      4
        num_layers_fus           2      2      2      1      1
        num_heads                4      4      4      4      2
        hidden_dim               128    256    128    128    128
        num_patches              8      16     4      16     4""",
    "interpretcc": """
        lr                       0.0001 0.0001 0.0001 0.0001 0.0001
        temperature_rw           2      2      2.0    1.5    4.0
        hidden_dim_rw            128    128    256    256    256
        num_layer_rw             2      2      3      2      2
        interaction_loss_weight  0.5    0.1    0.01   0.001  0.5
        tau                      1.0    0.7    1.0    1.0    0.5
        threshold                0.5    0.5    0.6    0.6    0.4
        train_epochs             30     50     40     50     60
        batch_size               32     128    32     32     64
        hidden_dim               128    256    256    128    256
        hard                     1      1      1      1      1""",
    "moe++": """
        lr                       0.0001 0.0001 0.0001 0.0001 0.0001
        temperature_rw           2      1      1.0    2      1
        hidden_dim_rw            256    256    256    128    256
        num_layer_rw             3      2      2      2      2
        interaction_loss_weight  0.5    0.5    0.5    0.001  0.5
        train_epochs             50     30     40     50     50
        batch_size               64     32     32     32     32
        num_experts              8      4      4      8      8
        num_layers_fus           2      2      2      1      2
        num_heads                4      4      4      4      4
        hidden_dim               256    128    256    64     64
        num_patches              8      4      8      4      4""",
}
OURS = {
    "lr": "learning_rate",
    "temperature_rw": "reweighting_temperature",
    "hidden_dim_rw": "reweighting_hidden_size",
    "num_layer_rw": "num_reweighting_layers",
    "interaction_loss_weight": "interaction_loss_weight",
    "train_epochs": "num_epochs",
    "batch_size": "batch_size",
    "num_experts": "num_routed_experts",
    "num_layers_fus": "num_fusion_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "num_patches": "num_patches",
    "tau": "gate_temperature",
    "threshold": "gate_threshold",
    "hard": "hard_gate",
}


@pytest.mark.parametrize("fusion", PRINTED)
@pytest.mark.parametrize("column", range(5))
def test_settings_are_the_printed_ones(fusion, column):
    rows = [line.split() for line in PRINTED[fusion].split("\n")[1:]]
    expected = {OURS[name]: float(values[column]) for name, *values in rows}
    settings = published_settings(DATA_SETS[column], fusion)
    assert settings.pop("fusion") == fusion
    assert settings.pop("dropout") == 0.5
    assert settings == expected
    training = {"learning_rate", "num_epochs", "batch_size"}
    ModelArguments(fusion=fusion, **{name: x for name, x in settings.items() if name not in training})
    TrainingArguments(**{name: settings[name] for name in training})


def test_fusions_without_a_table_have_those_of_mult():
    settings = published_settings("mosi", "late")
    assert settings == {**published_settings("mosi"), "fusion": "late"}


def test_recipes_offer_them():
    presets = {
        name: runpy.run_path(str(ROOT / "recipes" / f"train_{name}.py"))["PAPER"]
        for name in ("mmimdb", "enrico", "mmhs150k", "arrays")
    }
    assert [*presets["enrico"]] == ["paper", "paper-switch", "paper-interpretcc", "paper-moe++"]
    assert presets["enrico"]["paper-switch"] == published_settings("enrico", "switch")
    assert presets["mmimdb"]["paper"] == {**published_settings("mmimdb"), "text_max_length": 512}
    assert presets["mmhs150k"]["paper"] == {**published_settings("mmimdb"), "text_max_length": 77}
    assert all(preset["level"] == "pooled" for preset in presets["arrays"].values())
    assert presets["arrays"]["mosi-moe++"]["replace_non_finite"]
    assert presets["arrays"]["adni"]["num_patches"] == 16
    assert ENCODERS["mmhs150k"] == dict.fromkeys(("image", "text"), "openai/clip-vit-base-patch32")
