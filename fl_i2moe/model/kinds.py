"""All kinds of raw values by their names, and where features of a row lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .kind import EncodedKind, Kind
from .kind_array import ArrayKind
from .kind_audio import AudioKind
from .kind_image import ImageKind
from .kind_tabular import TabularKind
from .kind_text import TextKind
from .places import Places

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (ImageKind(), TextKind(), AudioKind(), ArrayKind(), TabularKind())
}
ENCODED_KINDS: dict[str, EncodedKind] = {name: kind for name, kind in KINDS.items() if isinstance(kind, EncodedKind)}
"""Those that a Hugging Face model encodes."""


def places_in(
    row: Mapping[str, Any], name: str, encoder: Mapping[str, Any] | None = None, grid: Sequence[int] | None = None
) -> Places:
    """
    One modality of a row of a feature cache, and where its features lie.

    Args:
        encoder: the encoder's identity, from `FeatureCache.modalities` or `config.encoders`.
        grid: rows and columns of the encoder's patches. Without it the grid is worked out from the number of patches
            and the encoder's input size, where these allow but one.
    """
    encoder = encoder or {}
    kinds = [KINDS[encoder["kind"]]] if encoder.get("kind") in KINDS else KINDS.values()
    annotated = (kind for kind in kinds if any(row.get(f"{name}_{suffix}") for suffix in kind.annotation_types))
    return next(annotated, KINDS["array"]).places.from_row(row, name, encoder, grid)


def places_from_dict(values: Mapping[str, Any]) -> Places:
    """The inverse of `Places.to_dict`."""
    return KINDS.get(values["kind"], KINDS["array"]).places.from_dict(values)
