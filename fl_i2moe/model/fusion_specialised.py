"""Experts that differ in what they see, for the specialised objective."""

import math
from dataclasses import dataclass

import torch

from .configuration_fl_i2moe import FLI2MoEConfig
from .fusion import FusionExtra, GroupedLinear, GroupedTransformer, attend_within


@dataclass
class Readings:
    """What the specialised objective asks beside the experts' logits."""

    redundancy: torch.Tensor
    """(N, M, C), what the redundancy expert reads in each modality."""

    alone: torch.Tensor
    """(N, M, C), what each modality tells of the label by itself, read from its uniqueness expert's means."""

    together: torch.Tensor
    """(N, C), what all modalities tell of the label, read from the synergy expert's means."""


class SpecialisedTransformer(GroupedTransformer):
    """
    MulT whose experts differ in what they see: a uniqueness expert attends to and reads its own modality alone; the
    synergy expert all of them; the redundancy expert reads each modality alone and says what any of its readings says,
    see [`either`].
    """

    def __init__(self, config: FLI2MoEConfig):
        super().__init__(config)
        # only training asks for them
        self.alone = GroupedLinear(config.num_modalities, config.hidden_size, config.num_labels)
        self.together = GroupedLinear(1, config.num_modalities * config.hidden_size, config.num_labels)

    def modality_shares(self) -> torch.Tensor:
        shares = super().modality_shares()
        shares[: self.config.num_modalities] = torch.eye(self.config.num_modalities)
        return shares

    def attention_mask(
        self, feature_mask: torch.Tensor | None, readout: torch.Tensor, experts: list[int] | None
    ) -> torch.Tensor:
        """True where to attend, (E, N, T, T): only synergy looks across modalities."""
        own = attend_within(readout)
        everything = ((readout > 0).any(dim=1, keepdim=True)).expand_as(own)
        synergy = self.config.num_modalities
        indexes = range(self.config.num_experts) if experts is None else experts
        return torch.stack([everything if expert == synergy else own for expert in indexes])

    def read(self, means: torch.Tensor, experts: list[int] | None) -> tuple[torch.Tensor, FusionExtra]:
        num_modalities = self.config.num_modalities
        indexes = list(range(self.config.num_experts)) if experts is None else experts
        joint, extra = super().read(means, experts)
        only = torch.eye(num_modalities, dtype=means.dtype, device=means.device).unsqueeze(-1)
        readings = self.head((means.unsqueeze(2) * only).flatten(-2), experts)  # (E, N, M, C)
        logits = list(joint.unbind(1))
        for place, expert in enumerate(indexes):
            if expert < num_modalities:
                logits[place] = readings[place, :, expert]
            elif expert > num_modalities:
                logits[place] = either(readings[place], self.config)
        if experts is None:
            own_means = means[:num_modalities].diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (M, N, H)
            synergy_means = means[num_modalities : num_modalities + 1].flatten(-2)
            extra.readings = Readings(
                readings[-1], self.alone(own_means).transpose(0, 1), self.together(synergy_means)[0]
            )
        return torch.stack(logits, dim=1), extra


def either(readings: torch.Tensor, config: FLI2MoEConfig) -> torch.Tensor:
    r"""
    What any of the readings (N, M, C) says, (N, C): a soft "or", \\(E (\log \sum_m e^{z_m / E} - \log M)\\), so that
    one modality suffices; of real numbers their mean. Readings that agree are left as they are (of single labels, but
    for their mean over the classes).

    The unit is an expert's contribution to the mixture, a logit divided by E.
    """
    if config.problem_type == "regression":
        return readings.mean(dim=1)
    readings = without_constant(readings, config)
    softened = (readings.float() / config.num_experts).logsumexp(dim=1) - math.log(readings.shape[1])
    return (config.num_experts * softened).to(readings.dtype)


def without_constant(logits: torch.Tensor, config: FLI2MoEConfig) -> torch.Tensor:
    """Logits (…, C) of single labels less their mean over the classes, which says nothing and which nothing fits."""
    if config.problem_type != "single_label_classification":
        return logits
    return logits - logits.mean(dim=-1, keepdim=True)
