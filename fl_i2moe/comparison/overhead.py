"""What a system costs (I²MoE, table 6): seconds of an epoch of training and of inference on the test split."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..cache import FeatureCache
from ..cache.batching import create_data_loader, feature_means
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..training.arguments import Job
from ..training.experiment import describe_machine, keep_json
from ..training.features import model_config
from ..training.loop import create_optimizer, predict

FILE = "overhead.json"
REPETITIONS = 3


def measure_overhead(
    folder: Path, job: Job, cache: FeatureCache, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """
    Times a fresh model: training steps of whole epochs, and predictions, after one epoch that is not counted.

    Nothing is validated or written in between, as it is in `training_seconds`. The times go into `overhead.json`; a
    second call reads them there.

    Returns:
        `train s / epoch` and `inference s`, with mean and standard deviation of three repetitions.
    """
    found = keep_json(
        folder / FILE,
        lambda: {**_measure(job, cache, accelerator), "machine": describe_machine(accelerator)},
        accelerator,
    )
    return {"train s / epoch": _column(found["train_seconds"]), "inference s": _column(found["inference_seconds"])}


def _measure(job: Job, cache: FeatureCache, accelerator: Accelerator) -> dict[str, list[float]]:
    accelerator.free_memory()
    config = model_config(job.model, cache)
    set_seed(job.training.seeds[0])
    model = FLI2MoEModel(config)
    if config.keeps_means:
        model.set_feature_means(feature_means(cache.splits["train"], config.modality_order))

    def loader(split: str, shuffle: bool):
        return create_data_loader(
            cache.splits[split], config.modality_order, batch_size=job.training.batch_size, shuffle=shuffle
        )

    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model, create_optimizer(model, job.training), loader("train", True), loader("test", False)
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

    tasks = {"train_seconds": train_epoch, "inference_seconds": lambda: predict(model, test_loader, accelerator)}
    return {name: _times(task, accelerator) for name, task in tasks.items()}


def _times(task: Callable[[], Any], accelerator: Accelerator) -> list[float]:
    seconds = []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        task()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        seconds.append(round(time.perf_counter() - started, 4))
    return seconds[1:]


def _column(seconds: list[float]) -> dict[str, Any]:
    return {"mean": mean(seconds), "std": stdev(seconds), "text": f"{mean(seconds):.2f} ± {stdev(seconds):.2f}"}
