from pathlib import Path

import numpy as np
import pytest

from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.mmimdb import GENRES
from fl_i2moe.data.mmimdb_hdf5 import SPLIT_ENDS, check_new_file, read_mmimdb_hdf5

h5py = pytest.importorskip("h5py", reason='comes with pip install -e ".[hdf5]"')
ENDS = (6, 8)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(10, 3)).astype(np.float64),
        "vgg_features": rng.normal(size=(10, 5)).astype(np.float32),
        "genres": rng.integers(0, 2, (10, 23)),
        "imdb_ids": np.array([f"{i:07}" for i in range(10)], "S7"),
    }


def write(path: Path, arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def test_published_rows() -> None:
    """Rows 0–15551 train, –18159 development, –25958 test."""
    sizes = np.diff([0, *SPLIT_ENDS, 25959])
    assert sizes.tolist() == [15552, 2608, 7799]


def test_reads_every_field(tmp_path: Path, arrays) -> None:
    fields = read_mmimdb_hdf5(write(tmp_path / "m.hdf5", arrays), ENDS)
    np.testing.assert_array_equal(fields["text"], arrays["features"].astype(np.float32))
    np.testing.assert_array_equal(fields["image"], arrays["vgg_features"])
    np.testing.assert_array_equal(fields["labels"], arrays["genres"])
    assert fields["split"].tolist() == ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    assert fields["ids"].tolist() == [f"{i:07}" for i in range(10)]
    assert fields["label_names"].tolist() == GENRES
    assert {fields[name].dtype for name in ("text", "image", "labels")} == {np.dtype(np.float32)}


def _nan(arrays):
    arrays["vgg_features"][3, 1] = np.nan


def _shorten(arrays):
    arrays["features"] = arrays["features"][:-1]


def _drop(arrays):
    del arrays["genres"]


def _count(arrays):
    arrays["genres"][2, 2] = 2


def _narrow(arrays):
    arrays["genres"] = arrays["genres"][:, :20]


def _repeat(arrays):
    arrays["imdb_ids"][1] = arrays["imdb_ids"][0]


def _flatten(arrays):
    arrays["features"] = arrays["features"][:, 0]


def _say(arrays):
    arrays["features"] = np.array([[b"x"]] * 10)


def _turn(arrays):
    arrays["vgg_features"] = arrays["vgg_features"].astype(np.complex64)


def _lose_rows(arrays):
    arrays["features"] = np.float32(3)


def _empty(arrays):
    arrays["genres"] = h5py.Empty("f4")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_say, r"m\.hdf5: features \(\|S1\) must hold numbers"),
        (_turn, r"m\.hdf5: vgg_features \(complex64\) must hold numbers"),
        (_lose_rows, r"m\.hdf5: \['features'\] hold no rows"),
        (_empty, r"m\.hdf5: \['genres'\] hold no rows"),
        (_nan, r"vgg_features has NaN or infinite values in rows \[3\], 1 in all"),
        (_shorten, r"different lengths.*'features': 9"),
        (_drop, r"lacks the data sets \['genres'\]"),
        (_count, "must be 0 or 1"),
        (_narrow, r"\(10, 23\), got \(10, 20\)"),
        (_repeat, "name each film once"),
        (_flatten, r"features must have shape \(N, D\)"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, arrays, spoil, message) -> None:
    spoil(arrays)
    with pytest.raises(ValueError, match=message):
        read_mmimdb_hdf5(write(tmp_path / "m.hdf5", arrays), ENDS)


def test_other_files_are_refused(tmp_path: Path, arrays) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_mmimdb_hdf5(tmp_path / "nowhere.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        read_mmimdb_hdf5(tmp_path / "text.hdf5")
    with pytest.raises(ValueError, match=r"10 films: splits that end at 15,552 and 18,160"):
        read_mmimdb_hdf5(write(tmp_path / "m.hdf5", arrays))


def test_ids_in_any_bytes(tmp_path: Path, arrays) -> None:
    arrays["imdb_ids"] = np.array([b"\xff%d" % i for i in range(10)])
    assert read_mmimdb_hdf5(write(tmp_path / "m.hdf5", arrays), ENDS)["ids"][3] == "\ufffd3"


def test_a_place_that_cannot_be_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file.npz").touch()
    for name, message in (("a.csv", "must end with"), ("file.npz", "exists already"), ("file.npz/a.npz", "no folder")):
        with pytest.raises(ValueError, match=message):
            check_new_file(tmp_path / name)
    check_new_file(tmp_path / "new" / "a.npz")


def test_recipe(tmp_path: Path, arrays, run_here) -> None:
    command = ["recipes/convert_mmimdb_hdf5.py", write(tmp_path / "m.hdf5", arrays)]
    command += [tmp_path / "arrays.npz", "--split_ends", "6", "8"]
    run_here(*command)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as stored:
        assert set(stored) == {"text", "image", "labels", "label_names", "split", "ids"}
        np.testing.assert_array_equal(stored["image"], arrays["vgg_features"])
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".npz"] == ["arrays.npz"]
    data = load_arrays(tmp_path / "arrays.npz", modalities=["text", "image"])  # as train_arrays reads it
    assert (data.problem_type, data.label_names) == ("multi_label_classification", GENRES)
    assert {split: rows["id"][:] for split, rows in data.splits.items()} == {
        "train": [f"{i:07}" for i in range(6)],
        "validation": ["0000006", "0000007"],
        "test": ["0000008", "0000009"],
    }
    with pytest.raises(ValueError, match="exists already"):
        check_new_file(tmp_path / "arrays.npz")
    with pytest.raises(ValueError, match=r"must end with \.npz"):
        check_new_file(tmp_path / "arrays")
