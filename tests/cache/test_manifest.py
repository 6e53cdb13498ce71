"""One chain from key to info to records to rows: every break is named, by file and by what is wrong."""

import json
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from fake_encoders import fake_encoders, write_raw

from fl_i2moe.cache import CacheMismatchError, CorruptCacheError, build_cache, open_cache
from fl_i2moe.data.raw import SampleError
from fl_i2moe.publishing.features import write_features

OPTIONS = {"batch_size": 4, "shard_size": 2, "num_workers": 0, "progress": False}
SIZES = {"train": 6, "validation": 2, "test": 2}
OLD = Path(__file__).with_name("cache_of_0_1_0.zip")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache, one of other samples with the same sizes, and one that version 0.1.0 wrote, of 5 and 2 samples."""
    folder = tmp_path_factory.mktemp("built")
    for seed, name in enumerate(("cache", "other")):
        build_cache(write_raw(folder / f"raw-{name}", SIZES, seed), fake_encoders(), folder / name, **OPTIONS)
    with zipfile.ZipFile(OLD) as file:
        file.extractall(folder / "old")
    return folder


@pytest.fixture
def cache_dir(built, tmp_path):
    return Path(shutil.copytree(built / "cache", tmp_path / "cache"))


@pytest.fixture
def old(built, tmp_path):
    return Path(shutil.copytree(built / "old", tmp_path / "old"))


def shard(folder, split, index):
    [path] = (folder / split).glob(f"data-{index:05d}-of-*.arrow")
    return path


def take(source, target):
    """A shard in the place of another one, with its record."""
    for ending in (".arrow", ".json"):
        shutil.copyfile(source.with_suffix(ending), target.with_suffix(ending))


def exchange(one, other):
    for ending in (".arrow", ".json"):
        a, b = one.with_suffix(ending), other.with_suffix(ending)
        contents = a.read_bytes(), b.read_bytes()
        b.write_bytes(contents[0])
        a.write_bytes(contents[1])


def edit(file, **changes):
    content = json.loads(file.read_text(encoding="utf-8"))
    for place, value in changes.items():
        *above, name = place.split("__")
        part = content
        for step in above:
            part = part[step]
        if value is None:
            del part[name]
        else:
            part[name] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_ids(folder):
    """Of the rows of a shard, whose record is made to fit."""
    path = shard(folder, "test", 0)
    rows = pa.ipc.open_stream(path.read_bytes()).read_all()
    rows = rows.set_column(0, "id", pa.array(["test-1", "test-0"]))
    with pa.ipc.new_stream(str(path), rows.schema) as writer:
        writer.write_table(rows)
    edit(path.with_suffix(".json"), sha256=sha256(path.read_bytes()).hexdigest())


def only_one_shard(folder):
    edit(folder / "train" / "state.json", _data_files=[{"filename": shard(folder, "train", 0).name}])


BREAKS = {
    "one shard of three": (only_one_shard, r"train/state\.json .*`_data_files` is \[.*\], .* follows"),
    "shards exchanged": (lambda x: exchange(shard(x, "train", 0), shard(x, "train", 1)), r"train/data-00000.*`index`"),
    "records exchanged": (
        lambda x: exchange(*(shard(x, "train", index).with_suffix(".json") for index in (0, 1))),
        r"train/data-00000-of-00003\.json .*the record of another shard: its `index` is 1, not 0",
    ),
    "another split's shard": (
        lambda x: take(shard(x, "validation", 0), shard(x, "test", 0)),
        r"test/data-00000-of-00001\.json .*the record of another shard: its `split` is 'validation', not 'test'",
    ),
    "another split's folder": (
        lambda x: (shutil.rmtree(x / "test"), shutil.copytree(x / "validation", x / "test")),
        r"test/data-00000-of-00001\.json .*`split` is 'validation'",
    ),
    "label names permuted": (
        lambda x: edit(x / "info.json", label_names=["b", "a", "c"]),
        r"info\.json .*`label_names` is \[\"b\", \"a\", \"c\"\], key\.json has \[\"a\", \"b\", \"c\"\]",
    ),
    "another problem type": (
        lambda x: edit(x / "info.json", problem_type="regression"),
        r'info\.json .*`problem_type` is "regression", key\.json has "multi_label_classification"',
    ),
    "another encoder": (
        lambda x: edit(x / "info.json", modalities__text__encoder__max_length=9),
        r"info\.json .*`modalities\.text\.encoder\.max_length` is 9, key\.json has 8",
    ),
    "modalities in another order": (
        lambda x: edit(x / "info.json", modalities=dict(reversed(list(read(x / "info.json")["modalities"].items())))),
        r'info\.json .*`modalities` is \["text", "image"\], key\.json has \["image", "text"\]',
    ),
    "other counts": (
        lambda x: edit(x / "info.json", counts__train__samples=4),
        r"info\.json .*`counts\.train\.samples` is 4, the records have",
    ),
    "a future format": (
        lambda x: edit(x / "key.json", key__format_version=2),
        r"key\.json: `key\.format_version` is 2,",
    ),
    "a future layout": (lambda x: edit(x / "key.json", layout=3), r"key\.json: `layout` is 3, .* reads 1 to 2"),
    "a split without samples": (
        lambda x: edit(x / "key.json", key__data__splits__test__samples=0),
        r"key\.json .*`key\.data\.splits\.test\.samples` must be at least 1, got 0",
    ),
    "shards of no size": (lambda x: edit(x / "key.json", shard_size=0), r"key\.json .*`shard_size` must be at least 1"),
    "a shard too many": (
        lambda x: take(shard(x, "test", 0), x / "test" / "data-00001-of-00001.arrow"),
        r"test/data-00001-of-00001\.arrow is no file of the feature cache .*move it away",
    ),
    "a split too many": (
        lambda x: shutil.copytree(x / "test", x / "dev"),
        r"dev/data-00000-of-00001\.arrow is no file of the feature cache",
    ),
    "no record": (lambda x: shard(x, "train", 1).with_suffix(".json").unlink(), r"train/data-00001.* is missing"),
    "no shard": (lambda x: shard(x, "train", 1).unlink(), r"train/data-00001.* is missing"),
    "another number of rows": (
        lambda x: edit(shard(x, "train", 0).with_suffix(".json"), rows=1),
        r"train/data-00000.*\.json .*`rows` and what is `skipped` are 1 and 0 samples, together not the 2",
    ),
}
BOUND = {
    "ids": (edit_ids, r"test/data-00000-of-00001\.json .*it is not the file that info\.json was written with"),
    "the key": (
        lambda x: edit(x / "key.json", key__data__splits__test__sha256="0" * 64),
        r"key\.json .*it is not the file that info\.json was written with",
    ),
    "the key's dtype": (lambda x: edit(x / "key.json", key__dtype="bfloat16"), r"key\.json .*it is not the file"),
    "nothing skipped": (
        lambda x: (x / "skipped.jsonl").write_text(
            json.dumps(dict.fromkeys(("id", "split", "field", "file", "reason"), "x"))
        ),
        r"skipped\.jsonl .*it is not the file",
    ),
    "columns": (
        lambda x: (x / "test" / "dataset_info.json").write_text('{"features": {}}', encoding="utf-8"),
        r"test/dataset_info\.json .*it is not the file",
    ),
    "fingerprint": (lambda x: edit(x / "test" / "state.json", _fingerprint="0"), r"test/state\.json .*it is not the"),
    "number of patches": (
        lambda x: edit(x / "info.json", modalities__image__grid=[2, 2]),
        r"info\.json .*it was changed since it was written",
    ),
    "no checksum": (lambda x: edit(x / "info.json", sha256=None), r"info\.json .*`sha256` is missing"),
    "no checksums": (lambda x: edit(x / "info.json", files=None), r"info\.json .*`files` is missing"),
}


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [*BREAKS, *BOUND])
def test_every_break_is_named(cache_dir, name):
    damage, message = {**BREAKS, **BOUND}[name]
    damage(cache_dir)
    with pytest.raises(CorruptCacheError, match=message):
        open_cache(cache_dir)


NOT_SEEN = ("shards exchanged", "records exchanged", "another split's shard", "another split's folder")


@pytest.mark.parametrize("name", [name for name in BREAKS if name not in NOT_SEEN])
def test_what_an_earlier_version_wrote_twice_is_compared(old, name):
    damage, message = BREAKS[name]
    damage(old)
    with pytest.raises(CorruptCacheError, match=message):
        open_cache(old)


@pytest.mark.parametrize("name", ["train/data-00000-of-00003.arrow", "test", "info.json", "key.json", "skipped.jsonl"])
def test_what_comes_from_another_cache_is_named(built, cache_dir, name):
    """Each is sound, and so is its record."""
    source, target = built / "other" / name, cache_dir / name
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    elif source.suffix == ".arrow":
        take(source, target)
    else:
        shutil.copyfile(source, target)
    if name == "skipped.jsonl":  # both are empty
        open_cache(cache_dir)
        return
    with pytest.raises(CorruptCacheError, match=r"key\.json" if source.suffix == ".json" else f"{name[:-6]}.*`key` is"):
        open_cache(cache_dir)


def test_an_unfinished_cache_does_not_take_what_is_not_its_own(built, cache_dir):
    (cache_dir / "info.json").unlink()
    raw = write_raw(built / "raw-cache", SIZES)
    exchange(shard(cache_dir, "train", 0), shard(cache_dir, "train", 2))
    with pytest.raises(
        CorruptCacheError, match=r"train/data-00000.*record of another shard.*delete the feature cache's"
    ):
        build_cache(raw, fake_encoders(), cache_dir, **OPTIONS)
    exchange(shard(cache_dir, "train", 0), shard(cache_dir, "train", 2))
    build_cache(raw, fake_encoders(), cache_dir, **OPTIONS)
    edit(cache_dir / "key.json", key__data__label_names=["b", "a", "c"])
    with pytest.raises(CacheMismatchError, match=r"data\.label_names: the cache has"):
        build_cache(raw, fake_encoders(), cache_dir, **OPTIONS)


# ---- edited and foreign JSON ---------------------------------------------------------------------------------------


def places(content, above=()):
    """The paths of all that is in a JSON value."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, part in parts:
        yield (*above, name)
        yield from places(part, (*above, name))


