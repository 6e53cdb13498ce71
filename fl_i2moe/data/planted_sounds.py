"""
Short sounds with transcripts in which it is known how the two tell each label: a sample of known truth with sound.

A label is a Boolean function of bits as in the numeric sample (`numeric.py`): a bit of the sound alone, of the
transcript alone, one that both show, and the exclusive-or of two. A sound shows a bit by one of two pitches of a short
tone, among noise and tones of other pitches that tell nothing; a transcript by a word of one or the other half of a
family. Where the tone lies, in seconds, and the word, in characters, is written down.
"""

import csv
import hashlib
import json
import math
import random
import wave
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .numeric import NumericLabel, draw_bits
from .planted_plots import WORDS, compose_plot
from .truth_files import MIN_SAMPLES, TruthFile, split_sizes

TRUTH = TruthFile("truth.json", format_version=1, kind="planted sample of sounds", writer="write_planted_sounds")
TABLE_FILE = "clips.csv"
SOUND, TRANSCRIPT = "sound", "transcript"

LABELS = {
    "sound_alone": NumericLabel("unique", (SOUND,)),
    "transcript_alone": NumericLabel("unique", (TRANSCRIPT,)),
    "sound_or_transcript": NumericLabel("redundancy", (SOUND, TRANSCRIPT)),
    "sound_xor_transcript": NumericLabel("synergy", (SOUND, TRANSCRIPT)),
}
PITCHES = {"sound_alone": (400, 560), "sound_or_transcript": (900, 1260), "sound_xor_transcript": (2000, 2800)}
"""Label → hertz of its tone for bit 0 and for bit 1."""

FAMILIES = {"transcript_alone": "animal", "sound_or_transcript": "place", "sound_xor_transcript": "food"}
"""Label → family of words, of which the first half says 0."""

DISTRACTORS = (3600, 4600, 6000)
"""Hertz of tones that tell nothing."""

SLOTS = 8
"""Parts of a sound, one tone at most in each."""

TONE_SHARE = 0.8
"""Of its slot that a tone fills."""

TONE_AMPLITUDE, NOISE_AMPLITUDE = 0.3, 0.03


