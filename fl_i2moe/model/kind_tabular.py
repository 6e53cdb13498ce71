"""
Columns of a table: numbers and categories, each column one feature.

The vector of a column is as wide as all columns together and has its value in places of its own. So the model's
projection gives every number a direction, and every category an embedding.

Shape letters: B samples, T columns, D places of all columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Number
from typing import Any, ClassVar, Self

import numpy as np

from .configuration_fl_i2moe import did_you_mean
from .kind import FittedEncoder, FittedKind, Preprocessed, pad_sequences
from .places import Places

LARGEST = float(np.finfo(np.float16).max)
"""That a feature cache holds."""
LONGEST_NAME = 80
"""Characters of a value that explanations show."""

Value = float | str | bool | None


@dataclass(frozen=True)
class NumberColumn:
    """
    `(x − mean) / scale`, and a second place which says 1 that the number is missing. Where the training split lacks
    none there is no such place: a missing number then stands at the mean.
    """

    column: str
    mean: float
    scale: float
    has_missing: bool

    @property
    def width(self) -> int:
        return 1 + self.has_missing

    def encode(self, value: Value) -> tuple[list[float], str]:
        """The places' content, and the value as people read it."""
        if value is None:
            return [0.0, 1.0][: self.width], "missing"
        if isinstance(value, (str, bool)):
            raise ValueError(f"column {self.column!r} takes numbers, got {value!r:.80}; give null for an unknown one")
        standardised = (value - self.mean) / self.scale
        if abs(standardised) > LARGEST:
            raise ValueError(f"column {self.column!r} has {value!r:.80}, too far from its mean of {self.mean:.6g}")
        return [standardised, 0.0][: self.width], json.dumps(value)


@dataclass(frozen=True)
class CategoryColumn:
    """
    One place for each category of the training split, of which one is 1: null among them where values are missing
    there. A value that the training split lacks has zeros throughout.
    """

    column: str
    categories: Sequence[str | None]

    @property
    def width(self) -> int:
        return len(self.categories)

    def encode(self, value: Value) -> tuple[list[float], str]:
        """As [`NumberColumn.encode`]."""
        places, category = [0.0] * self.width, category_of(value)
        shown = "missing" if value is None else value if isinstance(value, str) else json.dumps(value)
        if category in self.categories:
            places[self.categories.index(category)] = 1.0
        elif value is not None:
            shown += " (unknown)"
        return places, shown


def category_of(value: Value) -> str | None:
    """The text that a value is as a category: 1, 1.0 and true are one."""
    if value is None or isinstance(value, str):
        return value
    return str(int(value)) if value == int(value) else repr(float(value))


class TabularEncoder(FittedEncoder):
    """A row, see [`read_row`], in; (T, D) out."""

    kind = "tabular"

    def __init__(self, columns: Sequence[NumberColumn | CategoryColumn], notes: Sequence[str] = ()):
        self.columns, self.notes = list(columns), notes
        self.max_features, self.feature_size = len(self.columns), sum(column.width for column in self.columns)

    def preprocess(self, values: Sequence[Any]) -> Preprocessed:
        """An annotation is `cells`, the name and the value of each column as people read them."""
        sequences, annotations = [], []
        for value in values:
            row = read_row(value)
            if lost := [x.column for x in self.columns if x.column not in row]:
                raise ValueError(
                    f"column {lost[0]!r} is not there; give null for an unknown value.{did_you_mean(lost[0], row)}"
                )
            array, cells, start = np.zeros((self.max_features, self.feature_size), np.float32), [], 0
            for index, column in enumerate(self.columns):
                places, shown = column.encode(row[column.column])
                array[index, start : start + column.width] = places
                start += column.width
                cells.append([column.column, _short(shown)])
            sequences.append(array)
            annotations.append({"cells": cells})
        return Preprocessed(pad_sequences(sequences), annotations)

    def identity(self) -> dict[str, Any]:
        return {"name": "columns of a table", "kind": self.kind, "columns": [asdict(x) for x in self.columns]}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Self:
        return cls([(CategoryColumn if "categories" in x else NumberColumn)(**x) for x in identity["columns"]])


@dataclass
class TabularPlaces(Places):
    """A row of a table, and its columns."""

    kind: ClassVar[str] = "tabular"
    feature_noun: ClassVar[str] = "columns"

    cells: list[list[str]] | None = None
    """(T, 2), name and value of each column."""

    @property
    def is_placed(self) -> bool:
        return self.cells is not None

    def name_of(self, index: int) -> str:
        """`price = 3.5`."""
        return super().name_of(index) if self.cells is None else " = ".join(self.cells[index])

    def place_of(self, index: int) -> dict[str, Any]:
        return {} if self.cells is None else dict(zip(("column", "value"), self.cells[index], strict=True))

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], name: str, encoder: Mapping[str, Any], grid: Sequence[int] | None
    ) -> Self:
        places = super().from_row(row, name, encoder, grid)
        places.cells = [list(cell) for cell in row[f"{name}_cells"]]
        return places


class TabularKind(FittedKind):
    """Columns of a table."""

    name = "tabular"
    raw_type: ClassVar = {"dtype": "string", "_type": "Value"}
    annotation_types: ClassVar = {
        "cells": {
            "feature": {"feature": {"dtype": "string", "_type": "Value"}, "length": 2, "_type": "List"},
            "_type": "List",
        }
    }
    places = TabularPlaces
    encoder = TabularEncoder

    def cell(self, value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(read_row(value))

    def content(self, cell: str) -> bytes:
        return cell.encode(errors="surrogatepass")

    def annotation_cells(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        return {"cells": annotation["cells"]}

    def table_columns(self, identity: Mapping[str, Any]) -> list[str]:
        return [x["column"] for x in identity["columns"]]

    def example(self, modality: str, identity: Mapping[str, Any]) -> str:
        columns = identity["columns"]
        return repr({x["column"]: x["categories"][0] if "categories" in x else round(x["mean"], 2) for x in columns})

    def describe_preprocessing(self, identity: Mapping[str, Any]) -> str:
        return "Numbers are standardised by the training split; a category that it lacks counts as none."


def read_row(value: Any) -> dict[str, Value]:
    """
    Column → its value; None for what is missing: null, NaN, an empty text.

    Args:
        value: a dictionary, or the text of a JSON object.

    Raises:
        ValueError: it is no such thing, or a column holds something else than a number, a text, a boolean or null.
    """
    row = value
    if isinstance(value, str):
        try:
            row = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a row of columns is no JSON: {error}: {value!r:.80}") from error
    if not isinstance(row, Mapping) or not row:
        raise ValueError(f"a row of columns is a dictionary, column → value, or its JSON; got {value!r:.80}")
    return {name: _value(name, x) for name, x in row.items()}


def _value(column: Any, value: Any) -> Value:
    if not isinstance(column, str):
        raise ValueError(f"the name of a column is a text, got {column!r:.80}")
    if getattr(value, "ndim", None) == 0:  # of NumPy or torch
        value = value.item()
    if isinstance(value, str):
        return value if value.strip() else None
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, Number) or isinstance(value, complex):
        raise ValueError(
            f"column {column!r} holds {type(value).__name__} {value!r:.80}; a column takes numbers, texts and "
            "booleans. Write dates as numbers, such as days since the first"
        )
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"column {column!r} holds {value!s:.40}, a number that is infinite or beyond 1e308")
    return None if math.isnan(number) else value if isinstance(value, int) else number


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
