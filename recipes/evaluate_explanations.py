"""
Hold explanations against what is planted in the built-in sample: right expert, evidence, pairs.

    python recipes/evaluate_explanations.py --models runs/sample runs/dense --output_dir runs/ground_truth

Each of `--models` is the output folder of recipes/train_mmimdb.py on the sample, with one trained model a seed, or the
folder of one model. It leaves ground_truth.json, ground_truth.md and carriers.png.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator
from datasets import disable_progress_bars
from rich.console import Console
from transformers.utils import logging as transformers_logging

from fl_i2moe import FLI2MoEModel
from fl_i2moe.arguments import option, parse_arguments
from fl_i2moe.batching import FeatureRows, create_data_loader
from fl_i2moe.cache import FeatureCache, open_cache
from fl_i2moe.data.planted import FORMAT_VERSION, load_planted_truth
from fl_i2moe.explain.attribution import METHODS
from fl_i2moe.explain.evaluation import (
    Case,
    choose_cases,
    evidence_ceiling,
    fit_probes,
    found_evidence,
    found_pairs,
    summarise,
)
from fl_i2moe.explain.ground_truth import (
    Evidence,
    ExpertOutputs,
    grow,
    patches_in_boxes,
    patches_to_features,
    right_experts,
    tokens_in_spans,
)
from fl_i2moe.explain.ground_truth_report import draw_carriers, to_markdown
from fl_i2moe.explain.interactions import ESTIMATORS
from fl_i2moe.run_folder import begin_run_folder, check_run_folder, replace_files, write_json
from fl_i2moe.sample_encoders import user_cache_dir
from fl_i2moe.training import predict

CARRIERS = {
    "unique_image": "uniqueness_image",
    "unique_text": "uniqueness_text",
    "synergy": "synergy",
    "redundancy": "redundancy",
}
PAIR_INTERACTIONS = ("synergy", "redundancy")


@dataclass
class EvaluationArguments:
    """What is held against the truth."""

    models: list[str] = option([], "Folders of runs on the planted sample, or of single models.")
    output_dir: str = option("runs/ground_truth", "Folder for the table, its numbers and the figure.")
    overwrite: bool = option(False, "Replace what is in --output_dir.")
    split: Literal["validation", "test"] = option("test", "Films that are explained; probes are fitted on train.")
    num_samples: int = option(200, "Explanations that are checked for evidence: a film and a genre it has.")
    num_probe_samples: int = option(600, "Training films that the probes are fitted on.")
    num_pair_samples: int = option(48, "Explanations that are checked for pairs.")
    num_coalitions: int = option(2, "Coalitions a pair.")
    estimator: Literal["shared_context", "per_pair"] = option("shared_context", "How pairs are scored.")
    universe_share: float = option(0.3, "Share of each modality's features whose pairs are scored.")
    methods: list[str] = option(list(METHODS), "Ways to score features.")
    num_steps: int = option(16, "Steps of integrated gradients.")
    num_resamples: int = option(1000, "Bootstrap samples behind an interval.")
    seed: int = option(0, "Of the choice of films, coalitions and bootstrap samples.")
    data_dir: str | None = option(None, "The planted sample; what the run was trained on if not given.")
    cache_dir: str | None = option(None, "The feature cache; the one in the user's cache if not given.")

    def __post_init__(self):
        if not self.models:
            raise ValueError("`models` names no run: give --models runs/sample.")
        for name in ("num_samples", "num_probe_samples", "num_coalitions", "num_steps", "num_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_pair_samples < 0:
            raise ValueError(f"`num_pair_samples` must be at least 0, got {self.num_pair_samples}.")
        if not 0 < self.universe_share <= 1:
            raise ValueError(f"`universe_share` must lie in (0, 1], got {self.universe_share}.")
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"`methods` has {sorted(unknown)}; there are {', '.join(METHODS)}.")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"`estimator` must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}.")


@dataclass
class Run:
    """Trained models of one configuration, seed by seed, and the features they were trained on."""

    folder: Path
    seeds: dict[str, Path]
    cache_dir: Path
    data_dir: Path


def main():
    (options,) = parse_arguments(
        (EvaluationArguments,), presets={"sample": {}}, default_preset=lambda given: "sample", description=__doc__
    )
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(f"One process does all of this: launch with --num_processes 1, not {accelerator.num_processes}.")
    console = Console(highlight=False, markup=False)
    runs = [find_run(folder, options) for folder in options.models]
    if len({(run.cache_dir, run.data_dir) for run in runs}) > 1:
        raise ValueError(
            "The runs were trained on different features, whose ceilings differ; evaluate them one by one:\n"
            + "\n".join(f"  {run.folder}: {run.cache_dir}, {run.data_dir}" for run in runs)
        )
    output_dir = Path(options.output_dir)
    settings = {name: value for name, value in asdict(options).items() if name not in ("output_dir", "overwrite")}
    check_run_folder(output_dir, resume=False, overwrite=options.overwrite)

    data = PlantedData(runs[0], options)
    console.print(f"{len(data.cases)} films and genres checked for evidence, {len(data.pair_cases)} for pairs")
    probes = fit_probes(data.train_rows, data.truth, data.label_names, options.num_probe_samples, options.seed)
    ceiling = evidence_ceiling(data.rows, data.cases, probes)
    report = {
        "settings": {
            "split": options.split,
            "samples": len(data.rows),
            "checked for evidence": len(data.cases),
            "for pairs": len(data.pair_cases),
            "coalitions a pair": options.num_coalitions,
            "universe": options.universe_share,
            "estimator": options.estimator,
        },
        "options": settings,
        "encoders": {name: x["encoder"] for name, x in data.cache.modalities.items()},
        "groups": data.carriers,
        "ceiling": data.summarise([ceiling], data.cases),
        "models": {str(run.folder): evaluate(run, data, options, accelerator, console) for run in runs},
    }
    begin_run_folder(output_dir, settings, resume=False, overwrite=options.overwrite)
    write_json(output_dir / "ground_truth.json", report)
    text = to_markdown(report)
    replace_files(output_dir, lambda folder: (folder / "ground_truth.md").write_text(text))
    if any(model["right_experts"] for model in report["models"].values()):
        replace_files(output_dir, lambda folder: draw_carriers(report).savefig(folder / "carriers.png"))
    console.print(text, soft_wrap=True)
    console.print(f"Written to {output_dir}")


def find_run(folder: str, options: EvaluationArguments) -> Run:
    """Where a run's models, features and films are; a `ValueError` says what is missing."""
    path = Path(folder)
    seeds = {x.parent.name.removeprefix("seed-"): x for x in sorted(path.glob("seed-*/model"))} or {"0": path}
    for model in seeds.values():
        if not (model / "config.json").is_file():
            raise ValueError(f"{model} holds no model: give the output folder of recipes/train_mmimdb.py.")
    settings = json.loads((path / "run.json").read_text()) if (path / "run.json").is_file() else {}
    if not settings and not (options.data_dir and options.cache_dir):
        raise ValueError(f"{path} has no run.json: say by --data_dir and --cache_dir what its models were trained on.")
    sample = f"v{FORMAT_VERSION}-{settings.get('num_films')}-films-seed-{settings.get('sample_seed')}"
    data_dir = options.data_dir or settings.get("data_dir") or user_cache_dir() / "planted" / sample
    cache_dir = options.cache_dir or user_cache_dir() / "features" / str(settings.get("features"))
    return Run(path, seeds, Path(cache_dir), Path(data_dir))


