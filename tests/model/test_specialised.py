"""The specialised objective: what its experts see, against runs on one modality alone, and its losses by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from tiny_models import losses_of, make_config, make_inputs, make_model

from fl_i2moe import FLI2MoEModel
from fl_i2moe.model import objective_specialised
from fl_i2moe.model.fusion import GroupedTransformer
from fl_i2moe.model.objective_specialised import Readings, SpecialisedTransformer, agreement, either, specialised_losses
from fl_i2moe.training.loop import draw_thinning


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
    any_reading = (readings / config.num_experts).exp().mean(dim=1).log() * config.num_experts
    torch.testing.assert_close(logits[:, -1], any_reading, **close)


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


def draw(num_modalities=2, num_samples=5, num_labels=3):
    """Expert logits, readings and exchanged synergy logits, all random."""
    torch.manual_seed(0)
    shape = (num_samples, num_modalities, num_labels)
    readings = Readings(torch.randn(shape), torch.randn(shape), torch.randn(num_samples, num_labels))
    expert_logits = torch.randn(num_samples, num_modalities + 2, num_labels)
    return expert_logits, readings, torch.randn(num_modalities, num_samples, num_labels)


@pytest.mark.parametrize("thinned", [False, True])
def test_losses_against_a_plain_computation(thinned):
    config = specialised()
    expert_logits, readings, exchanged = draw()
    labels = torch.randint(0, 2, (5, 3)).float()
    is_whole = torch.tensor([[True, True], [False, True], [True, False], [False, False], [True, True]])
    task, interaction = specialised_losses(
        expert_logits, readings, exchanged, labels, config, is_whole if thinned else None
    )

    bce = F.binary_cross_entropy_with_logits
    image, text, synergy, redundancy = (expert_logits[:, e] / 4 for e in range(4))
    alone = readings.alone
    told = (bce(alone[:, 0] + synergy, labels) + bce(alone[:, 1] + synergy, labels)) / 2
    read = 0
    for learns, teaches in ((0, 1), (1, 0)):
        rows = [row for row in range(5) if not thinned or is_whole[row, teaches]]
        read += bce(readings.redundancy[rows, learns] / 4, alone[rows, teaches].sigmoid()) / 2
    unique = bce(redundancy + image + text + synergy, labels)
    together = bce(readings.together, labels)
    expected = [unique / 2, unique / 2, unique + together, told + read]
    torch.testing.assert_close(task, torch.stack(expected))

    said, told_by_others = (x - x.mean(dim=0) for x in (torch.stack([image, text], dim=1), alone.flip(1)))
    frequent = (redundancy + image + text + synergy).sigmoid().mean(dim=0)
    strength = [4 * float(p) * (1 - float(p)) for p in frequent]
    shared = sum(
        strength[c] * min(abs(float(said[b, m, c])), abs(float(told_by_others[b, m, c])))
        for b in range(5)
        for m in range(2)
        for c in range(3)
        if said[b, m, c] * told_by_others[b, m, c] > 0
    )
    impure = sum(
        strength[c] * max(0.0, sum(float(synergy[b, c] * exchanged[m, b, c] / 4) for b in range(5)) / 5) / 3
        for m in range(2)
        for c in range(3)
    )
    torch.testing.assert_close(interaction, torch.tensor([shared / 30, shared / 30, impure, 0.0]))


def test_three_modalities_learn_from_all_others_and_leave_them_their_own():
    config = specialised(3)
    expert_logits, readings, exchanged = draw(3)
    labels = torch.randint(0, 2, (5, 3)).float()
    is_whole = torch.ones(5, 3, dtype=torch.bool)
    is_whole[1, 0] = is_whole[3, 1] = is_whole[3, 2] = False
    task, interaction = specialised_losses(expert_logits, readings, exchanged, labels, config, is_whole)
    bce = F.binary_cross_entropy_with_logits
    a, b, c = readings.alone.unbind(1)
    rest = expert_logits[:, 3] / 5
    told = sum(bce(x + rest, labels) for x in (b + c, a + c, a + b)) / 3
    read = 0
    for learns, (teacher, rows) in enumerate([(b + c, [0, 1, 2, 4]), (a + c, [0, 2, 4]), (a + b, [0, 2, 4])]):
        read += bce(readings.redundancy[rows, learns] / 5, teacher[rows].sigmoid()) / 3
    torch.testing.assert_close(task[4], told + read)

    said = expert_logits[:, :3].unbind(1)
    pairs = [(x / 5, others) for x, others in zip(said, (b + c, a + c, a + b), strict=True)]
    both = [torch.stack([x - x.mean(dim=0) for x in pair], dim=1) for pair in pairs]
    frequent = (expert_logits.sum(dim=1) / 5).sigmoid().mean(dim=0)
    strength = 4 * frequent * (1 - frequent)
    torch.testing.assert_close(interaction[0], sum((strength * agreement(x).abs()).mean() for x in both) / 3)


def test_distances_of_single_labels_and_numbers():
    expert_logits, readings, exchanged = draw()
    config = specialised(problem_type="single_label_classification")
    labels = torch.tensor([0, 2, 1, 1, 0])
    task, _ = specialised_losses(expert_logits, readings, exchanged, labels, config)
    alone, rest = readings.alone, expert_logits[:, 2] / 4
    told = sum(F.cross_entropy(alone[:, m] + rest, labels) for m in range(2)) / 2
    read = sum(F.cross_entropy(readings.redundancy[:, m] / 4, alone[:, 1 - m].softmax(-1)) for m in range(2))
    torch.testing.assert_close(task[3], told + read / 2)

    config = specialised(problem_type="regression")
    labels = torch.randn(5, 3)
    task, _ = specialised_losses(expert_logits, readings, exchanged, labels, config)
    told = sum(F.smooth_l1_loss(alone[:, m] + rest, labels) for m in range(2)) / 2
    read = sum(F.smooth_l1_loss(readings.redundancy[:, m] / 4, alone[:, 1 - m]) for m in range(2))
    torch.testing.assert_close(task[3], told + read / 2)


def test_a_constant_over_the_classes_of_single_labels_changes_nothing():
    """A softmax knows its logits up to one: no loss may depend on it, nor what a redundancy expert says."""
    config = specialised(problem_type="single_label_classification")
    labels = torch.tensor([0, 2, 1, 1, 0])
    expert_logits, readings, exchanged = draw()
    torch.manual_seed(1)
    moved = [x + 5 * torch.randn(*x.shape[:-1], 1) for x in (expert_logits, exchanged)]
    others = [getattr(readings, name) for name in ("redundancy", "alone", "together")]
    moved_readings = Readings(*(x + 5 * torch.randn(*x.shape[:-1], 1) for x in others))
    for one, two in zip(
        specialised_losses(expert_logits, readings, exchanged, labels, config),
        specialised_losses(moved[0], moved_readings, moved[1], labels, config),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    said, said_by_moved = (either(x.redundancy, config).softmax(dim=-1) for x in (readings, moved_readings))
    torch.testing.assert_close(said, said_by_moved)

    disagree = torch.zeros(2, 4, 2)
    disagree[0, 0], disagree[0, 1] = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])
    told = Readings(torch.zeros(2, 2, 2), disagree[:, :2], torch.zeros(2, 2))
    _, penalties = specialised_losses(disagree, told, torch.zeros(2, 2, 2), torch.tensor([0, 0]), config)
    assert penalties[0] == 0  # the image votes for the second class, the text for the first


@pytest.mark.parametrize("prior", [100.0, -3.0])
@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_priors_are_nobodys(problem_type, prior):
    """The mean of numbers, or how rare a label is: everybody knows it, and it costs nobody anything."""
    config = specialised(problem_type=problem_type)
    evidence = torch.tensor([-1.0, 1.0, -1.0, 1.0]).unsqueeze(1).expand(4, 3)
    expert_logits = torch.zeros(4, 4, 3)
    expert_logits[:, 0] = 4 * (prior + evidence)  # one modality tells all, and another knows the prior alone
    readings = Readings(torch.zeros(4, 2, 3), torch.full((4, 2, 3), prior), torch.zeros(4, 3))
    labels = (evidence > 0).float()

    def penalty() -> torch.Tensor:
        return specialised_losses(expert_logits, readings, torch.zeros(2, 4, 3), labels, config)[1][0]

    assert penalty() == 0
    readings.alone[:, 1] += evidence  # now the other one tells it as well, by the same amount
    # |±1| of one modality of two; of a rare label, and one that nearly all have, it weighs less
    common = sum(1 / (1 + math.exp(-prior - x)) for x in (-1, 1)) / 2
    weight = 1 if problem_type == "regression" else 4 * common * (1 - common)
    assert float(penalty()) == pytest.approx(0.5 * weight, abs=1e-6)


def test_either_by_hand():
    config = specialised()
    readings = torch.tensor([[[8.0, 8.0, -8.0], [8.0, -8.0, -8.0]]])  # contributions of 2 and −2
    said = either(readings, config)[0].tolist()
    one_of_two = 4 * math.log((math.exp(2) + math.exp(-2)) / 2)
    assert said == pytest.approx([8.0, one_of_two, -8.0], abs=1e-5)
    assert one_of_two > 5  # one modality suffices
    assert either(readings, specialised(problem_type="regression"))[0].tolist() == [8.0, 0.0, -8.0]


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_pure_synergy_costs_nothing_and_what_one_modality_tells_does(num_modalities):
    """All inputs of binary modalities, and the mean over every exchange: what is left is the square of main effects."""
    config = specialised(num_modalities, num_labels=2)
    inputs = torch.cartesian_prod(*[torch.tensor([0, 1])] * num_modalities)  # (2^M, M)
    num_samples = len(inputs)

    def cost(function):
        """Per kept modality, before what is negative is cut off."""
        zeros = torch.zeros(num_samples, num_modalities, 2)
        readings, total = Readings(zeros, zeros, zeros[:, 0]), 0
        logits = torch.zeros(num_samples, num_modalities + 2, 2)
        logits[:, num_modalities, 0] = function(inputs)
        for kept in range(num_modalities):
            exchanged = torch.zeros(num_modalities, num_samples, 2)
            for row in range(num_samples):  # the mean over all others
                mixed = inputs.clone()
                mixed[:, kept] = inputs[row, kept]
                exchanged[kept, row, 0] = function(mixed).mean()
            losses = specialised_losses(logits, readings, exchanged, torch.zeros(num_samples, 2), config)[1]
            total += losses[num_modalities]
        return float(total)

    scale = float(config.num_experts)
    assert cost(lambda x: scale * (1 - 2 * (x[:, 0] ^ x[:, 1]).float())) == 0
    # a main effect of ±1 is kept in one view; its mean square of 1 is shared by two labels
    assert cost(lambda x: scale * (1 - 2 * x[:, 0]).float()) == pytest.approx(0.5)


def test_what_is_exchanged(monkeypatch):
    """Every view keeps one modality of the sample, and the others are somebody else's, masks included."""
    config = specialised(3)
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    seen = []
    original = model.join
    monkeypatch.setattr(model, "join", lambda views, *rest: (seen.append(views), original(views, *rest))[1])
    model(features, masks, labels)
    (full,), views = seen
    assert len(views) == 3
    for kept, (projected, view_masks) in enumerate(views):
        for index, name in enumerate(config.modality_order):
            rows = (projected[name].unsqueeze(1) == full[0][name].unsqueeze(0)).flatten(2).all(dim=-1)  # (B, B)
            source = rows.int().argmax(dim=1)
            assert rows.sum() == 4
            assert (source == torch.arange(4)).all() if index == kept else (source != torch.arange(4)).all()
            if full[1][name] is not None:
                assert torch.equal(view_masks[name], full[1][name][source])


