"""
The model card: what a trained model is, measured, and worth, for people and for the Hub.

Every number on it is read from the run's `results.json`, `interaction_statistics.json` and, where the model was
explained, from the files in `explanations/`. Text that users chose (names of labels, modalities and data sets, words of
samples) is escaped.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id
from markupsafe import Markup

from ..metrics.figures import metric_title
from ..metrics.markdown import render_template
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..model.fusions import FUSIONS
from ..model.kinds import ENCODED_KINDS, KINDS
from ..model.objectives import OBJECTIVES
from ..model.pinned_encoders import takes_raw_inputs
from ..model.pipeline_fl_i2moe import TASK
from ..model.places import Places
from ..training.runs import Run
from .card_tables import (
    agreement_table,
    calibration_text,
    carriers_tables,
    class_table,
    encoders_table,
    experts_table,
    faithfulness_table,
    information_parts,
    own_thresholds_table,
    pair_masking_table,
    per_class_table,
    results_table,
    strongest_pairs,
    weights_table,
)

HUB_TASK = "other"
"""The Hub's name for our task: it knows none that takes several modalities and gives classes. For a task of
transformers, and for the one that it works out where a card names none, its page shows `pipeline("<task>", …)`, in
which no model of ours runs; for this one it shows `AutoModel.from_pretrained`, which works."""
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
HUB_METRICS = {  # ours → the Hub's identifier
    "micro_f1": "f1",
    "macro_f1": "f1",
    "mAP": "mean_average_precision",
    "auroc": "roc_auc",
    "subset_accuracy": "accuracy",
    "accuracy": "accuracy",
    "mae": "mae",
    "rmse": "rmse",
    "pearson": "pearsonr",
    "sign_accuracy": "accuracy",
}
MIXTURE_SETTINGS = (
    "objective",
    "interaction_experts",
    "interaction_loss_weight",
    "interaction_loss_on",
    "regulariser",
    "regulariser_weight",
    "perturbation",
    "reweighting",
    "reweighting_temperature",
)
SETTINGS = (
    "fusion",
    *MIXTURE_SETTINGS,
    "num_patches",
    "hidden_size",
    "num_attention_heads",
    "num_fusion_layers",
    "dropout",
    "regulariser_warmup_epochs",
    "feature_dropout",
    "feature_dropout_start",
    "masked_copies",
    "ema_decay",
    "optimizer",
    "learning_rate",
    "lr_scheduler",
    "class_weights",
    "label_smoothing",
    "batch_size",
    "num_epochs",
    "early_stopping_patience",
    "load_best_model_at_end",
    "best_epoch_by",
    "mixed_precision",
    "threshold",
)


@dataclass
class CardOptions:
    """What a card needs beside the files of the run."""

    repo_id: str
    license: str
    """Of the weights, by the Hub's identifier."""
    dataset_name: str | None = None
    """What people call the data."""
    dataset_id: str | None = None
    """Its id on the Hub, where it is there."""
    language: list[str] = field(default_factory=list)
    description: str | None = None
    compare: list[str] = field(default_factory=list)
    """Folders of runs whose results are shown beside."""

    def __post_init__(self):
        validate_repo_id(self.repo_id)
        if self.dataset_id is not None:
            validate_repo_id(self.dataset_id)


