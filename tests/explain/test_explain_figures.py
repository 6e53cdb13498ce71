"""Figures of explanations: what they show, and that no text is cut or covers another."""

import itertools

import numpy as np
import pytest
from drawn import shown_texts
from explained import make_explanation, make_row, write_picture
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from test_report import Page, render_page

from fl_i2moe.evaluation.run.figures import draw_alignment, draw_faithfulness, pair_masking_rows
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.pages import flow
from fl_i2moe.explain.pages.display import score_text
from fl_i2moe.explain.pages.flow import Flow
from fl_i2moe.explain.pages.sample_figure import draw_explanation
from fl_i2moe.explain.pair_table import PairTable
from fl_i2moe.explain.wording import feature_name
from fl_i2moe.metrics.markdown import table
from fl_i2moe.model.kinds import places_in
from fl_i2moe.model.places import Places
from fl_i2moe.model.words import words


def shown(figure):
    """Visible texts with their boxes in pixels."""
    FigureCanvasAgg(figure)  # without a canvas of its own a figure measures every text anew
    return [(text, box) for text, box in shown_texts(figure) if text.strip()]


def check_page(figure):
    """No text leaves the figure, and none covers another by more than a pixel."""
    boxes = shown(figure)
    for text, box in boxes:
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= -1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) <= 3 or one == other, (one, other)


@pytest.fixture
def explanation(tmp_path):
    return make_explanation(make_row(write_picture(tmp_path / "poster.png")))


def test_one_sample_as_in_figure_5(tmp_path, explanation):
    figure = draw_explanation(explanation, top=3)
    texts = [text for text, _ in shown(figure)]
    for title in ("Uniqueness: image", "Uniqueness: text", "Synergy", "Redundancy", "Mixture"):
        assert title in texts
    for expert in ("synergy", "redundancy"):
        for pair in explanation.pairs(expert, 3):
            assert score_text(pair) in " ".join(texts)
    check_page(figure)
    with Image.open(explanation.save(tmp_path / "film.png")) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


@pytest.mark.filterwarnings("error")
def test_long_texts_foreign_letters_and_a_missing_picture(monkeypatch):
    monkeypatch.setattr(flow, "MAX_LINES", 12)
    row = make_row(text="x" * 90 + " 電影 🎬 $a$ " + "lorem ipsum dolor " * 20 + "the end")
    figure = draw_explanation(make_explanation(row))
    boxes = shown(figure)
    texts = [text for text, _ in boxes]
    assert "picture not at hand" in texts
    assert any("▯" in text for text in texts)
    assert "[clapper board]" in texts
    assert "▯ stands for characters (CJK) that no font on this machine has:" in " ".join(texts)
    assert "… (the page has the whole text)" in texts
    assert min(box.y0 for _, box in boxes) >= 0


def test_lines_keep_all_words_in_order_and_within_the_width():
    text = "Anna-Lena’s aunt, who sings; “Well!” " * 5
    row = {"text": text, "text_special_mask": [False], "text_offsets": [[0, 4]]}
    pieces = [(text[p.start : p.end], p.indexes) for p in places_in(row, "text").pieces()]
    flow = Flow(pieces, 120, 8, 12)
    assert "".join(fragment.text for fragment in flow.fragments) == "".join(text.split())
    assert all(fragment.x + fragment.width <= 120.01 for fragment in flow.fragments)
    assert [fragment.line for fragment in flow.fragments] == sorted(fragment.line for fragment in flow.fragments)
    assert flow.fragments[0].indexes == (0,)


