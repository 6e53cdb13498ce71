"""Encoders of arrays and of columns of a table, which are fitted to the training split."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from ..data.raw import RawDataset
from ..model.configuration_fl_i2moe import did_you_mean
from ..model.kind import FittedEncoder
from ..model.kind_array import ArrayEncoder
from ..model.kind_tabular import CategoryColumn, NumberColumn, TabularEncoder, Value, category_of, read_row

SMALLEST_SCALE = 1e-6  # of a number's standard deviation, beside its mean: what is smaller is rounding
MAX_CATEGORIES = 1000
"""Of one column."""
MAX_WIDTH = 4096
"""Of the vector of a column, which has places for all columns of its modality."""
FEW = 20
"""So many different whole numbers may be names of categories; a reader is told."""
MANY_BYTES = 2**14
"""In a feature cache, of one sample's columns; a reader is told of more."""
BATCH = 1000
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?")
COMMA = re.compile(r"[+-]?[\d.]*\d,\d+")
"""A number with a decimal comma, or with commas between thousands."""


def fit_encoders(
    raw: RawDataset, standardize: bool = True, categorical: Collection[str] = (), leave_out: Collection[str] = ()
) -> dict[str, FittedEncoder]:
    """
    An encoder for each modality of arrays or of columns of a table, fitted to the training split.

    A column of texts or of booleans is one of categories; a column of numbers is not, unless `categorical` names it.

    Args:
        standardize: give each number mean 0 and standard deviation 1 over the training split, those of an array over
            all its features; a number that is the same everywhere becomes 0.
        categorical: columns of a table whose numbers, or mixed values, are names of categories.
        leave_out: modalities that have an encoder.

    Raises:
        ValueError: a column holds numbers and texts, dates, numbers with a comma, more than 1,000 categories, or
            nothing; columns have more than 4,096 places together; `categorical` has a name that is no column.
    """
    encoders = {
        name: FITS[kind](raw, name, standardize, categorical)
        for name, kind in raw.modalities.items()
        if kind in FITS and name not in leave_out
    }
    columns = [x.column for encoder in encoders.values() for x in getattr(encoder, "columns", ())]
    for name in categorical:
        if name not in columns:
            known = ", ".join(columns) or "none"
            raise ValueError(
                f"`categorical` names {name!r}, which is no column of a table.{did_you_mean(name, columns)} There are "
                f"{known}."
            )
    return encoders


