"""Arrays of features (T, D), on their way into the feature cache: nothing is encoded, only standardised."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from ..data.raw import RawDataset
from ..model.kind_array import ArrayEncoder
from ..utils.files import write_file

SMALLEST_SCALE = 1e-6  # of a number's standard deviation, beside its mean: what is smaller is rounding


def array_encoders(data: RawDataset, standardize: bool = True) -> dict[str, ArrayEncoder]:
    """
    One encoder for each modality.

    Args:
        standardize: give each of a modality's D numbers mean 0 and standard deviation 1 over all features of the
            training split; a number that is the same everywhere becomes 0.
    """
    encoders = {}
    for name, size in data.feature_sizes.items():
        longest = max(len(x) // (4 * size) for split in data.splits.values() for x in _contents(split, name))
        mean, scale = _moments(data.splits["train"], name, size) if standardize else (None, None)
        encoders[name] = ArrayEncoder(size, longest, mean, scale)
    return encoders


def save_standardization(encoders: Mapping[str, ArrayEncoder], file: str | Path) -> None:
    """Writes `<modality>.mean` and `<modality>.scale`, (D,) each, as safetensors: new arrays need the same."""
    tensors: dict[str, Tensor] = {}
    for name, encoder in encoders.items():
        if encoder.mean is not None:
            tensors |= {f"{name}.mean": encoder.mean, f"{name}.scale": encoder.scale}
    write_file(Path(file), lambda unfinished: save_file(tensors, unfinished))


def _contents(split: Dataset, name: str) -> Iterator[bytes]:
    for batch in split.select_columns([name]).with_format(None).iter(batch_size=1000):
        yield from batch[name]


def _moments(split: Dataset, name: str, size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (D,) float32, from two passes in float64."""

    def features() -> Iterator[NDArray[np.float64]]:
        for content in _contents(split, name):
            yield np.frombuffer(content, np.float32).reshape(-1, size).astype(np.float64)

    count = sum(len(x) for x in features())
    mean = sum((x.sum(axis=0) for x in features()), np.zeros(size)) / count
    scale = np.sqrt(sum((((x - mean) ** 2).sum(axis=0) for x in features()), np.zeros(size)) / count)
    scale[~(scale > SMALLEST_SCALE * np.maximum(np.abs(mean), SMALLEST_SCALE))] = 1.0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))
