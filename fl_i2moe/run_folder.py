"""The folder of a run: whose it is, and whether a new start may go on in it."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .disk import existing, explaining_full_disk

SETTINGS_FILE = "run.json"


def check_run_folder(folder: str | os.PathLike, *, resume: bool, overwrite: bool) -> None:
    """
    Refuses early, and touches nothing.

    Raises:
        ValueError: `folder` is a file, cannot be made, holds other files, or holds a run and neither `resume` nor
            `overwrite` is given.
    """
    folder = Path(folder)
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
    elif any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no run; give another --output_dir.")


def begin_run_folder(folder: str | os.PathLike, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """
    Makes `folder` ready for a run with `settings` (plain JSON): empties it, or lets the run in it go on.

    Raises:
        ValueError: as [`check_run_folder`]; or the run to go on with was started with other settings.
    """
    check_run_folder(folder, resume=resume, overwrite=overwrite)
    folder = Path(folder)
    settings = json.loads(json.dumps(settings))  # as they come back from the file
    file = folder / SETTINGS_FILE
    if file.is_file() and resume:
        _check_same(json.loads(file.read_text()), settings, folder)
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(file, settings)


def write_json(path: Path, content: Any) -> None:
    """Writes the file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_files(path.parent, lambda unfinished: (unfinished / path.name).write_text(text))


def replace_files(folder: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a folder beside `folder`'s files and moves what it wrote into place, file by file."""
    explanation = "what was written before is kept: make room and go on by the same command, with --resume if it has it"
    with explaining_full_disk(folder, explanation):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
            write(Path(unfinished))
            for path in Path(unfinished).iterdir():
                os.replace(path, folder / path.name)


def _check_same(stored: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
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
