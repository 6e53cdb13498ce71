"""Do pair scores mean anything to the model: alignment with importance, and masking of pairs (design 5.6).

Figure 4 and Table 1 of the FL-I²MoE paper, with intervals: samples are drawn anew with replacement (percentile
bootstrap), the same ones for all conditions of a comparison.

Shapes: B samples of a batch, T_m features of modality m, N players of a sample, P pairs, G samples in all, C classes,
Q shares, D random draws.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..metrics import METRICS_BY_PROBLEM, compute_metrics
from .attribution import top_features
from .game import Player
from .inputs import Inputs
from .interactions import FloatArray, IntArray, SamplePairs

BoolArray = NDArray[np.bool_]

Evaluate = Callable[[Inputs, dict[str, Tensor]], Tensor]
"""Samples and keep masks (modality → (B, T_m), false where a feature is zeroed) → logits (B, C)."""

BIN_EDGES = (0.1, 0.2, 0.3)
CURVE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
CONFIDENCE = 0.95
MAX_REDRAWS = 1000


# ---- alignment with importance -------------------------------------------------------------------------------------


def importance_bins(
    scores: dict[str, Tensor], candidate_masks: dict[str, Tensor], edges: Sequence[float] = BIN_EDGES
) -> dict[str, Tensor]:
    """
    Which share of a modality's candidates a feature belongs to: bin 0 holds the top `edges[0]`, bin 1 what the top
    `edges[1]` add, and so on, each as `top_features` selects it.

    Args:
        scores: modality → (B, …, T_m).
        candidate_masks: modality → (B, T_m), true for what may be ranked.
        edges: rising shares in (0, 1].

    Returns:
        Modality → (B, …, T_m) int64, −1 outside all bins. `bins[m] >= 0` is the universe of the top `edges[-1]`.

    Raises:
        ValueError: edges that are none.
    """
    if not edges or list(edges) != sorted(set(edges)) or edges[0] <= 0 or edges[-1] > 1:
        raise ValueError(f"edges must rise within (0, 1], got {list(edges)}")
    bins = {name: torch.full_like(values, -1, dtype=torch.long) for name, values in scores.items()}
    for number, edge in reversed(list(enumerate(edges))):
        for name, inside in top_features(scores, candidate_masks, edge).items():
            bins[name][inside] = number
    return bins


def pair_bins(players: Sequence[Player], pairs: IntArray, bins: dict[str, Tensor]) -> IntArray:
    """(P,) the bin of both ends, −1 where they differ or lie outside; `bins` are one sample's, modality → (T_m,)."""
    bin_of = np.array([int(bins[name][position]) for name, position in players])
    ends = bin_of[pairs]
    return np.where(ends[:, 0] == ends[:, 1], ends[:, 0], -1)


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

    The mean of the highest of noisy estimates is too high, the more so the noisier they are. Where `values` brings
    second, independent estimates, `scores` only rank and `values` are averaged, which is free of that.

    Args:
        scores: per sample (P,).
        bins: per sample (P,), from `pair_bins`.
        values: per sample (P,), as `scores` from another seed.
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
    for number, sizes in enumerate(zip(map(len, scores), map(len, bins), map(len, taken), strict=True)):
        if len(set(sizes)) > 1:
            raise ValueError(f"scores, bins and values of sample {number} are of different pairs: {sizes}")
    for share in shares:
        _check_share(share)
    rows = []
    for number in range(num_bins):
        inside = [np.flatnonzero(bin_of == number) for bin_of in bins]
        used = [sample for sample, pairs in enumerate(inside) if len(pairs)]
        top = {}
        for share in shares:
            means = np.array([taken[i][inside[i][top_pairs(scores[i][inside[i]], share)]].mean() for i in used])
            top[f"{share:g}"] = _mean_with_interval(means, num_resamples, seed)
        count = float(np.mean([len(inside[i]) for i in used])) if used else None
        rows.append({"num_samples": len(used), "num_pairs": count, "top": top})
    by = "the same scores" if values is None else "independent scores"
    return {"confidence": CONFIDENCE, "ranked_and_valued_by": by, "bins": rows}


def _mean_with_interval(values: FloatArray, num_resamples: int, seed: int) -> dict[str, Any]:
    if not len(values):
        return {"mean": None, "interval": None}
    low, high = _interval(lambda rows: values[rows].mean(keepdims=True), len(values), num_resamples, seed)
    return {"mean": float(values.mean()), "interval": _couple(low[0], high[0])}


# ---- choosing pairs ------------------------------------------------------------------------------------------------


def top_pairs(scores: FloatArray, share: float) -> IntArray:
    """Indexes of the highest max(1, ⌈share · P⌉) of (P,) scores, best first; ties go to the earlier pair."""
    _check_share(share)
    return (-scores).argsort(kind="stable")[: _number(share, len(scores))]


