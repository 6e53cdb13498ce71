"""Importance scores against captum and a written-out rollout, and the properties that an explanation must have."""

import math

import pytest
import torch
from captum.attr import IntegratedGradients
from tiny_models import make_batch, make_config, make_model, one_sample

from fl_i2moe.explain.attribution import (
    METHODS,
    Importance,
    attribute,
    attribute_classes,
    explaining,
    mixture_importance,
    top_features,
)
from fl_i2moe.explain.inputs import Inputs

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
SHAPES = pytest.mark.parametrize("changes", [{}, {"num_modalities": 3}, {"architecture": "dense"}], ids=str)


def make_case(num_samples=4, **changes):
    config = make_config(**changes)
    model = make_model(config)
    inputs = Inputs.from_batch(model, make_batch(config, num_samples))
    return model, inputs, torch.arange(num_samples) % config.num_labels


def joint(values: dict) -> torch.Tensor:
    return torch.cat(list(values.values()), dim=-1)


def rows(inputs: Inputs, order: list[int]) -> Inputs:
    parts = (inputs.projected, inputs.feature_masks, inputs.candidate_masks)
    return Inputs(*({name: x[order] for name, x in values.items()} for values in parts))


# --- independent answers ----------------------------------------------------------------------------------------------


def written_out_rollout(model, inputs: Inputs, row: int, expert: str, target: int, method: str, weight: float):
    """One sample without padding, one expert: heads and layers one by one, whole T×T rollout."""
    one = one_sample(inputs, row)
    with explaining(model):
        logits, attentions = model.run_experts(one.projected, experts=[expert], output_attentions=True)
        gradients = torch.autograd.grad(weight * logits[0, 0, target], attentions)
    lengths = [x.shape[1] for x in one.projected.values()]
    total = sum(lengths)
    rollout = torch.eye(total)
    for attention, gradient in zip(attentions, gradients, strict=True):
        layer = torch.zeros(total, total)
        for head in range(model.config.num_attention_heads):
            a, g = attention[0, head].detach(), gradient[0, head]
            layer += (a if method == "attnroll" else (g * a).clamp(min=0)) / model.config.num_attention_heads
        if method == "attnroll":
            layer = 0.5 * layer + 0.5 * torch.eye(total)
            rollout = (layer / layer.sum(dim=1, keepdim=True)) @ rollout
        else:
            rollout = rollout + layer @ rollout
    importance = []
    for column in range(total):
        means, start = [], 0
        for length in lengths:
            means.append(rollout[start : start + length, column].mean())
            start += length
        importance.append(sum(means) / len(means))
    return torch.stack(importance).split(lengths)


@pytest.mark.parametrize("of", ["expert", "mixture"])
@pytest.mark.parametrize("method", ["attnroll", "grad_attnroll"])
@SHAPES
def test_rollout_equals_the_written_out_loop(changes, method, of):
    model, inputs, targets = make_case(**changes)
    result = attribute(model, inputs, targets, method, of=of)
    weights = model.run_mixture(inputs.projected, inputs.feature_masks).expert_weights.tolist()
    assert result.experts == model.config.expert_names
    assert result.completeness_gap is None
    for row in range(len(inputs)):
        for e, expert in enumerate(result.experts):
            weight = weights[row][e] if of == "mixture" else 1.0
            expected = written_out_rollout(model, inputs, row, expert, int(targets[row]), method, weight)
            for name, scores in zip(model.config.modality_order, expected, strict=True):
                mask = inputs.feature_masks[name][row]
                torch.testing.assert_close(result.raw[name][row, e, mask], scores, **CLOSE)
                assert not result.raw[name][row, e, ~mask].any()


