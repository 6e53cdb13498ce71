"""Sounds read from files, bytes and arrays, as one channel of float32 samples."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WHOLE = 0.9
"""Share of the samples that a file promises from which it counts as whole; an MP3 may only estimate them."""


@dataclass(frozen=True)
class Sound:
    """One channel."""

    samples: np.ndarray
    """(N,) float32, perhaps cut."""

    rate: int
    """Samples a second."""

    seconds: float
    """How long the whole is."""


def open_sound(value: Any, max_seconds: float = math.inf) -> Sound:
    """
    Reads a sound; channels are averaged.

    Args:
        value: a path, the dictionary of an undecoded `datasets.Audio`, `{"path": ..., "bytes": ...}`, samples as
            `{"array": ..., "sampling_rate": ...}` or as the two in a tuple, a decoded `datasets.Audio`, or a `Sound`.
            Samples (N,), or with channels in the shorter axis, are floats from −1 to 1 or integers of their type.
        max_seconds: no more is read.

    Raises:
        ValueError: the file is missing, empty, truncated or no sound, or samples are none or not finite; the message
            names the file and the reason.
        ImportError: the packages that read sounds are not installed.
    """
    if isinstance(value, Sound):
        return _checked(value.samples, value.rate, value.seconds, max_seconds)
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, (str, Path)) else None
    name = path or f"a sound given as {'bytes' if isinstance(value, Mapping) else type(value).__name__}"
    try:
        if hasattr(value, "get_all_samples"):  # torchcodec's decoder, which datasets hands out
            decoded = value.get_all_samples()
            value = {"array": decoded.data.numpy(), "sampling_rate": decoded.sample_rate}
        if isinstance(value, tuple) and len(value) == 2:
            rate, array = value if np.ndim(value[0]) == 0 else value[::-1]  # either may be first
            value = {"array": array, "sampling_rate": rate}
        if isinstance(value, Mapping) and value.get("array") is not None:
            array, rate = _one_channel(value["array"]), value.get("sampling_rate")
            if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 1 <= rate < math.inf:
                raise ValueError(f"its sampling rate is {rate!r}; give samples a second, a number of at least 1")
            return _checked(array, round(float(rate)), len(array) / float(rate), max_seconds)
        if isinstance(value, Mapping):
            content = value.get("bytes")
            value = io.BytesIO(content) if content is not None else value.get("path")
        if not isinstance(value, (str, Path, io.BytesIO)):
            raise ValueError(
                "give a path, {'path': ..., 'bytes': ...}, or samples with their rate, {'array': ..., 'sampling_rate': "
                "...}"
            )
        return _read(value, max_seconds)
    except (ValueError, OSError, OverflowError, TypeError) as error:
        reason = "the file is missing" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise ValueError(
            f"{name}: cannot be read as a sound: {reason.rstrip('.')}. Replace or leave out this sound."
        ) from error


def _read(source: str | Path | io.BytesIO, max_seconds: float) -> Sound:
    soundfile = import_soundfile()
    if not isinstance(source, io.BytesIO):
        if Path(source).stat().st_size == 0:
            raise ValueError("the file has 0 bytes")
        source = str(source)
    try:
        with soundfile.SoundFile(source) as file:
            rate, total = file.samplerate, file.frames
            if shorter := _shortened(file.extra_info):
                raise ValueError(shorter)
            wanted = int(min(total, math.ceil(max_seconds * rate) if max_seconds < math.inf else total))
            samples = file.read(wanted, dtype="float32", always_2d=True)
    except soundfile.SoundFileRuntimeError as error:
        # "Error opening <_io.BytesIO object at …>: Format not recognised."
        raise ValueError(re.sub(r"Error opening .*?: ", "", str(error))) from error
    if len(samples) < WHOLE * wanted:
        raise ValueError(f"it is truncated: it has {len(samples):,} of {wanted:,} samples")
    return _checked(samples.mean(axis=1), rate, total / rate, max_seconds)


def _shortened(remarks: str) -> str | None:
    """Whether libsndfile says that a file's data are shorter than its header promises (a stream's promises nothing)."""
    found = re.search(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", remarks, re.MULTILINE)
    promised, there = map(int, found.groups()) if found else (0, 0)
    return f"it is truncated: it has {there:,} of {promised:,} bytes" if there < promised < 0x7FFF0000 else None


def _one_channel(array: Any) -> np.ndarray:
    """(N,) float32."""
    samples = np.asarray(array)
    if samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
        raise ValueError(f"samples must be numbers in one or two dimensions, got {samples.dtype} {samples.shape}")
    if samples.dtype.kind != "f":
        limits = np.iinfo(samples.dtype)
        middle = (int(limits.max) + int(limits.min) + 1) // 2  # unsigned samples are silent there
        samples = (samples.astype(np.float64) - middle) / (int(limits.max) - middle + 1)
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    return samples.astype(np.float32)


def _checked(samples: np.ndarray, rate: int, seconds: float, max_seconds: float) -> Sound:
    if max_seconds < math.inf:
        samples = samples[: math.ceil(max_seconds * rate)]
    if not len(samples):
        raise ValueError("it has no samples (0 s)")
    if not np.isfinite(samples).all():
        raise ValueError(f"sample {int(np.flatnonzero(~np.isfinite(samples))[0])} is NaN or infinite")
    return Sound(samples, rate, seconds)


def import_soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # without the library below it, an OSError
        raise ImportError(f'Reading sounds needs the package soundfile: pip install -e ".[audio]" ({error})') from error
    return soundfile


def import_soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise ImportError('Resampling sounds needs the package soxr: pip install -e ".[audio]"') from error
    return soxr


def resample(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """(N,) at another rate."""
    return samples if rate == to else import_soxr().resample(samples, rate, to)
