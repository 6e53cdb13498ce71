"""A feature cache opened from a folder or from the Hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from .cache import FeatureCache, open_cache

CACHE_FILES = ["*.json", "skipped.jsonl", "*/data-*.arrow"]


def open_features(name: str | Path, revision: str | None = None) -> FeatureCache:
    """
    Opens a feature cache, and fetches it first if it is on the Hub. Every shard is held against its checksum.

    Args:
        name: folder of a cache, or id of a data set on the Hub.
        revision: branch, tag or commit of the latter.

    Raises:
        ValueError: neither a folder nor a repository that can be reached; or what is there is no complete cache.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_cache(folder)
    if len(folder.parts) != 2 or str(name).startswith((".", "~")):
        raise ValueError(f"The features {name} do not exist; give the folder of a cache, or the id of a data set.")
    try:
        snapshot = snapshot_download(str(name), repo_type="dataset", revision=revision, allow_patterns=CACHE_FILES)
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"The features {name} are no folder and could not be fetched from the Hub: {error}") from error
    return open_cache(snapshot)