@SHAPES
def test_integrated_gradients_equal_captum(changes):
    model, inputs, targets = make_case(**changes)
    result = attribute(model, inputs, targets, "ig", num_steps=20)
    order = model.config.modality_order
    features = tuple(inputs.projected[name] for name in order)
    for e, expert in enumerate(result.experts):

        def forward(*projected, expert=expert):
            masks = {
                name: mask.repeat(len(projected[0]) // len(inputs), 1) for name, mask in inputs.feature_masks.items()
            }
            return model.run_experts(dict(zip(order, projected, strict=True)), masks, experts=[expert])[:, 0]

        expected = IntegratedGradients(forward).attribute(features, target=targets, n_steps=20, method="gausslegendre")
        for name, attributions in zip(order, expected, strict=True):
            torch.testing.assert_close(result.raw[name][:, e], attributions.sum(-1).float(), **CLOSE)


def test_integrated_gradients_are_complete():
    model, inputs, targets = make_case(num_modalities=3)
    few = attribute(model, inputs, targets, "ig", num_steps=2).completeness_gap
    many = attribute(model, inputs, targets, "ig", num_steps=200)
    rows_, zeros = torch.arange(4), {name: torch.zeros_like(x) for name, x in inputs.projected.items()}
    difference = [model.run_experts(x, inputs.feature_masks)[rows_, :, targets] for x in (inputs.projected, zeros)]
    total = sum(x.sum(-1) for x in many.raw.values())
    torch.testing.assert_close(total, difference[0] - difference[1], rtol=1e-3, atol=1e-3)
    assert many.completeness_gap.shape == (4, 5)
    assert many.completeness_gap.max() < 1e-3 < few.max()
    torch.testing.assert_close(
        attribute(model, inputs, targets, "ig", num_steps=2, experts=["synergy"]).completeness_gap, few[:, 3:4], **CLOSE
    )


def test_integrated_gradients_of_the_mixture_are_the_experts_shares():
    model, inputs, targets = make_case()
    weights = model.run_mixture(inputs.projected, inputs.feature_masks).expert_weights
    own, shares = (attribute(model, inputs, targets, "ig", of=of) for of in ("expert", "mixture"))
    for name in own.raw:
        torch.testing.assert_close(shares.raw[name], own.raw[name] * weights[:, :, None], **CLOSE)


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@SHAPES
def test_scores_are_normalised_over_the_candidates(changes, method):
    model, inputs, targets = make_case(num_samples=6, **changes)
    result = attribute(model, inputs, targets, method, num_steps=4)
    for name, scores in result.scores.items():
        for row in range(6):
            candidates = inputs.candidate_masks[name][row]
            assert not scores[row, :, ~candidates].any()
            x = result.raw[name][row][:, candidates]
            low, high = x.min(-1, keepdim=True).values, x.max(-1, keepdim=True).values
            expected = (x - low) / (high - low) if candidates.sum() > 1 else torch.zeros_like(x)
            torch.testing.assert_close(scores[row][:, candidates], expected)
    assert not any(x.requires_grad for x in (*result.scores.values(), *result.raw.values()))


@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(method):
    model, inputs, targets = make_case(num_modalities=3)
    together = attribute(model, inputs, targets, method, num_steps=4, seed=[5, 6, 7, 8])
    for row in range(4):
        alone = attribute(model, one_sample(inputs, row), targets[row : row + 1], method, num_steps=4, seed=[5 + row])
        for name, scores in alone.scores.items():
            mask = inputs.feature_masks[name][row]
            torch.testing.assert_close(scores[0], together.scores[name][row][:, mask], rtol=1e-3, atol=1e-4)
            assert not together.raw[name][row][:, ~mask].any()
    padded = Inputs(
        {name: torch.where(inputs.feature_masks[name][..., None], x, 1e3) for name, x in inputs.projected.items()},
        inputs.feature_masks,
        inputs.candidate_masks,
    )
    other = attribute(model, padded, targets, method, num_steps=4, seed=[5, 6, 7, 8])
    torch.testing.assert_close(joint(other.raw), joint(together.raw))


@pytest.mark.parametrize("method", ["attnroll", "grad_attnroll", "ig"])
def test_permuting_samples_and_choosing_experts_permutes_the_scores(method):
    model, inputs, targets = make_case()
    expected = joint(attribute(model, inputs, targets, method, num_steps=4).raw)
    order, experts = [2, 0, 3, 1], ["redundancy", "uniqueness_image"]
    chosen = attribute(model, rows(inputs, order), targets[order], method, num_steps=4, experts=experts)
    assert chosen.experts == experts
    torch.testing.assert_close(joint(chosen.raw), expected[order][:, [3, 1]], **CLOSE)


@pytest.mark.parametrize("method", ["attnroll", "grad_attnroll", "ig"])
def test_without_positions_permuting_features_permutes_the_scores(method):
    model, inputs, targets = make_case(num_samples=1)
    with torch.no_grad():
        model.stems[1].positions.zero_()
    order = [3, 1, 4, 0, 2]
    image = inputs.projected["image"][:, order]
    permuted = Inputs({**inputs.projected, "image": image}, inputs.feature_masks, inputs.candidate_masks)
    expected = attribute(model, inputs, targets, method, num_steps=4)
    result = attribute(model, permuted, targets, method, num_steps=4)
    torch.testing.assert_close(result.raw["image"], expected.raw["image"][:, :, order], **CLOSE)
    torch.testing.assert_close(result.raw["text"], expected.raw["text"], **CLOSE)


def test_a_feature_that_the_expert_ignores_gets_nothing():
    model, inputs, targets = make_case(num_samples=1)
    with torch.no_grad():  # synergy attends to nothing and reads the text alone
        for layer in model.experts.layers:
            layer.attention.output.weight[2] = 0
        model.experts.head.weight[2, :, model.config.hidden_size :] = 0
    ig = attribute(model, inputs, targets, "ig")
    assert not ig.raw["image"][:, 2].any()
    assert (ig.raw["text"][:, 2] != 0).all()
    assert (ig.raw["image"][:, 3] != 0).all()
    gradient_rollout = attribute(model, inputs, targets, "grad_attnroll")
    # without attention R stays the identity: a constant for each modality
    torch.testing.assert_close(gradient_rollout.raw["image"][0, 2], torch.full((5,), 1 / 10))
    assert not gradient_rollout.scores["image"][0, 2].any()


def test_target_plays_a_part_or_not():
    model, inputs, targets = make_case()
    other = (targets + 1) % 3
    for method in METHODS:
        same = torch.equal(*(joint(attribute(model, inputs, t, method).raw) for t in (targets, other)))
        assert same == (method in ("attnroll", "random"))


def test_random_has_a_seed_and_is_uniform():
    model, inputs, targets = make_case(num_samples=300)
    one, again, other = (attribute(model, inputs, targets, "random", seed=seed).raw for seed in (0, 0, 1))
    assert torch.equal(joint(one), joint(again))
    assert not torch.equal(joint(one), joint(other))
    values = one["text"].transpose(0, 1)[:, inputs.feature_masks["text"]]  # E, features
    assert (values.mean(1) - 0.5).abs().max() < 0.05
    assert (torch.corrcoef(values) - torch.eye(4)).abs().max() < 0.15
    assert len(values.unique()) > 0.99 * values.numel()


@pytest.mark.parametrize("method", METHODS)
def test_several_classes_are_averaged(method):
    model, inputs, _ = make_case()
    classes = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0]]).bool()
    result = attribute_classes(model, inputs, classes, method, num_steps=4)
    each = [attribute(model, inputs, torch.full((4,), c), method, num_steps=4) for c in range(3)]
    for row in range(4):
        chosen = [each[c].scores["text"][row] for c in classes[row].nonzero().flatten()]
        torch.testing.assert_close(result.scores["text"][row], sum(chosen) / len(chosen), **CLOSE)
        chosen = [each[c].raw["image"][row] for c in classes[row].nonzero().flatten()]
        torch.testing.assert_close(result.raw["image"][row], sum(chosen) / len(chosen), **CLOSE)
    with pytest.raises(ValueError, match=r"none in rows \[1\]"):
        attribute_classes(model, inputs, classes & (torch.arange(4) != 1)[:, None], method)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\)"):
        attribute_classes(model, inputs, classes[:, :2], method)


