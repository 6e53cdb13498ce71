"""
Train the systems of the I²MoE paper's tables on the same features and print the table.

    accelerate launch recipes/compare.py --preset table1 --data <folder> --output_dir runs/table1

The folder is raw data in the layout of MM-IMDb, ENRICO or MMHS150K, or a feature cache, as a training recipe leaves and
names it; `--features <folder or data set on the Hub>` stands for the latter. All systems have the same options, seeds
and features; those of the model that make a system what it is are its own. A stopped comparison goes on with --resume,
which may also name further --systems.

    table1        vanilla fusions and I²MoE-MulT
    table2        every fusion without and with the mixture
    table4        ablations
    table5        what replaces a modality in its view
    robustness    performance with each modality missing or noised
    overhead      training and inference time, parameters (table 6)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from fl_i2moe.arguments import (
    EncodingArguments,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    option,
    parse_arguments,
    refuse_raw_options,
    starts_from_features,
)
from fl_i2moe.cache import is_cache, open_cache
from fl_i2moe.comparison import System, check_systems, choose_systems, compare_systems, render_markdown
from fl_i2moe.data.layouts import load_layout
from fl_i2moe.experiment import EncoderChoice, Job, create_accelerator, encode
from fl_i2moe.overhead import measure_overhead
from fl_i2moe.robustness import measure_robustness
from fl_i2moe.shared_features import open_features

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
# I²MoE, table 5
PERTURBATIONS = {
    f"{name}-vector": System(f"{name} vector", {"perturbation": name}, None if name == "random" else "random-vector")
    for name in ("random", "mean", "zero", "shuffle")
}
SYSTEMS = {**DENSE, **MIXTURES, **ABLATIONS, **PERTURBATIONS}
PAIRS = [name for pair in zip(DENSE, MIXTURES, strict=True) for name in pair]
SEEDS = {"seeds": [0, 1, 2]}
PRESETS = {
    "table1": {"systems": [*DENSE, FULL], **SEEDS},
    "table2": {"systems": PAIRS, **SEEDS},
    "table4": {"systems": [FULL, *ABLATIONS], **SEEDS},
    "table5": {"systems": list(PERTURBATIONS), **SEEDS},
    "robustness": {"systems": ["mult", FULL], "measure": "robustness", "keep_feature_means": True, **SEEDS},
    "overhead": {"systems": PAIRS, "measure": "overhead", "num_epochs": 1},
}
MEASUREMENTS = {"nothing": None, "robustness": measure_robustness, "overhead": measure_overhead}


@dataclass
class DataArguments:
    """On which features."""

    data: str | None = option(None, "Folder of raw data (MM-IMDb, ENRICO, MMHS150K) or of a feature cache.")
    image_encoder: str = option("openai/clip-vit-base-patch16", "Raw data: vision model of all pictures.")
    text_encoder: str = option("FacebookAI/roberta-base", "Raw data: text model of all texts.")
    min_label_count: int | None = option(None, "Raw MM-IMDb: predict all genres with so many training films.")


@dataclass
class CompareArguments:
    """Which systems, and what is told of them."""

    systems: list[str] = option([], f"Rows of the table, among {', '.join(SYSTEMS)}; the preset's if not given.")
    measure: Literal["nothing", "robustness", "overhead"] = option(
        "nothing", "What else is told of each system; robustness needs --keep_feature_means."
    )

    def __post_init__(self):
        choose_systems(SYSTEMS, self.systems)


def main():
    data, compare, encoding, model, training, output = parse_arguments(
        (DataArguments, CompareArguments, EncodingArguments, ModelArguments, TrainingArguments, OutputArguments),
        presets=PRESETS,
        default_preset=lambda given: "table1",
        description=__doc__,
    )
    if compare.measure == "robustness" and not model.keep_feature_means:
        raise ValueError("`measure` robustness needs `keep_feature_means`, for the mean of a missing modality.")
    if encoding.stream_features:
        raise ValueError("`stream_features` is for one run: a comparison reads the features for every system and seed.")
    from_features = starts_from_features(encoding, data, needs="data")
    if data.data and is_cache(data.data):
        refuse_raw_options(encoding, data, "data")
    accelerator = create_accelerator(training, output.output_dir)
    console = Console(quiet=not accelerator.is_main_process, highlight=False, markup=False, soft_wrap=True)
    systems = choose_systems(SYSTEMS, compare.systems)
    job = Job(encoding, model, training, output)
    if accelerator.is_main_process:
        check_systems(systems, job)
    accelerator.wait_for_everyone()
    if from_features:
        with accelerator.main_process_first():
            cache = open_features(encoding.features)
    elif is_cache(data.data):
        cache = open_cache(data.data)
    else:
        raw = load_layout(data.data, min_label_count=data.min_label_count, on_bad_sample=encoding.on_bad_sample)
        names = {"image": data.image_encoder, "text": data.text_encoder}
        encoders = {name: EncoderChoice(names[kind]) for name, kind in raw.modalities.items()}
        cache = encode(raw, encoders, encoding, accelerator, console)
    left_out = [x.title for x in systems.values() if x.min_modalities > len(cache.modalities)]
    if left_out:
        console.print(f"With {len(cache.modalities)} modalities this is no other system: {', '.join(left_out)}.")
    table = compare_systems(systems, cache, job, accelerator, console, MEASUREMENTS[compare.measure])
    console.print(render_markdown(table), soft_wrap=True)
    console.print(f"{Path(output.output_dir) / 'table.md'} and table.json beside it", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
