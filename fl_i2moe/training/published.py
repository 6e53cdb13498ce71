"""
What the papers trained with on each data set: encoders and hyper-parameters.

Hyper-parameters are those of I²MoE (arXiv 2505.19190), tables 7 to 10, and its published code's dropout. Not taken over
are the layers of its encoders, which are trained there and frozen here, and those of its prediction heads, which are
linear here (its appendix F says so, too). FL-I²MoE (arXiv 2603.13326, section 4.1) trains on MM-IMDb and ENRICO with
the same ones, and on MMHS150K with "a comparable configuration": here that of MM-IMDb.
"""

from typing import Any, Literal, get_args

DataSet = Literal["adni", "mimic", "mmimdb", "mosi", "enrico"]
DATA_SETS: tuple[str, ...] = get_args(DataSet)

CLIP, CLIP_32, ROBERTA = "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32", "FacebookAI/roberta-base"
ENCODERS: dict[str, dict[str, str]] = {
    "mmimdb": {"image": CLIP, "text": ROBERTA},
    "enrico": {"image": CLIP},
    "mmhs150k": {"image": CLIP_32, "text": CLIP_32},
}
"""Data set → kind of modality → encoder (FL-I²MoE)."""

TEXT_LENGTHS = {"mmimdb": 512, "mmhs150k": 77}
"""Data set → tokens that its text encoder takes."""

_ALL = {"learning_rate": 1e-4, "dropout": 0.5}
# option → its values in the order of DATA_SETS
_MULT = {  # table 7
    "reweighting_temperature": (1.0, 2.0, 2.0, 2.0, 2.0),
    "reweighting_hidden_size": (256, 128, 256, 256, 256),
    "num_reweighting_layers": (2, 2, 3, 3, 3),
    "interaction_loss_weight": (0.5, 0.01, 0.5, 0.005, 0.5),
    "num_epochs": (50, 30, 40, 30, 50),
    "batch_size": (32, 32, 32, 32, 32),
    "num_fusion_layers": (2, 2, 2, 1, 2),
    "num_attention_heads": (4, 1, 4, 1, 4),
    "hidden_size": (256, 128, 256, 256, 256),
    "num_patches": (16, 8, 4, 4, 8),
}
_SWITCHGATE = {  # table 8
    "reweighting_temperature": (2.0, 2.0, 2.0, 2.0, 1.0),
    "reweighting_hidden_size": (256, 256, 256, 128, 128),
    "num_reweighting_layers": (2, 2, 2, 1, 3),
    "interaction_loss_weight": (0.01, 0.5, 0.5, 0.001, 0.01),
    "num_epochs": (30, 30, 40, 50, 30),
    "batch_size": (8, 64, 64, 32, 8),
    "num_routed_experts": (16, 16, 16, 4, 4),
    "num_fusion_layers": (2, 2, 2, 1, 1),
    "num_attention_heads": (4, 4, 4, 4, 2),
    "hidden_size": (128, 256, 128, 128, 128),
    "num_patches": (8, 16, 4, 16, 4),
}
_INTERPRETCC = {  # table 9
    "reweighting_temperature": (2.0, 2.0, 2.0, 1.5, 4.0),
    "reweighting_hidden_size": (128, 128, 256, 256, 256),
    "num_reweighting_layers": (2, 2, 3, 2, 2),
    "interaction_loss_weight": (0.5, 0.1, 0.01, 0.001, 0.5),
    "gate_temperature": (1.0, 0.7, 1.0, 1.0, 0.5),
    "gate_threshold": (0.5, 0.5, 0.6, 0.6, 0.4),
    "hard_gate": (True,) * 5,
    "num_epochs": (30, 50, 40, 50, 60),
    "batch_size": (32, 128, 32, 32, 64),
    "hidden_size": (128, 256, 256, 128, 256),
}
_MOE_PLUS_PLUS = {  # table 10
    "reweighting_temperature": (2.0, 1.0, 1.0, 2.0, 1.0),
    "reweighting_hidden_size": (256, 256, 256, 128, 256),
    "num_reweighting_layers": (3, 2, 2, 2, 2),
    "interaction_loss_weight": (0.5, 0.5, 0.5, 0.001, 0.5),
    "num_epochs": (50, 30, 40, 50, 50),
    "batch_size": (64, 32, 32, 32, 32),
    "num_routed_experts": (8, 4, 4, 8, 8),
    "num_fusion_layers": (2, 2, 2, 1, 2),
    "num_attention_heads": (4, 4, 4, 4, 4),
    "hidden_size": (256, 128, 256, 64, 64),
    "num_patches": (8, 4, 8, 4, 4),
}
_TABLES = {"transformer": _MULT, "switch": _SWITCHGATE, "interpretcc": _INTERPRETCC, "moe++": _MOE_PLUS_PLUS}


def published_settings(data_set: DataSet, fusion: str = "transformer") -> dict[str, Any]:
    """
    Option → value, for the mixture of one fusion, as in [`ModelArguments`], on one data set. For `early`, `late` and
    `low_rank` none are published: they get those of `transformer` (MulT).
    """
    column = DATA_SETS.index(data_set)
    return {**_ALL, "fusion": fusion, **{name: x[column] for name, x in _TABLES.get(fusion, _MULT).items()}}


def published_presets(data_set: DataSet, name: str = "paper", **others: Any) -> dict[str, dict[str, Any]]:
    """
    Presets of a recipe: `<name>` for MulT (table 7), `<name>-switch`, `<name>-interpretcc` and `<name>-moe++`, with the
    options `others` in all of them.
    """
    return {
        name if fusion == "transformer" else f"{name}-{fusion}": {**published_settings(data_set, fusion), **others}
        for fusion in _TABLES
    }
