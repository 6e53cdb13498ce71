import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as Picture
from PIL import Image
from published import COMMIT, make_published, put_into_hub_cache, save_encoder
from tiny_models import make_config, make_model
from transformers import AutoModel

from fl_i2moe.cache import build_cache
from fl_i2moe.cache.batching import FeatureRows
from fl_i2moe.data.raw import RawDataset, SampleError
from fl_i2moe.explain import explain
from fl_i2moe.explain.inputs import sample_row
from fl_i2moe.model.encoders import load_encoder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return make_published(tmp_path_factory.mktemp("published"))


def values(raw, rows=slice(None)):
    return {name: list(raw.splits["test"][name])[rows] for name in raw.modalities}


@torch.no_grad()
def test_raw_inputs_give_what_cached_features_give(published):
    model, raw, cache = published
    batch = FeatureRows(cache.splits["test"], model.config.modality_order)[list(range(5))]
    cached = model(features=batch["features"], feature_masks=batch["feature_masks"])
    given = model(**values(raw))
    assert given.logits.std() > 0.01
    for name in ("logits", "expert_logits", "expert_weights"):
        torch.testing.assert_close(given[name], cached[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_form_of_a_picture_and_one_sample(published):
    model, raw, _ = published
    path = values(raw)["image"][2]["path"]
    text = values(raw)["text"][2]
    picture = Image.open(path)
    expected = model(**values(raw)).logits[2:3]
    for image in (path, Path(path), picture, np.asarray(picture), np.asarray(picture)[None], [path]):
        torch.testing.assert_close(model(image=image, text=text).logits, expected, atol=1e-3, rtol=0)


def test_a_raw_sample_is_explained_as_its_cached_row(published):
    model, raw, cache = published
    row = cache.splits["test"][3]
    model.set_attn_implementation("eager")
    given = sample_row(model, {"id": row["id"], **{name: x[3] for name, x in values(raw).items()}})
    assert set(given) == set(row) - {"labels"}
    for name in ("text", "text_offsets", "image", "image_geometry"):
        assert given[name] == row[name]
    for name in ("text_special_mask", "image_special_mask"):
        assert given[name].tolist() == row[name]
    np.testing.assert_allclose(given["image_features"], np.asarray(row["image_features"]), atol=2e-3)
    one, other = (
        explain(model, x, "Comedy", units="features", interactions="exact", universe_share=0.2) for x in (given, row)
    )
    np.testing.assert_allclose(one.importance["synergy"]["text"], other.importance["synergy"]["text"], atol=1e-2)
    assert one.pairs("synergy", top=1)[0].score == pytest.approx(other.pairs("synergy", top=1)[0].score, abs=1e-3)
    with pytest.raises(ValueError, match="has no text, only image"):
        sample_row(model, {"image": "poster.png"})


def test_encoders_are_no_part_of_the_model(published, tmp_path):
    model, raw, _ = published
    before = [name for name, _ in model.named_parameters()], set(model.state_dict()), len(list(model.modules()))
    model(**values(raw))
    assert before == (
        [name for name, _ in model.named_parameters()],
        set(model.state_dict()),
        len(list(model.modules())),
    )
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(**values(raw)).logits, model(**values(raw)).logits, atol=1e-6, rtol=0)


def test_thin_and_damaged_pictures_are_left_out_by_name(tmp_path):
    encoder = load_encoder(save_encoder("clip", tmp_path / "clip"), "image", resize="crop")
    paths = {name: str(tmp_path / f"{name}.png") for name in ("sound", "thin", "turned", "damaged")}
    for name, size in {"sound": (60, 40), "thin": (10000, 3), "turned": (40, 60)}.items():
        Image.new("RGB", size).save(paths[name])
    Image.new("RGB", (40, 40)).save(paths["damaged"], "DDS")
    content = bytearray(Path(paths["damaged"]).read_bytes())
    content[76:90] = b"\xff" * 14  # its pixel format
    Path(paths["damaged"]).write_bytes(content)
    features = Features({"id": Value("string"), "image": Picture(decode=False), "labels": List(Value("float32"), 2)})
    rows = [{"id": name, "image": {"path": path, "bytes": None}, "labels": [0, 1]} for name, path in paths.items()]
    splits = DatasetDict(train=Dataset.from_list(rows, features))
    raw = RawDataset(splits, {"image": "image"}, ["a", "b"], "multi_label_classification")
    with pytest.raises(SampleError, match=r"'thin' of split 'train' has a bad 'image': .*too thin.*thin.png"):
        build_cache(raw, {"image": encoder}, tmp_path / "stopped", num_workers=0, progress=False)
    cache = build_cache(
        raw, {"image": encoder}, tmp_path / "cache", num_workers=0, progress=False, on_bad_sample="skip"
    )
    assert list(cache.splits["train"]["id"]) == ["sound", "turned"]
    skipped = [json.loads(line) for line in (tmp_path / "cache" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in skipped] == ["thin", "damaged"]


def test_gradients_stop_at_the_features(published):
    model, raw, _ = published
    model.zero_grad()
    model(**values(raw)).logits.sum().backward()
    assert model.stems[0].projection.weight.grad is not None
    assert all(p.grad is None for p in model.raw_inputs.load("image").parameters())


@torch.no_grad()
def test_the_encoder_follows_the_models_number_format(tmp_path):
    model, raw, _ = make_published(tmp_path)
    expected = model(**values(raw)).logits
    half = model.to(torch.bfloat16)
    logits = half(**values(raw)).logits
    assert half.raw_inputs.load("text").dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)
    model.to(torch.float32)(**values(raw))
    assert model.raw_inputs.load("text").dtype == torch.float32


@torch.no_grad()
def test_under_float32_the_encoder_computes_as_at_training(tmp_path):
    model, raw, _ = make_published(tmp_path)
    model.config.encoders["text"]["dtype"] = "bfloat16"
    encoder = load_encoder(tmp_path / "encoder-text", "text", max_length=9, dtype=torch.bfloat16)
    model.config.encoders["text"]["weights_sha256"] = encoder.identity()["weights_sha256"]
    model(**values(raw))
    assert model.raw_inputs.load("text").dtype == torch.bfloat16


def test_dropped_special_features_and_two_pictures(tmp_path):
    model, raw, cache = make_published(
        tmp_path, modalities={"wireframe": "image", "screenshot": "image"}, special_features="drop"
    )
    assert model.config.modality_order == ["wireframe", "screenshot"]
    batch = FeatureRows(cache.splits["test"], model.config.modality_order)[list(range(5))]
    with torch.no_grad():
        cached = model(features=batch["features"], feature_masks=batch["feature_masks"])
        torch.testing.assert_close(model(**values(raw)).logits, cached.logits, atol=1e-5, rtol=0)


def test_other_weights_are_refused(tmp_path):
    model, raw, _ = make_published(tmp_path)
    encoder = load_encoder(tmp_path / "encoder-image", "image").model
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    encoder.save_pretrained(tmp_path / "encoder-image")
    with pytest.raises(ValueError, match=r"encoder of 'image' in .* is not the one that this model was trained on"):
        model(**values(raw))


def test_a_local_copy_of_an_encoder(tmp_path, monkeypatch):
    model, raw, _ = make_published(tmp_path, names={"text": "nobody/no-such-model"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"(?s)'nobody/no-such-model'.*model\.load_encoders\(\{'text': '<folder>'\}\)"):
        model(**values(raw))
    model.load_encoders({"text": tmp_path / "encoder-text"})
    assert model(**values(raw)).logits.shape == (5, 3)
    with pytest.raises(ValueError, match="unknown modalities"):
        model.load_encoders({"txt": tmp_path})


CODE_OF_AN_ENCODER = """
from pathlib import Path
from transformers import RobertaConfig, RobertaModel
Path(__file__).with_name("has_run").touch()
class OwnConfig(RobertaConfig):
    pass
class OwnModel(RobertaModel):
    config_class = OwnConfig
"""


def test_an_encoders_own_code_runs_only_where_that_was_said(tmp_path, own_modules):
    """Not because the model's own code may run."""
    model, raw, _ = make_published(tmp_path)
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(**values(raw)).logits
    encoder = tmp_path / "encoder-text"
    (encoder / "own.py").write_text(CODE_OF_AN_ENCODER)
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": "own_roberta", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (encoder / "config.json").write_text(json.dumps(config))
    model = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True).eval()
    with pytest.raises(ValueError, match=r"(?s)custom code which must be executed.*trust_remote_code=True"):
        model(**values(raw))
    assert not list(tmp_path.rglob("has_run"))
    model.load_encoders(trust_remote_code=True)
    assert list(tmp_path.rglob("has_run"))
    with torch.no_grad():
        torch.testing.assert_close(model(**values(raw)).logits, expected, atol=1e-5, rtol=0)


def test_what_is_missing_is_named(published):
    model, raw, _ = published
    with pytest.raises(ValueError, match=r"`inputs` lacks \['image'\]"):
        model(text="the fox")
    with pytest.raises(ValueError, match=r"or raw inputs of \['text', 'image'\] by name; got \['imag'\]"):
        model(imag="poster.png")
    with pytest.raises(ValueError, match="missing"):
        model(image="no-such-picture.png", text="the fox")
    with pytest.raises(ValueError, match="2 samples, the other modalities 5"):
        model(text=values(raw)["text"], image=values(raw)["image"][:2])
    with pytest.raises(ValueError, match="names no encoder of 'text'"):
        make_model(make_config())(text="a", image="b.png")


FROM_THE_HUB = """
import json, sys
from pathlib import Path
from fl_i2moe.model.encoders import load_encoder
from transformers import AutoModel
picture, main, cache = sys.argv[1:]
def logits(**options):
    return AutoModel.from_pretrained("someone/model", **options).eval()(image=picture, text="the fox").logits.tolist()
out = {"revision": load_encoder("someone/vit", "image").identity()["revision"], "logits": logits()}
Path(main).write_text("f" * 40)
out["moved"] = logits()
model = AutoModel.from_pretrained("someone/model", token="hf_secret", local_files_only=True)
out["options"], out["shown"] = model.raw_inputs.repository.options, repr(model.raw_inputs.repository)
# the encoders of a model from another cache come from there, too
Path(cache).parent.joinpath("hub").rename(cache)
out["elsewhere"] = logits(cache_dir=cache)
print(json.dumps(out))
"""


def test_encoders_from_the_hub_are_pinned_by_their_commit(tmp_path):
    """Against a cache as the Hub's client fills it: encoders of a hub id, and one that lies beside the model."""
    home = tmp_path / "home"
    put_into_hub_cache(save_encoder("vit", tmp_path / "vit"), home, "someone/vit")
    model, raw, _ = make_published(tmp_path, names={"image": "someone/vit", "text": "sample:tiny"})
    model.config.encoders["image"]["revision"] = COMMIT
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "encoders").mkdir()
    (tmp_path / "encoder-text").rename(tmp_path / "model" / "encoders" / "text")
    put_into_hub_cache(tmp_path / "model", home, "someone/model", commit=COMMIT[::-1])
    main, cache = home / "hub" / "models--someone--vit" / "refs" / "main", home / "elsewhere"
    found = _run(FROM_THE_HUB, home, raw.splits["test"]["image"][0]["path"], str(main), str(cache))
    assert found["revision"] == COMMIT
    assert found["moved"] == found["logits"]  # the branch has moved on: the pinned commit's is the one to take
    assert found["elsewhere"] == found["logits"]
    assert found["options"] == {"token": "hf_secret", "local_files_only": True, "revision": COMMIT[::-1]}
    assert "hf_secret" not in found["shown"]


def _run(code, home, *arguments):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
