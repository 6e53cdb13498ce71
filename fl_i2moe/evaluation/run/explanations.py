"""
Explanations of many samples: a page, a figure and the data of each, and what the explanations are worth on the data.

    output_dir/
      run.json              what the explanations depend on; a folder with another one is refused
      samples/              <sample>-<class>.html, .png and .json
      measured/             what a sample gives to the measurements; with the page's data, what a second start keeps
      faithfulness.json, faithfulness.png (the FL-I²MoE paper's Figure 3), faithfulness_insertion.png
      erasure.md, erasure.png (comprehensiveness and sufficiency)
      alignment.json, alignment.png (Figure 4)
      pair_masking.json, pair_masking.md (Table 1)
      pair_curves.json, pair_curves.png
      index.html
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from rich.console import Console
from tqdm.auto import tqdm

from ...cache import FeatureCache
from ...cache.batching import FeatureRows, create_data_loader
from ...cache.key import key_digest
from ...data.raw import SampleError
from ...explain.attribution import METHODS, check_methods, methods_of
from ...explain.explain_sample import UNITS, open_sample
from ...explain.inputs import ONLY_WHOLE, check_batch, check_removals, find_encoders
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...training.recipe import create_console
from ...training.runs import check_cache, find_cache, fingerprint, load_model
from ...utils.checked_json import read_json
from ...utils.files import write_json
from ...utils.run_folder import JobFiles, check_run_folder, held_run_folder
from ..masking import faithfulness, faithfulness_of
from .arguments import ExplainArguments
from .files import FAITHFULNESS, FAITHFULNESS_FILE
from .results import write_results
from .sample import Sample, explain_sample, list_samples, load_logits, maskings, measure_masking, open_subject

OUTPUT_FILES = JobFiles(
    "explanations",
    (
        *("samples", "measured", "index.html", "faithfulness.json", "faithfulness.png", "faithfulness_insertion.png"),
        *("erasure.md", "erasure.png"),
        *("alignment.json", "alignment.png", "pair_masking.json", "pair_masking.md"),
        *("pair_curves.json", "pair_curves.png"),
    ),
)

OLD_SETTINGS = {"units": "features", "cells": [], "text_units": "words", "removal": []}
"""What explanations of version 0.1.0 were."""

WITHOUT_INPUT = "--units features needs neither raw values nor encoders."


def run_explanations(arguments: ExplainArguments, accelerator: Accelerator) -> None:
    """Explains samples, measures, and writes everything into the output folder, where what is there already is kept;
    `ValueError` if model, cache, samples or the folder do not fit."""
    console = create_console(accelerator)
    folder = arguments.folder
    flags: dict[str, Any] = {"resume": not arguments.overwrite, "overwrite": arguments.overwrite}
    if accelerator.is_main_process:
        check_run_folder(folder, OUTPUT_FILES, **flags)
    model = load_explainable(arguments.model)
    arguments = replace(arguments, method=_checked_method(model, arguments))
    cache = find_cache(arguments.model, arguments.features or arguments.cache_dir, arguments.split)
    check_cache(model, cache)
    models = {"dense Transformer" if model.config.architecture == "dense" else "FL-I²MoE": model}
    if arguments.dense_model:
        dense = load_explainable(arguments.dense_model)
        if dense.config.architecture != "dense" or model.config.architecture == "dense":
            raise ValueError("`dense_model` is a dense model beside a mixture of experts.")
        check_cache(dense, cache)
        models["dense Transformer"] = dense
    opened = None
    if arguments.units == "input":
        for one in models.values():
            check_input(one, split_of(cache, arguments.split)[0], arguments)

        def opened(row: int) -> Any:
            how: dict[str, Any] = {"cache": cache, "cut": arguments.cut, "removals": arguments.removals}
            return open_sample(model, cache.splits[arguments.split][row], **how)

    rows = choose_rows(arguments, cache, model.config.modality_order, console, opened)
    settings = arguments.binding | {"model": fingerprint(model), "features": key_digest(cache.key)}
    flags |= {"is_writer": accelerator.is_main_process, "defaults": OLD_SETTINGS}
    with held_run_folder(folder, settings, OUTPUT_FILES, **flags):
        accelerator.wait_for_everyone()
        for one in models.values():
            one.to(accelerator.device)

        samples = list_samples(rows, cache, arguments)
        num_pages = len(samples) if arguments.num_pages is None else arguments.num_pages
        own = range(accelerator.process_index, len(samples), accelerator.num_processes)
        masked = samples[: arguments.faithfulness_samples] if arguments.units == "input" else []
        masked = masked if "faithfulness" in arguments.measurements else []
        for number in tqdm(own, desc="Explaining", unit=" samples", disable=not accelerator.is_local_main_process):
            logits = samples[number].logits(settings["model"][:12]) if number < len(masked) else None
            explain_sample(model, samples[number], number < num_pages, logits)
        accelerator.wait_for_everyone()

        if "faithfulness" in arguments.measurements:
            if arguments.units == "input":
                _mask_units(models, cache, masked, arguments, accelerator)
            else:
                _mask_features(models, cache, arguments, accelerator, console)
        if accelerator.is_main_process:
            page, entries = write_results(model, samples, num_pages, arguments, cache)
            say_what_is_not_shown([(entry.sample_id, note) for entry in entries for note in entry.notes], console)
            console.print(f"{len(samples):,} samples explained: {page}")
        accelerator.wait_for_everyone()


def _mask_features(
    models: dict[str, FLI2MoEModel],
    cache: FeatureCache,
    arguments: ExplainArguments,
    accelerator: Accelerator,
    console: Console,
) -> None:
    """Writes `faithfulness.json`, name of a model → result; what is in it for the same weights and samples stays."""
    split = cache.splits[arguments.split]
    order = next(iter(models.values())).config.modality_order
    first = complete_rows(split, order)[: arguments.faithfulness_samples]
    rows = split.select(usable_rows(split, order, first, arguments.on_bad_sample, console))
    how = {"num_random": arguments.num_draws, "seed": arguments.seed, "accelerator": accelerator}
    how["progress"] = accelerator.is_local_main_process
    file = arguments.folder / FAITHFULNESS_FILE
    results = read_json(file, FAITHFULNESS) if file.is_file() else {}
    for name, model in models.items():
        identity = _identity(model, cache, len(rows), arguments)
        if identity.items() <= results.get(name, {}).items():
            continue
        loader = create_data_loader(rows, model.config.modality_order, batch_size=arguments.batch_size, shuffle=False)
        result = faithfulness(model, accelerator.prepare(loader), methods=methods_of(model), **how)
        results[name] = result | identity
        if accelerator.is_main_process:
            write_json(file, results)
        accelerator.wait_for_everyone()


def _mask_units(
    models: dict[str, FLI2MoEModel],
    cache: FeatureCache,
    samples: Sequence[Sample],
    arguments: ExplainArguments,
    accelerator: Accelerator,
) -> None:
    """The same of units, from the logits of each sample under masking, which stay."""
    file = arguments.folder / FAITHFULNESS_FILE
    results = read_json(file, FAITHFULNESS) if file.is_file() else {}
    labels = torch.tensor([sample.labels for sample in samples])
    chosen = key_digest({"samples": [sample.sample_id for sample in samples]})
    for name, model in models.items():
        identity = {**_identity(model, cache, len(samples), arguments), "samples": chosen}
        if identity.items() <= results.get(name, {}).items():
            continue
        paths = [sample.logits(identity["model"][:12]) for sample in samples]
        own = range(accelerator.process_index, len(samples), accelerator.num_processes)
        for number in tqdm(own, desc="Masking", unit=" samples", disable=not accelerator.is_local_main_process):
            if not paths[number].is_file():
                measure_masking(open_subject(model, samples[number]), samples[number], paths[number])
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            parts = [load_logits(path) for path in paths]
            logits = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            results[name] = faithfulness_of(logits, labels, model.config, maskings(model, arguments)) | identity
            write_json(file, results)


def _identity(
    model: FLI2MoEModel, cache: FeatureCache, num_samples: int, arguments: ExplainArguments
) -> dict[str, Any]:
    """Of a result in `faithfulness.json`: what it is of."""
    weights, features = fingerprint(model), key_digest(cache.key)
    return {"model": weights, "features": features, "num_samples": num_samples, "units": arguments.units}


def _checked_method(model: FLI2MoEModel, arguments: ExplainArguments) -> Any:
    """The method, by default the first of the units; `ValueError` for one that they, or the model, do not have."""
    allowed = UNITS[arguments.units].methods_of(model)
    if arguments.method in (None, *allowed):
        return arguments.method or allowed[0]
    if arguments.units == "features" and arguments.method in METHODS:
        check_methods(model, [arguments.method], "method")
    raise ValueError(
        f"`method` {arguments.method!r} is not for --units {arguments.units} of this model: give --method "
        f"{' or '.join(allowed)}."
    )


def check_input(model: FLI2MoEModel, row: Mapping[str, Any], arguments: ExplainArguments) -> None:
    """`ValueError` where the encoders cannot be reached, raw values are not there, or there is no such removal."""
    try:
        encoders = find_encoders(model, row)
    except ValueError as error:
        raise ValueError(f"{error} {WITHOUT_INPUT}") from error
    check_removals(encoders, arguments.removals)


def load_explainable(folder: str | Path) -> FLI2MoEModel:
    """A feature-level model; `ValueError` where the folder holds none."""
    model = load_model(folder)
    if model.config.level != "feature":
        raise ValueError(f"The model in {folder} is pooled: it sees no single features that could be explained.")
    return model


def split_of(cache: FeatureCache, name: str) -> Dataset:
    """`ValueError` where the cache has no such split."""
    if name not in cache.splits:
        raise ValueError(f"The feature cache has no split {name!r}; it has {list(cache.splits)}.")
    return cache.splits[name]


def choose_rows(
    arguments: ExplainArguments,
    cache: FeatureCache,
    modality_order: Sequence[str],
    console: Console,
    opened: Callable[[int], Any] | None = None,
) -> list[int]:
    """The rows of the split to explain; `ValueError` where there is no such split or sample, and as [`usable_rows`]."""
    split = split_of(cache, arguments.split)
    ids = list(split["id"])
    if arguments.sample_ids:
        if missing := [sample_id for sample_id in arguments.sample_ids if sample_id not in ids]:
            raise ValueError(f"The split {arguments.split!r} has no samples {missing}; its ids look like {ids[:3]}.")
        rows = [ids.index(sample_id) for sample_id in dict.fromkeys(arguments.sample_ids)]
    else:
        rows = complete_rows(split, modality_order)
        if len(rows) < len(split):
            lacking = f"{len(split) - len(rows):,} of {len(split):,} samples of {arguments.split}"
            console.print(f"{lacking} lack a modality and are left out: {ONLY_WHOLE}.")
        rows = rows[: arguments.num_samples]
    return usable_rows(split, modality_order, rows, arguments.on_bad_sample, console, opened)


def complete_rows(split: Dataset, modality_order: Sequence[str]) -> list[int]:
    """The rows of samples that have all modalities."""
    return np.flatnonzero(FeatureRows(split, modality_order).lengths().min(axis=1)).tolist()


def usable_rows(
    split: Dataset,
    modality_order: Sequence[str],
    rows: Sequence[int],
    on_bad_sample: str,
    console: Console,
    opened: Callable[[int], Any] | None = None,
) -> list[int]:
    """The rows without the bad samples, which lack a modality's candidates, have features that are NaN or infinite, or
    are not `opened`; `ValueError` that names the first one if none may be skipped, or if all are bad."""
    reader, usable = FeatureRows(split, modality_order), []
    for row in rows:
        try:
            check_batch(reader[[row]], modality_order)
            if opened is not None:
                _try(opened, row, split)
        except ValueError as error:
            bad = say_what_is_bad(error)
            if on_bad_sample == "stop":
                raise ValueError(f"{bad} Leave it out by --on_bad_sample skip.") from None
            console.print(f"{bad} It is left out.")
        else:
            usable.append(row)
    if not usable:
        raise ValueError("No sample is left to explain.")
    return usable


def _try(opened: Callable[[int], Any], row: int, split: Dataset) -> None:
    try:
        opened(row)
    except (ValueError, OSError) as error:
        raise ValueError(f"Sample {split[row]['id']}: {error} {WITHOUT_INPUT}") from error


def say_what_is_not_shown(notes: Sequence[tuple[str, str]], console: Console) -> None:
    """Of (id, one of `notes_on`), the first one and their number."""
    if notes:
        (sample_id, note), more = notes[0], len(notes) - 1
        console.print(f"Sample {sample_id}: {note}" + (f" Of {more:,} more there is a like remark." if more else ""))


def say_what_is_bad(error: ValueError) -> str:
    """An error about one sample, without the advice that only helps while features are made."""
    if isinstance(error, SampleError):
        return f"Sample {error.sample_id} has {error.field} features that are NaN or infinite."
    return str(error)
