"""A whole job: features → one training run for each seed → results, statistics, figures."""

import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accelerate import Accelerator

from ..cache import FeatureCache
from ..cache.encoding import Encoder
from ..cache.key import key_digest
from ..cache.streaming import StreamedSplit
from ..data.raw import RawDataset
from ..metrics.figures import save_statistics_figures
from ..metrics.statistics import compute_statistics
from ..metrics.tasks import METRICS_BY_PROBLEM
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..utils.checked_json import read_json
from ..utils.files import replace_files, write_json
from ..utils.machine import cpu_model, usable_cores
from ..utils.run_folder import JobFiles, check_run_folder, held_run_folder
from .arguments import Job, check_metric, starts_from_features
from .calibration import calibrate, measure, measure_frequencies
from .checkpoints import Checkpoints
from .features import EVALUATION_SPLITS, EncoderChoice, check_splits, encode, fetch_features, model_config
from .loop import FittedModel, Predictions, predict_split, train
from .predictions import PREDICTIONS_FILE, prediction_table, write_predictions
from .recipe import LOGS_FOLDER, create_accelerator, create_console, init_trackers
from .report import report, warning
from .results import read_seed_results
from .runs import STATISTICS_FILE, fingerprint, load_model

TRAINING_FILES = JobFiles(
    "training",
    (
        *(f"seed-{'[0-9]' * digits}" for digits in range(1, 11)),  # not a copy that a user calls seed-0-best
        *("config.json", "model*.safetensors", "results.json"),
        *("interaction_statistics.json", "predictions.parquet", "figures", LOGS_FOLDER, "fl_i2moe"),
    ),
)
"""The last are logs of trackers, of 0.1.0 in a folder named after the project."""
PACKAGES = ("fl-i2moe", "torch", "transformers", "datasets", "accelerate")


def start_job(job: Job, files: JobFiles = TRAINING_FILES) -> Accelerator:
    """
    Sets up this process, and refuses an output folder that the job may not write into before an hour of encoding;
    `files` are those that it writes there.
    Raises as [`create_accelerator`] and [`~fl_i2moe.utils.run_folder.check_run_folder`].
    """
    accelerator = create_accelerator(job.training, job.output.output_dir)
    if accelerator.is_main_process:
        check_run_folder(job.output.output_dir, files, **job.output.flags, beside=job.encoding.cache_dir)
    accelerator.wait_for_everyone()
    return accelerator


