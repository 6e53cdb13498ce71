"""
A text set in lines: broken between words, and each line in the order in which it is read.

What lies between white space is a word, drawn as one text, so that its letters join and stand as its script has them,
whichever tokens it is made of. Where something is written from right to left, words are cut into runs of one direction,
which are ordered as Unicode's bidirectional algorithm has it (UAX #9, rules W2 to L2, in short); what is inside a run
is ordered when it is drawn.

A run is of a kind: `L` or `R` has letters of that direction, `N` is a number, and an empty kind, of marks and spaces,
goes with what is around it.
"""

import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from matplotlib.patches import Rectangle

from ...model.words import direction
from .fonts import drawable, width
from .sheet import INK, Anchors, Sheet

MAX_LINES = 50
BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MAX_RUN = 24
"""Characters that are never broken; longer runs are cut into such pieces."""


@dataclass(frozen=True)
class Part:
    """Characters of a fragment that belong to the same features: from where to where, from the fragment's left."""

    indexes: tuple[int, ...]
    left: float
    right: float


@dataclass(frozen=True)
class Fragment:
    """What is drawn as one text, on one line."""

    text: str
    parts: tuple[Part, ...]
    x: float
    line: int
    width: float
    is_rtl: bool = False

    @property
    def indexes(self) -> tuple[int, ...]:
        return tuple(index for part in self.parts for index in part.indexes)


@dataclass
class _Run:
    """A part of a word, or the space before a word."""

    kind: str
    text: str = ""
    parts: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)
    """First character, the one behind the last, and the features."""

    width: float = 0.0
    level: int = 0


class Flow:
    """
    A text set in lines of a given width, from its pieces with the features of each. It is read from left to right, or
    as its first letter is if `base` is None.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[str, tuple[int, ...]]],
        limit: float,
        size: float,
        leading: float,
        base: str | None = "ltr",
    ):
        self.size, self.leading = size, leading
        whole = "".join(text for text, _ in pieces)
        base = base or direction(whole)
        is_mixed = base == "rtl" or any(_kind(x) == "R" for x in set(whole))
        lines: list[list[_Run]] = [[]]
        x = 0.0
        for is_apart, word in _words(pieces, is_mixed):
            for run in word:
                run.width = width(run.text, size)
            space = width(" ", size) if x and is_apart else 0.0
            if x and x + space + sum(run.width for run in word) > limit:
                lines.append([])
                x, space = 0.0, 0.0
            if space:
                lines[-1].append(_Run("", " ", width=space))
                x += space
            for run in word:
                if x and x + run.width > limit:
                    lines.append([])
                    x = 0.0
                lines[-1].append(run)
                x += run.width
        if len(lines) > MAX_LINES:
            lines[MAX_LINES - 1 :] = [[_Run("L", "… (the page has the whole text)")]]
        self.fragments = [x for number, line in enumerate(lines) for x in _placed(line, number, base, limit, size)]
        self.height = leading * len(lines) + 4

    def draw(
        self,
        sheet: Sheet,
        left: float,
        top: float,
        scores: Sequence[float] | None = None,
        underlined: Container[int] = (),
        color: str = INK,
        ink: str = INK,
    ) -> Anchors:
        """Scores of the tokens, from 0 to 1, are shown as heat, and underlined ones get a line in the colour. Returns
        where each token begins, at the upper edge of its line."""
        anchors: Anchors = {}
        for fragment in self.fragments:
            x, y = left + fragment.x, top + (fragment.line + 0.5) * self.leading
            low, height = y - 0.55 * self.size, 1.15 * self.size
            for part in fragment.parts:
                start, extent = x + part.left, part.right - part.left
                if part.indexes and scores is not None:
                    sheet.shade(start, low, extent, height, float(max(scores[index] for index in part.indexes)))
                if any(index in underlined for index in part.indexes):
                    sheet.axes.add_patch(Rectangle((start, low + height), extent, 1.1, color=color, linewidth=0))
                for index in part.indexes:
                    anchors.setdefault(index, (start, y - 0.5 * self.leading + 1))
            sheet.text(x, y, fragment.text, self.size, color=ink, is_rtl=fragment.is_rtl)
        return anchors


def _words(pieces: Sequence[tuple[str, tuple[int, ...]]], is_mixed: bool) -> Iterator[tuple[bool, list[_Run]]]:
    """What may not be parted at the end of a line, each as whether a space is before it and its runs."""
    word: list[_Run] = []
    is_apart, is_next_apart, last = False, False, ""
    for text, indexes in pieces:
        for position, part in enumerate(text.split()):
            starts = is_next_apart or position > 0 or text[0].isspace()
            if word and (starts or _may_part(last, part)):
                yield is_apart, word
                word = []
            if not word:
                is_apart = starts
            for kind, characters in _of_one_kind(part) if is_mixed else [("L", part)]:
                _append(word, kind, drawable(characters), indexes)
            is_next_apart, last = False, part
        is_next_apart = is_next_apart or text[-1:].isspace()
    if word:
        yield is_apart, word


def _may_part(before: str, after: str) -> bool:
    """Whether a line may end between them without a space: between ideographs."""
    return bool(before and after) and all(unicodedata.east_asian_width(x) in "WF" for x in (before[-1], after[0]))


def _append(word: list[_Run], kind: str, text: str, indexes: tuple[int, ...]) -> None:
    for start in range(0, len(text), _MAX_RUN):
        piece = text[start : start + _MAX_RUN]
        if not word or word[-1].kind != kind or not kind or len(word[-1].text) + len(piece) > _MAX_RUN:
            word.append(_Run(kind))
        run = word[-1]
        run.parts.append((len(run.text), len(run.text) + len(piece), indexes))
        run.text += piece


def _of_one_kind(text: str) -> list[tuple[str, str]]:
    """The text, cut where its kind changes. Marks inside a number are part of it; those on letters, of the letter."""
    kinds = [_kind(x) for x in text]
    for place, character in enumerate(text):
        around = {*kinds[max(place - 1, 0) : place], *kinds[place + 1 : place + 2]}
        match unicodedata.bidirectional(character):
            case "NSM" | "BN":
                kinds[place] = kinds[place - 1] if place else ""
            case "CS" | "ES" if around == {"N"} and 0 < place < len(text) - 1:
                kinds[place] = "N"
            case "ET" if "N" in around:
                kinds[place] = "N"
    runs: list[tuple[str, str]] = []
    for kind, character in zip(kinds, text, strict=True):
        is_bracket = character in BRACKETS or character in BRACKETS.values()
        if runs and runs[-1][0] == kind and not is_bracket and runs[-1][1] not in {*BRACKETS, *BRACKETS.values()}:
            runs[-1] = kind, runs[-1][1] + character
        else:
            runs.append((kind, character))
    return runs


def _kind(character: str) -> str:
    match unicodedata.bidirectional(character):
        case "L":
            return "L"
        case "R" | "AL":
            return "R"
        case "EN" | "AN":
            return "N"
    return ""


def _placed(line: Sequence[_Run], number: int, base: str, limit: float, size: float) -> list[Fragment]:
    """A line's runs from left to right."""
    x = limit - sum(run.width for run in line) if base == "rtl" else 0.0
    fragments = []
    for run in _in_visual_order(line, base):
        if not run.text.isspace():
            parts = tuple(Part(indexes, *_extent(run, start, end, size)) for start, end, indexes in run.parts)
            fragments.append(Fragment(run.text, parts, x, number, run.width, run.level % 2 == 1))
        x += run.width
    return fragments


