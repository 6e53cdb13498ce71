"""
A modality's way into the hidden space.

Shapes: B samples · T features of a sequence · D encoder width · H hidden width · E experts · P pseudo-patches.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_fl_i2moe import FLI2MoEConfig


class ModalityStem(nn.Module):
    """One modality's way into the hidden space, and its learned positions."""

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
