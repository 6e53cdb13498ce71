import csv
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage

from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.data.mmimdb import load_mmimdb
from fl_i2moe.data.raw import SampleError
from fl_i2moe.data.tables import load_rows, load_table

SHARED = Path(__file__).parents[3] / "shared" / "data"
NUM_ROWS = 30
KINDS_OF = {"picture": "image", "text": "text"}
SPLITS = ("train", "validation", "test")
has_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for row in range(NUM_ROWS):
        PILImage.new("RGB", (2, 3), (row, 0, 0)).save(folder / f"{row}.png")
    return folder


@pytest.fixture
def rows(pictures):
    """Samples of three classes, by their columns."""
    return {
        "picture": [str(pictures / f"{row}.png") for row in range(NUM_ROWS)],
        "text": [f"text, of {row}" for row in range(NUM_ROWS)],
        "label": ["abc"[row % 3] for row in range(NUM_ROWS)],
    }


def load(rows, modalities=KINDS_OF, label="label", **options):
    return load_table(
        rows if isinstance(rows, DatasetDict) else Dataset.from_dict(rows), modalities, label=label, **options
    )


def write_csv(file, rows, **options):
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, **options)
        writer.writerow(rows)
        writer.writerows(zip(*rows.values(), strict=True))
    return file


def samples(raw):
    """Id → what the data set says of the sample, whatever its split."""
    return {row["id"]: row for split in raw.splits.values() for row in split}


def assert_same(raw, expected):
    assert (raw.label_names, raw.problem_type, raw.modalities) == (
        expected.label_names,
        expected.problem_type,
        expected.modalities,
    )
    assert list(raw.splits) == list(expected.splits)
    for split, wanted in expected.splits.items():
        assert raw.splits[split].column_names == wanted.column_names
        for name in wanted.column_names:
            assert raw.splits[split][name][:] == wanted[name][:], (split, name)


@has_shared
def test_films_as_a_table_are_the_same_samples(tmp_path, cache):
    films = load_mmimdb(SHARED / "movies")
    table = {"film": [], "image": [], "text": [], "genres": [], "part": []}
    for split, own in films.splits.items():
        for row in own:
            names = [name for name, is_one in zip(films.label_names, row["labels"], strict=True) if is_one]
            cells = (row["id"], row["image"]["path"].rsplit("/")[-1], row["text"], " | ".join(names), split)
            for column, cell in zip(table.values(), cells, strict=True):
                column.append(cell)
    raw = load_table(
        write_csv(tmp_path / "films.csv", table),
        {"image": "image", "text": "text"},
        label="genres",
        label_separator="|",
        label_names=films.label_names,
        id_column="film",
        split_column="part",
        root=SHARED / "movies" / "dataset",
        cache_dir=cache,
    )
    assert_same(raw, films)


@has_shared
def test_drawings_and_their_texts_as_a_table_are_the_same_samples(tmp_path, cache):
    emoji = load_enrico(SHARED / "openmoji")
    with (SHARED / "openmoji" / "texts.csv").open(encoding="utf-8", newline="") as stream:
        texts = {row["screen_id"]: row["text"] for row in csv.DictReader(stream)}
    for split, own in emoji.splits.items():
        table = {
            "name": own["id"][:],
            "screenshot": [row["path"] for row in own["screenshot"]],
            "wireframe": [f"wireframes/{name}.png" for name in own["id"]],  # absolute and relative ones
            "words": [texts[name] for name in own["id"]],
            "topic": [emoji.label_names[label] for label in own["labels"]],
        }
        write_csv(tmp_path / f"{split}.csv", table)
    raw = load_table(
        tmp_path,
        {"screenshot": "image", "wireframe": "image", "words": "text"},
        label="topic",
        id_column="name",
        root=SHARED / "openmoji",
        cache_dir=cache,
    )
    assert raw.modalities.pop("words") == "text"
    for split, own in raw.splits.items():
        assert own["words"][:] == [texts[name] for name in own["id"]]
        raw.splits[split] = own.remove_columns("words")
    assert_same(raw, emoji)


