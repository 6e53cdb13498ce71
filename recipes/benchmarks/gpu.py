"""Everything that a GPU has to prove: first that results are right, then how fast they come."""

import argparse
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from fl_i2moe.model.fusions import FUSIONS
from fl_i2moe.training.command_line import given_path
from fl_i2moe.utils.machine import keep_freed_memory

from . import gpu_losses, gpu_results, gpu_speed
from .measuring import machine
from .other_code import authors_code, published_code
from .report import Report, Section


@dataclass(frozen=True)
class Size:
    """How much is checked and measured."""

    is_tiny: bool
    modality_counts: tuple[int, ...]
    """With which all fusions are compared."""
    mixed_counts: tuple[int, ...]
    mixed_variants: tuple[str, ...]
    """The same in mixed precision, and which `VARIANTS`."""
    check_width: int
    """Hidden size of the models that are compared."""
    num_draws: int
    """Of dropout."""
    num_calls: int
    """Of the plain loop."""
    objectives: tuple[str, ...]
    """That are trained."""
    fusions: tuple[str, ...]
    """Whose explanations are compared."""
    image_features: int
    text_features: int
    batch_size: int
    hidden_size: int
    matrix_size: int
    steps: int
    """Calls in a row whose mean is one measurement."""
    dtypes: tuple[str, ...]
    """In which steps are measured."""
    rows: int
    """Of the cache that the loader reads."""
    posters: int
    films: int
    """That are encoded; posters come again."""
    compiler: str
    """Backend of torch.compile."""


SIZES = {
    "full": Size(
        is_tiny=False,
        modality_counts=(2, 3, 4),
        mixed_counts=(2,),
        mixed_variants=tuple(gpu_losses.VARIANTS),
        check_width=64,
        num_draws=200,
        num_calls=32,
        objectives=("published", "specialised"),
        fusions=tuple(FUSIONS),
        image_features=197,
        text_features=256,
        batch_size=32,
        hidden_size=256,
        matrix_size=8192,
        steps=4,
        dtypes=("bf16", "fp16", "float32"),
        rows=768,
        posters=256,
        films=4096,
        compiler="inductor",
    ),
    "tiny": Size(
        is_tiny=True,
        modality_counts=(2,),
        mixed_counts=(),
        mixed_variants=("pooled",),
        check_width=16,
        num_draws=5,
        num_calls=4,
        objectives=("specialised",),
        fusions=("early",),
        image_features=20,
        text_features=24,
        batch_size=4,
        hidden_size=16,
        matrix_size=64,
        steps=1,
        dtypes=("bf16",),
        rows=16,
        posters=4,
        films=8,
        compiler="eager",
    ),
}

SECTIONS = [
    Section("losses and gradients against the CPU's", 0.7, gpu_losses.losses),
    Section("mixed precision and Adam", 0.5, gpu_losses.mixed_precision),
    Section("training, stopped and resumed", 0.8, gpu_results.training),
    Section("explanations and games", 0.6, gpu_results.explanations),
    Section("training step", 1.5, gpu_speed.steps),
    Section("loader beside the step", 0.7, gpu_speed.loading),
    Section("encoding", 1.0, gpu_speed.encoding),
    Section("explaining", 0.6, gpu_speed.explaining),
    Section("compiled, and as one graph", 1.3, gpu_speed.compiled),
]
"""In the order in which they run; their minutes are at most the default of --max_minutes."""


@dataclass
class Bench:
    """What sections share."""

    args: argparse.Namespace
    size: Size
    device: torch.device
    folder: Path
    accelerator: Accelerator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: on a CPU in seconds, to try the command")
    parser.add_argument("--max_minutes", type=_minutes, default=8.0, help="sections that do not fit are skipped (8)")
    numbers = range(1, len(SECTIONS) + 1)
    listed = "; ".join(f"{number} {section.name}" for number, section in zip(numbers, SECTIONS, strict=True))
    parser.add_argument("--sections", nargs="+", type=int, choices=numbers, metavar="NUMBER", help=f"{listed} (all)")
    parser.add_argument("--output", type=_file, default=Path("gpu_benchmark.json"), help="what was found, as JSON")
    parser.add_argument("--published_code", type=published_code, help="a checkout of github.com/Raina-Xin/I2MoE")
    parser.add_argument("--authors_code", type=authors_code, help="a checkout of github.com/dut0817/FL-I2MoE_Decor")


def _device(text: str) -> torch.device:
    if text not in ("cuda", "cpu"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cuda nor cpu (CUDA_VISIBLE_DEVICES chooses a GPU)")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"PyTorch {torch.__version__} sees no GPU here; try with --device cpu")
    return torch.device(text)


def _file(text: str) -> Path:
    path = given_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: give a file, such as {path / 'gpu.json'}")
    if above := [folder for folder in path.absolute().parents if folder.exists() and not folder.is_dir()]:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {above[0]} is a file")
    return path


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of minutes")
    return minutes


def run(args: argparse.Namespace) -> None:
    """Whether a GPU gives the CPU's results, then how fast; exits with 1 where a check fails."""
    # products are deterministic with it; it is also what PyTorch takes on Hopper
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory()
    head = {"machine": machine(), "device": str(args.device), "size": args.size, "torch": torch.__version__}
    wanted = args.sections or range(1, len(SECTIONS) + 1)
    with tempfile.TemporaryDirectory() as folder:
        # on a GPU in fp16, which has most to keep where training stops; a process has one, and whoever is first decides
        on_gpu = args.device.type == "cuda"
        precision = "fp16" if on_gpu else "no"
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision, step_scheduler_with_optimizer=False)
        bench = Bench(args, SIZES[args.size], args.device, Path(folder), accelerator)
        report = Report(args.output, head, args.max_minutes, torch.cuda.empty_cache)
        try:
            report.write()
        except OSError as error:
            raise SystemExit(f"--output {args.output} cannot be written ({error}): give another file.") from error
        for number in wanted:
            report.run(SECTIONS[number - 1], bench)
    counts = report.counts()
    print(f"\n{report.minutes:.1f} minutes; " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    print(f"Everything is in {args.output}.")
    if counts["failed"]:
        raise SystemExit(1)
