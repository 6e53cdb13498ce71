"""
What an expert is made of: layers that hold E experts as one stack and compute them together.

A grouped layer keeps the weights of all experts in one tensor with E in front, so that one batched product serves all
of them. Tensors that are still the same for every expert have size 1 there and are computed once.

Shapes: E experts · N rows (views × samples) · T features of the joint sequence · M modalities · H hidden width ·
A attention heads · C classes.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cpu_training import dropout, self_attention


@dataclass
class FusionExtra:
    """What a fusion gives beside the experts' logits."""

    latents: torch.Tensor
    """(E, N, F), what the head reads: of every expert, also where they are the same."""

    auxiliary_loss: torch.Tensor | None = None
    """(E,), a loss of the fusion's own, such as the balance of its routers."""

    readings: Any = None
    """Of specialised experts in training, `Readings`."""


@dataclass
class Routing:
    """What routed layers hand on to each other in one pass."""

    is_of: torch.Tensor
    """(N, M, T), true where a token is a real one of the modality."""

    pathway: torch.Tensor | None = None
    """(E, N, T, J), the router's scores in the layer before, where routers ask for them."""

    balances: list[torch.Tensor] = field(default_factory=list)
    """(E,), the balance loss of each layer."""


class GroupedLayerNorm(nn.Module):
    """Scale and shift of E layer normalisations; the normalisation before them has no parameters, see [`normalize`]."""

    def __init__(self, num_groups: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_groups, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_groups, hidden_size))


class GroupedVectors(nn.Module):
    """E sets of K learned vectors, `weight` (E, K, H), drawn from N(0, 1)."""

    def __init__(self, num_groups: int, num_vectors: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_groups, num_vectors, hidden_size))


