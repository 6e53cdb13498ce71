"""What is taken for the weights of a model: safetensors alone, whole, and finite."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from .configuration_fl_i2moe import check_given

SHOWN_NAMES = 5
REPOSITORY_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def refuse_pickles(name: Any, arguments: Mapping[str, Any]) -> None:
    """
    Raises `ValueError` where the weights of a folder or hub id would come from a pickle, or their index cannot be read:
    transformers goes to whatever file a path, a configuration or an index names. `arguments` are `from_pretrained`'s.
    """
    check_given("pretrained_model_name_or_path", name)
    if Path(name).is_file():
        raise ValueError(f"{name} is a file; give the folder of the model, with its config.json.")
    options = {key: arguments[key] for key in REPOSITORY_OPTIONS if arguments.get(key) is not None}
    index_name = getattr(arguments.get("config"), "transformers_weights", None) or SAFE_WEIGHTS_INDEX_NAME
    if variant := arguments.get("variant"):
        index_name = index_name.replace(".index.json", f".index.{variant}.json")
    files = [index_name]
    if index_name.endswith(".json"):
        # missing is what most of them are
        index = cached_file(name, index_name, _raise_exceptions_for_missing_entries=False, **options)
        files = [] if index is None else _files_in(Path(index))
    if other := [file for file in files if not file.endswith(".safetensors") or Path(file).name != file]:
        raise ValueError(
            f"The weights of {name} would be read from {other[0]}: only safetensors beside the configuration are, "
            "pickles can run code and are not read."
        )


def _files_in(index: Path) -> list[str]:
    try:
        files = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all(isinstance(file, str) for file in files):
            raise TypeError("a file's name is no text")
        return files
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights, whose `weight_map` names a file for each tensor.") from error


def check_fit(name: Any, loading: Mapping[str, Any], may_be_resized: bool = False) -> None:
    """
    Raises `ValueError` where tensors are missing, left over, or of another size than the configuration says; `loading`
    is what `from_pretrained` gives with `output_loading_info`.
    """
    resized = [f"{key} {tuple(found)}, here {tuple(own)}" for key, found, own in loading["mismatched_keys"]]
    faults = [
        f"{what}{_listed(names)}"
        for what, names in (
            ("lack ", loading["missing_keys"]),
            ("have too much: ", loading["unexpected_keys"]),
            ("have other sizes: ", [] if may_be_resized else resized),
        )
        if names
    ]
    if faults:
        raise ValueError(
            f"The weights of {name} do not fit its config.json: they {'; they '.join(faults)}. Predictions would be "
            "random: get both files again, from one and the same model."
        )


def refuse_non_finite(name: Any, model: nn.Module) -> None:
    """Raises `ValueError` where a parameter of the model, loaded from `name`, is NaN or infinite."""
    # a sum is finite only where each is, and four times as fast to tell
    bad = [x for x, y in model.named_parameters() if not (y.is_meta or y.sum().isfinite() or y.isfinite().all())]
    if bad:
        raise ValueError(f"The weights of {name} are NaN or infinite in {_listed(bad)}: get or train the model again.")


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:SHOWN_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
