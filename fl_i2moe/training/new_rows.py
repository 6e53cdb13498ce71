"""Predictions for a user's new rows: encoded and predicted part by part, so that a stopped job goes on."""

import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import Dataset
from filelock import FileLock
from tqdm.auto import tqdm

from ..cache.encoding import DecodedBatch, Encoder, decode, skipped_entry
from ..cache.key import key_digest
from ..cache.shards import Shard
from ..data.raw import SampleError
from ..data.table_cells import Missing
from ..data.tables import load_rows
from ..model.configuration_fl_i2moe import FLI2MoEConfig, check_options, did_you_mean, option
from ..model.kind import IS_GIVEN
from ..model.kinds import KINDS
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..utils.checked_json import read_json
from ..utils.files import UNFINISHED, remove, write_file, write_json, write_text
from ..utils.machine import take_lock
from .loop import Predictions
from .predictions import prediction_table, write_predictions
from .recipe import create_console
from .runs import fingerprint, load_model
from .tables import by_modality

THERE = "is there already: replace it by --overwrite, or give another --output."
PART_ROWS = 1024
"""Rows whose predictions are written at once."""


@dataclass
class PredictArguments:
    """Which model, which rows, and where predictions go."""

    model: str = option("runs/sample", "Folder of a training run or a model, or a model on the Hub.")
    dataset: str | None = option(None, "New rows: file (.csv, .jsonl, .parquet …), folder, or data set on the Hub.")
    output: str = option("predictions.csv", "File for the predictions: .csv, .jsonl or .parquet.")
    column: list[str] | None = option(
        None, "modality=column, where it has another name than at training.", repeatable=True
    )
    id: str | None = option(None, "Column of the ids; numbers of rows if not given.")
    missing: Missing | None = option(
        None,
        "What to do with a row that lacks a modality: stop, leave it out, or let the model stand in for it; the last, "
        "if not given, where the model was trained with such rows, else leave it out.",
    )
    root: str | None = option(None, "Folder that paths in the table start from; the table's own if not given.")
    encoding: str = option("utf-8", "Encoding of a text file.")
    dataset_config: str | None = option(None, "Configuration of a data set on the Hub.")
    dataset_revision: str | None = option(None, "Commit, tag or branch of a data set on the Hub.")
    batch_size: int = option(32, "Rows at once.", at_least=1)
    num_workers: int = option(1, "Processes that read rows meanwhile.", within="[0, 1024]")
    trust_remote_code: bool = option(False, "Run code that an encoder's repository brings along.")
    overwrite: bool = option(False, "Replace --output.")

    def __post_init__(self):
        check_options(self)
        if self.dataset is None:
            raise ValueError("`dataset` is needed: the new rows.")
        if Path(self.output).suffix.lower() not in WRITERS:
            raise ValueError(f"`output` must end with {', '.join(WRITERS)}, got {self.output}.")


