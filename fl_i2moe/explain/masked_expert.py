"""
One Transformer expert on many maskings of one sample, without the work that they share.

Shapes: S coalitions, N players, T features of a sequence, T_m of modality m, H hidden width, A heads, d width of a
head, M modalities, C classes.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.fusion import GroupedTransformer, GroupedTransformerLayer
from ..model.modeling_fl_i2moe import FLI2MoEModel


class MaskedExpert:
    """
    What `FLI2MoEModel.run_experts` gives for one sample under S coalitions, up to rounding, in fewer operations.

    Modalities that the expert reads apart are run apart, each only under the coalitions that differ in it; padding is
    not run at all. [`MaskedSequence`] does the rest.

    Args:
        model: with Transformer fusion, in eval mode.
        projected, feature_masks: modality → (1, T_m, H) and (1, T_m); a modality without padding needs no mask.
        always_kept: (T,) over the joint sequence, true where a feature is there whoever plays.
        positions: (N,) the players' in the joint sequence; what is neither kept nor a player is zeroed.
    """

    def __init__(
        self,
        model: FLI2MoEModel,
        expert: str,
        projected: dict[str, Tensor],
        feature_masks: dict[str, Tensor],
        always_kept: Tensor,
        positions: Tensor,
    ) -> None:
        self._fusion = cast(GroupedTransformer, model.experts)
        self._index = model.config.expert_names.index(expert)
        masks = {name: feature_masks.get(name) for name in projected}
        absent, _, _ = model.join([({name: torch.zeros_like(x) for name, x in projected.items()}, masks)])
        present, _, readout = model.join([(projected, masks)])
        x, readout = torch.where(always_kept[:, None], present, absent)[0], readout[0]
        self._no_means = present.new_zeros(1, len(readout), present.shape[-1])

        self._parts: list[tuple[list[int], Tensor, MaskedSequence]] = []
        read = model.modality_shares([expert])[0].nonzero().flatten().tolist()
        is_joint = self._fusion.attends_across(self._index)
        for modalities in [read] if is_joint else [[modality] for modality in read]:
            is_here = (readout[modalities] > 0).any(dim=0)
            plays_here = is_here[positions]
            is_player = torch.zeros_like(is_here)
            is_player[positions] = True
            fixed = (is_here & ~is_player).nonzero().flatten()
            mine = positions[plays_here]
            rows = (x[mine], present[0, mine], x[fixed], readout[modalities][:, torch.cat([mine, fixed])])
            self._parts.append((modalities, plays_here, MaskedSequence(self._fusion, self._index, *rows)))

    @staticmethod
    def supports(model: FLI2MoEModel) -> bool:
        """Whether the model's experts are plain Transformers, whose arithmetic this is."""
        return (
            isinstance(model.experts, GroupedTransformer)
            and all(type(layer) is GroupedTransformerLayer for layer in model.experts.layers)
            and model.config.position_embeddings == "shared"
        )

    def __call__(self, coalitions: Tensor, batch_size: int) -> Tensor:
        """(S, N) booleans, true where a player takes part, → logits (S, C)."""
        means = self._no_means.repeat(len(coalitions), 1, 1)
        for modalities, plays_here, sequence in self._parts:
            different, inverse = (coalitions & plays_here).unique(dim=0, return_inverse=True)
            batches = different[:, plays_here].split(batch_size)
            means[:, modalities] = torch.cat([sequence(batch) for batch in batches])[inverse]
        logits, _ = self._fusion.read(means.unsqueeze(0), [self._index])
        return logits[:, 0].float()


