"""Each fusion against a plainly written version of itself, and what holds for all of them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from tiny_models import losses_of, make_batch, make_config, make_inputs, make_model, one_sample
from torch import nn
from transformers import AutoModel
from transformers.dynamic_module_utils import get_relative_import_files

from fl_i2moe import FLI2MoEModel
from fl_i2moe.explain.attribution import attribute
from fl_i2moe.explain.feature_game import feature_game
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.inputs import Inputs
from fl_i2moe.model import modeling_fl_i2moe
from fl_i2moe.model.fusion import GroupedLayerNorm, GroupedLinear
from fl_i2moe.model.fusion_routed import _mean
from fl_i2moe.model.fusions import FUSIONS
from fl_i2moe.training.arguments import ModelArguments
from fl_i2moe.training.command_line import parse_arguments

NEW = [name for name in FUSIONS if name != "transformer"]
ROUTED = ["switch", "moe++"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def weights_of(module: nn.Module, e: int) -> dict:
    """One expert's weights; of stacks that hold several for each expert, those."""
    found = {}
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        count = getattr(owner, "num_distinct", 1)
        found[name] = parameter[e] if count == 1 else parameter[e * count : (e + 1) * count]
    return found


def plain_attention(x: torch.Tensor, weight: dict, heads: int, groups: list) -> torch.Tensor:
    """Pre-norm self-attention of (T, H), only between tokens with equal entries in `groups`; what it adds."""
    y = F.layer_norm(x, x.shape[-1:], weight["attention_norm.weight"], weight["attention_norm.bias"], 1e-5)
    q, k, v = (y @ weight["attention.qkv.weight"].T).chunk(3, dim=-1)
    width = x.shape[-1] // heads
    rows = []
    for t in range(len(x)):
        others = [s for s in range(len(x)) if groups[s] == groups[t]]
        parts = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.stack([q[t, part] @ k[s, part] / math.sqrt(width) for s in others])
            parts.append(sum(p * v[s, part] for p, s in zip(scores.softmax(0), others, strict=True)))
        rows.append(torch.cat(parts))
    return F.linear(torch.stack(rows), weight["attention.output.weight"], weight["attention.output.bias"])


def plain_network(x: torch.Tensor, weight: dict, prefix: str, k: int | None = None) -> torch.Tensor:
    up, up_bias, down, down_bias = (
        weight[f"{prefix}.{name}"] if k is None else weight[f"{prefix}.{name}"][k]
        for name in ("up.weight", "up.bias", "down.weight", "down.bias")
    )
    return F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)


def plain_norm(x: torch.Tensor, weight: dict) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weight["feed_forward_norm.weight"], weight["feed_forward_norm.bias"], 1e-5)


def plain_head(model: FLI2MoEModel, e: int, x: torch.Tensor, lengths: list) -> torch.Tensor:
    means = torch.cat([part.mean(0) for part in x.split(lengths)])
    return F.linear(means, model.experts.head.weight[e], model.experts.head.bias[e])


def plain_switch(model, e, parts):
    """Token by token: the best network, if it has room for one more of the modality's tokens."""
    config, lengths = model.config, [len(part) for part in parts]
    x = torch.cat(parts)
    modality = [m for m, length in enumerate(lengths) for _ in range(length)]
    factor = config.capacity_factor if model.training else config.eval_capacity_factor
    for layer in model.experts.layers:
        weight = weights_of(layer, e)
        x = x + plain_attention(x, weight, config.num_attention_heads, [0] * len(x))
        taken, rows = {}, []
        for t, y in enumerate(plain_norm(x, weight)):
            probabilities = (weight["feed_forward.router.weight"] @ y).softmax(0)
            k = int(probabilities.argmax())
            taken[modality[t], k] = taken.get((modality[t], k), 0) + 1
            room = math.ceil(factor * lengths[modality[t]] / config.num_routed_experts)
            fits = taken[modality[t], k] <= room
            added = probabilities[k] * plain_network(y, weight, "feed_forward.networks", k)
            rows.append(added if fits else 0 * added)
        x = x + torch.stack(rows)
    return plain_head(model, e, x, lengths)