@has_shared
def test_arrays_as_a_table_are_the_same_samples(tmp_path, cache):
    own = load_arrays(SHARED / "rosmap" / "rosmap.npz")
    arrays = np.load(SHARED / "rosmap" / "rosmap.npz")
    cut = DatasetDict(
        {
            split: Dataset.from_dict({name: arrays[f"{name}_{end}"] for name in (*own.modalities, "labels")})
            for split, end in (("train", "tr"), ("test", "te"))
        }
    ).rename_column("labels", "disease")
    cut.save_to_disk(tmp_path / "rosmap")
    raw = load_table(tmp_path / "rosmap", own.modalities, label="disease", cache_dir=cache)
    assert raw.feature_sizes == own.feature_sizes
    assert samples(raw) == samples(own)
    assert raw.splits["test"]["id"][:] == own.splits["test"]["id"][:]
    assert len(raw.splits["validation"]) == len(own.splits["validation"])  # evenly drawn, and so other ones
    split_of = {name: split for split, rows in own.splits.items() for name in rows["id"]}
    names = [f"{split}-{row}" for split, rows in cut.items() for row in range(len(rows))]
    whole = concatenate_datasets([cut["train"], cut["test"]]).add_column("name", names)
    whole.add_column("part", [split_of[name] for name in names]).to_parquet(tmp_path / "whole.parquet")
    options = {"label": "disease", "id_column": "name", "split_column": "part", "cache_dir": cache}
    assert_same(load_table(tmp_path / "whole.parquet", own.modalities, **options), own)


def test_csv_json_parquet_arrow_and_memory_give_one_data_set(tmp_path, rows, cache):
    rows = rows | {"text": [f'line {row}\n"NA", naïve 007' for row in range(NUM_ROWS)]}
    expected = load(rows)
    assert [len(expected.splits[split]) for split in SPLITS] == [21, 3, 6]
    assert expected.splits["train"].features == {
        "id": Value("string"),
        "picture": Image(decode=False),
        "text": Value("string"),
        "labels": Value("int64"),
    }
    for name, sample in samples(expected).items():
        row = int(name)
        assert sample["picture"] == {"bytes": None, "path": rows["picture"][row]}
        assert sample["text"] == rows["text"][row]
        assert expected.label_names[sample["labels"]] == rows["label"][row]
    table = Dataset.from_dict(rows)
    write_csv(tmp_path / "t.csv", rows)
    write_csv(tmp_path / "t.TSV", rows, delimiter="\t")
    write_csv(tmp_path / "t;.csv", rows, delimiter=";")
    table.to_json(tmp_path / "t.jsonl")
    (tmp_path / "t.json").write_text(json.dumps(table.to_list()), encoding="utf-8")
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(tmp_path / "saved")
    places = [*tmp_path.glob("t*"), tmp_path / "saved", *(tmp_path / "saved").glob("*.arrow")]
    assert len(places) == 8
    for place in places:
        assert_same(load_table(place, KINDS_OF, label="label", cache_dir=cache), expected)


def test_paths_begin_in_the_tables_folder_or_in_root(tmp_path, rows, pictures, cache):
    paths = [f"{row}.png" if row % 2 else str(pictures / f"{row}.png") for row in range(NUM_ROWS)]
    rows = rows | {"picture": paths}
    beside = write_csv(pictures / "t.csv", rows)
    away = write_csv(tmp_path / "t.csv", rows)
    wanted = {str(pictures / f"{row}.png") for row in range(NUM_ROWS)}
    for file, root in ((beside, None), (beside, tmp_path), (away, pictures)):
        raw = load_table(file, KINDS_OF, label="label", root=root, cache_dir=cache)
        assert {row["picture"]["path"] for row in samples(raw).values()} == wanted
    with pytest.raises(
        SampleError, match=r"sample '1' .*row 1 \(counted from 0\): there is no file .*/1\.png; mend"
    ) as e:
        load_table(away, KINDS_OF, label="label", cache_dir=cache)
    assert e.value.field == "picture"
    with pytest.raises(SampleError, match=f"no file {pictures.parent}/1.png or {tmp_path}/1.png"):
        load_table(away, KINDS_OF, label="label", root=pictures.parent, cache_dir=cache)
    with pytest.raises(ValueError, match=r"`root` .*/picturess\d is no folder \(near it is .*/pictures\d"):
        load_table(beside, KINDS_OF, label="label", root=str(pictures).replace("pictures", "picturess"))


