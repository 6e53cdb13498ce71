"""
Data sets of numeric arrays: any number of modalities, as one vector or a sequence of them for each sample.

One file holds everything, as fields of N samples:

- each modality, under its own name: (N, D), one vector a sample, or (N, T, D), a sequence;
- `<modality>_mask` (N, T), optional: true (or 1) where a sequence is real and not padding;
- `labels`: (N,) whole numbers or texts for one class a sample, (N, C) zeros and ones for several labels, (N,) or (N, C)
  other numbers for a regression;
- optional: `label_names` (C,) texts; `ids` or `id` (N,) texts or whole numbers; `split` (N,), `train`, `validation` (or
  `valid`, `val`, `dev`) and `test`. Splits that are missing are drawn from the training samples by a seed.

Three kinds of files:

- `.npz`: the fields are its arrays. In place of `split`, every field can end with its split (`labels_train`, `_tr` …).
- `.parquet`: the fields are its columns, with the types of its schema; a modality is a column of lists of numbers, or
  of lists of such lists. Classes of a `datasets.ClassLabel` have its names, and -1 is no label.
- `.pkl`: a dict of fields, or of splits of fields, as MultiBench publishes MOSI: `{train, valid, test}` → `vision`,
  `audio`, `text`, `labels`, `id`. Nothing but arrays, texts and numbers is read from it, see `array_pickle`.

A sample whose label or vector is missing (null, None), in whole or in part, is a bad one. Ids and splits have no gaps.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value
from numpy.typing import NDArray

from .array_files import (
    ALL,
    LABEL_NAMES_FIELD,
    Field,
    Part,
    Sequences,
    describe_shape,
    id_texts,
    read_array_file,
    with_nan,
)
from .array_labels import label_values, names_in_file, read_labels
from .raw import (
    OnBadSample,
    ProblemType,
    RawDataset,
    SampleError,
    check_ids,
    label_column,
)
from .splits import Rows, draw_missing_splits, rows_by_name

MASK_END = "_mask"
ID_FIELDS = ("ids", "id")


def load_arrays(
    path: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    label_field: str = "labels",
    label_names: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
    label_threshold: float | None = None,
    split_field: str = "split",
    id_field: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    split_seed: int = 0,
    replace_non_finite: bool = False,
    mask_zero_vectors: bool = False,
    on_bad_sample: OnBadSample = "stop",
) -> RawDataset:
    """
    Reads a file of arrays in the layout above.

    Args:
        modalities: fields that are modalities, in this order; by default every field of vectors that is nothing else.
        label_field, split_field, id_field: other names of these fields.
        label_names: of the C classes; by default the file's, or the values of the labels.
        problem_type: by default what the labels look like: texts and whole numbers (N,) are classes, zeros and ones
            (N, C) several labels, anything else is a regression.
        label_threshold: makes two classes of one number a sample: up to it, and above it.
        validation_share, test_share: of the training samples, for a split that the file does not have.
        split_seed: of that draw.
        replace_non_finite: put zero in place of NaN and infinite numbers, as MultiBench does on MOSI.
        mask_zero_vectors: take vectors of nothing but zeros for padding. A sample that has no other keeps one.
        on_bad_sample: `"stop"` raises the first `SampleError`, `"skip"` collects them in `bad_samples`.

    Returns:
        A data set whose modalities are of the kind `"array"`: bytes of float32 arrays (T, D), D by `feature_sizes`.
        Masked features are left out and gaps closed.

    Raises:
        SampleError: a sample has numbers that are missing, NaN or infinite, a label that is, or no feature.
        ValueError: the file cannot be read; a field is missing, there twice, has another number of samples than the
            labels or the wrong shape or type; a split's name is unknown, or two names mean one split; a split is empty;
            ids occur twice, or are missing, floats or too long; an option does not fit.
    """
    if on_bad_sample not in get_args(OnBadSample):
        raise ValueError(f"on_bad_sample must be one of {get_args(OnBadSample)}, got {on_bad_sample!r}")
    path = Path(path).expanduser()
    parts = read_array_file(path, label_field)
    others = {label_field, split_field, LABEL_NAMES_FIELD, *ID_FIELDS, id_field or "ids"}
    names = _choose_modalities(parts, modalities, others, path)
    for split, part in parts.items():
        _check_lengths(part, [*names, *others], label_field, path, "" if split == ALL else f" (split {split!r})")

    ids = _ids(parts, id_field, label_field, path)
    rows_of = _rows_of_splits(parts, label_field, split_field, path)
    notes = draw_missing_splits(rows_of, {"validation": validation_share, "test": test_share}, split_seed, path)
    split_names = {row: split for split, rows in rows_of.items() for row in rows.tolist()}
    bad: dict[int, SampleError] = {}

    def report(rows: Rows, field_name: str, reason: str) -> None:
        for row in rows.tolist():
            bad.setdefault(row, SampleError(split_names[row], ids[row], field_name, path, reason))

    sequences = {}
    for name in names:
        found = [_sequences(part, name, mask_zero_vectors, notes, path) for part in parts.values()]
        if len({x.values.shape[1] for x in found}) > 1:
            raise ValueError(f"{path}: vectors of {name!r} have different lengths in different splits.")
        x = found[0]
        if len(found) > 1:
            x = Sequences(np.concatenate([x.values for x in found]), np.concatenate([x.lengths for x in found]))
        sequences[name] = _finite(x, name, replace_non_finite, notes, report)
        report(np.flatnonzero(x.lengths == 0), name, "it has no feature that is not masked")
    values, is_missing = label_values([part[label_field] for part in parts.values()], label_field, path)
    report(np.flatnonzero(is_missing), label_field, "it is missing")
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(axis=1)
        report(np.flatnonzero(~finite), label_field, "it is NaN or infinite (as a 32-bit number)")
    if bad and on_bad_sample == "stop":
        raise bad[min(bad)]
    good = np.setdiff1d(np.arange(len(ids)), list(bad))
    if not len(good):
        raise ValueError(f"{path}: no sample is left, the first is bad because: {bad[min(bad)].reason}.")
    if values.ndim == 1 and values.dtype.kind == "f" and problem_type is None and label_threshold is None:
        gaps = [error for error in bad.values() if error.field == label_field]
        if gaps and (values[good] == np.round(values[good])).all():
            raise ValueError(
                f"{path}: {label_field!r} has whole numbers with {len(gaps):,} gaps, stored as {values.dtype}. Say by "
                "--problem_type whether they are classes (single_label_classification) or amounts (regression)."
            )
    given = label_names if label_names is not None else names_in_file(parts, path)
    labels, class_names, problem = read_labels(values[good], given, problem_type, label_threshold, label_field, path)

    arrays = {name: Value("large_binary") for name in names}
    features = Features({"id": Value("string"), **arrays, "labels": label_column(problem, len(class_names))})
    splits = DatasetDict()
    for split, rows in rows_of.items():
        rows = np.intersect1d(rows, good)
        if not len(rows):
            raise ValueError(f"{path}: no sample of split {split!r} is left.")
        columns: dict[str, Any] = {"id": [ids[row] for row in rows]}
        for name, x in sequences.items():
            places = zip(x.starts[rows], x.lengths[rows], strict=True)
            columns[name] = [x.values[start : start + length].tobytes() for start, length in places]
        columns["labels"] = labels[np.searchsorted(good, rows)]
        splits[split] = Dataset.from_dict(columns, features)
    if problem == "single_label_classification":
        there = np.unique(np.asarray(splits["train"]["labels"]))
        if missing := [name for index, name in enumerate(class_names) if index not in there]:
            notes.append(f"No training sample is of the classes {', '.join(missing)}.")
    notes.insert(0, f"{path}: {len(good):,} samples, {problem.replace('_', ' ')}, {len(class_names)} outputs")
    sizes = {name: x.values.shape[1] for name, x in sequences.items()}
    bad_samples = [bad[row] for row in sorted(bad)]
    return RawDataset(splits, dict.fromkeys(names, "array"), class_names, problem, bad_samples, notes, sizes)


def _choose_modalities(parts: dict[str, Part], asked: Sequence[str] | None, others: set[str], path: Path) -> list[str]:
    first = next(iter(parts.values()))
    found = [
        name
        for name, x in first.items()
        if name not in others
        and not (name.endswith(MASK_END) and name.removesuffix(MASK_END) in first)
        and (isinstance(x, Sequences) or x.ndim in (2, 3))
        and (x.values if isinstance(x, Sequences) else x).dtype.kind in "biuf"
    ]
    names = list(found if asked is None else asked)
    for split, part in parts.items():
        if missing := [name for name in names if name not in part]:
            where = "" if split == ALL else f" in split {split!r}"
            raise ValueError(f"{path} has no {missing}{where}; its fields are {', '.join(part)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"A modality is named twice: {names}.")
    if wrong := [name for name in names if name in others]:
        raise ValueError(f"{path}: {wrong} cannot be modalities, they are labels, splits or ids.")
    if len(names) < 2:
        listed = ", ".join(f"{name} {describe_shape(x)}" for name, x in first.items())
        raise ValueError(
            f"{path}: a mixture needs at least two modalities, found {names}. Its fields are {listed}; modalities are "
            "(N, D) or (N, T, D)."
        )
    return names


def _check_lengths(part: Part, names: Sequence[str], label_field: str, path: Path, where: str) -> None:
    if label_field not in part:
        raise ValueError(
            f"{path} has no labels{where}: there is no field {label_field!r}, its fields are {', '.join(part)}. Say "
            "which it is by --label_field."
        )
    if scalars := [name for name, x in part.items() if isinstance(x, np.ndarray) and not x.ndim]:
        raise ValueError(f"{path}: {scalars} are single values; every field has one row a sample.")
    size = len(part[label_field])
    for name in [*names, *(name + MASK_END for name in names)]:
        if name in part and name != LABEL_NAMES_FIELD and len(part[name]) != size:
            raise ValueError(
                f"{path}: {name!r} has {len(part[name]):,} samples{where}, {label_field!r} has {size:,}; all fields "
                "must have as many."
            )
    if not size:
        raise ValueError(f"{path} has no samples{where}.")


def _ids(parts: dict[str, Part], id_field: str | None, label_field: str, path: Path) -> list[str]:
    ids: list[str] = []
    for split, part in parts.items():
        if id_field is not None and id_field not in part:
            raise ValueError(f"{path} has no field {id_field!r} of ids; its fields are {', '.join(part)}.")
        name = id_field or next((name for name in ID_FIELDS if name in part), None)
        if name is None:
            start = "" if split == ALL else f"{split}-"
            ids += [f"{start}{row}" for row in range(len(part[label_field]))]
            continue
        ids += id_texts(part[name], name, path)
    [(twice, count)] = Counter(ids).most_common(1)
    if count > 1:
        raise ValueError(f"{path}: the id {twice!r} occurs twice.")
    check_ids({"ids": ids}, {"ids": path})
    return ids


def _rows_of_splits(parts: dict[str, Part], label_field: str, split_field: str, path: Path) -> dict[str, Rows]:
    """Split → rows, over all parts one after another."""
    if ALL not in parts:
        starts = np.cumsum([0, *(len(part[label_field]) for part in parts.values())])
        return {split: np.arange(starts[i], starts[i + 1]) for i, split in enumerate(parts)}
    part = parts[ALL]
    if split_field not in part:
        if split_field != "split":
            raise ValueError(f"{path} has no field {split_field!r} of splits; its fields are {', '.join(part)}.")
        return {"train": np.arange(len(part[label_field]))}
    column = part[split_field]
    return rows_by_name([] if isinstance(column, Sequences) else column.tolist(), split_field, path)


def _sequences(part: Part, name: str, mask_zero_vectors: bool, notes: list[str], path: Path) -> Sequences:
    """The real features of a modality, float32."""
    x, mask_name = part[name], name + MASK_END
    values = x.values if isinstance(x, Sequences) else x
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {name!r} holds {values.dtype}; a modality is an array of numbers.")
    if isinstance(x, Sequences):
        if mask_name in part:
            raise ValueError(f"{path}: {mask_name!r} is for padded arrays; {name!r} has sequences of any length.")
        lengths = x.lengths
    elif values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"{path}: {name!r} has the shape {values.shape}; a modality is (N, D), one vector a sample, or (N, T, D), "
            "a sequence of them. One number a sample is (N, 1)."
        )
    else:
        sequence = values[:, None] if values.ndim == 2 else values
        mask_NT = _mask(part.get(mask_name), sequence.shape[:2], mask_name, path)
        mask_NT &= ~np.ma.getmaskarray(sequence).all(axis=2)  # a vector that is missing
        if num_gaps := int((mask_NT[:, 1:] & ~mask_NT[:, :-1]).any(axis=1).sum()):
            notes.append(
                f"{name}: {num_gaps:,} samples have masked features before real ones; the gaps are closed, so that a "
                "feature's position counts real features"
            )
        values, lengths = with_nan(sequence[mask_NT]), mask_NT.sum(axis=1)
    with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and told as such
        found = Sequences(np.ascontiguousarray(values, np.float32), lengths)
    return _without_zeros(found) if mask_zero_vectors else found


def _mask(mask: Field | None, shape: tuple[int, ...], name: str, path: Path) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(shape, np.bool_)
    values = np.empty(0) if isinstance(mask, Sequences) or np.ma.is_masked(mask) else mask
    if values.shape != shape or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{path}: {name!r} must be (N, T) of true and false (or 1 and 0), here {shape}.")
    return values.astype(np.bool_)


def _without_zeros(x: Sequences) -> Sequences:
    real, sample_of = (x.values != 0).any(axis=1), x.sample_of
    is_all_zero = np.bincount(sample_of[real], minlength=len(x)) == 0
    real[x.starts[is_all_zero & (x.lengths > 0)]] = True
    return Sequences(x.values[real], np.bincount(sample_of[real], minlength=len(x)))


def _finite(x: Sequences, name: str, replace: bool, notes: list[str], report: Any) -> Sequences:
    finite = np.isfinite(x.values)
    if finite.all():
        return x
    if replace:
        notes.append(f"{name}: zero in place of {int((~finite).sum()):,} numbers that are missing, NaN or infinite")
        return Sequences(np.where(finite, x.values, np.float32(0)), x.lengths)
    reason = (
        "it has numbers that are missing, NaN or infinite (as 32-bit numbers); --replace_non_finite puts zeros there"
    )
    report(np.unique(x.sample_of[~finite.all(axis=1)]), name, reason)
    return x
