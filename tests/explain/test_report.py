"""The pages: parsed as a browser would, they refer to nothing outside, escape what they show, and tell all in text."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from explained import SENTENCE, make_explanation, make_row, write_picture
from PIL import Image

from fl_i2moe.evaluation.run.results import IndexEntry, RunFigure, RunTable, save_index
from fl_i2moe.explain.pages.display import score_text
from fl_i2moe.explain.pages.sample_page import render_page
from fl_i2moe.explain.wording import number, signed

VOID = {"meta", "link", "img", "br", "hr", "input", "source"}


class Page(HTMLParser):
    """Elements with their attributes and the text inside them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.visible = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def find(self, tag=None, name=None):
        return [
            x for x in self.elements if tag in (None, x["tag"]) and (name is None or name in x.get("class", "").split())
        ]

    def text(self, tag, name=None):
        return [x["text"] for x in self.find(tag, name)]


@pytest.fixture
def explanation(tmp_path):
    return make_explanation(make_row(write_picture(tmp_path / "poster.png")))


@pytest.fixture
def page(explanation):
    return Page(render_page(explanation))


def references(page):
    return [x[name] for x in page.elements for name in ("href", "src", "srcset", "action", "data") if name in x]


def test_the_page_is_whole_and_refers_to_nothing_outside(explanation, page):
    assert page.open == []  # every element is closed
    for reference in references(page):
        assert reference.startswith(("#", "data:image/jpeg;base64,")), reference[:60]
    ids = [x["id"] for x in page.elements if "id" in x]
    assert len(ids) == len(set(ids))
    assert {x[1:] for x in references(page) if x.startswith("#")} <= set(ids)
    html = render_page(explanation)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|\.src\b", re.sub(r"data:[^\"]*", "", html))
    assert not page.find("link")


def test_texts_names_and_ids_are_escaped(page):
    assert [x["text"].strip() for x in page.find("script")] != []
    assert all("alert" not in x["text"] for x in page.find("script"))
    assert "Fun" not in page.text("b")
    assert "Why “Comedy & <b>Fun</b>” for film <1>?" in page.text("h1")
    assert not page.find("1")


def test_every_card_shows_the_whole_text_with_its_shades(explanation, page):
    cards = page.find("article")
    assert [page.text("h3")[i] for i in range(5)] == [
        "Uniqueness: image",
        "Uniqueness: text",
        "Synergy",
        "Redundancy",
        "Mixture",
    ]
    assert len(cards) == 5
    texts = [re.sub(r"(?<=\S)[123](?=\W|$)", "", text) for text in page.text("p", "words")[:5]]  # without ranks
    plain = re.sub(r"(?<=\S)[123](?=\W|$)", "", SENTENCE)
    assert texts == [plain] * 5
    tokens = page.find("span", "token")
    shades = [float(re.search(r"--s:([\d.]+)", x["style"])[1]) for x in tokens]
    expected = [
        round(explanation.importance[expert]["text"][index], 3)
        for expert in explanation.importance
        for index in explanation.modalities["text"].candidates
    ]
    assert shades == pytest.approx(expected)
    assert len(page.find("span", "top")) == 15  # three strongest, not by colour alone
    assert page.text("span", "cut")[0].split() == ["was", "cut"]
    heat = page.find("rect", "heat")
    assert len(heat) == 5 * 6
    assert (heat[0]["x"], heat[0]["y"], heat[0]["width"], heat[0]["height"]) == ("0.0", "0.0", "30.0", "30.0")


def test_links_say_both_ends_score_and_error(explanation, page):
    chips = page.find("button", "link")
    assert len(chips) == 20
    pairs = [*explanation.pairs("synergy"), *explanation.pairs("redundancy")]
    ends = {x["data-f"] for x in page.elements if "data-f" in x}
    for chip, pair in zip(chips, pairs, strict=True):
        assert f"“{pair.second.token}”" in chip["text"]
        assert pair.first.name in chip["text"]
        assert score_text(pair) in chip["text"]
        for end in pair.interval:
            assert f"{abs(end):.3f}" in chip["text"]
        assert chip["type"] == "button"  # reached by Tab
        assert set(chip["data-ends"].split()) <= ends
    assert "as published" in chips[10]["text"]


def test_the_tables_hold_every_experts_numbers(explanation, page):
    cells = page.text("td")
    for expert, weight in enumerate(explanation.expert_weights):
        for logit in explanation.expert_logits[expert]:
            assert f"{signed(weight * logit)}{signed(logit)}" in cells
    for value, probability in zip(explanation.logits, explanation.probabilities, strict=True):
        assert f"{signed(value)}{probability:.3f}" in cells
    rows = [x["text"].split("✓")[0].strip() for x in page.find("th") if x.get("scope") == "row"][-3:]
    assert rows == [explanation.label_names[index] for index in np.argsort(-explanation.logits)]


def test_everything_operable_has_a_name(page):
    for element in page.elements:
        if element.get("role") in ("img", "region"):
            assert element.get("aria-label")
        if element["tag"] == "img":
            assert "alt" in element
    assert page.find("html")[0]["lang"] == "en"
    assert page.find("meta")[1]["name"] == "viewport"
    assert "tabindex" in next(x for x in page.find("div", "classes"))


def test_a_picture_that_is_gone_leaves_its_grid(tmp_path):
    page = Page(render_page(make_explanation(make_row(tmp_path / "gone.png"))))
    assert not page.find("image")
    assert "picture not at hand" in page.text("text")
    assert len(page.find("rect", "heat")) == 30


def test_a_picture_that_was_replaced_is_not_shown(tmp_path):
    path = write_picture(tmp_path / "other.png", size=(40, 40))
    assert not Page(render_page(make_explanation(make_row(path)))).find("image")


