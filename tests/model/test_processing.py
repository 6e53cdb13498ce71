import math
import shutil
import struct
import time
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from datasets import Dataset
from PIL import Image
from published import make_published, save_published
from transformers import AutoModel, AutoProcessor, pipeline

from fl_i2moe import FLI2MoEPipeline, FLI2MoEProcessor
from fl_i2moe.cache.batching import FeatureRows


def open_pipeline(repository):
    """Of this package's class; `pipeline(...)` takes the repository's own code, as in test_hub.py."""
    model, processor = AutoModel.from_pretrained(repository).eval(), AutoProcessor.from_pretrained(repository)
    return FLI2MoEPipeline(model=model, processor=processor, task="image-text-classification")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model, raw, cache = make_published(folder)
    save_published(model, folder / "repository")
    return model, raw, cache, folder / "repository"


@pytest.fixture(scope="module")
def classify(published):
    return open_pipeline(published[3])


def rows_of(raw):
    return [
        {"image": image["path"], "text": text}
        for image, text in zip(raw.splits["test"]["image"], raw.splits["test"]["text"], strict=True)
    ]


def scores_of(result):
    return [entry["score"] for entry in result]


def test_processor_survives_saving(published):
    model, raw, cache, repository = published
    processor = AutoProcessor.from_pretrained(repository)
    assert isinstance(processor, FLI2MoEProcessor)
    assert processor.modality_order == ["text", "image"]
    assert (processor.encoders, processor.model_input_names) == (model.config.encoders, ["text", "image"])
    given = {name: [row[name] for row in rows_of(raw)] for name in ("image", "text")}
    batch = processor(**given, return_tensors="pt")
    assert batch["image"]["pixels"].dtype == torch.uint8
    assert batch["text"]["input_ids"].shape == batch["text"]["special_tokens_mask"].shape
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, model(**given).logits, atol=1e-5, rtol=0)
    # what explanations need is what the cache remembers
    prepared = processor.preprocess(**given)
    for i, row in enumerate(cache.splits["test"]):
        assert prepared["image"].annotations[i] == row["image_geometry"]
        assert [list(pair) for pair in prepared["text"].annotations[i]["offsets"]] == row["text_offsets"]


def test_a_training_runs_folder_has_a_processor_too(tmp_path):
    model, raw, _ = make_published(tmp_path)
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.encoders == model.config.encoders
    assert pipeline("image-text-classification", model=str(tmp_path))(rows_of(raw)[0])[0]["label"]


def test_what_the_processor_refuses(published):
    processor = AutoProcessor.from_pretrained(published[3])
    image = Image.new("RGB", (30, 20))
    with pytest.raises(ValueError, match=r"Unknown inputs \['imag'\].*Did you mean `image`"):
        processor(imag=image, text="the fox")
    with pytest.raises(ValueError, match=r"lack \['image'\]"):
        processor(text="the fox")
    with pytest.raises(ValueError, match="same number of samples"):
        processor(text=["the", "fox"], image=image)
    with pytest.raises(ValueError, match="at least one"):
        processor(text=[], image=[])
    with pytest.raises(ValueError, match="must be \"pt\", got 'np'"):
        processor(text="the fox", image=image, return_tensors="np")
    with pytest.raises(ValueError, match="a text must be a string, got int"):
        processor(text=3, image=image)
    with pytest.raises(ValueError, match="has no encoders that take raw values"):
        FLI2MoEProcessor.from_config(type(published[0].config)())


