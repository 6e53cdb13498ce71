"""A tiny model with tiny frozen encoders, raw samples for it, and a folder that looks like the Hub's cache."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from packaging.requirements import Requirement
from tiny_encoders import MAKERS, WORDS, noise
from tiny_models import make_config, make_model

from fl_i2moe import FLI2MoEPipeline, FLI2MoEProcessor
from fl_i2moe.cache import build_cache
from fl_i2moe.cache.fitting import fit_encoders
from fl_i2moe.data.raw import RawDataset
from fl_i2moe.metrics.figures import save_statistics_figures
from fl_i2moe.metrics.statistics import compute_statistics
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.kinds import KINDS
from fl_i2moe.training.calibration import calibrate, measure
from fl_i2moe.training.experiment import summarise_runs
from fl_i2moe.training.loop import Predictions
from fl_i2moe.utils.files import write_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = ["Drama", "Comedy", "Thriller"]
ARRAY_WIDTH = 4


def save_encoder(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    for part in MAKERS[name]():
        part.save_pretrained(folder)
    return folder


def make_raw(folder: Path, num_samples: int = 5, modalities=None, splits=("test",)) -> RawDataset:
    """Pictures of different sizes as PNG, texts and arrays of different lengths, columns of a table."""
    modalities = modalities or {"text": "text", "image": "image"}
    rows = []
    for i in range(num_samples):
        row = {"id": f"sample-{i}", "labels": [float(i % 2), 1.0, 0.0]}
        for place, (name, kind) in enumerate(modalities.items()):
            if kind == "image":
                path = folder / f"{name}-{i}.png"
                noise(20 + 7 * i, 40 - 3 * i, seed=10 * place + i).save(path)
                row[name] = {"path": str(path), "bytes": None}
            elif kind == "array":
                row[name] = np.random.default_rng(i).normal(5, 3, (1 + i % 3, ARRAY_WIDTH)).astype(np.float32).tobytes()
            elif kind == "tabular":
                row[name] = json.dumps({"price": 3.5 * i, "colour": "red" if i % 2 else "blüe", "used": i > 2})
            else:
                row[name] = " ".join(WORDS[: 2 + i])
        rows.append(row)
    columns = {name: KINDS[kind].raw_type for name, kind in modalities.items()}
    features = Features(
        {"id": Value("string"), **Features.from_dict(columns), "labels": List(Value("float32"), length=3)}
    )
    data = DatasetDict({split: Dataset.from_list(rows, features=features) for split in splits})
    sizes = {name: ARRAY_WIDTH for name, kind in modalities.items() if kind == "array"}
    return RawDataset(data, modalities, LABELS, "multi_label_classification", feature_sizes=sizes)


def make_published(folder: Path, modalities=None, names=None, splits=False, **changes):
    """
    A model on tiny encoders, its raw samples and their feature cache.

    Args:
        names: modality → what its encoder is called, where that is not its folder.
        splits: whether there are all three, which have the same samples.
    """
    raw = make_raw(folder, modalities=modalities, splits=("train", "validation", "test") if splits else ("test",))
    kinds = {"image": "vit", "text": "roberta"}
    encoded = {name: kind for name, kind in raw.modalities.items() if kind in kinds}
    folders = {name: save_encoder(kinds[kind], folder / f"encoder-{name}") for name, kind in encoded.items()}
    encoders: dict[str, Any] = {
        name: load_encoder(
            folders[name],
            kind,
            name=(names or {}).get(name),
            **({"max_length": 9} if kind == "text" else {}),
            special_features=changes.pop("special_features", "keep"),
        )
        for name, kind in encoded.items()
    }
    encoders |= fit_encoders(raw)
    cache = build_cache(raw, encoders, folder / "cache", progress=False, num_workers=0)
    config = make_config(
        modalities={
            name: {key: x[key] for key in ("feature_size", "max_features")} for name, x in cache.modalities.items()
        },
        encoders={name: x["encoder"] for name, x in cache.modalities.items()},
        **{
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: index for index, label in enumerate(LABELS)},
            **changes,
        },
    )
    return make_model(config), raw, cache


def put_into_hub_cache(source: Path, home: Path, repo_id: str, commit: str = COMMIT, repo_type: str = "model") -> None:
    """Makes a folder look as if it had been fetched from the Hub, at `commit` of branch main."""
    repository = home / "hub" / f"{repo_type}s--{repo_id.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def save_published(model, folder: Path) -> Path:
    """Model, code, processor and pipeline, as they lie in a repository."""
    processor = FLI2MoEProcessor.from_config(model.config)
    FLI2MoEPipeline(model=model, processor=processor, task="image-text-classification").save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def bare_environment(folder: Path) -> Path:
    """A folder of links to torch, transformers, Pillow and what they require, and to nothing else that is installed."""
    folder.mkdir()
    wanted, seen = ["torch", "transformers", "pillow"], set()
    while wanted:
        name = wanted.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # needed on another system only
            continue
        if package.metadata["Name"] in seen:
            continue
        seen.add(package.metadata["Name"])
        for top in {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
        requirements = [Requirement(text) for text in package.requires or ()]
        wanted += [x.name for x in requirements if x.marker is None or x.marker.evaluate({"extra": ""})]
    return folder


def run_bare(environment: Path, home: Path, code: str, *arguments, check: bool = True, offline: bool = True) -> str:
    """Runs Python with that environment alone (neither this package nor `site`); what it printed."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(environment),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    result = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)],
        cwd=environment.parent,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result.stdout if check else result.stdout + result.stderr