def random_pairs(pairs: IntArray, num_features: int, rng: np.random.Generator) -> IntArray:
    """
    Indexes of random pairs that have `num_features` distinct ends between them.

    Pairs come in random order; one that would overshoot is passed over, and one that adds no end is taken.

    Raises:
        ValueError: no such choice was found, which cannot be where any feature pairs with all of another modality and
            at least 2 features are asked for.
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


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"a share of pairs must lie in (0, 1], got {share}")


def _number(share: float, num_pairs: int) -> int:
    return max(1, math.ceil(share * num_pairs - 1e-9))


def _ends(pairs: IntArray, chosen: IntArray, num_players: int) -> BoolArray:
    """(N,) true for the ends of the chosen pairs."""
    ends = np.zeros(num_players, np.bool_)
    ends[pairs[chosen].ravel()] = True
    return ends


def _keep(inputs: Inputs, samples: Sequence[SamplePairs], masked: Sequence[BoolArray]) -> dict[str, Tensor]:
    """Modality → (B, T_m), false for the players (N,) of each sample that are `masked`."""
    keep = {name: torch.ones_like(mask) for name, mask in inputs.feature_masks.items()}
    for row, (sample, mask) in enumerate(zip(samples, masked, strict=True)):
        for player in np.flatnonzero(mask):
            name, position = sample.players[player]
            keep[name][row, position] = False
    return keep


def _logits(
    evaluate: Evaluate, inputs: Inputs, samples: Sequence[SamplePairs], masked: Sequence[BoolArray]
) -> FloatArray:
    return evaluate(inputs, _keep(inputs, samples, masked)).detach().double().cpu().numpy()


# ---- pair masking --------------------------------------------------------------------------------------------------


def pair_masking_logits(
    evaluate: Evaluate,
    inputs: Inputs,
    samples: Sequence[SamplePairs],
    kind: str = "sii",
    *,
    share: float = 0.05,
    num_draws: int = 10,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """
    A batch's logits without the pairs that score highest, and without random ones (Table 1). Both ends of a pair are
    zeroed.

    Args:
        evaluate: the whole model, `masking.masked_logits` with its model.
        inputs: B samples.
        samples: B, with the candidate pairs: the paper takes all between the top 10 % features of each modality.
        kind: of score, as `PairScores.score` takes it.
        share: of the pairs, rounded up, at least one.
        num_draws: D.
        seed: of the draws, with each sample's number.

    Returns:
        `none` and `ranked` (B, C); `random_same_features` (D, B, C): random pairs with as many distinct features as the
        ranked ones have; `random_same_pairs` (D, B, C): as many pairs, the paper's comparison, which zeroes more
        features where ranked pairs share their ends; `num_pairs`, `num_features` (B,) of the ranked, and
        `num_features_same_pairs` (D, B). Join batches along the B axis for [`pair_masking_table`].
    """
    _check_samples(inputs, samples, num_draws)
    ranked: list[BoolArray] = []
    same_features: list[list[BoolArray]] = [[] for _ in range(num_draws)]
    same_pairs: list[list[BoolArray]] = [[] for _ in range(num_draws)]
    for sample in samples:
        pairs, num_players = sample.scores.pairs, len(sample.players)
        rng = np.random.default_rng([seed, sample.number])
        chosen = top_pairs(sample.scores.score(kind), share)
        ranked.append(_ends(pairs, chosen, num_players))
        for draw in range(num_draws):
            matched = random_pairs(pairs, int(ranked[-1].sum()), rng)
            same_features[draw].append(_ends(pairs, matched, num_players))
            equal = rng.permutation(len(pairs))[: len(chosen)]
            same_pairs[draw].append(_ends(pairs, equal, num_players))

    def run(masked: Sequence[BoolArray]) -> FloatArray:
        return _logits(evaluate, inputs, samples, masked)

    return {
        "none": run([np.zeros_like(mask) for mask in ranked]),
        "ranked": run(ranked),
        "random_same_features": np.stack([run(masked) for masked in same_features]),
        "random_same_pairs": np.stack([run(masked) for masked in same_pairs]),
        "num_pairs": np.array([_number(share, len(sample.scores.pairs)) for sample in samples]),
        "num_features": np.array([mask.sum() for mask in ranked]),
        "num_features_same_pairs": np.array([[mask.sum() for mask in masked] for masked in same_pairs]),
    }


def pair_masking_table(
    logits: dict[str, NDArray[Any]],
    labels: ArrayLike | Tensor,
    problem_type: str,
    *,
    num_resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Table 1 from all samples' logits.

    Args:
        logits: as [`pair_masking_logits`] gives them, of all G samples.
        labels, problem_type: as in `compute_metrics`.
        num_resamples, seed: of the bootstrap over samples, each of which computes the metrics 2 + 2·D times.

    Returns:
        JSON: `num_samples`, `confidence`, `num_pairs`, `num_features`, `num_features_same_pairs` (means over samples),
        and `metrics`: metric → {`none`, `ranked`: value; `random_same_features`, `random_same_pairs`: {`mean`, `std`,
        `min`, `max`} over draws; `drop` of each of the three, {`value`, `interval`}; `ranked_minus_random`: how much
        more the metric drops without the ranked pairs than without random ones with as many features, {`value`,
        `interval`}}. A drop is the metric without masking minus with; errors, where lower is better, so drop below 0.
        None for what is undefined.
    """
    labels = _array(labels)
    randoms = ("random_same_features", "random_same_pairs")
    names = list(METRICS_BY_PROBLEM[problem_type])

    def metrics(values: FloatArray, rows: IntArray | slice) -> FloatArray:
        computed = compute_metrics(values[rows], labels[rows], problem_type)
        return np.array([computed[name] for name in names])

    def drops(rows: IntArray | slice) -> FloatArray:
        """(4, metrics): of ranked, the two random ones, and ranked minus the first of them."""
        base = metrics(logits["none"], rows)
        ranked = base - metrics(logits["ranked"], rows)
        by_chance = [base - np.mean([metrics(draw, rows) for draw in logits[name]], axis=0) for name in randoms]
        return np.stack([ranked, *by_chance, ranked - by_chance[0]])

    everything = slice(None)
    values, (low, high) = drops(everything), _interval(drops, len(labels), num_resamples, seed)
    none, ranked = metrics(logits["none"], everything), metrics(logits["ranked"], everything)
    draws = {name: np.stack([metrics(draw, everything) for draw in logits[name]]) for name in randoms}
    table = {}
    for m, metric in enumerate(names):
        found = [{"value": _plain(values[i, m]), "interval": _couple(low[i, m], high[i, m])} for i in range(4)]
        table[metric] = {
            "none": _plain(none[m]),
            "ranked": _plain(ranked[m]),
            **{name: _over_draws(values[:, m]) for name, values in draws.items()},
            "drop": dict(zip(("ranked", *randoms), found[:3], strict=True)),
            "ranked_minus_random": found[3],
        }
    counts = ("num_pairs", "num_features", "num_features_same_pairs")
    return {
        "num_samples": len(labels),
        "confidence": CONFIDENCE,
        **{name: float(np.mean(logits[name])) for name in counts},
        "metrics": table,
    }


