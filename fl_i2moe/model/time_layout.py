"""
Which positions of an audio encoder's output belong to which time: found out by silence, once, when it is loaded.

Stretches of a noise are silenced, one at a time. A position changes most, relative to what it and the stretch usually
change, when its own time is silent. The *fit* of a layout is the mean share of other stretches that change a position
less than its own: 1 at best, 0.5 for positions in random order.

Shape letters: B sounds, N samples of a sound, T positions of the output, D encoder width, K stretches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .patch_layout import relative_change, share_below

LONGEST_WINDOW = 64
"""Seconds; an encoder that always sees more is refused."""

NUM_STRETCHES = 6
CLEAR = 0.8
"""Fit from which an unusual layout is taken."""

SAME = 0.02
"""Layouts whose fits differ by less are alike, and the simplest is taken."""

Encode = Callable[[np.ndarray], Tensor]
"""A sound (N,) → the encoder's hidden state: (1, T, D), or (1, D, rows, columns)."""


@dataclass(frozen=True)
class TimeLayout:
    """
    Positions are special ones first, then (chunks, bands, width), the last running fastest. A time step is a chunk and
    a place in its width; bands are frequencies, which are averaged.

    The usual layout, one position a time step, has one chunk and one band. A spectrogram's patches (AST) have a band
    for every row of patches; CLAP's hidden layers fold the time into chunks.
    """

    num_special: int
    chunks: int = 1
    bands: int = 1

    def arrange(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Special features (B, num_special, D), and those of the time steps in their order (B, steps, D)."""
        features_BTD = _as_sequence(hidden)
        rest = features_BTD[:, self.num_special :].unflatten(1, (self.chunks, self.bands, -1))
        return features_BTD[:, : self.num_special], rest.mean(2).flatten(1, 2)

    def steps_of(self, length: int) -> np.ndarray:
        """(T − num_special,) the time step of every other position."""
        width = (length - self.num_special) // (self.chunks * self.bands)
        chunk, place = np.arange(self.chunks)[:, None, None], np.arange(width)[None, None]
        return np.broadcast_to(chunk * width + place, (self.chunks, self.bands, width)).ravel()


@dataclass(frozen=True)
class StepCount:
    """How many time steps lie in N samples: ⌊(scale · N + shift) / samples⌋."""

    scale: int
    shift: int
    samples: int

    def __call__(self, num_samples: int) -> int:
        return (self.scale * num_samples + self.shift) // self.samples

    @classmethod
    def in_window(cls, num_steps: int, window: int) -> StepCount:
        """Of an encoder that sees a window of always so many samples: the steps that begin before the sound ends."""
        return cls(num_steps, window - 1, window)

    @classmethod
    def measured(cls, count: Callable[[int], int], longest: int) -> tuple[StepCount, int]:
        """
        Of an encoder that sees a sound alone: measured where the second and a later step appear.

        Args:
            count: number of samples → number of steps.
            longest: samples to try at most; there are several steps in so many.

        Returns:
            The rule, and the fewest samples that it holds for.

        Raises:
            ValueError: the number of steps does not grow evenly.
        """
        total = count(longest)
        last = min(10, total)

        def first_of(steps: int, start: int) -> int:
            return first_enough(lambda num_samples: count(num_samples) >= steps, longest, start)

        first = first_of(1, 1)
        second = first_of(2, first)
        scale, samples = last - 2, first_of(last, second) - second
        if samples % scale == 0:
            scale, samples = 1, samples // scale
        rule = cls(scale, 2 * samples - scale * second, samples)
        if samples < 1 or rule(longest) != total:
            raise ValueError(f"gives {total} features for {longest} samples, {rule(longest)} would be even in time")
        return rule, first if rule(first) == 1 else second


def first_enough(is_enough: Callable[[int], bool], longest: int, start: int = 1) -> int:
    """The smallest number in start … longest that is enough, as the longest is."""
    low, high = start - 1, start
    while high < longest and not is_enough(high):
        low, high = high, min(2 * high, longest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def find_window(extract: Callable[[np.ndarray], Tensor], rate: int, length: int) -> int | None:
    """
    How many samples an encoder always sees: longer sounds are cut, or a part is chosen at random, shorter ones filled
    up. None if it sees a sound as long as it is.

    Args:
        extract: sound (N,) → the encoder's input.
        length: samples of the first sounds that are tried.

    Raises:
        ValueError: it is longer than `LONGEST_WINDOW`.
    """
    rng, end = np.random.default_rng(0), rate // 20
    noise = rng.normal(0, 0.1, 2 * LONGEST_WINDOW * rate).astype(np.float32)
    if extract(noise[:length]).shape != extract(noise[: length // 2]).shape:
        return None

    def is_random(num_samples: int, calls: int) -> bool:
        first = extract(noise[:num_samples])
        return not all(torch.equal(first, extract(noise[:num_samples])) for _ in range(calls - 1))

    def is_beyond(num_samples: int) -> bool:
        """Whether its end does not count."""
        changed = noise[:num_samples].copy()
        changed[-end:] *= -3
        first, again, other = (extract(sound) for sound in (noise[:num_samples], noise[:num_samples], changed))
        return not torch.equal(first, again) or torch.equal(first, other)

    longest = LONGEST_WINDOW * rate
    first = first_enough(is_beyond, longest, start=end)
    if first == longest and not is_beyond(first):
        raise ValueError(f"an encoder that always sees more than {LONGEST_WINDOW} s is not supported")
    if not is_random(2 * first, calls=2):
        return first - end
    hundredth = rate // 100
    window = (first - 1) // hundredth * hundredth
    while is_random(window, calls=10):  # of a sound that is hardly too long, the same part may be chosen twice
        window -= hundredth
    return window


def find_time_layout(encode: Encode, sound: np.ndarray, window: int, num_special: int, name: str) -> TimeLayout:
    """
    Finds out where time lies in the output.

    The usual layout, one position a time step behind `num_special` others, is taken unless another fits clearly better,
    or it fits no better than random order.

    Args:
        sound: (N,), a noise.
        window: samples that the output is about; more than N where the encoder pads.
        num_special: positions that belong to no time, as the model's parameters say.
        name: of the encoder, for messages.

    Raises:
        ValueError: the same sound gives different features in two calls, or no layout fits.
    """
    hidden = encode(sound).float()
    if hidden.ndim not in (3, 4) or len(hidden) != 1:
        raise ValueError(
            f"encoder {name!r} gives features of shape {tuple(hidden.shape)} for a sound, no sequence or map; use "
            "another encoder, or another hidden_layer"
        )
    if not hidden.isfinite().all():
        raise ValueError(f"encoder {name!r} gives features that are no finite numbers; use another dtype or encoder")
    edges = np.linspace(0, len(sound), NUM_STRETCHES + 1).astype(int)
    silenced = [sound.copy() for _ in range(NUM_STRETCHES)]
    for one, start, end in zip(silenced, edges[:-1], edges[1:], strict=True):
        one[start:end] = 0
    again, *others = (encode(one).float() for one in (sound, *silenced))
    if float((hidden - again).norm()) > 0.01 * float(hidden.norm()):
        raise ValueError(f"encoder {name!r} gives other features in every call for the same sound; use another encoder")
    changes_KT = torch.cat([_as_sequence(other - hidden).norm(dim=2) for other in others]).cpu()
    shares_KT = share_below(relative_change(changes_KT)).numpy()
    length = shares_KT.shape[1]
    if length - num_special < NUM_STRETCHES:
        raise ValueError(
            f"encoder {name!r} gives {length} features for a sound of {len(sound):,} samples, too few to tell when "
            "each of them is: let sounds be longer (max_seconds)"
        )
    best: tuple[float, TimeLayout] | None = None
    for layout in _layouts(length, num_special):
        steps = layout.steps_of(length)
        start = steps * window / (steps.max() + 1)
        is_heard = start < len(sound)
        if is_heard.sum() < NUM_STRETCHES:
            continue
        middle = np.minimum(start + 0.5 * window / (steps.max() + 1), len(sound) - 1)
        stretch = np.searchsorted(edges, middle, side="right") - 1
        positions = np.flatnonzero(is_heard)
        fit = float(shares_KT[stretch[positions], positions + num_special].mean())
        is_usual = layout.chunks == layout.bands == 1
        if fit < (0.5 + 3 / math.sqrt(24 * len(positions)) if is_usual else CLEAR):
            continue
        if best is None or fit > best[0] + SAME:
            best = fit, layout
    if best is None:
        raise ValueError(
            f"encoder {name!r}: silencing parts of a sound of {len(sound):,} samples does not show which of the "
            f"output's positions (shape {tuple(hidden.shape)}) belongs to which time; use another encoder, or another "
            "hidden_layer"
        )
    return best[1]


def _layouts(length: int, num_special: int) -> Iterator[TimeLayout]:
    """All that the length allows, the simplest first: few chunks, then few bands."""
    rest = length - num_special
    divisors = [n for n in range(1, rest + 1) if rest % n == 0]
    for chunks in divisors:
        for bands in divisors:
            if rest % (chunks * bands) == 0 and (bands > 1 or chunks == 1):
                yield TimeLayout(num_special, chunks, bands)


def _as_sequence(hidden: Tensor) -> Tensor:
    """(B, T, D)."""
    return hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)
