"""
Do important units interact more: interaction scores of pairs by the importance of their ends (FL-I²MoE, Figure 4).

Shapes: B samples, T_m features of modality m, P pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..explain.attribution import top_features
from ..explain.game import Player
from ..metrics.summaries import CONFIDENCE, interval, resample, weighted_means
from ..metrics.tasks import FloatArray, IntArray
from .pairs import top_pairs

BIN_EDGES = (0.1, 0.2, 0.3)


def bin_edges(universe_share: float) -> list[float]:
    """Of three bins of importance that fill the universe."""
    return [universe_share / 3, 2 * universe_share / 3, universe_share]


def importance_bins(
    scores: dict[str, Tensor], candidate_masks: dict[str, Tensor], edges: Sequence[float] = BIN_EDGES
) -> dict[str, Tensor]:
    """
    Bins of features by importance: bin 0 holds the top share `edges[0]` of each modality's candidates, bin 1 what the
    top `edges[1]` adds, and so on, each as `top_features` selects it.

    Args:
        scores: modality → (B, …, T_m).
        candidate_masks: modality → (B, T_m), true for what may be ranked.

    Returns:
        Modality → (B, …, T_m) int64, −1 outside all bins. `ValueError` for edges that do not rise within (0, 1].
    """
    if not edges or list(edges) != sorted(set(edges)) or edges[0] <= 0 or edges[-1] > 1:
        raise ValueError(f"edges must rise within (0, 1], got {list(edges)}")
    bins = {name: torch.full_like(values, -1, dtype=torch.long) for name, values in scores.items()}
    for number, edge in reversed(list(enumerate(edges))):
        for name, inside in top_features(scores, candidate_masks, edge).items():
            bins[name][inside] = number
    return bins


def universe_bins(
    scores: Mapping[str, FloatArray], candidates: Mapping[str, Sequence[int]], share: float, most: int | None = None
) -> dict[Player, int]:
    """
    One sample's universe, the most important units of each modality, `share` of them but at most so many, in three
    bins of importance.

    Args:
        scores: modality → (T_m,).
        candidates: modality → what may be ranked.

    Returns:
        Player → its bin, from 0, the most important ones; in the order of modalities and places.
    """
    universe: dict[Player, int] = {}
    for name, values in scores.items():
        mask = torch.zeros(1, len(values), dtype=torch.bool)
        mask[0, list(candidates[name])] = True
        edges = bin_edges(min(share, (most or len(values)) / len(candidates[name])))
        bins = importance_bins({name: torch.from_numpy(np.asarray(values))[None]}, {name: mask}, edges)[name][0]
        universe |= {Player(name, place): int(bins[place]) for place in candidates[name] if bins[place] >= 0}
    return universe


def pair_bins(ends: Sequence[tuple[Player, Player]], bins: Mapping[Player, int]) -> IntArray:
    """(P,): the bin, of [`universe_bins`], that holds both ends of a pair; −1 if none does."""
    bin_of = np.array([[bins.get(end, -1) for end in pair] for pair in ends])
    return np.where(bin_of[:, 0] == bin_of[:, 1], bin_of[:, 0], -1)


def alignment(
    scores: Sequence[FloatArray],
    bins: Sequence[IntArray],
    *,
    values: Sequence[FloatArray] | None = None,
    num_bins: int = len(BIN_EDGES),
    shares: Sequence[float] = (0.05, 0.1, 0.2),
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Mean score of the top pairs of every importance bin (Figure 4): the mean over samples of each sample's mean.

    The mean of the highest of noisy estimates is too high, the more so the noisier they are. With second, independent
    estimates, `values`, there is no such bias: `scores` then only rank, and `values` are averaged.

    Args:
        scores, bins, values: per sample (P,); bins from [`pair_bins`], values as scores from another seed.
        num_bins: bins are 0 … num_bins−1.
        shares: of a bin's pairs that are averaged, rounded up.
        num_resamples, seed: of the bootstrap over samples.

    Returns:
        JSON: `confidence`, `ranked_and_valued_by` ("the same scores" or "independent scores"), and `bins`, a list of
        {`num_samples` that have a pair in the bin, `num_pairs` on average, `top`: {"0.05": {`mean`, `interval`}}};
        None where there is nothing to average.

    Raises:
        ValueError: sequences, or one sample's entries in them, of different lengths; no samples; shares outside (0, 1].
    """
    taken = scores if values is None else values
    if not (0 < len(scores) == len(bins) == len(taken)):
        raise ValueError(
            f"scores, bins and values must be of the same samples: {len(scores)}, {len(bins)}, {len(taken)}"
        )
    samples = list(zip(scores, bins, taken, strict=True))
    for number, sample in enumerate(samples):
        if len(set(sizes := tuple(map(len, sample)))) > 1:
            raise ValueError(f"scores, bins and values of sample {number} are of different pairs: {sizes}")
    rows = []
    for number in range(num_bins):
        used = [(x[bin_of == number], y[bin_of == number]) for x, bin_of, y in samples if (bin_of == number).any()]
        top: dict[str, dict[str, Any]] = {}
        for share in shares:
            means = np.array([y[top_pairs(x, share)].mean() for x, y in used])
            top[f"{share:g}"] = {"mean": None, "interval": None}
            if used:
                resampled = weighted_means(means, resample(len(used), num_resamples, seed)[1:])
                top[f"{share:g}"] = {"mean": float(means.mean()), "interval": interval(resampled)}
        count = float(np.mean([len(x) for x, _ in used])) if used else None
        rows.append({"num_samples": len(used), "num_pairs": count, "top": top})
    by = "the same scores" if values is None else "independent scores"
    return {"confidence": CONFIDENCE, "ranked_and_valued_by": by, "bins": rows}
