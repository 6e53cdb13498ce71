"""
The objective of I²MoE (section 3.3): a task loss on the mixture and, per expert, what its role asks of its views.

Shapes: V views (0 is the full input, view 1 + k lacks `perturbed[k]`) · B samples · E experts · M modalities ·
C classes.
"""

import torch
import torch.nn.functional as F

from .configuration_fl_i2moe import FLI2MoEConfig


def task_loss(logits: torch.Tensor, labels: torch.Tensor, config: FLI2MoEConfig) -> torch.Tensor:
    """
    Cross-entropy, binary cross-entropy with logits, or smooth L1, by `config.problem_type`.

    Args:
        logits: (B, C).
        labels: (B,) class indexes; (B, C) multi-hot; (B, C) or, for one target, (B,) real numbers.

    Raises:
        ValueError: when the labels do not fit the logits.
    """
    if config.problem_type == "single_label_classification":
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"Single labels must have shape {tuple(logits.shape[:1])}, got {tuple(labels.shape)}.")
        return F.cross_entropy(logits, labels.long())
    if config.problem_type == "regression" and labels.dim() == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"`labels` of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}.")
    if config.problem_type == "regression":
        return F.smooth_l1_loss(logits, labels.to(logits.dtype))
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def interaction_losses(view_logits: torch.Tensor, perturbed: list[int], config: FLI2MoEConfig) -> torch.Tensor:
    r"""
    The interaction loss of every expert, averaged over the batch.

    With \\(\hat y^{(0)}\\) an expert's logits on the full view and \\(\hat y^{(j)}\\) those without modality j:

    - uniqueness of modality i: mean over j≠i of `TripletMargin(anchor ŷ⁽⁰⁾, positive ŷ⁽ʲ⁾, negative ŷ⁽ⁱ⁾)`;
    - synergy: mean over j of `cos(ŷ⁽⁰⁾, ŷ⁽ʲ⁾)`;
    - redundancy: mean over j of `1 − cos(ŷ⁽⁰⁾, ŷ⁽ʲ⁾)`.

    Regression replaces them by squared errors, see [`_regression_losses`].

    Args:
        view_logits: (V, B, E, C).
        perturbed: the modality that each of the V − 1 views lacks. A modality that is not among them gives its
            uniqueness expert no loss in this step.

    Returns:
        (E,), in the order of `config.expert_names`.

    The `"latents"` ablation gives what the heads read in the place of logits, (V, B, E, F).
    """
    losses = _regression_losses if config.problem_type == "regression" else _classification_losses
    return torch.stack(losses(view_logits, perturbed, config))


def _classification_losses(
    view_logits: torch.Tensor, perturbed: list[int], config: FLI2MoEConfig
) -> list[torch.Tensor]:
    losses = []
    for modality in range(config.num_modalities if config.has_uniqueness else 0):
        full, *without = view_logits[:, :, modality].unbind(0)
        triplets = [
            F.triplet_margin_loss(
                full, without[positive], without[negative], margin=config.triplet_margin, p=2, eps=1e-7
            )
            for positive, negative in _contrasts(modality, perturbed)
        ]
        losses.append(torch.stack(triplets).mean() if triplets else full.sum() * 0)
    cosines = F.cosine_similarity(view_logits[:1, :, -2:], view_logits[1:, :, -2:], dim=-1).mean(dim=(0, 1))  # (2,)
    return [*losses, cosines[0], 1 - cosines[1]]


def _regression_losses(view_logits: torch.Tensor, perturbed: list[int], config: FLI2MoEConfig) -> list[torch.Tensor]:
    """
    Squared errors between the views, per sample: uniqueness `relu(mse(0,j) − mse(0,i) + margin)`, synergy
    `relu(margin − mse(0,j))`, redundancy `mse(0,j)`.

    As published, uniqueness is `mse(0,j) − mse(0,i)`, which has no lower bound, and synergy `mse(0,j)`, which pulls
    the views together against the paper's text.
    """
    bounded = config.regression_interaction_loss == "bounded"
    margin = config.triplet_margin
    errors = (view_logits[1:] - view_logits[:1]).square().mean(dim=-1)  # (V - 1, B, E)
    losses = []
    for modality in range(config.num_modalities if config.has_uniqueness else 0):
        error = errors[:, :, modality]
        gaps = [error[positive] - error[negative] for positive, negative in _contrasts(modality, perturbed)]
        gaps = [F.relu(gap + margin) if bounded else gap for gap in gaps]
        losses.append(torch.stack(gaps).mean() if gaps else error.sum() * 0)
    synergy = F.relu(margin - errors[:, :, -2]) if bounded else errors[:, :, -2]
    return [*losses, synergy.mean(), errors[:, :, -1].mean()]


def _contrasts(modality: int, perturbed: list[int]) -> list[tuple[int, int]]:
    """Positions in `perturbed` of (view that keeps `modality`, view that lacks it)."""
    if modality not in perturbed:
        return []
    negative = perturbed.index(modality)
    return [(position, negative) for position in range(len(perturbed)) if position != negative]
