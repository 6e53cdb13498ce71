"""
Views of a batch as one joint sequence, which every expert sees: what of it is real, and what a modality's mean is.

Shapes: B samples · M modalities · V views · T features of the joint sequence, T_m of modality m · H hidden width.
"""

import torch

View = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]
"""Modality → projected features (…, B, T_m, H), and → mask (B, T_m) of the real ones, `None` where all are."""


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


def thin(
    projected: dict[str, torch.Tensor], modality_order: list[str], probability: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Zeroes features at random: with this probability a share of a modality's, which is drawn from U(0, 1).

    Args:
        projected: modality → (B, T_m, H).

    Returns:
        The same, thinned; and what was left whole, (B, M).
    """
    thinned, is_whole = {}, []
    for name in modality_order:
        x = projected[name]
        whole = torch.rand(x.shape[0], device=x.device) >= probability
        share = torch.rand(x.shape[0], 1, device=x.device)
        keep = (torch.rand(x.shape[:2], device=x.device) >= share) | whole.unsqueeze(1)
        thinned[name] = x * keep.unsqueeze(-1).to(x.dtype)
        is_whole.append(whole)
    return thinned, torch.stack(is_whole, dim=1)
