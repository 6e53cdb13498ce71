"""
Files of numeric arrays: `.npz`, `.parquet` and pickles of arrays, each as the same thing, fields of N samples by name.

Shape letters: N samples, T features of a sequence, D numbers of a feature, F features of all samples.
"""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from .array_pickle import read_array_pickle
from .raw import SPLIT_NAMES, is_list, names_of_splits, split_of, texts

FILE_ENDS = (".npz", ".parquet", ".pkl", ".pickle")
LABEL_NAMES_FIELD = "label_names"
ALL = "all"  # stands for the split of a file that is not cut into splits


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
"""N samples; where values are missing, a masked array of the type that the others have."""

Part = dict[str, Field]


def describe_shape(x: Field) -> str:
    """A field's type and shape, for people."""
    return f"{len(x)} sequences" if isinstance(x, Sequences) else f"{x.dtype} {x.shape}"


def id_texts(x: Field, name: str, file: str | Path) -> list[str]:
    """Ids, each of one part or several, as texts; raises `ValueError` for other values and where one is missing."""
    if isinstance(x, Sequences) or x.dtype.kind not in "iuUSO":
        raise ValueError(f"{file}: {name!r} holds {describe_shape(x)}; ids are texts or whole numbers.")
    rows = x.reshape(len(x), -1).tolist()
    if missing := [number for number, row in enumerate(rows) if _has_gap(row)]:
        raise ValueError(f"{file}: {name!r} has no id in the rows {', '.join(map(str, missing[:5]))}.")
    if wrong := [part for row in rows for part in row if not isinstance(part, str | bytes | int)]:
        raise ValueError(f"{file}: {name!r} holds {wrong[0]!r}; ids are texts or whole numbers.")
    decoded = [[x.decode(errors="replace") if isinstance(x, bytes) else x for x in row] for row in rows]
    return ["_".join(texts(row, name, file)) for row in decoded]


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
            return _cut(_read_npz(path), label_field, path)
        case ".parquet":
            return {ALL: _read_parquet(path, label_field)}
        case ".pkl" | ".pickle":
            return _parts(read_array_pickle(path), path)
        case other:
            raise ValueError(f"{path} ends with {other!r}; files of arrays are {', '.join(FILE_ENDS)}.")


def _read_npz(path: Path) -> Part:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or is broken: it is no zip archive.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            _check_once(archive.files, path)
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


def _check_once(names: Iterable[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} has several fields of one name: {', '.join(map(repr, twice))}; keep one of them.")
    texts(names, "names of fields", path)


def _cut(fields: Part, label_field: str, path: Path) -> dict[str, Part]:
    """By the names' ends, where the labels have such ends."""
    aliases = [alias for names in SPLIT_NAMES.values() for alias in names]
    cut = [alias for alias in aliases if f"{label_field}_{alias}" in fields]
    if not cut:
        return {ALL: fields}
    if label_field in fields:
        raise ValueError(f"{path} has both {label_field!r} and {f'{label_field}_{cut[0]}'!r}: keep one of them.")
    splits = names_of_splits(cut, f"{path}: {label_field!r}")
    for split, alias in splits.items():
        others = tuple(f"_{x}" for x in SPLIT_NAMES[split] if x != alias)
        if wrong := [name for name in fields if name.endswith(others)]:
            raise ValueError(
                f"{path} has two names for one split, {f'{label_field}_{alias}'!r} and {wrong[0]!r}: let all end alike."
            )
    ends = tuple(f"_{alias}" for alias in splits.values())
    whole = {name: x for name, x in fields.items() if not name.endswith(ends)}
    return {
        split: {name.removesuffix(f"_{x}"): field for name, field in fields.items() if name.endswith(f"_{x}")} | whole
        for split, x in splits.items()
    }


def _read_parquet(path: Path, label_field: str) -> Part:
    try:
        table = pa.parquet.ParquetFile(path).read()  # and not what folders' names say
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no .parquet file, or is broken: {error}") from error
    _check_once(table.column_names, path)
    fields: dict[str, Any] = {name: _column(table[name].combine_chunks(), name, path) for name in table.column_names}
    if (names := _class_names(table.schema, label_field)) and fields[label_field].dtype.kind in "iu":
        fields[label_field] = np.ma.masked_equal(fields[label_field], -1)  # as `datasets` writes "no label"
        fields.setdefault(LABEL_NAMES_FIELD, np.array(names))
    return fields


def _class_names(schema: pa.Schema, label_field: str) -> list[str] | None:
    """Of a `datasets.ClassLabel`, as `datasets` describes its columns in a file."""
    try:
        kind = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label_field]
        return [str(name) for name in kind["names"]] if kind["_type"] == "ClassLabel" else None
    except (ValueError, LookupError, TypeError):  # it describes none
        return None


def _column(column: Any, name: str, path: Path) -> Field:
    """A list of lists of numbers is a sequence of features, a list of numbers one feature; a tensor is either."""
    if isinstance(kind := column.type, pa.FixedShapeTensorType):
        if kind.permutation and list(kind.permutation) != sorted(kind.permutation):
            raise ValueError(f"{path}: the tensors of the column {name!r} have permuted axes; write them in order.")
        flat = _column(column.storage, name, path)
        return flat if isinstance(flat, Sequences) else flat.reshape(-1, *kind.shape)
    column = _plain(column)
    if not is_list(column.type):
        return _values(column)
    lengths = _lengths(column)
    inner = _plain(column.flatten())
    is_nested = is_list(inner.type)
    sizes = _lengths(inner) if is_nested else lengths
    numbers = _values(_plain(inner.flatten()) if is_nested else inner)
    if len(different := np.unique(sizes[sizes > 0])) > 1:
        raise ValueError(f"{path}: vectors of the column {name!r} have different lengths: {different[:2].tolist()}.")
    size = int(different[0]) if len(different) else 1
    vectors = _with_gaps(numbers.reshape(-1, size), sizes > 0)
    return Sequences(with_nan(vectors), lengths) if is_nested else vectors


