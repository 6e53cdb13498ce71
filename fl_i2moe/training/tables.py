"""A user's own table: the options of reading it, its modalities, and the encoder of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, DatasetDict

from ..cache.encoding import Encoder
from ..cache.fitting import fit_encoders
from ..data.layouts import LAYOUTS, load_layout
from ..data.raw import RawDataset
from ..data.table_cells import Missing
from ..data.table_labels import LabelType
from ..data.tables import load_table
from ..model.configuration_fl_i2moe import SHARE, check_options, did_you_mean, option
from ..model.kinds import ENCODED_KINDS
from .arguments import Job, given_options
from .features import EncoderChoice
from .published import CLIP, ENCODERS, ROBERTA

DEFAULT_ENCODERS = {"image": CLIP, "text": ROBERTA, "audio": "facebook/wav2vec2-base-960h"}
"""Kind → encoder where none is named: the papers' for pictures and texts."""

TABULAR = "tabular"
"""What a modality of several columns is called where it has no other name."""

Modalities = Mapping[str, str | Sequence[str]]
"""Column → kind of its values; or a name of its own → the columns that make it up."""


@dataclass(frozen=True)
class Table:
    """A table, and what is made of its columns."""

    source: str | Path | Dataset | DatasetDict
    """A file, a folder, a data set on the Hub, or the data themselves."""

    modalities: Modalities
    """In the order of the experts."""

    label: Sequence[str]
    """Columns; none of a folder in a published layout, see [`~fl_i2moe.data.layouts`]."""

    choices: Mapping[str, EncoderChoice]
    """From [`encoders_by_name`]."""


@dataclass
class ReadingArguments:
    """How a table is read. What an option leaves open is guessed from the columns, and said."""

    label_type: LabelType | None = option(
        None, "What the labels are: one class a sample, several labels, or numbers; guessed if not given."
    )
    label_separator: str | None = option(None, "What stands between several labels in one text, such as ', '.")
    label_names: list[str] | None = option(None, "The classes, in this order; those of the labels if not given.")
    id: str | None = option(None, "Column of the ids; numbers of rows if not given.")
    split: str | None = option(None, "Column of the splits: train, validation and test.")
    group: str | None = option(None, "Column of groups, which drawn splits keep together: patients, products, authors.")
    validation_share: float = option(0.1, "Share of the training rows to validate on, if none are given.", within=SHARE)
    test_share: float = option(0.2, "Share of the training rows to test on, if none are given.", within=SHARE)
    split_seed: int = option(0, "Seed of that draw.", at_least=0)
    missing: Missing = option(
        "stop", "What to do with a row that lacks a modality: stop, leave it out, or let the model stand in for it."
    )
    root: str | None = option(None, "Folder that paths in the table start from; the table's own if not given.")
    encoding: str = option("utf-8", "Encoding of a text file.")
    dataset_config: str | None = option(None, "Configuration of a data set on the Hub.")
    dataset_revision: str | None = option(None, "Commit, tag or branch of a data set on the Hub.")
    categorical: list[str] | None = option(None, "Columns of numbers whose values are categories, not amounts.")
    standardize: bool = option(
        True, "Scale arrays and columns of numbers to mean 0 and standard deviation 1 over the training split."
    )

    def __post_init__(self):
        check_options(self)

    @property
    def options(self) -> dict[str, Any]:
        """Those of [`~fl_i2moe.data.tables.load_table`]."""
        renamed = {"id": "id_column", "split": "split_column", "group": "group_column"}
        renamed |= {"dataset_config": "config_name", "dataset_revision": "revision"}
        others = {"categorical", "standardize"}
        names = [item.name for item in fields(ReadingArguments) if item.name not in others]
        return {renamed.get(name, name): getattr(self, name) for name in names}