def test_texts_are_read_in_their_own_direction(tmp_path):
    explanation = make_explanation(make_row(text="שלום עולם ‮ two a b"))
    explanation.label_names = ["עצוב", "שמח", "c"]
    page = Page(render_page(explanation))
    assert {x["dir"] for x in page.find("p", "words")} == {"rtl"}
    assert "Why not “\u2068שמח\u2069” for" in page.text("h1")[0] or "Why “\u2068שמח\u2069” for" in page.text("h1")[0]
    assert all(x["dir"] == "ltr" for x in page.find("p", "words") if "script" in x["text"])
    assert "שמח" in page.text("bdi")
    entry = IndexEntry.of([explanation], ["a.html"])
    save_index(tmp_path / "index.html", "Run", [entry], facts={}, figures=[], tables=[])
    assert Page((tmp_path / "index.html").read_text()).find("p", "excerpt")[0]["dir"] == "auto"


def test_pairs_that_are_not_found_are_grey_and_said(explanation):
    """Of random scores with wide intervals none; the page begins with what it found."""
    for table in explanation.pair_tables.values():
        for kind, scores in table.scores.items():
            table.intervals[kind][:] = scores[:, None] + np.array([-10, 10])
    page = Page(render_page(explanation))
    assert page.text("p", "found") == ["None found: the 95 % intervals of all 12 pairs hold 0."] * 2
    assert len(page.find("button", "lost")) == 20
    assert all("the interval holds 0" in text for text in page.text("button"))
    order = [x["text"] for x in page.elements if x["tag"] in ("h1", "h2") or "summary" in x.get("class", "").split()]
    assert order[1] == explanation.summary
    assert order[2:] == [
        "What each expert contributes",
        "Which patches and tokens",
        "Which pairs act together",
        "What each expert says about every class",
        "Settings",
    ]


def test_contributions_are_bars_from_a_common_zero(explanation):
    explanation.expert_weights, explanation.problem_type = np.full(4, 0.5), "single_label_classification"
    explanation.labels, explanation.logits = [0.0], np.array([1.0, 0.5, -9.0])
    explanation.expert_logits = np.array([[1.0, 3.0, 0], [0.0, 0.0, 7], [2.0, 1.0, 0], [3.0, 0.0, 0]])
    page = Page(render_page(explanation))
    assert page.text("span", "value") == ["+1.000", "0.000", "−0.500", "−1.500", "−1.000"]
    bars = [re.findall(r"[\d.]+", x["style"]) for x in page.find("span", "bar")]
    assert [[*map(float, bar)] for bar in bars] == [[60, 40], [60, 0], [40, 20], [0, 60]]
    assert {x["style"] for x in page.find("span", "zero")} == {"left:60.0%"}
    assert "ahead of “Drama”, the best of the other classes" in " ".join(page.text("p", "note"))


def test_64_samples_with_pictures_make_a_small_page(tmp_path, explanation):
    entries = [IndexEntry.of([explanation], ["samples/film-1.html"])] * 64
    save_index(tmp_path / "index.html", "Run", entries, facts={}, figures=[], tables=[])
    assert (tmp_path / "index.html").stat().st_size < 500_000
    with Image.open(BytesIO(base64.b64decode(entries[0].thumbnail.partition(",")[2]))) as thumbnail:
        assert (thumbnail.format, max(thumbnail.size)) == ("JPEG", 64)


def test_a_page_without_pairs_or_classes(explanation):
    explanation.pair_tables = {}
    explanation.problem_type, explanation.labels = "regression", [0.5, 0.0, 1.0]
    page = Page(render_page(explanation))
    assert not page.find("button")
    assert not page.find("script")
    assert "probability" not in " ".join(page.text("dd"))
    assert page.text("dd")[:2] == [signed(explanation.logits[1]), signed(0.0)], "what the model says, and what is true"


def test_the_index_links_every_page(tmp_path, explanation):
    entries = [IndexEntry.of([explanation], ["samples/film-1.html"])]
    save_index(
        tmp_path / "index.html",
        "Run <1>",
        entries,
        facts={"Model": "a & b"},
        figures=[RunFigure("Faithfulness", "faithfulness.png", "drops by 0.1")],
        tables=[RunTable("Pair masking", ["Masking", "Synergy"], [["none", "0.5"]], "n = 2")],
    )
    page = Page((tmp_path / "index.html").read_text())
    assert page.open == []
    # the samples come before what was measured on them
    links = [x["href"] for x in page.find("a")]
    assert links == ["#part-1", "#part-2", "samples/film-1.html", "faithfulness.png"]
    assert {x[1:] for x in links if x.startswith("#")} <= {x["id"] for x in page.elements if "id" in x}
    assert all(not re.match(r"[a-z]+://|/", x) for x in references(page))
    assert page.find("img")[-1]["alt"] == "drops by 0.1"
    assert page.text("p", "excerpt") == [SENTENCE]
    standing_of = "predicted and true" if explanation.predicted_classes == [1] else "true, but not predicted"
    assert f"for film <1> {standing_of}" in page.text("li")[1]
    assert page.text("td") == ["0.5"]
    assert page.text("h1") == ["Run <1>"]
    # of the classes without a page, too, it says what they are
    rest = [index for index in explanation.predicted_classes + explanation.true_classes if index != 1]
    assert all(explanation.label_names[index] in page.text("p", "numbers")[0] for index in rest)


def test_numbers_as_people_read_them():
    assert [signed(x) for x in (0.25, -1, 0.0001, -0.0001)] == ["+0.250", "−1.000", "0.000", "0.000"]
    assert [number(x) for x in (0.25, -1, -0.0001, None)] == ["0.250", "−1.000", "0.000", "undefined"]
