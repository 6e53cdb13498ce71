"""What readers of published folders share: pictures that are there, samples that are not, and the data set of both."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from datasets import Dataset, DatasetDict, Features, Image, Value
from datasets.utils import tqdm

from .raw import OnBadSample, SampleError

Sample = TypeVar("Sample")


def require_folder(folder: str | Path, parts: Iterable[str], layout: str) -> Path:
    """
    The absolute folder.

    Raises:
        ValueError: it, or one of its `parts`, does not exist; says the `layout`.
    """
    folder = Path(folder).expanduser().absolute()
    for path in (folder, *(folder / part for part in parts)):
        if not path.exists():
            raise ValueError(f"{path} does not exist; --data_dir must be a folder in the {layout}")
    return folder


def check_picture(split: str, sample_id: str, field: str, path: Path) -> None:
    """Raises `SampleError` for a picture that is missing or empty; it is not decoded here."""
    if not path.is_file():
        raise SampleError(split, sample_id, field, path, "the picture does not exist")
    if path.stat().st_size == 0:
        raise SampleError(split, sample_id, field, path, "the picture has 0 bytes")


def read_json(path: Path) -> Any:
    """Raises `ValueError` for a file that is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); download or write it again") from error


def read_samples(
    ids: Mapping[str, list[str]], read: Callable[[str, str], Sample], on_bad_sample: OnBadSample
) -> tuple[dict[str, list[Sample]], list[SampleError]]:
    """
    Reads the samples of each split by `read(split, id)`.

    Returns:
        Split → its samples, and with `"skip"` what was left out.

    Raises:
        SampleError: with `"stop"`, the first sample that cannot be read.
        ValueError: nothing of a split is left, or `on_bad_sample` is unknown.
    """
    if on_bad_sample not in get_args(OnBadSample):
        raise ValueError(f"on_bad_sample must be one of {get_args(OnBadSample)}, got {on_bad_sample!r}")
    samples: dict[str, list[Sample]] = {split: [] for split in ids}
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
            raise ValueError(f"no sample of split {split!r} is left, of {len(ids[split])} listed")
    return samples, bad_samples


def single_label_splits(samples: Mapping[str, list[Mapping[str, Any]]], modalities: Mapping[str, str]) -> DatasetDict:
    """Samples with `id`, one value for each modality (a path of a picture, or a text) and `labels`, a class."""
    kinds = {"image": Image(decode=False), "text": Value("string")}
    features = Features(
        {"id": Value("string"), **{name: kinds[kind] for name, kind in modalities.items()}, "labels": Value("int64")}
    )
    columns = {
        split: {name: [_value(sample[name], modalities.get(name)) for sample in rows] for name in features}
        for split, rows in samples.items()
    }
    return DatasetDict({split: Dataset.from_dict(column, features=features) for split, column in columns.items()})


def _value(value: Any, kind: str | None) -> Any:
    return {"path": str(value), "bytes": None} if kind == "image" else value
