"""Encoding, reading and memory of the feature cache."""

import argparse
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from torch import Tensor
from torch.utils.data import DataLoader

from fl_i2moe import FLI2MoEConfig
from fl_i2moe.cache import FeatureCache, build_cache, open_cache
from fl_i2moe.cache.batching import BatchSampler, FeatureRows, create_data_loader
from fl_i2moe.data.raw import RawDataset
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.command_line import given_path
from fl_i2moe.training.loop import train
from fl_i2moe.utils.machine import keep_freed_memory

from . import measuring
from .measuring import ratios, spread, take_turns

# ---- a cache of random features ------------------------------------------------------------------------------------


@dataclass
class RandomInputs:
    inputs: dict[str, Tensor]
    annotations: list[dict[str, Any]]


@dataclass
class RandomFeatures:
    features: Tensor
    feature_mask: Tensor
    special_mask: Tensor


def seeds(values: list[int]) -> RandomInputs:
    return RandomInputs({"seeds": torch.tensor(values)}, [{} for _ in values])


@dataclass
class RandomEncoder:
    """Random sequences of up to `max_features` features, a third of them shorter."""

    max_features: int
    feature_size: int
    ragged: bool
    kind: str = "array"
    grid: tuple[int, int] | None = None
    preprocess: Callable[[list[Any]], RandomInputs] = seeds

    def encode(self, inputs: dict[str, Tensor]) -> RandomFeatures:
        generator = torch.Generator().manual_seed(int(inputs["seeds"][0]))
        size = (len(inputs["seeds"]), self.max_features)
        features = torch.randn(*size, self.feature_size, generator=generator)
        lengths = torch.full(size[:1], self.max_features)
        if self.ragged:
            lengths = torch.randint(self.max_features // 4, self.max_features * 3 // 2, size[:1], generator=generator)
        mask = torch.arange(self.max_features) < lengths[:, None]
        return RandomFeatures(features, mask, torch.zeros_like(mask))

    def identity(self) -> dict[str, Any]:
        return {"name": "random", "max_features": self.max_features, "feature_size": self.feature_size}


SHAPES = {
    "50x768": {"image": RandomEncoder(50, 768, ragged=False)},
    "49x1280+96x384": {"image": RandomEncoder(49, 1280, ragged=False), "text": RandomEncoder(96, 384, ragged=True)},
    "197x768+256x768": {"image": RandomEncoder(197, 768, ragged=False), "text": RandomEncoder(256, 768, ragged=False)},
}


def random_raw(folder: Path, num_rows: int, modalities: list[str]) -> RawDataset:
    """Raw data on disk, so that it takes no memory of the process."""
    if not folder.exists():
        columns = {name: Value("int64") for name in modalities}
        features = Features({"id": Value("string"), **columns, "labels": List(Value("float32"), length=23)})
        rows = {"id": [str(i) for i in range(num_rows)], "labels": np.zeros((num_rows, 23), np.float32).tolist()}
        seeds_of = {name: list(range(num_rows)) for name in modalities}
        Dataset.from_dict({**rows, **seeds_of}, features=features).save_to_disk(folder)
    split = load_from_disk(folder)
    label_names = [f"label {i}" for i in range(23)]
    return RawDataset(
        DatasetDict({"train": split}), dict.fromkeys(modalities, "array"), label_names, "multi_label_classification"
    )


def random_cache(folder: Path, num_rows: int, encoders: dict[str, RandomEncoder]) -> FeatureCache:
    raw = random_raw(folder / "raw", num_rows, list(encoders))
    return build_cache(raw, encoders, folder / "cache", num_workers=0, progress=False)


# ---- reading -------------------------------------------------------------------------------------------------------


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_rows", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--cache_dir", type=given_path, help="a cache to read instead of random ones (its train split)")


def reading(args: argparse.Namespace) -> None:
    """Shuffled batches from the cache, against `with_format("torch")` and against plain copies of the same bytes."""
    keep_freed_memory()  # as training does
    if args.cache_dir:
        compare_readers(str(args.cache_dir), open_cache(args.cache_dir, verify=False), args)
        return
    for name, encoders in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            compare_readers(name, random_cache(Path(folder), args.num_rows, encoders), args)


