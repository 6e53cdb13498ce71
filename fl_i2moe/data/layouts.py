"""Which published layout a folder has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..model.configuration_fl_i2moe import check_given
from . import enrico, mmhs150k, mmimdb
from .raw import OnBadSample, RawDataset


@dataclass(frozen=True)
class Layout:
    """How a data set is published: its title, a file that no other layout has, its modalities, and its reader."""

    title: str
    file: str
    modalities: Mapping[str, str]
    load: Callable[..., RawDataset]


LAYOUTS = {
    "mmimdb": Layout("MM-IMDb", "split.json", mmimdb.MODALITIES, mmimdb.load_mmimdb),
    "enrico": Layout("ENRICO", enrico.TOPICS_FILE, enrico.MODALITIES, enrico.load_enrico),
    "mmhs150k": Layout("MMHS150K", mmhs150k.TRUTH_FILE, mmhs150k.MODALITIES, mmhs150k.load_mmhs150k),
}


def find_layout(data_dir: str | Path) -> str:
    """A folder's layout among `LAYOUTS`; raises `ValueError` if there is no such folder, or not one layout fits it."""
    check_given("data_dir", data_dir)
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder, or is not there")
    found = {name: layout.title for name, layout in LAYOUTS.items() if (folder / layout.file).is_file()}
    if len(found) != 1:
        known = ", ".join(f"{layout.title} ({layout.file})" for layout in LAYOUTS.values())
        several = f"has several layouts: {', '.join(found.values())}" if found else "has no known layout"
        raise ValueError(f"{folder} {several}; known are, each by a file: {known}")
    return next(iter(found))


def load_layout(
    data_dir: str | Path, *, min_label_count: int | None = None, on_bad_sample: OnBadSample = "stop"
) -> RawDataset:
    """
    Reads a folder in any published layout with its reader's defaults.

    Args:
        min_label_count: of MM-IMDb alone: predict the genres with at least so many training films.

    Raises:
        ValueError: as [`find_layout`] and the readers; `min_label_count` is given for another layout.
    """
    folder, name = Path(data_dir).expanduser(), find_layout(data_dir)
    options = {} if min_label_count is None else {"min_label_count": min_label_count}
    if options and name != "mmimdb":
        raise ValueError(f"`min_label_count` is for genres of films, {folder} has the {LAYOUTS[name].title} layout.")
    return LAYOUTS[name].load(folder, on_bad_sample=on_bad_sample, **options)
