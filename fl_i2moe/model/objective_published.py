"""
The objective of I²MoE (section 3.3): experts that differ in how their answers change when a modality is replaced.

Shapes: V views (0 is the full input, view 1 + k lacks `replaced[k]`) · B samples · E experts · M modalities · C
classes.
"""

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from .objective import Objective, Step, Term, View, ViewedModel


class PublishedObjective(Objective):
    """Every expert is run on the full input and on views in which one modality is replaced."""

    def views(self, model: ViewedModel, full: View) -> tuple[list[int], list[View]]:
        count, wanted = self.config.num_modalities, self.config.num_perturbed_views
        replaced = list(range(count))
        if wanted not in (None, count):
            replaced = sorted(torch.randperm(count)[:wanted].tolist())
        return replaced, [model.without(index, full, self.config.perturbation) for index in replaced]

    def terms(self, model: ViewedModel, step: Step) -> list[Term]:
        compared = step.view_logits
        if self.config.interaction_loss_on == "latents":
            compared = step.extra.latents.float().transpose(0, 1).unflatten(0, compared.shape[:2])
        losses = interaction_losses(compared, step.replaced, self.config)
        total = self.config.interaction_loss_weight * losses.mean()
        return [Term(total, self.by_expert("interaction_loss", losses))]


def interaction_losses(view_logits: torch.Tensor, replaced: list[int], config: PreTrainedConfig) -> torch.Tensor:
    r"""
    The interaction loss of every expert, averaged over the batch.

    With \\(\hat y^{(0)}\\) an expert's logits on the full view and \\(\hat y^{(j)}\\) those without modality j:

    - uniqueness of modality i: mean over j≠i of `TripletMargin(anchor ŷ⁽⁰⁾, positive ŷ⁽ʲ⁾, negative ŷ⁽ⁱ⁾)`;
    - synergy: mean over j of `cos(ŷ⁽⁰⁾, ŷ⁽ʲ⁾)`;
    - redundancy: mean over j of `1 − cos(ŷ⁽⁰⁾, ŷ⁽ʲ⁾)`.

    Regression replaces them by squared errors, see [`_regression_losses`].

    Args:
        view_logits: (V, B, E, C); in the `"latents"` ablation what the heads read, (V, B, E, F).
        replaced: the modality that each of the V − 1 views lacks. A modality that is not among them gives its
            uniqueness expert no loss in this step.

    Returns:
        (E,), in the order of `config.expert_names`.
    """
    losses = _regression_losses if config.problem_type == "regression" else _classification_losses
    return torch.stack(losses(view_logits, replaced, config))


def _classification_losses(
    view_logits: torch.Tensor, replaced: list[int], config: PreTrainedConfig
) -> list[torch.Tensor]:
    losses = []
    for modality in range(config.num_modalities if config.has_uniqueness else 0):
        full, *without = view_logits[:, :, modality].unbind(0)
        triplets = [
            F.triplet_margin_loss(
                full, without[positive], without[negative], margin=config.triplet_margin, p=2, eps=1e-7
            )
            for positive, negative in _contrasts(modality, replaced)
        ]
        losses.append(torch.stack(triplets).mean() if triplets else full.sum() * 0)
    cosines = F.cosine_similarity(view_logits[:1, :, -2:], view_logits[1:, :, -2:], dim=-1).mean(dim=(0, 1))  # (2,)
    return [*losses, cosines[0], 1 - cosines[1]]


def _regression_losses(view_logits: torch.Tensor, replaced: list[int], config: PreTrainedConfig) -> list[torch.Tensor]:
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
        gaps = [error[positive] - error[negative] for positive, negative in _contrasts(modality, replaced)]
        gaps = [F.relu(gap + margin) if bounded else gap for gap in gaps]
        losses.append(torch.stack(gaps).mean() if gaps else error.sum() * 0)
    synergy = F.relu(margin - errors[:, :, -2]) if bounded else errors[:, :, -2]
    return [*losses, synergy.mean(), errors[:, :, -1].mean()]


def _contrasts(modality: int, replaced: list[int]) -> list[tuple[int, int]]:
    """Positions in `replaced` of (view that keeps `modality`, view that lacks it)."""
    if modality not in replaced:
        return []
    negative = replaced.index(modality)
    return [(position, negative) for position in range(len(replaced)) if position != negative]
