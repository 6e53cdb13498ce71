"""From raw samples to rows of a feature cache: decoding in worker processes, encoding in batches."""

import itertools
import multiprocessing
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Array2D, Dataset, Features, List, Value
from datasets.features.features import Array2DExtensionType
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ..data.raw import OnBadSample, RawDataset, SampleError
from ..model.kind import (
    EncodedFeatures,
    FittedEncoder,
    FrozenEncoder,
    Preprocessed,
    checksum,
    encode_given,
    preprocess_given,
)
from ..model.kinds import KINDS, places_in
from ..utils.machine import holding_interrupts
from .masked_copies import MASKED_SPLIT, copy_columns, draw_kept, encode_copies, has_copies
from .shards import Shard

Encoder = FrozenEncoder | FittedEncoder


def cache_features(raw: RawDataset, encoders: Mapping[str, Encoder], layout: int, masked_copies: int = 0) -> Features:
    """
    The columns of a feature cache: the raw ones (no arrays, which are features already), then those of encoders, those
    of masked copies, and from layout 2 on a checksum of each raw value that was encoded.
    """
    raw_features = next(iter(raw.splits.values())).features
    dropped = {name for name, encoder in encoders.items() if not KINDS[encoder.kind].keeps_raw}
    features = Features({name: feature for name, feature in raw_features.items() if name not in dropped})
    for name, encoder in encoders.items():
        kind = KINDS[encoder.kind]
        added = Features({f"{name}_features": Array2D((None, encoder.feature_size), "float16")})
        added[f"{name}_special_mask"] = List(Value("bool"))
        added.update(Features.from_dict({f"{name}_{suffix}": x for suffix, x in kind.annotation_types.items()}))
        if masked_copies and has_copies(encoder):
            added.update(copy_columns(name, encoder.feature_size))
        if layout > 1 and kind.keeps_raw:
            added[f"{name}_sha256"] = Value("string")
        if clash := sorted(added.keys() & {*features, *encoders}):
            raise ValueError(
                f"the feature cache needs the name {clash[0]!r} for the modality {name!r}: rename the other"
            )
        features.update(added)
    return features


def has_non_finite(features: NDArray[np.float16]) -> bool:
    """Whether any value is NaN or infinite, some thirty times faster than `np.isfinite` tells."""
    if features.size == 0:
        return False
    # the bit patterns with all exponent bits set, which are the largest of either sign
    return features.view(np.int16).max() >= 0x7C00 or features.view(np.uint16).max() >= 0xFC00


@dataclass
class DecodedBatch:
    """Some rows of one shard, ready for the encoders."""

    shard: Shard
    table: pa.Table
    inputs: dict[str, Preprocessed]
    checksums: dict[str, list[str | None]]
    bad_samples: list[SampleError]


class _Decoder(torch.utils.data.Dataset):
    """(Shard, rows) → their decoded batch. A bad sample is returned, not raised: workers lose exceptions' types."""

    def __init__(self, splits: Mapping[str, Dataset], encoders: Mapping[str, Encoder]) -> None:
        self.splits = {name: split.with_format("arrow") for name, split in splits.items()}
        self.preprocess = {name: encoder.preprocess for name, encoder in encoders.items()}
        self.kinds = {name: encoder.kind for name, encoder in encoders.items()}

    def __getitem__(self, task: tuple[Shard, range]) -> DecodedBatch:
        shard, rows = task
        table: pa.Table = self.splits[shard.split][rows]
        try:
            return DecodedBatch(shard, table, *self._preprocess(table), [])
        except ValueError:
            errors = [self._find_error(table.slice(i, 1), shard.split) for i in range(table.num_rows)]
            bad_samples = [error for error in errors if error is not None]
            assert bad_samples, "preprocessing failed for the batch but for none of its samples"
            table = table.filter(pa.array([error is None for error in errors]))
            return DecodedBatch(shard, table, *(self._preprocess(table) if table.num_rows else ({}, {})), bad_samples)

    def _preprocess(self, table: pa.Table) -> tuple[dict[str, Preprocessed], dict[str, list[str | None]]]:
        inputs, checksums = {}, {}
        for name, preprocess in self.preprocess.items():
            cells, kind = table[name].to_pylist(), KINDS[self.kinds[name]]
            inputs[name] = preprocess_given(preprocess, cells)
            if kind.keeps_raw:
                checksums[name] = [None if cell is None else checksum(kind.content(cell)) for cell in cells]
        return inputs, checksums

    def _find_error(self, row: pa.Table, split: str) -> SampleError | None:
        for name, preprocess in self.preprocess.items():
            try:
                preprocess_given(preprocess, row[name].to_pylist())
            except ValueError as error:
                return _sample_error(row, 0, split, name, self.kinds[name], str(error))
        return None


