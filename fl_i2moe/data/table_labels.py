"""
What the label columns of tables are to predict: a class, several labels, or numbers.

The types of the columns decide, and where these leave two readings, the user is asked.
Shape letters: N rows of all tables one after another, C classes, labels or numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, List
from numpy.typing import NDArray

from ..model.configuration_fl_i2moe import did_you_mean
from .raw import ProblemType, is_list
from .table_columns import is_number, is_text, type_name, types_of_texts, whole_column
from .table_sources import Table

LabelType = Literal["class", "multi_label", "regression"]
PROBLEMS: dict[str, ProblemType] = {
    "class": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
FEW_VALUES = 20
"""So many different whole numbers may be classes, whatever the number of rows."""
MANY_VALUES = 100
"""More different whole numbers are asked about."""
MANY_TEXTS = 1000
"""More different texts are asked about."""
MOST_CLASSES = 50_000
"""Each prediction holds a number for every class, and one of each expert."""


@dataclass
class TableLabels:
    """Labels of N rows, as `array_labels.read_labels` takes them."""

    values: NDArray[Any]
    """(N,) or (N, C); anything where `is_missing`."""

    is_missing: NDArray[np.bool_]
    """(N,)"""

    names: list[str] | None
    """Of the C classes or labels; None where the values name themselves."""

    problem: ProblemType
    held: str
    """What the columns hold, for people."""

    examples: list[Any]


def read_table_labels(
    tables: Sequence[Table],
    columns: Sequence[str],
    label_type: LabelType | None,
    separator: str | None,
    names: Sequence[str] | None,
) -> TableLabels:
    """
    Reads label columns; the arguments are those of `load_table`.

    Raises:
        ValueError: the columns hold what can be no label, or may be read in two ways; an option does not fit them.
    """
    if label_type not in (None, *get_args(LabelType)):
        raise ValueError(f"`label_type` must be one of {', '.join(get_args(LabelType))}, got {label_type!r}.")
    if isinstance(names, str):
        raise ValueError(f"`label_names` must be a list of names, got {names!r}.")
    if separator is not None and (not separator or label_type not in (None, "multi_label") or len(columns) > 1):
        raise ValueError(
            f"`label_separator` {separator!r} is what stands between several labels in one column of texts: it must "
            f"not be empty, and fits one `label` (got {list(columns)}) and no `label_type` but multi_label."
        )
    file = tables[0].file
    types = types_of_texts(tables, columns) if separator is None else {}
    found = [_one_type([whole_column(table, name, types) for table in tables], tables, name) for name in columns]
    first = tables[0].rows.features[columns[0]]
    if len(columns) > 1:
        return _several_columns(found, columns, label_type, names, file)
    column, title = found[0], f"{columns[0]!r}"
    if is_list(column.type) or separator is not None:
        return _lists(column, first, title, label_type, separator, names, file)
    if is_text(column.type) and label_type != "class" and _are_json_lists(column):
        lists = _parse_lists(column, title, file)
        return _lists(lists, first, title, label_type or "multi_label", None, names, file)
    if label_type == "multi_label" and is_text(column.type):
        raise ValueError(
            f"{file}: the column {title} holds texts such as {_first(column)!r}; say by `label_separator` what stands "
            "between several labels."
        )
    is_missing = column.is_null().to_numpy()
    values, held = _plain_values(column, title, file)
    examples = list(dict.fromkeys(column.drop_null().slice(0, 1000).to_pylist()))[:3]
    if isinstance(first, ClassLabel):
        values = np.where(is_missing, -1, values)
        problem = PROBLEMS[label_type or "class"]
        given = list(names or first.names)
        return TableLabels(
            values, is_missing | (values < 0), given, problem, "numbers of named classes", first.names[:3]
        )
    if is_text(column.type) and label_type == "regression":
        values, held = _plain_values(_numbers(column, title, file), title, file)
    if values.dtype.kind == "f":
        is_missing |= np.isnan(values)
    there = values[~is_missing]
    kind: LabelType = label_type or _guess(there, title, held, file)
    if kind == "class":
        _check_classes(there, title, file)
    given = list(names) if names else None
    if values.dtype.kind == "b" and kind == "class":
        given = given or [str(False), str(True)]
    return TableLabels(values, is_missing, given, PROBLEMS[kind], held, examples)


def _check_classes(values: NDArray[Any], title: str, file: str) -> None:
    count = len(np.unique(values))
    if count < 2:
        raise ValueError(
            f"{file}: all {len(values):,} labels in {title} are {''.join(map(repr, values[:1].tolist()))}; two classes "
            "are needed."
        )
    if count == len(values) > 2:
        raise ValueError(
            f"{file}: every one of the {count:,} labels in {title} is a class of its own, such as "
            f"{values[:1].tolist()[0]!r}: it looks like an id. Name another column as `label`, or give "
            "label_type='regression' for amounts."
        )
    if count > MOST_CLASSES:
        raise ValueError(
            f"{file}: {title} has {count:,} classes, at most {MOST_CLASSES:,} are possible; put rare ones into one "
            "class, or give label_type='regression' for amounts."
        )


def _one_type(parts: list[pa.ChunkedArray], tables: Sequence[Table], name: str) -> pa.ChunkedArray:
    """All tables' labels, one after another."""
    features = [table.rows.features[name] for table in tables]
    for (one, first), (other, second) in pairwise(zip(features, tables, strict=True)):
        if _class_names(one) != _class_names(other):
            raise ValueError(
                f"{second.file}: the classes of {name!r} are {_class_names(other)} in split {second.split!r}, "
                f"{_class_names(one)} in {first.split!r}; give all splits the same."
            )
    plain = [_plain(part) for part in parts]
    kinds = list(dict.fromkeys(x.type for x in plain if not pa.types.is_null(x.type)))
    if all(x.null_count == len(x) for x in plain):
        raise ValueError(f"{tables[0].file}: the label column {name!r} is empty in every row.")
    kind = kinds[0]
    if len(kinds) > 1:
        if not all(is_number(x) and not pa.types.is_boolean(x) for x in kinds):
            told = ", ".join(f"{type_name(x.type)} in {table.split!r}" for x, table in zip(plain, tables, strict=True))
            raise ValueError(f"{tables[0].file}: {name!r} has labels of different types: {told}. Give one type.")
        kind = pa.int64() if all(pa.types.is_integer(x) for x in kinds) else pa.float64()
    return pa.chunked_array([chunk for x in plain for chunk in x.cast(kind).chunks], kind)


