"""MM-IMDb's pooled form, `multimodal_imdb.hdf5` (MultiBench): a word2vec vector and a VGG vector for each film.

It is what pooled I²MoE was trained on. The arrays go into an .npz file that `load_arrays` reads.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import existing, write_file
from .array_files import id_texts
from .mmimdb import GENRES
from .raw import check_ids

FIELDS = {"text": "features", "image": "vgg_features"}  # modality → data set in the file
LABELS, IDS = "genres", "imdb_ids"
SPLIT_ENDS = (15552, 18160)
"""Rows at which the training and the development split end, as published; the rest is the test split."""


def read_mmimdb_hdf5(file: str | Path, split_ends: tuple[int, int] = SPLIT_ENDS) -> dict[str, np.ndarray]:
    """
    Args:
        file: with the data sets `features` (N, 300), `vgg_features` (N, 4096), `genres` (N, 23) and `imdb_ids` (N,).
        split_ends: rows at which the training and the development split end.

    Returns:
        `text`, `image` (N, D) float32, `labels` (N, 23) float32, `label_names`, `split` and `ids`.

    Raises:
        ValueError: the file is no such HDF5 file, its arrays differ in length, hold values that are not finite or
            labels that are not 0 or 1, or a split is empty.
        ImportError: h5py is not installed.
    """
    try:
        import h5py  # needed here alone
    except ImportError as error:
        raise ImportError('reading HDF5 needs h5py: pip install "fl-i2moe[hdf5]"') from error
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} does not exist, or is no file; give MultiBench's multimodal_imdb.hdf5")
    names = [*FIELDS.values(), LABELS, IDS]
    try:
        with h5py.File(file, "r") as content:
            if missing := [name for name in names if not isinstance(content.get(name), h5py.Dataset)]:
                raise ValueError(f"{file} lacks the data sets {missing}; it has {sorted(content)}")
            if single := [name for name in names if not content[name].shape]:
                raise ValueError(f"{file}: {single} hold no rows, one for each film")
            arrays = {name: content[name][:] for name in names}
    except OSError as error:
        raise ValueError(f"{file} cannot be read as HDF5 ({error}); download it again") from error
    return _checked(file, arrays, split_ends)


def check_new_file(file: str | Path) -> None:
    """Raises `ValueError` if arrays would not be found in the file again, cannot be written, or are there already."""
    if Path(file).suffix != ".npz":
        raise ValueError(f"{file} must end with .npz, as recipes/train_arrays.py reads it")
    if Path(file).exists():
        raise ValueError(f"{file} exists already; give another name")
    if not (above := existing(Path(file))).is_dir():
        raise ValueError(f"{file} cannot be made in {above}, which is no folder; give another name")


def write_arrays(fields: dict[str, Any], file: str | Path) -> None:
    """Writes an .npz file, whole or not at all; raises `OSError` if the disk is full."""
    write_file(Path(file), lambda unfinished: np.savez(unfinished, **fields))


def _checked(file: Path, arrays: dict[str, Any], split_ends: tuple[int, int]) -> dict[str, np.ndarray]:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{file}: the data sets have different lengths: {lengths}")
    count = lengths[IDS]
    if not 0 < split_ends[0] < split_ends[1] < count:
        raise ValueError(
            f"{file} has {count:,} films: splits that end at {split_ends[0]:,} and {split_ends[1]:,} leave one empty"
        )
    if wrong := [f"{name} ({x.dtype})" for name, x in arrays.items() if name != IDS and x.dtype.kind not in "biuf"]:
        raise ValueError(f"{file}: {', '.join(wrong)} must hold numbers")
    fields = {}
    for modality, name in FIELDS.items():
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and told as such
            values = arrays[name].astype(np.float32)
        if values.ndim != 2:
            raise ValueError(f"{file}: {name} must have shape (N, D), got {values.shape}")
        if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=1))):
            raise ValueError(f"{file}: {name} has NaN or infinite values in rows {bad[:5].tolist()}, {len(bad)} in all")
        fields[modality] = values
    labels = arrays[LABELS].astype(np.float32)
    if labels.shape != (count, len(GENRES)):
        raise ValueError(f"{file}: {LABELS} must have shape {(count, len(GENRES))}, got {labels.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{file}: {LABELS} must be 0 or 1")
    ids = id_texts(arrays[IDS], IDS, file)
    if len(set(ids)) != count:
        raise ValueError(f"{file}: {IDS} must name each film once")
    check_ids({IDS: ids}, {IDS: file})
    split = np.repeat(["train", "validation", "test"], np.diff([0, *split_ends, count]))
    return {**fields, "labels": labels, "label_names": np.array(GENRES), "split": split, "ids": np.array(ids)}
