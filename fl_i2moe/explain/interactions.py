"""Shapley interaction index and redundancy gap of pairs of players, exact and estimated, for any game.

FL-I²MoE, section 3.2.2. With the gains `g_u = v(S∪u) − v(S)`, `g_v` and `g_uv` of a pair over a coalition S of other
players, and the mean over S that draws the size of S uniformly from 0 … N−2 and then S uniformly of that size,

- the Shapley interaction index is the mean of `g_uv − g_u − g_v`. These weights, |S|!(N−|S|−2)!/(N−1)!, are the index's
  own; equation 2 of the FL-I²MoE paper prints another normaliser, 2·|F|!, which only scales it, but its estimator, the
  plain mean over sampled S, is this one. Sizes drawn as they fall among all subsets would give the Banzhaf index.
- the redundancy gap (equations 3 to 5) is `mean(base) / (1 + mean(|g_uv − g_max|))`, `g_max = max(g_u, g_v)`. The
  published `base = max(0, min(g_uv, g_max))` rewards a feature that is useful alone, whatever its partner; the variant
  "both" takes `max(0, min(g_u, g_v, g_uv))`, which requires both to be useful.

The same four values of the game serve both, and the players' Shapley values too. The gap is a ratio of means: its
estimate is consistent, not unbiased.

Shapes: N players, P pairs, D draws of a coalition for a pair, R = D·P, S coalitions.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics.tasks import FloatArray, IntArray
from .adaptive import score_to_error
from .game import CachedValues, Game, ValueFunction
from .intervals import Estimates, with_intervals
from .pair_table import PairKind, PairTable

MAX_EXACT_PLAYERS = 16
DRAWS_PER_CALL = 4096
"""Coalitions for a pair whose four values are asked for at once."""

ROUNDING = float(np.finfo(np.float32).eps)
"""Of a game's largest value: where players only add up, differences are what models round."""


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
    target_error: float | None = None,
    max_coalitions: int = 256,
    kind: PairKind = "sii",
) -> PairTable:
    """
    Scores pairs of a game's players, (P, 2) by their numbers; all between modalities if not given.

    Args:
        estimator: a name from `ESTIMATORS`; all but `exact` draw `num_coalitions` per pair.
        seed: of the coalitions, see [`sample_seed`].
        target_error: how well the strongest pairs by `kind` are to be known, see [`score_to_error`]: half the length of
            their intervals, in the unit of the game's values (0.1 logits are at most 2.5 points of a probability).
            Pairs that may be among them get more coalitions, at most `max_coalitions`; `PairTable.note` says where
            that was not enough.

    Raises:
        ValueError: an unknown estimator; an invalid pair, or no pair; what [`score_to_error`] raises.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"there is no estimator {estimator!r}; there are {', '.join(ESTIMATORS)}")
    if pairs is None:
        pairs = cross_modal_pairs([player.modality for player in game.players])
    value = CachedValues(game, game.num_players)
    estimate = partial(ESTIMATORS[estimator], value, game.num_players)
    if target_error is None or estimator == "exact":
        table = estimate(pairs, num_coalitions, seed)
    else:
        checked = _checked_pairs(pairs, game.num_players)
        table = score_to_error(estimate, checked, num_coalitions, seed, kind, target_error, max_coalitions)
    return replace(table, evaluations=value.evaluations, players=game.players)


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
    same_size = np.bincount(coalitions[: 2 ** (num_players - 2)].sum(axis=1))  # of the others: C(N−2, s)
    weights = 1 / ((num_players - 1) * same_size)

    means = np.empty((len(checked), 6))
    for pair, (u, v) in enumerate(checked):
        without = numbers[~coalitions[:, u] & ~coalitions[:, v]]
        bit_u, bit_v = 1 << u, 1 << v
        four = np.stack([values[without | bits] for bits in (0, bit_u, bit_v, bit_u | bit_v)], axis=1)
        sizes = coalitions[without].sum(axis=1)
        means[pair] = weights[sizes] @ _terms(four, sizes, num_players)
    scores = _scores(means)
    counts = np.full(len(checked), 2 ** (num_players - 2))
    shapley = _by_player(means[:, 4:], checked, num_players)
    return PairTable(
        checked,
        scores,
        {kind: np.zeros(len(checked)) for kind in scores},
        counts,
        cached.evaluations,
        "exact",
        None,
        intervals={kind: np.stack([x, x], axis=1) for kind, x in scores.items()},
        shapley=Estimates(shapley, 0 * shapley, np.stack([shapley, shapley], axis=1)),
    )


def per_pair(value: ValueFunction, num_players: int, pairs: ArrayLike, num_coalitions: int, seed: int) -> PairTable:
    """The paper's estimate: every pair draws `num_coalitions` of its own. Unbiased for the index; else as [`exact`]."""
    checked, rng = _checked_pairs(pairs, num_players, num_coalitions), np.random.default_rng(seed)
    contexts = _draw_own(np.repeat(checked, num_coalitions, axis=0), num_players, rng)
    by_pair = contexts.reshape(len(checked), num_coalitions, num_players)
    return _estimate(value, checked, by_pair.swapaxes(0, 1), seed, "per_pair")


