"""
Any table or Hugging Face data set as a `RawDataset`: which columns are modalities, labels, ids and splits is given,
what they hold is found out and said.

Shape letters: N rows of all tables one after another, C classes or outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from numpy.typing import NDArray

from .array_labels import read_labels
from .raw import RESERVED, OnBadSample, ProblemType, RawDataset, SampleError, check_modality_name, label_column
from .splits import Rows
from .table_cells import (
    Found,
    Missing,
    Modality,
    TableReader,
    check_leaks,
    check_missing,
    check_modalities,
    feature_sizes,
    report_problems,
)
from .table_columns import check_columns, example
from .table_labels import LabelType, read_table_labels
from .table_sources import Table, open_tables
from .table_splits import row_ids, split_rows, title_of

SHOWN = 10
"""Names in a sentence."""

TOLD: dict[ProblemType, str] = {
    "single_label_classification": "classes (label_type='class')",
    "multi_label_classification": "several labels (label_type='multi_label')",
    "regression": "amounts (label_type='regression')",
}


def load_table(
    source: str | Path | Dataset | DatasetDict,
    modalities: Mapping[str, str | Sequence[str]],
    *,
    label: str | Sequence[str],
    label_type: LabelType | None = None,
    label_separator: str | None = None,
    label_names: Sequence[str] | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    split_seed: int = 0,
    root: str | Path | None = None,
    encoding: str = "utf-8",
    config_name: str | None = None,
    revision: str | None = None,
    missing: Missing = "stop",
    on_bad_sample: OnBadSample = "stop",
    cache_dir: str | Path | None = None,
) -> RawDataset:
    """
    Reads a table with at least two modalities and a label. Pictures and sounds are checked to be there, not decoded.

    Args:
        source: a CSV, TSV, JSON, JSON Lines, Parquet or Arrow file; a folder with one, with one for each split, of
            `save_to_disk`, or of pictures or sounds with metadata or a folder for each class; the name of a data set
            on the Hub; or a data set in memory.
        modalities: column → its kind in `KINDS` (`"image"`, `"text"`, `"audio"`, `"array"`), or a name → the list of
            columns that make one modality of kind `"tabular"`.
        label: the column of labels, or several of zeros and ones, or of numbers.
        label_type: `"class"`, `"multi_label"` or `"regression"`; by default what the columns hold: texts, booleans and
            few whole numbers are classes, lists and several columns of zeros and ones several labels, numbers with
            a fraction amounts.
        label_separator: what stands between several labels in one text.
        label_names: of the C classes or labels, in their order; by default the labels in alphabetical order.
        id_column: by default, ids are the rows' numbers, `<split>-<row>` where the source has splits.
        split_column: train, validation (valid, val, dev) or test for each row.
        group_column: rows of one group, such as a person's, are in one split.
        validation_share, test_share: of the training samples, for a split that the source does not have. It is drawn
            evenly by class.
        split_seed: of that draw.
        root: where relative paths begin; by default in the table's folder, for a source without one in the current.
        encoding: of a text file.
        config_name, revision: of a data set on the Hub.
        missing: about cells that are null, NaN or blank: `"stop"`, `"drop"` the sample, or `"fill"`, which keeps it
            with null in the modality's column.
        on_bad_sample: `"stop"` raises the first `SampleError`, `"skip"` collects them in `bad_samples`.
        cache_dir: of `datasets`.

    Returns:
        The columns `id`, one per modality, and `labels`. `feature_sizes` has the modalities of arrays.

    Raises:
        SampleError: a label is missing or not finite, a file is not there or empty, a value is none of its kind, or a
            class is not in training.
        ValueError: the source cannot be opened; a column is not there or given twice; labels may be read in two ways; a
            value is missing; a split is empty or unknown; an id occurs twice; an option does not fit.
    """
    if on_bad_sample not in get_args(OnBadSample):
        raise ValueError(f"on_bad_sample must be one of {get_args(OnBadSample)}, got {on_bad_sample!r}")
    check_missing(missing)
    own = check_modalities(modalities)
    for x in own:
        check_modality_name(x.name)
    if len(own) < 2:
        raise ValueError(f"A mixture needs at least two modalities, got {list(modalities)}; name another column.")
    labels_from = [label] if isinstance(label, str) else list(label or ())
    if not labels_from:
        raise ValueError("`label` names no column; give the one that is to be predicted.")
    others = {"`id_column`": id_column, "`split_column`": split_column, "`group_column`": group_column}
    _check_uses(own, labels_from, others)
    tables = open_tables(
        source, root=root, encoding=encoding, config_name=config_name, revision=revision, cache_dir=cache_dir
    )
    check_columns(tables, [*labels_from, *(x for x in others.values() if x is not None)])
    file, title = title_of(tables), ", ".join(labels_from)
    reader = TableReader(tables, own)

    labels = read_table_labels(tables, labels_from, label_type, label_separator, label_names)
    ids = row_ids(tables, id_column)
    shares = {"validation": validation_share, "test": test_share}
    rows_of, notes = split_rows(tables, labels, split_column, group_column, shares, split_seed)
    splits = np.empty(len(ids), object)
    for split, rows in rows_of.items():
        splits[rows] = split

    parts, found = zip(*(reader.read(table) for table in tables), strict=True)
    sizes = feature_sizes(own, found)
    bad, dropped = _problems(tables, found, ids, splits, sizes, missing)

    def report(rows: Rows, reason: str) -> None:
        for row, table, number in _places(tables, rows):
            told = f"row {number} (counted from 0): {reason}"
            bad.setdefault(row, SampleError(splits[row], ids[row], title, table.file, told))

    report(np.flatnonzero(labels.is_missing), "the label is missing")
    if labels.values.dtype.kind == "f":
        report(np.flatnonzero(np.isinf(labels.values.reshape(len(ids), -1)).any(axis=1)), "the label is infinite")
    good = np.setdiff1d(np.arange(len(ids)), [*bad, *dropped])
    drawn = ""
    if group_column is not None and notes:
        drawn = f", since drawn splits keep the rows of a {group_column!r} together: try another split_seed"
    if labels.problem == "single_label_classification":
        for name, rows in _untrained(labels.values, good, splits).items():
            report(rows, f"no training sample is of its class {name!r}{drawn}")
    if bad and on_bad_sample == "stop":
        raise bad[min(bad)]
    bad |= {row: error for row, error in dropped.items() if row not in bad}
    good = np.setdiff1d(good, list(bad))
    kept = {split: np.intersect1d(rows, good) for split, rows in rows_of.items()}
    if empty := [split for split, rows in kept.items() if not len(rows)]:
        first = next(error for _, error in sorted(bad.items()) if error.split == empty[0])
        raise ValueError(f"{file}: no sample of split {empty[0]!r} is left. The first is left out: {first.reason}.")
    _check_present(own, found, kept["train"], file)
    classes, class_names, problem = read_labels(
        labels.values[good], labels.names, labels.problem, None, title, Path(file)
    )
    check_leaks(own, found, labels.values, good, title, file, notes)
    held = {x.name: ", ".join(found[0].examples[x.name]) for x in own}
    notes = [
        f"{file}: {len(good):,} samples, {', '.join(f'{len(rows):,} for {split}' for split, rows in kept.items())}",
        *(f"{x.name}: {x.kind_name}, such as {held[x.name] or 'nothing'}" for x in own),
        f"{title}: {labels.held}, read as {TOLD[problem]}: {_listed(class_names)}; such as "
        f"{', '.join(map(example, labels.examples))}",
        *notes,
        *_notes_on_gaps(found, missing),
        *_notes_on_classes(classes, class_names, problem, {x: np.searchsorted(good, kept[x]) for x in kept}),
    ]
    all_labels = np.zeros((len(ids), *classes.shape[1:]), classes.dtype)
    all_labels[good] = classes
    target = Features({"id": Value("string"), "labels": label_column(problem, len(class_names))})
    rows = _beside(parts, {"id": ids, "labels": all_labels}, target)
    rows = rows.select_columns(["id", *modalities, "labels"])
    splits_found = DatasetDict({split: rows.select(own_rows) for split, own_rows in kept.items()})
    bad_samples = [bad[row] for row in sorted(bad)]
    kinds = {x.name: x.kind_name for x in own}
    return RawDataset(splits_found, kinds, class_names, problem, bad_samples, notes, sizes)


def load_rows(
    source: str | Path | Dataset | DatasetDict,
    modalities: Mapping[str, str | Sequence[str]],
    *,
    feature_sizes: Mapping[str, int] | None = None,
    id_column: str | None = None,
    root: str | Path | None = None,
    encoding: str = "utf-8",
    config_name: str | None = None,
    revision: str | None = None,
    missing: Missing = "drop",
    cache_dir: str | Path | None = None,
) -> tuple[Dataset, list[SampleError]]:
    """
    Reads a table whose labels are not known, to predict them; the other arguments are those of [`load_table`].

    Args:
        feature_sizes: modality of arrays → the numbers of a vector that the model takes.

    Returns:
        The rows of all splits in their order, with the columns `id` and one per modality; and what is left out: rows
        that cannot be read, and those with a missing modality, unless `missing="fill"` keeps them with null in its
        column.

    Raises:
        ValueError: as [`load_table`]; no row is left.
    """
    check_missing(missing)
    own = check_modalities(modalities)
    if "id" in modalities:
        raise ValueError(f"The column 'id' cannot be a modality: {RESERVED['id']}. Rename the column.")
    tables = open_tables(
        source, root=root, encoding=encoding, config_name=config_name, revision=revision, cache_dir=cache_dir
    )
    check_columns(tables, [] if id_column is None else [id_column])
    reader = TableReader(tables, own)
    ids = row_ids(tables, id_column)
    splits = np.array([table.split or "all" for table in tables for _ in range(len(table.rows))], object)
    parts, found = zip(*(reader.read(table) for table in tables), strict=True)
    bad, dropped = _problems(tables, found, ids, splits, feature_sizes or {}, missing, "the model takes")
    bad = dropped | bad
    good = np.setdiff1d(np.arange(len(ids)), list(bad))
    if not len(good):
        first = bad[min(bad)]
        raise ValueError(
            f"No row of {title_of(tables)} can be used. The first, {first.sample_id}: {first.field}: {first.reason}."
        )
    rows = _beside(parts, {"id": ids}, Features({"id": Value("string")})).select_columns(["id", *modalities])
    return rows.select(good), [bad[row] for row in sorted(bad)]


def _check_uses(modalities: Sequence[Modality], labels: Sequence[str], others: Mapping[str, str | None]) -> None:
    """Raises `ValueError` if a label is also something else. `others`: use → column."""
    uses = {column: f"as modality {x.name!r}" for x in modalities for column in x.columns}
    uses |= {column: f"as {use}" for use, column in others.items() if column is not None}
    for number, column in enumerate(labels):
        if not isinstance(column, str):
            raise ValueError(f"`label` must be the name of a column, or a list of names, got {column!r}.")
        if column in uses or column in labels[:number]:
            raise ValueError(
                f"The column {column!r} is given twice, as label and {uses.get(column, 'as label')}: there would be "
                "nothing to learn. Give it one use."
            )


def _beside(parts: Sequence[Dataset], more: Mapping[str, Any], features: Features) -> Dataset:
    """The modalities of all tables one after another, and more columns of N rows beside them."""
    columns = [
        pa.array(list(x) if np.ndim(x) > 1 else x, field.type)
        for x, field in zip(more.values(), features.arrow_schema, strict=True)
    ]
    beside = Dataset(pa.table(columns, features.arrow_schema))
    return concatenate_datasets([concatenate_datasets(parts), beside], axis=1)


def _places(tables: Sequence[Table], rows: Rows) -> Iterator[tuple[int, Table, int]]:
    """Of N rows: the row, its table, and its number there."""
    starts = np.cumsum([0, *(len(table.rows) for table in tables)])
    for row in rows.tolist():
        place = int(np.searchsorted(starts, row, side="right")) - 1
        yield row, tables[place], row - int(starts[place])


def _problems(
    tables: Sequence[Table],
    found: Sequence[Found],
    ids: Sequence[str],
    splits: NDArray[Any],
    sizes: Mapping[str, int],
    missing: Missing,
    others: str = "those of most rows have",
) -> tuple[dict[int, SampleError], dict[int, SampleError]]:
    """Of N rows, see `report_problems`."""
    bad: dict[int, SampleError] = {}
    dropped: dict[int, SampleError] = {}
    start = 0
    for table, own in zip(tables, found, strict=True):
        end = start + len(table.rows)
        parts = report_problems(table, own, ids[start:end], splits[start:end].tolist(), sizes, missing, others)
        for into, part in zip((bad, dropped), parts, strict=True):
            into |= {start + row: error for row, error in part.items()}
        start = end
    return bad, dropped


def _check_present(modalities: Sequence[Modality], found: Sequence[Found], rows: Rows, file: str) -> None:
    for x in modalities:
        if np.concatenate([own.missing[x.name] for own in found])[rows].all():
            raise ValueError(f"{file}: {x.name!r} is missing in every training sample; leave it out of the modalities.")


def _untrained(values: NDArray[Any], good: Rows, splits: NDArray[Any]) -> dict[Any, Rows]:
    """Class without a training sample → its rows."""
    there = np.unique(values[good[splits[good] == "train"]])
    rows = good[~np.isin(values[good], there)]
    return {name.item(): rows[values[rows] == name] for name in np.unique(values[rows])}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _notes_on_gaps(found: Sequence[Found], missing: Missing) -> list[str]:
    counts = {name: sum(int(own.missing[name].sum()) for own in found) for name in found[0].missing}
    done = "left out" if missing == "drop" else "kept without it"
    return [f"{name} is missing in {count:,} samples, which are {done}." for name, count in counts.items() if count]


def _notes_on_classes(
    labels: NDArray[Any], names: Sequence[str], problem: ProblemType, rows_of: Mapping[str, Rows]
) -> list[str]:
    """Classes that are rare."""
    if problem == "regression":
        return []
    notes = []
    hot = labels if labels.ndim == 2 else None
    for split, rows in rows_of.items():
        counts = np.bincount(labels[rows], minlength=len(names)) if hot is None else hot[rows].sum(axis=0)
        if absent := [name for name, count in zip(names, counts.tolist(), strict=True) if not count]:
            so = "they cannot be learnt" if split == "train" else "its metrics say nothing about them"
            notes.append(f"{split} has no sample of {_listed(absent)}, so that {so}.")
    counts = np.bincount(labels, minlength=len(names)) if hot is None else hot.sum(axis=0)
    if single := [name for name, count in zip(names, counts.tolist(), strict=True) if count == 1]:
        notes.append(f"One sample is all there is of {_listed(single)}: it cannot be both learnt and tested.")
    return notes
