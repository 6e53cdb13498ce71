"""Measuring explanations of a model whose experts are known: each computes one thing from one place a modality."""

import json
from itertools import groupby

import numpy as np
import pytest
import torch

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.evaluation.ground_truth.evaluation import (
    Case,
    ModelMeasures,
    choose_cases,
    evidence_ceiling,
    fit_probes,
    found_evidence,
    found_pairs,
    of_right_expert,
    summarise,
)
from fl_i2moe.evaluation.ground_truth.report import draw_carriers, to_markdown
from fl_i2moe.evaluation.ground_truth.truth import Evidence, ExpertOutputs
from fl_i2moe.model.fusion import Fusion
from fl_i2moe.model.modeling_fl_i2moe import FLI2MoEOutput

LABELS = ["differ", "either"]
CARRIERS = {"differ": "synergy", "either": "redundancy"}
LENGTHS = {"image": 7, "text": 6}  # the text's first feature is special
SYNERGY, REDUNDANCY = 2, 3
HOW = {"units": "features", "progress": False}


class KnownModel(FLI2MoEModel):
    """
    Channel c of image and text tells label c: the synergy expert multiplies the two sums of channel 0, the redundancy
    expert takes what the sums of channel 1 say, half of it twice (of a full copy, gradients are 0). Other logits are 0.

    Args:
        sign: of the product; the exclusive-or of ±1 is -1 times it.
        hidden: whether the product is 0 where channel 1 of both is there, so that neither leaving its features out of
            the whole sample nor putting one into nothing changes anything.
    """

    def __init__(self, sign: float = -1.0, hidden: bool = False):
        modalities = {name: {"feature_size": 2, "max_features": length} for name, length in LENGTHS.items()}
        super().__init__(FLI2MoEConfig(modalities=modalities, num_labels=2, hidden_size=2, num_attention_heads=1))
        self.experts = Fusion(self.config)  # which cannot be called: `run_experts` is all there is
        self.sign, self.hidden = sign, hidden
        self.eval()

    def embed(self, features, feature_masks=None):
        return {name: x.float() for name, x in features.items()}

    def run_mixture(self, projected, feature_masks, keep=None):
        weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(len(projected["image"]), -1)
        return FLI2MoEOutput(expert_weights=weights)

    def run_experts(self, projected, feature_masks=None, keep=None, experts=None, output_attentions=False):
        names = self.config.expert_names
        indexes = [names.index(name) for name in experts or names]
        parts = {name: x * keep[name].unsqueeze(-1) if keep else x for name, x in projected.items()}
        num_samples, total = parts["image"].shape[-3], sum(x.shape[-2] for x in parts.values())
        attention = torch.full((len(indexes) * num_samples, 1, total, total), 1 / total, requires_grad=True)
        looks = attention.sum(dim=(1, 2)).view(len(indexes), num_samples, total, 1)  # 1 each
        image, text = looks.split([x.shape[-2] for x in parts.values()], dim=2)
        x, y = (image * parts["image"]).sum(2), (text * parts["text"]).sum(2)  # (experts, B, channel)
        nothing = 0 * x[..., 0]
        logits = []
        for place, index in enumerate(indexes):
            a, b = x[place, :, 1], y[place, :, 1]
            differ = self.sign * x[place, :, 0] * y[place, :, 0] if index == SYNERGY else nothing[place]
            differ = differ * (1 - a * b) if self.hidden else differ
            either = 0.6 * (a + b) - 0.2 * a * b if index == REDUNDANCY else nothing[place]
            logits.append(torch.stack([differ, either + nothing[place]], dim=1))
        stacked = torch.stack(logits, dim=1)
        return (stacked, (attention,)) if output_attentions else stacked