def plain_moe_plus_plus(model, e, parts):
    config, lengths = model.config, [len(part) for part in parts]
    x, count = torch.cat(parts), config.num_routed_experts
    scores = [None] * len(x)
    for index, layer in enumerate(model.experts.layers):
        weight = weights_of(layer, e)
        x = x + plain_attention(x, weight, config.num_attention_heads, [0] * len(x))
        rows = []
        for t, y in enumerate(plain_norm(x, weight)):
            score = weight["feed_forward.router.weight"] @ y
            if index:
                score = score + weight["feed_forward.pathway.weight"] @ scores[t]
            scores[t] = score
            probabilities = score.softmax(0)
            added = torch.zeros_like(y)
            for j in sorted(range(len(score)), key=lambda j: -score[j].item())[:2]:
                if j < count:
                    output = plain_network(y, weight, "feed_forward.networks", j)
                elif j == count:
                    output = torch.zeros_like(y)
                elif j == count + 1:
                    output = y
                else:
                    c = j - count - 2
                    own, constant = (weight["feed_forward.constant_gate.weight"][2 * c : 2 * c + 2] @ y).softmax(0)
                    output = own * y + constant * weight["feed_forward.constants.weight"][c]
                added = added + probabilities[j] * output
            rows.append(added)
        x = x + torch.stack(rows)
    return plain_head(model, e, x, lengths)


def plain_late(model, e, parts):
    config, lengths = model.config, [len(part) for part in parts]
    x = torch.cat(parts)
    modality = [m for m, length in enumerate(lengths) for _ in range(length)]
    for layer in model.experts.layers:
        weight = weights_of(layer, e)
        x = x + plain_attention(x, weight, config.num_attention_heads, modality)
        x = x + plain_network(plain_norm(x, weight), weight, "feed_forward")
    return plain_head(model, e, x, lengths)


def vectors_of(model, parts):
    return [part.flatten() if model.config.level == "pooled" else part.mean(0) for part in parts]


def plain_early(model, e, parts):
    x, weight = torch.cat(vectors_of(model, parts)), weights_of(model.experts, e)
    for index in range(model.config.num_fusion_layers):
        x = F.gelu(F.linear(x, weight[f"layers.{index}.weight"], weight[f"layers.{index}.bias"]))
    return F.linear(x, weight["head.weight"], weight["head.bias"])


def plain_low_rank(model, e, parts):
    """The full weight tensor, applied to the outer product of all modalities' vectors with a one."""
    weight = weights_of(model.experts, e)
    vectors = [torch.cat([v, torch.ones(1)]) for v in vectors_of(model, parts)]
    hidden, letters = model.config.hidden_size, "abcd"[: len(vectors)]
    product = torch.einsum(",".join(letters) + "->" + letters, *vectors)
    tensor = 0
    for r in range(model.config.fusion_rank):
        factors = [weight["factors.weight"][m][r * hidden : (r + 1) * hidden] for m in range(len(vectors))]
        tensor = tensor + torch.einsum(",".join("h" + x for x in letters) + "->h" + letters, *factors)
    fused = (tensor * product).flatten(1).sum(1)
    return F.linear(fused, weight["head.weight"], weight["head.bias"])


def plain_interpretcc(model, e, parts):
    """Without noise: a modality takes part when its gate is above the threshold."""
    weight, config = weights_of(model.experts, e), model.config
    gated = []
    for m, vector in enumerate(vectors_of(model, parts)):
        hidden = F.relu(F.linear(vector, weight["gate_hidden.weight"][m], weight["gate_hidden.bias"][m]))
        score = F.linear(hidden, weight["gate_score.weight"][m], weight["gate_score.bias"][m])
        gate = 1 / (1 + torch.exp(-score / config.gate_temperature))
        gated.append(vector * (float(gate > config.gate_threshold) if config.hard_gate else gate))
    hidden = F.relu(F.linear(torch.cat(gated), weight["fusion.weight"], weight["fusion.bias"]))
    return F.linear(hidden, weight["head.weight"], weight["head.bias"])


PLAIN = {
    "switch": plain_switch,
    "moe++": plain_moe_plus_plus,
    "late": plain_late,
    "early": plain_early,
    "low_rank": plain_low_rank,
    "interpretcc": plain_interpretcc,
}


