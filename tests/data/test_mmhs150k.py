import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from fl_i2moe.data.mmhs150k import load_mmhs150k
from fl_i2moe.data.raw import SampleError

# id → labels of the three annotators, whether most say hate
TWEETS = {
    "11": ([0, 0, 0], 0),
    "12": ([1, 0, 0], 0),
    "13": ([1, 0, 5], 1),
    "14": ([2, 2, 2], 1),
    "15": ([0, 3, 4], 1),
    "16": ([0, 0, 1], 0),
}
SPLITS = {"train": ["13", "11", "12"], "val": ["14", "16"], "test": ["15"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("img_resized", "img_txt", "splits"):
        (tmp_path / name).mkdir()
    truth = {}
    for tweet, (labels, _) in TWEETS.items():
        truth[tweet] = {
            "img_url": "",
            "labels": labels,
            "tweet_url": "",
            "tweet_text": f" tweet {tweet}\n",
            "labels_str": [],
        }
        PILImage.new("RGB", (4, 6)).save(tmp_path / "img_resized" / f"{tweet}.jpg")
    (tmp_path / "MMHS150K_GT.json").write_text(json.dumps(truth))
    (tmp_path / "img_txt" / "13.json").write_text(json.dumps({"img_text": "SAID IN THE PICTURE "}))
    for name, ids in SPLITS.items():
        (tmp_path / "splits" / f"{name}_ids.txt").write_text("\n".join(ids) + "\n")
    return tmp_path


def change(folder: Path, tweet: str, **values) -> None:
    file = folder / "MMHS150K_GT.json"
    truth = json.loads(file.read_text())
    truth[tweet].update(values)
    file.write_text(json.dumps(truth))


@pytest.mark.parametrize("name", ["dev", "validation", "Train"])
def test_a_second_list_of_a_split_is_refused(folder: Path, name: str) -> None:
    (folder / "splits" / f"{name}_ids.txt").write_text("99\n")
    with pytest.raises(ValueError, match=rf"has two names for one split, .*'{name}'"):
        load_mmhs150k(folder)


def test_a_tweet_that_is_there_twice_is_refused(folder: Path) -> None:
    file = folder / "MMHS150K_GT.json"
    file.write_text(file.read_text().replace('"12":', '"11":'))
    with pytest.raises(ValueError, match=r"MMHS150K_GT\.json cannot be read as JSON \(it has '11' twice\)"):
        load_mmhs150k(folder)


@pytest.mark.parametrize("length", [251, 300])
def test_an_id_too_long_for_a_files_name_is_a_bad_sample(folder: Path, length: int) -> None:
    """With .jpg, 251 characters still fit; with .json they do not."""
    file, tweet = folder / "MMHS150K_GT.json", "7" * length
    truth = json.loads(file.read_text())
    file.write_text(json.dumps(truth | {tweet: truth["11"]}))
    if length < 255:
        PILImage.new("RGB", (4, 6)).save(folder / "img_resized" / f"{tweet}.jpg")
    with (folder / "splits" / "train_ids.txt").open("a") as ids:
        ids.write(tweet)
    raw = load_mmhs150k(folder, append_image_text=True, on_bad_sample="skip")
    assert [error.sample_id for error in raw.bad_samples] == [tweet] * (length > 255)


def test_reads_every_column(folder: Path) -> None:
    raw = load_mmhs150k(folder)
    assert raw.label_names == ["not_hate", "hate"]
    assert raw.problem_type == "single_label_classification"
    assert raw.notes == []
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = raw.splits[split]
        assert rows["id"][:] == SPLITS[name]
        assert rows["labels"][:] == [TWEETS[tweet][1] for tweet in SPLITS[name]]
        assert rows["text"][:] == [f"tweet {tweet}" for tweet in SPLITS[name]]
        assert rows[0]["image"]["path"] == str(folder / "img_resized" / f"{SPLITS[name][0]}.jpg")


def test_text_in_the_picture_follows_if_asked_for(folder: Path) -> None:
    raw = load_mmhs150k(folder, append_image_text=True)
    assert raw.splits["train"]["text"][:] == ["tweet 13 SAID IN THE PICTURE", "tweet 11", "tweet 12"]
    assert raw.notes == ["1 tweets have text in their pictures, which follows theirs."]
    (folder / "img_txt" / "13.json").write_text("{}")
    with pytest.raises(SampleError, match=r"'13'.*there is no img_text"):
        load_mmhs150k(folder, append_image_text=True)
    (folder / "img_txt" / "13.json").write_text("{")
    with pytest.raises(SampleError, match=r"'13'.*cannot be read as JSON"):
        load_mmhs150k(folder, append_image_text=True)
    assert len(load_mmhs150k(folder).splits["train"]) == 3  # which does not read it


@pytest.mark.parametrize(
    "labels", [[0, 0], [0, 0, 6], [0, 0, -1], [0, 0, "1"], [0, 0, 1.0], [0, 0, True], None, [0, 0, 0, 0]]
)
def test_bad_labels_are_named(folder: Path, labels) -> None:
    change(folder, "11", labels=labels)
    with pytest.raises(SampleError, match=r"sample '11' of split 'train' has a bad 'labels'.*3 numbers 0 … 5"):
        load_mmhs150k(folder)
    raw = load_mmhs150k(folder, on_bad_sample="skip")
    assert raw.splits["train"]["id"][:] == ["13", "12"]
    assert [bad.sample_id for bad in raw.bad_samples] == ["11"]


def test_bad_samples_are_named(folder: Path) -> None:
    change(folder, "14", tweet_text="  ")
    with pytest.raises(SampleError, match=r"'14'.*'text'.*empty"):
        load_mmhs150k(folder)
    change(folder, "14", tweet_text=None)
    with pytest.raises(SampleError, match=r"'14'.*no tweet_text"):
        load_mmhs150k(folder)
    change(folder, "14", tweet_text="said")
    (folder / "img_resized" / "16.jpg").unlink()
    with pytest.raises(SampleError, match=r"'16'.*'image'.*does not exist"):
        load_mmhs150k(folder)
    (folder / "img_resized" / "16.jpg").write_bytes(b"")
    with pytest.raises(SampleError, match=r"'16'.*'image'.*0 bytes"):
        load_mmhs150k(folder)


def test_half_a_character_is_no_text(folder: Path) -> None:
    change(folder, "14", tweet_text="so \ud83d")
    with pytest.raises(SampleError, match=r"'14'.*'text'.*no Unicode text.*MMHS150K_GT\.json"):
        load_mmhs150k(folder)


def test_bad_folders_are_named(folder: Path) -> None:
    file = folder / "splits" / "val_ids.txt"
    for ids, message in (
        ("14\n14", r"'14' is twice in 'val'"),
        ("14\n11", r"'11' is in both 'train' and 'val'"),
        ("99", r"'99'.*the id has no entry"),
        ("", "no sample of split 'validation' is left, of 0 listed"),
    ):
        file.write_text(ids)
        with pytest.raises(ValueError, match=message):
            load_mmhs150k(folder)
    file.write_bytes(b"\xff\xfe1\x004\x00")
    with pytest.raises(ValueError, match=r"val_ids\.txt cannot be read as UTF-8 text"):
        load_mmhs150k(folder)
    file.write_bytes(b"\xef\xbb\xbf14\r\n")
    assert load_mmhs150k(folder).splits["validation"]["id"][:] == ["14"]
    file.unlink()
    with pytest.raises(ValueError, match=r"val_ids\.txt does not exist.*MMHS150K layout"):
        load_mmhs150k(folder)
    file.write_text("14")
    for content, message in (("[]", "must hold an object"), ("{", "cannot be read as JSON")):
        (folder / "MMHS150K_GT.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_mmhs150k(folder)
