"""
Columns of a table as modalities: each cell is checked, and written as its kind stores it.

A column that is already as its kind stores it is checked and stays, so that pictures whose bytes lie in the table are
not copied; others are written anew. Nothing but short notes on each row stays in memory.
Shape letters: N rows.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets
from datasets.fingerprint import Hasher, generate_random_fingerprint, get_temporary_cache_files_directory
from numpy.typing import NDArray

from ..model.configuration_fl_i2moe import did_you_mean
from ..model.kind import Kind, is_missing
from ..model.kinds import KINDS
from .raw import SampleError
from .table_columns import BATCH, batches, check_columns, check_scalars, example, types_of_texts, values_of
from .table_sources import Table

Missing = Literal["stop", "drop", "fill"]
SEVERAL_COLUMNS = "tabular"
"""The kind of a modality that is made of several columns."""

NUM_EXAMPLES = 3
NO_HASH = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Modality:
    """What a user calls a modality, and the columns that it is made of."""

    name: str
    kind_name: str
    columns: tuple[str, ...]
    is_joined: bool
    """Whether a value is a mapping, column → cell."""

    @property
    def kind(self) -> Kind:
        return KINDS[self.kind_name]

    def value(self, batch: Mapping[str, list[Any]], row: int, folders: Sequence[Path]) -> Any:
        """What `Kind.cell` takes, None where the modality is missing; raises `ValueError` with the reason alone."""
        if not self.is_joined:
            return self.kind.from_table(batch[self.columns[0]][row], folders)
        cells = {name: batch[name][row] for name in self.columns}
        if all(map(is_missing, cells.values())):
            return None
        return self.kind.from_table({name: None if is_missing(x) else x for name, x in cells.items()}, folders)


@dataclass
class Found:
    """What reading a table once has shown."""

    problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row → modality, and why its value cannot be used."""

    missing: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Modality → (N,)."""

    sizes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Modality → (N,) numbers of a vector, for features; 0 where there are none."""

    hashes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Column of texts or numbers → (N,), the same for the same value."""

    examples: dict[str, list[str]] = field(default_factory=dict)
    """Modality → its first values, for people."""


def check_modalities(given: Mapping[str, str | Sequence[str]]) -> list[Modality]:
    """`given` is `modalities` of `load_table`; raises `ValueError` if a kind is unknown or a column is named twice."""
    if not isinstance(given, Mapping):
        raise ValueError(f"`modalities` must map columns to their kinds ({', '.join(KINDS)}), got {given!r}.")
    found = []
    for name, kind in given.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"`modalities` has the name {name!r}; it must be a column, or a name for several.")
        columns = [name] if isinstance(kind, str) else list(kind or ())
        if not columns or not all(isinstance(x, str) for x in columns):
            raise ValueError(f"`modalities[{name!r}]` must be a kind or a list of columns, got {kind!r}.")
        kind_name = kind if isinstance(kind, str) else SEVERAL_COLUMNS
        if kind_name not in KINDS:
            raise ValueError(
                f"`modalities[{name!r}]` must be one of {', '.join(KINDS)}, or a list of columns, got {kind_name!r}."
                f"{did_you_mean(kind_name, KINDS)}"
            )
        is_joined = not isinstance(kind, str) or kind_name == SEVERAL_COLUMNS
        found.append(Modality(name, kind_name, tuple(columns), is_joined))
    columns = [column for modality in found for column in modality.columns]
    if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise ValueError(f"The column {twice[0]!r} is given twice in `modalities`; a column is part of one modality.")
    return found


def check_missing(missing: Missing) -> None:
    if missing not in get_args(Missing):
        raise ValueError(f"`missing` must be one of {', '.join(get_args(Missing))}, got {missing!r}.")


class TableReader:
    """Reads modalities from tables of the same columns."""

    def __init__(self, tables: Sequence[Table], modalities: Sequence[Modality]) -> None:
        self.modalities = modalities
        columns = [column for modality in modalities for column in modality.columns]
        check_columns(tables, columns)
        joined = [column for modality in modalities if modality.is_joined for column in modality.columns]
        check_scalars(tables, joined)
        self.types = types_of_texts(tables, joined)
        self.features = Features.from_dict({x.name: x.kind.raw_type for x in modalities})

    def read(self, table: Table) -> tuple[Dataset, Found]:
        """The modalities' columns as their kinds store them, (N,) rows with null where there is no value, and why."""
        found = Found()
        for x in self.modalities:
            found.missing[x.name] = np.zeros(len(table.rows), np.bool_)
            found.sizes[x.name] = np.zeros(len(table.rows), np.int64)
            found.examples[x.name] = []
        written: list[Modality] = []
        kept: list[Modality] = []
        for x in self.modalities:
            fits = not x.is_joined and table.rows.features[x.columns[0]] == self.features[x.name]
            (kept if fits else written).append(x)
        changed = self._find_changed(table, kept, found) if kept else set()
        unchanged = [x.name for x in kept if x.name not in changed]
        parts = [
            *([table.rows.select_columns(unchanged)] if unchanged else []),
            *(self._written(table, part, found) for part in (written, [x for x in kept if x.name in changed]) if part),
        ]
        return concatenate_datasets(parts, axis=1), found

    def _find_changed(self, table: Table, modalities: Sequence[Modality], found: Found) -> set[str]:
        """Checks columns of the right type; gives the modalities that all the same cannot stay as they are."""
        changed = set()
        columns = [x.columns[0] for x in modalities]
        for start, batch in batches(table, columns, self.types):
            for x in modalities:
                if self._cells(x, table, start, batch, found) != batch[x.columns[0]]:
                    changed.add(x.name)
        return changed

    def _written(self, table: Table, modalities: Sequence[Modality], found: Found) -> Dataset:
        """Columns written anew, on disk where the table is on disk."""
        columns = [column for x in modalities for column in x.columns]
        source = table.rows.select_columns(columns)
        schema = Features({x.name: self.features[x.name] for x in modalities})

        def write(batch: pa.Table, rows: list[int]) -> pa.Table:
            values = values_of(batch, source.features, self.types)
            cells = {x.name: self._cells(x, table, rows[0], values, found) for x in modalities}
            return pa.table(cells, schema.arrow_schema)

        # never read again, since files may have come or gone, and so always in the same place
        place = Hasher.hash([source._fingerprint, *map(str, modalities), *map(str, table.folders)])
        folder = Path(source.cache_files[0]["filename"]).parent if source.cache_files else None
        if folder and not os.access(folder, os.W_OK):
            folder = Path(get_temporary_cache_files_directory())
        return (
            source.with_format("arrow")
            .map(
                write,
                with_indices=True,
                batched=True,
                batch_size=BATCH,
                remove_columns=columns,
                features=schema,
                cache_file_name=str(folder / f"cache-{place}.arrow") if folder else None,
                load_from_cache_file=False,
                new_fingerprint=generate_random_fingerprint(),
                desc=f"Reading {table.file}",
            )
            .with_format(None)
        )

    def _cells(
        self, modality: Modality, table: Table, start: int, batch: Mapping[str, list[Any]], found: Found
    ) -> list[Any]:
        """Cells of a batch as the raw column takes them; what there is to say goes to `found`."""
        name, kind, examples = modality.name, modality.kind, found.examples[modality.name]
        for column in modality.columns:
            _add_hashes(found, column, start, batch[column], len(table.rows))
        given = batch[modality.columns[0]]
        cells: list[Any] = [None] * len(given)
        for place in range(len(given)):
            try:
                value = modality.value(batch, place, table.folders)
                cells[place] = None if value is None else kind.cell(value)
            except ValueError as error:
                found.problems.setdefault(start + place, (name, str(error).rstrip(".")))
                continue
            if value is None:
                found.missing[name][start + place] = True
                continue
            if size := kind.feature_size(value):
                found.sizes[name][start + place] = size
            if len(examples) < NUM_EXAMPLES and (text := example(value if modality.is_joined else given[place])):
                examples += [text] * (text not in examples)
        return cells


