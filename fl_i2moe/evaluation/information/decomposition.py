"""
A decomposition, from features to the figure: small plain models, trained as every model is, and what they tell.

    output_dir/
      run.json              what the numbers depend on; a folder with another one is refused
      models/               what each model said after each epoch; a second start goes on after those that are there
      information.json, information.png
"""

import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from numpy.typing import NDArray

from ...cache import FeatureCache
from ...cache.key import key_digest
from ...cache.streaming import StreamedSplit
from ...metrics.figures import save_figure
from ...metrics.tasks import FloatArray, default_metric
from ...training.arguments import (
    CacheArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    check_options,
    option,
)
from ...training.features import EVALUATION_SPLITS, check_splits, model_config
from ...training.loop import Predictions, predict_split, train
from ...training.recipe import create_console
from ...utils.files import remove, write_file, write_json
from ...utils.run_folder import JobFiles, check_run_folder, held_run_folder
from .bits import System, choose_epochs, create_systems, estimate_information, information_rows
from .report import INFORMATION_FIGURE, INFORMATION_FILE, draw_information, print_information
from .tasks import LABEL_KINDS, LabelKind, Regression

OUTPUT_FILES = JobFiles("decomposition", (INFORMATION_FILE, INFORMATION_FIGURE, "models"))
FEW_SAMPLES = 10
"""With or without a label; a user is told."""
LATE_GAIN = 0.05
"""Bits of a label that models gain in the last third of their training; a user is told of more."""
UNBINDING = ("output_dir", "overwrite", "num_threads")


@dataclass
class DecompositionArguments:
    """The plain models, and how sure one is of what they tell."""

    output_dir: str = option("runs/information", "Folder for the numbers and the figure.")
    overwrite: bool = option(False, "Replace what is in --output_dir.")
    seeds: list[int] = option([0, 1, 2], "Each model is trained once for each; their mean output counts.")
    num_epochs: int = option(12, "Epochs of each model; every label takes the best by its validation loss.", at_least=1)
    batch_size: int = option(32, "Samples a step.", at_least=1)
    learning_rate: float = option(2e-3, "Peak learning rate; it falls to 0 as a cosine.", positive=True)
    hidden_size: int = option(64, "Width of the models.", at_least=1)
    num_attention_heads: int = option(4, "Their attention heads.", at_least=1)
    num_fusion_layers: int = option(2, "Their Transformer layers.", within="[1, 1024]")
    dropout: float = option(0.1, "Their dropout.", within="[0, 1)")
    num_resamples: int = option(1000, "Bootstrap samples behind an interval.", at_least=2)
    num_threads: int | None = option(None, "CPU threads; all cores if not given.", within="[1, 1024]")

    def __post_init__(self):
        check_options(self)
        self.job()  # refuses what does not go together

    def job(self) -> Job:
        """What trains one of the models."""
        shared = {"num_epochs", "batch_size", "learning_rate", "seeds", "num_threads"}
        of_model = {"hidden_size", "num_attention_heads", "num_fusion_layers", "dropout"}
        options = asdict(self)
        return Job(
            CacheArguments(),
            ModelArguments(architecture="dense", **{name: options[name] for name in of_model}),
            TrainingArguments(lr_scheduler="cosine", keep_checkpoints=1, **{name: options[name] for name in shared}),
            OutputArguments(self.output_dir, overwrite=self.overwrite),
        )


def check_output(arguments: DecompositionArguments) -> None:
    """Raises `ValueError` where the output folder holds something else."""
    check_run_folder(arguments.output_dir, OUTPUT_FILES, **_flags(arguments))


