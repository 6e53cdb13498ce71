"""What all recipes share: how they end, what they print, and in how many processes they run."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from datasets import disable_progress_bars
from rich.console import Console
from transformers.utils import logging as transformers_logging

from ..utils.machine import end_with_launcher, keep_freed_memory, multiplies_bfloat16, tell_launcher, usable_cores
from .arguments import TrainingArguments

INTERRUPTED = 128 + signal.SIGINT
GO_ON = "what is finished is kept; go on by the same command, with --resume if it has it"
LOGS_FOLDER = "logs"
"""Of trackers, in the output folder."""
RUN_NAMES = {
    "clearml": "task_name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "trackio": "name",
    "wandb": "name",
}
"""Tracker → the argument that names a run; the others of Accelerate have none."""
OUT_OF_MEMORY = "out of memory|can't allocate memory|not enough memory|storage size calculation overflowed"


def run_recipe(main: Callable[[], None]) -> None:
    """
    Runs a recipe; what it refuses, a disk or network that fails it, too little memory, or Ctrl-C ends the program with
    one line, which a launcher of several processes repeats at its end. What the terminal's encoding lacks is written as
    an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            _flush()
    except KeyboardInterrupt:
        print(f"\ninterrupted: {GO_ON}", file=sys.stderr)  # a progress bar may stand in the line
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        # without a file's name: what the job prints
        is_print = isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC)
        _end(f"error: {f'output cannot be written ({error}): {GO_ON}' if is_print else error}", error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error), re.IGNORECASE):
            raise
        reason = f" ({lines[0]})" if (lines := str(error).strip().splitlines()) else ""
        _end(f"error: there is not enough memory{reason}: lower --batch_size, --hidden_size or --num_threads", error)


def _flush() -> None:
    """Now, where a failure is one of the job's; at its exit, Python would report it in its own way."""
    if sys.stdout is None:  # closed by who started the job
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _end(message: str, error: Exception) -> NoReturn:
    tell_launcher(message)
    raise SystemExit(message) from error


def create_console(accelerator: Accelerator | None = None) -> Console:
    """Prints in the main process alone, each text as it is."""
    quiet = accelerator is not None and not accelerator.is_main_process
    return Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)


def silence_libraries() -> None:
    """Turns off the progress bars of transformers and datasets: recipes show their own."""
    transformers_logging.disable_progress_bar()
    disable_progress_bars()


def create_accelerator(training: TrainingArguments, output_dir: str) -> Accelerator:
    """
    Sets up this process: Accelerate, CPU threads, no progress bars of libraries; launched with others, it ends with its
    launcher. Raises `ValueError` where the tracker is unknown or not installed, or fp16 is asked for without a GPU.
    """
    silence_libraries()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        step_scheduler_with_optimizer=False,
        log_with=training.report_to,
        # each tracker's files in one folder, whatever it calls them
        project_config=ProjectConfiguration(output_dir, os.path.join(output_dir, LOGS_FOLDER)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],  # while another process writes data
    )
    if training.report_to and not accelerator.log_with:  # Accelerate only warns
        raise ValueError(f"`report_to` {training.report_to}: no such tracker is installed.")
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "fp16":  # Accelerate would compute in float32 and not say so
            raise ValueError("Mixed precision fp16 needs a GPU; use bf16 or no.")
        if accelerator.mixed_precision == "bf16" and not multiplies_bfloat16():
            accelerator.print("This CPU has no bf16 instructions: --mixed_precision bf16 is slower here than no.")
        # `accelerate launch` allows one thread unless it is told otherwise
        torch.set_num_threads(training.num_threads or max(1, usable_cores() // accelerator.num_processes))
        keep_freed_memory()
    return accelerator


def init_trackers(
    accelerator: Accelerator, training: TrainingArguments, output_dir: str | Path, settings: Mapping[str, Any]
) -> None:
    """Starts those that `report_to` names; does nothing without it."""
    if training.report_to:
        name = training.run_name or Path(output_dir).resolve().name
        names = {tracker: {argument: name} for tracker, argument in RUN_NAMES.items()}
        accelerator.init_trackers(training.tracker_project, {key: str(x) for key, x in settings.items()}, names)


def single_process() -> Accelerator:
    """For a job that is not spread over processes; raises `ValueError` where several were launched."""
    silence_libraries()
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(
            f"One process does all of this: launch with --num_processes 1, not {accelerator.num_processes}."
        )
    return accelerator