def test_pictures_as_bytes_and_decoded_ones_stay_as_they_are(rows, pictures):
    content = [(pictures / f"{row}.png").read_bytes() for row in range(NUM_ROWS)]
    raw = load(rows | {"picture": content})
    assert all(x["picture"] == {"bytes": content[int(name)], "path": None} for name, x in samples(raw).items())
    features = Features({"picture": Image(), "text": Value("string"), "label": Value("string")})
    opened = [PILImage.open(pictures / f"{row}.png") for row in range(NUM_ROWS)]
    raw = load_table(Dataset.from_dict(rows | {"picture": opened}, features), KINDS_OF, label="label")
    for name, sample in samples(raw).items():
        assert (sample["picture"]["bytes"] or (pictures / f"{name}.png").read_bytes()) == content[int(name)]


def test_bytes_in_a_file_are_not_copied(tmp_path, rows, pictures, cache):
    features = Features({"picture": Image(decode=False), "text": Value("string"), "label": Value("string")})
    cells = [{"bytes": (pictures / f"{row}.png").read_bytes(), "path": f"{row}.png"} for row in range(NUM_ROWS)]
    Dataset.from_dict(rows | {"picture": cells}, features).to_parquet(tmp_path / "t.parquet")
    raw = load_table(tmp_path / "t.parquet", KINDS_OF, label="label", cache_dir=cache)
    assert {Path(x["filename"]).name for x in raw.splits["train"].cache_files} == {"parquet-train.arrow"}
    assert all(x["picture"] == cells[int(name)] for name, x in samples(raw).items())