def sequences(model, features, masks, row):
    """Real features of one sample in the hidden space with positions, one tensor for each modality."""
    parts = []
    for name, stem in zip(model.config.modality_order, model.stems, strict=True):
        x = features[name][row, masks[name][row]]
        if model.config.level == "pooled":
            pooled, pieces = x.mean(0), model.config.num_patches
            size = -(-len(pooled) // pieces)
            x = F.pad(pooled, (0, pieces * size - len(pooled))).view(pieces, size)
        parts.append(stem.projection(x) + stem.positions[: len(x)])
    return parts


@pytest.mark.parametrize("level", ["feature", "pooled"])
@pytest.mark.parametrize("num_modalities", [2, 3])
@pytest.mark.parametrize("fusion", NEW)
def test_grouped_fusion_equals_plain_experts(fusion, num_modalities, level):
    changes = {"capacity_factor": 1.0, "eval_capacity_factor": 1.0, "num_routed_experts": 3, "fusion_rank": 2}
    config = make_config(num_modalities, fusion=fusion, level=level, **changes)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    logits = model(features=features, feature_masks=masks).expert_logits
    expected = torch.stack(
        [
            torch.stack(
                [PLAIN[fusion](model, e, sequences(model, features, masks, row)) for e in range(config.num_experts)]
            )
            for row in range(4)
        ]
    )
    torch.testing.assert_close(logits, expected, **CLOSE)
    parameters = list(model.experts.parameters())
    upstream = torch.randn_like(logits)
    gradients = torch.autograd.grad(logits, parameters, upstream, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, upstream, allow_unused=True)
    for (name, _), gradient, want in zip(model.experts.named_parameters(), gradients, wanted, strict=True):
        zeros = torch.zeros(())
        gradient, want = (zeros if x is None else x for x in (gradient, want))
        torch.testing.assert_close(*torch.broadcast_tensors(gradient, want), rtol=1e-3, atol=1e-4, msg=name)


def test_every_fusion_has_a_name_and_a_plain_version():
    assert set(FUSIONS) == {"transformer", *PLAIN}


@pytest.mark.parametrize("fusion", NEW)
def test_training_takes_the_same_path(fusion):
    """Without dropout the kernels of training give what those of inference give, apart from drawn gates."""
    config = make_config(3, fusion=fusion, eval_capacity_factor=1.25)
    model = make_model(config)
    features, masks, labels = make_inputs(config)
    expected = model(features=features, feature_masks=masks).expert_logits
    output = model.train()(features=features, feature_masks=masks, labels=labels)
    if fusion != "interpretcc":
        torch.testing.assert_close(output.expert_logits, expected, **CLOSE)
    assert losses_of(output, "interaction_loss").shape == (5,)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())  # none is left out, several processes need all


@pytest.mark.parametrize("fusion", NEW)
def test_dense_baseline_is_one_expert(fusion):
    config = make_config(fusion=fusion, architecture="dense")
    model = make_model(config)
    features, masks, labels = make_inputs(config)
    output = model(features=features, feature_masks=masks, labels=labels)
    assert output.expert_logits.shape == (4, 1, 3)
    torch.testing.assert_close(output.logits[1], PLAIN[fusion](model, 0, sequences(model, features, masks, 1)), **CLOSE)
    assert losses_of(model.train()(features=features, feature_masks=masks, labels=labels), "interaction_loss") is None


@pytest.mark.parametrize("fusion", NEW)
def test_bfloat16(fusion):
    """Under autocast and as the model's own type; where a router may choose otherwise, only that it works."""
    config = make_config(3, fusion=fusion)
    model = make_model(config)
    features, masks, labels = make_inputs(config)
    exact = model(features=features, feature_masks=masks).expert_logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(features=features, feature_masks=masks).expert_logits
        model.train()(features=features, feature_masks=masks, labels=labels).loss.backward()
    own = model.eval().to(torch.bfloat16)(features=features, feature_masks=masks).expert_logits
    for logits in (rounded, own):
        assert logits.isfinite().all()
        if fusion not in ROUTED:
            assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("fusion", NEW)
def test_padding_and_neighbours_change_nothing(fusion):
    config = make_config(3, fusion=fusion, eval_capacity_factor=0.7)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    expected = model(features=features, feature_masks=masks).expert_logits
    for row in range(4):
        alone = model(features={name: x[row : row + 1][:, masks[name][row]] for name, x in features.items()})
        torch.testing.assert_close(alone.expert_logits[0], expected[row], **CLOSE)
    order = torch.tensor([2, 0, 3, 1])
    permuted = model(
        features={name: x[order] for name, x in features.items()},
        feature_masks={name: x[order] for name, x in masks.items()},
    )
    torch.testing.assert_close(permuted.expert_logits, expected[order], **CLOSE)