class PlantedData:
    """Features of the planted sample, where each genre shows in them, and the cases to explain."""

    def __init__(self, run: Run, options: EvaluationArguments):
        planted = load_planted_truth(run.data_dir)
        self.options = options
        self.cache = open_cache(run.cache_dir, verify=False)
        self.label_names = self.cache.label_names
        if unknown := set(self.label_names) - set(planted["genres"]):
            raise ValueError(f"Nothing is planted for {sorted(unknown)}, which {run.cache_dir} has among its labels.")
        if wrong := {"image", "text"} ^ set(self.cache.modalities):
            raise ValueError(
                f"{run.cache_dir} is no cache of the planted sample: {sorted(wrong)} is too much or missing."
            )
        self.carriers = {label: CARRIERS[planted["genres"][label]["interaction"]] for label in self.label_names}
        self.split = self.cache.splits[options.split]
        self.rows = FeatureRows(self.split, ["image", "text"])
        self.train_rows = FeatureRows(self.cache.splits["train"], ["image", "text"])
        self.truth = {}
        for split in ("train", options.split):
            self.truth |= locate_evidence(planted, self.cache, split)
        self.labels = np.array(self.split["labels"])
        ids = list(self.split["id"])
        choice = (self.truth, options.num_samples, options.seed)
        self.cases = choose_cases(ids, self.labels, self.label_names, *choice)
        two_sided = [label for label, name in self.carriers.items() if name in PAIR_INTERACTIONS]
        told = {film: {label: genres[label] for label in two_sided} for film, genres in self.truth.items()}
        self.pair_cases: list[Case] = []
        if options.num_pair_samples and two_sided:
            self.pair_cases = choose_cases(
                ids, self.labels, self.label_names, told, options.num_pair_samples, options.seed
            )

    def summarise(self, measures: list[Any], cases: list[Case]) -> dict[str, Any]:
        options = self.options
        return summarise(measures, cases, self.carriers, num_resamples=options.num_resamples, seed=options.seed)


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


