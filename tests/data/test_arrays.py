"""Files of arrays: every layout gives the arrays that were written, bad ones are refused by file and field."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy._core.multiarray import _reconstruct

from fl_i2moe.cache import build_cache
from fl_i2moe.cache.batching import FeatureRows
from fl_i2moe.cache.fitting import fit_encoders
from fl_i2moe.data.array_pickle import read_array_pickle
from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.raw import SampleError

N = 20
SPLIT = np.array(["train"] * 12 + ["val"] * 4 + ["test"] * 4)


def make_fields(seed=0, **changes):
    """A pooled modality, one with a mask, and labels of three classes; a change to None takes a field out."""
    rng = np.random.default_rng(seed)
    fields = {
        "lab": rng.normal(size=(N, 3)).astype(np.float32),
        "notes": rng.normal(size=(N, 4, 2)),
        "notes_mask": np.arange(4) < rng.integers(1, 5, (N, 1)),
        "labels": np.arange(N) % 3,
        "split": SPLIT,
        "ids": np.array([f"patient-{i}" for i in range(N)]),
    }
    return {name: x for name, x in {**fields, **changes}.items() if x is not None}


@pytest.fixture
def write(tmp_path):
    def save(**changes):
        path = tmp_path / "arrays.npz"
        np.savez(path, **make_fields(**changes))
        return path

    return save


def arrays_of(data, name):
    """Split → the sequences as they were written."""
    size = data.feature_sizes[name]
    return {
        split: [np.frombuffer(x, np.float32).reshape(-1, size) for x in rows[name]]
        for split, rows in data.splits.items()
    }


def check_same(data, fields, names=("lab", "notes")):
    """Against a loop over the samples of each split."""
    rows_of = {"train": range(12), "validation": range(12, 16), "test": range(16, 20)}
    for name in names:
        found = arrays_of(data, name)
        for split, rows in rows_of.items():
            for array, row in zip(found[split], rows, strict=True):
                expected = np.atleast_2d(fields[name][row]).astype(np.float32)
                if f"{name}_mask" in fields:
                    expected = expected[np.asarray(fields[f"{name}_mask"][row], bool)]
                np.testing.assert_array_equal(array, expected)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_npz_gives_every_sample_what_was_written(write):
    data = load_arrays(write())
    fields = make_fields()
    check_same(data, fields)
    assert data.modalities == {"lab": "array", "notes": "array"}
    assert data.problem_type == "single_label_classification"
    assert data.label_names == ["0", "1", "2"]
    assert list(data.splits["validation"]["labels"]) == [0, 1, 2, 0]
    assert list(data.splits["test"]["id"]) == [f"patient-{i}" for i in range(16, 20)]


def test_parquet_takes_sequences_of_any_length(tmp_path):
    fields = make_fields()
    lengths = fields["notes_mask"].sum(axis=1)
    notes = [fields["notes"][i, :length].tolist() for i, length in enumerate(lengths)]
    columns = {"lab": fields["lab"].tolist(), "notes": notes, "labels": fields["labels"], "split": SPLIT}
    table = pa.table(columns | {"id": fields["ids"]})
    pa.parquet.write_table(table, tmp_path / "arrays.parquet", row_group_size=7)
    data = load_arrays(tmp_path / "arrays.parquet")
    check_same(data, fields)
    assert list(data.splits["test"]["id"]) == [f"patient-{i}" for i in range(16, 20)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_mosi_pickle(tmp_path, protocol):
    """As MultiBench publishes it: splits, (n, 1, 1) labels, ids in parts, infinite numbers in the audio."""
    rng = np.random.default_rng(0)
    content, sizes = {}, {"train": 8, "valid": 3, "test": 4}
    for split, size in sizes.items():
        content[split] = {
            "vision": rng.normal(size=(size, 5, 3)).astype(np.float32),
            "audio": rng.normal(size=(size, 5, 2)),
            "text": rng.normal(size=(size, 5, 4)).astype(np.float32),
            "labels": rng.uniform(-3, 3, (size, 1, 1)),
            "id": np.array([[f"clip{split}", str(i), "2.5"] for i in range(size)], object),
        }
    content["train"]["audio"][2, 1, 1] = -np.inf
    path = tmp_path / "mosi.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(SampleError, match=r"cliptrain_2_2.5.*train.*audio.*NaN or infinite.*mosi.pkl"):
        load_arrays(path)
    data = load_arrays(path, replace_non_finite=True)
    assert list(data.modalities) == ["vision", "audio", "text"]
    assert data.problem_type == "regression"
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 8, "validation": 3, "test": 4}
    assert arrays_of(data, "audio")["train"][2][1, 1] == 0
    np.testing.assert_allclose(
        np.array(data.splits["validation"]["labels"]), content["valid"]["labels"][:, 0], rtol=1e-6
    )
    binary = load_arrays(path, replace_non_finite=True, label_threshold=0, modalities=["text", "audio"])
    assert list(binary.modalities) == ["text", "audio"]
    assert list(binary.splits["test"]["labels"]) == (content["test"]["labels"][:, 0, 0] > 0).astype(int).tolist()
    skipped = load_arrays(path, on_bad_sample="skip")
    assert [error.sample_id for error in skipped.bad_samples] == ["cliptrain_2_2.5"]
    assert len(skipped.splits["train"]) == 7


def test_names_that_end_with_their_split(tmp_path):
    fields = make_fields()
    cut = {}
    for end, rows in (("tr", slice(0, 16)), ("te", slice(16, 20))):
        cut |= {f"{name}_{end}": fields[name][rows] for name in ("lab", "notes", "labels")}
    np.savez(tmp_path / "cut.npz", **cut)
    data = load_arrays(tmp_path / "cut.npz", validation_share=0.25)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    np.testing.assert_array_equal(np.concatenate(arrays_of(data, "lab")["test"]), fields["lab"][16:])
    assert any("validation: 4 of the training samples" in note for note in data.notes)


def test_splits_by_seed_are_a_partition_and_the_same_again(write):
    path = write(split=None)
    drawn = [load_arrays(path, test_share=0.3, split_seed=seed).splits for seed in (1, 1, 2)]
    ids = [{split: list(rows["id"]) for split, rows in splits.items()} for splits in drawn]
    assert ids[0] == ids[1] != ids[2]
    assert {split: len(x) for split, x in ids[0].items()} == {"train": 12, "validation": 2, "test": 6}
    assert sorted(chain.from_iterable(ids[0].values())) == sorted(make_fields()["ids"].tolist())


@pytest.mark.parametrize(
    ("labels", "problem", "names"),
    [
        (np.arange(N) % 2 == 0, "single_label_classification", ["0", "1"]),
        (np.array(["ill", "well"])[np.arange(N) % 2], "single_label_classification", ["ill", "well"]),
        (np.arange(N)[:, None] % 4 * 10, "single_label_classification", ["0", "10", "20", "30"]),
        ((np.arange(2 * N).reshape(N, 2) % 3 == 0).astype(float), "multi_label_classification", None),
        (np.linspace(-3, 3, N), "regression", ["labels"]),
        (np.linspace(-3, 3, 2 * N).reshape(N, 2), "regression", ["labels 0", "labels 1"]),
    ],
)
def test_the_task_is_what_the_labels_look_like(write, labels, problem, names):
    data = load_arrays(write(labels=labels))
    assert data.problem_type == problem
    assert names is None or data.label_names == names
    found = np.concatenate([np.array(rows["labels"]) for rows in data.splits.values()])
    if problem == "single_label_classification":
        assert [data.label_names[x] for x in found] == [
            str(x) if labels.dtype.kind == "U" else str(int(x)) for x in labels.ravel()
        ]
    else:
        np.testing.assert_allclose(found, labels.reshape(N, -1), rtol=1e-6)


def test_zero_vectors_as_padding(write):
    notes = make_fields()["notes"].copy()
    notes[0, :2] = 0  # in front: the gap is closed
    notes[1] = 0  # nothing else: one is kept
    data = load_arrays(write(notes=notes, notes_mask=None), mask_zero_vectors=True)
    first, second, third = arrays_of(data, "notes")["train"][:3]
    np.testing.assert_array_equal(first, notes[0, 2:].astype(np.float32))
    np.testing.assert_array_equal(second, np.zeros((1, 2), np.float32))
    assert third.shape == (4, 2)


# --- bad input --------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lab": RNG.normal(size=(N - 1, 3))}, "'lab' has 19 samples, 'labels' has 20"),
        ({"lab": RNG.normal(size=(1, 3))}, "'lab' has 1 samples"),
        ({"notes_mask": np.ones((N, 3))}, "'notes_mask' must be"),
        ({"notes_mask": np.full((N, 4), 2)}, "'notes_mask' must be"),
        ({"labels": None}, "no labels: there is no field 'labels', its fields are lab"),
        ({"lab": None}, "at least two modalities, found \\['notes'\\]"),
        ({"split": np.array(["train"] * 19 + ["holdout"])}, "'split' holds 'holdout'; known splits are train"),
        ({"split": np.array(["test"] * 10 + ["val"] * 10)}, "no training samples"),
        ({"ids": np.zeros(N, int)}, "id '0' occurs twice"),
        ({"labels": np.zeros(N, int)}, "two different classes"),
        ({"labels": np.arange(N)}, "every sample is a class of its own"),
        ({"labels": np.full((N, 2), "a")}, "'labels' has several texts"),
        ({"label_names": np.array(["a", "b"])}, "2 label names take 0 … 1\\."),
        ({"lab": np.array([{}] * N, object)}, "'lab' is no plain array"),
        ({"labels": np.zeros((N, 2, 2))}, r"'labels' has the shape \(20, 2, 2\); labels are \(N,\) or \(N, C\)"),
        ({"labels": np.zeros((N, 0))}, r"'labels' has the shape \(20, 0\)"),
    ],
)
def test_bad_fields_are_named(write, changes, message):
    with pytest.raises(ValueError, match=f"arrays.npz.*{message}"):
        load_arrays(write(**changes))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"lab": np.full((N, 3), "x")}, {"modalities": ["lab", "notes"]}, "'lab' holds <U1; a modality is an array"),
        ({"lab": np.full((N, 3), 1j)}, {"modalities": ["lab", "notes"]}, "'lab' holds complex128"),
        ({"lab": np.zeros(N)}, {"modalities": ["lab", "notes"]}, r"'lab' has the shape \(20,\).*\(N, 1\)"),
        ({}, {"modalities": ["lab", "pulse"]}, r"no \['pulse'\]; its fields are lab"),
        ({}, {"modalities": ["lab", "lab"]}, "twice"),
        ({}, {"modalities": ["lab", "labels"]}, "cannot be modalities"),
        ({}, {"label_field": "diagnosis"}, "'diagnosis'"),
        ({}, {"split_field": "fold"}, "'fold'"),
        ({}, {"id_field": "patient"}, "'patient'"),
        ({}, {"problem_type": "multi_label_classification"}, "does not fit multi_label"),
        ({"labels": np.linspace(0, 1, N)}, {"problem_type": "single_label_classification"}, "whole numbers"),
        # as 64-bit numbers they would all be the same one
        ({"labels": np.arange(N) % 3 * 1e30}, {"problem_type": "single_label_classification"}, "64 bits at most"),
        ({"split": None}, {"test_share": 0.0}, "no test samples"),
        ({"split": None}, {"test_share": 0.99}, "no test samples"),
    ],
)
def test_bad_options_are_named(write, changes, options, message):
    with pytest.raises(ValueError, match=message):
        load_arrays(write(**changes), **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none(write, value):
    notes = make_fields()["notes"].copy()
    notes[13, 0, 1] = value
    path = write(notes=notes)
    with pytest.raises(SampleError, match=r"'patient-13' of split 'validation' has a bad 'notes'.*arrays.npz"):
        load_arrays(path)
    left = load_arrays(path, on_bad_sample="skip")
    assert "patient-13" not in left.splits["validation"]["id"]
    assert len(left.splits["validation"]) == 3
    masked = make_fields()["notes_mask"].copy()
    masked[13] = [False, True, True, True]
    assert len(load_arrays(write(notes=notes, notes_mask=masked)).splits["validation"]) == 4  # behind the mask
    masked[13] = False
    with pytest.raises(SampleError, match="no feature that is not masked"):
        load_arrays(write(notes=notes, notes_mask=masked))
    with pytest.raises(SampleError, match="bad 'labels'"):
        load_arrays(write(labels=np.where(np.arange(N) == 3, value, np.linspace(0, 1, N))))


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.pkl"])
def test_files_that_are_none(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"{name} is not there"):
        load_arrays(path)
    path.write_bytes(b"these are no arrays")
    with pytest.raises(ValueError, match=f"{name} is no"):
        load_arrays(path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"'\.csv'; files of arrays are"):
        load_arrays(tmp_path / "a.csv")


def test_archives_that_hold_something_else(write):
    path = write()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"arrays.npz: 'readme.txt' is no array"):
        load_arrays(path)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 5)}"  # 200 TB
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lab.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"arrays.npz: 'lab' "):
        load_arrays(path)


def test_missing_ids(tmp_path):
    columns = {"lab": [[1.0]] * 6, "notes": [[1.0]] * 6, "labels": [0, 1] * 3, "id": ["a", "b", None, "d", "e", "f"]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: 'id' has no id in the rows 2\."):
        load_arrays(tmp_path / "a.parquet")


def test_ragged_vectors_in_parquet(tmp_path):
    table = pa.table({"lab": [[1.0, 2.0], [1.0]], "notes": [[1.0], [2.0]], "labels": [0, 1]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: vectors of the column 'lab' have different lengths"):
        load_arrays(tmp_path / "a.parquet")


# --- pickles ----------------------------------------------------------------------------------------------------------


class Command:
    def __reduce__(self):
        return os.system, ("touch it-ran",)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Command(), "system"),
        ({"train": {"vision": Command()}}, "system"),
        ({"a": np.array([Command()], object)}, "system"),
        ({"a": torch.zeros(2)}, "torch"),
        ({"a": np.load}, "numpy"),
        ({"a": np.zeros(2, "f4,i4")}, "V8"),
        ({"a": np.array(["2020-01-01"], "M8[D]")}, "M8"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content, named, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=rf"a\.pkl holds .*{named}.*nothing was loaded"):
        read_array_pickle(tmp_path / "a.pkl")
    assert not (tmp_path / "it-ran").exists()


def test_crafted_pickles_reach_nothing(tmp_path):
    """Programs that no `pickle.dump` writes: attributes of the reader's own functions, object arrays from bytes."""
    programs = [
        b"cnumpy._core.multiarray\nscalar\n(N}X\x0c\x00\x00\x00__defaults__)stb.",  # sets an attribute
        b"cnumpy\ndtype\n}X\x05\x00\x00\x00dtypeK\x01sb.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(VO\ntRVabcdefgh\ntR.",  # an object at a made-up address
        b"cfl_i2moe.data.array_pickle\nread_array_pickle\n.",
        b"c__builtin__\neval\n(V1\ntR.",
        b"cnumpy\ndtype\n.",
    ]
    for program in programs:
        (tmp_path / "a.pkl").write_bytes(program)
        with pytest.raises(ValueError, match=r"a\.pkl"):
            load_arrays(tmp_path / "a.pkl")


