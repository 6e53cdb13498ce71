"""The losses against torch.nn's primitives and values worked out by hand."""

import pytest
import torch
from torch import nn

from fl_i2moe import FLI2MoEConfig
from fl_i2moe.model.objective import task_loss
from fl_i2moe.model.objective_published import interaction_losses


def make_config(num_modalities=2, **changes):
    modalities = {f"m{i}": {"feature_size": 4, "max_features": 3} for i in range(num_modalities)}
    return FLI2MoEConfig(**{"modalities": modalities, "num_labels": 3, **changes})


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_classification_losses_equal_torch_primitives(num_modalities):
    config = make_config(num_modalities, triplet_margin=0.7)
    views = torch.randn(num_modalities + 1, 5, num_modalities + 2, 3)
    losses = interaction_losses(views, list(range(num_modalities)), config)
    triplet = nn.TripletMarginLoss(margin=0.7, p=2, eps=1e-7)
    for i in range(num_modalities):
        y = views[:, :, i]
        others = [j for j in range(num_modalities) if j != i]
        expected = torch.stack([triplet(y[0], y[1 + j], y[1 + i]) for j in others]).mean()
        torch.testing.assert_close(losses[i], expected)
    cosine = nn.CosineEmbeddingLoss()
    for expert, target in ((num_modalities + 1, 1.0),):
        y = views[:, :, expert]
        expected = torch.stack([cosine(y[0], y[1 + j], torch.full((5,), target)) for j in range(num_modalities)]).mean()
        torch.testing.assert_close(losses[expert], expected)


def test_values_by_hand():
    """Two modalities, one sample; each expert's logits on the full view, without m0, without m1."""
    config = make_config(num_labels=2)
    full, without_0, without_1 = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor([6.0, 0.0])
    views = torch.stack([full, without_0, without_1])[:, None, None, :].expand(3, 1, 4, 2)
    losses = interaction_losses(views, [0, 1], config)
    # m0: positive is the view without m1 (distance 3), negative the one without m0 (distance 5): 3 - 5 + 1 < 0
    # m1: positive without m0 (5), negative without m1 (3): 5 - 3 + 1
    # synergy: (cos 90° + cos 0°) / 2; redundancy: one minus that
    torch.testing.assert_close(losses, torch.tensor([0.0, 3.0, 0.5, 0.5]))


@pytest.mark.parametrize("form", ["bounded", "published"])
def test_regression_losses_by_hand(form):
    config = make_config(problem_type="regression", num_labels=1, regression_interaction_loss=form)
    full, without_0, without_1 = 0.0, 0.5, 2.0  # squared errors 0.25 and 4
    views = torch.tensor([full, without_0, without_1]).view(3, 1, 1, 1).expand(3, 1, 4, 1)
    losses = interaction_losses(views, [0, 1], config)
    if form == "bounded":
        # relu(4 - 0.25 + 1), relu(0.25 - 4 + 1), (relu(1 - 0.25) + relu(1 - 4)) / 2, (0.25 + 4) / 2
        expected = [4.75, 0.0, 0.375, 2.125]
    else:
        expected = [3.75, -3.75, 2.125, 2.125]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_a_modality_that_is_not_perturbed_gives_no_loss_but_a_graph():
    config = make_config(3, num_perturbed_views=2)
    views = torch.randn(3, 4, 5, 3, requires_grad=True)
    losses = interaction_losses(views, [0, 2], config)
    assert losses[1] == 0
    triplet = nn.TripletMarginLoss(margin=1.0, eps=1e-7)
    torch.testing.assert_close(losses[0], triplet(views[0, :, 0], views[2, :, 0], views[1, :, 0]))
    torch.testing.assert_close(losses[2], triplet(views[0, :, 2], views[1, :, 2], views[2, :, 2]))
    losses.sum().backward()
    assert not views.grad[:, :, 1].any()


def test_task_losses_equal_torch():
    logits = torch.randn(6, 3)
    multi_hot, classes, reals = torch.randint(0, 2, (6, 3)), torch.randint(0, 3, (6,)), torch.randn(6, 3)
    cases = [
        ("multi_label_classification", multi_hot, nn.BCEWithLogitsLoss()(logits, multi_hot.float())),
        ("single_label_classification", classes, nn.CrossEntropyLoss()(logits, classes)),
        ("regression", reals, nn.SmoothL1Loss()(logits, reals)),
    ]
    for problem_type, labels, expected in cases:
        torch.testing.assert_close(task_loss(logits, labels, make_config(problem_type=problem_type)), expected)
    with pytest.raises(ValueError, match=r"\(6, 2\).*\(6, 3\)"):
        task_loss(logits, multi_hot[:, :2], make_config())
    with pytest.raises(ValueError, match=r"\(6,\).*\(6, 3\)"):
        task_loss(logits, multi_hot, make_config(problem_type="single_label_classification"))
