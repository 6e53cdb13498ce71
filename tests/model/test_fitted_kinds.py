"""Arrays and columns of a table as raw values, beside pictures: from the cache to an explanation, and bad values."""

import json

import numpy as np
import pytest
import torch
from published import ARRAY_WIDTH, make_published, write_run
from torch.testing import assert_close
from transformers import AutoModel

from fl_i2moe import FLI2MoEPipeline, FLI2MoEProcessor
from fl_i2moe.cache.batching import FeatureRows
from fl_i2moe.explain import explain
from fl_i2moe.explain.inputs import sample_row
from fl_i2moe.explain.pages.drawing import drawing_of
from fl_i2moe.model.kind_array import ArrayEncoder
from fl_i2moe.model.kinds import KINDS, places_in
from fl_i2moe.publishing.card import CardOptions, build_card
from fl_i2moe.training.runs import Run

MODALITIES = {"image": "image", "specs": "tabular", "visits": "array"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A model of a picture, columns of a table and an array; its raw values as users have them; its cache."""
    model, raw, cache = make_published(tmp_path_factory.mktemp("mixed"), MODALITIES, splits=True)
    split = raw.splits["test"]
    values = {
        "image": [x["path"] for x in split["image"]],
        "specs": [json.loads(x) for x in split["specs"]],
        "visits": [np.frombuffer(x, np.float32).reshape(-1, ARRAY_WIDTH) for x in split["visits"]],
    }
    return model.eval(), values, cache


@torch.no_grad()
def test_raw_values_give_what_cached_features_give(mixed, tmp_path):
    """Through the model, the processor and the pipeline, of a model that was saved and loaded."""
    model, values, cache = mixed
    batch = FeatureRows(cache.splits["test"], model.config.modality_order)[list(range(5))]
    expected = model(features=batch["features"], feature_masks=batch["feature_masks"]).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    processor = FLI2MoEProcessor.from_pretrained(tmp_path)
    assert_close(loaded(**values).logits, expected, atol=1e-5, rtol=0)
    assert_close(loaded(**processor(**values)).logits, expected, atol=1e-5, rtol=0)
    for name in ("specs", "visits"):  # bit for bit: the same numbers, rounded once
        found = loaded.raw_inputs.encode(name, values[name], torch.device("cpu"), torch.float32)[0]
        assert_close(found.float(), batch["features"][name].float() * batch["feature_masks"][name][..., None])
    classify = FLI2MoEPipeline(model=loaded, processor=processor, task="image-text-classification")
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    by_row = classify(rows, batch_size=2, top_k=None, function_to_apply="none")
    assert by_row == classify(**values, top_k=None, function_to_apply="none", batch_size=2)
    for result, logits in zip(by_row, expected, strict=True):
        found = {x["label"]: x["score"] for x in result}
        assert [found[label] for label in loaded.config.label_names] == pytest.approx(logits.tolist(), abs=1e-3)
    assert len(classify(image=rows[0]["image"], specs=rows[0]["specs"], visits=[0.0] * ARRAY_WIDTH)[0]) > 1
    one = {name: x[2] for name, x in values.items()}
    assert_close(loaded(**one).logits, expected[2:3], atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_form_of_an_array_and_of_a_row(mixed):
    model, values, _ = mixed
    one = {name: x[1] for name, x in values.items()}
    expected = model(**one).logits
    visits = one["visits"]
    assert visits.shape == (2, ARRAY_WIDTH)
    forms = [visits.tolist(), visits.astype(np.float64), torch.tensor(visits), visits.tobytes(), tuple(visits)]
    for form in ([x] for x in forms):
        assert_close(model(**{**one, "visits": form}).logits, expected, atol=1e-5, rtol=0)
    assert_close(model(**{**one, "visits": torch.tensor(visits)[None]}).logits, expected, atol=1e-5, rtol=0)
    vector = model(**{**one, "visits": visits[:1]}).logits
    for form in (visits[0], visits[0].tolist(), [visits[0]], [[visits[0].tolist()]]):
        assert_close(model(**{**one, "visits": form}).logits, vector, atol=1e-5, rtol=0)
    rows = [json.dumps(one["specs"]), {**one["specs"], "price": np.float64(3.5), "id": 7}]
    for form in rows:
        assert_close(model(**{**one, "specs": form}).logits, expected, atol=1e-5, rtol=0)


BAD = [
    ("visits", [1.0, 2.0, 3.0], "has 3 numbers a vector; this modality has 4"),
    ("visits", [[[1, 2, 3, 4]] * 4], "has 4 vectors; at most 3 are possible"),
    ("visits", [[[1.0, 2.0, 3.0, 4.0], [1.0]]], "is ragged"),
    ("visits", [[[]]], "is empty"),
    ("visits", [1.0, float("nan"), 3.0, 4.0], "NaN or infinite"),
    ("visits", [1.0, 1e39, 3.0, 4.0], "NaN or infinite"),
    ("visits", ["1, 2, 3, 4"], "an array is numbers, .* got str '1, 2, 3, 4'"),
    ("visits", [[[1, None, 2, 3]]], "an array is numbers, .* got list"),
    ("visits", np.zeros((1, 2, 2, 4)), "4 dimensions"),
    ("visits", [np.ma.masked_array([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 0])], "numbers that are masked"),
    ("visits", [], "'visits' is empty: give at least one sample"),
    ("visits", b"12345", "5 bytes are no float32 array of 4 columns"),
    ("specs", {"price": 1, "color": "red", "used": True}, "'colour' is not there.*Did you mean `color`"),
    ("specs", {"price": "cheap", "colour": "red", "used": True}, "column 'price' takes numbers, got 'cheap'"),
    ("specs", {"price": True, "colour": "red", "used": True}, "column 'price' takes numbers, got True"),
    ("specs", {"price": float("inf"), "colour": "red", "used": True}, "column 'price' holds inf, a number that is"),
    ("specs", {"price": 10**400, "colour": "red", "used": True}, "column 'price' holds 1000.*beyond 1e308"),
    ("specs", {"price": 1e30, "colour": "red", "used": True}, r"column 'price' has 1e\+30, too far from its mean"),
    ("specs", {"price": 1, "colour": ["red"], "used": True}, r"column 'colour' holds list \['red'\]"),
    ("specs", {"price": np.datetime64("2024-05-03"), "colour": "red", "used": 1}, "Write dates as numbers"),
    ("specs", {1: 2}, "the name of a column is a text, got 1"),
    ("specs", {}, r"column → value, or its JSON; got \{\}"),
    ("specs", "{}", r"column → value, or its JSON; got '\{\}'"),
    ("specs", "red", "a row of columns is no JSON"),
    ("specs", [[1, 2]], "column → value, or its JSON"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values_are_told(mixed, name, value, message):
    model, values, _ = mixed
    with pytest.raises(ValueError, match=message):
        model(**{**{key: x[1] for key, x in values.items()}, name: value})


def test_from_a_raw_sample_to_a_page(mixed, tmp_path):
    model, values, cache = mixed
    model.set_attn_implementation("eager")
    sample = {name: x[3] for name, x in values.items()}
    row, cached = sample_row(model, {"id": "mine", **sample}), cache.splits["test"][3]
    assert row.keys() == cached.keys() - {"labels"}
    for name in ("specs", "specs_cells", "specs_sha256"):
        assert row[name] == cached[name]
    np.testing.assert_array_equal(row["specs_features"], np.asarray(cached["specs_features"], np.float16))
    explanation = explain(model, row, "Comedy", interactions="shared_context", num_coalitions=2)
    features = [explanation.feature("specs", index) for index in range(3)]
    assert [x.name for x in features] == ["price = 10.5", "colour = red", "used = true"]
    assert features[1].place == {"column": "colour", "value": "red"}
    page = explanation.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count(">colour = red<") >= len(explanation.importance)
    assert "columns of a table, 3 columns" in page
    explanation.save(tmp_path / "figure.png")
    again = type(explanation).load(explanation.save(tmp_path / "explanation.json"))
    assert again.feature("specs", 0).name == "price = 10.5"


def test_arrays_have_their_mean_and_scale_in_few_digits(mixed):
    """32-bit numbers come back from JSON as they were."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers) & (numbers != 0)]
    encoder = ArrayEncoder(len(numbers), 1, numbers, numbers)
    text = json.dumps(encoder.identity())
    again = ArrayEncoder.from_identity(json.loads(text))
    np.testing.assert_array_equal(again.scale.view(np.uint32), numbers.view(np.uint32))
    assert len(text) < 2 * 17 * len(numbers)


def test_a_model_of_version_0_1_0_takes_features_only(mixed, tmp_path):
    model, values, cache = mixed
    batch = FeatureRows(cache.splits["test"], model.config.modality_order)[[0, 1]]
    old = {"name": "numeric arrays", "kind": "array", "feature_size": ARRAY_WIDTH, "standardised_by": "0" * 64}
    model.config.encoders, kept = {**model.config.encoders, "visits": old}, model.config.encoders
    model.save_pretrained(tmp_path)
    model.config.encoders = kept
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        loaded(features=batch["features"], feature_masks=batch["feature_masks"])
    with pytest.raises(ValueError, match=r"'visits' takes no raw values, it was trained by version 0\.1\.0"):
        loaded(**values)
    with pytest.raises(ValueError, match="takes `features` alone"):
        FLI2MoEProcessor.from_pretrained(tmp_path)


def test_folders_are_for_encoders_that_have_one(mixed, tmp_path):
    model, _, _ = mixed
    for refuse in (model.load_encoders, FLI2MoEProcessor.from_config(model.config).load_preprocessors):
        with pytest.raises(ValueError, match="'specs' has no encoder that could lie in a folder"):
            refuse({"specs": tmp_path})


def test_readers_are_shown_columns(mixed):
    _, _, cache = mixed
    places = places_in(cache.splits["test"][3], "specs", cache.modalities["specs"]["encoder"])
    assert drawing_of(places).question(places)["text"] == "price = 10.5\ncolour = red\nused = true"


def test_a_card_says_how_to_give_values(mixed, tmp_path):
    model, _, _ = mixed
    write_run(tmp_path / "run", model)
    run = Run.open(tmp_path / "run")
    card = str(build_card(run, CardOptions("someone/mixed", "mit")))
    call = """specs={'price': 7.0, 'colour': 'blüe', 'used': '0'}, visits=[0.0] * 4"""
    assert call in card
    assert "Numbers are standardised by the training split" in card
    assert "Arrays have 4 numbers a vector, which are standardised" in card


def test_a_damaged_identity_is_told(mixed):
    model, values, _ = mixed
    for identity in ({"kind": "tabular", "name": "x"}, {"kind": "tabular", "name": "x", "columns": [{"column": "a"}]}):
        model.raw_inputs.identities, kept = {**model.config.encoders, "specs": identity}, model.raw_inputs.identities
        model.raw_inputs._loaded.pop("specs", None)
        with pytest.raises(ValueError, match="does not say what the encoder of 'specs' is"):
            model(**values)
        model.raw_inputs.identities = kept


def test_the_same_arrays_have_the_same_identity(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (make_published(tmp_path / x, {"v": "array", "w": "array"}, splits=True)[2] for x in "ab")
    assert one.key == other.key
    assert KINDS["array"].needs_features(one.modalities["v"]["encoder"]) is None
