"""
Hold explanations against what is planted in the built-in sample: right expert, evidence, pairs.

    python recipes/evaluate_explanations.py --models runs/sample runs/dense --output_dir runs/ground_truth

Each of `--models` is the output folder of recipes/train_mmimdb.py on the sample, with one trained model a seed, or the
folder of one model. It leaves ground_truth.json, ground_truth.md and carriers.png. A second start goes on after the
models that are measured already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from fl_i2moe.arguments import option, parse_arguments
from fl_i2moe.cache import FeatureCache
from fl_i2moe.data.planted import FORMAT_VERSION, load_planted_truth
from fl_i2moe.explain.evaluation_run import EvaluationArguments, Run, evaluate_runs, find_runs
from fl_i2moe.explain.ground_truth import Evidence, grow, patches_in_boxes, patches_to_features, tokens_in_spans
from fl_i2moe.sample_encoders import user_cache_dir

CARRIERS = {
    "unique_image": "uniqueness_image",
    "unique_text": "uniqueness_text",
    "synergy": "synergy",
    "redundancy": "redundancy",
}


@dataclass
class PlantedArguments(EvaluationArguments):
    data_dir: str | None = option(None, "The planted sample; what the run was trained on if not given.")


def main():
    (options,) = parse_arguments(
        (PlantedArguments,), presets={"sample": {}}, default_preset=lambda given: "sample", description=__doc__
    )
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(
            f"One process does all of this: launch with --num_processes 1, not {accelerator.num_processes}."
        )
    runs = find_runs(options.models, options.cache_dir)
    planted, cache = load_planted_truth(find_films(runs, options.data_dir)), runs[0].cache
    if unknown := set(cache.label_names) - set(planted["genres"]):
        raise ValueError(f"Nothing is planted for {sorted(unknown)}, which {cache.path} has among its labels.")
    if wrong := {"image", "text"} ^ set(cache.modalities):
        raise ValueError(f"{cache.path} is no cache of the planted sample: {sorted(wrong)} is too much or missing.")
    carriers = {label: CARRIERS[planted["genres"][label]["interaction"]] for label in cache.label_names}
    truth = locate_evidence(planted, cache, "train") | locate_evidence(planted, cache, options.split)
    evaluate_runs(runs, truth, carriers, options, accelerator)


def find_films(runs: Sequence[Run], data_dir: str | None) -> Path:
    """The planted sample that the runs were trained on."""
    if data_dir:
        return Path(data_dir)
    folders = set()
    for run in runs:
        if not run.settings:
            raise ValueError(f"No run.json says which films {run.folder} was trained on: give --data_dir.")
        sample = f"v{FORMAT_VERSION}-{run.settings.get('num_films')}-films-seed-{run.settings.get('sample_seed')}"
        folders.add(Path(run.settings.get("data_dir") or user_cache_dir() / "planted" / sample))
    if len(folders) > 1:
        raise ValueError(f"The runs were trained on different films: {', '.join(sorted(map(str, folders)))}.")
    return folders.pop()


def locate_evidence(planted: Mapping[str, Any], cache: FeatureCache, split: str) -> dict[str, dict[str, Evidence]]:
    """Film → genre → the patches of its object and the tokens of its word."""
    columns = ["id", "image_special_mask", "image_geometry", "text_offsets"]
    grid = tuple(cache.modalities["image"]["grid"])
    located = {}
    for row in cache.splits[split].select_columns(columns):
        if row["id"] not in planted["films"]:
            raise ValueError(
                f"Film {row['id']} of the feature cache is not in the planted sample: these are other films."
            )
        located[row["id"]] = {}
        for genre in cache.label_names:
            told, spec = planted["films"][row["id"]][genre], planted["genres"][genre]
            features, near, states = {}, {}, {}
            if told["boxes"]:
                patches = patches_in_boxes(told["boxes"], row["image_geometry"], grid)
                features["image"] = patches_to_features(patches, row["image_special_mask"])
                near["image"] = patches_to_features(grow(patches), row["image_special_mask"])
                states["image"] = told["object"] in spec["objects_on"]
            if told["spans"]:
                features["text"] = near["text"] = tokens_in_spans(told["spans"], row["text_offsets"])
                states["text"] = told["word"] in spec["words_on"]
            located[row["id"]][genre] = Evidence(features, near, states)
    return located


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
