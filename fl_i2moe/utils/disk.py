"""What is said when the disk is full."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# safetensors and torch.save raise errors of their own: the one with the system's number in its text, the other without
FULL = tuple(f"(os error {code})" for code in (errno.ENOSPC, errno.EDQUOT))
TORCH_WRITER = ("inline_container.cc", "PytorchStreamWriter")


@contextmanager
def explaining_full_disk(folder: str | os.PathLike, explanation: str) -> Iterator[None]:
    """
    Turns every library's "no space left" into one error that names the folder and says what to do.

    Args:
        folder: where is written; it or a folder above it exists.
        explanation: what cannot be written, what is not lost, what to do.

    Raises:
        OSError: the disk is full.
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
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error) for text in (*FULL, *TORCH_WRITER))
