import gzip
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset

from fl_i2moe.data.table_sources import open_tables

HEADER = "name,text\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def read(tmp_path, cache):
    """Writes a file, and gives its rows."""

    def start(name, content, written="utf-8", **options):
        data = content if isinstance(content, bytes) else content.encode(written)
        (tmp_path / name).write_bytes(data)
        [table] = open_tables(tmp_path / name, cache_dir=cache, **options)
        return table.rows[:]

    return start


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_encodings(read, encoding):
    told = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    expected = {"name": ["a", "b"], "text": ["naïve", "é,\nü"]}
    assert read("t.csv", HEADER + 'a,naïve\nb,"é,\nü"\n', encoding, **told) == expected
    lines = "".join(
        json.dumps(dict(zip(expected, row, strict=True)), ensure_ascii=False) + "\n"
        for row in zip(*expected.values(), strict=True)
    )
    assert read("t.jsonl", lines, encoding, **told) == expected


def test_another_encoding_is_named_by_line_and_byte(read):
    text = HEADER + "a,x\n" * 3 + "b,é\n"
    for name in ("t.csv", "t.jsonl"):
        place = text.encode("latin-1").index(b"\xe9")
        with pytest.raises(
            ValueError, match=rf"t\.\w+, line 5: byte {place} \(e9\) is no utf-8 text\. Say by `encoding`"
        ):
            read(name, text, "latin-1")
    long = HEADER + "a,x\n" * 400_000 + "b,é\n"  # beyond one piece that is read at once
    with pytest.raises(ValueError, match="line 400002: byte 1,600,012"):
        read("t.csv", long, "latin-1")
    with pytest.raises(ValueError, match="`encoding` 'utf-9' is unknown"):
        read("t.csv", text, encoding="utf-9")


def test_csv_cells_are_texts_as_they_are_written(read):
    content = "name;text\n007;NA\n; two  spaces \n\n1,5;None\n"
    expected = {"name": ["007", "", "1,5"], "text": ["NA", " two  spaces ", "None"]}
    assert read("t.csv", content) == expected
    assert read("t.csv.gz", gzip.compress(content.encode())) == expected
    assert read("t [1]*.CSV", content) == expected
    long = "x" * 200_000  # more than Python's csv allows at first
    assert read("long.csv", HEADER + f"a,{long}\n")["text"] == [long]
    assert list(read("commas.tsv", HEADER + "a,b\n")) == ["name", "text"]
    assert list(read("index.csv", ",text\n0,a\n")) == ["Unnamed: 0", "text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "is empty; its first line names the columns"),
        ("t.csv", "\n" + HEADER + "a,b\n", "begins with an empty line; its first line names the columns"),
        ("t.csv", HEADER, "has no rows below its first line"),
        ("t.csv", "a,b,a\n1,2,3\n", "has several columns of one name: 'a'; rename them"),
        ("t.csv", HEADER + "a,b\na,b,c\n", r"line 3: there are 3 cells, the first line names 2 columns \(name, text\)"),
        ("t.csv", HEADER + "a\n", "line 2: there are 1 cells"),
        ("t.csv", HEADER + 'a,"b\nc,d\n', "line 3: it cannot be read as CSV"),
        ("t.jsonl", "", "has no rows"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', r"line 2 is no JSON"),
        ("t.jsonl", '{"a": 1, "a": 2}\n', "line 1 is no JSON: it has 'a' twice"),
        ("t.jsonl", '{"a": 1}\n[1]\n', "line 2 holds a list; each line is an object"),
        ("t.json", "[{]", "cannot be read: .*Mend it, or write it again"),
        ("t.parquet", "PAR1", "cannot be read: Parquet file size is 4 bytes"),
        ("t.arrow", "x" * 20, "cannot be read: "),
        ("t.npz", "x", "ends with '.npz', which is no table: arrays are read by `load_arrays`"),
        ("t.xlsx", "x", "ends with '.xlsx', which is no table: save the sheet as CSV"),
        ("t.dat", "x", "ends with '.dat', which is no table: tables end with .csv"),
    ],
)
def test_files_that_cannot_be_read(read, name, content, message):
    with pytest.raises(ValueError, match=rf"/{name}.*{message}"):
        read(name, content)


