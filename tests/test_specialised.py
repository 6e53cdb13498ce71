"""The specialised objective: what its experts see, against runs on one modality alone, and its losses by hand."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import make_config, make_inputs, make_model

from fl_i2moe import FLI2MoEModel
from fl_i2moe.specialised import agreement, specialised_losses


def specialised(num_modalities=2, **changes):
    return make_config(num_modalities, objective="specialised", **changes)


def test_agreement_by_hand():
    said = torch.tensor([[[2.0, -1.0, 2.0, 0.0], [3.0, -4.0, -1.0, 5.0]]])
    assert agreement(said).tolist() == [[2.0, -1.0, 0.0, 0.0]]
    assert agreement(torch.tensor([[[2.0], [3.0], [1.5]]])).item() == 1.5
    assert agreement(torch.tensor([[[2.0], [3.0], [-1.5]]])).item() == 0.0


@pytest.mark.parametrize("mode", ["eager", "sdpa", "training"])
@pytest.mark.parametrize("num_modalities", [2, 3])
def test_experts_see_what_they_may_see(num_modalities, mode):
    """Against a dense model that holds one expert's weights and gets a single modality's features, others masked."""
    config = specialised(num_modalities)
    model = make_model(config)
    if mode == "training":  # nothing is dropped
        model.train()
    else:
        model.set_attn_implementation(mode)
    features, masks, _ = make_inputs(config)
    projected = model.embed(features, masks)
    logits = model.run_experts(projected, masks)

    def run_alone(expert: int, kept: list[int]) -> torch.Tensor:
        """(B, C): the expert on the features of `kept` modalities only, sample by sample."""
        rows = []
        for row in range(4):
            single = make_model(make_config(num_modalities, architecture="dense"))
            with torch.no_grad():
                source = dict(model.experts.named_parameters())
                for name, target in single.experts.named_parameters():
                    target.copy_(source[name][expert : expert + 1])
            parts = [
                (x[row] + stem.positions[: x.shape[1]])[masks[name][row]]
                for stem, (name, x) in zip(model.stems, projected.items(), strict=True)
            ]
            x = torch.cat([parts[m] for m in kept])[None]
            readout, start = torch.zeros(1, num_modalities, x.shape[1]), 0
            for m in kept:
                readout[0, m, start : start + len(parts[m])] = 1 / len(parts[m])
                start += len(parts[m])
            rows.append(single.experts(x, None, readout)[0][0, 0])
        return torch.stack(rows)

    close = {"rtol": 1e-4, "atol": 1e-5}
    for m in range(num_modalities):
        torch.testing.assert_close(logits[:, m], run_alone(m, [m]), **close)
    torch.testing.assert_close(logits[:, -2], run_alone(num_modalities, list(range(num_modalities))), **close)
    readings = torch.stack([run_alone(num_modalities + 1, [m]) for m in range(num_modalities)], dim=1)
    torch.testing.assert_close(logits[:, -1], readings.mean(dim=1), **close)


def test_a_subset_of_experts_and_the_pooled_level():
    config = specialised(3)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    projected = model.embed(features, masks)
    everything = model.run_experts(projected, masks)
    names = ["redundancy", "uniqueness_audio", "synergy"]
    indexes = [config.expert_names.index(name) for name in names]
    torch.testing.assert_close(model.run_experts(projected, masks, experts=names), everything[:, indexes])

    pooled = make_model(specialised(level="pooled"))
    features, masks, _ = make_inputs(pooled.config)
    other = {**features, "image": features["image"] + 1}
    one, two = (pooled(x, masks).expert_logits for x in (features, other))
    torch.testing.assert_close(one[:, 0], two[:, 0])  # the text's own
    assert not torch.allclose(one[:, 1], two[:, 1])


def test_attention_stays_within_a_modality_but_for_synergy():
    config = specialised()
    model = make_model(config)
    model.set_attn_implementation("eager")
    features, masks, _ = make_inputs(config)
    _, attentions = model.run_experts(model.embed(features, masks), masks, output_attentions=True)
    length = features["text"].shape[1]
    real = masks["text"][:, None, :, None]
    for attention in attentions:
        across = attention.unflatten(0, (4, 4))[..., :length, length:]
        assert (across[[0, 1, 3]] * real == 0).all()
        assert (across[2] > 0).any()


def test_losses_against_a_plain_computation():
    torch.manual_seed(0)
    config = specialised()
    expert_logits, readings, alone = torch.randn(5, 4, 3), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    exchanged = torch.randn(2, 5, 3)
    labels = torch.randint(0, 2, (5, 3)).float()
    task, interaction = specialised_losses(expert_logits, readings, alone, exchanged, labels, config)

    bce = F.binary_cross_entropy_with_logits
    image, text, synergy, redundancy = (expert_logits[:, e] / 4 for e in range(4))
    told = (bce(alone[:, 0], labels) + bce(alone[:, 1], labels)) / 2
    read = (bce(readings[:, 0] / 4, alone[:, 1].sigmoid()) + bce(readings[:, 1] / 4, alone[:, 0].sigmoid())) / 2
    unique = bce(redundancy + image + text, labels)
    expected = [unique / 2, unique / 2, bce(redundancy + image + text + synergy, labels), told + read]
    torch.testing.assert_close(task, torch.stack(expected))

    shared = sum(
        min(abs(a), abs(b)) for a, b in zip(image.flatten().tolist(), text.flatten().tolist(), strict=True) if a * b > 0
    )
    impure = sum(
        max(0.0, sum(float(synergy[b, c] * exchanged[m, b, c] / 4) for b in range(5)) / 5) / 3
        for m in range(2)
        for c in range(3)
    )
    torch.testing.assert_close(interaction, torch.tensor([shared / 15, shared / 15, impure, 0.0]))


def test_distances_of_single_labels_and_numbers():
    torch.manual_seed(0)
    expert_logits, readings, alone = torch.randn(5, 4, 3), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    exchanged = torch.randn(2, 5, 3)
    config = specialised(problem_type="single_label_classification")
    labels = torch.tensor([0, 2, 1, 1, 0])
    task, _ = specialised_losses(expert_logits, readings, alone, exchanged, labels, config)
    told = sum(F.cross_entropy(alone[:, m], labels) for m in range(2)) / 2
    read = sum(-(alone[:, 1 - m].softmax(-1) * (readings[:, m] / 4).log_softmax(-1)).sum(-1).mean() for m in range(2))
    torch.testing.assert_close(task[3], told + read / 2)

    config = specialised(problem_type="regression")
    task, _ = specialised_losses(expert_logits, readings, alone, exchanged, torch.randn(5, 3), config)
    assert task.isfinite().all()


def test_pure_synergy_costs_nothing_and_what_one_modality_tells_does():
    """All four inputs of two binary modalities, and the mean over every exchange."""
    config = specialised(num_labels=2)
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])

    def cost(function):
        logits = torch.zeros(4, 4, 2)
        logits[:, 2, 0] = function(first, second)
        costs, zeros = [], torch.zeros(4, 2, 2)
        for shift in range(4):  # rolls give every partner equally often
            exchanged = torch.zeros(2, 4, 2)
            exchanged[0, :, 0] = function(first.roll(shift), second)
            exchanged[1, :, 0] = function(first, second.roll(shift))
            losses = specialised_losses(logits, zeros, zeros, exchanged, torch.zeros(4, 2), config)[1]
            costs.append(losses[2])
        return costs

    exclusive_or = cost(lambda a, b: 4.0 * (1 - 2 * (a ^ b)))
    one_alone = cost(lambda a, b: 4.0 * (1 - 2 * a))
    assert sum(exclusive_or[1:]) < sum(one_alone[1:])
    assert sum(one_alone) / 4 >= 0.5  # 1² from the second exchange alone, over two classes
    assert exclusive_or[2] == 0 or exclusive_or[1] == 0


def test_what_is_fitted_to_what():
    config = specialised(reweighting="global")
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    output = model(features, masks, labels)
    experts = list(model.experts.parameters())
    assert all(g is None for g in torch.autograd.grad(output.task_loss, experts, retain_graph=True, allow_unused=True))
    (of_weights,) = torch.autograd.grad(output.task_loss, [model.reweighting.global_scores], retain_graph=True)
    assert (of_weights != 0).any()
    assert output.interaction_losses.shape == (4,)

    logits, readings = torch.randn(5, 4, 3, requires_grad=True), torch.randn(5, 2, 3, requires_grad=True)
    task, _ = specialised_losses(
        logits, readings, torch.randn(5, 2, 3), torch.zeros(2, 5, 3), torch.randint(0, 2, (5, 3)).float(), config
    )
    for loss, own in ((task[0], [0, 1]), (task[2], [2]), (task[3], [])):
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
        assert [e for e in range(4) if gradient is not None and (gradient[:, e] != 0).any()] == own
    (gradient,) = torch.autograd.grad(task[3], readings)
    assert (gradient != 0).all()


def test_dense_ignores_it_and_saving_keeps_it(tmp_path):
    assert not make_config(architecture="dense", objective="specialised").is_specialised
    model = make_model(specialised())
    features, masks, _ = make_inputs(model.config)
    model.save_pretrained(tmp_path)
    loaded = FLI2MoEModel.from_pretrained(tmp_path)
    assert loaded.config.is_specialised
    torch.testing.assert_close(loaded(features, masks).expert_logits, model(features, masks).expert_logits)
