import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, http_error
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from published import LABELS, make_published, write_run
from transformers import AutoModel, AutoProcessor

from fl_i2moe.publishing.card import CardOptions
from fl_i2moe.publishing.model import write_repository
from fl_i2moe.publishing.repository import choose_license, copy_file, push, without_paths, write_file_list
from fl_i2moe.training.runs import Run

ROOT = Path(__file__).parents[2]
REPOSITORY = "someone/fl-i2moe-films"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A run on encoders that are local folders; what is published of it."""
    folder = tmp_path_factory.mktemp("films")
    model, raw, _ = make_published(folder)
    write_run(folder / "run", model, figures=True)
    (folder / "run" / "explanations" / "samples").mkdir(parents=True)
    (folder / "run" / "explanations" / "run.json").write_text("{}")
    (folder / "run" / "explanations" / "alignment.png").write_bytes(b"a figure")
    (folder / "run" / "explanations" / "samples" / "private.html").write_text("a sample")
    write_repository(Run.open(folder / "run"), folder / "repository", CardOptions(REPOSITORY, "mit"))
    return folder, model, raw


@pytest.mark.parametrize("link", ["figures/a.png", "explanations/a.json", "figures", "encoder"])
def test_what_lies_behind_links_is_not_published(films, tmp_path, link):
    folder, *_ = films
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.png", "a.json"):
        (tmp_path / "elsewhere" / name).write_text("secret")
    run = shutil.copytree(folder / "run", tmp_path / "run")
    if link == "encoder":
        config = json.loads((run / "config.json").read_text())
        encoder = shutil.copytree(config["encoders"]["text"]["name"], tmp_path / "text")
        config["encoders"]["text"]["name"] = str(encoder)
        (run / "config.json").write_text(json.dumps(config))
        (encoder / "a.json").symlink_to(tmp_path / "elsewhere" / "a.json")
    elif link == "figures":
        shutil.rmtree(run / "figures")
        (run / "figures").symlink_to(tmp_path / "elsewhere")
    else:
        (run / link).symlink_to(tmp_path / "elsewhere" / Path(link).name)
    with pytest.raises(ValueError, match=r"leads to .*elsewhere.*: it is not published"):
        write_repository(Run.open(run), tmp_path / "repository", CardOptions(REPOSITORY, "mit"))


def test_links_in_a_folder_that_is_pushed(tmp_path):
    (tmp_path / "a.txt").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"a\.txt is a link to /etc/hostname"):
        push(tmp_path, REPOSITORY, api=FakeHub())


def test_links_of_the_hubs_own_cache_are_its_files(tmp_path):
    blob, snapshot = tmp_path / "blobs" / "abc", tmp_path / "snapshots" / "def"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)
    blob.write_text("weights")
    (snapshot / "config.json").symlink_to(blob)
    copy_file(snapshot / "config.json", tmp_path / "copy" / "config.json", snapshot)
    assert (tmp_path / "copy" / "config.json").read_text() == "weights"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_repository_is_whole(films):
    folder, model, raw = films
    names = set(files_of(folder / "repository"))
    assert names >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_fl_i2moe.py",
        "processor_config.json",
        "pipeline_fl_i2moe.py",
        "results.json",
        "interaction_statistics.json",
        "figures/expert_weights.png",
        "explanations/alignment.png",
        "encoders/text/model.safetensors",
        "encoders/text/tokenizer.json",
        "encoders/image/config.json",
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".html", "run.json"))]
    for name, content in files_of(folder / "repository").items():
        assert str(folder).encode() not in content, f"{name} names a folder of this machine"
    results = json.loads((folder / "repository" / "results.json").read_text())
    assert results["settings"]["data_dir"] == "films"
    assert results["encoders"]["text"]["name"] == "encoder-text"

    moved = (folder / "repository").rename(folder / "moved")  # its encoders lie beside it now
    (folder / "encoder-text").rename(folder / "elsewhere")
    again, processor = AutoModel.from_pretrained(moved).eval(), AutoProcessor.from_pretrained(moved)
    given = {"image": [x["path"] for x in raw.splits["test"]["image"]], "text": list(raw.splits["test"]["text"])}
    (folder / "elsewhere").rename(folder / "encoder-text")
    with torch.no_grad():
        torch.testing.assert_close(again(**processor(**given)).logits, model(**given).logits, atol=1e-5, rtol=0)
    moved.rename(folder / "repository")


def test_one_commit_and_then_none(films):
    folder, _, _ = films
    hub = FakeHub()
    assert push(folder / "repository", REPOSITORY, private=True, message="Publish", api=hub) == "commit-1"
    assert hub.private[REPOSITORY] is True
    expected = files_of(folder / "repository")
    assert hub.repositories[REPOSITORY] == {**expected, ".gitattributes": b"*.safetensors lfs\n"}
    assert push(folder / "repository", REPOSITORY, api=hub) is None
    assert len(hub.commits) == 1


def test_the_same_run_makes_the_same_files(films, tmp_path):
    folder, _, _ = films
    write_repository(Run.open(folder / "run"), tmp_path / "again", CardOptions(REPOSITORY, "mit"))
    assert files_of(tmp_path / "again") == files_of(folder / "repository")


def test_only_what_changed_is_pushed(films):
    folder, _, _ = films
    hub = FakeHub()
    push(folder / "repository", REPOSITORY, api=hub)
    own = hub.repositories[REPOSITORY]
    own["README.md"] += b"x"
    weights = bytearray(own["model.safetensors"])
    weights[-1] ^= 1  # of the same size
    own["model.safetensors"] = bytes(weights)
    push(folder / "repository", REPOSITORY, api=hub)
    assert sorted(hub.commits[-1][1]) == ["README.md", "model.safetensors"]


def test_a_new_version_takes_its_old_files_away_and_no_others(films, tmp_path):
    """Whoever owns the repository may keep code and figures of their own in it, also where ours lie."""
    folder, _, _ = films
    earlier = tmp_path / "earlier"
    shutil.copytree(folder / "repository", earlier)
    for name in ("old_code.py", "figures/old.png", "encoders/sound/config.json"):
        (earlier / name).parent.mkdir(exist_ok=True)
        (earlier / name).write_text("old")
    write_file_list(earlier)
    hub = FakeHub()
    push(earlier, REPOSITORY, api=hub)
    theirs = {"LICENSE": b"mine", "demo.py": b"mine", "figures/mine.png": b"mine", "notes/mine.py": b"mine"}
    hub.repositories[REPOSITORY] |= theirs
    push(folder / "repository", REPOSITORY, api=hub)
    changed = ["encoders/sound/config.json", "figures/old.png", "old_code.py", "published_files.json"]
    assert sorted(hub.commits[-1][1]) == changed
    expected = {**files_of(folder / "repository"), **theirs, ".gitattributes": b"*.safetensors lfs\n"}
    assert hub.repositories[REPOSITORY] == expected
    assert push(folder / "repository", REPOSITORY, api=hub) is None


def test_the_license_is_somebodys_decision(tmp_path):
    with pytest.raises(ValueError, match=r"`license` is needed: what others may do with the weights .*mit, cc-by-4\.0"):
        choose_license(None, tmp_path, "the weights")
    with pytest.raises(ValueError, match="must be an identifier of the Hub, got 'MIT License'"):
        choose_license("MIT License", tmp_path, "the weights")
    assert choose_license("mit", tmp_path, "the weights") == "mit"
    (tmp_path / "README.md").write_text("# Without a head\n")
    with pytest.raises(ValueError, match="is needed"):
        choose_license(None, tmp_path, "the weights")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    assert choose_license(None, tmp_path, "the weights") == "cc-by-nc-4.0"
    assert choose_license("mit", tmp_path, "the weights") == "mit"


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (http_error(401), ValueError, "does not know who you are: run `hf auth login`"),
        (http_error(403, "not yours"), ValueError, r"may not write to someone/.*your token only reads.*not yours"),
        (http_error(412), ValueError, "Somebody changed someone/fl-i2moe-films meanwhile"),
        (http_error(500, "out of order"), ValueError, "refused to publish .*: out of order"),
        (LocalTokenNotFoundError("no token"), ValueError, "Nobody is logged in: run `hf auth login`, or set HF_TOKEN"),
        (HTTPError("cut"), ConnectionError, r"Nothing is published by halves: .*\. Run the same command again"),
        (OSError("cut"), ConnectionError, "or the connection broke"),
    ],
)
def test_a_push_that_fails_leaves_the_repository_as_it_was(films, error, expected, message):
    folder, _, _ = films
    hub = FakeHub(fail=error)
    with pytest.raises(expected, match=message):
        push(folder / "repository", REPOSITORY, api=hub)
    assert set(hub.repositories[REPOSITORY]) == {".gitattributes"}
    assert push(folder / "repository", REPOSITORY, api=hub) == "commit-1"
    assert files_of(folder / "repository").items() <= hub.repositories[REPOSITORY].items()


def test_what_is_refused(films, tmp_path):
    folder, model, _ = films
    run = Run.open(folder / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        write_repository(run, tmp_path / "full", CardOptions(REPOSITORY, "mit"))

    write_run(tmp_path / "pickled", model)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model\.safetensors; weights in other formats are not published"):
        write_repository(Run.open(tmp_path / "pickled"), tmp_path / "out", CardOptions(REPOSITORY, "mit"))
    with pytest.raises(OSError, match=r"has no model\.safetensors; pickles can run code and are not read"):
        AutoModel.from_pretrained(tmp_path / "pickled")
    with pytest.raises(ValueError, match="pickles can run code and are not read"):
        AutoModel.from_pretrained(tmp_path / "pickled", use_safetensors=False)

    config = json.loads((folder / "run" / "config.json").read_text())
    config["encoders"]["text"]["weights_sha256"] = "0" * 64
    write_run(tmp_path / "other", model)
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not the one that this model was trained on"):
        write_repository(Run.open(tmp_path / "other"), tmp_path / "out", CardOptions(REPOSITORY, "mit"))


def test_modalities_that_are_arrays(films, tmp_path):
    """Features that no encoder made: nothing to copy, no processor, and a card that says how to give features."""
    _, model, _ = films
    other = copy.deepcopy(model)
    array = {"name": "numeric arrays", "kind": "array", "feature_size": 16, "standardised_by": None}
    other.config.encoders = dict.fromkeys(other.config.encoders, array)
    write_run(tmp_path / "run", other)
    write_repository(Run.open(tmp_path / "run"), tmp_path / "out", CardOptions(REPOSITORY, "mit"))
    names = set(files_of(tmp_path / "out"))
    assert "processor_config.json" not in names
    assert not any(name.startswith("encoders/") for name in names)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model(features=features, feature_masks=masks)" in card
    assert "pipeline(" not in card
    assert "| numeric arrays | – | – | – |" in card
    with pytest.raises(ValueError, match=r"takes no raw values, it was trained by version 0\.1\.0.*give `features`"):
        AutoModel.from_pretrained(tmp_path / "out")(image="a.png", text="the fox")


def test_paths_of_this_machine():
    assert without_paths(
        {"a": ["/home/me/films/", "~/x", "../y", "C:\\data\\z", "someone/name", "1e-3 / 2", 3, None]}
    ) == {"a": ["films", "x", "y", "z", "someone/name", "1e-3 / 2", 3, None]}


def test_the_command(films, tmp_path, monkeypatch, run_here):
    folder, _, _ = films
    command = ["hub/publish.py", "--model", str(folder / "run"), "--repo_id", REPOSITORY, "--license=mit"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Nothing is published" in run_here(*command, "--dry_run", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(folder / "repository")
    assert all(label in (tmp_path / "out" / "README.md").read_text() for label in LABELS)

    def refuse(*arguments, **options):
        raise ConnectionError("cut")

    monkeypatch.setattr("fl_i2moe.publishing.repository.push", refuse)
    with pytest.raises(SystemExit, match="error: cut"):
        run_here(*command)
