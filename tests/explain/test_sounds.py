"""Planted sounds, from their table to what a reader sees and hears: explanations find the tone that tells the label."""

import base64
import csv
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers as hf
from drawn import shown_texts
from test_report import Page
from tiny_encoders import TRANSFORMER
from tokenizers import Tokenizer, models, pre_tokenizers

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel, FLI2MoEPipeline, FLI2MoEProcessor
from fl_i2moe.cache import build_cache
from fl_i2moe.cache.batching import FeatureRows
from fl_i2moe.data.files import raw_dataset
from fl_i2moe.data.planted_plots import WORDS
from fl_i2moe.data.planted_sounds import SoundSettings, write_planted_sounds
from fl_i2moe.evaluation.ground_truth.evaluation import Case, found_evidence
from fl_i2moe.evaluation.ground_truth.sample_truth import sample_truth
from fl_i2moe.explain import Explanation, explain
from fl_i2moe.explain.inputs import sample_row
from fl_i2moe.explain.pages.sample_figure import draw_explanation
from fl_i2moe.explain.pages.sample_page import render_page
from fl_i2moe.explain.pages.sound_strip import envelope, ticks
from fl_i2moe.model.encoders import load_encoder

KINDS = {"sound": "audio", "transcript": "text"}
CLASSES = ["low", "high"]
"""Of the tone that tells the label `sound_alone`; the other labels take more clips than a fast test has."""


def save_ears(folder):
    """The random first layers of a Whisper of 1 s: 50 mixtures of loud and soft pitches."""
    sizes = {"d_model": 64, "num_mel_bins": 40, "max_source_positions": 50, "max_target_positions": 8, "vocab_size": 8}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 8}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    hf.WhisperModel(hf.WhisperConfig(**sizes, **tokens, init_std=0.2)).save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=40, chunk_length=1).save_pretrained(folder)
    return load_encoder(folder, "audio", hidden_layer=0, frames_per_feature=2)


