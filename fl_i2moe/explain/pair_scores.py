"""
Scores of pairs: of any game, whose players are numbers; of a sample, whose players are features; and as an explanation
keeps them.

Shapes: N players, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..metrics.plain import from_plain, plain
from ..metrics.tasks import FloatArray, IntArray
from .game import Player

VARIANTS = ("published", "both")
"""Of the redundancy gap."""

PairKind = Literal["sii", "redundancy", "redundancy_both"]
SCORE_OF_KIND: dict[PairKind, str] = {"sii": "sii", "redundancy": "published", "redundancy_both": "both"}
"""Kind of score in an explanation → its name in [`PairScores`]."""


def kind_of_expert(expert: str) -> PairKind:
    """The score that an expert's pairs are ranked by: the redundancy gap for redundancy, the index for all others."""
    return "redundancy" if expert == "redundancy" else "sii"


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs, and what they rest on."""

    pairs: IntArray
    """(P, 2) players."""

    sii: FloatArray
    """(P,) Shapley interaction index: positive for synergy."""

    sii_standard_error: FloatArray
    """(P,) 0 for the exact index, NaN where there is one coalition only."""

    redundancy: dict[str, FloatArray]
    """Variant → (P,) redundancy gap."""

    redundancy_standard_error: dict[str, FloatArray]
    """Variant → (P,), by the jackknife; 0 and NaN as above."""

    num_coalitions: IntArray
    """(P,) coalitions that a pair's means are over."""

    evaluations: int
    """Distinct coalitions whose value was asked for."""

    seed: int | None
    estimator: str

    def score(self, kind: str) -> FloatArray:
        """(P,) of `"sii"`, `"published"` or `"both"`, the latter two redundancy gaps; `ValueError` for another kind."""
        return self._by_kind(kind, self.sii, self.redundancy)

    def standard_error(self, kind: str) -> FloatArray:
        """(P,), as `score`."""
        return self._by_kind(kind, self.sii_standard_error, self.redundancy_standard_error)

    def select(self, rows: IntArray) -> "PairScores":
        """Those of some of the pairs, by their places."""
        return replace(
            self,
            pairs=self.pairs[rows],
            sii=self.sii[rows],
            sii_standard_error=self.sii_standard_error[rows],
            redundancy={name: x[rows] for name, x in self.redundancy.items()},
            redundancy_standard_error={name: x[rows] for name, x in self.redundancy_standard_error.items()},
            num_coalitions=self.num_coalitions[rows],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with None for NaN."""
        return {
            "pairs": self.pairs.tolist(),
            "sii": plain(self.sii),
            "sii_standard_error": plain(self.sii_standard_error),
            "redundancy": {name: plain(values) for name, values in self.redundancy.items()},
            "redundancy_standard_error": {
                name: plain(values) for name, values in self.redundancy_standard_error.items()
            },
            "num_coalitions": self.num_coalitions.tolist(),
            "evaluations": self.evaluations,
            "seed": self.seed,
            "estimator": self.estimator,
        }

    @staticmethod
    def _by_kind(kind: str, sii: FloatArray, redundancy: dict[str, FloatArray]) -> FloatArray:
        by_kind = {"sii": sii, **redundancy}
        if kind not in by_kind:
            raise ValueError(f"there is no score {kind!r}; there are {', '.join(by_kind)}")
        return by_kind[kind]


@dataclass(frozen=True)
class SamplePairs:
    """A sample's players and the scores of its pairs."""

    number: int
    """The sample's own, from which its random numbers come."""

    players: list[Player]
    scores: PairScores

    def select(self, rows: IntArray) -> "SamplePairs":
        """With some of the pairs, by their places."""
        return replace(self, scores=self.scores.select(rows))


@dataclass
class PairTable:
    """Scores of P pairs of one sample in one expert, by kind, as an explanation keeps and saves them."""

    ends: list[tuple[str, int, str, int]]
    """Modality and feature of either end."""

    scores: dict[PairKind, FloatArray]
    """Kind → (P,)."""

    standard_errors: dict[PairKind, FloatArray]
    num_coalitions: IntArray
    """(P,)"""

    evaluations: int
    estimator: str
    seed: int | None

    @classmethod
    def of(cls, sample: SamplePairs) -> "PairTable":
        scores, players = sample.scores, sample.players
        return cls(
            ends=[(*players[first], *players[second]) for first, second in scores.pairs.tolist()],
            scores={kind: scores.score(name) for kind, name in SCORE_OF_KIND.items()},
            standard_errors={kind: scores.standard_error(name) for kind, name in SCORE_OF_KIND.items()},
            num_coalitions=scores.num_coalitions,
            evaluations=scores.evaluations,
            estimator=scores.estimator,
            seed=scores.seed,
        )

    def sample_pairs(self, number: int) -> SamplePairs:
        """The inverse of [`of`], for the sample of this number; players come in the order of their first pairs."""
        ends = [((a, i), (b, j)) for a, i, b, j in self.ends]
        players = list(dict.fromkeys(player for pair in ends for player in pair))
        place = {player: index for index, player in enumerate(players)}
        gaps = {name: kind for kind, name in SCORE_OF_KIND.items() if name in VARIANTS}
        scores = PairScores(
            pairs=np.array([(place[first], place[second]) for first, second in ends], np.int64),
            sii=self.scores["sii"],
            sii_standard_error=self.standard_errors["sii"],
            redundancy={name: self.scores[kind] for name, kind in gaps.items()},
            redundancy_standard_error={name: self.standard_errors[kind] for name, kind in gaps.items()},
            num_coalitions=self.num_coalitions,
            evaluations=self.evaluations,
            seed=self.seed,
            estimator=self.estimator,
        )
        return SamplePairs(number, players, scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with None for NaN."""
        return {
            "ends": [list(end) for end in self.ends],
            "scores": {kind: plain(x) for kind, x in self.scores.items()},
            "standard_errors": {kind: plain(x) for kind, x in self.standard_errors.items()},
            "num_coalitions": self.num_coalitions.tolist(),
            "evaluations": self.evaluations,
            "estimator": self.estimator,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PairTable":
        """The inverse of [`to_dict`]."""
        return cls(
            ends=[tuple(end) for end in values["ends"]],
            scores={kind: from_plain(x) for kind, x in values["scores"].items()},
            standard_errors={kind: from_plain(x) for kind, x in values["standard_errors"].items()},
            num_coalitions=np.array(values["num_coalitions"], dtype=np.int64),
            **{name: values[name] for name in ("evaluations", "estimator", "seed")},
        )
