"""
Train FL-I²MoE to tell the topics of mobile screens from screenshots and wireframes (ENRICO).

    accelerate launch recipes/train_enrico.py --data_dir <ENRICO folder> --output_dir runs/enrico

Both modalities go through one encoder, each picture once. The split is MultiBench's. With `--features <folder or data
set on the Hub>` it starts from a feature cache, without screens and encoder.
"""

from dataclasses import dataclass
from functools import partial

from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.training.arguments import (
    EncodingArguments,
    ImageEncoderArguments,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    option,
    parse_arguments,
)
from fl_i2moe.training.experiment import Job, run_on_folder
from fl_i2moe.training.published import ENCODERS, published_presets

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
        default_preset=lambda given: "paper",
        description=__doc__,
    )
    load = partial(load_enrico, data.data_dir, on_bad_sample=encoding.on_bad_sample)
    run_on_folder(data, Job(encoding, model, training, output), load, ENCODERS["enrico"])


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
