"""Masked copies, from an encoder to a training step, beside the encoder called by hand."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from published import make_raw, save_encoder

from fl_i2moe import FLI2MoEConfig
from fl_i2moe.cache import CacheMismatchError, build_cache, open_cache
from fl_i2moe.cache.batching import BatchSampler, FeatureRows, create_data_loader
from fl_i2moe.cache.fitting import fit_encoders
from fl_i2moe.cache.masked_copies import CopyDraw
from fl_i2moe.cache.streaming import FeatureStream, StreamedSplit
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.kinds import places_in
from fl_i2moe.model.places import UnitOptions
from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.loop import draw_thinning, train

ORDER = ["text", "image", "visits"]
SPLITS = ("train", "validation", "test")
COPIES = 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    kinds = {"text": "text", "image": "image", "visits": "array"}
    raw = make_raw(tmp_path_factory.mktemp("raw"), num_samples=7, modalities=kinds, splits=SPLITS)
    texts = list(raw.splits["train"]["text"])
    texts[2] = None  # a sample that lacks a modality
    train = raw.splits["train"]
    feature = train.features["text"]
    changed = train.remove_columns("text").add_column("text", texts, feature=feature)
    raw.splits["train"] = changed.select_columns(train.column_names)
    return raw


@pytest.fixture(scope="module")
def encoders(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    loaded = {x: load_encoder(save_encoder(y, folder / y), x) for x, y in (("text", "roberta"), ("image", "clip"))}
    return {**loaded, **fit_encoders(raw, leave_out=loaded)}


def build(raw, encoders, folder, **options):
    options = {"num_workers": 0, "progress": False, "batch_size": 3, "shard_size": 4, **options}
    return build_cache(raw, encoders, folder, **options)


@pytest.fixture(scope="module")
def cache(raw, encoders, tmp_path_factory):
    return build(raw, encoders, tmp_path_factory.mktemp("cache"), masked_copies=COPIES)


def test_a_copy_is_the_encoding_of_what_is_left(raw, encoders, cache):
    assert cache.masked_copies == open_cache(cache.path).masked_copies == COPIES
    shares = []
    for name in ("text", "image"):
        encoder = encoders[name]
        for row, given in zip(cache.splits["train"], raw.splits["train"], strict=True):
            whole = np.asarray(row[f"{name}_features"], np.float32)
            length = len(whole)
            kept = np.array(row[f"{name}_masked_kept"], bool).reshape(COPIES, length)
            if given[name] is None:
                assert length == 0
                continue
            copies = np.asarray(row[f"{name}_masked_features"], np.float32).reshape(COPIES, length, -1)
            inputs = encoder.preprocess([given[name]]).inputs
            for mask, copy in zip(kept, copies, strict=True):
                expected = encoder.encode(inputs, torch.from_numpy(mask)[None]).features[0].numpy()
                np.testing.assert_allclose(copy, expected, atol=2e-3)
                assert (copy[~mask] == 0).all()
            special = np.array(row[f"{name}_special_mask"])
            assert kept[:, special].all()
            shares.append(kept[:, ~special].mean())
    assert 0.3 < np.mean(shares) < 0.7
    assert not [name for name in cache.splits["train"].column_names if name.startswith("visits_masked")]
    for split in ("validation", "test"):
        assert all(len(row["text_masked_kept"]) == 0 for row in cache.splits[split])


def test_units_are_taken_out_whole(raw, encoders, cache):
    """A word's tokens stay together."""
    for row in cache.splits["train"]:
        if row["text"] is None:
            continue
        groups = places_in(row, "text").units(UnitOptions()).features
        kept = np.array(row["text_masked_kept"], bool).reshape(COPIES, -1)
        for group in groups:
            assert (kept[:, group] == kept[:, group[:1]]).all()


def test_whole_sequences_and_draws_do_not_depend_on_copies_or_batches(raw, encoders, cache, tmp_path):
    plain = build(raw, encoders, tmp_path / "plain")
    other = build(raw, encoders, tmp_path / "other", masked_copies=COPIES, batch_size=7)
    for split in SPLITS:
        for row, without, again in zip(cache.splits[split], plain.splits[split], other.splits[split], strict=True):
            assert {name: row[name] for name in without} == without
            assert row["image_masked_kept"] == again["image_masked_kept"]
    with pytest.raises(CacheMismatchError, match=r"masked_copies: the cache has 3, asked for is \(absent\)"):
        build(raw, encoders, cache.path)


