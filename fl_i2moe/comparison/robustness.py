"""
What a trained model does when a modality is missing or noised at inference (FL-I²MoE, future work).

A missing modality is replaced at its real positions, in hidden space, as in the perturbed views of training. A noised
one gets Gaussian noise there, of so many times the root mean square of the sample's own features.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ..cache import FeatureCache
from ..cache.batching import create_data_loader
from ..metrics.tasks import compute_metrics, defined, difference
from ..model.inputs import FILLS
from ..model.modeling_fl_i2moe import FLI2MoEModel, FLI2MoEOutput
from ..training.experiment import Job, keep_json, summarise_runs
from ..training.loop import predict

NOISE_LEVELS = (0.5, 1.0)
FILE = "robustness.json"


@dataclass(frozen=True)
class Condition:
    """What happens to one modality."""

    modality: str
    by: str | float
    """What replaces it, `"random"`, `"zero"` or `"mean"`; or the level of noise on it."""

    @property
    def title(self) -> str:
        if isinstance(self.by, str):
            return f"without {self.modality} ({self.by})"
        return f"noise {self.by} on {self.modality}"


class ConditionedModel(nn.Module):
    """A model under a condition; called as the model itself."""

    def __init__(self, model: FLI2MoEModel, condition: Condition):
        super().__init__()
        self.model, self.condition = model, condition

    def forward(self, features: dict[str, torch.Tensor], feature_masks: dict[str, torch.Tensor]) -> FLI2MoEOutput:
        projected = self.model.embed(features, feature_masks)
        masks = None if self.model.config.level == "pooled" else feature_masks
        name, by = self.condition.modality, self.condition.by
        if isinstance(by, str):
            projected = self.model.replace_modality(projected, name, by)
        else:
            projected = {**projected, name: add_noise(projected[name], (masks or {}).get(name), by)}
        return self.model.run_mixture(projected, masks)


def add_noise(x: torch.Tensor, mask: torch.Tensor | None, level: float) -> torch.Tensor:
    """(B, T, H), mask (B, T) of real features → the same with noise of `level` · root mean square of each sample."""
    mask = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
    energy = (x.square().mean(dim=-1) * mask).sum(dim=1) / mask.sum(dim=1)
    return x + level * energy.sqrt()[:, None, None] * torch.randn_like(x)


def all_conditions(modality_order: list[str]) -> list[Condition]:
    return [Condition(name, by) for name in modality_order for by in (*FILLS, *NOISE_LEVELS)]


def measure_robustness(
    folder: Path, job: Job, cache: FeatureCache, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """
    The metrics of the test split under every condition, for the best model of each seed in `folder`.

    Writes them by condition and seed into `robustness.json`; a second call reads them there.

    Returns:
        Condition → `metrics`: metric → `mean` and `std` over the seeds, `values` by seed, and the `difference` of the
        mean to that without a condition.

    Raises:
        ValueError: a model keeps no mean features.
    """
    whole = json.loads((folder / "results.json").read_text())["test"]
    found = keep_json(folder / FILE, lambda: _evaluate(folder, job, cache, accelerator), accelerator)
    return {
        condition: {
            "metrics": {
                metric: {
                    **entry,
                    "values": {seed: metrics[metric] for seed, metrics in seeds.items()},
                    "difference": difference(entry["mean"], whole[metric]["mean"]),
                }
                for metric, entry in summarise_runs(list(seeds.values())).items()
            }
        }
        for condition, seeds in found.items()
    }


def _evaluate(folder: Path, job: Job, cache: FeatureCache, accelerator: Accelerator) -> dict[str, dict[str, Any]]:
    """Condition → seed → metrics."""
    found: dict[str, dict[str, Any]] = {}
    for seed in job.training.seeds:
        model = FLI2MoEModel.from_pretrained(folder / f"seed-{seed}" / "model").to(accelerator.device)
        order = model.config.modality_order
        for condition in all_conditions(order):
            set_seed(seed, device_specific=True)
            loader = create_data_loader(cache.splits["test"], order, batch_size=job.training.batch_size, shuffle=False)
            predictions = predict(ConditionedModel(model, condition), accelerator.prepare(loader), accelerator)
            metrics = compute_metrics(
                predictions.logits, predictions.labels, cache.problem_type, job.training.threshold
            )
            found.setdefault(condition.title, {})[str(seed)] = defined(metrics)
    return found
