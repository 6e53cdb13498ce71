"""Questionnaires on expert weights: what they show, what readers do with them, what their answers come to."""

import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from explained import SENTENCE, make_row, write_picture
from published import make_published
from rich.console import Console

from fl_i2moe import FLI2MoEModel
from fl_i2moe.explain import human_evaluation
from fl_i2moe.explain.explain_sample import feature_batch
from fl_i2moe.explain.geometry import Modality
from fl_i2moe.explain.human_evaluation import DrawArguments, SummarizeArguments, draw_questionnaire, summarise_answers
from fl_i2moe.explain.questionnaire import (
    SCALE,
    Item,
    Key,
    exchange_weights,
    item_ids,
    order_of_questions,
    percentages,
    stratified_order,
)
from fl_i2moe.explain.questionnaire_page import (
    Subject,
    describe_experts,
    describe_questions,
    questionnaire_id,
    render_questionnaire,
)
from fl_i2moe.explain.ratings import krippendorff_alpha, read_answers, summarise_ratings
from fl_i2moe.explain.ratings_report import to_markdown

EXPERTS = ["uniqueness_image", "uniqueness_text", "synergy", "redundancy"]
NAN = np.nan


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_classes_take_turns():
    labels = np.array([0] * 40 + [1] * 3 + [2] * 7)
    order = stratified_order(labels[:, None] == np.arange(3), np.random.default_rng(0))
    assert sorted(order) == list(range(50))
    for start in (0, 3, 6):
        assert set(labels[order[start : start + 3]]) == {0, 1, 2}
    assert set(labels[order[9:17]]) == {0, 2}  # class 1 has no more
    several = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], bool)
    for seed in range(10):
        order = stratified_order(several, np.random.default_rng(seed))
        assert sorted(order) == [0, 1, 2, 3]
        assert order[-1] == 2  # the one of no class
        assert several[order[:2]].any(axis=0).all()
    assert order != stratified_order(several, np.random.default_rng(0))


def test_no_control_shows_the_weights_of_its_sample():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    seen = set()
    for seed in range(200):
        givers = exchange_weights(weights, np.random.default_rng(seed))
        assert sorted(givers) == list(range(5))
        assert all(row != giver for row, giver in enumerate(givers))
        seen.add(tuple(givers))
    assert len(seen) == sum(all(i != x for i, x in enumerate(order)) for order in permutations(range(5)))
    alike = [[0.5, 0.5], [0.501, 0.499], [0.2, 0.8]]
    with pytest.raises(ValueError, match=r"expert weights of the 3 samples .* none would differ"):
        exchange_weights(alike, np.random.default_rng(0))
    # the two that read alike must not exchange with each other
    givers = exchange_weights([*alike, [0.3, 0.7]], np.random.default_rng(0))
    assert {givers[0], givers[1]} == {2, 3}


def test_versions_of_a_sample_lie_in_different_halves():
    first_is_control = []
    for seed in range(20):
        order = order_of_questions(9, [1, 4, 5, 8], np.random.default_rng(seed))
        assert sorted(order) == sorted([*((row, False) for row in range(9)), *((row, True) for row in (1, 4, 5, 8))])
        for row in (1, 4, 5, 8):
            places = sorted(i for i, (x, _) in enumerate(order) if x == row)
            assert places[0] < 7 <= places[1] + 1
            first_is_control.append(order[places[0]][1])
    assert sum(first_is_control) == 40  # half of them, in each order
    assert order_of_questions(3, [], np.random.default_rng(1)) != [(0, False), (1, False), (2, False)]
    assert len(set(item_ids(500, np.random.default_rng(0)))) == 500


# ---- the page --------------------------------------------------------------------------------------------------------


def make_questions(tmp_path, weights=(0.1, 0.2, 0.3, 0.4)):
    row = make_row(write_picture(tmp_path / "poster.png"))
    modalities = {name: Modality.from_row(row, name, grid=(3, 2)) for name in ("image", "text")}
    subject = Subject(row["id"], modalities, ["<i>Noir</i>"], ["Comedy & <b>Fun</b> 71 %"])
    items = [Item("aaa", row["id"], row["id"], list(weights)), Item("bbb", row["id"], "other", [0.4, 0.3, 0.2, 0.1])]
    return describe_questions(items, {row["id"]: subject}, EXPERTS)


def render(questions, **changes):
    options = {"title": "Sense & <nonsense>", "samples_return": True, **changes}
    return render_questionnaire(questions, EXPERTS, ["image", "text"], **options)


