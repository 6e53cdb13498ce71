"""Where time lies in an output, on outputs made by hand."""

import numpy as np
import pytest
import torch

from fl_i2moe.model.time_layout import StepCount, TimeLayout, find_time_layout, find_window

SAMPLES = 2400
NOISE = np.random.default_rng(0).normal(0, 0.1, SAMPLES).astype(np.float32)


def steps_of(sound, num_steps=24, bands=3):
    """(bands, steps, D): spectra of the parts of a sound, a band of frequencies each."""
    parts = torch.from_numpy(sound[: len(sound) // num_steps * num_steps]).view(num_steps, -1)
    return torch.fft.rfft(parts).abs()[:, : 16 * bands].unflatten(1, (bands, 16)).transpose(0, 1)


LAYOUTS = {
    "one after another": lambda x: (x.mean(0), TimeLayout(0)),
    "bands one below another": lambda x: (x.flatten(0, 1), TimeLayout(0, 1, 3)),
    "behind two special ones": lambda x: (torch.cat([x.mean((0, 1)).expand(2, -1), x.mean(0)]), TimeLayout(2)),
    "time in four chunks": lambda x: (x.unflatten(1, (4, 6)).transpose(0, 1).flatten(0, 2), TimeLayout(0, 4, 3)),
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_layouts_are_found(name):
    def encode(sound):
        return LAYOUTS[name](steps_of(sound))[0][None]

    expected = LAYOUTS[name](steps_of(NOISE))[1]
    found = find_time_layout(encode, NOISE, SAMPLES, expected.num_special, "hand-made")
    assert found == expected
    special, steps = found.arrange(encode(NOISE))
    assert special.shape[1] == expected.num_special
    torch.testing.assert_close(steps[0], steps_of(NOISE).mean(0))


def test_bands_beside_one_another_are_steps_within_their_step():
    """Nothing tells them from time steps three times as short; all lie where they should."""

    def encode(sound):
        return steps_of(sound).transpose(0, 1).flatten(0, 1)[None]

    layout = find_time_layout(encode, NOISE, SAMPLES, 0, "hand-made")
    assert layout == TimeLayout(0)
    assert (layout.steps_of(72) * 24 // 72).tolist() == [step for step in range(24) for _ in range(3)]


def test_a_map_is_read_by_its_columns():
    def encode(sound):
        return steps_of(sound).permute(2, 0, 1)[None]  # (1, D, bands, steps)

    assert find_time_layout(encode, NOISE, SAMPLES, 0, "map") == TimeLayout(0, 1, 3)


def test_silence_behind_the_sound_belongs_to_the_window():
    def encode(sound):
        return steps_of(np.concatenate([sound, np.zeros(SAMPLES, np.float32)]), 48).mean(0)[None]

    assert find_time_layout(encode, NOISE, 2 * SAMPLES, 0, "padded") == TimeLayout(0)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: steps_of(x).mean(0)[torch.randperm(24)][None], "other features in every call"),
        (lambda x: torch.full((1, 24, 2), torch.nan), "no finite numbers"),
        (lambda x: steps_of(x).mean((0, 1))[None], "no sequence or map"),
        (lambda x: steps_of(x, 5).mean(0)[None], r"gives 5 features .* too few"),
        (
            lambda x: steps_of(x).mean(0)[torch.randperm(24, generator=torch.Generator().manual_seed(1))][None],
            "does not show which of the output's positions",
        ),
    ],
)
def test_outputs_that_cannot_be_placed(encode, message):
    with pytest.raises(ValueError, match=message):
        find_time_layout(encode, NOISE, SAMPLES, 0, "odd")


@pytest.mark.parametrize(
    "count",
    [
        lambda n: max(0, (n - 400) // 320 + 1),  # convolutions without padding
        lambda n: -(-n // 384),  # with padding
        lambda n: n // 160 + 1,  # spectra of a padded sound
        lambda n: max(0, ((n - 400) // 160 + 2) // 2),  # pairs of spectra, the last filled up
        lambda n: 2 * n // 75,  # two steps every 75 samples
    ],
)
def test_numbers_of_steps(count):
    rule, shortest = StepCount.measured(count, 16000)
    assert count(shortest) > 0
    assert all(rule(n) == count(n) for n in [*range(shortest, 3000), 48000, 479999, 480000])


def test_steps_that_grow_unevenly_are_refused():
    with pytest.raises(ValueError, match="would be even in time"):
        StepCount.measured(lambda n: int(n**0.5), 16000)


@pytest.mark.parametrize(
    ("extract", "window"),
    [
        (lambda sound: sound, None),
        (lambda sound: np.pad(sound, (0, 5000))[:5000], 5000),
        (lambda sound: np.resize(sound, 4800), 4800),  # repeated
    ],
)
def test_windows(extract, window):
    assert find_window(lambda sound: torch.from_numpy(extract(sound)), 16000, 2000) == window


def test_a_window_that_is_chosen_at_random():
    rng = np.random.default_rng(0)

    def extract(sound):
        start = rng.integers(max(1, len(sound) - 4800 + 1))
        return torch.from_numpy(np.resize(sound[start : start + 4800], 4800))

    assert find_window(extract, 16000, 2000) == 4800


def test_a_window_without_an_end_is_refused():
    with pytest.raises(ValueError, match="more than 64 s"):
        find_window(lambda sound: torch.tensor([float(np.abs(sound).sum())]), 100, 200)
