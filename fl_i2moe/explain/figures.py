"""Figures of explanations: one sample (the FL-I²MoE paper's Figure 5) and a whole run (its Figures 3 and 4, Table 1).

`Figure` objects only, no pyplot, no global state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from ..figures import expert_colors, expert_title
from ..metrics import METRICS_BY_PROBLEM, default_metric
from .explanation import MIXTURE, Explanation, Pair
from .geometry import Modality
from .report import MIXTURE_COLOR, end_name, faded, score_text, signed

_INK, _MUTED, _HEAT = "#1c1c1e", "#58585e", "#E65C00"
_HEAT_ALPHA = 0.78
_DPI = 130
_MAX_LINES = 50
_MAX_RUN = 24
"""Characters that are never broken; longer runs are cut into such pieces."""

_METHODS = {
    "grad_attnroll": ("Grad×AttnRoll", "#D55E00", "o", "-"),
    "attnroll": ("AttnRoll", "#0072B2", "s", "--"),
    "ig": ("Integrated gradients", "#009E73", "^", "-."),
    "random": ("Random", "#666666", "x", ":"),
}
_METRIC_TITLES = {
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "subset_accuracy": "subset accuracy",
}
_TOP_COLORS = ("#08519C", "#4292C6", "#9ECAE1")
_TOP_HATCHES = ("", "///", "...")


def metric_title(name: str) -> str:
    return _METRIC_TITLES.get(name, name)


# ---- one sample ------------------------------------------------------------------------------------------------------


def draw_explanation(explanation: Explanation, top: int = 5) -> Figure:
    """
    One column per expert: the picture under its heat map, the text with shaded tokens. Below, for each expert whose
    pairs were scored, the `top` pairs as links between patch and token, with score ± standard error.
    """
    columns = list(explanation.importance)
    boards = list(explanation.pair_tables)
    gap, margin = 14.0, 16.0
    width = max(2 * margin + len(columns) * 178 + (len(columns) - 1) * gap, 640 if boards else 400)
    column = (width - 2 * margin - (len(columns) - 1) * gap) / len(columns)
    cards = [_Stack.of_card(explanation, name, column) for name in columns]
    half = (width - 2 * margin - gap * (len(boards) - 1)) / max(1, len(boards))
    drawn = [_Board(explanation, name, half, top) for name in boards]
    header, card_header = 44.0, 34.0
    cards_height = card_header + max(card.height for card in cards)
    boards_height = max((board.height for board in drawn), default=0.0)
    height = margin + header + cards_height + (boards_height + 22 if drawn else 0) + margin

    sheet = _Sheet(width, height)
    sheet.text(margin, margin + 8, f"Why “{explanation.target_name}” for {explanation.sample_id}?", 13, weight="bold")
    facts = [f"mixture logit {signed(explanation.logits[explanation.target])}"]
    if (probabilities := explanation.probabilities) is not None:
        facts.append(f"probability {probabilities[explanation.target]:.3f}")
    if explanation.true_classes:
        facts.append("true: " + ", ".join(explanation.label_names[index] for index in explanation.true_classes))
    facts.append(_METHODS.get(explanation.method, (explanation.method,))[0] + ", scaled within each panel")
    sheet.text(margin, margin + 26, _fit("  ·  ".join(facts), 8.5, width - 2 * margin), 8.5, color=_MUTED)
    colors = expert_colors(explanation.expert_names)
    for number, (name, card) in enumerate(zip(columns, cards, strict=True)):
        left, start = margin + number * (column + gap), margin + header
        color = colors.get(name, MIXTURE_COLOR)
        sheet.axes.add_patch(Rectangle((left, start), column, 3, color=color, linewidth=0))
        title, facts = "Mixture", "importance averaged by weight"
        if name != MIXTURE:
            row = explanation.expert_names.index(name)
            logit = explanation.expert_logits[row, explanation.target]
            title = expert_title(name)
            facts = f"weight {explanation.expert_weights[row]:.3f}, logit {signed(logit)}"
        sheet.text(left, start + 13, _fit(title, 10, column), 10, weight="bold")
        sheet.text(left, start + 25, _fit(facts, 8, column), 8, color=_MUTED)
        card.draw(sheet, left, start + card_header)
    for number, board in enumerate(drawn):
        board.draw(sheet, margin + number * (half + gap), margin + header + cards_height + 22, colors[board.expert])
    return sheet.figure


class _Sheet:
    """A page measured in points from its top left corner."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=_DPI)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Left-aligned, `y` at the middle of its line."""
        style = {"color": _INK, "va": "center_baseline", "parse_math": False, **style}
        self.axes.text(x, y, _drawable(text), fontsize=size, **style)

    def frame(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        self.axes.add_patch(Rectangle((x, y), width, height, fill=False, **style))

    def badge(self, x: float, y: float, text: str, size: float = 6.5) -> None:
        """White on black, `x` and `y` its upper left corner."""
        width, height = 0.45 * size + 0.68 * size * len(text), 1.3 * size
        self.axes.add_patch(Rectangle((x, y), width, height, color="#111111", linewidth=0, zorder=4))
        style = {"color": "white", "weight": "bold", "ha": "center", "zorder": 5}
        self.text(x + width / 2, y + 0.52 * height, text, size, **style)


@dataclass(frozen=True)
class _Run:
    """Characters of one token, or of none, on one line."""

    text: str
    indexes: tuple[int, ...]
    x: float
    line: int
    width: float


class _Flow:
    """A text set in lines of a given width."""

    def __init__(self, pieces: Sequence[tuple[str, tuple[int, ...]]], width: float, size: float, leading: float):
        self.size, self.leading = size, leading
        self.runs: list[_Run] = []
        self.cut = False
        x, line = 0.0, 0
        for space, word in _split_words(pieces):
            advance = _width(" ", size) if space and x else 0.0
            widths = [_width(text, size) for text, _ in word]
            if x and x + advance + sum(widths) > width:
                x, line, advance = 0.0, line + 1, 0.0
            x += advance
            for (text, indexes), run_width in zip(word, widths, strict=True):
                if x and x + run_width > width:
                    x, line = 0.0, line + 1
                self.runs.append(_Run(text, indexes, x, line, run_width))
                x += run_width
        if line >= _MAX_LINES:
            self.runs = [run for run in self.runs if run.line < _MAX_LINES - 1]
            self.runs.append(_Run("… (the page has the whole text)", (), 0.0, _MAX_LINES - 1, 0.0))
        self.height = leading * (1 + max((run.line for run in self.runs), default=0)) + 4

    def draw(
        self,
        sheet: _Sheet,
        left: float,
        top: float,
        scores: np.ndarray | None = None,
        ranks: Mapping[int, str] | None = None,
        color: str = _INK,
    ) -> dict[int, tuple[float, float]]:
        """Returns where each token begins, at the upper edge of its line."""
        anchors = {}
        ranks = ranks or {}
        for run in self.runs:
            x, y = left + run.x, top + (run.line + 0.5) * self.leading
            low, height = y - 0.55 * self.size, 1.15 * self.size
            if run.indexes and scores is not None:
                score = float(max(scores[index] for index in run.indexes))
                box = Rectangle((x, low), run.width, height, color=_HEAT, alpha=_HEAT_ALPHA * score, linewidth=0)
                sheet.axes.add_patch(box)
            rank = next((ranks[index] for index in run.indexes if index in ranks), None)
            if rank is not None:
                sheet.axes.add_patch(Rectangle((x, low + height), run.width, 1.1, color=color, linewidth=0))
            sheet.text(x, y, run.text, self.size)
            for index in run.indexes:
                anchors.setdefault(index, (x, y - 0.5 * self.leading + 1))
        return anchors


class _Stack:
    """The modalities of a sample below one another: pictures under their heat map, texts with shaded tokens."""

    def __init__(
        self,
        parts: list[tuple[Modality, "_Flow | None", tuple[float, float], np.ndarray, dict[int, str]]],
        height: float,
    ):
        self.parts, self.height = parts, height

    @classmethod
    def of_card(cls, explanation: Explanation, expert: str, width: float) -> "_Stack":
        parts, height = [], 0.0
        for name, scores in explanation.importance[expert].items():
            modality = explanation.modalities[name]
            flow, size = _layout(modality, width, 7.6, 11.5)
            best = explanation.top_features(expert, name, 3)
            ranks = {feature.index: str(rank) for rank, (feature, _) in enumerate(best, 1)}
            parts.append((modality, flow, size, scores, ranks))
            height += size[1] + 10
        return cls(parts, height)

    def draw(self, sheet: _Sheet, left: float, top: float) -> None:
        for modality, flow, (width, height), scores, ranks in self.parts:
            if flow is not None:
                flow.draw(sheet, left, top, scores, ranks)
            else:
                place = _Picture(modality, left, top, width, height)
                place.draw(sheet, gray=True)
                for index in modality.candidates:
                    place.fill(sheet, index, float(scores[index]))
                for index, rank in ranks.items():
                    place.outline(sheet, index, "white", rank)
            top += height + 10


class _Picture:
    """A picture in a place on the sheet."""

    def __init__(self, modality: Modality, left: float, top: float, width: float, height: float):
        self.modality, self.left, self.top, self.width, self.height = modality, left, top, width, height
        self.scale = width / modality.size[0]

    def box(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, width, height on the sheet."""
        left, top, right, bottom = (side * self.scale for side in self.modality.box(index))
        return self.left + left, self.top + top, right - left, bottom - top

    def draw(self, sheet: _Sheet, gray: bool) -> None:
        extent = (self.left, self.left + self.width, self.top + self.height, self.top)
        picture = self.modality.picture(900)
        if picture is None:
            sheet.axes.add_patch(
                Rectangle((self.left, self.top), self.width, self.height, color="#e8e8e4", linewidth=0)
            )
            middle = self.left + self.width / 2, self.top + self.height / 2
            sheet.text(*middle, "picture not at hand", 8, color=_MUTED, ha="center")
            return
        pixels = np.asarray(faded(picture).convert("RGB") if gray else picture)
        limits = sheet.axes.get_xlim(), sheet.axes.get_ylim()
        sheet.axes.imshow(pixels, extent=extent, aspect="auto", zorder=0)
        sheet.axes.set(xlim=limits[0], ylim=limits[1])  # an image moves them

    def fill(self, sheet: _Sheet, index: int, score: float) -> None:
        left, top, width, height = self.box(index)
        patch = Rectangle((left, top), width, height, color=_HEAT, alpha=_HEAT_ALPHA * score, linewidth=0)
        sheet.axes.add_patch(patch)

    def outline(self, sheet: _Sheet, index: int, color: str, rank: str) -> None:
        left, top, width, height = self.box(index)
        sheet.frame(left, top, width, height, edgecolor="#111111", linewidth=2.2, zorder=3)
        sheet.frame(left, top, width, height, edgecolor=color, linewidth=1, zorder=3)
        sheet.badge(left, top, rank)


class _Board:
    """An expert's strongest pairs: pictures to the left, texts and the scores to the right, links between them."""

    def __init__(self, explanation: Explanation, expert: str, width: float, top: int):
        self.explanation, self.expert, self.width = explanation, expert, width
        self.pairs = explanation.pairs(expert, top)
        pictures = [name for name, x in explanation.modalities.items() if x.kind == "image" and x.grid]
        self.left_width = 0.36 * width if pictures else 0.0
        self.text_left = self.left_width + 26
        self.layouts = {
            name: _layout(x, self.left_width if name in pictures else width - self.text_left, 8.6, 19)
            for name, x in explanation.modalities.items()
        }
        left = sum(size[1] + 10 for flow, size in self.layouts.values() if flow is None)
        self.texts = sum(size[1] + 10 for flow, size in self.layouts.values() if flow is not None)
        self.height = 22 + max(left, self.texts + 8 + 13.5 * len(self.pairs))

    def draw(self, sheet: _Sheet, left: float, top: float, color: str) -> None:
        kinds = {"sii": "synergy, Shapley interaction index", "redundancy": "redundancy gap"}
        kind = kinds.get(self.pairs[0].kind, self.pairs[0].kind) if self.pairs else ""
        sheet.axes.add_patch(Rectangle((left, top), self.width, 2, color=color, linewidth=0))
        title = f"{expert_title(self.expert)} expert: strongest pairs ({kind} ± standard error)"
        sheet.text(left, top + 11, _fit(title, 9.5, self.width), 9.5, weight="bold")
        anchors: dict[tuple[str, int], tuple[float, float]] = {}
        places: dict[str, _Picture] = {}
        tops = {True: top + 22, False: top + 22}
        for name, (flow, (width, height)) in self.layouts.items():
            is_text = flow is not None
            ranks = self._ranks(name)
            if is_text:
                found = flow.draw(sheet, left + self.text_left, tops[True], None, ranks, color)
                anchors |= {(name, index): anchor for index, anchor in found.items()}
                for index, rank in ranks.items():
                    if index in found:
                        sheet.badge(found[index][0], found[index][1] - 3.6, rank, 5.2)
            else:
                place = places[name] = _Picture(self.explanation.modalities[name], left, tops[False], width, height)
                place.draw(sheet, gray=False)
                for index, rank in ranks.items():
                    place.outline(sheet, index, color, rank)
            tops[is_text] += height + 10
        for rank, pair in enumerate(self.pairs, 1):
            self._link(sheet, pair, rank, left + self.text_left - 7, anchors, places, color)
        for rank, pair in enumerate(self.pairs, 1):
            y = top + 30 + self.texts + 13.5 * (rank - 0.5)
            ends = sorted((pair.first, pair.second), key=lambda end: end.token is None)
            line = f"{score_text(pair)}   {' ↔ '.join(end_name(self.explanation, end) for end in ends)}"
            sheet.badge(left + self.text_left, y - 4.5, str(rank))
            sheet.text(left + self.text_left + 16, y, _fit(line, 8.5, self.width - self.text_left - 16), 8.5)

    def _ranks(self, modality: str) -> dict[int, str]:
        ranks: dict[int, list[str]] = {}
        for rank, pair in enumerate(self.pairs, 1):
            for end in (pair.first, pair.second):
                if end.modality == modality:
                    ranks.setdefault(end.index, []).append(str(rank))
        return {index: ",".join(numbers) for index, numbers in ranks.items()}

    def _link(
        self,
        sheet: _Sheet,
        pair: Pair,
        rank: int,
        gutter: float,
        anchors: Mapping[tuple[str, int], tuple[float, float]],
        places: Mapping[str, _Picture],
        color: str,
    ) -> None:
        """From the middle of the patch to the gutter, then between two lines of the text to the token."""
        points, is_patch = [], []
        for end in (pair.first, pair.second):
            if end.modality in places:
                x, y, width, height = places[end.modality].box(end.index)
                points.append((x + width / 2, y + height / 2))
            elif (end.modality, end.index) in anchors:
                points.append(anchors[end.modality, end.index])
            else:  # behind the end of a text that was cut
                return
            is_patch.append(end.modality in places)
        if not is_patch[0]:
            points.reverse()
            is_patch.reverse()
        (x1, y1), (x2, y2) = points
        lane = (rank - 1) % 3 - 1  # links to one line lie beside one another
        turn, y2 = gutter + 1.6 * lane, y2 if is_patch[1] else y2 + 1.2 * lane
        match is_patch:
            case [True, True]:
                path = [(x1, y1), (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2), (x2, y2)]
                codes = [Outline.MOVETO, *[Outline.CURVE4] * 3]
            case [True, False]:
                bend = (turn - x1) / 2
                path = [(x1, y1), (x1 + bend, y1), (turn - bend, y2), (turn, y2), (x2 + 2, y2)]
                codes = [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO]
            case _:
                path = [(x1, y1), (turn, y1), (turn, y2), (x2, y2)]
                codes = [Outline.MOVETO, *[Outline.LINETO] * 3]
        for line_color, width in (("white", 3.2), (color, 1.3)):
            line = PathPatch(Outline(path, codes), fill=False, edgecolor=line_color, linewidth=width, zorder=2.5)
            sheet.axes.add_patch(line)
        for (x, y), patch in zip(points, is_patch, strict=True):
            if patch:
                sheet.axes.plot(x, y, "o", color=color, markeredgecolor="white", markersize=5, zorder=3.5)


def _layout(
    modality: Modality, width: float, size: float, leading: float
) -> tuple["_Flow | None", tuple[float, float]]:
    """A text's lines, or None for a picture; and the width and height that it takes."""
    if modality.kind == "image" and modality.grid:
        scale = min(width / modality.size[0], 280 / modality.size[1])
        return None, (modality.size[0] * scale, modality.size[1] * scale)
    if modality.kind == "text":
        pieces = [(modality.text[piece.start : piece.end], piece.indexes) for piece in modality.pieces()]
    else:
        pieces = [part for index in modality.candidates for part in ((f" {index}", (index,)), (" ", ()))]
    flow = _Flow(pieces, width, size, leading)
    return flow, (width, flow.height)


def _split_words(
    pieces: Sequence[tuple[str, tuple[int, ...]]],
) -> list[tuple[bool, list[tuple[str, tuple[int, ...]]]]]:
    """Runs between white space, each with whether a space comes before it."""
    words: list[tuple[bool, list[tuple[str, tuple[int, ...]]]]] = []
    space = True
    for text, indexes in pieces:
        for position, part in enumerate(text.split()):
            if position or text[0].isspace():
                space = True
            if space:
                words.append((True, []))
                space = False
            for start in range(0, len(part), _MAX_RUN):
                words[-1][1].append((part[start : start + _MAX_RUN], indexes))
        if text and text[-1].isspace():
            space = True
    return words


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, _DPI)


@lru_cache(maxsize=4096)
def _width(text: str, size: float) -> float:
    """Advance in points. Between two letters, since a measure by itself leaves out spaces at the ends."""
    font = FontProperties(size=size)
    measured = (_renderer().get_text_width_height_descent(x, font, False)[0] for x in (f"x{_drawable(text)}x", "xx"))
    whole, frame = measured
    return (whole - frame) * 72 / _DPI


def _fit(text: str, size: float, width: float) -> str:
    """Shortened to the width, a little more than measured since it may be bold."""
    while len(text) > 1 and 1.12 * _width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FontProperties())).get_charmap())