def length(count):
    return struct.pack("<Q", count)


class EmptyTexts:
    """2³⁴ texts of no bytes."""

    def __reduce__(self):
        return _reconstruct, (np.ndarray, (0,), b"b"), (1, (2**34,), np.dtype("U0"), False, b"")


def nested(depth, width):
    """A list of `width` times the same list, `depth` deep."""
    found = [0] * width
    for _ in range(depth - 1):
        found = [found] * width
    return found


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"]r\xff\xff\xff?.", "asks for 1,073,741,823 places at byte 1, and has 7 bytes"),  # in the memo
        (b"]p1073741823\n.", "asks for 1,073,741,823 places"),
        (b"\x80\x04\x95" + length(2**36) + b"].", "asks for 68,719,476,736 places"),  # a frame
        (b"\x80\x04\x8e" + length(2**36) + b"x.", "only 2 remain"),
        (b"\x80\x05\x96" + length(2**36) + b"x.", "only 2 remain"),
        (b"\x80\x04\x8d" + length(2**36) + b"x.", "only 2 remain"),
        (b"T\xff\xff\xff\x7fx.", "only 2 remain"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fx.", "not enough data"),
        (b"cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR.", "2,147,483,647 bytes that it does not have"),
        (b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.", "2,147,483,647 bytes that it does not have"),
        (pickle.dumps(EmptyTexts()), "unfolds to more than"),
        (pickle.dumps({"a": nested(9, 10)}), "unfolds to more than"),
        (pickle.dumps({"a": [np.zeros(10**5, np.uint8)] * 10**4}), "unfolds to more than"),
        (b"(" * 10**5 + b"t" * 10**5 + b".", "recursion"),
        (b"I" + b"9" * 10**5 + b"\n.", "digits"),
    ],
)
def test_a_small_pickle_takes_no_large_memory(tmp_path, program, message):
    (tmp_path / "a.pkl").write_bytes(program)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"a\.pkl .*{message}"):
            read_array_pickle(tmp_path / "a.pkl")
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


