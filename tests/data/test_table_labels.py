import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from fl_i2moe.data.table_labels import read_table_labels
from fl_i2moe.data.table_sources import Table
from fl_i2moe.data.tables import load_table

NUM_ROWS = 12


def table(split=None, features=None, holds_texts=False, **columns):
    return Table(split, "t", Dataset.from_dict(columns, features), (), holds_texts)


def read(values, label_type=None, separator=None, names=None, feature=None, holds_texts=False):
    features = None if feature is None else Features({"y": feature})
    return read_table_labels([table(None, features, holds_texts, y=values)], ["y"], label_type, separator, names)


def hot(lists, names):
    return [[float(name in own) for name in names] for own in lists]


@pytest.mark.parametrize(
    ("values", "options", "problem", "expected"),
    [
        (["b", "a", "b"] * 4, {}, "single", ["b", "a", "b"] * 4),
        ([3, 1, 3] * 4, {}, "single", [3, 1, 3] * 4),
        ([True, False] * 6, {}, "single", [True, False] * 6),
        ([0.5, 1.0, 2.0] * 4, {}, "regression", [0.5, 1.0, 2.0] * 4),
        ([1.0, 2.0] * 6, {"label_type": "class"}, "single", [1.0, 2.0] * 6),
        ([1.0, 2.0] * 6, {"label_type": "regression"}, "regression", [1.0, 2.0] * 6),
        ([True, False] * 6, {"label_type": "regression"}, "regression", [True, False] * 6),
        (["1.5", "2"] * 6, {"label_type": "regression"}, "regression", [1.5, 2.0] * 6),
        ([[0, 1, 1], [1, 0, 0]] * 6, {}, "multi", [[0, 1, 1], [1, 0, 0]] * 6),
        ([[0.5, 1], [1, 0]] * 6, {}, "regression", [[0.5, 1], [1, 0]] * 6),
        (list(range(150)) * 10, {}, "asked", "150 different ones in 1,500 rows, such as 0, 1, 2: if they are classes"),
        (list(range(25)) * 3, {}, "asked", "if amounts, label_type='regression'"),
        ([0.0, 1.0, 2.0] * 4, {}, "asked", r"decimal numbers, 3 different ones .* all whole \(0\.0, 1\.0, 2\.0\)"),
        ([f"t{i}" for i in range(1001)] * 3, {}, "asked", "1,001 different ones .* if they are classes, give"),
        ([f"t{i}" for i in range(25)] + ["t1"], {}, "asked", "if an id or a free text, name another column"),
    ],
)
def test_types_decide_what_labels_are(values, options, problem, expected):
    if problem == "asked":
        with pytest.raises(ValueError, match=f"t: the label column 'y' holds .*{expected}"):
            read(values, **options)
        return
    labels = read(values, **options)
    assert labels.problem.startswith(problem)
    assert not labels.is_missing.any()
    assert labels.values.tolist() == expected


def test_what_a_csv_file_writes_is_read_by_what_all_rows_hold():
    assert read(["1", " 2 ", "", "NA"], holds_texts=True).values[:2].tolist() == [1, 2]
    assert read(["1", " 2 ", "", "NA", "1"], holds_texts=True).is_missing.tolist() == [False, False, True, True, False]
    assert read(["a", "NA", "a", "NA"], holds_texts=True).values.tolist() == ["a", "NA", "a", "NA"]  # a class
    assert read(["01", "02", "01"], holds_texts=True).values.tolist() == ["01", "02", "01"]  # codes
    assert read(["1.5", "2", "nan"], holds_texts=True).problem == "regression"
    flags = read(["true", "False", ""], holds_texts=True)
    assert (flags.values[:2].tolist(), flags.names) == ([True, False], ["False", "True"])
    assert read(["true", "False", ""], holds_texts=True, names=["no", "yes"]).names == ["no", "yes"]
    long = [f"1234567890123456789{digit}" for digit in (0, 1, 0)]
    assert read(long, holds_texts=True).values.tolist() == long  # no number of 64 bits
    assert read(["1", "2", "1"]).values.tolist() == ["1", "2", "1"]  # texts elsewhere are meant as texts


