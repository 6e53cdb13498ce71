"""The folder of a run: which job wrote it, whether a new start may go on in it, and that one run at a time does so."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock

from .checked_json import read_json
from .files import UNFINISHED, existing, remove, remove_unfinished, write_json
from .machine import take_lock

SETTINGS_FILE = "run.json"
LOCK_FILE = "run.lock"
"""Stays; what counts is the lock that a process holds on it, which the system takes from a process that ends."""


@dataclass(frozen=True)
class JobFiles:
    """What a job writes into its output folder. Nothing else there is ever touched."""

    job: str
    """What `run.json` calls the job."""
    patterns: tuple[str, ...]
    """Names of files and folders, as in `Path.glob`."""
    parts: "JobFiles | None" = None
    """Of runs that the job starts in folders of their own below; their settings name a `system`."""
    are_parts: bool = False
    """Of another job, which holds their folder: what else lies in it is in nobody's way."""

    def hold(self, folder: Path, place: Path) -> bool:
        """Whether a place is the output folder, or what the job writes in it or a part."""
        folder, place = folder.resolve(), place.resolve()
        if not place.is_relative_to(folder):
            return False
        names = place.relative_to(folder).parts
        is_own = not names or any(fnmatchcase(names[0], pattern) for pattern in self.patterns)
        return is_own or (self.parts is not None and len(names) > 1 and self.parts.hold(folder / names[0], place))

    def find(self, folder: Path) -> list[Path]:
        """Those that are in the folder; of the parts also their settings, last."""
        found = [path for pattern in self.patterns for path in sorted(folder.glob(pattern))]
        if self.parts is not None:
            for file in folder.glob(f"*/{SETTINGS_FILE}"):
                if "system" in read_json(file, dict):
                    found += [*self.parts.find(file.parent), file]
        return found


def check_run_folder(
    folder: str | os.PathLike,
    files: JobFiles,
    *,
    resume: bool,
    overwrite: bool,
    beside: str | os.PathLike | None = None,
) -> None:
    """
    Changes nothing, and raises `ValueError` where `folder` is a file, cannot be made, holds other files than a run of
    this job, or holds one and neither `resume` nor `overwrite` is given; or where a run is writing into it. What lies
    `beside` the run on purpose, such as a feature cache, is not in its way, unless it lies where the job writes.
    """
    folder = Path(folder)
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ValueError(f"The output folder {folder} cannot be written into; give another --output_dir.")
    if (folder / LOCK_FILE).is_file():
        with _lock(folder):
            pass
    _check_content(folder, files, resume, overwrite, beside)


def _check_content(
    folder: Path, files: JobFiles, resume: bool, overwrite: bool, beside: str | os.PathLike | None
) -> None:
    instead = "give another --output_dir"
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file, or a link that leads nowhere; {instead}.")
    if beside is not None and files.hold(folder, Path(beside)):
        raise ValueError(
            f"{beside} lies where the job in {folder} writes, and --overwrite removes: give another --cache_dir, such "
            "as a folder of its own below."
        )
    if (folder / SETTINGS_FILE).is_file():
        if not (resume or overwrite):
            raise ValueError(
                f"{folder} already holds a run: go on with it by --resume, replace it by --overwrite, or {instead}."
            )
        job = read_json(folder / SETTINGS_FILE, dict).get("job")
        if job is None and overwrite:
            raise ValueError(
                f"{folder} holds a run of an earlier version, which does not say which job wrote it: remove it, or "
                f"{instead}."
            )
        if job not in (None, files.job):
            raise ValueError(f"{folder} holds a run of another job, {job}, not {files.job}: {instead}.")
        if overwrite:
            _check_nothing_else(files.find(folder))
    elif not folder.exists():
        above = existing(folder)
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ValueError(f"The output folder {folder} cannot be made in {above}; {instead}.")
    elif not files.are_parts and (others := _others(folder, beside)):
        raise ValueError(f"{folder} holds other files and no run, such as {others[0]}; {instead}.")


