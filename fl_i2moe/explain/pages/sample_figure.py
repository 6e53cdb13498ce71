"""
The figure of one sample, laid out like the FL-I²MoE paper's Figure 5.

`Figure` objects only, no pyplot, no global state.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from ...metrics.figures import expert_colors, expert_title
from ..attribution import MIXTURE
from ..explanation_data import ExplanationData, Pair
from ..geometry import Modality
from ..pair_scores import kind_of_expert
from .display import METHOD_NAMES, MIXTURE_COLOR, SCORE_TITLES, end_name, faded, score_text, signed
from .sheet import MUTED, Flow, Sheet, fit


def draw_explanation(explanation: ExplanationData, top: int = 5) -> Figure:
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

    sheet = Sheet(width, height)
    sheet.text(margin, margin + 8, f"Why “{explanation.target_name}” for {explanation.sample_id}?", 13, weight="bold")
    facts = [f"mixture logit {signed(explanation.logits[explanation.target])}"]
    if (probabilities := explanation.probabilities) is not None:
        facts.append(f"probability {probabilities[explanation.target]:.3f}")
    if explanation.true_classes:
        facts.append("true: " + ", ".join(explanation.label_names[index] for index in explanation.true_classes))
    facts.append(METHOD_NAMES.get(explanation.method, explanation.method) + ", scaled within each panel")
    sheet.text(margin, margin + 26, fit("  ·  ".join(facts), 8.5, width - 2 * margin), 8.5, color=MUTED)
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
        sheet.text(left, start + 13, fit(title, 10, column), 10, weight="bold")
        sheet.text(left, start + 25, fit(facts, 8, column), 8, color=MUTED)
        card.draw(sheet, left, start + card_header)
    for number, board in enumerate(drawn):
        board.draw(sheet, margin + number * (half + gap), margin + header + cards_height + 22, colors[board.expert])
    return sheet.figure


class _Stack:
    """The modalities of a sample below one another: pictures under their heat map, texts with shaded tokens."""

    def __init__(
        self,
        parts: list[tuple[Modality, "Flow | None", tuple[float, float], np.ndarray, dict[int, str]]],
        height: float,
    ):
        self.parts, self.height = parts, height

    @classmethod
    def of_card(cls, explanation: ExplanationData, expert: str, width: float) -> "_Stack":
        parts, height = [], 0.0
        for name, scores in explanation.importance[expert].items():
            modality = explanation.modalities[name]
            flow, size = _layout(modality, width, 7.6, 11.5)
            best = explanation.top_features(expert, name, 3)
            ranks = {feature.index: str(rank) for rank, (feature, _) in enumerate(best, 1)}
            parts.append((modality, flow, size, scores, ranks))
            height += size[1] + 10
        return cls(parts, height)

    def draw(self, sheet: Sheet, left: float, top: float) -> None:
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

    def draw(self, sheet: Sheet, gray: bool) -> None:
        extent = (self.left, self.left + self.width, self.top + self.height, self.top)
        picture = self.modality.picture(900)
        if picture is None:
            sheet.axes.add_patch(
                Rectangle((self.left, self.top), self.width, self.height, color="#e8e8e4", linewidth=0)
            )
            middle = self.left + self.width / 2, self.top + self.height / 2
            sheet.text(*middle, "picture not at hand", 8, color=MUTED, ha="center")
            return
        pixels = np.asarray(faded(picture).convert("RGB") if gray else picture)
        limits = sheet.axes.get_xlim(), sheet.axes.get_ylim()
        sheet.axes.imshow(pixels, extent=extent, aspect="auto", zorder=0)
        sheet.axes.set(xlim=limits[0], ylim=limits[1])  # an image moves them

    def fill(self, sheet: Sheet, index: int, score: float) -> None:
        sheet.shade(*self.box(index), score)

    def outline(self, sheet: Sheet, index: int, color: str, rank: str) -> None:
        left, top, width, height = self.box(index)
        sheet.frame(left, top, width, height, edgecolor="#111111", linewidth=2.2, zorder=3)
        sheet.frame(left, top, width, height, edgecolor=color, linewidth=1, zorder=3)
        sheet.badge(left, top, rank)


class _Board:
    """An expert's strongest pairs: pictures to the left, texts and the scores to the right, links between them."""

    def __init__(self, explanation: ExplanationData, expert: str, width: float, top: int):
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

    def draw(self, sheet: Sheet, left: float, top: float, color: str) -> None:
        kind = SCORE_TITLES[kind_of_expert(self.expert)]
        sheet.axes.add_patch(Rectangle((left, top), self.width, 2, color=color, linewidth=0))
        title = f"{expert_title(self.expert)} expert: strongest pairs ({kind} ± standard error)"
        sheet.text(left, top + 11, fit(title, 9.5, self.width), 9.5, weight="bold")
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
            sheet.text(left + self.text_left + 16, y, fit(line, 8.5, self.width - self.text_left - 16), 8.5)

    def _ranks(self, modality: str) -> dict[int, str]:
        ranks: dict[int, list[str]] = {}
        for rank, pair in enumerate(self.pairs, 1):
            for end in (pair.first, pair.second):
                if end.modality == modality:
                    ranks.setdefault(end.index, []).append(str(rank))
        return {index: ",".join(numbers) for index, numbers in ranks.items()}

    def _link(
        self,
        sheet: Sheet,
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


def _layout(modality: Modality, width: float, size: float, leading: float) -> tuple["Flow | None", tuple[float, float]]:
    """A text's lines, or None for a picture; and the width and height that it takes."""
    if modality.kind == "image" and modality.grid:
        scale = min(width / modality.size[0], 280 / modality.size[1])
        return None, (modality.size[0] * scale, modality.size[1] * scale)
    if modality.kind == "text":
        pieces = [(modality.text[piece.start : piece.end], piece.indexes) for piece in modality.pieces()]
    else:
        pieces = [part for index in modality.candidates for part in ((f" {index}", (index,)), (" ", ()))]
    flow = Flow(pieces, width, size, leading)
    return flow, (width, flow.height)
