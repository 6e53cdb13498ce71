"""Late fusion: each modality is read by itself, and the decisions are added up."""

import torch

from .fusion import GroupedTransformer, attend_within


class LateFusion(GroupedTransformer):
    """
    MulT without attention between modalities. The head is linear in the modalities' means, so its logits are a sum of
    one term for each modality.
    """

    def attention_mask(
        self, feature_mask: torch.Tensor | None, readout: torch.Tensor, experts: list[int] | None
    ) -> torch.Tensor:
        """True where to attend, (1, N, T, T): inside a modality."""
        return attend_within(readout).unsqueeze(0)
