"""The planted sounds: what is told where is found again in the written files, by Fourier transform and by reading."""

import csv
import itertools
from collections import Counter

import numpy as np
import pytest
import soundfile

from fl_i2moe.data.planted_plots import WORDS
from fl_i2moe.data.planted_sounds import (
    FAMILIES,
    LABELS,
    PITCHES,
    SoundSettings,
    load_sounds_truth,
    write_planted_sounds,
)

SETTINGS = SoundSettings(num_samples=60, seconds=1.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The rows of the table, the truth, and the folder."""
    table = write_planted_sounds(tmp_path_factory.mktemp("sounds") / "sample", SETTINGS)
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), load_sounds_truth(table.parent), table.parent


def loudest_pitch(samples, rate, pitches):
    """Of these, the one with the most energy."""
    time = np.arange(len(samples)) / rate
    return max(pitches, key=lambda pitch: abs(samples @ np.exp(-2j * np.pi * pitch * time)))


def test_labels_follow_from_what_is_heard_and_read(written):
    """By rules written out here."""
    rows, truth, folder = written
    rules = {
        "sound_alone": lambda heard, read: heard,
        "transcript_alone": lambda heard, read: read,
        "sound_or_transcript": lambda heard, read: {(0, 0): 0, (1, 1): 1}[heard, read],
        "sound_xor_transcript": lambda heard, read: int(heard != read),
    }
    assert len(rows) == 60
    for row in rows:
        samples, rate = soundfile.read(folder / row["sound"])
        assert (len(samples), rate) == (16000, 16000)
        for label, rule in rules.items():
            shown, heard, read = truth["samples"][row["id"]][label], None, None
            if "sound" in shown:
                start, end = (round(x * rate) for x in shown["sound"]["seconds"])
                heard = PITCHES[label].index(loudest_pitch(samples[start:end], rate, PITCHES[label]))
                assert heard == shown["sound"]["bit"]
            if "transcript" in shown:
                start, end = shown["transcript"]["span"]
                family = WORDS[FAMILIES[label]]
                read = int(family.index(row["transcript"][start:end]) >= len(family) // 2)
                assert read == shown["transcript"]["bit"]
            assert int(row[label]) == rule(heard, read)


def test_a_tone_lies_in_its_seconds_alone(written):
    rows, truth, folder = written
    for row in rows[:20]:
        samples, rate = soundfile.read(folder / row["sound"])
        stretches = []
        for label, shown in truth["samples"][row["id"]].items():
            if "sound" not in shown:
                continue
            start, end = (round(x * rate) for x in shown["sound"]["seconds"])
            wave = np.exp(-2j * np.pi * PITCHES[label][shown["sound"]["bit"]] * np.arange(len(samples)) / rate)
            outside = samples.copy()
            outside[start:end] = 0
            inside = abs(samples[start:end] @ wave[start:end])
            assert inside > 10 * abs(outside @ wave)
            stretches.append((start, end))
        stretches.sort()
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(stretches))


def test_each_combination_is_as_frequent_as_any_other(written):
    rows, truth, _ = written
    assert Counter(row["split"] for row in rows) == {"train": 42, "validation": 6, "test": 12}
    train = [row for row in rows if row["split"] == "train"]
    for label, spec in LABELS.items():
        assert sum(int(row[label]) for row in train) == len(train) / 2
        shown = Counter(tuple(x["bit"] for x in truth["samples"][row["id"]][label].values()) for row in train)
        assert len(shown) == (4 if spec.interaction == "synergy" else 2)
        assert max(shown.values()) - min(shown.values()) <= 1
    assert {name: x["carrier"] for name, x in truth["labels"].items()} == {
        "sound_alone": "uniqueness_sound",
        "transcript_alone": "uniqueness_transcript",
        "sound_or_transcript": "redundancy",
        "sound_xor_transcript": "synergy",
    }


def test_same_settings_same_bytes(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_planted_sounds(folder, SoundSettings(num_samples=20, seconds=0.5, sample_seed=seed))
    one, two, other = (
        {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()} for folder in folders
    )
    assert one == two
    assert len(one) == 22
    assert not set(one.values()) & set(other.values())
    with pytest.raises(ValueError, match=r"holds another planted sample of sounds \(sample_seed 1 instead of 2\)"):
        write_planted_sounds(folders[0], SoundSettings(num_samples=20, seconds=0.5, sample_seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 3}, "`num_samples` must be a number of at least 20, got 3"),
        ({"seconds": 0.1}, "`seconds` must be a number of at least 0.5"),
        ({"sampling_rate": 8000}, "`sampling_rate` must be a number of at least 12001"),
        ({"seconds": float("nan")}, "`seconds` must be"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SoundSettings(**options)
