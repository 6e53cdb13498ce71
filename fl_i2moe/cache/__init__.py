"""The feature cache: what frozen encoders make of raw samples, encoded once, checked, and read fast."""

from .building import build_cache
from .feature_cache import FeatureCache, is_cache, open_cache, open_features
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
    "open_features",
]
