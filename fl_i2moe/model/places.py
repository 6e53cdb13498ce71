"""Where the features of a modality lie in a sample, and the units that a person sees in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnitOptions:
    """What a raw value is cut into, where that can be chosen."""

    cells: tuple[int, int] | None = None
    """Rows and columns of a picture; the encoder's own grid if not given."""

    text: Literal["words", "sentences"] = "words"

    most: int = 256
    """Of a modality: neighbours are put together where there are more."""

    def __post_init__(self) -> None:
        if self.cells is not None and (len(self.cells) != 2 or not all(number > 0 for number in self.cells)):
            raise ValueError(f"`cells` takes two numbers from 1, rows and columns, got {self.cells}.")
        if self.text not in ("words", "sentences"):
            raise ValueError(f"`text` must be words or sentences, got {self.text!r}.")
        if self.most < 1:
            raise ValueError(f"`most` must be at least 1, got {self.most}.")


@dataclass(frozen=True)
class Units:
    """The units of one modality of a sample: what a person sees as one, and what is taken out as one."""

    places: Places
    """Whose features are the units."""

    features: list[list[int]]
    """Unit → the features that it is made of; none of a special one."""

    note: str | None = None
    """What a reader has to know, as the end of a sentence."""

    def of_features(self, units: Tensor, num_features: int) -> Tensor:
        """Masks of units (…, U) as masks of features (…, T), true for special ones."""
        mask = torch.ones(*units.shape[:-1], num_features, dtype=torch.bool, device=units.device)
        for unit, features in enumerate(self.features):
            mask[..., features] = units[..., unit, None]
        return mask


@dataclass
class Places:
    """One modality of a sample, and where each of its T features lies in it."""

    kind: ClassVar[str] = "array"
    feature_noun: ClassVar[str] = "features"
    """What the features of an encoder's sequence are called."""

    num_features: int
    special: list[int]
    """Features that are special: they lie nowhere and are never blamed."""

    encoder: str | None = None
    hidden_layer: int | None = None
    """None: the encoder's last layer."""

    special_features: str | None = None
    """`"keep"` or `"drop"`: whether the sequence holds CLS, BOS and SEP."""

    sha256: str | None = None
    """Of the raw value that was encoded, see `Kind.content`; None if unknown."""

    unit: str | None = None
    """What its features are called, where they are units of the raw value and not those of a sequence."""

    @property
    def noun(self) -> str:
        """What its features are called."""
        return self.unit or self.feature_noun

    @property
    def candidates(self) -> list[int]:
        """Features that are not special, in order."""
        special = set(self.special)
        return [index for index in range(self.num_features) if index not in special]

    @property
    def is_placed(self) -> bool:
        """Whether it is known where features lie."""
        return False

    def name_of(self, index: int) -> str:
        """What a person calls the feature."""
        return f"feature {index}"

    def place_of(self, index: int) -> dict[str, Any]:
        """Where the feature lies, in the words of its kind; empty where that is not known."""
        return {}

    def units(self, options: UnitOptions) -> Units:
        """The units of the raw value; `ValueError` where they cannot be found, with the reason."""
        special = set(self.special)
        return Units(self, [[] if index in special else [index] for index in range(self.num_features)])

    def missing(self) -> str | None:
        """Why the raw value cannot be shown, and what to do, as the end of a sentence; None if it can."""
        return None

    def unchecked(self) -> str | None:
        """Why what is shown may not be what was encoded, as the end of a sentence; None if it is."""
        return None

    def to_dict(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of [`to_dict`]."""
        return cls(**{item.name: values.get(item.name) for item in fields(cls)})

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], name: str, encoder: Mapping[str, Any], grid: Sequence[int] | None
    ) -> Self:
        """See [`~fl_i2moe.model.kinds.places_in`]."""
        is_special = row[f"{name}_special_mask"]
        return cls(
            num_features=len(is_special),
            special=[index for index, special in enumerate(is_special) if special],
            encoder=encoder.get("name"),
            hidden_layer=encoder.get("hidden_layer"),
            special_features=encoder.get("special_features"),
            sha256=row.get(f"{name}_sha256"),
        )


def merge_neighbours(groups: list[list[int]], most: int) -> list[list[int]]:
    """At most so many groups, of neighbours that are put together."""
    step = -(-len(groups) // most)
    runs = (groups[start : start + step] for start in range(0, len(groups), step))
    return [list(chain.from_iterable(run)) for run in runs]