# ---- curves --------------------------------------------------------------------------------------------------------


def pair_curve_logits(
    evaluate: Evaluate,
    inputs: Inputs,
    samples: Sequence[SamplePairs],
    kind: str = "sii",
    *,
    direction: Literal["deletion", "insertion"] = "deletion",
    shares: Sequence[float] = CURVE_SHARES,
    num_draws: int = 5,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """
    A batch's logits as pairs go ("deletion": the ends of the first share of pairs are zeroed) or come ("insertion": of
    all ends only those of the first share are there), the highest scores first and in random order.

    Args:
        evaluate, inputs, samples, kind, seed: as [`pair_masking_logits`] takes them.
        shares: Q rising shares of the pairs in [0, 1]; 0 takes none.
        num_draws: D random orders.

    Returns:
        `ranked` (Q, B, C), `random` (D, Q, B, C), and how many features are zeroed: `num_features` (Q, B) and
        `num_features_random` (D, Q, B). Join batches along the B axis for [`pair_curves`].

    Raises:
        ValueError: another direction; shares that are none.
    """
    _check_samples(inputs, samples, num_draws)
    if direction not in ("deletion", "insertion"):
        raise ValueError(f"direction must be 'deletion' or 'insertion', got {direction!r}")
    if list(shares) != sorted(set(shares)) or len(shares) < 2 or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"shares must be two or more that rise within [0, 1], got {list(shares)}")
    masked: list[list[list[BoolArray]]] = [[[] for _ in shares] for _ in range(num_draws + 1)]
    for sample in samples:
        pairs = sample.scores.pairs
        rng = np.random.default_rng([seed, sample.number])
        by_score = (-sample.scores.score(kind)).argsort(kind="stable")
        everything = _ends(pairs, by_score, len(sample.players))
        for order, curve in zip(
            [by_score, *(rng.permutation(len(pairs)) for _ in range(num_draws))], masked, strict=True
        ):
            for share, masks in zip(shares, curve, strict=True):
                number = _number(share, len(pairs)) if share else 0
                ends = _ends(pairs, order[:number], len(sample.players))
                masks.append(ends if direction == "deletion" else everything & ~ends)
    logits = np.stack([np.stack([_logits(evaluate, inputs, samples, masks) for masks in curve]) for curve in masked])
    counts = np.array([[[mask.sum() for mask in masks] for masks in curve] for curve in masked])
    return {
        "ranked": logits[0],
        "random": logits[1:],
        "num_features": counts[0],
        "num_features_random": counts[1:],
    }