def decompose(cache: FeatureCache, arguments: DecompositionArguments, accelerator: Accelerator) -> dict[str, Any]:
    """
    How much the modalities of a data set tell of each label, in bits, whatever any expert says: see
    [`~fl_i2moe.evaluation.information.bits`]. Trains the plain models of [`create_systems`] on its features, each for
    every seed; takes the mean of their outputs over the seeds, for each label after the epoch with the smallest
    validation loss; weighs it there against the models that it contains, by a weight for each and a bias; and reads the
    log loss of the test split. Writes `information.json` and `information.png`.

    Returns:
        The content of `information.json`, see [`~fl_i2moe.evaluation.information.report.read_information`].

    Raises:
        ValueError: the features lack a split, or cannot be decomposed; the output folder holds something else.
        FloatingPointError: a loss is not finite.
    """
    console, folder = create_console(accelerator), Path(arguments.output_dir)
    kind = _label_kind(cache)
    if isinstance(kind, Regression):  # models learn numbers of size 1
        cache = replace(cache, splits={split: _scaled(rows, kind) for split, rows in cache.splits.items()})
    labels = {split: _labels(cache.splits[split]) for split in EVALUATION_SPLITS}
    systems = create_systems(list(cache.modalities))
    digest = key_digest(cache.key)
    settings = {x.name: getattr(arguments, x.name) for x in fields(DecompositionArguments) if x.name not in UNBINDING}
    flags = {**_flags(arguments), "is_writer": accelerator.is_main_process}
    with held_run_folder(folder, {**settings, "features": digest}, OUTPUT_FILES, **flags):
        accelerator.wait_for_everyone()
        outputs: dict[str, dict[str, FloatArray]] = {}
        best_epochs: dict[str, list[int]] = {}
        unfinished = np.zeros(len(cache.label_names), np.bool_)
        for number, system in enumerate(systems.values(), 1):
            console.print(f"{system.name}, {number} of {len(systems)}")
            by_seed = [_outputs(system, seed, cache, arguments, accelerator) for seed in arguments.seeds]
            by_split = {split: np.stack([x[split] for x in by_seed]) for split in EVALUATION_SPLITS}
            outputs[system.name], epochs, late_gain = choose_epochs(by_split, labels["validation"], kind)
            best_epochs[system.name] = (epochs + 1).tolist()
            unfinished |= late_gain > LATE_GAIN
        estimate, draws = estimate_information(outputs, labels, systems, kind, arguments.num_resamples)
        entropy = None if kind.is_real else kind.prior_losses(labels["validation"], labels["test"]).mean(axis=0)
        rows = information_rows(estimate, draws, cache.label_names, list(cache.modalities), entropy)
        information = {
            "unit": "bits",
            "problem_type": cache.problem_type,
            "modalities": list(cache.modalities),
            "samples": {split: len(rows) for split, rows in cache.splits.items()},
            "seeds": arguments.seeds,
            "features": digest,
            "settings": settings,
            "best_epochs": best_epochs,
            **rows,
        }
        if accelerator.is_main_process:
            write_json(folder / INFORMATION_FILE, information)
            save_figure(draw_information(information), folder / INFORMATION_FIGURE)
        accelerator.wait_for_everyone()
    print_information(information, console)
    if unfinished.any():
        late = _listed([name for name, is_late in zip(cache.label_names, unfinished, strict=True) if is_late])
        console.print(f"Still being learnt at the end: {late}. Raise --num_epochs: there may be more bits to find.")
    if not kind.is_real and (rare := _rare_labels(labels, cache.label_names)):
        few = f"Fewer than {FEW_SAMPLES} validation or test samples with or without {_listed(rare)}"
        console.print(f"{few}: their bits are rough.")
    console.print(f"{folder / INFORMATION_FILE} and {INFORMATION_FIGURE} beside it")
    return information


def _flags(arguments: DecompositionArguments) -> dict[str, Any]:
    return {"resume": not arguments.overwrite, "overwrite": arguments.overwrite}


