"""
The specialised objective: experts that are what their names say, by what they can see and by what is left to explain.

A uniqueness expert reads its own modality alone. The redundancy expert reads each modality alone and says only what all
readings agree on. The synergy expert reads everything together. They are fitted in the order redundancy, uniqueness,
synergy, each to what the earlier ones leave unexplained, and pay for what they say: so the simplest expert that
suffices for a label carries it.

Shapes: B samples · E experts · M modalities · C classes.
"""

import torch

from .configuration_fl_i2moe import FLI2MoEConfig
from .fusion import agreement
from .objective import task_loss


def specialised_losses(
    expert_logits: torch.Tensor, readings: torch.Tensor, labels: torch.Tensor, config: FLI2MoEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    With \\(c_e\\) an expert's contribution, `expert_logits / E`, whose sum is the mixture under equal weights:

    - redundancy: task loss of \\(c_r\\), and of each reading;
    - uniqueness: task loss of \\(\bar c_r + \sum_i c_i\\); its interaction loss is the size of what its reading
      shares with the others' and of what it says;
    - synergy: task loss of \\(\bar c_r + \sum_i \bar c_i + c_s\\); its interaction loss is the size of \\(c_s\\).

    A bar stands for a constant, which sends no gradient back.

    Args:
        expert_logits: (B, E, C).
        readings: (B, M, C), what the redundancy expert reads in each modality.
        labels: as for [`task_loss`].

    Returns:
        Task losses and interaction losses of the experts, (E,) each, in the order of `config.expert_names`.
    """
    num_modalities = config.num_modalities
    contributions = expert_logits / config.num_experts
    unique, synergy, redundancy = contributions[:, :num_modalities], contributions[:, -2], contributions[:, -1]
    alone = [task_loss(reading, labels, config) for reading in readings.unbind(1)]
    explained = redundancy.detach()
    fitted_redundancy = task_loss(redundancy, labels, config) + torch.stack(alone).mean()
    fitted_unique = task_loss(explained + unique.sum(dim=1), labels, config)
    explained = explained + unique.detach().sum(dim=1)
    fitted_synergy = task_loss(explained + synergy, labels, config)
    task = torch.stack([fitted_unique / num_modalities] * num_modalities + [fitted_synergy, fitted_redundancy])

    shared = agreement(unique).abs().mean()
    sizes = unique.square().mean(dim=(0, 2))
    none = torch.zeros_like(shared)
    return task, torch.stack([*(shared + size for size in sizes), synergy.square().mean(), none])
