"""MM-IMDb as published: `split.json` beside a folder `dataset` with `<id>.json` and `<id>.jpeg` for each film.

Arevalo et al., "Gated Multimodal Units for Information Fusion" (2017).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from .files import check_ids, check_picture, check_text, read_json, read_sample_json, read_samples, require_folder
from .raw import OnBadSample, RawDataset, SampleError

GENRES = [
    "Drama",
    "Comedy",
    "Romance",
    "Thriller",
    "Crime",
    "Action",
    "Adventure",
    "Horror",
    "Documentary",
    "Mystery",
    "Sci-Fi",
    "Fantasy",
    "Family",
    "Biography",
    "War",
    "History",
    "Music",
    "Animation",
    "Musical",
    "Western",
    "Sport",
    "Short",
    "Film-Noir",
]

SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # in split.json → in the DatasetDict
LAYOUT = "MM-IMDb layout: split.json, dataset/<id>.json and dataset/<id>.jpeg"


class Film(NamedTuple):
    id: str
    poster: Path
    plot: str
    genres: list[str]


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
        data_dir: the folder that holds `split.json` and `dataset/`.
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

    data_dir = require_folder(data_dir, ("split.json", "dataset"), LAYOUT)
    ids = _read_splits(data_dir / "split.json")
    films, bad_samples = read_samples(data_dir, ids, partial(_read_film, data_dir / "dataset"), on_bad_sample)
    label_names = _choose_labels(films, labels, min_label_count)
    notes = _notes(films, label_names)
    features = Features(
        {
            "id": Value("string"),
            "image": Image(decode=False),
            "text": Value("string"),
            "labels": List(Value("float32"), length=len(label_names)),
        }
    )
    splits = {}
    for split, split_films in films.items():
        kept = [film for film in split_films if not set(label_names).isdisjoint(film.genres)]
        if not kept:
            raise ValueError(
                f"{data_dir}: no film of split {split!r} is left ({len(ids[split])} listed in split.json, "
                f"{len(split_films)} readable) for the labels {', '.join(label_names)}; "
                "choose other labels or check the folder"
            )
        columns = {
            "id": [film.id for film in kept],
            "image": [{"path": str(film.poster), "bytes": None} for film in kept],
            "text": [film.plot for film in kept],
            "labels": [[float(name in film.genres) for name in label_names] for film in kept],
        }
        splits[split] = Dataset.from_dict(columns, features=features)
    return RawDataset(
        splits=DatasetDict(splits),
        modalities={"image": "image", "text": "text"},
        label_names=label_names,
        problem_type="multi_label_classification",
        bad_samples=bad_samples,
        notes=notes,
    )


def _read_splits(split_file: Path) -> dict[str, list[str]]:
    """The film ids of each split; no id may occur twice."""
    content = read_json(split_file)
    for name in SPLITS:
        split_ids = content.get(name) if isinstance(content, dict) else None
        if not isinstance(split_ids, list) or not all(isinstance(film_id, str) for film_id in split_ids):
            raise ValueError(
                f"{split_file} must hold a list of ids (strings) under each of 'train', 'dev' and 'test'; "
                f"{name!r} has none"
            )
    check_ids({name: content[name] for name in SPLITS}, dict.fromkeys(SPLITS, split_file))
    return {split: content[name] for name, split in SPLITS.items()}


def _read_film(folder: Path, split: str, film_id: str) -> Film:
    record_file, poster = folder / f"{film_id}.json", folder / f"{film_id}.jpeg"
    record = read_sample_json(split, film_id, "json", record_file)
    plots = record.get("plot")
    plots = [plots] if isinstance(plots, str) else plots
    if not _is_list_of_strings(plots) or not plots:
        raise SampleError(split, film_id, "plot", record_file, "there is no plot")
    plot = max(plots, key=lambda plot: len(plot.strip()))
    check_text(split, film_id, "plot", record_file, plot)
    genres = record.get("genres")
    if not _is_list_of_strings(genres):
        raise SampleError(split, film_id, "genres", record_file, "there is no list of genres")
    check_picture(split, film_id, "image", poster)
    return Film(film_id, poster, plot, genres)


def _is_list_of_strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _choose_labels(
    films: dict[str, list[Film]], labels: Sequence[str] | None, min_label_count: int | None
) -> list[str]:
    """The genres asked for, checked against those that exist (the published 23 and any other in this folder)."""
    if min_label_count is not None:
        counts = _count_genres(films["train"])
        frequent = sorted((name for name in counts if counts[name] >= min_label_count), key=lambda n: (-counts[n], n))
        if not frequent:
            top = f"; the most frequent is {counts.most_common(1)[0]}" if counts else ""
            raise ValueError(f"no genre has min_label_count={min_label_count} training films{top}")
        return frequent
    if labels is None:
        return list(GENRES)

    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels must name at least one genre, and each only once; got {list(labels)}")
    known = GENRES + sorted(_count_genres(itertools.chain(*films.values())).keys() - set(GENRES))
    for name in labels:
        if name not in known:
            by_lower_case = {genre.lower(): genre for genre in known}
            closest = get_close_matches(name.lower(), by_lower_case, n=1)
            hint = f" (did you mean {by_lower_case[closest[0]]!r}?)" if closest else ""
            raise ValueError(f"unknown label {name!r}{hint}; known are: {', '.join(known)}")
    return list(labels)


def _count_genres(films: Iterable[Film]) -> Counter[str]:
    return Counter(name for film in films for name in set(film.genres))


def _notes(films: dict[str, list[Film]], label_names: list[str]) -> list[str]:
    """Sentences on what the chosen labels leave out."""
    notes = []
    ignored = _count_genres(itertools.chain(*films.values()))
    for name in label_names:
        ignored.pop(name, None)
    if ignored:
        listed = ", ".join(f"{name} ({count})" for name, count in ignored.most_common())
        notes.append(f"Genres outside the {len(label_names)} labels are ignored: {listed}.")
    for split, split_films in films.items():
        unlabelled = sum(set(label_names).isdisjoint(film.genres) for film in split_films)
        if unlabelled:
            notes.append(
                f"{unlabelled} of {len(split_films)} films of {split} carry none of the {len(label_names)} labels "
                "and are left out."
            )
    in_training = _count_genres(films["train"])
    untrained = [name for name in label_names if not in_training[name]]
    if untrained:
        notes.append(
            f"{len(untrained)} of the {len(label_names)} labels have no training film: {', '.join(untrained)}."
        )
    return notes
