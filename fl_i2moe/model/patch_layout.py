"""
Where patches lie in an image encoder's output: found out by painting, once, when it is loaded.

Bands of a picture of noise are painted black, one at a time. A patch's position in the output changes most, relative to
what it and the band usually change, when its own row or column is painted. The *fit* of a layout is the mean share of
other bands that change a patch's position less than its own: 1 at best, 0.5 for positions in random order.

Shape letters: B pictures, T positions of the output, D encoder width, H and W pixel rows and columns, P = R · C patches
in R rows and C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

BANDS = (4, 8)
"""Bands a side that a usual layout is tested with, the second in doubt; another takes one a row and column."""

CLEAR = 0.8
"""Fit from which a usual layout is beyond doubt, and a guessed grid is taken."""

ROUNDS = 3
"""Pictures at most from which another layout is read."""

BATCH_SIZE = 8

Trust = Literal["certain", "likely", "guess"]
"""In a grid: the only one that a map can have, a map's or the configuration's, one of many."""

Encode = Callable[[Tensor], Tensor]
"""Pixels (B, H, W, 3), uint8 → the encoder's hidden state: (B, T, D), (B, D, R, C) or (B, R, C, D)."""


@dataclass(frozen=True)
class PatchLayout:
    """Which positions of the encoder's output are patches, and which patch each is.

    Args:
        grid: rows and columns of patches.
        order: for every feature, the position that it is taken from: patches in reading order, and special positions
            where they are between them.
        special: positions that are no patch.
        is_usual: row by row, behind the special ones.
        feature_size: D.
        channels_last: whether a hidden state with four dimensions is (B, R, C, D).
    """

    grid: tuple[int, int]
    order: tuple[int, ...]
    special: tuple[int, ...]
    is_usual: bool
    feature_size: int
    channels_last: bool

    def arrange(self, hidden: Tensor) -> Tensor:
        """The features (B, T, D) of a hidden state, with its patches in reading order."""
        features_BTD = _as_sequence(hidden, self.channels_last)
        return features_BTD if self.is_usual else features_BTD[:, list(self.order)]


def find_patch_layout(encode: Encode, input_size: tuple[int, int], patch_size: int | None, name: str) -> PatchLayout:
    """Finds out where patches lie.

    The usual layout (row by row, behind special positions) is taken unless another regular one fits clearly better, or
    it fits no better than random order (a guessed grid has to be `CLEAR`). Otherwise each position is read off singly:
    all patches must be named, with a fit of 0.9; or, as patches that overlap may name their neighbours, three of four
    as in a regular layout. Failing that, a map is read as its shape says (convolutions smear), a sequence is refused.

    Args:
        input_size: H and W.
        patch_size: pixels of a patch's side, if known.
        name: of the encoder, for messages.

    Raises:
        ValueError: the same picture gives different features in two calls, or no grid of patches can be found.
    """
    pictures = _pictures(encode, input_size)
    picture, again = next(pictures)
    hidden = encode(torch.stack([picture, picture])).float()
    if hidden.ndim not in (3, 4) or len(hidden) != 2:
        raise ValueError(
            f"encoder {name!r} gives features of shape {tuple(hidden.shape)} for two pictures, no sequence or map of "
            "patches for each; use another encoder, or another hidden_layer"
        )
    if not hidden.isfinite().all():
        raise ValueError(f"encoder {name!r} gives features that are no finite numbers; use another dtype or encoder")
    # not torch.equal: a GPU adds in any order
    if hidden.shape[1:] != again.shape[1:] or float((hidden - again).norm()) > 0.01 * float(hidden.norm()):
        raise ValueError(
            f"encoder {name!r} gives other features in every call for the same picture, as one that shuffles or masks "
            "patches at random (ViTMAE) does; use another encoder"
        )
    for grid, channels_last, trust in _grids(hidden, input_size, patch_size):
        plain = _as_sequence(again, channels_last)
        painting = _Painting(encode, chain([(picture, again)], pictures), grid, channels_last, *plain.shape[1:])
        layout = _find_in_grid(painting, trust)
        if layout is not None:
            return layout
    raise ValueError(
        f"encoder {name!r}: painting a picture of {input_size[0]} x {input_size[1]} pixels does not show which of the "
        f"output's positions (shape {tuple(again.shape)}) belongs to which part of it; use another encoder, or "
        "another hidden_layer"
    )


