"""
A split of published features that is read from the Hub while a model trains on it, and never lies on the disk whole.

Each epoch draws an order of the shards, reads up to ten of them in turn, and shuffles what comes in a buffer
(`IterableDataset.shuffle`). Seed, epoch and size of the buffer fix the order.

Processes share out the shards of an epoch. They take equally many batches, so that nobody waits: as many as the most
rows need that one of them can get; one that gets fewer begins again with its first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, IterableDataset, NamedSplit, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.table import InMemoryTable
from huggingface_hub.errors import HTTPError
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ..data.raw import SampleError
from ..model.kinds import ENCODED_KINDS
from .batching import FeatureRows, put_in_buckets, row_columns
from .encoding import batch_loader
from .masked_copies import CopyDraw, copy_columns

READ_ERRORS = (OSError, HTTPError, pa.ArrowException)
MAX_ARROW_LENGTH = 2**31 - 1  # numbers in one Arrow list column, whose offsets have 32 bits


class StreamError(ConnectionError):
    """The shards cannot be reached, or the connection broke."""

    def __str__(self) -> str:
        # from a worker of a data loader comes its whole traceback, which ends with the message
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


@dataclass(frozen=True)
class StreamedSplit:
    """
    A split whose shards lie elsewhere.

    Args:
        files: pattern of the addresses of its shards.
        modalities: as in `FeatureCache`.
        buffer_size: rows that are shuffled at a time.
    """

    name: str
    files: str
    rows_per_shard: tuple[int, ...]
    modalities: Mapping[str, dict[str, Any]]
    buffer_size: int = 1024

    def __len__(self) -> int:
        return sum(self.rows_per_shard)

    def check(self, num_processes: int) -> None:
        """Raises `ValueError` if a process would have no shard, or the buffer is larger than a table can be."""
        num_shards = len(self.rows_per_shard)
        if num_shards < num_processes:
            raise ValueError(
                f"`stream_features` gives every process shards of its own, and the split {self.name!r} has "
                f"{num_shards} of them for {num_processes} processes: start at most {num_shards}, or fetch the "
                "features instead."
            )
        largest = max(x["max_features"] * x["feature_size"] for x in self.modalities.values())
        most = MAX_ARROW_LENGTH // (2 * largest)  # a buffer and what it is being filled with
        if self.buffer_size > most:
            raise ValueError(
                f"`shuffle_buffer_size` can be at most {most:,} for these features, got {self.buffer_size:,}."
            )

    def open(self) -> IterableDataset:
        """Raises `StreamError` if the shards cannot be reached, `ValueError` if their number is wrong."""
        try:
            rows = load_dataset("arrow", data_files={self.name: self.files}, split=self.name, streaming=True)
        except READ_ERRORS as error:
            raise self.broken_off(error) from error
        if rows.num_shards != len(self.rows_per_shard):
            raise ValueError(f"{self.files} are {rows.num_shards} shards, not {len(self.rows_per_shard)}.")
        return rows

    @cached_property
    def labels(self) -> NDArray[Any]:
        """(rows,) or (rows, C), in the order of the shards; a pass over the network. Raises as [`open`]."""
        rows = self.open().select_columns("labels").with_format("numpy")
        try:
            return np.concatenate([batch["labels"] for batch in rows.iter(1024)])
        except READ_ERRORS as error:
            raise self.broken_off(error) from error

    def broken_off(self, error: Exception) -> StreamError:
        """What a user reads when reading fails."""
        return StreamError(
            f"The features {self.files} could not be read on: {type(error).__name__}: {error}. What was trained up to "
            "the last checkpoint is kept: run again with --resume when the Hub can be reached, or fetch the features "
            "whole by leaving out --stream_features."
        )


@dataclass(eq=False, repr=False)
class FeatureStream(torch.utils.data.IterableDataset):
    """
    A streamed split as padded batches like those of [`FeatureRows`], in the order of the epoch.

    Args:
        shuffle: draw a new order in every epoch; otherwise rows come as they are.
        bucket: sort by length within as many batches as the buffer holds, and give these in random order; needs
            `shuffle`.
        process_index, num_processes: which share of the shards.
        pad_to_multiple_of: T is rounded up to it, but not above what the encoder makes at most.
        copies: which masked copies stand for whole sequences.

    Raises:
        StreamError: the Hub cannot be reached, or the connection breaks for longer than `datasets` tries again.
        SampleError: on reading, a sample's features are NaN or infinite.
        ValueError: see [`StreamedSplit.check`].
    """

    split: StreamedSplit
    modality_order: Sequence[str]
    _: KW_ONLY
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    bucket: bool = False
    process_index: int = 0
    num_processes: int = 1
    pad_to_multiple_of: int = 8
    copies: CopyDraw | None = None
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.split.check(self.num_processes)
        if self.bucket and not self.shuffle:
            raise ValueError("bucket=True needs shuffle=True: without it rows come as they are")
        copied = [x for x in self.modality_order if self.copies and self.split.modalities[x]["kind"] in ENCODED_KINDS]
        columns = row_columns([column for name in copied for column in copy_columns(name, 1)], self.modality_order)
        rows = self.split.open().select_columns(["id", "labels", *columns]).with_format("arrow")
        if self.shuffle:
            rows = rows.shuffle(seed=self.seed, buffer_size=self.split.buffer_size)
        if self.num_processes > 1:
            rows = split_dataset_by_node(rows, self.process_index, self.num_processes, strategy="shards")
        self._rows = rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        most_shards = -(-len(self.split.rows_per_shard) // self.num_processes)
        most_rows = sum(sorted(self.split.rows_per_shard)[-most_shards:])
        return -(-most_rows // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return islice(self._batches(), len(self))

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Without end: behind the last row comes the first again."""
        rng = np.random.default_rng([self.seed, self.process_index, self.epoch])
        self._rows.set_epoch(self.epoch)
        num_rows = -1
        while num_rows:
            num_rows = 0
            for table in self._tables():
                num_rows += len(table)
                yield from self._cut(table, rng)
        raise ValueError(f"The shards {self.split.files} have no rows for this process.")

    def _tables(self) -> Iterator[pa.Table]:
        num_batches = max(1, self.split.buffer_size // self.batch_size) if self.bucket else 1
        try:
            yield from self._rows.iter(num_batches * self.batch_size)
        except READ_ERRORS as error:
            raise self.split.broken_off(error) from error

    def _cut(self, table: pa.Table, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        data = Dataset(InMemoryTable(table), split=NamedSplit(self.split.name), fingerprint="streamed")
        longest = {name: self.split.modalities[name]["max_features"] for name in self.modality_order}
        rows = FeatureRows(data, self.modality_order, self.pad_to_multiple_of, longest)
        order, starts = np.arange(len(rows)), np.arange(0, len(rows), self.batch_size)
        if self.bucket:
            lengths = rows.lengths().sum(axis=1)
            order, starts = put_in_buckets(order, starts, lengths, self.batch_size, len(rows), rng)
        if self.copies is not None and self.epoch >= self.copies.first_epoch:
            order = np.column_stack([order, self.copies.draw(len(rows), rows.copied, rng)])
        for start in starts:
            try:
                yield rows[order[start : start + self.batch_size]]
            except SampleError as error:
                reason = "its published features are NaN or infinite; tell who published them"
                raise SampleError(error.split, error.sample_id, error.field, self.split.files, reason) from error


def create_stream_loader(
    split: StreamedSplit,
    modality_order: Sequence[str],
    accelerator: Accelerator,
    *,
    batch_size: int,
    seed: int,
    bucket: bool = False,
    num_workers: int = 0,
    copies: CopyDraw | None = None,
) -> DataLoader:
    """
    A loader of this process's share of the batches, prepared: a second `Accelerator.prepare` would share it out again.

    Like that of [`create_data_loader`] it takes `set_epoch`, and `skip_first_batches` to resume in the middle of an
    epoch: what was read of that is read again, because a buffer's content is in no checkpoint. With `num_workers=1` a
    process of its own reads while the model computes.
    """
    stream = FeatureStream(
        split,
        modality_order,
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        bucket=bucket,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        copies=copies,
    )
    is_cuda = accelerator.device.type == "cuda"
    loader = batch_loader(stream, batch_size=None, num_workers=num_workers, pin_memory=is_cuda)
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
