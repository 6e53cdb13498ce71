"""
Train FL-I²MoE to tell the topics of mobile screens from screenshots and wireframes (ENRICO).

    accelerate launch recipes/train_enrico.py --data_dir <ENRICO folder> --output_dir runs/enrico

Both modalities go through one encoder, each picture once. The split is MultiBench's. With `--features <folder or data
set on the Hub>` it starts from a feature cache, without screens and encoder.
"""

from dataclasses import asdict, dataclass

from fl_i2moe.arguments import (
    EncodingArguments,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    option,
    parse_arguments,
    starts_from_features,
)
from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.experiment import EncoderChoice, Job, create_accelerator, run_experiment

# I²MoE, table 7 (ENRICO), and FL-I²MoE, section 4.1; the published code's dropout
PAPER = {
    "num_epochs": 50,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_fusion_layers": 2,
    "num_patches": 8,
    "dropout": 0.5,
    "interaction_loss_weight": 0.5,
    "reweighting_temperature": 2.0,
    "reweighting_hidden_size": 256,
    "num_reweighting_layers": 3,
}


@dataclass
class DataArguments:
    """Which screens, and which encoder."""

    data_dir: str | None = option(None, "Folder in the raw ENRICO layout.")
    image_encoder: str = option(
        "openai/clip-vit-base-patch16", "Hub id or folder of a vision model, for both modalities."
    )
    image_revision: str | None = option(None, "Commit, tag or branch of the vision model.")
    image_hidden_layer: int | None = option(None, "Hidden layer of the vision model (0: embeddings); the last.")


def main():
    data, encoding, model, training, output = parse_arguments(
        (DataArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets={"paper": PAPER},
        default_preset=lambda given: "paper",
        description=__doc__,
    )
    from_features = starts_from_features(encoding, data, needs="data_dir")
    accelerator = create_accelerator(training, output.output_dir)
    raw, encoders = None, {}
    if not from_features:
        raw = load_enrico(data.data_dir, on_bad_sample=encoding.on_bad_sample)
        encoder = EncoderChoice(data.image_encoder, data.image_revision, data.image_hidden_layer)
        encoders = dict.fromkeys(raw.modalities, encoder)
    job = Job(encoding, model, training, output)
    run_experiment(raw, encoders, job, accelerator, job.settings(**asdict(data)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
