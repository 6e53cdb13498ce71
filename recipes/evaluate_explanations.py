"""
Hold explanations against what is planted in the built-in samples: right expert, evidence, pairs.

    python recipes/evaluate_explanations.py --models runs/sample runs/dense --output_dir runs/ground_truth

Each of `--models` is the output folder of recipes/train_mmimdb.py or recipes/train_arrays.py on its sample, with one
trained model a seed, or the folder of one model. It leaves ground_truth.json, ground_truth.md and carriers.png. A
second start goes on after the models that are measured already.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from fl_i2moe.arguments import option, parse_arguments
from fl_i2moe.cache import FeatureCache
from fl_i2moe.data.numeric import NumericSettings, load_numeric_truth
from fl_i2moe.data.planted import FORMAT_VERSION, load_planted_truth
from fl_i2moe.explain.evaluation import Truth
from fl_i2moe.explain.evaluation_run import EvaluationArguments, Run, evaluate_runs, find_runs
from fl_i2moe.explain.ground_truth import Evidence, grow, patches_in_boxes, patches_to_features, tokens_in_spans
from fl_i2moe.sample_encoders import user_cache_dir

CARRIERS = {
    "unique_image": "uniqueness_image",
    "unique_text": "uniqueness_text",
    "synergy": "synergy",
    "redundancy": "redundancy",
}


@dataclass
class PlantedArguments(EvaluationArguments):
    data_dir: str | None = option(None, "Folder of the sample; what the run was trained on if not given.")


def main():
    (options,) = parse_arguments(
        (PlantedArguments,), presets={"sample": {}}, default_preset=lambda given: "sample", description=__doc__
    )
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(
            f"One process does all of this: launch with --num_processes 1, not {accelerator.num_processes}."
        )
    runs = find_runs(options.models, options.cache_dir)
    is_numeric = all(modality["kind"] == "array" for modality in runs[0].cache.modalities.values())
    truth, carriers = (numeric_truth if is_numeric else planted_truth)(runs, options.data_dir, ("train", options.split))
    evaluate_runs(runs, truth, carriers, options, accelerator)


def planted_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the planted films: where each genre shows, and genre → expert that ought to carry it."""
    planted, cache = load_planted_truth(find_films(runs, data_dir)), runs[0].cache
    check_names(cache, planted["genres"], ("image", "text"))
    carriers = {label: CARRIERS[planted["genres"][label]["interaction"]] for label in cache.label_names}
    truth: dict[str, dict[str, Evidence]] = {}
    for split in splits:
        truth |= locate_evidence(planted, cache, split)
    return truth, carriers


def numeric_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the numeric sequences: the tokens that show each label, and label → expert that ought to carry it."""
    planted, cache = load_numeric_truth(find_arrays(runs, data_dir)), runs[0].cache
    labels = planted["labels"]
    check_names(cache, labels, {name for label in labels.values() for name in label["modalities"]})
    truth: dict[str, dict[str, Evidence]] = {}
    for split in splits:
        columns = ["id", *(f"{name}_special_mask" for name in cache.modalities)]
        for row in cache.splits[split].select_columns(columns):
            if row["id"] not in planted["samples"]:
                raise ValueError(
                    f"Sample {row['id']} of the feature cache is not in the numeric sample: it is another."
                )
            truth[row["id"]] = {}
            for label in cache.label_names:
                told = planted["samples"][row["id"]][label]
                features = {name: np.zeros(len(row[f"{name}_special_mask"]), np.bool_) for name in told}
                for name, shown in told.items():
                    features[name][shown["positions"]] = True
                states = {name: shown["bit"] for name, shown in told.items()}
                truth[row["id"]][label] = Evidence(features, features, states)
    return truth, {label: labels[label]["carrier"] for label in cache.label_names}


def check_names(cache: FeatureCache, labels: Collection[str], modalities: Collection[str]) -> None:
    if unknown := set(cache.label_names) - set(labels):
        raise ValueError(f"Nothing is planted for {sorted(unknown)}, which {cache.path} has among its labels.")
    if wrong := set(modalities) ^ set(cache.modalities):
        raise ValueError(f"{cache.path} is no cache of the sample: {sorted(wrong)} is too much or missing.")


def find_films(runs: Sequence[Run], data_dir: str | None) -> Path:
    """The planted sample that the runs were trained on."""
    if data_dir:
        return Path(data_dir)
    folders = set()
    for run in runs:
        if not run.settings:
            raise ValueError(f"No run.json says which films {run.folder} was trained on: give --data_dir.")
        sample = f"v{FORMAT_VERSION}-{run.settings.get('num_films')}-films-seed-{run.settings.get('sample_seed')}"
        folders.add(Path(run.settings.get("data_dir") or user_cache_dir() / "planted" / sample))
    if len(folders) > 1:
        raise ValueError(f"The runs were trained on different films: {', '.join(sorted(map(str, folders)))}.")
    return folders.pop()


def find_arrays(runs: Sequence[Run], data_dir: str | None) -> Path:
    """The numeric sample that the runs were trained on."""
    if data_dir:
        return Path(data_dir)
    folders = set()
    for run in runs:
        if not run.settings:
            raise ValueError(f"No run.json says which sample {run.folder} was trained on: give --data_dir.")
        if file := run.settings.get("data_file"):
            folders.add(Path(file).expanduser().absolute().parent)
        else:
            folders.add(user_cache_dir() / "numeric" / NumericSettings.from_options(run.settings).folder_name)
    if len(folders) > 1:
        raise ValueError(f"The runs were trained on different samples: {', '.join(sorted(map(str, folders)))}.")
    return folders.pop()


def locate_evidence(planted: Mapping[str, Any], cache: FeatureCache, split: str) -> dict[str, dict[str, Evidence]]:
    """Film → genre → the patches of its object and the tokens of its word."""
    columns = ["id", "image_special_mask", "image_geometry", "text_offsets"]
    grid = tuple(cache.modalities["image"]["grid"])
    located = {}
    for row in cache.splits[split].select_columns(columns):
        if row["id"] not in planted["films"]:
            raise ValueError(
                f"Film {row['id']} of the feature cache is not in the planted sample: these are other films."
            )
        located[row["id"]] = {}
        for genre in cache.label_names:
            told, spec = planted["films"][row["id"]][genre], planted["genres"][genre]
            features, near, states = {}, {}, {}
            if told["boxes"]:
                patches = patches_in_boxes(told["boxes"], row["image_geometry"], grid)
                features["image"] = patches_to_features(patches, row["image_special_mask"])
                near["image"] = patches_to_features(grow(patches), row["image_special_mask"])
                states["image"] = told["object"] in spec["objects_on"]
            if told["spans"]:
                features["text"] = near["text"] = tokens_in_spans(told["spans"], row["text_offsets"])
                states["text"] = told["word"] in spec["words_on"]
            located[row["id"]][genre] = Evidence(features, near, states)
    return located


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
