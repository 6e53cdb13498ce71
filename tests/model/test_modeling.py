"""The model against a plainly written loop over experts and views, and the properties that a user relies on."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_models import SIZES, losses_of, make_config, make_inputs, make_model
from torch import nn
from transformers import AutoConfig, AutoModel

from fl_i2moe import FLI2MoEModel

# --- the plain loop ---------------------------------------------------------------------------------------------------


def plain_expert(model: FLI2MoEModel, e: int, sequences: list, masks: list) -> torch.Tensor:
    """One expert on one view of one sample, features (T_m, H), without padding; logits (C,)."""
    config = model.config
    x = torch.cat([s[m] for s, m in zip(sequences, masks, strict=True)])
    lengths = [int(m.sum()) for m in masks]
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for layer in model.experts.layers:
        weight = {name: p[e] for name, p in layer.named_parameters()}
        y = F.layer_norm(x, x.shape[-1:], weight["attention_norm.weight"], weight["attention_norm.bias"], 1e-5)
        q, k, v = (y @ weight["attention.qkv.weight"].T).chunk(3, dim=-1)
        outputs = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            attention = torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1)
            outputs.append(attention @ v[:, part])
        x = x + F.linear(torch.cat(outputs, -1), weight["attention.output.weight"], weight["attention.output.bias"])
        y = F.layer_norm(x, x.shape[-1:], weight["feed_forward_norm.weight"], weight["feed_forward_norm.bias"], 1e-5)
        y = F.gelu(F.linear(y, weight["feed_forward.up.weight"], weight["feed_forward.up.bias"]))
        x = x + F.linear(y, weight["feed_forward.down.weight"], weight["feed_forward.down.bias"])
    means = [part.mean(0) for part in x.split(lengths)]
    return F.linear(torch.cat(means), model.experts.head.weight[e], model.experts.head.bias[e])


def plain_projection(model: FLI2MoEModel, features: dict, masks: dict) -> list:
    """Per modality (B, T_m, H); pooled mode averages, pads and cuts first."""
    projected = []
    for name, stem in zip(model.config.modality_order, model.stems, strict=True):
        x = features[name]
        if model.config.level == "pooled":
            pooled = torch.stack([row[mask].mean(0) for row, mask in zip(x, masks[name], strict=True)])
            pieces = model.config.num_patches
            size = -(-pooled.shape[-1] // pieces)
            x = F.pad(pooled, (0, pieces * size - pooled.shape[-1])).reshape(len(pooled), pieces, size)
        projected.append(F.linear(x, stem.projection.weight, stem.projection.bias))
    return projected


def plain_forward(model: FLI2MoEModel, features: dict, masks: dict, noises: list):
    """Logits of every view, expert and sample (V, B, E, C), mixture logits and weights; one small product at a time."""
    config = model.config
    projected = plain_projection(model, features, masks)
    if config.level == "pooled":
        masks = [torch.ones(x.shape[:2], dtype=torch.bool) for x in projected]
    else:
        masks = [masks[name] for name in config.modality_order]
    views = [projected]
    for m in range(len(projected)):
        views.append([noises[m] if m == other else x for other, x in enumerate(projected)])
    logits = torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [
                            plain_expert(
                                model,
                                e,
                                [x[b] + s.positions[: x.shape[1]] for x, s in zip(view, model.stems, strict=True)],
                                [m[b] for m in masks],
                            )
                            for e in range(config.num_experts)
                        ]
                    )
                    for b in range(len(projected[0]))
                ]
            )
            for view in views
        ]
    )
    if config.architecture == "dense":
        return logits, logits[0, :, 0], torch.ones(len(projected[0]), 1)
    means = torch.cat(
        [
            torch.stack([row[k].mean(0) for row, k in zip(x, m, strict=True)])
            for x, m in zip(projected, masks, strict=True)
        ],
        dim=-1,
    )
    hidden = means
    for layer in model.reweighting.layers[:-1]:
        hidden = layer(hidden).relu()
    weights = torch.softmax(model.reweighting.layers[-1](hidden) / config.reweighting_temperature, dim=-1)
    mixture = sum(weights[:, e, None] * logits[0, :, e] for e in range(config.num_experts))
    return logits, mixture, weights


def plain_interaction_losses(logits: torch.Tensor, num_modalities: int) -> list:
    losses = []
    triplet = nn.TripletMarginLoss(margin=1.0, p=2, eps=1e-7)
    for i in range(num_modalities):
        y = logits[:, :, i]
        losses.append(
            sum(triplet(y[0], y[1 + j], y[1 + i]) for j in range(num_modalities) if j != i) / (num_modalities - 1)
        )
    cosine = nn.CosineSimilarity(dim=-1)
    synergy, redundancy = logits[:, :, num_modalities], logits[:, :, num_modalities + 1]
    losses.append(sum(cosine(synergy[0], synergy[1 + j]).mean() for j in range(num_modalities)) / num_modalities)
    losses.append(
        sum((1 - cosine(redundancy[0], redundancy[1 + j])).mean() for j in range(num_modalities)) / num_modalities
    )
    return losses


def draw_noises(model: FLI2MoEModel, features: dict, masks: dict, seed: int) -> list:
    """The model's draws, in its order: one N(0, 1) tensor for each modality's view."""
    torch.manual_seed(seed)
    return [torch.randn_like(x) for x in plain_projection(model, features, masks)]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "training"])
@pytest.mark.parametrize("level", ["feature", "pooled"])
@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_grouped_path_equals_plain_loop(num_modalities, level, attention):
    config = make_config(num_modalities, level=level)
    model = make_model(config)
    if attention == "training":  # nothing is dropped
        model.train()
    else:
        model.set_attn_implementation(attention)
    features, masks, labels = make_inputs(config)
    noises = draw_noises(model, features, masks, seed=3)
    logits, mixture, weights = plain_forward(model, features, masks, noises)
    losses = plain_interaction_losses(logits, num_modalities)
    loss = nn.BCEWithLogitsLoss()(mixture, labels) + 0.5 * sum(losses) / len(losses)
    expected_gradients = torch.autograd.grad(loss, list(model.parameters()))

    torch.manual_seed(3)
    output = model(features=features, feature_masks=masks, labels=labels, with_interaction_losses=True)
    gradients = torch.autograd.grad(output.loss, list(model.parameters()))

    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output.expert_logits, logits[0], **close)
    torch.testing.assert_close(output.logits, mixture, **close)
    torch.testing.assert_close(output.expert_weights, weights, **close)
    torch.testing.assert_close(losses_of(output, "interaction_loss"), torch.stack(losses), **close)
    torch.testing.assert_close(output.loss, loss, **close)
    for (name, _), gradient, expected in zip(model.named_parameters(), gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_dense_is_one_expert_without_interaction_loss():
    config = make_config(architecture="dense")
    model = make_model(config)
    features, masks, labels = make_inputs(config)
    logits, mixture, _ = plain_forward(model, features, masks, draw_noises(model, features, masks, 0))
    output = model.train()(features=features, feature_masks=masks, labels=labels)
    assert config.expert_names == ["dense"]
    assert losses_of(output, "interaction_loss") is None
    assert output.expert_logits.shape == (4, 1, 3)
    torch.testing.assert_close(output.expert_weights, torch.ones(4, 1))
    torch.testing.assert_close(output.logits, mixture, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits, logits[0, :, 0], rtol=1e-5, atol=1e-5)
    assert output.loss == output.losses["task_loss"]


@pytest.mark.parametrize("level", ["feature", "pooled"])
def test_bfloat16_agrees_to_its_rounding(level):
    config = make_config(level=level)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    exact = model(features=features, feature_masks=masks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(features=features, feature_masks=masks)
    mixture = torch.einsum("be,bec->bc", rounded.expert_weights, rounded.expert_logits)
    torch.testing.assert_close(rounded.logits, mixture)  # the mixture itself is not rounded
    scale = exact.expert_logits.abs().max()
    assert (rounded.expert_logits - exact.expert_logits).abs().max() < 0.05 * scale


@pytest.mark.parametrize("level", ["feature", "pooled"])
@pytest.mark.parametrize("num_modalities", [2, 3])
def test_training_in_bfloat16_agrees_to_its_rounding(level, num_modalities):
    """Losses and gradients of the CPU's training kernels, with masks and without dropout."""
    config = make_config(num_modalities, level=level, hidden_size=32)
    model = make_model(config).train()
    features, masks, labels = make_inputs(config, num_samples=16)

    def step(enabled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(features, masks, labels).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return loss, torch.cat([x.flatten() for x in gradients if x is not None])

    (exact, exact_gradient), (rounded, rounded_gradient) = step(enabled=False), step(enabled=True)
    assert abs(rounded - exact) < 0.01 * abs(exact)
    assert (rounded_gradient - exact_gradient).norm() < 0.1 * exact_gradient.norm()


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(attention):
    config = make_config(3)
    model = make_model(config)
    model.set_attn_implementation(attention)
    features, masks, _ = make_inputs(config)
    expected = model(features=features, feature_masks=masks)
    for row in range(4):
        alone = model(features={name: x[row : row + 1][:, masks[name][row]] for name, x in features.items()})
        torch.testing.assert_close(alone.expert_logits[0], expected.expert_logits[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.expert_weights[0], expected.expert_weights[row], rtol=1e-5, atol=1e-5)
    garbage = {name: torch.where(masks[name][..., None], x, torch.nan) for name, x in features.items()}
    torch.testing.assert_close(model(features=garbage, feature_masks=masks).logits, expected.logits)
    with pytest.raises(ValueError, match="NaN"):
        model(features=garbage)


@pytest.mark.parametrize("level", ["feature", "pooled"])
def test_permuting_the_batch_permutes_the_output(level):
    config = make_config(level=level)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    order = torch.tensor([2, 0, 3, 1])
    expected = model(features=features, feature_masks=masks)
    permuted = model(
        features={name: x[order] for name, x in features.items()},
        feature_masks={name: x[order] for name, x in masks.items()},
    )
    torch.testing.assert_close(permuted.logits, expected.logits[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(permuted.expert_weights, expected.expert_weights[order], rtol=1e-5, atol=1e-6)


def test_masks_may_be_integers_and_order_of_dicts_does_not_matter():
    config = make_config()
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    expected = model(features=features, feature_masks=masks).logits
    reversed_features = dict(reversed(features.items()))
    output = model(features=reversed_features, feature_masks={name: mask.long() for name, mask in masks.items()})
    torch.testing.assert_close(output.logits, expected)


def test_pooled_mode_takes_ready_vectors_and_cls():
    config = make_config(level="pooled")
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    pooled = {
        name: torch.stack([row[mask].mean(0) for row, mask in zip(x, masks[name], strict=True)])
        for name, x in features.items()
    }
    expected = model(features=features, feature_masks=masks).logits
    torch.testing.assert_close(model(features=pooled).logits, expected, rtol=1e-5, atol=1e-5)

    config = make_config(level="pooled")
    for modality in config.modalities.values():
        modality["pooling"] = "cls"
    model = make_model(config)
    first = {name: x[:, 0] for name, x in features.items()}
    torch.testing.assert_close(model(features=features, feature_masks=masks).logits, model(features=first).logits)


@pytest.mark.parametrize("perturbation", ["random", "zero", "mean", "shuffle"])
def test_views_replace_one_modality(perturbation):
    config = make_config(3, perturbation=perturbation)
    model = make_model(config)
    features, masks, _ = make_inputs(config, num_samples=5)
    means = {name: x[masks[name]].mean(0) for name, x in features.items()}
    if perturbation == "mean":
        with pytest.raises(ValueError, match="set_feature_means"):
            model(features=features, feature_masks=masks, with_interaction_losses=True)
        model.set_feature_means(means)
    projected = model.embed(features, masks)
    for index, name in enumerate(config.modality_order):
        torch.manual_seed(7)
        replaced, replaced_masks = model.without(index, (projected, masks), model.config.perturbation)
        for other in config.modality_order:
            if other != name:
                assert replaced[other] is projected[other]
                assert replaced_masks[other] is masks[other]
        stem = model.stems[index]
        if perturbation == "zero":
            assert not replaced[name].any()
        elif perturbation == "mean":
            torch.testing.assert_close(replaced[name][2, 1], stem.projection(means[name]))
        elif perturbation == "random":
            torch.manual_seed(7)
            assert torch.equal(replaced[name], torch.randn_like(projected[name]))
        else:
            rows = [next(b for b in range(5) if torch.equal(projected[name][b], row)) for row in replaced[name]]
            assert sorted(rows) == list(range(5))
            assert all(row != b for b, row in enumerate(rows))
            assert torch.equal(replaced_masks[name], masks[name][rows])


def test_fewer_perturbed_views_leave_the_others_without_loss():
    config = make_config(4, num_perturbed_views=2)
    model = make_model(config).train()
    features, masks, labels = make_inputs(config)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        losses = losses_of(model(features=features, feature_masks=masks, labels=labels), "interaction_loss")
        given = frozenset(losses[:4].nonzero().flatten().tolist())
        assert len(given) <= 2
        seen |= given
    assert seen == {0, 1, 2, 3}


def test_interaction_losses_are_computed_when_they_count_or_are_asked_for():
    features, masks, labels = make_inputs(make_config())
    for weight, training, asked, expected in [
        (0.5, True, None, True),
        (0.5, False, None, False),
        (0.5, False, True, True),
        (0.5, True, False, False),
        (0.0, True, None, False),
        (0.0, True, True, True),
    ]:
        model = make_model(make_config(interaction_loss_weight=weight)).train(training)
        output = model(features=features, feature_masks=masks, labels=labels, with_interaction_losses=asked)
        assert (losses_of(output, "interaction_loss") is not None) == expected
        if not expected:
            assert output.loss == output.losses["task_loss"]


def test_global_reweighting_is_one_vector_for_all():
    config = make_config(reweighting="global")
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    weights = model(features=features, feature_masks=masks).expert_weights
    expected = torch.softmax(model.reweighting.global_scores / config.reweighting_temperature, dim=0)
    torch.testing.assert_close(weights, expected.expand(4, -1))


def test_experts_start_identical_or_not():
    def spread(identical):
        model = FLI2MoEModel(make_config(identical_experts_init=identical)).eval()
        features, masks, _ = make_inputs(model.config)
        logits = model(features=features, feature_masks=masks).expert_logits
        return (logits - logits[:, :1]).abs().max()

    assert spread(True) < 1e-6
    assert spread(False) > 1e-2


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [("single_label_classification", 3), ("multi_label_classification", 3), ("regression", 3), ("regression", 1)],
)
def test_problem_types(problem_type, num_labels):
    config = make_config(problem_type=problem_type, num_labels=num_labels)
    model = make_model(config)
    features, masks, labels = make_inputs(config)
    if problem_type == "single_label_classification":
        labels = torch.tensor([0, 2, 1, 1])
        reference = nn.CrossEntropyLoss()
    elif problem_type == "multi_label_classification":
        reference = nn.BCEWithLogitsLoss()
    else:
        labels = torch.randn(4, num_labels)
        reference = nn.SmoothL1Loss()
    output = model(features=features, feature_masks=masks, labels=labels)
    torch.testing.assert_close(output.losses["task_loss"], reference(output.logits, labels))
    if (problem_type, num_labels) == ("regression", 1):
        flat = model(features=features, feature_masks=masks, labels=labels[:, 0])
        torch.testing.assert_close(flat.losses["task_loss"], output.losses["task_loss"])
    with pytest.raises(ValueError, match=r"[Ll]abels"):
        model(features=features, feature_masks=masks, labels=torch.zeros(4, num_labels + 1))


def test_run_experts_zeroes_what_is_not_kept():
    config = make_config(3)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    projected = model.embed(features, masks)
    full = model(features=features, feature_masks=masks).expert_logits
    torch.testing.assert_close(model.run_experts(projected, masks), full)
    chosen = ["redundancy", "uniqueness_image"]
    indexes = [config.expert_names.index(name) for name in chosen]
    torch.testing.assert_close(
        model.run_experts(projected, masks, experts=chosen), full[:, indexes], rtol=1e-5, atol=1e-5
    )

    keep = {"image": torch.rand(4, 5) < 0.5}
    zeroed = dict(projected, image=projected["image"].masked_fill(~keep["image"][..., None], 0.0))
    expected = plain_expert(
        model,
        1,
        [
            zeroed[name][2] + s.positions[: zeroed[name].shape[1]]
            for name, s in zip(config.modality_order, model.stems, strict=True)
        ],
        [masks[name][2] for name in config.modality_order],
    )
    masked = model.run_experts(projected, masks, keep=keep, experts=["uniqueness_image"])
    torch.testing.assert_close(masked[2, 0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"keep\['image'\].*\(4, 5\).*\(1, 5\)"):
        model.run_experts(projected, masks, keep={"image": keep["image"][:1]})
    pooled = make_model(make_config(3, level="pooled"))
    with pytest.raises(ValueError, match="pseudo-patches"):
        pooled.run_experts(pooled.embed(features, masks), masks)
    with pytest.raises(ValueError, match="synergi"):
        model.run_experts(projected, masks, experts=["synergi"])


# --- saving, registration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"level": "pooled"}, {"architecture": "dense"}, {"perturbation": "mean", "reweighting": "global"}]
)
def test_save_and_load_keep_every_tensor_and_the_order(tmp_path, changes):
    config = make_config(3, **changes)
    assert config.modality_order == ["text", "image", "audio"]  # not sorted, as config.json sorts its keys
    model = make_model(config)
    if config.perturbation == "mean":
        model.set_feature_means({name: torch.randn(SIZES[name][0]) for name in config.modality_order})
    features, masks, _ = make_inputs(config)
    expected = model(features=features, feature_masks=masks)
    model.save_pretrained(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py")  # its code goes along
    assert files == ["config.json", "model.safetensors"]
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.expert_names == config.expert_names
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    loaded_tensors = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert tensors.keys() == loaded_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, loaded_tensors[name]), name
    output = loaded.eval()(features=features, feature_masks=masks)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.expert_weights, expected.expert_weights)


def test_weights_of_other_sizes_are_initialised_on_request(tmp_path):
    """`from_pretrained` builds on the meta device: what does not fit must not come back as garbage."""
    from safetensors.torch import load_file, save_file

    config = make_config(perturbation="mean", reweighting="global", identical_experts_init=True)
    make_model(config).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    kept = {"stems.0.projection.weight": saved["stems.0.projection.weight"]}
    resized = {name: torch.zeros(1) for name in saved}
    save_file(resized | kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert torch.equal(model.stems[0].projection.weight, kept["stems.0.projection.weight"])
    assert not model.stems[1].positions.any()
    assert model.stems[0].feature_mean.isnan().all()
    for layer in model.experts.layers:
        weight = layer.attention.qkv.weight
        assert torch.equal(weight, weight[:1].expand_as(weight))
        assert 0 < weight.abs().max() <= 8**-0.5
        assert torch.equal(layer.attention_norm.weight, torch.ones(4, 8))
        assert not layer.feed_forward.up.bias.any()


def test_auto_classes_know_the_model_after_import():
    config = AutoConfig.for_model("fl_i2moe", modalities=make_config().modalities)
    assert isinstance(AutoModel.from_config(config), FLI2MoEModel)


def test_import_needs_torch_and_transformers_alone():
    code = (
        "import sys\n"
        "for name in ('datasets', 'accelerate', 'evaluate', 'matplotlib', 'sklearn', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import fl_i2moe\n"
        "print(fl_i2moe.FLI2MoEModel.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "FLI2MoEModel", result.stderr


# --- bad input --------------------------------------------------------------------------------------------------------


def _drop(features, masks):
    del features["image"]


def _rename(features, masks):
    features["picture"] = features["image"]


def _widen(features, masks):
    features["image"] = F.pad(features["image"], (0, 1))


def _lengthen(features, masks):
    features["image"] = F.pad(features["image"], (0, 0, 0, 1))
    masks["image"] = F.pad(masks["image"], (0, 1))


def _shorten_mask(features, masks):
    masks["text"] = masks["text"][:, :-1]


def _empty_row(features, masks):
    masks["text"][2] = False


def _infinite(features, masks):
    features["text"][1, 0, 0] = torch.inf


def _fewer_samples(features, masks):
    features["image"], masks["image"] = features["image"][:-1], masks["image"][:-1]


def _unknown_mask(features, masks):
    masks["audio"] = masks["text"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, r"lacks \['image'\]"),
        (_rename, r"unknown modalities \['picture'\]"),
        (_widen, r"'image'.*\(B, T, 10\).*11"),
        (_lengthen, r"'image'.*6 features.*1 to 5"),
        (_shorten_mask, r"'text'.*\(4, 7\).*\(4, 6\)"),
        (_empty_row, r"'text'.*no real feature in rows \[2\]"),
        (_infinite, r"'text'.*NaN or infinite values in rows \[1\]"),
        (_fewer_samples, r"'image'.*3 samples.*4"),
        (_unknown_mask, r"unknown modalities \['audio'\]"),
    ],
)
def test_bad_inputs_are_named(spoil, message):
    config = make_config()
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    spoil(features, masks)
    with pytest.raises(ValueError, match=message):
        model(features=features, feature_masks=masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            lambda f, m, y: {"features": f, "feature_mask": m},
            "Unknown argument `feature_mask`. Did you mean `feature_m",
        ),
        (
            lambda f, m, y: {"features": f, "attention_mask": m},
            "Unknown argument `attention_mask`. There are features, ",
        ),
        (lambda f, m, y: {"features": f, "label": y}, "Unknown argument `label`. Did you mean `labels`"),
        (lambda f, m, y: {"features": f, "text": ["a"]}, r"With `features` there are no raw inputs; got \['text'\]"),
        (lambda f, m, y: {"feature": f}, "Give `features`, or raw inputs .* Did you mean `features`"),
        (
            lambda f, m, y: {"text": ["a"], "image": ["b"], "label": y},
            "Unknown argument `label`. Did you mean `labels`",
        ),
        (lambda f, m, y: {"text": ["a"], "image": ["b"], "feature_masks": m}, "`feature_masks` belong to `features`"),
        (lambda f, m, y: {"features": f["text"]}, "`features` must be a dictionary, modality → tensor, got Tensor"),
        (lambda f, m, y: {"features": list(f.values())}, "`features` must be a dictionary, .* got list"),
        (
            lambda f, m, y: {"features": {k: x.numpy() for k, x in f.items()}},
            r"`features\['text'\]` must be a tensor, got",
        ),
        (lambda f, m, y: {"features": {**f, "image": None}}, r"`features\['image'\]` must be a tensor, got NoneType"),
        (lambda f, m, y: {"features": f, "feature_masks": m["text"]}, "`feature_masks` must be a dictionary"),
        (lambda f, m, y: {"features": f, "feature_masks": {"text": m["text"].tolist()}}, "must be a tensor, got list"),
        (lambda f, m, y: {"features": f, "keep": m["text"]}, "`keep` must be a dictionary"),
        (lambda f, m, y: {"features": f, "keep": {"text": m["text"].numpy()}}, r"`keep\['text'\]` must be a tensor"),
        (lambda f, m, y: {"features": {k: x[:0] for k, x in f.items()}}, r"`features\['text'\]` holds no sample"),
        (lambda f, m, y: {"features": {k: x.mean() for k, x in f.items()}}, r"must have shape \(B, T, 6\), got \(\)"),
        (lambda f, m, y: {"features": f, "labels": y.numpy()}, "`labels` must be a tensor, got ndarray"),
        (lambda f, m, y: {"features": {k: x.to_sparse() for k, x in f.items()}}, "must be dense real numbers"),
        (
            lambda f, m, y: {"features": {k: x + 0j for k, x in f.items()}},
            "dense real numbers, got torch.complex",
        ),
        (lambda f, m, y: {"features": f, "labels": y * torch.nan}, "`labels` has NaN or infinite values"),
        (lambda f, m, y: {"features": f, "is_whole": m["text"]}, r"`is_whole` must be .* \(4, 2\), got \(4, 7\)"),
        (lambda f, m, y: {"features": f, "is_whole": [[1, 1]] * 4}, "`is_whole` must be a tensor .* got list"),
        (lambda f, m, y: {"features": f, "fill_missing": "zero", "missing_lengths": {"text": "a"}}, "missing_lengths"),
        (
            lambda f, m, y: {"features": f, "fill_missing": "zero", "missing_lengths": [1]},
            "`missing_lengths` must be",
        ),
        (lambda f, m, y: {"features": f, "labels": y[:1]}, r"`labels` of shape \(1, 3\) do not fit"),
        (lambda f, m, y: {"features": f["text"], "fill_missing": "zero"}, "`features` must be a dictionary"),
        (lambda f, m, y: {"features": {"text": [1.0]}, "fill_missing": "zero"}, "must be a tensor, got list"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_wrong_arguments_are_named(arguments, message, training):
    config = make_config()
    model = make_model(config).train(training)
    with pytest.raises(ValueError, match=message):
        model(**arguments(*make_inputs(config)))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_out_of_range_is_named(label):
    config = make_config(problem_type="single_label_classification")
    features, masks, _ = make_inputs(config)
    with pytest.raises(ValueError, match=rf"Single labels must lie in 0 … 2, got {label}"):
        make_model(config)(features=features, feature_masks=masks, labels=torch.tensor([0, 1, 2, label]))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model.run_experts(x),
        lambda model, x: model.run_mixture(x),
        lambda model, x: model.embed(x),
        lambda model, x: model.set_feature_means(x),
        lambda model, x: model.run_mixture(model.embed(make_inputs(model.config)[0]), x),
    ],
)
def test_other_ways_in_take_tensors_alone(call):
    model = make_model(make_config(perturbation="mean"))
    features, *_ = make_inputs(model.config)
    for given in (features["text"], {name: x.numpy() for name, x in features.items()}):
        with pytest.raises(ValueError, match=r"must be a (dictionary|tensor)"):
            call(model, given)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["attention", "residual", "activation", "embedding", "reweighting"])
