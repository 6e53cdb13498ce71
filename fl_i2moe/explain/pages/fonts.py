"""Which fonts have a text's characters, how wide it is, and what stands for characters that no font has."""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

DPI = 130
_UNSUITED = ("last resort", "color", "emoji ui")
"""Fonts of placeholders, and of coloured glyphs, which cannot be drawn."""


def properties(text: str, size: float, weight: str = "normal") -> FontProperties:
    """The default font, and behind it those that have what it lacks."""
    families = [*FontProperties().get_family(), *dict.fromkeys(filter(None, map(_fallback, lacking(text))))]
    return FontProperties(family=families, size=size, weight=weight)


def drawable(text: str) -> str:
    """Without invisible characters; what no installed font has as a symbol's name, `[clapper board]`, or as `▯`."""
    shown = (x for x in text if (x.isprintable() and x not in _INVISIBLE) or x in JOINERS)
    return "".join(_stand_in(x) if missing(x) else x for x in shown)


def missing(text: str) -> list[str]:
    """Characters that no installed font has."""
    return [x for x in lacking(text) if _fallback(x) is None]


def missing_note(texts: Iterable[str]) -> str | None:
    """What the stand-ins of letters in a figure are, and what to do."""
    characters = sorted({x for text in texts for x in missing(text) if unicodedata.category(x)[0] == "L"})
    scripts = dict.fromkeys(unicodedata.name(x, "unnamed").split()[0].capitalize() for x in characters)
    if not scripts:
        return None
    names = ", ".join("CJK" if name == "Cjk" else name for name in scripts)
    return (
        f"{BOX} stands for characters ({names}) that no font on this machine has: install one, such as Noto Sans, and "
        "draw the figure again. The page shows them where it is read."
    )


BOX = "▯"
JOINERS = "\u200c\u200d"
"""They decide whether the letters beside them join."""

_REGIONAL = range(0x1F1E6, 0x1F200)


def _stand_in(character: str) -> str:
    if ord(character) in _REGIONAL:  # two of which make a flag
        return chr(ord("A") + ord(character) - _REGIONAL.start)
    match unicodedata.category(character):
        case "So":
            return f"[{unicodedata.name(character, 'symbol').lower()}]"
        case "Sk" | "Mn" | "Me":  # an emoji's skin, a mark on a letter
            return ""
    return BOX


_INVISIBLE = frozenset("\u200b\u2060\u2066\u2067\u2068\u2069\u202a\u202b\u202c\u202d\u202e\ufeff\ufe0e\ufe0f")
"""Isolates and embeddings, whose work the setting of lines does; and marks of how an emoji is shown."""


def lacking(text: str) -> list[str]:
    """Characters that the default font lacks and that need a glyph."""
    return [
        x for x in dict.fromkeys(text) if ord(x) not in _characters(None) and x not in _INVISIBLE and x.isprintable()
    ]


@lru_cache(maxsize=1)
def _others() -> tuple[font_manager.FontEntry, ...]:
    """The upright fonts of common weight, Noto's first, which were drawn to stand beside one another."""
    entries = (x for x in font_manager.fontManager.ttflist if x.style == "normal" and x.weight in (400, "normal"))
    suited = {x.name: x for x in entries if not any(word in x.name.lower() for word in _UNSUITED)}
    return tuple(sorted(suited.values(), key=lambda x: (not x.name.startswith("Noto Sans"), x.name)))


@lru_cache(maxsize=4096)
def _fallback(character: str) -> str | None:
    """The family of an installed font that has the character."""
    return next((x.name for x in _others() if ord(character) in _characters(x.fname)), None)


@lru_cache(maxsize=1024)
def _characters(path: str | None) -> frozenset[int]:
    """Of the font in a file, or of the default one."""
    return frozenset(font_manager.get_font(path or font_manager.findfont(FontProperties())).get_charmap())


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@lru_cache(maxsize=8192)
def width(text: str, size: float) -> float:
    """Advance in points. Between two letters, since a measure by itself leaves out spaces at the ends."""
    font = properties(text, size)
    texts = (f"x{text}x", "xx")
    whole, frame = (_renderer().get_text_width_height_descent(x, font, False)[0] for x in texts)
    return (whole - frame) * 72 / DPI


def fit(text: str, size: float, limit: float) -> str:
    """Shortened to the width, a little more than measured since it may be bold."""
    text = drawable(text)
    while len(text) > 1 and 1.12 * width(text, size) > limit:
        text = text[:-2].rstrip() + "…"
    return text
