"""
Train FL-I²MoE to tell hateful tweets from their pictures and texts (MMHS150K).

    accelerate launch recipes/train_mmhs150k.py --data_dir <MMHS150K folder> --output_dir runs/mmhs150k

A tweet is hate where at least two of its three annotators say so. Picture and text go through the two towers of one
CLIP model; --append_image_text puts what was read in the picture behind the tweet's own text. With `--features <folder
or data set on the Hub>` it starts from a feature cache, without tweets and encoders.
"""

from dataclasses import dataclass

from fl_i2moe.data.mmhs150k import load_mmhs150k
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

# FL-I²MoE, section 4.1: "a comparable configuration", so that of MM-IMDb (I²MoE, tables 7 to 10)
PAPER = published_presets("mmimdb", text_max_length=TEXT_LENGTHS["mmhs150k"])


@dataclass
class DataArguments(ImageEncoderArguments, TextEncoderArguments):
    """Which tweets, and which encoders."""

    data_dir: str | None = option(None, "Folder in the raw MMHS150K layout.")
    append_image_text: bool = option(False, "Put the text that was read in the picture behind the tweet's.")


def main():
    data, encoding, model, training, output = parse_arguments(
        (DataArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets=PAPER,
        description=__doc__,
    )

    def read(accelerator):
        options = {"append_image_text": data.append_image_text, "on_bad_sample": encoding.on_bad_sample}
        raw = load_mmhs150k(data.data_dir, **options)
        return raw, choose_encoders(data, ENCODERS["mmhs150k"], raw.modalities)

    run_job(Job(encoding, model, training, output), data, read, needs="data_dir")


if __name__ == "__main__":
    run_recipe(main)
