"""
Samples that lack a modality: which they are, and inputs of full shape in which something can stand for it.

Shapes: B samples · T features of a sequence · D encoder width.
"""

import torch
import torch.nn.functional as F

from .configuration_fl_i2moe import FLI2MoEConfig

FILLS = ("random", "zero", "mean")


def complete_inputs(
    features: dict[str, torch.Tensor],
    feature_masks: dict[str, torch.Tensor] | None,
    fill: str,
    lengths: dict[str, int] | None,
    config: FLI2MoEConfig,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    Gives missing modalities a place in the inputs.

    A sample lacks a modality where its row of the mask is false throughout, or, of a pooled vector (B, D), NaN
    throughout; all samples lack a modality that is not in `features`.

    Args:
        lengths: modality → features that a missing sequence gets; `max_features` if not given.

    Returns:
        Features and masks as [`FLI2MoEModel.forward`] takes them, zeros where something is missing; and modality →
        (B,), true for the samples that lack it, of the modalities that any sample lacks.

    Raises:
        ValueError: the fill is unknown or needs means that the model does not keep, a length is impossible, or a sample
            has no modality at all.
    """
    if fill not in FILLS:
        raise ValueError(f"`fill_missing` must be one of {', '.join(map(repr, FILLS))}, got {fill!r}.")
    if fill == "mean" and not config.keeps_means:
        raise ValueError('`fill_missing="mean"` needs a model that was trained with `keep_feature_means=True`.')
    if not features:
        raise ValueError("`features` is empty: a sample needs at least one modality.")
    lengths = lengths or {}
    for name, length in lengths.items():
        if name not in config.modalities or not 0 < length <= config.modalities[name]["max_features"]:
            raise ValueError(
                f"`missing_lengths[{name!r}]` must lie in 1 … `max_features` of a modality of {config.modality_order}, "
                f"got {length}."
            )
    features, masks, missing = dict(features), dict(feature_masks or {}), {}
    some = next(iter(features.values()))
    for name in config.modality_order:
        modality = config.modalities[name]
        length = lengths.get(name, modality["max_features"])
        if name not in features:
            features[name] = some.new_zeros(len(some), length, modality["feature_size"])
            masks[name] = some.new_ones(len(some), length, dtype=torch.bool)
            missing[name] = masks[name][:, 0]
        elif name in masks and not (there := masks[name].bool().any(dim=1)).all():
            features[name], masks[name] = _fill_rows(features[name], masks[name].bool(), ~there, length)
            missing[name] = ~there
        elif features[name].dim() == 2 and (lacks := features[name].isnan().all(dim=1)).any():
            features[name] = features[name].masked_fill(lacks.unsqueeze(1), 0)
            missing[name] = lacks
    if len(missing) == config.num_modalities:
        nothing = torch.stack(list(missing.values())).all(dim=0)
        if nothing.any():
            raise ValueError(f"Samples in rows {nothing.nonzero().flatten().tolist()} have no modality at all.")
    return features, masks, missing


def _fill_rows(
    x: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (B, T, D) and mask with `length` real features in `rows`, longer if need be."""
    padding = max(0, length - x.shape[1])
    x, mask = F.pad(x, (0, 0, 0, padding)), F.pad(mask, (0, padding))
    real = torch.arange(x.shape[1], device=x.device) < length
    return x.masked_fill(rows[:, None, None], 0), mask | (rows.unsqueeze(1) & real)
