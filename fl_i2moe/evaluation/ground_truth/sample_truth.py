"""The truth about the two built-in samples, as explanations are held against it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache import FeatureCache
from ...data.numeric import NumericSettings, load_numeric_truth
from ...data.planted import load_planted_truth, planted_folder_name
from ...model.sample_encoders import user_cache_dir
from ...training.features import check_splits
from ...training.runs import Run
from .evaluation import Truth
from .truth import Evidence, grow, patches_in_boxes, patches_to_features, tokens_in_spans

PLANTED_CARRIERS = {
    "unique_image": "uniqueness_image",
    "unique_text": "uniqueness_text",
    "synergy": "synergy",
    "redundancy": "redundancy",
}
"""Planted interaction → expert that should carry it."""


def sample_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """
    Where each label shows in the samples that runs were trained on.

    Args:
        runs: on the same features, of recipes/train_mmimdb.py or recipes/train_arrays.py on its built-in sample.
        data_dir: the sample's folder; by default what the runs' settings name.
        splits: whose samples are wanted.

    Returns:
        Sample → label → evidence, and label → the expert that should carry it.

    Raises:
        ValueError: the runs are of different samples or do not name theirs; or the features are of another sample.
    """
    check_splits(runs[0].cache.splits, f"The feature cache {runs[0].cache.path}", splits)
    is_numeric = all(modality["kind"] == "array" for modality in runs[0].cache.modalities.values())
    return (_numeric_truth if is_numeric else _planted_truth)(runs, data_dir, splits)


def _planted_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the planted films: where each genre shows, and genre → expert that should carry it."""
    planted, cache = load_planted_truth(_find_sample(runs, data_dir, _films)), runs[0].cache
    _check_names(cache, planted["genres"], ("image", "text"))
    carriers = {label: PLANTED_CARRIERS[planted["genres"][label]["interaction"]] for label in cache.label_names}
    truth = [_locate_evidence(planted, cache, split) for split in splits]
    return {sample: labels for part in truth for sample, labels in part.items()}, carriers


def _numeric_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the numeric sequences: the tokens that show each label, and label → expert that should carry it."""
    planted, cache = load_numeric_truth(_find_sample(runs, data_dir, _arrays)), runs[0].cache
    labels = planted["labels"]
    _check_names(cache, labels, {name for label in labels.values() for name in label["modalities"]})
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
                features, states = {}, {}
                for name, shown in planted["samples"][row["id"]][label].items():
                    features[name] = np.zeros(len(row[f"{name}_special_mask"]), np.bool_)
                    features[name][shown["positions"]] = True
                    states[name] = shown["bit"]
                truth[row["id"]][label] = Evidence(features, features, states)
    return truth, {label: labels[label]["carrier"] for label in cache.label_names}


def _check_names(cache: FeatureCache, labels: Collection[str], modalities: Collection[str]) -> None:
    if unknown := set(cache.label_names) - set(labels):
        raise ValueError(f"Nothing is planted for {sorted(unknown)}, which {cache.path} has among its labels.")
    if wrong := set(modalities) ^ set(cache.modalities):
        raise ValueError(f"{cache.path} is no cache of the sample: {sorted(wrong)} is too much or missing.")


def _find_sample(runs: Sequence[Run], data_dir: str | None, find: Callable[[dict[str, Any]], Path]) -> Path:
    """The folder of the sample that the runs were trained on, which `find` finds from a run's settings."""
    if data_dir:
        return Path(data_dir)
    for run in runs:
        if not run.settings:
            raise ValueError(f"No run.json says which sample {run.folder} was trained on: give --data_dir.")
    folders = {find(run.settings) for run in runs}
    if len(folders) > 1:
        raise ValueError(f"The runs were trained on different samples: {', '.join(sorted(map(str, folders)))}.")
    return folders.pop()


def _films(settings: dict[str, Any]) -> Path:
    sample = planted_folder_name(settings.get("num_films"), settings.get("sample_seed"))
    return Path(settings.get("data_dir") or user_cache_dir() / "planted" / sample)


def _arrays(settings: dict[str, Any]) -> Path:
    if file := settings.get("data_file"):
        return Path(file).expanduser().absolute().parent
    return user_cache_dir() / "numeric" / NumericSettings.from_options(settings).folder_name


def _locate_evidence(planted: Mapping[str, Any], cache: FeatureCache, split: str) -> dict[str, dict[str, Evidence]]:
    """Film → genre → the patches of its object and the tokens of its word."""
    columns = ["id", "image_special_mask", "image_geometry", "text_offsets"]
    grid = tuple(cache.modalities["image"]["grid"])
    located: dict[str, dict[str, Evidence]] = {}
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
