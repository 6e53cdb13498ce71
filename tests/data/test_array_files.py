"""Tables with gaps keep the types that they were written with, what is missing is a bad sample, no name is twice."""

import pickle
import zipfile
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.raw import SampleError

N = 60
ROWS = [i for i in range(N) if i % 3 != 2]  # that have a label
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
BIG = 1114679353714016256  # beyond 2⁵³


def gaps(values):
    return [None if i % 3 == 2 else values[i % len(values)] for i in range(N)]


def fields(**changes):
    rng = np.random.default_rng(0)
    vectors = {"a": rng.normal(size=(N, 3)), "b": rng.normal(size=(N, 2))}
    return {**vectors, "labels": np.arange(N) % 2, "ids": [f"p{i}" for i in range(N)], **changes}


def table(**changes):
    columns = fields(**changes)
    return pa.table({name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in columns.items()})


@pytest.fixture
def load(tmp_path):
    """Loads columns from a .parquet, or fields from a pickle, and leaves bad samples out."""

    def write(content, **options):
        path = tmp_path / ("a.parquet" if isinstance(content, pa.Table) else "a.pkl")
        if isinstance(content, pa.Table):
            pa.parquet.write_table(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
        return load_arrays(path, **{"on_bad_sample": "skip", **options})

    return write


def labels_by_id(data):
    """Sample's id → its label, by name where it is a class."""
    names = data.label_names if data.problem_type == SINGLE else None
    return {
        row["id"]: names[row["labels"]] if names else row["labels"] for split in data.splits.values() for row in split
    }


# --- labels with gaps -------------------------------------------------------------------------------------------------

NUMBERS, BITS = ["0", "1"], [[1, 0, 1], [0, 1, 1]]
CHUNKS = [pa.array(gaps([0, 1])[:20], pa.int64()), pa.nulls(1, pa.int64()), pa.array(gaps([0, 1])[21:], pa.int64())]
COLUMNS = {
    "int64": (pa.array(gaps([0, 1])), NUMBERS),
    "int8": (pa.array(gaps([0, 1]), pa.int8()), NUMBERS),
    "beyond 2^53": (pa.array(gaps([BIG, BIG + 1])), [str(BIG), str(BIG + 1)]),
    "uint64": (pa.array(gaps([2**64 - 2, 2**64 - 1]), pa.uint64()), [str(2**64 - 2), str(2**64 - 1)]),
    "bool": (pa.array(gaps([False, True])), NUMBERS),
    "string": (pa.array(gaps(["x", "y"])), ["x", "y"]),
    "large_string": (pa.array(gaps(["x", "y"]), pa.large_string()), ["x", "y"]),
    "string_view": (pa.array(gaps(["x", "y"]), pa.string_view()), ["x", "y"]),
    "binary": (pa.array(gaps([b"x", b"y"])), ["x", "y"]),
    "dictionary": (pa.array(gaps(["x", "y"])).dictionary_encode(), ["x", "y"]),
    "dictionary of numbers": (pa.array(gaps([5, 7])).dictionary_encode(), ["5", "7"]),
    "decimal": (pa.array(gaps([Decimal(0), Decimal(1)]), pa.decimal128(20, 0)), NUMBERS),
    "chunks": (pa.chunked_array(CHUNKS), NUMBERS),
    "first chunk null": (pa.chunked_array([pa.nulls(0, pa.int64()), *CHUNKS]), NUMBERS),
    "extension": (pa.array(gaps([0, 1]), pa.int8()).cast(pa.bool8()), NUMBERS),
    "lists": (pa.array(gaps(BITS)), None),
    "lists of one size": (pa.array(gaps(BITS), pa.list_(pa.int64(), 3)), None),
    "lists of bool": (pa.array(gaps([[True, False, True], [False, True, True]])), None),
    "null elements": (pa.array([[1, None, 1] if x is None else x for x in gaps(BITS)]), None),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_labels_with_gaps_keep_their_type(load, name):
    column, names = COLUMNS[name]
    with pytest.raises(SampleError, match=r"'p2' of split .* has a bad 'labels': it is missing"):
        load(table(labels=column), on_bad_sample="stop")
    data = load(table(labels=column))
    values = BITS if names is None else names
    assert data.problem_type == (MULTI if names is None else SINGLE)
    assert names is None or data.label_names == names
    assert labels_by_id(data) == {f"p{i}": values[i % 2] for i in ROWS}
    assert [(error.field, error.reason) for error in data.bad_samples] == [("labels", "it is missing")] * 20


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pd.array(gaps([0, 1]), "Int64"), NUMBERS),
        (pd.array(gaps([False, True]), "boolean"), NUMBERS),
        (pd.array(gaps(["x", "y"]), "string"), ["x", "y"]),
        (pd.Categorical(gaps(["x", "y"])), ["x", "y"]),
        (pd.Series(gaps([0, 1]), dtype=object), NUMBERS),
    ],
    ids=["Int64", "boolean", "string", "category", "object"],
)
def test_columns_of_pandas(load, column, names):
    frame = pd.DataFrame({name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in fields().items()})
    frame["labels"] = column
    data = load(pa.Table.from_pandas(frame))
    assert data.label_names == names
    assert labels_by_id(data) == {f"p{i}": names[i % 2] for i in ROWS}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (gaps([0, 1]), NUMBERS),
        (gaps(["x", "y"]), ["x", "y"]),
        (gaps([False, True]), NUMBERS),
        (np.array(gaps([0, 1]), object), NUMBERS),
        ([np.nan if x is None else x for x in gaps(["x", "y"])], ["x", "y"]),
        (np.array([np.nan if x is None else x for x in gaps([0, 1])], object), NUMBERS),
    ],
    ids=["numbers", "texts", "bool", "objects", "texts and NaN", "numbers and NaN"],
)
def test_pickles_with_gaps(load, labels, names):
    data = load(fields(labels=labels))
    assert data.problem_type == SINGLE
    assert labels_by_id(data) == {f"p{i}": names[i % 2] for i in ROWS}


