"""
Train FL-I²MoE on your own table: any mix of pictures, texts, sounds, arrays and columns of numbers and categories.

    accelerate launch recipes/train.py --dataset tweets.csv --image picture --text tweet --label sentiment \\
        --output_dir runs/tweets

The table is a .csv, .tsv, .json, .jsonl or .parquet file, a folder that `datasets` saved, an imagefolder or
audiofolder, or a data set on the Hub. Each option of a kind names columns, and each column is a modality; --tabular
makes one of several columns. Experts are in the order image, text, audio, array, tabular. What columns and labels hold
is guessed and said; options override it. Splits are taken from the data or from a column, or drawn. --features <folder
or data set on the Hub> starts from a feature cache.

A folder in the layout of MM-IMDb, ENRICO or MMHS150K needs no columns; presets have the papers' settings:

    accelerate launch recipes/train.py --preset enrico --dataset <ENRICO folder> --output_dir runs/enrico
"""

from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.experiment import run_job
from fl_i2moe.training.published import TEXT_LENGTHS, published_presets
from fl_i2moe.training.recipe import run_recipe
from fl_i2moe.training.tables import TableArguments, read_table

PRESETS = {
    "default": {},  # what the options say of themselves: I²MoE's settings for MM-IMDb
    **published_presets("mmimdb", "mmimdb", text_max_length=TEXT_LENGTHS["mmimdb"]),
    **published_presets("enrico", "enrico"),
    **published_presets("mmimdb", "mmhs150k", text_max_length=TEXT_LENGTHS["mmhs150k"]),
    **published_presets("adni", "adni", level="pooled"),
    **published_presets("mimic", "mimic", level="pooled"),
    **published_presets("mosi", "mosi", level="pooled"),
}


def main():
    arguments, *parts = parse_arguments(
        (TableArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets=PRESETS,
        description=__doc__,
    )
    job = Job(*parts)
    run_job(
        job, arguments, lambda accelerator: read_table(arguments.to_table(), arguments, job, accelerator), "dataset"
    )


if __name__ == "__main__":
    run_recipe(main)
