"""Questionnaires on the expert weights of a trained model: drawn, filled in by a reader, and summarised."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import make_published
from questioned import make_key, write_answers
from rich.console import Console

from fl_i2moe import FLI2MoEModel
from fl_i2moe.evaluation.human_evaluation import study as human_evaluation
from fl_i2moe.evaluation.human_evaluation.questionnaire import Key, percentages
from fl_i2moe.evaluation.human_evaluation.ratings import read_answers
from fl_i2moe.evaluation.human_evaluation.study import (
    DrawArguments,
    SummarizeArguments,
    draw_questionnaire,
    summarise_answers,
)
from fl_i2moe.explain.inputs import feature_batch


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model, _, cache = make_published(folder, reweighting_temperature=0.2)  # weights that differ by some per cent
    model.config.temperature, model.config.thresholds = 0.5, [0.3] * len(cache.label_names)
    model.save_pretrained(folder / "model")
    return model, cache, {"model": str(folder / "model"), "cache_dir": str(cache.path), "num_samples": 4}


def drawn(trained, folder, **changes):
    arguments = DrawArguments(**{**trained[2], "output_dir": str(folder), **changes})
    page = draw_questionnaire(arguments, Console(quiet=True)).read_text()
    return page, Key.load(folder / "key.json")


def test_a_questionnaire_shows_what_the_model_gives(trained, tmp_path):
    model, cache, _ = trained
    page, key = drawn(trained, tmp_path / "q", num_controls=3, show_true=True)
    rows = {row["id"]: row for row in cache.splits["test"]}
    articles = re.findall(r"<article.*?</article>", page, re.DOTALL)
    assert len(articles) == len(key.items) == 7
    assert f'data-id="{key.questionnaire}"' in page
    for item, article in zip(key.items, articles, strict=True):
        batch = feature_batch(rows[item.weights_of], model.config.modality_order)
        with torch.no_grad():
            output = model(features=batch["features"], feature_masks=batch["feature_masks"])
        assert item.weights == pytest.approx(output.expert_weights[0].tolist(), abs=1e-4)
        shown = [int(x) for x in re.findall(r"(\d+) %</span>", article)]
        assert shown == percentages(item.weights)
        assert f'data-item="{item.item_id}"' in article
        row = rows[item.sample_id]
        assert row["text"] in article
        batch = feature_batch(row, model.config.modality_order)
        with torch.no_grad():
            logits = model(features=batch["features"], feature_masks=batch["feature_masks"]).logits[0]
        predicted = re.findall(r'class="tag">([^<]+) (\d+) %<', article)
        calibrated = (2 * logits).sigmoid().tolist()
        expected = {name: p for name, p in zip(cache.label_names, calibrated, strict=True) if p > 0.3}
        assert {name for name, _ in predicted} == set(expected)
        assert all(abs(int(p) - 100 * expected[name]) <= 0.6 for name, p in predicted)
        true = [name for name, label in zip(cache.label_names, row["labels"], strict=True) if label]
        assert re.findall(r'class="tag">([^<%]+)<', article.split("What is true")[1]) == true
    controls = [item for item in key.items if item.is_control]
    assert len({item.sample_id for item in controls}) == 3
    assert {item.sample_id for item in controls} == {item.weights_of for item in controls}
    assert "sample-" not in page

    assert drawn(trained, tmp_path / "again", num_controls=3, show_true=True) == (page, key)
    _, other = drawn(trained, tmp_path / "other", num_controls=3, show_true=True, seed=1)
    assert other.questionnaire != key.questionnaire
    page, key = drawn(trained, tmp_path / "plain", sampling="stratified")
    assert len(key.items) == 4
    assert "What is true" not in page
    assert "come twice" not in page


def test_pooled_models_are_asked_about_too(trained, tmp_path):
    model = trained[0]
    torch.manual_seed(0)
    FLI2MoEModel(type(model.config)(**{**model.config.to_dict(), "level": "pooled"})).save_pretrained(tmp_path / "m")
    _, key = drawn(trained, tmp_path / "q", model=str(tmp_path / "m"))
    assert len(key.items) == 4


def changed_model(trained, folder, **changes):
    torch.manual_seed(0)
    config = type(trained[0].config)(**{**trained[0].config.to_dict(), **changes})
    FLI2MoEModel(config).save_pretrained(folder)
    return str(folder)


def test_bad_input_is_refused_before_anything_is_written(trained, tmp_path, monkeypatch):
    _, cache, _ = trained
    dense = changed_model(trained, tmp_path / "dense", architecture="dense", objective="published")
    equal = changed_model(trained, tmp_path / "global", reweighting="global")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for changes, message in (
        ({"model": str(tmp_path)}, "holds no model"),
        ({"model": dense}, "is dense: it has no expert weights"),
        ({"model": equal, "num_controls": 2}, "alike for every sample"),
        ({"split": "exam"}, r"no split 'exam'; it has \['test'\]"),
        ({"num_samples": 9}, "`num_samples` is 9, the split 'test' has 5 samples"),
        ({"output_dir": str(tmp_path / "full")}, "holds other files"),
        ({"num_controls": 1}, "`num_controls` must be 0 or from 2"),
        ({"num_controls": 5}, r"to the number of samples \(4\), got 5"),
        ({"num_samples": 0}, "`num_samples`"),
        ({"seed": -1}, "`seed`"),
        ({"title": " "}, "`title`"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(trained, tmp_path / "q", **changes)
    arrays = {name: {**x, "kind": "array"} for name, x in cache.modalities.items()}
    monkeypatch.setattr(human_evaluation, "find_cache", lambda *_: replace(cache, modalities=arrays))
    with pytest.raises(ValueError, match=r"reads arrays of numbers \(text, image\): there is no picture or text"):
        drawn(trained, tmp_path / "q")
    assert not (tmp_path / "q").exists()
    for wrong in ({"answers": []}, {"answers": ["a"], "num_resamples": 0}, {"answers": ["a"], "seed": -1}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            SummarizeArguments(questionnaire="q", **wrong)


def test_samples_that_cannot_be_shown_are_named_or_replaced(trained, tmp_path, monkeypatch):
    _, cache, _ = trained

    def lose(row):
        if row["id"] == "sample-1":
            row["image"] = {"path": "gone/poster.jpg", "bytes": None}
        if row["id"] == "sample-3":
            row["text_features"] = np.full_like(row["text_features"], np.nan)
        return row

    split = cache.splits["test"]
    split = split.with_format("numpy").map(lose, features=split.features).with_format(None)
    monkeypatch.setattr(human_evaluation, "find_cache", lambda *_: replace(cache, splits={"test": split}))
    with pytest.raises(ValueError, match=r"(sample-1 .*gone/poster\.jpg|sample-3 has text).*skip"):
        drawn(trained, tmp_path / "q")
    with pytest.raises(ValueError, match="Only 3 samples of the split 'test' can be shown"):
        drawn(trained, tmp_path / "q", on_bad_sample="skip")
    _, key = drawn(trained, tmp_path / "q", on_bad_sample="skip", num_samples=3)
    assert {item.sample_id for item in key.items} == {"sample-0", "sample-2", "sample-4"}


def test_nobodys_answers_are_overwritten(trained, tmp_path):
    drawn(trained, tmp_path / "q")
    with pytest.raises(ValueError, match="is not empty: replace it by --overwrite"):
        drawn(trained, tmp_path / "q")
    drawn(trained, tmp_path / "q", overwrite=True)
    (tmp_path / "q" / "answers").mkdir()
    with pytest.raises(ValueError, match="also holds answers, which does not go with a new questionnaire"):
        drawn(trained, tmp_path / "q", overwrite=True)
    make_key().save(tmp_path / "k" / "key.json")
    file = write_answers(tmp_path / "answers", "r1", [4] * 5)
    arguments = SummarizeArguments(str(tmp_path / "k"), [str(file)])
    summarise_answers(arguments, Console(quiet=True))
    with pytest.raises(ValueError, match="ratings is not empty"):
        summarise_answers(arguments, Console(quiet=True))
    summarise_answers(replace(arguments, overwrite=True), Console(quiet=True))
    with pytest.raises(ValueError, match=r"holds no questionnaire: it has no key\.json"):
        summarise_answers(SummarizeArguments(str(tmp_path / "answers"), [str(file)]), Console(quiet=True))
    key = json.loads((tmp_path / "k" / "key.json").read_text())
    for content, reason in (
        ({"format": 1}, "`expert_names` is missing"),
        (key | {"format": 2}, "`format` must be 1, got 2"),
        (key | {"expert_names": "a"}, '`expert_names` must be a list, got "a"'),
    ):
        (tmp_path / "k" / "key.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"holds no key of a questionnaire: {reason}"):
            summarise_answers(replace(arguments, overwrite=True), Console(quiet=True))


RECIPE = "recipes/human_evaluation.py"


def test_the_recipe_from_model_to_table(trained, tmp_path, run_here):
    folders = [f"--{name}={value}" for name, value in trained[2].items()]
    output = run_here(RECIPE, "draw", *folders, "--num_controls=2", f"--output_dir={tmp_path / 'q'}")
    assert f"6 questions: {tmp_path / 'q' / 'questionnaire.html'}" in output
    key = Key.load(tmp_path / "q" / "key.json")
    for rater, rating in (("anna", 5), ("ben", 4)):
        answers = {item.item_id: 2 if item.is_control else rating for item in key.items}
        write_answers(tmp_path / "answers", rater, [], {"questionnaire": key.questionnaire, "answers": answers})
    files = sorted((tmp_path / "answers").iterdir())
    output = run_here(RECIPE, "summarize", f"--questionnaire={tmp_path / 'q'}", "--answers", *files)
    text = (tmp_path / "q" / "ratings" / "ratings.md").read_text()
    assert text in output
    assert "| Completely makes sense | 50.0 % ± 70.7 | 0.0 % ± 0.0 |" in text
    assert "rated +2.50 [" in text
    summary = json.loads((tmp_path / "q" / "ratings" / "ratings.json").read_text())
    assert summary["num_raters"] == 2
    files[0].write_text("{")
    options = [f"--questionnaire={tmp_path / 'q'}", "--overwrite", "--answers", *files]
    with pytest.raises(SystemExit, match=f"^error: These answers cannot be used:\n  {files[0]}: is no JSON"):
        run_here(RECIPE, "summarize", *options)
    assert json.loads((tmp_path / "q" / "ratings" / "ratings.json").read_text()) == summary


def test_a_reader_in_a_browser(trained, tmp_path):
    """By keyboard, over a reload, at two widths, to a file that is counted; without any request to the network."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("there is no Chromium at /usr/bin/chromium")
    _, key = drawn(trained, tmp_path / "q")
    address = (tmp_path / "q" / "questionnaire.html").as_uri()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        requests, errors = [], []
        tab.on("request", lambda x: requests.append(x.url))
        tab.on("pageerror", lambda x: errors.append(str(x)))
        tab.goto(address)
        count = tab.locator("#count")
        assert count.inner_text() == "0 of 4 answered"
        for number in range(1, 5):
            group = tab.get_by_role("group", name=f"Sample {number}: how much sense do these expert weights make?")
            assert group.get_by_role("radio").count() == 5
        # by keyboard: Tab into the first group, arrows choose; the second one by Space
        first = tab.get_by_role("group", name="Sample 1:").get_by_role("radio")
        for _ in range(20):
            tab.keyboard.press("Tab")
            if first.first.evaluate("radio => radio === document.activeElement"):
                break
        tab.keyboard.press("Space")
        assert first.nth(0).is_checked()
        tab.keyboard.press("ArrowRight")
        assert first.nth(1).is_checked()
        tab.get_by_role("button", name="Next open question").press("Enter")
        assert tab.evaluate("document.activeElement.id") == "item-2"
        tab.keyboard.press("Tab")
        tab.keyboard.press("Space")
        assert count.inner_text() == "2 of 4 answered"
        tab.get_by_label("Your code").fill("Anna / 1")
        tab.reload()
        assert count.inner_text() == "2 of 4 answered"
        assert tab.get_by_label("Your code").input_value() == "Anna / 1"
        tab.set_viewport_size({"width": 390, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.get_by_role("group", name="Sample 4:").get_by_text("Makes no sense at all").click()
        with tab.expect_download() as waiting:
            tab.get_by_role("button", name="Save answers as a file").click()
        assert waiting.value.suggested_filename == f"answers-{key.questionnaire[:8]}-Anna___1.json"
        assert "Not answered yet: 3" in tab.locator("#said").inner_text()
        waiting.value.save_as(tmp_path / "answers.json")
        # the next reader at the same machine
        tab.on("dialog", lambda dialog: dialog.accept())
        tab.get_by_role("button", name="Delete my answers here").click()
        assert count.inner_text() == "0 of 4 answered"
        tab.reload()
        assert count.inner_text() == "0 of 4 answered"
        assert re.fullmatch("r-[0-9a-f]{8}", tab.get_by_label("Your code").input_value())
        tab.get_by_label("Your code").fill("")
        tab.get_by_role("button", name="Save answers as a file").click()
        assert "Please put in a code" in tab.locator("#said").inner_text()
        browser.close()
    assert not errors
    assert {url.split("#")[0] for url in requests if not url.startswith(("data:", "blob:"))} == {address}
    [answers] = read_answers([tmp_path / "answers.json"], key)
    assert answers.rater == "Anna / 1"
    np.testing.assert_array_equal(answers.ratings, [4, 5, np.nan, 1])
