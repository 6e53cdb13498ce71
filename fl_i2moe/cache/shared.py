"""A feature cache opened from a folder or from the Hub."""

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from .feature_cache import CorruptCacheError, FeatureCache, open_cache


def open_features(
    name: str | Path, revision: str | None = None, *, fetch: Collection[str] | None = None
) -> FeatureCache:
    """
    Opens a feature cache, and fetches it first if it is on the Hub. Every shard on the disk is held against its
    checksum; what is streamed is not, since that takes a whole file.

    Args:
        name: folder of a cache, or id of a data set on the Hub.
        revision: branch, tag or commit of the latter.
        fetch: splits to fetch from the Hub; others are left there, and can be streamed. All if not given.

    Raises:
        ValueError: neither a folder nor a repository that can be reached; or what is there is no complete cache.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_cache(folder)
    if len(folder.parts) != 2 or str(name).startswith((".", "~")):
        raise ValueError(f"The features {name} do not exist; give the folder of a cache, or the id of a data set.")
    files = ["*.json", "skipped.jsonl", *(f"{split}/data-*.arrow" for split in (["*"] if fetch is None else fetch))]
    try:
        snapshot = Path(snapshot_download(str(name), repo_type="dataset", revision=revision, allow_patterns=files))
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"The features {name} are no folder and could not be fetched from the Hub: {error}") from error
    try:
        # its name is the commit, so that what is streamed is of the same one
        return open_cache(snapshot, here=fetch, elsewhere=f"hf://datasets/{name}@{snapshot.name}")
    except CorruptCacheError as error:
        raise CorruptCacheError(
            f"What was fetched of {name} is damaged or not all there: delete {snapshot.parents[1]} and run again, "
            f"connected to the Hub ({error})."
        ) from error
