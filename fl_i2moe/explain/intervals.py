"""Standard errors and 95 % intervals of many means of the same few draws.

Shapes: D draws, P means.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..metrics.summaries import CONFIDENCE
from ..metrics.tasks import FloatArray


@dataclass(frozen=True, eq=False)
class Estimates:
    """Values (P,), their standard errors (P,) and 95 % intervals (P, 2); NaN where there is none."""

    values: FloatArray
    errors: FloatArray
    intervals: FloatArray

    @property
    def columns(self) -> FloatArray:
        """(P, 4): value, standard error, and both ends of the interval."""
        return np.column_stack([self.values, self.errors, self.intervals])


def with_intervals(values: FloatArray, draws: FloatArray) -> Estimates:
    """Of `values` (P,), the means of `draws` (D, P) or what has these as pseudo-values; of a single draw NaN."""
    num_draws = len(draws)
    if num_draws == 1:
        return Estimates(values, np.full(values.shape, np.nan), np.full((*values.shape, 2), np.nan))
    errors = draws.std(axis=0, ddof=1) / np.sqrt(num_draws)
    width = stats.t.ppf(0.5 + CONFIDENCE / 2, num_draws - 1) * errors
    return Estimates(values, errors, np.stack([values - width, values + width], axis=1))
