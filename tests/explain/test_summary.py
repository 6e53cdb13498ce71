"""What an explanation says in words, held against numbers chosen by hand."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from explained import make_explainable, make_explanation

from fl_i2moe.explain import Explanation
from fl_i2moe.explain import explain as explain_sample
from fl_i2moe.explain.attribution import MIXTURE
from fl_i2moe.explain.pages.sample_page import render_page
from fl_i2moe.explain.pair_table import PairTable
from fl_i2moe.explain.wording import isolated, standing

explain = partial(explain_sample, units="features", interactions=None)

READS = {"uniqueness_image": ["image"], "uniqueness_text": ["text"]}
READS |= {"synergy": ["image", "text"], "redundancy": ["image", "text"]}


def told(logits, problem_type="multi_label_classification", labels=None, reads=READS, target=0, pairs=False, **changes):
    """An explanation under equal weights, from logits (E, C) of image, text, synergy and redundancy. By default the
    first token and patch that are no special feature have the highest importance."""
    explanation = make_explanation(problem_type=problem_type)
    logits = np.array(logits, dtype=np.float64)
    explanation.label_names = ["happy", "sad", "calm"][: logits.shape[1]]
    explanation.expert_weights, explanation.expert_logits = np.full(4, 0.25), logits
    explanation.logits, explanation.labels, explanation.reads = logits.mean(axis=0), labels, reads
    explanation.target = target
    for scores in explanation.importance.values():
        for x in scores.values():
            x[1:] = np.linspace(1, 0.1, len(x) - 1)
    if not pairs:
        explanation.pair_tables = {}
    for name, value in changes.items():
        setattr(explanation, name, value)
    return explanation


def with_pairs(explanation, scores, error, estimator="per_pair"):
    """Two experts' twelve pairs: of synergy with these scores first and 0 for all others, of redundancy with 0."""
    whole = make_explanation().pair_tables
    for expert, table in whole.items():
        values = {kind: np.zeros(len(table.pairs)) for kind in table.scores}
        if expert == "synergy":
            values["sii"][: len(scores)] = scores
        errors = {kind: np.full(len(table.pairs), error) for kind in values}
        reach = {kind: np.column_stack([x - 1.96 * error, x + 1.96 * error]) for kind, x in values.items()}
        how = {"standard_errors": errors, "intervals": reach, "estimator": estimator}
        whole[expert] = replace(table, scores=values, **how)
    explanation.pair_tables = whole
    return explanation


def test_told_by_one_modality_alone():
    """Of single labels, what counts is how far the class is ahead of the runner-up, not the logits."""
    logits = [[5.0, 5.04, -9], [8.0, -1.0, 0], [1.0, 0.6, 1], [2.0, 2.0, -5]]
    explanation = told(logits, "single_label_classification", [0.0])
    assert explanation.rival_name == "sad"
    np.testing.assert_allclose(explanation.contributions, [-0.01, 2.25, 0.1, 0])
    assert explanation.contributions.sum() == pytest.approx(explanation.logits[0] - explanation.logits[1])
    assert explanation.summary == (
        "“happy” is 2.34 logits ahead of the runner-up, “sad”, mostly from the text alone (+2.25). The image alone "
        '(−0.01) adds next to nothing. Most important: words “He”, “said” and “"<script>alert(1)</script>"”. '
        "Pairs were not scored."
    )


def test_names_of_experts_are_no_findings():
    logits = [[0.0], [8.0], [0.0], [0.0]]
    for reads in (None, {expert: ["image", "text"] for expert in READS}):
        summary = told(logits, reads=reads).summary
        assert "mostly from the expert named “uniqueness_text” (+2.00)" in summary
        assert "alone" not in summary
        assert "next to nothing" not in summary
        assert "row 1, column 1 of the image" in summary, "it may have read that too"


