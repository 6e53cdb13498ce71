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


def take_turns(
    tasks: dict[str, Callable[[], Any]], repetitions: int, device: torch.device | None = None, times: int = 1
) -> dict[str, list[float]]:
    """Seconds of every task and repetition, after one round to warm up; of the mean of so many `times` in a row."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            needed = seconds_of(task, device, times)
            if repetition:
                seconds[name].append(needed)
    return seconds


def seconds_of(task: Callable[[], Any], device: torch.device | None = None, times: int = 1) -> float:
    """Of one call, by the clock of a GPU where the task runs on one: calls in a row need not wait for each other."""
    if device is None or device.type != "cuda":
        start = clock()
        for _ in range(times):
            task()
        return (clock() - start) / times
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(times):
        task()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / times


def spread(values: list[float], unit: str = "", digits: int = 1) -> str:
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} … {shown[2]}){unit}"


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Of neighbours in time."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]