def test_every_dropout_field_acts_in_training_alone(field):
    model = make_model(make_config(**{f"{field}_dropout": 0.5}))
    features, masks, _ = make_inputs(model.config)

    def run(seed):
        torch.manual_seed(seed)
        return model(features=features, feature_masks=masks, with_interaction_losses=False).logits

    assert torch.equal(run(0), run(1))
    model.train()
    assert not torch.equal(run(0), run(1))
    assert torch.equal(run(0), run(0))


def test_run_experts_gives_attentions_on_the_graph():
    config = make_config(3)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    projected = model.embed(features, masks)
    names = ["redundancy", "uniqueness_text"]
    with pytest.raises(ValueError, match="set_attn_implementation"):
        model.run_experts(projected, masks, output_attentions=True)
    expected = model.run_experts(projected, masks, experts=names)
    model.set_attn_implementation("eager")
    logits, attentions = model.run_experts(projected, masks, experts=names, output_attentions=True)
    torch.testing.assert_close(logits, expected)
    joint_mask = torch.cat([masks[name] for name in config.modality_order], dim=1)
    assert len(attentions) == config.num_fusion_layers
    gradients = torch.autograd.grad(logits[:, 1].sum(), attentions)
    for attention, gradient in zip(attentions, gradients, strict=True):
        by_expert = attention.unflatten(0, (2, 4))
        torch.testing.assert_close(by_expert.sum(-1), torch.ones_like(by_expert[..., 0]))
        padded = ~joint_mask[None, :, None, None, :].expand_as(by_expert)
        assert (by_expert[padded] == 0).all()
        by_expert = gradient.unflatten(0, (2, 4))
        assert (by_expert[0] == 0).all()  # the other expert has no part in it
        assert (by_expert[1] != 0).any()