def test_folders_of_pictures_with_metadata_and_with_classes(tmp_path, cache):
    for row in range(12):
        for folder in ("plain", f"classes/{('train', 'test')[row % 2]}/{'ab'[row // 2 % 2]}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            PILImage.new("RGB", (2, 2), (row, 0, 0)).save(tmp_path / folder / f"{row}.png")
    names = [f"{row}.png" for row in range(12)]
    kinds = {"image": "image", "text": "text"}
    write_csv(
        tmp_path / "plain" / "metadata.csv",
        {"file_name": names, "text": [f"t{row}" for row in range(12)], "label": ["ab"[row % 2] for row in range(12)]},
    )
    raw = load_table(tmp_path / "plain", kinds, label="label", cache_dir=cache)
    found = {Path(x["image"]["path"]).name: (x["text"], raw.label_names[x["labels"]]) for x in samples(raw).values()}
    assert found == {f"{row}.png": (f"t{row}", "ab"[row % 2]) for row in range(12)}
    again = load_table(
        tmp_path / "plain" / "metadata.csv", {"file_name": "image", "text": "text"}, label="label", cache_dir=cache
    )
    assert {Path(x["file_name"]["path"]).name for x in samples(again).values()} == set(names)
    with pytest.raises(ValueError, match=r"has no column 'text'\. Its columns are image, label"):
        load_table(tmp_path / "classes", kinds, label="label", cache_dir=cache)
    kept, bad = load_rows(tmp_path / "classes", {"image": "image"}, cache_dir=cache)
    assert not bad
    assert sorted(Path(x["path"]).name for x in kept["image"]) == sorted(names)


def test_values_that_are_missing_stop_are_dropped_or_stay_as_null(rows):
    texts = [*rows["text"]]
    texts[3], texts[7], texts[9] = None, "", " \n"
    paths = [*rows["picture"]]
    paths[9] = None
    rows = rows | {"text": texts, "picture": paths, "price": [float(x) if x % 4 else None for x in range(NUM_ROWS)]}
    modalities = KINDS_OF | {"price of it": ["price"]}
    with pytest.raises(ValueError, match=r"'picture' is missing in 1 of 30 rows, the first is row 9 .*missing='drop'"):
        load(rows, modalities)
    dropped = load(rows, modalities, missing="drop")
    gone = {3, 7, 9, *range(0, NUM_ROWS, 4)}
    assert {int(x) for x in samples(dropped)} == set(range(NUM_ROWS)) - gone
    assert {int(x.sample_id) for x in dropped.bad_samples} == gone
    assert "text is missing in 3 samples, which are left out." in dropped.notes
    filled = samples(load(rows, modalities, missing="fill"))
    assert len(filled) == NUM_ROWS
    for row in range(NUM_ROWS):
        sample = filled[str(row)]
        assert (sample["text"] is None) == (row in (3, 7, 9))
        assert (sample["picture"] is None) == (row == 9)
        assert (sample["price of it"] is None) == (row % 4 == 0)
    with pytest.raises(ValueError, match="'text' is missing in every training sample"):
        load(rows | {"text": [" "] * NUM_ROWS}, missing="fill")
    nothing = load(rows | {"picture": [None, *rows["picture"][1:]], "text": ["", *rows["text"][1:]]}, missing="fill")
    assert [str(x.reason) for x in nothing.bad_samples] == [
        "row 0 (counted from 0): every modality is missing",
        "row 9 (counted from 0): every modality is missing",
    ]


def test_columns_of_one_modality_keep_their_types(tmp_path, rows, cache):
    columns = {
        "width": ["1.5", "NA"] * 15,
        "count": ["3", ""] * 15,
        "new": ["true", "False"] * 15,
        "code": ["007", "x"] * 15,
    }
    file = write_csv(tmp_path / "t.csv", rows | columns)
    raw = load_table(file, {"text": "text", "specs": list(columns)}, label="label", cache_dir=cache)
    assert raw.modalities == {"text": "text", "specs": "tabular"}
    found = {name: json.loads(x["specs"]) for name, x in samples(raw).items()}
    assert found["0"] == {"width": 1.5, "count": 3, "new": True, "code": "007"}
    assert type(found["0"]["count"]) is int
    assert found["1"] == {"width": None, "count": None, "new": False, "code": "x"}
    rows["price"] = [Decimal("1.5")] * NUM_ROWS
    priced = load(rows, {"text": "text", "specs": ["price"]})
    assert json.loads(samples(priced)["1"]["specs"]) == {"price": 1.5}
    features = Features(
        {"text": Value("string"), "label": Value("string"), "colour": ClassLabel(names=["red", "blue"])}
    )
    named = Dataset.from_dict({**{x: rows[x] for x in ("text", "label")}, "colour": [0, 1] * 15}, features)
    raw = load_table(named, {"text": "text", "specs": ["colour"]}, label="label")
    assert json.loads(samples(raw)["1"]["specs"]) == {"colour": "blue"}


def test_arrays_are_lists_of_numbers_or_json(tmp_path, rows, cache):
    vectors = [[row, row + 0.5] for row in range(NUM_ROWS)]
    sequences = [[[row, 1, 2]] * (1 + row % 3) for row in range(NUM_ROWS)]
    rows = rows | {"v": vectors, "s": sequences}
    modalities = {"v": "array", "s": "array"}
    written = write_csv(
        tmp_path / "t.csv", rows | {"v": list(map(json.dumps, vectors)), "s": list(map(json.dumps, sequences))}
    )
    for raw in (load(rows, modalities), load_table(written, modalities, label="label", cache_dir=cache)):
        assert raw.feature_sizes == {"v": 2, "s": 3}
        for name, sample in samples(raw).items():
            assert sample["v"] == np.float32([vectors[int(name)]]).tobytes()
            assert sample["s"] == np.float32(sequences[int(name)]).tobytes()
    for cell, reason in (
        ([1.0, 2.0, 3.0], "its vectors have 3 numbers, those of most rows have 2"),
        ([1.0, float("nan")], r"numbers that are NaN or infinite .*\[1\.0, nan\]"),
        ([1e39, 0.0], "NaN or infinite"),
    ):
        with pytest.raises(SampleError, match=rf"sample '4' .* 'v': row 4 \(counted from 0\): .*{reason}"):
            load(rows | {"v": [*vectors[:4], cell, *vectors[5:]]}, modalities)
    for cell in ("[[1, 2], [3]]", "1 2", "[1, null]", '["a"]', "[[[1, 2]]]", "[1" + "0" * 400 + "]"):
        with pytest.raises(SampleError, match=r"sample '4' .* 'v': row 4 "):
            load(rows | {"v": [*map(json.dumps, vectors[:4]), cell, *map(json.dumps, vectors[5:])]}, modalities)


def test_what_was_understood_is_said(rows):
    notes = load(rows).notes
    assert "text: text, such as 'text, of 0', 'text, of 1', 'text, of 2'" in notes
    assert "label: texts, read as classes (label_type='class'): a, b, c; such as 'a', 'b', 'c'" in notes
    assert "the data set: 30 samples, 21 for train, 3 for validation, 6 for test" in notes
    rare = load(rows | {"label": ["rare", *["a", "b"] * 14, "a"]}).notes
    assert "One sample is all there is of rare: it cannot be both learnt and tested." in rare
    assert "test has no sample of rare, so that its metrics say nothing about them." in rare


def test_columns_that_tell_the_label(rows):
    with pytest.raises(ValueError, match="the column 'text' holds the labels of 'label' themselves"):
        load(rows | {"text": rows["label"]})
    twin = [ord(x) for x in rows["label"]]
    told = load(rows | {"twin": twin}, {"text": "text", "specs": ["twin"]}).notes
    assert sum("The column 'twin' tells 'label': each of its 3 values has a label of its own" in x for x in told) == 1
    almost = [ord("a"), *twin[1:-1], ord("a")]  # the last one is of class c
    assert not any("tells" in x for x in load(rows | {"twin": almost}, {"text": "text", "specs": ["twin"]}).notes)
    amounts = [row * 0.5 for row in range(NUM_ROWS)]
    with pytest.raises(ValueError, match="the column 'twin' holds the labels of 'label' themselves"):
        load(rows | {"label": amounts, "twin": amounts}, {"text": "text", "specs": ["twin"]})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"modalities": {"picture": "image", "txet": "text"}}, r"has no column 'txet'\. Did you mean `text`\?"),
        ({}, {"label": "lable"}, r"has no column 'lable'\. Did you mean `label`\?"),
        ({}, {"id_column": "nr"}, "has no column 'nr'"),
        (
            {},
            {"modalities": KINDS_OF | {"label": "text"}},
            "column 'label' is given twice, as label and as modality 'label'",
        ),
        ({}, {"id_column": "label"}, "column 'label' is given twice, as label and as `id_column`"),
        (
            {},
            {"modalities": {"picture": "image", "x": ["picture", "text"]}},
            "'picture' is given twice in `modalities`",
        ),
        ({}, {"modalities": {"picture": "image"}}, r"at least two modalities, got \['picture'\]"),
        ({}, {"modalities": {"picture": "images", "text": "text"}}, r"must be one of image, .*Did you mean `image`\?"),
        (
            {},
            {"modalities": {"id": "text", "text": "text"}},
            "'id' cannot be called so: this column holds the samples'",
        ),
        ({}, {"modalities": {"labels": "text", "text": "text"}}, "'labels' cannot be called so"),
        ({}, {"label": ["label", "label"]}, "column 'label' is given twice, as label and as label"),
        (
            {"day": [date(2026, 1, 1)] * 30},
            {"modalities": {"text": "text", "x": ["day"]}},
            "'day' holds date32.* a number",
        ),
        ({}, {"label": None}, "`label` names no column"),
        ({}, {"modalities": ["picture", "text"]}, "`modalities` must map columns to their kinds"),
        ({}, {"modalities": {"picture": None, "text": "text"}}, r"`modalities\['picture'\]` must be a kind or a list"),
        ({}, {"id_column": 0}, "A column is given by its name, got 0"),
        ({}, {"test_share": "a"}, "`test_share` 'a' must be numbers above 0"),
        ({}, {"label": []}, "`label` names no column"),
        ({}, {"missing": "keep"}, "`missing` must be one of stop, drop, fill, got 'keep'"),
        ({}, {"on_bad_sample": "drop"}, "on_bad_sample must be one of"),
        (
            {},
            {"test_share": 0.95},
            "`validation_share` 0.1 and `test_share` 0.95 must be numbers above 0, and together below 1",
        ),
        ({"label": ["a", *["b"] * 28, None]}, {}, "sample '29' .* bad 'label': row 29 .*: the label is missing"),
        ({"label": [0.5] * 29 + [float("inf")]}, {}, "sample '29' .*: the label is infinite"),
        ({"n": [*range(29), 3]}, {"id_column": "n"}, "the id '3' in column 'n' is in row 3 and again in row 29"),
        ({"n": [*range(29), None]}, {"id_column": "n"}, "'n' has no id in row 29"),
        ({"n": [0.5] * 30}, {"id_column": "n"}, "the column 'n' holds double; it must hold texts or whole numbers"),
        ({"text": [0.5] * 30}, {}, "sample '0' .* bad 'text': row 0 .*a text must be a string, got float: 0.5"),
        ({"text": [["a"]] * 30}, {}, "a text must be a string, got list"),
        ({"picture": [3] * 30}, {}, "row 0 .*it holds '3', which is neither a path nor the bytes of a file"),
        ({"picture": ["https://a.org/x.png"] * 30}, {}, "'https://a.org/x.png' is an address; .*download them"),
        ({"picture": ["data:image/png;base64,xx"] * 30}, {}, "is an address"),
        ({"picture": ["\0"] * 30}, {}, "there is no file"),
        ({"s": ["train"] * 29 + ["holdout"]}, {"split_column": "s"}, "'s' holds 'holdout'; known splits are train"),
        ({"s": ["train"] * 29 + [""]}, {"split_column": "s"}, "'s' has no split in the rows 29"),
        ({"s": ["train"] * 29 + ["tr"]}, {"split_column": "s"}, "two names for one split, 'train' and 'tr'"),
        ({"s": ["test"] * 30}, {"split_column": "s"}, "has no training samples; its splits are test"),
    ],
)
def test_what_does_not_fit_is_refused(rows, change, options, message):
    with pytest.raises(ValueError, match=message):
        load(rows | change, **options)