def edits(text):
    """The JSON with each of its parts gone, or of another type, or beside an unknown one."""
    for *above, name in places(json.loads(text)):
        for how in ("gone", "other", "more"):
            content = json.loads(text)
            part = content
            for step in above:
                part = part[step]
            if how == "gone":
                del part[name]
            elif how == "other":
                part[name] = {"x": 1} if isinstance(part[name], str | int | float | None) else "x"
            elif isinstance(part, dict):
                part["unknown"] = 1
            if content != json.loads(text):
                yield (*above, name), how, json.dumps(content)


SMALL_FILES = [
    "key.json",
    "info.json",
    "train/state.json",
    "test/dataset_info.json",
    "train/data-00001-of-00003.json",
]


@pytest.mark.parametrize("name", SMALL_FILES)
def test_every_edit_of_every_small_file_is_named(cache_dir, name):
    file = cache_dir / name
    text, seen = file.read_text(encoding="utf-8"), 0
    for place, how, edited in edits(text):
        file.write_text(edited, encoding="utf-8")
        with pytest.raises(CorruptCacheError) as caught:
            open_cache(cache_dir, verify=False)
        assert str(file) in str(caught.value) or name in ("key.json", "info.json"), (place, how, str(caught.value))
        assert "key.json" in str(caught.value) or "info.json" in str(caught.value) or str(file) in str(caught.value)
        seen += 1
    assert seen > 10
    file.write_text(text, encoding="utf-8")
    open_cache(cache_dir)


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("key.json", {"shard_size": "2"}, "`shard_size` must be a whole number"),
        ("key.json", {"key__data__splits": []}, "`key.data.splits` must be an object"),
        ("key.json", {"key__data__splits__test__sha256": 1}, "`key.data.splits.test.sha256` must be a text"),
        ("key.json", {"key__format_version": "1"}, "`key.format_version` must be a whole number"),
        ("key.json", {"key__encoders__text": 1}, "`key.encoders.text` must be an object"),
        ("key.json", {"seed": 1}, "`seed` is unknown"),
        ("info.json", {"label_names": "abc"}, "`label_names` must be a list"),
        ("info.json", {"problem_type": "guessing"}, "`problem_type` must be 'single_label_classification' or"),
        ("info.json", {"modalities__image__grid": [1, "4"]}, "`modalities.image.grid[1]` must be a whole number"),
        ("info.json", {"modalities__image__feature_size": None}, "`modalities.image.feature_size` is missing"),
        ("info.json", {"counts__test__cut__text__samples": 0.5}, "`counts.test.cut.text.samples` must be a whole"),
        ("info.json", {"modalities__image__colour": 1}, "`modalities.image.colour` is unknown"),
        ("train/state.json", {"_data_files": [{"file": "x"}]}, "`_data_files[0].filename` is missing"),
        ("train/state.json", {"_format_columns": 1}, "`_format_columns` must be null"),
        ("train/state.json", {"_format_type": "torch"}, "`_format_type` must be null"),
        ("train/dataset_info.json", {"features": "x"}, "`features` must be an object"),
        ("info.json", {"modalities__image__kind": "video"}, "`modalities.image.kind` is 'video', there are image"),
        ("info.json", {"modalities__image__grid": [1, 2, 2]}, "`modalities.image.grid` must be rows and columns"),
        ("info.json", {"modalities__text__max_features": -1}, "`modalities.text` must have sizes of at least 1"),
        ("train/data-00000-of-00003.json", {"rows": True}, "`rows` must be a whole number, got true"),
        ("train/data-00000-of-00003.json", {"skipped": {}}, "`skipped` must be a list"),
        ("train/data-00000-of-00003.json", {"cut__text__share": "x"}, "`cut.text.share` must be a number"),
    ],
)
@pytest.mark.parametrize("version", ["now", "0.1.0"])
def test_wrong_types_and_unknown_keys_are_named(request, name, changes, key, version):
    folder = request.getfixturevalue("cache_dir" if version == "now" else "old")
    edit(folder / name, **changes)
    with pytest.raises(CorruptCacheError) as caught:
        open_cache(folder)
    assert str(folder / name) in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("line", "key"),
    [("1", "its content must be an object"), ('{"id": 1}', "`field` is missing"), ("", "Expecting value")],
)
def test_a_damaged_line_of_what_was_skipped_is_named(cache_dir, line, key):
    good = json.dumps(dict.fromkeys(("id", "split", "field", "file", "reason"), "x"))
    (cache_dir / "skipped.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(CorruptCacheError, match=rf"skipped\.jsonl, line 2, .*{key}"):
        open_cache(cache_dir)


def test_what_others_do_to_a_folder_is_no_damage(cache_dir):
    """Git changes the ends of lines, `datasets` leaves files of its own, systems and the Hub theirs."""
    ids = {name: list(rows["id"]) for name, rows in open_cache(cache_dir).splits.items()}
    for path in [*cache_dir.rglob("*.json"), cache_dir / "skipped.jsonl"]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for name in (".DS_Store", "README.md", "train/.DS_Store", "train/cache-0123456789abcdef.arrow"):
        (cache_dir / name).write_bytes(b"x")
    moved = shard(cache_dir, "train", 0).rename(cache_dir / "blob")
    (cache_dir / "train" / "data-00000-of-00003.arrow").symlink_to(moved)
    assert {name: list(rows["id"]) for name, rows in open_cache(cache_dir).splits.items()} == ids


def test_a_line_of_what_was_skipped_holds_any_character(tmp_path):
    raw = write_raw(tmp_path / "raw", {"test": 3})
    raw.bad_samples.append(SampleError("test", "a\u2028b", "image", "x\x85.png", "\x1c"))
    build_cache(raw, fake_encoders(), tmp_path / "cache", **OPTIONS)
    assert [x["id"] for x in open_cache(tmp_path / "cache").skipped] == ["a\u2028b"]


# ---- earlier versions ----------------------------------------------------------------------------------------------


def test_a_cache_of_an_earlier_version_opens(old, tmp_path):
    cache = open_cache(old)
    assert {name: len(rows) for name, rows in cache.splits.items()} == {"train": 5, "test": 2}
    assert cache.splits["train"][1]["id"] == "train-1"
    assert "image_sha256" not in cache.splits["train"].column_names


def test_an_unfinished_cache_of_an_earlier_version_goes_on(old, tmp_path):
    """In its own layout: what is there already stays, and a data set has the same columns everywhere."""
    before = shard(old, "train", 0).read_bytes()
    whole = open_cache(old).splits["train"].to_list()
    (old / "info.json").unlink()
    shard(old, "train", 2).unlink()
    encoders = fake_encoders()
    raw = write_raw(tmp_path / "raw", {"train": 5, "test": 2})
    cache = build_cache(raw, encoders, old, **OPTIONS)
    assert encoders["image"].calls == 1
    assert shard(old, "train", 0).read_bytes() == before
    for row, expected in zip(cache.splits["train"], whole, strict=True):
        assert {**row, "image": None} == {**expected, "image": None}
    assert datasets.load_from_disk(old / "train").column_names == cache.splits["train"].column_names


@pytest.mark.parametrize("version", ["now", "0.1.0"])
def test_what_is_published_is_bound_anew(request, tmp_path, version):
    cache = open_cache(request.getfixturevalue("cache_dir" if version == "now" else "old"))
    write_features(cache, tmp_path / "published", "someone/films", license="mit")
    published = open_cache(tmp_path / "published")
    assert published.counts == cache.counts
    assert ("image_sha256" in published.splits["test"].column_names) == (version == "now")
    exchange(shard(tmp_path / "published", "train", 0), shard(tmp_path / "published", "train", 1))
    with pytest.raises(CorruptCacheError, match=r"train/data-00000.*the record of another shard: its `index` is 1"):
        open_cache(tmp_path / "published")
