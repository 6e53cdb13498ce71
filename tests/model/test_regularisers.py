"""Regularisers against their formulas written out in NumPy, one pair and one sample at a time, and by what they do."""

from itertools import combinations

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import losses_of, make_config, make_inputs, make_model

from fl_i2moe import FLI2MoEConfig
from fl_i2moe.model.fusions import FUSIONS
from fl_i2moe.model.regularisers import REGULARISERS, regularise


def plain_cos(x, y):
    return np.mean([(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) ** 2 for a, b in zip(x, y, strict=True)])


def plain_cka(x, y):
    """By the matrices between features (F, F)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def plain_barlow(x, y):
    width = x.shape[1]
    with np.errstate(invalid="ignore"):  # of a place that does not vary
        correlations = np.nan_to_num(np.corrcoef(x.T, y.T)[:width, width:])
    return np.mean([correlations[f, g] ** 2 for f in range(width) for g in range(width) if f != g])


PLAIN = {"rep_cos": plain_cos, "rep_cka": plain_cka, "rep_barlow": plain_barlow}
assert PLAIN.keys() == REGULARISERS.keys()
each = pytest.mark.parametrize("name", list(REGULARISERS))


def make_latents(num_experts=4, num_samples=9, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_experts, num_samples, width, generator=generator) + 1


def plain(name, latents):
    """The mean over pairs, in float64."""
    pairs = combinations(latents.double().numpy(), 2)
    return float(np.mean([PLAIN[name](x, y) for x, y in pairs]))


def make_step(model, num_samples=4, seed=0, **options):
    features, masks, labels = make_inputs(model.config, num_samples)
    torch.manual_seed(seed)
    return model(features=features, feature_masks=masks, labels=labels, **options)


@each
@pytest.mark.parametrize("shape", [(2, 9, 5), (4, 9, 5), (5, 3, 40), (6, 40, 3)])
def test_they_are_their_formulas(name, shape):
    latents = make_latents(*shape)
    assert regularise(latents, name).item() == pytest.approx(plain(name, latents), abs=1e-4)


@pytest.mark.parametrize("name", ["rep_cos", "rep_cka"])
def test_alike_is_one_and_scale_does_not_matter(name):
    latents = make_latents()
    alike = latents[:1] * torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1)
    assert regularise(alike, name).item() == pytest.approx(1)
    scaled = latents * torch.tensor([0.5, 2.0, 10.0, 1.0]).view(4, 1, 1)
    torch.testing.assert_close(regularise(scaled, name), regularise(latents, name))


def test_what_has_nothing_in_common_is_zero():
    orthogonal = torch.eye(3).unsqueeze(1).repeat(1, 7, 1)  # one direction for each expert
    assert regularise(orthogonal, "rep_cos") == 0
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])  # uncorrelated over four samples
    for name in ("rep_cka", "rep_barlow"):
        assert regularise(signs.unsqueeze(-1).repeat(1, 1, 6) + 2, name).item() == pytest.approx(0, abs=1e-6)
    # what one place of both experts has in common does not count, and other places have nothing
    assert regularise(signs.T.unsqueeze(0).repeat(2, 1, 1), "rep_barlow").item() == pytest.approx(0, abs=1e-6)


def test_what_they_are_blind_to():
    latents = make_latents()
    turned, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    moved = torch.cat([latents[:1] @ turned + 4, latents[1:]])
    torch.testing.assert_close(regularise(moved, "rep_cka"), regularise(latents, "rep_cka"))
    stretched = latents * torch.tensor([1.0, 3.0, 0.4, 7.0, 1.0]) - 2  # each place by itself
    torch.testing.assert_close(
        regularise(stretched, "rep_barlow"), regularise(latents, "rep_barlow"), rtol=1e-3, atol=1e-6
    )


@each
@pytest.mark.parametrize(
    "latents",
    [
        make_latents(num_samples=1),
        torch.zeros(3, 6, 4),
        torch.full((3, 6, 4), 7.0),
        make_latents(width=1),
        make_latents()[:1].repeat(3, 1, 1),
        1e-20 * make_latents(),
        1e4 * make_latents(),
    ],
    ids=["one sample", "zeros", "constant", "one number", "alike", "tiny", "huge"],
)
def test_nothing_is_ever_nan(name, latents):
    latents = latents.clone().requires_grad_()
    loss = regularise(latents, name)
    loss.backward()
    assert loss.isfinite()
    assert latents.grad.isfinite().all()
    assert -1e-6 <= loss.item() <= 1 + 1e-5


@pytest.mark.parametrize("name", ["rep_cka", "rep_barlow"])
def test_one_sample_has_no_statistics(name):
    latents = make_latents(num_samples=1).requires_grad_()
    loss = regularise(latents, name)
    loss.backward()
    assert loss == 0
    assert (latents.grad == 0).all()


@each
def test_they_are_not_rounded(name):
    """Mixed precision gives latents of 16 bits; products of them are of 32."""
    latents = make_latents(num_samples=30, width=24).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = regularise(latents, name)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain(name, latents.float()), rel=1e-3)


@each
def test_a_few_steps_drive_latents_apart(name):
    latents = make_latents().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.1)
    before = regularise(latents, name).item()
    for _ in range(25):
        optimizer.zero_grad()
        regularise(latents, name).backward()
        optimizer.step()
    assert regularise(latents, name).item() < 0.5 * before


@each
@pytest.mark.parametrize("objective", ["published", "specialised"])
def test_it_is_one_more_term_of_a_step(name, objective):
    """Of what the heads read of the full input; everything else is as without it, noise included."""
    model = make_model(make_config(3, objective=objective, regulariser=name, regulariser_weight=0.3)).train()
    seen = []
    model.experts.register_forward_hook(lambda module, given, found: seen.append(found[1].latents.detach()))
    output = make_step(model)
    loss = output.losses.pop("regulariser_loss")
    assert loss.item() == pytest.approx(plain(name, seen[0][:, :4]), abs=1e-4)
    without = make_step(make_model(make_config(3, objective=objective)).train())
    assert {key: x.item() for key, x in output.losses.items()} == {key: x.item() for key, x in without.losses.items()}
    for scale in (0.0, 0.25, 1.0):
        scaled = make_step(model, regulariser_scale=scale)
        torch.testing.assert_close(scaled.loss, without.loss + 0.3 * scale * loss)
        assert scaled.losses["regulariser_loss"] == loss


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_every_fusion_takes_it_without_an_objective(fusion):
    """Experts that learn from the task alone, and no further views."""
    config = make_config(fusion=fusion, interaction_loss_weight=0.0, regulariser="rep_cka", regulariser_weight=2.0)
    model = make_model(config).train()
    rows = []
    model.experts.register_forward_hook(lambda module, given, found: rows.append(found[1].latents.shape[1]))
    output = make_step(model)
    output.losses["regulariser_loss"].backward()
    assert rows == [4]
    assert losses_of(output, "interaction_loss") is None
    assert sum(p.grad.abs().sum() for p in model.experts.parameters() if p.grad is not None) > 0
    assert model.experts.head.weight.grad is None  # what heads say is not compared


def test_it_is_made_where_it_counts_or_is_asked_for():
    config = make_config(regulariser="rep_cos", regulariser_weight=0.1)
    for training, asked, expected in [
        (True, None, True),
        (True, False, False),
        (False, None, False),
        (False, True, True),
    ]:
        output = make_step(make_model(config).train(training), with_interaction_losses=asked)
        assert ("regulariser_loss" in output.losses) == expected


@each
def test_it_reaches_the_layers_of_published_experts(name):
    model = make_model(make_config(3, regulariser=name, regulariser_weight=1)).train()
    make_step(model, num_samples=6).losses["regulariser_loss"].backward()
    assert all((x.grad.flatten(1) != 0).any(dim=1).all() for x in model.experts.layers.parameters())
    assert all((stem.projection.weight.grad != 0).any() for stem in model.stems)


@each
def test_it_spares_what_teaches_specialised_experts_to_see(name):
    """Synergy's layers and the projections learn as a dense model's do; the others keep away from them."""
    model = make_model(make_config(3, objective="specialised", regulariser=name, regulariser_weight=1)).train()
    make_step(model, num_samples=6).losses["regulariser_loss"].backward()
    for parameter in model.experts.layers.parameters():
        is_reached = (parameter.grad.flatten(1) != 0).any(dim=1)
        assert is_reached.tolist() == [True, True, True, False, True]
    assert all(x.grad is None or (x.grad == 0).all() for x in model.stems.parameters())


def test_a_specialised_uniqueness_expert_counts_by_its_own_modality():
    model = make_model(make_config(3, objective="specialised", regulariser="rep_cos", regulariser_weight=1)).train()
    seen = []
    model.experts.register_forward_hook(lambda module, given, found: seen.append(found))
    make_step(model)
    logits, extra = seen[0]
    latents = extra.latents.unflatten(-1, (3, 8))
    weight, bias = model.experts.head.weight, model.experts.head.bias
    for expert in range(3):
        others = [index for index in range(3) if index != expert]
        assert (latents[expert][:, others] == 0).all()
        assert (latents[expert][:, expert] != 0).any()
        says = extra.latents[expert] @ weight[expert].T + bias[expert]
        torch.testing.assert_close(says, logits[:, expert])
    assert (latents[3:] != 0).flatten(2).any(dim=2).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"regulariser": "rep_cos"},
            "a `regulariser_weight` above 0 go together, got 'rep_cos' and 0",
        ),
        ({"regulariser_weight": 0.1}, "go together, got None and 0.1: give both, or neither"),
        (
            {"regulariser": "cka", "regulariser_weight": 1},
            "one of 'rep_cos', 'rep_cka', 'rep_barlow', got 'cka'",
        ),
        ({"regulariser": "", "regulariser_weight": 1}, "`regulariser` is empty"),
        ({"regulariser": "rep_cos", "regulariser_weight": -1}, "`regulariser_weight` must be at least 0"),
        ({"regulariser": "rep_cos", "regulariser_weight": float("nan")}, "must be a finite number"),
        ({"regulariser": "rep_cos", "regulariser_weight": float("inf")}, "must be a finite number"),
        ({"regulariser": "rep_cos", "regulariser_weight": "1"}, "regulariser_weight"),
        ({"regulariser": ["rep_cos"], "regulariser_weight": 1}, "regulariser"),
        (
            {"regulariser": "rep_cos", "regulariser_weight": 1, "architecture": "dense"},
            '`regulariser` compares experts, and `architecture="dense"` has one',
        ),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make_config(**changes)


def test_a_saved_configuration_keeps_it(tmp_path):
    make_config(regulariser="rep_barlow", regulariser_weight=2).save_pretrained(tmp_path)
    config = FLI2MoEConfig.from_pretrained(tmp_path)
    assert (config.regulariser, config.regulariser_weight) == ("rep_barlow", 2)
