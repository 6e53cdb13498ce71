"""The folder of a run: whose it is, and whether a new start may go on in it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

SETTINGS_FILE = "run.json"


def open_run_folder(folder: str | os.PathLike, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> Path:
    """
    Makes `folder` ready for a run with `settings` (plain JSON).

    Raises:
        ValueError: the folder holds other files, or a run, and neither `resume` nor `overwrite` is given; or the run
            to go on with was started with other settings.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(settings))
    file = folder / SETTINGS_FILE
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file; give another --output_dir.")
    if file.is_file() and overwrite:
        shutil.rmtree(folder)
    elif file.is_file():
        if not resume:
            raise ValueError(
                f"{folder} already holds a run: go on with it by --resume, replace it by --overwrite, or give another "
                "--output_dir."
            )
        _check_same(json.loads(file.read_text()), settings, folder)
        return folder
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no run; give another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n")
    return folder


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