def test_a_page_escapes_what_it_shows_and_does_not_tell_controls(tmp_path):
    page = render(make_questions(tmp_path))
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "Comedy &amp; &lt;b&gt;Fun&lt;/b&gt; 71 %" in page
    assert "&lt;i&gt;Noir" in page
    assert "<h1>Sense &amp; &lt;nonsense&gt;</h1>" in page
    assert "film" not in page.lower()  # the sample's id
    assert "control" not in page.lower()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    # what the model did not read stands apart
    unread = SENTENCE.rsplit(" ", 2)[1:]
    assert f"{' '.join(unread)}</p></details>" in page
    articles = re.findall(r"<article.*?</article>", page, re.DOTALL)
    blank = [re.sub(r"[0-9.]+|aaa|bbb", "?", re.sub(r"data:[^\"]*", "", article)) for article in articles]
    assert blank[0] == blank[1]
    assert re.findall(r"(\d+) %</span>", articles[0]) == ["10", "20", "30", "40"]


def test_an_id_is_that_of_what_is_shown(tmp_path):
    questions = make_questions(tmp_path)
    assert questionnaire_id(questions) == questionnaire_id(make_questions(tmp_path))
    assert f'data-id="{questionnaire_id(questions)}"' in render(questions)
    others = [make_questions(tmp_path, (0.11, 0.19, 0.3, 0.4)), questions[::-1], questions[:1]]
    assert len({questionnaire_id(x) for x in [questions, *others]}) == 4


def test_experts_are_told_in_plain_words():
    assert describe_experts(EXPERTS, ["image", "text"]) == {
        "Uniqueness: image": "what the image tells and the text does not",
        "Uniqueness: text": "what the text tells and the image does not",
        "Synergy": "what only image and text together tell",
        "Redundancy": "what image and text tell alike, each by itself",
    }
    told = describe_experts(["uniqueness_a_b", "synergy"], ["a_b", "c", "d"])
    assert told == {
        "Uniqueness: a b": "what the a b tells and the others do not",
        "Synergy": "what only a b, c and d together tell",
    }


# ---- ratings ---------------------------------------------------------------------------------------------------------


def plain_alpha(ratings):
    """Ordinal alpha pair by pair, after its definition: observed over expected disagreement."""
    units = [[x for x in column if not np.isnan(x)] for column in np.transpose(ratings)]
    units = [unit for unit in units if len(unit) > 1]
    values = [x for unit in units for x in unit]

    def disagreement(a, b):
        low, high = min(a, b), max(a, b)
        between = sum(low <= x <= high for x in values)
        return (between - (values.count(low) + values.count(high)) / 2) ** 2 if low < high else 0

    def over_pairs(numbers):
        return sum(disagreement(a, b) for a, b in permutations(numbers, 2))

    observed = sum(over_pairs(unit) / (len(unit) - 1) for unit in units) / len(values)
    return 1 - observed / (over_pairs(values) / len(values) / (len(values) - 1))


