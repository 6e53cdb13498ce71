"""What a run of explanations works on: a model that can be explained, and the samples to explain."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from rich.console import Console

from ...cache import FeatureCache
from ...cache.batching import FeatureRows
from ...data.raw import SampleError
from ...explain.inputs import check_batch
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...training.runs import load_model
from .arguments import ExplainArguments


def load_explainable(folder: str | Path) -> FLI2MoEModel:
    """A feature-level model; `ValueError` where the folder holds none."""
    model = load_model(folder)
    if model.config.level != "feature":
        raise ValueError(f"The model in {folder} is pooled: it sees no patches and tokens that could be explained.")
    return model


def split_of(cache: FeatureCache, name: str) -> Dataset:
    """`ValueError` where the cache has no such split."""
    if name not in cache.splits:
        raise ValueError(f"The feature cache has no split {name!r}; it has {list(cache.splits)}.")
    return cache.splits[name]


def choose_rows(
    arguments: ExplainArguments, cache: FeatureCache, modality_order: Sequence[str], console: Console
) -> list[int]:
    """The rows of the split to explain; `ValueError` where there is no such split or sample, and as [`usable_rows`]."""
    split = split_of(cache, arguments.split)
    ids = list(split["id"])
    if arguments.sample_ids:
        if missing := [sample_id for sample_id in arguments.sample_ids if sample_id not in ids]:
            raise ValueError(f"The split {arguments.split!r} has no samples {missing}; its ids look like {ids[:3]}.")
        rows = [ids.index(sample_id) for sample_id in dict.fromkeys(arguments.sample_ids)]
    else:
        rows = list(range(min(len(split), arguments.num_samples or len(split))))
    return usable_rows(split, modality_order, rows, arguments.on_bad_sample, console)


def usable_rows(
    split: Dataset, modality_order: Sequence[str], rows: Sequence[int], on_bad_sample: str, console: Console
) -> list[int]:
    """The rows without the bad samples, which lack a modality's candidates or have features that are NaN or infinite;
    `ValueError` that names the first one if none may be skipped, or if all are bad."""
    reader, usable = FeatureRows(split, modality_order), []
    for row in rows:
        try:
            check_batch(reader[[row]], modality_order)
        except ValueError as error:
            bad = say_what_is_bad(error)
            if on_bad_sample == "stop":
                raise ValueError(f"{bad} Leave it out by --on_bad_sample skip.") from None
            console.print(f"{bad} It is left out.")
        else:
            usable.append(row)
    if not usable:
        raise ValueError("No sample is left to explain.")
    return usable


def say_what_is_bad(error: ValueError) -> str:
    """An error about one sample, without the advice that only helps while features are made."""
    if isinstance(error, SampleError):
        return f"Sample {error.sample_id} has {error.field} features that are NaN or infinite."
    return str(error)
