"""Files and folders that are written whole or not at all, always in UTF-8, and one message for a full disk."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# safetensors and torch.save raise errors of their own: the one with the system's number in its text, the other without
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = (*(f"(os error {code})" for code in FULL), "inline_container.cc", "PytorchStreamWriter")
KEPT = "what was written before is kept: make room and go on by the same command, with --resume if it has it"


def read_json(path: Path, role: str = "", kind: type | tuple[type, ...] = object) -> Any:
    """
    Raises `ValueError` where the file is no JSON or holds something else than `kind`; its name and `role`, what it is
    for, begin the message. Raises `OSError` where it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}")
    except ValueError as error:
        raise ValueError(f"{path}{role and f', {role},'} is damaged: {error}.") from error
    return content


def write_json(path: Path, content: Any) -> None:
    """
    Writes the file whole or not at all; raises `OSError` if the disk is full, when an earlier file is as it was, and
    `ValueError` for NaN and infinite numbers, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all, and makes its folder; raises `OSError` as [`write_json`]."""
    with explaining_full_disk(path.parent, KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and is removed on failure."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_files(folder: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary folder, and moves its files into `folder`, each in place of one of its name."""
    with explaining_full_disk(folder, KEPT):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
            write(Path(unfinished))
            for path in Path(unfinished).iterdir():
                os.replace(path, folder / path.name)


def write_new_folder(folder: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a folder that does not exist yet, or is empty, and appears when it is complete."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        explaining_full_disk(folder.parent, f"{folder} cannot be written: make room and run again"),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished,
    ):
        made = Path(unfinished) / folder.name
        made.mkdir()
        write(made)
        made.rename(folder)


@contextmanager
def explaining_full_disk(folder: str | os.PathLike, explanation: str) -> Iterator[None]:
    """
    Turns every library's "no space left" into one `OSError`, which names the folder that is written into, and says by
    `explanation` what cannot be written, what is not lost, and what to do.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        code = error.errno if isinstance(error, OSError) else errno.ENOSPC
        free = shutil.disk_usage(existing(folder)).free
        raise OSError(code, f"the disk is full, {free:,} bytes are free: {explanation}", str(folder)) from error


def existing(path: str | os.PathLike) -> Path:
    """`path` itself, or the nearest path above it that exists."""
    path = Path(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(text in str(error) for text in FULL_TEXTS)