def test_classes_that_training_lacks_are_bad_samples(rows):
    rows = rows | {
        "split": ["train"] * 10 + ["dev"] * 10 + ["test"] * 10,
        "label": ["a", "b"] * 12 + ["z", "a", "b"] * 2,
    }
    with pytest.raises(SampleError, match=r"sample '24' of split 'test' .*no training sample is of its class 'z'"):
        load(rows, split_column="split")
    raw = load(rows, split_column="split", on_bad_sample="skip")
    assert raw.label_names == ["a", "b"]
    assert [x.sample_id for x in raw.bad_samples] == ["24", "27"]
    assert [len(raw.splits[split]) for split in SPLITS] == [10, 10, 8]


def test_splits_of_a_data_set_are_kept_and_the_missing_one_is_drawn(rows):
    table = Dataset.from_dict(rows)
    raw = load(DatasetDict({"training": table.select(range(20)), "valid": table.select(range(20, 30))}))
    assert list(raw.splits) == ["train", "validation", "test"]
    assert raw.splits["validation"]["id"][:] == [f"valid-{row}" for row in range(10)]
    assert raw.splits["validation"]["text"][:] == rows["text"][20:]
    assert len(raw.splits["test"]) == 4
    assert {x.split("-")[0] for x in raw.splits["test"]["id"]} == {"training"}
    for names, message in (
        (("train", "unsupervised"), "has the unknown splits 'unsupervised'; known are train"),
        (("dev", "valid"), "two names for one split, 'dev' and 'valid'"),
        (("validation", "test"), "has no training samples"),
    ):
        with pytest.raises(ValueError, match=message):
            load(DatasetDict(dict.fromkeys(names, table)))
    with pytest.raises(ValueError, match=r"\(split 'test'\) has no column 'label'"):
        load(DatasetDict({"train": table, "test": table.remove_columns("label")}))
    unlabelled = table.remove_columns("label").add_column("label", [None] * NUM_ROWS)
    with pytest.raises(ValueError, match=r"no sample of split 'test' is left\. The first .*: the label is missing"):
        load(DatasetDict({"train": table, "test": unlabelled}), on_bad_sample="skip")


