"""What a decomposition says: its file, its table, and a stacked bar for each label."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ...metrics import markdown
from ...metrics.figures import expert_colors, keep_bottom_spine, new_figure, shortened_name
from ...training.runs import Run
from ...utils.checked_json import read_json

INFORMATION_FOLDER = "information"
"""In the folder of a training run."""
INFORMATION_FILE = "information.json"
INFORMATION_FIGURE = "information.png"
MOST_BARS = 60
"""Of more labels, those with most information are drawn."""

_PART = {"value": float, "interval": [float]}
_ROW = {
    "entropy?": float,
    "alone": {str: _PART},
    "additive": _PART,
    "together": _PART,
    "unique": {str: _PART},
    "redundant": _PART,
    "synergistic": _PART,
}
INFORMATION = {
    "unit": "bits",
    "problem_type": str,
    "modalities": [str],
    "samples": {"test": int, str: int},
    "seeds": [int],
    "features": str,
    "settings": dict,
    "best_epochs": {str: [int]},
    "labels": {str: _ROW},
    "overall": _ROW,
}


def read_information(file: Path) -> dict[str, Any]:
    """
    The content of an `information.json`:

    - `labels` (name → row) and `overall`, all labels together: of several labels the sum of theirs, of classes what is
      told of which it is. A row has the `entropy` of the label, in bits, which numbers have not, and parts with `value`
      and `interval` (95 %): `alone` and `unique`, by modality, `additive`, `together`, `redundant`, `synergistic`.
      Unique, redundant and synergistic parts sum to `together`
    - `best_epochs`: model → the epoch that each label took
    - `features`: digest of the key of the features

    Raises:
        ValueError: the file is damaged or was changed; names it and the key.
    """
    return read_json(file, INFORMATION)


def find_information(run: Run) -> Path | None:
    """The folder of a training run's decomposition; `None` where there is none, or it is of other features."""
    file = run.folder / INFORMATION_FOLDER / INFORMATION_FILE
    if not file.is_file() or read_information(file)["features"] != run.settings.get("features"):
        return None
    return file.parent


def information_table(information: Mapping[str, Any]) -> Markup:
    """In Markdown."""
    header, rows = _cells(information)
    return markdown.table(header, rows)


def print_information(information: Mapping[str, Any], console: Console) -> None:
    """The table, and what it does not say by itself."""
    header, rows = _cells(information)
    table = Table(title=_title(information), box=SIMPLE, padding=(0, 1))
    for number, name in enumerate(header):
        lines = [x.split(" [", 1) for x in (row[number] for row in rows)] if number else [[row[0]] for row in rows]
        widest = max(len(line) for cell in lines for line in cell) + bool(number)
        table.add_column(
            name.replace(" ", "\n", 1) if number else name, justify="right" if number else "left", min_width=widest
        )
    for name, *cells in rows:
        table.add_row(name, *(cell.replace(" [", "\n[") for cell in cells))
    console.print(table)
    for note in notes(information):
        console.print(note)


def notes(information: Mapping[str, Any]) -> list[str]:
    """How to read the numbers, as sentences."""
    texts = [
        "Alone, together: prior entropy less held-out log loss. Together = unique + redundant + synergistic, which is "
        "what no sum of the modalities' evidence tells. In brackets 95 % intervals over test samples, validation "
        "samples and seeds.",
    ]
    if information["problem_type"] == "single_label_classification":
        texts.append("A class stands against the rest; overall is which class it is, not the sum.")
    if information["problem_type"] == "regression":
        texts.append("Numbers: ½ log₂ of the variance before and after, errors taken as normal.")
    if any(part["value"] < 0 for row in _rows(information).values() for part in _parts(row).values()):
        texts.append(
            "Below 0: unique, the modality made predictions worse; redundant, the modalities tell more together than "
            "the sum of each alone; synergistic, the model of everything predicted worse than the additive one. "
            "Where the interval holds 0, it is no finding."
        )
    return texts


