"""A data set of one's own is checked when it is made, not when its features are read."""

from dataclasses import replace
from inspect import signature

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import Pipeline

from fl_i2moe.data.raw import RESERVED, RawDataset, _are_ids, check_ids
from fl_i2moe.model.modeling_fl_i2moe import FLI2MoEModel
from fl_i2moe.model.pipeline_fl_i2moe import FLI2MoEPipeline
from fl_i2moe.model.processing_fl_i2moe import FLI2MoEProcessor

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def make_raw(labels, kind, problem=SINGLE, ids=None, names=("train",), columns=("text",)):
    """Three classes or outputs; every split has the same samples."""
    rows = {"id": ids or [f"s{i}" for i in range(len(labels))], "labels": labels, **dict.fromkeys(columns, ["x"] * 4)}
    types = {"id": Value("string"), "labels": kind, **dict.fromkeys(columns, Value("string"))}
    splits = DatasetDict({name: Dataset.from_dict(rows, Features(types)) for name in names})
    return RawDataset(splits, {"text": "text"}, ["a", "b", "c"], problem)


WHOLE, NUMBERS = Value("int64"), List(Value("float32"))


@pytest.mark.parametrize(
    ("labels", "kind", "problem", "message"),
    [
        ([0, 1, 3, 2], WHOLE, SINGLE, r"sample 's2' of split 'train' has the label 3; .* one of the classes 0 … 2"),
        ([0, 1, -1, 2], WHOLE, SINGLE, "'s2' .* label -1;"),
        ([0, 1, None, 2], WHOLE, SINGLE, "'s2' .* label None;"),
        ([0, 1, -1, 2], ClassLabel(names=["a", "b", "c"]), SINGLE, "'s2' .* label -1;"),
        ([0.0, 1.0, 2.0, 1.0], Value("float32"), SINGLE, r"'s0' .* label 0\.0;"),
        (["a", "b", "c", "a"], Value("string"), SINGLE, "'s0' .* label a;"),
        (
            [[0, 1, 0], [0, 1], [0, 1, 0], [1, 1, 1]],
            NUMBERS,
            MULTI,
            r"'s1' .* label \[0\.0, 1\.0\];.* 3 finite numbers",
        ),
        ([[0, 1, 0], None, [0, 1, 0], [1, 1, 1]], NUMBERS, MULTI, "'s1' .* label None;"),
        ([[0, 1, 0], [0, 1, None], [0, 1, 0], [1, 1, 1]], NUMBERS, MULTI, "'s1' .* None"),
        ([[0, 1, 0], [0, 1, np.inf], [0, 1, 0], [1, 1, 1]], NUMBERS, "regression", "'s1' .* inf"),
        ([0, 1, 2, 1], WHOLE, MULTI, "'s0' .* label 0; .* 3 finite numbers"),
    ],
)
def test_labels_out_of_range_are_named_at_reading(labels, kind, problem, message):
    with pytest.raises(ValueError, match=message):
        make_raw(labels, kind, problem)


def test_sound_labels_are_taken():
    names = ("train", "validation", "test")
    classes, several, numbers = [2, 0, 1, 1], [[False, True, False]] * 4, [[0.5, -1.0, 7.0]] * 4
    assert make_raw(classes, Value("uint8")).splits["train"]["labels"][:] == classes
    assert make_raw(several, List(Value("bool"), length=3), MULTI).splits["train"]["labels"][:] == several
    made = make_raw(numbers, NUMBERS, "regression", names=names)
    assert {name: rows["labels"][:] for name, rows in made.splits.items()} == dict.fromkeys(names, numbers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("train", "val", "dev")}, "two names for one split, 'val' and 'dev'"),
        ({"names": ("train", "validation", "valid")}, "two names for one split, 'validation' and 'valid'"),
        ({"names": ("train", "test", "Test")}, "two names for one split, 'test' and 'Test'"),
        ({"columns": ()}, r"split 'train' lacks the columns \['text'\]; it has \['id', 'labels'\]"),
        ({"ids": ["a", "b", "a", "d"]}, "id 'a' is twice in 'train'"),
        ({"ids": ["a", "b", None, "d"]}, "'train' has the id None"),
        ({"ids": ["a", "b", " ", "d"]}, "'train' has the id ' '"),
        ({"ids": ["a", "b", "x" * 5000, "d"]}, "has the id 'xxxxxx"),
    ],
)
def test_names_and_ids(changes, message):
    with pytest.raises(ValueError, match=message):
        make_raw([0, 1, 2, 0], WHOLE, **changes)


def test_no_modality_is_called_as_an_argument_beside_it():
    calls = (FLI2MoEModel.forward, FLI2MoEProcessor.__call__, FLI2MoEPipeline.postprocess, Pipeline.__call__)
    taken = {
        x.name
        for call in calls
        for x in signature(call).parameters.values()
        if x.kind not in (x.VAR_KEYWORD, x.VAR_POSITIONAL)
    }
    assert taken - {"model_outputs"} | {"id"} == set(RESERVED)
    raw = make_raw([0, 1, 2, 1], WHOLE, columns=("text", "keep"))
    with pytest.raises(ValueError, match="The modality 'keep' cannot be called so: the model"):
        replace(raw, modalities={"text": "text", "keep": "text"})


@pytest.mark.parametrize(
    "odd", [None, "", " ", "\t\n", "\x1c", "\xa0", "\u200b", "\u3000", "x" * 1000, "x" * 1001, "b", "é"]
)
def test_ids_are_judged_alike_with_and_without_a_list_of_them(odd):
    ids = ["a", "b", odd]
    try:
        check_ids({"train": ids}, {"train": "the raw data"})
        are_right = True
    except ValueError:
        are_right = False
    assert _are_ids(pa.chunked_array([pa.array(ids, pa.string())])) == are_right