def predict_rows(arguments: PredictArguments, accelerator: Accelerator) -> None:
    """
    Predicts the rows of a table, and writes for each its id, labels, probabilities, and each expert's contribution, see
    [`~fl_i2moe.training.predictions.prediction_table`]; and, of a model that stands in for missing modalities, which
    were `missing`. What cannot be read is left out and named in
    `<output>.skipped.jsonl`. A stopped job goes on after its last whole part.

    Raises:
        ValueError: the output is there already, or is the table itself; the model takes no raw values, or cannot stand
            in for a modality; a column is not there; no row can be read.
        OSError: the disk is full.
    """
    console, output = create_console(accelerator), Path(arguments.output)
    _check_place(output, arguments.dataset)
    folder = output.with_name(f"{UNFINISHED}{output.name}-parts")
    command = {name: value for name, value in asdict(arguments).items() if name != "overwrite"}
    finished = folder.with_name(f"{folder.name}-done-{key_digest(command)}")
    was_finished = finished.exists()  # the job was killed when all was written
    for path in folder.parent.glob(glob.escape(f"{folder.name}-done-") + "*"):
        shutil.rmtree(path)
    if was_finished and output.exists() and not arguments.overwrite:
        console.print(f"Predictions: {output}")
        return
    if output.exists() and not arguments.overwrite and not folder.exists():
        raise ValueError(f"{output} {THERE}")
    model = _load(arguments.model).to(accelerator.device)
    config = model.config
    if arguments.missing == "fill" and config.fill_missing is None:
        raise ValueError(
            "`missing` is 'fill', but the model has not learnt to stand in for a modality: leave such rows out by "
            "'drop', or train it with --missing fill."
        )
    model.load_encoders(trust_remote_code=arguments.trust_remote_code)
    encoders = {name: model.raw_inputs.load(name) for name in config.modality_order}
    rows, bad_rows = _read(encoders, config.fill_missing is not None, arguments)
    key = {"model": fingerprint(model), "rows": _digest(rows), "batch_size": arguments.batch_size}
    folder.mkdir(parents=True, exist_ok=True)
    with take_lock(FileLock(folder / "lock"), f"writing {output}", "; or give another --output"):
        _begin(folder, key)
        parts = _parts(folder, len(rows))
        missing = [part for part in parts if not part.path.exists()]
        if missing and output.exists() and not arguments.overwrite:  # else it was killed when the output was written
            raise ValueError(f"{output} {THERE}")
        if done := sum(len(part.rows) for part in parts) - sum(len(part.rows) for part in missing):
            console.print(f"{done:,} of {len(rows):,} rows are predicted already.")
        with tqdm(desc="predicting", total=len(rows), initial=done, unit=" rows") as bar:
            for part in missing:
                tables, skipped = [], []
                for batch in decode({"rows": rows}, encoders, [part], arguments.batch_size, arguments.num_workers):
                    if batch.table.num_rows:
                        tables.append(_predict(model, batch))
                    skipped += [skipped_entry(error) for error in batch.bad_samples]
                    bar.update(batch.table.num_rows + len(batch.bad_samples))
                write_json(part.path.with_suffix(".json"), skipped)
                write_predictions(part.path, tables or [_nothing(config)])
        entries = [skipped_entry(error) for error in bad_rows]
        for part in parts:
            entries += read_json(part.path.with_suffix(".json"), [{str: str}])
        is_empty = len(entries) == len(rows) + len(bad_rows)
        if not is_empty:
            write = WRITERS[output.suffix.lower()]
            write_file(output, lambda file: write((pq.read_table(part.path) for part in parts), file))
            _report(entries, output, console.print)
    folder.rename(finished)
    shutil.rmtree(finished)
    if is_empty:
        first = entries[len(bad_rows)]
        told = f"The first, {first['id']}: {first['field']}: {first['reason']}"
        raise ValueError(f"No row of {arguments.dataset} can be used. {told}")


def _check_place(output: Path, dataset: str | None) -> None:
    """Raises `ValueError` where the output is a folder, lies in a file, or would replace the table that is read."""
    if output.is_dir():
        raise ValueError(f"`output` {output} is a folder; give the name of a file.")
    if wrong := next((x for x in output.parents if x.exists() and not x.is_dir()), None):
        raise ValueError(f"`output` {output} cannot lie in {wrong}, which is a file; give another place.")
    if output.exists() and dataset is not None and output.resolve() == Path(dataset).expanduser().resolve():
        raise ValueError(f"`output` {output} is the table that is read; give another name.")


def _load(name: str) -> FLI2MoEModel:
    """From a folder, or from the Hub."""
    if Path(name).is_dir():
        return load_model(name)
    try:
        return FLI2MoEModel.from_pretrained(name).eval()
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`model` {name} is no folder here, and cannot be had from the Hub: {reason:.200}") from error


def _read(
    encoders: Mapping[str, Encoder], fills: bool, arguments: PredictArguments
) -> tuple[Dataset, list[SampleError]]:
    """The rows, with a column for each modality, and what is left out."""
    columns = by_modality("column", arguments.column)
    if unknown := [name for name in columns if name not in encoders]:
        raise ValueError(
            f"`column` names {unknown[0]!r}; the model's modalities are {', '.join(encoders)}."
            f"{did_you_mean(unknown[0], encoders)}"
        )
    sources = {}
    for name, encoder in encoders.items():
        told = KINDS[encoder.kind].table_columns(encoder.identity())
        if not isinstance(told, str) and name in columns:
            raise ValueError(f"`column` names {name!r}, which is made of the columns {', '.join(told)}.")
        source = columns.get(name, name)
        if source in sources:
            raise ValueError(f"The column {source!r} would be two modalities; `column` must name another for {name!r}.")
        sources[source] = told
    rows, bad_rows = load_rows(
        arguments.dataset,
        sources,
        feature_sizes={columns.get(name, name): encoder.feature_size for name, encoder in encoders.items()},
        id_column=arguments.id,
        missing=arguments.missing or ("fill" if fills else "drop"),
        root=arguments.root,
        encoding=arguments.encoding,
        config_name=arguments.dataset_config,
        revision=arguments.dataset_revision,
    )
    return rows.rename_columns({column: name for name, column in columns.items() if column != name}), bad_rows


