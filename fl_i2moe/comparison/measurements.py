"""
What else is measured on a trained system: what it costs, and what it predicts where a modality is missing or noised.

Each is a [`~fl_i2moe.comparison.systems.Measurement`]. What it measures it writes into a file in the run's folder, and
reads it there when it is called again.
"""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ..cache import FeatureCache
from ..cache.batching import create_data_loader, feature_means
from ..metrics.tasks import difference
from ..model.configuration_fl_i2moe import FILLS
from ..model.modeling_fl_i2moe import FLI2MoEModel, FLI2MoEOutput
from ..training.arguments import Job
from ..training.experiment import describe_machine, keep_json, summarise_runs
from ..training.features import model_config
from ..training.loop import create_optimizer, predict, predict_split
from ..training.results import RESULTS_FILE, read_results

REPETITIONS = 3
CONDITIONS: tuple[str | float, ...] = (*FILLS, 0.5, 1.0)
"""What replaces a modality; or the level of noise on it."""


OVERHEAD = {"train_seconds": [float], "inference_seconds": [float], "machine": dict}
ROBUSTNESS = {str: {str: {str: (float, None)}}}


def measure_overhead(
    folder: Path, job: Job, cache: FeatureCache, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """
    Times a fresh model (I²MoE, table 6): `train s / epoch`, of training steps alone, without the validation and writing
    that `training_seconds` include, and `inference s`, of the test split. Mean and standard deviation are of three
    repetitions after one that does not count.
    """
    found = keep_json(
        folder / "overhead.json",
        OVERHEAD,
        lambda: {**_time(job, cache, accelerator), "machine": describe_machine(accelerator)},
        accelerator,
    )
    columns = {"train s / epoch": found["train_seconds"], "inference s": found["inference_seconds"]}
    return {
        name: {"mean": mean(x), "std": stdev(x), "text": f"{mean(x):.2f} ± {stdev(x):.2f}"}
        for name, x in columns.items()
    }


def _time(job: Job, cache: FeatureCache, accelerator: Accelerator) -> dict[str, list[float]]:
    accelerator.free_memory()
    config = model_config(job, cache)
    set_seed(job.training.seeds[0])
    model = FLI2MoEModel(config)
    if config.keeps_means:
        model.set_feature_means(feature_means(cache.splits["train"], config.modality_order))
    train_loader, test_loader = (
        create_data_loader(
            cache.splits[split], config.modality_order, batch_size=job.training.batch_size, shuffle=split == "train"
        )
        for split in ("train", "test")
    )
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, create_optimizer(model, job.training), train_loader, test_loader
    )

    def train_epoch() -> None:
        model.train()
        for batch in train_loader:
            output = model(features=batch["features"], feature_masks=batch["feature_masks"], labels=batch["labels"])
            accelerator.backward(output.loss)
            if job.training.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), job.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    def seconds(task: Callable[[], Any]) -> float:
        started = time.perf_counter()
        task()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        return round(time.perf_counter() - started, 4)

    tasks = {"train_seconds": train_epoch, "inference_seconds": lambda: predict(model, test_loader, accelerator)}
    return {name: [seconds(task) for _ in range(REPETITIONS + 1)][1:] for name, task in tasks.items()}


class ConditionedModel(nn.Module):
    """
    A model, called as itself, of which one modality is replaced `by` `"random"`, `"zero"` or `"mean"`, or noised, where
    `by` is the level of the noise.
    """

    def __init__(self, model: FLI2MoEModel, modality: str, by: str | float):
        super().__init__()
        self.model, self.modality, self.by = model, modality, by
        self.title = f"without {modality} ({by})" if isinstance(by, str) else f"noise {by} on {modality}"

    def forward(self, features: dict[str, torch.Tensor], feature_masks: dict[str, torch.Tensor]) -> FLI2MoEOutput:
        projected, name = self.model.embed(features, feature_masks), self.modality
        masks = None if self.model.config.level == "pooled" else feature_masks
        if isinstance(self.by, str):
            projected = self.model.replace_modality(projected, name, self.by)
        else:
            projected = {**projected, name: add_noise(projected[name], (masks or {}).get(name), self.by)}
        return self.model.run_mixture(projected, masks)


def add_noise(x: torch.Tensor, mask: torch.Tensor | None, level: float) -> torch.Tensor:
    """(B, T, H), mask (B, T) of real features → the same with noise of `level` · root mean square of each sample."""
    mask = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
    energy = (x.square().mean(dim=-1) * mask).sum(dim=1) / mask.sum(dim=1)
    return x + level * energy.sqrt()[:, None, None] * torch.randn_like(x)


def measure_robustness(
    folder: Path, job: Job, cache: FeatureCache, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """
    The metrics of the test split with a modality missing or noised (FL-I²MoE, future work), for the best model of each
    seed. A missing modality is replaced at its real positions, in hidden space, as in the perturbed views of training.
    A noised one gets Gaussian noise there, of so many times the root mean square of the sample's own features.

    Returns:
        Condition → `metrics`: metric → `mean` and `std` over the seeds, `values` by seed, and the `difference` of the
        mean to that without a condition.

    Raises:
        ValueError: a model keeps no mean features.
    """
    whole = read_results(folder / RESULTS_FILE, cache.problem_type)["test"]
    found = keep_json(
        folder / "robustness.json", ROBUSTNESS, lambda: _evaluate(folder, job, cache, accelerator), accelerator
    )
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
        for modality, by in product(order, CONDITIONS):
            set_seed(seed, device_specific=True)
            conditioned = ConditionedModel(model, modality, by)
            predictions = predict_split(conditioned, cache.splits["test"], order, accelerator, job.training.batch_size)
            metrics = predictions.metrics(cache.problem_type, job.training.threshold)
            found.setdefault(conditioned.title, {})[str(seed)] = metrics
    return found
