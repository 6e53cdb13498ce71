"""A sound as a picture: its waveform over the seconds that were encoded; and to be played on a page."""

import base64
import math
from functools import cached_property
from io import BytesIO
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...model.kind_audio import AudioPlaces
from ...model.sound import import_soundfile

WIDTH, WAVE, HEIGHT = 660, 140, 172
"""Of the strip, of the waveform above the axis, and of both."""

MARGIN = 14
SCALE = 2
"""Pixels drawn for each unit of the strip."""

PAPER, INK, AXIS = "#ffffff", "#3b4a5a", "#1c1c1e"
LARGEST_FILE = 1_000_000
"""Bytes of a sound that a page holds."""

PLAYED = {"WAV": "audio/wav", "FLAC": "audio/flac", "OGG": "audio/ogg", "MP3": "audio/mpeg", "MPEG": "audio/mpeg"}
"""What browsers play, by libsndfile's names."""


class SoundStrip:
    """What a drawing of pictures asks of a picture, for a sound."""

    badge_rows: ClassVar[int] = 5
    size: ClassVar[tuple[int, int]] = (WIDTH, HEIGHT)

    def __init__(self, places: AudioPlaces):
        self.places, self.candidates, self.name_of = places, places.candidates, places.name_of

    def missing(self) -> None:
        """Never: the strip itself says that the sound is gone."""

    def box(self, index: int) -> tuple[float, float, float, float]:
        """Of a time step, as high as the waveform."""
        start, end = self.places.stretch(index)
        return self._x(start), 0.0, self._x(end), float(WAVE)

    def picture(self, longest_side: int | None = None) -> Image.Image:
        """The strip; without the waveform where the sound is gone."""
        return (
            self._whole
            if longest_side is None or longest_side >= WIDTH
            else self._whole.resize((longest_side, round(longest_side * HEIGHT / WIDTH)), Image.Resampling.LANCZOS)
        )

    def _x(self, seconds: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * seconds / max(self.places.end, 1e-9)

    @cached_property
    def _whole(self) -> Image.Image:
        image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(24 * SCALE)
        sound, middle = self.places.sound(), WAVE * SCALE / 2
        if sound is None:
            draw.text((WIDTH * SCALE / 2, middle), "sound not at hand", AXIS, font, anchor="mm")
        else:
            start, columns = MARGIN * SCALE, (WIDTH - 2 * MARGIN) * SCALE
            low, high = envelope(sound.samples[: max(1, round(self.places.end * sound.rate))], columns)
            half = (middle - 4) / max(float(np.abs([low, high]).max()), 1e-9)
            for column, (bottom, top) in enumerate(zip(low, high, strict=True)):
                draw.line([(start + column, middle - top * half), (start + column, middle - bottom * half)], INK)
        axis = WAVE * SCALE
        draw.line((MARGIN * SCALE, axis, (WIDTH - MARGIN) * SCALE, axis), AXIS, SCALE)
        for tick in ticks(self.places.end):
            x = self._x(tick) * SCALE
            draw.line((x, axis, x, axis + 5 * SCALE), AXIS, SCALE)
            draw.text((x, axis + 6 * SCALE), f"{tick:g} s" if tick == 0 else f"{tick:g}", AXIS, font, anchor="mt")
        return image


def envelope(samples: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(columns,) lowest and highest sample of each column."""
    starts = np.arange(columns) * len(samples) // columns
    if len(samples) < columns:
        return samples[starts], samples[starts]
    return np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


def ticks(end: float) -> list[float]:
    """From 0 on, at most eight of them, at round seconds."""
    power = 10.0 ** math.floor(math.log10(max(end, 1e-3) / 5))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if end / (factor * power) <= 7)
    return [round(number * step, 6) for number in range(math.floor(end / step + 1e-6) + 1)]


def sound_uri(places: AudioPlaces) -> str | None:
    """The encoded file as a data URI that browsers play; None where it is gone or large."""
    file = places.file
    if file is None or len(file["bytes"]) > LARGEST_FILE:
        return None
    soundfile, content = import_soundfile(), file["bytes"]
    kind = PLAYED.get(soundfile.info(BytesIO(content)).format)
    if kind is None:
        sound, stream = places.sound(), BytesIO()
        soundfile.write(stream, sound.samples, sound.rate, format="WAV", subtype="PCM_16")
        content, kind = stream.getvalue(), "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