def _plain(column: Any) -> Any:
    """Values as the schema has them, without what it puts around them."""
    if isinstance(column.type, pa.UuidType):
        return pa.array([x and str(x) for x in column.to_pylist()], pa.string())
    if isinstance(column, pa.ExtensionArray):
        return _plain(column.storage)
    if pa.types.is_dictionary(column.type):
        return _plain(column.dictionary_decode())
    if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
        return column.cast(pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary())
    return column


def _values(column: Any) -> NDArray[Any]:
    if pa.types.is_decimal(column.type):
        try:
            column = column.cast(pa.int64() if column.type.scale <= 0 else pa.float64())
        except pa.ArrowInvalid:  # whole numbers of more than 64 bits
            column = column.cast(pa.string())
    return _with_gaps(column.drop_null().to_numpy(zero_copy_only=False), column.is_valid().to_numpy(False))


def _with_gaps(present: NDArray[Any], is_there: NDArray[np.bool_]) -> NDArray[Any]:
    """What is there, at its places."""
    if is_there.all():
        return present
    values = np.ma.masked_all((len(is_there), *present.shape[1:]), present.dtype)
    values[is_there] = present
    return values


def with_nan(x: NDArray[Any]) -> NDArray[Any]:
    """NaN in place of numbers that are missing."""
    if not isinstance(x, np.ma.MaskedArray) or x.dtype.kind not in "biuf":
        return np.ma.getdata(x)
    return np.ma.filled(x.astype(np.float64), np.nan)


def _lengths(column: Any) -> NDArray[np.int64]:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _parts(content: Any, path: Path) -> dict[str, Part]:
    """Of a pickle: splits with fields, as in MultiBench, or fields alone."""
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds {kind}: it must be a dict of arrays, or of splits of them.")
    if not any(isinstance(x, Mapping) for x in content.values()):
        return {ALL: _fields(content, path)}
    if unknown := [name for name in content if split_of(name) is None]:
        raise ValueError(f"{path} has the unknown splits {unknown}; they are called {', '.join(SPLIT_NAMES)}.")
    if wrong := [name for name, x in content.items() if not isinstance(x, Mapping)]:
        raise ValueError(f"{path}: the splits {wrong} hold no fields.")
    return {split: _fields(content[name], path, name) for split, name in names_of_splits(content, path).items()}


def _fields(content: Mapping[Any, Any], path: Path, *split: Any) -> Part:
    names = texts(content, "names of fields", path)
    _check_once(names, path)
    return {name: _field(x, "/".join([*split, name]), path) for name, x in zip(names, content.values(), strict=True)}


def _field(value: Any, name: str, path: Path) -> Field:
    """An array, or a list of arrays or of texts."""
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return value
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{path}: {name!r} is no array but {type(value).__name__}.")
    items = list(value)
    is_there = np.array([not _is_gap(x) for x in items], np.bool_)
    is_number = np.array([not _is_nan(x) for x in items], np.bool_)
    if not any(isinstance(x, float | np.floating) for x in compress(items, is_there & is_number)):
        is_there &= is_number  # NaN between texts or whole numbers is how pandas writes a gap
    there = list(compress(items, is_there))
    if there and all(isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind != "O" for x in there):
        sizes = sorted({x.shape[1] for x in there})
        if len(sizes) > 1:
            raise ValueError(f"{path}: vectors of {name!r} have different lengths, such as {sizes[0]} and {sizes[1]}.")
        lengths = np.zeros(len(items), np.int64)
        lengths[is_there] = [len(x) for x in there]
        return Sequences(np.concatenate(there), lengths)
    named = [_text(x) for x in there]
    if any(x is not None for x in named):
        if wrong := [x for x, text in zip(there, named, strict=True) if text is None and not _is_whole(x)]:
            raise ValueError(f"{path}: {name!r} holds texts and {wrong[0]!r} among them.")
        array = np.empty(len(there), object)
        array[:] = [str(x) if text is None else text for x, text in zip(there, named, strict=True)]
    else:
        try:
            arrays = [_numbers(x) for x in there]
            array = np.array(arrays)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: the items of {name!r} have different shapes, or are no numbers.") from error
        if array.dtype.kind == "O":
            raise ValueError(f"{path}: {name!r} holds objects that are no arrays of numbers.")
        if array.dtype.kind == "f" and all(x.dtype.kind in "iu" for x in arrays) and arrays:
            raise ValueError(f"{path}: {name!r} has whole numbers of more than 64 bits.")
    return _with_gaps(array, is_there)


def _numbers(value: Any) -> NDArray[Any]:
    """An array; of a list, NaN where there is None."""
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind == "O" and array.ndim else array


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _is_gap(value: Any) -> bool:
    """Whether it is None, or an id in parts of which one is missing."""
    return value is None or (not isinstance(value, str | bytes) and _text(value) is not None and _has_gap(value))


def _has_gap(row: Iterable[Any]) -> bool:
    return any(x is None for x in row)


def _text(value: Any) -> str | bytes | None:
    """A text, or the parts of an id as MultiBench has them (clip, start, end)."""
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, list | tuple | np.ndarray) and len(value) and any(isinstance(x, str | bytes) for x in value):
        return "_".join(x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in value)
    return None
