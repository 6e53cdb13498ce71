"""The features of a run: encoded from raw data into a feature cache, or taken from one, in a folder or on the Hub."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..cache import FeatureCache, build_cache, cache_key, open_features
from ..cache.encoding import Encoder
from ..cache.fitting import fit_encoders
from ..cache.key import key_digest
from ..cache.masked_copies import has_copies
from ..cache.streaming import StreamedSplit
from ..data.raw import RawDataset
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..model.encoders import load_encoder
from ..model.kind import FittedEncoder, FrozenEncoder
from ..model.kinds import ENCODED_KINDS
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.sample_encoders import find_in_user_cache, resolve_encoder
from ..utils.machine import check_memory
from .arguments import EncodingArguments, ImageEncoderArguments, Job, TextEncoderArguments, check_metric
from .predictions import PREDICTIONS_FILE
from .recipe import create_console

EVALUATION_SPLITS = ("validation", "test")
"""Fetched even where features are streamed: they are read whole after every epoch, in their order."""
TRAINING_SPLITS = ("train", *EVALUATION_SPLITS)
FEATURE_SIZES = ("feature_size", "max_features")


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder a modality's features come from: a hub id, a folder, or one of the sample's (`sample:…`)."""

    name: str
    revision: str | None = None
    hidden_layer: int | None = None
    """0: embeddings; the last if None. Features of an earlier layer mix less with their neighbours."""


def choose_encoders(
    options: ImageEncoderArguments | TextEncoderArguments, defaults: Mapping[str, str], modalities: Mapping[str, str]
) -> dict[str, EncoderChoice]:
    """
    Modality → encoder, of those that a Hugging Face model encodes. `defaults`: kind → encoder where the options name
    none; `modalities`: name → kind.
    """
    return {
        name: EncoderChoice(
            getattr(options, f"{kind}_encoder") or defaults[kind],
            getattr(options, f"{kind}_revision"),
            getattr(options, f"{kind}_hidden_layer"),
        )
        for name, kind in modalities.items()
        if kind in ENCODED_KINDS
    }


def check_splits(found: Collection[str], origin: str, needed: Collection[str] = TRAINING_SPLITS) -> None:
    """Raises `ValueError` where a needed split is not `found`; `origin`, what has the splits, begins the message."""
    if missing := [name for name in needed if name not in found]:
        raise ValueError(
            f"{origin} has no split {', '.join(missing)}, only {', '.join(found)}; {', '.join(needed)} are needed. "
            "Split the raw samples anew and encode them again."
        )


def encode(
    raw: RawDataset, choices: Mapping[str, EncoderChoice | Encoder], job: Job, accelerator: Accelerator
) -> FeatureCache:
    """
    Opens the feature cache of raw data, or builds what it lacks. `choices`: modality → encoder, or which one to load; a
    modality of arrays or columns that it lacks gets one that is fitted to the training split, see [`fit_encoders`].
    Raises `ValueError` before anything is encoded where the data lack a split, options do not fit data and encoders, or
    an encoder cannot be had; and where the cache's folder holds another one, or a sample cannot be read.
    """
    check_splits(raw.splits, "The raw data")
    check_metric(job.training.metric, raw.problem_type)
    encoders = _load_encoders(raw, {**fit_encoders(raw, leave_out=choices), **choices}, job.encoding, accelerator)
    sizes = {name: {key: getattr(x, key) for key in FEATURE_SIZES} for name, x in encoders.items()}
    model_config(job, raw, sizes)  # refuses before an hour of encoding
    console = create_console(accelerator)
    for name, encoder in encoders.items():
        origin = encoder.identity()["name"]
        console.print(f"{name}: at most {encoder.max_features} × {encoder.feature_size} features from {origin}")
    fitted = (x for x in encoders.values() if isinstance(x, FittedEncoder))
    for note in [*raw.notes, *(note for x in fitted for note in x.notes)]:
        console.print(note)
    masked_copies = job.masked_copies if any(map(has_copies, encoders.values())) else 0
    key = cache_key(raw, encoders, masked_copies)
    # one folder for each combination of data and encoders, so that runs share what is encoded already
    cache_dir = job.encoding.cache_dir or find_in_user_cache("features", key_digest(key))
    console.print(f"Feature cache: {cache_dir}")
    cache = build_cache(
        raw,
        encoders,
        cache_dir,
        key=key,
        masked_copies=masked_copies,
        batch_size=job.encoding.encoding_batch_size,
        num_workers=job.encoding.encoding_workers,
        on_bad_sample=job.encoding.on_bad_sample,
    )
    for note in cache.notes:
        console.print(note)
    return replace(cache, truth=raw.truth)


