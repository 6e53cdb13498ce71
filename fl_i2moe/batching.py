"""From a split of the feature cache to padded batches.

The cache is read as NumPy views of its mapped Arrow buffers and copied once, into the batch: several times faster than
`with_format("torch")`, in float16 as stored, and without memory that grows with the features.

Shape letters: B samples, T features of a sequence (padded to the longest of the batch), D encoder width, C classes, M
modalities, N features of a record batch of the file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class _Sequences:
    """
    One modality's sequences in all rows of a table: views of the features, and a few bytes a row that say where.

    What is small is gathered here once, so that a batch costs one look-up for all of its rows and one copy for each.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], modality: str) -> None:
        columns = [batch.column(f"{modality}_features") for batch in batches]
        offsets = [column.storage.offsets.to_numpy(zero_copy_only=True) for column in columns]
        self.features_ND = [_vectors(column) for column in columns]
        """Of each record batch."""
        self.starts = np.concatenate([x[:-1] for x in offsets])
        """(rows,): where the row's first feature stands in its record batch."""
        self.lengths = np.concatenate([np.diff(x) for x in offsets])
        """(rows,)"""
        masks, longest = [batch.column(f"{modality}_special_mask") for batch in batches], int(self.lengths.max())
        self.special_bits = np.concatenate([_aligned_bits(mask, longest) for mask in masks])
        """(rows, longest / 8, rounded up): true where a feature is special, eight to a byte."""

    def copy_features(self, batches: list[int], rows: NDArray[np.int64], target_BTD: NDArray[np.float16]) -> None:
        """Copies rows, which lie in these record batches, to where there is room for them; zeroes what is left."""
        starts, lengths = self.starts[rows].tolist(), self.lengths[rows].tolist()
        for target, batch, start, length in zip(target_BTD, batches, starts, lengths, strict=True):
            target[:length] = self.features_ND[batch][start : start + length]
            if length < len(target):
                target[length:] = 0

    def masks(self, rows: NDArray[np.int64], length: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which features are real, and which are special, both (B, `length`)."""
        is_special = np.unpackbits(self.special_bits[rows], axis=1, count=length, bitorder="little")
        return np.arange(length) < self.lengths[rows, None], is_special.view(np.bool_)


def _vectors(column: pa.Array) -> NDArray[np.float16]:
    """A view of all features of a record batch, (N, D)."""
    vectors = column.storage.values
    return vectors.flatten().to_numpy(zero_copy_only=True).reshape(len(vectors), column.type.shape[1])


def _aligned_bits(masks: pa.Array, longest: int) -> NDArray[np.uint8]:
    """Arrow's list of booleans, whose rows begin anywhere in a byte, as rows of whole bytes."""
    lengths = np.diff(masks.offsets.to_numpy(zero_copy_only=True))
    padded = np.zeros((len(lengths), longest), np.bool_)
    padded[np.arange(longest) < lengths[:, None]] = masks.flatten().to_numpy(zero_copy_only=False)
    return np.packbits(padded, axis=1, bitorder="little")


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
        SampleError: when a sample is first read, its features are NaN or infinite.
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
        self._batch_of_row = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])
        self._sequences = {name: _Sequences(batches, name) for name in modality_order}
        self._labels = np.concatenate([_labels(batch) for batch in batches])
        self._ids = pa.concat_arrays([batch.column("id") for batch in batches])
        self._is_checked = np.zeros(len(self._labels), np.bool_)
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
        lengths = np.stack([x.lengths for x in self._sequences.values()], axis=1).astype(np.int64)
        return lengths if self._indices is None else lengths[self._indices]

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Any]:
        table_rows = np.asarray(rows) if self._indices is None else self._indices[rows].astype(np.int64)
        batches = self._batch_of_row[table_rows].tolist()
        ids = self._ids.take(pa.array(table_rows)).to_pylist()
        batch: dict[str, Any] = {"features": {}, "feature_masks": {}, "special_masks": {}, "ids": ids}
        batch["labels"] = torch.from_numpy(self._labels[table_rows])
        is_checked = self._is_checked[table_rows].all()
        for name, sequences in self._sequences.items():
            length = sequences.lengths[table_rows].max()
            length = min(-(-int(length) // self.pad_to_multiple_of) * self.pad_to_multiple_of, self._longest[name])
            features = torch.empty(len(batches), length, sequences.features_ND[0].shape[1], dtype=torch.float16)
            sequences.copy_features(batches, table_rows, features.numpy())
            if not is_checked and has_non_finite(features.numpy()):
                self._raise_non_finite(name, features, ids)
            is_real, is_special = sequences.masks(table_rows, length)
            batch["features"][name] = features
            batch["feature_masks"][name] = torch.from_numpy(is_real)
            batch["special_masks"][name] = torch.from_numpy(is_special)
        self._is_checked[table_rows] = True
        return batch

    __getitems__ = __getitem__

    def _raise_non_finite(self, modality: str, features: Tensor, ids: list[str]) -> None:
        row = int((~features.isfinite()).any(dim=2).any(dim=1).nonzero()[0])
        file = self.split.cache_files[0]["filename"] if self.split.cache_files else "-"
        reason = "its cached features are NaN or infinite; delete the cache and build it again"
        raise SampleError(str(self.split.split), ids[row], modality, file, reason)


def _labels(batch: pa.RecordBatch) -> NDArray[Any]:
    labels = batch.column("labels")
    is_list = hasattr(labels, "flatten")
    numbers = (labels.flatten() if is_list else labels).to_numpy(zero_copy_only=True)
    return numbers.reshape(batch.num_rows, -1) if is_list else numbers


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
