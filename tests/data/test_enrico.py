import random
from pathlib import Path

import pytest
from datasets import Image, Value
from PIL import Image as PILImage

from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.data.raw import SampleError

TOPICS = {str(50100 + i): ("login", "chat", "bare")[i % 3] for i in range(42)}  # the two broken ones among them


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("screenshots", "wireframes"):
        (tmp_path / name).mkdir()
    for screen in TOPICS:
        PILImage.new("RGB", (4, 6)).save(tmp_path / "screenshots" / f"{screen}.jpg")
        PILImage.new("RGB", (4, 6)).save(tmp_path / "wireframes" / f"{screen}.png")
    write_topics(tmp_path, TOPICS.items())
    return tmp_path


def write_topics(folder, rows, header="screen_id,topic"):
    lines = [header, *(f"{screen},{topic}" for screen, topic in rows)]
    (folder / "design_topics.csv").write_text("\n".join(lines) + "\n")


def test_reads_multibench_split(folder: Path) -> None:
    raw = load_enrico(folder)
    screens = [screen for screen in TOPICS if screen not in ("50105", "50109")]
    keys = list(range(40))
    random.Random(42).shuffle(keys)
    expected = {"train": keys[:26], "validation": keys[26:32], "test": keys[32:]}
    assert {split: rows["id"][:] for split, rows in raw.splits.items()} == {
        split: [screens[key] for key in part] for split, part in expected.items()
    }
    assert raw.notes == ["Left out for their broken wireframes: 50105, 50109."]
    assert raw.label_names == ["bare", "chat", "login"]
    assert raw.problem_type == "single_label_classification"
    assert raw.modalities == {"screenshot": "image", "wireframe": "image"}
    assert raw.splits["train"].features == {
        "id": Value("string"),
        "screenshot": Image(decode=False),
        "wireframe": Image(decode=False),
        "labels": Value("int64"),
    }
    for row in raw.splits["test"]:
        assert raw.label_names[row["labels"]] == TOPICS[row["id"]]
        assert row["screenshot"] == {"bytes": None, "path": str(folder / "screenshots" / f"{row['id']}.jpg")}
        assert row["wireframe"] == {"bytes": None, "path": str(folder / "wireframes" / f"{row['id']}.png")}


def test_doubled_columns_and_long_ids_are_refused(folder: Path) -> None:
    write_topics(folder, [(screen, f"{topic},chat") for screen, topic in TOPICS.items()], "screen_id,topic,topic")
    with pytest.raises(ValueError, match=r"design_topics\.csv has two columns of one name"):
        load_enrico(folder)
    write_topics(folder, [*TOPICS.items(), ("x" * 5000, "chat")])
    with pytest.raises(ValueError, match=r"has the id 'x{40}' …"):
        load_enrico(folder)
    write_topics(folder, [*TOPICS.items(), ("x" * 300, "chat")])
    assert len(load_enrico(folder, on_bad_sample="skip").bad_samples) == 1


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_bad_picture_leaves_the_split_as_it_is(folder: Path, spoil) -> None:
    before = load_enrico(folder)
    spoil(folder / "wireframes" / "50101.png")
    with pytest.raises(SampleError, match=r"'50101'.*'wireframe'.*50101\.png"):
        load_enrico(folder)
    raw = load_enrico(folder, on_bad_sample="skip")
    assert [(bad.sample_id, bad.field) for bad in raw.bad_samples] == [("50101", "wireframe")]
    for split, rows in before.splits.items():
        assert raw.splits[split]["id"][:] == [screen for screen in rows["id"] if screen != "50101"]


def test_topics_from_a_spreadsheet(folder: Path) -> None:
    """A byte order mark, line ends of Windows, quotes, a further column."""
    before = load_enrico(folder)
    lines = ["screen_id,note,topic", *(f'"{screen}",,"{topic}"' for screen, topic in TOPICS.items())]
    (folder / "design_topics.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    after = load_enrico(folder)
    for split in before.splits:
        assert after.splits[split][:] == before.splits[split][:]


def test_bad_folders_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist.*ENRICO layout"):
        load_enrico(folder / "nowhere")
    with pytest.raises(ValueError, match="on_bad_sample"):
        load_enrico(folder, on_bad_sample="ignore")
    for rows, header, message in (
        (TOPICS.items(), "screen,topic", r"lacks the columns \['screen_id'\]"),
        ([("50101", "chat"), ("50101", "login")], "screen_id,topic", r"line 3: screen '50101' occurs twice"),
        ([("50101", "chat"), ("50102", "")], "screen_id,topic", r"line 3: a screen_id and a topic are needed"),
        ([("50101", "chat"), ("50102", "chat")], "screen_id,topic", "at least two"),
        ([("50101", "chat"), ("50102", "login")], "screen_id,topic", "no sample of split 'validation' is left"),
    ):
        write_topics(folder, rows, header)
        with pytest.raises(ValueError, match=message):
            load_enrico(folder)
    file = folder / "design_topics.csv"
    for content, message in (
        (b"screen_id;topic\n50101;chat\n", r"lacks .* with commas, it names \['screen_id;topic'\]"),
        (b"", r"lacks .* it names \[\]"),
        (b"screen_id,topic\n50101,chat\n50102,login,more\n", r"line 3: .* got \['50102', 'login', \['more'\]\]"),
        (b"screen_id,topic\n50101,caf\xe9\n", r"design_topics\.csv cannot be read as UTF-8 text"),
        (b"screen_id,topic\n50101,chat\n50102," + b"x" * 200_000, r"line 3 cannot be read as CSV: field larger"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_enrico(folder)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"design_topics\.csv cannot be read as UTF-8 text .*Is a directory"):
        load_enrico(folder)
    (folder / "wireframes").rename(folder / "frames")
    with pytest.raises(ValueError, match="wireframes does not exist"):
        load_enrico(folder)
