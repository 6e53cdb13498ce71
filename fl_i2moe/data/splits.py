"""
Which samples are for training, validation and test: as a column says, or drawn by a seed.

Shape letters: N samples, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from .raw import SPLIT_NAMES, names_of_splits, split_of

Rows = NDArray[np.int64]
NUM_GROUP_DRAWS = 50
"""Draws of whole groups, of which the one with the most even shares is taken."""


def rows_by_name(written: Sequence[Any], field: str, path: str | Path) -> dict[str, Rows]:
    """Split → its rows, from a column of N names; raises `ValueError` where one is missing or unknown."""
    if missing := [str(row) for row, name in enumerate(written) if name is None]:
        raise ValueError(f"{path}: {field!r} has no split in the rows {', '.join(missing[:5])}.")
    splits = [split_of(name) for name in written]
    if unknown := list(dict.fromkeys(repr(name) for name, x in zip(written, splits, strict=True) if x is None)):
        known = ", ".join(f"{split} ({', '.join(names[1:])})" for split, names in SPLIT_NAMES.items())
        raise ValueError(f"{path}: {field!r} holds {', '.join(unknown[:5])}; known splits are {known}.")
    names_of_splits(written, f"{path}: {field!r}")
    found = np.array(splits)
    return {split: rows for split in SPLIT_NAMES if len(rows := np.flatnonzero(found == split))}


def draw_missing_splits(
    rows_of: dict[str, Rows],
    shares: Mapping[str, float],
    seed: int,
    path: str | Path,
    labels: NDArray[Any] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> list[str]:
    """
    Draws the splits that `rows_of` lacks from its training samples, into it, in the order of splits.

    Args:
        shares: split → its share of the training samples.
        labels: (N,) classes or (N, C) true where a sample has a label. Splits then have them in equal shares as far as
            their numbers allow, and training has a sample of each. None: any samples.
        groups: (N,) the number of each sample's group, which stays together.

    Returns:
        What to tell a user, as sentences.

    Raises:
        ValueError: there are no training samples, or a share of them makes no split, or leaves none to train on.
    """
    if "train" not in rows_of:
        raise ValueError(f"{path} has no training samples; its splits are {', '.join(rows_of)}.")
    rows = rows_of.pop("train")
    left, notes = np.random.default_rng(seed).permutation(rows), []
    kept, left = _one_of_each(left, labels) if labels is not None and groups is None else (left[:0], left)
    found = {}
    for split, share in shares.items():
        if split in rows_of:
            found[split] = rows_of.pop(split)
            continue
        count = round(share * len(rows))
        if not 0 < count < len(left) + len(kept) or count > len(left):
            raise ValueError(
                f"{path} has no {split} samples, and {share:.0%} of its {len(rows):,} training samples make none or "
                "leave none to train on; give more samples or another share."
            )
        if groups is not None:
            held = _draw_groups(left, count, seed, labels, groups, split, path)
        else:
            held = left[:count] if labels is None else _draw_evenly(left, count, seed, labels)
        found[split], left = np.sort(held), left[~np.isin(left, held)]
        kept_together = "" if groups is None else ", groups kept together"
        notes.append(f"{split}: {len(held):,} of the training samples, drawn by seed {seed}{kept_together}")
    rows_of |= {"train": np.sort(np.concatenate([kept, left])), **found}
    return notes


def _one_of_each(rows: Rows, labels: NDArray[Any]) -> tuple[Rows, Rows]:
    """One row of each class, and the others in their order."""
    own = labels[rows]
    if own.ndim == 1:
        places = np.unique(own, return_index=True)[1]
    else:
        places = np.unique(own.argmax(axis=0)[own.any(axis=0)])
    return rows[places], np.delete(rows, places)


def _strata(labels: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) the number of each sample's class, or of its combination of labels; -1 for all that occur only once."""
    _, strata, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    strata = strata.reshape(-1)
    return np.where(counts[strata] < 2, -1, strata)


def _draw_evenly(rows: Rows, count: int, seed: int, labels: NDArray[Any]) -> Rows:
    if count == len(rows):
        return rows
    strata = _strata(labels[rows])
    names, counts = np.unique(strata, return_counts=True)
    if len(names) and counts.min() < 2:  # the only one that occurs once joins others, for scikit-learn
        strata[strata == names[counts.argmin()]] = names[counts.argmax()]
    fits = len(np.unique(strata)) <= min(count, len(rows) - count)
    return train_test_split(rows, test_size=count, random_state=seed, stratify=strata if fits else None)[1]


def _draw_groups(
    rows: Rows,
    count: int,
    seed: int,
    labels: NDArray[Any] | None,
    groups: NDArray[np.int64],
    split: str,
    path: str | Path,
) -> Rows:
    own = np.zeros(len(rows), np.int64) if labels is None else _strata(labels[rows])
    own = np.unique(own, return_inverse=True)[1].reshape(-1)
    wanted = np.bincount(own) * (count / len(rows))
    best, least = None, np.inf
    draws = GroupShuffleSplit(NUM_GROUP_DRAWS, test_size=count / len(rows), random_state=seed)
    try:
        for left, held in draws.split(rows, groups=groups[rows]):
            far = np.abs(np.bincount(own[held], minlength=len(wanted)) - wanted).sum()
            far += len(rows) * len(np.setdiff1d(own[held], own[left]))  # training would lack a class
            if far < least:
                best, least = held, far
    except ValueError as error:
        raise ValueError(
            f"{path} has no {split} samples, and too few groups to draw them from (left to train on: "
            f"{len(np.unique(groups[rows]))}); give more groups, or the splits themselves."
        ) from error
    return rows[best]


def check_groups(rows_of: Mapping[str, Rows], groups: NDArray[np.int64], names: Sequence[str], path: str) -> None:
    """Raises `ValueError` if a group, of these names by their numbers, is in two splits."""
    seen: dict[int, str] = {}
    for split, rows in rows_of.items():
        for group in np.unique(groups[rows]).tolist():
            if group in seen:
                raise ValueError(
                    f"{path}: the group {names[group]!r} is in both {seen[group]!r} and {split!r}, so that the model "
                    "would be tested on what it has seen; put each group into one split."
                )
            seen[group] = split
