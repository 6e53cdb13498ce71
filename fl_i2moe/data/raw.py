"""What every raw data set looks like before it is encoded, and how a bad sample is reported."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict, List, Value
from numpy.typing import NDArray

OnBadSample = Literal["stop", "skip"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

SPLIT_NAMES = {
    "train": ("train", "training", "tr"),
    "validation": ("validation", "valid", "val", "dev", "va"),
    "test": ("test", "testing", "te"),
}
RESERVED = {
    "id": "this column holds the samples' ids",
    "labels": "this column holds what is predicted",
    **dict.fromkeys(
        (
            *("self", "features", "feature_masks", "with_interaction_losses", "fill_missing", "missing_lengths"),
            *("keep", "is_whole", "regulariser_scale", "return_tensors"),
            *("inputs", "top_k", "function_to_apply", "batch_size", "num_workers"),
        ),
        "the model, its processor or its pipeline takes something else by this name",
    ),
}
"""What a modality cannot be called → why: they take raw values by the modalities' names."""

LONGEST_ID = 1000
"""Characters; an id is written on pages, in tables and into file names."""


class SampleError(ValueError):
    """One sample cannot be used; says which one, in which file, why, and what to do about it."""

    def __init__(self, split: str, sample_id: str, field: str, file: str | Path, reason: str) -> None:
        super().__init__(split, sample_id, field, str(file), reason)  # all five: it is unpickled as SampleError(*args)
        self.split = split
        self.sample_id = sample_id
        self.field = field
        self.file = str(file)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"sample {self.sample_id!r} of split {self.split!r} has a bad {self.field!r}: {self.reason} "
            f"(file {self.file}). Mend the file, take the sample out of its split, or "
            "leave such samples out with on_bad_sample='skip'."
        )


