"""Samples that lack a modality, from a null cell of the raw data to a batch, and to a model that learns with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fake_encoders import fake_encoders, image_features, take_away, text_features, write_raw
from rich.console import Console

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.cache import build_cache, cache_key, open_cache
from fl_i2moe.cache.batching import FeatureRows, create_data_loader, feature_means
from fl_i2moe.cache.streaming import FeatureStream, StreamedSplit
from fl_i2moe.evaluation.human_evaluation.study import _subject
from fl_i2moe.evaluation.run.arguments import ExplainArguments
from fl_i2moe.evaluation.run.explanations import choose_rows
from fl_i2moe.explain import explain
from fl_i2moe.training.arguments import CacheArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.features import model_config
from fl_i2moe.training.loop import predict_split, train

SIZES = {"train": 23, "validation": 6, "test": 9}
NO_TEXT = {"train": [0, 5, 6, 7, 8, 9], "test": [2]}
NO_IMAGE = {"train": [3, 4, 22], "validation": [1]}
ORDER = ["image", "text"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    raw = write_raw(tmp_path_factory.mktemp("missing") / "raw", SIZES)
    for modality, by_split in {"text": NO_TEXT, "image": NO_IMAGE}.items():
        for split, rows in by_split.items():
            raw = take_away(raw, split, modality, rows)
    return raw


@pytest.fixture(scope="module")
def cache(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    # batches of 4 and shards of 8: some batches have no text at all
    return build_cache(raw, fake_encoders(), folder, batch_size=4, shard_size=8, num_workers=0, progress=False)


def job(**model):
    return Job(CacheArguments(), ModelArguments(**model), TrainingArguments(), OutputArguments())


def features_by_hand(raw, split, row):
    cells = raw.splits[split][row]
    return {
        name: np.zeros((0, size)) if cells[name] is None else encode(cells[name])
        for name, size, encode in (
            ("image", 3, lambda cell: image_features(Path(cell["path"]).read_bytes())),
            ("text", 2, text_features),
        )
    }


def test_a_null_cell_is_an_empty_sequence(raw, cache):
    assert not cache.skipped
    for split, rows in cache.splits.items():
        assert len(rows) == SIZES[split]
        for number, row in enumerate(rows):
            for name, expected in features_by_hand(raw, split, number).items():
                found = np.asarray(row[f"{name}_features"], np.float16).reshape(-1, expected.shape[1])
                np.testing.assert_array_equal(found, expected.astype(np.float16))
                assert len(row[f"{name}_special_mask"]) == len(expected)
                assert (row[name] is None) == (row[f"{name}_sha256"] is None) == (len(expected) == 0)
            assert (row["text"] is None) == (row["text_offsets"] is None)
            assert (row["image"] is None) == (row["image_geometry"] is None)
    expected = {"train": {"text": 6, "image": 3}, "validation": {"image": 1}, "test": {"text": 1}}
    assert raw.missing == cache.missing == open_cache(cache.path).missing == expected
    assert "train: 6 of 23 samples have no text" in cache.notes
    older = {
        split: {name: x for name, x in counts.items() if name != "missing"} for split, counts in cache.counts.items()
    }
    assert replace(cache, counts=older).missing == {}  # version 0.1.0 counted none, and let none in


def test_batches_means_and_streams(raw, cache):
    rows = FeatureRows(cache.splits["train"], ORDER)
    nobody = rows[[5, 6, 7]]  # none has a text
    assert nobody["features"]["text"].shape == (3, 1, 2)
    assert not nobody["feature_masks"]["text"].any()
    assert not nobody["special_masks"]["text"].any()
    batch = rows[list(range(23))]
    by_hand = [features_by_hand(raw, "train", row) for row in range(23)]
    means = feature_means(cache.splits["train"], ORDER)
    for name in ORDER:
        assert batch["feature_masks"][name].sum(dim=1).tolist() == [len(x[name]) for x in by_hand]
        expected = np.concatenate([x[name] for x in by_hand]).astype(np.float16).astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(means[name].numpy(), expected)
    streamed = StreamedSplit("train", f"{cache.path}/train/data-*.arrow", (8, 8, 7), cache.modalities)
    seen = set()
    for part in FeatureStream(streamed, ORDER, batch_size=4):
        for place, sample_id in enumerate(part["ids"]):
            seen.add(sample_id)
            for name, expected in by_hand[int(sample_id.removeprefix("train-"))].items():
                found = part["features"][name][place][part["feature_masks"][name][place]]
                np.testing.assert_array_equal(found.numpy(), expected.astype(np.float16))
    assert len(seen) == 23


def test_the_key_knows_what_is_missing(raw):
    key = cache_key(raw, fake_encoders())
    assert key == cache_key(raw, fake_encoders())
    filled = raw.splits["test"].map(lambda row: {"text": row["text"] or ""})
    others = {**raw.splits, "test": filled.cast(raw.splits["test"].features)}
    other = type(raw)(type(raw.splits)(others), raw.modalities, raw.label_names, raw.problem_type)
    assert cache_key(other, fake_encoders())["data"]["splits"]["test"] != key["data"]["splits"]["test"]


def test_raw_data_that_lack_too_much_are_refused(tmp_path):
    raw = write_raw(tmp_path, {"train": 4, "test": 3})
    with pytest.raises(ValueError, match=r"no sample of split 'train' has a 'text': leave this modality out"):
        take_away(raw, "train", "text", [0, 1, 2, 3])
    raw = write_raw(tmp_path, {"train": 4, "test": 3})
    raw = take_away(raw, "test", "image", [1, 2])
    with pytest.raises(ValueError, match=r"sample 'test-2' of split 'test' has no image and no text: take it out"):
        take_away(raw, "test", "text", [2])
    some = raw.splits.copy()
    some["test"] = raw.splits["test"].select([0, 1])  # `missing` follows what is selected
    assert type(raw)(some, raw.modalities, raw.label_names, raw.problem_type).missing == {"test": {"image": 1}}


def test_a_model_has_to_say_what_stands_for_it(raw, cache):
    sizes = {name: {"feature_size": 2, "max_features": 8} for name in ORDER}
    for data, given in ((raw, sizes), (cache, None)):
        with pytest.raises(ValueError, match=r"split 'train' 3 have no image, 6 have no text: say by `fill_missing`"):
            model_config(job(), data, given)
    with pytest.raises(ValueError, match="needs `keep_feature_means=True`"):
        ModelArguments(fill_missing="mean")
    assert model_config(job(fill_missing="zero"), cache).fill_missing == "zero"


@pytest.mark.parametrize(
    ("fill", "level", "bucket"), [("zero", "feature", True), ("mean", "pooled", False), ("random", "feature", False)]
)
def test_training_with_missing_modalities(cache, tmp_path, fill, level, bucket):
    """Thinned features too; what is learned says of a sample without a text what the model says of its image alone."""
    config = model_config(
        job(
            hidden_size=8,
            num_attention_heads=2,
            num_fusion_layers=1,
            dropout=0.0,
            level=level,
            num_patches=2,
            fill_missing=fill,
            keep_feature_means=True,
            feature_dropout=0.5,
        ),
        cache,
    )
    arguments = TrainingArguments(num_epochs=2, batch_size=4, feature_dropout_start=0.5, bucket_by_length=bucket)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    fitted = train(config, cache, arguments, tmp_path, accelerator, seed=0, metric="micro_f1")
    assert all(np.isfinite(entry["loss"]) for entry in fitted.state.history)
    predictions = predict_split(fitted.model, cache.splits["test"], ORDER, accelerator, 4)
    assert predictions.logits.isfinite().all()
    again = FLI2MoEModel.from_pretrained(tmp_path / "model").eval()
    assert again.config.fill_missing == fill
    if fill != "random":  # which is drawn anew
        [batch] = create_data_loader(cache.splits["test"].select([2]), ORDER, batch_size=1, shuffle=False)
        with torch.no_grad():
            alone = again(features={"image": batch["features"]["image"]}).logits[0]
        torch.testing.assert_close(alone, predictions.logits[2], atol=1e-5, rtol=1e-4)


def test_a_model_without_it_is_as_before():
    """An older config.json has no such field."""
    values = FLI2MoEConfig().to_dict()
    assert values.pop("fill_missing") is None
    assert FLI2MoEConfig.from_dict(values).fill_missing is None


def test_only_whole_samples_are_explained(cache, capsys):
    arguments = ExplainArguments(model="-", num_samples=3)
    assert choose_rows(arguments, cache, ORDER, Console()) == [0, 1, 3]
    assert "1 of 9 samples of test lack a modality and are left out: only samples with all" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"test-2 has no text: .* Leave it out by --on_bad_sample skip"):
        choose_rows(ExplainArguments(model="-", sample_ids=["test-2"]), cache, ORDER, Console())
    options = job(hidden_size=8, num_attention_heads=2, fill_missing="zero")
    model = FLI2MoEModel(model_config(options, cache)).eval()
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="test-2 has no text: only samples with all modalities can be explained"):
        explain(model, cache.splits["test"][2])
    with pytest.raises(ValueError, match="Sample test-2 has no text, which a reader would look for"):
        _subject(cache.splits["test"][2], model, cache, False)
