"""Bits against enumeration, losses against scikit-learn, and the whole job on labels whose bits are known."""

import numpy as np
import pytest
from accelerate import Accelerator
from fake_encoders import fake_encoders, take_away, write_raw
from known_bits import LABELS, best_logits, draw, truth
from scipy.special import expit, softmax
from sklearn.metrics import log_loss

from fl_i2moe.cache import build_cache
from fl_i2moe.evaluation.information.bits import (
    choose_epochs,
    create_systems,
    decompose_information,
    estimate_information,
    information_rows,
)
from fl_i2moe.evaluation.information.decomposition import DecompositionArguments, decompose
from fl_i2moe.evaluation.information.report import read_information
from fl_i2moe.evaluation.information.tasks import LABEL_KINDS, PRIOR

NAMES = list(LABELS)
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
BOTH = ["alpha", "beta"]
SEEN = {"alone_alpha": ["alpha"], "alone_beta": ["beta"], "additive": BOTH, "together": BOTH}


@pytest.fixture(autouse=True)
def few_calibrations(monkeypatch):
    monkeypatch.setattr("fl_i2moe.evaluation.information.bits.CALIBRATIONS", 5)


def said(splits, noise, rng, seeds=1, error=0.0):
    """Outputs of the best predictors, with errors of each seed's own, too sure of themselves by half."""
    outputs = {}
    for name, seen in SEEN.items():
        outputs[name] = {}
        for split, (shown, labels) in splits.items():
            best = best_logits(shown, noise, seen, additive=name == "additive")
            outputs[name][split] = 1.5 * best + error * rng.normal(size=(seeds, *labels.shape))
    return outputs


def rows_of(outputs, splits, kind, num_resamples=200, names=NAMES):
    labels = {split: y for split, (_, y) in splits.items()}
    systems = create_systems(BOTH)
    estimate, draws = estimate_information(outputs, labels, systems, kind, num_resamples)
    return information_rows(estimate, draws, names, BOTH, None)


def flat(part, prefix=""):
    """Name of a part → its value and interval."""
    if "interval" in part:
        return {prefix: part}
    return {k: v for name, x in part.items() for k, v in flat(x, f"{prefix}.{name}").items()}


def flat_truth(label, noise):
    def walk(part, prefix):
        if not isinstance(part, dict):
            return {prefix: part}
        return {k: v for name, x in part.items() for k, v in walk(x, f"{prefix}.{name}").items()}

    return walk(truth(label, noise), "")


def test_what_is_known_is_what_it_should_be():
    told = 1 - 0.4689955935892812  # 1 − h(0.1)
    assert truth("unique", 0.1)["unique"] == pytest.approx({"alpha": told, "beta": 0})
    assert truth("redundant", 0.1)["redundant"] == pytest.approx(told)
    assert truth("exclusive_or", 0.1)["synergistic"] == pytest.approx(told)
    assert truth("nothing", 0.1)["together"] == 0
    assert truth("additive", 0.0)["unique"]["alpha"] > truth("additive", 0.0)["alone"]["alpha"] > 0.1


def test_bits_are_those_of_the_enumeration():
    rng = np.random.default_rng(0)
    splits = {split: draw(4000, 0.1, rng) for split in ("validation", "test")}
    kind = LABEL_KINDS[MULTI](draw(20000, 0.1, rng)[1], len(NAMES))
    found = rows_of(said(splits, 0.1, rng, seeds=2, error=0.3), splits, kind)
    for label in NAMES:
        row, known = flat(found["labels"][label]), flat_truth(label, 0.1)
        assert {k: x["value"] for k, x in row.items()} == pytest.approx(known, abs=0.05), label
        for part in row.values():
            assert part["interval"][0] <= part["value"] <= part["interval"][1]
    assert abs(found["labels"]["additive"]["synergistic"]["value"]) <= 0.02
    for row in [*found["labels"].values(), found["overall"]]:
        parts = [*row["unique"].values(), row["redundant"], row["synergistic"]]
        assert sum(x["value"] for x in parts) == pytest.approx(row["together"]["value"], abs=1e-12)
    summed = sum(row["together"]["value"] for row in found["labels"].values())
    assert found["overall"]["together"]["value"] == pytest.approx(summed)


