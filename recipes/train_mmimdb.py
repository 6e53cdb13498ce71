"""
Train FL-I²MoE to tell the genres of films from their posters and plots.

    accelerate launch recipes/train_mmimdb.py --data_dir <MM-IMDb folder> --output_dir runs/mmimdb

Without `--data_dir` it makes a sample in the same layout, in which the interactions are known, and trains on that:

    accelerate launch recipes/train_mmimdb.py

With `--features <folder or data set on the Hub>` it starts from a feature cache, without films and encoders.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from fl_i2moe.data.mmimdb import load_mmimdb
from fl_i2moe.data.planted import PLANTED_GENRES, planted_folder_name, write_planted
from fl_i2moe.model.sample_encoders import find_in_user_cache
from fl_i2moe.training.arguments import (
    EncodingArguments,
    ImageEncoderArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TextEncoderArguments,
    TrainingArguments,
    option,
)
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.experiment import run_job
from fl_i2moe.training.features import choose_encoders
from fl_i2moe.training.published import ENCODERS, TEXT_LENGTHS, published_presets
from fl_i2moe.training.recipe import run_recipe

# "paper": I²MoE, table 7 (MM-IMDb), and FL-I²MoE, section 4.1; "paper-switch", … : I²MoE, tables 8 to 10
PAPER = published_presets("mmimdb", text_max_length=TEXT_LENGTHS["mmimdb"])
# Small and quick, enough to learn all four interactions of the sample
SAMPLE = {
    "objective": "specialised",
    "num_epochs": 20,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_fusion_layers": 2,
    "dropout": 0.2,
    "reweighting_dropout": 0.1,
    "interaction_loss_weight": 0.5,
    "reweighting_temperature": 2.0,
    "reweighting_hidden_size": 64,
    "num_reweighting_layers": 2,
    "text_max_length": 128,
}
SAMPLE_ENCODERS = {"image": "sample:efficientnet-lite0", "text": "sample:minilm"}


@dataclass
class DataArguments(ImageEncoderArguments, TextEncoderArguments):
    """Which films, and which encoders."""

    data_dir: str | None = option(None, "Folder in the raw MM-IMDb layout; the built-in sample if not given.")
    labels: list[str] | None = option(None, "Genres to predict; the 23 of MM-IMDb if not given.")
    min_label_count: int | None = option(None, "Predict all genres with at least so many training films.", at_least=1)
    num_films: int = option(2000, "Films of the built-in sample.")
    sample_seed: int = option(0, "Seed of the built-in sample.")

    def __post_init__(self):
        if self.labels and self.min_label_count:
            raise ValueError("`labels` and `min_label_count` exclude each other.")


def main():
    data, encoding, model, training, output = parse_arguments(
        (DataArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets={**PAPER, "sample": SAMPLE},
        default_preset=lambda given: "paper" if given.data_dir or given.features else "sample",
        description=__doc__,
    )

    def read(accelerator):
        if data.data_dir:
            data_dir, labels, encoders, planted = Path(data.data_dir), data.labels, ENCODERS["mmimdb"], {}
            accelerator.print(f"Films: {data_dir}")
        else:
            data_dir = find_in_user_cache("planted", planted_folder_name(data.num_films, data.sample_seed))
            labels, encoders, planted = data.labels, SAMPLE_ENCODERS, PLANTED_GENRES
            if not (labels or data.min_label_count):
                labels = list(PLANTED_GENRES)
            accelerator.print(
                f"Films: a built-in sample with known interactions, {data_dir}. Give your own with --data_dir."
            )
            with accelerator.main_process_first():
                write_planted(data_dir, num_films=data.num_films, seed=data.sample_seed)
        options = {"min_label_count": data.min_label_count, "on_bad_sample": encoding.on_bad_sample}
        raw = load_mmimdb(data_dir, labels=labels, **options)
        truth = {name: genre.carrier for name, genre in planted.items() if name in raw.label_names}
        choices = choose_encoders(data, encoders, raw.modalities)
        for modality, choice in choices.items():
            accelerator.print(f"Encoder of {modality}: {choice.name}. Give another with --{modality}_encoder.")
        return replace(raw, truth=truth), choices

    run_job(Job(encoding, model, training, output), data, read)


if __name__ == "__main__":
    run_recipe(main)
