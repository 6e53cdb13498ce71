"""
A batch on its way to the experts: checks, missing modalities, the projection to the hidden space, the joint sequence.

Shapes: B samples · M modalities · V views · T features of a sequence (T_m of modality m) · D encoder width · H hidden
width · E experts · P pseudo-patches.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_fl_i2moe import FILLS, FLI2MoEConfig
from .objective import View

# ---- checks


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


def check_tensors(given: Any, argument: str, config: FLI2MoEConfig, complete: bool = False) -> None:
    """Raises `ValueError` unless it is a dictionary of tensors by the model's modalities, if asked for of all."""
    if not isinstance(given, Mapping):
        raise ValueError(f"`{argument}` must be a dictionary, modality → tensor, got {type(given).__name__}.")
    check_names(given, argument, config, complete)
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"`{argument}[{name!r}]` must be a tensor, got {type(x).__name__}: use `torch.as_tensor`.")
        if x.is_complex() or x.layout != torch.strided:
            raise ValueError(f"`{argument}[{name!r}]` must be dense real numbers, got {x.dtype}, {x.layout}.")


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
        ValueError: something is no tensor, a modality is missing or unknown, there is no sample; a width, length or
            mask shape is wrong; with values also a row without a real feature, or a feature that is not finite.
    """
    feature_masks = {} if feature_masks is None else feature_masks
    check_tensors(features, "features", config, complete=True)
    check_tensors(feature_masks, "feature_masks", config)
    first = features[config.modality_order[0]]
    num_samples = len(first) if first.dim() else 0
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


def check_is_whole(is_whole: Any, num_samples: int, config: FLI2MoEConfig) -> None:
    """Raises `ValueError` unless it is a tensor (B, M)."""
    shape = (num_samples, config.num_modalities)
    found = tuple(is_whole.shape) if isinstance(is_whole, torch.Tensor) else type(is_whole).__name__
    if found != shape:
        raise ValueError(f"`is_whole` must be a tensor of shape {shape}, got {found}.")


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
    if x.shape[0] == 0:
        raise ValueError(f"`features[{name!r}]` holds no sample: the batch is empty.")
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
        bad = (~finite.flatten(1).all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"`features[{name!r}]` has NaN or infinite values in rows {bad}.")


# ---- missing modalities


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
            of a mixture has no modality at all.
    """
    if fill not in FILLS:
        raise ValueError(f"`fill_missing` must be one of {', '.join(map(repr, FILLS))}, got {fill!r}.")
    if fill == "mean" and not config.keeps_means:
        raise ValueError('`fill_missing="mean"` needs a model that was trained with `keep_feature_means=True`.')
    check_tensors(features, "features", config)
    if not features:
        raise ValueError("`features` is empty: a sample needs at least one modality.")
    if feature_masks is not None:
        check_tensors(feature_masks, "feature_masks", config)
    lengths = {} if lengths is None else lengths
    if not isinstance(lengths, Mapping):
        raise ValueError(f"`missing_lengths` must be a dictionary, modality → length, got {type(lengths).__name__}.")
    for name, length in lengths.items():
        longest = config.modalities[name]["max_features"] if name in config.modalities else 0
        if not isinstance(length, int) or not 0 < length <= longest:
            raise ValueError(
                f"`missing_lengths[{name!r}]` must lie in 1 … `max_features` of a modality of {config.modality_order}, "
                f"got {length!r}."
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
    is_mixture = config.architecture == "moe"  # a dense model may see a part of what the samples have
    if is_mixture and len(missing) == config.num_modalities and len({len(rows) for rows in missing.values()}) == 1:
        nothing = torch.stack(list(missing.values())).all(dim=0)
        if nothing.any():
            raise ValueError(f"Samples in rows {nothing.nonzero().flatten().tolist()} have no modality at all.")
    return features, masks, missing


def keep_completed(
    keep: dict[str, torch.Tensor],
    features: dict[str, torch.Tensor],
    completed: dict[str, torch.Tensor],
    config: FLI2MoEConfig,
) -> dict[str, torch.Tensor]:
    """`keep` of the `features`, for what [`complete_inputs`] made of them: sequences may have become longer."""
    check_tensors(keep, "keep", config)
    if config.level == "pooled":  # of pseudo-patches, whose number does not change
        return keep
    longer = {name: completed[name].shape[1] - x.shape[1] for name, x in features.items()}
    return {name: F.pad(x, (0, longer.get(name, 0)), value=True) for name, x in keep.items()}


def _fill_rows(
    x: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (B, T, D) and mask with `length` real features in `rows`, longer if need be."""
    padding = max(0, length - x.shape[1])
    x, mask = F.pad(x, (0, 0, 0, padding)), F.pad(mask, (0, padding))
    real = torch.arange(x.shape[1], device=x.device) < length
    return x.masked_fill(rows[:, None, None], 0), mask | (rows.unsqueeze(1) & real)


# ---- the hidden space


class ModalityStem(nn.Module):
    """One modality's way into the hidden space, and its learned positions."""

    feature_mean: torch.Tensor
    """(D,), of the training set, in models that keep it."""

    def __init__(self, config: FLI2MoEConfig, name: str):
        super().__init__()
        modality = config.modalities[name]
        self.pooled = config.level == "pooled"
        self.pooling = modality.get("pooling", "mean")
        self.num_features = config.num_patches if self.pooled else modality["max_features"]
        feature_size = modality["feature_size"]
        self.patch_size = -(-feature_size // config.num_patches) if self.pooled else feature_size
        self.projection = nn.Linear(self.patch_size, config.hidden_size)
        own = (config.num_experts,) if config.position_embeddings == "per_expert" else ()
        self.positions = nn.Parameter(torch.zeros(*own, self.num_features, config.hidden_size))
        if config.keeps_means:
            self.register_buffer("feature_mean", torch.full((feature_size,), torch.nan))

    def forward(self, features: torch.Tensor, feature_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D), or pooled (B, D), → (B, T, H), or (B, P, H)."""
        if self.pooled:
            features = self._patches(self._pool(features, feature_mask))
        return self.projection(features)

    def position_embeddings(self, length: int, experts: list[int] | None) -> torch.Tensor:
        """(T, H), or (E, 1, T, H) where each expert has its own."""
        if self.positions.dim() == 2:
            return self.positions[:length]
        own = self.positions if experts is None else self.positions[experts]
        return own[:, None, :length]

    def project_mean(self) -> torch.Tensor:
        """The training set's mean feature in the hidden space, (1, H) or (P, H)."""
        if not hasattr(self, "feature_mean"):
            raise ValueError("This model keeps no mean features: train it with `keep_feature_means=True`.")
        if self.feature_mean.isnan().any():
            raise ValueError("Mean features are asked for, which are not there: call `set_feature_means` first.")
        mean = self.feature_mean.unsqueeze(0)
        return self.projection(self._patches(mean)[0] if self.pooled else mean)

    def _pool(self, features: torch.Tensor, feature_mask: torch.Tensor | None) -> torch.Tensor:
        if features.dim() == 2:
            return features
        if self.pooling == "cls":
            return features[:, 0]
        if feature_mask is None:
            return features.mean(dim=1)
        weights = feature_mask.to(features.dtype) / feature_mask.sum(dim=1, keepdim=True)
        return torch.bmm(weights.unsqueeze(1), features).squeeze(1)

    def _patches(self, pooled: torch.Tensor) -> torch.Tensor:
        padding = self.num_features * self.patch_size - pooled.shape[-1]
        return F.pad(pooled, (0, padding)).unflatten(-1, (self.num_features, self.patch_size))


# ---- the joint sequence


def join_masks(
    views: list[View], modality_order: list[str], x: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    Args:
        x: the joint sequences (…, V·B, T, H).

    Returns:
        The mask of their real features (V·B, T), `None` where all are, and the readout (V·B, M, T): the weights that
        make a modality's mean, which sum to 1.
    """
    lengths = [views[0][0][name].shape[-2] for name in modality_order]
    num_samples = x.shape[-3] // len(views)
    padded = any(mask is not None for _, masks in views for mask in masks.values())
    feature_mask = x.new_ones(x.shape[-3:-1], dtype=torch.bool)
    if padded:
        for view, (_, masks) in enumerate(views):
            parts = feature_mask[view * num_samples : (view + 1) * num_samples].split(lengths, dim=1)
            for part, name in zip(parts, modality_order, strict=True):
                if masks[name] is not None:
                    part.copy_(masks[name])
    readout = x.new_zeros(x.shape[-3], len(modality_order), sum(lengths))
    start = 0
    for modality, length in enumerate(lengths):
        part = feature_mask[:, start : start + length].to(x.dtype)
        readout[:, modality, start : start + length] = part / part.sum(dim=1, keepdim=True)
        start += length
    return feature_mask if padded else None, readout


def replaced_slices(projected: dict[str, torch.Tensor], modality_order: list[str], replaced: list[int]) -> list[slice]:
    """Where in the joint sequence the view without each of these modalities differs from the full one."""
    lengths = [projected[name].shape[-2] for name in modality_order]
    return [slice(sum(lengths[:index]), sum(lengths[: index + 1])) for index in replaced]
