"""
Files and folders that are written whole or not at all, always in UTF-8, and one message for a full disk.

What is being written has a name that begins with `UNFINISHED`, beside its place. A process that is killed leaves it
there; whoever begins to write in that folder next removes it.
"""

import errno
import glob
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

UNFINISHED = ".unfinished-"
# safetensors and torch.save raise errors of their own: the one with the system's number in its text, the other without
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = (*(f"(os error {code})" for code in FULL), "inline_container.cc", "PytorchStreamWriter")
KEPT = "what was written before is kept: make room and go on by the same command, with --resume if it has it"


def write_json(path: Path, content: Any) -> None:
    """
    Writes the file whole or not at all; raises `OSError` if the disk is full, when an earlier file is as it was, and
    `ValueError` for NaN and infinite numbers, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all, and makes its folder; raises `OSError` as [`write_json`]."""
    write_file(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Lets `write` make a file under another name with the same ending, which takes its place once it is whole and on the
    disk; makes its folder. Raises `OSError` as [`write_json`].
    """
    unfinished = path.with_name(UNFINISHED + path.name)
    with explaining_full_disk(path.parent, KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            bring_to_disk(unfinished)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def replace_files(folder: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary folder, and moves its files into `folder`, each in place of one of its name."""
    with explaining_full_disk(folder, KEPT):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as unfinished:
            write(Path(unfinished))
            for path in Path(unfinished).iterdir():
                bring_to_disk(path)
                os.replace(path, folder / path.name)


def write_new_folder(folder: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """
    Lets `write` fill a folder that does not exist yet, or is empty, and appears when it is complete. What a killed
    process left of it is removed. Raises `ValueError` where it cannot appear at once: it is a disk's own folder, or
    that in which the process works.
    """
    folder = Path(folder).resolve()
    if folder.is_mount() or folder == Path.cwd():
        raise ValueError(f"{folder} cannot be made anew, since a disk or this process has it: give a folder below it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{UNFINISHED}{folder.name}-"
    for left in folder.parent.glob(glob.escape(prefix) + "*"):
        with _only_writer(left) as is_left:
            if is_left:
                remove(left)
    unfinished = folder.parent / f"{prefix}{secrets.token_hex(4)}"
    with explaining_full_disk(folder.parent, f"{folder} cannot be written: make room and run again"):
        unfinished.mkdir()
        try:
            with _only_writer(unfinished):
                write(unfinished)
                for path in unfinished.rglob("*"):
                    if path.is_file():
                        bring_to_disk(path)
                unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Holds a folder that is being written, and says whether nobody else does; the system lets go of it for a process
    that is killed. Never so on Windows, which locks no folders."""
    if sys.platform == "win32":
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # it has just been finished or removed
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, spare: str = "") -> None:
    """
    Removes what killed processes left in `folder` and below, where nobody may be writing; but not in folders below that
    hold a file of the name `spare`, which are others'.
    """
    for path in list(folder.iterdir()):
        if path.name.startswith(UNFINISHED):
            remove(path)
        elif path.is_dir() and not path.is_symlink() and not (spare and (path / spare).exists()):
            remove_unfinished(path, spare)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def bring_to_disk(path: Path) -> None:
    """Otherwise a machine that goes down may keep the new name and lose the content."""
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
