"""MM-IMDb as published: `split.json` beside a folder `dataset` with `<id>.json` and `<id>.jpeg` for each film.

Arevalo et al., "Gated Multimodal Units for Information Fusion" (2017).
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, get_args

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from datasets.utils import tqdm

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
    if on_bad_sample not in get_args(OnBadSample):
        raise ValueError(f"on_bad_sample must be one of {get_args(OnBadSample)}, got {on_bad_sample!r}")
    if labels is not None and min_label_count is not None:
        raise ValueError("give either labels or min_label_count, not both")

    data_dir = Path(data_dir).expanduser().absolute()
    ids = _read_splits(data_dir)
    films: dict[str, list[Film]] = {split: [] for split in ids}
    bad_samples = []
    with tqdm(total=sum(map(len, ids.values())), desc="Reading films", unit="film", delay=1) as progress:
        for split, split_ids in ids.items():
            for film_id in split_ids:
                try:
                    films[split].append(_read_film(data_dir / "dataset", split, film_id))
                except SampleError as error:
                    if on_bad_sample == "stop":
                        raise
                    bad_samples.append(error)
                progress.update()

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


def _read_splits(data_dir: Path) -> dict[str, list[str]]:
    """The film ids of each split; no id may occur twice."""
    split_file = data_dir / "split.json"
    for path in (data_dir, data_dir / "dataset", split_file):
        if not path.exists():
            raise ValueError(
                f"{path} does not exist; --data_dir must be a folder in the MM-IMDb layout: "
                "split.json and dataset/<id>.json + dataset/<id>.jpeg"
            )
    try:
        content = json.loads(split_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{split_file} is not valid JSON ({error}); download or write it again") from error

    seen: dict[str, str] = {}
    for name in SPLITS:
        split_ids = content.get(name) if isinstance(content, dict) else None
        if not isinstance(split_ids, list) or not all(isinstance(film_id, str) for film_id in split_ids):
            raise ValueError(
                f"{split_file} must hold a list of ids (strings) under each of 'train', 'dev' and 'test'; "
                f"{name!r} has none"
            )
        for film_id in split_ids:
            if film_id in seen:
                where = f"twice in {name!r}" if seen[film_id] == name else f"in both {seen[film_id]!r} and {name!r}"
                raise ValueError(f"{split_file}: id {film_id!r} is {where}; an id may occur only once, take one out")
            seen[film_id] = name
    return {split: content[name] for name, split in SPLITS.items()}


def _read_film(folder: Path, split: str, film_id: str) -> Film:
    record_file, poster = folder / f"{film_id}.json", folder / f"{film_id}.jpeg"
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SampleError(split, film_id, "json", record_file, "the file does not exist") from None
    except (OSError, ValueError) as error:
        raise SampleError(split, film_id, "json", record_file, f"it cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise SampleError(split, film_id, "json", record_file, f"it holds a {type(record).__name__}, not an object")

    plots = record.get("plot")
    plots = [plots] if isinstance(plots, str) else plots
    if not _is_list_of_strings(plots) or not any(plot.strip() for plot in plots):
        raise SampleError(split, film_id, "plot", record_file, "there is no plot, or it is empty")
    genres = record.get("genres")
    if not _is_list_of_strings(genres):
        raise SampleError(split, film_id, "genres", record_file, "there is no list of genres")
    if not poster.is_file():
        raise SampleError(split, film_id, "image", poster, "the poster does not exist")
    if poster.stat().st_size == 0:
        raise SampleError(split, film_id, "image", poster, "the poster has 0 bytes")
    return Film(film_id, poster, max(plots, key=lambda plot: len(plot.strip())), genres)


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