@pytest.mark.parametrize("level", ["feature", "pooled"])
@pytest.mark.parametrize("fusion", NEW)
def test_save_and_load_keep_every_tensor(fusion, level, tmp_path):
    model = make_model(make_config(3, fusion=fusion, level=level))
    features, masks, _ = make_inputs(model.config)
    expected = model(features=features, feature_masks=masks)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.eval()(features=features, feature_masks=masks).logits, expected.logits)


@pytest.mark.parametrize("fusion", NEW)
def test_experts_start_identical_or_not(fusion):
    def start(identical):
        config = make_config(fusion=fusion, identical_experts_init=identical)
        model = FLI2MoEModel(config).eval()
        features, masks, _ = make_inputs(config)
        return model, model(features=features, feature_masks=masks).expert_logits

    model, logits = start(True)
    assert (logits - logits[:, :1]).abs().max() < 1e-6
    for module in model.experts.modules():
        if getattr(module, "num_distinct", 1) > 1:  # the networks of one expert, its modalities: never alike
            assert not torch.equal(module.weight[0], module.weight[1])
    _, logits = start(False)
    assert (logits - logits[:, :1]).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", NEW)
def test_experts_run_alone_and_with_features_zeroed(fusion):
    config = make_config(3, fusion=fusion)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    projected = model.embed(features, masks)
    full = model.run_experts(projected, masks)
    chosen = ["redundancy", "uniqueness_image"]
    indexes = [config.expert_names.index(name) for name in chosen]
    torch.testing.assert_close(model.run_experts(projected, masks, experts=chosen), full[:, indexes], **CLOSE)
    own = {name: torch.stack([x, 2 * x]) for name, x in projected.items()}
    doubled = {name: 2 * x for name, x in projected.items()}
    torch.testing.assert_close(
        model.run_experts(own, masks, experts=chosen)[:, 1],
        model.run_experts(doubled, masks, experts=chosen[1:])[:, 0],
        **CLOSE,
    )
    keep = {"image": torch.rand(4, 5) < 0.5}
    zeroed = dict(projected, image=projected["image"].masked_fill(~keep["image"][..., None], 0.0))
    torch.testing.assert_close(model.run_experts(projected, masks, keep=keep), model.run_experts(zeroed, masks))


@pytest.mark.parametrize("fusion", NEW)
def test_explanations(fusion):
    config = make_config(fusion=fusion, eval_capacity_factor=4.0, hard_gate=False)
    model = make_model(config)
    inputs = Inputs.from_batch(model, make_batch(config))
    targets = torch.tensor([0, 1, 2, 0])
    importance = attribute(model, inputs, targets, "ig", num_steps=4 if fusion in ROUTED else 64)
    assert set(importance.scores) == set(config.modality_order)
    if fusion not in ROUTED:  # those jump where a token changes its network
        spread = model.run_experts(inputs.projected, inputs.feature_masks).abs().max()
        assert importance.completeness_gap.max() < 1e-2 * spread
    if fusion in (*ROUTED, "late"):
        assert attribute(model, inputs, targets, "grad_attnroll").raw["text"].any()
    else:
        with pytest.raises(ValueError, match=f"{fusion!r} gives no attention.*'ig'"):
            attribute(model, inputs, targets, "grad_attnroll")


