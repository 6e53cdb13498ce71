"""
Tables as users have them, opened by `datasets`: files, folders, data sets on the Hub or in memory.

A text file of values (CSV, TSV) is opened with texts in every cell, so that nothing is lost ("007", "NA"); what they
mean is decided where they are used, see `table_columns`.
"""

import codecs
import csv
import glob
import json
import mimetypes
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets import Audio, Dataset, DatasetDict, Features, Image, Value, Video
from datasets.exceptions import DatasetNotFoundError
from datasets.utils import logging

from ..model.configuration_fl_i2moe import check_given
from ..utils.checked_json import unique_keys
from .raw import split_of

LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
LOADERS |= {".parquet": "parquet", ".arrow": "arrow"}
TEXT_LOADERS = ("csv", "json")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
SEPARATORS = ",;\t|"
FILES_OF_SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`
METADATA = "metadata"
"""A table of this name describes the files beside it."""
FILE_NAME = "file_name"

HINTS = {
    **dict.fromkeys((".npz", ".pkl", ".pickle"), "arrays are read by `load_arrays` (recipes/train_arrays.py)"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "save the sheet as CSV in UTF-8"),
}


@dataclass(frozen=True)
class Table:
    """The rows of one split, or of a table that is not cut into splits."""

    split: str | None
    """As the source calls it; None where it is not cut."""

    file: str
    """For messages."""

    rows: Dataset
    """Pictures and sounds are not decoded."""

    folders: tuple[Path, ...]
    """Where relative paths in its cells may begin."""

    holds_texts: bool = False
    """Whether every cell is a text, of a number as well."""


def open_tables(
    source: str | Path | Dataset | DatasetDict,
    *,
    root: str | Path | None = None,
    encoding: str = "utf-8",
    config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> list[Table]:
    """
    Opens a source; its arguments are those of `load_table`.

    Raises:
        ValueError: there is no such source, it cannot be read, or holds no rows; an option does not fit it.
    """
    own = () if root is None else (_existing_root(root),)
    if isinstance(source, Dataset | DatasetDict):
        _refuse({"config_name": config_name, "revision": revision}, "a data set that is in memory")
        return _opened(source, "the data set", (*own, Path.cwd()))
    if not isinstance(source, str | Path):
        raise ValueError(
            f"A table is a path, the name of a data set on the Hub, a Dataset or a DatasetDict, got a "
            f"{type(source).__name__}. Streamed data cannot be split; `Dataset.from_pandas` takes a data frame."
        )
    check_given("dataset", source)
    path = Path(source).expanduser()
    options = {"cache_dir": None if cache_dir is None else str(Path(cache_dir).expanduser())}
    if path.is_file():
        _refuse({"config_name": config_name, "revision": revision}, f"the file {path}")
        return [_open_file([path.absolute()], None, own, encoding, options)]
    if path.is_dir():
        _refuse({"revision": revision}, f"the folder {path}")
        return _open_folder(path.absolute(), own, encoding, config_name, options)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(source)) or _ending(path) in {*LOADERS, *HINTS}:
        raise ValueError(f"{path} is no file and no folder{_near(path)}.")
    with _explaining(f"the data set {str(source)!r}", path):
        found = datasets.load_dataset(str(source), name=config_name, revision=revision, **options)
    return _opened(found, str(source), (*own, Path.cwd()))


def _existing_root(root: str | Path) -> Path:
    check_given("root", root)
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"`root` {folder} is no folder{_near(folder)}; it is where relative paths of a table begin.")
    return folder


def _refuse(options: dict[str, Any], what: str) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"`{given[0]}` is for data sets on the Hub, got {what}: leave it out.")


def _near(path: Path) -> str:
    if path.is_symlink():
        return ", but a link that leads nowhere"
    try:
        names = [x.name for x in path.parent.iterdir()]
    except OSError:
        return ""
    close = get_close_matches(path.name, names, n=1)
    return f" (near it is {path.parent / close[0]})" if close else ""


def _ending(path: Path) -> str:
    """Of a table's name, without that of its compression."""
    path = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return path.suffix.lower()


def _opened(found: Dataset | DatasetDict, file: str, folders: tuple[Path, ...]) -> list[Table]:
    splits: dict[Any, Dataset] = {None: found} if isinstance(found, Dataset) else dict(found)
    if not any(map(len, splits.values())):
        raise ValueError(f"{file} has no rows.")
    return [Table(name, file, _undecoded(rows), folders) for name, rows in splits.items()]


def _undecoded(rows: Dataset) -> Dataset:
    rows = rows.with_format(None)
    for name, feature in rows.features.items():
        if isinstance(feature, Image | Audio | Video):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _open_folder(
    folder: Path, own: tuple[Path, ...], encoding: str, config_name: str | None, options: dict[str, Any]
) -> list[Table]:
    if any((folder / name).is_file() for name in FILES_OF_SAVED):
        with _explaining(str(folder), folder):
            return _opened(datasets.load_from_disk(str(folder)), str(folder), (*own, folder))
    files = [] if config_name is not None else _tables_in(folder)
    if metadata := _metadata(files):
        return [_described(_open_file(metadata, None, own, encoding, options))]
    if files:
        if len(files) == 1 and _split_in(files[0]) is None:
            return [_open_file(files, None, own, encoding, options)]
        shards: dict[str | None, list[Path]] = {}
        for file in files:
            shards.setdefault(_split_in(file), []).append(file)
        if None in shards:
            raise ValueError(
                f"{folder} holds several tables, {', '.join(x.name for x in files[:8])}: give the path of one of them, "
                "or name all after their splits, such as train.csv and test.csv."
            )
        return [_open_file(x, split, own, encoding, options) for split, x in shards.items()]
    below = {x: _metadata(_tables_in(x)) for x in sorted(folder.iterdir()) if x.is_dir() and split_of(x.name)}
    if any(below.values()) and config_name is None:
        if lacking := [x for x, metadata in below.items() if not metadata]:
            raise ValueError(f"{lacking[0]} has no table {METADATA}.csv as the other splits have; add it.")
        return [_described(_open_file(x, sub.name, own, encoding, options)) for sub, x in below.items()]
    with _explaining(str(folder), folder):
        found = datasets.load_dataset(str(folder), name=config_name, **options)
    return _opened(found, str(folder), (*own, folder))


def _tables_in(folder: Path) -> list[Path]:
    return sorted(x for x in folder.iterdir() if x.is_file() and _ending(x) in LOADERS and x.name[0] not in "._")


def _metadata(files: list[Path]) -> list[Path]:
    return [x for x in files if x.name.split(".")[0].lower() == METADATA]


def _described(table: Table) -> Table:
    """
    A table of metadata with the names that `datasets` gives its columns of files: `image` or `audio` for `file_name`,
    `front` for `front_file_name`.
    """
    names = {}
    for name in table.rows.column_names:
        if name == FILE_NAME:
            kind = mimetypes.guess_type(str(table.rows[0][name]))[0] or FILE_NAME
            names[name] = kind.split("/")[0]
        elif name.endswith(f"_{FILE_NAME}"):
            names[name] = name.removesuffix(f"_{FILE_NAME}")
    if twice := [new for new in names.values() if new in table.rows.column_names and new not in names]:
        raise ValueError(f"{table.file} has a column {twice[0]!r}, as the files would be called; rename it.")
    return replace(table, rows=table.rows.rename_columns(names))


def _split_in(file: Path) -> str | None:
    """The split that a file is named after, as it is called there: `train.csv`, `train-00000-of-00002.parquet`."""
    words = [word for word in re.split(r"[-_. ]+", file.name.lower()) if split_of(word) is not None]
    return words[0] if len({split_of(word) for word in words}) == 1 else None


def _open_file(
    files: list[Path], split: str | None, own: tuple[Path, ...], encoding: str, options: dict[str, Any]
) -> Table:
    """A table in one file, or in several of one kind."""
    ending, file = _ending(files[0]), str(files[0])
    if ending not in LOADERS:
        hint = HINTS.get(ending, f"tables end with {', '.join(LOADERS)}")
        raise ValueError(f"{file} ends with {files[0].suffix!r}, which is no table: {hint}.")
    if others := [x for x in files if _ending(x) != ending]:
        raise ValueError(f"{files[0]} and {others[0].name} are both of the split {split!r}; keep one of them.")
    loader = LOADERS[ending]
    try:
        codec = codecs.lookup(encoding).name
    except LookupError as error:
        raise ValueError(
            f"`encoding` {encoding!r} is unknown; usual ones are utf-8, cp1252, latin-1, utf-16."
        ) from error
    codec = "utf-8-sig" if codec == "utf-8" else codec  # which a byte order mark may begin
    if loader in TEXT_LOADERS:
        for path in files:
            _check_encoding(path, codec)
    if loader == "csv":
        columns, separator = _check_csv(files, codec)
        features = Features({name: Value("string") for name in columns})
        options = options | {
            **{"features": features, "column_names": columns, "header": 0, "sep": separator, "encoding": codec},
            **{"keep_default_na": False, "index_col": False},
        }
    elif loader == "json":
        options = options | {"encoding": "utf-8" if codec == "utf-8-sig" else codec}
    with _explaining(file, files[0]):
        found = datasets.load_dataset(loader, data_files=[glob.escape(str(x)) for x in files], split="train", **options)
    return Table(split, file, _undecoded(found), (*own, files[0].parent), holds_texts=loader == "csv")


def _check_encoding(path: Path, codec: str) -> None:
    decoder, line, place = codecs.getincrementaldecoder(codec)(), 1, 0
    with fsspec.open(str(path), "rb", compression="infer") as file:
        while True:
            kept = len(decoder.getstate()[0])
            content = file.read(1 << 20)
            try:
                decoder.decode(content, final=not content)
            except UnicodeError as error:
                start, found = getattr(error, "start", 0), getattr(error, "object", content)
                line += found[:start].count(b"\n")
                raise ValueError(
                    f"{path}, line {line}: byte {place - kept + start:,} ({found[start : start + 1].hex()}) is no "
                    f"{codec.removesuffix('-sig')} text. Say by `encoding` which it is, such as cp1252 or utf-16, or "
                    "save the file in UTF-8."
                ) from error
            if not content:
                return
            line, place = line + content.count(b"\n"), place + len(content)


@contextmanager
def _records(path: Path, codec: str, separator: str) -> Iterator[Any]:
    """The records of a CSV file, with cells of any length; raises `ValueError` for what is none, with its line."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with fsspec.open(str(path), "rt", encoding=codec, newline="", compression="infer") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            try:
                yield reader
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {reader.line_num}: it cannot be read as CSV ({error}); put cells that hold quotes "
                    "or line ends in quotes, and double the quotes in them."
                ) from error
    finally:
        csv.field_size_limit(limit)


def _check_csv(files: list[Path], codec: str) -> tuple[list[str], str]:
    """The columns' names and the separator; each record must have as many cells as there are names."""
    header: list[str] = []
    separator = ","
    for path in files:
        with fsspec.open(str(path), "rt", encoding=codec, compression="infer") as file:
            first = re.sub('"[^"]*"', "", file.readline())
        counts = {x: first.count(x) for x in SEPARATORS}
        is_tsv = _ending(path) == ".tsv" and "\t" in first
        separator = "\t" if is_tsv else max(SEPARATORS, key=lambda x: counts[x])
        with _records(path, codec, separator) as records:
            names: list[str] | None = next(records, None)
            if not names:
                what = "is empty" if names is None else "begins with an empty line"
                raise ValueError(f"{path} {what}; its first line names the columns.")
            names = [name or f"Unnamed: {place}" for place, name in enumerate(names)]  # as pandas calls it
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"{path} has several columns of one name: {', '.join(map(repr, twice))}; rename them.")
            if header and names != header:
                raise ValueError(f"{path} has the columns {names}, {files[0]} has {header}; they must be the same.")
            header, num_rows = names, 0
            for record in records:
                num_rows += bool(record)
                if record and len(record) != len(names):
                    raise ValueError(
                        f"{path}, line {records.line_num}: there are {len(record)} cells, the first line names "
                        f"{len(names)} columns ({', '.join(names[:8])}). Put cells that hold {separator!r} in quotes."
                    )
        if not num_rows:
            raise ValueError(f"{path} has no rows below its first line.")
    return header, separator


@contextmanager
def _explaining(what: str, path: Path) -> Iterator[None]:
    """Turns what `datasets` raises into one `ValueError`."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # the reason is told once, below
    try:
        yield
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{path} is no file and no folder here{_near(path)}, and {what} cannot be had from the Hub: "
            f"{str(error).splitlines()[0]:.200}"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"{what} needs a package that is not installed ({error}). Install it, or give a table of the files' paths."
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{what} holds no table, and no files that `datasets` makes one of.") from error
    except StopIteration as error:
        raise ValueError(f"{what} has no rows.") from error
    except Exception as error:  # builders raise anything for a file that they cannot read
        reason: BaseException = error
        while reason.__cause__ is not None or reason.__context__ is not None:
            reason = reason.__cause__ or reason.__context__
        if "corresponds to no data" in str(reason):
            raise ValueError(f"{what} has no rows.") from error
        told = str(error if isinstance(error, ValueError) else reason).strip().splitlines() or [type(reason).__name__]
        where = _broken_line(path) if path.is_file() and _ending(path) in (".jsonl", ".ndjson") else None
        said = where or f" cannot be read: {told[0][:300].rstrip('.!')}"
        raise ValueError(f"{what}{said}. Mend it, or write it again.") from error
    finally:
        logging.set_verbosity(level)


def _broken_line(path: Path) -> str | None:
    """Where a file of JSON lines is broken, as the end of a sentence."""
    with fsspec.open(str(path), "rb", compression="infer") as file:
        for number, line in enumerate(file, 1):
            try:
                content = json.loads(line, object_pairs_hook=unique_keys) if line.strip() else {}
            except ValueError as error:
                return f", line {number} is no JSON: {error}"
            if not isinstance(content, dict):
                return f", line {number} holds a {type(content).__name__}; each line is an object, column → value"
    return None
