"""
Transformer experts whose feed-forward layers are sparse mixtures themselves: Switch Transformer and MoE++.

A router sends each token to one or two of K networks. What a token meets depends on its own sample alone: neither on
the other samples of a batch, nor on padding.

Shapes: E experts · N rows (views × samples) · T features of the joint sequence, here called tokens · M modalities ·
H hidden width · K feed-forward networks of a layer · J choices of a router (K and, in MoE++, those without a network) ·
C constant choices.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .cpu_training import dropout
from .fusion import GroupedLinear, GroupedTransformer, GroupedTransformerLayer, GroupedVectors, Routing, _select

ROWS = 64
"""A network's tokens are padded to a multiple of this."""


class RoutedNetworks(nn.Module):
    """K feed-forward networks for each of E experts; a token passes through the one that it is sent to."""

    def __init__(self, config: PreTrainedConfig, num_groups: int):
        super().__init__()
        self.config = config
        self.num_networks = config.num_routed_experts
        intermediate_size = config.intermediate_size or 2 * config.hidden_size
        num_linear, distinct = num_groups * self.num_networks, self.num_networks
        self.up = GroupedLinear(num_linear, config.hidden_size, intermediate_size, num_distinct=distinct)
        self.down = GroupedLinear(num_linear, intermediate_size, config.hidden_size, num_distinct=distinct)
        self.activation = ACT2FN["gelu"]

    def forward(self, x: torch.Tensor, choice: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        """(E, N, T, H) and the network of each token, (E, N, T), 0 … K − 1 → (E, N, T, H); zeros for another choice."""
        shape, count = x.shape, self.num_networks
        x, choice = x.flatten(1, 2), choice.flatten(1).clamp(max=count)
        sent = F.one_hot(choice, count + 1)
        slot = sent.cumsum(dim=1).gather(-1, choice.unsqueeze(-1)).squeeze(-1) - 1  # (E, N·T)
        # each network's tokens side by side, in rows for as many as the busiest one has: rounded up, since a process
        # keeps memory for every size that it has seen
        busiest = int(sent[:, :, :count].sum(dim=1).max())
        length = min(-(-busiest // ROWS) * ROWS, x.shape[1])
        num_rows = len(x) * count * length
        network = choice + count * torch.arange(len(x), device=x.device).unsqueeze(1)
        place = torch.where(choice < count, network * length + slot, num_rows).flatten()  # behind the rows: nowhere
        rows = x.new_zeros(num_rows + 1, x.shape[-1]).index_copy(0, place, x.flatten(0, 1))
        groups = None if experts is None else [e * count + k for e in experts for k in range(count)]
        hidden = self.activation(self.up(rows[:-1].view(len(x) * count, length, x.shape[-1]), groups))
        rows = self.down(dropout(hidden, self.config.activation_dropout, self.training), groups).flatten(0, 1)
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[-1])])
        return rows.index_select(0, place).view(shape)