def draw_information(information: Mapping[str, Any]) -> Figure:
    """A stacked bar for each label, the most told first; parts below 0 to the left, and a dot at what they sum to."""
    modalities = information["modalities"]
    rows = dict(sorted(information["labels"].items(), key=lambda item: -item[1]["together"]["value"]))
    is_part = len(rows) > MOST_BARS
    rows = dict(list(rows.items())[:MOST_BARS])
    colors = expert_colors([*(f"uniqueness_{name}" for name in modalities), "redundancy", "synergy"])
    parts = {name: [part["value"] for part in _parts(row).values()] for name, row in rows.items()}
    titles = [*(f"unique: {shortened_name(name)}" for name in modalities), "redundant", "synergistic"]
    values = np.array(list(parts.values()))  # (rows, parts)
    figure = new_figure(1280 / 130, 1.9 + 0.27 * len(rows))
    axes = figure.subplots()
    starts = {sign: np.zeros(len(rows)) for sign in (1, -1)}
    places = np.arange(len(rows))
    for title, color, column in zip(titles, colors.values(), values.T, strict=True):
        for sign, start in starts.items():
            widths = np.where(np.sign(column) == sign, column, 0)
            label = title if sign > 0 else None
            axes.barh(places, widths, 0.72, start, color=color, label=label, alpha=1 if sign > 0 else 0.55)
            starts[sign] = start + widths
    together = np.array([row["together"]["value"] for row in rows.values()])
    ends = np.array([row["together"]["interval"] for row in rows.values()])
    axes.hlines(places, *ends.T, color="#222222", linewidth=1)
    axes.plot(together, places, "o", color="white", markeredgecolor="#222222", markersize=5, label="together (95 %)")
    if all("entropy" in row for row in rows.values()):
        entropies = [row["entropy"] for row in rows.values()]
        axes.plot(entropies, places, "|", color="#666666", markersize=10, label="entropy of the label")
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(places, [shortened_name(name) for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    only = f"; the {MOST_BARS} labels with most bits" * is_part
    axes.set_xlabel(f"bits of the test split's labels that are told (paler, left of 0: parts below 0){only}")
    axes.use_sticky_edges = False
    axes.margins(x=0.02)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    keep_bottom_spine(axes)
    figure.suptitle(_title(information))
    return figure


def _title(information: Mapping[str, Any]) -> str:
    count = len(information["seeds"])
    return (
        f"What tells each label, in bits (n = {information['samples']['test']:,} test samples, {count} "
        f"seed{'s' if count > 1 else ''})"
    )


def _parts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Those that sum to what is told together."""
    return {**row["unique"], "redundant": row["redundant"], "synergistic": row["synergistic"]}


def _rows(information: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a table, by what they are called."""
    labels, overall = information["labels"], information["overall"]
    if information["problem_type"] == "single_label_classification":
        return {**labels, "overall": overall}
    if len(labels) == 1:
        return dict(labels)
    return {**labels, "sum of all": overall, "mean of all": _scaled(overall, 1 / len(labels))}


def _scaled(part: Any, factor: float) -> Any:
    if isinstance(part, dict):
        return {name: _scaled(x, factor) for name, x in part.items()}
    return [x * factor for x in part] if isinstance(part, list) else part * factor


def _cells(information: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    modalities = information["modalities"]
    header = ["label", *(f"alone {name}" for name in modalities), "together"]
    header += [*(f"unique {name}" for name in modalities), "redundant", "synergistic"]
    rows = []
    for name, row in _rows(information).items():
        parts = [*row["alone"].values(), row["together"], *_parts(row).values()]
        rows.append([name, *(markdown.estimate(x["value"], None, x["interval"], _number) for x in parts)])
    return header, rows


def _number(bits: float) -> str:
    return f"{round(bits, 2) + 0.0:.2f}".replace("-", "−")  # no "−0.00"
