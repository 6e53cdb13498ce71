"""Numbers as JSON takes them, and back: NaN, which JSON lacks, is None there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .tasks import FloatArray


def plain(values: ArrayLike) -> Any:
    """An array as nested lists, a number as a float; None for NaN."""
    array = np.asarray(values, np.float64)
    return [plain(value) for value in array] if array.ndim else None if np.isnan(array) else float(array)


def from_plain(values: Sequence[float | None]) -> FloatArray:
    """The inverse of [`plain`] for one list: (n,)."""
    return np.array([np.nan if value is None else value for value in values], np.float64)