def test_intervals_hold_what_is_known():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(30):
        splits = {"validation": draw(400, 0.2, rng), "test": draw(300, 0.2, rng)}
        splits = {split: (shown, labels[:, :3]) for split, (shown, labels) in splits.items()}
        kind = LABEL_KINDS[MULTI](draw(2000, 0.2, rng)[1][:, :3], 3)
        outputs = said({k: (x, np.zeros((len(y), 5))) for k, (x, y) in splits.items()}, 0.2, rng)
        outputs = {name: {k: x[..., :3] for k, x in part.items()} for name, part in outputs.items()}
        found = rows_of(outputs, splits, kind, num_resamples=200, names=NAMES[:3])
        row = found["labels"]
        for label, *way in (("unique", "unique", "alpha"), ("redundant", "redundant"), ("exclusive_or", "synergistic")):
            part, known = row[label], truth(label, 0.2)
            for name in way:
                part, known = part[name], known[name]
            inside.append(part["interval"][0] <= known <= part["interval"][1])
    assert 0.87 <= np.mean(inside) <= 0.99  # 90 intervals of 95 %


def test_seeds_that_differ_widen_the_interval(monkeypatch):
    monkeypatch.setattr("fl_i2moe.evaluation.information.bits.CALIBRATIONS", 40)
    rng = np.random.default_rng(2)
    splits = {split: draw(500, 0.1, rng) for split in ("validation", "test")}
    kind = LABEL_KINDS[MULTI](splits["validation"][1], len(NAMES))
    same = said(splits, 0.1, rng, seeds=3)
    differing = {name: {k: x.copy() for k, x in part.items()} for name, part in same.items()}
    for x in differing["together"].values():
        x[0] = 0  # this seed learnt nothing
    widths = [
        np.ptp(rows_of(x, splits, kind)["labels"]["exclusive_or"]["synergistic"]["interval"]) for x in (same, differing)
    ]
    assert widths[1] > 1.1 * widths[0]


def test_three_modalities_sum_up():
    rng = np.random.default_rng(3)
    names = ["a", "b", "c"]
    systems = create_systems(names)
    assert list(systems) == [*(f"alone_{x}" for x in names), *(f"without_{x}" for x in names), "additive", "together"]
    assert systems["without_b"].modalities == ("a", "c")
    information = {name: rng.normal(size=4) for name in systems}
    parts = decompose_information(information, names)
    np.testing.assert_allclose(parts["unique"]["b"], information["additive"] - information["without_b"])
    total = sum(parts["unique"].values()) + parts["redundant"] + parts["synergistic"]
    np.testing.assert_allclose(total, information["together"])
    two = {x: rng.normal(size=4) for x in create_systems(names[:2])}
    redundant = two["alone_a"] + two["alone_b"] - two["additive"]
    np.testing.assert_allclose(decompose_information(two, names[:2])["redundant"], redundant)


def test_losses_are_scikit_learns():
    rng = np.random.default_rng(4)
    logits, ones = 2 * rng.normal(size=(50, 3)), np.ones(3)
    several = (rng.random((50, 3)) < 0.4).astype(float)
    kind = LABEL_KINDS[MULTI](several, 3)
    wanted = [log_loss(several[:, c], expit(logits[:, c])) / np.log(2) for c in range(3)]
    np.testing.assert_allclose(kind.losses(logits, several, ones).mean(axis=0), [*wanted, sum(wanted)])
    frequencies = several.mean(axis=0)
    wanted = [log_loss(several[:, c], np.full(50, frequencies[c])) / np.log(2) for c in range(3)]
    np.testing.assert_allclose(kind.prior_losses(several, several).mean(axis=0), [*wanted, sum(wanted)], rtol=1e-3)

    classes, chances = rng.integers(3, size=50), softmax(logits, axis=1)
    kind = LABEL_KINDS[SINGLE](classes, 3)
    wanted = [log_loss(classes == c, chances[:, c], labels=[0, 1]) for c in range(3)]
    wanted.append(log_loss(classes, chances, labels=range(3)))
    np.testing.assert_allclose(kind.losses(logits, classes, ones).mean(axis=0), np.array(wanted) / np.log(2))
    sure = kind.losses(np.array([[900.0, 0, 0]]), np.array([1]), ones)
    assert np.isfinite(sure).all()
    assert sure[0, [0, 1, 3]] == pytest.approx(900 / np.log(2), rel=1e-3)


