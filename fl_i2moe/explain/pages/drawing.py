"""
How each kind of modality is drawn: on pages and figures of explanations, as a thumbnail, and before readers.

A page shows a modality as a *part*: a dictionary that one of the macros of `parts.html.jinja` turns into HTML. A figure
shows it as a *block* on a [`Sheet`].
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Generic, TypeVar

import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from ...model.kind_audio import AudioPlaces
from ...model.kind_image import ImagePlaces
from ...model.kind_tabular import TabularPlaces
from ...model.kind_text import TextPlaces
from ...model.places import Places
from ...model.words import direction
from .flow import Flow
from .sheet import MUTED, Anchors, Sheet
from .sound_strip import SoundStrip, sound_uri

PICTURE_PIXELS = 640
LONG_TEXT = 700
"""Characters from which a text on a card gets a scroll bar."""


@dataclass(frozen=True)
class Marks:
    """What a page shows at the features of a modality."""

    ranks: Mapping[int, str]
    """Feature → what is written beside it."""

    scores: np.ndarray | None = None
    """(T,) of a card with a heat map; None on a board of pairs, which shows the ranked features alone."""

    ids: Mapping[int, str] | None = None
    """Feature → its id in the page, on a board."""

    def shown(self, places: Places) -> list[int]:
        return sorted(self.ranks if self.scores is None else places.candidates)


AnyPlaces = TypeVar("AnyPlaces", bound=Places)


class ArrayDrawing(Generic[AnyPlaces]):
    """Any modality: its features by their numbers."""

    macro = "cells"
    """Of `parts.html.jinja`."""

    is_picture = False
    """Whether it stands to the left, and links to it end in its midst."""

    has_layers = False
    """Whether its encoder has hidden layers."""

    separator = " "
    """Between features on a figure."""

    def extent(self, places: AnyPlaces) -> str:
        """`49 patches`"""
        return f"{len(places.candidates)} {places.noun}"

    def head(self, places: AnyPlaces, title: str) -> dict[str, Any]:
        """What a page says and defines once: `remark`, `size`, and the data URIs of a picture and of a sound."""
        return {"size": None, "remark": "", "color_uri": None, "gray_uri": None, "sound_uri": None}

    def label(self, places: AnyPlaces, index: int) -> str:
        """What is written where the feature is drawn."""
        return str(index)

    def part(self, places: AnyPlaces, uri_id: str, marks: Marks) -> dict[str, Any]:
        """What the macro needs; `uri_id` is that of the picture that the page defines."""
        words = [_word(self.label(places, i), (i,), marks, places.name_of(i)) for i in marks.shown(places)]
        return {"words": words, "long": False, "dir": "ltr"}

    def block(self, places: AnyPlaces, width: float, size: float, leading: float) -> "TextBlock | PictureBlock":
        """On a figure."""
        labels = ((f" {self.label(places, index)}", (index,)) for index in places.candidates)
        pieces = [piece for label in labels for piece in ((self.separator, ()), label)]
        return TextBlock(pieces[1:], width, size, leading)

    def thumbnail(self, places: AnyPlaces, pixels: int) -> Image.Image | None:
        """A small picture of the sample."""
        return None

    def excerpt(self, places: AnyPlaces, characters: int) -> str:
        """The beginning of what it says, by which people know the sample again; empty where it says nothing."""
        return ""

    def question(self, places: AnyPlaces) -> dict[str, Any]:
        """What readers of a questionnaire see of it."""
        return {"num_features": places.num_features}


class PictureDrawing(ArrayDrawing[AnyPlaces]):
    """What is shown as a picture, its features in boxes."""

    macro = "picture"
    is_picture = True
    has_layers = True

    def view(self, places: AnyPlaces) -> Any:
        """What is shown: `size`, `picture(longest side)`, None if `missing()`, and the `box` of a feature in it."""
        return places

    def remark(self, places: AnyPlaces, title: str) -> str:
        """What of the value was not encoded."""
        return ""

    def head(self, places: AnyPlaces, title: str) -> dict[str, Any]:
        view = self.view(places)
        picture = view.picture(PICTURE_PIXELS)
        return super().head(places, title) | {
            "size": view.size,
            "remark": self.remark(places, title),
            "color_uri": None if picture is None else data_uri(picture, 82),
            "gray_uri": None if picture is None else data_uri(faded(picture), 78),
        }

    def part(self, places: AnyPlaces, uri_id: str, marks: Marks) -> dict[str, Any]:
        view = self.view(places)
        width, height = view.size
        unit = round(max(width / 330, height / 400), 3)
        lower = lowered_badges(view, marks.ranks)
        patches = [_patch(view, index, marks, lower.get(index, 0) * 12 * unit) for index in marks.shown(places)]
        return {
            "size": view.size,
            "unit": unit,
            "uri_id": None if view.missing() else uri_id,
            "patches": [patch for patch in patches if patch["width"] > 0 and patch["height"] > 0],
        }

    def block(self, places: AnyPlaces, width: float, size: float, leading: float) -> "PictureBlock":
        view = self.view(places)
        return PictureBlock(view, min(width / view.size[0], 280 / view.size[1]))

    def thumbnail(self, places: AnyPlaces, pixels: int) -> Image.Image | None:
        return self.view(places).picture(pixels)

    def question(self, places: AnyPlaces) -> dict[str, Any]:
        picture = self.view(places).picture(PICTURE_PIXELS)
        return {"uri": data_uri(picture, 82), "size": picture.size}


class GridDrawing(PictureDrawing[ImagePlaces]):
    """A picture under its grid of patches."""

    def extent(self, places: ImagePlaces) -> str:
        return f"{places.grid[0]} × {places.grid[1]} {places.noun}"

    def remark(self, places: ImagePlaces, title: str) -> str:
        is_part = places.region != (0, 0, *places.size)
        return f"Only the part of the {title} under the patches was encoded." if is_part else ""


class SoundDrawing(PictureDrawing[AudioPlaces]):
    """A sound as its waveform, over its seconds."""

    def view(self, places: AudioPlaces) -> SoundStrip:
        return SoundStrip(places)

    def remark(self, places: AudioPlaces, title: str) -> str:
        sound = places.sound()
        is_part = sound is not None and sound.seconds > places.end + 0.01
        return f"Only the first {places.end:.1f} s of the {title} were encoded." if is_part else ""

    def head(self, places: AudioPlaces, title: str) -> dict[str, Any]:
        return super().head(places, title) | {"sound_uri": sound_uri(places)}


class TextDrawing(ArrayDrawing[TextPlaces]):
    """A text with its tokens."""

    macro = "words"
    has_layers = True

    def part(self, places: TextPlaces, uri_id: str, marks: Marks) -> dict[str, Any]:
        words, pieces = [], places.pieces()
        last_token = max((number for number, piece in enumerate(pieces) if piece.indexes), default=-1)
        for number, piece in enumerate(pieces):
            text = places.text[piece.start : piece.end]
            if piece.indexes:
                words.append(_word(text, piece.indexes, marks))
            elif number > last_token and text.strip():
                words.append(
                    dict.fromkeys(("id", "score", "rank")) | {"text": text, "class": "cut", "title": "not encoded"}
                )
            else:
                words.append({"text": text, "class": None})
        is_long = marks.scores is not None and len(places.text) > LONG_TEXT
        return {"words": words, "long": is_long, "dir": direction(places.text)}

    def block(self, places: TextPlaces, width: float, size: float, leading: float) -> "TextBlock":
        pieces = [(places.text[piece.start : piece.end], piece.indexes) for piece in places.pieces()]
        return TextBlock(pieces, width, size, leading, base=None)

    def excerpt(self, places: TextPlaces, characters: int) -> str:
        return _shortened(" ".join(places.text.split()), characters)

    def question(self, places: TextPlaces) -> dict[str, Any]:
        read = max((piece.end for piece in places.pieces() if piece.indexes), default=0)
        rest = places.text[read:]
        return {"text": places.text[:read], "rest": rest} if rest.strip() else {"text": places.text, "rest": ""}


class TabularDrawing(ArrayDrawing[TabularPlaces]):
    """Columns of a table with their values."""

    separator = " · "

    def label(self, places: TabularPlaces, index: int) -> str:
        return places.name_of(index)

    def excerpt(self, places: TabularPlaces, characters: int) -> str:
        text = self.separator.join(places.name_of(index) for index in range(places.num_features))
        return _shortened(text, characters)

    def question(self, places: TabularPlaces) -> dict[str, Any]:
        return {"text": "\n".join(places.name_of(index) for index in range(places.num_features)), "rest": ""}


DRAWINGS: dict[str, ArrayDrawing[Any]] = {
    "image": GridDrawing(),
    "text": TextDrawing(),
    "audio": SoundDrawing(),
    "array": ArrayDrawing(),
    "tabular": TabularDrawing(),
}
"""By the name of a kind."""


def drawing_of(places: Places) -> ArrayDrawing:
    """How a modality is drawn; one whose features lie nowhere is drawn by their numbers."""
    return DRAWINGS[places.kind if places.is_placed else "array"]


# ---- parts of pages --------------------------------------------------------------------------------------------------


def data_uri(picture: Image.Image, quality: int) -> str:
    """The picture as a JPEG inside a page."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def faded(picture: Image.Image) -> Image.Image:
    """In greys from two fifths up to white, on which a colour shows also where the picture is black."""
    return picture.convert("L").point([105 + round(level * 150 / 255) for level in range(256)])


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters].rstrip()}…"