def _class_names(feature: Any) -> list[str] | None:
    inner = feature.feature if isinstance(feature, List) else feature
    return inner.names if isinstance(inner, ClassLabel) else None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decimals as numbers, and texts of one type with null where nothing is written."""
    kind = column.type
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if is_text(kind):
        trimmed = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
    return column


def _plain_values(column: pa.ChunkedArray, title: str, file: str) -> tuple[NDArray[Any], str]:
    """(N,) as NumPy has them, and what they are."""
    kind = column.type
    if is_text(kind):
        return np.array(column.fill_null("").to_pylist(), np.str_), "texts"
    if pa.types.is_boolean(kind):
        return column.fill_null(False).to_numpy(), "booleans"
    if pa.types.is_integer(kind):
        return column.fill_null(0).to_numpy(), "whole numbers"
    if pa.types.is_floating(kind):
        return column.fill_null(np.nan).to_numpy().astype(np.float64), "decimal numbers"
    raise ValueError(
        f"{file}: the label column {title} holds {type_name(kind)}, such as {str(_first(column))[:60]}; labels are "
        "texts, numbers, booleans, or lists of them."
    )


def _guess(values: NDArray[Any], title: str, held: str, file: str) -> LabelType:
    """What (N,) labels without gaps are; raises `ValueError` that asks where they may be two things."""
    count = len(np.unique(values))
    ask = f"{file}: the label column {title} holds {held}, {count:,} different ones in {len(values):,} rows"
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        if (finite == np.round(finite)).all() and count <= FEW_VALUES:
            shown = ", ".join(map(str, np.unique(finite)[:3].tolist()))
            raise ValueError(
                f"{ask}, all whole ({shown}): say by `label_type` whether they are classes ('class') or amounts "
                "('regression')."
            )
        return "regression"
    is_text = values.dtype.kind == "U"
    limit = min(MANY_TEXTS, len(values) / 2) if is_text else min(MANY_VALUES, len(values) / 10)
    if count > max(FEW_VALUES, limit):
        shown = ", ".join(map(repr, values[:3].tolist()))
        other = "an id or a free text, name another column" if is_text else "amounts, label_type='regression'"
        raise ValueError(f"{ask}, such as {shown:.120}: if they are classes, give label_type='class'; if {other}.")
    return "class"


def _numbers(column: pa.ChunkedArray, title: str, file: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: the label column {title} holds texts that are no numbers ({error}).") from error


def _several_columns(
    found: list[pa.ChunkedArray],
    columns: Sequence[str],
    label_type: LabelType | None,
    names: Sequence[str] | None,
    file: str,
) -> TableLabels:
    for name, column in zip(columns, found, strict=True):
        if not is_number(column.type):
            raise ValueError(
                f"{file}: of several label columns, {name!r} holds {type_name(column.type)}, such as "
                f"{_first(column)!r:.60}; several columns are zeros and ones, or numbers."
            )
    values = np.stack([x.cast(pa.float64()).fill_null(np.nan).to_numpy() for x in found], axis=1)
    is_missing = np.isnan(values).any(axis=1)
    if label_type == "class":
        raise ValueError(
            f"{file}: the label columns {', '.join(columns)} are several labels and no one class; name one column, or "
            "leave `label_type` out."
        )
    kind = label_type or _guess_columns(values[~is_missing], ", ".join(columns), file)
    if kind == "multi_label" and len(others := np.argwhere(~is_missing[:, None] & ~np.isin(values, (0, 1)))):
        row, place = others[0].tolist()
        raise ValueError(
            f"{file}: the label column {columns[place]!r} holds {values[row, place]:g} in row {row} (counted from 0); "
            "of several label columns each is zeros and ones. Mend the row, or give label_type='regression'."
        )
    held = "columns of zeros and ones" if kind == "multi_label" else "columns of numbers"
    return TableLabels(
        values, is_missing, list(names or columns), PROBLEMS[kind], held, values[~is_missing][:3].tolist()
    )


def _guess_columns(values: NDArray[Any], title: str, file: str) -> LabelType:
    """What (N, C) labels without gaps are; raises `ValueError` that asks where they may be two things."""
    if np.isin(values, (0, 1)).all():
        return "multi_label"
    different = np.unique(values)
    if len(different) <= FEW_VALUES and (different == np.round(different)).all():
        raise ValueError(
            f"{file}: the labels in {title} are {len(different)} different whole numbers, such as "
            f"{', '.join(f'{x:g}' for x in different[:5])}: several labels are zeros and ones; if they are amounts, "
            "give label_type='regression'."
        )
    return "regression"


def _lists(
    column: pa.ChunkedArray,
    feature: Any,
    title: str,
    label_type: LabelType | None,
    separator: str | None,
    names: Sequence[str] | None,
    file: str,
) -> TableLabels:
    """One list of labels a row: of texts or whole numbers, or a number for each label."""
    examples = column.drop_null().slice(0, 3).to_pylist()
    if separator is not None:
        if not is_text(column.type):
            raise ValueError(
                f"{file}: `label_separator` is for a column of texts, {title} holds {type_name(column.type)}."
            )
        # an empty text has none of the labels: a file of texts cannot say so in another way
        column = pc.split_pattern(pc.fill_null(column, ""), separator.strip() or separator)
    is_missing = column.is_null().to_numpy()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(column)), lengths)
    inner = _plain(pc.list_flatten(column))
    if pa.types.is_null(inner.type):
        raise ValueError(f"{file}: no row of the label column {title} has a label.")
    if inner.null_count:
        is_empty = inner.is_null().to_numpy(zero_copy_only=False)
        if separator is None:
            is_missing[rows[is_empty]] = True
        rows, inner = rows[~is_empty], inner.drop_null()  # ", " at the end of a text is no label
    if is_list(inner.type) or not (is_text(inner.type) or is_number(inner.type)):
        raise ValueError(f"{file}: the label column {title} holds lists of {inner.type}; give texts or numbers.")
    if label_type == "class":
        raise ValueError(f"{file}: the label column {title} holds lists, which are several labels and no one class.")
    values = inner.to_numpy(zero_copy_only=False)
    whole = lengths[~is_missing]
    is_even = len(whole) > 0 and whole[0] > 1 and bool((whole == whole[0]).all())
    is_numbers = is_number(inner.type) and _class_names(feature) is None
    is_vector = is_numbers and is_even and (values.dtype.kind == "f" or bool(np.isin(values, (0, 1)).all()))
    if is_vector:
        matrix = np.full((len(column), int(whole[0])), np.nan)
        matrix[~is_missing] = values[np.isin(rows, np.flatnonzero(~is_missing))].reshape(-1, int(whole[0]))
        is_missing |= np.isnan(matrix).any(axis=1)
        kind = label_type or _guess_columns(matrix[~is_missing], title, file)
        given = list(names) if names else None
        held = "lists of zeros and ones" if kind == "multi_label" else "lists of numbers"
        return TableLabels(matrix, is_missing, given, PROBLEMS[kind], held, examples)
    if label_type == "regression" or values.dtype.kind == "f":
        sizes = ", ".join(map(str, np.unique(whole)[:3].tolist()))
        raise ValueError(
            f"{file}: the label column {title} holds lists of {inner.type} of {sizes} items; numbers to predict are as "
            "many in every row, and several labels are texts or whole numbers."
        )
    hot, found = _multi_hot(values, rows, len(column), _class_names(feature), names, title, file)
    held = "lists of labels" if separator is None else f"labels with {separator!r} between them"
    if num_empty := int((~hot.any(axis=1) & ~is_missing).sum()):
        held += f", {num_empty:,} rows without any"
    return TableLabels(hot, is_missing, found, PROBLEMS["multi_label"], held, examples)


def _multi_hot(
    values: NDArray[Any],
    rows: NDArray[np.int64],
    num_rows: int,
    class_names: list[str] | None,
    names: Sequence[str] | None,
    title: str,
    file: str,
) -> tuple[NDArray[np.float32], list[str]]:
    """(N, C) ones where a row has a label, and the names of the labels."""
    different, places = np.unique(values.astype(np.str_) if values.dtype == object else values, return_inverse=True)
    written = [str(x) for x in different.tolist()]
    known = list(names or class_names or written)
    if values.dtype == object or not (names or class_names):
        index = {name: place for place, name in enumerate(known)}
    else:
        index = {str(place): place for place in range(len(known))}  # numbers stand for the places of given names
    if unknown := [x for x in written if x not in index]:
        row = int(rows[np.flatnonzero(places == written.index(unknown[0]))[0]])
        raise ValueError(
            f"{file}, row {row} (counted from 0): {title} has the label {unknown[0]!r}, which is none of "
            f"`label_names`.{did_you_mean(unknown[0], known)} Add it, or mend the row."
        )
    hot = np.zeros((num_rows, len(known)), np.float32)
    hot[rows, np.array([index[x] for x in written], np.int64)[places]] = 1
    return hot, known


def _are_json_lists(column: pa.ChunkedArray) -> bool:
    there = column.drop_null()
    return len(there) > 0 and bool(pc.all(pc.match_substring_regex(there, r"^\[[\s\S]*\]$")).as_py())


def _parse_lists(column: pa.ChunkedArray, title: str, file: str) -> pa.ChunkedArray:
    lists: list[Any] = []
    for row, text in enumerate(column.to_pylist()):
        try:
            lists.append(None if text is None else json.loads(text))
        except ValueError as error:
            raise ValueError(
                f"{file}, row {row} (counted from 0): {title} holds {text[:60]!r}, which is no list as JSON writes it, "
                'such as ["a", "b"]. Write it so, or put the labels side by side and give `label_separator`.'
            ) from error
    try:
        return pa.chunked_array([pa.array(lists)])
    except pa.ArrowException as error:
        raise ValueError(f"{file}: the lists of {title} hold values of different types: {error}.") from error


def _first(column: pa.ChunkedArray) -> Any:
    there = column.drop_null()
    return there[0].as_py() if len(there) else None
