"""How fast a device trains, reads, encodes and explains, beside what it allows and beside other code."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_i2moe import FLI2MoEModel
from fl_i2moe.cache import FeatureCache, build_cache
from fl_i2moe.cache.batching import create_data_loader
from fl_i2moe.data.raw import RawDataset
from fl_i2moe.explain.explain_sample import explain
from fl_i2moe.explain.feature_game import feature_game
from fl_i2moe.explain.interactions import ESTIMATORS, cross_modal_pairs
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.kind import FrozenEncoder
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.loop import create_optimizer
from fl_i2moe.utils.machine import usable_cores

from . import interactions, train_step
from .features import RandomEncoder, random_cache
from .measuring import ratios, seconds_of, take_turns
from .random_encoders import save_encoders, write_films
from .report import Line, Step, holds, measured, skipped

MATRIX_NOTE = "a plain product of square bf16 matrices on this device"
NEEDS_GPU = "only a GPU has this"
FASTER = "more than 1: faster with it"


def settings(bench: Any, **changes: Any) -> argparse.Namespace:
    """Of a training step, as `benchmark.py train_step` takes them."""
    names = ("image_features", "text_features", "batch_size", "hidden_size")
    values = {name: getattr(bench.size, name) for name in names}
    values |= {"level": "feature", "dropout": 0.5, "padded": False, "device": bench.device}
    return argparse.Namespace(**{**values, **changes})


def compare(bench: Any, tasks: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    return take_turns(tasks, bench.args.repetitions, bench.device, bench.size.steps)


def milliseconds(name: str, seconds: list[float]) -> Line:
    return measured(name, [1e3 * x for x in seconds], "ms")


# ---- the training step ---------------------------------------------------------------------------------------------


def steps(bench: Any) -> Iterator[Step]:
    """A step of the mixture in each number format, against matrix products, the dense model and other code."""
    rate: list[float] = []
    yield "matrix rate", partial(_measure_rate, bench, rate)
    for level, dtype in [*(("feature", dtype) for dtype in bench.size.dtypes), ("pooled", "bf16")]:
        yield f"{level}, {dtype}", partial(_measure_steps, bench, rate, level, dtype)
    for dtype in bench.size.dtypes:
        for padded in (False, True):
            yield f"attention of {dtype}{', padded' * padded}", partial(_profile, bench, dtype, padded)


def _measure_rate(bench: Any, rate: list[float]) -> list[Line]:
    size = bench.size.matrix_size
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    tasks = {"product": lambda: torch.mm(a, b, out=out)}
    seconds = take_turns(tasks, bench.args.repetitions, bench.device, 10 * bench.size.steps)["product"]
    found = measured("matrix rate, bf16", [2 * size**3 / x / 1e12 for x in seconds], "TFLOP/s", note=MATRIX_NOTE)
    rate.append(float(found.value or 0))
    return [found]


def _measure_steps(bench: Any, rate: list[float], level: str, dtype: str) -> list[Line]:
    args, what = settings(bench, level=level), f"{level}, {dtype}"
    tasks = {
        name: train_step.make_step(train_step.make_model(args, architecture), args, dtype)
        for name, architecture in (("mixture", "moe"), ("dense model", "dense"))
    }
    codes = {"published code": bench.args.published_code, "authors' code": bench.args.authors_code}
    if level == "feature" and dtype != "fp16":  # in which neither of them was written
        tasks |= {name: train_step.other_step(args, dtype, code) for name, code in codes.items() if code}
    seconds = compare(bench, tasks)
    lines = [milliseconds(f"{what}: step of the {name}", x) for name, x in seconds.items()]
    lines += _shares(args, what, seconds, rate)
    for name in codes:
        if name in seconds:
            goal = 8 if (name, dtype) == ("published code", "bf16") else None
            faster = ratios(seconds[name], seconds["mixture"])
            lines.append(measured(f"{what}: {name} ÷ mixture", faster, at_least=goal))
        elif what == "feature, bf16":
            option = f"--{name.split()[0].removesuffix(chr(39))}_code"
            lines.append(skipped(f"{what}: {name} ÷ mixture", f"{option} names no checkout of it"))
    note = "of the processor; where it is the step's, the GPU waits for it"
    host = [1e3 * _host_seconds(bench, tasks["mixture"])]
    lines.append(measured(f"{what}: time to start the mixture's kernels", host, "ms", note=note))
    if bench.device.type != "cuda":
        return [*lines, skipped(f"{what}: peak memory", NEEDS_GPU)]
    return lines + [_peak_memory(f"{what}: peak memory of the {name}", task) for name, task in tasks.items()]


def _shares(args: argparse.Namespace, what: str, seconds: dict[str, list[float]], rate: list[float]) -> list[Line]:
    """Of the matrix rate, and beside the dense model's step."""
    tera = [
        train_step.step_flops(train_step.make_config(args, architecture), args.batch_size) / 1e12
        for architecture in ("moe", "dense")
    ]
    lines = []
    if rate:  # it could be measured
        shares = [100 * tera[0] / x / rate[0] for x in seconds["mixture"]]
        goal, note = 40 if what == "feature, bf16" else None, f"{tera[0]:.3g} TFLOP a step"
        lines.append(measured(f"{what}: share of the bf16 matrix rate", shares, "%", at_least=goal, note=note))
    slower = ratios(seconds["mixture"], seconds["dense model"])
    return [*lines, measured(f"{what}: mixture ÷ dense", slower, note=f"by operations {tera[0] / tera[1]:.1f}")]