def lowered_badges(view: Any, ranks: Mapping[int, str]) -> dict[int, int]:
    """Ranked feature → how many badges lower its own stands, so that those of neighbours in a row do not cover it."""
    return {index: place % getattr(view, "badge_rows", 1) for place, index in enumerate(sorted(ranks))}


def _patch(view: Any, index: int, marks: Marks, lower: float) -> dict[str, Any]:
    left, top, right, bottom = view.box(index)
    score = None if marks.scores is None else round(float(marks.scores[index]), 3)
    name = view.name_of(index)
    return {
        "class": "heat" if marks.ids is None else "patch",
        "id": marks.ids and marks.ids[index],
        "x": round(left, 2),
        "y": round(top, 2),
        "width": round(right - left, 2),
        "height": round(bottom - top, 2),
        "badge_y": round(top + lower, 2),
        "score": score,
        "rank": marks.ranks.get(index),
        "title": name if score is None else f"{name}: {score:.2f}",
    }


def _word(text: str, indexes: Sequence[int], marks: Marks, title: str | None = None) -> dict[str, Any]:
    rank = ",".join(marks.ranks[index] for index in indexes if index in marks.ranks) or None
    word = {"text": text, "id": None, "score": None, "rank": rank, "title": title}
    if marks.ids is not None:
        return word | {"class": "end" if rank else None, "id": " ".join(marks.ids[index] for index in indexes)}
    score = round(max(float(marks.scores[index]) for index in indexes), 3)
    title = f"{title}: {score:.2f}" if title else f"{score:.2f}"
    return word | {"class": "token top" if rank else "token", "score": score, "title": title}


