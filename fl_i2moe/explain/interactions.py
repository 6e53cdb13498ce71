"""Shapley interaction index and redundancy gap of pairs of players, exact and estimated, for any game.

FL-I²MoE, section 3.2.2. With the gains `g_u = v(S∪u) − v(S)`, `g_v` and `g_uv` of a pair over a coalition S of other
players, and the mean over S that draws the size of S uniformly from 0 … N−2 and then S uniformly of that size,

- the Shapley interaction index is the mean of `g_uv − g_u − g_v`. These weights, |S|!(N−|S|−2)!/(N−1)!, are the index's
  own; equation 2 of the FL-I²MoE paper prints another normaliser, 2·|F|!, which only scales it, but its estimator, the
  plain mean over sampled S, is this one. Sizes drawn as they fall among all subsets would give the Banzhaf index.
- the redundancy gap (equations 3 to 5) is `mean(base) / (1 + mean(|g_uv − g_max|))`, `g_max = max(g_u, g_v)`. The
  published `base = max(0, min(g_uv, g_max))` rewards a feature that is useful alone, whatever its partner; the variant
  "both" takes `max(0, min(g_u, g_v, g_uv))`, which requires both to be useful.

The same four values of the game serve both. The gap is a ratio of means: its estimate is consistent, not unbiased.

Shapes: N players, P pairs, R draws (a coalition for a pair), S coalitions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics.summaries import from_plain, plain
from ..metrics.tasks import FloatArray, IntArray
from .game import CachedValues, Game, Player, ValueFunction

PairKind = Literal["sii", "redundancy", "redundancy_both"]
"""The Shapley interaction index, positive for synergy; the redundancy gap as published; its variant that requires both
ends to be useful."""

MAX_EXACT_PLAYERS = 16
DRAWS_PER_CALL = 4096
"""Draws whose coalitions are held at once."""


def kind_of_expert(expert: str) -> PairKind:
    """The score that an expert's pairs are ranked by: the redundancy gap for redundancy, the index for all others."""
    return "redundancy" if expert == "redundancy" else "sii"


@dataclass(frozen=True)
class PairTable:
    """Scores of P pairs of a game's players, and what they rest on."""

    pairs: IntArray
    """(P, 2) players, by their numbers."""

    scores: dict[PairKind, FloatArray]
    """Kind → (P,)."""

    standard_errors: dict[PairKind, FloatArray]
    """Kind → (P,); 0 where the score was enumerated, NaN where there is one coalition only. Of a gap, by the
    jackknife."""

    num_coalitions: IntArray
    """(P,) coalitions that a pair's means are over."""

    evaluations: int
    """Distinct coalitions whose value was asked for."""

    estimator: str
    seed: int | None
    players: tuple[Player, ...] = ()
    """Of an estimator's own table, whose players are mere numbers, none."""

    @property
    def ends(self) -> list[tuple[Player, Player]]:
        """The players of each pair."""
        return [(self.players[first], self.players[second]) for first, second in self.pairs.tolist()]

    def score(self, kind: str) -> FloatArray:
        """(P,); `ValueError` for a kind that was not scored."""
        if kind not in self.scores:
            raise ValueError(f"there is no score {kind!r}; there are {', '.join(self.scores)}")
        return self.scores[kind]

    def select(self, rows: NDArray[Any]) -> "PairTable":
        """With some of the pairs: their places, or booleans (P,)."""
        return replace(
            self,
            pairs=self.pairs[rows],
            scores={kind: x[rows] for kind, x in self.scores.items()},
            standard_errors={kind: x[rows] for kind, x in self.standard_errors.items()},
            num_coalitions=self.num_coalitions[rows],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with None for NaN. Labels of players, and players in no pair, are left out."""
        return {
            "ends": [[u.modality, u.place, v.modality, v.place] for u, v in self.ends],
            "scores": {kind: plain(x) for kind, x in self.scores.items()},
            "standard_errors": {kind: plain(x) for kind, x in self.standard_errors.items()},
            "num_coalitions": self.num_coalitions.tolist(),
            "evaluations": self.evaluations,
            "estimator": self.estimator,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PairTable":
        """The inverse of [`to_dict`]. Where all cross-modal pairs are there, players have their old numbers."""
        first, second = ([Player(end[i], _as_place(end[i + 1])) for end in values["ends"]] for i in (0, 2))
        players = tuple(dict.fromkeys(first + second))
        numbers = {player: number for number, player in enumerate(players)}
        return cls(
            pairs=np.array([[numbers[u], numbers[v]] for u, v in zip(first, second, strict=True)], np.int64),
            scores={kind: from_plain(x) for kind, x in values["scores"].items()},
            standard_errors={kind: from_plain(x) for kind, x in values["standard_errors"].items()},
            num_coalitions=np.array(values["num_coalitions"], dtype=np.int64),
            players=players,
            **{name: values[name] for name in ("evaluations", "estimator", "seed")},
        )


def cross_modal_pairs(modalities: Sequence[str]) -> IntArray:
    """All pairs (u, v), u < v, of players of different modalities, (P, 2); `ValueError` if there is none."""
    numbered = list(enumerate(modalities))
    pairs = [(u, v) for u, first in numbered for v, second in numbered[u + 1 :] if first != second]
    if not pairs:
        raise ValueError(f"no pair between modalities: all {len(modalities)} players are of {sorted(set(modalities))}")
    return np.array(pairs, np.int64)


def score_pairs(
    game: Game,
    pairs: ArrayLike | None = None,
    *,
    estimator: str = "shared_context",
    num_coalitions: int = 16,
    seed: int = 0,
) -> PairTable:
    """
    Scores pairs of a game's players, (P, 2) by their numbers; all between modalities if not given.

    Args:
        estimator: a name from `ESTIMATORS`; all but `exact` draw `num_coalitions` per pair.
        seed: of the coalitions, see [`sample_seed`].

    Raises:
        ValueError: an unknown estimator; an invalid pair, or no pair.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"there is no estimator {estimator!r}; there are {', '.join(ESTIMATORS)}")
    if pairs is None:
        pairs = cross_modal_pairs([player.modality for player in game.players])
    table = ESTIMATORS[estimator](game, game.num_players, pairs, num_coalitions=num_coalitions, seed=seed)
    return replace(table, players=game.players)