def _add_hashes(found: Found, column: str, start: int, values: Sequence[Any], num_rows: int) -> None:
    if any(_is_scalar(x) for x in values):
        hashes = found.hashes.setdefault(column, np.full(num_rows, NO_HASH))
        hashes[start : start + len(values)] = [hash(x) if _is_scalar(x) else NO_HASH for x in values]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not is_missing(value)


def report_problems(
    table: Table,
    found: Found,
    ids: Sequence[str],
    splits: Sequence[str],
    sizes: Mapping[str, int],
    missing: Missing,
    others: str,
) -> tuple[dict[int, SampleError], dict[int, SampleError]]:
    """
    Row → why it cannot be used; and row → what it lacks, where it is left out for that.

    Args:
        ids, splits: (N,), for the messages.
        sizes: modality → numbers of a vector that every row must have.
        missing: what to do about missing values.
        others: whose vectors have so many numbers, for the messages.

    Raises:
        ValueError: with `"stop"`, if a value is missing.
    """
    bad: dict[int, SampleError] = {}
    dropped: dict[int, SampleError] = {}

    def report(into: dict[int, SampleError], row: int, name: str, reason: str) -> None:
        told = f"row {row} (counted from 0): {reason}"
        into.setdefault(row, SampleError(splits[row], ids[row], name, table.file, told))

    for row, (name, reason) in found.problems.items():
        report(bad, row, name, reason)
    for name, size in sizes.items():
        own = found.sizes[name]
        for row in np.flatnonzero((own > 0) & (own != size)).tolist():
            report(bad, row, name, f"its vectors have {own[row]} numbers, {others} {size}")
    for name, gaps in found.missing.items():
        rows = np.flatnonzero(gaps).tolist()
        if rows and missing == "stop":
            where = "" if table.split is None else f" (split {table.split!r})"
            raise ValueError(
                f"{table.file}{where}: {name!r} is missing in {len(rows):,} of {len(gaps):,} rows, the first is row "
                f"{rows[0]} (counted from 0). Leave such rows out by missing='drop', keep them without it by "
                "missing='fill', or fill the cells."
            )
        for row in rows if missing == "drop" else ():
            report(dropped, row, name, "it is missing")
    if missing == "fill":
        for row in np.flatnonzero(np.all(list(found.missing.values()), axis=0)).tolist():
            report(dropped, row, ", ".join(found.missing), "every modality is missing")
    return bad, dropped