def test_what_is_fitted_to_what():
    config = specialised(reweighting="global")
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    output = model(features, masks, labels)
    experts = list(model.experts.parameters())
    assert all(
        g is None
        for g in torch.autograd.grad(output.losses["task_loss"], experts, retain_graph=True, allow_unused=True)
    )
    (of_weights,) = torch.autograd.grad(
        output.losses["task_loss"], [model.reweighting.global_scores], retain_graph=True
    )
    assert (of_weights != 0).any()
    assert losses_of(output, "interaction_loss").shape == (4,)

    logits, readings, exchanged = draw()
    given = [logits, readings.redundancy, readings.alone, readings.together]
    for x in given:
        x.requires_grad_()
    task, penalties = specialised_losses(logits, readings, exchanged, torch.randint(0, 2, (5, 3)).float(), config)
    logits_of_all, _, alone, _ = given
    of_penalty = torch.autograd.grad(penalties[0], [logits_of_all, alone], retain_graph=True, allow_unused=True)
    assert (of_penalty[0][:, :2] != 0).any()
    assert (of_penalty[0][:, 2:] == 0).all()
    assert of_penalty[1] is None  # what others tell is not unlearnt
    for loss, experts, told in ((task[0], [0, 1], []), (task[2], [2], [3]), (task[3], [], [1, 2])):
        of_logits, *of_readings = torch.autograd.grad(loss, given, retain_graph=True, allow_unused=True)
        assert [e for e in range(4) if of_logits is not None and (of_logits[:, e] != 0).any()] == experts
        assert [i for i, g in enumerate(of_readings, start=1) if g is not None and (g != 0).any()] == told


