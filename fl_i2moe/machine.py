"""What a figure was measured on."""

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