def test_several_experts_and_what_speaks_against():
    summary = told([[4.0], [2.0], [4.0], [-4.0]]).summary
    assert summary.startswith(
        "The logit of “happy” is +1.50 (probability 0.818): the image alone (+1.00), the text alone (+0.50) and the "
        "expert named “synergy” (+1.00) outweigh the expert named “redundancy” (−1.00). Most important over all experts"
        ": row 1, column 1 of the image; words “He”"
    )
    assert "outweigh" not in told([[4.0], [4.0], [4.0], [-2.0]]).summary  # a sixth of what speaks for it
    assert "spread over the image alone (+1.00), the text alone (+1.00) and the expert named “synergy” (+1.00)." in (
        told([[4.0], [4.0], [4.0], [-2.0]]).summary
    )


def test_a_class_that_is_behind():
    logits = [[0.0, 8.0, 1], [0.0, 0.0, 1], [0.0, 0.0, 1], [0.0, 0.0, 1]]
    explanation = told(logits, "single_label_classification", [0.0])
    assert explanation.summary.startswith("“happy” is 2.00 logits behind “sad”, mostly from the image alone (−2.00).")
    assert "Why not “happy” for" in render_page(explanation)
    assert told(logits, "single_label_classification", [0.0], target=1).rival_name == "calm"


def test_a_regression_and_a_dense_model():
    explanation = told([[4.0], [2.0], [0.0], [0.0]], "regression", [1.25])
    assert explanation.summary.startswith("The model says 1.5 for “happy”, mostly from the image alone (+1.00) and the")
    assert standing(explanation) == "predicted 1.500, true 1.250"
    dense = told([[4.0], [2.0], [0.0], [0.0]], expert_names=["dense"], expert_weights=np.ones(1), reads=None)
    dense.expert_logits, dense.logits = np.array([[2.0]]), np.array([2.0])
    dense.importance = {"dense": dense.importance[MIXTURE]}
    assert dense.summary == (
        "The logit of “happy” is +2.00 (probability 0.881). The model is one expert: how much each modality adds "
        "is not known. Most important: row 1, column 1 of the image; words “He”, “said” and "
        '“"<script>alert(1)</script>"”. Pairs were not scored.'
    )


