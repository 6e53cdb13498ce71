"""
Files of numeric arrays: `.npz`, `.parquet` and pickles of arrays, each as the same thing, fields of N samples by name.

Shape letters: N samples, T features of a sequence, D numbers of a feature, F features of all samples.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from .array_pickle import read_array_pickle

FILE_ENDS = (".npz", ".parquet", ".pkl", ".pickle")
ALL = "all"  # stands for the split of a file that is not cut into splits
SPLIT_NAMES = {
    "train": ("train", "training", "tr"),
    "validation": ("validation", "valid", "val", "dev", "va"),
    "test": ("test", "testing", "te"),
}
_SPLIT_OF = {alias: split for split, aliases in SPLIT_NAMES.items() for alias in aliases}


@dataclass(frozen=True)
class Sequences:
    """One sequence for each of N samples, of any lengths."""

    values: NDArray[Any]
    """(F, D), the sequences one after another."""

    lengths: NDArray[np.int64]
    """(N,); 0 where a sample has none."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def sample_of(self) -> NDArray[np.int64]:
        """(F,) the number of each feature's sample."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(N,) where each sequence begins."""
        return np.cumsum(self.lengths) - self.lengths


Field = NDArray[Any] | Sequences
Part = dict[str, Field]


def split_of(name: Any) -> str | None:
    """`train`, `validation` or `test` for any of its usual names; None for another name."""
    return _SPLIT_OF.get(as_text(name).strip().lower())


def describe_shape(x: Field) -> str:
    """A field's type and shape, for people."""
    return f"{len(x)} sequences" if isinstance(x, Sequences) else f"{x.dtype} {x.shape}"


def as_text(value: Any) -> str:
    """An id or a label as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_array_file(path: str | Path) -> bool:
    """Whether a path is called as files of arrays are; it need not be there."""
    return Path(path).suffix.lower() in FILE_ENDS


def read_array_file(path: str | Path, label_field: str) -> dict[str, Part]:
    """
    Reads a file of fields.

    Args:
        path: `.npz`, `.parquet`, `.pkl` or `.pickle`.
        label_field: tells an `.npz` whose arrays are cut into splits (`labels_train` or `labels_tr`, and so on).

    Returns:
        Split, or `ALL` for a file that is not cut, → name → array of N rows or [`Sequences`].

    Raises:
        ValueError: the file is not there, is of another kind, is broken, or holds something else than arrays.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is not there, or no file: give an .npz, a .parquet or a pickle of arrays.")
    match path.suffix.lower():
        case ".npz":
            return _cut(_read_npz(path), label_field)
        case ".parquet":
            return {ALL: _read_parquet(path)}
        case ".pkl" | ".pickle":
            return _parts(read_array_pickle(path), path)
        case other:
            raise ValueError(f"{path} ends with {other!r}; files of arrays are {', '.join(FILE_ENDS)}.")


def _read_npz(path: Path) -> Part:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or is broken: it is no zip archive.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _read_member(archive, name, path) for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise ValueError(f"{path} is no .npz file, or is broken: {error}") from error


