"""Speed and memory, as ratios taken side by side in one run.

    python recipes/benchmark.py reading
    python recipes/benchmark.py memory
    python recipes/benchmark.py train_step
    python recipes/benchmark.py interactions
    python recipes/benchmark.py encoding --data_dir <MM-IMDb folder>      # default: the built-in sample
    python recipes/benchmark.py gpu --published_code <checkout> --authors_code <checkout>

Every figure is the median of `--repetitions` with its smallest and largest value; what is compared takes turns, so that
a busy machine slows all of it. A further benchmark is a function in benchmarks/ that prints its figures, and an entry
in BENCHMARKS.
"""

import argparse
from collections.abc import Callable

from benchmarks import features, gpu, interactions, train_step
from benchmarks.measuring import machine, use_processor_time
from datasets import disable_progress_bars

BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None]]] = {
    "encoding": (features.encoding, features.add_encoding_arguments),
    "reading": (features.reading, features.add_reading_arguments),
    "memory": (features.memory, features.add_memory_arguments),
    "train_step": (train_step.run, train_step.add_arguments),
    "interactions": (interactions.run, interactions.add_arguments),
    "gpu": (gpu.run, gpu.add_arguments),
}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, (run, add_arguments) in BENCHMARKS.items():
        command = commands.add_parser(name, description=run.__doc__, help=run.__doc__)
        command.add_argument("--repetitions", type=_count, default=5, help="whose median is told (5)")
        command.add_argument(
            "--processor_time", action="store_true", help="of one thread: for a machine that other work shares"
        )
        add_arguments(command)
    args = parser.parse_args()
    disable_progress_bars()
    if args.processor_time:
        use_processor_time()
    print(f"machine: {machine()}")
    BENCHMARKS[args.benchmark][0](args)


if __name__ == "__main__":
    main()
