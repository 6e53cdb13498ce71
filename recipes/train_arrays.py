"""
Train FL-I²MoE on numeric arrays: any number of modalities, features already, from one .npz, .parquet or pickle file.

    accelerate launch recipes/train_arrays.py --data_file visits.npz --output_dir runs/visits

Without `--data_file` it makes numeric sequences of two or three modalities in which the interactions are known, and
trains on those:

    accelerate launch recipes/train_arrays.py --num_modalities 3 --output_dir runs/numeric

The file holds fields of N samples: one for each modality, (N, D) or (N, T, D) with an optional <modality>_mask (N, T);
labels, (N,) classes, (N, C) zeros and ones, or other numbers; optional split (train, validation, test), ids and
label_names. In a .parquet file fields are columns, of lists or lists of lists for modalities. In an .npz file fields
may end with their split (labels_train, labels_test). A pickle holds a dict of fields, or of splits of fields as the
MultiBench MOSI file does; nothing but arrays is read from it. Presets adni, mimic, mosi and mmimdb are I²MoE's settings
for four, three and two modalities, each pooled to one vector; --level feature keeps sequences, as explanations need.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fl_i2moe.cache.fitting import fit_encoders
from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.numeric import NumericSettings, write_numeric
from fl_i2moe.model.sample_encoders import find_in_user_cache
from fl_i2moe.training.arguments import (
    ArrayArguments,
    CacheArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    option,
)
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.experiment import fit, start_job
from fl_i2moe.training.features import encode
from fl_i2moe.training.published import published_presets
from fl_i2moe.training.recipe import run_recipe

# I²MoE, table 7, the columns in which data sets agree, and its published dropout
ARRAYS = {
    "num_epochs": 50,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_fusion_layers": 2,
    "dropout": 0.5,
    "interaction_loss_weight": 0.5,
    "reweighting_temperature": 2.0,
    "reweighting_hidden_size": 256,
    "num_reweighting_layers": 2,
}
# I²MoE, tables 7 to 10, as "adni", "adni-switch", "adni-interpretcc", "adni-moe++" and so on
PAPER = {
    # image, genetic, clinical and biospecimen data; three classes
    **published_presets("adni", "adni", level="pooled"),
    # laboratory values, notes and codes; two classes
    **published_presets("mimic", "mimic", level="pooled"),
    # text, vision and audio; regression, whose sign_accuracy is the tables' accuracy. MultiBench, which published the
    # file, replaces infinite numbers
    **published_presets("mosi", "mosi", level="pooled", replace_non_finite=True),
    # text and image of films, as recipes/convert_mmimdb_hdf5.py writes them; 23 labels
    **published_presets("mmimdb", "mmimdb", level="pooled"),
}
# Small and quick, enough to learn all interactions of the sample
SAMPLE = {
    "objective": "specialised",
    "num_epochs": 30,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_fusion_layers": 2,
    "dropout": 0.1,
    "reweighting_dropout": 0.1,
    "interaction_loss_weight": 0.5,
    "reweighting_temperature": 2.0,
    "reweighting_hidden_size": 32,
    "num_reweighting_layers": 2,
}


@dataclass
class DataArguments(ArrayArguments):
    """Which arrays, and how they are read."""

    data_file: str | None = option(None, "File of arrays: .npz, .parquet, .pkl; a built-in sample if not given.")
    num_modalities: int = option(2, "Modalities of the built-in sample, 2 or 3.")
    num_samples: int = option(3000, "Samples of the built-in sample.")
    num_tokens: int = option(20, "Features of each sequence of the built-in sample.")
    evidence_tokens: int = option(3, "Features of a modality that show its evidence for one label.")
    evidence_positions: list[int] | None = option(None, "Where those may lie; anywhere if not given.")
    fixed_positions: bool = option(False, "Keep them in the same place in every sample.")
    noise: float = option(0.2, "Standard deviation of the noise on every number; evidence has size 1.")
    labels_per_kind: int | None = option(
        None, "Labels of each interaction and set of modalities; 2 of two modalities, 1 of three if not given."
    )
    sample_seed: int = option(0, "Seed of the built-in sample.")

    def __post_init__(self):
        super().__post_init__()
        if self.labels_per_kind is None:
            self.labels_per_kind = 2 if self.num_modalities == 2 else 1
        NumericSettings.from_options(vars(self))


def main():
    data, encoding, model, training, output = parse_arguments(
        (DataArguments, CacheArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets={"arrays": ARRAYS, **PAPER, "sample": SAMPLE},
        default_preset=lambda given: "arrays" if given.data_file else "sample",
        description=__doc__,
    )
    job = Job(encoding, model, training, output)
    accelerator = start_job(job)
    carriers: list[str] = []
    if data.data_file:
        file = Path(data.data_file)
    else:
        settings = NumericSettings.from_options(vars(data))
        folder = find_in_user_cache("numeric", settings.folder_name)
        accelerator.print(
            f"Arrays: a built-in sample with known interactions, {folder}. Give your own with --data_file."
        )
        with accelerator.main_process_first():
            file = write_numeric(folder, settings)
        carriers = [label.carrier for label in settings.labels.values()]
    raw = load_arrays(file, **data.reading, on_bad_sample=encoding.on_bad_sample)
    truth = dict(zip(raw.label_names, carriers, strict=False))
    encoders = fit_encoders(raw, data.standardize)
    if model.level == "feature" and all(encoder.max_features == 1 for encoder in encoders.values()):
        accelerator.print(
            "Each modality is one vector: --level pooled cuts it into --num_patches pieces, as I²MoE does."
        )
    cache = encode(replace(raw, truth=truth), encoders, job, accelerator)
    fit(cache, job, accelerator, job.settings(**asdict(data)))


if __name__ == "__main__":
    run_recipe(main)