def _label_kind(cache: FeatureCache) -> LabelKind:
    """Raises `ValueError` where there is nothing to decompose."""
    check_splits(cache.splits, f"The feature cache {cache.path}")
    if len(cache.modalities) < 2:
        raise ValueError(
            f"The feature cache {cache.path} has one modality, {next(iter(cache.modalities))}: it takes two."
        )
    if any(isinstance(rows, StreamedSplit) for rows in cache.splits.values()):
        raise ValueError(
            "A decomposition reads the training split many times: fetch the features instead of streaming."
        )
    if small := [split for split, rows in cache.splits.items() if len(rows) < 2]:
        raise ValueError(f"Split {small[0]} of {cache.path} has fewer than two samples: there is nothing to measure.")
    labels = _labels(cache.splits["train"])
    if cache.problem_type == "regression":
        for name, deviation in zip(cache.label_names, labels.std(axis=0), strict=True):
            if not deviation > 0:
                raise ValueError(
                    f"Target {name} is the same in all training samples: there is nothing to tell. Leave it out."
                )
    return LABEL_KINDS[cache.problem_type](labels, len(cache.label_names))


def _labels(rows: Dataset) -> NDArray[Any]:
    """(N,) classes, or (N, C)."""
    labels = np.array(rows.select_columns("labels").with_format("numpy")[:]["labels"])
    return (
        labels if labels.ndim == 1 and labels.dtype.kind == "i" else labels.reshape(len(labels), -1).astype(np.float64)
    )


def _scaled(rows: Dataset, kind: Regression) -> Dataset:
    feature = rows.features["labels"]
    labels = kind.scale(_labels(rows)).astype(np.float32)
    return rows.remove_columns("labels").add_column("labels", labels.tolist(), feature=feature)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + " …" * (len(names) > 5)


def _rare_labels(labels: dict[str, NDArray[Any]], names: list[str]) -> list[str]:
    """Of classes and labels, those that a split hardly has, or hardly lacks."""
    rare = np.zeros(len(names), np.bool_)
    for x in labels.values():
        counts = np.bincount(x, minlength=len(names)) if x.ndim == 1 else (x > 0).sum(axis=0)
        rare |= np.minimum(counts, len(x) - counts) < FEW_SAMPLES
    return [name for name, is_rare in zip(names, rare, strict=True) if is_rare]


def _outputs(
    system: System, seed: int, cache: FeatureCache, arguments: DecompositionArguments, accelerator: Accelerator
) -> dict[str, FloatArray]:
    """Split → what the model says after each epoch, (epochs, N, C); trains it where it is not trained yet."""
    file = Path(arguments.output_dir) / "models" / f"{system.name}-seed-{seed}.npz"
    if not file.is_file():
        run_dir = file.with_suffix("")
        said: dict[str, list[torch.Tensor]] = {split: [] for split in EVALUATION_SPLITS}

        def keep(model: torch.nn.Module, validation: Predictions) -> None:
            said["validation"].append(validation.logits)
            # no more memory than a training step, which keeps what gradients need
            size = 4 * arguments.batch_size
            test = predict_split(model, cache.splits["test"], list(system.modalities), accelerator, size)
            said["test"].append(test.logits)

        if accelerator.is_main_process:
            remove(run_dir)  # of a start that was stopped
        accelerator.wait_for_everyone()
        job = arguments.job()
        job.model.fusion = system.fusion
        job.model.fill_missing = "zero" if cache.missing else None
        config = model_config(job, cache, {name: cache.modalities[name] for name in system.modalities})
        options: dict[str, Any] = {"seed": seed, "metric": default_metric(cache.problem_type)[0]}
        train(config, cache, job.training, run_dir, accelerator, **options, on_epoch=keep)
        if accelerator.is_main_process:
            arrays: dict[str, Any] = {split: torch.stack(x).numpy() for split, x in said.items()}
            write_file(file, lambda unfinished: np.savez(unfinished, **arrays))
            shutil.rmtree(run_dir)
        accelerator.wait_for_everyone()
    try:
        with np.load(file) as kept:
            return {split: kept[split].astype(np.float64) for split in EVALUATION_SPLITS}
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"{file} is damaged or was changed ({error}): remove it, and run again.") from error
