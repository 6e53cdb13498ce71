"""What is fitted to the training split, against scikit-learn and NumPy."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fl_i2moe.cache import build_cache
from fl_i2moe.cache.fitting import FITS, fit_encoders
from fl_i2moe.data.raw import RawDataset, SampleError
from fl_i2moe.model.kind import FittedKind
from fl_i2moe.model.kinds import KINDS


def table(rows, test=None, name="specs", **others):
    """Raw data of columns of a table, in a training and a test split."""
    columns = {name: Value("string"), **{other: Value("string") for other in others}}
    features = Features({"id": Value("string"), **columns, "labels": List(Value("float32"), length=2)})
    splits = DatasetDict()
    for split, cells in (("train", rows), ("test", rows[:1] if test is None else test)):
        samples = {"id": [f"{split}-{i}" for i in range(len(cells))], "labels": [[0.0, 1.0]] * len(cells)}
        samples[name] = [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]
        samples |= {other: [json.dumps(cell) for cell in values][: len(cells)] for other, values in others.items()}
        splits[split] = Dataset.from_dict(samples, features)
    modalities = dict.fromkeys(columns, "tabular")
    return RawDataset(splits, modalities, ["a", "b"], "multi_label_classification")


@pytest.fixture(scope="module")
def products():
    rng = np.random.default_rng(0)
    return [
        {
            "price": float(rng.lognormal(3, 1)),
            "größe": int(rng.integers(1, 60)) if rng.random() > 0.2 else None,
            "colour": str(rng.choice(["red", "green", "blue"])),
            "used": bool(rng.random() > 0.5),
            "maker": str(rng.choice(["A", "B"])) if rng.random() > 0.3 else None,
        }
        for _ in range(200)
    ]


def test_numbers_and_categories_are_what_scikit_learn_makes(products):
    """Each column has places of its own; what is missing in the training split has one, too."""
    encoder = fit_encoders(table(products))["specs"]
    found = encoder.encode(encoder.preprocess(products).inputs)
    assert found.feature_mask.all()
    assert not found.special_mask.any()

    def column(name):
        return np.array([[row[name]] for row in products], object)

    scaled = {name: StandardScaler().fit_transform(column(name).astype(float)) for name in ("price", "größe")}
    gaps = np.isnan(scaled["größe"])
    blocks = [
        scaled["price"],
        np.hstack([np.where(gaps, 0, scaled["größe"]), gaps]),
        *(OneHotEncoder(sparse_output=False).fit_transform(column(name)) for name in ("colour", "used", "maker")),
    ]
    expected = np.zeros((200, 5, sum(block.shape[1] for block in blocks)))
    start = 0
    for index, block in enumerate(blocks):
        expected[:, index, start : start + block.shape[1]] = block
        start += block.shape[1]
    assert (encoder.max_features, encoder.feature_size) == (5, 11)
    np.testing.assert_allclose(found.features, expected, atol=1e-6)


def test_a_row_from_the_identity_alone_equals_the_cached_features(products, tmp_path):
    """As plain JSON, and for values that the training split does not have."""
    new = [
        {"price": None, "größe": -1e3, "colour": "teal", "used": None, "maker": "C", "weight": 1},
        {"price": np.float32(2.5), "größe": float("nan"), "colour": " ", "used": np.bool_(True), "maker": "A"},
        {"price": 10**5, "größe": 7.0, "colour": "red", "used": 1, "maker": None},
    ]
    raw = table(products, test=[KINDS["tabular"].cell(row) for row in new])
    encoders = fit_encoders(raw)
    cache = build_cache(raw, encoders, tmp_path / "cache", num_workers=0, progress=False)
    identity = json.loads(json.dumps(cache.modalities["specs"]["encoder"]))
    again = KINDS["tabular"].encoder.from_identity(identity)
    assert again.identity() == identity
    prepared = again.preprocess(new)
    found = again.encode(prepared.inputs).features.half().numpy()
    rows = cache.splits["test"][:]
    np.testing.assert_array_equal(found, np.asarray(rows["specs_features"], np.float16))
    assert rows["specs_cells"] == [x["cells"] for x in prepared.annotations]

    first, second, third = found
    assert not first[[0, 2, 3, 4]].any()  # the mean, unknown or missing: nothing is known of them from training
    assert second[1, 2] == 1  # größe is missing
    assert not second[2].any()  # so is the colour, which is never missing in training
    used = encoders["specs"].preprocess([{**new[2], "used": True}]).inputs["features"][0, 3]
    np.testing.assert_array_equal(third[3], used)  # 1 is true
    assert third[4].argmax() == 10  # a missing maker is a category
    assert rows["specs_cells"][0][2] == ["colour", "teal (unknown)"]
    assert rows["specs_cells"][1][1] == ["größe", "missing"]
    assert rows["specs_cells"][2][2] == ["colour", "red"]


def test_columns_that_are_named_categorical_and_numbers_as_they_are():
    rows = [
        {"zip": 1, "mixed": "1", "day": "2024-05-03", "size": 10},
        {"zip": 2, "mixed": 2, "day": "2024-05-04", "size": 20},
    ]
    encoder = fit_encoders(table(rows), standardize=False, categorical=["zip", "mixed", "day"])["specs"]
    new = [{"zip": "1", "mixed": 1.0, "day": "2024-05-04", "size": 25}]
    found = encoder.preprocess(new).inputs["features"][0]
    expected = np.zeros((4, 7))
    expected[[0, 1, 2, 3], [0, 2, 5, 6]] = 1, 1, 1, 25
    np.testing.assert_array_equal(found, expected)


def test_what_was_guessed_is_said(products):
    rows = [{**row, "stars": i % 5, "serial": f"s{i}"} for i, row in enumerate(products)]
    notes = fit_encoders(table(rows))["specs"].notes
    assert notes[0] == (
        "specs: numbers price, größe, stars; categories colour (3), used (2), maker (2 and missing), serial (200)"
    )
    assert "stars has at most 20 different whole numbers" in notes[1]
    assert "serial never has the same value twice" in notes[2]
    wide = [{"code": f"c{i % 600}", **{f"n{j}": i * 0.5 for j in range(14)}} for i in range(700)]
    last = fit_encoders(table(wide))["specs"].notes[-1]
    assert "a sample takes 18 kB in the feature cache, most of it for the categories of code" in last


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}, {"a": "n/a"}], r"'a' of 'specs' holds numbers \(1\) and texts \('n/a'\): mend it, or name it in"),
        ([{"a": True}, {"a": 2}], r"booleans \(True\) and numbers \(2\)"),
        ([{"a": None, "b": 1}, {"a": " ", "b": 2}], "'a' of 'specs' is empty throughout"),
        ([{"a": "9,50"}, {"a": "-1.234,5"}], r"holds texts with a comma in each number \('9,50'\): write numbers with"),
        ([{"a": "2024-05-03"}, {"a": "03.05.2024 10:15"}], r"holds dates \('2024-05-03'\), which are not understood"),
        ([{"a": f"word {i}"} for i in range(1001)], "'a' of 'specs' has more than 1,000 different values"),
        (
            [{**{f"c{j}": f"{i % 999}" for j in range(5)}, "n": i} for i in range(999)],
            r"have 4,996 places together.*such as 'c0', 'c1', 'c2'",
        ),
        (["{}", "no json"], "no training sample has columns of 'specs'"),
    ],
)
def test_columns_that_cannot_be_fitted(rows, message):
    with pytest.raises(ValueError, match=message):
        fit_encoders(table(rows))


def test_a_categorical_column_that_is_not_there(products):
    with pytest.raises(ValueError, match=r"names 'color', which is no column of a table. Did you mean `colour`\?"):
        fit_encoders(table(products), categorical=["color"])


def test_samples_that_cannot_be_read_are_named_or_left_out(tmp_path):
    rows = [{"a": 1.0, "b": "x"}, {"a": 3.0, "b": "y"}, {"b": "x"}, "[1]", '{"a": Infinity, "b": "x"}']
    raw = table(rows)
    encoders = fit_encoders(raw)
    assert encoders["specs"].columns[0].mean == 2
    with pytest.raises(SampleError, match=r"sample 'train-2' .*bad 'specs': column 'a' is not there"):
        build_cache(raw, encoders, tmp_path / "a", num_workers=0, progress=False)
    cache = build_cache(raw, encoders, tmp_path / "b", num_workers=0, progress=False, on_bad_sample="skip")
    assert cache.splits["train"]["id"][:] == ["train-0", "train-1"]
    assert ["is not there" in cache.skipped[0]["reason"], "dictionary" in cache.skipped[1]["reason"]] == [True, True]
    assert "infinite" in cache.skipped[2]["reason"]


def test_modalities_with_the_same_columns_and_names_that_clash(products, tmp_path):
    raw = table(products, more=[{"price": row["größe"], "specs": "x"} for row in products])
    encoders = fit_encoders(raw)
    assert encoders["more"].columns[0].mean != encoders["specs"].columns[0].mean
    cache = build_cache(raw, encoders, tmp_path / "cache", num_workers=0, progress=False)
    assert cache.splits["test"][0]["more_cells"][1] == ["specs", "x"]
    clash = table(products, specs_cells=[{"a": 1, "b": "x"}] * 200)
    with pytest.raises(ValueError, match="needs the name 'specs_cells' for the modality 'specs': rename the other"):
        build_cache(clash, fit_encoders(clash), tmp_path / "clash", num_workers=0, progress=False)


def test_every_kind_that_is_fitted_has_its_fit():
    assert FITS.keys() == {name for name, kind in KINDS.items() if isinstance(kind, FittedKind)}
