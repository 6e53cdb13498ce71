"""What a run works on: the model, the features that it was trained on, the samples to explain."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModel

from ..cache import FeatureCache, open_cache
from ..cache.batching import FeatureRows
from ..cache.shared import open_features
from ..data.raw import SampleError
from ..evaluation.run.arguments import ExplainArguments
from ..explain.inputs import check_batch
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.sample_encoders import user_cache_dir
from ..utils.run_folder import SETTINGS_FILE


def load_model(folder: str | Path) -> FLI2MoEModel:
    """
    Raises:
        ValueError: there is no model of this package in the folder, or it cannot be explained.
    """
    model = load_any_model(folder)
    if model.config.level != "feature":
        raise ValueError(f"The model in {folder} is pooled: it sees no patches and tokens that could be explained.")
    return model


def load_any_model(folder: str | Path) -> FLI2MoEModel:
    """
    [`load_model`], also of pooled features.

    Raises:
        ValueError: there is no model of this package in the folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: it has no config.json.")
    try:
        model = AutoModel.from_pretrained(folder)
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} cannot be read ({error}): train the model again.") from error
    if not isinstance(model, FLI2MoEModel):
        raise ValueError(f"{folder} holds a {type(model).__name__}, not an {FLI2MoEModel.__name__}.")
    return model.eval()


def find_cache(model_dir: str | Path, cache_dir: str | Path | None = None, split: str | None = None) -> FeatureCache:
    """
    Opens the feature cache that a model was trained on.

    Args:
        model_dir: of the model; its run's settings lie there, or (of one seed's model) above.
        cache_dir: the cache's folder, where it is not in the user's cache; or a data set on the Hub.
        split: fetch this split alone from the Hub.

    Raises:
        ValueError: there is none.
    """
    if cache_dir is not None:
        return open_features(cache_dir, fetch=None if split is None else [split])
    model_dir = Path(model_dir).resolve()
    folder, settings = find_settings(model_dir)
    if (digest := settings.get("features")) is None:
        raise ValueError(f"No {SETTINGS_FILE} says which features {model_dir} was trained on: give --cache_dir.")
    if not (path := user_cache_dir() / "features" / digest).is_dir():
        raise ValueError(
            f"The feature cache {digest} that the run in {folder} was trained on is not in {user_cache_dir()}: "
            "give its folder by --cache_dir."
        )
    return open_cache(path)


def find_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the training run that a model's folder belongs to, the same or up to two above, and its settings;
    the folder itself without any where there is none."""
    for place in (folder, *list(folder.parents)[:2]):
        if (place / SETTINGS_FILE).is_file():
            return place, _read_settings(place / SETTINGS_FILE)
    return folder, {}


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"a {type(settings).__name__}, no object")
    except ValueError as error:
        raise ValueError(f"{file}, which says what the run was trained on, is damaged: {error}.") from error
    return settings


def fingerprint(model: FLI2MoEModel) -> str:
    """Of the weights: a model's folder can be trained anew."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def choose_rows(
    arguments: ExplainArguments, cache: FeatureCache, modality_order: Sequence[str], console: Console
) -> list[int]:
    """
    The rows of the split to explain, without bad samples.

    Raises:
        ValueError: there is no such split or sample; and as [`usable_rows`].
    """
    if arguments.split not in cache.splits:
        raise ValueError(f"The feature cache has no split {arguments.split!r}; it has {list(cache.splits)}.")
    split = cache.splits[arguments.split]
    ids = list(split["id"])
    if arguments.sample_ids:
        if missing := [sample_id for sample_id in arguments.sample_ids if sample_id not in ids]:
            raise ValueError(f"The split {arguments.split!r} has no samples {missing}; its ids look like {ids[:3]}.")
        rows = [ids.index(sample_id) for sample_id in dict.fromkeys(arguments.sample_ids)]
    else:
        rows = list(range(min(len(split), arguments.num_samples or len(split))))
    return usable_rows(split, modality_order, rows, arguments.on_bad_sample, console)


def say_what_is_bad(error: ValueError) -> str:
    """An error about one sample, without the advice that only helps while features are made."""
    if isinstance(error, SampleError):
        return f"Sample {error.sample_id} has {error.field} features that are NaN or infinite."
    return str(error)


def usable_rows(
    split: Dataset, modality_order: Sequence[str], rows: Sequence[int], on_bad_sample: str, console: Console
) -> list[int]:
    """
    The rows without the bad samples, which lack a modality's candidates or have features that are NaN or infinite.

    Raises:
        ValueError: names the first bad sample, if none may be skipped; or all are bad.
    """
    reader, usable = FeatureRows(split, modality_order), []
    for row in rows:
        try:
            check_batch(reader[[row]], modality_order)
        except ValueError as error:
            bad = say_what_is_bad(error)
        else:
            usable.append(row)
            continue
        if on_bad_sample == "stop":
            raise ValueError(f"{bad} Leave it out by --on_bad_sample skip.")
        console.print(f"{bad} It is left out.")
    if not usable:
        raise ValueError("No sample is left to explain.")
    return usable