class MaskedSequence:
    """
    Features that attend to each other, some of which play, through the layers of one expert:

    - a player is one of two vectors, so the first layer's queries, keys, values and scores are computed once and then
      looked up; keys that are always the same count as one, with their joint weight and mean value;
    - of the last layer only each modality's mean is read, so its last linear map is applied to the means.

    Args:
        absent, present: (N, H), the players' features when they do not play and when they do.
        fixed: (T − N, H), all other features.
        readout: (M, T), the weight of each feature in the mean of its modality, players in front.
    """

    def __init__(
        self, fusion: GroupedTransformer, index: int, absent: Tensor, present: Tensor, fixed: Tensor, readout: Tensor
    ) -> None:
        self._layers: list[Any] = list(fusion.layers)
        self._num_heads = fusion.config.num_attention_heads
        self._readout = readout.unsqueeze(0)
        self._linears = [
            {
                "qkv": layer.attention.qkv.folded([index], layer.attention_norm),
                "output": layer.attention.output.folded([index]),
                "up": layer.feed_forward.up.folded([index], layer.feed_forward_norm),
                "down": layer.feed_forward.down.folded([index]),
            }
            for layer in self._layers
        ]
        num_players = len(absent)
        self._x = torch.cat([absent, fixed, present])  # (T + N, H): rows 0 … T − 1 are the sequence without players
        query, key, value = self._heads(0, self._x[None])[0]  # (A, T + N, d)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        parts = [num_players, len(fixed), num_players]
        absent_scores, fixed_scores, present_scores = scores.split(parts, dim=-1)
        fixed_score = fixed_scores.logsumexp(dim=-1, keepdim=True)
        # one row for each head and row of x: (A · (T + N), …)
        self._absent_scores = torch.cat([absent_scores, fixed_score], dim=-1).flatten(0, 1)
        self._present_scores = torch.cat([present_scores, fixed_score], dim=-1).flatten(0, 1)
        self._fixed_values = (fixed_scores.softmax(dim=-1) @ value.split(parts, dim=-2)[1]).flatten(0, 1)
        self._values = value.flatten(0, 1)
        self._first_rows = len(self._x) * torch.arange(self._num_heads, device=scores.device)[:, None, None]

    def __call__(self, plays: Tensor) -> Tensor:
        """(S, N) booleans → each modality's mean, (S, M, H)"""
        length = self._readout.shape[-1]
        rows = torch.arange(length, device=plays.device).repeat(len(plays), 1)
        rows[:, : plays.shape[1]] += length * plays
        x = F.embedding(rows, self._x)  # looks rows up faster than indexing
        for depth, layer in enumerate(self._layers):
            if depth == 0:
                attended = self._attend_first(plays, rows)
            else:
                query, key, value = self._heads(depth, x).unbind(1)
                attended = F.scaled_dot_product_attention(query, key, value)
            x = x + self._linear(depth, "output", attended.transpose(1, 2).flatten(2))
            hidden = layer.feed_forward.activation(self._linear(depth, "up", layer.normalize(x)))
            if depth == len(self._layers) - 1:
                x, hidden = self._readout @ x, self._readout @ hidden  # (S, M, …); the weights of a mean sum to 1
            x = x + self._linear(depth, "down", hidden)
        return x

    def _attend_first(self, plays: Tensor, rows: Tensor) -> Tensor:
        """(S, N), (S, T) → (S, A, T, d)"""
        num_players = plays.shape[1]
        rows = self._first_rows + rows  # (A, S, T)
        absent_scores, present_scores = F.embedding(rows, self._absent_scores), F.embedding(rows, self._present_scores)
        scores = torch.where(F.pad(plays, (0, 1)).unsqueeze(1), present_scores, absent_scores)  # (A, S, T, N + 1)
        of_players, of_fixed = scores.softmax(dim=-1).split([num_players, 1], dim=-1)
        attended = of_players @ F.embedding(rows[..., :num_players], self._values)
        return attended.addcmul_(of_fixed, F.embedding(rows, self._fixed_values)).transpose(0, 1)

    def _heads(self, depth: int, x: Tensor) -> Tensor:
        """(S, T, H) → queries, keys and values (S, 3, A, T, d)"""
        qkv = self._linear(depth, "qkv", self._layers[depth].normalize(x))
        return qkv.unflatten(-1, (3, self._num_heads, -1)).permute(0, 2, 3, 1, 4)

    def _linear(self, depth: int, name: str, x: Tensor) -> Tensor:
        weight, bias = self._linears[depth][name]
        return F.linear(x, weight[0], None if bias is None else bias[0])