class GroupedLinear(nn.Module):
    """
    E linear layers, `weight` (E, out, in) and `bias` (E, out).

    With `num_distinct` = K, every expert has K of them, one expert's behind another's, which differ from each other
    where experts start identical.
    """

    def __init__(self, num_groups: int, in_features: int, out_features: int, bias: bool = True, num_distinct: int = 1):
        super().__init__()
        self.num_distinct = num_distinct
        self.weight = nn.Parameter(torch.empty(num_groups, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_groups, out_features)) if bias else None

    def forward(
        self, x: torch.Tensor, groups: list[int] | None = None, norm: GroupedLayerNorm | None = None
    ) -> torch.Tensor:
        """
        Args:
            x: (E, ..., in), or (1, ..., in) when all groups share their input.
            groups: the groups to compute; all if `None`. They replace E in `x` and in the result.
            norm: scale and shift that belong between `x` and this layer. They are folded into the weight, so that
                `x` needs no copy per group; or applied to `x` where every group has its own and that is the cheaper one
                (a weight is float32, and its gradient has to be taken apart again).

        Returns:
            (E, ..., out)
        """
        num_groups = len(self.weight if groups is None else groups)
        if norm is not None and len(x) == num_groups and x.numel() <= 2 * num_groups * self.weight[0].numel():
            scale, shift = _select(norm.weight, groups), _select(norm.bias, groups)
            shape = (len(x), *(1,) * (x.dim() - 2), -1)
            x = torch.addcmul(shift.view(shape).to(x.dtype), x, scale.view(shape).to(x.dtype))
            norm = None
        weight, bias = self.folded(groups, norm)
        _, out_features, in_features = weight.shape
        if x.shape[0] == 1 and num_groups > 1:
            wide = F.linear(x[0], weight.reshape(-1, in_features), None if bias is None else bias.reshape(-1))
            return wide.unflatten(-1, (num_groups, out_features)).movedim(-2, 0)
        rows = x.reshape(num_groups, -1, in_features)
        if bias is None:
            y = torch.bmm(rows, weight.mT)
        else:
            y = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
        return y.view(num_groups, *x.shape[1:-1], out_features)

    def folded(
        self, groups: list[int] | None = None, norm: GroupedLayerNorm | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (E, out, in) and bias (E, out) of the groups, with the scale and shift of `norm` in front."""
        weight, bias = _select(self.weight, groups), _select(self.bias, groups)
        if norm is not None:
            scale, shift = _select(norm.weight, groups), _select(norm.bias, groups)
            shift = torch.bmm(weight, shift.unsqueeze(-1)).squeeze(-1)
            bias = shift if bias is None else bias + shift
            weight = weight * scale.unsqueeze(1)
        return weight, bias


def _select(tensor: torch.Tensor | None, groups: list[int] | None) -> torch.Tensor | None:
    return tensor if groups is None or tensor is None else tensor[groups]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain products. `query`, `key`, `value` are (N, A, T, d), `attention_mask` true where to attend."""
    scores = torch.matmul(query * scaling, key.mT)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    output = torch.matmul(F.dropout(weights, dropout, module.training), value)
    return output.transpose(1, 2), weights


def distinct_features(x: torch.Tensor, replaced: list[slice]) -> torch.Tensor:
    """
    Every feature of the views once: those of the first view, then those that stand in the others instead.

    Args:
        x: (E, V·B, T, H), views first.
        replaced: what differs from the first view in each of the others.

    Returns:
        (E, K, H)
    """
    full, *others = x.unflatten(1, (1 + len(replaced), -1)).unbind(1)
    parts = [full, *(view[:, :, part] for view, part in zip(others, replaced, strict=True))]
    return torch.cat([part.flatten(1, 2) for part in parts], dim=1)


class _InViews(torch.autograd.Function):
    """What was computed of [`distinct_features`], (E, K, H'), in the place of each: (E, V·B, T, H')."""

    @staticmethod
    def forward(ctx, x, length, replaced):
        full, *others = _InViews.parts(x, length, replaced)
        views = x.new_empty(len(x), 1 + len(replaced), *full.shape[1:])
        views.copy_(full.unsqueeze(1))
        for view, part, other in zip(views.unbind(1)[1:], replaced, others, strict=True):
            view[:, :, part] = other
        ctx.length, ctx.replaced, ctx.num_distinct = length, replaced, x.shape[1]
        return views.flatten(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_views):
        first, *views = grad_views.unflatten(1, (1 + len(ctx.replaced), -1)).unbind(1)
        # laid out as the wide product of the experts' common input gave it
        grad = first.new_empty(ctx.num_distinct, len(first), first.shape[-1]).transpose(0, 1)
        full, *others = _InViews.parts(grad, ctx.length, ctx.replaced)
        full.copy_(first)
        for view, part, other in zip(views, ctx.replaced, others, strict=True):
            full[:, :, : part.start] += view[:, :, : part.start]
            full[:, :, part.stop :] += view[:, :, part.stop :]
            other.copy_(view[:, :, part])
        return grad, None, None

    @staticmethod
    def parts(x: torch.Tensor, length: int, replaced: list[slice]) -> list[torch.Tensor]:
        """Views of (E, K, H'): the first view, then what replaces a part of it, each (E, B, T or less, H')."""
        lengths = [length, *(part.stop - part.start for part in replaced)]
        num_samples = x.shape[1] // sum(lengths)
        parts = x.split([num_samples * length for length in lengths], dim=1)
        return [part.unflatten(1, (num_samples, -1)) for part in parts]


class GroupedSelfAttention(nn.Module):
    """Multi-head self-attention of E experts; q, k and v have no bias."""

    def __init__(self, config: PreTrainedConfig, num_groups: int):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.qkv = GroupedLinear(num_groups, config.hidden_size, 3 * config.hidden_size, bias=False)
        self.output = GroupedLinear(num_groups, config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        norm: GroupedLayerNorm,
        experts: list[int] | None,
        replaced: list[slice] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(E, N, T, H) → (E, N, T, H) and, under eager attention, the probabilities (E·N, A, T, T), experts first."""
        if replaced:
            distinct = distinct_features(x, replaced)
            qkv = _InViews.apply(self.qkv(distinct, experts, norm), x.shape[-2], replaced)
        else:
            qkv = self.qkv(x, experts, norm)
        num_experts, num_rows = qkv.shape[:2]
        p = self.config.attention_dropout if self.training else 0.0
        if attention_mask is not None:
            attention_mask = attention_mask.expand(num_experts, -1, -1, -1).flatten(0, 1)  # (E·N, 1 or T, T)
        if self.training and x.device.type == "cpu":
            output = self_attention(qkv.flatten(0, 1), attention_mask, self.num_heads, p)
            return self.output(output.unflatten(0, (num_experts, num_rows)), experts), None
        # experts fold into the rows: (E, N, T, 3·H) → 3 × (E·N, A, T, d)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        if attention_mask is not None:
            attention_mask = attention_mask.unsqueeze(1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=p)
        return self.output(output.flatten(-2).unflatten(0, (num_experts, num_rows)), experts), weights


class GroupedFeedForward(nn.Module):
    """Linear, GELU, linear, for E experts."""

    def __init__(self, config: PreTrainedConfig, num_groups: int):
        super().__init__()
        self.config = config
        intermediate_size = config.intermediate_size or 2 * config.hidden_size
        self.up = GroupedLinear(num_groups, config.hidden_size, intermediate_size)
        self.down = GroupedLinear(num_groups, intermediate_size, config.hidden_size)
        self.activation = ACT2FN["gelu"]

    def forward(self, x: torch.Tensor, norm: GroupedLayerNorm, experts: list[int] | None) -> torch.Tensor:
        hidden = self.activation(self.up(x, experts, norm))
        return self.down(dropout(hidden, self.config.activation_dropout, self.training), experts)


class GroupedTransformerLayer(nn.Module):
    """Pre-norm Transformer layer of E experts; `feed_forward` is a [`GroupedFeedForward`] if not given."""

    def __init__(self, config: PreTrainedConfig, num_groups: int, feed_forward: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.attention_norm = GroupedLayerNorm(num_groups, config.hidden_size)
        self.attention = GroupedSelfAttention(config, num_groups)
        self.feed_forward_norm = GroupedLayerNorm(num_groups, config.hidden_size)
        self.feed_forward = feed_forward or GroupedFeedForward(config, num_groups)

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None,
        experts: list[int] | None,
        replaced: list[slice] | None = None,
        routing: Routing | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(E, N, T, H) → the same, and attention probabilities as [`GroupedSelfAttention`] gives them."""
        update, weights = self.attention(self.normalize(x), attention_mask, self.attention_norm, experts, replaced)
        x = self.after_attention(x, self.dropout(update))
        return x + self.dropout(self.feed(x, experts, routing)), weights

    def feed(self, x: torch.Tensor, experts: list[int] | None, routing: Routing | None) -> torch.Tensor:
        """What the feed-forward network adds to (E, N, T, H)."""
        return self.feed_forward(self.normalize(x), self.feed_forward_norm, experts)

    def after_attention(self, x: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return x + update

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.config.layer_norm_eps)

    def dropout(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.config.residual_dropout, self.training)


class PublishedTransformerLayer(GroupedTransformerLayer):
    """
    The layer as the published I²MoE code computes it, for checkpoints that were trained with it: attention replaces the
    residual stream and is added to itself, `x ← attention(norm(x))`, `x ← x + dropout(x)`.
    """

    def after_attention(self, x: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return update + self.dropout(update)


LAYERS = {"pre_norm": GroupedTransformerLayer, "published": PublishedTransformerLayer}
"""Transformer layers by the `layer_arithmetic` of a configuration."""


class Fusion(nn.Module):
    """Experts as one stack. A subclass is called as [`GroupedTransformer.forward`] is."""

    title: ClassVar[str]
    """What people call it."""

    has_attention: ClassVar[bool] = True
    """Whether it can give attention probabilities."""

    def attends_across(self, expert: int) -> bool:
        """Whether features of different modalities attend to each other in an expert."""
        return self.has_attention

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    def modality_shares(self) -> torch.Tensor:
        """How much of an expert's readout each modality is, (E, M), rows that sum to 1."""
        return torch.full((self.config.num_experts, self.config.num_modalities), 1 / self.config.num_modalities)


class GroupedTransformer(Fusion):
    """
    The experts with Transformer fusion ("MulT" in the papers' tables): L layers over all modalities together, the
    masked mean per modality, one linear head.
    """

    title = "Transformer"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(self.create_layer(index) for index in range(config.num_fusion_layers))
        self.head = GroupedLinear(config.num_experts, config.num_modalities * config.hidden_size, config.num_labels)

    def create_layer(self, index: int) -> GroupedTransformerLayer:
        return LAYERS[self.config.layer_arithmetic](self.config, self.config.num_experts)

    def forward(
        self,
        x: torch.Tensor,
        feature_mask: torch.Tensor | None,
        readout: torch.Tensor,
        experts: list[int] | None = None,
        attentions: list[torch.Tensor | None] | None = None,
        replaced: list[slice] | None = None,
    ) -> tuple[torch.Tensor, FusionExtra]:
        """
        Args:
            x: (N, T, H), the joint sequence, the same for every expert; or (E, N, T, H), one for each.
            feature_mask: (N, T), true where a feature is real; `None` if all are.
            readout: (N, M, T), the weight of each feature in the mean of its modality.
            experts: indexes of the experts to run; all if `None`.
            attentions: takes each layer's attention probabilities, as [`GroupedSelfAttention`] gives them.
            replaced: where the rows of `x` are V views of the same B samples, views first: the features that differ
                from the first view in each of the others. What they have in common is then computed once.

        Returns:
            Logits (N, E, C), and what else there is.
        """
        means, routing = self.means(x, feature_mask, readout, experts, attentions, replaced)
        logits, extra = self.read(means, experts)
        if routing is not None:
            extra.auxiliary_loss = torch.stack(routing.balances).sum(dim=0)
        return logits, extra

    def means(
        self,
        x: torch.Tensor,
        feature_mask: torch.Tensor | None,
        readout: torch.Tensor,
        experts: list[int] | None = None,
        attentions: list[torch.Tensor | None] | None = None,
        replaced: list[slice] | None = None,
    ) -> tuple[torch.Tensor, Routing | None]:
        """What the head reads, (E, N, M, H): each modality's mean behind the last layer. Arguments of [`forward`]."""
        attention_mask = self.attention_mask(feature_mask, readout, experts)
        x, routing = self.for_experts(x, experts), self.start_routing(readout)
        for layer in self.layers:
            x, weights = layer(x, attention_mask, experts, replaced, routing)
            replaced = None  # attention mixes what is replaced into everything
            if attentions is not None:
                attentions.append(weights)
        return torch.matmul(readout.to(x.dtype), x), routing

    def for_experts(self, x: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        """The joint sequence as layers take it, (E, N, T, H), or (1, N, T, H) where all experts read the same."""
        return x if x.dim() == 4 else x.unsqueeze(0)

    def start_routing(self, readout: torch.Tensor) -> Routing | None:
        return None

    def read(self, means: torch.Tensor, experts: list[int] | None) -> tuple[torch.Tensor, FusionExtra]:
        """The head: (E, N, M, H) → as [`forward`]."""
        latents = means.flatten(-2)
        return self.head(latents, experts).transpose(0, 1), FusionExtra(latents)

    def attention_mask(
        self, feature_mask: torch.Tensor | None, readout: torch.Tensor, experts: list[int] | None
    ) -> torch.Tensor | None:
        """True where to attend: (1, N, 1, T), or what broadcasts to (E, N, T, T); `None` if everywhere."""
        return None if feature_mask is None else feature_mask[None, :, None, :]


class LateFusion(GroupedTransformer):
    """
    MulT without attention between modalities. The head is linear in the modalities' means, so its logits are a sum of
    one term for each modality.
    """

    title = "late fusion"

    def attends_across(self, expert: int) -> bool:
        return False

    def attention_mask(
        self, feature_mask: torch.Tensor | None, readout: torch.Tensor, experts: list[int] | None
    ) -> torch.Tensor:
        """True where to attend, (1, N, T, T): inside a modality."""
        return attend_within(readout).unsqueeze(0)


def attend_within(readout: torch.Tensor) -> torch.Tensor:
    """Attention inside each modality: (N, M, T), a feature's weight in its modality's mean, → (N, T, T)."""
    is_of = (readout > 0).to(readout.dtype)
    is_real = is_of.sum(dim=1, keepdim=True) > 0
    # padding attends to all, because kernels cannot attend to nothing
    return (is_of.mT @ is_of > 0) | (is_real & ~is_real.mT)


@torch.no_grad()
def init_grouped_weights(module: nn.Module, identical: bool) -> None:
    """
    Initialises a grouped layer as `nn.Linear` initialises its weight, with zero bias.

    With `identical`, every group gets the same draw. The stack is written as a whole: a view of it would lose the mark
    by which `from_pretrained` knows loaded weights.
    """
    if isinstance(module, GroupedLinear):
        bound = module.weight.shape[-1] ** -0.5
        drawn = torch.empty_like(module.weight[: module.num_distinct] if identical else module.weight)
        drawn.uniform_(-bound, bound)
        init.copy_(module.weight, drawn.repeat(len(module.weight) // len(drawn), 1, 1))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, GroupedLayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, GroupedVectors):
        drawn = torch.empty_like(module.weight[:1] if identical else module.weight).normal_()
        init.copy_(module.weight, drawn.expand_as(module.weight))
