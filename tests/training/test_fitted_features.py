"""Texts, columns of a table and arrays in one job: encoders of numbers are fitted without being named."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from fake_encoders import fake_encoders

from fl_i2moe.data.raw import RawDataset
from fl_i2moe.model.kinds import KINDS
from fl_i2moe.training import features as run_features
from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.experiment import fit, start_job
from fl_i2moe.training.features import EncoderChoice, encode


@pytest.fixture
def raw():
    """The class is whether the colour is red and the weight large."""
    rng, splits = np.random.default_rng(0), DatasetDict()
    modalities = {"text": "text", "specs": "tabular", "visits": "array"}
    raw_types = Features.from_dict({name: KINDS[kind].raw_type for name, kind in modalities.items()})
    features = Features({"id": Value("string"), **raw_types, "labels": Value("int64")})
    for split, size in {"train": 128, "validation": 32, "test": 32}.items():
        weights, red = rng.lognormal(3, 1, size), rng.random(size) > 0.3
        rows = {
            "id": [f"{split}-{i}" for i in range(size)],
            "text": ["two words"] * size,
            "specs": [
                json.dumps({"weight": x, "colour": "red" if y else "blue"}) for x, y in zip(weights, red, strict=True)
            ],
            "visits": [rng.normal(7, 2, (1 + i % 3, 5)).astype(np.float32).tobytes() for i in range(size)],
            "labels": (red & (weights > 15)).astype(int).tolist(),
        }
        splits[split] = Dataset.from_dict(rows, features)
    return RawDataset(splits, modalities, ["no", "yes"], "single_label_classification", feature_sizes={"visits": 5})


def test_a_job_fits_what_is_not_named(raw, tmp_path, monkeypatch, fresh_accelerate, no_figures, capsys):
    monkeypatch.setattr(run_features, "load_encoder", lambda folder, kind, **options: fake_encoders()[kind])
    job = Job(
        EncodingArguments(cache_dir=str(tmp_path / "cache"), encoding_workers=0),
        ModelArguments(hidden_size=16, num_attention_heads=2, num_fusion_layers=1, dropout=0.0),
        TrainingArguments(num_epochs=4, batch_size=16, learning_rate=2e-2, num_threads=1),
        OutputArguments(str(tmp_path / "run")),
    )
    fresh_accelerate()
    accelerator = start_job(job)
    cache = encode(raw, {"text": EncoderChoice("fake")}, job, accelerator)
    assert {name: x["kind"] for name, x in cache.modalities.items()} == raw.modalities
    assert "specs: numbers weight; categories colour (2)" in capsys.readouterr().out
    results = fit(cache, job, accelerator, job.settings())
    assert results["test"]["accuracy"]["mean"] > 0.9
