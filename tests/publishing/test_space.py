import contextlib
import html
import importlib.util
import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from published import make_published
from tiny_encoders import noise
from tiny_models import make_config, make_model

from fl_i2moe.data.planted import PLANTED_GENRES
from fl_i2moe.publishing.repository import push, write_file_list

ROOT = Path(__file__).parents[2]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="the Space needs gradio (pip install -e '.[space]')")
    return load(ROOT / "hub" / "space" / "app.py")


@pytest.fixture(scope="module")
def explorer(app, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, raw, _ = make_published(folder)
    model.save_pretrained(folder / "run")
    return app.Explorer(str(folder / "run")), raw.splits["test"]["image"][3]["path"]


def test_prediction_and_explanation(explorer):
    explorer, picture = explorer
    scores, weights, update = explorer.predict("the quick fox", picture)
    assert set(scores) == {"Drama", "Comedy", "Thriller"}
    assert update["value"] == max(scores, key=scores.get)
    assert list(weights) == ["Uniqueness: text", "Uniqueness: image", "Synergy", "Redundancy"]
    assert sum(weights.values()) == pytest.approx(1)
    told = []
    frame = explorer.explain("Comedy", "the <b>quick</b> fox", picture, progress=lambda *now: told.append(now))
    assert re.fullmatch(r'<iframe sandbox="allow-scripts" srcdoc="[^"]*" title="Explanation"></iframe>', frame)
    page = html.unescape(frame)
    assert "Comedy" in page
    assert "<b>quick" not in page
    # words and cells of the raw sample, and how closely they were looked at
    assert re.search(r"Chosen to answer in about 18 s: words of the text: 4 .*cells of the image: 16 ", page)
    assert "left out of the encoder&#39;s attention" in page
    shares, stages = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert 0 == shares[0] < shares[len(shares) // 2] < shares[-1] == 1
    assert list(dict.fromkeys(stages)) == [
        "Encoding the sample",
        "Measuring the speed",
        "Importance",
        "Pairs of the synergy expert",
        "Pairs of the redundancy expert",
        "Drawing",
    ]


def test_values_of_all_sorts_are_explained(explorer, tmp_path, monkeypatch, app):
    """With no time at all."""
    explorer, _ = explorer
    monkeypatch.setattr(app, "MAX_SECONDS", 1e-6)
    pictures = {"cmyk.jpg": Image.new("CMYK", (30, 20)), "thin.png": Image.new("RGB", (1, 2000)), "3.png": noise(3, 3)}
    pictures["16.png"] = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    for name, image in pictures.items():
        image.save(tmp_path / name)
    noise(9, 9).save(tmp_path / "moving.gif", save_all=True, append_images=[noise(9, 9, seed=1)])
    texts = ("fox", "🦊🦊", "the quick " * 490, "</s> [SEP]", "שלום")
    for text, path in zip(texts, sorted(tmp_path.iterdir()), strict=True):
        page = html.unescape(explorer.explain("Comedy", text, str(path), progress=lambda *_: None))
        assert "<h1>Why" in page
        assert ("the last 973 of 980 words play no part" in page) == (len(text) > 1000)


def test_what_visitors_are_told(app, explorer, tmp_path):
    import gradio as gr

    explorer, picture = explorer
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (6000, 5000)).save(tmp_path / "large.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "damaged.png", "DDS")
    content = bytearray((tmp_path / "damaged.png").read_bytes())
    content[80:84] = b"\0\0\x08\0"  # flags of its pixel format, which Pillow does not know
    (tmp_path / "damaged.png").write_bytes(content)
    for text, image, message in (
        ("", picture, "Please enter a text"),
        ("the fox", None, r"Please give a picture \(image\)"),
        ("x" * 5001, picture, "5,001 characters; at most 5,000"),
        ("the fox", str(tmp_path / "text.png"), "no picture that can be read"),
        ("the fox", str(tmp_path / "damaged.png"), "no picture that can be read"),
        ("the fox", str(tmp_path / "large.png"), "30,000,000 pixels; at most 25,000,000"),
    ):
        with pytest.raises(gr.Error, match=message):
            explorer.predict(text, image)
        with pytest.raises(gr.Error, match=message):
            explorer.explain("Comedy", text, image)
    # Gradio hands the file on as it is: nothing of it is decoded before it is checked
    from gradio.data_classes import FileData

    large = str(tmp_path / "large.png")
    component = app.INPUTS["image"].component("Image")
    assert (
        component.preprocess(component.data_model(**FileData(path=large, orig_name="large.png").model_dump())) == large
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, "picture"), "The text must be a text"),
        ((["a"], "picture"), "The text must be a text"),
        (("a \ud83d fox", "picture"), "no Unicode text"),
        (("a fox", 5), "no picture that can be read"),
        (("a fox", ["picture"]), "no picture that can be read"),
        (("a fox", {"path": "x"}), "no picture that can be read"),
        (("a fox", ""), "no picture that can be read"),
        (("a fox", "/nowhere/<img src=x onerror=alert(1)>.png"), "no picture that can be read"),
        (("a fox",), "Please give text, image: 2 inputs, not 1"),
        (("a fox", "picture", "more"), "2 inputs, not 3"),
        ((), "2 inputs, not 0"),
    ],
)
def test_functions_given_anything(explorer, values, message):
    import gradio as gr

    explorer, picture = explorer
    values = [picture if value == "picture" else value for value in values]
    for call in (explorer.predict, lambda *given: explorer.explain(None, *given, progress=lambda *_: None)):
        with pytest.raises(gr.Error, match=message):
            call(*values)