def shared_context(
    value: ValueFunction, num_players: int, pairs: ArrayLike, num_coalitions: int, seed: int
) -> PairTable:
    """
    Every draw serves all pairs. Unbiased for the index; else as [`exact`].

    A draw is a q from U(0, 1) and a coalition S that each player joins with probability q. The pair (u, v) is scored
    over S∖{u, v}, a coalition R of the other N−2 with probability ∫ q^|R| (1−q)^(N−2−|R|) dq = |R|!(N−2−|R|)!/(N−1)!,
    the index's own weight. A draw asks for the values of S with one player, or both of a pair, put in or taken out:
    with a and b players of two modalities (a+1)(b+1), made of a+1 and b+1 different parts, for a·b pairs.

    Every second draw is the one before with all players in and out exchanged (antithetic; that is q and 1−q): where an
    interaction is strong in small coalitions and weak in large ones, both together vary less than two others.
    """
    checked, rng = _checked_pairs(pairs, num_players, num_coalitions), np.random.default_rng(seed)
    shared = _draw_shared(num_coalitions, num_players, rng)
    contexts = np.repeat(shared[:, None], len(checked), axis=1)
    for end in checked.T:
        contexts[:, np.arange(len(checked)), end] = False
    return _estimate(value, checked, contexts, seed, "shared_context", antithetic=True)


ESTIMATORS = {"exact": exact, "per_pair": per_pair, "shared_context": shared_context}


def _checked_pairs(pairs: ArrayLike, num_players: int, num_coalitions: int = 1) -> IntArray:
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"pairs must be integers (P, 2), at least one, got {array.dtype} {array.shape}")
    if array.min() < 0 or array.max() >= num_players:
        raise ValueError(f"pairs must lie in 0 to {num_players - 1}, got {array.min()} to {array.max()}")
    if (same := array[:, 0] == array[:, 1]).any():
        raise ValueError(f"a pair needs two players, got {array[same][0].tolist()}")
    if not isinstance(num_coalitions, int | np.integer) or num_coalitions < 1:
        raise ValueError(f"num_coalitions must be a whole number, at least 1, got {num_coalitions!r}")
    return array.astype(np.int64)