class Rows:
    """Eight samples, in which label c shows at one place of each modality."""

    def __init__(self, places=None):
        rng = np.random.default_rng(0)
        free = {"image": np.arange(7), "text": np.arange(1, 6)}
        self.places = [{n: places or rng.permutation(x)[:2].tolist() for n, x in free.items()} for _ in range(8)]
        self.features = {name: torch.zeros(8, length, 2) for name, length in LENGTHS.items()}
        for row, place in enumerate(self.places):
            first = 1.0 if row % 2 else -1.0
            self.features["image"][row, place["image"][0], 0] = first
            self.features["text"][row, place["text"][0], 0] = -first
            for name in LENGTHS:
                self.features[name][row, place[name][1], 1] = 1.0

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        special = {name: torch.zeros(len(rows), length, dtype=torch.bool) for name, length in LENGTHS.items()}
        special["text"][:, 0] = True
        return {
            "ids": [str(row) for row in rows],
            "features": {name: x[rows] for name, x in self.features.items()},
            "feature_masks": {name: torch.ones_like(x) for name, x in special.items()},
            "special_masks": special,
        }

    @property
    def modalities(self):
        """As a feature cache has them."""
        return {name: {} for name in LENGTHS}

    @property
    def splits(self):
        batch = self[list(range(8))]
        fields = {"features": "features", "special_mask": "special_masks"}
        return {
            "test": [
                {f"{name}_{x}": batch[y][name][row].numpy() for name in LENGTHS for x, y in fields.items()}
                for row in range(8)
            ]
        }

    def evidence(self, row: int, channel: int) -> Evidence:
        features = {name: np.arange(length) == self.places[row][name][channel] for name, length in LENGTHS.items()}
        states = {name: bool(self.features[name][row, :, channel].sum() > 0) for name in LENGTHS}
        return Evidence(features, features, states)

    @property
    def truth(self):
        return {str(r): {label: self.evidence(r, c) for c, label in enumerate(LABELS)} for r in range(8)}

    @property
    def cases(self):
        return choose_cases([str(row) for row in range(8)], np.ones((8, 2)), LABELS, self.truth, 16)


def of_label(values, cases, label):
    return values[[case.label == label for case in cases]]


def test_an_expert_finds_its_own_evidence_and_another_finds_none():
    rows = Rows()
    found = found_evidence(KnownModel(), rows, "test", rows.cases, methods=["grad_attnroll", "ig"], **HOW)
    for label, expert, other in (("differ", "synergy", "redundancy"), ("either", "redundancy", "synergy")):
        for name, candidates in (("image", 7), ("text", 5)):
            values = {e: of_label(found[e, "grad_attnroll", name, "k"], rows.cases, label) for e in (expert, other)}
            assert values[expert].tolist() == [1] * 8
            assert values[other] == pytest.approx(1 / candidates)  # all alike: as good as chance
            assert of_label(found["mixture", "grad_attnroll", name, "k"], rows.cases, label).tolist() == [1] * 8
            five = of_label(found[expert, "grad_attnroll", name, "5"], rows.cases, label)
            assert five == pytest.approx(1 / 5)
    assert of_label(found["synergy", "ig", "image", "k"], rows.cases, "differ").tolist() == [1] * 8


def test_evidence_is_measured_in_evaluation_mode():
    class Moody(KnownModel):
        def forward(self, *inputs, **more):
            assert not self.training
            return super().forward(*inputs, **more)

    rows, model = Rows(), Moody().train()
    assert found_evidence(model, rows, "test", rows.cases, methods=["grad_attnroll"], **HOW)
    assert model.training


def test_tolerance_counts_neighbours_and_exactness_does_not():
    rows = Rows()
    beside = [
        Case(
            c.row,
            c.sample_id,
            c.target,
            c.label,
            Evidence({"image": np.roll(c.evidence.features["image"], 1)}, {"image": np.ones(7, bool)}, {"image": True}),
        )
        for c in rows.cases
    ]
    found = found_evidence(KnownModel(), rows, "test", beside, methods=["grad_attnroll"], **HOW)
    assert of_label(found["synergy", "grad_attnroll", "image", "k"], beside, "differ").tolist() == [1] * 8
    assert of_label(found["synergy", "grad_attnroll", "image", "k_exact"], beside, "differ").tolist() == [0] * 8
    assert ("synergy", "grad_attnroll", "text", "k") not in found


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_right_expert_finds_the_planted_pair(sign):
    """The product's index is ±1 for the pair and 0 for all others; R_red in the variant "both" is 0 for them too."""
    rows = Rows()
    how = {"universe_share": 1.0, "num_coalitions": 2, **HOW}
    found = found_pairs(KnownModel(sign), rows, "test", rows.cases, CARRIERS, **how)

    def of(expert, score, measure, label, universe="top"):
        return of_label(found[expert, universe, score, measure], rows.cases, label)

    for universe in ("top", "oracle"):
        assert of("synergy", "sii_absolute", "1", "differ", universe).tolist() == [1] * 8
        assert of("redundancy", "redundancy_both", "1", "either", universe).tolist() == [1] * 8
    # the product of opposite signs is negative
    assert of("synergy", "sii_signed", "1", "differ").tolist() == [1.0 if sign < 0 else 0.0] * 8
    assert of("synergy", "sii_absolute", "5", "differ") == pytest.approx(1 / 5)
    assert of("synergy", "universe", "5", "differ") == pytest.approx(1 / 5)
    assert of("synergy", "universe", "chance", "differ") == pytest.approx(1 / 35)
    # wrong experts say 0 of every pair
    assert of("redundancy", "sii_absolute", "1", "differ") == pytest.approx(1 / 35)
    assert of("synergy", "redundancy_both", "1", "either") == pytest.approx(1 / 35)
    assert np.isnan(of("redundancy", "sii_absolute", "1", "differ", "oracle")).all()


