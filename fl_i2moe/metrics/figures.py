"""Figures of interaction statistics, as PNG files, and what other figures share. No pyplot, so no global state."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from ..utils.files import write_file
from .carriers import LABEL_NOUNS, MEASURES
from .markdown import signed
from .tasks import METRICS_BY_PROBLEM, FloatArray, to_float_array

FIGURES = (
    "carriers.png",
    "experts_vs_mixture.png",
    "agreement.png",
    "confusion_matrix.png",
    "expert_weights_per_class.png",
    "expert_weights.png",
)
"""All that [`save_statistics_figures`] may draw, the most telling first."""

# Okabe and Ito's palette and, from the fifth modality on, two dark colours of Paul Tol's: distinguishable with every
# common colour vision deficiency.
_ROLE_COLORS = {"synergy": "#D55E00", "redundancy": "#009E73", "dense": "#666666"}
_UNIQUENESS_COLORS = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")
_INK, _MUTED, _PALE = "#222222", "#666666", "#888888"
_RIGHT, _WRONG = "#0072B2", "#D55E00"
_HEAT = LinearSegmentedColormap.from_list("heat", ["#F4F7FA", "#3B8BC2"])  # black numbers stay readable on all of it

_MOST_CLASSES, _FEWER_CLASSES = 50, 30
"""A confusion matrix shows so many at most; of more, the latter number of those with most errors."""
_CONFUSION_SIZES = ((12, 0.62, 9, 9), (25, 0.42, 8, 9), (_MOST_CLASSES, 0.225, 5, 7))
"""Up to so many classes: inches of a cell, and the sizes of its number and of the names."""
_METRICS = {
    "multi_label_classification": ("micro_f1", "macro_f1", "mAP"),
    "single_label_classification": ("accuracy", "macro_f1", "auroc"),
    "regression": ("mae", "rmse", "pearson"),
}
_METRIC_TITLES = {
    "ece": "expected calibration error",
    "f1": "F1",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "pearson": "Pearson correlation",
}


def expert_colors(expert_names: Sequence[str]) -> dict[str, str]:
    """One hex colour per expert, the same in every figure and explanation: synergy and redundancy have their own,
    uniqueness experts take theirs in the order of the modalities. Colours repeat from the seventh modality on."""
    uniqueness = cycle(_UNIQUENESS_COLORS)
    return {name: _ROLE_COLORS.get(name) or next(uniqueness) for name in expert_names}


def expert_title(expert_name: str) -> str:
    """`uniqueness_full_text` → `Uniqueness: full text`, `synergy` → `Synergy`."""
    role, _, modality = expert_name.partition("_")
    return f"{role.capitalize()}: {modality.replace('_', ' ')}" if modality else role.capitalize()


def metric_title(metric: str) -> str:
    """`micro_f1` → `micro-F1`."""
    return _METRIC_TITLES.get(metric, metric.replace("_", " "))


def save_statistics_figures(
    statistics: Mapping[str, Any],
    expert_weights: ArrayLike | torch.Tensor,
    output_dir: str | Path,
    confusion: Mapping[str, Mapping[str, int]] | None = None,
) -> list[Path]:
    """
    Draws the result of `compute_statistics`, of which the violins show the weights (N, E) of every sample; and the
    confusion matrix that [`~fl_i2moe.metrics.classes.confusion`] gives, where there is one.

    Returns:
        The files written, of `FIGURES`: `carriers.png`, `experts_vs_mixture.png` (Figure 5 of the I²MoE paper),
        `agreement.png` (its Table 3), `confusion_matrix.png`, `expert_weights_per_class.png` and `expert_weights.png`
        (its Figure 4). Regression has no classes and no agreement, so three of them; a dense model has nothing to weigh
        or compare, so the confusion matrix alone. `ValueError` if the weights do not have the shape of the statistics.
    """
    weights = to_float_array(expert_weights, "expert_weights")
    expected = (statistics["num_samples"], len(statistics["expert_names"]))
    if weights.shape != expected:
        raise ValueError(f"expert_weights must have shape {expected} as in the statistics, got {weights.shape}")
    figures = {}
    if len(statistics["expert_names"]) > 1:
        if statistics.get("carriers"):  # 0.1.0 did not ask
            figures["carriers.png"] = _draw_carriers(statistics)
        figures["experts_vs_mixture.png"] = _draw_metrics(statistics)
        if statistics["agreement"] is not None:
            figures["agreement.png"] = _draw_agreement(statistics)
        if statistics["expert_weights"]["per_class"] is not None:
            figures["expert_weights_per_class.png"] = _draw_weights_per_class(statistics)
        figures["expert_weights.png"] = _draw_weights(statistics, weights)
    if confusion is not None:
        figures["confusion_matrix.png"] = _draw_confusion(confusion, statistics["label_names"])
    paths = [Path(output_dir) / name for name in FIGURES if name in figures]
    for path in paths:
        save_figure(figures[path.name], path)
    return paths


def _draw_carriers(statistics: Mapping[str, Any]) -> Figure:
    carriers, experts = statistics["carriers"], statistics["expert_names"]
    measure = MEASURES[statistics["problem_type"]][0]
    place = {name: number for number, name in enumerate(experts)}

    def lost(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [x[measure] for x in (*(entry["losses"][name] for name in experts), entry["all_experts"])]

    def largest(entry: Mapping[str, Any]) -> float:
        return max(x["value"] or 0 for x in lost(entry)[:-1])

    rows = [(name, carriers["labels"][name]) for name in statistics["label_names"]]
    noun = LABEL_NOUNS[statistics["problem_type"]]
    unit = " in nats" if measure == "log_loss" else ""
    notes = [
        f"How much the {metric_title(measure)}{unit} grows. Bold: the expert that carries the {noun}.",
        "Colour: share of the row's largest number. Pale: its 95 % interval is not above 0.",
    ]
    if len(rows) > _MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -largest(row[1]))[:_MOST_CLASSES]
        notes.insert(0, f"The {len(rows)} that lose most, of {len(statistics['label_names']):,}.")
    rows.sort(key=lambda row: (place.get(row[1]["carrier"], len(experts)), -largest(row[1])))
    if carriers["overall"]:
        rows.insert(0, ("all samples", carriers["overall"]))

    cells = [lost(entry) for _, entry in rows]
    losses = np.array([[np.nan if x["value"] is None else x["value"] for x in row] for row in cells])
    sure = np.array([[x["interval"] is not None and x["interval"][0] > 0 for x in row] for row in cells])
    scale = np.nanmax(np.where(np.isnan(losses), 0, losses), axis=1, keepdims=True)
    shades = np.divide(losses, scale, out=np.zeros(losses.shape), where=sure)
    shades[:, -1] = np.nan
    chosen = {
        kind: [(row, place[entry[kind]]) for row, (_, entry) in enumerate(rows) if entry.get(kind) in place]
        for kind in ("carrier", "planted")
    }
    figure = new_figure(2.9 + 1.1 * (len(experts) + 1), 2.0 + 0.3 * len(rows))
    axes = figure.subplots()
    draw_losses(axes, losses, shades, lambda x: signed(measure, x).lstrip("+"), chosen["carrier"], sure)
    if chosen["planted"]:
        notes.append(f"Frame: the expert that the {noun} was made for.")
        frame_cells(axes, chosen["planted"])
    axes.axvline(len(experts) - 0.5, color="white", linewidth=6)
    axes.set_yticks(range(len(rows)), [shortened_name(name) for name, _ in rows])
    expert_columns(axes, experts, "All experts")
    return titled(figure, f"What each {noun} loses without each expert", "\n".join(notes))


def draw_losses(
    axes: Axes,
    losses: FloatArray,
    shades: FloatArray,
    form: Callable[[float], str],
    carriers: Sequence[tuple[int, int]],
    sure: NDArray[np.bool_] | None = None,
) -> ScalarMappable:
    """A heat map (labels, experts) of losses, coloured by shades from 0 to 1; `carriers`, (row, column), are bold, and
    what is not `sure` pale."""
    image = axes.imshow(shades, cmap=_HEAT, aspect="auto", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(losses):
        style: dict[str, Any] = {"color": _INK if sure is None or sure[row, column] else _PALE}
        if (row, column) in carriers:
            style["weight"] = "bold"
        text = "–" if np.isnan(value) else form(value)
        axes.text(column, row, text, ha="center", va="center", fontsize=9, **style)
    hide_frame(axes)
    return image


def frame_cells(axes: Axes, cells: Sequence[tuple[int, int]]) -> None:
    """Of a heat map, (row, column)."""
    for row, column in cells:
        axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, ec=_WRONG, lw=2))


def _draw_weights(statistics: Mapping[str, Any], weights: FloatArray) -> Figure:
    names = statistics["expert_names"]
    colors = expert_colors(names)
    figure = new_figure(8, 1.5 + 0.6 * len(names))
    axes = figure.subplots()
    violins: dict[str, Any] = axes.violinplot(
        list(weights.T), range(len(names)), orientation="horizontal", widths=0.8, showextrema=False
    )
    for row, (name, body) in enumerate(zip(names, violins["bodies"], strict=True)):
        body.set(facecolor=colors[name], edgecolor=colors[name], alpha=0.55)
        described = statistics["expert_weights"]["overall"][name]
        quantiles = described["quantiles"]
        axes.hlines(row, quantiles["0.05"], quantiles["0.95"], color=_INK, linewidth=1)
        axes.hlines(row, quantiles["0.25"], quantiles["0.75"], color=_INK, linewidth=5)
        axes.plot(quantiles["0.5"], row, "o", color="white", markeredgecolor=_INK, markersize=6, zorder=3)
        _value_beside(axes, row, f"mean {described['mean']:.3f}")
    equal, label = 1 / len(names), f"equal weights (1/{len(names)})"
    axes.axvline(equal, color=_MUTED, linestyle="--", linewidth=1, zorder=0)
    axes.text(equal, 1.01, label, transform=axes.get_xaxis_transform(), ha="center", color=_MUTED)
    # Zoom in on what varies, but never so far that noise looks like a finding.
    low, high = min(weights.min(), equal), max(weights.max(), equal)
    margin = max(0.05 * (high - low), (0.2 - (high - low)) / 2)
    axes.set_xlim(max(0, low - margin), min(1, high + margin))
    _expert_rows(axes, names)
    axes.invert_yaxis()
    axes.set_xlabel("weight of the expert in a sample's prediction (a sample's weights sum to 1)")
    keep_bottom_spine(axes)
    note = "Dot: median. Thick bar: middle half of the samples. Thin line: middle 90 %. Shape: all samples."
    return titled(figure, f"How much each expert counts (n = {statistics['num_samples']:,} samples)", note)


def _draw_weights_per_class(statistics: Mapping[str, Any]) -> Figure:
    names, weights = statistics["expert_names"], statistics["expert_weights"]
    rows = [("all samples", statistics["num_samples"], weights["overall"])]
    rows += [(label, entry["num_samples"], entry["experts"]) for label, entry in weights["per_class"].items()]
    rows.sort(key=lambda row: row[1], reverse=True)  # stable: "all samples" stays first
    means = np.array([[np.nan if experts is None else experts[name]["mean"] for name in names] for *_, experts in rows])

    figure = new_figure(3.4 + 1.1 * len(names), 1.9 + 0.28 * len(rows))
    axes = figure.subplots()
    image = _draw_heat_map(axes, means, "{:.3f}", maximum=np.nanmax(means))
    axes.axhline(0.5, color="white", linewidth=5)
    axes.set_yticks(range(len(rows)), [f"{shortened_name(label)} (n = {count:,})" for label, count, _ in rows])
    expert_columns(axes, names)
    figure.colorbar(image, ax=axes, label="mean weight", shrink=min(1, 6 / len(rows) + 0.3), aspect=25)
    notes = ["Classes are ordered by number of samples"]
    if statistics["problem_type"] == "multi_label_classification":
        notes.append("a sample counts in each of its classes")
    if np.isnan(means).any():
        notes.append("–: no samples")
    return titled(figure, "Mean weight of each expert, by class of the sample", "; ".join(notes) + ".")


def _draw_metrics(statistics: Mapping[str, Any]) -> Figure:
    names, metrics = statistics["expert_names"], statistics["metrics"]
    predictors = [metrics["experts"][name] for name in names] + [metrics["mixture"]]
    colors = [*expert_colors(names).values(), _INK]
    shown = _METRICS[statistics["problem_type"]]
    figure = new_figure(10.5, 1.7 + 0.42 * len(predictors))
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, metric in zip(panels, shown, strict=True):
        values = [predictor[metric] for predictor in predictors]
        axes.barh(range(len(values)), [value or 0 for value in values], color=colors, height=0.7)
        for row, value in enumerate(values):
            _value_beside(axes, row, "undefined" if value is None else f"{value:.3f}")
        if values[-1] is not None:
            axes.axvline(values[-1], color=_INK, linestyle="--", linewidth=1)
        direction = "higher" if METRICS_BY_PROBLEM[statistics["problem_type"]][metric] else "lower"
        axes.set_xlabel(f"{metric_title(metric)} ({direction} is better)")
        keep_bottom_spine(axes)
    _expert_rows(panels[0], names, "Mixture of all")
    panels[0].invert_yaxis()
    title = f"Each expert alone against the mixture (n = {statistics['num_samples']:,} samples)"
    return titled(figure, title, "Dashed: the mixture.")


def _draw_agreement(statistics: Mapping[str, Any]) -> Figure:
    agreement, names = statistics["agreement"], statistics["expert_names"]
    per_label = agreement["per_label"]
    title = "Per sample" if per_label is None else "Per sample: all its labels must match"
    parts = [(title, "samples", agreement["per_sample"])]
    if per_label is not None:
        parts.append(("Per label: each yes or no by itself", "label decisions", per_label))
    height, width = 1.7 + 0.45 * len(names), 2.6 + 0.95 * len(names)
    figure = new_figure(4.6 + width, 0.5 + height * len(parts))
    grid = figure.subplots(len(parts), 2, width_ratios=[4.2, width], squeeze=False)
    for (table_axes, pair_axes), (title, unit, part) in zip(grid, parts, strict=True):
        _draw_agreement_table(table_axes, part, unit)
        table_axes.set_title(title, loc="left", fontsize=11)
        image = _draw_heat_map(pair_axes, 100 * np.array(part["pairwise"]), "{:.0f}", maximum=100)
        _expert_rows(pair_axes, names)
        expert_columns(pair_axes, names)
        figure.colorbar(image, ax=pair_axes, label=f"{unit} on which\ntwo experts agree (%)")
    figure.suptitle(f"Do the experts agree, and is the mixture right? (n = {statistics['num_samples']:,} samples)")
    return figure


def _draw_agreement_table(axes: Axes, part: Mapping[str, Any], unit: str) -> None:
    """The stronger a cell's colour, the larger its share."""
    for row, agree in enumerate(("agree", "disagree")):
        for column, (right, color) in enumerate((("right", _RIGHT), ("wrong", _WRONG))):
            cell = part["table"][f"{agree}_{right}"]
            alpha = 0.08 + 0.42 * cell["share"]
            axes.fill_between([column, column + 1], row, row + 1, color=color, alpha=alpha, linewidth=0)
            axes.text(column + 0.5, row + 0.42, f"{100 * cell['share']:.1f} %", ha="center", va="center", fontsize=15)
            axes.text(column + 0.5, row + 0.70, f"{cell['count']:,}", ha="center", va="center", fontsize=9)
    axes.axhline(1, color="white", linewidth=3)
    axes.axvline(1, color="white", linewidth=3)
    axes.set(xlim=(0, 2), ylim=(2, 0), xlabel=f"share and number of {part['num_decisions']:,} {unit}")
    axes.set_xticks([0.5, 1.5], ["mixture right", "mixture wrong"])
    axes.set_yticks([0.5, 1.5], ["all experts\nagree", "experts\ndisagree"])
    hide_frame(axes)


