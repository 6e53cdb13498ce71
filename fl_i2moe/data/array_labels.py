"""
What numeric arrays are to predict: labels of any kind as classes, zeros and ones, or numbers.

Shape letters: N samples, C classes or outputs.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .array_files import LABEL_NAMES_FIELD, Field, Part, Sequences, describe_shape
from .raw import ProblemType, texts

_GROUPS = {"b": "whole numbers", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}  # others are texts


def label_values(parts: list[Field], name: str, path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """
    (N,) or (N, C), all parts one after another, and (N,) where they are missing; raises `ValueError` for what can be no
    labels.
    """
    arrays = [x for x in parts if not isinstance(x, Sequences)]
    if len(arrays) < len(parts):
        raise ValueError(f"{path}: {name!r} must have as many numbers for every sample.")
    if any(x.dtype.kind not in "biufUSO" for x in arrays) or len({x.shape[1:] for x in arrays}) > 1:
        shapes = ", ".join(map(describe_shape, parts))
        raise ValueError(f"{path}: {name!r} holds {shapes}; labels are numbers or texts.")
    values = np.ma.concatenate(arrays)
    kinds = {_GROUPS.get(x.dtype.kind, "texts") for x in arrays}
    if len(kinds) > 1 or kinds != {_GROUPS.get(values.dtype.kind, "texts")}:
        types = ", ".join(sorted({str(x.dtype) for x in arrays}))
        raise ValueError(f"{path}: {name!r} has labels of different types in different splits: {types}. Give one type.")
    values = values.reshape(len(values), *(size for size in values.shape[1:] if size != 1))
    if values.ndim > 2 or 0 in values.shape:
        raise ValueError(f"{path}: {name!r} has the shape {values.shape}; labels are (N,) or (N, C).")
    is_missing: NDArray[np.bool_] = np.ma.getmaskarray(values)
    values = np.ma.getdata(values)
    if values.dtype.kind in "SOU":
        there = values[~is_missing].tolist()
        if not all(isinstance(x, str | bytes) for x in there):
            raise ValueError(f"{path}: {name!r} has labels that are neither numbers nor texts.")
        named = np.array(texts(there, name, path), np.str_)
        values = np.zeros(values.shape, named.dtype)
        values[~is_missing] = named
    if values.dtype.kind == "U" and values.ndim == 2:
        raise ValueError(f"{path}: {name!r} has several texts a sample; several labels are (N, C) zeros and ones.")
    return values, is_missing if values.ndim == 1 else np.asarray(is_missing.any(axis=1))


def names_in_file(parts: dict[str, Part], path: Path) -> list[str] | None:
    """Names of the classes, where a file has them; raises `ValueError` for what is no list of texts."""
    names = next(iter(parts.values())).get(LABEL_NAMES_FIELD)
    if names is None:
        return None
    if isinstance(names, Sequences) or names.ndim != 1 or names.dtype.kind not in "USO":
        raise ValueError(f"{path}: {LABEL_NAMES_FIELD!r} must be (C,) texts, is {describe_shape(names)}.")
    return texts(names.tolist(), LABEL_NAMES_FIELD, path)


def read_labels(
    values: NDArray[Any],
    names: Sequence[str] | None,
    problem: ProblemType | None,
    threshold: float | None,
    field_name: str,
    path: Path,
) -> tuple[NDArray[Any], list[str], ProblemType]:
    """
    (N,) int64 classes, or (N, C) float32; the classes' names; the task.

    Args:
        values: from [`label_values`].
        names, problem, threshold: `label_names`, `problem_type` and `label_threshold` of `load_arrays`.

    Raises:
        ValueError: labels, names and task do not go together.
    """
    if problem not in (None, *get_args(ProblemType)):
        raise ValueError(f"`problem_type` must be one of {', '.join(get_args(ProblemType))}, got {problem!r}.")
    if threshold is not None:
        if not math.isfinite(threshold):
            raise ValueError(f"`label_threshold` must be a finite number, got {threshold}.")
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            raise ValueError(f"{path}: `label_threshold` is for one number a sample, {field_name!r} is not.")
        values, problem = (values > threshold).astype(np.int64), problem or "single_label_classification"
        names = names or [f"up to {threshold:g}", f"above {threshold:g}"]
    is_binary = values.dtype.kind in "biuf" and bool(np.isin(values, (0, 1)).all())
    if problem is None:
        classes: ProblemType = "single_label_classification" if values.ndim == 1 else "multi_label_classification"
        fits = values.dtype.kind in "biuU" if values.ndim == 1 else is_binary
        problem = classes if fits else "regression"
    said = f"{path}: {field_name!r} ({values.dtype} {values.shape}) does not fit {problem}"
    if problem == "single_label_classification":
        if values.ndim != 1:
            raise ValueError(f"{said}: one class a sample is (N,) whole numbers or texts.")
        return (*_classes(values, names, said), problem)
    if values.dtype.kind == "U":
        raise ValueError(f"{said}: it holds texts.")
    labels = values.reshape(len(values), -1).astype(np.float32)
    count = labels.shape[1]
    if problem == "multi_label_classification" and count < 2:
        raise ValueError(f"{said}: one label of yes or no is single_label_classification with two classes.")
    if problem == "multi_label_classification" and not is_binary:
        raise ValueError(f"{said}: several labels are zeros and ones.")
    names = list(names or ([field_name] if count == 1 else [f"{field_name} {index}" for index in range(count)]))
    if len(names) != count or len(set(names)) < count:
        raise ValueError(f"{path}: {len(names)} label names for {count} outputs, which must all differ: {names}.")
    return labels, names, problem


def _classes(values: NDArray[Any], names: Sequence[str] | None, said: str) -> tuple[NDArray[np.int64], list[str]]:
    if values.dtype.kind == "f":
        if (values != np.round(values)).any() or (abs(values) >= 2**63).any():
            raise ValueError(f"{said}: classes are whole numbers, of 64 bits at most.")
        values = values.astype(np.int64)
    found, labels = np.unique(values, return_inverse=True)
    found = found.tolist()
    is_text = values.dtype.kind == "U"
    classes = list(names) if names else [x if is_text else str(int(x)) for x in found]
    if names and is_text:
        if unknown := [x for x in found if x not in classes]:
            raise ValueError(f"{said}: there are the classes {unknown}, the label names are {classes}.")
        labels = np.array([classes.index(x) for x in found])[labels]
    elif names:
        if found[0] < 0 or found[-1] >= len(classes):
            raise ValueError(
                f"{said}: it has {found[0]} … {found[-1]}, {len(classes)} label names take 0 … {len(classes) - 1}."
            )
        labels = values
    if len(set(classes)) < len(classes) or len(classes) < 2:
        raise ValueError(f"{said}: there must be two different classes at least, there are {classes}.")
    if len(classes) == len(values) and not names:
        raise ValueError(f"{said}: every sample is a class of its own.")
    return labels.astype(np.int64), classes