def test_several_labels_in_lists_and_in_texts():
    lists = [["war", "drama"], ["drama"], [], ["comedy", "war"]] * 3
    names = ["comedy", "drama", "war"]
    expected = hot(lists, names)
    assert read(lists).names == names
    assert read(lists).values.tolist() == expected
    assert read([json.dumps(own) for own in lists]).values.tolist() == expected
    joined = read([" | ".join(own) + " |" for own in lists], separator="|")
    assert joined.names == names
    assert joined.values.tolist() == expected
    assert read(lists, names=["war", "x", "drama", "comedy"]).values.tolist() == hot(
        lists, ["war", "x", "drama", "comedy"]
    )
    numbers = [[2, 10], [2], [7]] * 4
    assert read(numbers).names == ["2", "7", "10"]
    assert read(numbers).values.tolist() == hot(numbers, [2, 7, 10])
    feature = List(ClassLabel(names=["p", "q", "r"]))
    assert read([[0, 1], [0, 1]] * 6, feature=feature).values.tolist() == [[1, 1, 0]] * 12
    assert read([["a"], None, ["b", None]] * 4).is_missing.tolist() == [False, True, True] * 4
    with pytest.raises(ValueError, match=r"t, row 1 .*'y' has the label 'b', which is none of `label_names`"):
        read([["a"], ["b"]], names=["a", "c"])
    with pytest.raises(ValueError, match=r"t, row 0 .*'y' holds \"\['a'\]\", which is no list as JSON writes it"):
        read(["['a']", "['b']"])
    with pytest.raises(ValueError, match="'y' holds texts such as 'a, b'; say by `label_separator`"):
        read(["a, b", "b"] * 6, label_type="multi_label")
    with pytest.raises(ValueError, match="lists, which are several labels and no one class"):
        read([["a"], ["b"]], label_type="class")
    with pytest.raises(ValueError, match="lists of double of 1, 2 items"):
        read([[0.5], [0.5, 1]])
    with pytest.raises(ValueError, match="`label_separator` is for a column of texts"):
        read([1, 2], separator=",")


def test_named_classes_keep_their_order_and_none_is_minus_one():
    labels = read([2, 0, -1, None], feature=ClassLabel(names=["z", "y", "x"]))
    assert labels.names == ["z", "y", "x"]
    assert labels.values[:2].tolist() == [2, 0]
    assert labels.is_missing.tolist() == [False, False, True, True]
    one, other = (Features({"y": ClassLabel(names=names)}) for names in (["a", "b"], ["b", "a"]))
    with pytest.raises(
        ValueError, match=r"the classes of 'y' are \['b', 'a'\] in split 'test', \['a', 'b'\] in 'train'"
    ):
        read_table_labels([table("train", one, y=[0]), table("test", other, y=[0])], ["y"], None, None, None)