def set_in_lines(text, limit=1000, base=None):
    """Fragments of a text whose every word is a feature, from left to right on each line."""
    spans = words(text)
    row = {"text": text, "text_special_mask": [False] * len(spans), "text_offsets": [list(span) for span in spans]}
    pieces = [(text[p.start : p.end], p.indexes) for p in places_in(row, "text").pieces()]
    fragments = sorted(Flow(pieces, limit, 8, 12, base).fragments, key=lambda x: (x.line, x.x))
    return [(x.text, x.line, x.x, x.width) for x in fragments], fragments


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("שלום New York עולם", None, "עולם New York שלום"),
        ("קניתי 25 ספרים", None, "ספרים 25 קניתי"),
        ("10 20 שלום", "rtl", "שלום 20 10"),  # two numbers among such letters, each by itself
        ("in שלום עולם, he said", None, "in עולם שלום , he said"),
        ("שלום (Paris) 3.50", None, "3.50 ) Paris ( שלום"),  # brackets are turned round when they are drawn
        ("Paris (שלום) 3.50", None, "Paris ( שלום ) 3.50"),
    ],
)
def test_what_runs_from_right_to_left_stands_as_unicode_has_it(text, base, expected):
    """By hand from UAX #9, what is read first being to the right."""
    runs, fragments = set_in_lines(text, base=base)
    assert " ".join(run[0] for run in runs) == expected
    for (_, _, x, width), (_, _, after, _) in itertools.pairwise(runs):
        assert after >= x + width - 0.01
    if base == "rtl" or text[0] > "z":
        assert runs[-1][2] + runs[-1][3] == pytest.approx(1000)  # at the right edge
    assert {i for x in fragments for i in x.indexes} == set(range(len(words(text))))


def test_joined_letters_are_one_text_whatever_tokens_they_are():
    """An Arabic word in three tokens, the first of which is shaded at the right."""
    text = "السعادة"
    row = {"text": text, "text_special_mask": [False] * 3, "text_offsets": [[0, 2], [2, 5], [5, 7]]}
    [word] = Flow(
        [(text[p.start : p.end], p.indexes) for p in places_in(row, "text").pieces()], 100, 8, 12, None
    ).fragments
    assert (word.text, word.indexes, word.is_rtl) == (text, (0, 1, 2), True)
    edges = [(part.left, part.right) for part in word.parts]
    assert edges[0][1] == pytest.approx(word.width)
    assert edges[2][0] == pytest.approx(0)
    assert [left for left, _ in edges[:2]] == pytest.approx([right for _, right in edges[1:]])


def test_lines_of_ideographs_end_between_them():
    runs = set_in_lines("今天天气很好我非常高兴", 20)[0]
    assert len({line for _, line, _, _ in runs}) > 1
    assert all(x + width <= 20.01 for _, _, x, width in runs)


def test_names_tell_the_word_of_a_piece():
    row = make_row(text="The pianist’s café sings a b")
    row["text_offsets"][2] = [8, 11]
    explanation = make_explanation(row)
    assert feature_name(explanation, "text", 2) == "“ist” in “pianist’s”"
    assert feature_name(explanation, "text", 3) == "“café”"
    assert feature_name(explanation, "image", 2) == "row 1, column 2"


def test_other_numbers_and_kinds_of_modalities(explanation):
    """Two pictures, a text and numbers: pairs between any two of them have a link."""
    modalities = {
        "front": explanation.modalities["image"],
        "back": explanation.modalities["image"],
        "text": explanation.modalities["text"],
        "audio": Places(5, []),
    }
    explanation.modalities = modalities
    for scores in explanation.importance.values():
        picture, text = scores.pop("image"), scores.pop("text")
        scores |= {"front": picture, "back": picture, "text": text, "audio": np.linspace(0, 1, 5)}
    ends = [("front", 1, "back", 2), ("back", 3, "text", 1), ("text", 2, "audio", 4), ("audio", 0, "front", 6)]
    values = {"sii": np.array([4.0, 3.0, 2.0, 1.0])}
    players = tuple(Player(name, place) for end in ends for name, place in (end[:2], end[2:]))
    pairs = np.arange(8).reshape(4, 2)
    table = PairTable(pairs, values, {"sii": np.full(4, 0.1)}, np.full(4, 8), 20, "per_pair", 1, players)
    explanation.pair_tables = {"synergy": table}
    check_page(draw_explanation(explanation))
    page = Page(render_page(explanation))
    chips = [x["data-ends"] for x in page.find("button", "link")]
    assert chips == ["0-1 1-2", "1-3 2-1", "2-2 3-4", "3-0 0-6"]
    marked = {name for x in page.elements if "data-f" in x for name in x["data-f"].split()}
    assert {end for chip in chips for end in chip.split()} <= marked


