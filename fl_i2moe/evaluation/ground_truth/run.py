"""
Trained models against a known truth, from their folders to the table.

    output_dir/
      run.json              what the numbers depend on; a folder with another one is refused
      measured/             what each model gave; a second start goes on after them
      ground_truth.json, ground_truth.md, carriers.png
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator

from ...cache import FeatureCache
from ...cache.batching import FeatureRows, create_data_loader
from ...explain.attribution import METHODS, check_methods
from ...explain.input_attribution import INPUT_METHODS
from ...metrics.figures import save_figure
from ...training.arguments import check_options, option
from ...training.loop import predict
from ...training.recipe import create_console
from ...training.runs import Run, check_cache, fingerprint
from ...utils.files import write_json, write_text
from ...utils.run_folder import JobFiles, check_run_folder, held_run_folder
from ..run.explanations import load_explainable
from .evaluation import (
    Case,
    Measures,
    ModelMeasures,
    Truth,
    choose_cases,
    evidence_ceiling,
    fit_probes,
    found_evidence,
    found_pairs,
    of_right_expert,
    summarise,
)
from .report import draw_carriers, to_markdown
from .truth import ExpertOutputs, micro_f1, right_experts

OUTPUT_FILES = JobFiles("ground truth", ("ground_truth.json", "ground_truth.md", "carriers.png", "measured"))


@dataclass
class EvaluationArguments:
    """What is compared with the truth."""

    models: list[str] = option([], "Folders of runs, with one trained model a seed, or of single models.")
    output_dir: str = option("runs/ground_truth", "Folder for the table, its numbers and the figure.")
    overwrite: bool = option(False, "Replace what is in --output_dir.")
    split: Literal["validation", "test"] = option("test", "Samples that are explained; probes are fitted on train.")
    num_samples: int = option(
        200, "Explanations that are checked for evidence, each of a sample and one of its labels.", at_least=1
    )
    num_probe_samples: int = option(600, "Training samples that the probes are fitted on.", at_least=1)
    num_pair_samples: int = option(48, "Explanations that are checked for pairs.", at_least=0)
    num_coalitions: int = option(2, "Coalitions a pair.", at_least=1)
    estimator: str = option("shared_context", "How pairs are scored.", choices=("shared_context", "per_pair"))
    universe_share: float = option(0.3, "Share of each modality's features whose pairs are scored.", within="(0, 1]")
    units: Literal["features", "input"] = option(
        "features", "What is scored: features, or words and cells that are taken out before the encoders."
    )
    methods: list[str] = option([], "Ways to score them; all if not given.")
    num_steps: int = option(16, "Steps of integrated gradients.", at_least=1)
    num_resamples: int = option(1000, "Bootstrap samples behind an interval.", at_least=1)
    seed: int = option(0, "Seed of the choice of samples, of coalitions and of the bootstrap.")
    cache_dir: str | None = option(None, "Folder of the feature cache; the one of the training run if not given.")

    def __post_init__(self):
        if not self.models:
            raise ValueError("`models` names no run: give --models runs/sample.")
        check_options(self)
        known = METHODS if self.units == "features" else INPUT_METHODS
        self.methods = self.methods or list(known)
        if unknown := set(self.methods) - set(known):
            raise ValueError(f"`methods` has {sorted(unknown)}; of {self.units} there are {', '.join(known)}.")


def evaluate_runs(
    runs: Sequence[Run],
    truth: Truth,
    carriers: Mapping[str, str],
    arguments: EvaluationArguments,
    accelerator: Accelerator,
) -> None:
    """
    Measures each model, unless it is measured already, and writes tables, numbers and figure.

    Args:
        runs: on the same features.
        truth: of all samples of the training split and of `arguments.split`.
        carriers: label → expert that should carry it.

    Raises:
        ValueError: a model and the features do not fit, or the output folder holds something else.
    """
    console, output_dir, cache = create_console(accelerator), Path(arguments.output_dir), runs[0].cache
    flags: dict[str, Any] = {"resume": not arguments.overwrite, "overwrite": arguments.overwrite}
    check_run_folder(output_dir, OUTPUT_FILES, **flags)
    experts: dict[str, list[str]] = {}
    weights: dict[str, dict[str, str]] = {run.name: {} for run in runs}
    for run in runs:
        for seed, folder in run.models.items():
            model = load_explainable(folder)
            check_cache(model, cache)
            if arguments.units == "features":
                check_methods(model, arguments.methods, "methods")
            experts[run.name] = model.config.expert_names
            weights[run.name][seed] = fingerprint(model)
    data = _Data(cache, truth, carriers, arguments)
    options = {name: x for name, x in asdict(arguments).items() if name not in ("output_dir", "overwrite")}
    encoders = {name: x["encoder"] for name, x in cache.modalities.items()}
    settings = {**options, "weights": weights, "features": encoders}
    with held_run_folder(output_dir, settings, OUTPUT_FILES, **flags):
        console.print(f"{len(data.cases)} samples and labels checked for evidence, {len(data.pair_cases)} for pairs")
        train, split = (FeatureRows(cache.splits[x], list(cache.modalities)) for x in ("train", arguments.split))
        probes = fit_probes(train, truth, cache.label_names, arguments.num_probe_samples, arguments.seed)
        ceiling = evidence_ceiling(split, data.cases, probes)
        models = {}
        for run in runs:
            measured = []
            for seed, folder in run.models.items():
                file = output_dir / "measured" / f"{run.name}-seed-{seed}.npz"
                console.print(f"{run.name}, seed {seed}{': kept' if file.is_file() else ''}")
                if not file.is_file():
                    data.measure(folder, accelerator).save(file)
                measured.append(ModelMeasures.load(file))
            models[run.name] = {"folder": str(run.folder), "seeds": list(run.models)}
            models[run.name] |= data.tabulate(measured, experts[run.name])
        report = {
            "settings": data.settings,
            "options": options,
            "encoders": encoders,
            "groups": dict(carriers),
            "ceiling": data.summarise([ceiling], data.cases),
            "chance": data.over_all([ceiling])["chance"],
            "models": models,
        }
        write_json(output_dir / "ground_truth.json", report)
        text = to_markdown(report)
        write_text(output_dir / "ground_truth.md", text)
        if any(model["right_experts"] for model in models.values()):
            save_figure(draw_carriers(report), output_dir / "carriers.png")
        console.print(text)
        console.print(f"Written to {output_dir}")


class _Data:
    """What every model is asked, and tables of the answers."""

    def __init__(
        self, cache: FeatureCache, truth: Truth, carriers: Mapping[str, str], arguments: EvaluationArguments
    ) -> None:
        self.cache, self.carriers, self.arguments = cache, carriers, arguments
        self.bootstrap: dict[str, Any] = {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
        split = cache.splits[arguments.split]
        self.labels, ids = np.array(split["labels"]), list(split["id"])
        choice = (ids, self.labels, cache.label_names)
        self.cases = choose_cases(*choice, truth, arguments.num_samples, arguments.seed)
        of_pairs = {
            sample: {label: evidence for label, evidence in truth[sample].items() if len(evidence.features) > 1}
            for sample in ids
        }
        self.pair_cases: list[Case] = []
        if arguments.num_pair_samples and any(of_pairs.values()):
            self.pair_cases = choose_cases(*choice, of_pairs, arguments.num_pair_samples, arguments.seed)
        self.settings = {
            "split": arguments.split,
            "samples": len(split),
            "checked for evidence": len(self.cases),
            "for pairs": len(self.pair_cases),
            "coalitions a pair": arguments.num_coalitions,
            "universe": arguments.universe_share,
            "estimator": arguments.estimator,
            "units": arguments.units,
        }

    def measure(self, folder: Path, accelerator: Accelerator) -> ModelMeasures:
        arguments, model = self.arguments, load_explainable(folder).to(accelerator.device)
        split, order = self.cache.splits[arguments.split], model.config.modality_order
        loader = accelerator.prepare(create_data_loader(split, order, batch_size=64, shuffle=False))
        said = predict(model, loader, accelerator)
        outputs = ExpertOutputs(said.expert_logits.double().numpy(), said.expert_weights.double().numpy())
        how: dict[str, Any] = {name: getattr(arguments, name) for name in ("units", "seed", "methods", "num_steps")}
        evidence, pairs = found_evidence(model, self.cache, arguments.split, self.cases, **how), {}
        if self.pair_cases:
            names = ("units", "seed", "universe_share", "estimator", "num_coalitions")
            how = {name: getattr(arguments, name) for name in names}
            pairs = found_pairs(model, self.cache, arguments.split, self.pair_cases, self.carriers, **how)
        return ModelMeasures(outputs, evidence, pairs)

    def summarise(self, measures: Sequence[Measures], cases: list[Case]) -> dict[str, Any]:
        return summarise(measures, cases, self.carriers, **self.bootstrap)

    def over_all(self, measures: Sequence[Measures]) -> dict[str, Any]:
        """Of evidence, over the cases of all labels."""
        return summarise(measures, self.cases, dict.fromkeys(self.carriers, "all"), **self.bootstrap)["all"]

    def tabulate(self, seeds: Sequence[ModelMeasures], experts: list[str]) -> dict[str, Any]:
        """All measures of one run, mean over its seeds."""
        outputs = [x.outputs for x in seeds]
        right = [of_right_expert(x.evidence, self.cases, self.carriers, experts) for x in seeds]
        names = (self.cache.label_names, experts, self.carriers)
        return {
            "experts": experts,
            "micro_f1": micro_f1(outputs, self.labels, **self.bootstrap),
            "right_evidence": self.over_all(right),
            "right_experts": right_experts(outputs, self.labels, *names, **self.bootstrap) if len(experts) > 1 else {},
            "evidence": self.summarise([x.evidence for x in seeds], self.cases),
            "pairs": self.summarise([x.pairs for x in seeds], self.pair_cases) if self.pair_cases else {},
        }