def pair_curves(
    logits: dict[str, NDArray[Any]],
    labels: ArrayLike | Tensor,
    problem_type: str,
    *,
    shares: Sequence[float] = CURVE_SHARES,
    num_resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Metrics along the curves of [`pair_curve_logits`] and the areas under them.

    Returns:
        JSON: `num_samples`, `confidence`, `shares`, `num_features`, `num_features_random` (means over samples, (Q,)),
        and `metrics`: metric → {`ranked`: {`values` (Q,), `area`}; `random`: {`values` (Q,) means over draws, `std`
        (Q,), `area`: {`mean`, `std`, `min`, `max`} over draws}; `area_ranked_minus_random`: {`value`, `interval`}}.
        An area is the mean height of the curve (trapezoids over the shares, divided by their range). Without
        resamples, each of which computes the metrics Q + D·Q times, there is no interval.
    """
    labels, positions = _array(labels), np.asarray(shares, np.float64)
    names = list(METRICS_BY_PROBLEM[problem_type])
    if logits["ranked"].shape[0] != len(positions):
        raise ValueError(f"the logits are of {logits['ranked'].shape[0]} shares, got {len(positions)}")

    def curve(values: FloatArray, rows: IntArray | slice) -> FloatArray:
        """(metrics, Q)"""
        computed = [compute_metrics(point[rows], labels[rows], problem_type) for point in values]
        return np.array([[point[name] for point in computed] for name in names])

    def area(curves: FloatArray) -> FloatArray:
        return np.trapezoid(curves, positions, axis=-1) / (positions[-1] - positions[0])

    def difference(rows: IntArray | slice) -> FloatArray:
        return area(curve(logits["ranked"], rows)) - np.mean(
            [area(curve(draw, rows)) for draw in logits["random"]], axis=0
        )

    everything = slice(None)
    ranked = curve(logits["ranked"], everything)
    randoms = np.stack([curve(draw, everything) for draw in logits["random"]])
    low, high = _interval(difference, len(labels), num_resamples, seed)
    table = {}
    for m, metric in enumerate(names):
        table[metric] = {
            "ranked": {"values": _plain(ranked[m]), "area": _plain(area(ranked[m]))},
            "random": {
                "values": _plain(randoms[:, m].mean(axis=0)),
                "std": _plain(randoms[:, m].std(axis=0)),
                "area": _over_draws(area(randoms[:, m])),
            },
            "area_ranked_minus_random": {
                "value": _plain(area(ranked[m]) - area(randoms[:, m]).mean()),
                "interval": _couple(low[m], high[m]),
            },
        }
    return {
        "num_samples": len(labels),
        "confidence": CONFIDENCE,
        "shares": positions.tolist(),
        "num_features": logits["num_features"].mean(axis=-1).tolist(),
        "num_features_random": logits["num_features_random"].mean(axis=(0, 2)).tolist(),
        "metrics": table,
    }


# ---- shared --------------------------------------------------------------------------------------------------------


def _check_samples(inputs: Inputs, samples: Sequence[SamplePairs], num_draws: int) -> None:
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    if len(samples) != len(inputs):
        raise ValueError(f"{len(inputs)} samples, but pairs of {len(samples)}")


def _interval(
    statistic: Callable[[IntArray], FloatArray], num_samples: int, num_resamples: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Percentile bootstrap of a statistic of row numbers; resamples where it is undefined are left out."""
    rng = np.random.default_rng(seed)
    if not num_resamples:
        nothing = np.full_like(statistic(np.arange(num_samples)), np.nan)
        return nothing, nothing
    found = np.stack([statistic(rng.integers(num_samples, size=num_samples)) for _ in range(num_resamples)])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.full(found.shape[1:], np.nan), np.full(found.shape[1:], np.nan)
    for place in np.ndindex(found.shape[1:]):
        values = found[(slice(None), *place)]
        if len(values := values[~np.isnan(values)]):
            low[place], high[place] = np.quantile(values, (tail, 1 - tail))
    return low, high


def _array(labels: ArrayLike | Tensor) -> NDArray[Any]:
    return labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)


def _over_draws(values: FloatArray) -> dict[str, float | None]:
    statistics = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: _plain(value) for name, value in statistics.items()}


def _couple(low: float, high: float) -> list[float] | None:
    return None if np.isnan(low) else [float(low), float(high)]


def _plain(values: ArrayLike) -> Any:
    """As JSON takes it: None instead of NaN."""
    array = np.asarray(values, np.float64)
    return [_plain(value) for value in array] if array.ndim else None if np.isnan(array) else float(array)