def _read_member(archive: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        member = archive[name]
    except MemoryError as error:
        raise ValueError(f"{path}: {name!r} does not fit into memory, or says it is larger than it is.") from error
    except ValueError as error:
        raise ValueError(
            f"{path}: {name!r} is no plain array ({error}). Arrays of objects are refused: save sequences of "
            f"different lengths padded, (N, T, D), with the array {name + '_mask'!r} (N, T), and texts as strings."
        ) from error
    if not isinstance(member, np.ndarray):
        raise ValueError(f"{path}: {name!r} is no array but another file; take it out of the archive.")
    return member


def _cut(fields: Part, label_field: str) -> dict[str, Part]:
    """By the names' ends, where the labels have such ends."""
    splits = {f"_{alias}": split for alias, split in _SPLIT_OF.items() if f"{label_field}_{alias}" in fields}
    if label_field in fields or not splits:
        return {ALL: fields}
    whole = {name: x for name, x in fields.items() if not name.endswith(tuple(splits))}
    return {
        split: {name.removesuffix(end): x for name, x in fields.items() if name.endswith(end)} | whole
        for end, split in splits.items()
    }


def _read_parquet(path: Path) -> Part:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no .parquet file, or is broken: {error}") from error
    return {name: _column(table[name].combine_chunks(), name, path) for name in table.column_names}


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _column(column: Any, name: str, path: Path) -> Field:
    """A list of lists of numbers is a sequence of features, a list of numbers one feature."""
    if not _is_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    lengths = _lengths(column)
    inner = column.flatten()
    if not _is_list(inner.type):
        sizes, numbers = lengths, inner
        lengths = (sizes > 0).astype(np.int64)  # a missing vector is a sequence of none
    else:
        sizes, numbers = _lengths(inner), inner.flatten()
    if len(different := np.unique(sizes[sizes > 0])) > 1:
        raise ValueError(f"{path}: vectors of the column {name!r} have different lengths: {different[:2].tolist()}.")
    if numbers.null_count or (inner is not numbers and (sizes == 0).any()):
        raise ValueError(f"{path}: vectors of the column {name!r} have missing numbers.")
    size = int(different[0]) if len(different) else 1
    values = numbers.to_numpy(zero_copy_only=False).reshape(-1, size)
    if inner is numbers and lengths.all():
        return values
    return Sequences(values, lengths)


def _lengths(column: Any) -> NDArray[np.int64]:
    lengths = pa.compute.fill_null(pa.compute.list_value_length(column), 0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _parts(content: Any, path: Path) -> dict[str, Part]:
    """Of a pickle: splits with fields, as in MultiBench, or fields alone."""
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds {kind}: it must be a dict of arrays, or of splits of them.")
    if not any(isinstance(x, Mapping) for x in content.values()):
        return {ALL: {str(key): _field(x, str(key), path) for key, x in content.items()}}
    if unknown := [name for name in content if split_of(name) is None]:
        raise ValueError(f"{path} has the unknown splits {unknown}; they are called {', '.join(SPLIT_NAMES)}.")
    if wrong := [name for name, x in content.items() if not isinstance(x, Mapping)]:
        raise ValueError(f"{path}: the splits {wrong} hold no fields.")
    parts = {
        split_of(name): {str(key): _field(x, f"{name}/{key}", path) for key, x in fields.items()}
        for name, fields in content.items()
    }
    if len(parts) < len(content):
        raise ValueError(f"{path} has two names for one split: {list(content)}.")
    return parts


def _field(value: Any, name: str, path: Path) -> Field:
    """An array, or a list of arrays or of texts."""
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{path}: {name!r} is no array but {type(value).__name__}.")
    items = list(value)
    if items and all(isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind != "O" for x in items):
        sizes = sorted({x.shape[1] for x in items})
        if len(sizes) > 1:
            raise ValueError(f"{path}: vectors of {name!r} have different lengths, such as {sizes[0]} and {sizes[1]}.")
        return Sequences(np.concatenate(items), np.array([len(x) for x in items], np.int64))
    texts = [_text(x) for x in items]
    if None not in texts:
        return np.array(texts)
    try:
        array = np.array([np.asarray(x) for x in items])
    except ValueError as error:
        raise ValueError(f"{path}: the items of {name!r} have different shapes.") from error
    if array.dtype.kind == "O":
        raise ValueError(f"{path}: {name!r} holds objects that are no arrays of numbers.")
    return array


def _text(value: Any) -> str | None:
    """A text, or the parts of an id as MultiBench has them (clip, start, end)."""
    if isinstance(value, str | bytes):
        return as_text(value)
    if isinstance(value, list | tuple | np.ndarray) and len(value) and any(isinstance(x, str | bytes) for x in value):
        return "_".join(_text(x) or str(x) for x in value)
    return None
