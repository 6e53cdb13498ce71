"""The figure of one sample, laid out like the FL-I²MoE paper's Figure 5."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from ...metrics.figures import expert_colors, expert_title
from ...metrics.tasks import FloatArray
from ..explanation_data import ExplanationData, Pair
from ..pair_table import kind_of_expert
from ..wording import end_name, probability_text, quoted, standing
from .display import (
    METHOD_NAMES,
    MIXTURE_COLOR,
    SCORE_TITLES,
    card_titles,
    feature_ranks,
    found_text,
    heading,
    pair_ranks,
    score_text,
)
from .drawing import drawing_of
from .flow import Flow
from .fonts import fit, missing_note
from .sheet import INK, MUTED, Sheet


def draw_explanation(explanation: ExplanationData, top: int = 5) -> Figure:
    """
    First the summary. Then one column per expert: the picture under its heat map, the text with shaded words. Below,
    for each expert whose pairs were scored, the `top` pairs as links from end to end, with score and 95 % interval;
    grey where the interval holds 0.
    """
    columns = list(explanation.importance)
    boards = list(explanation.pair_tables)
    gap, margin = 14.0, 16.0
    width = max(2 * margin + len(columns) * 178 + (len(columns) - 1) * gap, 640 if boards else 400)
    column = (width - 2 * margin - (len(columns) - 1) * gap) / len(columns)
    cards = [_card(explanation, name, column) for name in columns]
    half = (width - 2 * margin - gap * (len(boards) - 1)) / max(1, len(boards))
    drawn = [_Board(explanation, name, half, top) for name in boards]
    summary = Flow([(explanation.summary, ())], min(width, 760) - 2 * margin, 10, 14)
    header, card_header = 48.0 + summary.height, 34.0
    cards_height = card_header + max(sum(block.height + 10 for block, *_ in card) for card in cards)
    boards_height = max((board.height for board in drawn), default=0.0)
    texts = (x for places in explanation.modalities.values() for x in [getattr(places, "text", None)] if x)
    lacking = missing_note([*texts, *explanation.label_names, explanation.sample_id])
    said = [*explanation.notes, *filter(None, [lacking])]
    notes = [Flow([(note, ())], width - 2 * margin, 8, 11) for note in said]
    end = margin + header + cards_height + (boards_height + 22 if drawn else 0)
    height = end + sum(note.height for note in notes) + margin

    sheet = Sheet(width, height)
    sheet.text(margin, margin + 8, fit(heading(explanation), 13, width - 2 * margin), 13, weight="bold")
    facts = [f"{quoted(explanation.target_name)}: {standing(explanation)}"]
    if explanation.probabilities is not None:
        facts[0] += f", probability {probability_text(explanation)}"
    facts.append(METHOD_NAMES.get(explanation.method, explanation.method) + ", scaled within each panel")
    sheet.text(margin, margin + 26, fit("  ·  ".join(facts), 8.5, width - 2 * margin), 8.5, color=MUTED)
    summary.draw(sheet, margin, margin + 38)
    colors = expert_colors(explanation.expert_names)
    for number, (name, card) in enumerate(zip(columns, cards, strict=True)):
        left, start = margin + number * (column + gap), margin + header
        color = colors.get(name, MIXTURE_COLOR)
        sheet.axes.add_patch(Rectangle((left, start), column, 3, color=color, linewidth=0))
        title, facts = card_titles(explanation, name)
        about = ", ".join(facts) or "importance averaged by weight"
        sheet.text(left, start + 13, fit(title, 10, column), 10, weight="bold")
        sheet.text(left, start + 25, fit(about, 8, column), 8, color=MUTED)
        top_edge = start + card_header
        for block, scores, ranks in card:
            block.draw_scores(sheet, left, top_edge, scores, ranks)
            top_edge += block.height + 10
    for number, board in enumerate(drawn):
        board.draw(sheet, margin + number * (half + gap), margin + header + cards_height + 22, colors[board.expert])
    for note in notes:
        note.draw(sheet, margin, end)
        end += note.height
    return sheet.figure


def _card(explanation: ExplanationData, expert: str, width: float) -> list[tuple[Any, FloatArray, dict[int, str]]]:
    """What lies below one another: of each modality its block, scores and ranks."""
    parts = []
    for name, scores in explanation.importance[expert].items():
        places = explanation.modalities[name]
        block = drawing_of(places).block(places, width, 7.6, 11.5)
        parts.append((block, scores, feature_ranks(explanation, expert, name)))
    return parts


class _Board:
    """An expert's strongest pairs: pictures to the left, texts and the scores to the right, links between them."""

    def __init__(self, explanation: ExplanationData, expert: str, width: float, top: int):
        self.explanation, self.expert, self.width = explanation, expert, width
        self.pairs = explanation.pairs(expert, top)
        drawings = {name: drawing_of(x) for name, x in explanation.modalities.items()}
        self.left_width = 0.36 * width if any(x.is_picture for x in drawings.values()) else 0.0
        self.text_left = self.left_width + 26
        widths = {True: self.left_width, False: width - self.text_left}
        self.blocks = {
            name: drawing.block(explanation.modalities[name], widths[drawing.is_picture], 8.6, 19)
            for name, drawing in drawings.items()
        }
        left, self.texts = (
            sum(block.height + 10 for block in self.blocks.values() if block.is_picture is side)
            for side in (True, False)
        )
        self.found = Flow([(found_text(explanation, expert), ())], width - self.text_left, 8.5, 12)
        self.rows = [self._row(pair, width - self.text_left - 16) for pair in self.pairs]
        self.height = 22 + max(left, self.texts + 8 + self.found.height + sum(row.height for row in self.rows))

    def _row(self, pair: Pair, width: float) -> Flow:
        ends = sorted((pair.first, pair.second), key=lambda end: end.token is None)
        names = " ↔ ".join(end_name(self.explanation, end) for end in ends)
        return Flow([(f"{names}: {score_text(pair)}", ())], width, 8.5, 11)

    def draw(self, sheet: Sheet, left: float, top: float, color: str) -> None:
        kind = SCORE_TITLES[kind_of_expert(self.expert)]
        sheet.axes.add_patch(Rectangle((left, top), self.width, 2, color=color, linewidth=0))
        title = f"{expert_title(self.expert)} expert: strongest pairs by size ({kind}, 95 % interval)"
        sheet.text(left, top + 11, fit(title, 9.5, self.width), 9.5, weight="bold")
        anchors: dict[tuple[str, int], tuple[float, float]] = {}
        tops = {True: top + 22, False: top + 22}
        for name, block in self.blocks.items():
            place = left + (0 if block.is_picture else self.text_left)
            ranks = {index: ",".join(map(str, numbers)) for index, numbers in pair_ranks(self.pairs, name).items()}
            found = block.draw_ends(sheet, place, tops[block.is_picture], ranks, color)
            anchors |= {(name, index): anchor for index, anchor in found.items()}
            tops[block.is_picture] += block.height + 10
        for rank, pair in enumerate(self.pairs, 1):
            tone = color if pair.is_found else MUTED
            self._link(sheet, pair, rank, left + self.text_left - 7, anchors, tone)
        self.found.draw(sheet, left + self.text_left, top + 26 + self.texts)
        y = top + 30 + self.texts + self.found.height
        for rank, (pair, row) in enumerate(zip(self.pairs, self.rows, strict=True), 1):
            sheet.badge(left + self.text_left, y + 1, str(rank))
            row.draw(sheet, left + self.text_left + 16, y, ink=INK if pair.is_found else MUTED)
            y += row.height

    def _link(
        self, sheet: Sheet, pair: Pair, rank: int, gutter: float, anchors: Mapping[tuple[str, int], Any], color: str
    ) -> None:
        ends = [pair.first, pair.second]
        if not all((end.modality, end.index) in anchors for end in ends):  # behind the end of a text that was cut
            return
        if not self.blocks[pair.first.modality].is_picture:
            ends.reverse()
        points = [anchors[end.modality, end.index] for end in ends]
        is_patch = [self.blocks[end.modality].is_picture for end in ends]
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
