"""
Masking of pairs: the ones that score highest, and random ones to compare them with (FL-I²MoE, Table 1).

Both return a batch's logits, from which pair_metrics.py computes the model's metrics: join batches along B.

Shapes: B samples of a batch, T_m features of modality m, N players of a sample, P pairs, C classes, Q shares, D random
draws.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..explain.attribution import count_share
from ..explain.feature_game import keep_without
from ..explain.inputs import Inputs
from ..explain.interactions import PairTable
from ..metrics.tasks import FloatArray, IntArray
from .masking import DIRECTIONS

BoolArray = NDArray[np.bool_]

Evaluate = Callable[[Inputs, dict[str, Tensor]], Tensor]
"""Samples and keep masks (modality → (B, T_m), false where a feature is zeroed) → logits (B, C)."""

CURVE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
MAX_REDRAWS = 1000


def top_pairs(scores: FloatArray, share: float) -> IntArray:
    """Indexes of the highest max(1, ⌈share · P⌉) of (P,) scores, best first; ties go to the earlier pair."""
    if not 0 < share <= 1:
        raise ValueError(f"a share of pairs must lie in (0, 1], got {share}")
    return (-scores).argsort(kind="stable")[: count_share(share, len(scores))]


def random_pairs(pairs: IntArray, num_features: int, rng: np.random.Generator) -> IntArray:
    """
    Indexes of random pairs that have `num_features` distinct ends between them.

    Pairs come in random order; one that would overshoot is passed over, and one that adds no end is taken.
    `ValueError` if no choice is found: never where each feature pairs with all of another modality, from 2 features on.
    """
    for _ in range(MAX_REDRAWS):
        covered: set[int] = set()
        chosen = []
        for index in rng.permutation(len(pairs)):
            together = covered | set(pairs[index].tolist())
            if len(together) <= num_features:
                covered = together
                chosen.append(index)
            if len(covered) == num_features:
                return np.array(chosen)
    raise ValueError(f"found no choice among {len(pairs)} pairs that has {num_features} distinct features")


def pair_masking_logits(
    evaluate: Evaluate,
    inputs: Inputs,
    tables: Sequence[PairTable],
    numbers: Sequence[int],
    kind: str = "sii",
    *,
    share: float = 0.05,
    num_draws: int = 10,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """
    Logits without the pairs that score highest, and without random ones (Table 1). Both ends of a pair are zeroed.

    Args:
        evaluate: the whole model, `masking.masked_logits` with its model.
        inputs: B samples.
        tables: each sample's candidate pairs of features: the paper takes all between the top 10 % of each modality.
        numbers: the samples' own, from which with `seed` their random numbers come.
        kind: of score, as `PairTable.score` takes it.
        share: of the pairs, rounded up, at least one.
        num_draws: D.

    Returns:
        `none` and `ranked` (B, C); `random_same_features` (D, B, C): random pairs with as many distinct features as the
        ranked ones have; `random_same_pairs` (D, B, C): as many pairs, the paper's comparison, which zeroes more
        features where ranked pairs share their ends; `num_pairs`, `num_features` (B,) of the ranked, and
        `num_features_same_pairs` (D, B).
    """
    _check_samples(inputs, tables, numbers, num_draws)
    ranked: list[BoolArray] = []
    same_features: list[list[BoolArray]] = [[] for _ in range(num_draws)]
    same_pairs: list[list[BoolArray]] = [[] for _ in range(num_draws)]
    for table, number in zip(tables, numbers, strict=True):
        rng, chosen = np.random.default_rng([seed, number]), top_pairs(table.score(kind), share)
        ranked.append(_ends(table, chosen))
        for features, pairs in zip(same_features, same_pairs, strict=True):
            features.append(_ends(table, random_pairs(table.pairs, int(ranked[-1].sum()), rng)))
            pairs.append(_ends(table, rng.permutation(len(table.pairs))[: len(chosen)]))

    def run(masked: Sequence[BoolArray]) -> FloatArray:
        return _logits(evaluate, inputs, tables, masked)

    return {
        "none": run([np.zeros_like(mask) for mask in ranked]),
        "ranked": run(ranked),
        "random_same_features": np.stack([run(masked) for masked in same_features]),
        "random_same_pairs": np.stack([run(masked) for masked in same_pairs]),
        "num_pairs": np.array([count_share(share, len(table.pairs)) for table in tables]),
        "num_features": np.array([mask.sum() for mask in ranked]),
        "num_features_same_pairs": np.array([[mask.sum() for mask in masked] for masked in same_pairs]),
    }


def pair_curve_logits(
    evaluate: Evaluate,
    inputs: Inputs,
    tables: Sequence[PairTable],
    numbers: Sequence[int],
    kind: str = "sii",
    *,
    direction: Literal["deletion", "insertion"] = "deletion",
    shares: Sequence[float] = CURVE_SHARES,
    num_draws: int = 5,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """
    Logits as pairs go ("deletion": the ends of the first share of pairs are zeroed) or come ("insertion": of all ends
    only those of the first share are there), the highest scores first and in random order.

    Args:
        evaluate, inputs, tables, numbers, kind, seed: as [`pair_masking_logits`] takes them.
        shares: Q rising shares of the pairs in [0, 1]; 0 takes none.
        num_draws: D random orders.

    Returns:
        `ranked` (Q, B, C), `random` (D, Q, B, C), and how many features are zeroed: `num_features` (Q, B) and
        `num_features_random` (D, Q, B).

    Raises:
        ValueError: an unknown direction; invalid shares.
    """
    _check_samples(inputs, tables, numbers, num_draws)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'deletion' or 'insertion', got {direction!r}")
    if list(shares) != sorted(set(shares)) or len(shares) < 2 or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"shares must be two or more that rise within [0, 1], got {list(shares)}")
    masked: list[list[list[BoolArray]]] = [[[] for _ in shares] for _ in range(num_draws + 1)]
    for table, number in zip(tables, numbers, strict=True):
        rng, by_score = np.random.default_rng([seed, number]), (-table.score(kind)).argsort(kind="stable")
        orders = [by_score, *(rng.permutation(len(by_score)) for _ in range(num_draws))]
        for order, curve in zip(orders, masked, strict=True):
            for share, masks in zip(shares, curve, strict=True):
                ends = _ends(table, order[: count_share(share, len(order)) if share else 0])
                masks.append(ends if direction == "deletion" else _ends(table, order) & ~ends)
    logits = np.array([[_logits(evaluate, inputs, tables, masks) for masks in curve] for curve in masked])
    counts = np.array([[[mask.sum() for mask in masks] for masks in curve] for curve in masked])
    return {
        "ranked": logits[0],
        "random": logits[1:],
        "num_features": counts[0],
        "num_features_random": counts[1:],
    }


def _ends(table: PairTable, chosen: IntArray) -> BoolArray:
    """(N,) true for the ends of the chosen pairs."""
    ends = np.zeros(len(table.players), np.bool_)
    ends[table.pairs[chosen].ravel()] = True
    return ends


def _logits(evaluate: Evaluate, inputs: Inputs, tables: Sequence[PairTable], masked: Sequence[BoolArray]) -> FloatArray:
    """Without the players (N,) of each sample that are `masked`."""
    absent = [[table.players[i] for i in np.flatnonzero(mask)] for table, mask in zip(tables, masked, strict=True)]
    return evaluate(inputs, keep_without(inputs, absent)).detach().double().cpu().numpy()


def _check_samples(inputs: Inputs, tables: Sequence[PairTable], numbers: Sequence[int], num_draws: int) -> None:
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    if not len(inputs) == len(tables) == len(numbers):
        raise ValueError(f"{len(inputs)} samples, but pairs of {len(tables)} and {len(numbers)} numbers")