def run_job(
    job: Job,
    data: Any,
    read: Callable[[Accelerator], tuple[RawDataset, Mapping[str, EncoderChoice | Encoder]]],
    needs: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """
    The whole job of a recipe: features, encoded from raw data or taken from `job.encoding.features`, and [`fit`].
    Raises `ValueError` where neither or both are given; or as [`encode`], [`fetch_features`] and [`fit`].

    Args:
        data: options of the raw data, a dataclass; without the one that `needs` names there are none.
        read: reads the raw data, and gives the encoder of each modality, or which one to load.
        settings: what identifies the run beside its options.
    """
    from_features = starts_from_features(job.encoding, data, needs)
    accelerator = start_job(job)
    if from_features:
        cache = fetch_features(job.encoding, accelerator)
    else:
        cache = encode(*read(accelerator), job, accelerator)
    return fit(cache, job, accelerator, job.settings(**asdict(data), **settings))


def fit(
    cache: FeatureCache,
    job: Job,
    accelerator: Accelerator,
    settings: dict[str, Any],
    files: JobFiles = TRAINING_FILES,
    quiet: bool = False,
) -> dict[str, Any]:
    """
    Trains a model for each seed, evaluates them, and writes everything into `job.output.output_dir`. Returns the
    content of `results.json`.

    Args:
        settings: what identifies the run, from [`Job.settings`]; a resumed run must have the same.
        files: what is written, and may be replaced.
        quiet: print no table of results.

    Raises:
        ValueError: the output folder holds another run; the features lack a split, or options do not fit them.
    """
    check_splits(cache.splits, f"The feature cache {cache.path}")
    metric = check_metric(job.training.metric, cache.problem_type)
    config = model_config(job, cache)
    output_dir = Path(job.output.output_dir)
    settings = {
        **settings,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "features": key_digest(cache.key),
    }
    flags = {**job.output.flags, "beside": job.encoding.cache_dir, "is_writer": accelerator.is_main_process}
    flags["defaults"] = job.defaults
    places = {"cache_dir": _place_of(cache, output_dir)}
    with held_run_folder(output_dir, settings, files, **flags, places=places):
        accelerator.wait_for_everyone()
        init_trackers(accelerator, job.training, output_dir, settings)

        runs = {
            seed: _run_seed(seed, config, cache, job, accelerator, metric, output_dir / f"seed-{seed}")
            for seed in job.training.seeds
        }
        best_seed = _best_seed(runs, metric, METRICS_BY_PROBLEM[cache.problem_type][metric])
        results = {
            "metric": metric,
            "best_seed": best_seed,
            **{split: summarise_runs([run[split] for run in runs.values()]) for split in ("test", "validation")},
            **_summarise_further(list(runs.values())),
            "seeds": {str(seed): run for seed, run in runs.items()},
            "warnings": [told for seed, run in runs.items() if (told := warning(seed, run, job.training))],
            "samples": {split: len(rows) for split, rows in cache.splits.items()},
            "settings": settings,
            "encoders": config.encoders,
            "machine": describe_machine(accelerator),
        }
        if accelerator.is_main_process:
            _gather_best(output_dir, best_seed, results)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        console = create_console(accelerator)
        if not quiet and accelerator.is_main_process:
            report(console, results, read_json(output_dir / STATISTICS_FILE), output_dir)
        for told in results["warnings"]:
            console.print(told)
        return results


def _place_of(cache: FeatureCache, output_dir: Path) -> str | None:
    """Where the run finds its features again; None where they do not lie on the disk whole."""
    if any(isinstance(rows, StreamedSplit) for rows in cache.splits.values()):
        return None
    path, folder = cache.path.resolve(), output_dir.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


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
        finished = read_seed_results(file, cache.problem_type)
        needed = ["model/config.json", STATISTICS_FILE]
        needed += [PREDICTIONS_FILE] * ("per_class" in finished)  # of 0.1.0 there is none
        if missing := [x for x in needed if not (run_dir / x).is_file()]:
            raise ValueError(f"{run_dir} has no {missing[0]}: remove it, and run again with --resume.")
        if finished.get("weights", found := fingerprint(load_model(run_dir / "model"))) != found:
            raise ValueError(
                f"{run_dir / 'model'} does not hold the weights that were trained: remove {run_dir}, and run again "
                "with --resume."
            )
        if accelerator.is_main_process:  # a kill may have come before this
            Checkpoints(run_dir, job.training.keep_checkpoints).remove()
        return finished
    started = time.perf_counter()
    options: dict[str, Any] = {"seed": seed, "metric": metric, "resume": job.output.resume}
    fitted = train(config, cache, job.training, run_dir, accelerator, **options)
    seconds = time.perf_counter() - started
    predictions = {split: _predict(fitted.model, cache, split, accelerator, job) for split in EVALUATION_SPLITS}
    calibrate(fitted.model.config, predictions["validation"])
    run: dict[str, Any] = {
        **measure(predictions, fitted.model.config, job.training.threshold),
        "best_epoch": fitted.state.best_epoch + 1,
        "epochs": fitted.state.epoch,
        "training_seconds": round(seconds, 1),
        "weights": fingerprint(fitted.model),
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
    }
    told = predictions
    if not isinstance(cache.splits["train"], StreamedSplit):
        told = {"train": _predict(fitted.model, cache, "train", accelerator, job), **predictions}
        run |= measure_frequencies(told, fitted.model.config)
    if accelerator.is_main_process:
        confusion = run.get("confusion_matrix")
        _write_statistics(predictions["test"], fitted, cache, job.training.threshold, run_dir, confusion)
        tables = [prediction_table(x, fitted.model.config, split) for split, x in told.items()]
        write_predictions(run_dir / PREDICTIONS_FILE, tables)
        write_json(run_dir / "history.json", fitted.state.history)
        write_json(file, run)
        Checkpoints(run_dir, job.training.keep_checkpoints).remove()
    accelerator.wait_for_everyone()
    return run


def _predict(model: FLI2MoEModel, cache: FeatureCache, split: str, accelerator: Accelerator, job: Job) -> Predictions:
    order, label = model.config.modality_order, f"Evaluating {split}"
    return predict_split(model, cache.splits[split], order, accelerator, job.training.batch_size, label)


def _write_statistics(
    predictions: Predictions,
    fitted: FittedModel,
    cache: FeatureCache,
    threshold: float,
    run_dir: Path,
    confusion: Mapping[str, Mapping[str, int]] | None,
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
        temperature=fitted.model.config.temperature,
        own_thresholds=fitted.model.config.thresholds,
        truth=cache.truth,
    )
    write_json(run_dir / STATISTICS_FILE, statistics)

    def draw(folder: Path) -> None:
        save_statistics_figures(statistics, predictions.expert_weights, folder, confusion)

    replace_files(run_dir / "figures", draw)
    fitted.model.config.interaction_statistics = statistics
    replace_files(run_dir / "model", fitted.model.config.save_pretrained)


def _gather_best(output_dir: Path, seed: int, results: dict[str, Any]) -> None:
    """Puts the best seed's model, statistics, predictions and figures on top of the output folder, and the results
    beside them."""
    run_dir = output_dir / f"seed-{seed}"
    model = [path for path in (run_dir / "model").iterdir() if path.is_file()]
    for source in [*model, run_dir / STATISTICS_FILE, *run_dir.glob(PREDICTIONS_FILE)]:
        replace_files(output_dir, partial(shutil.copy, source))
    for source in (run_dir / "figures").glob("*.png"):
        replace_files(output_dir / "figures", partial(shutil.copy, source))
    write_json(output_dir / "results.json", results)


def _best_seed(runs: Mapping[int, dict[str, Any]], metric: str, greater_is_better: bool) -> int:
    """The first of the seeds with the best validation metric; one whose metric is undefined comes last."""

    defined = {seed: value for seed, run in runs.items() if (value := run["validation"][metric]) is not None}
    best = max if greater_is_better else min
    return best(defined or runs, key=lambda seed: defined.get(seed, 0.0))


def summarise_runs(runs: list[dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Metric → mean over the runs that define it, and their sample standard deviation where there are two."""
    summary = {}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        std = stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": mean(values) if values else None, "std": std}
    return summary


def _summarise_further(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is measured beside the metrics, over the seeds; nothing where an earlier version finished one of them."""

    def summarise(parts: list[dict[str, Any]]) -> dict[str, Any]:
        if isinstance(next(iter(parts[0].values())), dict):
            return {name: summarise([part[name] for part in parts]) for name in parts[0]}
        return summarise_runs(parts)

    return {
        name: summarise([run[name] for run in runs])
        for name in ("own_thresholds", "calibration")
        if all(name in run for run in runs)
    }


def keep_json(file: Path, shape: Any, measure: Callable[[], Any], accelerator: Accelerator) -> Any:
    """
    What the file holds, which has this shape; what is measured, by all processes, and written into it where it is not
    there yet.
    """
    if file.is_file():
        return read_json(file, shape)
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
