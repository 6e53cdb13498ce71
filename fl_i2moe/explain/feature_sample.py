"""One sample's encoded features as what plays, and what importance is given to: FL-I²MoE's own explanations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..model.kinds import places_in
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.places import Places
from .attribution import Importance, attribute, methods_of, universe_method
from .feature_game import coalitions_at_once, feature_game, feature_players
from .game import Game, Player
from .inputs import Inputs, feature_batch


class FeatureSample:
    """
    The counterpart of [`~fl_i2moe.explain.input_sample.InputSample`]: features are zeroed behind the encoders.

    Args:
        row: of a feature cache.
        described: modality → `encoder`, its identity, and perhaps `grid`.
        batch_size: coalitions in one pass.

    Raises:
        ValueError: the row does not fit the model, or has a modality without features that are not special.
    """

    encodings = 0
    num_units: Mapping[str, int] = {}
    notes: Sequence[str] = ()

    def __init__(
        self,
        model: FLI2MoEModel,
        row: Mapping[str, Any],
        described: Mapping[str, Mapping[str, Any]],
        batch_size: int | None = None,
    ):
        self.model, self._batch_size = model, batch_size
        self.inputs = Inputs.from_batch(model, feature_batch(row, model.config.modality_order))
        self.places: dict[str, Places] = {
            name: places_in(row, name, x.get("encoder"), x.get("grid")) for name, x in described.items()
        }
        self.players: list[Player] = feature_players(self.inputs.candidate_masks)

    @staticmethod
    def methods_of(model: FLI2MoEModel) -> list[str]:
        """Of importance, see [`attribute`], those that the model allows; the default first."""
        default = universe_method(model)
        return [default, *(method for method in methods_of(model) if method != default)]

    def attribute(self, target: int, method: str, seed: Sequence[int], **options: Any) -> Importance:
        return attribute(self.model, self.inputs, torch.tensor([target]), method, seed=[list(seed)], **options)

    def game(self, expert: str, target: int, players: Sequence[Player] | None = None) -> Game:
        """See [`feature_game`]; all candidates play if no players are given."""
        players = self.players if players is None else players
        return feature_game(self.model, self.inputs, expert, target, players, batch_size=self._batch_size)

    @torch.inference_mode()
    def mixture(self, coalitions: NDArray[np.bool_], players: Sequence[Player]) -> tuple[NDArray[np.float64], ...]:
        """The whole model's (logits (S, C), expert logits (S, E, C), expert weights (S, E)) under coalitions (S, N),
        candidates that do not play zeroed."""
        asked = torch.from_numpy(np.ascontiguousarray(coalitions)).to(self.model.device)
        keep = {name: (~mask).repeat(len(asked), 1) for name, mask in self.inputs.candidate_masks.items()}
        for column, player in enumerate(players):
            keep[player.modality][:, player.place] = asked[:, column]
        size = self._batch_size or coalitions_at_once(self.model, self.inputs.projected, self.model.config.num_experts)
        outputs = []
        for start in range(0, len(asked), size):
            kept = {name: mask[start : start + size] for name, mask in keep.items()}
            number = len(next(iter(kept.values())))
            whole = {name: x.expand(number, -1, -1) for name, x in self.inputs.projected.items()}
            outputs.append(self.model.run_mixture(whole, None, kept))
        fields = ("logits", "expert_logits", "expert_weights")
        return tuple(torch.cat([output[field] for output in outputs]).double().cpu().numpy() for field in fields)
