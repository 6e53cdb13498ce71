"""Times that can be compared: what is measured takes turns, and is quoted as a median with its extremes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fl_i2moe.utils.machine import cpu_model, usable_cores

clock: Callable[[], float] = time.perf_counter


def machine() -> str:
    """CPU model, cores, GPU if any, and the versions that matter."""
    parts = [cpu_model(), f"{usable_cores()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__} with {torch.get_num_threads()} threads"])


def use_processor_time() -> None:
    """One thread, and the time that the processor gave it: what other work on the machine takes does not count."""
    global clock
    torch.set_num_threads(1)
    clock = time.process_time


def take_turns(tasks: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every task and repetition, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            start = clock()
            task()
            if repetition:
                seconds[name].append(clock() - start)
    return seconds


def spread(values: list[float], unit: str = "", digits: int = 1) -> str:
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} … {shown[2]}){unit}"


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Of neighbours in time."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]
