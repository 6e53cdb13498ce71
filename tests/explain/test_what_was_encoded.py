"""What an explanation shows is what was encoded; where it is gone or another one, it says so wherever it is read."""

import json
import os
import shutil
from contextlib import chdir
from dataclasses import replace
from functools import partial
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from drawn import shown_texts
from explained import make_explanation, make_row, write_picture
from PIL import Image
from published import make_published
from rich.console import Console
from test_report import Page

from fl_i2moe.cache import open_cache
from fl_i2moe.evaluation.human_evaluation.study import DrawArguments, draw_questionnaire
from fl_i2moe.evaluation.run.arguments import ExplainArguments
from fl_i2moe.evaluation.run.explanations import run_explanations
from fl_i2moe.explain import Explanation
from fl_i2moe.explain import explain as explain_sample
from fl_i2moe.explain.inputs import sample_row
from fl_i2moe.explain.pages.sample_figure import draw_explanation
from fl_i2moe.explain.pages.sample_page import render_page
from fl_i2moe.model.kinds import places_in
from fl_i2moe.publishing.features import write_features

explain = partial(explain_sample, units="features", interactions=None)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded")
    model, raw, cache = make_published(folder)
    model.save_pretrained(folder / "model")
    return folder, model, raw, cache


@pytest.fixture
def pictures(encoded, tmp_path):
    """The folder of the pictures, which is as it was when the test is over."""
    folder = encoded[0]
    for path in folder.glob("image-*.png"):
        shutil.copy2(path, tmp_path)
    yield folder
    for path in tmp_path.glob("image-*.png"):
        shutil.copy2(path, folder)


def another_picture(path):
    """Of the same size."""
    with Image.open(path) as image:
        pixels = 255 - np.asarray(image.convert("RGB"))
    Image.fromarray(pixels).save(path)


def test_every_row_has_checksums_of_what_was_encoded(encoded):
    _, _, raw, cache = encoded
    for row, source in zip(cache.splits["test"], raw.splits["test"], strict=True):
        assert row["image_sha256"] == sha256(Path(source["image"]["path"]).read_bytes()).hexdigest()
        assert row["text_sha256"] == sha256(source["text"].encode()).hexdigest()


