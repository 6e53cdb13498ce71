"""The machine: what a figure was measured on, and how a training process uses its memory."""

import ctypes
import os
import platform
import re
from pathlib import Path


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpu_info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """
    Lets this process keep the memory that tensors free.

    By default glibc returns each big block to the system at once, and every new tensor pays for its pages again: a
    fifth of a float32 training step. Does nothing where the C library has no `mallopt`.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