def test_synergys_layers_and_what_all_experts_read_learn_as_a_dense_model_does(monkeypatch):
    """From what the synergy expert's means tell of the label together; its head from what is left to it."""
    config = specialised(reweighting="global")
    model = make_model(config).train()
    recorded = []
    original = objective_specialised.specialised_losses

    def record(logits, readings, *rest):
        recorded.append(readings)
        return original(logits, readings, *rest)

    monkeypatch.setattr(objective_specialised, "specialised_losses", record)
    features, masks, labels = make_inputs(config)
    output = model(features, masks, labels)
    dense_loss = F.binary_cross_entropy_with_logits(recorded[0].together, labels.float())
    layers, stems = list(model.experts.layers.parameters()), list(model.stems.parameters())
    own = torch.autograd.grad(output.loss, [*layers, *stems, model.experts.head.weight], retain_graph=True)
    dense = torch.autograd.grad(dense_loss, [*layers, *stems])
    assert len(own) == len(dense) + 1
    for one, two in zip(own[: len(layers)], dense, strict=False):
        torch.testing.assert_close(one[2], two[2])  # (E, …)
        assert (two[[0, 1, 3]] == 0).all()
    assert any((x[[0, 1, 3]] != 0).any() for x in own[: len(layers)])
    for one, two in zip(own[len(layers) : -1], dense[len(layers) :], strict=True):
        torch.testing.assert_close(one, two)
    assert (own[-1][2] != 0).any()


