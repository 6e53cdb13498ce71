"""
Checks of a device: losses and gradients against the CPU's in float32, mixed precision, and fused Adam.

Shapes: B samples · T_m features of modality m · D encoder width.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.model.fusions import FUSIONS
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.loop import create_optimizer

from .report import Line, Step, check, holds
from .train_step import DTYPES, autocast

SHAPES = {"image": (24, 17), "text": (20, 23), "audio": (16, 9), "depth": (12, 5)}
"""Width and number of the features of each modality."""

NUM_LABELS = 5
FLOAT32_ERROR = 1e-4
WHY_FLOAT32 = "float32 has 7 digits, other orders of sums cost two (other kernels on a CPU: 3e-6)"
WHY_MIXED = "3 × what the CPU's own autocast costs, + 0.01: routers that choose otherwise make jumps"

VARIANTS: dict[str, dict[str, Any]] = {
    "without padding": {},
    "pooled": {"level": "pooled"},
    "eager attention": {"attn_implementation": "eager"},
    "single labels": {"problem_type": "single_label_classification"},
    "regression": {"problem_type": "regression"},
    "published layers": {"layer_arithmetic": "published", "position_embeddings": "per_expert"},
    "features of others": {"perturbation": "shuffle"},
    "specialised, single labels": {"objective": "specialised", "problem_type": "single_label_classification"},
}
"""What else is compared, of Transformer experts and two modalities."""


class DrawnOnCPU(TorchFunctionMode):
    """Noise is drawn on the CPU in float32, so that every device and number format sees the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.randn_like, torch.rand_like):
            return func(torch.empty(args[0].shape)).to(args[0])
        return func(*args, **(kwargs or {}))


@dataclass
class Pass:
    """One forward and backward pass, on the CPU in float32."""

    losses: Tensor
    gradients: dict[str, Tensor]

    def error(self, other: "Pass") -> float:
        """
        The largest difference of a loss, relative to the loss or 1 if that is more; or of a parameter's gradient, as
        norms, relative to its own and a hundredth of the whole gradient's; or of the whole gradient.
        """
        of_losses = ((self.losses - other.losses).abs() / self.losses.abs().clamp(min=1)).max()
        norms = torch.stack([x.norm() for x in self.gradients.values()])
        differences = torch.stack([(x - other.gradients[name]).norm() for name, x in self.gradients.items()])
        of_gradients = (differences / (norms + 0.01 * norms.norm())).max()
        return float(torch.stack([of_losses, of_gradients, differences.norm() / norms.norm()]).max())


def make_config(num_modalities: int, hidden_size: int, dropout: float = 0.0, **changes: Any) -> FLI2MoEConfig:
    names = list(SHAPES)[:num_modalities]
    return FLI2MoEConfig(
        **{
            "modalities": {
                name: dict(zip(("feature_size", "max_features"), SHAPES[name], strict=True)) for name in names
            },
            "num_labels": NUM_LABELS,
            "hidden_size": hidden_size,
            "reweighting_hidden_size": 16,
            **{f"{name}_dropout": dropout for name in ("attention", "residual", "activation", "reweighting")},
            **changes,
        },
        identical_experts_init=False,
    )


