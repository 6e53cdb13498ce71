"""Checkpoints of the published code against a plainly written version of its arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_models import losses_of
from torch import nn
from transformers import AutoModel

from fl_i2moe.explain.attribution import attribute
from fl_i2moe.explain.inputs import Inputs
from fl_i2moe.explain.masked_expert import MaskedExpert
from fl_i2moe.training.conversion import convert_i2moe, load_i2moe_checkpoint

HIDDEN, HEADS, PIECES, TEMPERATURE = 8, 2, 3, 2.0


def make_checkpoint(num_modalities=2, num_layers=2, num_reweighting=3, num_labels=4):
    """Names and shapes as the published classes have them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def add(name, *shape):
        tensors[name] = 0.4 * torch.randn(*shape, generator=generator)

    for e in range(num_modalities + 2):
        expert = f"interaction_experts.{e}.fusion_model"
        add(f"{expert}.pos_embed", 1, num_modalities * PIECES, HIDDEN)
        for i in range(num_layers):
            for norm in ("norm1", "norm2"):
                add(f"{expert}.network.{i}.{norm}.weight", HIDDEN)
                add(f"{expert}.network.{i}.{norm}.bias", HIDDEN)
            add(f"{expert}.network.{i}.attn.q.weight", HIDDEN, HIDDEN)
            add(f"{expert}.network.{i}.attn.kv.weight", 2 * HIDDEN, HIDDEN)
            add(f"{expert}.network.{i}.attn.proj.weight", HIDDEN, HIDDEN)
            add(f"{expert}.network.{i}.attn.proj.bias", HIDDEN)
            add(f"{expert}.network.{i}.mlp.network.0.weight", 2 * HIDDEN, HIDDEN)
            add(f"{expert}.network.{i}.mlp.network.0.bias", 2 * HIDDEN)
            add(f"{expert}.network.{i}.mlp.network.3.weight", HIDDEN, 2 * HIDDEN)
            add(f"{expert}.network.{i}.mlp.network.3.bias", HIDDEN)
        add(f"{expert}.network.{num_layers}.fc.weight", num_labels, num_modalities * HIDDEN)
        add(f"{expert}.network.{num_layers}.fc.bias", num_labels)
    sizes = [num_modalities * HIDDEN] + [6] * (num_reweighting - 1) + [num_modalities + 2]
    for i in range(num_reweighting):
        add(f"reweight.mlp.network.{3 * i}.weight", sizes[i + 1], sizes[i])
        add(f"reweight.mlp.network.{3 * i}.bias", sizes[i + 1])
    return tensors