def _sample_error(table: pa.Table, row: int, split: str, modality: str, kind: str, reason: str) -> SampleError:
    file = KINDS[kind].file_of(table[modality][row].as_py())
    return SampleError(split, table["id"][row].as_py(), modality, file, reason)


def decode(
    splits: Mapping[str, Dataset],
    encoders: Mapping[str, Encoder],
    shards: list[Shard],
    batch_size: int,
    num_workers: int,
) -> Iterator[DecodedBatch]:
    """Preprocesses the shards' rows in batches that never cross a shard, in order, ahead of the encoder.

    A batch holds the same rows however many processes, workers or earlier runs there were: so do its features.
    """
    tasks = [
        (shard, shard.rows[start : start + batch_size])
        for shard in shards
        for start in range(0, len(shard.rows), batch_size)
    ]
    return iter(batch_loader(_Decoder(splits, encoders), batch_size=None, sampler=tasks, num_workers=num_workers))


class _Worker(multiprocessing.process.BaseProcess):
    def start(self) -> None:
        with holding_interrupts():
            super().start()


def batch_loader(batches: torch.utils.data.Dataset, **options: Any) -> DataLoader:
    """
    A loader of what comes in batches; its workers' seed is drawn from a generator of its own, not from the run's, and
    Ctrl-C is for the process that started them.
    """
    if options.get("num_workers") and multiprocessing.get_start_method() == "fork":
        context: Any = copy(multiprocessing.get_context("fork"))
        context.Process = type("Worker", (_Worker, context.Process), {})
        options["multiprocessing_context"] = context
    return DataLoader(batches, collate_fn=_as_is, generator=torch.Generator(), **options)


def _as_is(batch: Any) -> Any:
    return batch


