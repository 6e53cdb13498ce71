"""Patches of a made-up encoder, which puts each patch's mean colours at a position of our choice."""

import pytest
import torch

from fl_i2moe.model.patch_layout import find_patch_layout

GRID, SIZE = (6, 4), (48, 32)
CELLS = torch.arange(24)
WINDOWS = CELLS.view(3, 2, 2, 2).transpose(1, 2).flatten()
EVERY_SECOND = torch.cat([CELLS.view(6, 4)[i::2, j::2].flatten() for i in (0, 1) for j in (0, 1)])
SHUFFLED = torch.randperm(24, generator=torch.Generator().manual_seed(3))


def patch_means(pixels):
    """(B, 24, 3), in reading order."""
    return pixels.float().view(-1, 6, 8, 4, 8, 3).mean((2, 4)).flatten(1, 2)


def encoder_with(cell_at, mixing=0.0):
    """An encoder with cell `cell_at[p]` at position p, -1 for a special one, which sees the whole picture."""
    weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    cell_at = torch.as_tensor(cell_at)

    def encode(pixels):
        means = patch_means(pixels)
        everything = means.mean(1, keepdim=True)
        local = torch.where((cell_at >= 0)[:, None], means[:, cell_at.clamp(min=0)], everything)
        return ((1 - mixing) * local + mixing * 24 * everything) @ weights

    return encode


@pytest.mark.parametrize("mixing", [0.0, 0.5])
@pytest.mark.parametrize(
    ("cell_at", "is_usual"),
    [
        (CELLS, True),
        ([-1, *CELLS], True),
        ([-1, -1, -1, -1, -1, *CELLS], True),
        ([*CELLS, -1], False),
        ([-1, *CELLS, -1, -1, -1, -1], False),
        ([*CELLS[:12], -1, *CELLS[12:]], False),
        ([-1] * 30 + [*CELLS], True),
        (WINDOWS, False),
        (EVERY_SECOND, False),
        ([-1, *CELLS.view(6, 4).T.flatten()], False),
        ([-1, *SHUFFLED[:9], -1, *SHUFFLED[9:]], False),
    ],
    ids=["none", "front", "five", "behind", "both", "middle", "many", "windows", "every-2nd", "columns", "shuffled"],
)
def test_patches_are_found_wherever_they_are(cell_at, is_usual, mixing):
    encode = encoder_with(cell_at, mixing)
    layout = find_patch_layout(encode, SIZE, 8, "x")
    assert (layout.grid, layout.is_usual) == (GRID, is_usual)
    assert list(layout.special) == [p for p, cell in enumerate(cell_at) if cell < 0]
    pixels = torch.randint(0, 256, (2, *SIZE, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    features = layout.arrange(encode(pixels))
    patches = [p for p in range(len(cell_at)) if p not in layout.special]
    torch.testing.assert_close(features[:, patches], encoder_with(CELLS, mixing)(pixels))
    if layout.special:
        torch.testing.assert_close(features[:, list(layout.special)], encode(pixels)[:, list(layout.special)])


@pytest.mark.parametrize(
    ("grid", "dims", "channels_last"),
    [
        ((6, 4), (0, 3, 1, 2), False),
        ((6, 4), (0, 1, 2, 3), True),
    ],
    ids=["channels-first", "channels-last"],
)
def test_maps(grid, dims, channels_last):
    def encode(pixels):
        return patch_means(pixels).unflatten(1, (6, 4)).repeat(1, 1, 1, 40).permute(*dims)

    layout = find_patch_layout(encode, SIZE, None, "x")
    assert (layout.grid, layout.channels_last, layout.is_usual, layout.special) == (grid, channels_last, True, ())
    picture = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    torch.testing.assert_close(layout.arrange(encode(picture))[..., :3], patch_means(picture))


@pytest.mark.parametrize(("patch_size", "num_special"), [(None, 0), (4, 0), (None, 1), (4, 3)])
def test_the_grid_is_found_without_the_configuration(patch_size, num_special):
    layout = find_patch_layout(encoder_with([-1] * num_special + [*CELLS]), SIZE, patch_size, "x")
    assert (layout.grid, layout.special) == (GRID, tuple(range(num_special)))


def test_what_cannot_be_placed_is_refused():
    ordered = encoder_with([-1, *CELLS])

    def shuffles(pixels):
        features = ordered(pixels)
        return features[:, torch.randperm(features.shape[1])]

    def pooled(pixels):
        return ordered(pixels).mean(1)

    def mixed(pixels):  # every position holds a random mixture of all patches
        return torch.randn(25, 25, generator=torch.Generator().manual_seed(0)) @ ordered(pixels)

    def blind(pixels):
        return torch.ones(len(pixels), 25, 8)

    for encode, message in (
        (shuffles, "'x' gives other features in every call for the same picture"),
        (pooled, r"'x' gives features of shape \(2, 8\)"),
        (mixed, "'x': painting a picture of 48 x 32 pixels does not show"),
        (blind, "'x': painting"),
        (lambda pixels: ordered(pixels)[:, :15], "'x': painting"),
        (lambda pixels: ordered(pixels).flatten(0, 1)[None], r"'x' gives features of shape \(1, 50, 8\)"),
        (lambda pixels: ordered(pixels) * float("nan"), "'x' gives features that are no finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            find_patch_layout(encode, SIZE, 8, "x")