def published_expert(tensors, e, inputs):
    """One expert on (B, P, H) of each modality, → logits (B, C), in evaluation mode."""
    prefix = f"interaction_experts.{e}.fusion_model"
    x = torch.cat(inputs, dim=1) + tensors[f"{prefix}.pos_embed"]
    layer = 0
    while f"{prefix}.network.{layer}.norm1.weight" in tensors:
        w = {
            name.removeprefix(f"{prefix}.network.{layer}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}.network.{layer}.")
        }
        y = F.layer_norm(x, (HIDDEN,), w["norm1.weight"], w["norm1.bias"])
        query, (key, value) = y @ w["attn.q.weight"].T, (y @ w["attn.kv.weight"].T).split(HIDDEN, dim=-1)
        heads = []
        for part in (slice(h * HIDDEN // HEADS, (h + 1) * HIDDEN // HEADS) for h in range(HEADS)):
            scores = query[..., part] @ key[..., part].transpose(1, 2) / (HIDDEN // HEADS) ** 0.5
            heads.append(scores.softmax(-1) @ value[..., part])
        x = torch.cat(heads, -1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]  # no skip
        x = x + x
        y = F.layer_norm(x, (HIDDEN,), w["norm2.weight"], w["norm2.bias"])
        y = F.gelu(y @ w["mlp.network.0.weight"].T + w["mlp.network.0.bias"])
        x = x + y @ w["mlp.network.3.weight"].T + w["mlp.network.3.bias"]
        layer += 1
    means = torch.cat([part.mean(1) for part in x.split(PIECES, dim=1)], dim=-1)
    return F.linear(means, tensors[f"{prefix}.network.{layer}.fc.weight"], tensors[f"{prefix}.network.{layer}.fc.bias"])


def published_weights(tensors, inputs):
    x = torch.cat([part.mean(1) for part in inputs], dim=-1)
    last = max(int(name.split(".")[3]) for name in tensors if name.startswith("reweight"))
    for i in range(0, last + 1, 3):
        x = F.linear(x, tensors[f"reweight.mlp.network.{i}.weight"], tensors[f"reweight.mlp.network.{i}.bias"])
        x = x if i == last else x.relu()
    return torch.softmax(x / TEMPERATURE, dim=1)


def published_losses(outputs, num_modalities, regression):
    """`outputs[e][v]`, view 0 the full input; in the order of the experts."""
    mse, triplet = nn.MSELoss(), nn.TripletMarginLoss(margin=1.0, p=2, eps=1e-7)
    losses = []
    for i in range(num_modalities):
        anchor, *views = outputs[i]
        others = [view for j, view in enumerate(views) if j != i]
        each = [
            mse(anchor, view) - mse(anchor, views[i]) if regression else triplet(anchor, view, views[i])
            for view in others
        ]
        losses.append(sum(each) / len(each))
    for e, sign in ((num_modalities, 1), (num_modalities + 1, -1)):
        anchor, *views = outputs[e]
        unit = F.normalize(anchor, dim=1)
        if regression:
            each = [mse(anchor, view) for view in views]
        else:
            each = [(sign * (unit * F.normalize(view, dim=1)).sum(1)).mean() + (sign < 0) for view in views]
        losses.append(sum(each) / len(each))
    return losses


@pytest.mark.parametrize(
    ("num_modalities", "problem_type", "num_labels"),
    [(2, "multi_label_classification", 4), (3, "single_label_classification", 4), (3, "regression", 1)],
)
def test_converted_model_computes_what_the_published_one_does(num_modalities, problem_type, num_labels):
    tensors = make_checkpoint(num_modalities, num_labels=num_labels)
    names = ["text", "image", "audio"][:num_modalities]
    model = convert_i2moe(
        tensors,
        names,
        num_attention_heads=HEADS,
        reweighting_temperature=TEMPERATURE,
        problem_type=problem_type,
        interaction_loss_weight=0.7,
    )
    inputs = [torch.randn(5, PIECES, HIDDEN) for _ in names]
    noises = [torch.randn(5, PIECES, HIDDEN) for _ in names]
    labels, task = {
        "multi_label_classification": (torch.randint(0, 2, (5, 4)).float(), nn.BCEWithLogitsLoss()),
        "single_label_classification": (torch.randint(0, 4, (5,)), nn.CrossEntropyLoss()),
        "regression": (torch.randn(5, 1), nn.SmoothL1Loss()),
    }[problem_type]

    views = [inputs] + [[*inputs[:m], noises[m], *inputs[m + 1 :]] for m in range(num_modalities)]
    outputs = [[published_expert(tensors, e, view) for view in views] for e in range(num_modalities + 2)]
    weights = published_weights(tensors, inputs)
    logits = sum(weights[:, e, None] * outputs[e][0] for e in range(num_modalities + 2))
    losses = published_losses(outputs, num_modalities, problem_type == "regression")
    loss = task(logits, labels) + 0.7 * sum(losses) / len(losses)

    drawn = iter(noises)
    with pytest.MonkeyPatch.context() as patch:  # the same noise
        patch.setattr(torch, "randn_like", lambda x: next(drawn))
        output = model(features=dict(zip(names, inputs, strict=True)), labels=labels, with_interaction_losses=True)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output.expert_logits, torch.stack([views[0] for views in outputs], dim=1), **close)
    torch.testing.assert_close(output.expert_weights, weights, **close)
    torch.testing.assert_close(output.logits, logits, **close)
    torch.testing.assert_close(losses_of(output, "interaction_loss"), torch.stack(losses), **close)
    torch.testing.assert_close(output.loss, loss, **close)


def test_converted_model_is_saved_trained_and_explained(tmp_path):
    model = convert_i2moe(make_checkpoint(), ["text", "image"], num_attention_heads=HEADS)
    features = {name: torch.randn(3, PIECES, HIDDEN) for name in ("text", "image")}
    expected = model(features=features)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(features=features).logits, expected.logits)
    loaded.train()(features=features, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert loaded.stems[0].positions.grad.abs().sum(dim=(1, 2)).all()  # of every expert

    projected = model.embed(features)
    names = ["redundancy", "uniqueness_text"]  # each with its own positions
    alone = model.run_experts(projected, experts=names)
    torch.testing.assert_close(alone, expected.expert_logits[:, [3, 0]], rtol=1e-5, atol=1e-5)
    assert not MaskedExpert.supports(model)
    inputs = Inputs(
        projected, *({name: torch.ones(3, PIECES, dtype=torch.bool) for name in features} for _ in range(2))
    )
    raw = attribute(model, inputs, torch.tensor([0, 1, 2]), "attnroll").raw
    model.set_attn_implementation("eager")
    _, (first, second) = model.run_experts(projected, output_attentions=True)
    rollout = (second.mean(1) @ first.mean(1)).mean(1).unflatten(0, (4, 3)).transpose(0, 1)  # no identity
    torch.testing.assert_close(torch.cat([raw["text"], raw["image"]], dim=-1), rollout)


def test_faults_are_listed():
    tensors = make_checkpoint()
    tensors["interaction_experts.1.fusion_model.network.0.mlp.gate.weight"] = torch.zeros(2)
    tensors["interaction_experts.2.fusion_model.pos_embed"] = torch.zeros(1, 4, HIDDEN)
    del tensors["reweight.mlp.network.3.bias"]
    with pytest.raises(ValueError, match="does not fit") as caught:
        convert_i2moe(tensors, ["text", "image"], num_attention_heads=HEADS)
    missing, rest = str(caught.value).split("left over:")
    left_over, shapes = rest.split("of another shape:")
    assert "reweight.mlp.network.3.bias" in missing
    assert "mlp.gate.weight" in left_over
    assert "2.fusion_model.pos_embed: (1, 4, 8), expected (1, 6, 8)" in shapes
    with pytest.raises(ValueError, match=r"4 experts, so 2 modalities; 3 are named"):
        convert_i2moe(make_checkpoint(), ["a", "b", "c"], num_attention_heads=HEADS)
    with pytest.raises(ValueError, match=r"no InteractionMoE.*found encoder\.weight"):
        convert_i2moe({"encoder.weight": torch.zeros(1)}, ["a", "b"], num_attention_heads=HEADS)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("reweight.mlp.network.0.weight", lambda x: x[0, 0], r"0\.weight has the shape \(\); 2 sizes"),
        ("interaction_experts.0.fusion_model.pos_embed", lambda x: x[0, 0], r"pos_embed has the shape \(8,\); 3 sizes"),
        ("interaction_experts.0.fusion_model.pos_embed", lambda x: x[:, :0], r"pos_embed has the shape \(1, 0, 8\)"),
        ("interaction_experts.0.fusion_model.network.0.norm1.weight", lambda x: x[0], r"norm1\.weight has the shape"),
        (
            "reweight.mlp.network.3.bias",
            lambda x: x * torch.nan,
            r"1 tensors have NaN .*: reweight\.mlp\.network\.3\.bias",
        ),
        ("reweight.mlp.network.3.bias", torch.Tensor.long, r"reweight\.mlp\.network\.3\.bias \(torch\.int64"),
        ("reweight.mlp.network.3.bias", torch.Tensor.cfloat, r"reweight\.mlp\.network\.3\.bias \(torch\.complex64"),
        ("reweight.mlp.network.3.bias", torch.Tensor.to_sparse, r"torch\.sparse_coo"),
    ],
)
def test_tensors_that_cannot_be(name, change, message):
    tensors = make_checkpoint()
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=message):
        convert_i2moe(tensors, ["text", "image"], num_attention_heads=HEADS)