@pytest.mark.parametrize("reweighting", ["mlp", "global"])
def test_predictions_send_gradients_to_inputs_and_experts(reweighting):
    """As those of `run_mixture` do: saliency, or a loss of one's own, must not find the experts cut off."""
    model = make_model(specialised(reweighting=reweighting))
    features, masks, _ = make_inputs(model.config)
    features = {name: x.requires_grad_() for name, x in features.items()}
    sources = [*features.values(), *model.experts.head.parameters()]
    outputs = model(features, masks), model.run_mixture(model.embed(features, masks), masks)
    one, two = (torch.autograd.grad(x.logits.square().sum(), sources) for x in outputs)
    assert all((x != 0).any() for x in two)
    torch.testing.assert_close(one, two)


def test_the_loss_is_the_sum_of_its_parts():
    config = specialised(interaction_loss_weight=0.3)
    model = make_model(config).train()
    output = model(*make_inputs(config))
    parts = (
        output.losses["task_loss"]
        + losses_of(output, "fitted_loss").sum()
        + 0.3 * losses_of(output, "interaction_loss").mean()
    )
    torch.testing.assert_close(output.loss, parts)
    assert losses_of(output, "fitted_loss").shape == (4,)
    assert losses_of(make_model(make_config()).train()(*make_inputs(make_config())), "fitted_loss") is None


