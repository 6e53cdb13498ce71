import json
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from datasets import Image, List, Value
from PIL import Image as PILImage

from fl_i2moe.data.mmimdb import GENRES, load_mmimdb
from fl_i2moe.data.raw import SampleError

FILMS = {
    "train": {
        "0000001": (["Short plot.", "The longest of the three plots.", "Middle plot."], ["Drama", "News"]),
        "0000002": ("A plot that is a plain string.", ["Comedy", "Drama"]),
        "0000003": (["Nobody laughs."], ["Horror", "Drama"]),
        "0000004": (["Breaking."], ["News"]),
        "0000005": (["Twice the same."], ["Comedy", "Comedy"]),
    },
    "dev": {"0000006": (["A quiet day."], ["Comedy", "Horror"]), "0000007": (["A loud day."], ["Horror"])},
    "test": {"0000008": (["The end."], ["Drama"]), "0000009": (["The very end."], [])},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dataset").mkdir()
    for films in FILMS.values():
        for film_id, (plot, genres) in films.items():
            record = {"plot": plot, "genres": genres, "title": "Any"}
            (tmp_path / "dataset" / f"{film_id}.json").write_text(json.dumps(record))
            PILImage.new("RGB", (4, 6)).save(tmp_path / "dataset" / f"{film_id}.jpeg")
    (tmp_path / "split.json").write_text(json.dumps({split: list(films) for split, films in FILMS.items()}))
    return tmp_path


def test_reads_every_column(folder: Path) -> None:
    raw = load_mmimdb(folder, labels=["Drama", "Comedy", "Horror"])

    assert list(raw.splits) == ["train", "validation", "test"]
    assert raw.splits["train"].features == {
        "id": Value("string"),
        "image": Image(decode=False),
        "text": Value("string"),
        "labels": List(Value("float32"), length=3),
    }
    assert raw.modalities == {"image": "image", "text": "text"}
    assert raw.problem_type == "multi_label_classification"
    assert raw.bad_samples == []
    train = raw.splits["train"]
    assert train["id"][:] == ["0000001", "0000002", "0000003", "0000005"]
    assert train["labels"][:] == [[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert train[0]["text"] == "The longest of the three plots."
    assert train[1]["text"] == "A plot that is a plain string."
    assert train[0]["image"] == {"bytes": None, "path": str(folder / "dataset" / "0000001.jpeg")}
    assert raw.splits["validation"]["id"][:] == ["0000006", "0000007"]


def test_labels_keep_the_order_given(folder: Path) -> None:
    raw = load_mmimdb(folder, labels=["Horror", "Drama"])
    assert raw.label_names == ["Horror", "Drama"]
    assert raw.splits["train"]["labels"][:] == [[0, 1], [0, 1], [1, 1]]
    assert raw.splits["validation"]["labels"][:] == [[1, 0], [1, 0]]


def test_default_labels_are_the_published_23(folder: Path) -> None:
    raw = load_mmimdb(folder)
    assert raw.label_names == GENRES
    assert len(set(GENRES)) == 23
    assert [GENRES[i] for i, value in enumerate(raw.splits["train"][1]["labels"]) if value] == ["Drama", "Comedy"]


def test_min_label_count_counts_training_films_once_each(folder: Path) -> None:
    # In training: Drama 3, Comedy 2 films (one names it twice), News 2, Horror 1 (but 3 films in all).
    assert load_mmimdb(folder, min_label_count=1).label_names == ["Drama", "Comedy", "News", "Horror"]
    assert load_mmimdb(folder, min_label_count=2).label_names == ["Drama", "Comedy", "News"]
    with pytest.raises(ValueError, match=r"no genre has min_label_count=9 .*'Drama', 3"):
        load_mmimdb(folder, min_label_count=9)


def test_says_what_is_left_out(folder: Path) -> None:
    notes = " ".join(load_mmimdb(folder, labels=["Drama", "Comedy", "Western"]).notes)
    assert "ignored: Horror (3), News (2)" in notes
    assert "1 of 5 films of train carry none of the 3 labels" in notes
    assert "1 of 2 films of validation" in notes
    assert "1 of 2 films of test" in notes
    assert "1 of the 3 labels have no training film: Western" in notes


BAD_SAMPLES = {
    "no json": ("0000002.json", None, "json", "does not exist"),
    "broken json": ("0000002.json", b'{"plot": ["A', "json", "cannot be read as JSON"),
    "json in another encoding": ("0000002.json", b'{"plot": "caf\xe9"}', "json", "cannot be read as JSON"),
    "json without an end of its brackets": ("0000002.json", b"[" * 100_000, "json", "cannot be read as JSON"),
    "half a character": ("0000002.json", rb'{"genres": ["Drama"], "plot": "\ud83d."}', "plot", "no Unicode text"),
    "json that is a list": ("0000002.json", b"[]", "json", "holds a list"),
    "no plot": ("0000002.json", b'{"genres": ["Drama"]}', "plot", "no plot"),
    "empty plots": ("0000002.json", b'{"genres": ["Drama"], "plot": ["", " \\n"]}', "plot", "empty"),
    "half a genre's character": ("0000002.json", rb'{"genres": ["\ud83d"], "plot": "A."}', "genres", "no Unicode"),
    "plot twice": ("0000002.json", b'{"plot": "A.", "genres": ["Drama"], "plot": "B."}', "json", "it has 'plot' twice"),
    "plot of numbers": ("0000002.json", b'{"genres": ["Drama"], "plot": [1]}', "plot", "no plot"),
    "no genres": ("0000002.json", b'{"plot": "A plot."}', "genres", "no list of genres"),
    "genres as a string": ("0000002.json", b'{"plot": "A plot.", "genres": "Drama"}', "genres", "no list"),
    "no poster": ("0000002.jpeg", None, "image", "does not exist"),
    "poster of 0 bytes": ("0000002.jpeg", b"", "image", "0 bytes"),
}


@pytest.mark.parametrize(("file", "content", "field", "reason"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_bad_sample(folder: Path, file: str, content: bytes | None, field: str, reason: str) -> None:
    path = folder / "dataset" / file
    path.unlink() if content is None else path.write_bytes(content)

    with pytest.raises(SampleError) as caught:
        load_mmimdb(folder)
    error = caught.value
    assert (error.split, error.sample_id, error.field, error.file) == ("train", "0000002", field, str(path))
    assert reason in error.reason
    for part in ("train", "0000002", field, str(path), reason, "on_bad_sample='skip'"):
        assert part in str(error)

    raw = load_mmimdb(folder, on_bad_sample="skip")
    assert [str(bad) for bad in raw.bad_samples] == [str(error)]
    assert raw.splits["train"]["id"][:] == ["0000001", "0000003", "0000005"]


def test_a_byte_order_mark_is_no_content(folder: Path) -> None:
    """As Windows' editors write it."""
    before = load_mmimdb(folder)
    for file in ("split.json", "dataset/0000002.json"):
        (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())
    after = load_mmimdb(folder)
    for split in before.splits:
        assert after.splits[split][:] == before.splits[split][:]


def test_an_id_too_long_for_a_files_name_is_a_bad_sample(folder: Path) -> None:
    split = json.loads((folder / "split.json").read_text())
    split["train"].append("x" * 300)
    (folder / "split.json").write_text(json.dumps(split))
    with pytest.raises(SampleError, match=r"x{300}' of split 'train' has a bad 'json': the file does not exist"):
        load_mmimdb(folder)
    assert len(load_mmimdb(folder, on_bad_sample="skip").bad_samples) == 1


def test_a_folder_whose_name_is_not_utf_8_is_named(folder: Path) -> None:
    latin = Path(os.fsdecode(os.fsencode(folder / "caf") + b"\xe9"))
    latin.mkdir()
    for name in ("split.json", "dataset"):
        (folder / name).rename(latin / name)
    with pytest.raises(ValueError, match=r"caf\\udce9' has a name that is not in UTF-8; rename it"):
        load_mmimdb(latin)


def test_files_that_are_folders_are_named(folder: Path) -> None:
    (folder / "dataset" / "0000002.json").unlink()
    (folder / "dataset" / "0000002.json").mkdir()
    with pytest.raises(SampleError, match=r"'0000002'.*cannot be read as JSON: .*Is a directory"):
        load_mmimdb(folder)
    (folder / "split.json").unlink()
    (folder / "split.json").mkdir()
    with pytest.raises(ValueError, match=r"split\.json cannot be read as JSON .*Is a directory"):
        load_mmimdb(folder)


def test_a_split_that_was_skipped_whole_says_why(folder: Path) -> None:
    for film in FILMS["test"]:
        (folder / "dataset" / f"{film}.jpeg").unlink()
    with pytest.raises(
        ValueError, match=rf"^{folder}: no sample of split 'test' is left, of 2 .*does not exist .*08\.jpeg"
    ):
        load_mmimdb(folder, on_bad_sample="skip")


def test_sample_error_survives_pickling() -> None:
    error = SampleError("train", "7", "image", Path("a.jpeg"), "truncated")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is SampleError
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize("missing", ["split.json", "dataset"])
def test_folder_without_the_layout(folder: Path, missing: str) -> None:
    (folder / missing).rename(folder / "elsewhere")
    for data_dir, named in ((folder, folder / missing), (folder / "nowhere", folder / "nowhere")):
        with pytest.raises(ValueError, match=r"does not exist.*MM-IMDb layout") as caught:
            load_mmimdb(data_dir)
        assert str(caught.value).startswith(f"{named} ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"train": ["1"], "test": ["2"]}', "'dev' has none"),
        ('{"train": ["1"], "dev": [3], "test": ["2"]}', "'dev' has none"),
        ("[]", "'train' has none"),
        ('{"train": ["1"], "dev": ["3"], "test": ["2"], "val": ["4"]}', "two names for one split, 'dev' and 'val'"),
        ('{"train": ["1"], "dev": ["3"], "test": ["2"], "train": ["4"]}', "it has 'train' twice"),
        ('{"train": [""], "dev": ["3"], "test": ["2"]}', "'train' has the id ''"),
        ('{"train": ["\\ud83d"], "dev": ["3"], "test": ["2"]}', r"'id' has '\\ud83d', which is no Unicode text"),
        (json.dumps({"train": ["x" * 5000], "dev": ["3"], "test": ["2"]}), r"'train' has the id 'x{40}' …; an id is"),
    ],
)
def test_bad_split_file(folder: Path, content: str, message: str) -> None:
    (folder / "split.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_mmimdb(folder)
    assert "split.json" in str(caught.value)


@pytest.mark.parametrize("on_bad_sample", ["stop", "skip"])
@pytest.mark.parametrize(("other", "where"), [("train", "twice in 'train'"), ("test", "in both 'train' and 'test'")])
def test_id_that_occurs_twice_is_never_skipped(folder: Path, on_bad_sample: str, other: str, where: str) -> None:
    split = json.loads((folder / "split.json").read_text())
    split[other].append("0000003")
    (folder / "split.json").write_text(json.dumps(split))
    with pytest.raises(ValueError, match=f"'0000003' is {where}"):
        load_mmimdb(folder, on_bad_sample=on_bad_sample)


def test_unknown_label_lists_the_known_and_the_closest(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown label 'comdy' \(did you mean 'Comedy'\?\).*Drama, Comedy.*News"):
        load_mmimdb(folder, labels=["Drama", "comdy"])
    with pytest.raises(ValueError, match="unknown label 'xyz'; known are"):
        load_mmimdb(folder, labels=["xyz"])


def test_bad_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        load_mmimdb(folder, labels=["Drama"], min_label_count=3)
    with pytest.raises(ValueError, match="on_bad_sample must be one of"):
        load_mmimdb(folder, on_bad_sample="ignore")
    for labels in ([], ["Drama", "Drama"]):
        with pytest.raises(ValueError, match="at least one genre, and each only once"):
            load_mmimdb(folder, labels=labels)


def test_split_of_which_nothing_is_left(folder: Path) -> None:
    with pytest.raises(ValueError, match="no film of split 'validation' is left"):
        load_mmimdb(folder, labels=["Drama"])


def test_real_movies() -> None:
    if "FL_I2MOE_DATA" not in os.environ:
        pytest.skip("set FL_I2MOE_DATA to the folder that holds movies/ to run this on real films")
    folder = Path(os.environ["FL_I2MOE_DATA"]) / "movies"
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "dataset").glob("*.json")}
    split = json.loads((folder / "split.json").read_text())
    counts = Counter(genre for film_id in split["train"] for genre in records[film_id]["genres"])

    raw = load_mmimdb(folder, min_label_count=30)
    assert raw.label_names == [genre for genre, count in counts.most_common() if count >= 30]
    # Three genres are rarer; the note of this data set says how many films have no other.
    assert sum(map(len, raw.splits.values())) == len(records) - 15
    for name, ids in (("train", split["train"]), ("validation", split["dev"]), ("test", split["test"])):
        kept = raw.splits[name]
        assert set(kept["id"][:]) <= set(ids)
        for row in kept.select(range(20)):
            assert row["text"] == max(records[row["id"]]["plot"], key=len)
            expected = [float(genre in records[row["id"]]["genres"]) for genre in raw.label_names]
            assert row["labels"] == expected
