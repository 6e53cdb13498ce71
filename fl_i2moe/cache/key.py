"""What the features of a cache depend on, and whether two such keys are the same."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.raw import RawDataset
from .encoding import Encoder

FORMAT_VERSION = 1
_ABSENT = "(absent)"
LONGEST_VALUE = 200
"""Characters of a value, such as the means of an array, in a message."""


class CacheMismatchError(ValueError):
    """A cache folder holds the features of other data or other encoders; says which fields differ."""


def cache_key(raw: RawDataset, encoders: Mapping[str, Encoder], masked_copies: int = 0) -> dict[str, Any]:
    """Format, data, encoders and the number of masked copies, as nested JSON.

    The data enter by their content (ids, texts, the bytes of files, labels), not by where they lie.
    """
    columns = ["id", *raw.modalities, "labels"]
    with ThreadPoolExecutor() as pool:
        splits = {
            str(name): {"samples": len(split), "sha256": _split_checksum(split, columns, pool)}
            for name, split in raw.splits.items()
        }
    key = {
        "format_version": FORMAT_VERSION,
        "dtype": "float16",
        "data": {"label_names": raw.label_names, "problem_type": raw.problem_type, "splits": splits},
        "encoders": {name: encoders[name].identity() for name in raw.modalities},
        **({"masked_copies": masked_copies} if masked_copies else {}),
    }
    return json.loads(json.dumps(key))  # as it comes back from a file: tuples are lists


def key_digest(key: Mapping[str, Any]) -> str:
    """Names the key in a folder's name and in a run's settings."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def check_key(stored: Mapping[str, Any], expected: Mapping[str, Any], cache_dir: Path) -> None:
    """Raises `CacheMismatchError` that names each differing field, such as `encoders.text.max_length`."""
    lines = [f"  {field}: the cache has {old}, asked for is {new}" for field, old, new in differences(stored, expected)]
    if lines:
        raise CacheMismatchError(
            f"the feature cache {cache_dir} does not fit what is asked for:\n"
            + "\n".join(lines)
            + "\nGive another cache folder, or delete this one to encode anew."
        )


def differences(stored: Any, expected: Any, field: str = "") -> Iterator[tuple[str, str, str]]:
    """The fields in which two JSON values differ, such as `encoders.text.max_length`, with both values as text."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        for name in {**stored, **expected}:
            below = f"{field}.{name}" if field else name
            yield from differences(stored.get(name, _ABSENT), expected.get(name, _ABSENT), below)
    elif stored != expected:
        yield field, _shown(stored), _shown(expected)


def _shown(value: Any) -> str:
    text = _ABSENT if value == _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def _split_checksum(split: Dataset, columns: list[str], pool: ThreadPoolExecutor) -> str:
    digest = hashlib.sha256()
    for batch in split.select_columns(columns).with_format(None).iter(batch_size=1000):
        for column in columns:
            for checksum in pool.map(_content_checksum, batch[column]):
                digest.update(checksum)
    return digest.hexdigest()


def _content_checksum(value: Any) -> bytes:
    """Of a text, of the bytes of a picture or sound {"path", "bytes"}, or of numbers; of a missing value one that none
    has."""
    if value is None:
        return bytes(hashlib.sha256().digest_size)
    if isinstance(value, str):
        content = value.encode()
    elif not isinstance(value, dict):
        content = np.asarray(value).tobytes()
    elif (content := value["bytes"]) is None:
        try:
            content = Path(value["path"]).read_bytes()
        except OSError:
            content = b"unreadable"  # encoding it will say so, and knows whether to stop or to skip
    return hashlib.sha256(content).digest()