def _fit_array(raw: RawDataset, name: str, standardize: bool, categorical: Collection[str]) -> ArrayEncoder:
    size = raw.feature_sizes[name]
    longest = max(len(x) // (4 * size) for split in raw.splits.values() for x in _cells(split, name))

    def features() -> Iterator[NDArray[np.float64]]:
        for content in _cells(raw.splits["train"], name):
            yield np.frombuffer(content, np.float32).reshape(-1, size).astype(np.float64)

    if not standardize:
        return ArrayEncoder(size, longest)
    return ArrayEncoder(size, longest, *(x.astype(np.float32) for x in _moments(features, size)))


def _cells(split: Dataset, name: str) -> Iterator[Any]:
    """Of the raw column, those that are there."""
    for batch in split.select_columns([name]).with_format(None).iter(batch_size=BATCH):
        yield from (cell for cell in batch[name] if cell is not None)


def _moments(batches: Callable[[], Iterable[NDArray[np.float64]]], size: int) -> tuple[NDArray, NDArray]:
    """Mean and standard deviation, (D,), of batches (N, D), from two passes that leave out NaN."""
    count, total, squares = np.zeros((3, size))
    for x in batches():
        count += (~np.isnan(x)).sum(axis=0)
        total += np.nansum(x, axis=0)
    mean = total / count
    for x in batches():
        squares += np.nansum((x - mean) ** 2, axis=0)
    scale = np.sqrt(squares / count)
    scale[~(scale > SMALLEST_SCALE * np.maximum(np.abs(mean), SMALLEST_SCALE))] = 1.0
    return mean, scale


# ---- columns of a table ----------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What a column holds in the training split."""

    examples: dict[str, Value] = field(default_factory=dict)
    """`"numbers"`, `"texts"`, `"booleans"` → the first of them."""
    categories: dict[str | None, None] = field(default_factory=dict)
    """Up to one more than are possible."""
    has_missing: bool = False
    are_dates: bool = True
    have_commas: bool = True
    are_whole: bool = True
    is_repeated: bool = False

    def add(self, value: Value) -> None:
        category = category_of(value)
        self.is_repeated |= category in self.categories
        if len(self.categories) <= MAX_CATEGORIES:
            self.categories[category] = None
        if value is None:
            self.has_missing = True
            return
        is_text = isinstance(value, str)
        self.examples.setdefault("texts" if is_text else "booleans" if isinstance(value, bool) else "numbers", value)
        self.are_dates &= isinstance(value, str) and DATE.fullmatch(value.strip()) is not None
        self.have_commas &= isinstance(value, str) and COMMA.fullmatch(value.strip()) is not None
        self.are_whole &= not isinstance(value, float) or value.is_integer()


def _fit_tabular(raw: RawDataset, name: str, standardize: bool, categorical: Collection[str]) -> TabularEncoder:
    def rows() -> Iterator[dict[str, Value]]:
        for cell in _cells(raw.splits["train"], name):
            with suppress(ValueError):  # the cache that is built names the sample
                yield read_row(cell)

    seen: dict[str, _Seen] = {}
    for row in rows():
        seen = seen or {column: _Seen() for column in row}
        for column, value in row.items():
            if column in seen:
                seen[column].add(value)
    if not seen:
        raise ValueError(f"no training sample has columns of {name!r} that can be read")
    numbers = [column for column, x in seen.items() if _is_number(column, x, name, column in categorical)]
    width = sum(1 + x.has_missing if column in numbers else len(x.categories) for column, x in seen.items())
    if width > MAX_WIDTH:
        most = sorted((column for column in seen if column not in numbers), key=lambda x: -len(seen[x].categories))[:3]
        raise ValueError(
            f"the columns of {name!r} have {width:,} places together, one for each number and each category; at most "
            f"{MAX_WIDTH:,} are possible. Leave out some, such as {', '.join(map(repr, most))}, or give them as texts."
        )

    def values() -> Iterator[NDArray[np.float64]]:
        batch: list[list[float]] = []
        for row in rows():
            batch.append([np.nan if (x := row.get(column)) is None else float(x) for column in numbers])
            if len(batch) == BATCH:
                yield np.array(batch)
                batch = []
        if batch:
            yield np.array(batch)

    mean, scale = np.zeros(len(numbers)), np.ones(len(numbers))
    if standardize and numbers:
        mean, scale = _moments(values, len(numbers))
    moments = dict(zip(numbers, zip(mean.tolist(), scale.tolist(), strict=True), strict=True))
    columns = [
        NumberColumn(column, *moments[column], x.has_missing)
        if column in moments
        else CategoryColumn(column, sorted(x.categories, key=lambda text: (text is None, text)))
        for column, x in seen.items()
    ]
    return TabularEncoder(columns, _notes(name, seen, columns))


def _is_number(column: str, seen: _Seen, name: str, is_categorical: bool) -> bool:
    """Whether it is a column of numbers; `ValueError` where it is neither that nor one of categories."""
    where = f"the column {column!r} of {name!r}"
    if not seen.examples:
        raise ValueError(f"{where} is empty throughout the training split: leave it out.")
    if not is_categorical:
        if len(seen.examples) > 1:
            found = " and ".join(f"{what} ({example!r:.80})" for what, example in seen.examples.items())
            raise ValueError(f"{where} holds {found}: mend it, or name it in `categorical`.")
        if "numbers" in seen.examples:
            return True
        if seen.are_dates:
            raise ValueError(
                f"{where} holds dates ({seen.examples['texts']!r:.80}), which are not understood: write numbers, such "
                "as days since the first, or name it in `categorical`."
            )
        if seen.have_commas:
            raise ValueError(
                f"{where} holds texts with a comma in each number ({seen.examples['texts']!r:.80}): write numbers with "
                "a decimal point and nothing between thousands, or name it in `categorical`."
            )
    if len(seen.categories) > MAX_CATEGORIES:
        raise ValueError(
            f"{where} has more than {MAX_CATEGORIES:,} different values, too many for categories: give it as a "
            "modality of kind 'text', or leave it out."
        )
    return False


def _notes(name: str, seen: dict[str, _Seen], columns: list[NumberColumn | CategoryColumn]) -> list[str]:
    numbers = [x.column for x in columns if isinstance(x, NumberColumn)]
    categories = [
        f"{x.column} ({len(set(x.categories) - {None}):,}{' and missing' if None in x.categories else ''})"
        for x in columns
        if isinstance(x, CategoryColumn)
    ]
    notes = [f"{name}: numbers {', '.join(numbers) or 'none'}; categories {', '.join(categories) or 'none'}"]
    if few := [x for x in numbers if seen[x].are_whole and len(seen[x].categories) <= FEW]:
        notes.append(
            f"{name}: {', '.join(few)} {'has' if len(few) == 1 else 'have'} at most {FEW} different whole numbers; if "
            "they are names of categories, say so by `categorical`"
        )
    if unique := [x.column for x in columns if isinstance(x, CategoryColumn) and not seen[x.column].is_repeated]:
        notes.append(
            f"{name}: {', '.join(unique)} never has the same value twice in the training split, so it tells nothing of "
            "new samples: leave it out"
        )
    if (size := 2 * len(columns) * sum(x.width for x in columns)) > MANY_BYTES:
        widest = max(columns, key=lambda x: x.width)
        notes.append(
            f"{name}: a sample takes {size / 1000:,.0f} kB in the feature cache, most of it for the categories of "
            f"{widest.column}; leave it out, or give it as a text, if that is too much"
        )
    return notes


FITS: dict[str, Callable[[RawDataset, str, bool, Collection[str]], FittedEncoder]] = {
    "array": _fit_array,
    "tabular": _fit_tabular,
}
"""By the name of a kind."""