def new_record(encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """What is counted per shard: samples left out, and per modality how many samples lack it, and, if it can be cut,
    how many were, by what share."""
    cut = {name: {"samples": 0, "share": 0.0} for name, x in encoders.items() if KINDS[x.kind].can_be_cut}
    return {"skipped": [], "cut": cut, "missing": {}}


@dataclass(frozen=True)
class BatchEncoder:
    """Turns decoded batches into record batches of the cache.

    With `on_bad_sample="stop"` it raises the `SampleError` of the first sample that could not be read, or whose
    features are none, NaN, infinite or too large for float16. A null cell, of a sample that lacks the modality, becomes
    an empty sequence.
    """

    encoders: Mapping[str, Encoder]
    schema: pa.Schema
    on_bad_sample: OnBadSample
    masked_copies: int = 0

    def encode(self, decoded: DecodedBatch, record: dict[str, Any]) -> pa.RecordBatch | None:
        """One record batch, or None if no sample is usable. Adds to `record` what was left out and what was cut."""
        self._leave_out(decoded.bad_samples, record)
        table = decoded.table
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        bad: dict[int, SampleError] = {}
        for name, preprocessed in decoded.inputs.items():
            kind = self.encoders[name].kind
            encoded = encode_given(self.encoders[name], preprocessed.inputs)
            mask_BT = encoded.feature_mask
            values_ND = encoded.features[mask_BT].to(torch.float16).cpu().numpy()
            lengths_B = mask_BT.sum(dim=1).cpu().numpy()
            is_given = table[name].is_valid().to_numpy()
            for row, reason in _find_bad_rows(values_ND, lengths_B, is_given):
                bad.setdefault(row, _sample_error(table, row, decoded.shard.split, name, kind, reason))
            special_N = encoded.special_mask[mask_BT].cpu().numpy()
            columns |= _sequence_columns(name, "features", values_ND, lengths_B, "special_mask", special_N)
            cells = [{} if x is None else KINDS[kind].annotation_cells(x) for x in preprocessed.annotations]
            for suffix in KINDS[kind].annotation_types:
                column = f"{name}_{suffix}"
                columns[column] = pa.array([cell.get(suffix) for cell in cells], self.schema.field(column).type)
            if self.masked_copies and has_copies(self.encoders[name]):
                values_ND, lengths_B, kept_N = self._encode_copies(name, decoded, encoded, cells)
                for row, reason in _find_bad_rows(values_ND, lengths_B, np.zeros_like(is_given)):
                    bad.setdefault(row, _sample_error(table, row, decoded.shard.split, name, kind, reason))
                columns |= _sequence_columns(name, "masked_features", values_ND, lengths_B, "masked_kept", kept_N)
        columns |= {f"{name}_sha256": pa.array(x) for name, x in decoded.checksums.items()}
        self._leave_out([bad[row] for row in sorted(bad)], record)
        keep = [row not in bad for row in range(table.num_rows)]
        if not any(keep):
            return None
        for name in decoded.inputs:
            if lacking := sum(itertools.compress(table[name].is_null().to_pylist(), keep)):
                record["missing"][name] = record["missing"].get(name, 0) + lacking
        for name, counts in record["cut"].items():
            cut_share = KINDS[self.encoders[name].kind].cut_share
            for annotation in itertools.compress(decoded.inputs[name].annotations, keep):
                if annotation is not None and (share := cut_share(annotation)) is not None:
                    counts["samples"] += 1
                    counts["share"] += share
        batch = pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)
        return batch if all(keep) else batch.filter(pa.array(keep))

    def _encode_copies(
        self, name: str, decoded: DecodedBatch, whole: EncodedFeatures, cells: list[dict[str, Any]]
    ) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.bool_]]:
        """As [`encode_copies`]; none of a split that is not trained on."""
        encoder, table = self.encoders[name], decoded.table
        assert isinstance(encoder, FrozenEncoder), "others have no copies"
        if decoded.shard.split != MASKED_SPLIT:
            nothing = np.zeros((0, encoder.feature_size), np.float16)
            return nothing, np.zeros(table.num_rows, np.int64), np.zeros(0, np.bool_)
        kept = []
        masks = zip(whole.special_mask.cpu(), whole.feature_mask.cpu(), strict=True)
        rows = zip(table["id"].to_pylist(), table[name].to_pylist(), cells, masks, strict=True)
        for sample_id, value, cell, (special, real) in rows:
            if not real.any():
                kept.append(np.zeros((self.masked_copies, 0), np.bool_))
                continue
            row = {name: value, f"{name}_special_mask": special[real].tolist()}
            row |= {f"{name}_{suffix}": x for suffix, x in cell.items()}
            places = places_in(row, name, {"kind": encoder.kind}, encoder.grid)
            kept.append(draw_kept(places, sample_id, name, self.masked_copies))
        return encode_copies(encoder, decoded.inputs[name].inputs, kept, whole)

    def _leave_out(self, errors: list[SampleError], record: dict[str, Any]) -> None:
        if errors and self.on_bad_sample == "stop":
            raise errors[0]
        record["skipped"] += [skipped_entry(error) for error in errors]


def skipped_entry(error: SampleError) -> dict[str, str]:
    """A line of `skipped.jsonl`."""
    return {"id": error.sample_id} | {name: getattr(error, name) for name in ("split", "field", "file", "reason")}


def _find_bad_rows(
    values_ND: NDArray[np.float16], lengths_B: NDArray[np.int64], is_given: NDArray[np.bool_]
) -> list[tuple[int, str]]:
    empty = np.flatnonzero((lengths_B == 0) & is_given)
    bad = [(int(row), "the encoder gave no feature for it") for row in empty]
    if has_non_finite(values_ND):
        for row, values in enumerate(np.split(values_ND, np.cumsum(lengths_B)[:-1])):
            if has_non_finite(values):
                bad.append((row, "its features are NaN, infinite or beyond float16's ±65504"))
    return bad


def _sequence_columns(
    name: str,
    suffix: str,
    values_ND: NDArray[np.float16],
    lengths_B: NDArray[np.int64],
    mask_suffix: str,
    mask_N: NDArray[np.bool_],
) -> dict[str, pa.Array]:
    """A column of sequences, `<name>_<suffix>`, and one of a mask over their features."""
    num_features, feature_size = values_ND.shape
    row_offsets = pa.array(np.cumsum([0, *lengths_B]), pa.int32())
    vector_offsets = pa.array(np.arange(num_features + 1) * feature_size, pa.int32())
    vectors = pa.ListArray.from_arrays(vector_offsets, pa.array(values_ND.reshape(-1)))
    extension_type = Array2DExtensionType((None, feature_size), "float16")
    sequences = pa.ListArray.from_arrays(row_offsets, vectors)
    return {
        f"{name}_{suffix}": pa.ExtensionArray.from_storage(extension_type, sequences),
        f"{name}_{mask_suffix}": pa.ListArray.from_arrays(row_offsets, pa.array(mask_N)),
    }