@dataclass(frozen=True)
class SoundSettings:
    """
    What decides the sample, bit for bit.

    Args:
        seconds: of each sound.
        sampling_rate: samples a second.

    Raises:
        ValueError: a number is out of range.
    """

    num_samples: int = 1200
    seconds: float = 2.0
    sampling_rate: int = 16000
    sample_seed: int = 0

    def __post_init__(self) -> None:
        highest = max(*DISTRACTORS, *(pitch for pair in PITCHES.values() for pitch in pair))
        for name, least in (("num_samples", MIN_SAMPLES), ("seconds", 0.5), ("sampling_rate", 2 * highest + 1)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be a number of at least {least}, got {getattr(self, name)}.")

    @property
    def labels(self) -> dict[str, NumericLabel]:
        return LABELS

    @property
    def digest(self) -> str:
        """Names the sample in its clips' ids."""
        return hashlib.sha256(json.dumps([TRUTH.format_version, asdict(self)]).encode()).hexdigest()[:8]


def write_planted_sounds(output_dir: str | Path, settings: SoundSettings) -> Path:
    """
    Writes `clips.csv`, with the columns `id`, `split`, `sound` (a path below the folder), `transcript` and one of 0 and
    1 for each label; `clips/*.wav`; and `truth.json`. The folder is new or empty, or has the same sample already. The
    same settings and versions of NumPy give the same bytes.

    Returns:
        The table's file.

    Raises:
        ValueError: the folder holds something else.
    """
    made_from = {"settings": asdict(settings)}
    return TRUTH.write_sample(output_dir, made_from, lambda folder: _write(folder, settings)) / TABLE_FILE


def load_sounds_truth(data_dir: str | Path) -> dict[str, Any]:
    """
    What tells each label, and where, read from `truth.json`.

    Returns:
        `{"format_version", "settings", "labels", "samples"}`. `labels` maps a label to `interaction`, `modalities` and
        `carrier` as of [`~fl_i2moe.data.numeric.NumericLabel`]. `samples` maps a clip's id, a label and each of the
        label's modalities to `bit`, what is shown there, and where: `seconds`, [start, end] of the tone, or `span`,
        [start, end] of the word in characters.

    Raises:
        ValueError: the folder holds no such sample, or one of another version.
    """
    return TRUTH.load(data_dir)


def _write(folder: Path, settings: SoundSettings) -> dict[str, Any]:
    (folder / "clips").mkdir()
    rng = np.random.default_rng(settings.sample_seed)
    rows: list[dict[str, Any]] = []
    samples: dict[str, Any] = {}
    for split, size in split_sizes(settings.num_samples).items():
        shown, labels = draw_bits(rng, settings, size)
        for row in range(size):
            clip_id = f"{settings.digest}-{len(rows):05d}"
            bits = {name: dict(zip(x.modalities, shown[name][row].tolist(), strict=True)) for name, x in LABELS.items()}
            sound, seconds = _compose_sound(rng, settings, {x: of[SOUND] for x, of in bits.items() if SOUND in of})
            words = {x: of[TRANSCRIPT] for x, of in bits.items() if TRANSCRIPT in of}
            transcript, spans = _compose_transcript(random.Random(f"{settings.sample_seed} {clip_id}"), words)
            path = f"clips/{clip_id}.wav"
            _write_wav(folder / path, sound, settings.sampling_rate)
            told = dict(zip(LABELS, labels[row].tolist(), strict=True))
            rows.append({"id": clip_id, "split": split, SOUND: path, TRANSCRIPT: transcript, **told})
            places: dict[str, dict[str, dict[str, Any]]] = {
                SOUND: {label: {"seconds": list(x)} for label, x in seconds.items()},
                TRANSCRIPT: {label: {"span": list(x)} for label, x in spans.items()},
            }
            samples[clip_id] = {
                label: {name: {"bit": bit, **places[name][label]} for name, bit in shown_bits.items()}
                for label, shown_bits in bits.items()
            }
    with (folder / TABLE_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {"labels": {name: {**asdict(x), "carrier": x.carrier} for name, x in LABELS.items()}, "samples": samples}


def _compose_sound(
    rng: np.random.Generator, settings: SoundSettings, bits: Mapping[str, int]
) -> tuple[NDArray[np.float64], dict[str, tuple[float, float]]]:
    """(N,) samples, and label → start and end of its tone."""
    rate = settings.sampling_rate
    samples = NOISE_AMPLITUDE * rng.standard_normal(round(settings.seconds * rate))
    slot = len(samples) // SLOTS
    length = round(TONE_SHARE * slot)
    pitches = [(label, PITCHES[label][bit]) for label, bit in bits.items()]
    pitches += [("", pitch) for pitch in rng.permutation(DISTRACTORS)[: rng.integers(1, len(DISTRACTORS) + 1)].tolist()]
    seconds = {}
    for place, (label, pitch) in zip(rng.permutation(SLOTS), pitches, strict=False):
        start = int(place) * slot + int(rng.integers(slot - length + 1))
        turns = pitch * np.arange(length) / rate + rng.random()
        samples[start : start + length] += TONE_AMPLITUDE * np.hanning(length) * np.sin(2 * np.pi * turns)
        if label:
            seconds[label] = start / rate, (start + length) / rate
    return samples, seconds


def _compose_transcript(rng: random.Random, bits: Mapping[str, int]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A text, and label → the characters of its word."""
    words = {}
    for label, bit in bits.items():
        family = WORDS[FAMILIES[label]]
        half = len(family) // 2
        words[FAMILIES[label]] = rng.choice(family[half:] if bit else family[:half])
    text, spans = compose_plot(rng, words)
    return text, {label: spans[FAMILIES[label]] for label in bits}


def _write_wav(path: Path, samples: NDArray[np.float64], rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