@pytest.mark.parametrize(
    "changes", [{}, {"num_modalities": 3, "reweighting": "global"}, {"architecture": "dense"}, {"level": "pooled"}]
)
def test_run_mixture_is_forward_with_features_zeroed(changes):
    config = make_config(**changes)
    model = make_model(config)
    features, masks, _ = make_inputs(config)
    projected = model.embed(features, masks)
    masks_behind = None if config.level == "pooled" else masks
    whole, expected = model.run_mixture(projected, masks_behind), model(features=features, feature_masks=masks)
    for field in ("logits", "expert_logits", "expert_weights"):
        assert torch.equal(whole[field], expected[field])

    keep = {"image": torch.rand(projected["image"].shape[:2]) < 0.5}
    zeroed = {**projected, "image": projected["image"].masked_fill(~keep["image"][..., None], 0.0)}
    masked, expected = model.run_mixture(projected, masks_behind, keep), model.run_mixture(zeroed, masks_behind)
    assert torch.equal(masked.logits, expected.logits)
    assert not torch.allclose(masked.logits, whole.logits)
    torch.testing.assert_close(masked.expert_logits, model.run_experts(zeroed, masks_behind))
    if config.architecture == "moe" and config.reweighting == "mlp":  # the weights see it too
        assert not torch.allclose(masked.expert_weights, whole.expert_weights)
    with pytest.raises(ValueError, match=r"keep.*\['picture'\]"):
        model.run_mixture(projected, masks_behind, {"picture": keep["image"]})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_run_experts_takes_an_input_for_each_expert(attention):
    config = make_config(3)
    model = make_model(config)
    model.set_attn_implementation(attention)
    features, masks, _ = make_inputs(config)
    names = ["synergy", "uniqueness_audio"]
    projected = model.embed(features, masks)
    own = {name: torch.stack([x, 2 * x]) for name, x in projected.items()}
    logits = model.run_experts(own, masks, experts=names)
    for e, name in enumerate(names):
        expected = model.run_experts({m: x[e] for m, x in own.items()}, masks, experts=[name])
        torch.testing.assert_close(logits[:, e : e + 1], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="2 experts, 5 run"):
        model.run_experts(own, masks)
