"""
A whole job: features → one training run per seed → results, statistics, figures.

What differs between data sets comes in as a `RawDataset` and the encoders' names; recipes choose them.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from ..cache import FeatureCache
from ..cache.batching import create_data_loader
from ..cache.encoding import Encoder
from ..cache.key import key_digest
from ..data.raw import RawDataset
from ..metrics.figures import save_statistics_figures
from ..metrics.statistics import compute_statistics
from ..metrics.tasks import METRICS_BY_PROBLEM, compute_metrics, defined, is_share
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..utils.machine import cpu_model, end_with_launcher, keep_freed_memory, multiplies_bfloat16, usable_cores
from ..utils.run_folder import check_run_folder, held_run_folder, replace_files, write_json
from .arguments import (
    CacheArguments,
    EncodingArguments,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    check_metric,
    starts_from_features,
)
from .checkpoints import Checkpoints
from .features import (
    EVALUATION_SPLITS,
    EncoderChoice,
    check_splits,
    choose_encoders,
    describe,
    encode,
    fetch_features,
    load_encoders,
)
from .loop import FittedModel, Predictions, predict, train

# Settings that may change between a run and its resumption: they decide how a result is computed, not which.
UNBINDING = {"output_dir", "resume", "overwrite", "report_to", "checkpoint_steps", "keep_checkpoints", "num_workers"}
UNBINDING |= {"num_threads", "cache_dir", "encoding_batch_size", "encoding_workers"}
FEATURE_SIZES = ("feature_size", "max_features")
PACKAGES = ("fl-i2moe", "torch", "transformers", "datasets", "accelerate")


@dataclass
class Job:
    """The options of a whole job."""

    encoding: CacheArguments
    """[`EncodingArguments`] where encoders are to be loaded."""

    model: ModelArguments
    training: TrainingArguments
    output: OutputArguments

    def __post_init__(self):
        start = self.training.feature_dropout_start
        if start != TrainingArguments.feature_dropout_start and not self.model.feature_dropout:
            raise ValueError(
                f"`feature_dropout_start` {start} needs `feature_dropout`, which is 0: nothing would start."
            )
        if not isinstance(self.encoding, EncodingArguments) or not self.encoding.stream_features:
            return
        if self.training.num_workers > 1:
            raise ValueError("`stream_features` reads in one process: `num_workers` can be 0 or 1.")
        if self.encoding.shuffle_buffer_size < self.training.batch_size:
            raise ValueError("`shuffle_buffer_size` must be at least `batch_size`.")

    def settings(self, **others: Any) -> dict[str, Any]:
        """What decides the result of a run, as plain JSON."""
        parts = [asdict(part) for part in (self.encoding, self.model, self.training, self.output)]
        merged = {name: value for part in parts for name, value in part.items() if name not in UNBINDING}
        return {**merged, **others}


def create_accelerator(training: TrainingArguments, output_dir: str) -> Accelerator:
    """
    Sets up this process: Accelerate, CPU threads, and transformers' own progress bars (off, ours say what goes on).

    The long timeout is for processes that wait while another one writes data. One of several processes ends when their
    launcher was killed.

    Raises:
        ValueError: the tracker is unknown or not installed, or fp16 is asked for without a GPU.
    """
    transformers_logging.disable_progress_bar()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
        log_with=training.report_to,
        project_dir=output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    if training.report_to and not accelerator.log_with:  # Accelerate only warns
        raise ValueError(f"`report_to` {training.report_to}: no such tracker is installed.")
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "fp16":  # Accelerate would compute in float32 and not say so
            raise ValueError("Mixed precision fp16 needs a GPU; use bf16 or no.")
        if accelerator.mixed_precision == "bf16" and not multiplies_bfloat16():
            accelerator.print("This CPU has no bf16 instructions: --mixed_precision bf16 is slower here than no.")
        # `accelerate launch` allows one thread unless it is told otherwise
        torch.set_num_threads(training.num_threads or max(1, usable_cores() // accelerator.num_processes))
        keep_freed_memory()
    return accelerator


def run_experiment(
    raw: RawDataset | None,
    encoders: Mapping[str, EncoderChoice | Encoder],
    job: Job,
    accelerator: Accelerator,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """
    Encodes, trains, evaluates, and writes everything into `job.output.output_dir`.

    Args:
        raw: the data; `None` if `job.encoding.features` holds them encoded.
        encoders: modality → its encoder, or which one to load; of raw data.
        settings: what identifies the run, from [`Job.settings`]; a resumed run must have the same.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: the output folder holds another run; a metric, an encoder or the cache does not fit.
    """
    console = Console(quiet=not accelerator.is_main_process, highlight=False, markup=False, soft_wrap=True)
    output_dir, flags = Path(job.output.output_dir), {"resume": job.output.resume, "overwrite": job.output.overwrite}
    if raw is None:
        with accelerator.main_process_first():
            cache = fetch_features(job.encoding, accelerator.num_processes)
    data = cache if raw is None else raw
    # whatever can be refused is refused before an hour of encoding
    check_splits(data.splits, "The raw data" if raw is not None else f"The feature cache {cache.path}")
    check_metric(job.training.metric, data.problem_type)
    _config(job.model, job.model.unread_modalities(data.modalities), data)
    if accelerator.is_main_process:
        check_run_folder(output_dir, **flags)
    accelerator.wait_for_everyone()

    if raw is None:
        describe(cache, console)
    else:
        encoders = load_encoders(raw, encoders, job.encoding, accelerator)
        sizes = {name: {key: getattr(x, key) for key in FEATURE_SIZES} for name, x in encoders.items()}
        _config(job.model, sizes, raw)
        cache = encode(raw, encoders, job.encoding, accelerator, console)
    return run_on_cache(cache, job, accelerator, settings, console)


def run_on_folder(
    data: Any, job: Job, load: Callable[[], RawDataset], default_encoders: Mapping[str, str]
) -> dict[str, Any]:
    """
    A whole run of a recipe on a folder of raw data, or on features in their place.

    Args:
        data: options of the raw data, a dataclass: `data_dir` and those of the encoders.
        load: reads the raw data.
        default_encoders: kind of modality → encoder where the options name none.

    Returns, raises:
        As [`run_experiment`]; a `ValueError`, too, if neither folder nor features are given, or both.
    """
    from_features = starts_from_features(job.encoding, data, needs="data_dir")
    accelerator = create_accelerator(job.training, job.output.output_dir)
    raw, encoders = None, {}
    if not from_features:
        raw = load()
        encoders = choose_encoders(data, default_encoders, raw.modalities)
    return run_experiment(raw, encoders, job, accelerator, job.settings(**asdict(data)))


def run_on_cache(
    cache: FeatureCache, job: Job, accelerator: Accelerator, settings: dict[str, Any], console: Console
) -> dict[str, Any]:
    """[`run_experiment`] behind the encoders: trains, evaluates and writes."""
    output_dir, flags = Path(job.output.output_dir), {"resume": job.output.resume, "overwrite": job.output.overwrite}
    metric = check_metric(job.training.metric, cache.problem_type)
    config = model_config(job.model, cache)
    settings = {
        **settings,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "features": key_digest(cache.key),
    }
    with held_run_folder(output_dir, settings, **flags, is_writer=accelerator.is_main_process):
        accelerator.wait_for_everyone()
        if job.training.report_to:
            accelerator.init_trackers("fl_i2moe", {key: str(value) for key, value in settings.items()})

        runs = {
            seed: _run_seed(seed, config, cache, job, accelerator, metric, output_dir / f"seed-{seed}")
            for seed in job.training.seeds
        }
        best_seed = _best_seed(runs, metric, METRICS_BY_PROBLEM[cache.problem_type][metric])
        results = {
            "metric": metric,
            "best_seed": best_seed,
            "test": summarise_runs([run["test"] for run in runs.values()]),
            "validation": summarise_runs([run["validation"] for run in runs.values()]),
            "seeds": {str(seed): run for seed, run in runs.items()},
            "samples": {split: len(rows) for split, rows in cache.splits.items()},
            "settings": settings,
            "encoders": config.encoders,
            "machine": describe_machine(accelerator),
        }
        if accelerator.is_main_process:
            _gather_best(output_dir, best_seed, results)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        _report(console, results, output_dir)
        return results


def model_config(model: ModelArguments, cache: FeatureCache) -> FLI2MoEConfig:
    """The configuration of a model on the features of a cache."""
    return _config(
        model,
        {name: {key: x[key] for key in FEATURE_SIZES} for name, x in cache.modalities.items()},
        cache,
        encoders={name: x["encoder"] for name, x in cache.modalities.items()},
    )


def _config(
    model: ModelArguments, modalities: Mapping[str, dict], data: RawDataset | FeatureCache, **others: Any
) -> FLI2MoEConfig:
    return model.to_config(
        modalities,
        problem_type=data.problem_type,
        id2label=dict(enumerate(data.label_names)),
        label2id={name: index for index, name in enumerate(data.label_names)},
        **others,
    )


def _run_seed(
    seed: int,
    config: FLI2MoEConfig,
    cache: FeatureCache,
    job: Job,
    accelerator: Accelerator,
    metric: str,
    run_dir: Path,
) -> dict[str, Any]:
    """Trains and evaluates one seed, unless that is done already; its part of `results.json`."""
    file = run_dir / "results.json"
    if file.is_file():  # a resumed job
        return json.loads(file.read_text())
    started = time.perf_counter()
    fitted = train(
        config, cache, job.training, run_dir, accelerator, seed=seed, metric=metric, resume=job.output.resume
    )
    seconds = time.perf_counter() - started
    predictions = {split: _predict(fitted, cache, split, job, accelerator) for split in EVALUATION_SPLITS}
    run: dict[str, Any] = {
        split: defined(compute_metrics(x.logits, x.labels, cache.problem_type, job.training.threshold))
        for split, x in predictions.items()
    }
    run |= {
        "best_epoch": fitted.state.best_epoch + 1,
        "epochs": fitted.state.epoch,
        "training_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
    }
    if accelerator.is_main_process:
        _write_statistics(predictions["test"], fitted, cache, job.training.threshold, run_dir)
        write_json(run_dir / "history.json", fitted.state.history)
        write_json(file, run)
        Checkpoints(run_dir, job.training.keep_checkpoints).remove()
    accelerator.wait_for_everyone()
    return run


def _predict(fitted: FittedModel, cache: FeatureCache, split: str, job: Job, accelerator: Accelerator) -> Predictions:
    loader = create_data_loader(
        cache.splits[split], fitted.model.config.modality_order, batch_size=job.training.batch_size, shuffle=False
    )
    return predict(fitted.model, accelerator.prepare(loader), accelerator, label=f"Evaluating {split}")


def _write_statistics(
    predictions: Predictions, fitted: FittedModel, cache: FeatureCache, threshold: float, run_dir: Path
) -> None:
    """Statistics of the test split: as JSON, as figures, and in the model's configuration."""
    statistics = compute_statistics(
        logits=predictions.logits,
        expert_logits=predictions.expert_logits,
        expert_weights=predictions.expert_weights,
        labels=predictions.labels,
        expert_names=fitted.model.config.expert_names,
        label_names=cache.label_names,
        problem_type=cache.problem_type,
        threshold=threshold,
    )
    write_json(run_dir / "interaction_statistics.json", statistics)
    replace_files(run_dir / "figures", partial(save_statistics_figures, statistics, predictions.expert_weights))
    fitted.model.config.interaction_statistics = statistics
    replace_files(run_dir / "model", fitted.model.config.save_pretrained)


