"""What readers of published folders share: checks of files, reading sample by sample, and the data set of it."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value
from datasets.table import InMemoryTable
from datasets.utils import tqdm

from ..model.configuration_fl_i2moe import check_given
from ..model.kinds import KINDS
from ..utils.checked_json import unique_keys
from .raw import OnBadSample, ProblemType, RawDataset, SampleError, label_column


def require_folder(folder: str | Path, parts: Iterable[str], layout: str) -> Path:
    """The absolute folder; raises `ValueError` that says the `layout` if it, or one of its `parts`, does not exist."""
    check_given("data_dir", folder)
    folder = Path(folder).expanduser().absolute()
    for path in (folder, *(folder / part for part in parts)):
        if not path.exists():
            raise ValueError(f"{path} does not exist; --data_dir must be a folder in the {layout}")
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the folder {str(folder)!r} has a name that is not in UTF-8; rename it") from error
    return folder


def check_text(split: str, sample_id: str, field: str, path: Path, text: str) -> None:
    """Raises `SampleError` for a text that is empty, or that cannot be written down."""
    if not text.strip():
        raise SampleError(split, sample_id, field, path, "there is no text, or it is empty")
    check_unicode(split, sample_id, field, path, text)


def check_unicode(split: str, sample_id: str, field: str, path: Path, text: str) -> None:
    """Raises `SampleError` for a text that cannot be written down."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell out half of a pair that makes one character
        raise SampleError(split, sample_id, field, path, f"its characters are no Unicode text: {error}") from error


def check_picture(split: str, sample_id: str, field: str, path: Path) -> None:
    """Raises `SampleError` for a picture that is missing or empty; it is not decoded here."""
    if not os.path.isfile(path):  # which `Path` does not say of names that are too long
        raise SampleError(split, sample_id, field, path, "the picture does not exist")
    if path.stat().st_size == 0:
        raise SampleError(split, sample_id, field, path, "the picture has 0 bytes")


def read_text(path: Path, parse: Callable[[str], Any] = str, what: str = "UTF-8 text") -> Any:
    """Raises `ValueError` for a file that is missing or no text in UTF-8, which a byte order mark may begin."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as {what} ({error}); download or write it again") from error


def read_json(path: Path) -> Any:
    """Raises `ValueError` for a file that is missing or no JSON, or in which an object has two values of one name."""
    return read_text(path, partial(json.loads, object_pairs_hook=unique_keys), "JSON")


def read_sample_json(split: str, sample_id: str, field: str, path: Path) -> dict[str, Any]:
    """Raises `SampleError` for a file that is missing, no JSON, or holds no object."""
    if not os.path.exists(path):
        raise SampleError(split, sample_id, field, path, "the file does not exist")
    try:
        content = read_json(path)
    except ValueError as error:
        raise SampleError(split, sample_id, field, path, f"it cannot be read as JSON: {error.__cause__}") from error
    if not isinstance(content, dict):
        raise SampleError(split, sample_id, field, path, f"it holds a {type(content).__name__}, not an object")
    return content


def read_samples(
    folder: Path, ids: Mapping[str, list[str]], read: Callable[[str, str], dict[str, Any]], on_bad_sample: OnBadSample
) -> tuple[dict[str, list[dict[str, Any]]], list[SampleError]]:
    """
    Split → its samples as `read(split, id)` gives them, and with `"skip"` what was left out.

    Raises:
        SampleError: with `"stop"`, the first sample that cannot be read.
        ValueError: nothing of a split is left, or `on_bad_sample` is unknown.
    """
    if on_bad_sample not in get_args(OnBadSample):
        raise ValueError(f"on_bad_sample must be one of {get_args(OnBadSample)}, got {on_bad_sample!r}")
    samples: dict[str, list[dict[str, Any]]] = {split: [] for split in ids}
    bad_samples = []
    with tqdm(total=sum(map(len, ids.values())), desc="Reading samples", unit="sample", delay=1) as progress:
        for split, split_ids in ids.items():
            for sample_id in split_ids:
                try:
                    samples[split].append(read(split, sample_id))
                except SampleError as error:
                    if on_bad_sample == "stop":
                        raise
                    bad_samples.append(error)
                progress.update()
    for split, found in samples.items():
        if not found:
            reasons = [f"the first is left out because {x.reason} ({x.file})" for x in bad_samples if x.split == split]
            raise ValueError(
                f"{folder}: no sample of split {split!r} is left, of {len(ids[split])} listed: "
                f"{[*reasons, 'it needs at least one'][0]}"
            )
    return samples, bad_samples


def raw_dataset(
    samples: Mapping[str, list[dict[str, Any]]],
    modalities: Mapping[str, str],
    label_names: list[str],
    problem_type: ProblemType,
    bad_samples: list[SampleError],
    notes: list[str],
) -> RawDataset:
    """Of samples with `id`, a value for each modality (the path of a picture, or a text) and `labels`."""
    kinds = {name: KINDS[kind] for name, kind in modalities.items()}
    raw = Features.from_dict({name: kind.raw_type for name, kind in kinds.items()})
    features = Features({"id": Value("string"), **raw, "labels": label_column(problem_type, len(label_names))})
    splits = DatasetDict()
    for split, rows in samples.items():
        cells = [row | {name: kind.cell(row[name]) for name, kind in kinds.items()} for row in rows]
        # not from_list, which wants torchcodec for a column of sounds even where nothing is decoded
        splits[split] = Dataset(InMemoryTable(pa.Table.from_pylist(cells, schema=features.arrow_schema)))
    return RawDataset(splits, dict(modalities), label_names, problem_type, bad_samples, notes)
