"""Builds a feature cache: every process encodes its share of the shards, and a killed build goes on."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import DatasetInfo, Features
from filelock import FileLock
from tqdm.auto import tqdm

from ..data.raw import OnBadSample, RawDataset, SampleError
from ..model.configuration_fl_i2moe import check_given
from ..utils.files import UNFINISHED, explaining_full_disk, remove_unfinished, write_json, write_text
from ..utils.machine import take_lock
from .encoding import BatchEncoder, DecodedBatch, Encoder, cache_features, decode, new_record, skipped_entry
from .feature_cache import FeatureCache, is_cache, open_cache
from .key import cache_key, check_key
from .manifest import LAYOUT, plan_shards, read_key, write_info
from .masked_copies import has_copies
from .shards import Shard, verify_shards, write_shard

POLL_SECONDS = 0.5
STALL_SECONDS = 30 * 60  # how long a process waits for the others without one new file before it gives up


def build_cache(
    raw: RawDataset,
    encoders: Mapping[str, Encoder],
    cache_dir: str | Path,
    *,
    batch_size: int = 32,
    shard_size: int = 256,
    num_workers: int = 1,
    on_bad_sample: OnBadSample = "stop",
    progress: bool = True,
    masked_copies: int = 0,
    key: dict[str, Any] | None = None,
) -> FeatureCache:
    """Encodes what is not encoded yet and opens the cache.

    Under `accelerate launch` every process encodes its own shards; they wait for one another by looking at the files,
    so that no process group times out. A killed build goes on with the first missing shard.

    Args:
        encoders: one per modality of `raw`.
        batch_size: samples per call of an encoder.
        shard_size: samples per file. A folder keeps the size that it was begun with.
        num_workers: processes that decode ahead of the encoder; 0 decodes in between.
        on_bad_sample: `"stop"` at the first bad sample, or `"skip"` it and write it to `skipped.jsonl`.
        progress: show a bar on each machine's first process, for that process's share.
        masked_copies: how often each training sample is encoded again, see [`~fl_i2moe.cache.masked_copies`].
        key: `cache_key(raw, encoders, masked_copies)`, where it is known already; it hashes all raw values.

    Raises:
        SampleError: a sample cannot be read, or its features are none, NaN, infinite or too large for float16.
        CacheMismatchError: the folder holds the cache of other data or encoders.
        CorruptCacheError: a shard that was written earlier has changed.
        OSError: the disk is full.
    """
    if set(encoders) != set(raw.modalities):
        raise ValueError(f"encoders for {sorted(encoders)} do not fit the modalities {sorted(raw.modalities)}")
    if empty := [split for split, samples in raw.splits.items() if not len(samples)]:
        raise ValueError(f"split {empty[0]!r} of the raw data has no samples")
    encoders = {name: encoders[name] for name in raw.modalities}
    check_given("cache_dir", cache_dir)
    cache_dir = Path(cache_dir)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    key = key or cache_key(raw, encoders, masked_copies)
    lock = FileLock(cache_dir / "build.lock")
    try:
        if state.is_main_process:
            _begin(cache_dir, key, shard_size, lock)
        state.wait_for_everyone()
        stored = read_key(cache_dir)
        check_key(stored["key"], key, cache_dir)
        shards = plan_shards(cache_dir, stored)
        features = cache_features(raw, encoders, stored.get("layout", 1), masked_copies)
        own = shards[state.process_index :: state.num_processes]
        try:
            _check_earlier(own, on_bad_sample)
            encoder = BatchEncoder(encoders, features.arrow_schema, on_bad_sample, masked_copies)
            show = progress and state.is_local_main_process
            _encode_missing(own, raw, encoder, batch_size, num_workers, cache_dir, show)
        except BaseException as error:
            if state.num_processes > 1:
                write_text(cache_dir / f"failed-{state.process_index}.txt", f"{type(error).__name__}: {error}")
            raise
        _wait_for([shard.record_path for shard in shards], cache_dir)
        if state.is_main_process:
            _finish(cache_dir, shards, raw, encoders, features)
        _wait_for([cache_dir / "info.json"], cache_dir)
    finally:
        lock.release()
    return open_cache(cache_dir, verify=False)  # its shards were checked or written just now


def _begin(cache_dir: Path, key: dict[str, Any], shard_size: int, lock: FileLock) -> None:
    """Writes the key of a new cache; takes an unfinished one for this build alone."""
    if cache_dir.is_file():
        raise ValueError(f"the feature cache cannot be built in {cache_dir}, which is a file")
    cache_dir.mkdir(parents=True, exist_ok=True)
    if not is_cache(cache_dir):
        own = {UNFINISHED + "key.json", Path(lock.lock_file).name}  # of a build that was killed at its start
        if other := sorted({path.name for path in cache_dir.iterdir()} - own):
            raise ValueError(
                f"the feature cache cannot be built in {cache_dir}, which holds {other[0]} and no feature cache; "
                "give a folder that is new or empty"
            )
        write_json(cache_dir / "key.json", {"layout": LAYOUT, "shard_size": shard_size, "key": key})
    for failure in cache_dir.glob("failed-*.txt"):
        failure.unlink()
    if not all(shard.is_complete() for shard in plan_shards(cache_dir, read_key(cache_dir))):
        take_lock(lock, f"building the feature cache {cache_dir}")
        remove_unfinished(cache_dir)
        (cache_dir / "info.json").unlink(missing_ok=True)


def _check_earlier(shards: list[Shard], on_bad_sample: OnBadSample) -> None:
    earlier = [shard for shard in shards if shard.is_complete()]
    verify_shards(earlier)
    if on_bad_sample == "stop":
        for entry in chain.from_iterable(shard.record()["skipped"] for shard in earlier):
            raise SampleError(entry["split"], entry["id"], entry["field"], entry["file"], entry["reason"])


def _encode_missing(
    shards: list[Shard],
    raw: RawDataset,
    encoder: BatchEncoder,
    batch_size: int,
    num_workers: int,
    cache_dir: Path,
    show_progress: bool,
) -> None:
    missing = [shard for shard in shards if not shard.is_complete()]
    if not missing:
        return
    total, left = (sum(len(shard.rows) for shard in x) for x in (shards, missing))
    copies = [1 + encoder.masked_copies * has_copies(e) for e in encoder.encoders.values()]
    bytes_per_sample = sum(
        2 * e.feature_size * e.max_features * n for e, n in zip(encoder.encoders.values(), copies, strict=True)
    )
    with tqdm(desc="encoding", total=total, initial=total - left, unit=" samples", disable=not show_progress) as bar:

        def encode(batches: Iterable[DecodedBatch], record: dict[str, Any]) -> Iterator[Any]:
            for decoded in batches:
                batch = encoder.encode(decoded, record)
                if batch is not None:
                    yield batch
                bar.update(decoded.table.num_rows + len(decoded.bad_samples))

        decoded = decode(raw.splits, encoder.encoders, missing, batch_size, num_workers)
        for shard, batches in groupby(decoded, attrgetter("shard")):
            record = new_record(encoder.encoders)
            needed = f"the feature cache needs up to {left * bytes_per_sample:,} bytes more. "
            kept = "The shards written so far are kept: make room and run again"
            with explaining_full_disk(cache_dir, needed + kept):
                write_shard(shard, encoder.schema, encode(batches, record), record)
            left -= len(shard.rows)


def _wait_for(paths: list[Path], cache_dir: Path) -> None:
    """Waits until other processes have written the files; raises if one of them failed or all seem dead."""
    last_news, missing = time.monotonic(), paths
    while still_missing := [path for path in missing if not path.exists()]:
        if len(still_missing) < len(missing):
            last_news, missing = time.monotonic(), still_missing
        for failure in cache_dir.glob("failed-*.txt"):
            raise RuntimeError(f"another process failed to encode its share: {failure.read_text(encoding='utf-8')}")
        if time.monotonic() - last_news > STALL_SECONDS:
            raise TimeoutError(f"no process has written to {cache_dir} for {STALL_SECONDS} s; missing: {missing[0]}")
        time.sleep(POLL_SECONDS)


def _finish(
    cache_dir: Path, shards: list[Shard], raw: RawDataset, encoders: Mapping[str, Encoder], features: Features
) -> None:
    """Makes data sets of the shards and says that the cache is complete."""
    if (cache_dir / "info.json").exists():
        return
    skipped = [skipped_entry(error) for error in raw.bad_samples]
    counts = {}
    for split, group in groupby(shards, attrgetter("split")):
        split_shards = list(group)
        records = [shard.record() for shard in split_shards]
        _write_dataset_files(split_shards, records, features)
        skipped += [entry for record in records for entry in record["skipped"]]
        counts[split] = _count(records)
    write_text(cache_dir / "skipped.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped))
    if empty := [split for split, count in counts.items() if not count["samples"]]:
        raise ValueError(f"every sample of {empty} had to be left out, see {cache_dir / 'skipped.jsonl'}")
    of_encoder = ("kind", "feature_size", "max_features", "grid")
    modalities = {
        name: {field: getattr(encoder, field) for field in of_encoder} | {"encoder": encoder.identity()}
        for name, encoder in encoders.items()
    }
    info = {"label_names": raw.label_names, "problem_type": raw.problem_type, "modalities": modalities}
    write_info(cache_dir, {**info, "counts": counts}, shards)


def _write_dataset_files(shards: list[Shard], records: list[dict[str, Any]], features: Features) -> None:
    """What `datasets.load_from_disk` reads beside the Arrow files of a split."""
    unformatted = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    state = {
        "_data_files": [{"filename": shard.path.name} for shard in shards],
        "_fingerprint": sha256("".join(record["sha256"] for record in records).encode()).hexdigest()[:16],
        **unformatted,
        "_split": shards[0].split,
    }
    write_json(shards[0].folder / "state.json", state)
    DatasetInfo(features=features).write_to_directory(str(shards[0].folder))


def _count(records: list[dict[str, Any]]) -> dict[str, Any]:
    cut = {}
    for name in records[0]["cut"]:
        num_cut, share = (sum(record["cut"][name][field] for record in records) for field in ("samples", "share"))
        cut[name] = {"samples": num_cut, "mean_share": share / max(1, num_cut)}
    missing: Counter[str] = Counter()
    for record in records:
        missing.update(record.get("missing", {}))
    skipped = sum(len(record["skipped"]) for record in records)
    samples = sum(record["rows"] for record in records)
    return {"samples": samples, "skipped": skipped, "cut": cut, "missing": dict(missing)}