def _host_seconds(bench: Any, step: Callable[[], None]) -> float:
    """Until the step's kernels are on their way."""
    synchronize(bench.device)
    start = time.perf_counter()
    for _ in range(bench.size.steps):
        step()
    seconds = (time.perf_counter() - start) / bench.size.steps
    synchronize(bench.device)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(name: str, step: Callable[[], None]) -> Line:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return measured(name, [peak], "GiB", note="beside weights and Adam's state")


def _profile(bench: Any, dtype: str, padded: bool) -> list[Line]:
    """Which of PyTorch's attentions a step runs, CPUs train with one written by hand; and what takes its time."""
    args, what = settings(bench, padded=padded), f"{dtype}{', padded' * padded}"
    step = train_step.make_step(train_step.make_model(args, "moe"), args, dtype)
    step()
    events = train_step.profile(step, bench.size.steps)
    names = {event.name for event in events if event.name.startswith("aten::_scaled_dot_product")}
    found = ", ".join(sorted(name.removeprefix("aten::_") for name in names)) or "none of PyTorch's"
    shares = train_step.shares_of(events).items()
    of_time = [measured(f"{what}: share of a step's time: {part}", [100 * share], "%") for part, share in shares]
    return [Line(f"{what}: attention", found), *of_time]


# ---- compiled, and as one graph ------------------------------------------------------------------------------------


def compiled(bench: Any) -> Iterator[Step]:
    """`torch.compile` and CUDA graphs, on and off."""
    for level in ("feature", "pooled"):
        if bench.device.type == "cuda":
            yield f"{level}, CUDA graph", partial(_measure_graph, bench, level)
        else:
            yield f"{level}, CUDA graph", partial(_skip, f"{level}, CUDA graph")
    for level in ("feature", "pooled"):
        yield f"{level}, torch.compile", partial(_measure_compiled, bench, level)


def _skip(name: str) -> list[Line]:
    return [skipped(name, NEEDS_GPU)]


def _measure_compiled(bench: Any, level: str) -> list[Line]:
    args, what = settings(bench, level=level), f"{level}, bf16, torch.compile"
    plain = train_step.make_step(train_step.make_model(args, "moe"), args, "bf16")
    model = torch.compile(train_step.make_model(args, "moe"), backend=bench.size.compiler, dynamic=False)
    step = train_step.make_step(model, args, "bf16")
    try:
        start = time.perf_counter()
        step()
        synchronize(bench.device)
        first = time.perf_counter() - start
        seconds = compare(bench, {"compiled": step, "plain": plain})
    finally:
        torch.compiler.reset()
    return [
        measured(f"{what}: first step", [first], "s"),
        milliseconds(f"{what}: step", seconds["compiled"]),
        measured(f"{what}: plain ÷ compiled", ratios(seconds["plain"], seconds["compiled"]), note=FASTER),
    ]


