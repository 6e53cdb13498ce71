"""Training runs by their folders: a trained model for each seed, its features, and what came of it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..cache import FeatureCache, is_cache, open_cache, open_features
from ..cache.key import key_digest
from ..cache.manifest import read_key
from ..metrics.statistics import read_statistics
from ..model.configuration_fl_i2moe import FLI2MoEConfig, check_given
from ..model.encoders import hash_weights
from ..model.fusions import FUSIONS
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.sample_encoders import find_in_user_cache
from ..utils.checked_json import read_json
from ..utils.run_folder import SETTINGS_FILE
from .results import RESULTS_FILE, read_results

STATISTICS_FILE = "interaction_statistics.json"


SETTINGS: dict[Any, Any] = {
    "features?": str,
    "threshold?": float,
    **dict.fromkeys(("cache_dir?", "data_dir?", "data_file?"), (str, None)),
    str: Any,
}
"""Those of a training that are looked at later; `features` is the digest of the cache's key, `cache_dir` where it lies,
from the run's folder on."""


@dataclass
class Run:
    """A training run, or the folder of a single model. What lies in its files is read when it is asked for."""

    name: str
    """The last component of the folder, or as many as tell it from the other runs."""
    folder: Path
    models: dict[str, Path]
    """Seed → folder of the model."""
    settings: dict[str, Any]
    """Those of the training; empty if they are not known."""
    cache_dir: str | None = None
    """Of the features, see [`find_cache`]."""

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Raises `ValueError` where a file of a finished run is missing."""
        check_given("folder", folder)
        folder = Path(folder)
        for name in ("config.json", RESULTS_FILE, STATISTICS_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} is no finished training run: it has no {name}. Give a folder that a recipe made."
                )
        return cls(folder.name, folder, _find_models(folder), _find_settings(folder)[1])

    @cached_property
    def cache(self) -> FeatureCache:
        return find_cache(next(iter(self.models.values())), self.cache_dir)

    @cached_property
    def config(self) -> FLI2MoEConfig:
        """Of the best seed's model."""
        return load_config(self.folder)

    @cached_property
    def model(self) -> FLI2MoEModel:
        """Of the best seed, in evaluation mode on the CPU."""
        return load_model(self.folder)

    @cached_property
    def results(self) -> dict[str, Any]:
        return read_results(self.folder / RESULTS_FILE, self.config.problem_type)

    @property
    def best(self) -> dict[str, Any]:
        """The results of the best seed's model."""
        return self.results["seeds"][str(self.results["best_seed"])]

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Of the best seed's model on the test split, see [`~fl_i2moe.metrics.statistics.compute_statistics`]."""
        return read_statistics(self.folder / STATISTICS_FILE, self.config.expert_names, self.config.label_names)

    @property
    def title(self) -> str:
        """What kind of model it is."""
        config, fusion = self.config, FUSIONS[self.config.fusion].title
        pooled = config.level == "pooled"
        if config.architecture == "dense":
            return f"dense {fusion}" + ", pooled" * pooled
        parts = ["I²MoE, pooled" if pooled else "FL-I²MoE"]
        if config.interaction_experts != "all":
            parts.append("no uniqueness experts")
        parts.append(f"{config.objective} objective" if config.interaction_loss_weight else "no interaction losses")
        if config.regulariser is not None:
            parts.append(f"{config.regulariser} {config.regulariser_weight:g}")
        if config.fusion != "transformer":
            parts.append(f"experts: {fusion}")
        return ", ".join(parts)

    @cached_property
    def explanations(self) -> Path | None:
        """The folder of the model's explanations; `None` where there is none, or they are of the weights that the model
        had before it was trained anew."""
        folder = self.folder / "explanations"
        if not (file := folder / SETTINGS_FILE).is_file():
            return None
        settings = read_json(file, dict)
        if "job" not in settings:  # of 0.1.0, which knew weights by another digest
            return folder
        return folder if settings.get("model") == fingerprint(load_model(self.folder)) else None

    def explanation(self, name: str, shape: Any) -> Any:
        """A JSON file of `explanations`, of this shape (see [`~fl_i2moe.utils.checked_json`]), or `None`."""
        file = self.explanations and self.explanations / name
        return read_json(file, shape) if file and file.is_file() else None