@pytest.mark.parametrize("feature_dropout", [0.0, 0.5])
def test_nobody_learns_from_what_stands_for_a_missing_modality(feature_dropout, monkeypatch):
    config = specialised(3, feature_dropout=feature_dropout)
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    name = config.modality_order[1]
    masks[name] = masks[name].clone()
    masks[name][[0, 2]] = False
    seen = []
    monkeypatch.setattr(
        "fl_i2moe.model.objective_specialised.specialised_losses",
        lambda *given: (seen.append(given[-1]), specialised_losses(*given))[1],
    )
    thinning = [{}, dict(zip(("keep", "is_whole"), draw_thinning(features, config), strict=True))][feature_dropout > 0]
    model(features, masks, labels, fill_missing="random", **thinning)
    is_whole = seen[0]
    assert is_whole[:, 1].tolist()[::2] == [False, False]
    if not feature_dropout:
        assert is_whole.sum() == 4 * 3 - 2
    model(features, {**masks, name: torch.ones_like(masks[name])}, labels, fill_missing="random", **thinning)
    assert seen[1] is thinning.get("is_whole")


@pytest.mark.parametrize(
    ("field", "value"),
    [("perturbation", "zero"), ("num_perturbed_views", 2), ("triplet_margin", 2.0)],
)
def test_what_plays_no_part_is_refused(field, value):
    with pytest.raises(StrictDataclassError, match=f'`objective="specialised"` needs `{field}='):
        specialised(3, **{field: value})
    make_config(3, objective="specialised", architecture="dense", **{field: value})


@pytest.mark.parametrize("objective", ["published", "specialised"])
@pytest.mark.parametrize("level", ["feature", "pooled"])
def test_thinning_zeroes_whole_features_of_a_training_step(objective, level, monkeypatch):
    config = make_config(objective=objective, level=level, feature_dropout=0.5)
    model = make_model(config)
    features, masks, labels = make_inputs(config, num_samples=64)
    whole = model.embed(features, masks)
    seen = []
    original = model.join
    monkeypatch.setattr(model, "join", lambda views, *rest: (seen.append(views), original(views, *rest))[1])
    keep, is_whole = draw_thinning(features, config)
    model.train()(features, masks, labels, keep=keep, is_whole=is_whole)
    thinned, _ = seen[0][0]
    for name, x in whole.items():
        zero = (thinned[name] == 0).all(dim=-1)
        assert ((thinned[name] == x).all(dim=-1) | zero).all()
        untouched = (~zero).all(dim=1)
        assert 16 <= untouched.sum() <= 56  # half of them and those that lose none by chance
    assert 16 <= is_whole[:, 0].sum() <= 48
    assert all(keep[name][is_whole[:, m]].all() for m, name in enumerate(config.modality_order))


def test_experts_learn_without_a_weight_on_the_penalties():
    model = make_model(specialised(interaction_loss_weight=0)).train()
    features, masks, labels = make_inputs(model.config)
    model(features, masks, labels).loss.backward()
    assert all(x.grad is not None and (x.grad != 0).any() for x in model.experts.head.parameters())


def test_dense_ignores_it_and_saving_keeps_it(tmp_path):
    dense = make_model(make_config(architecture="dense", objective="specialised"))
    assert type(dense.experts) is GroupedTransformer
    model = make_model(specialised())
    features, masks, _ = make_inputs(model.config)
    model.save_pretrained(tmp_path)
    loaded = FLI2MoEModel.from_pretrained(tmp_path)
    assert isinstance(loaded.experts, SpecialisedTransformer)
    torch.testing.assert_close(loaded(features, masks).expert_logits, model(features, masks).expert_logits)
