"""Drops of metrics, areas under curves, spreads, bootstrap intervals, and numbers as plain JSON.

Shapes: N samples or groups of them, R resamples, D draws, Q shares.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .tasks import FloatArray

CONFIDENCE = 0.95
"""Share of the resamples that lie in an interval."""


def plain(values: ArrayLike) -> Any:
    """An array as nested lists, a number as a float; None for NaN, which JSON lacks."""
    array = np.asarray(values, np.float64)
    return [plain(value) for value in array] if array.ndim else None if np.isnan(array) else float(array)


def from_plain(values: Sequence[float | None]) -> FloatArray:
    """The inverse of [`plain`] for one list: (n,)."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def drop(base: FloatArray | float, masked: FloatArray, greater_is_better: bool) -> FloatArray:
    """What masking costs: `base − masked` of a metric, `masked − base` of an error. Greater is always worse."""
    return (base - masked) * (1 if greater_is_better else -1)


def area_under(values: FloatArray, positions: Sequence[float]) -> FloatArray:
    """(…, Q) values at rising positions (Q,) → (…), by trapezoids."""
    return np.asarray(np.trapezoid(values, positions, axis=-1))


def spread(values: FloatArray) -> FloatArray:
    """Standard deviation of what could be drawn, estimated from (D, …) draws: (…), NaN of a single one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def describe_draws(values: FloatArray) -> dict[str, float | None]:
    """(D,) → `mean`, `std`, `min`, `max`, as plain JSON."""
    statistics = {"mean": values.mean(), "std": spread(values), "min": values.min(), "max": values.max()}
    return {name: plain(value) for name, value in statistics.items()}


def resample(num_groups: int, num_resamples: int, seed: int = 0) -> FloatArray:
    """How often each group is drawn: (1 + R, N). Row 0 holds ones, the sample itself; the others are a bootstrap."""
    draws = np.random.default_rng(seed).multinomial(num_groups, [1 / num_groups] * num_groups, size=num_resamples)
    return np.concatenate([np.ones((1, num_groups)), draws])


def weighted_means(values: FloatArray, weights: FloatArray) -> FloatArray:
    """(…, N) and (1 + R, N) → (…, 1 + R); NaN are left out, and a mean of nothing is NaN."""
    defined = np.isfinite(values)
    sums, counts = np.where(defined, values, 0) @ weights.T, defined @ weights.T
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def interval(resampled: FloatArray) -> list[float] | None:
    """[low, high] of (R,) resampled values, their middle 95 %; undefined ones are left out, None if all are."""
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return None
    return np.percentile(defined, (50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE)).tolist()


def with_interval(values: FloatArray) -> dict[str, Any]:
    """(1 + R,) a value and its resamples → {`value`, `interval`}, as plain JSON."""
    return {"value": plain(values[0]), "interval": interval(values[1:])}