def feature_sizes(modalities: Sequence[Modality], found: Sequence[Found]) -> dict[str, int]:
    """Modality of features → how many numbers the vectors of most rows have."""
    sizes = {}
    for x in modalities:
        own = np.concatenate([part.sizes[x.name] for part in found])
        if (own > 0).any():
            sizes[x.name] = int(np.bincount(own[own > 0]).argmax())
    return sizes


def check_leaks(
    modalities: Sequence[Modality],
    found: Sequence[Found],
    labels: NDArray[Any],
    rows: NDArray[np.int64],
    label: str,
    file: str,
    notes: list[str],
) -> None:
    """
    Looks for columns of texts or numbers that tell the label without anything to learn.

    Args:
        labels: (N,) or (N, C); of one label a sample alone something is looked for.
        rows: the samples.
        notes: gets a sentence on each column whose values and labels go together one to one.

    Raises:
        ValueError: a column holds the labels themselves.
    """
    if labels.ndim == 2:
        return
    labels = labels[rows]
    places = np.unique(labels, return_inverse=True)[1].reshape(-1)
    own = np.array([hash(x) for x in labels.tolist()], np.int64)
    for name in [column for modality in modalities for column in modality.columns]:
        if any(name not in part.hashes for part in found):
            continue
        hashes = np.concatenate([part.hashes[name] for part in found])[rows]
        if (hashes == own).all():
            raise ValueError(
                f"{file}: the column {name!r} holds the labels of {label!r} themselves, so that there is nothing to "
                "learn; leave it out of the modalities."
            )
        there = hashes != NO_HASH
        values = np.unique(hashes[there], return_inverse=True)[1].reshape(-1)
        num_pairs = len(np.unique(np.stack([values, places[there]]), axis=1).T)
        num_values, num_labels = len(np.unique(values)), len(np.unique(places[there]))
        if num_pairs == num_values == num_labels and 1 < num_values <= there.sum() / 2:
            notes.append(
                f"The column {name!r} tells {label!r}: each of its {num_values:,} values has a label of its own. If it "
                "is made from the label, leave it out."
            )
