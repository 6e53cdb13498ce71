"""
What the columns of a table hold, as Python values batch by batch, or whole as arrays.

Shape letters: N rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features

from ..model.configuration_fl_i2moe import did_you_mean
from .table_sources import Table

BATCH = 256
"""Rows; pictures may lie in the cells, byte by byte."""
CODE = r"^[+-]?(0\d|\d{19})"
"""Digits that are no number: "007", or more of them than 64 bits hold."""
GAPS = ("na", "n/a", "nan", "null", "none")
"""Words that stand for a number that is missing."""


def check_columns(tables: Sequence[Table], names: Iterable[str]) -> None:
    """Raises `ValueError` if a table lacks a column; offers the nearest name."""
    for table in tables:
        known = table.rows.column_names
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"A column is given by its name, got {name!r}.")
            if name not in known:
                where = "" if table.split is None else f" (split {table.split!r})"
                shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
                raise ValueError(
                    f"{table.file}{where} has no column {name!r}.{did_you_mean(name, known)} Its columns are {shown}."
                )


def check_scalars(tables: Sequence[Table], names: Iterable[str]) -> None:
    """Raises `ValueError` if a column that is one of several in a modality holds no numbers, texts or booleans."""
    for table in tables:
        for name in names:
            kind = table.rows.features.arrow_schema.field(name).type
            if not (is_text(kind) or is_number(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
                raise ValueError(
                    f"{table.file}: the column {name!r} holds {type_name(kind)}; columns that make one modality hold "
                    "numbers, texts or booleans. Write it as such (of a date, say, the year as a number)."
                )


def types_of_texts(tables: Sequence[Table], names: Iterable[str]) -> dict[str, pa.DataType]:
    """Column → type of the numbers or booleans that its texts stand for, where all of them do in all of the tables."""
    written = [table for table in tables if table.holds_texts]
    return {name: kind for name in names if written and (kind := _type_of_texts(written, name)) is not None}


def _type_of_texts(tables: Sequence[Table], name: str) -> pa.DataType | None:
    kinds = [pa.int64(), pa.float64(), pa.bool_()]
    is_empty = True
    for table in tables:
        for batch in table.rows.select_columns([name]).with_format("arrow").iter(10_000):
            values = without_gaps(batch[name]).drop_null()
            is_empty &= not len(values)
            if pc.any(pc.match_substring_regex(values, CODE)).as_py():
                return None
            kinds = [kind for kind in kinds if _can_be(values, kind)]
            if not kinds:
                return None
    return None if is_empty else kinds[0]


def without_gaps(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without the spaces around them, null where nothing is left or where a word says so."""
    values = pc.utf8_trim_whitespace(values)
    is_gap = pc.is_in(pc.utf8_lower(values), pa.array(["", *GAPS]))
    return pc.if_else(is_gap, pa.scalar(None, values.type), values)


def _can_be(values: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        values.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def batches(
    table: Table, names: Sequence[str], types: Mapping[str, pa.DataType]
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """The first row of each batch, and column → its values."""
    start = 0
    for batch in table.rows.select_columns(list(names)).with_format("arrow").iter(BATCH):
        yield start, values_of(batch, table.rows.features, types)
        start += len(batch)


def values_of(batch: pa.Table, features: Features, types: Mapping[str, pa.DataType]) -> dict[str, list[Any]]:
    """Column → its values as Python has them: classes by their names, texts as the numbers that they stand for."""
    found = {}
    for name in batch.column_names:
        column = batch[name]
        if name in types:
            column = without_gaps(column).cast(types[name])
        elif pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        values = column.to_pylist()
        if isinstance(features[name], ClassLabel):
            names = features[name].names
            values = [None if x is None or x < 0 else names[x] for x in values]
        found[name] = values
    return found


def whole_column(table: Table, name: str, types: Mapping[str, pa.DataType]) -> pa.ChunkedArray:
    """(N,) a column of short values, as Arrow has it."""
    column = table.rows.select_columns([name]).with_format("arrow")[:][name]
    if name in types:
        return without_gaps(column).cast(types[name])
    return column


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def type_name(kind: pa.DataType) -> str:
    """A type, for people."""
    if isinstance(kind, pa.BaseExtensionType):  # as `datasets` stores JSON of no one type
        return "values of different types"
    return "texts" if is_text(kind) else str(kind)


def example(value: Any) -> str:
    """A value in a few characters, for people."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    text = repr(value)
    if len(text) <= 40:
        return text
    close = text[-1] if isinstance(value, str) else ""
    return text[: 39 - len(close)] + "…" + close


def texts_of(table: Table, name: str) -> list[str | None]:
    """(N,) ids, splits or groups as texts, None where missing; raises `ValueError` for what can be none."""
    column = whole_column(table, name, {})
    kind = column.type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind)):
        raise ValueError(
            f"{table.file}: the column {name!r} holds {type_name(kind)}; it must hold texts or whole numbers."
        )
    values = values_of(pa.table({name: column}), table.rows.features, {})[name]
    return [None if x is None or not str(x).strip() else str(x) for x in values]