@pytest.mark.parametrize("fusion", NEW)
def test_games(fusion):
    """What explanations of pairs ask, one coalition at a time."""
    model = make_model(make_config(fusion=fusion))
    inputs = one_sample(Inputs.from_batch(model, make_batch(model.config)), 0)
    players = [Player("text", 2), Player("text", 4), Player("image", 1), Player("image", 3)]
    values = feature_game(model, inputs, "synergy", 1, players)(np.eye(4, dtype=bool))
    for player, value in zip(players, values, strict=True):
        name, place = player.modality, player.place
        keep = {m: ~mask for m, mask in inputs.candidate_masks.items()}
        keep[name] = keep[name].clone()
        keep[name][0, place] = True
        expected = model.run_experts(inputs.projected, inputs.feature_masks, keep, experts=["synergy"])[0, 0, 1]
        assert value == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"level": "pooled"},
        {"num_perturbed_views": 2},
        {"perturbation": "shuffle"},
        {"layer_arithmetic": "published", "position_embeddings": "per_expert"},
        {"fusion": "late"},
        {"fusion": "moe++"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "default",
)
def test_what_views_have_in_common_is_computed_once(changes, monkeypatch):
    config = make_config(3, **changes)
    model = make_model(config).train()
    batch = make_batch(config)
    widths = []
    model.experts.layers[0].attention.qkv.register_forward_hook(
        lambda _, given, __: widths.append(given[0].shape[1:-1])
    )

    def run():
        torch.manual_seed(5)
        output = model(**{name: batch[name] for name in ("features", "feature_masks", "labels")})
        return output, torch.autograd.grad(output.loss, list(model.parameters()))

    output, gradients = run()
    monkeypatch.setattr(modeling_fl_i2moe, "replaced_slices", lambda *_: None)
    expected, expected_gradients = run()
    assert widths[0].numel() < widths[1].numel()
    torch.testing.assert_close(
        losses_of(output, "interaction_loss"), losses_of(expected, "interaction_loss"), rtol=1e-5, atol=1e-6
    )
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_views_with_dropout_of_their_own_have_nothing_in_common():
    config = make_config(embedding_dropout=0.5)
    model = make_model(config).train()
    batch = make_batch(config)
    given = []
    model.experts.layers[0].register_forward_pre_hook(lambda _, arguments: given.append(arguments[3]))  # `replaced`
    model(features=batch["features"], labels=batch["labels"])
    model.eval()(features=batch["features"], with_interaction_losses=True)
    assert given[0] is None
    assert given[1]


def test_late_fusion_explains_a_modality_by_itself_alone():
    """What a modality adds to the logits does not depend on the others."""
    model = make_model(make_config(fusion="late"))
    features, masks, _ = make_inputs(model.config)
    full = model.embed(features, masks)
    empty = {name: torch.zeros_like(x) for name, x in full.items()}

    def run(**given):
        return model.run_experts({**empty, **given}, masks)

    parts = run(text=full["text"]) + run(image=full["image"]) - run()
    torch.testing.assert_close(run(**full), parts, **CLOSE)


def test_models_files_are_copied_beside_a_saved_model():
    """transformers copies what is reached by flat relative imports."""
    copied = {Path(path).name for path in get_relative_import_files(modeling_fl_i2moe.__file__)}
    assert {f"{type_.__module__.rpartition('.')[2]}.py" for type_ in FUSIONS.values()} <= copied


# --- routers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ROUTED)
def test_balance_loss_by_hand(fusion):
    """Counted token by token over real tokens, in the full view of a dense model."""
    config = make_config(fusion=fusion, architecture="dense", num_fusion_layers=1, balance_loss_weight=0.3)
    model = make_model(config)
    features, masks, labels = make_inputs(config)
    seen = []
    model.experts.layers[0].feed_forward.router.register_forward_hook(lambda module, given, y: seen.append(y[0]))
    output = model(features=features, feature_masks=masks, labels=labels)
    real = torch.cat([masks[name] for name in config.modality_order], dim=1)
    tokens = seen[0][real].softmax(-1)
    number, chosen = tokens.shape[1], 1 if fusion == "switch" else 2
    expected = 0
    for j in range(number):
        share = sum(j in row.topk(chosen).indices for row in tokens) / len(tokens)
        importance = 1.0 if j < config.num_routed_experts else config.zero_computation_balance
        expected += importance * share * tokens[:, j].mean() * number / chosen
    torch.testing.assert_close(output.losses["auxiliary_loss"], expected)
    torch.testing.assert_close(output.loss, output.losses["task_loss"] + 0.3 * expected)


@pytest.mark.parametrize("fusion", ROUTED)
def test_balance_loss_reaches_the_routers(fusion):
    """It is detached in the published code: there a router learns nothing from it."""
    config = make_config(fusion=fusion, balance_loss_weight=1.0)
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    routers = [layer.feed_forward.router.weight for layer in model.experts.layers]
    output = model(features=features, feature_masks=masks, labels=labels)
    for gradient in torch.autograd.grad(output.losses["auxiliary_loss"], routers, retain_graph=True):
        assert (gradient.abs().amax(dim=(1, 2)) > 0).all()  # of every expert
    without = make_model(make_config(fusion=fusion, balance_loss_weight=0.0)).train()
    torch.manual_seed(1)
    with_loss = model(features=features, feature_masks=masks, labels=labels)
    torch.manual_seed(1)
    plain = without(features=features, feature_masks=masks, labels=labels)
    torch.testing.assert_close(with_loss.loss, plain.loss + with_loss.losses["auxiliary_loss"])


