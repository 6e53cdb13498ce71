"""From a split of the feature cache to padded batches.

The cache is read as NumPy views of its mapped Arrow buffers and copied once, into the batch: several times faster than
`with_format("torch")`, in float16 as stored, and without memory that grows with the features.

Shape letters: B samples, T features of a sequence (padded to the longest of the batch), D encoder width, C classes, M
modalities, N features of a record batch of the file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..data.raw import SampleError
from .encoding import batch_loader, has_non_finite
from .masked_copies import CopyDraw, copy_columns

BUCKET_BATCHES = 50  # sorted by length together: enough to pad little, few enough to stay random


def _vectors(column: pa.Array) -> NDArray[np.float16]:
    """A view of all features of a record batch, (N, D)."""
    vectors = column.storage.values
    return vectors.flatten().to_numpy(zero_copy_only=True).reshape(len(vectors), column.type.shape[1])


def row_columns(names: Sequence[str], modality_order: Sequence[str]) -> list[str]:
    """Of the columns of a cache those that [`FeatureRows`] reads beside id and labels."""
    columns = [f"{name}_{kind}" for name in modality_order for kind in ("features", "special_mask")]
    return columns + [x for name in modality_order for x in copy_columns(name, 1) if x in names]


def _copies(
    batches: Sequence[pa.RecordBatch], name: str
) -> tuple[list[NDArray[np.float16]], list[NDArray[np.bool_]], NDArray[np.int32]]:
    """Of each record batch the features of all copies and which are kept; where those of each row begin in it."""
    columns = [batch.column(f"{name}_masked_features") for batch in batches]
    kept = [batch.column(f"{name}_masked_kept").flatten().to_numpy(zero_copy_only=False) for batch in batches]
    starts = [column.storage.offsets.to_numpy(zero_copy_only=True)[:-1] for column in columns]
    return [_vectors(column) for column in columns], kept, np.concatenate(starts)


def _where(number: int, batch: pa.RecordBatch, modality_order: Sequence[str]) -> NDArray[np.int32]:
    """The number of the record batch; where each modality's features begin in it, and how many: (rows, 1 + 2·M)."""
    columns = [np.full(batch.num_rows, number)]
    for name in modality_order:
        offsets = batch.column(f"{name}_features").storage.offsets.to_numpy(zero_copy_only=True)
        columns += [offsets[:-1], np.diff(offsets)]
    return np.stack(columns, axis=1, dtype=np.int32)


def _labels(batch: pa.RecordBatch) -> NDArray[Any]:
    labels = batch.column("labels")
    if not hasattr(labels, "flatten"):  # classes
        return labels.to_numpy(zero_copy_only=True)
    return labels.flatten().to_numpy(zero_copy_only=True).reshape(batch.num_rows, -1)


def _mask_bits(masks: pa.Array, longest: int) -> NDArray[np.uint8]:
    """Which features are real, and behind that which are special, eight to a byte: (rows, 2 · `longest` / 8)."""
    is_real = np.arange(longest) < np.diff(masks.offsets.to_numpy(zero_copy_only=True))[:, None]
    is_special = np.zeros_like(is_real)
    is_special[is_real] = masks.flatten().to_numpy(zero_copy_only=False)
    return np.packbits(np.concatenate([is_real, is_special], axis=1), axis=1)