def _drawable(text: str) -> str:
    """With a box for every character that the font lacks."""
    return "".join(x if ord(x) in _characters() else "▯" for x in text)


# ---- a whole run -----------------------------------------------------------------------------------------------------


def draw_faithfulness(
    results: Mapping[str, Mapping[str, Any]], metric: str | None = None, direction: str = "deletion"
) -> Figure:
    """
    The paper's Figure 3: how far a metric drops when what a method holds for important is masked.

    Above, the drop against the share of masked features, one panel per model (of a mixture, by the weight-averaged
    importance); below, its mean over the shares for every expert and method.

    Args:
        results: name of a model → result of `faithfulness`.
        metric: the task's first one if not given.
        direction: `"deletion"` or `"insertion"`.

    Raises:
        ValueError: a result lacks the direction or the metric.
    """
    names = list(results)
    first = results[names[0]]
    metric = metric or default_metric(first["problem_type"])[0]
    for name in names:
        if direction not in results[name] or metric not in results[name]["base"]:
            raise ValueError(f"The result of {name!r} has no {direction} of {metric!r}.")
    rows = [(name, expert) for name in names for expert in _experts_of(results[name])]
    figure = Figure(figsize=(1.2 + 4.6 * max(2, len(names)), 5.4 + 0.36 * len(rows)), dpi=_DPI, layout="constrained")
    curves, means = figure.subfigures(2, 1, height_ratios=[4.2, 1.2 + 0.36 * len(rows)])
    panels = np.atleast_1d(curves.subplots(1, len(names), sharey=True))
    for axes, name in zip(panels, names, strict=True):
        _draw_drops(axes, results[name], metric, direction)
        base = results[name]["base"][metric]
        axes.set_title(f"{name} ({metric_title(metric)} {_number(base)} unmasked)", fontsize=10.5, loc="left")
    masked = "masked" if direction == "deletion" else "kept"
    panels[0].set_ylabel(f"drop of {metric_title(metric)}")
    panels[-1].legend(frameon=False, fontsize=9)
    for axes in panels:
        axes.set_xlabel(f"most important features of each modality {masked} (%)")
    _draw_mean_drops(means.subplots(), results, rows, metric, direction)
    higher = METRICS_BY_PROBLEM[first["problem_type"]][metric]
    size = ", ".join(f"{name}: n = {results[name]['num_samples']:,}" for name in names)
    figure.suptitle(f"What {direction} by importance does to the prediction ({size})", fontsize=12)
    figure.supxlabel(
        f"Drop: {'metric without masking minus with' if higher else 'error with masking minus without'}. "
        "Random: mean of its draws ± one standard deviation.",
        fontsize=8.5,
        color=_MUTED,
    )
    return figure


