"""The machine: what a figure was measured on, and how a training process gets on with it and with other processes."""

import ctypes
import json
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

CPU_INFO = Path("/proc/cpuinfo")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    found = re.search(r"model name\s*: (.*)", CPU_INFO.read_text(encoding="utf-8")) if CPU_INFO.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def multiplies_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor has instructions for products in bfloat16; true where the system does not list them."""
    if not cpu_info.exists():
        return True
    flags = r"^(flags|Features)\b.*\b(avx512_bf16|amx_bf16|bf16)\b"
    return re.search(flags, cpu_info.read_text(encoding="utf-8"), re.MULTILINE) is not None


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_memory(num_bytes: int, what: str, how: str) -> None:
    """
    Raises `ValueError` where something takes more than all memory of the machine: the system would end the process
    without a word. `what` it is, and `how` it becomes smaller, go into the message.
    """
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        raise ValueError(f"{what} takes {num_bytes / 2**30:,.0f} GiB, the machine has {memory / 2**30:,.0f}: {how}.")


def keep_freed_memory() -> None:
    """
    Lets this process keep the memory that tensors free. By default glibc returns each big block to the system at once,
    and every new tensor pays for its pages again: a fifth of a float32 training step. No effect without `mallopt`.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """
    Ctrl-C waits for the end of the block: Python forgets one that comes while it forks a process. Those that are forked
    meanwhile do not hear of any: they end with the one that started them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    earlier = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
        if came:
            signal.raise_signal(signal.SIGINT)


def end_with_launcher(seconds: float = 1.0) -> None:
    """
    Ends this process, by SIGTERM, within so many seconds of the end of the one that started it. A launcher that is
    killed cannot end its workers: they would train on, unseen, and hold the cache they build.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-launcher", daemon=True).start()


def tell_launcher(message: str) -> None:
    """Why this process fails: what started several repeats it in its last words, which otherwise bury it."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
        content = {"message": {"message": message, "extraInfo": {"timestamp": int(time.time())}}}  # torchelastic's form
        Path(file).write_text(json.dumps(content), encoding="utf-8")


def lock_holder(path: str | Path) -> int | None:
    """The process that holds a `flock` on a file, where the system lists locks (Linux)."""
    locks = Path("/proc/locks")
    if not locks.exists():
        return None
    inode = str(Path(path).stat().st_ino)
    for line in locks.read_text(encoding="utf-8").splitlines():
        fields = line.split()  # number, kind, …, process, device:inode, …
        if "->" not in fields and fields[1] == "FLOCK" and fields[5].split(":")[-1] == inode:
            return int(fields[4])
    return None


def take_lock(lock: FileLock, doing: str, instead: str = "") -> AbstractContextManager:
    """
    Takes a lock at once and returns a context that releases it, or raises `ValueError`: another process is `doing`
    something, and `instead` of waiting for it, which ends the message, there may be another way.
    """
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        holder = lock_holder(lock.lock_file)
        process = f" (process {holder})" if holder else ""
        raise ValueError(f"another run{process} is {doing}: wait until it is done, or end it{instead}") from None