def test_balance_loss_balances():
    """A router that sends all to one network learns from the balance loss alone to use the others."""
    config = make_config(fusion="switch", architecture="dense", num_fusion_layers=1)
    model = make_model(config)
    features, masks, _ = make_inputs(config, num_samples=16)
    layer = model.experts.layers[0]
    router = layer.feed_forward.router.weight
    with torch.no_grad():
        layer.feed_forward_norm.bias.fill_(1.0)
        router[:, 0] += 1.0
    optimizer = torch.optim.Adam([router], lr=0.05)
    losses = []
    for _ in range(100):
        loss = model(features=features, feature_masks=masks).losses["auxiliary_loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 2
    assert min(losses[-10:]) < 1.1


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name not in ROUTED])
def test_other_fusions_have_no_auxiliary_loss(fusion):
    config = make_config(fusion=fusion)
    features, masks, labels = make_inputs(config)
    output = make_model(config).train()(features=features, feature_masks=masks, labels=labels)
    assert "auxiliary_loss" not in output.losses
    torch.testing.assert_close(
        output.loss, output.losses["task_loss"] + 0.5 * losses_of(output, "interaction_loss").mean()
    )


def test_tokens_beyond_the_capacity_pass_by():
    """All to one network with room for half of a modality's tokens: the second half is not changed by the layer."""
    config = make_config(
        fusion="switch", architecture="dense", num_fusion_layers=1, num_routed_experts=2, eval_capacity_factor=1.0
    )
    model = make_model(config)
    layer = model.experts.layers[0].feed_forward
    with torch.no_grad():
        layer.router.weight.zero_()  # equal probabilities: the first network for all
    x = torch.randn(1, 1, 8, 8)
    is_of = torch.zeros(1, 2, 8, dtype=torch.bool)
    is_of[0, 0, :4] = is_of[0, 1, 4:] = True
    update, _, _ = layer(x, is_of, None, None)
    assert update[0, 0].any(dim=-1).tolist() == [True, True, False, False] * 2


def test_networks_that_no_token_reaches_have_a_gradient():
    """Of zero: several processes wait for one of every weight."""
    layer = make_model(make_config(fusion="moe++", architecture="dense")).experts.layers[0].feed_forward.networks
    x = torch.randn(1, 2, 3, 8, requires_grad=True)
    update = layer(x, torch.full((1, 2, 3), layer.num_networks), None)
    assert not update.any()
    for gradient in torch.autograd.grad(update.sum(), list(layer.parameters())):
        assert not gradient.any()


def test_routing_needs_few_lengths_and_gives_what_each_network_says():
    """Of every length that a step has needed a process keeps memory. Against every network on every token."""
    networks = make_model(make_config(fusion="moe++", architecture="dense")).experts.layers[0].feed_forward.networks
    count, lengths = networks.num_networks, set()
    networks.up.register_forward_pre_hook(lambda _, inputs: lengths.add(inputs[0].shape[1]))
    for seed in range(20):
        torch.manual_seed(seed)
        x, choice = torch.randn(1, 20, 11, 8), torch.randint(0, count + 2, (1, 20, 11))
        expected = torch.zeros_like(x)
        for k in range(count):
            hidden = F.gelu(F.linear(x[0], networks.up.weight[k], networks.up.bias[k]))
            said = F.linear(hidden, networks.down.weight[k], networks.down.bias[k])
            expected[0][choice[0] == k] = said[choice[0] == k]
        torch.testing.assert_close(networks(x, choice, None), expected, **CLOSE)
    assert len(lengths) <= 2


# --- InterpretCC ------------------------------------------------------------------------------------------------------


def test_hard_gate_is_straight_through():
    """Forward open or closed, backward the sigmoid's gradient; the soft gate with the same draw gives both."""
    hard = make_model(make_config(fusion="interpretcc", gate_temperature=0.7, gate_threshold=0.6)).train()
    soft = make_model(make_config(fusion="interpretcc", gate_temperature=0.7, hard_gate=False)).train()
    vectors = torch.randn(1, 50, 2, 8)

    def run(model):
        torch.manual_seed(3)
        gates = model.experts.gates(vectors)
        return gates, torch.autograd.grad(gates.sum(), model.experts.gate_score.weight)[0]

    (gates, gradient), (values, expected) = run(hard), run(soft)
    assert gates.shape == (4, 50, 2, 1)
    torch.testing.assert_close(gates, (values > 0.6).float())
    assert 0 < gates.mean() < 1
    torch.testing.assert_close(gradient, expected)


