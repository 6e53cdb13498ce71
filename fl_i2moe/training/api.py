"""What recipes/train.py does, from Python."""

from collections.abc import Mapping
from dataclasses import Field, asdict, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ..model.configuration_fl_i2moe import did_you_mean
from .arguments import (
    EncodingArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    defaults_of,
    training_defaults,
)
from .experiment import run_job
from .runs import Run
from .tables import Modalities, ReadingArguments, Table, encoders_by_name, read_table

PARTS: tuple[type, ...] = (ReadingArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments)


def train(
    data: str | Path | Dataset | DatasetDict,
    modalities: Modalities,
    label: str | list[str],
    *,
    output_dir: str | Path,
    encoders: Mapping[str, str] | None = None,
    encoder_revisions: Mapping[str, str] | None = None,
    hidden_layers: Mapping[str, int] | None = None,
    **options: Any,
) -> Run:
    """
    Trains a model on any table or Hugging Face data set, and evaluates it.

    ```python
    >>> from datasets import load_dataset
    >>> from fl_i2moe import train
    >>> data = load_dataset("csv", data_files="tweets.csv")
    >>> modalities = {"picture": "image", "tweet": "text"}
    >>> run = train(data, modalities, label="sentiment", output_dir="runs/tweets", num_epochs=10)
    >>> run.results["test"], run.model, run.statistics
    ```

    In a notebook, `accelerate.notebook_launcher(lambda: train(...), num_processes=2)` runs it in several processes, and
    `Run.open("runs/tweets")`, of `fl_i2moe.training.runs`, gives the run.

    Args:
        data: a data set or its splits; or a file, a folder or a data set on the Hub, by name.
        modalities: column → `"image"`, `"text"`, `"audio"` or `"array"`; or a name of its own → columns of numbers and
            categories that make one modality together. Two or more; the experts have their order.
        label: the column of what is predicted; several columns for several labels.
        output_dir: folder for model, results, statistics and figures.
        encoders: column → Hub id or folder; CLIP for pictures, RoBERTa for texts, Wav2Vec2 for sounds if not given.
        encoder_revisions: column → commit, tag or branch of its encoder.
        hidden_layers: column → hidden layer taken, 0 for embeddings; the last if not given.
        options: as listed below, each with its default; `objective="specialised"` has others for some of them, see
            `fl_i2moe.model.OBJECTIVES["specialised"].training_defaults`.

    Returns:
        The run: `results`, as in `results.json`; `model`, of the best seed; `statistics`, how modalities interact on
        the test split.

    Raises:
        ValueError: an option is unknown, wrong, or does not fit the data; a column is not there; a row cannot be read;
            an encoder cannot be had; the output folder holds another run.
    """
    known = _options()
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"`train` has no option `{unknown[0]}`.{did_you_mean(unknown[0], known)}")
    if not isinstance(modalities, Mapping):
        raise ValueError(f"`modalities` must be a dictionary, column → kind, got {type(modalities).__name__}.")
    values = {**training_defaults({**_DEFAULTS, **options}), **options, "output_dir": str(output_dir)}
    parts = [part(**{x.name: values[x.name] for x in fields(part) if x.name in values}) for part in PARTS]
    reading, job = parts[0], Job(*parts[1:])
    choices = encoders_by_name(modalities, encoders or {}, encoder_revisions, hidden_layers)
    labels = [label] if isinstance(label, str) else label
    if not labels or not isinstance(labels, list | tuple):
        raise ValueError(f"`label` must be the name of a column, or a list of names, got {label!r}.")
    table = Table(data, modalities, list(labels), choices)
    settings: dict[str, Any] = {
        "dataset": str(data) if isinstance(data, str | Path) else "in memory",
        "modalities": dict(modalities),
        "label": table.label,
        "encoder": {name: asdict(choice) for name, choice in choices.items()},
    }
    run_job(job, reading, lambda accelerator: read_table(table, reading, job, accelerator), **settings)
    return Run.open(output_dir)


def _options() -> dict[str, Field]:
    """Name → field, of all options that are no argument of their own."""
    own = {"output_dir", "features", "stream_features", "shuffle_buffer_size"}
    return {item.name: item for part in PARTS for item in fields(part) if item.name not in own}


_DEFAULTS = {name: x for part in PARTS for name, x in defaults_of(part).items()}
_LISTED = [f"        {name} = {_DEFAULTS[name]!r}: {x.metadata['help']}" for name, x in _options().items()]
train.__doc__ = f"{train.__doc__}\n    Options:\n" + "\n".join(_LISTED)
_SIGNATURE = signature(train)  # by which editors and notebooks complete
train.__signature__ = _SIGNATURE.replace(  # type: ignore[attr-defined]
    parameters=[
        *(x for x in _SIGNATURE.parameters.values() if x.kind != Parameter.VAR_KEYWORD),
        *(Parameter(name, Parameter.KEYWORD_ONLY, default=_DEFAULTS[name]) for name in _options()),
    ]
)