@dataclass
class TableArguments(ReadingArguments):
    """Which table, what its columns hold, and which encoders they go through."""

    dataset: str | None = option(None, "File (.csv, .jsonl, .parquet …), folder, or data set on the Hub.")
    image: list[str] | None = option(
        None, "Columns of pictures, each a modality: files, or the pictures themselves.", repeatable=True
    )
    text: list[str] | None = option(None, "Columns of texts, each a modality.", repeatable=True)
    audio: list[str] | None = option(None, "Columns of sounds, each a modality.", repeatable=True)
    array: list[str] | None = option(
        None, "Columns of vectors or sequences of vectors, each a modality.", repeatable=True
    )
    tabular: list[str] | None = option(
        None,
        "Columns of numbers and categories that make one modality together, called tabular; name=column,column for "
        "another name, or several such modalities.",
        repeatable=True,
    )
    label: list[str] | None = option(
        None, "Column of what is predicted; several columns for several labels.", repeatable=True
    )
    encoder: list[str] | None = option(
        None,
        "column=encoder: Hub id or folder; CLIP for pictures, RoBERTa for texts, Wav2Vec2 for sounds if not given.",
        repeatable=True,
    )
    encoder_revision: list[str] | None = option(None, "column=commit, tag or branch of its encoder.", repeatable=True)
    hidden_layer: list[str] | None = option(
        None,
        "column=hidden layer taken, 0 for embeddings; the last if not given. Earlier layers mix positions less.",
        repeatable=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset is not None:
            self.to_table()  # refused now, where it is wrong

    def to_table(self) -> Table:
        """Raises `ValueError` where an option of it is missing or wrong, see [`encoders_by_name`]."""
        layout = self._layout()
        if not self.label and not layout:
            raise ValueError("`label` is needed: the column of what is predicted.")
        modalities = dict(LAYOUTS[layout].modalities) if layout else self._modalities
        layers = by_modality("hidden_layer", self.hidden_layer)
        if wrong := next((x for x in layers.values() if not x.isdecimal()), None):
            raise ValueError(f"`hidden_layer` must be column=number, got {wrong!r}.")
        choices = encoders_by_name(
            modalities,
            by_modality("encoder", self.encoder),
            by_modality("encoder_revision", self.encoder_revision),
            {name: int(layer) for name, layer in layers.items()},
            ENCODERS[layout] if layout else DEFAULT_ENCODERS,
        )
        return Table(self.dataset, modalities, self.label or (), choices)

    def _layout(self) -> str | None:
        """The published layout of the folder that is named without columns."""
        folder = Path(self.dataset)
        found = [name for name, layout in LAYOUTS.items() if (folder / layout.file).is_file()]
        if self.label or self._modalities or len(found) != 1:
            return None
        [layout] = found
        if given := given_options(self, [item.name for item in fields(ReadingArguments)]):
            raise ValueError(f"`{given[0]}` is for tables; {self.dataset} has the {LAYOUTS[layout].title} layout.")
        return layout

    @property
    def _modalities(self) -> dict[str, str | list[str]]:
        named: list[tuple[str, str | list[str]]] = []
        for kind in ("image", "text", "audio", "array"):
            named += [(column, kind) for column in getattr(self, kind) or []]
        alone = [entry for entry in self.tabular or [] if "=" not in entry]
        named += [(TABULAR, alone)] if alone else []
        for entry in self.tabular or []:
            name, is_named, columns = entry.partition("=")
            named += [(name, columns.split(","))] if is_named else []
        names = [name for name, _ in named]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"The modality {twice!r} is named twice; every column has one kind.")
        return dict(named)


def encoders_by_name(
    modalities: Modalities,
    encoders: Mapping[str, str],
    revisions: Mapping[str, str] | None = None,
    hidden_layers: Mapping[str, int] | None = None,
    defaults: Mapping[str, str] = DEFAULT_ENCODERS,
) -> dict[str, EncoderChoice]:
    """
    Modality → encoder, of those whose kind has encoders; `defaults` are by kind. Raises `ValueError` where there is one
    modality alone, or an encoder is given for something else.
    """
    if len(modalities) < 2:
        found = f"only {next(iter(modalities))!r} is given" if modalities else "none is given"
        raise ValueError(
            f"A mixture needs at least two modalities, {found}: name columns by `image`, `text`, `audio`, `array` or "
            "`tabular`."
        )
    revisions, hidden_layers = revisions or {}, hidden_layers or {}
    encoded = {name: kind for name, kind in modalities.items() if isinstance(kind, str) and kind in ENCODED_KINDS}
    for option_name, given in (
        ("encoder", encoders),
        ("encoder_revision", revisions),
        ("hidden_layer", hidden_layers),
    ):
        if unknown := [name for name in given if name not in encoded]:
            what = "needs no encoder" if unknown[0] in modalities else "is no modality"
            raise ValueError(
                f"`{option_name}` names {unknown[0]!r}, which {what}; encoders are for "
                f"{', '.join(encoded) or 'pictures, texts and sounds'}.{did_you_mean(unknown[0], encoded)}"
            )
    return {
        name: EncoderChoice(encoders.get(name, defaults[kind]), revisions.get(name), hidden_layers.get(name))
        for name, kind in encoded.items()
    }


def read_table(
    table: Table, reading: ReadingArguments, job: Job, accelerator: Accelerator
) -> tuple[RawDataset, dict[str, EncoderChoice | Encoder]]:
    """
    The raw data of a table, and the encoder of each modality or which one to load; raises `ValueError` as
    [`~fl_i2moe.data.tables.load_table`]. A model on rows that lack a modality is told to stand in for it.
    """
    with accelerator.main_process_first():  # the others find the tables that it converted
        on_bad_sample = job.encoding.on_bad_sample
        if table.label:
            options = {"label": table.label, "on_bad_sample": on_bad_sample, **reading.options}
            raw = load_table(table.source, table.modalities, **options)
        else:
            raw = load_layout(table.source, on_bad_sample=on_bad_sample)
    if reading.missing == "fill" and job.model.fill_missing is None:
        job.model.fill_missing = "zero"
    return raw, {**table.choices, **fit_encoders(raw, reading.standardize, reading.categorical or ())}


def by_modality(option_name: str, entries: Sequence[str] | None) -> dict[str, str]:
    """`column=value` → its parts."""
    found = {}
    for entry in entries or []:
        name, _, value = entry.partition("=")
        if not name or not value.strip():
            raise ValueError(f"`{option_name}` must be column=value, got {entry!r}.")
        if name in found:
            raise ValueError(f"`{option_name}` names {name!r} twice.")
        found[name] = value
    return found