def make_model(config: FLI2MoEConfig) -> FLI2MoEModel:
    """In training mode; no parameter has a value (zero, one) that could hide a mistake."""
    torch.manual_seed(0)
    model = FLI2MoEModel(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_batch(config: FLI2MoEConfig, num_samples: int = 6, padded: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    features, masks = {}, {}
    for name, modality in config.modalities.items():
        width, length = modality["feature_size"], modality["max_features"]
        features[name] = torch.randn(num_samples, length, width, generator=generator)
        lengths = torch.randint(1, length + 1, (num_samples, 1), generator=generator)
        masks[name] = torch.arange(length) < lengths
    labels = torch.randint(0, 2, (num_samples, config.num_labels), generator=generator).float()
    if config.problem_type == "single_label_classification":
        labels = labels.argmax(dim=1)
    return {"features": features, "feature_masks": masks if padded else None, "labels": labels}


def run(model: FLI2MoEModel, batch: dict[str, Any], dtype: str = "float32") -> Pass:
    model.zero_grad()
    device = model.device
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=dtype == "fp16")
    torch.manual_seed(2)
    with DrawnOnCPU(), autocast(device.type, dtype):
        output = model(**to_device(batch, device))
    scaler.scale(output.loss).backward()
    losses = torch.stack([output.loss, *output.losses.values()]).detach().float().cpu()
    gradients = {name: x.grad.float().cpu() for name, x in model.named_parameters() if x.grad is not None}
    return Pass(losses, {name: x / scaler.get_scale() for name, x in gradients.items()})


def to_device(x: Any, device: torch.device) -> Any:
    """Tensors in dictionaries."""
    if isinstance(x, dict):
        return {name: to_device(value, device) for name, value in x.items()}
    return x.to(device) if isinstance(x, Tensor) else x


def cases(
    modality_counts: tuple[int, ...], variants: Iterable[str] = VARIANTS
) -> Iterator[tuple[str, int, dict[str, Any], bool]]:
    """Name, number of modalities, changes of the configuration, whether sequences are padded."""
    for count in modality_counts:
        for fusion in FUSIONS:
            yield f"{fusion}, {count} modalities", count, {"fusion": fusion}, True
        yield f"specialised, {count} modalities", count, {"objective": "specialised"}, True
    for name in variants:
        yield name, 2, VARIANTS[name], name != "without padding"


def losses(bench: Any) -> Iterator[Step]:
    """The losses and gradients of a step."""
    for name, *case in cases(bench.size.modality_counts):
        yield name, partial(_compare_losses, bench, name, *case)
    yield "dropout", partial(_compare_dropout, bench)


def _compare_losses(bench: Any, name: str, count: int, changes: dict[str, Any], padded: bool) -> list[Line]:
    model = make_model(make_config(count, bench.size.check_width, **changes))
    batch = make_batch(model.config, padded=padded)
    found = run(deepcopy(model).to(bench.device), batch)
    return [check(name, run(model, batch).error(found), FLOAT32_ERROR, WHY_FLOAT32)]


def _compare_dropout(bench: Any) -> list[Line]:
    """Devices draw other numbers: their means are compared, and one seed with itself."""
    model = make_model(make_config(2, bench.size.check_width, dropout=0.5))
    batch = make_batch(model.config)

    @torch.no_grad()
    def draw(device: torch.device) -> Tensor:
        moved, inputs = deepcopy(model).to(device), to_device(batch, device)
        torch.manual_seed(3)
        return torch.stack([moved(**inputs).losses["task_loss"] for _ in range(bench.size.num_draws)]).cpu()

    expected, found, again = (draw(torch.device(x)) for x in ("cpu", bench.device, bench.device))
    variances = torch.stack([expected.var(), found.var()])
    of_means = (expected.mean() - found.mean()).abs() / (variances.sum() / len(found)).sqrt()
    of_spreads = variances.sqrt().diff().abs() / (variances.sum() / (2 * len(found))).sqrt()
    why = "standard errors, of mean and spread of the task loss over many draws; 5 come by chance once in 1.7 million"
    return [
        check("dropout: as much as on the CPU", float(torch.max(of_means, of_spreads)), 5.0, why),
        holds("dropout: one seed gives the same draws", torch.equal(found, again), "bit for bit"),
    ]


def mixed_precision(bench: Any) -> Iterator[Step]:
    """bf16 and fp16 autocast, the scaler, and fused Adam."""
    for dtype in DTYPES:
        for name, *case in cases(bench.size.mixed_counts, bench.size.mixed_variants):
            yield f"{name}, {dtype}", partial(_compare_mixed, bench, f"{name}, {dtype}", *case, dtype)
    yield "fused Adam", partial(_compare_adam, bench)
    for clips in (False, True):
        yield "a skipped step", partial(_skip_step, bench, clips)


def _compare_mixed(bench: Any, name: str, count: int, changes: dict[str, Any], padded: bool, dtype: str) -> list[Line]:
    model = make_model(make_config(count, bench.size.check_width, **changes))
    batch = make_batch(model.config, padded=padded)
    expected = run(model, batch)
    allowed = 3 * expected.error(run(deepcopy(model), batch, dtype)) + 0.01
    found = run(deepcopy(model).to(bench.device), batch, dtype)
    return [check(name, expected.error(found), allowed, WHY_MIXED)]


def _compare_adam(bench: Any) -> list[Line]:
    """Five steps of the package's optimizers on one device, against Adam written out on the CPU."""
    lines = []
    for name in ("adam", "adamw"):
        arguments = TrainingArguments(optimizer=name, learning_rate=0.01, weight_decay=0.1 * (name == "adamw"))
        model = make_model(make_config(2, bench.size.check_width)).to(bench.device)
        optimizer = create_optimizer(model, arguments)
        decays = {id(x): group["weight_decay"] for group in optimizer.param_groups for x in group["params"]}
        by_hand = {x: x.detach().cpu().double() for x in model.parameters()}
        first, second = ({x: torch.zeros_like(y) for x, y in by_hand.items()} for _ in range(2))
        generator = torch.Generator().manual_seed(4)
        for step in range(1, 6):
            for x, y in by_hand.items():
                gradient = torch.randn(x.shape, generator=generator)
                x.grad = gradient.to(x.device)
                first[x] = 0.9 * first[x] + 0.1 * gradient
                second[x] = 0.999 * second[x] + 0.001 * gradient.double().square()
                update = (first[x] / (1 - 0.9**step)) / ((second[x] / (1 - 0.999**step)).sqrt() + 1e-8)
                by_hand[x] = y - 0.01 * decays[id(x)] * y - 0.01 * update
            optimizer.step()
        error = max(float((x.detach().cpu() - y).abs().max()) for x, y in by_hand.items())
        why = "absolute, after steps of 0.01 on weights below 1: float32 rounds each to 6e-8"
        lines.append(check(f"{name}, fused, against the formula", error, 1e-5, why))
    return lines


def _skip_step(bench: Any, clips: bool) -> list[Line]:
    """With a gradient that overflowed, nothing may move but the scale; `clips` as training does, before the step."""
    model = make_model(make_config(2, bench.size.check_width)).to(bench.device)
    optimizer = create_optimizer(model, TrainingArguments(learning_rate=0.01))
    scaler = torch.amp.GradScaler(bench.device.type, init_scale=1024.0, growth_interval=1000)
    batch = to_device(make_batch(model.config, num_samples=2), bench.device)

    def step(overflows: bool) -> list[Tensor]:
        with autocast(bench.device.type, "fp16"):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        if overflows:
            next(model.parameters()).grad[0] = torch.inf
        if clips:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moments = [x for state in optimizer.state.values() for x in state.values()]
        return [x.detach().clone() for x in (*model.parameters(), *moments)]

    before, skipped, after = step(False), step(True), step(False)
    stays = all(map(torch.equal, before, skipped))
    moves = not torch.equal(skipped[0], after[0]) and all(x.isfinite().all() for x in after)
    how = f"skipped step {'with' if clips else 'without'} clipping"
    return [
        holds(f"{how}: weights and Adam's state stay", stays, "bit for bit"),
        holds(f"{how}: the scale is halved", scaler.get_scale() == 512.0, "1024 → 512"),
        holds(f"{how}: the next one moves", moves, "and everything is finite"),
    ]