def _measure_graph(bench: Any, level: str) -> list[Line]:
    """Forward, backward and Adam as one graph: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""
    args, what = settings(bench, level=level), f"{level}, bf16, CUDA graph"
    plain = train_step.make_step(train_step.make_model(args, "moe"), args, "bf16")
    model = train_step.make_model(args, "moe")
    optimizer = create_optimizer(model, TrainingArguments())
    for group in optimizer.param_groups:
        group["capturable"] = True
    inputs, labels = train_step.make_inputs(args)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(2):
        graph.replay()
        losses.append(loss.item())
    is_sound = bool(np.isfinite(losses).all()) and losses[0] != losses[1]
    seconds = compare(bench, {"graph": graph.replay, "plain": plain})
    return [
        holds(f"{what}: trains", is_sound, "finite losses, other noise at every replay"),
        milliseconds(f"{what}: step", seconds["graph"]),
        measured(f"{what}: plain ÷ graph", ratios(seconds["plain"], seconds["graph"]), note=FASTER),
    ]


# ---- the loader ----------------------------------------------------------------------------------------------------


def loading(bench: Any) -> Iterator[Step]:
    """Whether a step ever waits for batches of the cache, as training reads them."""
    size = bench.size
    lengths = {"image": size.image_features, "text": size.text_features}
    encoders = {name: RandomEncoder(length, train_step.ENCODER_WIDTH, ragged=False) for name, length in lengths.items()}
    cache = random_cache(bench.folder / "loading", size.rows, encoders)
    for num_workers in (0, 2) if not size.is_tiny else (0,):
        yield f"{num_workers} workers", partial(_measure_loading, bench, cache, num_workers)


def _measure_loading(bench: Any, cache: FeatureCache, num_workers: int) -> list[Line]:
    args, split = settings(bench), cache.splits["train"]
    model = train_step.make_model(args, "moe")
    optimizer = create_optimizer(model, TrainingArguments())
    loader = bench.accelerator.prepare(
        create_data_loader(
            split,
            list(cache.modalities),
            batch_size=args.batch_size,
            shuffle=True,
            num_workers=num_workers,
            pin_memory=bench.device.type == "cuda",
        )
    )

    def step(batch: dict[str, Any]) -> None:
        with train_step.autocast(bench.device.type, "bf16"):
            loss = model(features=batch["features"], feature_masks=batch["feature_masks"], labels=batch["labels"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # which training does, too, to log it

    def epoch() -> None:
        for batch in loader:
            step(batch)

    batch = next(iter(loader))

    def same_batch() -> None:
        for _ in range(len(loader)):
            step(batch)

    seconds = take_turns({"loader": epoch, "same batch": same_batch}, bench.args.repetitions, bench.device)
    waits = [100 * (1 - 1 / x) for x in ratios(seconds["loader"], seconds["same batch"])]
    what = f"loader with {num_workers} workers"
    return [
        milliseconds(f"{what}: a step with its batch", [x / len(loader) for x in seconds["loader"]]),
        measured(
            f"{what}: share of the time in which the step waits",
            waits,
            "%",
            at_most=2,
            note=f"batches of {args.batch_size}",
        ),
    ]


# ---- encoding ------------------------------------------------------------------------------------------------------


def encoding(bench: Any) -> Iterator[Step]:
    """A cache from poster files and texts, with encoders of random weights in bf16, against the bare models."""
    size = bench.size
    folders = save_encoders(bench.folder / "encoders", size.is_tiny)
    options = {"image": {}, "text": {"max_length": size.text_features}}
    encoders = {
        name: load_encoder(folder, name, device=bench.device, dtype=torch.bfloat16, **options[name])
        for name, folder in folders.items()
    }
    posters = write_films(bench.folder / "films", size.posters, 2 * size.text_features, train_step.LABELS)
    rows = posters.splits["train"].select([number % size.posters for number in range(size.films)])
    ids = [str(number) for number in range(size.films)]
    rows = rows.remove_columns("id").add_column("id", ids)
    posters.splits["train"] = rows.select_columns(["id", "image", "text", "labels"])
    yield "encoding", partial(_measure_encoding, bench, posters, encoders)


def _measure_encoding(bench: Any, raw: RawDataset, encoders: dict[str, FrozenEncoder]) -> list[Line]:
    size, rows = bench.size, raw.splits["train"]
    batch_size = min(32, size.films)  # of `build_cache`
    some = rows[:batch_size]
    ready = {name: encoder.preprocess(some[name]).inputs for name, encoder in encoders.items()}
    side = encoders["image"].preprocess.input_size
    pixels = torch.randn(batch_size, 3, *side, device=bench.device, dtype=torch.bfloat16)
    ids = ready["text"]["input_ids"].to(bench.device)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def bare() -> None:
        encoders["image"].model(pixel_values=pixels)
        encoders["text"].model(input_ids=ids, attention_mask=mask)

    def encode() -> None:
        for name, encoder in encoders.items():
            encoder.encode(ready[name]).features.to("cpu", torch.float16)

    number = iter(range(10**6))
    num_workers = 0 if size.is_tiny else max(1, usable_cores() - 2)

    def build() -> None:
        folder = bench.folder / f"encoded-{next(number)}"
        build_cache(raw, encoders, folder, num_workers=num_workers, progress=False)

    seconds = take_turns({"bare": bare, "encode": encode}, bench.args.repetitions, bench.device, size.steps)
    built = [seconds_of(build, bench.device) for _ in range(1 if size.is_tiny else 2)]
    rates = {name: [batch_size / x for x in values] for name, values in seconds.items()}
    rates["cache"] = [size.films / x for x in built]
    bare_rate = float(np.median(rates["bare"]))
    names = {
        "bare": "bare encoders, inputs on the device",
        "encode": "encode, from and to the processor's memory",
        "cache": "build_cache, from files to files",
    }
    lines = [measured(f"{title}", rates[name], "films/s") for name, title in names.items()]
    for name in ("encode", "cache"):
        goal = 95 if name == "cache" else None
        note = f"{num_workers} workers, {size.films} films" if name == "cache" else ""
        shares = [100 * x / bare_rate for x in rates[name]]
        lines.append(measured(f"{names[name]}: share of the bare encoders", shares, "%", at_least=goal, note=note))
    return lines


# ---- interactions --------------------------------------------------------------------------------------------------

NUM_COALITIONS = 16


def explaining(bench: Any) -> Iterator[Step]:
    """Pairs of features of a film by one expert, and a film's whole explanation, in float32."""
    args = argparse.Namespace(
        image_features=bench.size.image_features,
        text_features=bench.size.text_features,
        hidden_size=bench.size.hidden_size,
    )
    model = interactions.make_model(args).to(bench.device)
    yield "260 pairs", partial(_measure_pairs, bench, model)
    yield "an explanation", partial(_measure_explanation, bench, model)


