"""
How much each expert counts for a sample (I²MoE, section 3.3.1).

Shapes: B samples · M modalities · H hidden width · E experts.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_fl_i2moe import FLI2MoEConfig
from .cpu_training import dropout


class Reweighting(nn.Module):
    """Weights of the experts, per sample from the modalities' means, or one learned vector for all."""

    def __init__(self, config: FLI2MoEConfig):
        super().__init__()
        self.config = config
        if config.reweighting == "global":
            self.global_scores = nn.Parameter(torch.zeros(config.num_experts))
            return
        sizes = [
            config.num_modalities * config.hidden_size,
            *[config.reweighting_hidden_size] * (config.num_reweighting_layers - 1),
            config.num_experts,
        ]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, means: torch.Tensor) -> torch.Tensor:
        """(B, M, H) → (B, E), rows that sum to 1."""
        if self.config.reweighting == "global":
            scores = self.global_scores.expand(means.shape[0], -1)
        else:
            scores = means.flatten(1)
            for layer in self.layers[:-1]:
                scores = dropout(F.relu(layer(scores)), self.config.reweighting_dropout, self.training)
            scores = self.layers[-1](scores)
        return (scores.float() / self.config.reweighting_temperature).softmax(dim=-1)
