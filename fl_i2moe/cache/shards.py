"""The files of a feature cache: Arrow shards that are either whole and checked, or not there."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..utils.files import write_file, write_json


class CorruptCacheError(ValueError):
    """A shard of a feature cache is missing or does not have the bytes that were written."""


@dataclass(frozen=True)
class Shard:
    """One file of a split's Arrow data, and beside it a JSON file: checksum, rows, and what was left out."""

    folder: Path
    split: str
    index: int
    count: int
    rows: range  # of the raw split

    @property
    def path(self) -> Path:
        return self.folder / f"data-{self.index:05d}-of-{self.count:05d}.arrow"

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def is_complete(self) -> bool:
        """The record is written last, so that it vouches for the data."""
        return self.record_path.exists() and self.path.exists()

    def record(self) -> dict[str, Any]:
        return read_object(self.record_path, ("sha256", "rows"))

    def verify(self) -> None:
        """Raises `CorruptCacheError` if the file's bytes are not those that were written."""
        advice = f"delete it and {self.record_path.name} beside it, and run again: only this shard is then encoded anew"
        try:
            found = checksum(self.path)
        except OSError as error:
            raise CorruptCacheError(f"the cache shard {self.path} cannot be read ({error}); {advice}") from error
        if found != self.record()["sha256"]:
            raise CorruptCacheError(f"the cache shard {self.path} does not match its checksum; {advice}")


def plan_shards(cache_dir: Path, split_sizes: dict[str, int], shard_size: int) -> list[Shard]:
    """Cuts every split into shards of `shard_size` rows."""
    shards = []
    for split, size in split_sizes.items():
        starts = range(0, size, shard_size)
        for index, start in enumerate(starts):
            rows = range(size)[start : start + shard_size]
            shards.append(Shard(cache_dir / split, split, index, len(starts), rows))
    return shards


def verify_shards(shards: list[Shard]) -> None:
    """Compares every shard with its checksum, several at a time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Shard.verify, shards))


def write_shard(shard: Shard, schema: pa.Schema, batches: Iterable[pa.RecordBatch], record: dict[str, Any]) -> None:
    """
    Writes the batches as they come; the file is there once it is whole. `record`, what to remember beside the checksum,
    may be filled while the batches are drawn.
    """
    num_rows = 0

    def write(path: Path) -> None:
        nonlocal num_rows
        with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                num_rows += batch.num_rows

    write_file(shard.path, write)
    write_json(shard.record_path, {"sha256": checksum(shard.path), "rows": num_rows, **record})


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path, names: Collection[str]) -> dict[str, Any]:
    """A JSON object; raises `CorruptCacheError` where it cannot be read or lacks one of these names."""
    with naming_damage(str(path), "delete the feature cache and encode anew, or fetch it again"):
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in names} | content


@contextmanager
def naming_damage(what: str, advice: str) -> Iterator[None]:
    """Raises `CorruptCacheError` with the advice where reading what is named here fails."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCacheError(f"{what} is missing or damaged ({type(error).__name__}: {error}); {advice}") from error
