"""A training step: its time, its share of what the machine's matrix products allow, and the dense model's beside it."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.loop import create_optimizer
from fl_i2moe.utils.machine import keep_freed_memory

from .measuring import ratios, spread, take_turns
from .other_code import OtherCode, published_code

LABELS, ENCODER_WIDTH = 23, 768
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--level", choices=["feature", "pooled"], default="feature")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_features", type=int, default=49)
    parser.add_argument("--text_features", type=int, default=80)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--dtypes", nargs="+", choices=["bf16", "float32"], default=["bf16", "float32"])
    parser.add_argument("--padded", action="store_true", help="texts of different lengths, half of --text_features on")
    parser.add_argument("--profile", action="store_true", help="also a table of what the mixture's step spends time on")
    parser.add_argument(
        "--reference", type=published_code, help="a checkout of the published I²MoE code, to run beside ours"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> None:
    """A training step against the machine's matrix products, the dense baseline, and the published code."""
    keep_freed_memory()  # as training does; the published code has it, too
    for dtype in args.dtypes:
        tasks: dict[str, Callable[[], None]] = {
            "mixture": make_step(make_model(args, "moe"), args, dtype),
            "dense": make_step(make_model(args, "dense"), args, dtype),
            "product": product(args, dtype),
        }
        if args.reference:
            tasks["published"] = other_step(args, dtype, args.reference)
        seconds = take_turns(tasks, args.repetitions, torch.device(args.device))
        _report(args, dtype, seconds)
        if args.profile:
            _print_profile(tasks["mixture"])


def _report(args: argparse.Namespace, dtype: str, seconds: dict[str, list[float]]) -> None:
    shape = "2 × 4 pseudo-patches"
    if args.level == "feature":
        shape = f"{args.image_features} + {args.text_features} features"
    print(f"\ntraining step, {args.level}, batch {args.batch_size}, {shape}, hidden {args.hidden_size}, {dtype}")
    for name in ("mixture", "dense", "published"):
        if name in seconds:
            print(f"  {name:24} {spread([1e3 * value for value in seconds[name]], ' ms')}")
    gflops = step_flops(make_config(args, "moe"), args.batch_size) / 1e9
    dense_flops = step_flops(make_config(args, "dense"), args.batch_size)
    rates = [product_flops(args) / value / 1e9 for value in seconds["product"]]
    shares = [gflops / step / rate for step, rate in zip(seconds["mixture"], rates, strict=True)]
    print(f"  product of its sizes     {spread(rates, ' GFLOP/s', digits=0)}")
    print(f"  {gflops:.1f} GFLOP a step: share of the product's rate {spread(shares, digits=2)}")
    ratio = spread(ratios(seconds["mixture"], seconds["dense"]))
    print(f"  mixture ÷ dense          {ratio}, by operations {1e9 * gflops / dense_flops:.1f}")
    if "published" in seconds:
        print(f"  published ÷ mixture      {spread(ratios(seconds['published'], seconds['mixture']), digits=2)}")