def fetch_features(encoding: EncodingArguments, accelerator: Accelerator) -> FeatureCache:
    """The features that a run starts from; raises `ValueError` where they cannot be had, or cannot be streamed."""
    with accelerator.main_process_first():
        cache = _stream(encoding, accelerator) if encoding.stream_features else open_features(encoding.features)
    console = create_console(accelerator)
    for name, x in cache.modalities.items():
        console.print(f"{name}: at most {x['max_features']} × {x['feature_size']} features from {x['encoder']['name']}")
    console.print(f"Feature cache: {cache.path}")
    for name, rows in cache.splits.items():
        if isinstance(rows, StreamedSplit):
            console.print(f"{name}: {len(rows):,} samples are read in every epoch from {rows.files}")
            console.print(f"  {PREDICTIONS_FILE} will have none of them.")
    for note in cache.notes:
        console.print(note)
    return cache


def model_config(
    job: Job, data: RawDataset | FeatureCache, modalities: Mapping[str, Mapping[str, Any]] | None = None
) -> FLI2MoEConfig:
    """
    The configuration of a model on these features; `modalities` gives their sizes where `data` are raw. Raises
    `ValueError` where options do not fit the data.
    """
    described: Mapping[str, Any] = data.modalities if modalities is None else modalities
    if job.model.fill_missing is None:
        for split, missing in data.missing.items():
            counts = ", ".join(f"{count:,} have no {name}" for name, count in missing.items())
            raise ValueError(
                f"Of the samples of split {split!r} {counts}: say by `fill_missing` what stands for it, such as zero, "
                "or leave such samples out of the data."
            )
    config = job.model.to_config(
        {name: {key: x[key] for key in FEATURE_SIZES} for name, x in described.items()},
        problem_type=data.problem_type,
        id2label=dict(enumerate(data.label_names)),
        label2id={name: index for index, name in enumerate(data.label_names)},
        encoders={name: x["encoder"] for name, x in described.items() if "encoder" in x},
        class_weights=balanced_weights(data) if job.training.class_weights == "balanced" else None,
    )
    with torch.device("meta"):
        num_parameters = sum(x.numel() for x in FLI2MoEModel(config).parameters())
    # weights, gradients and the two moments of Adam
    check_memory(16 * num_parameters, "training the model", "lower `hidden_size` or `num_fusion_layers`")
    return config


def balanced_weights(data: RawDataset | FeatureCache) -> list[float]:
    """
    What makes all classes count alike, (C,): scikit-learn's "balanced" weights N / (C · N_c), whose mean over the
    training samples is 1; of labels negatives / positives, by which both sides count alike. Raises `ValueError` for a
    regression, and where a class has no training samples, or a label only positive or only negative ones.
    """
    if data.problem_type == "regression":
        raise ValueError("`class_weights` balanced is for classes and labels; a regression has none: leave it out.")
    rows = data.splits["train"]
    streamed = isinstance(rows, StreamedSplit)
    labels = rows.labels if streamed else rows.select_columns("labels").with_format("numpy")[:]["labels"]
    is_class = data.problem_type == "single_label_classification"
    positives = np.bincount(labels, minlength=len(data.label_names)) if is_class else (labels > 0).sum(axis=0)
    negatives = len(labels) - positives
    for counts, what in ((positives, "with"), (negatives, "without")):
        if empty := [name for name, count in zip(data.label_names, counts, strict=True) if not count]:
            raise ValueError(
                f"`class_weights` balanced needs training samples with and without each of the {len(counts)} "
                f"{'classes' if is_class else 'labels'}, but there are none {what} {', '.join(empty[:4])}"
                f"{' …' if len(empty) > 4 else ''}: take it out, or leave `class_weights` out."
            )
    weights = len(labels) / (len(positives) * positives) if is_class else negatives / positives
    return weights.tolist()


def _stream(encoding: EncodingArguments, accelerator: Accelerator) -> FeatureCache:
    if Path(encoding.features).expanduser().is_dir():
        raise ValueError(f"`stream_features` is for a data set on the Hub; {encoding.features} lies on this disk.")
    cache = open_features(encoding.features, fetch=EVALUATION_SPLITS)
    streamed = replace(cache.splits["train"], buffer_size=encoding.shuffle_buffer_size)
    streamed.check(accelerator.num_processes)
    cache.splits["train"] = streamed
    return cache


def _load_encoders(
    raw: RawDataset, choices: Mapping[str, EncoderChoice | Encoder], arguments: Any, accelerator: Accelerator
) -> dict[str, Encoder]:
    """Modality → its encoder; one that is there already stays."""

    @lru_cache(None)  # modalities of one kind may share an encoder
    def load(choice: EncoderChoice, kind: str) -> FrozenEncoder:
        return load_encoder(
            resolve_encoder(choice.name),
            kind,
            name=choice.name,
            revision=choice.revision,
            hidden_layer=choice.hidden_layer,
            special_features=arguments.special_features,
            device=accelerator.device,
            dtype=getattr(torch, arguments.encoding_dtype),
            trust_remote_code=arguments.trust_remote_code,
            **{name: getattr(arguments, f"{kind}_{name}") for name in ENCODED_KINDS[kind].default_options},
        )

    with accelerator.main_process_first():
        return {
            name: load(choice, raw.modalities[name]) if isinstance(choice, EncoderChoice) else choice
            for name, choice in choices.items()
        }