def _experts_of(result: Mapping[str, Any]) -> list[str]:
    experts = list(result["experts"])
    return experts if len(experts) == 1 else [*experts, MIXTURE]


def _draw_drops(axes: Axes, result: Mapping[str, Any], metric: str, direction: str) -> None:
    whole = _experts_of(result)[-1]
    shares = 100 * np.array(result["shares"])
    for method, (title, color, marker, style) in _METHODS.items():
        if method not in result[direction]:
            continue
        curve = result[direction][method][whole][metric]
        drops, spread = _array(curve["drops"]), _array(curve["drops_std"])
        axes.plot(shares, drops, style, color=color, marker=marker, markersize=5, label=title)
        if np.isfinite(spread).any():
            axes.fill_between(shares, drops - spread, drops + spread, color=color, alpha=0.18, linewidth=0)
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    axes.set_xticks(shares)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_mean_drops(
    axes: Axes, results: Mapping[str, Any], rows: Sequence[tuple[str, str]], metric: str, direction: str
) -> None:
    for row, (name, expert) in enumerate(rows):
        axes.axhline(row, color="#e3e3df", linewidth=0.8, zorder=0)
        for method, (_, color, marker, _) in _METHODS.items():
            experts = results[name][direction].get(method, {})
            if expert not in experts or experts[expert][metric]["mean_drop"] is None:
                continue
            curve = experts[expert][metric]
            axes.errorbar(
                curve["mean_drop"], row, xerr=curve["mean_drop_std"], fmt=marker, color=color, markersize=6, capsize=3
            )
    titles = ["Mixture" if expert == MIXTURE else expert_title(expert) for _, expert in rows]
    several = len(results) > 1
    labels = [f"{name}: {title}" if several else title for (name, _), title in zip(rows, titles, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0, color=_MUTED, linewidth=0.8)
    axes.set_xlabel(f"mean drop of {metric_title(metric)} over the shares, by whose importance was followed")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_alignment(
    results: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str], edges: Sequence[float]
) -> Figure:
    """
    The paper's Figure 4: mean interaction score of the top pairs of every importance bin, with intervals.

    Args:
        results: expert → result of `alignment`.
        kinds: expert → what its score is called.
        edges: of the bins, as shares of a modality's features.
    """
    figure = Figure(figsize=(1 + 4.6 * len(results), 4.3), dpi=_DPI, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(results)))
    bounds = [0, *edges]
    ticks = [f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise(bounds)]
    for axes, (expert, result) in zip(panels, results.items(), strict=True):
        shares = list(result["bins"][0]["top"])
        bar = 0.8 / len(shares)
        for number, share in enumerate(shares):
            cells = [entry["top"][share] for entry in result["bins"]]
            places = np.arange(len(cells)) + (number - (len(shares) - 1) / 2) * bar
            heights = _array([cell["mean"] for cell in cells])
            ends = np.array([cell["interval"] or [np.nan, np.nan] for cell in cells], dtype=np.float64)
            color, hatch = _TOP_COLORS[number % 3], _TOP_HATCHES[number % 3]
            style = {
                "color": color,
                "edgecolor": "white",
                "hatch": hatch,
                "label": f"top {100 * float(share):g} % pairs",
            }
            axes.bar(places, np.nan_to_num(heights), bar * 0.92, **style)
            reach = np.clip(np.stack([heights - ends[:, 0], ends[:, 1] - heights]), 0, None)
            axes.errorbar(places, heights, yerr=reach, fmt="none", color=_INK, capsize=3, linewidth=1)
            for place, height in zip(places, heights, strict=True):
                if np.isnan(height):
                    axes.text(place, 0, "no pair", rotation=90, ha="center", va="bottom", fontsize=8, color=_MUTED)
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel("importance of both features, by rank")
        axes.set_ylabel(f"mean {kinds[expert]} (logits)")
        axes.set_title(f"{expert_title(expert)} expert", fontsize=10.5, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(frameon=False, fontsize=9)
    any_result = next(iter(results.values()))
    count = max(entry["num_samples"] for entry in any_result["bins"])
    figure.suptitle(f"Do important features interact more? (n = {count:,} samples)", fontsize=12)
    same = any_result["ranked_and_valued_by"] == "the same scores"
    note = f"Lines: {100 * any_result['confidence']:g} % bootstrap intervals over samples."
    if same:
        note += " The top pairs were chosen by the scores that are averaged, which lifts their mean."
    figure.supxlabel(note, fontsize=8.5, color=_MUTED)
    return figure


def draw_pair_curves(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], kinds: Mapping[str, str], metric: str
) -> Figure:
    """
    The metric as pairs are masked or kept, the highest scores first and in random order; a row for each direction.

    Args:
        results: expert → direction → result of `pair_curves`.
        kinds: expert → what its score is called.
        metric: one of the results'.
    """
    directions = list(next(iter(results.values())))
    size = (1 + 4.6 * len(results), 0.9 + 2.7 * len(directions))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(directions), len(results), squeeze=False, sharex=True, sharey="row")
    for column, (expert, by_direction) in enumerate(results.items()):
        for row, (direction, result) in enumerate(by_direction.items()):
            axes, shares, curves = panels[row, column], 100 * np.array(result["shares"]), result["metrics"][metric]
            mean, spread = _array(curves["random"]["values"]), np.nan_to_num(_array(curves["random"]["std"]))
            _, gray, marker, style = _METHODS["random"]
            axes.plot(shares, mean, style, color=gray, marker=marker, markersize=5, label="random order")
            axes.fill_between(shares, mean - spread, mean + spread, color=gray, alpha=0.18, linewidth=0)
            ranked = _array(curves["ranked"]["values"])
            axes.plot(shares, ranked, color="#D55E00", marker="o", markersize=5, label="highest scores first")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(f"pairs {'masked' if direction == 'deletion' else 'kept'} (%)")
            if row == 0:
                axes.set_title(f"{expert_title(expert)} expert, {kinds[expert]}", fontsize=10.5, loc="left")
            if column == 0:
                axes.set_ylabel(f"{metric_title(metric)}, {direction}")
    panels[0, -1].legend(frameon=False, fontsize=9)
    any_result = next(iter(next(iter(results.values())).values()))
    figure.suptitle(
        f"Do the pairs that score high carry the prediction? (n = {any_result['num_samples']:,})", fontsize=12
    )
    figure.supxlabel(
        "Both ends of a pair are zeroed or kept. Random: mean of its draws ± one standard deviation.",
        fontsize=8.5,
        color=_MUTED,
    )
    return figure


