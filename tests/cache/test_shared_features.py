import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from fake_hub import FakeHub
from huggingface_hub import DatasetCard
from published import COMMIT, make_published, make_raw, put_into_hub_cache, save_encoder

from fl_i2moe.cache import CorruptCacheError, build_cache, open_features
from fl_i2moe.cache.streaming import StreamedSplit
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.publishing.features import write_features
from fl_i2moe.publishing.repository import push

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    _, _, cache = make_published(folder, names={"image": "openai/clip", "text": "sample:tiny"}, splits=True)
    write_features(cache, folder / "repository", "someone/films", license="other", dataset_name="Films <b>")
    return cache, folder / "repository"


def test_published_features_are_the_cache(features):
    cache, folder = features
    again = open_features(folder)
    assert again.key == cache.key
    assert (again.modalities, again.label_names, again.counts) == (cache.modalities, cache.label_names, cache.counts)
    for split, rows in cache.splits.items():
        for row, other in zip(rows, again.splits[split], strict=True):
            image, published = row.pop("image"), other.pop("image")
            assert published == {"path": Path(image["path"]).name, "bytes": None}
            for name in row:
                assert np.array_equal(row[name], other[name]), name


def test_no_folder_of_this_machine_is_named(features):
    cache, folder = features
    for path in folder.rglob("*"):
        assert path.is_dir() or str(cache.path.parent).encode() not in path.read_bytes(), path


def test_datasets_streams_it(features):
    cache, folder = features
    rows = list(load_dataset(str(folder), split="test", streaming=True))
    assert [row["id"] for row in rows] == list(cache.splits["test"]["id"])
    assert np.array_equal(rows[1]["text_features"], cache.splits["test"][1]["text_features"])
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "other"
    assert "Films &lt;b&gt;" in card.text


def test_pictures_and_what_was_left_out(tmp_path):
    """Pictures given as bytes are not published; nor is the folder of one that cannot be read, nor the cache's."""
    raw = make_raw(tmp_path, splits=("train", "validation", "test"))
    rows = raw.splits["train"].to_list()
    content = Path(rows[0]["image"]["path"]).read_bytes()
    rows[0]["image"] = {"path": None, "bytes": content}
    raw.splits["train"] = Dataset.from_list(rows, features=raw.splits["train"].features)
    Path(rows[3]["image"]["path"]).write_bytes(b"broken")
    encoders = {
        name: load_encoder(save_encoder(encoder, tmp_path / name), name, name=f"sample:{name}")
        for name, encoder in (("text", "roberta"), ("image", "vit"))
    }
    cache = build_cache(raw, encoders, tmp_path / "cache", progress=False, num_workers=0, on_bad_sample="skip")
    assert cache.splits["train"][0]["image"]["bytes"] == content
    assert str(tmp_path) in cache.skipped[0]["reason"] + cache.skipped[0]["file"]
    write_features(cache, tmp_path / "out", "someone/films", license="mit")
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or not {x for x in (str(tmp_path).encode(), content) if x in path.read_bytes()}, path
    again = open_features(tmp_path / "out")
    assert again.splits["train"][0]["image"] == {"path": None, "bytes": None}
    assert [(x["id"], x["file"]) for x in again.skipped] == [("sample-3", "image-3.png")] * 3
    assert "cannot be read as a picture" in again.skipped[0]["reason"]
    assert "3 samples were left out, see `skipped.jsonl`" in (tmp_path / "out" / "README.md").read_text()


def test_pushed_once(features):
    _, folder = features
    hub = FakeHub()
    assert push(folder, "someone/films", repo_type="dataset", api=hub) == "commit-1"
    assert push(folder, "someone/films", repo_type="dataset", api=hub) is None


def test_damage_and_absence_are_noticed(features, tmp_path, monkeypatch):
    cache, _ = features
    write_features(cache, tmp_path / "damaged", "someone/films", license="mit")
    shard = next((tmp_path / "damaged" / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptCacheError, match="does not match its checksum"):
        open_features(tmp_path / "damaged")
    with pytest.raises(ValueError, match="do not exist"):
        open_features(tmp_path / "nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing are no folder and could not be fetched"):
        open_features("nobody/nothing")


def test_what_was_not_fetched(features, tmp_path, monkeypatch):
    """A split that was not asked for is known, and streamed; one that is not all there is refused."""
    cache, folder = features
    put_into_hub_cache(folder, tmp_path, "someone/films", repo_type="dataset")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    next(tmp_path.glob("hub/*/snapshots/*/train/*.arrow")).unlink()
    found = open_features("someone/films", fetch=["validation", "test"])
    assert isinstance(found.splits["train"], StreamedSplit)
    assert len(found.splits["train"]) == 5
    assert found.splits["train"].files == f"hf://datasets/someone/films@{COMMIT}/train/data-*.arrow"
    assert list(found.splits["test"]["id"]) == list(cache.splits["test"]["id"])
    assert found.key == cache.key
    with pytest.raises(CorruptCacheError, match=r"fetched of someone/films is damaged or not all there: delete "):
        open_features("someone/films")


def test_a_run_and_its_explanations_start_from_published_features(features, tmp_path, monkeypatch, run_here):
    """From the Hub's cache, as if it had been fetched; without raw data, encoders and the cache they made."""
    _, folder = features
    put_into_hub_cache(folder, tmp_path / "home", "someone/films", repo_type="dataset")
    run = tmp_path / "run"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    empty = tmp_path / "empty"
    options = ["--hidden_size=8", "--num_attention_heads=2", "--num_epochs=1", "--reweighting_hidden_size=8"]
    options += ["--features", "someone/films", "--output_dir", str(run), "--batch_size=4", "--num_threads=1"]
    said = run_here("recipes/train_mmimdb.py", *options, cache=empty)
    assert "9 × 16 features from sample:tiny" in said
    results = json.loads((run / "results.json").read_text())
    assert results["samples"] == {"train": 5, "validation": 5, "test": 5}
    for split in ("train", "validation"):  # explaining fetches its split alone
        for shard in tmp_path.glob(f"home/hub/*/snapshots/*/{split}/*.arrow"):
            shard.unlink()
    options = ["--features", "someone/films", "--num_samples=1", "--num_pages=0", "--num_threads=1"]
    options += ["--units=features", "--interactions=none", "--measurements", "none"]
    run_here("recipes/explain.py", "--model", str(run), *options, cache=empty)
    assert (run / "explanations" / "index.html").is_file()
    assert not empty.exists()
