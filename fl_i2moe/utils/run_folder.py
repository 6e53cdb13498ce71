"""The folder of a run: whose it is, whether a new start may go on in it, and that one run at a time writes into it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from .files import existing, read_json, write_json
from .machine import take_lock

SETTINGS_FILE = "run.json"
LOCK_FILE = "run.lock"
"""Stays; what counts is the lock that a process holds on it, which the system takes from a process that ends."""


def check_run_folder(folder: str | os.PathLike, *, resume: bool, overwrite: bool) -> None:
    """
    Changes nothing, and raises `ValueError` where `folder` is a file, cannot be made, holds other files, or holds a run
    and neither `resume` nor `overwrite` is given; or where a run is writing into it.
    """
    folder = Path(folder)
    if (folder / LOCK_FILE).is_file():
        with _lock(folder):
            pass
    _check_content(folder, resume, overwrite)


def _check_content(folder: Path, resume: bool, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file; give another --output_dir.")
    if (folder / SETTINGS_FILE).is_file():
        if not (resume or overwrite):
            raise ValueError(
                f"{folder} already holds a run: go on with it by --resume, replace it by --overwrite, or give another "
                "--output_dir."
            )
    elif not folder.exists():
        above = existing(folder)
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise ValueError(f"The output folder {folder} cannot be made in {above}; give another --output_dir.")
    elif any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no run; give another --output_dir.")


def begin_run_folder(folder: str | os.PathLike, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """
    Makes `folder` ready for a run with `settings` (plain JSON): empties it, or lets the run in it go on. Raises
    `ValueError` as [`check_run_folder`], or where the run to go on with was started with other settings.
    """
    folder = Path(folder)
    _check_content(folder, resume, overwrite)
    settings = json.loads(json.dumps(settings))  # as they come back from the file
    file = folder / SETTINGS_FILE
    if file.is_file() and resume:
        stored = read_json(file)
        different = [
            f"  {name}: {stored.get(name)!r} then, {settings.get(name)!r} now"
            for name in {**stored, **settings}
            if stored.get(name) != settings.get(name)
        ]
        if different:
            raise ValueError(
                f"The run in {folder} was started with other settings:\n"
                + "\n".join(different)
                + "\nGive the same ones to resume it, or --overwrite to replace it."
            )
        return
    if folder.exists():
        # the settings last: whatever is left after a kill is still known as a run
        for path in sorted(folder.iterdir(), key=lambda path: path == file):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
    write_json(file, settings)


@contextmanager
def held_run_folder(
    folder: str | os.PathLike, settings: dict[str, Any], *, resume: bool, overwrite: bool, is_writer: bool = True
) -> Iterator[None]:
    """
    [`begin_run_folder`], and nobody else may begin there until the block is left; raises `ValueError` where another run
    is writing into the folder. Does nothing in those of a run's processes that are not `is_writer`.
    """
    if not is_writer:
        yield
        return
    folder = Path(folder)
    _check_content(folder, resume, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        begin_run_folder(folder, settings, resume=resume, overwrite=overwrite)
        yield


def _lock(folder: Path) -> AbstractContextManager:
    return take_lock(FileLock(folder / LOCK_FILE), f"writing into {folder}", "; or give another --output_dir")
