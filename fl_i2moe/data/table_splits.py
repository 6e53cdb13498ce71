"""
Which rows of a table are for training, validation and test, and how rows are called.

Shape letters: N rows of all tables one after another.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .raw import SPLIT_NAMES, check_ids, names_of_splits, split_of
from .splits import Rows, check_groups, draw_missing_splits, rows_by_name
from .table_columns import texts_of
from .table_labels import TableLabels
from .table_sources import Table


def title_of(tables: Sequence[Table]) -> str:
    """What several tables are called in messages."""
    files = {table.file for table in tables}
    return tables[0].file if len(files) == 1 else str(Path(tables[0].file).parent)


def split_rows(
    tables: Sequence[Table],
    labels: TableLabels,
    split_column: str | None,
    group_column: str | None,
    shares: Mapping[str, float],
    seed: int,
) -> tuple[dict[str, Rows], list[str]]:
    """
    Split → its rows, and what to tell; see `load_table`. What has no label is not drawn.

    Raises:
        ValueError: a split is unknown, empty, named twice or cannot be drawn; a group is missing, or in two splits.
    """
    file = title_of(tables)
    is_number = all(isinstance(share, int | float) for share in shares.values())
    if not is_number or min(shares.values()) <= 0 or sum(shares.values()) >= 1:
        told = " and ".join(f"`{split}_share` {share!r}" for split, share in shares.items())
        raise ValueError(f"{told} must be numbers above 0, and together below 1, so that training samples are left.")
    rows_of = _given_splits(tables, split_column, file)
    groups, names = _groups(tables, group_column, file)
    unlabelled = {split: rows[labels.is_missing[rows]] for split, rows in rows_of.items()}
    rows_of = {split: rows[~labels.is_missing[rows]] for split, rows in rows_of.items()}
    by: NDArray[Any] | None = None
    if labels.problem == "single_label_classification":
        by = np.unique(labels.values, return_inverse=True)[1].reshape(-1)
    elif labels.problem == "multi_label_classification":
        by = labels.values > 0
    notes = draw_missing_splits(rows_of, shares, seed, file, by, groups)
    if groups is not None:
        check_groups(rows_of, groups, names, file)
    rows_of |= {split: np.union1d(rows_of[split], rows) for split, rows in unlabelled.items()}
    return rows_of, notes


def row_ids(tables: Sequence[Table], column: str | None) -> list[str]:
    """(N,) ids by a column, or by the rows' numbers; raises `ValueError` where one is missing, or occurs twice."""
    if column is None:
        starts = ["" if table.split is None else f"{table.split}-" for table in tables]
        return [f"{start}{row}" for start, table in zip(starts, tables, strict=True) for row in range(len(table.rows))]
    ids: list[Any] = []
    seen: dict[str, tuple[Table, int]] = {}
    for table in tables:
        own = texts_of(table, column)
        for row, name in enumerate(own):
            if name is None:
                raise ValueError(f"{table.file}: {column!r} has no id in row {row} (counted from 0); give it one.")
            if name in seen:
                first, number = seen[name]
                where = "" if first.file == table.file else f" of {first.file}"
                raise ValueError(
                    f"{table.file}: the id {name!r} in column {column!r} is in row {number}{where} and again in row "
                    f"{row} (counted from 0); an id occurs once. Take one row out, or name no id column."
                )
            seen[name] = (table, row)
        ids += own
    check_ids({column: ids}, {column: title_of(tables)})
    return ids


def _given_splits(tables: Sequence[Table], split_column: str | None, file: str) -> dict[str, Rows]:
    """Split → rows, over all tables one after another."""
    if split_column is not None:
        if len(tables) > 1:
            raise ValueError(
                f"{file} has splits already, {', '.join(str(x.split) for x in tables)}: leave `split_column` out."
            )
        return rows_by_name(texts_of(tables[0], split_column), split_column, file)
    if tables[0].split is None:
        return {"train": np.arange(len(tables[0].rows))}
    names = [table.split for table in tables]
    if unknown := [name for name in names if split_of(name) is None]:
        known = ", ".join(f"{split} ({', '.join(others[1:])})" for split, others in SPLIT_NAMES.items())
        raise ValueError(
            f"{file} has the unknown splits {', '.join(map(repr, unknown))}; known are {known}. Take them out, or give "
            "a DatasetDict with those that are meant."
        )
    names_of_splits(names, file)
    starts = np.cumsum([0, *(len(table.rows) for table in tables)])
    rows = {split_of(name): np.arange(starts[i], starts[i + 1]) for i, name in enumerate(names)}
    if empty := [split for split, own in rows.items() if not len(own)]:
        raise ValueError(f"{file} has no rows in split {empty[0]!r}; take the split out, then it is drawn.")
    return {split: rows[split] for split in SPLIT_NAMES if split in rows}


def _groups(tables: Sequence[Table], column: str | None, file: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    """(N,) the number of each row's group, and the groups' names."""
    if column is None:
        return None, []
    names = [name for table in tables for name in texts_of(table, column)]
    if missing := [str(row) for row, name in enumerate(names) if name is None]:
        raise ValueError(f"{file}: {column!r} has no group in the rows {', '.join(missing[:5])} (counted from 0).")
    found, groups = np.unique(np.array(names, np.str_), return_inverse=True)
    return groups.reshape(-1), found.tolist()