def test_alpha_is_krippendorffs():
    # K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E: 0.815 on an ordinal scale
    example = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
    assert krippendorff_alpha(np.array(example)) == pytest.approx(0.815, abs=5e-4)
    # by hand: ratings 1, 2, 2, 2; between 1 and 2 lie (1 + 3) / 2 of them; 2 · 4 observed, 6 · 4 / 3 expected
    assert krippendorff_alpha(np.array([[1.0, 2], [2, 2]])) == pytest.approx(0)
    assert krippendorff_alpha(np.array([[1.0, 3, 5], [1, 3, 5]])) == 1
    assert krippendorff_alpha(np.array([[1.0, 5], [5, 1]])) < 0
    for undefined in ([[4.0, 4], [4, 4]], [[1.0, 2, 3]], [[1.0, NAN], [NAN, 2]]):
        assert np.isnan(krippendorff_alpha(np.array(undefined)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        ratings = rng.integers(1, 6, (4, 7)).astype(float)
        ratings[rng.random((4, 7)) < 0.3] = NAN
        assert krippendorff_alpha(ratings) == pytest.approx(plain_alpha(ratings))


def make_key():
    """Samples x, y and z, of which x and y have a control."""
    weights = {"x": [0.5, 0.2, 0.2, 0.1], "y": [0.1, 0.2, 0.2, 0.5], "z": [0.25] * 4}
    pairs = [("x", "x"), ("y", "x"), ("z", "z"), ("y", "y"), ("x", "y")]
    items = [Item(f"i{n}", sample, giver, weights[giver]) for n, (sample, giver) in enumerate(pairs)]
    return Key("0123456789abcdef", EXPERTS, items)


def write_answers(folder, rater, ratings, changes=()):
    folder.mkdir(exist_ok=True)
    answers = {f"i{n}": rating for n, rating in enumerate(ratings)}
    content = {"format": 1, "questionnaire": "0123456789abcdef", "rater": rater, "answers": answers, **dict(changes)}
    path = folder / f"{rater}.json"
    path.write_text(json.dumps(content))
    return path


RATINGS = {"r|1": [5, 2, 4, 4, 1], "r2": [4, 3, None, 5, 4], "r3": [None, 1, 2, 3, None]}


@pytest.fixture
def summary(tmp_path):
    for rater, ratings in RATINGS.items():
        write_answers(tmp_path / "answers", rater, ratings)
    return summarise_ratings(make_key(), read_answers([tmp_path / "answers"], make_key()), num_resamples=400)


def test_ratings_are_counted_as_in_table_11(summary):
    own = [[5, 4, 4], [4, 5], [2, 3]]  # by rater
    control = [[2, 1], [3, 4], [1]]
    for name, by_rater in (("model", own), ("control", control)):
        given, told = [x for ratings in by_rater for x in ratings], summary["conditions"][name]
        assert told["num_ratings"] == len(given)
        assert told["num_ratings"] + told["num_missing"] == 3 * told["num_items"]
        assert [x["text"] for x in told["options"]] == list(SCALE.values())
        for option in told["options"]:
            shares = [sum(x == option["rating"] for x in ratings) / len(ratings) for ratings in by_rater]
            assert option["count"] == sum(x == option["rating"] for x in given)
            assert option["value"] == pytest.approx(option["count"] / len(given))
            assert option["std"] == pytest.approx(statistics.stdev(shares))
        assert told["positive"]["value"] == pytest.approx(sum(x >= 4 for x in given) / len(given))
        assert told["negative"]["value"] == pytest.approx(sum(x <= 2 for x in given) / len(given))
        assert told["mean_rating"]["value"] == pytest.approx(statistics.mean(given))
        assert told["mean_rating"]["std"] == pytest.approx(statistics.stdev(map(statistics.mean, by_rater)))
        low, high = told["mean_rating"]["interval"]
        assert low < told["mean_rating"]["value"] < high
    assert summary["conditions"]["model"]["alpha"] == pytest.approx(
        plain_alpha(np.array([[5, 4, 4], [4, NAN, 5], [NAN, 2, 3]]))
    )
    assert summary["items"][1]["counts"] == [0, 0, 1, 1, 1]
    assert summary["items"][2]["ratings"] == {"r2": None, "r3": 2, "r|1": 4}


def test_a_sample_is_compared_with_its_control_by_the_same_rater(summary):
    difference = summary["difference"]
    pairs = [[5 - 1, 4 - 2], [4 - 4, 5 - 3], [3 - 1]]
    assert difference["value"] == pytest.approx(statistics.mean(x for of_rater in pairs for x in of_rater))
    assert difference["std"] == pytest.approx(statistics.stdev(map(statistics.mean, pairs)))
    assert (difference["num_pairs"], difference["num_samples"]) == (5, 2)
    assert difference["moved_weight"] == pytest.approx(0.4)  # 0.5 and 0.1 change places


def test_missing_answers_are_named(summary):
    assert summary["raters"]["r3"] == {"file": "r3.json", "num_answered": 3, "missing": [1, 5]}
    text = to_markdown(summary)
    assert r"- r2: 3" in text
    assert r"- r3: 1, 5" in text
    assert r"- r\|1" not in text
    assert "n = 12, 3 raters" in text
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("|"))
    assert rows["Mostly makes sense"].startswith("42.9 % ± ")
    assert re.match(r"3\.86 ± 1\.11 \[\d\.\d\d, \d\.\d\d\] \| ", rows["mean rating, 5 is best"])
    assert rows["responses, of those asked for"] == "7 of 9 | 5 of 6"
    assert rows["x"] == "4.50 (2) | 2.50 (2)"
    assert rows["z"] == "3.00 (2) | –"
    assert "are rated +2.00 [" in text
    assert "put 40 % of the weight" in text


def test_one_rater_has_no_spread(tmp_path):
    file = write_answers(tmp_path / "answers", "r1", [4, None, 4, 4, None])
    summary = summarise_ratings(make_key(), read_answers([file], make_key()), num_resamples=5)
    told = summary["conditions"]["model"]
    assert told["mean_rating"] == {"value": 4, "interval": [4, 4], "std": None}
    assert told["alpha"] is None
    assert summary["conditions"]["control"]["mean_rating"] == {"value": None, "interval": None, "std": None}
    text = to_markdown(summary)
    assert "one rater tells nothing of others" in text
    assert "±" not in text
    assert "No rater rated a sample both" in text
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questionnaire": "ffff"}, "answers another questionnaire, 'ffff', not '0123456789abcdef'"),
        ({"format": 2}, "`format` is 2, not 1"),
        ({"rater": " "}, "`rater` must be a code"),
        ({"rater": 7}, "`rater` must be a code, got 7"),
        ({"answers": {"i1": 6}}, r"item 2 \(i1\) must be a whole number 1 to 5, got 6"),
        ({"answers": {"i0": 0}}, "got 0"),
        ({"answers": {"i0": 3.5}}, "got 3.5"),
        ({"answers": {"i0": True}}, "got True"),
        ({"answers": {"i0": "4"}}, "got '4'"),
        ({"answers": {"i9": 4}}, "items that the questionnaire does not have: i9"),
        ({"answers": [4, 4]}, "holds no answers"),
    ],
)
def test_wrong_answers_are_refused_by_name(tmp_path, changes, message):
    write_answers(tmp_path / "answers", "r1", [4] * 5)
    path = write_answers(tmp_path / "answers", "r2", [4] * 5, changes)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        read_answers([tmp_path / "answers"], make_key())


