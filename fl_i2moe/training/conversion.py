"""
Checkpoints of the published I²MoE code (`InteractionMoE` with Transformer fusion) as models of this package.

Its encoders are not part of the model: the converted one takes, for each modality, the P embeddings of width H that the
encoder gave the published model.

Shapes: E experts · M modalities · L layers · P embeddings of a modality · H hidden width · C classes.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..model.configuration_fl_i2moe import FLI2MoEConfig, checked_config
from ..model.modeling_fl_i2moe import FLI2MoEModel

WRAPPER = "ensemble_model"
EXPERT = "interaction_experts.{}.fusion_model"
PARTS = ("weight", "bias")
LAYER = {
    "attention_norm.weight": "norm1.weight",
    "attention_norm.bias": "norm1.bias",
    "attention.output.weight": "attn.proj.weight",
    "attention.output.bias": "attn.proj.bias",
    "feed_forward_norm.weight": "norm2.weight",
    "feed_forward_norm.bias": "norm2.bias",
    "feed_forward.up.weight": "mlp.network.0.weight",
    "feed_forward.up.bias": "mlp.network.0.bias",
    "feed_forward.down.weight": "mlp.network.3.weight",
    "feed_forward.down.bias": "mlp.network.3.bias",
}


def load_i2moe_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Reads the tensors of a published checkpoint: a `state_dict`, or the file that the published training writes, which
    has it under `"ensemble_model"`. No code in the file is run. Raises `ValueError` where the file cannot be read, or
    holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}, or it is no file.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file leads torch.load into errors of every kind
        raise ValueError(
            f"{path} cannot be read as tensors alone. Save the model's `state_dict()` by torch.save or as safetensors "
            "where the published code runs."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get(WRAPPER), Mapping):
        content = content[WRAPPER]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in content.items()
    ):
        raise ValueError(f"{path} holds no `state_dict`: tensors by their names are expected.")
    return dict(content)


def convert_i2moe(
    state_dict: Mapping[str, torch.Tensor],
    modalities: Sequence[str],
    *,
    num_attention_heads: int,
    reweighting_temperature: float = 1.0,
    problem_type: str = "single_label_classification",
    interaction_loss_weight: float = 0.5,
    dropout: float = 0.5,
) -> FLI2MoEModel:
    """
    The model whose logits, weights and (given the same noise) losses are those of the published one. The keywords are
    what a `state_dict` does not hold; the published scripts set them (I²MoE, table 7).

    Args:
        state_dict: of an `InteractionMoE` or `InteractionMoERegression` with Transformer fusion, dense layers.
        modalities: names in the published order.

    Raises:
        ValueError: tensors are missing, left over, of the wrong shape or not finite; the number of modalities is
            another; or an option is wrong.
    """
    config = _read_config(
        state_dict,
        list(modalities),
        num_attention_heads=num_attention_heads,
        reweighting_temperature=reweighting_temperature,
        problem_type=problem_type,
        interaction_loss_weight=interaction_loss_weight,
        **dict.fromkeys(("attention_dropout", "residual_dropout", "activation_dropout"), dropout),
    )
    _check_tensors(state_dict, _expected_shapes(config))
    model = FLI2MoEModel(config)
    model.load_state_dict(_translate(state_dict, config))
    return model.eval()


def _read_config(state_dict: Mapping[str, torch.Tensor], modalities: list[str], **others) -> FLI2MoEConfig:
    """Sizes from the first tensors of each kind; all others are checked against them."""

    def count(pattern: str) -> int:
        return len({found[1] for name in state_dict if (found := re.fullmatch(pattern, name))})

    first = EXPERT.format(0)
    num_experts = count(r"interaction_experts\.(\d+)\..*")
    num_layers = count(rf"{re.escape(first)}\.network\.(\d+)\.norm1\.weight")
    needed = {  # name → number of sizes
        f"{first}.network.0.norm1.weight": 1,
        f"{first}.pos_embed": 3,
        f"{first}.network.0.mlp.network.0.weight": 2,
        f"{first}.network.{num_layers}.fc.weight": 2,
        "reweight.mlp.network.0.weight": 2,
    }
    if any(name not in state_dict for name in needed):
        found = ", ".join(list(state_dict)[:5]) + (f" and {len(state_dict) - 5} more" if len(state_dict) > 5 else "")
        raise ValueError(
            "This is no InteractionMoE with Transformer fusion: names such as "
            f"{first}.network.0.norm1.weight, ….pos_embed, ….network.<layers>.fc.weight and "
            f"reweight.mlp.network.0.weight are expected, found {found or 'nothing'}."
        )
    for name, dims in needed.items():
        if (shape := state_dict[name].shape).numel() == 0 or len(shape) != dims:
            raise ValueError(f"{name} has the shape {tuple(shape)}; {dims} sizes of at least 1 are expected.")
    hidden, positions, up, head, reweighting = (state_dict[name] for name in needed)
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"A modality is named twice: {modalities}.")
    if num_experts != len(modalities) + 2:
        raise ValueError(
            f"The checkpoint has {num_experts} experts, so {num_experts - 2} modalities; {len(modalities)} are named: "
            f"{modalities}."
        )
    length, remainder = divmod(positions.shape[1], len(modalities))
    if remainder:
        raise ValueError(f"{positions.shape[1]} positions cannot be those of {len(modalities)} modalities.")
    return checked_config(
        modalities={name: {"feature_size": len(hidden), "max_features": length} for name in modalities},
        num_labels=len(head),
        hidden_size=len(hidden),
        num_fusion_layers=num_layers,
        intermediate_size=len(up),
        reweighting_hidden_size=len(reweighting),
        num_reweighting_layers=count(r"reweight\.mlp\.network\.(\d+)\.weight"),
        layer_arithmetic="published",
        position_embeddings="per_expert",
        regression_interaction_loss="published",
        **others,
    )


def _expert_names(config: FLI2MoEConfig) -> dict[str, str]:
    """This package's name of a stack of all experts → the published name in each of them."""
    names = {
        f"experts.layers.{i}.{ours}": f"network.{i}.{theirs}"
        for i in range(config.num_fusion_layers)
        for ours, theirs in LAYER.items()
    }
    return names | {f"experts.head.{part}": f"network.{config.num_fusion_layers}.fc.{part}" for part in PARTS}