def save_reader(folder):
    """Random embeddings of the words that tell something."""
    words = ["<pad>", "<unk>", *(word for family in WORDS.values() for word in family)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    config = hf.BertConfig(**TRANSFORMER, vocab_size=len(words), max_position_embeddings=64, pad_token_id=0)
    hf.BertModel(config).save_pretrained(folder)
    return load_encoder(folder, "text", hidden_layer=0, max_length=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learned to tell tones, its feature cache, and the folder of the sample."""
    folder = tmp_path_factory.mktemp("sounds")
    table = write_planted_sounds(folder / "sample", SoundSettings(num_samples=240, seconds=1.0))
    samples = {"train": [], "validation": [], "test": []}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            sample = {"id": row["id"], "sound": table.parent / row["sound"], "transcript": row["transcript"]}
            samples[row["split"]].append(sample | {"labels": int(row["sound_alone"])})
    raw = raw_dataset(samples, KINDS, CLASSES, "single_label_classification", [], [])
    torch.manual_seed(0)
    encoders = {"sound": save_ears(folder / "ears"), "transcript": save_reader(folder / "reader")}
    cache = build_cache(raw, encoders, folder / "cache", progress=False, num_workers=0)
    config = FLI2MoEConfig(
        modalities={
            name: {key: x[key] for key in ("feature_size", "max_features")} for name, x in cache.modalities.items()
        },
        encoders={name: x["encoder"] for name, x in cache.modalities.items()},
        id2label=dict(enumerate(CLASSES)),
        label2id={label: index for index, label in enumerate(CLASSES)},
        problem_type="single_label_classification",
        hidden_size=32,
        num_attention_heads=2,
        num_fusion_layers=1,
        reweighting_hidden_size=16,
        interaction_loss_weight=0.1,
        **dict.fromkeys(("attention_dropout", "residual_dropout", "activation_dropout", "reweighting_dropout"), 0.0),
    )
    torch.manual_seed(0)
    model = FLI2MoEModel(config).train()
    rows = FeatureRows(cache.splits["train"], config.modality_order)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(13):
        for batch in torch.randperm(len(rows)).split(32):
            batch = rows[batch.tolist()]
            model(**{key: batch[key] for key in ("features", "feature_masks", "labels")}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.set_attn_implementation("eager")
    return model.eval(), cache, table.parent


def test_importance_finds_the_tone(trained):
    """Of either class: a model may tell one by the other's tone, which is not there."""
    model, cache, folder = trained
    rows = FeatureRows(cache.splits["test"], model.config.modality_order)
    batch = rows[list(range(len(rows)))]
    with torch.no_grad():
        logits = model(features=batch["features"], feature_masks=batch["feature_masks"]).logits
    assert (logits.argmax(1) == batch["labels"]).double().mean() > 0.9
    truth, carriers = sample_truth([run_on(cache)], str(folder), ("train", "test"))
    assert carriers == {"sound_alone": "uniqueness_sound"}
    cases = [
        Case(row, sample_id, int(batch["labels"][row]), "sound_alone", truth[sample_id]["sound_alone"])
        for row, sample_id in enumerate(batch["ids"])
    ]
    chance = np.mean([case.evidence.features["sound"].mean() for case in cases])
    assert 0.05 < chance < 0.15
    how = {"units": "features", "methods": ["grad_attnroll", "random"], "progress": False}
    found = found_evidence(model, cache, "test", cases, **how)
    grad, random = (found["uniqueness_sound", x, "sound", "k_exact"].mean() for x in ("grad_attnroll", "random"))
    assert random < 2 * chance
    assert grad > 3 * chance  # 0.59 to 0.87 with four seeds


def run_on(cache, **settings):
    """A run on these features whose label has the name that the truth gives it."""
    named = {"label_names": ["sound_alone"], "modalities": cache.modalities, "splits": cache.splits, "path": cache.path}
    return SimpleNamespace(cache=SimpleNamespace(**named), settings=settings, folder=cache.path)


def test_the_truth_is_read_beside_the_runs_table(trained):
    _, cache, folder = trained
    truth, _ = sample_truth([run_on(cache, dataset=str(folder / "clips.csv"))], None, ("test",))
    row = cache.splits["test"][0]
    evidence = truth[row["id"]]["sound_alone"]
    start, end = json.loads((folder / "truth.json").read_text())["samples"][row["id"]]["sound_alone"]["sound"][
        "seconds"
    ]
    expected = [start <= (first + last) / 2 < end for first, last in row["sound_seconds"]]
    assert evidence.features["sound"].tolist() == expected
    assert sum(expected) in (2, 3)  # 0.1 s in stretches of 0.04 s
    assert evidence.near["sound"].sum() <= sum(expected) + 2
    with pytest.raises(ValueError, match="does not name the table of the planted sounds: give --data_dir"):
        sample_truth([run_on(cache, num_epochs=3)], None, ("test",))


def test_raw_sounds_give_what_the_cache_gives(trained):
    model, cache, _ = trained
    row = cache.splits["test"][3]
    given = sample_row(model, {"id": row["id"], "sound": row["sound"]["path"], "transcript": row["transcript"]})
    assert set(given) == set(row) - {"labels"}
    for name in ("sound", "sound_seconds", "sound_sha256", "transcript_offsets"):
        assert given[name] == row[name]
    np.testing.assert_allclose(given["sound_features"], np.asarray(row["sound_features"]), atol=2e-3)
    batch = FeatureRows(cache.splits["test"], model.config.modality_order)[[3]]
    pipeline = FLI2MoEPipeline(
        model=model, processor=FLI2MoEProcessor.from_config(model.config), task="image-text-classification"
    )
    samples, rate = soundfile.read(row["sound"]["path"], dtype="float32")
    with torch.no_grad():
        expected = model(features=batch["features"], feature_masks=batch["feature_masks"]).logits
        for sound in (row["sound"], row["sound"]["path"], {"array": samples, "sampling_rate": rate}, (samples, rate)):
            prepared = pipeline.preprocess({"sound": sound, "transcript": row["transcript"]})
            torch.testing.assert_close(pipeline._forward(prepared)["logits"], expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(
                model(sound=sound, transcript=row["transcript"]).logits, expected, atol=1e-4, rtol=0
            )


@pytest.fixture
def explanation(trained, tmp_path):
    """Of a sound that a test may damage."""
    model, cache, _ = trained
    row = cache.splits["test"][1]
    copy = tmp_path / "clip.wav"
    copy.write_bytes(Path(row["sound"]["path"]).read_bytes())
    row["sound"] = {"path": str(copy), "bytes": None}
    return explain(model, row, "high", units="features", num_coalitions=2, cache=cache)


def test_a_page_shows_the_sound_under_its_heat(explanation):
    html = render_page(explanation)
    page = Page(html)
    assert "Which stretches and tokens" in page.text("h2")
    for card in range(5):
        heat = page.find("rect", "heat")[25 * card : 25 * (card + 1)]
        edges = [(float(x["x"]), float(x["x"]) + float(x["width"])) for x in heat]
        assert all(one[1] == pytest.approx(other[0], abs=0.02) for one, other in pairwise(edges))
        scores = [float(x["style"].partition("--s:")[2]) for x in heat]
        assert scores == pytest.approx(explanation.importance[list(explanation.importance)[card]]["sound"], abs=1e-3)
    top, _ = explanation.top_features("uniqueness_sound", "sound", 1)[0]
    assert re.fullmatch(r"0\.\d\d–\d\.\d\d s", top.name)
    assert f"{top.name}: 1.00" in page.text("title")
    [player] = page.find("audio")
    content = base64.b64decode(player["src"].removeprefix("data:audio/wav;base64,"))
    assert content == Path(explanation.modalities["sound"].path).read_bytes()
    assert "controls" in player
    assert "hidden layer 0, 25 stretches" in html
    again = Explanation.from_dict(json.loads(json.dumps(explanation.to_dict())))
    assert render_page(again) == html


def test_a_figure_shows_the_sound(explanation):
    texts = [text for text, _ in shown_texts(draw_explanation(explanation))]
    assert re.search(r"↔ 0\.\d\d–\d\.\d\d s", " ".join(texts))


def test_a_sound_that_is_gone_is_said_to_be(explanation, trained, tmp_path):
    gone = Explanation.from_dict(explanation.to_dict())
    (tmp_path / "clip.wav").unlink()
    gone.modalities["sound"].__dict__.pop("_encoded", None)
    page = Page(render_page(gone))
    assert any("put it there, or a link to it, to hear it" in text for text in page.text("p", "remark"))
    assert not page.find("audio")
    assert len(page.find("rect", "heat")) == 5 * 25
    draw_explanation(gone)


def test_what_browsers_do_not_play_is_made_a_wav(explanation, tmp_path):
    places = explanation.modalities["sound"]
    samples, rate = soundfile.read(places.path)
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="AU", subtype="FLOAT")
    places.sha256, places.content = None, stream.getvalue()
    places.__dict__.pop("_encoded", None)
    [player] = Page(render_page(explanation)).find("audio")
    found, _ = soundfile.read(io.BytesIO(base64.b64decode(player["src"].removeprefix("data:audio/wav;base64,"))))
    np.testing.assert_allclose(found, samples, atol=2 / 32768)


def test_envelope_and_ticks_by_hand():
    low, high = envelope(np.array([1, -2, 3, 0, 5, -6.0]), 3)
    assert (low.tolist(), high.tolist()) == ([-2, 0, -6], [1, 3, 5])
    assert envelope(np.array([1.0, 2.0]), 4)[0].tolist() == [1, 1, 2, 2]
    assert ticks(2.1) == [0, 0.5, 1, 1.5, 2]
    assert ticks(30) == [0, 5, 10, 15, 20, 25, 30]
    assert ticks(0.003)[:2] == [0, 0.0005]