def _draw_confusion(confusion: Mapping[str, Mapping[str, int]], label_names: Sequence[str]) -> Figure:
    names, counts = _most_confused(confusion, label_names)
    is_part = len(names) < len(label_names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    if is_part:
        shares[-1, -1] = np.nan  # what is right there and what is wrong cannot be told apart
    size, number_font, font = next(x for most, *x in _CONFUSION_SIZES if len(names) <= most)
    figure = new_figure(3.4 + size * len(names), 2.9 + size * len(names))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=_HEAT, aspect="equal", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts):
        if count and np.isfinite(shares[row, column]):
            text = next(
                f"{count // unit:,}{letter}" for unit, letter in ((10**6, "M"), (1000, "k"), (1, "")) if count >= unit
            )
            axes.text(column, row, text, ha="center", va="center", fontsize=number_font)
    hide_frame(axes)
    axes.set_yticks(range(len(names)), [shortened_name(name) for name in names], fontsize=font)
    axes.set_xticks(range(len(names)), [shortened_name(name) for name in names], fontsize=font, rotation=90)
    axes.xaxis.tick_top()
    axes.set(ylabel="true class", xlabel="predicted class")
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8, aspect=25)
    note = "Numbers: samples, k thousands; a row without colour has none."
    if is_part:
        note = f"The {len(names) - 1} classes with most errors, of {len(label_names):,}. {note}"
    return titled(figure, f"What classes are taken for (n = {counts.sum():,} samples)", note)