def evaluate(
    run: Run, data: PlantedData, options: EvaluationArguments, accelerator: Accelerator, console: Console
) -> dict[str, Any]:
    """All measures of one run, mean over its seeds."""
    outputs, evidence, pairs, experts = [], [], [], []
    for seed, folder in run.seeds.items():
        console.print(f"{run.folder}, seed {seed}")
        model = FLI2MoEModel.from_pretrained(folder).to(accelerator.device).eval()
        check_model(model, data, folder)
        experts = model.config.expert_names
        loader = create_data_loader(data.split, model.config.modality_order, batch_size=64, shuffle=False)
        said = predict(model, accelerator.prepare(loader), accelerator)
        outputs.append(ExpertOutputs(said.expert_logits.double().numpy(), said.expert_weights.double().numpy()))
        rows = FeatureRows(data.split, model.config.modality_order)
        evidence.append(
            found_evidence(
                model, rows, data.cases, methods=options.methods, num_steps=options.num_steps, seed=options.seed
            )
        )
        if data.pair_cases:
            pairs.append(
                found_pairs(
                    model,
                    rows,
                    data.pair_cases,
                    data.carriers,
                    universe_share=options.universe_share,
                    estimator=options.estimator,
                    num_coalitions=options.num_coalitions,
                    seed=options.seed,
                )
            )
    carried: dict[str, Any] = {}
    if len(experts) > 1:
        bootstrap = {"num_resamples": options.num_resamples, "seed": options.seed}
        carried = right_experts(outputs, data.labels, data.label_names, experts, data.carriers, **bootstrap)
    return {
        "experts": experts,
        "seeds": list(run.seeds),
        "right_experts": carried,
        "evidence": data.summarise(evidence, data.cases),
        "pairs": data.summarise(pairs, data.pair_cases) if pairs else {},
    }


def check_model(model: FLI2MoEModel, data: PlantedData, folder: Path) -> None:
    if list(model.config.id2label.values()) != data.label_names:
        raise ValueError(f"{folder} tells {list(model.config.id2label.values())}, the features {data.label_names}.")
    encoders = {name: x["encoder"] for name, x in data.cache.modalities.items()}
    if model.config.encoders is not None and model.config.encoders != encoders:
        different = [name for name in encoders if model.config.encoders.get(name) != encoders[name]]
        raise ValueError(
            f"{folder} was trained on features of other {' and '.join(different)} encoders than the cache."
        )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
