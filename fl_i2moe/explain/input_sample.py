"""
One sample whose units are taken out before the frozen encoders: what an input game plays on.

A modality's encoding depends on its own units alone. So each distinct subset of a modality is encoded once, whatever it
is combined with, and only the experts, which are cheap, run on combinations.

Shapes: S coalitions, U units of a modality, T features of its sequence, H hidden width, E' experts asked for, C
classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.kind import FrozenEncoder, check_removal
from ..model.kinds import places_in
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.places import Places, UnitOptions, Units
from .attribution import Importance
from .game import Game, Player
from .input_attribution import INPUT_METHODS, attribute_input
from .inputs import ONLY_FEATURES, check_features, check_removals, feature_batch, find_encoders

ENCODING_BATCH = {"cpu": 8, "cuda": 128}
"""Subsets that an encoder sees at once."""

RUN_NUMBERS = {"cpu": 2**21, "cuda": 2**26}
"""Numbers of the joint sequences, coalitions × T × H, that experts see at once."""

MAX_KEPT_BYTES = 2**30
"""Of encoded subsets; beyond it the oldest are forgotten."""

OnProgress = Callable[[int], None]
"""Told how many subsets were encoded now."""


@dataclass
class Clock:
    """How often something was done, and the seconds that it took."""

    number: int = 0
    seconds: float = 0.0

    def add(self, number: int, start: float) -> None:
        """That many more since `start`, of `perf_counter`."""
        self.number += number
        self.seconds += perf_counter() - start

    @property
    def each(self) -> float:
        """Seconds of one; 0 where nothing was done."""
        return self.seconds / max(1, self.number)


class MaskedModality:
    """
    One modality of a sample with some of its units taken out, behind the model's projection.

    Args:
        encoder: None for features that come as they are, which are zeroed.
        removal: see `FrozenEncoder.encode`; the encoder's default if not given.

    Attributes:
        encodings: distinct subsets encoded so far.
        clock: of encodings since it was set back.
        removal: what happens to a unit that is taken out, as the end of a sentence.

    Raises:
        ValueError: the raw value is not there, not the one that was encoded, or cannot be cut into units.
    """

    def __init__(
        self,
        model: FLI2MoEModel,
        name: str,
        row: Mapping[str, Any],
        encoder: FrozenEncoder | None,
        described: Mapping[str, Any],
        options: UnitOptions,
        removal: str | None,
    ):
        self._model, self._name = model, name
        self._encoder = encoder
        grid = getattr(encoder, "grid", None) or described.get("grid")
        self._places, self._options = places_in(row, name, described.get("encoder"), grid), options
        try:
            self.units: Units = self._places.units(options)
        except ValueError as error:
            raise ValueError(f"The {name} cannot be cut into parts: {error}.") from error
        self._num_features = self._places.num_features
        self._features = torch.from_numpy(np.asarray(row[f"{name}_features"], np.float32))
        self._inputs: dict[str, Tensor] = {}
        self._removal: str | None = None
        self.removal = "set to zero"
        if self._encoder is not None:
            if reason := self._places.missing():
                raise ValueError(f"The {name} {reason}; or {ONLY_FEATURES}.")
            self._removal = check_removal(self._encoder, removal)
            self.removal = self._encoder.removals[self._removal]
            self._inputs = self._encoder.preprocess([row[name]]).inputs
        self._projected: dict[bytes, Tensor] = {}
        self.encodings, self.clock = 0, Clock()

    def coarsen(self, most: int) -> None:
        """Puts neighbouring units together until there are no more than so many."""
        self.units = self._places.units(replace(self._options, most=min(most, self._options.most)))
        self._projected.clear()

    def __call__(self, subsets: Tensor, on_progress: OnProgress | None = None) -> Tensor:
        """(S, U) booleans, true for units that stay → projected features (S, T, H), zero where taken out."""
        keys = [row.tobytes() for row in np.packbits(subsets.numpy(), axis=1)]
        new = {key: row for row, key in enumerate(keys) if key not in self._projected}
        for part in _parts(list(new), ENCODING_BATCH.get(self._model.device.type, ENCODING_BATCH["cuda"])):
            start = perf_counter()
            kept = self.units.of_features(subsets[[new[key] for key in part]], self._num_features)
            self._projected.update(zip(part, self._encode(kept), strict=True))
            self.encodings += len(part)
            self.clock.add(len(part), start)
            if on_progress is not None:
                on_progress(len(part))
        projected = torch.stack([self._projected[key] for key in keys])
        while len(self._projected) * projected[0].nbytes > MAX_KEPT_BYTES:
            del self._projected[next(iter(self._projected))]
        return projected

    def _encode(self, kept: Tensor) -> Tensor:
        """(S, T) → (S, T, H)"""
        model = self._model
        if self._encoder is None:
            features = self._features.expand(len(kept), -1, -1).to(model.device)
        else:
            inputs = {name: x.expand(len(kept), *x.shape[1:]) for name, x in self._inputs.items()}
            # rounded as a feature cache rounds them
            features = self._encoder.encode(inputs, kept, self._removal).features.half().float().to(model.device)
            check_features(features, f"The {self._name} without some of its {self.units.places.noun}")
        return model.project(self._name, features) * kept.unsqueeze(-1).to(model.device)

    def encoder_rollout(self) -> Tensor | None:
        """(T, T), rows that sum to 1: how much each feature is of each position of the input; None where that is not
        known, or a feature is its own position alone."""
        return None if self._encoder is None else self._encoder.rollout(self._inputs)


class InputSample:
    """
    A sample, its units, and what experts say where some of them are taken out before the encoders.

    Args:
        row: of a feature cache, with raw values.
        described: modality → `encoder`, its identity, and perhaps `grid`.
        options: what raw values are cut into.
        removals: modality → how its units are taken out; its encoder's default if not named.
        on_progress: told how many subsets were encoded now.

    Raises:
        ValueError: as [`MaskedModality`], [`find_encoders`] and [`check_removals`]; or a modality has no unit.
    """

    def __init__(
        self,
        model: FLI2MoEModel,
        row: Mapping[str, Any],
        described: Mapping[str, Mapping[str, Any]],
        options: UnitOptions | None = None,
        removals: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ):
        self.model, self._on_progress = model, on_progress
        self._remembered: dict[Any, NDArray[np.float64]] = {}
        self.run_clock = Clock()
        self.batch = feature_batch(row, model.config.modality_order)
        encoders = find_encoders(model, row)
        check_removals(encoders, removals or {})
        self.modalities = {
            name: MaskedModality(
                model, name, row, encoders[name], described[name], options or UnitOptions(), (removals or {}).get(name)
            )
            for name in model.config.modality_order
        }
        for name, modality in self.modalities.items():
            if not modality.units.places.candidates:
                raise ValueError(f"The {name} has no {modality.units.places.noun}: there is nothing to explain.")

    def coarsen(self, name: str, most: int) -> None:
        """Cuts one modality into at most so many units."""
        self.modalities[name].coarsen(most)
        self._remembered.clear()

    def restart_clocks(self) -> None:
        self.run_clock = Clock()
        for modality in self.modalities.values():
            modality.clock = Clock()

    @property
    def num_units(self) -> dict[str, int]:
        """Modality → how many units it is cut into."""
        return {name: len(modality.units.places.candidates) for name, modality in self.modalities.items()}

    @property
    def encodings(self) -> int:
        """Distinct subsets of modalities encoded so far."""
        return sum(modality.encodings for modality in self.modalities.values())

    @property
    def notes(self) -> list[str]:
        """What was done to units, as sentences."""
        notes = []
        for name, modality in self.modalities.items():
            units = modality.units
            noun = units.places.noun.capitalize()
            notes.append(f"{noun} of the {name} that do not take part are {modality.removal}.")
            if units.note:
                notes.append(f"The {name} {units.note}.")
        return notes

    @property
    def places(self) -> dict[str, Places]:
        """Modality → its units, and where they lie."""
        return {name: modality.units.places for name, modality in self.modalities.items()}

    @property
    def players(self) -> list[Player]:
        """All units; a player's place is the unit's number."""
        return [
            Player(name, unit, modality.units.places.name_of(unit))
            for name, modality in self.modalities.items()
            for unit in modality.units.places.candidates
        ]

    @torch.inference_mode()
    def expert_logits(
        self, coalitions: NDArray[np.bool_], players: Sequence[Player], experts: list[str] | None = None
    ) -> NDArray[np.float64]:
        """(S, N) booleans, true for players that take part, all other units taken out → (S, E', C)."""
        coalitions, inverse = np.unique(coalitions, axis=0, return_inverse=True)  # of a context about half are itself
        distinct, start = self._distinct(coalitions, players), perf_counter()
        parts = [
            self.model.run_experts({name: x[rows] for name, (x, rows) in part.items()}, experts=experts)
            for part in self._batches(distinct, len(coalitions))
        ]
        logits = torch.cat(parts).double().cpu().numpy()
        self.run_clock.add(logits.shape[0] * logits.shape[1], start)
        return logits[inverse]

    @torch.inference_mode()
    def mixture(self, coalitions: NDArray[np.bool_], players: Sequence[Player]) -> tuple[NDArray[np.float64], ...]:
        """The whole model's (logits (S, C), expert logits (S, E, C), expert weights (S, E)) under coalitions (S, N)."""
        distinct = self._distinct(coalitions, players)
        outputs = [
            self.model.run_mixture({name: x[rows] for name, (x, rows) in part.items()})
            for part in self._batches(distinct, len(coalitions))
        ]
        fields = ("logits", "expert_logits", "expert_weights")
        return tuple(torch.cat([output[field] for output in outputs]).double().cpu().numpy() for field in fields)

    def remembered(self, key: Any, compute: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """What was computed under this key, once: for one class after the other."""
        if key not in self._remembered:
            self._remembered[key] = compute()
        return self._remembered[key]

    @staticmethod
    def methods_of(model: FLI2MoEModel) -> list[str]:
        """Of importance, see [`attribute_input`], those that the model allows; the default first."""
        return [method for method in INPUT_METHODS if model.experts.has_attention or method != "rollout"]

    def attribute(self, target: int, method: str, seed: Sequence[int], **options: Any) -> Importance:
        return attribute_input(self, target, method, seed=seed, **options)

    def game(self, expert: str, target: int, players: Sequence[Player] | None = None) -> Game:
        """
        `v(S)`: the logit of one class by one expert when every unit that is not in S is taken out before the encoders.

        Args:
            players: some of [`players`]; all if not given. The others are always out.

        Raises:
            ValueError: an expert or class that the model does not have; a player that is no unit, or comes twice.
        """
        players = self.players if players is None else list(players)
        if expert not in self.model.config.expert_names:
            raise ValueError(f"there is no expert {expert!r}; this model has {self.model.config.expert_names}")
        if not 0 <= target < self.model.config.num_labels:
            num_classes = self.model.config.num_labels
            raise ValueError(f"there is no class {target}; this model has classes 0 to {num_classes - 1}")
        if strangers := [str(player) for player in players if player not in set(self.players)]:
            raise ValueError(f"no units of this sample: {', '.join(strangers)}")

        def value(coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
            return self.expert_logits(coalitions, players, [expert])[:, 0, target]

        return Game(value, players)

    def _distinct(self, coalitions: NDArray[np.bool_], players: Sequence[Player]) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality → its distinct subsets, encoded (K, T, H), and which of them each coalition has (S,)."""
        asked, distinct = torch.from_numpy(np.ascontiguousarray(coalitions)), {}
        for name, modality in self.modalities.items():
            own = [(column, player.place) for column, player in enumerate(players) if player.modality == name]
            subsets = torch.zeros(len(asked), modality.units.places.num_features, dtype=torch.bool)
            if own:
                columns, units = (list(x) for x in zip(*own, strict=True))
                subsets[:, units] = asked[:, columns]
            subsets, rows = subsets.unique(dim=0, return_inverse=True)
            distinct[name] = modality(subsets, self._on_progress), rows.to(self.model.device)
        return distinct

    def _batches(self, distinct: Mapping[str, tuple[Tensor, Tensor]], number: int) -> Any:
        """Parts of the coalitions that fit into one run."""
        numbers = RUN_NUMBERS.get(self.model.device.type, RUN_NUMBERS["cuda"])
        size = max(1, numbers // sum(x[0].numel() for x, _ in distinct.values()))
        for start in range(0, number, size):
            yield {name: (x, rows[start : start + size]) for name, (x, rows) in distinct.items()}


def _parts(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