def test_batches_hold_the_copies_asked_for(cache):
    split = cache.splits["train"].select([5, 0, 3, 6])
    rows = FeatureRows(split, ORDER, pad_to_multiple_of=4)
    assert rows.copied == [True, True, False]
    drawn = [(0, 2, 0, 0), (3, 0, 3, 0), (1, 0, 0, 0)]
    batch, whole = rows[drawn], rows[[0, 3, 1]]
    assert batch["ids"] == whole["ids"]
    assert set(batch["keep"]) == {"text", "image"}
    for place, (row, *copies, _) in enumerate(drawn):
        for name, copy in zip(("text", "image"), copies, strict=True):
            cells = split[row]
            length = len(cells[f"{name}_special_mask"])
            expected = np.asarray(cells[f"{name}_features"], np.float16)
            kept = np.ones(length, bool)
            if copy:
                part = slice((copy - 1) * length, copy * length)
                expected = np.asarray(cells[f"{name}_masked_features"], np.float16)[part]
                kept = np.array(cells[f"{name}_masked_kept"])[part]
            np.testing.assert_array_equal(batch["features"][name][place, :length], expected)
            assert batch["keep"][name][place, :length].tolist() == kept.tolist()
            assert batch["keep"][name][place, length:].all()
    assert torch.equal(batch["features"]["visits"], whole["features"]["visits"])


def test_the_order_of_an_epoch_is_the_same_with_copies():
    copies = CopyDraw(num_copies=2, share=0.5, first_epoch=1)
    plain, drawing = (
        BatchSampler(np.arange(1, 201), 7, shuffle=True, bucket=True, seed=3, copies=x, copied=[True, False])
        for x in (None, copies)
    )
    assert list(plain) == list(drawing)  # not yet
    for sampler in (plain, drawing):
        sampler.set_epoch(1)
    with_copies = list(drawing)
    assert [[row for row, *_ in batch] for batch in with_copies] == list(plain)
    drawn = np.array([x for batch in with_copies for x in batch])
    assert (drawn[:, 2] == 0).all()
    assert np.bincount(drawn[:, 1], minlength=3)[1:].sum() / 200 == pytest.approx(0.5, abs=0.12)
    assert with_copies == list(drawing)


def test_streamed_copies(cache):
    files = f"{cache.path}/train/data-*.arrow"
    split = StreamedSplit("train", files, (4, 3), cache.modalities)
    copies = CopyDraw(COPIES, 1.0, 0)
    stream = FeatureStream(split, ["image"], batch_size=7, copies=copies)
    batch = next(iter(stream))
    assert batch["keep"]["image"].shape == batch["feature_masks"]["image"].shape
    assert not batch["keep"]["image"].all()
    whole = {row["id"]: row for row in cache.splits["train"]}
    for place, sample_id in enumerate(batch["ids"]):
        found = batch["features"]["image"][place].numpy()
        parts = np.asarray(whole[sample_id]["image_masked_features"], np.float16).reshape(COPIES, *found.shape)
        assert any(np.array_equal(found, part) for part in parts)


def test_thinning_leaves_copies_as_they_are():
    config = FLI2MoEConfig(
        modalities={x: {"feature_size": 2, "max_features": 3} for x in ("a", "b")}, num_labels=2, feature_dropout=0.99
    )
    features = {name: torch.ones(4, 3, 2) for name in ("a", "b")}
    masked = torch.tensor([[True] * 3, [True, False, True], [True] * 3, [False] * 3])
    keep, is_whole = draw_thinning(features, config, {"a": masked})
    assert keep["a"] is masked
    assert is_whole[:, 0].tolist() == [True, False, True, False]
    assert keep["b"].shape == (4, 3)


def config_of(cache, **changes):
    sizes = {name: {key: x[key] for key in ("feature_size", "max_features")} for name, x in cache.modalities.items()}
    options = {"hidden_size": 8, "num_attention_heads": 2, "num_fusion_layers": 1, "fill_missing": "zero", **changes}
    return FLI2MoEConfig(modalities=sizes, num_labels=3, problem_type="multi_label_classification", **options)


def test_training_on_copies_differs_and_repeats(cache, tmp_path, fresh_accelerate):
    def weights(name, feature_dropout=0.9):
        fresh_accelerate()
        arguments = TrainingArguments(num_epochs=2, batch_size=7, feature_dropout_start=0.5)
        how = {"seed": 0, "metric": "micro_f1"}
        config = config_of(cache, feature_dropout=feature_dropout, objective="specialised")
        fitted = train(config, cache, arguments, tmp_path / name, Accelerator(cpu=True), **how)
        return fitted.state.history

    one, again, without = weights("one"), weights("again"), weights("without", 0.0)
    assert one == again
    assert one[0]["loss"] == pytest.approx(without[0]["loss"])  # they set in with the second epoch
    assert one[1]["loss"] != without[1]["loss"]


def test_a_loader_gives_copies_from_their_epoch_on(cache):
    loader = create_data_loader(
        cache.splits["train"], ORDER, batch_size=7, shuffle=True, copies=CopyDraw(COPIES, 1.0, 1)
    )
    assert "keep" not in next(iter(loader))
    loader.batch_sampler.set_epoch(1)
    assert set(next(iter(loader))["keep"]) == {"text", "image"}


@pytest.mark.parametrize(
    ("model", "words"),
    [({}, "`masked_copies` are what `feature_dropout` takes"), ({"feature_dropout": 0.5, "level": "pooled"}, "pooled")],
)
def test_copies_that_nothing_would_take_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        Job(EncodingArguments(masked_copies=2), ModelArguments(**model), TrainingArguments(), OutputArguments())