def _most_confused(
    confusion: Mapping[str, Mapping[str, int]], label_names: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Names and counts (C, C) of the classes; of very many those with most errors, and all others as the last one."""
    cells = [(true, predicted, count) for true, row in confusion.items() for predicted, count in row.items()]
    names = list(label_names)
    if len(names) > _MOST_CLASSES:
        errors = dict.fromkeys(names, 0)
        for true, predicted, count in cells:
            if true != predicted:
                errors[true] += count
                errors[predicted] += count
        worst = set(sorted(names, key=errors.__getitem__, reverse=True)[:_FEWER_CLASSES])
        names = [name for name in names if name in worst]
    place = {name: number for number, name in enumerate(names)}
    names += ["all others"] * (len(names) < len(label_names))
    counts = np.zeros((len(names), len(names)), np.int64)
    for true, predicted, count in cells:
        counts[place.get(true, -1), place.get(predicted, -1)] += count
    return names, counts


def _draw_heat_map(axes: Axes, values: FloatArray, number: str, maximum: float) -> ScalarMappable:
    """Cells coloured from 0 to `maximum`, with their numbers on them; NaN is an empty cell with a dash."""
    image = axes.imshow(values, cmap=_HEAT, aspect="auto", vmin=0, vmax=maximum)
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else number.format(value)
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="black")
    hide_frame(axes)
    return image


def new_figure(width: float, height: float) -> Figure:
    """In inches, as every figure of the package is laid out."""
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _expert_rows(axes: Axes, names: Sequence[str], *more: str) -> None:
    axes.set_yticks(range(len(names) + len(more)), [*(shortened_name(expert_title(name)) for name in names), *more])


def save_figure(figure: Figure, path: Path) -> None:
    """As PNG or what else the name ends in, whole or not at all; the folder is made if it is missing."""
    write_file(path, figure.savefig)


def expert_columns(axes: Axes, names: Sequence[str], *more: str) -> None:
    """Names of experts above a heat map."""
    titles = [*(textwrap.fill(shortened_name(expert_title(name)), 12) for name in names), *more]
    axes.set_xticks(range(len(titles)), titles, fontsize=9)
    axes.xaxis.tick_top()


def _value_beside(axes: Axes, row: int, text: str) -> None:
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=_INK)


def shortened_name(name: str) -> str:
    """To what fits beside an axis, without dollar signs that matplotlib would read as mathematics."""
    short = name if len(name) <= 32 else name[:31].rstrip() + "…"
    return short.replace("$", r"\$")


def titled(figure: Figure, title: str, note: str, size: float = 9, color: str = _MUTED) -> Figure:
    """With a title above, and below a note of this size and colour."""
    figure.suptitle(title)
    figure.supxlabel(note, fontsize=size, color=color)
    return figure


def keep_bottom_spine(axes: Axes) -> None:
    """For rows of values."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def hide_frame(axes: Axes) -> None:
    """For a heat map or a table."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
