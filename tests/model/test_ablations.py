"""The ablations of I²MoE's table 4: each changes what it should, and nothing else."""

import pytest
import torch
from tiny_models import losses_of, make_config, make_inputs, make_model

from fl_i2moe.model.fusions import FUSIONS
from fl_i2moe.model.objective_published import interaction_losses


def run(config, seed=0, **options):
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    torch.manual_seed(seed)
    return model, model(features=features, feature_masks=masks, labels=labels, **options)


def of_experts(model, loss):
    """Gradient of the loss by the first layer's and the head's weights."""
    parameters = [next(model.experts.layers.parameters()), model.experts.head.weight]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_losses_on_latents_train_the_layers(num_modalities):
    """In the published code the latents are detached: there this loss trains nothing."""
    model, output = run(make_config(num_modalities, interaction_loss_on="latents"))
    layer, head = of_experts(model, losses_of(output, "interaction_loss").sum())
    assert (layer.flatten(1).abs().sum(dim=1) > 0).all()  # of every expert
    assert head is None  # what the head says is not compared
    assert output.loss == output.losses["task_loss"] + 0.5 * losses_of(output, "interaction_loss").mean()


def test_losses_on_latents_are_those_of_what_the_head_reads():
    config = make_config(3, interaction_loss_on="latents")
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    seen = []
    model.experts.head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    output = model(features=features, feature_masks=masks, with_interaction_losses=True)
    latents = seen[0].transpose(0, 1).unflatten(0, (4, 4))  # (V, B, E, M·H)
    torch.testing.assert_close(losses_of(output, "interaction_loss"), interaction_losses(latents, [0, 1, 2], config))


def test_losses_on_latents_change_no_prediction():
    _, on_logits = run(make_config(3))
    _, on_latents = run(make_config(3, interaction_loss_on="latents"))
    torch.testing.assert_close(on_latents.logits, on_logits.logits)
    torch.testing.assert_close(on_latents.losses["task_loss"], on_logits.losses["task_loss"])
    assert not torch.allclose(losses_of(on_latents, "interaction_loss"), losses_of(on_logits, "interaction_loss"))


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_every_fusion_has_latents(fusion):
    config = make_config(fusion=fusion, interaction_loss_on="latents")
    model = make_model(config).train()
    seen = []
    model.experts.register_forward_hook(lambda module, given, found: seen.append(found[1].latents))
    features, masks, labels = make_inputs(config)
    output = model(features=features, feature_masks=masks, labels=labels)
    losses_of(output, "interaction_loss").sum().backward()
    assert seen[0].shape[:2] == (4, 3 * 4)  # experts, views · samples
    assert model.experts.head.weight.grad is None
    assert sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None) > 0


def test_no_interaction_loss_trains_on_the_task_alone():
    _, output = run(make_config(interaction_loss_weight=0.0))
    assert losses_of(output, "interaction_loss") is None
    assert output.loss == output.losses["task_loss"]
    _, full = run(make_config())
    torch.testing.assert_close(output.logits, full.logits)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_synergy_and_redundancy_alone(problem_type):
    """The last two experts of the full mixture, with the losses that they have there."""
    config = make_config(3, problem_type=problem_type, interaction_experts="synergy_redundancy")
    assert config.expert_names == ["synergy", "redundancy"]
    model = make_model(config)
    full = make_model(make_config(3, problem_type=problem_type))
    with torch.no_grad():
        for (name, ours), theirs in zip(model.named_parameters(), full.parameters(), strict=True):
            if not name.startswith("reweighting"):
                ours.copy_(theirs[-2:] if name.startswith("experts") else theirs)
    features, masks, labels = make_inputs(config)
    outputs = []
    for one in (model, full):
        torch.manual_seed(4)
        outputs.append(one(features=features, feature_masks=masks, labels=labels, with_interaction_losses=True))
    ours, theirs = outputs
    torch.testing.assert_close(ours.expert_logits, theirs.expert_logits[:, -2:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        losses_of(ours, "interaction_loss"), losses_of(theirs, "interaction_loss")[-2:], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours.expert_weights.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(ours.loss, ours.losses["task_loss"] + 0.5 * losses_of(ours, "interaction_loss").mean())


def test_global_weight_and_fewer_views_change_their_part_alone():
    _, full = run(make_config(3))
    _, one_weight = run(make_config(3, reweighting="global"))
    assert torch.equal(one_weight.expert_weights, one_weight.expert_weights[:1].expand(4, -1))
    torch.testing.assert_close(
        full.expert_weights.std(dim=0).gt(0).float(), torch.ones(5)
    )  # the full model's differ between samples
    _, fewer = run(make_config(3, num_perturbed_views=2))
    torch.testing.assert_close(fewer.logits, full.logits)
    assert (losses_of(fewer, "interaction_loss")[:3] == 0).sum() == 1  # the modality that keeps its place


@pytest.mark.parametrize("perturbation", ["random", "zero", "mean"])
def test_perturbations_change_the_interaction_losses_alone(perturbation):
    config = make_config(3, perturbation=perturbation)
    model, (features, masks, labels) = make_model(config), make_inputs(config)
    if perturbation == "mean":
        model.set_feature_means({name: x[masks[name]].mean(0) for name, x in features.items()})
    output = model(features=features, feature_masks=masks, labels=labels, with_interaction_losses=True)
    _, random = run(make_config(3), seed=9)
    torch.testing.assert_close(output.logits, random.logits)
    assert not torch.allclose(losses_of(output, "interaction_loss"), losses_of(random, "interaction_loss"))