def test_whole_numbers_as_floats_with_gaps_are_asked_about(load):
    """As pandas writes classes without a nullable type."""
    content = table(labels=pa.array(gaps([0.0, 1.0])))
    with pytest.raises(
        ValueError, match=r"'labels' has whole numbers with 20 gaps, stored as float64\. .*problem_type"
    ):
        load(content)
    assert labels_by_id(load(content, problem_type=SINGLE)) == {f"p{i}": str(i % 2) for i in ROWS}
    assert load(content, problem_type=REGRESSION).problem_type == REGRESSION
    assert load(table(labels=pa.array(gaps([0.5, 1.0])))).problem_type == REGRESSION


@pytest.mark.parametrize("kind", [pa.null(), pa.int64(), pa.string(), pa.list_(pa.int64())], ids=str)
def test_a_column_of_nothing(load, kind):
    with pytest.raises(ValueError, match=r"a\.parquet: no sample is left, the first is bad because: it is missing"):
        load(table(labels=pa.nulls(N, kind)))


def test_features_of_datasets(tmp_path):
    """Classes have the names, and the order, that the file says; -1 is no label."""
    types = {
        "a": List(Value("float32")),
        "b": Array2D((2, 2), "float32"),
        "labels": ClassLabel(names=["zeta", "alpha"]),
    }
    columns = {"a": [[1.0, 2.0]] * N, "b": np.zeros((N, 2, 2)).tolist(), "labels": [i % 3 - 1 for i in range(N)]}
    Dataset.from_dict(columns, Features(types)).to_parquet(tmp_path / "a.parquet")
    data = load_arrays(tmp_path / "a.parquet", on_bad_sample="skip")
    assert (data.label_names, len(data.bad_samples)) == (["zeta", "alpha"], 20)
    assert labels_by_id(data) == {str(i): ["zeta", "alpha"][i % 3 - 1] for i in range(N) if i % 3}


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": {"labels": {"_type": "Unheard"}}}}'])
def test_a_description_that_says_nothing(load, metadata):
    assert load(table().replace_schema_metadata({b"huggingface": metadata})).label_names == NUMBERS


@pytest.mark.parametrize("kind", [float, str])
def test_labels_have_one_type_in_all_splits(load, kind):
    parts = {"train": fields(), "val": fields(labels=(np.arange(N) % 2).astype(kind)), "test": fields()}
    with pytest.raises(ValueError, match="'labels' has labels of different types in different splits"):
        load({name: {key: x for key, x in part.items() if key != "ids"} for name, part in parts.items()})


# --- features with gaps -----------------------------------------------------------------------------------------------

