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
from rich.console import Console

from ...cache import FeatureCache
from ...cache.batching import FeatureRows, create_data_loader
from ...explain.attribution import METHODS, check_methods
from ...explain.inputs import check_cache
from ...explain.interactions import ESTIMATORS
from ...training.arguments import option
from ...training.loop import predict
from ...training.runs import Run, refuse_trained_runs, weights_fingerprint
from ...training.trained import load_model
from ...utils.run_folder import check_run_folder, held_run_folder, replace_files, write_json
from .evaluation import (
    Case,
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


@dataclass
class EvaluationArguments:
    """What is held against the truth."""

    models: list[str] = option([], "Folders of runs, with one trained model a seed, or of single models.")
    output_dir: str = option("runs/ground_truth", "Folder for the table, its numbers and the figure.")
    overwrite: bool = option(False, "Replace what is in --output_dir.")
    split: Literal["validation", "test"] = option("test", "Samples that are explained; probes are fitted on train.")
    num_samples: int = option(200, "Explanations that are checked for evidence: a sample and a label it has.")
    num_probe_samples: int = option(600, "Training samples that the probes are fitted on.")
    num_pair_samples: int = option(48, "Explanations that are checked for pairs.")
    num_coalitions: int = option(2, "Coalitions a pair.")
    estimator: Literal["shared_context", "per_pair"] = option("shared_context", "How pairs are scored.")
    universe_share: float = option(0.3, "Share of each modality's features whose pairs are scored.")
    methods: list[str] = option(list(METHODS), "Ways to score features.")
    num_steps: int = option(16, "Steps of integrated gradients.")
    num_resamples: int = option(1000, "Bootstrap samples behind an interval.")
    seed: int = option(0, "Of the choice of samples, coalitions and bootstrap samples.")
    cache_dir: str | None = option(None, "Folder of the feature cache; the one of the training run if not given.")

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


def evaluate_runs(
    runs: Sequence[Run],
    truth: Truth,
    carriers: Mapping[str, str],
    arguments: EvaluationArguments,
    accelerator: Accelerator,
) -> None:
    """
    Measures each model and writes tables, numbers and figure. Models that are measured already are not measured again.

    Args:
        runs: on the same features.
        truth: of all samples of the training split and of `arguments.split`.
        carriers: label → expert that should carry it.

    Raises:
        ValueError: a model and the features do not fit, or the output folder holds something else.
    """
    console, output_dir = Console(highlight=False, markup=False, soft_wrap=True), Path(arguments.output_dir)
    flags = {"resume": not arguments.overwrite, "overwrite": arguments.overwrite}
    refuse_trained_runs(output_dir)
    check_run_folder(output_dir, **flags)
    cache = runs[0].cache
    experts, weights = {}, {}
    for run in runs:
        for folder in run.models.values():
            model = load_model(folder)
            check_cache(model, cache)
            check_methods(model, arguments.methods, "methods")
            experts[run.name] = model.config.expert_names
        weights[run.name] = {seed: weights_fingerprint(folder) for seed, folder in run.models.items()}
    data = _Data(cache, truth, carriers, arguments)
    options = {name: x for name, x in asdict(arguments).items() if name not in ("output_dir", "overwrite")}
    encoders = {name: x["encoder"] for name, x in cache.modalities.items()}
    with held_run_folder(output_dir, {**options, "weights": weights, "features": encoders}, **flags):
        console.print(f"{len(data.cases)} samples and labels checked for evidence, {len(data.pair_cases)} for pairs")
        probes = fit_probes(data.rows("train"), truth, cache.label_names, arguments.num_probe_samples, arguments.seed)
        ceiling = evidence_ceiling(data.rows(arguments.split), data.cases, probes)
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
            "settings": {
                "split": arguments.split,
                "samples": len(cache.splits[arguments.split]),
                "checked for evidence": len(data.cases),
                "for pairs": len(data.pair_cases),
                "coalitions a pair": arguments.num_coalitions,
                "universe": arguments.universe_share,
                "estimator": arguments.estimator,
            },
            "options": options,
            "encoders": encoders,
            "groups": dict(carriers),
            "ceiling": data.summarise([ceiling], data.cases),
            "chance": data.over_all([ceiling])["chance"],
            "models": models,
        }
        write_json(output_dir / "ground_truth.json", report)
        text = to_markdown(report)
        replace_files(output_dir, lambda folder: (folder / "ground_truth.md").write_text(text))
        if any(model["right_experts"] for model in models.values()):
            replace_files(output_dir, lambda folder: draw_carriers(report).savefig(folder / "carriers.png"))
        console.print(text)
        console.print(f"Written to {output_dir}")


