"""
Arrays: features already, which are standardised and not encoded.

Shape letters: B samples, T features of a sequence, D numbers of a feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .kind import EncodedFeatures, Kind, Places, Preprocessed


@dataclass(frozen=True)
class ArrayEncoder:
    """Stands where a frozen encoder stands: bytes of float32 arrays (T, D) in, `(x − mean) / scale` out."""

    feature_size: int
    """D"""

    max_features: int
    """The longest T."""

    mean: Tensor | None = None
    """(D,); None where features stay as they are."""

    scale: Tensor | None = None

    kind = "array"
    grid = None

    @property
    def preprocess(self) -> Callable[[list[bytes]], Preprocessed]:
        return partial(_pad, feature_size=self.feature_size)

    def encode(self, inputs: Mapping[str, Tensor]) -> EncodedFeatures:
        features, lengths = inputs["features"], inputs["lengths"]
        if self.mean is not None:
            features = (features - self.mean) / self.scale
        mask = torch.arange(features.shape[1]) < lengths[:, None]
        return EncodedFeatures(features.masked_fill(~mask[..., None], 0.0), mask, torch.zeros_like(mask))

    def identity(self) -> dict[str, Any]:
        """What the features depend on beside the arrays, as plain JSON."""
        digest = None
        if self.mean is not None:
            digest = hashlib.sha256(torch.cat([self.mean, self.scale]).numpy().tobytes()).hexdigest()
        return {
            "name": "numeric arrays",
            "kind": self.kind,
            "feature_size": self.feature_size,
            "standardised_by": digest,
        }


@dataclass
class ArrayPlaces(Places):
    """An array, whose features are its rows."""

    kind: ClassVar[str] = "array"


class ArrayKind(Kind):
    """Arrays of numbers."""

    name = "array"
    raw_type: ClassVar = {"dtype": "binary", "_type": "Value"}
    keeps_raw = False
    hub_task = "tabular-classification"

    def places(
        self, row: Mapping[str, Any], name: str, common: dict[str, Any], encoder: Mapping[str, Any], grid: Any
    ) -> ArrayPlaces:
        return ArrayPlaces(**common)


def _pad(values: list[bytes], feature_size: int) -> Preprocessed:
    arrays = [np.frombuffer(value, np.float32).reshape(-1, feature_size) for value in values]
    lengths = [len(array) for array in arrays]
    features = torch.zeros(len(arrays), max(lengths), feature_size)
    for row, array in zip(features.numpy(), arrays, strict=True):
        row[: len(array)] = array
    return Preprocessed({"features": features, "lengths": torch.tensor(lengths)}, [{} for _ in values])