@dataclass(eq=False, repr=False)
class FeatureRows(torch.utils.data.Dataset):
    """A split of the feature cache as padded batches of any of its rows.

    `rows[[3, 1, 4]]`, or a `DataLoader`, gives the batch

    - `features`: modality → (B, T, D) float16, zero where padded
    - `feature_masks`: modality → (B, T) bool, true where a feature is real; false throughout, and T at least 1, where
      samples lack the modality
    - `special_masks`: modality → (B, T) bool, true where a feature is special (CLS, BOS, SEP)
    - `labels`: (B, C) float32, or (B,) int64 for single-label data
    - `ids`: list of B strings
    - `keep`: modality → (B, T) bool, false where a feature was taken out, of modalities with masked copies; only where
      copies are asked for: rows are then (B, 1 + M), with the number of each modality's copy behind that of the row, 0
      for the whole sequence

    Args:
        split: one of `FeatureCache.splits`, also after `select`, `shuffle` or `train_test_split`.
        pad_to_multiple_of: T is rounded up to it, but not above the longest sequence of the split. Few different
            lengths keep the memory that kernels and allocators hold per shape small.
        longest: modality → what stands for the longest sequence, where this is only a part of the split.

    Raises:
        ValueError: the split lacks a modality's columns.
        SampleError: when a sample is first read, its features are NaN or infinite.
    """

    split: Dataset
    modality_order: Sequence[str]
    pad_to_multiple_of: int = 1
    longest: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        split, modality_order = self.split, self.modality_order
        if missing := [name for name in modality_order if f"{name}_features" not in split.column_names]:
            raise ValueError(f"the cache has no features of {missing}; its columns are {split.column_names}")
        columns = row_columns(split.column_names, modality_order)
        self.copied = [f"{name}_masked_features" in columns for name in modality_order]
        batches = [batch for batch in split.data.select(["id", "labels", *columns]).to_batches() if batch.num_rows]
        # Every look-up of a batch meets a cold cache: what is small is gathered here once, in as few tables as can be,
        # and of the features there are views alone.
        self._vectors_ND = [
            [_vectors(batch.column(f"{name}_features")) for batch in batches] for name in modality_order
        ]
        self._where = np.concatenate([_where(number, batch, modality_order) for number, batch in enumerate(batches)])
        self._labels = np.concatenate([_labels(batch) for batch in batches])
        self._ids = [sample_id for batch in batches for sample_id in batch.column("id").to_pylist()]
        self._is_checked = np.zeros(len(self._labels), np.bool_)
        # `select` and its like leave the table as it is and keep a list of rows
        self._indices = None if split._indices is None else split._indices.column(0).to_numpy()
        self.longest = self.longest or dict(zip(modality_order, self.lengths().max(axis=0).tolist(), strict=True))
        self.longest = {name: max(1, length) for name, length in self.longest.items()}
        most = np.maximum(self._where[:, 2::2].max(axis=0), [self.longest[name] for name in modality_order])
        self._widths = (-(-most // 8) * 8).tolist()  # of each modality's two masks, in bits
        self._copies = [
            _copies(batches, name) if x else None for name, x in zip(modality_order, self.copied, strict=True)
        ]
        self._mask_bits = np.concatenate(
            [
                np.concatenate([_mask_bits(batch.column(f"{name}_special_mask"), width) for batch in batches])
                for name, width in zip(modality_order, self._widths, strict=True)
            ],
            axis=1,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # views do not survive pickling, a mapped table does
        return type(self), (self.split, self.modality_order, self.pad_to_multiple_of, self.longest)

    def __len__(self) -> int:
        return len(self.split)

    def lengths(self) -> NDArray[np.int64]:
        """How many features each row has per modality: (rows, M)."""
        lengths = self._where[:, 2::2].astype(np.int64)
        return lengths if self._indices is None else lengths[self._indices]

    def __getitem__(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> dict[str, Any]:
        rows = np.asarray(rows)
        if rows.ndim == 2:
            return self._with_copies(self[rows[:, 0]], rows[:, 0], rows[:, 1:])
        table_rows = rows.copy() if self._indices is None else self._indices[rows].astype(np.int64)
        batch: dict[str, Any] = {"features": {}, "feature_masks": {}, "special_masks": {}}
        batch["ids"] = [self._ids[row] for row in table_rows.tolist()]
        batch["labels"] = torch.from_numpy(self._labels[table_rows])
        is_checked = self._is_checked[table_rows].all()
        where = self._where[table_rows]
        lengths = where[:, 2::2].max(axis=0).tolist()
        where = where.tolist()
        masks = torch.from_numpy(np.unpackbits(self._mask_bits[table_rows], axis=1).view(np.bool_))
        start = 0
        for index, name in enumerate(self.modality_order):
            length = -(-max(1, lengths[index]) // self.pad_to_multiple_of) * self.pad_to_multiple_of
            length, width = min(length, self.longest[name]), self._widths[index]
            features = self._copy_features(index, where, length)
            if not is_checked and has_non_finite(features):
                self._raise_non_finite(name, features, batch["ids"])
            batch["features"][name] = torch.from_numpy(features)
            batch["feature_masks"][name] = masks[:, start : start + length]
            batch["special_masks"][name] = masks[:, start + width : start + width + length]
            start += 2 * width
        if not is_checked:
            self._is_checked[table_rows] = True
        return batch

    def _copy_features(self, index: int, where: list[list[int]], length: int) -> NDArray[np.float16]:
        """The features of the modality of this index, padded with zeros: (B, T, D)."""
        vectors_ND = self._vectors_ND[index]
        target_BTD = np.empty((len(where), length, vectors_ND[0].shape[1]), np.float16)
        for target, row in zip(target_BTD, where, strict=True):
            start, num_features = row[1 + 2 * index], row[2 + 2 * index]
            target[:num_features] = vectors_ND[row[0]][start : start + num_features]
            if num_features < length:
                target[num_features:] = 0
        return target_BTD

    __getitems__ = __getitem__

    def _with_copies(self, batch: dict[str, Any], rows: NDArray[Any], copies: NDArray[Any]) -> dict[str, Any]:
        """The batch of these rows, with the copies of these numbers (B, M) in the place of whole sequences."""
        table_rows = rows if self._indices is None else self._indices[rows]
        batch["keep"] = {}
        for index, name in enumerate(self.modality_order):
            if not self.copied[index]:
                continue
            vectors_ND, kept_N, starts = self._copies[index]
            features = batch["features"][name].numpy()
            keep = np.ones(features.shape[:2], np.bool_)
            for place in np.flatnonzero(copies[:, index]):
                table_row = table_rows[place]
                number, length = self._where[table_row, 0], self._where[table_row, 2 + 2 * index]
                start = starts[table_row] + length * (copies[place, index] - 1)
                features[place, :length] = vectors_ND[number][start : start + length]
                keep[place, :length] = kept_N[number][start : start + length]
            batch["keep"][name] = torch.from_numpy(keep)
        return batch

    def _raise_non_finite(self, modality: str, features: NDArray[np.float16], ids: list[str]) -> None:
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=(1, 2)))[0])
        file = self.split.cache_files[0]["filename"] if self.split.cache_files else "-"
        reason = "its cached features are NaN or infinite; delete the cache and build it again"
        raise SampleError(str(self.split.split), ids[row], modality, file, reason)


@dataclass(eq=False)
class BatchSampler(Sampler[list[int]]):
    """Batches of row numbers, whose order depends on the seed and the epoch alone.

    Without buckets the k-th batch is the k-th piece of one permutation, so that W processes, to which Accelerate deals
    out batches of size B in turn, see in every step what one process with batches of W·B sees. Only the last batch can
    be short; where the rows make no whole steps, Accelerate fills the last one with rows from the epoch's start.

    Args:
        lengths: number of features of each row, all modalities together.
        shuffle: draw a new order in every epoch; otherwise rows come as they are.
        bucket: put rows of similar length together, so that little is padded; needs `shuffle`.
        copies: which masked copies stand for whole sequences, of the modalities that are `copied`; without it a row
            is its number alone.

    Raises:
        ValueError: `bucket` without `shuffle`, or a batch size below 1.
    """

    lengths: Sequence[int] | NDArray[np.int64]
    batch_size: int
    _: KW_ONLY
    shuffle: bool
    seed: int = 0
    bucket: bool = False
    copies: CopyDraw | None = None
    copied: Sequence[bool] = ()
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.bucket and not self.shuffle:
            raise ValueError("bucket=True needs shuffle=True: evaluation keeps the order of the rows")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

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
            rows, starts = put_in_buckets(rows, starts, self.lengths, self.batch_size, size, rng)
        if self.copies is not None and self.epoch >= self.copies.first_epoch:
            # of another stream, so that the order of an epoch is the same without copies
            drawn = self.copies.draw(len(rows), self.copied, np.random.default_rng([self.seed, self.epoch, 1]))
            rows = np.column_stack([rows, drawn[rows]])
        for start in starts:
            yield rows[start : start + self.batch_size].tolist()


def put_in_buckets(
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: Sequence[int] | NDArray[np.int64],
    batch_size: int,
    bucket_size: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    The rows, each `bucket_size` of them sorted by their length, and the starts of batches in a new order. A short batch
    stays last, as Accelerate expects. `lengths` are of all rows, by their number.
    """
    lengths = np.asarray(lengths)
    buckets = np.split(rows, range(bucket_size, len(rows), bucket_size))
    num_full = len(rows) // batch_size
    starts = np.concatenate([rng.permutation(starts[:num_full]), starts[num_full:]])
    return np.concatenate([bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets]), starts


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
    copies: CopyDraw | None = None,
) -> DataLoader:
    """A loader of `FeatureRows` batches in the order of `BatchSampler`.

    The order of an epoch is fixed by `set_epoch(epoch)` of the loader that `Accelerator.prepare` returns. A run that
    resumes in the middle of one calls it on that loader before `skip_first_batches`, whose result shares the sampler.
    Iterating draws nothing from torch's global random numbers.
    """
    rows = FeatureRows(split, modality_order, pad_to_multiple_of=8)
    lengths = rows.lengths().sum(axis=1)
    order: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "bucket": bucket}
    sampler = BatchSampler(lengths, batch_size, **order, copies=copies, copied=rows.copied)
    return batch_loader(
        rows, batch_sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0, pin_memory=pin_memory
    )


def feature_means(split: Dataset, modality_order: Sequence[str]) -> dict[str, Tensor]:
    """The mean over all features of a split, modality → (D,) float64."""
    rows = FeatureRows(split, modality_order)
    batches = (rows[range(start, min(start + 256, len(rows)))] for start in range(0, len(rows), 256))
    return mean_of_batches(batches, modality_order)


def mean_of_batches(batches: Iterable[Mapping[str, Any]], modality_order: Sequence[str]) -> dict[str, Tensor]:
    """The same of a split that comes in batches."""
    sums = dict.fromkeys(modality_order, torch.zeros((), dtype=torch.float64))
    counts = dict.fromkeys(modality_order, 0)
    for batch in batches:
        for name in modality_order:
            sums[name] = sums[name] + batch["features"][name].sum(dim=(0, 1), dtype=torch.float64)
            counts[name] += int(batch["feature_masks"][name].sum())
    return {name: total / counts[name] for name, total in sums.items()}
