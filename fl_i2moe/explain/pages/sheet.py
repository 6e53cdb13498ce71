"""A page measured in points."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...model.words import direction
from .fonts import DPI, drawable, properties

INK, MUTED = "#1c1c1e", "#58585e"
LEFT_TO_RIGHT, RIGHT_TO_LEFT = "\u200e", "\u200f"
"""Unicode's marks of a text's direction, which have no width."""

_HEAT, _HEAT_ALPHA = "#E65C00", 0.78

Anchors = dict[int, tuple[float, float]]
"""Feature → where the link to it ends."""


class Sheet:
    """A page measured in points from its top left corner."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=DPI)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, size: float, *, is_rtl: bool = False, **style: Any) -> None:
        """Left-aligned, `y` at the middle of its line; read from left to right, unless `is_rtl`."""
        style = {"color": INK, "va": "center_baseline", "parse_math": False, **style}
        font = properties(text, size, weight=style.pop("weight", "normal"))
        # without a mark the first letter would decide
        mark = RIGHT_TO_LEFT if is_rtl else LEFT_TO_RIGHT if direction(text) == "rtl" else ""
        self.axes.text(x, y, mark + drawable(text), fontproperties=font, **style)

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
        self.text(x + width / 2, y + 0.52 * height, text, size, color="white", weight="bold", ha="center", zorder=5)