def test_several_columns():
    def read_columns(**columns):
        return read_table_labels([table(**columns)], list(columns), None, None, None)

    flags = read_columns(rain=[True, False, None], wind=[1, 0, 1])
    assert (flags.names, flags.problem) == (["rain", "wind"], "multi_label_classification")
    assert flags.values[:2].tolist() == [[1, 1], [0, 0]]
    assert flags.is_missing.tolist() == [False, False, True]
    amounts = read_columns(rain=[1.5, 0], wind=[1, 0])
    assert (amounts.problem, amounts.values.tolist()) == ("regression", [[1.5, 1], [0, 0]])
    with pytest.raises(ValueError, match="of several label columns, 'wind' holds texts, such as 'strong'"):
        read_columns(rain=[1, 0], wind=["strong", "x"])
    with pytest.raises(ValueError, match=r"wind are 3 different whole numbers, such as 0, 1, 2: .* if they are amou"):
        read_columns(rain=[1, 0], wind=[2, 1])
    for label_type, message in (
        ("class", "rain, wind are several labels and no one class"),
        ("multi_label", r"'wind' holds 2 in row 1 \(counted from 0\); .* zeros and ones"),
    ):
        with pytest.raises(ValueError, match=message):
            read_table_labels([table(rain=[1, 0], wind=[1, 2])], ["rain", "wind"], label_type, None, None)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a"] * 9, {}, "all 9 labels in 'y' are 'a'; two classes are needed"),
        (
            ["a", "b", "c"],
            {"label_type": "class"},
            "every one of the 3 labels in 'y' is a class of its own, such as 'a'",
        ),
        (
            list(range(50_001)) * 2,
            {"label_type": "class"},
            "'y' has 50,001 classes, at most 50,000 are possible; put rare ones",
        ),
        ([" ", "", ""], {}, "the label column 'y' is empty in every row"),
        ([None] * 3, {}, "the label column 'y' is empty in every row"),
        ([{"a": 1}] * 3, {}, r"'y' holds struct<a: int64>, such as \{'a': 1\}"),
        (["a", "b"], {"label_type": "regression"}, "'y' holds texts that are no numbers"),
        (
            ["a", "b"],
            {"label_type": "classes"},
            "`label_type` must be one of class, multi_label, regression, got 'classes'",
        ),
        (["a", "b"], {"separator": ""}, "`label_separator` '' is what stands between several labels"),
        (
            ["a", "b"],
            {"separator": ",", "label_type": "class"},
            "fits one `label` .* and no `label_type` but multi_label",
        ),
        (["a", "b"], {"names": "ab"}, "`label_names` must be a list of names, got 'ab'"),
        ([[["a"]], [["b"]]], {}, "'y' holds lists of list"),
    ],
)
def test_what_can_be_no_label_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        read(values, **options)


def test_types_that_differ_between_splits():
    def both(first, second):
        return read_table_labels([table("train", y=first), table("test", y=second)], ["y"], None, None, None)

    assert both([1, 2, 1], [None, None]).is_missing.tolist() == [False] * 3 + [True] * 2
    assert both([1.5, 2], [1]).values.tolist() == [1.5, 2, 1]
    with pytest.raises(ValueError, match="'y' has labels of different types: int64 in 'train', texts in 'test'"):
        both([1, 2], ["a"])


def test_a_label_of_each_type_reaches_the_data_set():
    texts = {"a": [f"a{row}" for row in range(NUM_ROWS)], "b": [f"b{row}" for row in range(NUM_ROWS)]}
    numbers = [row / 8 for row in range(NUM_ROWS)]
    cases = (
        (
            ["x", "y"] * 6,
            {"label_names": ["y", "x"]},
            Value("int64"),
            lambda row: row["labels"] == int(row["id"]) % 2 ^ 1,
        ),
        (numbers, {}, List(Value("float32"), length=1), lambda row: row["labels"] == [numbers[int(row["id"])]]),
        (
            [["x"], ["x", "y"]] * 6,
            {},
            List(Value("float32"), length=2),
            lambda row: row["labels"] == [1.0, float(int(row["id"]) % 2)],
        ),
    )
    for values, options, feature, fits in cases:
        raw = load_table(Dataset.from_dict(texts | {"y": values}), {"a": "text", "b": "text"}, label="y", **options)
        assert raw.splits["train"].features["labels"] == feature
        rows = [row for split in raw.splits.values() for row in split]
        assert len(rows) == NUM_ROWS
        assert all(map(fits, rows))
    assert np.isfinite(numbers).all()


def test_an_empty_text_has_none_of_the_labels():
    labels = read(["a, b", None, "", "b"], separator=", ")
    assert labels.values.tolist() == [[1, 1], [0, 0], [0, 0], [0, 1]]
    assert not labels.is_missing.any()
    assert "2 rows without any" in labels.held
