"""
Train FL-I²MoE to tell the topics of mobile screens from screenshots and wireframes (ENRICO).

    accelerate launch recipes/train_enrico.py --data_dir <ENRICO folder> --output_dir runs/enrico

Both modalities go through one encoder, each picture once. The split is MultiBench's. With `--features <folder or data
set on the Hub>` it starts from a feature cache, without screens and encoder.
"""

from dataclasses import asdict, dataclass

from fl_i2moe.arguments import (
    EncodingArguments,
    ImageEncoderArguments,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    option,
    parse_arguments,
    starts_from_features,
)
from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.experiment import Job, create_accelerator, run_experiment
from fl_i2moe.published import ENCODERS, published_presets
from fl_i2moe.run_features import choose_encoders

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
    job = Job(encoding, model, training, output)
    from_features = starts_from_features(encoding, data, needs="data_dir")
    accelerator = create_accelerator(training, output.output_dir)
    raw, encoders = None, {}
    if not from_features:
        raw = load_enrico(data.data_dir, on_bad_sample=encoding.on_bad_sample)
        encoders = choose_encoders(data, ENCODERS["enrico"], raw.modalities)
    run_experiment(raw, encoders, job, accelerator, job.settings(**asdict(data)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