def fake_faithfulness(experts, seed=0):
    rng = np.random.default_rng(seed)
    names = experts if len(experts) == 1 else [*experts, "mixture"]

    def curve(spread):
        drops = np.sort(rng.random(3) * 0.3)
        return {
            "micro_f1": {
                "drops": drops.tolist(),
                "drops_std": [0.01] * 3 if spread else [None] * 3,
                "mean_drop": drops.mean(),
                "mean_drop_std": 0.01 if spread else None,
            }
        }

    by_method = {
        method: {name: curve(method == "random") for name in (names if method != "random" else names[-1:])}
        for method in ("attnroll", "grad_attnroll", "ig", "random")
    }
    return {
        "problem_type": "multi_label_classification",
        "num_samples": 20,
        "experts": experts,
        "shares": [0.1, 0.2, 0.3],
        "base": {"micro_f1": 0.6},
        "deletion": by_method,
    }


def test_faithfulness_as_in_figure_3_dense_beside_moe():
    moe = fake_faithfulness(["uniqueness_image", "uniqueness_text", "synergy", "redundancy"])
    dense = fake_faithfulness(["dense"], seed=1)
    figure = draw_faithfulness({"FL-I²MoE": moe, "dense Transformer": dense})
    texts = [text for text, _ in shown(figure)]
    assert "FL-I²MoE (micro-F1 0.600 unmasked)" in texts
    assert {"FL-I²MoE: Mixture", "FL-I²MoE: Synergy", "dense Transformer: Dense"} <= set(texts)
    panels = figure.subfigs[0].axes
    for axes, result in zip(panels, (moe, dense), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        whole = "mixture" if result is moe else "dense"
        for method, label in (("grad_attnroll", "Grad×AttnRoll"), ("random", "Random")):
            expected = result["deletion"][method][whole]["micro_f1"]["drops"]
            np.testing.assert_allclose(lines[label], expected)
    check_page(figure)
    with pytest.raises(ValueError, match="no insertion of 'micro_f1'"):
        draw_faithfulness({"x": moe}, "micro_f1", "insertion")


def test_alignment_as_in_figure_4():
    def result(means):
        bins = [
            {
                "num_samples": 7,
                "top": {
                    share: {"mean": mean, "interval": None if mean is None else [mean - 0.1, mean + 0.1]}
                    for share in ("0.05", "0.1", "0.2")
                },
            }
            for mean in means
        ]
        return {"confidence": 0.95, "ranked_and_valued_by": "independent scores", "bins": bins}

    results = {"synergy": result([0.9, -0.2, None]), "redundancy": result([0.5, 0.4, 0.3])}
    figure = draw_alignment(results, {"synergy": "SII", "redundancy": "redundancy gap"}, [0.1, 0.2, 0.3])
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0.9, -0.2, 0] * 3)
    texts = [text for text, _ in shown(figure)]
    assert {"0–10 %", "20–30 %", "no pair", "mean SII (logits)", "top 5 % pairs"} <= set(texts)
    check_page(figure)


def test_pair_masking_as_in_table_1():
    spread = {"mean": 0.55, "std": 0.01}
    part = {
        "none": 0.6,
        "ranked": 0.5,
        "random_same_features": spread,
        "random_same_pairs": {"mean": 0.52, "std": None},
        "ranked_minus_random": {"value": 0.05, "interval": [-0.01, 0.11]},
    }
    result = {"metrics": {"micro_f1": part}, "num_features": 6.5, "num_features_same_pairs": 9.0}
    header, rows = pair_masking_rows({"synergy": result, "redundancy": result}, "micro_f1")
    text = table(header, rows)
    assert text.splitlines()[0] == "| Masking | Synergy: micro-F1 | Redundancy: micro-F1 |"
    assert "| interaction pairs | 0.500 | 0.500 |" in text
    assert "+0.050 [−0.010, +0.110]" in text
    assert "0.550 ± 0.010" in text
    assert {line.count("|") for line in text.splitlines()} == {4}
    assert table(["a|b"], [["c"]]).startswith(r"| a\|b |")