def test_small_and_equal_numbers_are_not_rounded_to_nothing():
    explanation = told([[0.004], [0.002], [0.0], [0.0]], "regression", [0.001])
    assert explanation.summary.startswith(
        "The model says 0.0015 for “happy”, mostly from the image alone (+0.001) and the"
    )
    level = told([[2.0, 2.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], "single_label_classification", [0.0])
    assert level.summary.startswith("“happy” is level with “sad”: no expert contributes anything.")
    assert told([[-9e9]] * 4).summary.startswith("The logit of “happy” is −9000000000.00 (probability below 0.001)")


def test_no_evidence_is_named_where_there_is_none():
    assert "as a baseline, so no evidence is named." in told([[1.0]] * 4, method="random").summary
    nothing = told([[0.0]] * 4)
    for scores in nothing.importance.values():
        for x in scores.values():
            x[:] = 0
    assert "no expert contributes anything. No feature has any importance over all experts." in nothing.summary


LOGITS = [[4.0], [2.0], [4.0], [0.0]]


def test_pairs_are_found_where_the_interval_leaves_out_0():
    explanation = with_pairs(told(LOGITS), [0.1, -2.0, 0.5], 0.2)
    found = [pair for pair in explanation.pairs("synergy", None) if pair.is_found]
    assert [pair.score for pair in found] == [-2.0, 0.5]
    assert found[0].interval == pytest.approx((-2.392, -1.608))
    assert explanation.summary.endswith(
        "In “synergy” (12 scored) “said” and row 1, column 1 together say less than the sum of each, by 2.00 (95 % "
        "interval 1.61 to 2.39); 2 leave 0 out. No pair is found to interact beyond its error in “redundancy” (12 "
        "scored)."
    )


def test_none_found_and_unknown_errors_and_exact_scores():
    assert with_pairs(told(LOGITS), [2.0], 1.1).summary.endswith(
        "No pair is found to interact beyond its error in “synergy” (12 scored) and “redundancy” (12 scored)."
    )
    assert with_pairs(told(LOGITS), [2.0], np.nan).summary.endswith(
        "Errors of the pairs in “synergy” (12 scored) and “redundancy” (12 scored) are not known, since each has one "
        "coalition."
    )
    exact = with_pairs(told(LOGITS), [2.0], 0.0, "exact").summary
    assert "“He” and row 1, column 1 together say more than the sum of each, by 2.00. No" in exact


def test_pairs_that_are_sure_but_tiny_are_worth_nothing():
    summary = with_pairs(told(LOGITS), [0.02], 0.001).summary
    assert "The pairs tried are worth next to nothing: at most 0.020 in “synergy” (12 scored)." in summary


def test_how_many_would_be_found_by_chance():
    """Of 200 pairs that do not interact ten 95 % intervals leave out 0."""
    explanation = told(LOGITS)
    table = make_explanation().pair_tables["synergy"]

    def summary(num_found):
        scores = {"sii": np.r_[np.full(num_found, 3.0), np.zeros(200 - num_found)]}
        many = np.tile(table.pairs, (17, 1))[:200]
        errors = {"sii": np.full(200, 0.5)}
        reach = {"sii": scores["sii"][:, None] + np.array([-1, 1])}
        how = (np.full(200, 4), 9, "per_pair", 0, table.players, reach)
        explanation.pair_tables = {"synergy": PairTable(many, scores, errors, *how)}
        return explanation.summary

    assert "; 9 leave 0 out, no more than chance alone would give." in summary(9)
    assert "; 30 leave 0 out, where chance alone would give about 10." in summary(30)


@pytest.mark.parametrize(
    ("labels", "logits", "expected"),
    [
        ([1.0, 0.0], [1.0, -1.0], "predicted and true"),
        ([0.0, 1.0], [1.0, -1.0], "predicted, but not true"),
        ([1.0, 1.0], [-1.0, -1.0], "true, but not predicted"),
        ([0.0, 1.0], [-1.0, -1.0], "neither predicted nor true"),
        (None, [1.0, -1.0], "predicted; the truth is not known"),
    ],
)
def test_what_the_explained_class_is(labels, logits, expected):
    explanation = told([logits] * 4, labels=labels)
    assert standing(explanation) == expected
    assert f"is <b>{expected}</b>" in render_page(explanation)


def test_names_from_right_to_left_are_set_apart():
    assert isolated("שלום 1") == "\u2068שלום 1\u2069"
    assert isolated("“שלום”") == "“\u2068שלום\u2069”", "the quotation marks are the sentence's"
    assert isolated("“peace”") == "“peace”"
    assert "“\u2068سعيد\u2069”" in told([[1.0]] * 4, label_names=["سعيد"]).summary


def test_what_an_expert_reads_is_the_architectures(tmp_path):
    """Changing what an expert does not read leaves its answer; published experts read everything."""
    for objective in ("specialised", "published"):
        model, cache = make_explainable(tmp_path / objective, objective=objective)
        row = cache.splits["test"][2]
        explanation = explain(model, row, "a")
        for changed in ("image", "text"):
            features = np.array(row[f"{changed}_features"])
            other = explain(model, {**row, f"{changed}_features": features[::-1].copy() + 1}, "a")
            same = np.isclose(other.expert_logits, explanation.expert_logits, atol=1e-5).all(axis=1)
            expected = [changed not in explanation.reads[name] for name in explanation.expert_names]
            assert same.tolist() == expected
        assert torch.equal(*(torch.tensor(x.logits) for x in (explanation, explain(model, row, "a"))))


def test_explanations_saved_before_open_and_say_less():
    explanation = told(LOGITS)
    saved = explanation.to_dict()
    assert Explanation.from_dict(saved).summary == explanation.summary
    del saved["reads"]
    assert "the experts named “uniqueness_image” (+1.00)" in Explanation.from_dict(saved).summary
    with pytest.raises(ValueError, match=r"`reads\.synergy` does not fit"):
        Explanation.from_dict({**saved, "reads": {"synergy": ["smell"]}})