def sample_seed(seed: int, number: int) -> int:
    """A sample's own seed, from that of a run and the sample's number: it does not depend on the batch."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def exact(
    value: ValueFunction, num_players: int, pairs: ArrayLike, num_coalitions: int | None = None, seed: int | None = None
) -> PairTable:
    """
    All scores of the pairs (P, 2) over all coalitions, from the game's 2^N values. `num_coalitions` and `seed`, which
    every estimator takes, have no effect. `ValueError` for more than 16 players, or invalid pairs.
    """
    if num_players > MAX_EXACT_PLAYERS:
        raise ValueError(
            f"exact interactions go through all 2^N coalitions: at most {MAX_EXACT_PLAYERS} players, got {num_players}"
        )
    checked = _checked_pairs(pairs, num_players)
    cached = CachedValues(value, num_players)
    numbers = np.arange(2**num_players)
    coalitions = (numbers[:, None] >> np.arange(num_players) & 1).astype(np.bool_)
    values = cached(coalitions)
    sizes = np.arange(num_players - 1)
    same_size = np.bincount(coalitions[: 2 ** (num_players - 2)].sum(axis=1))  # of the others: C(N−2, s)
    weights = 1 / (len(sizes) * same_size)

    means = np.empty((len(checked), 4))
    for pair, (u, v) in enumerate(checked):
        without = numbers[~coalitions[:, u] & ~coalitions[:, v]]
        bit_u, bit_v = 1 << u, 1 << v
        four = np.stack([values[without | bits] for bits in (0, bit_u, bit_v, bit_u | bit_v)], axis=1)
        means[pair] = weights[coalitions[without].sum(axis=1)] @ _terms(four)
    scores = _scores(means)
    no_errors = {kind: np.zeros(len(checked)) for kind in scores}
    counts = np.full(len(checked), 2 ** (num_players - 2))
    return PairTable(checked, scores, no_errors, counts, cached.evaluations, "exact", None)


def per_pair(value: ValueFunction, num_players: int, pairs: ArrayLike, num_coalitions: int, seed: int) -> PairTable:
    """The paper's estimate: every pair draws `num_coalitions` of its own. Unbiased for the index; else as [`exact`]."""
    checked, rng = _checked_pairs(pairs, num_players, num_coalitions), np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(checked)), num_coalitions)
    coalitions = _draw_own(checked[owners], num_players, rng)
    return _estimate(value, checked, owners, coalitions, seed, "per_pair")


def shared_context(
    value: ValueFunction, num_players: int, pairs: ArrayLike, num_coalitions: int, seed: int
) -> PairTable:
    """
    One coalition serves all pairs outside it, which share its value and those with one more player. Unbiased.

    A coalition's size s has probability N / ((N−1)(N−s)(N−s−1)): among those that leave a given pair out, which are
    1 in N−1, sizes are uniform. `num_coalitions · (N−1)` are drawn, a number fixed in advance (to go on until every
    pair is served would be biased); pairs that fewer than `num_coalitions` serve draw the rest on their own. So a pair
    has at least `num_coalitions`, and about as many on average: see `PairTable.num_coalitions`.
    """
    checked, rng = _checked_pairs(pairs, num_players, num_coalitions), np.random.default_rng(seed)
    outside = num_players - np.arange(num_players - 1)  # N − s
    probabilities = num_players / ((num_players - 1) * outside * (outside - 1))
    sizes = rng.choice(num_players - 1, size=num_coalitions * (num_players - 1), p=probabilities)
    shared = _draw_subsets(sizes, rng.random((len(sizes), num_players)))
    contexts, owners = (~shared[:, checked[:, 0]] & ~shared[:, checked[:, 1]]).nonzero()

    served = np.bincount(owners, minlength=len(checked))
    missing = np.repeat(np.arange(len(checked)), np.maximum(num_coalitions - served, 0))
    own = _draw_own(checked[missing], num_players, rng)
    coalitions = np.concatenate([shared[contexts], own])
    return _estimate(value, checked, np.concatenate([owners, missing]), coalitions, seed, "shared_context")