# ---- blocks of figures -----------------------------------------------------------------------------------------------


class TextBlock(Flow):
    """A text set in lines."""

    is_picture = False

    def draw_scores(self, sheet: Sheet, left: float, top: float, scores: np.ndarray, ranks: Mapping[int, str]) -> None:
        """With heat by scores, and the ranks of the best features."""
        self.draw(sheet, left, top, scores.tolist(), ranks)

    def draw_ends(self, sheet: Sheet, left: float, top: float, ranks: Mapping[int, str], color: str) -> Anchors:
        """With the ends of pairs; where links to them begin."""
        anchors = self.draw(sheet, left, top, None, ranks, color)
        for index, rank in ranks.items():
            if index in anchors:  # not behind the end of a text that was cut
                x, y = anchors[index]
                sheet.badge(x, y - 3.6, rank, 5.2)
        return anchors


class PictureBlock:
    """A picture in a place on the sheet."""

    is_picture = True

    def __init__(self, view: Any, scale: float):
        self.view, self.scale = view, scale
        self.width, self.height = (side * scale for side in view.size)

    def draw_scores(self, sheet: Sheet, left: float, top: float, scores: np.ndarray, ranks: Mapping[int, str]) -> None:
        self._draw(sheet, left, top, gray=True)
        for index in self.view.candidates:
            sheet.shade(*self._box(index, left, top), float(scores[index]))
        self._outline(sheet, {index: self._box(index, left, top) for index in ranks}, "white", ranks)

    def draw_ends(self, sheet: Sheet, left: float, top: float, ranks: Mapping[int, str], color: str) -> Anchors:
        self._draw(sheet, left, top, gray=False)
        boxes = {index: self._box(index, left, top) for index in ranks}
        self._outline(sheet, boxes, color, ranks)
        return {index: (x + width / 2, y + height / 2) for index, (x, y, width, height) in boxes.items()}

    def _box(self, index: int, x: float, y: float) -> tuple[float, float, float, float]:
        """Left, top, width, height on the sheet."""
        left, top, right, bottom = (side * self.scale for side in self.view.box(index))
        return x + left, y + top, right - left, bottom - top

    def _draw(self, sheet: Sheet, left: float, top: float, gray: bool) -> None:
        picture = self.view.picture(900)
        if picture is None:
            sheet.axes.add_patch(Rectangle((left, top), self.width, self.height, color="#e8e8e4", linewidth=0))
            middle = left + self.width / 2, top + self.height / 2
            sheet.text(*middle, "picture not at hand", 8, color=MUTED, ha="center")
            return
        pixels = np.asarray(faded(picture).convert("RGB") if gray else picture)
        limits = {"xlim": sheet.axes.get_xlim(), "ylim": sheet.axes.get_ylim()}
        extent = (left, left + self.width, top + self.height, top)
        sheet.axes.imshow(pixels, extent=extent, aspect="auto", zorder=0)
        sheet.axes.set(**limits)  # an image moves them

    def _outline(
        self, sheet: Sheet, boxes: Mapping[int, tuple[float, float, float, float]], color: str, ranks: Mapping[int, str]
    ) -> None:
        lower = lowered_badges(self.view, ranks)
        for index, rank in ranks.items():
            x, y, width, height = boxes[index]
            sheet.frame(x, y, width, height, edgecolor="#111111", linewidth=2.2, zorder=3)
            sheet.frame(x, y, width, height, edgecolor=color, linewidth=1, zorder=3)
            sheet.badge(x, y + 9 * lower[index], rank)