VECTOR, PAIRS = [1, 2, 3], [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("good", "bad", "kind"),
    [
        (VECTOR, [1, None, 3], None),
        (VECTOR, None, None),
        (VECTOR, None, pa.list_(pa.float32(), 3)),
        (VECTOR, [None] * 3, pa.large_list(pa.int8())),
        (VECTOR, [], pa.list_(pa.float64())),
        (VECTOR, [1, None, 3], pa.list_(pa.dictionary(pa.int8(), pa.int64()))),
        (PAIRS, None, None),
        (PAIRS, [[1, 2], None], None),
        (PAIRS, [[1, 2], [None, 1]], None),
        (PAIRS, [], pa.list_(pa.list_(pa.float16()))),
        (PAIRS, [[], [1, 2]], None),
    ],
)
def test_a_vector_with_a_gap_is_a_bad_sample(load, good, bad, kind):
    column = pa.array([bad if i == 4 else good for i in range(N)], kind)
    with pytest.raises(SampleError, match=r"'p4' of split .* has a bad 'a'"):
        load(table(a=column), on_bad_sample="stop")
    data = load(table(a=column))
    assert [error.sample_id for error in data.bad_samples] == ["p4"]
    for split in data.splits.values():
        for row in split["a"]:
            np.testing.assert_array_equal(np.frombuffer(row, np.float32), np.ravel(good))


def test_missing_arrays_of_a_pickle_are_bad_samples(load):
    for shape in ((3,), (2, 3)):
        data = load(fields(a=[None if i == 4 else np.ones(shape) for i in range(N)]))
        assert [error.sample_id for error in data.bad_samples] == ["p4"]


@pytest.mark.parametrize(("good", "bad"), [(VECTOR, [1, None, 3]), (PAIRS, [[1, None], [3, 4]])])
def test_gaps_in_lists_of_a_pickle_are_bad_samples(load, good, bad):
    data = load(fields(a=[bad if i == 4 else good for i in range(N)]))
    assert [(error.sample_id, error.field) for error in data.bad_samples] == [("p4", "a")]
    data = load(fields(labels=[[1, 0, None] if i == 4 else BITS[i % 2] for i in range(N)]))
    assert ([error.sample_id for error in data.bad_samples], data.problem_type) == (["p4"], MULTI)


def test_tensors_are_sequences(load):
    tensors = np.arange(N * 6.0, dtype=np.float32).reshape(N, 2, 3)
    data = load(table(a=pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)))
    assert data.feature_sizes["a"] == 3
    np.testing.assert_array_equal(np.frombuffer(data.splits["train"]["a"][0], np.float32), tensors[0].ravel())


def test_columns_that_are_no_modality_are_left_alone(load):
    days = pa.array([0] * N, pa.date32())
    assert list(load(table(tokens=[[["x"]]] * N, day=days, more=[{"x": 1}] * N)).modalities) == ["a", "b"]


