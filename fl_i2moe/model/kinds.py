"""All kinds of raw values by their names, and where features of a row lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .kind import EncodedKind, Kind, Places
from .kind_array import ArrayKind, ArrayPlaces
from .kind_image import ImageKind, ImagePlaces
from .kind_text import TextKind, TextPlaces

KINDS: dict[str, Kind] = {kind.name: kind for kind in (ImageKind(), TextKind(), ArrayKind())}
ENCODED_KINDS: dict[str, EncodedKind] = {name: kind for name, kind in KINDS.items() if isinstance(kind, EncodedKind)}
"""Those that users can give as they are."""

PLACES: dict[str, type[Places]] = {x.kind: x for x in (ImagePlaces, TextPlaces, ArrayPlaces)}


def places_in(
    row: Mapping[str, Any],
    name: str,
    encoder: Mapping[str, Any] | None = None,
    grid: Sequence[int] | None = None,
) -> Places:
    """
    One modality of a row of a feature cache, and where its features lie.

    Args:
        encoder: the encoder's identity, from `FeatureCache.modalities` or `config.encoders`.
        grid: rows and columns of the encoder's patches. Without it the grid is worked out from the number of patches
            and the encoder's input size, where these allow but one.
    """
    encoder = encoder or {}
    is_special = row[f"{name}_special_mask"]
    common = {
        "num_features": len(is_special),
        "special": [index for index, special in enumerate(is_special) if special],
        **{field: encoder.get(field) for field in ("hidden_layer", "special_features")},
        "encoder": encoder.get("name"),
    }
    annotated = (
        kind for kind in KINDS.values() if any(row.get(f"{name}_{suffix}") for suffix in kind.annotation_types)
    )
    return next(annotated, KINDS["array"]).places(row, name, common, encoder, grid)


def places_from_dict(values: Mapping[str, Any]) -> Places:
    """The inverse of `Places.to_dict`."""
    return PLACES.get(values["kind"], ArrayPlaces).from_dict(values)
