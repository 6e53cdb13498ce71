"""The files of a feature cache: Arrow shards that are either whole and checked, or not there."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..utils.checked_json import parse_json
from ..utils.files import write_file, write_json


class CorruptCacheError(ValueError):
    """A file of a feature cache is missing, is not the one that was written, or cannot be read by this version."""


RECORD = {
    "sha256": str,
    "rows": int,
    "skipped": [{str: str}],
    "cut": {str: {"samples": int, "share": float}},
    "missing?": {str: int},
    **dict.fromkeys(("key?", "split?"), str),
    "index?": int,
}
"""What lies beside a shard. Records of layout 1 do not say whose they are; those of 0.1.0 have no `missing`."""


@dataclass(frozen=True)
class Shard:
    """One file of a split's Arrow data, and beside it a JSON file: checksum, rows, and what was left out."""

    folder: Path
    split: str
    index: int
    count: int
    rows: range  # of the raw split
    key: str  # digest of the cache's key

    @property
    def path(self) -> Path:
        return self.folder / f"data-{self.index:05d}-of-{self.count:05d}.arrow"

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def is_complete(self) -> bool:
        """The record is written last, so that it vouches for the data."""
        return self.record_path.exists() and self.path.exists()

    @property
    def advice(self) -> str:
        return (
            f"delete the feature cache's {self.path.name} and {self.record_path.name} in {self.folder} and build it "
            "again, only this shard is then encoded anew; or fetch it again"
        )

    def record(self) -> dict[str, Any]:
        """Raises `CorruptCacheError` where it is damaged, or that of another shard."""
        record = read_checked_file(self.record_path, RECORD, self.advice)
        with naming_damage(self.record_path, self.advice):
            for name in ("key", "split", "index"):
                if (found := record.get(name, expected := getattr(self, name))) != expected:
                    raise ValueError(f"it is the record of another shard: its `{name}` is {found!r}, not {expected!r}")
            if record["rows"] < 0 or record["rows"] + len(record["skipped"]) != len(self.rows):
                raise ValueError(
                    f"`rows` and what is `skipped` are {record['rows']} and {len(record['skipped'])} samples, together "
                    f"not the {len(self.rows)} of the shard"
                )
        return record

    def verify(self) -> None:
        """Raises `CorruptCacheError` if the file's bytes are not those that were written."""
        advice = f"delete it and {self.record_path.name} beside it, and run again: only this shard is then encoded anew"
        try:
            found = checksum(self.path)
        except OSError as error:
            raise CorruptCacheError(f"the cache shard {self.path} cannot be read ({error}); {advice}") from error
        if found != self.record()["sha256"]:
            raise CorruptCacheError(f"the cache shard {self.path} does not match its checksum; {advice}")


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
    whose = {name: getattr(shard, name) for name in ("key", "split", "index")}
    write_json(shard.record_path, {"sha256": checksum(shard.path), "rows": num_rows, **record, **whose})


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checked_file(path: Path, shape: Any, advice: str) -> Any:
    """JSON of this shape, see [`~fl_i2moe.utils.checked_json`]; raises as [`naming_damage`]."""
    with naming_damage(path, advice):
        return parse_json(path.read_text(encoding="utf-8"), shape)


@contextmanager
def naming_damage(what: str | Path, advice: str) -> Iterator[None]:
    """Raises `CorruptCacheError` with the advice where reading what is named here fails."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCacheError(f"{what} is missing or damaged ({type(error).__name__}: {error}); {advice}") from error