@pytest.mark.parametrize("target", ["<img src=x onerror=alert(1)>", 7, -1, 1.5, ["Drama"], ""])
def test_a_class_that_is_none(explorer, target):
    """Gradio shows the message as HTML."""
    import gradio as gr

    explorer, picture = explorer
    with pytest.raises(gr.Error, match="There is no class") as caught:
        explorer.explain(target, "a fox", picture, progress=lambda *_: None)
    assert "<" not in caught.value.message


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"samples": 3}', '{"samples": [{"image": 5}]}', "{", '{"samples": ["a"]}']
)
def test_examples_that_were_edited(app, tmp_path, monkeypatch, content):
    (tmp_path / "examples.json").write_text(content)
    monkeypatch.setattr(app, "EXAMPLES", tmp_path)
    with pytest.raises(ValueError, match=r"examples\.json is damaged or was changed"):
        app._examples({"image": "image"}, ["Drama"])


def test_examples_behind_links_are_not_published(tmp_path):
    publish_space = load(ROOT / "hub" / "publish_space.py")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "examples.json").write_text('{"samples": []}')
    (tmp_path / "mine" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"a\.txt leads to .*secret\.txt"):
        publish_space.write_space(tmp_path / "space", "a/b", str(tmp_path / "mine"))


def test_a_model_without_raw_inputs_is_refused(app, tmp_path):
    make_model(make_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes no raw values, only features"):
        app.Explorer(str(tmp_path))


def test_examples_are_of_the_models_classes(app, tmp_path, monkeypatch):
    kinds = {"text": "text", "image": "image"}
    shown = app._examples(kinds, list(PLANTED_GENRES))
    assert len(shown) == 3
    assert all(Path(image).is_file() for _, image in shown)
    assert app._examples(kinds, ["Drama", "Western"]) == []
    assert app._examples({**kinds, "sound": "array"}, list(PLANTED_GENRES)) == []
    (tmp_path / "examples.json").write_text('{"samples": [{"image": "a.jpg", "text": "mine"}]}')
    monkeypatch.setattr(app, "EXAMPLES", tmp_path)
    assert app._examples(kinds, ["Drama", "Western"]) == [["mine", str(tmp_path / "a.jpg")]]


def test_in_a_browser(app, explorer):
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="driving a browser needs playwright (pip install -e '.[test]')"
    )
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("the Space is driven in /usr/bin/chromium, which is not there (apt install chromium)")
    explorer, picture = explorer
    page = app.build_page(explorer, "tiny")
    page.queue()
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, css=app.STYLE)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
            for width in (1280, 390):
                tab = browser.new_page(viewport={"width": width, "height": 900})
                tab.goto(address)
                tab.get_by_role("button", name="Predict").click()
                tab.get_by_text("Please enter a text.").wait_for()
                tab.locator("textarea").fill("the quick brown fox")
                tab.locator("input[type=file]").first.set_input_files(picture)
                tab.get_by_role("button", name="Predict").click()
                tab.get_by_text("Uniqueness: text").first.wait_for()  # "redundancy" stands on the page from the start
                tab.get_by_role("button", name="Explain").click()
                frame = tab.frame_locator("iframe")
                frame.get_by_role("heading", name="Why").wait_for()
                assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            browser.close()
    finally:
        page.close()