def _extent(run: _Run, start: int, end: int, size: float) -> tuple[float, float]:
    """Left and right edge of some of a run's characters."""
    before = 0.0 if start == 0 else width(run.text[:start], size)
    behind = run.width if end == len(run.text) else width(run.text[:end], size)
    return (run.width - behind, run.width - before) if run.level % 2 else (before, behind)


def _in_visual_order(line: Sequence[_Run], base: str) -> list[_Run]:
    """Gives every run its level, odd ones from right to left, and reverses what stands in the other direction."""
    outside = "R" if base == "rtl" else "L"
    sides, letters = [], outside
    for run in line:  # W7: a number behind letters from left to right is one of them
        letters = run.kind if run.kind in ("L", "R") else letters
        sides.append("L" if run.kind == "N" and letters == "L" else run.kind)
    _match_brackets(line, sides, outside)
    level_of = {"R": 1, "N": 2, "L": 2 if base == "rtl" else 0}
    for place, (run, side) in enumerate(zip(line, sides, strict=True)):
        before, behind = _next(sides[:place][::-1], outside), _next(sides[place + 1 :], outside)
        run.level = level_of[side or (before if before == behind else outside)]
    order = list(line)
    for level in range(max((run.level for run in line), default=0), 0, -1):
        turns = [run.level >= level for run in order]
        groups = [list(group) for _, group in groupby(zip(turns, order, strict=True), itemgetter(0))]
        order = [run for group in groups for _, run in (reversed(group) if group[0][0] else group)]
    return order


def _next(sides: Sequence[str], outside: str) -> str:
    """The first of the sides that is known; a number among letters from right to left is one of them."""
    return next((side for side in sides if side), outside).replace("N", "R")


def _match_brackets(line: Sequence[_Run], sides: list[str], outside: str) -> None:
    """N0: both brackets of a pair go with the line where something inside them does; else with what is inside them if
    it is before them, too."""
    opened: list[int] = []
    for place, run in enumerate(line):
        if run.text in BRACKETS:
            opened.append(place)
        elif match := [start for start in opened if BRACKETS[line[start].text] == run.text][-1:]:
            [start] = match
            opened = [x for x in opened if x < start]
            inside = {_next([side], outside) for side in sides[start + 1 : place] if side}
            if inside:
                is_other = outside not in inside and _next(sides[:start][::-1], outside) != outside
                sides[start] = sides[place] = inside.pop() if is_other else outside
