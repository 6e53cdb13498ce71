"""Late fusion: each modality is read by itself, and the decisions are added up."""

import torch

from .fusion import GroupedTransformer


class LateFusion(GroupedTransformer):
    """
    MulT without attention between modalities. The head is linear in the modalities' means, so its logits are a sum of
    one term for each modality.
    """

    def attention_mask(
        self, feature_mask: torch.Tensor | None, readout: torch.Tensor, experts: list[int] | None
    ) -> torch.Tensor:
        """True where to attend, (1, N, T, T): inside a modality."""
        is_of = (readout > 0).to(readout.dtype)  # (N, M, T)
        is_real = is_of.sum(dim=1, keepdim=True) > 0
        # padding attends to all, for the sake of kernels that cannot attend to nothing
        return ((is_of.mT @ is_of > 0) | (is_real & ~is_real.mT)).unsqueeze(0)
