"""
Train FL-I²MoE to tell the topics of mobile screens from screenshots and wireframes (ENRICO).

    accelerate launch recipes/train_enrico.py --data_dir <ENRICO folder> --output_dir runs/enrico

Both modalities go through one encoder, each picture once. The split is MultiBench's. With `--features <folder or data
set on the Hub>` it starts from a feature cache, without screens and encoder.
"""

from dataclasses import dataclass

from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.training.arguments import (
    EncodingArguments,
    ImageEncoderArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    option,
)
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.experiment import run_job
from fl_i2moe.training.features import choose_encoders
from fl_i2moe.training.published import ENCODERS, published_presets
from fl_i2moe.training.recipe import run_recipe

# "paper": I²MoE, table 7 (ENRICO), and FL-I²MoE, section 4.1; "paper-switch", … : I²MoE, tables 8 to 10
PAPER = published_presets("enrico")


@dataclass
class DataArguments(ImageEncoderArguments):
    """Which screens, and which encoder for both modalities."""

    data_dir: str | None = option(None, "Folder in the raw ENRICO layout.")


def main():
    data, encoding, model, training, output = parse_arguments(
        (DataArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets=PAPER,
        description=__doc__,
    )

    def read(accelerator):
        raw = load_enrico(data.data_dir, on_bad_sample=encoding.on_bad_sample)
        return raw, choose_encoders(data, ENCODERS["enrico"], raw.modalities)

    run_job(Job(encoding, model, training, output), data, read, needs="data_dir")


if __name__ == "__main__":
    run_recipe(main)
