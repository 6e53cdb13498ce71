"""From a split of the feature cache to padded batches.

The cache is read as NumPy views of its mapped Arrow buffers and copied once, into the batch: several times faster than
`with_format("torch")`, in float16 as stored, and without memory that grows with the features.

Shape letters: B samples, T features of a sequence (padded to the longest of the batch), D encoder width, C classes, M
modalities, N features of a chunk of the file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from .data.raw import SampleError
from .encoding import has_non_finite

BUCKET_BATCHES = 50
"""Length buckets sort by length within this many batches: enough to pad little, few enough to stay random."""


@dataclass(frozen=True)
class _Sequences:
    """Views of one modality's sequences in one record batch of n rows."""

    features_ND: NDArray[np.float16]
    offsets: NDArray[np.int32]
    """(n + 1,): row i is `features_ND[offsets[i] : offsets[i + 1]]`."""

    special_bits: NDArray[np.uint8]
    """Arrow's booleans, eight to a byte."""

    special_offsets: NDArray[np.int32]

    @classmethod
    def of(cls, batch: pa.RecordBatch, modality: str) -> "_Sequences":
        column = batch.column(f"{modality}_features")
        mask = batch.column(f"{modality}_special_mask")
        vectors = column.storage.values
        values = vectors.flatten().to_numpy(zero_copy_only=True)
        return cls(
            features_ND=values.reshape(len(vectors), column.type.shape[1]),
            offsets=column.storage.offsets.to_numpy(zero_copy_only=True),
            special_bits=np.frombuffer(mask.values.buffers()[1], np.uint8),
            special_offsets=mask.offsets.to_numpy(zero_copy_only=True) + mask.values.offset,
        )

    def features(self, row: int) -> NDArray[np.float16]:
        return self.features_ND[self.offsets[row] : self.offsets[row + 1]]

    def special_mask(self, row: int) -> NDArray[np.uint8]:
        start, end = int(self.special_offsets[row]), int(self.special_offsets[row + 1])
        first_byte, skipped_bits = divmod(start, 8)
        bits = np.unpackbits(self.special_bits[first_byte : (end + 7) // 8], bitorder="little")
        return bits[skipped_bits : skipped_bits + end - start]


@dataclass(frozen=True)
class _Chunk:
    """Views of one record batch."""

    ids: pa.StringArray
    labels: NDArray[Any]
    sequences: dict[str, _Sequences]

    @classmethod
    def of(cls, batch: pa.RecordBatch, modality_order: Sequence[str]) -> "_Chunk":
        labels = batch.column("labels")
        is_list = hasattr(labels, "flatten")
        numbers = (labels.flatten() if is_list else labels).to_numpy(zero_copy_only=True)
        return cls(
            ids=batch.column("id"),
            labels=numbers.reshape(batch.num_rows, -1) if is_list else numbers,
            sequences={name: _Sequences.of(batch, name) for name in modality_order},
        )


class FeatureRows(torch.utils.data.Dataset):
    """A split of the feature cache as padded batches of any of its rows.

    `rows[[3, 1, 4]]`, and a `DataLoader` through `__getitems__`, gives the batch

    - `features`: modality → (B, T, D) float16, zero where padded
    - `feature_masks`: modality → (B, T) bool, true where a feature is real
    - `special_masks`: modality → (B, T) bool, true where a feature is special (CLS, BOS, SEP)
    - `labels`: (B, C) float32, or (B,) int64 for single-label data
    - `ids`: list of B strings

    Args:
        split: one of `FeatureCache.splits`, also after `select`, `shuffle` or `train_test_split`.
        modality_order: the modalities to read.
        pad_to_multiple_of: T is rounded up to it, but not above the longest sequence of the split. Few different
            lengths keep the memory that kernels and allocators hold per shape small.
        longest: modality → what stands for the longest sequence, where this is only a part of the split.

    Raises:
        ValueError: the split lacks a modality's columns.
        SampleError: on reading, a sample's features are NaN or infinite.
    """

    def __init__(
        self,
        split: Dataset,
        modality_order: Sequence[str],
        pad_to_multiple_of: int = 1,
        longest: Mapping[str, int] | None = None,
    ) -> None:
        missing = [name for name in modality_order if f"{name}_features" not in split.column_names]
        if missing:
            raise ValueError(f"the cache has no features of {missing}; its columns are {split.column_names}")
        self.split = split
        self.modality_order = list(modality_order)
        self.pad_to_multiple_of = pad_to_multiple_of
        columns = [f"{name}_{kind}" for name in modality_order for kind in ("features", "special_mask")]
        batches = [batch for batch in split.data.select(["id", "labels", *columns]).to_batches() if batch.num_rows]
        self._chunks = [_Chunk.of(batch, modality_order) for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        # `select` and its like leave the table as it is and keep a list of rows
        self._indices = None if split._indices is None else split._indices.column(0).to_numpy()
        found = dict(zip(self.modality_order, self.lengths().max(axis=0).tolist(), strict=True))
        self._longest = found if longest is None else longest

    def __reduce__(self) -> tuple[Any, ...]:
        # views do not survive pickling, a mapped table does
        return type(self), (self.split, self.modality_order, self.pad_to_multiple_of, self._longest)

    def __len__(self) -> int:
        return len(self.split)

    def lengths(self) -> NDArray[np.int64]:
        """How many features each row has per modality: (rows, M)."""
        lengths = [
            np.stack([np.diff(chunk.sequences[name].offsets) for name in self.modality_order], axis=1)
            for chunk in self._chunks
        ]
        return np.concatenate(lengths)[slice(None) if self._indices is None else self._indices]

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Any]:
        table_rows = np.asarray(rows) if self._indices is None else self._indices[rows].astype(np.int64)
        chunk_numbers = np.searchsorted(self._starts, table_rows, side="right") - 1
        rows_in_chunk = (table_rows - self._starts[chunk_numbers]).tolist()
        places = [(self._chunks[c], row) for c, row in zip(chunk_numbers.tolist(), rows_in_chunk, strict=True)]

        batch: dict[str, Any] = {"features": {}, "feature_masks": {}, "special_masks": {}}
        batch["ids"] = [chunk.ids[row].as_py() for chunk, row in places]
        batch["labels"] = torch.from_numpy(np.stack([chunk.labels[row] for chunk, row in places]))
        for name in self.modality_order:
            sequences = [(chunk.sequences[name], row) for chunk, row in places]
            features, feature_mask = self._pad(name, [sequence.features(row) for sequence, row in sequences])
            if has_non_finite(features.numpy()):
                self._raise_non_finite(name, features, batch["ids"])
            special_mask = np.zeros(feature_mask.shape, np.bool_)
            for row_mask, (sequence, row) in zip(special_mask, sequences, strict=True):
                special = sequence.special_mask(row)
                row_mask[: len(special)] = special
            batch["features"][name] = features
            batch["feature_masks"][name] = feature_mask
            batch["special_masks"][name] = torch.from_numpy(special_mask)
        return batch

    __getitems__ = __getitem__

    def _pad(self, modality: str, sequences: list[NDArray[np.float16]]) -> tuple[Tensor, Tensor]:
        """Sequences (T_i, D) to one (B, T, D) and its mask (B, T)."""
        lengths = [len(sequence) for sequence in sequences]
        rounded = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padded_length = min(rounded, self._longest[modality])
        features = torch.empty(len(sequences), padded_length, sequences[0].shape[1], dtype=torch.float16)
        for row, sequence, length in zip(features.numpy(), sequences, lengths, strict=True):
            row[:length] = sequence
            row[length:] = 0
        return features, torch.arange(padded_length) < torch.tensor(lengths)[:, None]

    def _raise_non_finite(self, modality: str, features: Tensor, ids: list[str]) -> None:
        row = int((~features.isfinite()).any(dim=2).any(dim=1).nonzero()[0])
        file = self.split.cache_files[0]["filename"] if self.split.cache_files else "-"
        reason = "its cached features are NaN or infinite; delete the cache and build it again"
        raise SampleError(str(self.split.split), ids[row], modality, file, reason)


class BatchSampler(Sampler[list[int]]):
    """Batches of row numbers, whose order depends on the seed and the epoch alone.

    Without buckets the k-th batch is the k-th piece of one permutation, so that W processes, to which Accelerate deals
    out batches of size B in turn, see in every step what one process with batches of W·B sees. Only the last batch can
    be short; where the rows make no whole steps, Accelerate fills the last one with rows from the epoch's start.

    Args:
        lengths: number of features of each row, all modalities together.
        batch_size: B.
        shuffle: draw a new order in every epoch; otherwise rows come as they are.
        seed: of the order.
        bucket: put rows of similar length together, so that little is padded; needs `shuffle`.

    Raises:
        ValueError: `bucket` without `shuffle`, or a batch size below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        bucket: bool = False,
    ) -> None:
        if bucket and not shuffle:
            raise ValueError("bucket=True needs shuffle=True: evaluation keeps the order of the rows")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.bucket = bucket
        self.epoch = 0

    @property
    def sampler(self) -> "BatchSampler":
        """Where Accelerate's wrappers look for the `set_epoch` that they pass on."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = np.arange(len(self.lengths))
        starts = np.arange(len(self)) * self.batch_size
        if self.shuffle:
            rng.shuffle(rows)
        if self.bucket:
            size = BUCKET_BATCHES * self.batch_size
            rows = put_in_buckets(rows, starts, self.lengths, self.batch_size, size, rng)
        for start in starts:
            yield rows[start : start + self.batch_size].tolist()


def put_in_buckets(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    batch_size: int,
    bucket_size: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """
    The rows, each `bucket_size` of them sorted by their length.

    Args:
        starts: where batches begin; shuffled here. A short batch stays last, as Accelerate expects.
        lengths: of all rows, by their number.
    """
    buckets = np.split(rows, range(bucket_size, len(rows), bucket_size))
    rng.shuffle(starts[: len(rows) // batch_size])
    return np.concatenate([bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets])


def create_data_loader(
    split: Dataset,
    modality_order: Sequence[str],
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    bucket: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    pad_to_multiple_of: int = 8,
) -> DataLoader:
    """A loader of `FeatureRows` batches in the order of `BatchSampler`.

    The order of an epoch is fixed by `set_epoch(epoch)` of the loader that `Accelerator.prepare` returns. A run that
    resumes in the middle of one calls it on that loader before `skip_first_batches`, whose result shares the sampler.
    Iterating draws nothing from torch's global random numbers.
    """
    rows = FeatureRows(split, modality_order, pad_to_multiple_of)
    sampler = BatchSampler(rows.lengths().sum(axis=1), batch_size, shuffle=shuffle, seed=seed, bucket=bucket)
    return DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=as_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def as_is(batch: Any) -> Any:
    """Collates what is a batch already."""
    return batch


def feature_means(split: Dataset, modality_order: Sequence[str], batch_size: int = 256) -> dict[str, Tensor]:
    """The mean over all features of a split, modality → (D,) float64."""
    rows = FeatureRows(split, modality_order)
    starts = range(0, len(rows), batch_size)
    return mean_of_batches((rows[range(x, min(x + batch_size, len(rows)))] for x in starts), modality_order)


def mean_of_batches(batches: Iterable[Mapping[str, Any]], modality_order: Sequence[str]) -> dict[str, Tensor]:
    """The same of a split that comes in batches."""
    sums = dict.fromkeys(modality_order, torch.zeros((), dtype=torch.float64))
    counts = dict.fromkeys(modality_order, 0)
    for batch in batches:
        for name in modality_order:
            sums[name] = sums[name] + batch["features"][name].sum(dim=(0, 1), dtype=torch.float64)
            counts[name] += int(batch["feature_masks"][name].sum())
    return {name: total / counts[name] for name, total in sums.items()}
