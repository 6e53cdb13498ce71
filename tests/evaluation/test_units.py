"""Faithfulness of units that are encoded anew, against a loop that encodes for every coalition, and numbers by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from published import make_published
from tiny_models import make_batch, make_config, make_model

from fl_i2moe.evaluation.erasure import erasure
from fl_i2moe.evaluation.masking import Maskings, faithfulness_logits, faithfulness_of, masked_logits, subject_logits
from fl_i2moe.explain.attribution import Importance, attribute
from fl_i2moe.explain.explain_sample import open_sample
from fl_i2moe.explain.feature_sample import FeatureSample
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.inputs import Inputs

SHARES = (0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return make_published(tmp_path_factory.mktemp("published"))


def opened(published, row=4, **options):
    model, _, cache = published
    return open_sample(model, cache.splits["test"][row], cache=cache, **options)


@torch.no_grad()
def encoded_anew(model, row, absent) -> np.ndarray:
    """The mixture's logits (C,) of one sample without these features, modality → numbers: one encoding of each."""
    projected = {}
    for name in model.config.modality_order:
        encoder = model.raw_inputs.load(name)
        kept = torch.ones(1, len(row[f"{name}_special_mask"]), dtype=torch.bool)
        kept[0, list(absent[name])] = False
        features = encoder.encode(encoder.preprocess([row[name]]).inputs, kept).features.half().float()
        projected[name] = model.project(name, features) * kept[..., None]
    return model.run_mixture(projected).logits[0].double().numpy()


def test_all_maskings_equal_a_loop_that_encodes_for_each(published):
    model, _, cache = published
    row, subject = cache.splits["test"][4], opened(published)
    methods = ["leave_one_out", "grad_attnroll", "random"]
    how = Maskings(methods=methods, shares=SHARES, num_random=2)
    logits = subject_logits(subject, [0.0, 1.0, 0.0], how, seed=(3, 4))
    encodings = subject.encodings
    features = {name: modality.units.features for name, modality in subject.modalities.items()}
    everything = {name: {x for unit in units for x in unit} for name, units in features.items()}

    def check(found, absent):
        np.testing.assert_allclose(found, encoded_anew(model, row, absent), atol=1e-5)

    check(logits["base"][0], dict.fromkeys(features, ()))
    check(logits["emptied"][0], everything)
    for method in methods[:2]:
        scores = subject.attribute(1, method, (3, 4)).scores
        for e, expert in enumerate(model.config.expert_names[:3]):
            for k, share in enumerate(SHARES):
                top = {}
                for name, x in scores.items():
                    order = sorted(range(len(features[name])), key=lambda unit, x=x[0, e]: (-float(x[unit]), unit))
                    count = max(1, int(np.ceil(share * len(order) - 1e-9)))
                    top[name] = {feature for unit in order[:count] for feature in features[name][unit]}
                check(logits[f"deletion/{method}/{expert}"][0, 0, k], top)
                rest = {name: everything[name] - top[name] for name in top}
                check(logits[f"insertion/{method}/{expert}"][0, 0, k], rest)
    assert logits["deletion/random/mixture"].shape == (1, 2, 3, 3)
    assert list(logits["deletion/leave_one_out/mixture"].shape) == [1, 1, 3, 3]

    # the same again is encoded no more, and no subset was encoded twice
    assert torch.equal(subject_logits(subject, [0.0, 1.0, 0.0], how, seed=(3, 4))["base"], logits["base"])
    assert subject.encodings == encodings == sum(len(x._projected) for x in subject.modalities.values())


def test_of_features_it_is_what_batches_give():
    for changes in ({}, {"problem_type": "single_label_classification"}, {"architecture": "dense"}):
        model = make_model(make_config(num_modalities=3, **changes))
        batch = make_batch(model.config, num_samples=1)
        row = {f"{name}_features": x[0].numpy() for name, x in batch["features"].items()}
        row |= {f"{name}_special_mask": x[0].tolist() for name, x in batch["special_masks"].items()}
        subject = FeatureSample(model, row, {name: {} for name in model.config.modality_order}, batch_size=5)
        how = Maskings(methods=["grad_attnroll", "attnroll"], shares=SHARES)
        expected = faithfulness_logits(model, batch, how)
        labels = batch["labels"][0].tolist()
        found = subject_logits(subject, labels, how)
        assert set(found) == set(expected)
        for name, x in expected.items():
            torch.testing.assert_close(found[name].float(), x, atol=2e-6, rtol=0)