def write_run(folder: Path, model, seeds=(0, 1), figures: bool = False) -> dict:
    """
    What a training recipe leaves in a run's folder, with numbers of its own for every cell; gives the results.

    Args:
        figures: draw them, too, which takes longer than all the rest.
    """
    config = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    rng = np.random.default_rng(0)
    size, num_experts = 40, config.num_experts
    weights = rng.dirichlet(np.ones(num_experts), size)
    logits = {
        "logits": rng.normal(size=(size, len(names))),
        "expert_logits": rng.normal(size=(size, num_experts, len(names))),
    }
    labels = rng.integers(0, 2, (size, len(names))).astype(np.float32)
    statistics = compute_statistics(
        **logits,
        expert_weights=weights,
        labels=labels,
        expert_names=config.expert_names,
        label_names=names,
        problem_type=config.problem_type,
    )
    config.interaction_statistics = statistics
    # what earlier versions did not measure
    split = Predictions([], torch.tensor(logits["logits"]), None, None, torch.tensor(labels))
    calibrate(config, split)
    measured = measure({"test": split, "validation": split}, config, 0.5)
    for name in ("test", "validation"):
        del measured[name]
    model.save_pretrained(folder)
    metrics = list(statistics["metrics"]["mixture"])
    runs = {
        str(seed): {
            split: {
                name: 0.01 * (10 + 7 * i + 3 * seed + 40 * (split == "validation")) for i, name in enumerate(metrics)
            }
            for split in ("test", "validation")
        }
        | {"best_epoch": 3, "epochs": 5, "training_seconds": 90.0 + 60 * seed, "parameters": 12345}
        | measured
        for seed in seeds
    }
    results = {
        "metric": metrics[0],
        "best_seed": seeds[-1],
        **{
            split: {
                name: {
                    "mean": float(np.mean([run[split][name] for run in runs.values()])),
                    "std": float(np.std([run[split][name] for run in runs.values()], ddof=1))
                    if len(seeds) > 1
                    else None,
                }
                for name in metrics
            }
            for split in ("test", "validation")
        },
        "seeds": runs,
        "samples": {"train": 1234, "validation": 56, "test": size},
        "settings": {
            "learning_rate": 0.001,
            "data_dir": "/home/somebody/films",
            "threshold": 0.5,
            "seeds": list(seeds),
        },
        "encoders": config.encoders,
        "machine": {"device": "some CPU", "processes": 1, "torch": "2.13.0", "transformers": "5.23.0"},
    }
    if "own_thresholds" in measured:
        results["own_thresholds"] = {
            split: summarise_runs([run["own_thresholds"][split] for run in runs.values()])
            for split in ("test", "validation")
        }
    write_json(folder / "results.json", results)
    write_json(folder / "interaction_statistics.json", statistics)
    if figures:
        save_statistics_figures(statistics, weights, folder / "figures")
    return results
