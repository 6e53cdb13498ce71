"""A game: a value function and its players. What plays, and what a value means, is up to whoever makes the game."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ValueFunction = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""Coalitions (S, N), true where a player takes part, to values (S,)."""


@dataclass(frozen=True)
class Player:
    """Something that takes part in a coalition or does not: a feature, a word, a region, a whole modality."""

    modality: str
    """Cross-modal pairs lie between players of different modalities."""

    place: Any
    """Which one of its modality. Only the game's maker knows what it means; of a feature, its position."""

    label: str = field(default="", compare=False)
    """What a person calls it."""

    def __str__(self) -> str:
        return self.label or f"{self.modality} {self.place}"


class CachedValues:
    """A value function of N players that evaluates every coalition once, also across calls."""

    def __init__(self, value: ValueFunction, num_players: int) -> None:
        self.num_players = num_players
        self._value = value
        self._values: dict[bytes, float] = {}

    @property
    def evaluations(self) -> int:
        """Distinct coalitions evaluated so far."""
        return len(self._values)

    def __call__(self, coalitions: ArrayLike) -> NDArray[np.float64]:
        """
        Coalitions (S, N), booleans or 0 and 1, → values (S,). A single one may be (N,), as shapiq asks. `ValueError`
        for another shape or other values, or where the game's values are not finite.
        """
        array = np.asarray(coalitions)
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.num_players:
            raise ValueError(f"coalitions must have shape (S, {self.num_players}), got {array.shape}")
        if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
            raise ValueError(f"coalitions must be booleans (or 0 and 1), got {array.dtype} with other values")
        asked = array.astype(np.bool_)
        keys = [row.tobytes() for row in np.packbits(asked, axis=1)]
        new = {key: row for row, key in enumerate(keys) if key not in self._values}
        if new:
            rows = asked[list(new.values())]
            values = np.asarray(self._value(rows), np.float64)
            if not np.isfinite(values).all():
                wrong = int(np.isfinite(values).argmin())
                players = np.flatnonzero(rows[wrong]).tolist()
                raise ValueError(f"a game's values must be finite, that of players {players} is {values[wrong]}")
            self._values.update(zip(new, values.tolist(), strict=True))
        return np.array([self._values[key] for key in keys], np.float64)


class Game(CachedValues):
    """
    A value function and its N players. Estimators of other packages that take a callable (shapiq's among them) run on
    it as it is. `ValueError` without a player, or where one comes twice.
    """

    def __init__(self, value: ValueFunction, players: Sequence[Player]) -> None:
        self.players = tuple(players)
        if not self.players:
            raise ValueError("the game has no players")
        if len(set(self.players)) < len(self.players):
            twice = dict.fromkeys(str(player) for player in self.players if self.players.count(player) > 1)
            raise ValueError(f"players come twice: {', '.join(twice)}")
        super().__init__(value, len(self.players))