def test_groups_stay_together_and_ids_may_be_a_modality(rows):
    rows = rows | {"person": [f"p{row // 3}" for row in range(NUM_ROWS)], "label": ["a", "b", None] * 10}
    raw = load(rows, group_column="person", id_column="text", on_bad_sample="skip")
    assert len(raw.bad_samples) == 10
    people = [{int(row["text"].split()[-1]) // 3 for row in split} for split in raw.splits.values()]
    assert sum(map(len, people)) == len(set().union(*people)) == 10
    assert all(row["id"] == row["text"] for row in raw.splits["train"])
    with pytest.raises(ValueError, match="the group 'p0' is in both 'train' and 'test'"):
        load(rows | {"s": ["train", "test", "dev"] * 10}, group_column="person", split_column="s")
    with pytest.raises(ValueError, match="'person' has no group in the rows 29"):
        load(rows | {"person": [*rows["person"][:29], None]}, group_column="person")


def test_rows_to_predict_are_read_without_labels(rows):
    rows["picture"][3], rows["text"][5] = "nowhere.png", ""
    table = Dataset.from_dict(rows)
    kept, bad = load_rows(DatasetDict({"one": table.select(range(10)), "two": table.select(range(10, 30))}), KINDS_OF)
    assert kept.column_names == ["id", "picture", "text"]
    assert kept["text"][:] == [rows["text"][row] for row in range(NUM_ROWS) if row not in (3, 5)]
    assert kept["id"][8:] == [f"two-{row}" for row in range(20)]
    assert [(x.sample_id, x.field) for x in bad] == [("one-3", "picture"), ("one-5", "text")]
    filled, bad = load_rows(table, KINDS_OF, missing="fill")
    assert filled["text"][filled["id"][:].index("5")] is None
    assert [x.sample_id for x in bad] == ["3"]
    with pytest.raises(ValueError, match="The column 'id' cannot be a modality"):
        load_rows(table.rename_column("text", "id"), {"id": "text"})
    with pytest.raises(ValueError, match=r"No row of the data set can be used\. The first, 0: picture: .*nowhere") as e:
        load_rows(table.select([3]), KINDS_OF)
    assert "on_bad_sample" not in str(e.value)  # which is no option of predictions


def test_vectors_to_predict_are_as_long_as_the_models():
    vectors = [[1.0] * 6] * 3 + [[1.0, 2.0, 3.0]]  # of most rows, two that stand for one
    kept, bad = load_rows(Dataset.from_dict({"v": vectors}), {"v": "array"}, feature_sizes={"v": 3})
    assert kept["id"][:] == ["3"]
    assert {str(x.reason).partition(": ")[2] for x in bad} == {"its vectors have 6 numbers, the model takes 3"}


@pytest.mark.parametrize("name", ["labels", "features", "fill_missing", "top_k", "self", ".a", "a/b", "a\\b"])
def test_names_that_no_modality_can_have(rows, name):
    with pytest.raises(ValueError, match=r"cannot be called so: .* Rename it, or the column"):
        load({**rows, name: rows["text"]}, {"picture": "image", name: "text"})


def test_a_class_that_groups_keep_from_training(rows):
    with pytest.raises(SampleError, match=r"training sample is of its class 'b', since drawn splits keep .* 'g' tog"):
        load(rows | {"g": rows["label"]}, group_column="g", split_seed=0)