def _measure_pairs(bench: Any, model: FLI2MoEModel) -> list[Line]:
    inputs, players = interactions.make_inputs(model)
    pairs = cross_modal_pairs([player.modality for player in players])
    num_coalitions = 1 if bench.size.is_tiny else NUM_COALITIONS
    asked = np.random.default_rng(0).random((bench.size.num_calls, len(players))) < 0.5

    def play() -> None:
        game = feature_game(model, inputs, interactions.EXPERT, interactions.TARGET, players)
        ESTIMATORS["shared_context"](game, len(players), pairs, num_coalitions, 0)

    def loop() -> None:
        interactions.plain_loop(model, inputs, players, asked, only_expert=False)

    seconds = take_turns({"game": play, "loop": loop}, bench.args.repetitions, bench.device)
    num_values = 4 * num_coalitions * len(pairs)
    by_loop = [x / len(asked) * num_values for x in seconds["loop"]]
    hours = [interactions.MMIMDB_TEST_SAMPLES * x / 3600 for x in seconds["game"]]
    what = f"{len(pairs)} pairs × {num_coalitions} coalitions"
    return [
        measured(what, seconds["game"], "s", note="one expert and one class of one film"),
        measured(
            f"{what}: loop ÷ ours", ratios(by_loop, seconds["game"]), note=f"{num_values:,} values, {len(asked)} timed"
        ),
        measured(f"{what}: all {interactions.MMIMDB_TEST_SAMPLES:,} test films of MM-IMDb", hours, "h", at_most=1),
    ]


def _measure_explanation(bench: Any, model: FLI2MoEModel) -> list[Line]:
    rng, row = np.random.default_rng(0), {"id": "film"}
    for name, modality in model.config.modalities.items():
        length = modality["max_features"]
        row[f"{name}_features"] = rng.normal(size=(length, modality["feature_size"])).astype(np.float32)
        row[f"{name}_special_mask"] = np.arange(length) == 0
    share = 0.1 if bench.size.is_tiny else 0.3
    num_coalitions = 1 if bench.size.is_tiny else NUM_COALITIONS
    options: Any = {"units": "features", "universe_share": share, "num_coalitions": num_coalitions}
    found = explain(model, row, 0, **options)
    num_pairs = len(found.pair_tables["synergy"].pairs)
    seconds = [seconds_of(lambda: explain(model, row, 0, **options), bench.device)]
    hours = [interactions.MMIMDB_TEST_SAMPLES * x / 3600 for x in seconds]
    note = f"importance, and {num_pairs:,} pairs × {num_coalitions} of two experts: the paper's 30 % of all features"
    return [
        measured("explain() of one film's features", seconds, "s", note=note),
        measured("explain() of all test films of MM-IMDb, one class", hours, "h"),
    ]