@dataclass
class RawDataset:
    """
    A data set as people see it: raw values of several modalities and labels, not yet encoded.

    Args:
        splits: `train`, `validation` and `test`, with the columns `id` (string), one per modality, and `labels`. A cell
            of a modality is null where a sample lacks it.
        modalities: modality column → name of its kind in `KINDS`, whose `raw_type` is the column's.
        label_names: of the C classes, in the order of the labels.
        bad_samples: with `on_bad_sample="skip"`, what was left out and why.
        notes: counts that a user should read, as sentences.
        feature_sizes: modality of arrays → D; its column holds the bytes of float32 arrays (T, D).
        truth: label → the expert that it was made for, where samples are made so that this is known.

    Raises:
        ValueError: `truth` names a label that there is not; a modality has a name that is taken; two splits are one by
            their names, one lacks a column, an id is missing, twice in its split or no id, or a sample's label is none
            of the classes, or not a finite number for each of C labels; a sample lacks all modalities, or all training
            samples lack one.
    """

    splits: DatasetDict
    modalities: dict[str, str]
    label_names: list[str]
    problem_type: ProblemType
    bad_samples: list[SampleError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    feature_sizes: dict[str, int] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.modalities:
            check_modality_name(name)
        if unknown := sorted(set(self.truth) - set(self.label_names)):
            raise ValueError(f"`truth` names the label {unknown[0]!r}; there are {', '.join(self.label_names)}.")
        names_of_splits(self.splits, "the raw data")
        for split, samples in self.splits.items():
            if missing := [x for x in ("id", *self.modalities, "labels") if x not in samples.column_names]:
                raise ValueError(f"split {split!r} lacks the columns {missing}; it has {samples.column_names}.")
            told = samples.select_columns(["id", "labels"]).with_format("arrow")
            # `told[:]` would hold a table for each row that `select` has taken
            parts = [part.combine_chunks() for part in told.iter(batch_size=1000)]
            table = pa.concat_tables(parts).combine_chunks() if parts else told[:]
            ids = table["id"]
            if not _are_ids(ids):
                check_ids({split: ids.to_pylist()}, {split: "the raw data"})
            for row in np.flatnonzero(self._is_bad(table["labels"])).tolist():
                count = len(self.label_names)
                is_class = self.problem_type == "single_label_classification"
                right = f"one of the classes 0 … {count - 1}" if is_class else f"a list of {count} finite numbers"
                found = table["labels"][row].as_py()
                raise ValueError(
                    f"sample {ids[row].as_py()!r} of split {split!r} has the label {found}; it must be {right}."
                )
            self._check_missing(str(split), ids)

    @property
    def missing(self) -> dict[str, dict[str, int]]:
        """Split → modality → how many of its samples lack it, where there are any."""
        found = {str(split): {name: int(x.sum()) for name, x in self._lacks(split).items()} for split in self.splits}
        return {split: counts for split, counts in found.items() if counts}

    def _lacks(self, split: str) -> dict[str, NDArray[np.bool_]]:
        """Modality → (N,) whether a sample lacks it, of those that any sample lacks. Reads no value."""
        samples, lacks = self.splits[split], {}
        for name in self.modalities:
            column = samples.data.column(name)
            if column.null_count:
                is_null = column.is_null()
                if samples._indices is not None:  # `select` and its like leave the table as it is
                    is_null = is_null.take(samples._indices.column(0))
                if (rows := is_null.to_numpy()).any():
                    lacks[name] = rows
        return lacks

    def _check_missing(self, split: str, ids: pa.ChunkedArray) -> None:
        lacks = self._lacks(split)
        for name, rows in lacks.items():
            if split == "train" and rows.all():
                raise ValueError(f"no sample of split 'train' has a {name!r}: leave this modality out.")
        if lacks and len(lacks) == len(self.modalities):
            for row in np.flatnonzero(np.all(list(lacks.values()), axis=0)).tolist():
                name, lacking = ids[row].as_py(), " and no ".join(lacks)
                raise ValueError(f"sample {name!r} of split {split!r} has no {lacking}: take it out of the data.")

    def _is_bad(self, labels: pa.ChunkedArray) -> NDArray[np.bool_]:
        """(N,) whether a sample's label is none."""
        is_class, count = self.problem_type == "single_label_classification", len(self.label_names)
        if not (pa.types.is_integer if is_class else is_list)(labels.type):
            return np.ones(len(labels), np.bool_)
        if is_class:
            bad = labels.is_null().to_numpy()
            classes = labels.drop_null().to_numpy()
            bad[~bad] = (classes < 0) | (classes >= count)
            return bad
        bad = pc.list_value_length(labels).fill_null(-1).to_numpy() != count
        numbers = pc.list_flatten(labels.filter(pa.array(~bad))).to_numpy().reshape(-1, count)
        bad[~bad] = ~np.isfinite(numbers.astype(np.float64)).all(axis=1)
        return bad


def check_modality_name(name: str) -> None:
    """Raises `ValueError` if a modality cannot be called so."""
    reason = RESERVED.get(name)
    if name.startswith(".") or "/" in name or "\\" in name:
        reason = "files are named after it, so that it must not start with a dot or hold slashes"
    if reason:
        raise ValueError(f"The modality {name!r} cannot be called so: {reason}. Rename it, or the column that it is.")


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def split_of(name: Any) -> str | None:
    """`train`, `validation` or `test` for any of its usual names; None for another name."""
    lower = (name.decode(errors="replace") if isinstance(name, bytes) else str(name)).strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def names_of_splits(names: Iterable[Any], file: str | Path) -> dict[str, Any]:
    """Split → what it is called among `names`; raises `ValueError` where two of them mean one split."""
    found: dict[str, Any] = {}
    for name in names:
        if (split := split_of(name)) is not None and found.setdefault(split, name) != name:
            raise ValueError(f"{file} has two names for one split, {found[split]!r} and {name!r}: keep one of them.")
    return found


def texts(values: Iterable[Any], name: str, file: str | Path) -> list[str]:
    """Ids, labels or names as texts; raises `ValueError` with the field's name and the file for what is no Unicode."""
    found = []
    for value in values:
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
            text.encode()
        except UnicodeError as error:
            raise ValueError(f"{file}: {name!r} has {value!r}, which is no Unicode text; write it in UTF-8.") from error
        found.append(text)
    return found


def check_ids(ids: Mapping[str, list[Any]], files: Mapping[str, str | Path]) -> None:
    """
    Raises `ValueError` if an id occurs twice, or is missing, empty, too long, or no Unicode text. Both map the name of
    a split, to its ids and the file of them.
    """
    seen: dict[str, str] = {}
    for name, split_ids in ids.items():
        for sample_id in split_ids:
            if not isinstance(sample_id, str) or not sample_id.strip() or len(sample_id) > LONGEST_ID:
                shown = f"{sample_id[:40]!r} …" if isinstance(sample_id, str) and sample_id.strip() else repr(sample_id)
                raise ValueError(
                    f"{files[name]}: {name!r} has the id {shown}; an id is a text of 1 to {LONGEST_ID:,} characters"
                )
            if sample_id in seen:
                where = f"twice in {name!r}" if seen[sample_id] == name else f"in both {seen[sample_id]!r} and {name!r}"
                raise ValueError(f"{files[name]}: id {sample_id!r} is {where}; an id may occur only once, take one out")
            seen[sample_id] = name
        texts(split_ids, "id", files[name])


def _are_ids(column: pa.ChunkedArray) -> bool:
    """Whether [`check_ids`] has nothing to say of a split, found out without a list of its ids."""
    if not pa.types.is_string(column.type) or column.null_count or not len(column):
        return False
    lengths, trimmed = pc.utf8_length(column), pc.utf8_length(pc.utf8_trim_whitespace(column))
    is_long = pc.max(lengths).as_py() > LONGEST_ID
    return not is_long and pc.min(trimmed).as_py() > 0 and pc.count_distinct(column).as_py() == len(column)


def label_column(problem_type: ProblemType, num_labels: int) -> Value | List:
    """The type of a label: a class, or float32 numbers, one for each of C labels."""
    is_class = problem_type == "single_label_classification"
    return Value("int64") if is_class else List(Value("float32"), length=num_labels)
