"""A job in a process of its own that is killed just before its n-th file operation."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def killed_before(number: int, job: Callable[[], Any], place: Path, log: Path | None = None) -> bool:
    """
    Runs the job in a fork that kills itself before its file operation of this number below `place`: opening to write,
    renaming, removing, making folders and links. Returns whether that came to pass; raises where the job failed.
    """
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"it ended with {code} before operation {number}: {log and log.read_text()}")
        return code == -signal.SIGKILL
    try:
        with open(log or os.devnull, "w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.addaudithook(_killer(number, place))
            job()
            sys.stdout.flush()
    except BaseException:  # the parent's tests must not go on in this process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _killer(number: int, place: Path) -> Callable[[str, tuple], None]:
    root, left = str(place.absolute()), number

    def watch(event: str, arguments: tuple) -> None:
        nonlocal left
        if event == "open":
            path, mode, flags = arguments
            if not (flags & WRITES or (mode and set(mode) & set("wax+"))):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        # what lies in a folder that is removed is named relative to it
        if isinstance(path, (str, Path)) and (not os.path.isabs(path) or str(path).startswith(root)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    return watch
