"""Where a modality's features lie: patches in the pixels of the picture, tokens in the characters of the text."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from ..model.encoder_inputs import open_image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture."""

Span = tuple[int, int]
"""First character and the one behind the last."""


@dataclass(frozen=True)
class Piece:
    """A run of characters: one token, several that share characters, or none (between tokens, behind the last)."""

    start: int
    end: int
    indexes: tuple[int, ...] = ()


@dataclass
class Modality:
    """One modality of a sample, and where each of its T features lies."""

    kind: Literal["image", "text", "other"]
    num_features: int
    special: list[int]
    """Features that are special: no patch and no piece of the text."""

    encoder: str | None = None
    hidden_layer: int | None = None
    """None: the encoder's last layer."""

    special_features: str | None = None
    """`"keep"` or `"drop"`: whether the sequence holds CLS, BOS and SEP."""

    size: tuple[int, int] | None = None
    """Width and height of the picture."""

    grid: tuple[int, int] | None = None
    """Rows and columns of patches."""

    region: Box | None = None
    """The part of the picture that the grid covers."""

    path: str | None = None
    """The picture's file."""

    content: bytes | None = None
    """The picture itself, where it has no file."""

    text: str | None = None
    offsets: list[Span] | None = None

    @classmethod
    def from_row(
        cls,
        row: Mapping[str, Any],
        name: str,
        encoder: Mapping[str, Any] | None = None,
        grid: Sequence[int] | None = None,
    ) -> "Modality":
        """
        Args:
            row: a row of a feature cache.
            name: of the modality.
            encoder: the encoder's identity, from `FeatureCache.modalities` or `config.encoders`.
            grid: rows and columns of the encoder's patches. Without it the grid is worked out from the number of
                patches and the encoder's input size, where these allow but one.
        """
        encoder = encoder or {}
        special = [index for index, is_special in enumerate(row[f"{name}_special_mask"]) if is_special]
        modality = cls(
            kind="other",
            num_features=len(row[f"{name}_special_mask"]),
            special=special,
            encoder=encoder.get("name"),
            hidden_layer=encoder.get("hidden_layer"),
            special_features=encoder.get("special_features"),
        )
        if offsets := row.get(f"{name}_offsets"):
            modality.kind, modality.text = "text", row.get(name) or ""
            modality.offsets = [(int(start), int(end)) for start, end in offsets]
        elif geometry := row.get(f"{name}_geometry"):
            picture = row.get(name) or {}
            num_patches = modality.num_features - len(special)
            input_size = (encoder.get("preprocessing") or {}).get("input_size")
            modality.kind = "image"
            modality.size = (geometry["width"], geometry["height"])
            modality.region = tuple(float(geometry[side]) for side in ("left", "top", "right", "bottom"))
            modality.path = picture.get("path")
            modality.content = picture.get("bytes") if modality.path is None else None
            grid = tuple(grid) if grid else _guess_grid(num_patches, input_size)
            modality.grid = grid if grid and grid[0] * grid[1] == num_patches else None
        return modality

    @property
    def candidates(self) -> list[int]:
        """Features that are not special, in order."""
        special = set(self.special)
        return [index for index in range(self.num_features) if index not in special]

    def cell(self, index: int) -> tuple[int, int] | None:
        """Row and column of a patch, from 0; None where there is no grid or the feature is special."""
        if self.grid is None or index in self.special:
            return None
        place = index - sum(special < index for special in self.special)
        return divmod(place, self.grid[1])

    def box(self, index: int) -> Box | None:
        """The patch in pixels of the picture; what reaches out of the picture (padding) is cut off, and of a patch that
        lies outside nothing is left but an edge."""
        cell = self.cell(index)
        if cell is None or self.region is None or self.size is None:
            return None
        (rows, columns), (left, top, right, bottom) = self.grid, self.region
        width, height = (right - left) / columns, (bottom - top) / rows
        x, y = left + cell[1] * width, top + cell[0] * height
        across, down = (float(side) for side in self.size)
        return (
            min(max(0.0, x), across),
            min(max(0.0, y), down),
            min(max(0.0, x + width), across),
            min(max(0.0, y + height), down),
        )

    def span(self, index: int) -> Span | None:
        """The token's characters; None for a special feature and a token without any."""
        if self.offsets is None or index in self.special:
            return None
        start, end = self.offsets[index]
        return (start, end) if end > start else None

    def name_of(self, index: int) -> str:
        """What a person calls the feature: `“soup”`, `row 2, column 3`, `feature 7`."""
        if (cell := self.cell(index)) is not None:
            return f"row {cell[0] + 1}, column {cell[1] + 1}"
        if (span := self.span(index)) is not None:
            return f"“{self.text[slice(*span)]}”"
        return f"feature {index}"

    def pieces(self) -> list[Piece]:
        """The whole text, cut into tokens and what lies between them."""
        tokens: list[Piece] = []
        spans = [(span, index) for index in self.candidates if (span := self.span(index))]
        for (start, end), index in sorted(spans):
            if tokens and start < tokens[-1].end:  # tokens of parts of one character
                last = tokens.pop()
                tokens.append(Piece(last.start, max(last.end, end), (*last.indexes, index)))
            else:
                tokens.append(Piece(start, end, (index,)))
        pieces, position = [], 0
        for token in tokens:
            if token.start > position:
                pieces.append(Piece(position, token.start))
            pieces.append(token)
            position = token.end
        if self.text is not None and position < len(self.text):
            pieces.append(Piece(position, len(self.text)))
        return pieces

    def picture(self, longest_side: int | None = None) -> Image.Image | None:
        """The picture in RGB, at most `longest_side` pixels long; None where its file is gone, cannot be read, or has
        another size than when it was encoded."""
        if self.path is None and self.content is None:
            return None
        try:
            picture = open_image({"path": self.path, "bytes": self.content})
        except ValueError:
            return None
        if picture.size != self.size:
            return None
        if longest_side and max(picture.size) > longest_side:
            picture.thumbnail((longest_side, longest_side))
        return picture

    def to_dict(self) -> dict[str, Any]:
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in vars(self).items()}
        values["offsets"] = self.offsets and [list(span) for span in self.offsets]
        values["content"] = self.content and base64.b64encode(self.content).decode()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Modality":
        values = dict(values)
        for name in ("size", "grid", "region"):
            values[name] = values[name] and tuple(values[name])
        values["offsets"] = values["offsets"] and [tuple(span) for span in values["offsets"]]
        values["content"] = values["content"] and base64.b64decode(values["content"])
        return cls(**values)


def _guess_grid(num_patches: int, input_size: Sequence[int] | None) -> tuple[int, int] | None:
    """The grid whose patches are square in the encoder's input."""
    if not input_size or not num_patches:
        return None
    height, width = input_size
    rows = math.isqrt(num_patches * height // width)
    return (rows, num_patches // rows) if rows and rows * rows * width == num_patches * height else None