def pair_masking_rows(tables: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[list[str], list[list[str]]]:
    """
    The paper's Table 1.

    Args:
        tables: expert → result of `pair_masking_table`.
        metric: which metric.

    Returns:
        Header and rows.
    """
    header = ["Masking", *(f"{expert_title(expert)}: {metric_title(metric)}" for expert in tables)]
    parts = [table["metrics"][metric] for table in tables.values()]

    def spread(cell: Mapping[str, Any]) -> str:
        return f"{_number(cell['mean'])} ± {_number(cell['std'])}"

    def interval(cell: Mapping[str, Any]) -> str:
        if cell["interval"] is None:
            return _number(cell["value"])
        low, high = cell["interval"]
        return f"{_number(cell['value'], True)} [{_number(low, True)}, {_number(high, True)}]"

    rows = [
        ["none", *(_number(part["none"]) for part in parts)],
        ["random pairs, as many distinct features", *(spread(part["random_same_features"]) for part in parts)],
        ["random pairs, as many pairs (the paper’s)", *(spread(part["random_same_pairs"]) for part in parts)],
        ["interaction pairs", *(_number(part["ranked"]) for part in parts)],
        ["drop beyond random, as many features", *(interval(part["ranked_minus_random"]) for part in parts)],
        ["features masked per sample", *(f"{table['num_features']:.1f}" for table in tables.values())],
        [
            "features masked by as many random pairs",
            *(f"{table['num_features_same_pairs']:.1f}" for table in tables.values()),
        ],
    ]
    return header, rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _number(value: float | None, with_sign: bool = False) -> str:
    if value is None:
        return "undefined"
    return signed(value) if with_sign else f"{value:.3f}".replace("-", "−")


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
