"""MM-IMDb as published: `split.json` beside a folder `dataset` with `<id>.json` and `<id>.jpeg` for each film.

Arevalo et al., "Gated Multimodal Units for Information Fusion" (2017).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from . import files
from .raw import OnBadSample, RawDataset, SampleError, check_ids, names_of_splits

GENRES = [
    *["Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery"],
    *["Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western"],
    *["Sport", "Short", "Film-Noir"],
]
SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # in split.json → in the DatasetDict
MODALITIES = {"image": "image", "text": "text"}
LAYOUT = "MM-IMDb layout: split.json, dataset/<id>.json and dataset/<id>.jpeg"


def load_mmimdb(
    data_dir: str | Path,
    *,
    labels: Sequence[str] | None = None,
    min_label_count: int | None = None,
    on_bad_sample: OnBadSample = "stop",
) -> RawDataset:
    """Reads a folder in the raw MM-IMDb layout; posters are checked to be there, but not decoded.

    A film's text is the longest of its plots. Genres outside the labels are ignored, and films with none of the
    labels are left out; both are counted in `notes`.

    Args:
        labels: the genres to predict, in this order (default: the 23 of `GENRES`).
        min_label_count: instead of `labels`, every genre with at least so many training films, most frequent first.
        on_bad_sample: `"stop"` raises the first `SampleError`, `"skip"` collects them in `bad_samples`.

    Returns:
        A multi-label `RawDataset` with the columns `id`, `image`, `text` and `labels` (multi-hot, float32).

    Raises:
        SampleError: a film's JSON or poster is missing, empty or broken, its plot is empty, or its genres are missing.
        ValueError: the folder does not have the layout, an id occurs twice, a label is unknown, or nothing is left.
    """
    if labels is not None and min_label_count is not None:
        raise ValueError("give either labels or min_label_count, not both")

    data_dir = files.require_folder(data_dir, ("split.json", "dataset"), LAYOUT)
    ids = _read_splits(data_dir / "split.json")
    films, bad_samples = files.read_samples(data_dir, ids, partial(_read_film, data_dir / "dataset"), on_bad_sample)
    counts = {split: Counter(name for film in x for name in set(film["labels"])) for split, x in films.items()}
    all_counts = sum(counts.values(), Counter())
    if min_label_count is not None:
        label_names = _frequent(counts["train"], min_label_count)
    else:
        label_names = list(GENRES) if labels is None else _check_labels(labels, all_counts)

    notes = []
    if ignored := [f"{name} ({count})" for name, count in all_counts.most_common() if name not in label_names]:
        notes.append(f"Genres outside the {len(label_names)} labels are ignored: {', '.join(ignored)}.")
    samples = {}
    for split, found in films.items():
        kept = [film for film in found if not set(label_names).isdisjoint(film["labels"])]
        if not kept:
            raise ValueError(
                f"{data_dir}: no film of split {split!r} is left ({len(ids[split])} listed in split.json, "
                f"{len(found)} readable) for the labels {', '.join(label_names)}; choose other labels or check the "
                "folder"
            )
        if unlabelled := len(found) - len(kept):
            notes.append(
                f"{unlabelled} of {len(found)} films of {split} carry none of the {len(label_names)} labels and are "
                "left out."
            )
        samples[split] = [film | {"labels": [float(x in film["labels"]) for x in label_names]} for film in kept]
    if untrained := [name for name in label_names if not counts["train"][name]]:
        notes.append(
            f"{len(untrained)} of the {len(label_names)} labels have no training film: {', '.join(untrained)}."
        )
    return files.raw_dataset(samples, MODALITIES, label_names, "multi_label_classification", bad_samples, notes)


def _read_splits(split_file: Path) -> dict[str, list[str]]:
    """The film ids of each split; no id may occur twice."""
    content = files.read_json(split_file)
    for name in SPLITS:
        if not isinstance(content, dict) or not _is_list_of_strings(content.get(name)):
            raise ValueError(
                f"{split_file} must hold a list of ids (strings) under each of 'train', 'dev' and 'test'; "
                f"{name!r} has none"
            )
    names_of_splits(content, split_file)
    check_ids({name: content[name] for name in SPLITS}, dict.fromkeys(SPLITS, split_file))
    return {split: content[name] for name, split in SPLITS.items()}


def _read_film(folder: Path, split: str, film_id: str) -> dict[str, Any]:
    record_file, poster = folder / f"{film_id}.json", folder / f"{film_id}.jpeg"
    record = files.read_sample_json(split, film_id, "json", record_file)
    plots = record.get("plot")
    plots = [plots] if isinstance(plots, str) else plots
    if not _is_list_of_strings(plots) or not plots:
        raise SampleError(split, film_id, "plot", record_file, "there is no plot")
    plot = max(plots, key=lambda plot: len(plot.strip()))
    files.check_text(split, film_id, "plot", record_file, plot)
    genres = record.get("genres")
    if not _is_list_of_strings(genres):
        raise SampleError(split, film_id, "genres", record_file, "there is no list of genres")
    for genre in genres:
        files.check_unicode(split, film_id, "genres", record_file, genre)
    files.check_picture(split, film_id, "image", poster)
    return {"id": film_id, "image": poster, "text": plot, "labels": genres}


def _is_list_of_strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _frequent(counts: Counter[str], least: int) -> list[str]:
    """Genres with at least so many films, most frequent first."""
    frequent = sorted((name for name in counts if counts[name] >= least), key=lambda name: (-counts[name], name))
    if not frequent:
        top = f"; the most frequent is {counts.most_common(1)[0]}" if counts else ""
        raise ValueError(f"no genre has min_label_count={least} training films{top}")
    return frequent


def _check_labels(labels: Sequence[str], found: Iterable[str]) -> list[str]:
    """The genres asked for, which must be among the published 23 or those found in the folder."""
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels must name at least one genre, and each only once; got {list(labels)}")
    known = GENRES + sorted(set(found) - set(GENRES))
    for name in labels:
        if name not in known:
            by_lower_case = {genre.lower(): genre for genre in known}
            closest = get_close_matches(name.lower(), by_lower_case, n=1)
            hint = f" (did you mean {by_lower_case[closest[0]]!r}?)" if closest else ""
            raise ValueError(f"unknown label {name!r}{hint}; known are: {', '.join(known)}")
    return list(labels)
