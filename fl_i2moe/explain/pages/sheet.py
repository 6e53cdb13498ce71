"""A page measured in points, and text set on it in lines."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

INK, MUTED = "#1c1c1e", "#58585e"
DPI = 130
_HEAT, _HEAT_ALPHA = "#E65C00", 0.78
_MAX_LINES = 50
_MAX_RUN = 24
"""Characters that are never broken; longer runs are cut into such pieces."""

Anchors = dict[int, tuple[float, float]]
"""Feature → where the link to it ends."""


class Sheet:
    """A page measured in points from its top left corner."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=DPI)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Left-aligned, `y` at the middle of its line."""
        style = {"color": INK, "va": "center_baseline", "parse_math": False, **style}
        self.axes.text(x, y, _drawable(text), fontsize=size, **style)

    def frame(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        self.axes.add_patch(Rectangle((x, y), width, height, fill=False, **style))

    def shade(self, x: float, y: float, width: float, height: float, score: float) -> None:
        """Heat over a rectangle, from none at score 0 to the most at 1."""
        alpha = _HEAT_ALPHA * score
        self.axes.add_patch(Rectangle((x, y), width, height, color=_HEAT, alpha=alpha, linewidth=0))

    def badge(self, x: float, y: float, text: str, size: float = 6.5) -> None:
        """White on black, `x` and `y` its upper left corner."""
        width, height = 0.45 * size + 0.68 * size * len(text), 1.3 * size
        self.axes.add_patch(Rectangle((x, y), width, height, color="#111111", linewidth=0, zorder=4))
        style = {"color": "white", "weight": "bold", "ha": "center", "zorder": 5}
        self.text(x + width / 2, y + 0.52 * height, text, size, **style)


@dataclass(frozen=True)
class Fragment:
    """Characters of one token, or of none, on one line."""

    text: str
    indexes: tuple[int, ...]
    x: float
    line: int
    width: float


class Flow:
    """A text set in lines of a given width."""

    def __init__(self, pieces: Sequence[tuple[str, tuple[int, ...]]], width: float, size: float, leading: float):
        self.size, self.leading = size, leading
        self.fragments: list[Fragment] = []
        x, line = 0.0, 0
        for word in _split_words(pieces):
            advance = _width(" ", size) if x else 0.0
            widths = [_width(text, size) for text, _ in word]
            if x and x + advance + sum(widths) > width:
                x, line, advance = 0.0, line + 1, 0.0
            x += advance
            for (text, indexes), run_width in zip(word, widths, strict=True):
                if x and x + run_width > width:
                    x, line = 0.0, line + 1
                self.fragments.append(Fragment(text, indexes, x, line, run_width))
                x += run_width
        if line >= _MAX_LINES:
            self.fragments = [fragment for fragment in self.fragments if fragment.line < _MAX_LINES - 1]
            self.fragments.append(Fragment("… (the page has the whole text)", (), 0.0, _MAX_LINES - 1, 0.0))
        self.height = leading * (1 + max((fragment.line for fragment in self.fragments), default=0)) + 4

    def draw(
        self,
        sheet: Sheet,
        left: float,
        top: float,
        scores: Sequence[float] | None = None,
        underlined: Container[int] = (),
        color: str = INK,
    ) -> Anchors:
        """Scores of the tokens, from 0 to 1, are shown as heat, and underlined ones get a line in the colour. Returns
        where each token begins, at the upper edge of its line."""
        anchors: Anchors = {}
        for fragment in self.fragments:
            x, y = left + fragment.x, top + (fragment.line + 0.5) * self.leading
            low, height = y - 0.55 * self.size, 1.15 * self.size
            if fragment.indexes and scores is not None:
                sheet.shade(x, low, fragment.width, height, float(max(scores[index] for index in fragment.indexes)))
            if any(index in underlined for index in fragment.indexes):
                sheet.axes.add_patch(Rectangle((x, low + height), fragment.width, 1.1, color=color, linewidth=0))
            sheet.text(x, y, fragment.text, self.size)
            for index in fragment.indexes:
                anchors.setdefault(index, (x, y - 0.5 * self.leading + 1))
        return anchors


def _split_words(pieces: Sequence[tuple[str, tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    """What lies between white space, each as its pieces."""
    words: list[list[tuple[str, tuple[int, ...]]]] = []
    is_apart = True
    for text, indexes in pieces:
        for position, part in enumerate(text.split()):
            if is_apart or position or text[0].isspace():
                words.append([])
            words[-1] += [(part[start : start + _MAX_RUN], indexes) for start in range(0, len(part), _MAX_RUN)]
            is_apart = False
        is_apart = is_apart or text[-1:].isspace()
    return words


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@lru_cache(maxsize=4096)
def _width(text: str, size: float) -> float:
    """Advance in points. Between two letters, since a measure by itself leaves out spaces at the ends."""
    font = FontProperties(size=size)
    texts = (f"x{_drawable(text)}x", "xx")
    whole, frame = (_renderer().get_text_width_height_descent(x, font, False)[0] for x in texts)
    return (whole - frame) * 72 / DPI


def fit(text: str, size: float, width: float) -> str:
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
