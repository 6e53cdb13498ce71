"""
Fusions that read one vector of each modality: early fusion, low-rank tensor fusion, InterpretCC.

A modality's vector is the masked mean of its features; in pooled mode it is its pseudo-patches side by side.

Shapes: E experts · N rows (views × samples) · T features of the joint sequence · M modalities · H hidden width ·
D width of a modality's vector · R rank · C classes.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .cpu_training import dropout
from .fusion import Fusion, FusionExtra, GroupedLinear


class VectorFusion(Fusion, ABC):
    """What the fusions of this module share: the modalities' vectors, and a linear head."""

    has_attention = False

    def __init__(self, config: PreTrainedConfig, latent_size: int):
        super().__init__(config)
        self.head = GroupedLinear(config.num_experts, latent_size, config.num_labels)

    @abstractmethod
    def fuse(self, vectors: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        """(E, N, M, D), or (1, N, M, D) where all experts see the same → (E, N, F), never (1, N, F)"""

    def forward(
        self,
        x: torch.Tensor,
        feature_mask: torch.Tensor | None,
        readout: torch.Tensor,
        experts: list[int] | None = None,
        attentions: list[torch.Tensor | None] | None = None,
        replaced: list[slice] | None = None,
    ) -> tuple[torch.Tensor, FusionExtra]:
        """As [`GroupedTransformer.forward`]; there is no attention, and nothing to compute once for all views."""
        x = x if x.dim() == 4 else x.unsqueeze(0)
        if self.config.level == "pooled":
            vectors = x.unflatten(-2, (self.config.num_modalities, -1)).flatten(-2)
        else:
            vectors = torch.matmul(readout.to(x.dtype), x)
        latents = self.fuse(vectors, experts)
        return self.head(latents, experts).transpose(0, 1), FusionExtra(latents)

    def _by_modality(self, linear: GroupedLinear, vectors: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        """A layer of its own for each modality and expert: (E or 1, N, M, in) → (E, M, N, out)."""
        count = self.config.num_modalities
        indexes = list(range(self.config.num_experts)) if experts is None else experts
        rows = vectors.transpose(1, 2).expand(len(indexes), -1, -1, -1).flatten(0, 1)
        groups = None if experts is None else [e * count + m for e in experts for m in range(count)]
        return linear(rows, groups).unflatten(0, (-1, count))


def vector_size(config: PreTrainedConfig) -> int:
    """Width of a modality's vector."""
    return config.hidden_size * (config.num_patches if config.level == "pooled" else 1)


class EarlyFusion(VectorFusion):
    """The modalities side by side before any network sees them, then a multilayer perceptron with L hidden layers."""

    title = "early fusion"

    def __init__(self, config: PreTrainedConfig):
        width = config.intermediate_size or 2 * config.hidden_size
        super().__init__(config, width)
        sizes = [config.num_modalities * vector_size(config)] + [width] * (config.num_fusion_layers - 1)
        self.layers = nn.ModuleList(GroupedLinear(config.num_experts, size, width) for size in sizes)
        self.activation = ACT2FN["gelu"]

    def fuse(self, vectors: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        x = vectors.flatten(-2)
        for layer in self.layers:
            x = dropout(self.activation(layer(x, experts)), self.config.activation_dropout, self.training)
        return x


class LowRankFusion(VectorFusion):
    r"""
    Low-rank multimodal fusion (LMF, arXiv 1806.00064, equation 6): \\(h = \sum_r \prod_m W_m^{(r)} [z_m; 1]\\), what a
    weight tensor of rank R makes of the outer product of all modalities' vectors.
    """

    title = "low-rank fusion"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config, config.hidden_size)
        num_modalities = config.num_modalities
        self.factors = GroupedLinear(
            config.num_experts * num_modalities,
            vector_size(config) + 1,
            config.fusion_rank * config.hidden_size,
            bias=False,
            num_distinct=num_modalities,
        )

    def fuse(self, vectors: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        vectors = torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1)
        factors = self._by_modality(self.factors, vectors, experts)  # (E, M, N, R·H)
        fused = factors.prod(dim=1).unflatten(-1, (self.config.fusion_rank, -1)).sum(dim=-2)
        return dropout(fused, self.config.activation_dropout, self.training)


class InterpretCCFusion(VectorFusion):
    """
    InterpretCC's gated modalities (arXiv 2402.02933, as I²MoE uses it): a small network decides by each modality's
    vector whether it takes part, and what takes part is fused by one hidden layer.

    Training draws the gates: `sigmoid((score + logistic noise) / gate_temperature)`, open above `gate_threshold`; with
    `hard_gate` the forward pass sees 0 or 1 and the gradient is that of the sigmoid (straight-through Gumbel). Outside
    training there is no noise, so a prediction is always the same.
    """

    title = "InterpretCC"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config, config.hidden_size)
        num_groups, count, size = config.num_experts * config.num_modalities, config.num_modalities, vector_size(config)
        self.gate_hidden = GroupedLinear(num_groups, size, config.hidden_size, num_distinct=count)
        self.gate_score = GroupedLinear(num_groups, config.hidden_size, 1, num_distinct=count)
        self.fusion = GroupedLinear(config.num_experts, count * size, config.hidden_size)

    def fuse(self, vectors: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        gated = vectors * self.gates(vectors, experts).to(vectors.dtype)
        hidden = self.fusion(gated.flatten(-2), experts).relu()
        return dropout(hidden, self.config.activation_dropout, self.training)

    def gates(self, vectors: torch.Tensor, experts: list[int] | None = None) -> torch.Tensor:
        """How open the gate of each modality is: (E or 1, N, M, D) → (E, N, M, 1), in [0, 1]."""
        hidden = self._by_modality(self.gate_hidden, vectors, experts).relu()
        scores = self._by_modality(self.gate_score, hidden.transpose(1, 2), experts).transpose(1, 2).float()
        if self.training:
            uniform = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
            scores = scores + uniform.logit()  # the difference of two Gumbel draws
        soft = (scores / self.config.gate_temperature).sigmoid()
        if not self.config.hard_gate:
            return soft
        hard = (soft > self.config.gate_threshold).to(soft.dtype)
        return hard + (soft - soft.detach()) if self.training else hard