def _find_in_grid(painting: _Painting, trust: Trust) -> PatchLayout | None:
    rows, columns = painting.grid
    num_patches = rows * columns
    usual = torch.arange(num_patches) + painting.length - num_patches
    if num_patches == 1 or (trust == "certain" and num_patches < 16):  # too few to contradict what a map's shape says
        return painting.layout(usual)
    enough = {"certain": 0.0, "likely": 0.5 + 3 / math.sqrt(24 * num_patches), "guess": CLEAR}[trust]
    for max_bands, least in zip(BANDS, (CLEAR, enough), strict=True):
        fits = _Fits(painting(max_bands), painting.grid)
        others = _regular(painting.grid, painting.length)
        if float(fits(usual).mean()) >= least and not fits.contradict(usual, others):
            return painting.layout(usual)
    if trust == "guess":
        return None

    by_rows, by_columns = torch.zeros(1), torch.zeros(1)
    for _ in range(ROUNDS):
        more_by_rows, more_by_columns = painting(max(rows, columns))
        by_rows, by_columns = by_rows + more_by_rows, by_columns + more_by_columns
        (of_row, row), (of_column, column) = by_rows.max(0), by_columns.max(0)
        place, strength = row * columns + column, of_row + of_column
        if len(place.unique()) == num_patches:
            # Where several positions name a patch (a special one does, too), it is the one that names it the clearest.
            strongest_last = strength.argsort()
            positions = torch.empty(num_patches, dtype=torch.long)
            positions[place[strongest_last]] = strongest_last
            if float(fits(positions).mean()) >= 0.9:
                return painting.layout(positions)
    # Patches that overlap may name their neighbours.
    fits = _Fits((by_rows, by_columns), painting.grid)
    best = max(_regular(painting.grid, painting.length), key=lambda positions: float(fits(positions).mean()))
    named = float((place[best] == torch.arange(num_patches)).double().mean())
    if named >= 0.75:
        return painting.layout(best)
    return painting.layout(usual) if trust == "certain" else None


class _Fits:
    """How well each patch (P,), in reading order, fits a position, by the changes of bands (bands, T)."""

    def __init__(self, change: tuple[Tensor, Tensor], grid: tuple[int, int]):
        self.shares = [share_below(x) for x in change]
        places = torch.cartesian_prod(*map(torch.arange, grid)).T
        self.bands = [_band_of(place, cells, len(x)) for place, cells, x in zip(places, grid, change, strict=True)]

    def __call__(self, positions: Tensor) -> Tensor:
        by_row, by_column = (share[band, positions] for share, band in zip(self.shares, self.bands, strict=True))
        return (by_row + by_column) / 2

    def contradict(self, usual: Tensor, others: Iterator[Tensor]) -> bool:
        """Whether another layout fits better by more than three standard errors, up to some patch (special positions
        may lie between patches)."""
        for positions in others:
            gain = self(positions) - self(usual)
            mean, mean_of_squares = gain.cumsum(0) / len(gain), gain.square().cumsum(0) / len(gain)
            if (mean > 1e-9 + 3 * ((mean_of_squares - mean.square()).clamp(min=0) / len(gain)).sqrt()).any():
                return True
        return False


