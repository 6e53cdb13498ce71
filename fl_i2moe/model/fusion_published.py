"""The Transformer layer as the published I²MoE code computes it, for checkpoints that were trained with it."""

import torch

from .cpu_training import dropout
from .fusion import GroupedTransformer, GroupedTransformerLayer


class PublishedTransformerLayer(GroupedTransformerLayer):
    """
    Attention replaces the residual stream and is added to itself: `x ← attention(norm(x))`, `x ← x + dropout(x)`, then
    the feed-forward layer with its skip as usual.
    """

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        experts: list[int] | None,
        replaced: list[slice] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        p = self.config.residual_dropout
        update, weights = self.attention(self.normalize(x), attention_mask, self.attention_norm, experts, replaced)
        update = dropout(update, p, self.training)
        x = update + dropout(update, p, self.training)
        update = self.feed_forward(self.normalize(x), self.feed_forward_norm, experts)
        return x + dropout(update, p, self.training), weights


class PublishedTransformer(GroupedTransformer):
    """Transformer fusion with `layer_arithmetic="published"`."""

    layer_class = PublishedTransformerLayer
