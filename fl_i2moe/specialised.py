"""
The specialised objective: experts that are what their names say, by what they can see and by what is left to explain.

A uniqueness expert reads its own modality alone. The redundancy expert reads each modality alone and says only what all
readings agree on. The synergy expert reads everything together. They are fitted in the order redundancy, uniqueness,
synergy, each to what the earlier ones leave unexplained. Two penalties keep an expert from saying what an earlier one
says: uniqueness experts may not agree, and what synergy says must average out when either modality is exchanged.

Shapes: B samples · E experts · M modalities · C classes.
"""

import torch

from .configuration_fl_i2moe import FLI2MoEConfig
from .fusion import agreement
from .objective import task_loss


def specialised_losses(
    expert_logits: torch.Tensor,
    readings: torch.Tensor,
    exchanged: torch.Tensor,
    labels: torch.Tensor,
    config: FLI2MoEConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    With \\(c_e\\) an expert's contribution, `expert_logits / E`, whose sum is the mixture under equal weights, and a
    bar over what sends no gradient back, the task losses are those of

    - redundancy: \\(c_r\\), and each reading by itself;
    - uniqueness: \\(\bar c_r + \sum_i c_i\\);
    - synergy: \\(\bar c_r + \sum_i \bar c_i + c_s\\),

    and the interaction losses

    - uniqueness: the size of what all \\(c_i\\) agree on, which is redundancy's to say;
    - synergy: the sum over m of \\(\max(0, \mathrm{mean}_B(c_s \cdot c_s^{(m)}))\\), where modality m of
      \\(c_s^{(m)}\\) comes from another sample: an estimate of the square of what \\(c_s\\) says on average, given the
      other modalities, which is theirs to say. An exclusive-or has none. (A functional analysis of variance calls such
      a term a pure interaction.)

    Args:
        expert_logits: (B, E, C).
        readings: (B, M, C), what the redundancy expert reads in each modality.
        exchanged: (M, B, C), the synergy expert's logits with modality m exchanged between the samples.
        labels: as for [`task_loss`].

    Returns:
        Task losses and interaction losses of the experts, (E,) each, in the order of `config.expert_names`.
    """
    num_modalities = config.num_modalities
    contributions = expert_logits / config.num_experts
    unique, synergy, redundancy = contributions[:, :num_modalities], contributions[:, -2], contributions[:, -1]
    alone = [task_loss(reading / config.num_experts, labels, config) for reading in readings.unbind(1)]
    fitted_redundancy = task_loss(redundancy, labels, config) + torch.stack(alone).mean()
    explained = redundancy.detach()
    fitted_unique = task_loss(explained + unique.sum(dim=1), labels, config)
    explained = explained + unique.detach().sum(dim=1)
    fitted_synergy = task_loss(explained + synergy, labels, config)
    task = torch.stack([fitted_unique / num_modalities] * num_modalities + [fitted_synergy, fitted_redundancy])

    shared = agreement(unique).abs().mean()
    averages = (synergy * exchanged / config.num_experts).mean(dim=1)  # (M, C)
    not_pure = averages.clamp(min=0).mean(dim=1).sum()
    return task, torch.stack([*[shared] * num_modalities, not_pure, torch.zeros_like(shared)])