def compare_readers(title: str, cache: FeatureCache, args: argparse.Namespace) -> None:
    split, names = cache.splits["train"], list(cache.modalities)
    lengths_NM = FeatureRows(split, names).lengths()
    loader = create_data_loader(split, names, batch_size=args.batch_size, shuffle=True)
    sampler = BatchSampler(lengths_NM.sum(axis=1), args.batch_size, shuffle=True)
    columns = ["id", "labels", *(f"{name}_{kind}" for name in names for kind in ("features", "special_mask"))]
    rows = split.select_columns(columns).with_format("torch")
    widths = np.array([cache.modalities[name]["feature_size"] for name in names])
    num_bytes = int((lengths_NM * widths).sum() * 2)
    source = np.ones(num_bytes, np.uint8)
    whole, place = np.ones_like(source), np.empty(num_bytes // len(loader), np.uint8)

    def read_with_torch_format() -> None:
        for batch in sampler:  # faster than as the data set of a DataLoader, which takes batches apart
            rows[batch]

    def copy_to_one_place() -> None:
        for start in range(0, num_bytes - len(place) + 1, len(place)):
            np.copyto(place, source[start : start + len(place)])

    tasks = {
        "fl_i2moe loader": lambda: exhaust(loader),
        'with_format("torch"), not padded': read_with_torch_format,
        "plain memory copy": lambda: np.copyto(whole, source),
        # of a batch's size, which stays in the processor's cache; a loader has no such place, for a batch is held while
        # the next one is read
        "the same to one place": copy_to_one_place,
    }
    seconds = take_turns(tasks, args.repetitions)
    print(f"\nreading {title}: {len(split):,} rows, {num_bytes / 1e6:,.0f} MB, shuffled batches of {args.batch_size}")
    for name, values in seconds.items():
        rate = spread([len(split) / value for value in values], " rows/s", digits=0)
        print(f"  {name:34} {rate:40} {spread([num_bytes / value / 1e9 for value in values], ' GB/s')}")
    ours, torch_format, copy, one_place = seconds.values()
    print(
        f"  a batch of the loader             {spread([1e3 * value / len(loader) for value in ours], ' ms', digits=2)}"
    )
    print(f"  loader ÷ with_format              {spread(ratios(torch_format, ours))} (goal: 5)")
    print(f"  loader ÷ plain memory copy        {spread(ratios(copy, ours), digits=2)} (goal: 0.5)")
    print(f"  loader ÷ the same to one place    {spread(ratios(one_place, ours), digits=2)}")
    for bucket in (False, True):
        share = padding_share(lengths_NM, BatchSampler(lengths_NM.sum(1), args.batch_size, shuffle=True, bucket=bucket))
        print(f"  padding {'with' if bucket else 'without'} length buckets: {share:.1%} of the features")


def exhaust(loader: DataLoader) -> None:
    for _ in loader:
        pass


def padding_share(lengths_NM: np.ndarray, batches: BatchSampler) -> float:
    padded = sum(len(batch) * lengths_NM[batch].max(axis=0).sum() for batch in batches)
    return 1 - lengths_NM.sum() / padded


# ---- memory --------------------------------------------------------------------------------------------------------


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num_rows", type=int, default=640, help="of the small cache; the large one has ten times more"
    )


def memory(args: argparse.Namespace) -> None:
    """Peak anonymous memory (not mapped pages) and time of building, reading and training; with ten times more rows."""
    encoders = SHAPES["49x1280+96x384"]
    tasks = {"building": build_all, "reading": read_all, "training": train_all}
    measured: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in tasks}
    numbers = (args.num_rows, 10 * args.num_rows)
    for num_rows in numbers:
        with tempfile.TemporaryDirectory() as folder:
            random_raw(Path(folder) / "raw", num_rows, list(encoders))
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
            for _ in range(args.repetitions):
                for path in sorted((Path(folder) / "cache").rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                for name, task in tasks.items():
                    runs[name].append(peak_memory_and_time(task, Path(folder), num_rows))
            for name, values in runs.items():
                measured[name].append(values)
    for name, runs_of_both in measured.items():
        print(f"\n{name} {numbers[0]:,} and {numbers[1]:,} rows of 49x1280 + 96x384")
        small, large = ([peak for peak, _ in values] for values in runs_of_both)
        growth = spread(ratios(large, small), digits=3)
        print(f"  peak anonymous memory: {spread(small, ' MB')} and {spread(large, ' MB')}: {growth} (goal: 1.1)")
        small, large = (
            [1e3 * seconds / num_rows for _, seconds in values]
            for values, num_rows in zip(runs_of_both, numbers, strict=True)
        )
        growth = spread(ratios(large, small), digits=3)
        print(f"  time per film: {spread(small, ' ms', 2)} and {spread(large, ' ms', 2)}: {growth} (goal: 1.1)")


def build_all(folder: Path, num_rows: int) -> None:
    random_cache(folder, num_rows, SHAPES["49x1280+96x384"])


def read_all(folder: Path, num_rows: int) -> None:
    cache = open_cache(folder / "cache")
    exhaust(create_data_loader(cache.splits["train"], list(cache.modalities), batch_size=32, shuffle=True))


def train_all(folder: Path, num_rows: int) -> None:
    """One epoch of a small mixture."""
    keep_freed_memory()  # as training does
    cache = open_cache(folder / "cache")
    cache.splits["validation"] = cache.splits["train"].select(range(64))
    config = FLI2MoEConfig(
        modalities={name: {k: x[k] for k in ("feature_size", "max_features")} for name, x in cache.modalities.items()},
        num_labels=len(cache.label_names),
        hidden_size=32,
        num_attention_heads=1,
        num_fusion_layers=1,
    )
    arguments = TrainingArguments(num_epochs=1, bucket_by_length=True)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    with tempfile.TemporaryDirectory() as run_dir:
        train(config, cache, arguments, run_dir, accelerator, seed=0, metric="micro_f1")


def peak_memory_and_time(task: Callable[..., None], *args: Any) -> tuple[float, float]:
    """Megabytes of anonymous memory that a fresh process holds at most while it does the task, and its seconds."""
    context = multiprocessing.get_context("spawn")
    seconds = context.Value("d")
    process = context.Process(target=_timed, args=(seconds, measuring.clock, task, *args))
    process.start()
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.is_alive():
        found = re.search(r"RssAnon:\s*(\d+) kB", status.read_text())
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.005)
    if process.exitcode:
        raise SystemExit(f"{task.__name__} failed")
    return peak / 1024, seconds.value


