"""Scores of pairs of a game's players, and what they rest on.

Shapes: N players, P pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..metrics.summaries import from_plain, plain
from ..metrics.tasks import FloatArray, IntArray
from .game import Player
from .intervals import Estimates

PairKind = Literal["sii", "redundancy", "redundancy_both"]
"""The Shapley interaction index, positive for synergy; the redundancy gap as published; its variant that requires both
ends to be useful."""


def kind_of_expert(expert: str) -> PairKind:
    """The score that an expert's pairs are ranked by: the index, or for redundancy the gap that wants both ends to be
    useful. (The published gap also rewards any partner of a useful end, and such pairs are many.)"""
    return "redundancy_both" if expert == "redundancy" else "sii"


def published_kind(expert: str) -> PairKind:
    """The score that FL-I²MoE's own measurements rank an expert's pairs by."""
    return "redundancy" if expert == "redundancy" else "sii"


@dataclass(frozen=True)
class PairTable:
    """Scores of P pairs of a game's players, and what they rest on."""

    pairs: IntArray
    """(P, 2) players, by their numbers."""

    scores: dict[PairKind, FloatArray]
    """Kind → (P,)."""

    standard_errors: dict[PairKind, FloatArray]
    """Kind → (P,), of the pair's own draws; 0 where the score was enumerated, NaN where there is one coalition only. Of
    a gap, by the jackknife."""

    num_coalitions: IntArray
    """(P,) coalitions that a pair's means are over."""

    evaluations: int
    """Distinct coalitions whose value was asked for."""

    estimator: str
    seed: int | None
    players: tuple[Player, ...] = ()
    """Of an estimator's own table, whose players are mere numbers, none."""

    intervals: dict[PairKind, FloatArray] = field(default_factory=dict)
    """Kind → (P, 2), 95 % intervals; points where the score was enumerated. NaN where there are none: with one
    coalition, or in a table that was saved before there were any."""

    shapley: Estimates | None = None
    """Of the N players, their Shapley values in the whole game, NaN for a player in no pair; None in a table that was
    saved before there were any."""

    note: str = ""
    """What a reader has to know: where an error that was asked for was not reached."""

    def __post_init__(self) -> None:
        missing = {kind: np.full((len(self.pairs), 2), np.nan) for kind in self.scores if kind not in self.intervals}
        object.__setattr__(self, "intervals", self.intervals | missing)

    @property
    def ends(self) -> list[tuple[Player, Player]]:
        """The players of each pair."""
        return [(self.players[first], self.players[second]) for first, second in self.pairs.tolist()]

    def score(self, kind: str) -> FloatArray:
        """(P,); `ValueError` for a kind that was not scored."""
        if kind not in self.scores:
            raise ValueError(f"there is no score {kind!r}; there are {', '.join(self.scores)}")
        return self.scores[kind]

    def found(self, kind: PairKind) -> bool:
        """
        Whether any pair's interval leaves out 0. The intervals are those of single pairs: of many that do not interact,
        1 in 20 leaves out 0 by chance.
        """
        self.score(kind)
        low, high = self.intervals[kind].T
        return bool(((low > 0) | (high < 0)).any())

    def select(self, rows: NDArray[Any]) -> "PairTable":
        """With some of the pairs: their places, or booleans (P,)."""
        return replace(
            self,
            pairs=self.pairs[rows],
            scores={kind: x[rows] for kind, x in self.scores.items()},
            standard_errors={kind: x[rows] for kind, x in self.standard_errors.items()},
            intervals={kind: x[rows] for kind, x in self.intervals.items()},
            num_coalitions=self.num_coalitions[rows],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with None for NaN. Labels of players, and players in no pair, are left out."""
        shapley = None
        if self.shapley is not None:
            numbers = np.unique(self.pairs)
            rows = zip([self.players[i] for i in numbers], plain(self.shapley.columns[numbers]), strict=True)
            shapley = [[player.modality, player.place, *row] for player, row in rows]
        return {
            "ends": [[u.modality, u.place, v.modality, v.place] for u, v in self.ends],
            "scores": {kind: plain(x) for kind, x in self.scores.items()},
            "standard_errors": {kind: plain(x) for kind, x in self.standard_errors.items()},
            "intervals": {kind: plain(x) for kind, x in self.intervals.items()},
            "shapley": shapley,
            "num_coalitions": self.num_coalitions.tolist(),
            "evaluations": self.evaluations,
            "estimator": self.estimator,
            "seed": self.seed,
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PairTable":
        """The inverse of [`to_dict`]. Where all cross-modal pairs are there, players have their old numbers."""
        first, second = ([Player(end[i], _as_place(end[i + 1])) for end in values["ends"]] for i in (0, 2))
        players = tuple(dict.fromkeys(first + second))
        numbers = {player: number for number, player in enumerate(players)}
        shapley = None
        if saved := values.get("shapley"):
            columns = np.full((len(players), 4), np.nan)
            for modality, place, *row in saved:
                columns[numbers[Player(modality, _as_place(place))]] = from_plain(row)
            shapley = Estimates.from_columns(columns)
        return cls(
            pairs=np.array([[numbers[u], numbers[v]] for u, v in zip(first, second, strict=True)], np.int64),
            scores={kind: from_plain(x) for kind, x in values["scores"].items()},
            standard_errors={kind: from_plain(x) for kind, x in values["standard_errors"].items()},
            num_coalitions=np.array(values["num_coalitions"], dtype=np.int64),
            players=players,
            intervals={kind: _limits(x) for kind, x in values.get("intervals", {}).items()},
            shapley=shapley,
            note=values.get("note", ""),
            **{name: values[name] for name in ("evaluations", "estimator", "seed")},
        )


def _limits(saved: Sequence[Sequence[float | None]]) -> FloatArray:
    return np.array([from_plain(x) for x in saved]).reshape(-1, 2)


def _as_place(value: Any) -> Any:
    """JSON makes lists of tuples."""
    return tuple(map(_as_place, value)) if isinstance(value, list) else value