class SwitchFeedForward(nn.Module):
    """
    Switch Transformer's layer (arXiv 2101.03961): the router's first choice, times its probability.

    A network takes at most ⌈capacity_factor · tokens / K⌉ tokens of each modality of a sample, the first ones; the
    others pass by the layer. (The paper counts over a whole batch, which makes a prediction depend on its neighbours.)
    """

    def __init__(self, config: PreTrainedConfig, num_groups: int, is_first: bool):
        super().__init__()
        self.config = config
        self.router = GroupedLinear(num_groups, config.hidden_size, config.num_routed_experts, bias=False)
        self.networks = RoutedNetworks(config, num_groups)

    def forward(
        self, x: torch.Tensor, is_of: torch.Tensor, experts: list[int] | None, pathway: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """
        Args:
            x: (E, N, T, H), normalised.
            is_of: (N, M, T), true where a token is a real one of the modality.
            pathway: unused, see [`MoEPlusPlusFeedForward`].

        Returns:
            The update (E, N, T, H), and the balance loss (E,): K · Σ_k (share of the tokens that choose k) · (mean
            probability of k), 1 where both are even.
        """
        probabilities = self.router(x, experts).float().softmax(dim=-1)  # (E, N, T, K)
        weight, choice = probabilities.max(dim=-1)
        count = probabilities.shape[-1]
        update = self.networks(x, torch.where(self._fits(choice, is_of), choice, count), experts)
        chosen = F.one_hot(choice, count).to(probabilities.dtype)
        balance = count * (_mean(chosen, is_of) * _mean(probabilities, is_of)).sum(dim=-1)
        return weight.unsqueeze(-1).to(update.dtype) * update, balance, None

    def _fits(self, choice: torch.Tensor, is_of: torch.Tensor) -> torch.Tensor:
        """Which real tokens find room in the network of their choice, (E, N, T)."""
        factor = self.config.capacity_factor if self.training else self.config.eval_capacity_factor
        count = self.config.num_routed_experts
        capacity = (factor * is_of.sum(dim=-1) / count - 1e-4).ceil()  # (N, M); the subtrahend: 1.1 · 10 is above 11
        sent = F.one_hot(choice, count)
        fits = torch.zeros_like(choice, dtype=torch.bool)
        for of, room in zip(is_of.unbind(1), capacity.unbind(1), strict=True):
            rank = (sent * of.unsqueeze(-1)).cumsum(dim=2).gather(-1, choice.unsqueeze(-1)).squeeze(-1)
            fits |= of & (rank <= room.unsqueeze(-1))
        return fits


class MoEPlusPlusFeedForward(nn.Module):
    """
    MoE++'s layer (arXiv 2410.07348): the router's first two choices, times their probabilities, among K feed-forward
    networks, nothing ("zero"), the token itself ("copy"), and C mixtures of the token with a learned constant.

    From the second layer on the router sees its scores in the layer before (pathway-aware routing). Nothing is dropped.
    """

    NUM_CHOICES = 2
    NUM_CONSTANTS = 2

    def __init__(self, config: PreTrainedConfig, num_groups: int, is_first: bool):
        super().__init__()
        self.config = config
        num_choices = config.num_routed_experts + 2 + self.NUM_CONSTANTS
        self.router = GroupedLinear(num_groups, config.hidden_size, num_choices, bias=False)
        self.pathway = None if is_first else GroupedLinear(num_groups, num_choices, num_choices, bias=False)
        self.networks = RoutedNetworks(config, num_groups)
        self.constants = GroupedVectors(num_groups, self.NUM_CONSTANTS, config.hidden_size)
        self.constant_gate = GroupedLinear(num_groups, config.hidden_size, 2 * self.NUM_CONSTANTS, bias=False)

    def forward(
        self, x: torch.Tensor, is_of: torch.Tensor, experts: list[int] | None, pathway: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            x: (E, N, T, H), normalised.
            is_of: (N, M, T), true where a token is a real one of the modality.
            pathway: (E, N, T, J), the router's scores in the layer before.

        Returns:
            The update (E, N, T, H); the balance loss (E,), J/2 · Σ_j η_j · (share of the tokens that choose j) · (mean
            probability of j), η being 1 for networks and `zero_computation_balance` for the others; and the router's
            scores (E, N, T, J).
        """
        scores = self.router(x, experts).float()
        if self.pathway is not None:
            scores = scores + self.pathway(pathway.to(x.dtype), experts)
        probabilities = scores.softmax(dim=-1)
        weights, choices = probabilities.topk(self.NUM_CHOICES, dim=-1)
        is_real = is_of.any(dim=1)
        count, num_choices = self.config.num_routed_experts, probabilities.shape[-1]

        chosen = torch.zeros_like(probabilities).scatter(-1, choices, 1.0)
        gates = (chosen * probabilities).to(x.dtype)
        _, copy, *constants = gates[..., count:].unbind(-1)  # what is sent to "zero" adds nothing
        update = copy.unsqueeze(-1) * x
        parts = self.constant_gate(x, experts).unflatten(-1, (-1, 2)).float().softmax(dim=-1).to(x.dtype)
        vectors = _select(self.constants.weight, experts)
        for index, gate in enumerate(constants):
            own, constant = parts[..., index, :].unsqueeze(-2).unbind(-1)
            update = update + gate.unsqueeze(-1) * (own * x + constant * vectors[:, None, None, index])
        for weight, choice in zip(weights.unbind(-1), choices.unbind(-1), strict=True):
            routed = self.networks(x, torch.where(is_real, choice, count), experts)
            update = update + weight.unsqueeze(-1).to(routed.dtype) * routed

        importance = torch.full((num_choices,), float(self.config.zero_computation_balance), device=x.device)
        importance[:count] = 1.0
        even = num_choices / self.NUM_CHOICES
        balance = even * (importance * _mean(chosen, is_of) * _mean(probabilities, is_of)).sum(dim=-1)
        return update, balance, scores


def _mean(x: torch.Tensor, is_of: torch.Tensor) -> torch.Tensor:
    """(E, N, T, J) → mean over the real tokens, (E, J)."""
    is_real = is_of.any(dim=1).to(x.dtype)
    # not a product, which autocast would round
    return (x * is_real.unsqueeze(-1)).sum(dim=(1, 2)) / is_real.sum()


class RoutedTransformerLayer(GroupedTransformerLayer):
    """Pre-norm Transformer layer of E experts with a routed feed-forward layer."""

    def feed(self, x: torch.Tensor, experts: list[int] | None, routing: Routing) -> torch.Tensor:
        scale, shift = (_select(part, experts)[:, None, None] for part in self.feed_forward_norm.parameters())
        update, balance, routing.pathway = self.feed_forward(
            self.normalize(x) * scale + shift, routing.is_of, experts, routing.pathway
        )
        routing.balances.append(balance)
        return update


class RoutedTransformer(GroupedTransformer):
    """The experts with routed feed-forward layers, otherwise MulT; the auxiliary loss is the sum of balance losses."""

    feed_forward: type[nn.Module]

    def create_layer(self, index: int) -> RoutedTransformerLayer:
        num_groups = self.config.num_experts
        return RoutedTransformerLayer(self.config, num_groups, self.feed_forward(self.config, num_groups, index == 0))

    def start_routing(self, readout: torch.Tensor) -> Routing:
        return Routing(readout > 0)


class SwitchTransformer(RoutedTransformer):
    """Switch fusion, "SwitchGate" in I²MoE's tables."""

    title = "Switch Transformer"
    feed_forward = SwitchFeedForward


class MoEPlusPlusTransformer(RoutedTransformer):
    """MoE++ fusion."""

    title = "MoE++ Transformer"
    feed_forward = MoEPlusPlusFeedForward
