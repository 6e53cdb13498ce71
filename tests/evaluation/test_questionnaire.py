"""What a questionnaire on expert weights asks, in which order, and what its page says."""

import re
from itertools import permutations

import numpy as np
import pytest
from explained import SENTENCE, make_row, write_picture
from questioned import EXPERTS

from fl_i2moe.evaluation.human_evaluation.questionnaire import (
    Item,
    Subject,
    describe_experts,
    describe_questions,
    exchange_weights,
    item_ids,
    order_of_questions,
    questionnaire_id,
    render_questionnaire,
    stratified_order,
)
from fl_i2moe.model.kinds import places_in

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
    modalities = {name: places_in(row, name, grid=(3, 2)) for name in ("image", "text")}
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
