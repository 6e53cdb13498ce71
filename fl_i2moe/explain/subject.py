"""What a sample is to games, importance and measurements: units that can be taken out of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.places import Places
from .attribution import Importance
from .game import Game, Player


class Subject(Protocol):
    """
    [`~fl_i2moe.explain.input_sample.InputSample`] and [`~fl_i2moe.explain.feature_sample.FeatureSample`].

    Shapes: S coalitions, N players, E experts, C classes.
    """

    model: FLI2MoEModel

    @property
    def players(self) -> list[Player]:
        """All units; a player's place is its number among the features of its modality's [`places`]."""

    @property
    def places(self) -> dict[str, Places]:
        """Modality → its units, and where they lie."""

    @property
    def encodings(self) -> int:
        """Distinct subsets of modalities encoded so far."""

    @property
    def num_units(self) -> Mapping[str, int]:
        """Modality → how many units it is cut into; empty where nothing is encoded."""

    @property
    def notes(self) -> Sequence[str]:
        """What was done to units, as sentences."""

    @staticmethod
    def methods_of(model: FLI2MoEModel) -> list[str]:
        """Of importance, those that the model allows; the default first."""

    def attribute(self, target: int, method: str, seed: Sequence[int], **options: Any) -> Importance:
        """Of all units for one class, of a batch of one."""

    def game(self, expert: str, target: int, players: Sequence[Player] | None = None) -> Game:
        """The logit of one class by one expert; all units play if no players are given, others are out."""

    def mixture(self, coalitions: NDArray[np.bool_], players: Sequence[Player]) -> tuple[NDArray[np.float64], ...]:
        """The whole model's (logits (S, C), expert logits (S, E, C), expert weights (S, E)) under coalitions (S, N) of
        some players; all other units are out."""