def _timed(seconds: Any, clock: Callable[[], float], task: Callable[..., None], *args: Any) -> None:
    if clock is time.process_time:
        measuring.use_processor_time()
    start = clock()
    task(*args)
    seconds.value = clock() - start


# ---- encoding ------------------------------------------------------------------------------------------------------


def add_encoding_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_dir", type=given_path, help="a folder in the layout of MM-IMDb; default: the built-in sample"
    )
    parser.add_argument("--image_encoder", default="sample:efficientnet-lite0")
    parser.add_argument("--text_encoder", default="sample:minilm")
    parser.add_argument("--max_length", type=int, default=96)
    parser.add_argument("--num_films", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")


def encoding(args: argparse.Namespace) -> None:
    """Building a cache from pictures and texts on disk, against the encoders alone on inputs that lie ready."""
    from fl_i2moe.data.mmimdb import load_mmimdb
    from fl_i2moe.model.encoders import load_encoder
    from fl_i2moe.model.sample_encoders import resolve_encoder

    keep_freed_memory()  # as a run does
    with tempfile.TemporaryDirectory() as folder:
        data_dir = args.data_dir
        if data_dir is None:
            from fl_i2moe.data.planted import write_planted

            data_dir = write_planted(Path(folder) / "planted", num_films=args.num_films * 2)
        raw = load_mmimdb(data_dir)
        train = raw.splits["train"]
        raw.splits = DatasetDict({"train": train.select(range(min(args.num_films, len(train))))})
        names = {"image": args.image_encoder, "text": args.text_encoder}
        kind_options = {"image": {}, "text": {"max_length": args.max_length}}
        encoders = {
            kind: load_encoder(resolve_encoder(name), kind, device=args.device, **kind_options[kind])
            for kind, name in names.items()
        }
        rows = raw.splits["train"]
        batches = [
            {kind: encoders[kind].preprocess(rows[start : start + args.batch_size][kind]).inputs for kind in encoders}
            for start in range(0, len(rows), args.batch_size)
        ]
        count = iter(range(10**6))

        def encode_ready() -> None:
            for batch in batches:
                for kind, inputs in batch.items():
                    encoders[kind].encode(inputs).features.cpu()

        def build() -> None:
            cache_dir = Path(folder) / f"cache-{next(count)}"
            options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "progress": False}
            build_cache(raw, encoders, cache_dir, **options)

        seconds = take_turns({"encoders": encode_ready, "cache": build}, args.repetitions)
    print(f"\nencoding {len(rows):,} films with {args.image_encoder} and {args.text_encoder}")
    labels = {"encoders": "encoders on ready inputs", "cache": "build_cache from files"}
    for name, values in seconds.items():
        print(f"  {labels[name]:26} {spread([len(rows) / value for value in values], ' films/s')}")
    print(
        f"  share                      {spread(ratios(seconds['encoders'], seconds['cache']), digits=3)} (goal: 0.95)"
    )