# --- the model is left as it was --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_explaining_puts_everything_back(training, implementation):
    model, inputs, targets = make_case()
    model.set_attn_implementation(implementation)
    model.train(training)
    model.stems.eval()  # a part may have a mode of its own

    def state():
        return model.config._attn_implementation, [module.training for module in model.modules()]

    before = state()
    with explaining(model):
        assert state() == ("eager", [False] * len(before[1]))
    assert state() == before
    with pytest.raises(KeyError, match="stop"), explaining(model):
        raise KeyError("stop")
    assert state() == before
    for method in METHODS:
        attribute(model, inputs, targets, method, num_steps=2)
        assert state() == before
    broken = Inputs({"text": inputs.projected["text"]}, inputs.feature_masks, inputs.candidate_masks)
    with pytest.raises(ValueError, match="lacks"):
        attribute(model, broken, targets)
    assert state() == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["attnroll", "grad_attnroll", "ig"])
def test_frozen_weights_no_grad_and_training_mode_change_nothing(method):
    model, inputs, targets = make_case(residual_dropout=0.5)
    expected = joint(attribute(model, inputs, targets, method).raw)
    model.requires_grad_(False).train()
    with torch.no_grad():
        assert torch.equal(joint(attribute(model, inputs, targets, method).raw), expected)