def _draw_shared(num_draws: int, num_players: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Coalitions of all players, of uniform size, and after each its complement: (D, N)."""
    numbers = rng.random(((num_draws + 1) // 2, num_players + 1))
    drawn = numbers[:, :-1] < numbers[:, -1:]
    return np.stack([drawn, ~drawn], axis=1).reshape(-1, num_players)[:num_draws]


def _draw_own(pairs: IntArray, num_players: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """For each of R pairs one coalition without it, of uniform size: (R, N)."""
    rows = np.arange(len(pairs))
    order = rng.random((len(pairs), num_players))
    order[rows, pairs[:, 0]] = order[rows, pairs[:, 1]] = 2  # behind all others
    sizes = rng.integers(num_players - 1, size=len(pairs))
    return order.argsort(axis=1).argsort(axis=1) < sizes[:, None]


def _estimate(
    value: ValueFunction,
    pairs: IntArray,
    contexts: NDArray[np.bool_],
    seed: int,
    estimator: str,
    *,
    antithetic: bool = False,
) -> PairTable:
    """Means over the D draws of `contexts` (D, P, N), each without its pair; `antithetic` as for [`with_intervals`]."""
    num_draws, num_pairs, num_players = contexts.shape
    cached, largest = CachedValues(value, num_players), 0.0
    rows, owners = contexts.reshape(-1, num_players), np.tile(pairs, (num_draws, 1))
    terms = np.empty((len(rows), 6))
    for start in range(0, len(rows), DRAWS_PER_CALL):
        part = slice(start, start + DRAWS_PER_CALL)
        four = _four_values(cached, rows[part], owners[part])
        terms[part] = _terms(four, rows[part].sum(axis=1), num_players)
        largest = max(largest, np.abs(four).max())
    draws = terms.reshape(num_draws, num_pairs, 6)
    stated = partial(with_intervals, antithetic=antithetic, rounding=ROUNDING * largest)
    scores = _scores(draws.mean(axis=0))
    estimates = {kind: stated(scores[kind], x, pairs) for kind, x in _pseudo_values(draws).items()}
    scored = np.unique(pairs)
    gains = _by_player(draws[..., 4:], pairs, num_players)[:, scored]
    of_scored = stated(gains.mean(axis=0), gains, np.zeros((len(scored), 2), np.int64))
    columns = np.full((num_players, 4), np.nan)
    columns[scored] = of_scored.columns
    return PairTable(
        pairs,
        scores,
        {kind: x.errors for kind, x in estimates.items()},
        np.full(num_pairs, num_draws),
        cached.evaluations,
        estimator,
        int(seed),
        # a gap is never negative
        intervals={kind: x.intervals.clip(min=None if kind == "sii" else 0) for kind, x in estimates.items()},
        shapley=Estimates.from_columns(columns),
    )


def _scores(means: FloatArray) -> dict[PairKind, FloatArray]:
    """From the means (…, 6) of [`_terms`]: (…)."""
    interaction, span, published, both = np.moveaxis(means, -1, 0)[:4]
    return {"sii": interaction, "redundancy": published / (1 + span), "redundancy_both": both / (1 + span)}


def _pseudo_values(terms: FloatArray) -> dict[PairKind, FloatArray]:
    """
    Of the draws (D, P, 6): kind → (D, P), what each draw adds to the score. Of a mean it is the draw itself, of a ratio
    of means the jackknife's D·(score of all) − (D−1)·(score of the others).
    """
    num_draws, total = len(terms), terms.sum(axis=0)
    if num_draws == 1:
        return _scores(terms)
    whole, others = _scores(total / num_draws), _scores((total - terms) / (num_draws - 1))
    return {kind: num_draws * x - (num_draws - 1) * others[kind] for kind, x in whole.items()}


def _by_player(gains: FloatArray, pairs: IntArray, num_players: int) -> FloatArray:
    """Means over the pairs of each player: gains of both ends (…, P, 2) → (…, N), NaN where a player is in no pair."""
    ends = pairs.ravel()
    sums = gains.reshape(*gains.shape[:-2], -1) @ np.eye(num_players)[ends]
    counts = np.bincount(ends, minlength=num_players).astype(np.float64)
    return sums / np.where(counts, counts, np.nan)


def _four_values(value: CachedValues, coalitions: NDArray[np.bool_], pairs: IntArray) -> FloatArray:
    """(R, 4): of S, S∪u, S∪v and S∪{u, v}."""
    rows = np.arange(len(coalitions))
    asked = np.repeat(coalitions[None], 4, axis=0)
    asked[1, rows, pairs[:, 0]] = asked[3, rows, pairs[:, 0]] = True
    asked[2, rows, pairs[:, 1]] = asked[3, rows, pairs[:, 1]] = True
    return value(asked.reshape(-1, coalitions.shape[1])).reshape(4, -1).T


def _terms(values: FloatArray, sizes: IntArray, num_players: int) -> FloatArray:
    """
    From the four values (R, 4) over S of `sizes` (R,), (R, 6): interaction, span, the base of the gap and of its
    variant "both", and what u and v gain.

    Their gains are means over the partner's being there or not, with the weights that the Shapley value gives to both
    coalitions: (|S|+1)/N and (N−1−|S|)/N.
    """
    gain_u, gain_v, gain_both = (values[:, 1:] - values[:, :1]).T
    best = np.maximum(gain_u, gain_v)
    published = np.minimum(gain_both, best).clip(min=0)
    both = np.minimum(np.minimum(gain_u, gain_v), gain_both).clip(min=0)
    interaction = gain_both - gain_u - gain_v
    with_partner = (sizes + 1) / num_players * interaction
    gains = gain_u + with_partner, gain_v + with_partner
    return np.stack([interaction, np.abs(gain_both - best), published, both, *gains], axis=1)