DAMAGES = {
    "replaced": (
        another_picture,
        r"The image is not the one that was encoded: {} has changed; put the encoded one back",
    ),
    "recompressed": (
        lambda path: Image.open(path).convert("RGB").save(path, "JPEG"),
        r"The image is not the one that was encoded: {} has changed",
    ),
    "another size": (lambda path: Image.new("RGB", (3, 3)).save(path), r"The image is not the one that was encoded"),
    "no picture": (lambda path: path.write_bytes(b"text"), r"The image is not the one that was encoded"),
    "empty": (lambda path: path.write_bytes(b""), r"The image is not the one that was encoded"),
    "gone": (Path.unlink, r"The image is not at {}: put it there, or a link to it, to see it\."),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"The image is not at {}: put it there"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), r"The image is not at {}: put it there"),
    "a broken link": (
        lambda path: (path.unlink(), path.symlink_to("nothing")),
        r"The image is not at {}: put it there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_picture_that_is_not_the_encoded_one_is_said_everywhere(encoded, pictures, tmp_path, name):
    _, model, _, cache = encoded
    damage, message = DAMAGES[name]
    row = cache.splits["test"][2]
    path = Path(row["image"]["path"])
    assert explain(model, row, cache=cache).notes == []
    damage(path)
    explanation = explain(model, row, cache=cache)
    [note] = explanation.notes
    assert note.startswith(message.format(path).replace(r"\.", "."))
    page = Page(explanation.save(tmp_path / "x.html").read_text(encoding="utf-8"))
    assert not page.find("image")
    assert page.text("p", "remark") == [note]
    assert len(page.find("rect", "heat")) > 0  # what is known of it
    texts = "".join(text for text, _ in shown_texts(draw_explanation(explanation))).replace(" ", "")
    assert note.replace(" ", "") in texts
    data = json.loads(explanation.save(tmp_path / "x.json").read_text(encoding="utf-8"))
    assert data["notes"] == [note]
    assert Explanation.load(tmp_path / "x.json").notes == [note]
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def test_a_moved_folder_is_said_and_healed_by_a_link(encoded, pictures, tmp_path):
    _, model, _, cache = encoded
    row = cache.splits["test"][1]
    path = Path(row["image"]["path"])
    moved = path.rename(tmp_path / "moved.png")
    assert "put it there, or a link to it" in explain(model, row, cache=cache).notes[0]
    path.symlink_to(moved)
    assert explain(model, row, cache=cache).notes == []
    path.unlink()


def test_the_picture_encoded_comes_from_bytes_where_a_cell_has_both(tmp_path):
    """A name beside the bytes, as `datasets` embeds pictures, is no file to be looked for."""
    path = write_picture(tmp_path / "poster.png")
    row = make_row("elsewhere/poster.png")
    row["image"]["bytes"] = path.read_bytes()
    row["image_sha256"] = sha256(path.read_bytes()).hexdigest()
    explanation = make_explanation(row)
    assert explanation.notes == []
    assert Page(render_page(explanation)).find("image")
    assert Explanation.from_dict(json.loads(json.dumps(explanation.to_dict()))).notes == []
    row["image"]["bytes"] = write_picture(tmp_path / "other.png", (60, 91)).read_bytes()
    assert "is not the one that was encoded" in make_explanation(row).notes[0]


def test_a_picture_without_a_checksum_is_shown_and_said_to_be_unchecked(tmp_path):
    explanation = make_explanation(make_row(write_picture(tmp_path / "poster.png")))
    page = Page(render_page(explanation))
    assert page.find("image")
    assert explanation.notes == page.text("p", "remark")
    assert (
        "is not known to be the one that was encoded, since the feature cache has no checksum" in explanation.notes[0]
    )
    # what 0.1.0 saved has no such field
    saved = explanation.to_dict()
    del saved["notes"], saved["modalities"]["image"]["sha256"], saved["modalities"]["text"]["sha256"]
    assert Explanation.from_dict(saved).notes == explanation.notes


@pytest.mark.parametrize("path", ["", "x" * 5000, "a\0b.png", "<b>$x^{.png", "https://example.org/a.png"])
def test_paths_that_lead_nowhere_get_a_sentence(tmp_path, path):
    explanation = make_explanation(make_row(path))
    [note] = explanation.notes
    assert note.startswith("The image is not ") or note.startswith("The image cannot be read at ")
    assert Page(explanation.save(tmp_path / "x.html").read_text(encoding="utf-8")).find("p", "remark")
    explanation.save(tmp_path / "x.png")


def test_another_text_is_not_shown_under_the_old_scores(encoded):
    _, model, _, cache = encoded
    row = cache.splits["test"][3]
    for text in (row["text"] + " ", "\udcff", None):
        assert "not the one that was encoded" in explain(model, {**row, "text": text}, cache=cache).notes[0]
    explanation = explain(model, {**row, "text": row["text"][::-1]}, cache=cache)
    [note] = explanation.notes
    assert note.startswith("The text is not the one that was encoded: give the row as it is in the feature cache")
    html = render_page(explanation)
    assert row["text"][::-1] not in html
    assert row["text"] not in html
    draw_explanation(explanation)
    assert explain(model, row, cache=cache).notes == []


def test_a_raw_sample_is_noted_as_it_was_encoded(encoded, pictures):
    _, model, raw, _ = encoded
    source = raw.splits["test"][4]
    path = Path(source["image"]["path"])
    given = {
        "path": path,
        "picture": Image.open(path),
        "array": np.asarray(Image.open(path)),
        "cell": {"path": None, "bytes": path.read_bytes()},
    }
    rows = {name: sample_row(model, {"image": picture, "text": source["text"]}) for name, picture in given.items()}
    for row in rows.values():
        assert explain(model, row).notes == []
    another_picture(path)
    notes = {name: len(explain(model, row).notes) for name, row in rows.items()}
    assert notes == {"path": 1, "picture": 0, "array": 0, "cell": 0}


def test_published_features_show_a_picture_only_where_it_is_the_encoded_one(encoded, pictures, tmp_path):
    """They hold its name, and pictures of the same name may lie anywhere."""
    _, model, _, cache = encoded
    write_features(cache, tmp_path / "published", "someone/films", license="mit")
    published = open_cache(tmp_path / "published")
    row = published.splits["test"][2]
    assert row["image_sha256"] == cache.splits["test"][2]["image_sha256"]
    with chdir(tmp_path / "published"):
        assert "put it there, or a link to it" in explain(model, row).notes[0]
    with chdir(pictures):
        assert explain(model, row).notes == []
        another_picture(pictures / row["image"]["path"])
        assert "is not the one that was encoded" in explain(model, row).notes[0]


def without_checksums(cache):
    """As a cache of an earlier version."""
    splits = {name: x.remove_columns(["image_sha256", "text_sha256"]) for name, x in cache.splits.items()}
    return replace(cache, splits=splits)


def run(folder, output, **changes):
    quick = {
        "units": "features",
        "num_coalitions": 1,
        "num_draws": 2,
        "interactions": "none",
        "measurements": ["none"],
        "num_samples": 3,
    }
    arguments = {"model": str(folder / "model"), "cache_dir": str(folder / "cache"), "output_dir": str(output)}
    run_explanations(ExplainArguments(**arguments, **{**quick, **changes}), Accelerator(cpu=True))


def test_a_run_says_on_the_console_and_its_page_what_is_not_shown(encoded, pictures, tmp_path, capsys, monkeypatch):
    folder, _, _, cache = encoded
    run(folder, tmp_path / "whole")
    assert "remark" not in (said := capsys.readouterr().out)
    assert "The image" not in said
    paths = [Path(row["image"]["path"]) for row in cache.splits["test"]]
    another_picture(paths[0])
    paths[2].unlink()
    run(folder, tmp_path / "changed")
    assert f"Sample sample-0: The image is not the one that was encoded: {paths[0]}" in (
        said := capsys.readouterr().out
    )
    assert "Of 1 more there is a like remark." in said
    page = Page((tmp_path / "changed" / "index.html").read_text(encoding="utf-8"))
    assert [text.split(":")[0] for text in page.text("p", "note")[1:]] == [
        "The image is not the one that was encoded",
        f"The image is not at {paths[2]}",
    ]
    assert len(page.find("img")) == 1  # of the one that is there
    module = "fl_i2moe.evaluation.run.explanations.find_cache"
    monkeypatch.setattr(module, lambda *_: without_checksums(cache))
    run(folder, tmp_path / "old", sample_ids=["sample-1"])
    assert "Sample sample-1: The image is not known to be the one that was encoded" in capsys.readouterr().out


def test_readers_are_not_asked_about_another_picture(encoded, pictures, tmp_path, monkeypatch):
    folder, _, _, cache = encoded
    arguments = {"model": str(folder / "model"), "cache_dir": str(folder / "cache"), "num_samples": 4}
    another_picture(Path(cache.splits["test"][2]["image"]["path"]))
    with pytest.raises(ValueError, match=r"The image of sample sample-2 is not the one that was encoded: .*skip"):
        draw_questionnaire(DrawArguments(**arguments, output_dir=str(tmp_path / "q"), seed=1), Console(file=StringIO()))
    out = StringIO()
    module = "fl_i2moe.evaluation.human_evaluation.study.find_cache"
    monkeypatch.setattr(module, lambda *_: without_checksums(cache))
    draw_questionnaire(
        DrawArguments(**arguments, output_dir=str(tmp_path / "old"), seed=1), Console(file=out, soft_wrap=True)
    )
    assert "is not known to be the one that was encoded" in out.getvalue()
    assert "Of 3 more there is a like remark." in out.getvalue()


def test_a_file_is_looked_at_once_for_a_page_a_figure_and_data(tmp_path):
    """So that they agree, whatever happens to it meanwhile."""
    path = write_picture(tmp_path / "poster.png")
    places = places_in(make_row(path) | {"image_sha256": sha256(path.read_bytes()).hexdigest()}, "image", grid=(3, 2))
    assert places.missing() is None
    os.remove(path)
    assert places.picture().size == (60, 90)
    assert places.missing() is None