def test_gates_open_with_the_probability_of_their_sigmoid():
    """P(score + logistic noise > 0) is sigmoid(score), whatever the temperature."""
    model = make_model(make_config(fusion="interpretcc", gate_temperature=0.3)).train()
    vectors = torch.randn(1, 1, 2, 8).expand(1, 20000, 2, 8)
    with torch.no_grad():
        share = model.experts.gates(vectors).mean(dim=1).flatten()
        model.config.hard_gate, model.config.gate_temperature = False, 1.0
        probability = model.eval().experts.gates(vectors[:, :1]).flatten()
    assert (share - probability).abs().max() < 5 * 0.5 / 20000**0.5


def test_predictions_draw_nothing():
    model = make_model(make_config(fusion="interpretcc"))
    features, masks, _ = make_inputs(model.config)
    first = model(features=features, feature_masks=masks).logits
    assert torch.equal(model(features=features, feature_masks=masks).logits, first)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "mult"}, "'low_rank'"),
        ({"num_routed_experts": 0}, "`num_routed_experts` must be at least 1"),
        ({"capacity_factor": 0}, "`capacity_factor` must be positive"),
        ({"balance_loss_weight": -1}, "`balance_loss_weight` must be at least 0"),
        ({"gate_threshold": 1}, r"`gate_threshold` must lie in \(0, 1\)"),
        ({"gate_temperature": 0}, "`gate_temperature` must be positive"),
        ({"fusion_rank": 0}, "`fusion_rank` must be at least 1"),
        ({"fusion": "switch", "layer_arithmetic": "published"}, "needs `fusion=\"transformer\"`, got 'switch'"),
        ({"fusion": "late", "objective": "specialised"}, "`fusion='transformer'`, got 'late'.*\"published\""),
        ({"position_embeddings": "per_expert", "objective": "specialised"}, "`position_embeddings='shared'`"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make_config(**changes)


def test_a_dense_baseline_has_no_objective_to_fit():
    assert make_config(fusion="late", objective="specialised", architecture="dense").expert_names == ["dense"]


def test_options_reach_the_configuration():
    arguments = ["--fusion=moe++", "--num_routed_experts=3", "--no_hard_gate", "--balance_loss_weight=0.1"]
    [model] = parse_arguments((ModelArguments,), {"default": {}}, lambda given: "default", "a job", arguments)
    config = model.to_config(make_config().modalities, num_labels=3)
    assert (config.fusion, config.num_routed_experts, config.hard_gate) == ("moe++", 3, False)
    assert config.balance_loss_weight == 0.1
    defaults, untouched = ModelArguments(), make_config()
    for name in (
        "capacity_factor",
        "eval_capacity_factor",
        "zero_computation_balance",
        "gate_threshold",
        "fusion_rank",
    ):
        assert getattr(defaults, name) == getattr(untouched, name)


@pytest.mark.parametrize("groups", [None, [2, 0]])
@pytest.mark.parametrize("length", [2, 50], ids=["scales its input", "folds into its weight"])
@pytest.mark.parametrize("shared", [False, True], ids=["own inputs", "one input"])
def test_a_grouped_layer_behind_a_norm_against_a_loop(groups, length, shared):
    torch.manual_seed(0)
    layer, norm = GroupedLinear(3, 8, 5), GroupedLayerNorm(3, 8)
    parameters = [*layer.parameters(), *norm.parameters()]
    for x in parameters:
        nn.init.normal_(x)
    chosen = range(3) if groups is None else groups
    x = torch.randn(1 if shared else len(chosen), 2, length, 8, requires_grad=True)
    output = layer(x, groups, norm)
    rows = [
        F.linear(x[0 if shared else i] * norm.weight[g] + norm.bias[g], layer.weight[g], layer.bias[g])
        for i, g in enumerate(chosen)
    ]
    expected = torch.stack(rows)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(output)
    for one, two in zip(
        *(torch.autograd.grad(y, [x, *parameters], direction) for y in (output, expected)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_balance_is_not_rounded_by_autocast():
    torch.manual_seed(0)
    x, is_of = torch.rand(2, 3, 7, 4), torch.rand(3, 2, 7) < 0.5
    real = is_of.any(dim=1)
    expected = torch.stack([x[e][real].mean(dim=0) for e in range(2)])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(_mean(x, is_of), expected)
