"""
Arrays: features already, which are standardised and not encoded.

Shape letters: B samples, T features of a sequence, D numbers of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .kind import FittedEncoder, FittedKind, Preprocessed, is_missing, pad_sequences


@dataclass(frozen=True, eq=False)
class ArrayEncoder(FittedEncoder):
    """Arrays (T, D), see [`as_array`], or the bytes of float32 ones, in; `(x − mean) / scale` out."""

    feature_size: int
    """D"""

    max_features: int
    """The longest T."""

    mean: NDArray[np.float32] | None = None
    """(D,); None where features stay as they are."""

    scale: NDArray[np.float32] | None = None

    kind = "array"

    def preprocess(self, values: Sequence[Any]) -> Preprocessed:
        return Preprocessed(pad_sequences([self._standardise(x) for x in values]), [{} for _ in values])

    def _standardise(self, value: Any) -> NDArray[np.float32]:
        if isinstance(value, bytes):
            if not value or len(value) % (4 * self.feature_size):
                raise ValueError(f"{len(value)} bytes are no float32 array of {self.feature_size} columns")
            array = np.frombuffer(value, np.float32).reshape(-1, self.feature_size)
        else:
            array = as_array(value)
        length, width = array.shape
        if width != self.feature_size:
            raise ValueError(f"an array has {width} numbers a vector; this modality has {self.feature_size}")
        if length > self.max_features:
            raise ValueError(f"an array has {length} vectors; at most {self.max_features} are possible")
        return array if self.mean is None else (array - self.mean) / self.scale

    def identity(self) -> dict[str, Any]:
        return {
            "name": "numeric arrays",
            "kind": self.kind,
            "feature_size": self.feature_size,
            "max_features": self.max_features,
            "mean": _shortest(self.mean),
            "scale": _shortest(self.scale),
        }

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Self:
        moments = (None if identity[key] is None else np.array(identity[key], np.float32) for key in ("mean", "scale"))
        return cls(identity["feature_size"], identity["max_features"], *moments)


class ArrayKind(FittedKind):
    """Arrays of numbers."""

    name = "array"
    raw_type: ClassVar = {"dtype": "binary", "_type": "Value"}
    keeps_raw = False
    encoder = ArrayEncoder

    def cell(self, value: Any) -> bytes:
        return value if isinstance(value, bytes) else as_array(value).tobytes()

    def is_batch(self, value: Any) -> bool:
        """A list of numbers is one vector, any other list a batch, and so is an array (B, T, D)."""
        if super().is_batch(value):
            return not len(value) or not all(_is_number(x) for x in value)
        return getattr(value, "ndim", 0) == 3

    def open(self, value: Any) -> NDArray[np.float32]:
        return as_array(value)

    def needs_features(self, identity: Mapping[str, Any]) -> str | None:
        return None if "mean" in identity else "it was trained by version 0.1.0, which kept no mean and scale with it"

    def example(self, modality: str, identity: Mapping[str, Any]) -> str:
        return f"[0.0] * {identity['feature_size']}"

    def describe_preprocessing(self, identity: Mapping[str, Any]) -> str:
        how = "taken as they are" if identity["mean"] is None else "standardised by the training split"
        return f"Arrays have {identity['feature_size']} numbers a vector, which are {how}."

    def from_table(self, value: Any, folders: Sequence[Path]) -> NDArray[np.float32] | None:
        """See [`as_array`]; also the JSON text of an array."""
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"it holds {value[:60]!r}, which is no JSON list of numbers") from error
        return None if is_missing(value) or (isinstance(value, list) and not value) else as_array(value)

    def feature_size(self, value: np.ndarray) -> int:
        return value.shape[1]


def as_array(value: Any) -> NDArray[np.float32]:
    """
    A raw value as an array (T, D).

    Args:
        value: a number, a vector (D,) or a sequence of vectors (T, D): lists, a NumPy array or a tensor.

    Raises:
        ValueError: it is something else, ragged or empty, or has numbers that are masked, NaN or infinite.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().to_dense().double().numpy()
    if np.ma.is_masked(value):
        raise ValueError("an array has numbers that are masked")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"an array is ragged, its vectors have different lengths: {value!r:.80}") from error
    if array.dtype.kind not in "biuf" or array.ndim > 2:
        found = f"{array.ndim} dimensions" if array.dtype.kind in "biuf" else f"{type(value).__name__} {value!r:.80}"
        raise ValueError(f"an array is numbers, a vector (D,) or vectors (T, D), got {found}")
    if not array.size:
        raise ValueError("an array is empty")
    with np.errstate(over="ignore"):
        array = np.atleast_2d(array).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"an array has numbers that are NaN or infinite (as 32-bit numbers): {value!s:.80}")
    return array


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or getattr(value, "ndim", None) == 0


def _shortest(numbers: NDArray[np.float32] | None) -> list[float] | None:
    """With as few digits as tell 32-bit numbers apart, which makes JSON half as long."""
    return None if numbers is None else [float(str(x)) for x in numbers]
