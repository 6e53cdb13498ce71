"""What a finished training prints: metrics, which expert carries each label, and where everything lies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ..metrics.carrier_table import carrier_table, carriers_in_words, what
from ..metrics.figures import FIGURES
from ..metrics.markdown import spread
from .arguments import TrainingArguments
from .predictions import PREDICTIONS_FILE
from .runs import STATISTICS_FILE

FEW_SAMPLES = 100
"""For the choice of a temperature and thresholds; a user is told."""
WIDTH, MOST_ROWS = 100, 40


def report(console: Console, results: Mapping[str, Any], statistics: Mapping[str, Any], output_dir: Path) -> None:
    """Prints `results.json` and the statistics of the best seed, both as `fit` wrote them into the folder."""
    seeds = results["seeds"]
    title = f"Test split, {results['samples']['test']:,} samples; shares in per cent"
    table = Table(title=title + (f", mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else ""))
    table.add_column("metric")
    for split in ("test", "validation"):
        table.add_column(split, justify="right")
    for name, test in results["test"].items():
        table.add_row(name, spread(name, test), spread(name, results["validation"][name]))
    own = results.get("own_thresholds", {"test": {}})
    for name, test in own["test"].items():
        table.add_row(f"{name}, own thresholds", spread(name, test), spread(name, own["validation"][name]))
    console.print(table)
    if "calibration" in results and (count := results["samples"]["validation"]) < FEW_SAMPLES:
        console.print(f"Temperature and thresholds come from {count} validation samples: with so few they are rough.")
    best = f"seed {results['best_seed']} (best validation {results['metric']})"
    if statistics.get("carriers"):  # a dense model has none, nor has a seed that an earlier version finished
        _print_carriers(console, statistics, f", best seed {results['best_seed']}" if len(seeds) > 1 else "")
    console.print(f"The model of {best} and its statistics:")
    names = ["config.json", "model.safetensors", "results.json", STATISTICS_FILE, PREDICTIONS_FILE]
    for path in [*(output_dir / name for name in names), *(output_dir / "figures" / name for name in FIGURES)]:
        if path.is_file():  # of a seed that an earlier version finished there are no predictions
            console.print(f"  {path}")
    console.print(f'Load it with AutoModel.from_pretrained("{output_dir}") after `import fl_i2moe`.')


def _print_carriers(console: Console, statistics: Mapping[str, Any], whose: str) -> None:
    """In at most 100 columns; of very many labels, the first ones."""
    header, rows = carrier_table(statistics)
    hidden = len(rows) - MOST_ROWS
    rows = [["".join(x if x.isprintable() else " " for x in cell) for cell in row] for row in rows[:MOST_ROWS]]
    if not console.is_terminal:  # whose width is not known
        console.width = WIDTH
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    experts, numbers = widths[1:-2], widths[-2:]
    left = min(console.width, WIDTH) - sum(numbers) - 2 * len(header)  # between columns
    longest = next((x for x in range(max(widths), 11, -1) if sum(min(x, y) for y in widths[:-2]) <= left), 11)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    label_width = max(left - sum(min(longest, x) for x in experts), 8)
    table.add_column(header[0], no_wrap=True, overflow="ellipsis", max_width=label_width)
    for name in header[1:-2]:
        table.add_column(name, max_width=longest)  # in two lines: "Uniqueness:" says nothing without the modality
    for name, width in zip(header[-2:], numbers, strict=True):
        table.add_column(name, no_wrap=True, justify="right", min_width=width)
    for row in rows:
        table.add_row(*row)
    console.print(f"What each {what(statistics)} loses without the expert that carries it (test split{whose}):")
    console.print(table)
    if hidden > 0:
        console.print(f"{hidden:,} more are in {STATISTICS_FILE}.")
    console.print("Without it: it is replaced by its mean over the split. In brackets 95 % intervals; carried by none")
    console.print("where no expert's loss has an interval above 0.")
    console.print(carriers_in_words(statistics))


def warning(seed: int, run: Mapping[str, Any], training: TrainingArguments) -> str | None:
    """What a user should be told where a seed's validation log loss is worse than what the class frequencies of the
    training split have; `run` is its part of `results.json`."""
    constant = run.get("log_loss_of_frequencies", {}).get("validation")
    if constant is None or "calibration" not in run or training.class_weights != "none":  # they bias it on purpose
        return None
    before, after = (run["calibration"]["validation"][when]["log_loss"] for when in ("before", "after"))
    told = (
        f"Seed {seed}: the validation log loss is {before:.3f} as trained and {after:.3f} calibrated; predicting the "
        f"class frequencies of the training split for every sample has {constant:.3f}"
    )
    if after > constant:
        return f"{told}: a constant prediction does better."
    if before > constant:
        return f"{told}: without the temperature a constant prediction does better, the model is too sure of itself."
    return None
