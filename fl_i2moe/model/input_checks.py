"""
What a model's inputs must be like; messages name the modality and the rows.

Shapes: B samples · T features of a sequence · D encoder width.
"""

from collections.abc import Iterable

import torch

from .configuration_fl_i2moe import FLI2MoEConfig


def check_names(given: Iterable[str], argument: str, config: FLI2MoEConfig, complete: bool = False) -> None:
    """
    Raises:
        ValueError: a name is no modality of the model; or, if they must be complete, one is missing.
    """
    order = config.modality_order
    if unknown := set(given) - set(order):
        raise ValueError(f"`{argument}` has unknown modalities {sorted(unknown)}; this model has {order}.")
    if complete and (missing := [name for name in order if name not in given]):
        raise ValueError(f"`{argument}` lacks {missing}; this model needs {order}.")


def check_inputs(
    features: dict[str, torch.Tensor],
    feature_masks: dict[str, torch.Tensor] | None,
    config: FLI2MoEConfig,
    with_values: bool,
) -> dict[str, torch.Tensor | None]:
    """
    Args:
        features, feature_masks: as `FLI2MoEModel.forward` takes them.
        with_values: also check the content, which waits for the device.

    Returns:
        A boolean mask, or `None`, for every modality.

    Raises:
        ValueError: a modality is missing or unknown; a width, length or mask shape is wrong; with values also a row
            without a real feature, or a feature that is not finite.
    """
    feature_masks = feature_masks or {}
    check_names(features, "features", config, complete=True)
    check_names(feature_masks, "feature_masks", config)
    num_samples = features[config.modality_order[0]].shape[0]
    masks = {}
    for name in config.modality_order:
        masks[name] = as_bool(feature_masks.get(name))
        _check_shapes(name, features[name], masks[name], num_samples, config)
        if with_values:
            _check_values(name, features[name], masks[name])
    return masks


def check_mask_shape(argument: str, mask: torch.Tensor, x: torch.Tensor) -> None:
    """Raises `ValueError` unless the mask is (B, T) for an input (…, B, T, H)."""
    if mask.shape != x.shape[-3:-1]:
        raise ValueError(f"`{argument}` must have shape {tuple(x.shape[-3:-1])}, got {tuple(mask.shape)}.")


def as_bool(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.bool()


def _check_shapes(
    name: str, x: torch.Tensor, mask: torch.Tensor | None, num_samples: int, config: FLI2MoEConfig
) -> None:
    modality = config.modalities[name]
    size, longest = modality["feature_size"], modality["max_features"]
    dims = (2, 3) if config.level == "pooled" else (3,)
    if x.dim() not in dims or x.shape[-1] != size:
        raise ValueError(f"`features[{name!r}]` must have shape (B, T, {size}), got {tuple(x.shape)}.")
    if x.shape[0] != num_samples:
        raise ValueError(f"`features[{name!r}]` has {x.shape[0]} samples, the other modalities {num_samples}.")
    if x.dim() == 3 and not 0 < x.shape[1] <= longest:
        raise ValueError(f"`features[{name!r}]` has {x.shape[1]} features a sample; 1 to {longest} are possible.")
    if mask is not None and x.dim() == 2:
        raise ValueError(f"`features[{name!r}]` is pooled already, (B, D): give no mask for it.")
    if mask is not None:
        check_mask_shape(f"feature_masks[{name!r}]", mask, x)


def _check_values(name: str, x: torch.Tensor, mask: torch.Tensor | None) -> None:
    if mask is not None and not (rows := mask.any(dim=1)).all():
        raise ValueError(
            f"`feature_masks[{name!r}]` has no real feature in rows {(~rows).nonzero().flatten().tolist()}; "
            "`fill_missing` says what stands for a missing modality."
        )
    finite = x.isfinite()
    if mask is not None:
        finite = finite | ~mask.unsqueeze(-1)
    if not finite.all():
        rows = (~finite.flatten(1).all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"`features[{name!r}]` has NaN or infinite values in rows {rows}.")
