"""
Train the systems of the I²MoE paper's tables on the same features and print the tables.

    accelerate launch recipes/compare.py --preset tables --data <folder or file> --output_dir runs/tables

The folder is raw data in the layout of MM-IMDb, ENRICO or MMHS150K, or a feature cache, as a training recipe leaves and
names it; `--features <folder or data set on the Hub>` stands for the latter. A file is one of arrays, read as
recipes/train_arrays.py reads it. All systems have the same options, seeds and features, except for the options of the
model that define a system. With --hyperparameters, each fusion has those that I²MoE found for it on a data set, except
for options on the command line. A stopped comparison goes on with --resume, which may also name another preset (but
overhead) or further --systems: what an output folder holds is not trained again.

    tables        tables 1, 2, 4 and 5, each system trained once
    table1        vanilla fusions and I²MoE-MulT
    table2        every fusion without and with the mixture
    table4        ablations
    table5        what replaces a modality in its view
    objectives    MulT without a mixture, and what makes the experts of a mixture differ
    robustness    performance with each modality missing or noised
    overhead      training and inference time, parameters (table 6)
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from fl_i2moe.cache import is_cache, open_cache
from fl_i2moe.cache.fitting import fit_encoders
from fl_i2moe.comparison.measurements import measure_overhead, measure_robustness
from fl_i2moe.comparison.systems import (
    COMPARISON_FILES,
    System,
    Table,
    choose_systems,
    compare_systems,
    own_jobs,
    render_markdown,
    with_options,
)
from fl_i2moe.data.array_files import is_array_file
from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.layouts import find_layout, load_layout
from fl_i2moe.training.arguments import (
    ArrayArguments,
    EncodingArguments,
    ImageEncoderArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TextEncoderArguments,
    TrainingArguments,
    given_options,
    option,
    refuse_raw_options,
    starts_from_features,
)
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.experiment import start_job
from fl_i2moe.training.features import choose_encoders, encode, fetch_features
from fl_i2moe.training.published import ENCODERS, TEXT_LENGTHS, DataSet, published_settings
from fl_i2moe.training.recipe import create_console, run_recipe

FUSIONS = {
    "ef": ("EF", "early"),
    "lf": ("LF", "late"),
    "lrmf": ("LRMF", "low_rank"),
    "interpretcc": ("InterpretCC", "interpretcc"),
    "switchgate": ("SwitchGate", "switch"),
    "moe++": ("MoE++", "moe++"),
    "mult": ("MulT", "transformer"),
}
DENSE = {name: System(title, {"architecture": "dense", "fusion": fusion}) for name, (title, fusion) in FUSIONS.items()}
MIXTURES = {
    f"i2moe-{name}": System(f"I²MoE-{title}", {"architecture": "moe", "fusion": fusion}, against=name)
    for name, (title, fusion) in FUSIONS.items()
}
FULL = "i2moe-mult"
# I²MoE, section 7
ABLATIONS = {
    "no-interaction": System("(1) No-Interaction", {"interaction_loss_weight": 0.0}, FULL),
    "latent-contrastive": System("(2) Latent-Contrastive", {"interaction_loss_on": "latents"}, FULL),
    "simple-weight": System("(3) Simple-Weight", {"reweighting": "global"}, FULL),
    "less-forward": System("(4) Less-Forward", {"num_perturbed_views": 2}, FULL, min_modalities=3),
    "synergy-redundancy": System("(5) Synergy-Redundancy", {"interaction_experts": "synergy_redundancy"}, FULL),
}
# I²MoE, table 5, beside the random vector that I²MoE-MulT uses
PERTURBATIONS = {
    f"{name}-vector": System(f"{name} vector", {"perturbation": name}, FULL) for name in ("mean", "zero", "shuffle")
}
# beside the published objective, which I²MoE-MulT has
OBJECTIVES = {"specialised": System("I²MoE-MulT, specialised", {"objective": "specialised"}, FULL)}
SYSTEMS = {**DENSE, **MIXTURES, **ABLATIONS, **PERTURBATIONS, **OBJECTIVES}
PAIRS = [name for pair in zip(DENSE, MIXTURES, strict=True) for name in pair]
RESULTS = {
    "table1": Table("Table 1: vanilla fusions and I²MoE-MulT", [*DENSE, FULL]),
    "table2": Table("Table 2: every fusion without and with the mixture", PAIRS),
    "table4": Table("Table 4: ablations", [FULL, *ABLATIONS]),
    "table5": Table(
        "Table 5: what replaces a modality in its view", [FULL, *PERTURBATIONS], row_titles={FULL: "random vector"}
    ),
}
TABLES = {
    **RESULTS,
    "objectives": Table("Objectives", ["mult", FULL, *OBJECTIVES], row_titles={FULL: "I²MoE-MulT, published"}),
    "robustness": Table("Robustness: MulT without and with the mixture", ["mult", FULL]),
    "overhead": Table("Table 6: overhead of the mixture", PAIRS),
}
# mean features stand in for a missing modality: robustness can be measured on what any table trained
COMMON = {"seeds": [0, 1, 2], "keep_feature_means": True}
PRESETS = {
    "tables": {"tables": list(RESULTS), **COMMON},
    **{name: {"tables": [name], **COMMON} for name in (*RESULTS, "objectives")},
    "robustness": {"tables": ["robustness"], "measure": "robustness", **COMMON},
    "overhead": {"tables": ["overhead"], "measure": "overhead", "num_epochs": 1},
}
MEASUREMENTS = {"nothing": None, "robustness": measure_robustness, "overhead": measure_overhead}


@dataclass
class DataArguments(ArrayArguments, ImageEncoderArguments, TextEncoderArguments):
    """On which features."""

    data: str | None = option(
        None, "Folder of raw data (MM-IMDb, ENRICO, MMHS150K) or of a feature cache; or file of arrays."
    )
    min_label_count: int | None = option(None, "Raw MM-IMDb: predict all genres with so many training films.")

    def check(self) -> None:
        """Refuses options that `data` has no use for."""
        arrays = [x.name for x in fields(ArrayArguments)]
        others = [x.name for x in fields(self) if x.name not in ("data", *arrays)]
        if is_array_file(self.data):
            kind, foreign = "a file of arrays", others
        else:
            kind, foreign = "a folder of raw data", arrays
        if given := given_options(self, foreign):
            raise ValueError(f"`{given[0]}` says nothing about {kind}, which {self.data} is.")


@dataclass
class CompareArguments:
    """Which systems, and what is measured on them."""

    tables: list[str] = option([], f"Tables to print, among {', '.join(TABLES)}; the preset's if not given.")
    systems: list[str] = option(
        [], f"Rows of one table, instead of --tables, among {', '.join(SYSTEMS)}; those of --tables if not given."
    )
    measure: Literal["nothing", "robustness", "overhead"] = option(
        "nothing", "What else is measured on each system; robustness needs --keep_feature_means."
    )
    hyperparameters: DataSet | None = option(
        None,
        "Take those that I²MoE found for this data set, each fusion its own (tables 7 to 10); an option that is given "
        "on the command line holds for all systems instead.",
    )

    def __post_init__(self):
        if unknown := [name for name in self.tables if name not in TABLES]:
            raise ValueError(f"Unknown tables {unknown}; there are {', '.join(TABLES)}.")
        if self.systems:
            self.tables = []
        else:
            self.systems = list(dict.fromkeys(name for table in self.tables for name in TABLES[table].systems))
        choose_systems(SYSTEMS, self.systems)


def read(data, encoding):
    """Raw data, and the encoder of each modality."""
    if is_array_file(data.data):
        raw = load_arrays(data.data, **data.reading, on_bad_sample=encoding.on_bad_sample)
        return raw, fit_encoders(raw, data.standardize)
    raw = load_layout(data.data, min_label_count=data.min_label_count, on_bad_sample=encoding.on_bad_sample)
    layout = find_layout(data.data)
    if layout in TEXT_LENGTHS and not data.text_encoder and "text_max_length" not in encoding.given:
        encoding.text_max_length = min(encoding.text_max_length, TEXT_LENGTHS[layout])
    return raw, choose_encoders(data, ENCODERS[layout], raw.modalities)


def main():
    data, compare, encoding, model, training, output = parse_arguments(
        (DataArguments, CompareArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets=PRESETS,
        default_preset=lambda given: "table1",
        description=__doc__,
    )
    job = Job(encoding, model, training, output)
    if compare.measure == "robustness" and not model.keep_feature_means:
        raise ValueError("`measure` robustness needs `keep_feature_means`, for the mean of a missing modality.")
    if "objectives" in compare.tables and model.objective != "published":
        raise ValueError("`objective` is what the table of objectives compares; leave it out.")
    if encoding.stream_features:
        raise ValueError("`stream_features` is for one run: a comparison reads the features for every system and seed.")
    from_features = starts_from_features(encoding, data, needs="data")
    if data.data and is_cache(data.data):
        refuse_raw_options(encoding, data, "data")
    elif not from_features:
        data.check()
    systems = choose_systems(SYSTEMS, compare.systems)
    if compare.hyperparameters:
        systems = {
            name: with_options(
                x, published_settings(compare.hyperparameters, x.model.get("fusion", model.fusion)), but=encoding.given
            )
            for name, x in systems.items()
        }
    own_jobs(systems, job)  # refuses what does not go together, before an hour of encoding
    accelerator = start_job(job, COMPARISON_FILES)
    console = create_console(accelerator)
    if from_features:
        cache = fetch_features(encoding, accelerator)
    elif is_cache(data.data):
        cache = open_cache(data.data)
    else:
        cache = encode(*read(data, encoding), job, accelerator)
    if compare.measure == "robustness" and cache.missing:
        raise ValueError("`measure` robustness takes a modality away, and some samples lack one already.")
    left_out = [x.title for x in systems.values() if x.min_modalities > len(cache.modalities)]
    if left_out:
        console.print(f"With {len(cache.modalities)} modalities this is no other system: {', '.join(left_out)}.")
    tables = [TABLES[name] for name in compare.tables]
    table = compare_systems(systems, cache, job, accelerator, console, MEASUREMENTS[compare.measure], tables)
    console.print(render_markdown(table), soft_wrap=True)
    console.print(f"{Path(output.output_dir) / 'table.md'} and table.json beside it", soft_wrap=True)


if __name__ == "__main__":
    run_recipe(main)
