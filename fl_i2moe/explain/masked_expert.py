"""One Transformer expert on many maskings of one sample, without the work that they share.

Shapes: S maskings, T features of the joint sequence, T_m of modality m, H hidden width, A heads, d width of a head, M
modalities, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion import GroupedLayerNorm, GroupedLinear, GroupedTransformer, GroupedTransformerLayer
from ..fusion_specialised import SpecialisedTransformer
from ..modeling_fl_i2moe import FLI2MoEModel


class MaskedExpert:
    """
    What `FLI2MoEModel.run_experts` gives for one sample under S keep masks, up to rounding, in fewer operations:

    - at each position the first layer sees one of two vectors, the feature or nothing, so queries, keys and values of
      both are computed once and then looked up;
    - of the last layer only each modality's mean is read, so its last linear map is applied to the means.

    Args:
        model: with Transformer fusion, in eval mode.
        expert: a name from `config.expert_names`.
        projected: modality → (1, T_m, H).
        feature_masks: modality → (1, T_m), true where a feature is real; a modality without padding may be left out.
    """

    def __init__(
        self, model: FLI2MoEModel, expert: str, projected: dict[str, Tensor], feature_masks: dict[str, Tensor]
    ) -> None:
        self._experts = [model.config.expert_names.index(expert)]
        self._fusion = model.experts
        self._num_heads = model.config.num_attention_heads
        masks = {name: feature_masks.get(name) for name in projected}
        absent, _, _ = model._join([({name: torch.zeros_like(x) for name, x in projected.items()}, masks)])
        present, mask, readout = model._join([(projected, masks)])
        self._readout = readout
        self._attention_mask = self._fusion.attention_mask(mask, readout, self._experts)
        self._x = torch.cat([absent, present])  # (2, T, H)
        self._qkv = self._heads(self._fusion.layers[0], self._x)

    @staticmethod
    def supports(model: FLI2MoEModel) -> bool:
        return (
            type(model.experts) in (GroupedTransformer, SpecialisedTransformer)
            and model.config.position_embeddings == "shared"
        )

    def __call__(self, keep: Tensor) -> Tensor:
        """(S, T) booleans over the joint sequence, false where a feature is zeroed, → logits (S, C)."""
        x = torch.where(keep.unsqueeze(-1), self._x[1], self._x[0])
        qkv = torch.where(keep[:, None, None, :, None], self._qkv[1], self._qkv[0])
        last = len(self._fusion.layers) - 1
        for depth, layer in enumerate(self._fusion.layers):
            query, key, value = (qkv if depth == 0 else self._heads(layer, x)).unbind(1)
            attended = F.scaled_dot_product_attention(query, key, value, self._attention_mask)
            x = x + self._linear(layer.attention.output, attended.transpose(1, 2).flatten(2))
            hidden = self._linear(layer.feed_forward.up, layer.normalize(x), layer.feed_forward_norm)
            hidden = layer.feed_forward.activation(hidden)
            if depth == last:
                x, hidden = self._readout @ x, self._readout @ hidden  # (S, M, …); the weights of a mean sum to 1
            x = x + self._linear(layer.feed_forward.down, hidden)
        logits, _ = self._fusion.read(x.unsqueeze(0), self._experts)
        return logits[:, 0].float()

    def _heads(self, layer: GroupedTransformerLayer, x: Tensor) -> Tensor:
        """(S, T, H) → queries, keys and values (S, 3, A, T, d)"""
        qkv = self._linear(layer.attention.qkv, layer.normalize(x), layer.attention_norm)
        return qkv.unflatten(-1, (3, self._num_heads, -1)).permute(0, 2, 3, 1, 4)

    def _linear(self, linear: GroupedLinear, x: Tensor, norm: GroupedLayerNorm | None = None) -> Tensor:
        return linear(x.unsqueeze(0), self._experts, norm).squeeze(0)