def test_all_wrong_files_are_told_at_once(tmp_path):
    folder = tmp_path / "answers"
    files = [write_answers(folder, "r1", [4] * 5), folder / "broken.json", folder / "gone.json", folder / "list.json"]
    files[1].write_text('{"format": 1, "ans')
    files[3].write_text("[1]")
    again = write_answers(folder, "R1 ", [5] * 5)
    with pytest.raises(ValueError, match="cannot be used") as error:
        read_answers([*files, again], make_key())
    for told in (
        f"{files[1]}: is no JSON",
        f"{files[2]}: ",
        f"{files[3]}: holds no answers",
        f"{again}: is of rater 'R1', as {files[0]} is",
    ):
        assert told in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no answer files in"):
        read_answers([tmp_path / "empty"], make_key())


# ---- from a trained model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model, _, cache = make_published(folder, reweighting_temperature=0.2)  # weights that differ by some per cent
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
        expected = {name: p for name, p in zip(cache.label_names, logits.sigmoid().tolist(), strict=True) if p > 0.5}
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
    with pytest.raises(ValueError, match="also holds answers, which --overwrite would delete"):
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
    (tmp_path / "k" / "key.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="holds no key of a questionnaire"):
        summarise_answers(replace(arguments, overwrite=True), Console(quiet=True))


def run_recipe(*arguments, code=0):
    command = [sys.executable, "recipes/human_evaluation.py", *map(str, arguments)]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


def test_the_recipe_from_model_to_table(trained, tmp_path):
    folders = [f"--{name}={value}" for name, value in trained[2].items()]
    output = run_recipe("draw", *folders, "--num_controls=2", f"--output_dir={tmp_path / 'q'}")
    assert f"6 questions: {tmp_path / 'q' / 'questionnaire.html'}" in output
    key = Key.load(tmp_path / "q" / "key.json")
    for rater, rating in (("anna", 5), ("ben", 4)):
        answers = {item.item_id: 2 if item.is_control else rating for item in key.items}
        write_answers(tmp_path / "answers", rater, [], {"questionnaire": key.questionnaire, "answers": answers})
    files = sorted((tmp_path / "answers").iterdir())
    output = run_recipe("summarize", f"--questionnaire={tmp_path / 'q'}", "--answers", *files)
    text = (tmp_path / "q" / "ratings" / "ratings.md").read_text()
    assert text in output
    assert "| Completely makes sense | 50.0 % ± 70.7 | 0.0 % ± 0.0 |" in text
    assert "rated +2.50 [" in text
    summary = json.loads((tmp_path / "q" / "ratings" / "ratings.json").read_text())
    assert summary["num_raters"] == 2
    files[0].write_text("{")
    options = [f"--questionnaire={tmp_path / 'q'}", "--overwrite", "--answers", *files]
    assert f"error: These answers cannot be used:\n  {files[0]}: is no JSON" in run_recipe(
        "summarize", *options, code=1
    )
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
    np.testing.assert_array_equal(answers.ratings, [4, 5, NAN, 1])
