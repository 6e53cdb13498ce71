"""The real clients of huggingface_hub, transformers and datasets against a Hub on the loopback, with fresh caches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from loopback_hub import running_hub
from published import bare_environment, make_published, run_bare, write_run

from fl_i2moe.card import CardOptions
from fl_i2moe.feature_publishing import write_features
from fl_i2moe.finished_run import Run
from fl_i2moe.publishing import push, write_repository

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "hub" / "model_card.md.jinja"
MODEL = "someone/fl-i2moe-films"


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


THREE_BLOCKS = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline
poster, plot = sys.argv[1], sys.argv[2]
model = AutoModel.from_pretrained("someone/fl-i2moe-films", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("someone/fl-i2moe-films", trust_remote_code=True)
out = model.eval()(**processor(image=poster, text=plot, return_tensors="pt"))
classify = pipeline("image-text-classification", model="someone/fl-i2moe-films", trust_remote_code=True)
result = classify({"image": poster, "text": plot}, top_k=5)
print(json.dumps({"logits": out.logits.tolist(), "result": result}))
"""


def test_a_push_by_the_real_client(hub, films, tmp_path, monkeypatch):
    folder, _, _, _ = films
    write_repository(Run.open(folder / "run"), tmp_path / "repository", CardOptions(MODEL, "mit"), TEMPLATE)
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
    assert len(commits) == 1  # the one that a repository begins with
    assert push_as("hf_someone") == commits[-1][0]
    assert push_as("hf_someone") is None
    assert len(commits) == 2
    files = {x.relative_to(tmp_path / "repository").as_posix(): x.read_bytes() for x in _files(tmp_path / "repository")}
    assert files.items() <= commits[-1][1].items()
    (tmp_path / "repository" / "README.md").write_text("---\nlicense: mit\n---\nnot theirs")
    with pytest.raises(ValueError, match="it is somebody else's"):
        push_as("hf_other")
    assert len(commits) == 2


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
    poster, plot = raw.splits["test"]["image"][2]["path"], raw.splits["test"]["text"][2]
    for name in raw.modalities:  # the encoders that it was trained with are out of reach: it brings its own
        (folder / f"encoder-{name}").rename(folder / f"hidden-{name}")
    environment = bare_environment(tmp_path / "environment")
    output = run_bare(environment, tmp_path / "fresh", THREE_BLOCKS, poster, plot, offline=False)
    for name in raw.modalities:
        (folder / f"hidden-{name}").rename(folder / f"encoder-{name}")
    found = json.loads(output.splitlines()[-1])
    with torch.no_grad():
        expected = model(image=poster, text=plot).logits
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-5, rtol=0)
    assert len(found["result"]["labels"]) == 3
    assert "GET /someone/fl-i2moe-films/resolve/" in "\n".join(hub.requests)


def test_private_repositories_and_unknown_revisions(hub, films, tmp_path, monkeypatch):
    folder, _, _, _ = films
    private, cache = "someone/secret", tmp_path / "fresh"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    write_repository(Run.open(folder / "run"), tmp_path / "repository", CardOptions(private, "mit"), TEMPLATE)
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
from fl_i2moe.shared_features import open_features
rows = list(load_dataset("someone/features", split="test", streaming=True))
cache = open_features("someone/features")
first = cache.splits["test"][0]
print(json.dumps([[row["id"] for row in rows], rows[0]["text_features"][1], first["text_features"][1]]))
"""


def test_features_are_streamed_and_downloaded(hub, films, tmp_path, monkeypatch):
    _, _, _, cache = films
    template = ROOT / "hub" / "features_card.md.jinja"
    write_features(cache, tmp_path / "features", "someone/features", template, license="other")
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