# --- ids and splits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([None if i == 5 else BIG + i for i in range(N)], r"'ids' has no id in the rows 5\."),
        ([None if i == 5 else f"p{i}" for i in range(N)], r"'ids' has no id in the rows 5\."),
        ([["clip", None if i == 5 else str(i)] for i in range(N)], r"'ids' has no id in the rows 5\."),
        ([float(i) for i in range(N)], "'ids' holds float64 .*; ids are texts or whole numbers"),
        ([np.nan if i == 5 else i for i in range(N)], "'ids' holds float64 .*; ids are texts or whole numbers"),
        ([i % 2 == 0 for i in range(N)], "'ids' holds bool"),
        ([{"a": i} for i in range(N)], "'ids' holds {'a': 0}"),
        (pa.array(range(N), pa.date32()), "'ids' holds datetime64"),
        (pa.nulls(N), "'ids' has no id in the rows 0, 1"),
        ([f"p{i % 30}" for i in range(N)], "the id 'p0' occurs twice"),
        (["x" * 5000 + str(i) for i in range(N)], "has the id 'x{40}' …; an id is a text of 1 to 1,000 characters"),
        (["" if i == 5 else str(i) for i in range(N)], "has the id ''"),
    ],
)
def test_what_is_no_id(load, ids, message):
    with pytest.raises(ValueError, match=rf"a\.parquet: .*{message}") as caught:
        load(table(ids=ids))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("ids", "first"),
    [
        (pa.array([BIG + i for i in range(N)]), str(BIG)),
        (pa.array([2**64 - 1 - i for i in range(N)], pa.uint64()), str(2**64 - 1)),
        (pa.array([Decimal(BIG + i) for i in range(N)], pa.decimal128(38, 0)), str(BIG)),
        (pa.array([Decimal(10**25 + i) for i in range(N)]), str(10**25)),
        (pa.array([f"p{i}" for i in range(N)]).dictionary_encode(), "p0"),
        (pa.array([bytes([i]) * 16 for i in range(N)], pa.uuid()), "00000000-0000-0000-0000-000000000000"),
    ],
)
def test_no_id_becomes_a_float(load, ids, first):
    data = load(table(ids=ids, split=["train"] * 40 + ["val"] * 10 + ["test"] * 10))
    assert data.splits["train"][0]["id"] == first


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, "1", *(f"p{i}" for i in range(N - 2))], "id '1' occurs twice"),
        ([2.5, *(f"p{i}" for i in range(N - 1))], r"holds texts and 2\.5 among them"),
        ([np.nan, *(f"p{i}" for i in range(N - 1))], "has no id in the rows 0"),
        ([("clip", None), *(("clip", i) for i in range(N - 1))], "has no id in the rows 0"),
        ([-1, *(2**63 + i for i in range(N - 1))], "more than 64 bits"),
        (["\ud83d", *(f"p{i}" for i in range(N - 1))], r"'ids' has '\\ud83d', which is no Unicode text"),
    ],
)
def test_mixed_ids(load, ids, message):
    with pytest.raises(ValueError, match=message):
        load(fields(ids=ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["\ud83d", "x"] * (N // 2)}, "'labels' has '.ud83d'"),
        ({"labels": [b"caf\xe9", b"caf\xe8"] * (N // 2)}, "'labels' has b'caf.xe9'"),
        ({"label_names": ["\ud83d", "x"]}, "'label_names' has '.ud83d'"),
        ({"\ud83d": np.ones((N, 2))}, "'names of fields' has '.ud83d'"),
    ],
)
def test_what_is_no_text(load, change, message):
    with pytest.raises(ValueError, match=rf"a\.pkl: {message}, which is no Unicode text"):
        load(fields(**change))


# --- names that are there twice ---------------------------------------------------------------------------------------

REST = ["train"] * 40 + ["test"] * 10


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([*REST, *["val"] * 5, *["dev"] * 5], "'split' has two names for one split, 'val' and 'dev'"),
        ([*REST, *["valid"] * 5, *["validation"] * 5], "two names for one split, 'valid' and 'validation'"),
        ([*REST, *["Test"] * 10], "two names for one split, 'test' and 'Test'"),
        ([*REST, None, *["val"] * 9], r"'split' has no split in the rows 50\."),
        (pa.nulls(N), "'split' has no split in the rows 0, 1"),
    ],
)
def test_splits_of_a_table(load, split, message):
    with pytest.raises(ValueError, match=rf"a\.parquet: .*{message}"):
        load(table(split=split))
    encoded = pa.array([*REST, *["val"] * 10]).dictionary_encode()
    assert len(load(table(split=encoded)).splits["validation"]) == 10


@pytest.mark.parametrize("names", [("val", "dev"), ("valid", "validation"), (b"val", "val"), ("Val", "val")])
def test_splits_of_a_pickle(load, names):
    with pytest.raises(ValueError, match=rf"a\.pkl has two names for one split, {names[0]!r} and {names[1]!r}"):
        load({"train": fields(), **{name: fields() for name in names}})


ENDS = {f"{name}_{end}": np.ones((N, 2)) for name in "ab" for end in ("train", "val")}
CUT = {**ENDS, "labels_train": np.arange(N) % 2, "labels_val": np.arange(N) % 2}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels_dev": np.arange(4)}, "'labels' has two names for one split, 'val' and 'dev'"),
        ({"labels_tr": np.arange(4)}, "'labels' has two names for one split, 'train' and 'tr'"),
        ({"a_dev": np.ones((N, 2))}, "two names for one split, 'labels_val' and 'a_dev'"),
        ({"labels": np.arange(N) % 2}, "has both 'labels' and 'labels_train'"),
    ],
)
def test_splits_of_an_npz(tmp_path, more, message):
    np.savez(tmp_path / "a.npz", **CUT)
    assert len(load_arrays(tmp_path / "a.npz").splits["validation"]) == N
    np.savez(tmp_path / "a.npz", **CUT, **more)
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        load_arrays(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_fields_that_are_there_twice(load, tmp_path):
    once = table()
    with pytest.raises(ValueError, match=r"a\.parquet has several fields of one name: 'labels'"):
        load(pa.table([*once.columns, once["labels"]], names=[*once.column_names, "labels"]))
    with pytest.raises(ValueError, match=r"a\.pkl has several fields of one name: '1'"):
        load({**fields(), 1: np.ones((N, 2)), "1": np.ones((N, 2))})
    np.savez(tmp_path / "a.npz", **CUT)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("a_val.npy", archive.read("a_val.npy"))
    with pytest.raises(ValueError, match=r"a\.npz has several fields of one name: 'a_val'"):
        load_arrays(tmp_path / "a.npz")


def test_a_folders_name_is_no_column(tmp_path):
    """As Hive has it."""
    folder = tmp_path / "c=1"
    folder.mkdir()
    pa.parquet.write_table(table(), folder / "a.parquet")
    assert list(load_arrays(folder / "a.parquet").modalities) == ["a", "b"]