def _reweighting_names(config: FLI2MoEConfig) -> dict[str, str]:
    """This package's name → the published one, where activation and dropout stand between the linear layers."""
    return {
        f"reweighting.layers.{i}.{part}": f"reweight.mlp.network.{3 * i}.{part}"
        for i in range(config.num_reweighting_layers)
        for part in PARTS
    }


def _expected_shapes(config: FLI2MoEConfig) -> dict[str, tuple[int, ...]]:
    """Published name → shape, as this package's tensors have it."""
    with torch.device("meta"):
        own = {name: tuple(x.shape) for name, x in FLI2MoEModel(config).state_dict().items()}
    hidden, length = config.hidden_size, sum(x["max_features"] for x in config.modalities.values())
    expert = {theirs: own[ours][1:] for ours, theirs in _expert_names(config).items()}
    expert["pos_embed"] = (1, length, hidden)
    for i in range(config.num_fusion_layers):
        expert[f"network.{i}.attn.q.weight"] = (hidden, hidden)
        expert[f"network.{i}.attn.kv.weight"] = (2 * hidden, hidden)
    shapes = {f"{EXPERT.format(e)}.{name}": x for e in range(config.num_experts) for name, x in expert.items()}
    return shapes | {theirs: own[ours] for ours, theirs in _reweighting_names(config).items()}


def _check_tensors(state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in state_dict]
    left_over = [name for name in state_dict if name not in expected]
    wrong = [
        f"{name}: {tuple(state_dict[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    faults = [
        f"{title}:\n" + "\n".join(f"  {name}" for name in names)
        for title, names in (("missing", missing), ("left over", left_over), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise ValueError("The checkpoint does not fit an InteractionMoE with Transformer fusion.\n" + "\n".join(faults))
    if wrong := [name for name, x in state_dict.items() if x.layout != torch.strided or not x.is_floating_point()]:
        first = state_dict[wrong[0]]
        raise ValueError(
            f"{len(wrong)} tensors are no dense floating point numbers, such as {wrong[0]} ({first.dtype}, "
            f"{first.layout})."
        )
    if wrong := [name for name, x in state_dict.items() if not x.isfinite().all()]:
        raise ValueError(f"{len(wrong)} tensors have NaN or infinite values: {', '.join(wrong[:5])} …")


def _translate(given: Mapping[str, torch.Tensor], config: FLI2MoEConfig) -> dict[str, torch.Tensor]:
    """Published names → this package's, one stack for all experts."""

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([given[f"{EXPERT.format(e)}.{name}"] for e in range(config.num_experts)])

    tensors = {ours: stacked(theirs) for ours, theirs in _expert_names(config).items()}
    tensors |= {ours: given[theirs] for ours, theirs in _reweighting_names(config).items()}
    for i in range(config.num_fusion_layers):
        parts = [stacked(f"network.{i}.attn.{name}.weight") for name in ("q", "kv")]
        tensors[f"experts.layers.{i}.attention.qkv.weight"] = torch.cat(parts, dim=1)
    for m, positions in enumerate(stacked("pos_embed").squeeze(1).chunk(config.num_modalities, dim=1)):
        tensors[f"stems.{m}.projection.weight"] = torch.eye(config.hidden_size)
        tensors[f"stems.{m}.projection.bias"] = torch.zeros(config.hidden_size)
        tensors[f"stems.{m}.positions"] = positions
    return tensors