def test_the_mixture_of_features_zeroes_what_does_not_play():
    model = make_model(make_config())
    batch = make_batch(model.config, num_samples=1)
    row = {f"{name}_features": x[0].numpy() for name, x in batch["features"].items()}
    row |= {f"{name}_special_mask": x[0].tolist() for name, x in batch["special_masks"].items()}
    subject = FeatureSample(model, row, {name: {} for name in model.config.modality_order})
    players = [Player("text", 2), Player("image", 1), Player("image", 3)]
    coalitions = np.array([[0, 0, 0], [1, 0, 1], [1, 1, 1]], bool)
    logits, expert_logits, weights = subject.mixture(coalitions, players)
    inputs = Inputs.from_batch(model, batch)
    for coalition, found, of_experts in zip(coalitions, logits, expert_logits, strict=True):
        keep = {name: ~mask.clone() for name, mask in inputs.candidate_masks.items()}
        for player, there in zip(players, coalition, strict=True):
            keep[player.modality][0, player.place] = bool(there)
        np.testing.assert_allclose(found, masked_logits(model, inputs, keep)[0], atol=1e-6)
        value = subject.game("synergy", 1, players)(coalition[None])
        np.testing.assert_allclose(of_experts[model.config.expert_names.index("synergy"), 1], value, atol=1e-6)
    np.testing.assert_allclose(np.einsum("se,sec->sc", weights, expert_logits), logits, atol=1e-6)


def test_importance_of_features_is_summed_over_units(published):
    """Tokens over their words, patches over coarser cells, before both are scaled."""
    from fl_i2moe.model.places import UnitOptions

    model, _, _ = published
    subject = opened(published, cut=UnitOptions(cells=(2, 2)))
    inputs = Inputs.from_batch(model, subject.batch)
    for method in ("grad_attnroll", "ig", "attnroll"):
        found = subject.attribute(1, method, (0,))
        raw = attribute(model, inputs, torch.tensor([1]), method).raw
        for name, modality in subject.modalities.items():
            for unit, features in enumerate(modality.units.features):
                total = sum(raw[name][0, :, feature] for feature in features)
                torch.testing.assert_close(found.raw[name][0, :, unit].float(), total)
        assert found.scores["image"].shape == (1, 4, 4)


def test_one_class_after_the_other_asks_the_experts_once(published, monkeypatch):
    subject, calls = opened(published), []
    alone = {method: opened(published).attribute(2, method, (1, 2)).raw for method in ("shapley", "leave_one_out")}
    expert_logits = subject.expert_logits
    monkeypatch.setattr(subject, "expert_logits", lambda *x: calls.append(x) or expert_logits(*x))
    for method, expected in alone.items():
        subject.attribute(0, method, (1, 2))
        number = len(calls)
        for name, x in subject.attribute(2, method, (1, 2)).raw.items():
            torch.testing.assert_close(x, expected[name])
        assert len(calls) == number
    subject.attribute(2, "shapley", (1, 3))  # other coalitions
    assert len(calls) > number


# ---- by hand -------------------------------------------------------------------------------------------------------

UNITS = [Player("text", 0), Player("text", 1), Player("image", 0)]
CHANCES = {"abc": 0.9, "bc": 0.6, "ac": 0.7, "ab": 0.8, "a": 0.5, "b": 0.3, "c": 0.2, "": 0.1}
"""Probability of class 1 by what is there: the words a and b, the picture c."""


