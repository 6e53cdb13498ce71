"""Standard errors and 95 % intervals of many means of the same few draws.

Shapes: D draws, P means.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..metrics.summaries import CONFIDENCE
from ..metrics.tasks import FloatArray, IntArray

PRIOR_DRAWS = 4
"""Degrees of freedom that the variances of a mean's neighbours are worth."""

PRIOR_PAIRS = 0.5
"""Antithetic pairs that the assumption is worth that a draw and its antithesis are independent."""


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

    @classmethod
    def from_columns(cls, columns: FloatArray) -> "Estimates":
        return cls(columns[:, 0], columns[:, 1], columns[:, 2:])


def with_intervals(
    values: FloatArray, draws: FloatArray, ends: IntArray, *, antithetic: bool = False, rounding: float = 0.0
) -> Estimates:
    """
    Of `values` (P,), the means of `draws` (D, P), or what has these as the jackknife's pseudo-values; NaN of one draw.

    A few skewed draws, many of them 0, tell too little of their variance for an interval that holds. It is moderated as
    limma does (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3): with the d+1 independent draws' own variance s² and a
    variance v that is expected of it, `(d s² + k v) / (d + k)`, and Student's quantile for d+k. Here k is fixed at
    `PRIOR_DRAWS`, for few skewed variances do not tell it. v is the mean of three: the own one, and the averages over
    all means that share the first and the second of the `ends`.

    Antithetic draws 2i and 2i+1 count as one, their mean, of which there are few. So v is that of single draws times
    the ratio of the two, over all P; `PRIOR_PAIRS` draw it to that of independent draws.

    Measured on 300 exact games of 8 to 12 features of five trained models (numeric samples of two and three modalities,
    published and specialised): the constants were chosen on half of them, and on the other half, with 4, 8 and 16
    shared draws, intervals held the index in 96.6, 96.1 and 96.5 % of pairs, the gap in 95.8, 95.2 and 95.7, its
    variant in 95.2, 94.2 and 94.7, Shapley values in 98.0, 96.7 and 96.9. By expert 94 to 99 %, of the third of a
    game's pairs with the largest index 94 to 95, with the smallest 98; the worst expert of a model 87 (gap). Normal
    intervals of the same draws held the index in 63, 82 and 89 %.

    Args:
        ends: (P, 2), numbers from 0; means that share one are expected to vary alike.
        rounding: standard error of all values that draws do not show.
    """
    num_draws = len(draws)
    if num_draws == 1:
        return Estimates(values, np.full(values.shape, np.nan), np.full((*values.shape, 2), np.nan))
    single = own = draws.var(axis=0, ddof=1)
    paired = num_draws // 2 * 2 if antithetic else num_draws
    freedom, ratio = num_draws - 1, 1.0
    if antithetic:
        freedom = paired // 2 - 1
        if freedom:
            own = 2 * ((draws[:paired:2] + draws[1:paired:2]) / 2).var(axis=0, ddof=1)
        if single.any():
            ratio = (freedom * own.sum() / single.sum() + PRIOR_PAIRS) / (freedom + PRIOR_PAIRS)
    expected = _expected(single, ends)
    moderated = (freedom * own + PRIOR_DRAWS * ratio * expected) / (freedom + PRIOR_DRAWS)
    # a last draw may have no antithesis
    own, moderated = (
        (paired * of_paired + (num_draws - paired) * alone) / num_draws
        for of_paired, alone in ((own, single), (moderated, expected))
    )
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom + PRIOR_DRAWS)
    width = quantile * np.sqrt(moderated / num_draws + rounding**2)
    return Estimates(values, np.sqrt(own / num_draws), np.stack([values - width, values + width], axis=1))


def _expected(variances: FloatArray, ends: IntArray) -> FloatArray:
    """(P,): the mean of a variance and of the averages over those that share either end."""
    sums = np.bincount(ends.ravel(), np.repeat(variances, 2))
    averages = sums[ends] / np.bincount(ends.ravel())[ends]
    return (variances + averages.sum(axis=1)) / 3