def _check_nothing_else(doomed: list[Path]) -> None:
    """Someone may have explained the model of a seed, or begun a run somewhere below."""
    for path in doomed:
        if inner := next(path.glob(f"*/**/{SETTINGS_FILE}"), None):
            raise ValueError(f"{inner.parent} holds a run that --overwrite would remove: move or remove it first.")


def _others(folder: Path, beside: str | os.PathLike | None) -> list[str]:
    """What is in a folder without a run, apart from what one that was killed at its start has left."""
    expected = [] if beside is None else [Path(beside).resolve(), *Path(beside).resolve().parents]
    return sorted(
        path.name
        for path in folder.resolve().iterdir()
        if path.name != LOCK_FILE and not path.name.startswith(UNFINISHED) and path not in expected
    )


def begin_run_folder(
    folder: str | os.PathLike,
    settings: dict[str, Any],
    files: JobFiles,
    *,
    resume: bool,
    overwrite: bool,
    beside: str | os.PathLike | None = None,
    defaults: Mapping[str, Any] | None = None,
    places: Mapping[str, Any] | None = None,
) -> None:
    """
    Makes `folder` ready for a run with `settings` (plain JSON): removes what the job wrote there before, or lets the
    run in it go on; what its settings do not name, since its version had no such option, has its value of `defaults`.
    `places`, where things lie that the run uses, are written down beside the settings, and may have changed. Raises
    `ValueError` as [`check_run_folder`], where the run to go on with was started with other settings, or where another
    run is writing into a folder that would be removed.
    """
    folder = Path(folder)
    _check_content(folder, files, resume, overwrite, beside)
    known, places = {name: value for name, value in (defaults or {}).items() if name in settings}, places or {}
    # as they come back from the file
    settings, known = json.loads(json.dumps([{"job": files.job, **settings}, {"job": files.job, **known}]))
    file = folder / SETTINGS_FILE
    if file.is_file() and resume:
        stored = {**known, **read_json(file, dict)}
        different = [
            f"  {name}: {stored.get(name)!r} then, {settings.get(name)!r} now"
            for name in {**stored, **settings}
            if name not in places and stored.get(name) != settings.get(name)
        ]
        if different:
            raise ValueError(
                f"The run in {folder} was started with other settings:\n"
                + "\n".join(different)
                + "\nGive the same ones to resume it, or --overwrite to replace it."
            )
        _remove_unfinished(folder, files)
        if not places.items() <= stored.items():
            write_json(file, {**read_json(file, dict), **places})
        return
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder, files)
    doomed = files.find(folder)
    for path in doomed:
        for lock in path.rglob(LOCK_FILE):
            with _lock(lock.parent):
                pass
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as removed:
        # each goes at once, so that a kill leaves none by halves
        for number, path in enumerate(doomed):
            path.rename(Path(removed) / str(number))
        write_json(file, {**settings, **places})


def _remove_unfinished(folder: Path, files: JobFiles) -> None:
    for path in [*folder.glob(UNFINISHED + "*"), *files.find(folder)]:
        if path.name.startswith(UNFINISHED):
            remove(path)
        elif path.is_dir():
            remove_unfinished(path, spare=LOCK_FILE)  # a job may be explaining the model of a seed


@contextmanager
def held_run_folder(
    folder: str | os.PathLike,
    settings: dict[str, Any],
    files: JobFiles,
    *,
    is_writer: bool = True,
    **flags: Any,
) -> Iterator[None]:
    """
    [`begin_run_folder`], with its `flags`, and nobody else may begin there until the block is left; raises `ValueError`
    where another run is writing into the folder. Does nothing in those of a run's processes that are not `is_writer`.
    """
    if not is_writer:
        yield
        return
    folder = Path(folder)
    _check_content(folder, files, flags["resume"], flags["overwrite"], flags.get("beside"))
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        begin_run_folder(folder, settings, files, **flags)
        yield


def _lock(folder: Path) -> AbstractContextManager:
    return take_lock(FileLock(folder / LOCK_FILE), f"writing into {folder}", "; or give another --output_dir")
