"""
The specialised objective: experts that are what their names say, by what they can see and by what is left to explain.

A uniqueness expert reads its own modality alone. The redundancy expert reads each modality alone and learns from each
what the *others* tell of the label. The synergy expert reads everything together. They are fitted in the order
redundancy, uniqueness, synergy, each to what the earlier ones leave unexplained, and two penalties keep an expert from
saying what an earlier one says: uniqueness experts may not agree, and what synergy says must average out when a
modality is exchanged.

Shapes: B samples · E experts · M modalities · C classes.
"""

import torch
import torch.nn.functional as F

from .configuration_fl_i2moe import FLI2MoEConfig
from .objective import task_loss


def specialised_losses(
    expert_logits: torch.Tensor,
    readings: torch.Tensor,
    alone: torch.Tensor,
    exchanged: torch.Tensor,
    labels: torch.Tensor,
    config: FLI2MoEConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    With \\(c_e\\) an expert's contribution, `expert_logits / E`, whose sum is the mixture under equal weights, and a
    bar over what sends no gradient back, the task losses are

    - redundancy: how far each reading, as a contribution, is from what every other modality tells by itself, for which
      that modality is fitted to the label;
    - uniqueness: the task loss of \\(\bar c_r + \sum_i c_i\\);
    - synergy: the task loss of \\(\bar c_r + \sum_i \bar c_i + c_s\\),

    and the interaction losses

    - uniqueness: the size of what all \\(c_i\\) agree on, which is redundancy's to say;
    - synergy: the sum over m of \\(\max(0, \mathrm{mean}_B(c_s \cdot c_s^{(m)}))\\), where modality m of
      \\(c_s^{(m)}\\) comes from another sample: an estimate of the square of what \\(c_s\\) says on average, given the
      other modalities, which is theirs to say. An exclusive-or has none. (A functional analysis of variance calls such
      a term a pure interaction.)

    Args:
        expert_logits: (B, E, C).
        readings: (B, M, C), what the redundancy expert reads in each modality; their mean are its logits.
        alone: (B, M, C), logits of the label by each modality itself.
        exchanged: (M, B, C), the synergy expert's logits with modality m exchanged between the samples.
        labels: as for [`task_loss`].

    Returns:
        Task losses and interaction losses of the experts, (E,) each, in the order of `config.expert_names`.
    """
    num_modalities = config.num_modalities
    contributions = expert_logits / config.num_experts
    unique, synergy, redundancy = contributions[:, :num_modalities], contributions[:, -2], contributions[:, -1]

    told = torch.stack([task_loss(x, labels, config) for x in alone.unbind(1)]).mean()
    distances = [
        _distance(readings[:, i] / config.num_experts, alone[:, j].detach(), config)
        for i in range(num_modalities)
        for j in range(num_modalities)
        if i != j
    ]
    fitted_redundancy = told + torch.stack(distances).mean()
    explained = redundancy.detach()
    fitted_unique = task_loss(explained + unique.sum(dim=1), labels, config)
    explained = explained + unique.detach().sum(dim=1)
    fitted_synergy = task_loss(explained + synergy, labels, config)
    task = torch.stack([fitted_unique / num_modalities] * num_modalities + [fitted_synergy, fitted_redundancy])

    shared = agreement(unique).abs().mean()
    averages = (synergy * exchanged / config.num_experts).mean(dim=1)  # (M, C)
    not_pure = averages.clamp(min=0).mean(dim=1).sum()
    return task, torch.stack([*[shared] * num_modalities, not_pure, torch.zeros_like(shared)])


def agreement(said: torch.Tensor) -> torch.Tensor:
    """What all of (B, M, C) say, (B, C): the smallest of them in size where they have one sign, else 0."""
    return said.amin(dim=1).clamp(min=0) + said.amax(dim=1).clamp(max=0)


def _distance(logits: torch.Tensor, target_logits: torch.Tensor, config: FLI2MoEConfig) -> torch.Tensor:
    """The task loss of (B, C) where the label is a prediction."""
    match config.problem_type:
        case "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, target_logits.sigmoid())
        case "single_label_classification":
            return F.cross_entropy(logits, target_logits.softmax(dim=-1))
        case _:
            return F.smooth_l1_loss(logits, target_logits)