# --- mixture and top features -----------------------------------------------------------------------------------------


def test_mixture_importance_by_hand():
    candidates = {"a": torch.tensor([[True, True, True, False]])}
    scores = {"a": torch.tensor([[[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 1.0, 0.0]]])}
    importance = Importance(scores, ["x", "y"], scores, None, candidates)
    # 0.75·x + 0.25·y = 0.75, 0.25, 0.625
    mixed = mixture_importance(importance, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(mixed["a"], torch.tensor([[1.0, 0.0, 0.75, 0.0]]))
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\)"):
        mixture_importance(importance, torch.ones(1, 3))


@pytest.mark.parametrize("share", [0.05, 0.07, 0.1, 0.15, 0.3, 1.0])
def test_top_features_equal_sorting_by_hand(share):
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.randint(-5, 5, (30, 2, 100), generator=generator).float()}  # many ties
    masks = {"a": torch.arange(100) < torch.randint(1, 101, (30, 1), generator=generator)}
    masks["a"][:, 1::7] = False
    masks["a"][0] = True
    top = top_features(scores, masks, share)["a"]
    flat = top_features({"a": scores["a"][:, 1]}, masks, share)["a"]
    assert torch.equal(flat, top[:, 1])
    percent = round(100 * share)
    for row in range(30):
        positions = masks["a"][row].nonzero().flatten().tolist()
        count = max(1, -(-percent * len(positions) // 100))
        for e in range(2):
            ranked = sorted(positions, key=lambda t: (-scores["a"][row, e, t].item(), t))
            assert sorted(ranked[:count]) == top[row, e].nonzero().flatten().tolist()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_a_share_outside_the_range_is_refused(share):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        top_features({"a": torch.ones(1, 3)}, {"a": torch.ones(1, 3, dtype=torch.bool)}, share)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "'attnroll'.*'gradcam'"),
        ({"experts": ["synergi"]}, r"\['synergi'\].*uniqueness_text"),
        ({"of": "all"}, "'mixture'.*'all'"),
        ({"method": "ig", "num_steps": 0}, "num_steps.*0"),
        ({"targets": torch.tensor([0, 1, 2, 3])}, r"0 to 2.*\[0, 1, 2, 3\]"),
        ({"targets": torch.tensor([0, 1])}, r"\(4,\).*\(2,\)"),
        ({"method": "random", "seed": [1, 2]}, "4 samples.*2"),
    ],
)
def test_bad_input_is_named(options, message):
    model, inputs, targets = make_case()
    with pytest.raises(ValueError, match=message):
        attribute(model, inputs, **{"targets": targets, **options})


@pytest.mark.parametrize("method", ["attnroll", "grad_attnroll"])
def test_a_rollout_needs_attention(method, monkeypatch):
    model, inputs, targets = make_case()
    attention = model.experts.layers[1].attention
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *arguments: (forward(*arguments)[0], None))
    with pytest.raises(ValueError, match="'transformer' gives no attention"):
        attribute(model, inputs, targets, method)
    attribute(model, inputs, targets, "ig")


@pytest.mark.parametrize("method", ["attnroll", "grad_attnroll", "ig"])
def test_nothing_is_blamed_that_a_specialised_expert_does_not_see(method):
    config = make_config(3, objective="specialised")
    model = make_model(config)
    inputs = Inputs.from_batch(model, make_batch(config, 3))
    raw = attribute(model, inputs, torch.tensor([0, 1, 2]), method, num_steps=4).raw
    for m, own in enumerate(config.modality_order):
        for name in config.modality_order:
            blamed = raw[name][:, m].abs().amax()
            assert (blamed > 0) == (name == own), (own, name)
    assert all((raw[name][:, -2:].abs().amax(dim=2) > 0).all() for name in config.modality_order)
