"""One sample's prediction by one expert as a game of its features (FL-I²MoE, section 3.2.2).

A player's place is its position in the modality's sequence.

Shapes: S coalitions, N players, T_m features of modality m, H hidden width, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.modeling_fl_i2moe import FLI2MoEModel
from .game import Game, Player
from .inputs import Inputs
from .masked_expert import MaskedExpert

BATCH_NUMBERS = {"cpu": 2**18, "cuda": 2**23}
"""Numbers of the joint sequence, coalitions × T × H, in one pass. On CPUs for each thread: a core's cache."""


def feature_players(masks: Mapping[str, Tensor]) -> list[Player]:
    """The features where the masks of one sample, modality → (T_m,) or (1, T_m) booleans, are true, in their order."""
    return [Player(name, place) for name, mask in masks.items() for place in mask.flatten().nonzero()[:, 0].tolist()]


def coalitions_at_once(model: FLI2MoEModel, projected: Mapping[str, Tensor], num_experts: int = 1) -> int:
    """How many coalitions of one sample's sequences, modality → (1, T_m, H), so many experts see in one pass."""
    numbers = BATCH_NUMBERS.get(model.device.type, BATCH_NUMBERS["cuda"])
    numbers *= torch.get_num_threads() if model.device.type == "cpu" else 1
    return max(1, numbers // (num_experts * sum(x.numel() for x in projected.values())))


def feature_game(
    model: FLI2MoEModel,
    inputs: Inputs,
    expert: str,
    target: int,
    players: Sequence[Player],
    *,
    batch_size: int | None = None,
) -> Game:
    """
    `v(S)`: the logit of one class by one expert when every feature is zeroed that is neither special nor in S.

    Special features always stay; candidates that do not play are always zeroed. Only the one expert runs.

    Args:
        inputs: one sample.
        players: some of its candidates, see [`feature_players`].
        batch_size: coalitions in one pass; by default as many as `BATCH_NUMBERS` allows.

    Raises:
        ValueError: several samples; an expert or class that the model does not have; a player that is no candidate or
            comes twice; no player. On a call also a model in training mode.
    """
    if len(inputs) != 1:
        raise ValueError(f"a game is played on one sample, got {len(inputs)}")
    if expert not in model.config.expert_names:
        raise ValueError(f"there is no expert {expert!r}; this model has {model.config.expert_names}")
    num_classes = model.config.num_labels
    if not 0 <= target < num_classes:
        raise ValueError(f"there is no class {target}; this model has classes 0 to {num_classes - 1}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    candidates = set(feature_players(inputs.candidate_masks))
    if strangers := [str(player) for player in players if player not in candidates]:
        raise ValueError(f"no candidates (special, padded or not there): {', '.join(strangers)}")
    return Game(_ExpertValues(model, inputs, expert, int(target), players, batch_size), players)


class _ExpertValues:
    def __init__(
        self,
        model: FLI2MoEModel,
        inputs: Inputs,
        expert: str,
        target: int,
        players: Sequence[Player],
        batch_size: int | None,
    ):
        self._model, self._expert, self._target = model, expert, target
        self._masked: MaskedExpert | None = None
        self._projected: dict[str, Tensor] = {}
        self._feature_masks: dict[str, Tensor] = {}
        always_kept: list[Tensor] = []
        starts = {}
        for name in model.config.modality_order:
            # without padding sequences are shorter, and attention without a mask is faster
            length = int(inputs.feature_masks[name][0].nonzero().max()) + 1
            starts[name] = sum(len(part) for part in always_kept)
            self._projected[name] = inputs.projected[name][:, :length]
            always_kept.append(~inputs.candidate_masks[name][0, :length])
            if not (mask := inputs.feature_masks[name][:, :length]).all():
                self._feature_masks[name] = mask
        self._always_kept = torch.cat(always_kept)
        positions = [starts[player.modality] + player.place for player in players]
        self._positions = torch.tensor(positions, device=model.device)
        self._batch_size = batch_size or coalitions_at_once(model, self._projected)

    @torch.inference_mode()
    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self._model.training:
            raise ValueError("the model is in training mode, where its values are random: call `model.eval()` first")
        asked = torch.from_numpy(coalitions).to(self._model.device)
        if not MaskedExpert.supports(self._model):
            logits = torch.cat([self._run_expert(batch) for batch in asked.split(self._batch_size)])
        else:
            if self._masked is None:
                sample = (self._projected, self._feature_masks, self._always_kept, self._positions)
                self._masked = MaskedExpert(self._model, self._expert, *sample)
            logits = self._masked(asked, self._batch_size)
        return logits[:, self._target].double().cpu().numpy()

    def _run_expert(self, coalitions: Tensor) -> Tensor:
        """(S, N) → logits (S, C), by the model itself."""
        num_coalitions = len(coalitions)
        kept = self._always_kept.repeat(num_coalitions, 1)
        kept[:, self._positions] = coalitions
        lengths = [x.shape[1] for x in self._projected.values()]
        keep = dict(zip(self._projected, kept.split(lengths, dim=1), strict=True))
        projected = {name: x.expand(num_coalitions, -1, -1) for name, x in self._projected.items()}
        masks = {name: mask.expand(num_coalitions, -1) for name, mask in self._feature_masks.items()}
        return self._model.run_experts(projected, masks, keep, [self._expert])[:, 0]
