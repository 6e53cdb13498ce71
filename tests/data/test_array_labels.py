"""Tasks and thresholds of labels that mean nothing."""

from pathlib import Path

import numpy as np
import pytest

from fl_i2moe.data.array_labels import read_labels


@pytest.mark.parametrize("problem_type", ["ranking", "", 3, "Regression", ["regression"]])
def test_an_unknown_task(problem_type):
    with pytest.raises(ValueError, match=r"`problem_type` must be one of .*regression"):
        read_labels(np.arange(4), None, problem_type, None, "labels", Path("a.npz"))


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -np.inf, np.float32("nan")])
def test_a_threshold_that_is_no_number(threshold):
    with pytest.raises(ValueError, match="`label_threshold` must be a finite number"):
        read_labels(np.arange(4), None, None, threshold, "labels", Path("a.npz"))