def _regular(grid: tuple[int, int], length: int) -> Iterator[Tensor]:
    """Positions (P,) of the patches in every regular layout: columns first, windows, every n-th patch, anywhere."""
    rows, columns = grid
    cells = torch.arange(rows * columns).view(rows, columns)
    orders = [cells.flatten(), cells.T.flatten()]
    for size in range(2, min(rows, columns) + 1):
        if rows % size == 0 and columns % size == 0:
            orders.append(cells.view(rows // size, size, columns // size, size).transpose(1, 2).flatten())
        parts = [cells]
        while parts[0].shape[0] % size == 0 and parts[0].shape[1] % size == 0:  # again and again, as Hiera does
            parts = [part[i::size, j::size] for part in parts for i in range(size) for j in range(size)]
            orders.append(torch.cat([part.flatten() for part in parts]))
    for order in orders:
        positions = order.argsort()
        yield from (positions + first for first in range(length - len(order) + 1))


def share_below(change: Tensor) -> Tensor:
    """For every band and position, the share of other bands that change it less: (bands, T)."""
    if len(change) == 1:
        return torch.ones_like(change)
    less = (change[:, None] > change[None]).double() + 0.5 * (change[:, None] == change[None])
    return (less.sum(1) - 0.5) / (len(change) - 1)


def _as_sequence(hidden: Tensor, channels_last: bool) -> Tensor:
    """(B, T, D)."""
    if hidden.ndim == 3:
        return hidden
    return hidden.flatten(1, 2) if channels_last else hidden.flatten(2).transpose(1, 2)


def _grids(
    hidden: Tensor, input_size: tuple[int, int], patch_size: int | None
) -> Iterator[tuple[tuple[int, int], bool, Trust]]:
    """Grids that may be meant, the likeliest first: (rows, columns), whether channels come last, and how sure."""
    height, width = input_size
    if hidden.ndim == 4:
        shapes = [((hidden.shape[2], hidden.shape[3]), False), ((hidden.shape[1], hidden.shape[2]), True)]
        # Patches are about as wide as high.
        square = [x for x in shapes if 0.5 < (x[0][0] * width) / (x[0][1] * height) < 2 and x[0][0] <= height]
        shapes = square or shapes[:1]
        yield from ((grid, last, "certain" if len(shapes) == 1 else "likely") for grid, last in shapes)
        return
    length = hidden.shape[1]
    grids = [(height // patch_size, width // patch_size)] if patch_size else []
    if grids and 0 < grids[0][0] * grids[0][1] <= length:
        yield grids[0], False, "likely"
    # Hierarchical encoders merge patches on the way.
    for stride in range(1, min(input_size) + 1):
        grids += [(height // stride, width // stride), (-(-height // stride), -(-width // stride))]
    fits = [grid for grid in dict.fromkeys(grids) if length / 2 < grid[0] * grid[1] <= length]
    finest = sorted(fits, key=lambda grid: grid[0] * grid[1], reverse=True)[:2]
    yield from ((grid, False, "guess" if grid[0] * grid[1] < length else "likely") for grid in finest)
    side = math.isqrt(length)
    if side * side == length:
        yield (side, side), False, "guess"


@dataclass
class _Painting:
    """Paints bands of one picture after the other."""

    encode: Encode
    pictures: Iterator[tuple[Tensor, Tensor]]
    grid: tuple[int, int]
    channels_last: bool
    length: int
    feature_size: int

    def __call__(self, max_bands: int) -> tuple[Tensor, Tensor]:
        """Logarithm of the relative change of each position, by bands of rows (bands, T) and of columns (bands, T)."""
        picture, plain = next(self.pictures)
        changes = []
        for axis, cells in enumerate(self.grid):
            size = picture.shape[axis]
            bands = _band_of(torch.arange(size) * cells // size, cells, max_bands)
            painted = picture.repeat(min(cells, max_bands), 1, 1, 1)
            for band, one in enumerate(painted):
                one.transpose(0, axis)[bands == band] = 0
            hidden = torch.cat([self.encode(batch).float() for batch in painted.split(BATCH_SIZE)])
            changes.append(relative_change(_as_sequence(hidden - plain, self.channels_last).norm(dim=2).cpu()))
        return changes[0], changes[1]

    def layout(self, positions: Tensor) -> PatchLayout:
        patches = positions.tolist()
        special = sorted(set(range(self.length)) - set(patches))
        order = list(range(self.length))
        for slot, position in zip(sorted(patches), patches, strict=True):
            order[slot] = position
        is_usual = patches == list(range(len(special), self.length))
        return PatchLayout(self.grid, tuple(order), tuple(special), is_usual, self.feature_size, self.channels_last)


def _pictures(encode: Encode, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures of noise (H, W, 3) and the hidden state of each, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        picture = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
        yield picture, encode(picture[None]).float()


def _band_of(cells: Tensor, num_cells: int, max_bands: int) -> Tensor:
    return cells * min(num_cells, max_bands) // num_cells


def relative_change(change: Tensor) -> Tensor:
    """Log of a change (bands, T) over what its position and its band usually change."""
    change = change.double() + 1e-9 * float(change.max()) + 1e-30
    for _ in range(10):
        change = change / change.mean(1, keepdim=True)
        change = change / change.mean(0, keepdim=True)
    return change.log()