def test_the_oracle_tells_the_estimate_from_the_choice_of_candidates():
    """Effects that tell nothing put the first features into the universe; the truth lies in the last ones."""
    rows = Rows(places=[5, 4])
    how = {"universe_share": 0.3, "estimator": "exact", **HOW}
    found = found_pairs(KnownModel(hidden=True), rows, "test", rows.cases, CARRIERS, **how)
    top, oracle = (
        {
            m: of_label(found["synergy", u, s, m], rows.cases, "differ")
            for s, m in (("universe", "any"), ("sii_absolute", "1"))
        }
        for u in ("top", "oracle")
    )
    assert top["any"].tolist() == top["1"].tolist() == [0] * 8
    assert oracle["any"].tolist() == oracle["1"].tolist() == [1] * 8


def test_a_model_without_the_right_expert_gets_the_oracle_for_all():
    rows = Rows()
    carriers = dict.fromkeys(LABELS, "dense")
    found = found_pairs(KnownModel(), rows, "test", rows.cases[:1], carriers, num_coalitions=1, **HOW)
    assert {key[0] for key in found if key[1] == "oracle"} == set(KnownModel().config.expert_names)


def test_probes_and_chance():
    rows = Rows()
    # each state at its place, and noise that tells nothing
    rows.features = {name: x + 0.01 * torch.randn_like(x) for name, x in rows.features.items()}
    ceiling = evidence_ceiling(rows, rows.cases, fit_probes(rows, rows.truth, LABELS))
    for name, candidates in (("image", 7), ("text", 5)):
        assert ceiling["probe", name, "k"].tolist() == [1] * 16
        assert ceiling["chance", name, "k"] == pytest.approx(1 / candidates)


def test_cases_are_spread_over_labels_and_need_their_evidence():
    rows = Rows()
    ids = [str(row) for row in range(8)]
    labels = np.array([[1, 1]] * 4 + [[0, 1]] * 4)
    truth = rows.truth
    truth["2"] = {"either": Evidence({"image": np.zeros(7, bool)}, {}, {}), "differ": truth["2"]["differ"]}
    cases = choose_cases(ids, labels, LABELS, truth, 5, seed=3)
    assert [case.label for case in cases] == ["differ"] * 3 + ["either"] * 3
    assert cases == choose_cases(ids, labels, LABELS, truth, 5, seed=3)
    every = choose_cases(ids, labels, LABELS, truth, 100)
    assert [case.row for case in every] == [0, 1, 2, 3, 0, 1, 3, 4, 5, 6, 7]
    assert choose_cases(ids, labels, LABELS, {i: {"differ": t["differ"]} for i, t in truth.items()}, 9)[-1].row == 3
    with pytest.raises(ValueError, match="no sample"):
        choose_cases(ids, np.zeros((8, 2)), LABELS, truth, 5)


def test_summary_by_hand():
    evidence = Evidence({}, {}, {})
    cases = [Case(0, "a", 0, "x", evidence), Case(0, "a", 1, "y", evidence), Case(1, "b", 0, "x", evidence)]
    seeds = [
        {("e", "m"): np.array([0.0, 0.5, 1.0]), ("f", "m"): np.array([np.nan, 1.0, np.nan])},
        {("e", "m"): np.array([1.0, 0.5, 1.0]), ("f", "m"): np.array([np.nan, 0.0, np.nan])},
    ]
    result = summarise(seeds, cases, {"x": "synergy", "y": "redundancy"}, num_resamples=200)
    json.dumps(result, allow_nan=False)
    assert result["synergy"]["e"]["m"]["seeds"] == [0.5, 1]
    assert result["synergy"]["e"]["m"]["mean"] == 0.75
    assert result["synergy"]["e"]["m"]["interval"] == [0.5, 1]  # film a twice, or film b twice
    assert "f" not in result["synergy"]
    assert result["redundancy"]["f"]["m"]["seeds"] == [1, 0]
    assert result["redundancy"]["f"]["m"]["interval"] == [0.5, 0.5]


