"""
The feature cache: what frozen encoders make of raw samples, encoded once, checked, and read fast.

Each imports only what stands above it:

- `shards`: its files; `encoding`: from raw samples to rows; `key`: what its features depend on
- `batching`: from rows to batches; `streaming`: rows from the Hub, shard by shard
- `feature_cache`: build, open and check one; `shared`: open one from a folder or the Hub
"""

from .feature_cache import FeatureCache, build_cache, is_cache, open_cache
from .key import CacheMismatchError, cache_key
from .shards import CorruptCacheError

__all__ = [
    "CacheMismatchError",
    "CorruptCacheError",
    "FeatureCache",
    "build_cache",
    "cache_key",
    "is_cache",
    "open_cache",
]