def find_runs(folders: Sequence[str], cache_dir: str | None = None, seeds: Sequence[str] = ()) -> list[Run]:
    """
    The runs in `folders`, which may also hold single models; with the models of these `seeds` alone, if any are given.
    Raises `ValueError` where a folder holds no model, none of a wanted seed or one whose training has not ended, no
    feature cache is found (see [`find_cache`]), or the runs have different ones.
    """
    check_given("folders", folders)
    paths = list({Path(folder).resolve(): Path(os.path.abspath(folder)) for folder in folders}.values())
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    runs = []
    for path in paths:
        models, settings = _find_models(path), _find_settings(path)[1]
        if missing := [seed for seed in seeds if seed not in models]:
            raise ValueError(f"{path} has no model of the seeds {missing}, but of {list(models)}.")
        models = {seed: models[seed] for seed in dict.fromkeys(seeds)} or models
        for model in models.values():
            if not (model / "config.json").is_file():
                raise ValueError(f"{model} holds no model: give the output folder of a training run.")
            if settings and model.name == "model" and not (model.parent / RESULTS_FILE).is_file():
                raise ValueError(
                    f"{model.parent} has no {RESULTS_FILE}, its training has not ended: go on with it by --resume."
                )
        runs.append(Run("/".join(path.parts[-depth:]), path, models, settings, cache_dir))
    known = {run.settings["features"] for run in runs if "features" in run.settings}
    if len({run.cache.path for run in runs}) > 1 or len(known) > 1:
        raise ValueError(
            "The runs were trained on different features, so that their figures cannot be compared:\n"
            + "\n".join(f"  {run.folder}: {run.settings.get('features', run.cache.path)}" for run in runs)
        )
    return runs


def load_config(folder: Path) -> FLI2MoEConfig:
    """Raises `ValueError` that names folder and field where `config.json` is damaged, or of another kind of model."""
    kind = read_json(folder / "config.json", dict).get("model_type")
    if kind != FLI2MoEConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {kind!r} by `model_type` in config.json, not {FLI2MoEConfig.model_type!r}."
        )
    return FLI2MoEConfig.from_pretrained(folder)


def load_model(folder: str | Path) -> FLI2MoEModel:
    """In evaluation mode, on the CPU; raises `ValueError` where the folder holds no model of this package."""
    check_given("folder", folder)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: it has no config.json.")
    return FLI2MoEModel.from_pretrained(folder, config=load_config(folder)).eval()


def fingerprint(model: FLI2MoEModel) -> str:
    """Of the weights, whatever file they came from: a model's folder can be trained anew."""
    return hash_weights(model)[:16]


def find_cache(model_dir: str | Path, cache_dir: str | Path | None = None, split: str | None = None) -> FeatureCache:
    """
    Opens the feature cache that the model in `model_dir` was trained on: where its run remembers it, or in the user's
    cache. Raises `ValueError` where there is none.

    Args:
        cache_dir: the cache's folder, where it has moved; or a data set on the Hub.
        split: fetch this split alone from the Hub.
    """
    check_given("model_dir", model_dir)
    if cache_dir is not None:
        return open_features(cache_dir, fetch=None if split is None else [split])
    model_dir = Path(model_dir).resolve()
    folder, settings = _find_settings(model_dir)
    if (digest := settings.get("features")) is None:
        raise ValueError(f"No {SETTINGS_FILE} says which features {model_dir} was trained on: give --cache_dir.")
    was = ""
    if remembered := settings.get("cache_dir"):
        place = folder / remembered
        if is_cache(place) and key_digest(read_key(place)["key"]) == digest:
            return open_cache(place)
        was = f", and {place}, where it was, {'holds other features now' if is_cache(place) else 'is gone'}"
    if not (path := find_in_user_cache("features", digest)).is_dir():
        raise ValueError(
            f"The feature cache {digest} that the run in {folder} was trained on is not in {path.parent}{was}: give "
            "its folder by --cache_dir."
        )
    return open_cache(path)


def _find_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run's folder that a model's folder is or lies in, and its settings; the folder itself and none if unknown."""
    for place in (folder, *list(folder.parents)[:2]):
        if (file := place / SETTINGS_FILE).is_file():
            return place, read_json(file, SETTINGS, "which says what the run was trained on")
    return folder, {}


def check_cache(model: FLI2MoEModel, cache: FeatureCache) -> None:
    """Raises `ValueError` where the cache lacks a modality, or has other classes or encoders than the model."""
    config = model.config
    if missing := [name for name in config.modality_order if name not in cache.modalities]:
        raise ValueError(f"The feature cache {cache.path} lacks {missing}; it has {list(cache.modalities)}.")
    names = config.label_names
    if names != cache.label_names:
        raise ValueError(
            f"The model's classes are {names}, those of the feature cache {cache.path} {cache.label_names}."
        )
    for name in config.modality_order:
        expected = (config.encoders or {}).get(name)
        found = json.loads(json.dumps(cache.modalities[name]["encoder"]))  # as it comes back from a config.json
        if expected is None or expected == found:
            continue
        different = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        raise ValueError(
            f"The feature cache {cache.path} was made with another encoder of {name} than the model's:\n"
            + "\n".join(
                f"  {key}: {found.get(key)!r:.200}, the model's {expected.get(key)!r:.200}" for key in different
            )
        )


def _find_models(folder: Path) -> dict[str, Path]:
    """Seed → model: all of a run, in the order of the seeds; or a single one."""
    found = {x.parent.name.removeprefix("seed-"): x for x in folder.glob("seed-*/model")}
    if seeds := sorted((seed for seed in found if seed.isdigit()), key=int):
        return {seed: found[seed] for seed in seeds}
    own = folder.parent.name.removeprefix("seed-") if folder.name == "model" else ""
    return {own if own.isdigit() else "0": folder}