@pytest.mark.parametrize(
    ("modalities", "options", "message"),
    [
        (["text", "text"], {}, "^A modality is named twice"),
        (["text", "a/b"], {}, "^A modality's name must not .* hold slashes"),
        (["text", "image"], {"num_attention_heads": 3}, "^`hidden_size` must be divisible .* 8 and 3"),
        (["text", "image"], {"reweighting_temperature": 0.0}, "^`reweighting_temperature` must be positive"),
        (["text", "image"], {"reweighting_temperature": float("nan")}, "^`reweighting_temperature` .* finite"),
        (["text", "image"], {"dropout": 2.0}, r"^`attention_dropout` must lie in \[0, 1\)"),
    ],
)
def test_wrong_options_are_one_sentence(modalities, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert_i2moe(make_checkpoint(), modalities, **{"num_attention_heads": HEADS, **options})
    assert "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_files_are_read_as_tensors_alone(tmp_path, capsys):
    tensors = make_checkpoint()
    torch.save(tensors, tmp_path / "bare.pth")
    torch.save({"ensemble_model": tensors, "encoder_dict": {}}, tmp_path / "published.pth")
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("bare.pth", "published.pth", "safe.safetensors"):
        loaded = load_i2moe_checkpoint(tmp_path / name)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    torch.save({"ensemble_model": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match=r"harmful\.pth cannot be read as tensors alone"):
        load_i2moe_checkpoint(tmp_path / "harmful.pth")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "hello.pth").write_text("hello")  # which a pickle reads as a place in its memory
    for name in ("bare.pth", "safe.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"half-{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "folder.safetensors").mkdir()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({1: torch.ones(2)}, tmp_path / "numbers.pth")
    for name, message in (
        ("text.pth", "cannot be read"),
        ("hello.pth", "cannot be read"),
        ("half-bare.pth", "cannot be read"),
        ("half-safe.safetensors", "cannot be read"),
        ("list.pth", "no `state_dict`"),
        ("numbers.pth", "no `state_dict`"),
        ("no.pth", "There is no"),
        ("folder.safetensors", "it is no file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_i2moe_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_recipe(tmp_path, run_here):
    torch.save(make_checkpoint(), tmp_path / "published.pth")
    command = ["recipes/convert_i2moe_checkpoint.py", tmp_path / "published.pth", tmp_path / "model"]
    command += ["--modalities", "text", "image", "--num_attention_heads=2", "--reweighting_temperature=2"]
    assert "uniqueness_text, uniqueness_image, synergy, redundancy" in run_here(*command)
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.config.reweighting_temperature == 2
    with pytest.raises(SystemExit, match=r"^error: "):
        run_here(*command)