dtypes = st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes(), hnp.unicode_string_dtypes())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_side=0))), st.integers(0, 5), st.booleans())
def test_what_numpy_pickles_comes_back(tmp_path, array, protocol, transposed):
    array = array.T if transposed else array
    content = {"a": [array, (1, "x", None, b"\xff", {2.5})], "scalar": array.reshape(-1)[0] if array.size else 0}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_array_pickle(tmp_path / "a.pkl")
    assert found["a"][0].dtype == array.dtype
    np.testing.assert_array_equal(found["a"][0], array)
    np.testing.assert_array_equal(found["scalar"], content["scalar"])
    assert found["a"][1] == content["a"][1]


# --- into the feature cache -------------------------------------------------------------------------------------------


def test_the_cache_holds_standardised_arrays(write, tmp_path):
    fields = make_fields()
    fields["lab"][:, 1] = 7  # the same everywhere
    data = load_arrays(write(lab=fields["lab"]))
    encoders = fit_encoders(data)
    cache = build_cache(data, encoders, tmp_path / "cache", num_workers=0, progress=False, shard_size=5)
    assert cache.modalities["notes"]["kind"] == "array"
    assert "notes" not in cache.splits["train"].column_names  # not kept twice
    train = fields["notes"][:12][fields["notes_mask"][:12]]
    batch = FeatureRows(cache.splits["test"], ["lab", "notes"])[[3, 0]]
    for place, row in enumerate((19, 16)):
        length = fields["notes_mask"][row].sum()
        expected = (fields["notes"][row, :length] - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(batch["features"]["notes"][place, :length], expected, rtol=2e-3, atol=2e-3)
        assert batch["feature_masks"]["notes"][place].sum() == length
    assert not batch["special_masks"]["notes"].any()
    assert (batch["features"]["lab"][:, :, 1] == 0).all()
    identity = cache.modalities["notes"]["encoder"]
    np.testing.assert_allclose(identity["mean"], train.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(identity["scale"], train.std(axis=0), rtol=1e-5)


def test_as_they_are_and_too_large_for_float16(write, tmp_path):
    lab = make_fields()["lab"]
    data = load_arrays(write())
    cache = build_cache(data, fit_encoders(data, False), tmp_path / "cache", num_workers=0, progress=False)
    found = FeatureRows(cache.splits["train"], ["lab"])[list(range(12))]["features"]["lab"]
    np.testing.assert_array_equal(found[:, 0], lab[:12].astype(np.float16))
    lab[2, 0] = 1e6
    large = load_arrays(write(lab=lab))
    with pytest.raises(SampleError, match=r"patient-2.*beyond float16"):
        build_cache(large, fit_encoders(large, False), tmp_path / "other", num_workers=0, progress=False)
    kept = build_cache(large, fit_encoders(large), tmp_path / "standard", num_workers=0, progress=False)
    with pytest.raises(ValueError, match=r"data\.splits"):
        build_cache(data, fit_encoders(data), kept.path, num_workers=0, progress=False)