@pytest.mark.parametrize("problem_type", [MULTI, SINGLE])
def test_no_other_calibration_is_more_probable(problem_type):
    rng = np.random.default_rng(5)
    columns = 2 * rng.normal(size=(2, 40, 3))
    labels = (rng.random((40, 3)) < expit(columns[0])).astype(float)
    if problem_type == SINGLE:
        labels = (columns[0] + rng.gumbel(size=(40, 3))).argmax(axis=1)
    kind = LABEL_KINDS[problem_type](labels, 3)

    def cost(weights, bias):
        logits = np.einsum("kc,knc->nc", weights, columns) + bias
        if problem_type == SINGLE:
            prior = ((weights[:, 0] - 0.5) ** 2).sum() + (bias**2).sum()
            return 40 * log_loss(labels, softmax(logits, axis=1), labels=range(3)) + prior / (2 * PRIOR**2)
        prior = ((weights - 0.5) ** 2).sum() + (bias**2).sum()
        losses = [40 * log_loss(labels[:, c], expit(logits[:, c]), labels=[0, 1]) for c in range(3)]
        return sum(losses) + prior / (2 * PRIOR**2)

    found = kind.calibrate(columns, labels)
    best = cost(found.weights, found.bias)
    for _ in range(30):
        step = 0.02 * rng.normal(size=found.weights.shape)
        if problem_type == SINGLE:
            step = np.repeat(step[:, :1], 3, axis=1)
        assert cost(found.weights + step, found.bias + 0.02 * rng.normal(size=3)) > best


def test_numbers_by_the_ratio_of_variances():
    """A target that is signal plus noise of known variances: ½ log₂ (1 + signal / noise)."""
    rng = np.random.default_rng(6)
    signal = {split: 3 * rng.normal(size=(5000, 1)) for split in ("train", "validation", "test")}
    labels = {split: 7 + x + rng.normal(size=x.shape) for split, x in signal.items()}
    kind = LABEL_KINDS["regression"](labels["train"], 1)
    scaled = {split: kind.scale(x) for split, x in labels.items()}
    assert scaled["train"].std() == pytest.approx(1)
    columns = {split: 2 * kind.scale(7 + x)[None] for split, x in signal.items()}  # twice too large
    calibration = kind.calibrate(columns["validation"], scaled["validation"])
    losses = kind.losses(calibration(columns["test"]), scaled["test"], calibration.spread)
    told = (kind.prior_losses(scaled["validation"], scaled["test"]) - losses).mean(axis=0)
    assert told == pytest.approx([np.log2(10) / 2] * 2, abs=0.08)


def test_each_label_takes_its_own_epoch():
    rng = np.random.default_rng(7)
    labels = (rng.random((200, 2)) < 0.5).astype(float)
    kind = LABEL_KINDS[MULTI](labels, 2)
    x = rng.normal(size=(2, 9, 200, 2))
    x[:, 1:4, :, 0] += 4 * labels[:, 0] - 2  # known early, then forgotten
    x[:, 7:, :, 1] += 4 * labels[:, 1] - 2
    chosen, epochs, late_gain = choose_epochs({"validation": x, "test": 10 * x}, labels, kind)
    assert epochs.tolist() == [2, 8]
    assert late_gain[0] == 0
    assert 0.05 < late_gain[1] < 1  # its last bits come late
    np.testing.assert_allclose(chosen["validation"][:, :, 1], x[:, 7:9, :, 1].mean(axis=1))
    np.testing.assert_allclose(chosen["test"][:, :, 0], 10 * x[:, 1:4, :, 0].mean(axis=1))
    _, epochs, _ = choose_epochs({"validation": x}, labels[:, 0].astype(int), LABEL_KINDS[SINGLE](np.array([0, 1]), 2))
    assert len(set(epochs.tolist())) == 1


def test_splits_that_differ_are_no_information():
    """A label that training never saw, and models that know nothing."""
    rng = np.random.default_rng(8)
    labels = {
        "train": np.zeros((500, 2)),
        **{x: (rng.random((500, 2)) < 0.4).astype(float) for x in ("validation", "test")},
    }
    labels["train"][:, 1] = rng.random(500) < 0.4
    kind = LABEL_KINDS[MULTI](labels["train"], 2)
    known = np.broadcast_to(kind.prior, (1, 500, 2))
    outputs = {name: {x: known + 0.1 * rng.normal(size=(1, 500, 2)) for x in ("validation", "test")} for name in SEEN}
    estimate, _ = estimate_information(outputs, labels, create_systems(BOTH), kind, 2)
    for value in estimate.values():
        assert value == pytest.approx(0, abs=0.02)


def test_samples_that_lack_a_modality(tmp_path, fresh_accelerate):
    raw = take_away(write_raw(tmp_path / "raw", {"train": 24, "validation": 8, "test": 8}), "train", "text", [0, 3])
    raw = take_away(raw, "test", "image", [1])
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", num_workers=0, progress=False)
    options = {"seeds": [0], "num_epochs": 1, "hidden_size": 8, "num_attention_heads": 2, "num_resamples": 9}
    arguments = DecompositionArguments(str(tmp_path / "bits"), **options)
    found = decompose(cache, arguments, Accelerator(cpu=True))
    assert found == read_information(tmp_path / "bits" / "information.json")
    assert list(found["overall"]["alone"]) == ["image", "text"]