def test_what_is_no_source(tmp_path, monkeypatch):
    (tmp_path / "tweets.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"/tweet\.csv is no file and no folder \(near it is .*/tweets\.csv\)"):
        open_tables(tmp_path / "tweet.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"/link\.csv is no file and no folder, but a link that leads nowhere"):
        open_tables(tmp_path / "link.csv")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"someone/products is no file and no folder here, and .* be had from the Hub"):
        open_tables("someone/products", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="`config_name` is for data sets on the Hub, got the file"):
        open_tables(tmp_path / "tweets.csv", config_name="x")
    with pytest.raises(ValueError, match="`revision` is for data sets on the Hub, got a data set that is in memory"):
        open_tables(Dataset.from_dict({"a": [1]}), revision="x")
    with pytest.raises(ValueError, match="got a list"):
        open_tables([1, 2])
    with pytest.raises(ValueError, match=r"got a IterableDataset\. Streamed data cannot be split"):
        open_tables(IterableDataset.from_generator(lambda: iter(())))
    with pytest.raises(ValueError, match="the data set has no rows"):
        open_tables(Dataset.from_dict({"a": []}))
    with pytest.raises(ValueError, match="/nothing holds no table, and no files that `datasets` makes one of"):
        open_tables(_empty(tmp_path / "nothing"), cache_dir=tmp_path)


def _empty(folder):
    folder.mkdir()
    return folder


def test_a_folder_of_tables_is_cut_by_their_names(tmp_path, cache):
    (tmp_path / "tweets.csv").write_text("a\n1\n", encoding="utf-8")
    assert [x.split for x in open_tables(tmp_path, cache_dir=cache)] == [None]
    (tmp_path / "more.csv").write_text("a\n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds several tables, more\.csv, tweets\.csv: give the path of one"):
        open_tables(tmp_path, cache_dir=cache)
    folder = tmp_path / "cut"
    folder.mkdir()
    for name, rows in (("train-00000-of-00002", "1\n2"), ("train-00001-of-00002", "3"), ("my_Dev", "4")):
        (folder / f"{name}.csv").write_text(f"a\n{rows}\n", encoding="utf-8")
    found = {x.split: x.rows["a"][:] for x in open_tables(folder, cache_dir=cache)}
    assert found == {"train": ["1", "2", "3"], "dev": ["4"]}
    (folder / "train-00002-of-00002.csv").write_text("b\n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has the columns \['b'\], .* has \['a'\]; they must be the same"):
        open_tables(folder, cache_dir=cache)


def test_metadata_of_files_has_the_names_of_datasets(tmp_path, cache):
    content = "file_name,front_file_name,text\na/0.{0},b/0.png,x\n"
    for ending, name in (("png", "image"), ("wav", "audio")):
        folder = tmp_path / ending
        (folder / "a").mkdir(parents=True)
        (folder / "a" / f"0.{ending}").write_bytes(b"x")  # nothing is decoded
        (folder / "metadata.csv").write_text(content.format(ending), encoding="utf-8")
        [table] = open_tables(folder, cache_dir=cache)
        assert table.rows[0] == {name: f"a/0.{ending}", "front": "b/0.png", "text": "x"}
        assert table.folders == (folder,)
    for split in ("train", "val"):
        (tmp_path / "cut" / split).mkdir(parents=True)
        (tmp_path / "cut" / split / "metadata.jsonl").write_text(json.dumps({"file_name": f"{split}.png"}), "utf-8")
    assert {
        x.split: (x.rows["image"][0], x.folders[0].name) for x in open_tables(tmp_path / "cut", cache_dir=cache)
    } == {
        "train": ("train.png", "train"),
        "val": ("val.png", "val"),
    }
    (tmp_path / "cut" / "val" / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"cut/val has no table metadata\.csv as the other splits have"):
        open_tables(tmp_path / "cut", cache_dir=cache)


def test_a_name_is_looked_for_on_the_hub(monkeypatch, tmp_path):
    asked = {}

    def load(path, **options):
        asked.update(options, path=path)
        return DatasetDict(train=Dataset.from_dict({"a": [1]}), dev=Dataset.from_dict({"a": [2, 3]}))

    monkeypatch.setattr("datasets.load_dataset", load)
    tables = open_tables("someone/products", config_name="small", revision="v1", cache_dir=tmp_path)
    assert asked == {"path": "someone/products", "name": "small", "revision": "v1", "cache_dir": str(tmp_path)}
    assert [(x.split, x.rows["a"][:]) for x in tables] == [("train", [1]), ("dev", [2, 3])]


def test_what_datasets_says_of_a_plain_table(tmp_path, cache):
    """Where nothing is lost by it, the rows are those of `load_dataset`."""
    content = 'a,b\nx,y z\n"p,q","line\nend"\n'
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    [table] = open_tables(tmp_path / "t.csv", cache_dir=cache)
    assert table.rows[:] == load_dataset("csv", data_files=str(tmp_path / "t.csv"), cache_dir=str(cache))["train"][:]