def test_the_right_experts_part_by_hand():
    evidence = Evidence({}, {}, {})
    cases = [Case(0, "a", 0, "x", evidence), Case(0, "a", 1, "y", evidence)]
    found = {
        (name, "ig", "image", "k"): np.array([i, i + 0.5]) for i, name in enumerate(["synergy", "other", "mixture"])
    }
    carriers = {"x": "synergy", "y": "other"}
    right = of_right_expert(found, cases, carriers, ["synergy", "other"])
    assert {key: x.tolist() for key, x in right.items()} == {("ig", "image", "k"): [0, 1.5]}
    lacking = of_right_expert(found, cases, {"x": "synergy", "y": "redundancy"}, ["synergy", "other"])
    assert lacking["ig", "image", "k"].tolist() == pytest.approx([0, np.nan], nan_ok=True)
    only = {("dense", *key[1:]): x for key, x in found.items() if key[0] == "other"}
    assert of_right_expert(only, cases, carriers, ["dense"])["ig", "image", "k"].tolist() == [1, 1.5]


def test_measures_come_back_from_their_file(tmp_path):
    outputs = ExpertOutputs(np.random.rand(3, 2, 1), np.random.rand(3, 2))
    measures = ModelMeasures(outputs, {("e", "ig", "image", "5"): np.array([0.5, np.nan])}, {("e", "top"): np.ones(1)})
    measures.save(tmp_path / "one.npz")
    again = ModelMeasures.load(tmp_path / "one.npz")
    np.testing.assert_equal(
        [vars(again.outputs), again.evidence, again.pairs], [vars(outputs), measures.evidence, measures.pairs]
    )


def test_tables_and_figure_say_what_was_found(tmp_path):
    def value(mean):
        return {"mean": mean, "std": None, "interval": [mean, mean], "seeds": [mean]}

    names = ["uniqueness_image", "synergy"]
    labels = {"b": {"right": "synergy", "score": value(0.9), "costs": {names[0]: value(0.25), names[1]: value(-0.001)}}}
    labels["b"] |= {"carriers": [names[0]], "margin": value(-0.251)}
    part = {"share_right": value(0.0), "labels": labels}
    metrics = {"f1": part, "average_precision": part}

    def found(mean):
        scores = {k: {m: value(mean) for m in ("1", "5", "10", "5_exact")} for k in ("sii_absolute", "sii_signed")}
        return {**scores, "universe": {"chance": value(0.01), "any": value(1.0), "5": value(0.8)}}

    feature = {"k": value(0.625), "k_exact": value(0.375)}
    model = {
        "experts": names,
        "seeds": ["0"],
        "right_experts": {"chance": 0.5, "logits": metrics, "contribution": metrics},
        "evidence": {"synergy": {name: {"ig": {"image": feature}} for name in names}},
        "pairs": {"synergy": {names[0]: {"top": found(0.25)}, names[1]: {"top": found(0.5), "oracle": found(1)}}},
        "micro_f1": value(0.75) | {"std": 0.01},
        "right_evidence": {"ig": {"image": feature}},
    }
    report = {
        "settings": {"split": "test"},
        "groups": {"b": "synergy"},
        "ceiling": {"synergy": {"chance": {"image": feature}, "probe": {"image": feature}}},
        "chance": {"image": {"k": value(0.05)}},
        "models": {"a": model},
    }
    text = to_markdown(report)
    lines = text.splitlines()
    [top] = [i for i, line in enumerate(lines) if line.startswith("| model")]
    header, row = ([cell.strip() for cell in lines[i].split("|")[1:-1]] for i in (top, top + 2))
    assert list(zip(header, row, strict=True)) == [
        ("model", "a"),
        ("test micro-F1", "0.75 ± 0.01"),
        ("right expert (F1)", "0.00"),
        ("right expert (AP)", "0.00"),
        ("chance", "0.50"),
        ("image evidence", "0.62"),
        ("chance (image)", "0.05"),
        ("P@5 synergy pairs", "0.50"),
        ("best wrong expert", "0.25"),
        ("chance", "0.01"),
    ]
    assert "**0.25 [0.25, 0.25]** | 0.00 [0.00, 0.00]" in text
    assert "0 of 1" in text
    assert "| uniqueness_image | ig     | 0.62 (0.38)" in text
    tables = [list(group) for is_table, group in groupby(text.splitlines(), lambda x: x.startswith("|")) if is_table]
    assert all(len({len(line) for line in table}) == 1 for table in tables)
    draw_carriers(report).savefig(tmp_path / "figure.png")
    model["right_experts"] = {}
    assert "nothing to compare" in to_markdown(report)
    with pytest.raises(ValueError, match="no mixture"):
        draw_carriers(report)