def _digest(rows: Dataset) -> str:
    """Of the content of all rows."""
    digest = hashlib.sha256(str(rows.features).encode())
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _begin(folder: Path, key: dict[str, Any]) -> None:
    """Removes the parts of other rows or of another model."""
    file = folder / "key.json"
    if file.is_file() and read_json(file, dict) == key:
        return
    for path in folder.iterdir():
        if path.name != "lock":
            remove(path)
    write_json(file, key)


def _parts(folder: Path, num_rows: int) -> list[Shard]:
    starts = range(0, num_rows, PART_ROWS)
    return [
        Shard(folder, "rows", index, len(starts), range(start, min(start + PART_ROWS, num_rows)), "")
        for index, start in enumerate(starts)
    ]


@torch.no_grad()
def _predict(model: FLI2MoEModel, batch: DecodedBatch) -> pa.Table:
    # a modality that all of them lack has no other inputs
    output = model(**{name: x.inputs for name, x in batch.inputs.items() if x.inputs.keys() != {IS_GIVEN}})
    logits, expert_logits, weights = (
        x.float().cpu() for x in (output.logits, output.expert_logits, output.expert_weights)
    )
    predictions = Predictions(batch.table["id"].to_pylist(), logits, expert_logits, weights, labels=None)
    lacks = {name: batch.table[name].is_null().to_pylist() for name in batch.inputs}
    missing = [
        [name for name, row in zip(lacks, rows, strict=True) if row] for rows in zip(*lacks.values(), strict=True)
    ]
    return _with_missing(prediction_table(predictions, model.config), missing, model.config)


def _nothing(config: FLI2MoEConfig) -> pa.Table:
    """Predictions of no row."""
    experts, labels = config.num_experts, config.num_labels
    none = Predictions([], torch.zeros(0, labels), torch.zeros(0, experts, labels), torch.zeros(0, experts), None)
    return _with_missing(prediction_table(none, config), [], config)


def _with_missing(table: pa.Table, missing: list[list[str]], config: FLI2MoEConfig) -> pa.Table:
    """With a column `missing`, the modalities that the model stood in for, of a model that does so."""
    if config.fill_missing is None:
        return table
    return table.append_column("missing", pa.array(missing, pa.list_(pa.string())))


def _write_csv(tables: Iterator[pa.Table], file: Path) -> None:
    """Lists as JSON."""
    writer = None
    for table in tables:
        for index, item in enumerate(table.schema):
            if pa.types.is_nested(item.type):
                texts = [json.dumps(x, ensure_ascii=False) for x in table[item.name].to_pylist()]
                table = table.set_column(index, item.name, pa.array(texts, pa.string()))
        writer = writer or pyarrow.csv.CSVWriter(file, table.schema)
        writer.write_table(table)
    writer.close()


def _write_json_lines(tables: Iterator[pa.Table], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for table in tables:
            for row in table.to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(tables: Iterator[pa.Table], file: Path) -> None:
    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    writer.close()


WRITERS: dict[str, Callable[[Iterator[pa.Table], Path], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def _report(entries: list[dict[str, str]], output: Path, say: Callable[[str], None]) -> None:
    file = output.with_name(output.name + ".skipped.jsonl")
    if not entries:
        file.unlink(missing_ok=True)
    else:
        write_text(file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
        first = entries[0]
        say(
            f"Left out: {len(entries):,} {'rows' if len(entries) > 1 else 'row'} that cannot be used, see {file}; the "
            f"first, {first['id']}: {first['field']}: {first['reason']}"
        )
    say(f"Predictions: {output}")