def test_a_local_copy_of_a_tokenizer(tmp_path, monkeypatch):
    model, raw, _ = make_published(tmp_path, names={"text": "nobody/no-such-model"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    processor = FLI2MoEProcessor.from_config(model.config)
    expected = r"(?s)tokenizer\.json of 'text' \(nobody/no-such-model\).*load_preprocessors\(\{'text': '<folder>'\}\)"
    with pytest.raises(ValueError, match=expected):
        processor(**rows_of(raw)[0])
    with pytest.raises(ValueError, match=r"Unknown inputs \['txt'\].*Did you mean `text`"):
        processor.load_preprocessors({"txt": tmp_path / "encoder-text"})
    processor.load_preprocessors({"text": tmp_path / "encoder-text"})
    assert processor(**rows_of(raw)[0])["text"]["input_ids"].shape[0] == 1


def test_enormous_inputs(published, tmp_path):
    processor = AutoProcessor.from_pretrained(published[3])
    _write_png_of_size(tmp_path / "enormous.png", 50_000, 50_000)
    with pytest.raises(ValueError, match=r"enormous\.png: cannot be read as a picture: .*2500000000 pixels"):
        processor(text="the fox", image=tmp_path / "enormous.png")
    text = "the quick brown fox " * 250_000
    started = time.perf_counter()
    prepared = processor.preprocess(text=text, image=Image.new("RGB", (30, 20)))["text"]
    assert time.perf_counter() - started < 30
    assert prepared.inputs["input_ids"].shape == (1, 9)
    assert prepared.annotations[0]["truncated"]


def _write_png_of_size(path: Path, width: int, height: int) -> None:
    """A picture whose head promises so many pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100)))]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in [*chunks, (b"IEND", b"")]:
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))


def test_pipeline_scores_and_shares(published, classify):
    model, raw, _, _ = published
    row = rows_of(raw)[1]
    with torch.no_grad():
        output = model(**row)
    result = classify(row, top_k=None)
    probabilities = output.logits[0].sigmoid()
    order = probabilities.argsort(descending=True).tolist()
    assert [entry["label"] for entry in result] == [model.config.id2label[index] for index in order]
    assert scores_of(result) == pytest.approx(probabilities[order].tolist(), abs=1e-5)
    for entry, index in zip(result, order, strict=True):
        assert list(entry["expert_weights"]) == list(entry["contributions"]) == model.config.expert_names
        assert list(entry["expert_weights"].values()) == pytest.approx(output.expert_weights[0].tolist(), abs=1e-5)
        assert sum(entry["contributions"].values()) == pytest.approx(output.logits[0, index].item(), abs=1e-4)
        assert entry["predicted"] == (probabilities[index] > 0.5)
    assert classify(row) == result[:1]


def test_thresholds_and_temperature(published, classify, monkeypatch):
    """A threshold is exclusive, as in compute_metrics; the temperature divides the logits of probabilities."""
    model, raw, _, _ = published
    row = rows_of(raw)[1]
    with torch.no_grad():
        logits = model(**row).logits[0].tolist()
    label_names = classify.model.config.label_names
    by_label = {entry["label"]: entry for entry in classify(row, top_k=None)}
    equal = by_label[label_names[0]]["score"]
    monkeypatch.setattr(classify.model.config, "thresholds", [equal, 1e-9, 1 - 1e-9])
    found = {entry["label"]: entry["predicted"] for entry in classify(row, top_k=None)}
    assert [found[name] for name in label_names] == [False, True, False]
    monkeypatch.setattr(classify.model.config, "temperature", 4)
    found = {entry["label"]: entry for entry in classify(row, top_k=None)}
    for name, logit in zip(label_names, logits, strict=True):
        assert found[name]["score"] == pytest.approx(1 / (1 + math.exp(-logit / 4)), abs=1e-5)
    assert found[label_names[0]]["predicted"] == (found[label_names[0]]["score"] > equal)
    softmax = scores_of(classify(row, top_k=None, function_to_apply="softmax"))
    powers = sorted((math.exp(logit / 4) for logit in logits), reverse=True)
    assert softmax == pytest.approx([power / sum(powers) for power in powers], abs=1e-5)
    raw_scores = scores_of(classify(row, top_k=None, function_to_apply="none"))
    assert raw_scores == pytest.approx(sorted(logits, reverse=True), abs=1e-5)


def test_modalities_by_name(published, classify):
    rows = rows_of(published[1])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert classify(**rows[0]) == classify(rows[0])
    for given in (columns, Dataset.from_list(rows)[:], {name: Dataset.from_list(rows)[name] for name in rows[0]}):
        found = classify(**given, top_k=2)
        assert [[entry["label"] for entry in one] for one in found] == [
            [entry["label"] for entry in one] for one in classify(rows, top_k=2)
        ]
    for given, message in (
        ({"inputs": rows[0], "text": "the fox"}, "Give samples, or text by name, not both"),
        ({}, r"Give a sample, a list of samples, or \['text', 'image'\] by name; got nothing"),
        ({"picture": "a.jpg"}, r"or \['text', 'image'\] by name; got picture"),
        ({**columns, "text": "the fox"}, "a list of equally many; got text: one, image: 5"),
        ({**columns, "text": ["the", "fox"]}, "got text: 2, image: 5"),
        ({"text": "the fox"}, r"A sample lacks \['image'\]"),
        ({"text": "the fox", "imag": "x.png"}, r"Unknown parameters \['imag'\].*inputs \['text', 'image'\]"),
        ({"text": [], "image": "x.png"}, "got text: 0, image: one"),
    ):
        with pytest.raises(ValueError, match=message):
            classify(**given)


def test_samples_that_lack_a_modality(published, classify, monkeypatch):
    """Each way of saying so gives what the model gives where the row of the feature mask is empty."""
    model, raw, cache, _ = published
    rows = rows_of(raw)[:3]
    rows[0]["text"] = rows[2]["image"] = None
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    batch = FeatureRows(cache.splits["test"], model.config.modality_order)[[0, 1, 2]]
    batch["feature_masks"]["text"][0] = batch["feature_masks"]["image"][2] = False
    for one in (model, classify.model):
        monkeypatch.setattr(one.config, "fill_missing", "zero")
    with torch.no_grad():
        expected = model(features=batch["features"], feature_masks=batch["feature_masks"]).logits
        prepared = classify.processor(**columns)
        assert prepared["text"]["is_given"].tolist() == [False, True, True]
        for given in (columns, prepared):
            torch.testing.assert_close(model(**given).logits, expected, atol=1e-4, rtol=0)
        for given in (
            {"text": rows[2]["text"]},
            classify.processor(**rows[2]),
            {"image": [None], "text": [rows[2]["text"]]},
        ):
            torch.testing.assert_close(model(**given).logits, expected[2:], atol=1e-4, rtol=0)
        assert list(classify.processor(**rows[2])) == ["text"]
    by_keys = [{name: value for name, value in row.items() if value is not None} for row in rows]
    for given in (rows, by_keys):
        for result, logits in zip(classify(given, batch_size=2, top_k=None), expected, strict=True):
            assert scores_of(result) == pytest.approx(sorted(logits.sigmoid().tolist(), reverse=True), abs=1e-4)
    [one] = classify(text=rows[2]["text"], image=None)
    assert one["score"] == pytest.approx(expected[2].sigmoid().max().item(), abs=1e-4)
    assert classify(text=rows[2]["text"])[0]["label"] == one["label"]
    assert len(classify(text=columns["text"][1:], image=None)) == 2
    for call in (classify, lambda row: model(**row), lambda row: classify.processor(**row)):
        with pytest.raises(ValueError, match=r"lacks|at least one"):
            call({"image": None, "text": None})
    monkeypatch.setattr(model.config, "fill_missing", None)
    for one in (model, model.train()):
        with pytest.raises(ValueError, match=r"`text` has no feature in rows \[0\]; `fill_missing`"):
            one(**columns)
    model.eval()
    with pytest.raises(ValueError, match=r"lacks \['image'\]"):
        model(text="the fox")
    assert model(text="the fox", fill_missing="random").logits.shape == (1, 3)


def test_pipeline_options(published, classify):
    row = rows_of(published[1])[0]
    assert len(classify(row, top_k=2)) == 2
    assert sum(scores_of(classify(row, function_to_apply="softmax", top_k=None))) == pytest.approx(1)
    logits = scores_of(classify(row, function_to_apply="none", top_k=None))
    assert torch.tensor(logits).sigmoid().tolist() == pytest.approx(scores_of(classify(row, top_k=None)))
    with pytest.raises(ValueError, match="at least 1"):
        classify(row, top_k=0)
    for top_k in (1.5, "two", True, [1]):
        with pytest.raises(ValueError, match="`top_k` must be a whole number, at least 1, or None"):
            classify(row, top_k=top_k)
    with pytest.raises(ValueError, match="got 'tanh'"):
        classify(row, function_to_apply="tanh")
    with pytest.raises(ValueError, match=r"Unknown parameters \['topk'\]"):
        classify(row, topk=3)
    with pytest.raises(ValueError, match=r"lacks \['image'\]; it has \['text'\]"):
        classify({"text": "the fox", "image": None})
    with pytest.raises(ValueError, match="A sample is a dictionary"):
        classify("the fox")


def test_pipeline_takes_lists_data_sets_and_generators(published, classify):
    rows = rows_of(published[1])
    expected = [classify(row, top_k=3) for row in rows]

    def same(results):
        results = list(results)
        assert [[entry["label"] for entry in x] for x in results] == [[entry["label"] for entry in x] for x in expected]
        for result, other in zip(results, expected, strict=True):
            assert scores_of(result) == pytest.approx(scores_of(other), abs=1e-3)
            assert result[0]["expert_weights"] == pytest.approx(other[0]["expert_weights"], abs=1e-3)

    assert classify([]) == classify(text=[], image=[]) == []
    same(classify(rows, top_k=3))
    same(classify(rows, batch_size=2, top_k=3))
    same(classify(rows, batch_size=2, num_workers=1, top_k=3))
    same(classify((row for row in rows), batch_size=3, top_k=3))
    same(classify(published[1].splits["test"], batch_size=2, top_k=3))  # with ids and labels, which do not matter
    same(classify(Dataset.from_list(rows), batch_size=5, top_k=3))


def test_pictures_by_their_address(published, classify, tmp_path):
    row = rows_of(published[1])[1]
    shutil.copy(row["image"], tmp_path / "poster.png")
    _write_png_of_size(tmp_path / "enormous.png", 50_000, 50_000)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert classify({**row, "image": f"{address}/poster.png"}) == classify(row)
        with pytest.raises(ValueError, match=rf"{address}/enormous\.png: cannot be read as a picture: .*2500000000"):
            classify({**row, "image": f"{address}/enormous.png"})
        with pytest.raises(ValueError, match=rf"{address}/none\.png: could not be fetched: .*404"):
            classify({**row, "image": f"{address}/none.png"})
        server.shutdown()


def test_two_pictures(tmp_path):
    model, raw, _ = make_published(tmp_path, modalities={"wireframe": "image", "screenshot": "image"})
    repository = save_published(model, tmp_path / "repository")
    classify = open_pipeline(repository)
    split = raw.splits["test"]
    rows = [{name: split[name][i]["path"] for name in ("screenshot", "wireframe")} for i in range(3)]
    results = classify(rows, batch_size=3, function_to_apply="none", top_k=1)
    with torch.no_grad():
        logits = model(**{name: [row[name] for row in rows] for name in rows[0]}).logits
    assert [x[0]["score"] for x in results] == pytest.approx(logits.max(dim=1).values.tolist(), abs=1e-4)
    assert list(results[0][0]["expert_weights"]) == [
        "uniqueness_wireframe",
        "uniqueness_screenshot",
        "synergy",
        "redundancy",
    ]


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
def test_other_tasks(tmp_path, problem_type):
    model, raw, _ = make_published(tmp_path, problem_type=problem_type)
    classify = open_pipeline(save_published(model, tmp_path / "repository"))
    result = classify(rows_of(raw)[0], top_k=None)
    assert all("predicted" not in entry for entry in result)
    with torch.no_grad():
        logits = model(**rows_of(raw)[0]).logits[0]
    if problem_type == "regression":
        assert [entry["label"] for entry in result] == ["Drama", "Comedy", "Thriller"]
        assert scores_of(result) == pytest.approx(logits.tolist(), abs=1e-5)
        assert classify(rows_of(raw)[0]) == result
    else:
        assert scores_of(result) == pytest.approx(logits.softmax(0).sort(descending=True).values.tolist(), abs=1e-5)