def _gather_best(output_dir: Path, seed: int, results: dict[str, Any]) -> None:
    """Puts the best seed's model, statistics and figures on top of the output folder, and the results beside them."""
    run_dir = output_dir / f"seed-{seed}"
    for source in [*(run_dir / "model").iterdir(), run_dir / "interaction_statistics.json"]:
        replace_files(output_dir, partial(shutil.copy, source))
    for source in (run_dir / "figures").glob("*.png"):
        replace_files(output_dir / "figures", partial(shutil.copy, source))
    write_json(output_dir / "results.json", results)


def _best_seed(runs: Mapping[int, dict[str, Any]], metric: str, greater_is_better: bool) -> int:
    """The first of the seeds with the best validation metric; one whose metric is undefined comes last."""

    def rank(seed: int) -> tuple[bool, float]:
        value = runs[seed]["validation"][metric]
        return value is not None, 0.0 if value is None else value if greater_is_better else -value

    return max(runs, key=rank)


def summarise_runs(runs: list[dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Metric → mean over the runs that define it, and their sample standard deviation where there are two."""
    summary = {}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        summary[name] = {
            "mean": mean(values) if values else None,
            "std": stdev(values) if len(values) > 1 else None,
        }
    return summary


def keep_json(file: Path, measure: Callable[[], Any], accelerator: Accelerator) -> Any:
    """What the file holds; what is measured, by all processes, and written into it where it is not there yet."""
    if file.is_file():
        return json.loads(file.read_text())
    measured = measure()
    if accelerator.is_main_process:
        write_json(file, measured)
    accelerator.wait_for_everyone()
    return measured


def describe_machine(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "cpu_cores": usable_cores(),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _report(console: Console, results: dict[str, Any], output_dir: Path) -> None:
    seeds = results["seeds"]
    title = f"Test split, {results['samples']['test']:,} samples"
    table = Table(title=title + (f", mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else ""))
    table.add_column("metric")
    table.add_column("test", justify="right")
    table.add_column("validation", justify="right")
    for name, test in results["test"].items():
        validation = results["validation"][name]
        table.add_row(name, format_metric(name, test), format_metric(name, validation))
    console.print(table)
    console.print(f"The model of seed {results['best_seed']} (best validation {results['metric']}) and its statistics:")
    names = ["config.json", "model.safetensors", "results.json", "interaction_statistics.json"]
    for path in [*(output_dir / name for name in names), *sorted((output_dir / "figures").glob("*.png"))]:
        console.print(f"  {path}")
    console.print(f'Load it with AutoModel.from_pretrained("{output_dir}") after `import fl_i2moe`.')


def format_metric(metric: str, value: Mapping[str, float | None]) -> str:
    """Shares in per cent, other metrics as they are."""
    if value["mean"] is None:
        return "undefined"
    scale, digits = (100, 1) if is_share(metric) else (1, 3)
    spread = "" if value["std"] is None else f" ± {scale * value['std']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}"
