"""
Train FL-I²MoE to tell hateful tweets from their pictures and texts (MMHS150K).

    accelerate launch recipes/train_mmhs150k.py --data_dir <MMHS150K folder> --output_dir runs/mmhs150k

A tweet is hate where at least two of its three annotators say so. Picture and text go through the two towers of one
CLIP model; --append_image_text puts what was read in the picture behind the tweet's own text. With `--features <folder
or data set on the Hub>` it starts from a feature cache, without tweets and encoders.
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
from fl_i2moe.data.mmhs150k import load_mmhs150k
from fl_i2moe.experiment import EncoderChoice, Job, create_accelerator, run_experiment

# FL-I²MoE, section 4.1: "a comparable configuration", so that of MM-IMDb (I²MoE, table 7). CLIP reads 77 tokens
PAPER = {
    "num_epochs": 40,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_fusion_layers": 2,
    "dropout": 0.5,
    "interaction_loss_weight": 0.5,
    "reweighting_temperature": 2.0,
    "reweighting_hidden_size": 256,
    "num_reweighting_layers": 3,
    "text_max_length": 77,
}
CLIP = "openai/clip-vit-base-patch32"


@dataclass
class DataArguments:
    """Which tweets, and which encoders."""

    data_dir: str | None = option(None, "Folder in the raw MMHS150K layout.")
    append_image_text: bool = option(False, "Put the text that was read in the picture behind the tweet's.")
    image_encoder: str = option(CLIP, "Hub id or folder of a vision model.")
    image_revision: str | None = option(None, "Commit, tag or branch of the vision model.")
    image_hidden_layer: int | None = option(None, "Hidden layer of the vision model (0: embeddings); the last.")
    text_encoder: str = option(CLIP, "Hub id or folder of a text model.")
    text_revision: str | None = option(None, "Commit, tag or branch of the text model.")
    text_hidden_layer: int | None = option(None, "Hidden layer of the text model (0: embeddings); the last.")


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
        append, on_bad_sample = data.append_image_text, encoding.on_bad_sample
        raw = load_mmhs150k(data.data_dir, append_image_text=append, on_bad_sample=on_bad_sample)
        encoders = {
            "image": EncoderChoice(data.image_encoder, data.image_revision, data.image_hidden_layer),
            "text": EncoderChoice(data.text_encoder, data.text_revision, data.text_hidden_layer),
        }
    job = Job(encoding, model, training, output)
    run_experiment(raw, encoders, job, accelerator, job.settings(**asdict(data)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