ESTIMATORS = {"exact": exact, "per_pair": per_pair, "shared_context": shared_context}


def _checked_pairs(pairs: ArrayLike, num_players: int, num_coalitions: int = 1) -> IntArray:
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"pairs must be integers (P, 2), at least one, got {array.dtype} {array.shape}")
    if array.min() < 0 or array.max() >= num_players:
        raise ValueError(f"pairs must lie in 0 to {num_players - 1}, got {array.min()} to {array.max()}")
    if (same := array[:, 0] == array[:, 1]).any():
        raise ValueError(f"a pair needs two players, got {array[same][0].tolist()}")
    if num_coalitions < 1:
        raise ValueError(f"num_coalitions must be at least 1, got {num_coalitions}")
    return array.astype(np.int64)


def _draw_own(pairs: IntArray, num_players: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """For each of R pairs one coalition without it, of uniform size: (R, N)."""
    rows = np.arange(len(pairs))
    order = rng.random((len(pairs), num_players))
    order[rows, pairs[:, 0]] = order[rows, pairs[:, 1]] = 2  # behind all others
    return _draw_subsets(rng.integers(num_players - 1, size=len(pairs)), order)


def _draw_subsets(sizes: IntArray, order: FloatArray) -> NDArray[np.bool_]:
    """The first `sizes` (R,) players in the `order` (R, N) of random numbers, as (R, N) booleans."""
    return order.argsort(axis=1).argsort(axis=1) < sizes[:, None]


def _estimate(
    value: ValueFunction, pairs: IntArray, owners: IntArray, coalitions: NDArray[np.bool_], seed: int, estimator: str
) -> PairTable:
    """Means over the draws: `owners` (R,) are the pairs that `coalitions` (R, N) were drawn for."""
    cached = CachedValues(value, coalitions.shape[1])
    terms = np.empty((len(owners), 4))
    for start in range(0, len(owners), DRAWS_PER_CALL):
        part = slice(start, start + DRAWS_PER_CALL)
        terms[part] = _terms(_four_values(cached, coalitions[part], pairs[owners[part]]))

    counts = np.bincount(owners, minlength=len(pairs))
    sums = np.stack([np.bincount(owners, column, len(pairs)) for column in terms.T], axis=1)
    means = sums / counts[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where a pair has one coalition
        deviations = np.bincount(owners, (terms[:, 0] - means[owners, 0]) ** 2, len(pairs))
        errors: dict[PairKind, FloatArray] = {"sii": np.sqrt(deviations / (counts - 1) / counts)}
        others = (sums[owners] - terms) / (counts[owners, None] - 1)  # each draw left out in turn
        left_out = _scores(others)
        for kind in ("redundancy", "redundancy_both"):
            centre = np.bincount(owners, left_out[kind], len(pairs)) / counts
            deviations = np.bincount(owners, (left_out[kind] - centre[owners]) ** 2, len(pairs))
            errors[kind] = np.sqrt(deviations * (counts - 1) / counts)
    return PairTable(pairs, _scores(means), errors, counts, cached.evaluations, estimator, int(seed))


def _scores(means: FloatArray) -> dict[PairKind, FloatArray]:
    """From the means (P, 4) of [`_terms`]."""
    interaction, span, published, both = means.T
    return {"sii": interaction, "redundancy": published / (1 + span), "redundancy_both": both / (1 + span)}


def _four_values(value: CachedValues, coalitions: NDArray[np.bool_], pairs: IntArray) -> FloatArray:
    """(R, 4): of S, S∪u, S∪v and S∪{u, v}."""
    rows = np.arange(len(coalitions))
    asked = np.repeat(coalitions[None], 4, axis=0)
    asked[1, rows, pairs[:, 0]] = asked[3, rows, pairs[:, 0]] = True
    asked[2, rows, pairs[:, 1]] = asked[3, rows, pairs[:, 1]] = True
    return value(asked.reshape(-1, coalitions.shape[1])).reshape(4, -1).T


def _terms(values: FloatArray) -> FloatArray:
    """(R, 4): interaction, span, and the base of the gap and of its variant "both", from the four values (R, 4)."""
    gain_u, gain_v, gain_both = (values[:, 1:] - values[:, :1]).T
    best = np.maximum(gain_u, gain_v)
    published = np.minimum(gain_both, best).clip(min=0)
    both = np.minimum(np.minimum(gain_u, gain_v), gain_both).clip(min=0)
    return np.stack([gain_both - gain_u - gain_v, np.abs(gain_both - best), published, both], axis=1)


def _as_place(value: Any) -> Any:
    """JSON makes lists of tuples."""
    return tuple(map(_as_place, value)) if isinstance(value, list) else value
