"""Which published layout a folder has."""

from collections.abc import Callable
from pathlib import Path

from .enrico import TOPICS_FILE, load_enrico
from .mmhs150k import TRUTH_FILE, load_mmhs150k
from .mmimdb import load_mmimdb
from .raw import OnBadSample, RawDataset

LOADERS: dict[str, tuple[str, Callable[..., RawDataset]]] = {
    "split.json": ("MM-IMDb", load_mmimdb),
    TOPICS_FILE: ("ENRICO", load_enrico),
    TRUTH_FILE: ("MMHS150K", load_mmhs150k),
}
"""File that only one layout has → its name and reader."""


def load_layout(
    data_dir: str | Path, *, min_label_count: int | None = None, on_bad_sample: OnBadSample = "stop"
) -> RawDataset:
    """
    Reads a folder in any published layout with its reader's defaults.

    Args:
        min_label_count: of MM-IMDb alone: predict the genres with at least so many training films.

    Raises:
        ValueError: there is no such folder; no layout, or several, fit it; `min_label_count` is given for another one;
            and as the readers.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder, or is not there")
    found = [entry for file, entry in LOADERS.items() if (folder / file).is_file()]
    if len(found) != 1:
        known = ", ".join(f"{name} ({file})" for file, (name, _) in LOADERS.items())
        several = f"has several layouts: {', '.join(name for name, _ in found)}" if found else "has no known layout"
        raise ValueError(f"{folder} {several}; known are, each by a file: {known}")
    [(name, load)] = found
    options = {} if min_label_count is None else {"min_label_count": min_label_count}
    if options and load is not load_mmimdb:
        raise ValueError(f"`min_label_count` is for genres of films, {folder} has the {name} layout.")
    return load(folder, on_bad_sample=on_bad_sample, **options)