def build_card(run: Run, options: CardOptions) -> ModelCard:
    """Raises `ValueError` where the run lacks a file, or a run to compare with was measured on something else."""
    config, results, statistics = run.config, run.results, run.statistics
    encoders = {name: x for name, x in (config.encoders or {}).items() if x.get("kind") in ENCODED_KINDS}
    rows = [Run.open(folder) for folder in options.compare]
    for row in rows:
        _check_comparable(run, row)
    text = render_template(
        TEMPLATE,
        config=config,
        results=results,
        statistics=statistics,
        options=options,
        repo_id=Markup(options.repo_id),  # checked: letters, digits, - _ . /
        task=Markup(TASK),
        data=options.dataset_name or options.dataset_id or "a data set that was not named",
        does=_does(config),
        fusion=FUSIONS[config.fusion].title,
        labels=config.label_names,
        raw=takes_raw_inputs(config),
        encoders=encoders,
        packages="".join(dict.fromkeys(f" {x}" for e in encoders.values() for x in KINDS[e["kind"]].packages)),
        nouns=" and ".join(dict.fromkeys(_places(config, name).feature_noun for name in config.modality_order)),
        encoders_table=encoders_table(
            {name: config.modalities[name] for name in config.modality_order}, config.encoders or {}
        ),
        preprocessing=list(
            dict.fromkeys(
                KINDS[x["kind"]].describe_preprocessing(x)
                for x in (config.encoders or {}).values()
                if x.get("kind") in KINDS and KINDS[x["kind"]].needs_features(x) is None
            )
        ),
        parameters=run.best["parameters"],
        minutes=_minutes([seed["training_seconds"] for seed in results["seeds"].values()]),
        settings=_settings(run),
        metric=metric_title(results["metric"]),
        results_table=results_table([run, *rows]),
        own_thresholds_table=own_thresholds_table(results),
        per_class_table=per_class_table(run),
        calibration=calibration_text(run),
        carriers=carriers_tables(statistics),
        information=information_parts(run),
        experts_table=experts_table(statistics),
        agreement_table=agreement_table(statistics),
        weights_table=weights_table(statistics),
        class_table=class_table(statistics),
        faithfulness=faithfulness_table(run),
        pair_masking=pair_masking_table(run),
        pairs=strongest_pairs(run),
        explained_figures={path.stem for path in run.explanations.glob("*.png")} if run.explanations else set(),
        figures={path.stem: Markup(f"figures/{path.name}") for path in sorted(run.folder.glob("figures/*.png"))},
        example=_example(config) if takes_raw_inputs(config) else None,
    )
    return ModelCard(f"---\n{card_data(run, options).to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)


def card_data(run: Run, options: CardOptions) -> ModelCardData:
    """The card's head, which the Hub reads. Its results are those of the published weights: the best seed's."""
    config, best = run.config, run.best["test"]
    name = options.dataset_name or options.dataset_id or "unnamed"
    evaluations = [
        EvalResult(
            task_type=HUB_TASK,
            task_name=TASK,
            dataset_type=options.dataset_id or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed",
            dataset_name=name,
            dataset_split="test",
            metric_type=HUB_METRICS[metric],
            metric_name=metric_title(metric),
            metric_value=round(value, 6),
        )
        for metric, value in best.items()
        if value is not None
    ]
    base_model = [x["name"] for x in (config.encoders or {}).values() if x.get("revision")]
    return ModelCardData(
        license=options.license,
        language=options.language or None,
        library_name="transformers",
        pipeline_tag=HUB_TASK,
        tags=["fl-i2moe", TASK, "multimodal", "mixture-of-experts", "interpretability", "custom_code"],
        datasets=[options.dataset_id] if options.dataset_id else None,
        metrics=sorted({HUB_METRICS[metric] for metric in best}),
        base_model=list(dict.fromkeys(base_model)) or None,
        model_name=options.repo_id.split("/")[-1],
        eval_results=evaluations,
        inference=False,  # the Hub's own widget would run neither our code nor two inputs
    )


def evaluation_results(run: Run, options: CardOptions) -> str | None:
    """`.eval_results/<data set>.yaml` of the published weights; `None` where the data are not on the Hub."""
    if options.dataset_id is None:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=options.dataset_id,
            task_id=metric,
            value=round(value, 6),
            notes=f"{metric_title(metric)}, test split, seed {run.results['best_seed']}",
        )
        for metric, value in run.best["test"].items()
        if value is not None
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _check_comparable(run: Run, other: Run) -> None:
    """Raises `ValueError` where the other run has other classes, metrics or test samples."""
    for what, of in (
        ("classes", lambda x: x.config.id2label),
        ("metrics", lambda x: sorted(x.results["test"])),
        ("test samples", lambda x: x.results["samples"]["test"]),
    ):
        if of(run) != of(other):
            raise ValueError(f"{other.folder} cannot stand beside {run.folder}: it has other {what}.")


def _does(config: FLI2MoEConfig) -> str:
    inputs = " + ".join(config.modality_order)
    if config.problem_type == "regression":
        return f"predicts {config.num_labels} numbers from {inputs}"
    kind = ", of which a sample may have several," if config.problem_type == "multi_label_classification" else ""
    return f"classifies {inputs} into {config.num_labels} classes{kind}"


def _settings(run: Run) -> dict[str, Any]:
    """Those of [`SETTINGS`] that the run or its configuration holds, and that had an effect."""
    config = run.config
    idle: set[str] = set()
    if config.architecture == "dense":
        idle.update(MIXTURE_SETTINGS)
    else:
        idle.update(OBJECTIVES[config.objective].needs)
    if config.level != "pooled":
        idle.add("num_patches")
    if not config.feature_dropout:
        idle.add("feature_dropout_start")
    if config.regulariser is None:
        idle.update(("regulariser_weight", "regulariser_warmup_epochs"))
    idle.update(name for name in ("class_weights", "label_smoothing") if not getattr(config, name))
    settings = {name: run.results["settings"].get(name, getattr(config, name, None)) for name in SETTINGS}
    idle.update(name for name in ("masked_copies", "ema_decay") if not settings[name])
    return {name: value for name, value in settings.items() if name not in idle and value is not None}


def _minutes(seconds: Sequence[float]) -> str:
    low, high = (round(value / 60) for value in (min(seconds), max(seconds)))
    return "under 1" if high == 0 else f"{low} to {high}" if low < high else str(high)


def _places(config: FLI2MoEConfig, modality: str) -> type[Places]:
    kind = (config.encoders or {}).get(modality, {}).get("kind")
    return KINDS[kind].places if kind in KINDS else Places


def _example(config: FLI2MoEConfig) -> Markup:
    """A sample as keyword arguments of a call in Python."""
    encoders = config.encoders or {}
    values = {name: KINDS[encoders[name]["kind"]].example(name, encoders[name]) for name in config.modality_order}
    if all(name.isidentifier() and not iskeyword(name) for name in values):
        return Markup(", ".join(f"{name}={value}" for name, value in values.items()))
    items = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in values.items())
    return Markup("**{" + items + "}")