class _Data:
    """What every model is asked, and tables of the answers."""

    def __init__(
        self, cache: FeatureCache, truth: Truth, carriers: Mapping[str, str], arguments: EvaluationArguments
    ) -> None:
        self.cache, self.carriers, self.arguments = cache, carriers, arguments
        split = cache.splits[arguments.split]
        self.labels = np.array(split["labels"])
        ids = list(split["id"])
        known = {sample: truth[sample] for sample in ids}
        choice = (ids, self.labels, cache.label_names)
        self.cases = choose_cases(*choice, known, arguments.num_samples, arguments.seed)
        pairs = {
            sample: {label: evidence for label, evidence in labels.items() if len(evidence.features) > 1}
            for sample, labels in known.items()
        }
        self.pair_cases: list[Case] = []
        if arguments.num_pair_samples and any(pairs.values()):
            self.pair_cases = choose_cases(*choice, pairs, arguments.num_pair_samples, arguments.seed)

    def rows(self, split: str, modalities: Sequence[str] | None = None) -> FeatureRows:
        return FeatureRows(self.cache.splits[split], modalities or list(self.cache.modalities))

    def measure(self, folder: Path, accelerator: Accelerator) -> ModelMeasures:
        arguments = self.arguments
        model = load_model(folder).to(accelerator.device)
        modalities = model.config.modality_order
        split = self.cache.splits[arguments.split]
        loader = create_data_loader(split, modalities, batch_size=64, shuffle=False)
        said = predict(model, accelerator.prepare(loader), accelerator)
        outputs = ExpertOutputs(said.expert_logits.double().numpy(), said.expert_weights.double().numpy())
        rows, how = self.rows(arguments.split, modalities), {"seed": arguments.seed}
        evidence = found_evidence(
            model, rows, self.cases, methods=arguments.methods, num_steps=arguments.num_steps, **how
        )
        if not self.pair_cases:
            return ModelMeasures(outputs, evidence, {})
        how |= {"universe_share": arguments.universe_share, "estimator": arguments.estimator}
        how |= {"num_coalitions": arguments.num_coalitions}
        return ModelMeasures(outputs, evidence, found_pairs(model, rows, self.pair_cases, self.carriers, **how))

    def summarise(self, measures: Sequence[Any], cases: list[Case]) -> dict[str, Any]:
        return summarise(measures, cases, self.carriers, **self.bootstrap)

    def over_all(self, measures: Sequence[Any]) -> dict[str, Any]:
        """Of evidence, over the cases of all labels."""
        return summarise(measures, self.cases, dict.fromkeys(self.carriers, "all"), **self.bootstrap)["all"]

    @property
    def bootstrap(self) -> dict[str, int]:
        return {"num_resamples": self.arguments.num_resamples, "seed": self.arguments.seed}

    def tabulate(self, seeds: Sequence[ModelMeasures], experts: list[str]) -> dict[str, Any]:
        """All measures of one run, mean over its seeds."""
        carried: dict[str, Any] = {}
        outputs = [x.outputs for x in seeds]
        right = [of_right_expert(x.evidence, self.cases, self.carriers, experts) for x in seeds]
        if len(experts) > 1:
            names = (self.cache.label_names, experts, self.carriers)
            carried = right_experts(outputs, self.labels, *names, **self.bootstrap)
        return {
            "experts": experts,
            "micro_f1": micro_f1(outputs, self.labels, **self.bootstrap),
            "right_evidence": self.over_all(right),
            "right_experts": carried,
            "evidence": self.summarise([x.evidence for x in seeds], self.cases),
            "pairs": self.summarise([x.pairs for x in seeds], self.pair_cases) if self.pair_cases else {},
        }
