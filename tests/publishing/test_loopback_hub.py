"""The real clients of huggingface_hub, transformers and datasets against a Hub on the loopback, with fresh caches."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from loopback_hub import running_hub
from published import bare_environment, make_published, run_bare, write_run
from tiny_encoders import noise

from fl_i2moe.publishing.card import CardOptions
from fl_i2moe.publishing.features import write_features
from fl_i2moe.publishing.model import write_repository
from fl_i2moe.publishing.repository import push
from fl_i2moe.training.runs import Run

ROOT = Path(__file__).parents[2]
MODEL = "someone/fl-i2moe-mmimdb"


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    model, raw, cache = make_published(folder)
    write_run(folder / "run", model)
    return folder, model, raw, cache


def publish(hub, folder, home, token, *more, repo_id=MODEL):
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_TOKEN", None)
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "hub/publish.py", "--model", str(folder / "run"), "--repo_id", repo_id]
    command += ["--license=mit", *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


WITHOUT_THE_PACKAGE = """
import importlib.util
assert importlib.util.find_spec("fl_i2moe") is None
"""
SAY = """
import json
print(json.dumps([output.logits.tolist(), classify({"image": "poster.jpg", "text": "A pianist …"}, top_k=2)]))
"""


def shown_use(markdown):
    """The Python of README or card that loads a published model."""
    [code] = [x for x in re.findall(r"```python\n(.*?)```", markdown, re.DOTALL) if "AutoProcessor" in x]
    return code


def test_a_push_by_the_real_client(hub, films, tmp_path, monkeypatch):
    folder, _, _, _ = films
    write_repository(Run.open(folder / "run"), tmp_path / "repository", CardOptions(MODEL, "mit"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    address = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def push_as(token):
        return push(tmp_path / "repository", MODEL, api=HfApi(endpoint=hub.address, token=token))

    with pytest.raises(ValueError, match="hf auth login"):
        push_as(False)
    with pytest.raises(ValueError, match=f"You may not write to {MODEL}"):
        push_as("hf_other")
    assert not hub.repositories
    hub.cut_uploads = 1000
    try:
        with pytest.raises(ConnectionError, match="Run the same command again"):
            push_as("hf_someone")
    finally:
        hub.cut_uploads = 0
    commits = hub.repositories[f"model/{MODEL}"].commits
    hub.cut_commit = "before"
    with pytest.raises(ConnectionError, match="Run the same command again"):
        push_as("hf_someone")
    assert len(commits) == 1  # the one that a repository begins with
    assert push_as("hf_someone") == commits[-1][0]
    assert push_as("hf_someone") is None
    assert len(commits) == 2
    files = {x.relative_to(tmp_path / "repository").as_posix(): x.read_bytes() for x in _files(tmp_path / "repository")}
    assert files.items() <= commits[-1][1].items()
    (tmp_path / "repository" / "results.json").write_text("{}")
    hub.cut_commit = "after"
    with pytest.raises(ConnectionError, match="or only the answer was lost and all is there"):
        push_as("hf_someone")
    assert len(commits) == 3
    assert push_as("hf_someone") is None
    (tmp_path / "repository" / "README.md").write_text("---\nlicense: mit\n---\nnot theirs")
    with pytest.raises(ValueError, match="it is somebody else's"):
        push_as("hf_other")
    assert len(commits) == 3


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_published_and_loaded_without_the_package(hub, films, tmp_path, monkeypatch):
    folder, model, raw, _ = films
    hub.repositories.pop(f"model/{MODEL}", None)
    done = publish(hub, folder, tmp_path / "home", "hf_someone")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/{MODEL}" in done.stdout
    assert "hf_someone" not in done.stdout + done.stderr
    assert not any(b"hf_someone" in content for content in hub.repositories[f"model/{MODEL}"].at("main")[1].values())

    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    environment = bare_environment(tmp_path / "environment")
    for name in ("poster.jpg", "image.jpg"):  # as README and card call them
        noise(30, 40, seed=1).save(tmp_path / name)
    card = hub.repositories[f"model/{MODEL}"].at("main")[1]["README.md"].decode()
    code = [shown_use((ROOT / "README.md").read_text()), shown_use(card)]
    for name in raw.modalities:  # the encoders that it was trained with are out of reach: it brings its own
        (folder / f"encoder-{name}").rename(folder / f"hidden-{name}")
    said = run_bare(environment, tmp_path / "fresh", WITHOUT_THE_PACKAGE + SAY.join([*code, ""]), offline=False)
    for name in raw.modalities:
        (folder / f"hidden-{name}").rename(folder / f"encoder-{name}")
    with torch.no_grad():
        expected = model(image=tmp_path / "poster.jpg", text="A pianist …")
    scores, labels = (expected.logits[0] / model.config.temperature).sigmoid().sort(descending=True)
    found = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    assert len(found) == 2
    for logits, result in found:
        torch.testing.assert_close(torch.tensor(logits), expected.logits, atol=1e-5, rtol=0)
        assert [entry["label"] for entry in result] == [model.config.id2label[int(label)] for label in labels[:2]]
        assert [entry["score"] for entry in result] == pytest.approx(scores[:2].tolist(), abs=1e-4)
        assert sum(result[0]["expert_weights"].values()) == pytest.approx(1)
    assert f"GET /{MODEL}/resolve/" in "\n".join(hub.requests)
    assert not any(b"hf_someone" in path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_private_repositories_and_unknown_revisions(hub, films, tmp_path, monkeypatch):
    folder, _, _, _ = films
    private, cache = "someone/secret", tmp_path / "fresh"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    write_repository(Run.open(folder / "run"), tmp_path / "repository", CardOptions(private, "mit"))
    api = HfApi(endpoint=hub.address, token="hf_someone")
    push(tmp_path / "repository", private, private=True, api=api)
    assert hub.repositories[f"model/{private}"].private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.address, token="hf_other").snapshot_download(private, cache_dir=cache)
    assert (Path(api.snapshot_download(private, cache_dir=cache)) / "model.safetensors").is_file()
    with pytest.raises(RevisionNotFoundError, match="no-such-branch"):
        api.snapshot_download(private, revision="no-such-branch", cache_dir=cache)


STREAM = """
import json, sys
from datasets import load_dataset
from fl_i2moe.cache import open_features
rows = list(load_dataset("someone/features", split="test", streaming=True))
cache = open_features("someone/features")
first = cache.splits["test"][0]
print(json.dumps([[row["id"] for row in rows], rows[0]["text_features"][1], first["text_features"][1]]))
"""


def test_features_are_streamed_and_downloaded(hub, films, tmp_path, monkeypatch):
    _, _, _, cache = films
    write_features(cache, tmp_path / "features", "someone/features", license="other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    api = HfApi(endpoint=hub.address, token="hf_someone")
    assert push(tmp_path / "features", "someone/features", repo_type="dataset", api=api)
    assert push(tmp_path / "features", "someone/features", repo_type="dataset", api=api) is None
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "fresh"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", STREAM], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    ids, streamed, downloaded = json.loads(run.stdout.splitlines()[-1])
    expected = cache.splits["test"]
    assert ids == list(expected["id"])
    assert streamed == downloaded == expected[0]["text_features"][1]
