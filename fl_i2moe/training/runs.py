"""Runs of a training recipe by their folders: one trained model a seed, and the features that they were trained on."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import FeatureCache
from .trained import find_cache, find_settings


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


def find_runs(folders: Sequence[str], cache_dir: str | None = None, seeds: Sequence[str] = ()) -> list[Run]:
    """
    Args:
        seeds: take the models of these alone.

    Raises:
        ValueError: a folder holds no model, none of a wanted seed or one whose training has not ended, no feature cache
            is found, or the runs have different ones.
    """
    paths = list({Path(folder).resolve(): Path(os.path.abspath(folder)) for folder in folders}.values())
    runs = []
    for path, name in zip(paths, _short_names(paths), strict=True):
        models = _find_models(path)
        settings = find_settings(path)[1]
        if missing := [seed for seed in seeds if seed not in models]:
            raise ValueError(f"{path} has no model of the seeds {missing}, but of {list(models)}.")
        models = {seed: models[seed] for seed in dict.fromkeys(seeds)} or models
        for model in models.values():
            if not (model / "config.json").is_file():
                raise ValueError(f"{model} holds no model: give the output folder of a training run.")
            if settings and model.name == "model" and not (model.parent / "results.json").is_file():
                raise ValueError(
                    f"{model.parent} has no results.json, its training has not ended: go on with it by --resume."
                )
        first = next(iter(models.values()))
        runs.append(Run(name, path, models, settings, find_cache(first, cache_dir)))
    known = {run.settings["features"] for run in runs if "features" in run.settings}
    if len(known) > 1 or len({run.cache.path for run in runs}) > 1:
        raise ValueError(
            "The runs were trained on different features, so that their figures cannot be compared:\n"
            + "\n".join(f"  {run.folder}: {run.settings.get('features', run.cache.path)}" for run in runs)
        )
    return runs


def _find_models(folder: Path) -> dict[str, Path]:
    """Seed → model: of a run all of its seeds, in their order; or that of a single model."""
    found = {x.parent.name.removeprefix("seed-"): x for x in folder.glob("seed-*/model")}
    if seeds := sorted((seed for seed in found if seed.isdigit()), key=int):
        return {seed: found[seed] for seed in seeds}
    own = folder.parent.name.removeprefix("seed-") if folder.name == "model" else ""
    return {own if own.isdigit() else "0": folder}


def refuse_trained_runs(folder: str | Path) -> None:
    """
    Of a folder to write into.

    Raises:
        ValueError: there are trained models in it, which `overwrite` would remove.
    """
    folder = Path(folder)
    if any(folder.glob("seed-*/model")) or (folder / "config.json").is_file():
        raise ValueError(f"The output folder {folder} holds trained models; give another --output_dir.")


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
