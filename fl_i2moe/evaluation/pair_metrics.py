"""
What masking pairs does to the model's metrics, from the logits of all samples (FL-I²MoE, Table 1).

Intervals are of a bootstrap over samples, the same ones for all conditions; without resamples there are none.

Shapes: G samples in all, C classes, Q shares, D random draws, R resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.summaries import CONFIDENCE, area_under, describe_draws, drop, plain, resample, spread, with_interval
from ..metrics.tasks import METRICS_BY_PROBLEM, FloatArray, compute_metrics
from ..metrics.weighted import weighted_metrics
from .pairs import CURVE_SHARES


def pair_masking_table(
    logits: dict[str, NDArray[Any]],
    labels: NDArray[Any],
    problem_type: str,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Table 1 from all samples' logits.

    Args:
        logits: as `pair_masking_logits` gives them, of all G samples.
        labels, problem_type: as in `compute_metrics`.
        num_resamples, seed: of the bootstrap.

    Returns:
        JSON: `num_samples`, `confidence`, `num_pairs`, `num_features`, `num_features_same_pairs` (means over samples),
        and `metrics`: metric → {`none`, `ranked`: value; `random_same_features`, `random_same_pairs`: {`mean`, `std`,
        `min`, `max`} over draws; `drop` of each of the three, {`value`, `interval`}; `ranked_minus_random`: how much
        more the metric drops without the ranked pairs than without random ones with as many features, {`value`,
        `interval`}}. A drop is the metric without masking minus with, of an error with minus without: greater is
        always worse. None for what is undefined.

    Raises:
        ValueError: as `compute_metrics`.
    """
    measure = _make_measure(labels, problem_type, num_resamples, seed)
    none, ranked = measure(logits["none"]), measure(logits["ranked"])
    names = ("random_same_features", "random_same_pairs")
    randoms = {name: np.stack([measure(draw) for draw in logits[name]]) for name in names}  # (D, metrics, 1 + R)
    table = {}
    for m, (metric, greater_is_better) in enumerate(METRICS_BY_PROBLEM[problem_type].items()):
        drops = {"ranked": drop(none[m], ranked[m], greater_is_better)}
        for name, draws in randoms.items():
            drops[name] = drop(none[m], draws[:, m].mean(axis=0), greater_is_better)
        table[metric] = {
            "none": plain(none[m, 0]),
            "ranked": plain(ranked[m, 0]),
            **{name: describe_draws(draws[:, m, 0]) for name, draws in randoms.items()},
            "drop": {name: with_interval(values) for name, values in drops.items()},
            "ranked_minus_random": with_interval(drops["ranked"] - drops["random_same_features"]),
        }
    counts = {name: float(np.mean(x)) for name, x in logits.items() if name.startswith("num_")}
    return {"num_samples": len(labels), "confidence": CONFIDENCE, **counts, "metrics": table}


def pair_curves(
    logits: dict[str, NDArray[Any]],
    labels: NDArray[Any],
    problem_type: str,
    *,
    shares: Sequence[float] = CURVE_SHARES,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Metrics along the curves of `pair_curve_logits` and the areas under them.

    Args:
        logits: as `pair_curve_logits` gives them, of all G samples.
        labels, problem_type: as in `compute_metrics`.
        shares: those of the logits.
        num_resamples, seed: of the bootstrap.

    Returns:
        JSON: `num_samples`, `confidence`, `shares`, `num_features`, `num_features_random` (means over samples, (Q,)),
        and `metrics`: metric → {`ranked`: {`values` (Q,), `area`}; `random`: {`values` (Q,) means over draws, `std`
        (Q,), `area`: {`mean`, `std`, `min`, `max`} over draws}; `area_ranked_minus_random`: {`value`, `interval`}}.
        An area is the mean height of the curve: the area under it, divided by the range of the shares.

    Raises:
        ValueError: logits of another number of shares; and as `compute_metrics`.
    """
    if logits["ranked"].shape[0] != len(shares):
        raise ValueError(f"the logits are of {logits['ranked'].shape[0]} shares, got {len(shares)}")
    measure = _make_measure(labels, problem_type, num_resamples, seed)

    def curve(points: NDArray[Any]) -> FloatArray:
        """(Q, G, C) → (metrics, 1 + R, Q)"""
        return np.stack([measure(point) for point in points], axis=-1)

    def height(curves: FloatArray) -> FloatArray:
        return area_under(curves, shares) / (shares[-1] - shares[0])

    ranked, randoms = curve(logits["ranked"]), np.stack([curve(draw) for draw in logits["random"]])
    table = {}
    for m, metric in enumerate(METRICS_BY_PROBLEM[problem_type]):
        heights, random_heights = height(ranked[m]), height(randoms[:, m])  # (1 + R,) and (D, 1 + R)
        table[metric] = {
            "ranked": {"values": plain(ranked[m, 0]), "area": plain(heights[0])},
            "random": {
                "values": plain(randoms[:, m, 0].mean(axis=0)),
                "std": plain(spread(randoms[:, m, 0])),
                "area": describe_draws(random_heights[:, 0]),
            },
            "area_ranked_minus_random": with_interval(heights - random_heights.mean(axis=0)),
        }
    return {
        "num_samples": len(labels),
        "confidence": CONFIDENCE,
        "shares": [float(share) for share in shares],
        "num_features": logits["num_features"].mean(axis=-1).tolist(),
        "num_features_random": logits["num_features_random"].mean(axis=(0, 2)).tolist(),
        "metrics": table,
    }


def _make_measure(
    labels: NDArray[Any], problem_type: str, num_resamples: int, seed: int
) -> Callable[[NDArray[Any]], FloatArray]:
    """From logits (G, C) to all metrics of the samples themselves and of the resamples, (metrics, 1 + R)."""
    weights = resample(len(labels), num_resamples, seed)[1:]

    def measure(logits: NDArray[Any]) -> FloatArray:
        themselves = compute_metrics(logits, labels, problem_type)
        resampled = weighted_metrics(logits, labels, problem_type, weights)
        return np.stack([[themselves[m], *resampled[m]] for m in METRICS_BY_PROBLEM[problem_type]])

    return measure
