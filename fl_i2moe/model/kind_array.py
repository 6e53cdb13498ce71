"""
Arrays: features already, which are standardised and not encoded.

Shape letters: B samples, T features of a sequence, D numbers of a feature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .kind import EncodedFeatures, Kind, Preprocessed, is_missing


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


class ArrayKind(Kind):
    """Arrays of numbers."""

    name = "array"
    raw_type: ClassVar = {"dtype": "binary", "_type": "Value"}
    keeps_raw = False
    hub_task = "tabular-classification"

    def from_table(self, value: Any, folders: Sequence[Path]) -> np.ndarray | None:
        """(T, D) float32, of one vector or a list of vectors, or the JSON text of it."""
        if is_missing(value):
            return None
        try:
            numbers = json.loads(value) if isinstance(value, str) else value
            array = np.array(numbers, np.float64)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"it holds {str(value)[:60]!r}; an array is a list of numbers, or a list of such lists of one length"
            ) from error
        if not array.size and array.ndim < 3:
            return None
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and told as such
            array = array.reshape(1, -1).astype(np.float32) if array.ndim < 2 else array.astype(np.float32)
        if array.ndim > 2 or not np.isfinite(array).all():
            what = "more than two levels of lists" if array.ndim > 2 else "numbers that are missing, NaN or infinite"
            raise ValueError(f"it has {what}: {str(value)[:60]}")
        return array

    def feature_size(self, value: np.ndarray) -> int:
        return value.shape[1]

    def cell(self, value: Any) -> bytes:
        return value if isinstance(value, bytes) else np.asarray(value, np.float32).tobytes()


def _pad(values: list[bytes], feature_size: int) -> Preprocessed:
    arrays = [np.frombuffer(value, np.float32).reshape(-1, feature_size) for value in values]
    lengths = [len(array) for array in arrays]
    features = torch.zeros(len(arrays), max(lengths), feature_size)
    for row, array in zip(features.numpy(), arrays, strict=True):
        row[: len(array)] = array
    return Preprocessed({"features": features, "lengths": torch.tensor(lengths)}, [{} for _ in values])
