"""
The small files of a feature cache: what is in them, and the chain that binds them to one another.

`info.json` is written last and holds a checksum of itself and of every other small file: the key, and the shards'
records, which hold the shards' checksums. Caches of layout 1 have no such checksums; of these it is compared what the
files say twice.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..model.configuration_fl_i2moe import PROBLEM_TYPES
from ..model.kinds import KINDS
from ..utils.checked_json import check_json, parse_json
from ..utils.files import write_json
from .key import FORMAT_VERSION, differences, key_digest
from .shards import CorruptCacheError, Shard, naming_damage, read_checked_file

INFO_FIELDS = ("label_names", "problem_type", "modalities", "counts")
LAYOUT = 2
"""From 2 on rows have checksums of what was encoded, and `info.json` has those of the small files."""

FETCH_AGAIN = "delete the feature cache and encode anew, or fetch it again"
WRITE_AGAIN = "delete info.json of this feature cache and build it again, nothing is encoded anew; or fetch it again"
"""`info.json`, `skipped.jsonl` and what `datasets` reads are written from the key and the records."""


KEY = {
    "layout?": int,
    "shard_size": int,
    "key": {
        "format_version": int,
        "dtype": str,
        "data": {
            "label_names": [str],
            "problem_type": PROBLEM_TYPES,
            "splits": {str: {"samples": int, "sha256": str}},
        },
        "encoders": {str: dict},
        "masked_copies?": int,
    },
}
_MODALITY = {
    "kind": str,
    "feature_size": int,
    "max_features": int,
    "grid": ([int], None),
    "encoder": dict,
}
_COUNTS = {
    "samples": int,
    "skipped": int,
    "cut": {str: {"samples": int, "mean_share": float}},
    "missing?": {str: int},
}
INFO = {
    "label_names": [str],
    "problem_type": PROBLEM_TYPES,
    "modalities": {str: _MODALITY},
    "counts": {str: _COUNTS},
    "files?": {str: str},
    "sha256?": str,
}
SKIPPED = dict.fromkeys(("id", "split", "field", "file", "reason"), str)


def read_key(cache_dir: Path) -> dict[str, Any]:
    """The content of `key.json`; raises `CorruptCacheError` where it is damaged or of a later version."""
    path = cache_dir / "key.json"
    content = read_checked_file(path, dict, FETCH_AGAIN)
    versions = {"layout": (content.get("layout", 1), LAYOUT)}
    if isinstance(content.get("key"), dict):
        versions["key.format_version"] = (content["key"].get("format_version"), FORMAT_VERSION)
    for name, (found, known) in versions.items():
        if type(found) is int and not 1 <= found <= known:
            raise CorruptCacheError(
                f"{path}: `{name}` is {found}, and this version of fl_i2moe reads 1 to {known}: install the one that "
                "made the feature cache, or encode anew in another folder"
            )
    with naming_damage(path, FETCH_AGAIN):
        check_json(content, KEY)
        if content["shard_size"] < 1:
            raise ValueError(f"`shard_size` must be at least 1, got {content['shard_size']}")
        for split, entry in content["key"]["data"]["splits"].items():
            if entry["samples"] < 1:
                raise ValueError(f"`key.data.splits.{split}.samples` must be at least 1, got {entry['samples']}")
    return content


def plan_shards(cache_dir: Path, key: Mapping[str, Any]) -> list[Shard]:
    """Cuts every split into shards of `shard_size` rows; `key` is the content of `key.json`."""
    digest, shards = key_digest(key["key"]), []
    for split, entry in key["key"]["data"]["splits"].items():
        size, step = entry["samples"], key["shard_size"]
        count = -(-size // step)
        for index in range(count):
            rows = range(size)[index * step : (index + 1) * step]
            shards.append(Shard(cache_dir / split, split, index, count, rows, digest))
    return shards


def write_info(cache_dir: Path, info: Mapping[str, Any], shards: list[Shard]) -> None:
    """Writes `info.json` with the checksums of itself and of all other small files, which must be there."""
    content = {name: info[name] for name in INFO_FIELDS}
    content["files"] = {_name(path, cache_dir): _content_checksum(path) for path in _small_files(cache_dir, shards)}
    write_json(cache_dir / "info.json", content | {"sha256": _json_checksum(content)})


def read_info(cache_dir: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """
    The content of `info.json`; `key` is that of `key.json`.

    Raises `CorruptCacheError` where one of the two is damaged, or they do not belong together.
    """
    path = cache_dir / "info.json"
    info = read_checked_file(path, INFO, FETCH_AGAIN)
    with naming_damage(path, WRITE_AGAIN):
        _compare_with_key(info, key["key"])
        for name in ("files", "sha256"):
            if name not in info and key.get("layout", 1) > 1:
                raise ValueError(f"`{name}` is missing")
    _check_checksum(cache_dir / "key.json", cache_dir, info, FETCH_AGAIN)
    return info


def check_small_files(cache_dir: Path, info: Mapping[str, Any], shards: list[Shard]) -> None:
    """
    Raises `CorruptCacheError` that names the first file which is damaged, says something else than the key, is not the
    one that the cache was finished with, or is a shard that is none of the cache's.
    """
    path = cache_dir / "info.json"
    for split, group in groupby(shards, attrgetter("split")):
        own = list(group)
        records = [shard.record() for shard in own]
        found = {"samples": sum(x["rows"] for x in records), "skipped": sum(len(x["skipped"]) for x in records)}
        with naming_damage(path, WRITE_AGAIN):
            counts = {name: info["counts"][split][name] for name in found}
            _compare(f"counts.{split}", counts, found, "the records have")
        read_checked_file(cache_dir / split / "dataset_info.json", {"features": dict, str: Any}, WRITE_AGAIN)
        state_path = cache_dir / split / "state.json"
        state = read_checked_file(state_path, _state(split), WRITE_AGAIN)
        with naming_damage(state_path, WRITE_AGAIN):
            names = [file["filename"] for file in state["_data_files"]]
            _compare("_data_files", names, [shard.path.name for shard in own], "of the key and the records follows")
    with naming_damage(path, WRITE_AGAIN):
        if info.get("sha256") not in (None, _json_checksum({name: x for name, x in info.items() if name != "sha256"})):
            raise ValueError("it was changed since it was written, as its own `sha256` tells")
    advice = {shard.record_path: shard.advice for shard in shards}
    for file in _small_files(cache_dir, shards):
        _check_checksum(file, cache_dir, info, advice.get(file, WRITE_AGAIN))
    known = {path for shard in shards for path in (shard.path, shard.record_path)}
    if strange := sorted(x for x in cache_dir.glob("*/data-*") if x.suffix in (".arrow", ".json") and x not in known):
        raise CorruptCacheError(f"{strange[0]} is no file of the feature cache {cache_dir}: move it away")


def read_skipped(cache_dir: Path) -> list[dict[str, str]]:
    """The lines of `skipped.jsonl`; raises `CorruptCacheError` that names a damaged one."""
    path, entries = cache_dir / "skipped.jsonl", []
    with naming_damage(path, WRITE_AGAIN):
        lines = _lines(path)
    for number, line in enumerate(lines, 1):
        with naming_damage(f"{path}, line {number},", WRITE_AGAIN):
            entries.append(parse_json(line, SKIPPED))
    return entries


def _state(split: str) -> dict[str, Any]:
    """What `datasets` reads: rows of a cache have no format, and are all there in their order."""
    return {
        "_data_files": [{"filename": str}],
        "_fingerprint": str,
        "_format_columns": None,
        "_format_kwargs": dict,
        "_format_type": None,
        "_output_all_columns": bool,
        "_split": split,
    }


def _compare_with_key(info: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    data = key["data"]
    for name in ("label_names", "problem_type"):
        _compare(name, info[name], data[name], "key.json has")
    for name, parts in (("modalities", key["encoders"]), ("counts", data["splits"])):
        _compare(name, list(info[name]), list(parts), "key.json has")
    for name, modality in info["modalities"].items():
        if modality["kind"] not in KINDS:
            raise ValueError(f"`modalities.{name}.kind` is {modality['kind']!r}, there are {', '.join(KINDS)}")
        if len(grid := modality["grid"] or [1, 1]) != 2:
            raise ValueError(f"`modalities.{name}.grid` must be rows and columns, got {grid}")
        if min(modality["feature_size"], modality["max_features"], *grid) < 1:
            raise ValueError(f"`modalities.{name}` must have sizes of at least 1")
        _compare(f"modalities.{name}.encoder", modality["encoder"], key["encoders"][name], "key.json has")


def _compare(field: str, found: Any, expected: Any, whose: str) -> None:
    for name, one, other in differences(found, expected, field):
        raise ValueError(f"`{name}` is {one}, {whose} {other}")


def _check_checksum(path: Path, cache_dir: Path, info: Mapping[str, Any], advice: str) -> None:
    if "files" in info:
        with naming_damage(path, advice):
            if _content_checksum(path) != info["files"].get(_name(path, cache_dir)):
                raise ValueError("it is not the file that info.json was written with: one of them was changed")


def _small_files(cache_dir: Path, shards: list[Shard]) -> Iterator[Path]:
    """All but `info.json`."""
    yield from (cache_dir / "key.json", cache_dir / "skipped.jsonl")
    for split in dict.fromkeys(shard.split for shard in shards):
        yield from (cache_dir / split / name for name in ("state.json", "dataset_info.json"))
    yield from (shard.record_path for shard in shards)


def _name(path: Path, cache_dir: Path) -> str:
    return path.relative_to(cache_dir).as_posix()


def _content_checksum(path: Path) -> str:
    """Of what JSON says, whatever the ends of its lines, which Git and editors change."""
    texts = _lines(path) if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    return _json_checksum([parse_json(text) for text in texts])


def _lines(path: Path) -> list[str]:
    """Not `splitlines`, which also cuts at characters that a JSON text may have."""
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    return text.split("\n") if text else []


def _json_checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