def test_pinned_requirements_go_together():
    """With one another, as far as the packages are installed here, and with what this package needs."""
    lines = (ROOT / "hub" / "space" / "requirements.txt").read_text().split()
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    asked = {"fl-i2moe": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]}
    for name in pinned:
        with contextlib.suppress(PackageNotFoundError):
            asked[name] = requires(name) or []
    assert {"fl-i2moe", "torch", "transformers"} <= set(asked)
    for name, texts in asked.items():
        for requirement in map(Requirement, texts):
            version = pinned.get(canonicalize_name(requirement.name))
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and version is not None:
                assert requirement.specifier.contains(version), f"{name} needs {requirement}, pinned is {version}"
            assert version is not None or name != "fl-i2moe", f"{requirement} is not pinned"


def test_a_published_space_is_whole(tmp_path):
    publish = load(ROOT / "hub" / "publish_space.py")
    publish.write_space(tmp_path / "space", "someone/fl-i2moe-films")
    files = {path.relative_to(tmp_path / "space").as_posix() for path in (tmp_path / "space").rglob("*")}
    assert {
        "app.py",
        "requirements.txt",
        "README.md",
        "fl_i2moe/explain/explain_sample.py",
        "examples/examples.json",
    } <= files
    assert not [name for name in files if "__pycache__" in name]
    assert (tmp_path / "space" / "model_id").read_text() == "someone/fl-i2moe-films\n"
    card = (tmp_path / "space" / "README.md").read_text()
    requirements = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in requirements)
    assert f"sdk_version: {requirements[0].removeprefix('gradio==')}" in card
    assert "models:\n- someone/fl-i2moe-films" in card
    hub = FakeHub()
    hub.create_repo("someone/demo", repo_type="space", private=False, exist_ok=True)
    hub.repositories["someone/demo"] |= {"notes.py": b"mine", "fl_i2moe/mine.py": b"mine"}
    gone = tmp_path / "space" / "fl_i2moe" / "explain" / "former.py"
    gone.write_text("of an earlier version")
    write_file_list(tmp_path / "space")
    push(tmp_path / "space", "someone/demo", repo_type="space", api=hub)
    gone.unlink()
    write_file_list(tmp_path / "space")
    push(tmp_path / "space", "someone/demo", repo_type="space", api=hub)
    assert sorted(hub.commits[-1][1]) == ["fl_i2moe/explain/former.py", "published_files.json"]
    assert {"notes.py", "fl_i2moe/mine.py"} <= set(hub.repositories["someone/demo"])
    with pytest.raises(ValueError, match="is not empty"):
        publish.write_space(tmp_path / "space", "someone/fl-i2moe-films")


def test_examples_of_ones_own(tmp_path):
    publish = load(ROOT / "hub" / "publish_space.py")
    own = tmp_path / "own"
    own.mkdir()
    for content, message in ((None, r"has no examples\.json"), ("x", "is no JSON"), ("[]", "must be")):
        if content is not None:
            (own / "examples.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            publish.PublishSpaceArguments("a/b", "a/c", examples=str(own))
    (own / "broken.png").write_text("no picture")
    for sample, message in (
        ('{"image": "gone.jpg"}', r"sample 2, 'image': .*gone\.jpg: .* the file is missing"),
        ('{"image": "broken.png"}', r"broken\.png: cannot be read as a picture"),
        ('{"image": "../secret.png"}', "lies outside"),
        ('{"text": 3}', "'text' must be a text or the name of a picture"),
    ):
        (own / "examples.json").write_text(f'{{"samples": [{{"text": "fine."}}, {sample}]}}')
        with pytest.raises(ValueError, match=message):
            publish.PublishSpaceArguments("a/b", "a/c", examples=str(own))
    (own / "broken.png").unlink()
    (own / "examples.json").write_text('{"samples": []}')
    assert publish.PublishSpaceArguments("a/b", "a/c", examples=str(own)).examples == str(own)
    publish.write_space(tmp_path / "other", "someone/fl-i2moe-films", str(own))
    assert [x.name for x in (tmp_path / "other" / "examples").iterdir()] == ["examples.json"]
