"""
Comprehensiveness and sufficiency: what the probability of the explained class loses with what an explanation names, and
without everything else (ERASER, DeYoung et al. 2020).

With p(c|x) the probability of the explained class, of several their mean, and r_K the top share K of every modality,

- comprehensiveness(K) = p(c|x) − p(c|x∖r_K): high where the explanation names what the prediction rests on;
- sufficiency(K) = p(c|x) − p(c|r_K): low where what it names is enough;
- AOPC is the mean of either over the shares up to 25 %.

Shapes: G samples · R draws · K shares · C classes · B resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..metrics.summaries import CONFIDENCE, interval, plain, resample, spread, weighted_means, with_interval
from ..metrics.tasks import FloatArray
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..model.probabilities import probabilities

MEASURES = {"comprehensiveness": "deletion", "sufficiency": "insertion"}
"""Measure → the masking that it rests on."""

LARGEST_SHARE = 0.25
"""Of those that AOPC is the mean over."""


def erasure(
    logits: dict[str, Tensor],
    classes: Tensor,
    config: FLI2MoEConfig,
    shares: Sequence[float],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Both measures, from the logits of [`~fl_i2moe.evaluation.masking.faithfulness_logits`] for all samples together.

    Args:
        classes: (G, C), true for the explained ones, see `target_classes`.
        config: of the model; its temperature makes logits probabilities.
        num_resamples, seed: of the bootstrap over samples.

    Returns:
        JSON, with None for what is undefined: `comprehensiveness`, `sufficiency`: method → expert → {`values`,
        `values_std`, lists over the shares; `aopc`, `aopc_std`, `interval`; `beyond_random`: {`value`, `interval`}}.
        Values are means over samples and draws, `_std` the standard deviation of the draws (None of a single draw),
        intervals those of the bootstrap. `beyond_random` is by how much AOPC is better than that of random draws:
        higher comprehensiveness, lower sufficiency; greater is always better. Nothing for a regression, which has no
        probabilities.
    """
    if config.problem_type == "regression":
        return {}
    counts = classes.sum(dim=1).double()
    weights = resample(len(classes), num_resamples, seed)

    def explained(x: Tensor) -> FloatArray:
        """(G, …, C) → (G, …)."""
        own = classes.view(len(classes), *[1] * (x.dim() - 2), -1)
        sums = (probabilities(x.double(), config) * own).sum(dim=-1)
        return (sums / counts.view(-1, *[1] * (sums.dim() - 1))).numpy()

    small = np.array(shares) <= LARGEST_SHARE + 1e-9
    whole = explained(logits["base"])[:, None, None]
    result: dict[str, Any] = {}
    for measure, direction in MEASURES.items():
        losses = {
            tuple(key.split("/")[1:]): whole - explained(masked)  # (G, R, K)
            for key, masked in logits.items()
            if key.startswith(f"{direction}/")
        }
        if not losses:
            continue
        random = next((_area(x, small) for (method, _), x in losses.items() if method == "random"), None)
        for (method, expert), values in losses.items():
            area = _area(values, small)  # (G, R)
            beyond = None
            if random is not None and method != "random":
                better = area.mean(axis=1) - random.mean(axis=1)
                better = better if measure == "comprehensiveness" else -better
                beyond = with_interval(weighted_means(better, weights))
            per_draw = values.mean(axis=0)
            result.setdefault(measure, {}).setdefault(method, {})[expert] = {
                "values": plain(per_draw.mean(axis=0)),
                "values_std": plain(spread(per_draw)),
                "aopc": plain(area.mean()),
                "aopc_std": plain(spread(area.mean(axis=0))),
                "interval": interval(weighted_means(area.mean(axis=1), weights[1:])),
                "beyond_random": beyond,
            }
    return {"confidence": CONFIDENCE, **result} if result else {}


def _area(values: FloatArray, small: NDArray[np.bool_]) -> FloatArray:
    """(G, R, K) → (G, R), the mean over small shares; NaN where there is none."""
    return values[:, :, small].mean(axis=2) if small.any() else np.full(values.shape[:2], np.nan)
