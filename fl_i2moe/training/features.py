"""The features of a run: encoded from raw data into a feature cache, or taken from one, in a folder or on the Hub."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console

from ..cache import FeatureCache, build_cache, cache_key
from ..cache.encoding import Encoder
from ..cache.key import key_digest
from ..cache.shared import open_features
from ..cache.streaming import StreamedSplit
from ..data.raw import RawDataset
from ..model.encoders import load_encoder
from ..model.kind import FrozenEncoder
from ..model.kinds import ENCODED_KINDS
from ..model.sample_encoders import resolve_encoder, user_cache_dir
from .arguments import CacheArguments, EncodingArguments, ImageEncoderArguments, TextEncoderArguments

EVALUATION_SPLITS = ("validation", "test")
"""Fetched even where features are streamed: they are read whole after every epoch, in their order."""
TRAINING_SPLITS = ("train", *EVALUATION_SPLITS)


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder a modality's features come from: a hub id, a folder, or one of the sample's (`sample:…`)."""

    name: str
    revision: str | None = None
    hidden_layer: int | None = None
    """0: embeddings; the last if None. An earlier layer keeps more of a feature in its own place."""


def choose_encoders(
    options: ImageEncoderArguments | TextEncoderArguments, defaults: Mapping[str, str], modalities: Mapping[str, str]
) -> dict[str, EncoderChoice]:
    """
    Modality → encoder.

    Args:
        options: of the kinds that there are.
        defaults: kind → encoder where the options name none.
        modalities: modality → its kind, `"image"` or `"text"`.
    """
    choices = {
        kind: EncoderChoice(
            getattr(options, f"{kind}_encoder") or default,
            getattr(options, f"{kind}_revision"),
            getattr(options, f"{kind}_hidden_layer"),
        )
        for kind, default in defaults.items()
    }
    return {name: choices[kind] for name, kind in modalities.items()}


def check_splits(found: Collection[str], origin: str, needed: Collection[str] = TRAINING_SPLITS) -> None:
    """
    Args:
        found: names of the splits that there are.
        origin: what has them, at the start of a sentence.

    Raises:
        ValueError: one that is needed is not there.
    """
    if missing := [name for name in needed if name not in found]:
        raise ValueError(
            f"{origin} has no split {', '.join(missing)}, only {', '.join(found)}; {', '.join(needed)} are needed. "
            "Split the raw samples anew and encode them again."
        )


def load_encoders(
    raw: RawDataset, choices: Mapping[str, EncoderChoice | Encoder], arguments: CacheArguments, accelerator: Accelerator
) -> dict[str, Encoder]:
    """Modality → its encoder; one is loaded once, and one that is there already stays."""
    loaded: dict[str, Encoder] = {}
    with accelerator.main_process_first():
        shared: dict[tuple[EncoderChoice, str], FrozenEncoder] = {}  # modalities of one kind, one encoder
        for name, choice in choices.items():
            kind = raw.modalities[name]
            if not isinstance(choice, EncoderChoice):
                loaded[name] = choice
                continue
            if (choice, kind) not in shared:
                shared[choice, kind] = _load_encoder(kind, choice, arguments, accelerator.device)
            loaded[name] = shared[choice, kind]
    return loaded


def encode(
    raw: RawDataset,
    choices: Mapping[str, EncoderChoice | Encoder],
    arguments: CacheArguments,
    accelerator: Accelerator,
    console: Console,
) -> FeatureCache:
    """Loads the encoders that are not there yet, and opens the feature cache or builds what it lacks."""
    loaded = load_encoders(raw, choices, arguments, accelerator)
    for name, encoder in loaded.items():
        origin = encoder.identity()["name"]
        console.print(f"{name}: {encoder.max_features} × {encoder.feature_size} features from {origin}")
    for note in raw.notes:
        console.print(note)
    key = cache_key(raw, loaded)
    # one folder for each combination of data and encoders, so that runs share what is encoded already
    cache_dir = arguments.cache_dir or user_cache_dir() / "features" / key_digest(key)
    console.print(f"Feature cache: {cache_dir}")
    cache = build_cache(
        raw,
        loaded,
        cache_dir,
        key=key,
        batch_size=arguments.encoding_batch_size,
        num_workers=arguments.encoding_workers,
        on_bad_sample=arguments.on_bad_sample,
    )
    for note in cache.notes:
        console.print(note)
    return cache


def fetch_features(encoding: EncodingArguments, num_processes: int) -> FeatureCache:
    """
    The features that a run starts from, of which the training split may stay on the Hub.

    Raises:
        ValueError: they cannot be had, or cannot be streamed.
    """
    if not encoding.stream_features:
        return open_features(encoding.features)
    if Path(encoding.features).expanduser().is_dir():
        raise ValueError(f"`stream_features` is for a data set on the Hub; {encoding.features} lies on this disk.")
    cache = open_features(encoding.features, fetch=EVALUATION_SPLITS)
    streamed = replace(cache.splits["train"], buffer_size=encoding.shuffle_buffer_size)
    streamed.check(num_processes)
    cache.splits["train"] = streamed
    return cache


def describe(cache: FeatureCache, console: Console) -> None:
    """Says what a run starts from."""
    for name, x in cache.modalities.items():
        console.print(f"{name}: {x['max_features']} × {x['feature_size']} features from {x['encoder']['name']}")
    console.print(f"Feature cache: {cache.path}")
    for name, rows in cache.splits.items():
        if isinstance(rows, StreamedSplit):
            console.print(f"{name}: {len(rows):,} samples are read in every epoch from {rows.files}")
    for note in cache.notes:
        console.print(note)


def _load_encoder(
    kind: str, choice: EncoderChoice, arguments: EncodingArguments, device: torch.device
) -> FrozenEncoder:
    return load_encoder(
        resolve_encoder(choice.name),
        kind,
        name=choice.name,
        revision=choice.revision,
        hidden_layer=choice.hidden_layer,
        special_features=arguments.special_features,
        device=device,
        dtype=getattr(torch, arguments.encoding_dtype),
        trust_remote_code=arguments.trust_remote_code,
        **{name: getattr(arguments, f"{kind}_{name}") for name in ENCODED_KINDS[kind].default_options},
    )