def step_flops(config: FLI2MoEConfig, batch_size: int) -> float:
    """
    Floating-point operations in the matrix products of one step, forward and backward (twice the forward).

    What is the same for all experts or views counts once: the projections, and q, k, v of the first layer, whose inputs
    are the features and, once each, the noise that replaces them.
    """
    hidden, experts = config.hidden_size, config.num_experts
    intermediate = config.intermediate_size or 2 * hidden
    views = 1 if config.architecture == "dense" else 1 + config.num_modalities
    if config.level == "pooled":
        lengths = [config.num_patches] * config.num_modalities
        widths = [-(-m["feature_size"] // config.num_patches) for m in config.modalities.values()]
    else:
        lengths = [m["max_features"] for m in config.modalities.values()]
        widths = [m["feature_size"] for m in config.modalities.values()]
    length = sum(lengths)
    tokens = experts * views * batch_size * length
    qkv, rest = 3 * hidden**2, hidden**2 + 2 * hidden * intermediate + 2 * length * hidden
    distinct = experts * batch_size * length * min(views, 2)
    layers = config.num_fusion_layers
    products = distinct * qkv + (layers - 1) * tokens * qkv + layers * tokens * rest
    projections = sum(batch_size * t * d * hidden for t, d in zip(lengths, widths, strict=True))
    return 2 * (3 * products + 2 * projections)


def make_config(args: argparse.Namespace, architecture: str) -> FLI2MoEConfig:
    return FLI2MoEConfig(
        modalities={
            "image": {"feature_size": ENCODER_WIDTH, "max_features": args.image_features},
            "text": {"feature_size": ENCODER_WIDTH, "max_features": args.text_features},
        },
        level=args.level,
        architecture=architecture,
        num_labels=LABELS,
        hidden_size=args.hidden_size,
        attention_dropout=args.dropout,
        residual_dropout=args.dropout,
        activation_dropout=args.dropout,
    )


def make_model(args: argparse.Namespace, architecture: str) -> FLI2MoEModel:
    torch.manual_seed(0)
    return FLI2MoEModel(make_config(args, architecture)).to(args.device).train()


def _features(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    lengths = {"image": args.image_features, "text": args.text_features}
    return {
        name: torch.randn(args.batch_size, length, ENCODER_WIDTH, device=args.device)
        for name, length in lengths.items()
    }


def make_inputs(args: argparse.Namespace) -> tuple[dict[str, Any], torch.Tensor]:
    """What the model takes, and labels."""
    features = _features(args)
    masks = {name: torch.ones(x.shape[:2], dtype=torch.bool, device=args.device) for name, x in features.items()}
    if args.padded:
        lengths = torch.linspace(args.text_features / 2, args.text_features, args.batch_size, device=args.device)
        masks["text"] = torch.arange(args.text_features, device=args.device) < lengths.round()[:, None]
    labels = torch.randint(0, 2, (args.batch_size, LABELS), device=args.device).float()
    return {"features": features, "feature_masks": masks if args.padded else None}, labels


def make_step(model: Callable[..., Any], args: argparse.Namespace, dtype: str) -> Callable[[], None]:
    inputs, labels = make_inputs(args)
    optimizer = create_optimizer(model, TrainingArguments())
    return training_step(optimizer, lambda: model(**inputs, labels=labels).loss, args.device, dtype)


def autocast(device_type: str, dtype: str) -> torch.autocast:
    """Mixed precision by the names that Accelerate gives it; none in float32."""
    return torch.autocast(device_type, DTYPES.get(dtype), enabled=dtype in DTYPES)


def training_step(
    optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], device: str, dtype: str
) -> Callable[[], None]:
    kind = torch.device(device).type
    scaler = torch.amp.GradScaler(kind, enabled=dtype == "fp16")

    def step() -> None:
        with autocast(kind, dtype):
            value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def product_flops(args: argparse.Namespace) -> float:
    return 2 * _product_rows(args) * args.hidden_size * 2 * args.hidden_size * 4 * 10


def _product_rows(args: argparse.Namespace) -> int:
    length = 8 if args.level == "pooled" else args.image_features + args.text_features
    return 3 * args.batch_size * length


def product(args: argparse.Namespace, dtype: str) -> Callable[[], None]:
    """Ten products of the feed-forward's sizes, for four experts."""
    number_format = torch.bfloat16 if dtype == "bf16" else torch.float32
    rows = torch.randn(4, _product_rows(args), args.hidden_size, device=args.device, dtype=number_format)
    weight = torch.randn(4, 2 * args.hidden_size, args.hidden_size, device=args.device, dtype=number_format)
    output = torch.empty(4, rows.shape[1], 2 * args.hidden_size, device=args.device, dtype=number_format)

    def multiply() -> None:
        for _ in range(10):
            torch.bmm(rows, weight.mT, out=output)

    return multiply


# ---- where the time goes -------------------------------------------------------------------------------------------

PARTS = {
    "attention": ("_SelfAttention", "scaled_dot_product"),  # with its own products, masks and copies
    "optimizer": ("Optimizer.step", "_fused_adam"),
    "products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"),
    "random numbers": ("aten::random_", "aten::randn", "aten::normal_", "native_dropout"),
    "normalisation": ("layer_norm",),
    "GELU": ("gelu",),
    "copies": ("aten::copy_", "aten::cat", "aten::clone"),
    "multiplication, mostly by dropout's masks": ("aten::mul", "aten::ge_"),
}
"""What counts as what, by parts of the names of an operation and of those that called it; the first one that fits."""


def _print_profile(step: Callable[[], None]) -> None:
    print("  | part of the step, under a profiler | share |\n  |---|---|")
    for part, share in shares_of(profile(step)).items():
        print(f"  | {part} | {share:.1%} |")


def profile(step: Callable[[], None], num_steps: int = 3) -> list[Any]:
    """The operations of so many steps."""
    with torch.profiler.profile() as profiler:
        for _ in range(num_steps):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    # a kernel's time is told twice: as its own event, and with the operation that started it
    return [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU]


def shares_of(events: list[Any]) -> dict[str, float]:
    """Part of a step → its share of the time, on a GPU of the time that kernels run; the largest first."""
    on_gpu = any(event.self_device_time_total for event in events)
    seconds = dict.fromkeys([*PARTS, "everything else"], 0.0)
    for event in events:
        seconds[_part_of(event)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {part: x / sum(seconds.values()) for part, x in sorted(seconds.items(), key=lambda item: -item[1])}


def _part_of(event: Any) -> str:
    callers = [event.name]
    while event.cpu_parent is not None:
        event = event.cpu_parent
        callers.append(event.name)
    for part, names in PARTS.items():
        if any(name in caller for caller in callers for name in names):
            return part
    return "everything else"


# ---- other code ----------------------------------------------------------------------------------------------------


def other_step(args: argparse.Namespace, dtype: str, code: OtherCode) -> Callable[[], None]:
    """
    The step of a checkout of published code on inputs that are already projected, with our projections before it.
    """
    lengths = [4, 4] if args.level == "pooled" else [args.image_features, args.text_features]
    mixture = code.mixture(lengths, args.hidden_size, LABELS, args.dropout)
    stems = make_model(args, "moe").stems
    model = nn.ModuleList([mixture, stems]).to(args.device).train()
    features = _features(args)
    labels = torch.randint(0, 2, (args.batch_size, LABELS), device=args.device).float()

    def loss() -> torch.Tensor:
        inputs = [stem(x, None) for stem, x in zip(stems, features.values(), strict=True)]
        logits, losses = code.call(mixture, inputs)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels) + 0.5 * sum(losses) / len(losses)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)  # as it is published
    return training_step(optimizer, loss, args.device, dtype)