class ThreeUnits:
    """Importance of words a, b: 1 and 0."""

    players = UNITS
    model = make_model(make_config(problem_type="single_label_classification", num_labels=2))

    def mixture(self, coalitions, players):
        assert players == UNITS
        there = ["".join(name for name, is_in in zip("abc", x, strict=True) if is_in) for x in coalitions]
        chance = np.array([CHANCES[x] for x in there])
        return np.log(np.stack([1 - chance, chance], axis=1)), None, np.full((len(coalitions), 4), 0.25)

    def attribute(self, target, method, seed):
        scores = {"text": torch.tensor([[[1.0, 0.0]]]), "image": torch.ones(1, 1, 1)}
        if method == "random":
            scores["text"] = torch.tensor([[[0.0, 1.0]]]) if seed[-1] else scores["text"]
        scores = {name: x.expand(1, 4, -1) for name, x in scores.items()}
        candidates = {name: torch.ones(1, x.shape[-1], dtype=torch.bool) for name, x in scores.items()}
        return Importance(scores, self.model.config.expert_names, scores, None, candidates)


def test_erasure_by_hand():
    """10 and 25 % of two words are one, 100 % both; of one picture always the one."""
    how = Maskings(methods=["shapley", "random"], shares=(0.1, 0.25, 1.0), num_random=2)
    logits = subject_logits(ThreeUnits(), 1, how)
    result = faithfulness_of(logits, torch.tensor([1]), ThreeUnits.model.config, how)
    json.dumps(result, allow_nan=False)
    lost, enough = (result[measure] for measure in ("comprehensiveness", "sufficiency"))
    for expert in (*ThreeUnits.model.config.expert_names, "mixture"):
        own = lost["shapley"][expert]
        # without a and c there is b, at last nothing; with a and c alone 0.7, at last everything
        assert own["values"] == pytest.approx([0.9 - 0.3, 0.9 - 0.3, 0.9 - 0.1])
        assert own["aopc"] == pytest.approx(0.6)  # of 10 and 25 %
        assert own["interval"] == pytest.approx([0.6, 0.6])
        assert enough["shapley"][expert]["values"] == pytest.approx([0.2, 0.2, 0.0])
        assert enough["shapley"][expert]["aopc"] == pytest.approx(0.2)
        # the second draw takes b and c: without them 0.5, with them alone 0.6
        assert own["beyond_random"]["value"] == pytest.approx(0.6 - (0.6 + 0.4) / 2)
        assert enough["shapley"][expert]["beyond_random"]["value"] == pytest.approx((0.2 + 0.3) / 2 - 0.2)
    random = lost["random"]["mixture"]
    assert random["aopc"] == pytest.approx(0.5)
    assert random["aopc_std"] == pytest.approx(np.std([0.6, 0.4], ddof=1))
    assert random["beyond_random"] is None
    assert own["aopc_std"] is None


def test_erasure_of_several_samples_and_classes():
    """Means over a sample's classes, then over samples; probabilities are the calibrated ones."""
    rng = np.random.default_rng(0)
    draw = {"base": (20, 3), "deletion/ig/mixture": (20, 1, 2, 3), "insertion/ig/mixture": (20, 1, 2, 3)}
    logits = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in draw.items()}
    classes = torch.from_numpy(rng.random((20, 3)) < 0.5)
    classes[:, 0] = True
    config = SimpleNamespace(problem_type="multi_label_classification", temperature=2.0)
    found = erasure(logits, classes, config, (0.2, 0.3))["comprehensiveness"]["ig"]["mixture"]
    losses = []
    for base, masked, own in zip(logits["base"], logits["deletion/ig/mixture"], classes, strict=True):
        chances = [1 / (1 + np.exp(-x[own].numpy() / 2)) for x in (base, masked[0, 0])]
        losses.append(np.mean(chances[0]) - np.mean(chances[1]))
    assert found["values"][0] == pytest.approx(np.mean(losses))
    assert found["aopc"] == pytest.approx(np.mean(losses))  # 30 % is more than a quarter
    low, high = found["interval"]
    assert low < found["aopc"] < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(losses) / np.sqrt(20), rel=0.15)
    assert erasure(logits, classes, config, (0.3, 0.4))["sufficiency"]["ig"]["mixture"]["aopc"] is None
    config.problem_type = "regression"
    assert erasure(logits, classes, config, (0.2, 0.3)) == {}
