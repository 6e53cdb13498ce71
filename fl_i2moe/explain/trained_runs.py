"""Runs of a training recipe by their folders: one trained model a seed, and the features that they were trained on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import FeatureCache
from .run_inputs import find_cache, find_settings


@dataclass
class Run:
    """Trained models of one configuration and the features they were trained on."""

    name: str
    """Of the folder: its last component, or as many as tell it from the other runs."""

    folder: Path
    models: dict[str, Path]
    """Seed → folder of the model."""

    settings: dict[str, Any]
    """Those of the training run; empty if they are not known."""

    cache: FeatureCache


def find_runs(folders: Sequence[str], cache_dir: str | None = None) -> list[Run]:
    """
    Raises:
        ValueError: a folder holds no model, no feature cache is found, or the runs have different ones.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    runs = []
    for path, name in zip(paths, _short_names(paths), strict=True):
        models = {x.parent.name.removeprefix("seed-"): x for x in sorted(path.glob("seed-*/model"))} or {"0": path}
        for model in models.values():
            if not (model / "config.json").is_file():
                raise ValueError(f"{model} holds no model: give the output folder of a training run.")
        first = next(iter(models.values()))
        runs.append(Run(name, path, models, find_settings(path)[1], find_cache(first, cache_dir)))
    if len({run.cache.path for run in runs}) > 1:
        raise ValueError(
            "The runs were trained on different features, whose ceilings differ; evaluate them one by one:\n"
            + "\n".join(f"  {run.folder}: {run.cache.path}" for run in runs)
        )
    return runs


def weights_fingerprint(folder: Path) -> str:
    """Of the weights: a model's folder can be trained anew."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _short_names(paths: Sequence[Path]) -> list[str]:
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]
