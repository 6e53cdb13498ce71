"""Masking against a loop over samples with scikit-learn's metrics, and what a curve must do at its ends."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, mean_absolute_error
from tiny_models import make_batch, make_config, make_model, one_sample

from fl_i2moe.evaluation.masking import (
    Maskings,
    faithfulness,
    faithfulness_logits,
    masked_logits,
    summarise,
    target_classes,
)
from fl_i2moe.explain.attribution import METHODS, attribute
from fl_i2moe.explain.inputs import Inputs

SHARES = (0.2, 0.5, 0.8)


def make_case(num_batches=3, **changes):
    config = make_config(**changes)
    batches = [make_batch(config, num_samples=6, seed=seed) for seed in range(num_batches)]
    if config.problem_type == "multi_label_classification":
        batches[0]["labels"][1] = 0  # a sample without a true class
    return make_model(config), batches


def zeroed(one: Inputs, chosen: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    projected = {name: x.clone() for name, x in one.projected.items()}
    for name, positions in chosen.items():
        for position in positions:
            projected[name][0, position] = 0
    return projected


def written_out_scores(model, batches, method) -> list[tuple[Inputs, dict]]:
    """Each sample without padding, and its scores: expert → modality → (T_m,); one sample and one class at a time."""
    samples = []
    for batch in batches:
        inputs = Inputs.from_batch(model, batch)
        for row, label in enumerate(batch["labels"]):
            one = one_sample(inputs, row)
            whole = model.run_mixture(one.projected)
            match model.config.problem_type:
                case "multi_label_classification":
                    classes = [c for c in range(3) if label[c]] or [int(whole.logits.argmax())]
                case "single_label_classification":
                    classes = [int(label)]
                case "regression":
                    classes = list(range(3))
            each = [attribute(model, one, torch.tensor([c]), method, num_steps=4).scores for c in classes]
            means = {name: sum(scores[name][0] for scores in each) / len(each) for name in one.projected}
            scores = {expert: {m: x[e] for m, x in means.items()} for e, expert in enumerate(model.config.expert_names)}
            weights = whole.expert_weights[0].tolist()
            scores["mixture"] = {m: sum(w * row for w, row in zip(weights, x, strict=True)) for m, x in means.items()}
            samples.append((one, scores))
    return samples


@torch.no_grad()
def written_out_logits(model, samples, expert, direction, share) -> np.ndarray:
    logits = []
    for one, scores in samples:
        chosen = {}
        for name, score in scores[expert].items():
            candidates = one.candidate_masks[name][0].nonzero().flatten().tolist()
            ranked = sorted(candidates, key=lambda t, score=score: (-score[t].item(), t))
            top = ranked[: max(1, math.ceil(share * len(ranked) - 1e-9))]
            chosen[name] = top if direction == "deletion" else [t for t in candidates if t not in top]
        logits.append(model.run_mixture(zeroed(one, chosen)).logits[0])
    return torch.stack(logits).numpy()


def labels_of(batches) -> np.ndarray:
    return torch.cat([batch["labels"] for batch in batches]).numpy()


@pytest.mark.parametrize(
    ("method", "changes"),
    [("grad_attnroll", {}), ("ig", {"num_modalities": 3}), ("attnroll", {}), ("ig", {"architecture": "dense"})],
)
def test_multi_label_curves_equal_the_written_out_loop(method, changes):
    model, batches = make_case(num_batches=2, **changes)
    labels = labels_of(batches)
    result = faithfulness(model, batches, methods=[method], shares=SHARES, num_steps=4)
    names = model.config.expert_names
    assert list(result["deletion"][method]) == names + (["mixture"] if len(names) > 1 else [])
    unmasked = torch.cat([model(b["features"], b["feature_masks"]).logits for b in batches]).detach().numpy()
    inputs = [Inputs.from_batch(model, batch) for batch in batches]
    empty = [{name: ~mask for name, mask in x.candidate_masks.items()} for x in inputs]
    emptied = torch.cat([masked_logits(model, x, keep) for x, keep in zip(inputs, empty, strict=True)]).numpy()

    def macro_f1(logits):
        return f1_score(labels, logits > 0, average="macro", zero_division=0)

    def mean_precision(logits):
        return np.mean([average_precision_score(labels[:, c], logits[:, c]) for c in range(3)])

    samples = written_out_scores(model, batches, method)
    for direction in ("deletion", "insertion"):
        for expert, curves in result[direction][method].items():
            logits = [written_out_logits(model, samples, expert, direction, share) for share in SHARES]
            for metric, measure in {"macro_f1": macro_f1, "mAP": mean_precision}.items():
                values, curve = [measure(x) for x in logits], curves[metric]
                base = measure(unmasked)
                start = base if direction == "deletion" else measure(emptied)
                assert result["base"][metric] == pytest.approx(base)
                assert result["emptied"][metric] == pytest.approx(measure(emptied))
                assert curve["values"] == pytest.approx(values)
                assert curve["drops"] == pytest.approx([base - value for value in values])
                assert curve["mean_drop"] == pytest.approx(sum(base - value for value in values) / 3)
                trapezoids = 0.2 * (start + values[0]) / 2 + 0.3 * (values[0] + values[1]) / 2
                assert curve["auc"] == pytest.approx(trapezoids + 0.3 * (values[1] + values[2]) / 2)
                assert curve["mean_drop_std"] is None


@pytest.mark.parametrize(
    ("problem_type", "metric", "measure", "sign"),
    [
        ("single_label_classification", "accuracy", lambda y, x: accuracy_score(y, x.argmax(1)), 1),
        ("regression", "mae", mean_absolute_error, -1),
    ],
)
def test_other_problem_types(problem_type, metric, measure, sign):
    model, batches = make_case(num_batches=2, problem_type=problem_type)
    labels = labels_of(batches)
    result = faithfulness(model, batches, methods=["grad_attnroll"], shares=SHARES, directions=["deletion"])
    curve = result["deletion"]["grad_attnroll"]["synergy"][metric]
    samples = written_out_scores(model, batches, "grad_attnroll")
    logits = [written_out_logits(model, samples, "synergy", "deletion", share) for share in SHARES]
    values = [measure(labels, x) for x in logits]
    assert curve["values"] == pytest.approx(values)
    assert curve["drops"] == pytest.approx([sign * (result["base"][metric] - value) for value in values], abs=1e-6)
    assert "insertion" not in result


def test_random_is_the_mean_over_its_draws():
    model, batches = make_case()
    how = Maskings(methods=["random"], shares=SHARES, num_random=4)
    logits = [faithfulness_logits(model, batch, how) for batch in batches]
    logits = {key: torch.cat([part[key] for part in logits]) for key in logits[0]}
    assert logits["deletion/random/mixture"].shape == (18, 4, 3, 3)
    labels = torch.cat([batch["labels"] for batch in batches])
    result = summarise(logits, labels, "multi_label_classification", SHARES)
    assert list(result["deletion"]["random"]) == ["mixture"]
    curve = result["deletion"]["random"]["mixture"]["micro_f1"]
    predicted = logits["deletion/random/mixture"] > 0
    values = np.array(
        [[f1_score(labels, predicted[:, draw, k], average="micro") for k in range(3)] for draw in range(4)]
    )
    drops = result["base"]["micro_f1"] - values
    assert curve["values"] == pytest.approx(values.mean(0))
    assert curve["values_std"] == pytest.approx(values.std(0, ddof=1))
    assert curve["mean_drop"] == pytest.approx(drops.mean())
    assert curve["mean_drop_std"] == pytest.approx(drops.mean(1).std(ddof=1))
    assert len(np.unique(values)) > 3


def test_results_do_not_depend_on_the_batches_but_on_the_seed():
    model, batches = make_case(num_batches=2)

    def joined(kind):
        return {name: torch.cat([batch[kind][name] for batch in batches]) for name in batches[0][kind]}

    whole = {kind: joined(kind) for kind in ("features", "feature_masks", "special_masks")}
    whole["labels"] = torch.cat([batch["labels"] for batch in batches])
    whole["ids"] = [sample_id for batch in batches for sample_id in batch["ids"]]

    def run(loader, seed=0):
        return faithfulness(model, loader, shares=SHARES, num_random=2, num_steps=2, seed=seed)

    def numbers(x):
        """Of nested JSON, in order."""
        if isinstance(x, dict | list):
            return [n for value in (x.values() if isinstance(x, dict) else x) for n in numbers(value)]
        return [float("nan") if x is None else x]

    result, at_once = run(batches), run([whole])
    for measure in ("comprehensiveness", "sufficiency"):  # of probabilities, which differ in the last digits
        one, two = (numbers(x.pop(measure)) for x in (dict(result), at_once))
        np.testing.assert_allclose(one, two, atol=1e-6)
    assert {name: x for name, x in result.items() if name in at_once} == at_once
    other = run(batches, seed=1)
    assert other["deletion"]["random"] != result["deletion"]["random"]
    assert other["deletion"]["ig"] == result["deletion"]["ig"]
    assert other["seed"] == 1
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_curves_end_where_they_must():
    model, batches = make_case()
    logits = faithfulness_logits(model, batches[0], Maskings(shares=[1.0], num_random=1, num_steps=2))
    for method in METHODS:
        torch.testing.assert_close(logits[f"deletion/{method}/mixture"][:, 0, 0], logits["emptied"])
        torch.testing.assert_close(logits[f"insertion/{method}/mixture"][:, 0, 0], logits["base"])
    assert not torch.allclose(logits["emptied"], logits["base"])


def test_masking_keeps_special_features_and_the_model():
    model, batches = make_case()
    model.train()
    inputs = Inputs.from_batch(model.eval(), batches[0])
    keep = {name: ~mask for name, mask in inputs.candidate_masks.items()}
    special = {name: mask & ~inputs.candidate_masks[name] for name, mask in inputs.feature_masks.items()}
    projected = {name: x * special[name][..., None] for name, x in inputs.projected.items()}
    expected = model.run_mixture(projected, inputs.feature_masks).logits
    model.train()
    torch.testing.assert_close(masked_logits(model, inputs, keep), expected)
    result = faithfulness(model, batches[:1], methods=["grad_attnroll"], shares=SHARES)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert result == faithfulness(model.eval(), batches[:1], methods=["grad_attnroll"], shares=SHARES)
    assert not masked_logits(model, inputs, keep).requires_grad


def test_targets():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    multi, single = "multi_label_classification", "single_label_classification"
    assert target_classes(logits, labels, multi).tolist() == [[True, False, True], [True, False, False]]
    assert target_classes(logits, labels, multi, "predicted").tolist() == [[False, True, False], [True, False, False]]
    assert target_classes(logits, torch.tensor([2, 1]), single).int().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert target_classes(logits, labels, "regression").all()
    with pytest.raises(ValueError, match="'wrong'"):
        target_classes(logits, labels, multi, "wrong")


def test_an_undefined_metric_is_none():
    model, batches = make_case(num_batches=1)
    batches[0]["labels"][:] = 1  # no negatives: no AUROC
    result = faithfulness(model, batches, methods=["attnroll"], shares=SHARES)
    assert result["base"]["auroc"] is None
    assert result["deletion"]["attnroll"]["synergy"]["auroc"] == {
        "values": [None] * 3,
        "values_std": [None] * 3,
        "drops": [None] * 3,
        "drops_std": [None] * 3,
        "mean_drop": None,
        "mean_drop_std": None,
        "auc": None,
        "auc_std": None,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": []}, r"shares.*\[\]"),
        ({"shares": [0.0, 0.1]}, r"\(0, 1\].*0\.0"),
        ({"shares": [0.3, 0.1]}, r"increase.*\[0\.3, 0\.1\]"),
        ({"shares": [0.3, 1.1]}, r"\(0, 1\].*1\.1"),
        ({"directions": ["removal"]}, r"\['removal'\].*insertion"),
        ({"num_random": 0}, "num_random.*0"),
        ({"methods": ["gradcam"]}, "'gradcam'"),
        ({"target": "all"}, "'all'"),
    ],
)
def test_bad_input_is_named(options, message):
    model, batches = make_case(num_batches=1)
    with pytest.raises(ValueError, match=message):
        faithfulness(model, batches, **options)
    with pytest.raises(ValueError, match="no sample"):
        faithfulness(model, [])
