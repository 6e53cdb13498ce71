"""The truth about the built-in samples, as explanations are held against it."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache import FeatureCache
from ...data.numeric import NumericSettings, load_numeric_truth
from ...data.planted import PlantedGenre, load_planted_truth, planted_folder_name
from ...data.planted_sounds import SOUND, TRANSCRIPT, load_sounds_truth
from ...model.sample_encoders import find_in_user_cache
from ...training.features import check_splits
from ...training.runs import Run
from .evaluation import Truth
from .truth import (
    Evidence,
    grow,
    grow_in_time,
    patches_in_boxes,
    patches_to_features,
    stretches_in_seconds,
    tokens_in_spans,
)

Locate = Callable[[dict[str, Any], str], Evidence]
"""A row of the feature cache and a label → where the row shows it."""


def _planted_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the planted films: the patches of each genre's object and the tokens of its word."""
    planted, cache = load_planted_truth(_find_sample(runs, data_dir, _films)), runs[0].cache
    genres, films = planted["genres"], planted["films"]
    _check_names(cache, genres, ("image", "text"))
    grid = tuple(cache.modalities["image"]["grid"])

    def locate(row: dict[str, Any], genre: str) -> Evidence:
        shown, spec = films[row["id"]][genre], genres[genre]
        features, near, states = {}, {}, {}
        if shown["boxes"]:
            patches = patches_in_boxes(shown["boxes"], row["image_geometry"], grid)
            features["image"] = patches_to_features(patches, row["image_special_mask"])
            near["image"] = patches_to_features(grow(patches), row["image_special_mask"])
            states["image"] = shown["object"] in spec["objects_on"]
        if shown["spans"]:
            features["text"] = near["text"] = tokens_in_spans(shown["spans"], row["text_offsets"])
            states["text"] = shown["word"] in spec["words_on"]
        return Evidence(features, near, states)

    columns = ["image_special_mask", "image_geometry", "text_offsets"]
    carriers = {x: PlantedGenre(**genres[x]).carrier for x in cache.label_names}
    return _locate_all(cache, splits, columns, films, locate), carriers


def _numeric_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the numeric sequences: the tokens that show each label."""
    planted, cache = load_numeric_truth(_find_sample(runs, data_dir, _arrays)), runs[0].cache
    labels, samples = planted["labels"], planted["samples"]
    _check_names(cache, labels, {name for label in labels.values() for name in label["modalities"]})

    def locate(row: dict[str, Any], label: str) -> Evidence:
        features, states = {}, {}
        for name, shown in samples[row["id"]][label].items():
            features[name] = np.zeros(len(row[f"{name}_special_mask"]), np.bool_)
            features[name][shown["positions"]] = True
            states[name] = shown["bit"]
        return Evidence(features, features, states)

    columns = [f"{name}_special_mask" for name in cache.modalities]
    carriers = {label: labels[label]["carrier"] for label in cache.label_names}
    return _locate_all(cache, splits, columns, samples, locate), carriers


def _sounds_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """Of the planted sounds: the stretches of each label's tone and the tokens of its word."""
    planted, cache = load_sounds_truth(_find_sample(runs, data_dir, _table)), runs[0].cache
    labels, samples = planted["labels"], planted["samples"]
    _check_names(cache, labels, (SOUND, TRANSCRIPT))

    def locate(row: dict[str, Any], label: str) -> Evidence:
        features, near, states = {}, {}, {}
        for name, shown in samples[row["id"]][label].items():
            if name == SOUND:
                features[name] = stretches_in_seconds([shown["seconds"]], row[f"{SOUND}_seconds"])
                near[name] = grow_in_time(features[name], row[f"{SOUND}_special_mask"])
            else:
                features[name] = near[name] = tokens_in_spans([shown["span"]], row[f"{TRANSCRIPT}_offsets"])
            states[name] = shown["bit"]
        return Evidence(features, near, states)

    columns = [f"{SOUND}_special_mask", f"{SOUND}_seconds", f"{TRANSCRIPT}_offsets"]
    carriers = {label: labels[label]["carrier"] for label in cache.label_names}
    return _locate_all(cache, splits, columns, samples, locate), carriers


SAMPLES = {
    frozenset({"array"}): _numeric_truth,
    frozenset({"image", "text"}): _planted_truth,
    frozenset({"audio", "text"}): _sounds_truth,
}
"""Kinds of a sample's modalities → what tells its truth."""


def sample_truth(runs: Sequence[Run], data_dir: str | None, splits: Sequence[str]) -> tuple[Truth, dict[str, str]]:
    """
    Where each label shows in the samples that runs were trained on.

    Args:
        runs: on the same features, of a recipe on its built-in sample; of sounds, on their `clips.csv`.
        data_dir: the sample's folder; by default what the runs' settings name.
        splits: whose samples are wanted.

    Returns:
        Sample → label → evidence, and label → the expert that should carry it.

    Raises:
        ValueError: the runs are of different samples or do not name theirs; or the features are of another sample.
    """
    cache = runs[0].cache
    check_splits(cache.splits, f"The feature cache {cache.path}", splits)
    kinds = frozenset(modality["kind"] for modality in cache.modalities.values())
    if kinds not in SAMPLES:
        known = " or of ".join(" and ".join(sorted(kinds_of_sample)) for kinds_of_sample in SAMPLES)
        raise ValueError(f"{cache.path} is of kind {' and '.join(sorted(kinds))}, the built-in samples are of {known}.")
    return SAMPLES[kinds](runs, data_dir, splits)


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
    return Path(settings.get("data_dir") or find_in_user_cache("planted", sample))


def _arrays(settings: dict[str, Any]) -> Path:
    if file := settings.get("data_file"):
        return Path(file).expanduser().absolute().parent
    return find_in_user_cache("numeric", NumericSettings.from_options(settings).folder_name)


def _table(settings: dict[str, Any]) -> Path:
    if not settings.get("dataset"):
        raise ValueError("The run does not name the table of the planted sounds: give --data_dir.")
    return Path(settings["dataset"]).expanduser().absolute().parent


def _locate_all(
    cache: FeatureCache, splits: Sequence[str], columns: list[str], planted: Collection[str], locate: Locate
) -> Truth:
    truth = {}
    for split in splits:
        for row in cache.splits[split].select_columns(["id", *columns]):
            if row["id"] not in planted:
                raise ValueError(
                    f"Sample {row['id']} of the feature cache is not in the built-in sample: these are other films or "
                    "sequences."
                )
            truth[row["id"]] = {label: locate(row, label) for label in cache.label_names}
    return truth
