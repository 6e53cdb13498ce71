"""
The model card: what a trained model is, measured, and worth, for people and for the Hub.

Every number on it is read from the run's `results.json`, `interaction_statistics.json` and, where the model was
explained, from the files in `explanations/`. Text that users chose (names of labels, modalities and data sets, words of
samples) is escaped.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id
from markupsafe import Markup

from .configuration_fl_i2moe import FLI2MoEConfig
from .explain import Explanation
from .figures import expert_title, metric_title
from .markdown import escape, table
from .metrics import METRICS_BY_PROBLEM
from .pinned_encoders import RAW_KINDS, takes_raw_inputs
from .pipeline_fl_i2moe import TASK

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
FUSIONS = {
    "transformer": "Transformer",
    "switch": "Switch Transformer",
    "moe++": "MoE++ Transformer",
    "interpretcc": "InterpretCC",
    "early": "early fusion",
    "late": "late fusion",
    "low_rank": "low-rank fusion",
}
METHODS = {
    "grad_attnroll": "Grad×AttnRoll",
    "attnroll": "AttnRoll",
    "ig": "integrated gradients",
    "random": "random",
}
SETTINGS = (
    "fusion",
    "objective",
    "interaction_experts",
    "interaction_loss_weight",
    "interaction_loss_on",
    "perturbation",
    "reweighting",
    "reweighting_temperature",
    "hidden_size",
    "num_attention_heads",
    "num_fusion_layers",
    "dropout",
    "optimizer",
    "learning_rate",
    "lr_scheduler",
    "batch_size",
    "num_epochs",
    "early_stopping_patience",
    "mixed_precision",
    "threshold",
)
FAITHFULNESS_FIGURES = ("faithfulness.png", "alignment.png", "pair_curves.png")
NUM_PAIRS = 5
"""Strongest pairs that the card lists for an expert."""


@dataclass
class CardOptions:
    """What a card says that no file of the run knows."""

    repo_id: str
    license: str = "apache-2.0"
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


@dataclass
class Run:
    """What lies in the folder of a training run."""

    folder: Path
    config: FLI2MoEConfig
    results: dict[str, Any]
    statistics: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """
        Raises:
            ValueError: a file is missing.
        """
        folder = Path(folder)
        for name in ("config.json", "results.json", "interaction_statistics.json"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} is no finished training run: it has no {name}. Give a folder that a recipe made."
                )
        results, statistics = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("results.json", "interaction_statistics.json")
        )
        return cls(folder, FLI2MoEConfig.from_pretrained(folder), results, statistics)

    @property
    def title(self) -> str:
        """What kind of model it is."""
        fusion, level = FUSIONS[self.config.fusion], ", pooled" if self.config.level == "pooled" else ""
        if self.config.architecture == "dense":
            return f"dense {fusion}{level}"
        name = "I²MoE, pooled" if level else "FL-I²MoE"
        if self.config.interaction_experts != "all":
            name += ", no uniqueness experts"
        experts = "" if self.config.fusion == "transformer" else f", experts: {fusion}"
        if self.config.interaction_loss_weight == 0:
            return f"{name}, no interaction losses{experts}"
        return f"{name}, {self.config.objective} objective{experts}"

    def explanation(self, name: str) -> Any:
        """A JSON file of `explanations/`, or `None`."""
        file = self.folder / "explanations" / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def build_card(run: Run, options: CardOptions, template: str | Path) -> ModelCard:
    """
    Args:
        template: of the card's text, `hub/model_card.md.jinja`.

    Raises:
        ValueError: the run lacks a file; a run to compare with was measured on something else.
    """
    config, results, statistics = run.config, run.results, run.statistics
    rows = [Run.open(folder) for folder in options.compare]
    for row in rows:
        _check_comparable(run, row)
    text = render_template(
        template,
        run=run,
        config=config,
        results=results,
        statistics=statistics,
        options=options,
        repo_id=Markup(options.repo_id),  # checked: letters, digits, - _ . /
        task=Markup(TASK),
        data=options.dataset_name or options.dataset_id or "a data set that was not named",
        does=_does(config),
        fusion=FUSIONS[config.fusion],
        labels=[config.id2label[index] for index in range(config.num_labels)],
        experts={name: expert_title(name) for name in config.expert_names},
        raw=takes_raw_inputs(config),
        encoders={name: x for name, x in (config.encoders or {}).items() if x["kind"] in RAW_KINDS},
        encoders_table=encoders_table(config),
        pictures=[x["preprocessing"] for x in (config.encoders or {}).values() if x["kind"] == "image"],
        text_lengths=[x["max_length"] for x in (config.encoders or {}).values() if x["kind"] == "text"],
        parameters=results["seeds"][str(results["best_seed"])]["parameters"],
        minutes=_minutes([seed["training_seconds"] for seed in results["seeds"].values()]),
        settings=_settings(run),
        metric=metric_title(results["metric"]),
        results_table=results_table([run, *rows]),
        weights_table=weights_table(statistics),
        class_table=class_table(statistics),
        experts_table=experts_table(statistics),
        agreement_table=agreement_table(statistics),
        faithfulness=faithfulness_table(run),
        pair_masking=pair_masking_table(run),
        pairs=strongest_pairs(run),
        explained_figures=[
            Markup(name) for name in FAITHFULNESS_FIGURES if (run.folder / "explanations" / name).is_file()
        ],
        figures={path.stem: Markup(f"figures/{path.name}") for path in sorted(run.folder.glob("figures/*.png"))},
        example=Markup(_example(config)),
        example_value=Markup(_example_values(config)),
    )
    return ModelCard(f"---\n{card_data(run, options).to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)


def render_template(template: str | Path, **values: Any) -> str:
    """Fills a Markdown template; every value is escaped, unless it says (`Markup`) that it is Markdown already."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(template).parent),
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(Path(template).name).render(values)


def card_data(run: Run, options: CardOptions) -> ModelCardData:
    """The card's head, which the Hub reads. Its results are those of the published weights: the best seed's."""
    config, results = run.config, run.results
    best = results["seeds"][str(results["best_seed"])]["test"]
    task, name = hub_task(config), options.dataset_name or options.dataset_id or "unnamed"
    evaluations = [
        EvalResult(
            task_type=task,
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
        pipeline_tag=task if task != "other" else None,
        tags=["fl-i2moe", TASK, "multimodal", "mixture-of-experts", "interpretability", "custom_code"],
        datasets=[options.dataset_id] if options.dataset_id else None,
        metrics=sorted({HUB_METRICS[metric] for metric in best}),
        base_model=list(dict.fromkeys(base_model)) or None,
        model_name=options.repo_id.split("/")[-1],
        eval_results=evaluations,
        inference=False,  # the Hub's own widget would run neither our code nor two inputs
    )


def hub_task(config: FLI2MoEConfig) -> str:
    """The nearest of the Hub's tasks, which knows no classification of several modalities."""
    kinds = {encoder["kind"] for encoder in (config.encoders or {}).values()}
    if config.problem_type == "regression":
        return "other"
    if "image" in kinds:
        return "image-classification"
    return "text-classification" if "text" in kinds else "tabular-classification"


def evaluation_results(run: Run, options: CardOptions) -> str | None:
    """`.eval_results/<data set>.yaml` of the published weights; `None` where the data are not on the Hub."""
    if options.dataset_id is None:
        return None
    best = run.results["seeds"][str(run.results["best_seed"])]["test"]
    entries = [
        EvalResultEntry(
            dataset_id=options.dataset_id,
            task_id=metric,
            value=round(value, 6),
            notes=f"{metric_title(metric)}, test split, seed {run.results['best_seed']}",
        )
        for metric, value in best.items()
        if value is not None
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


# ---- tables ----------------------------------------------------------------------------------------------------------


def results_table(runs: Sequence[Run]) -> Markup:
    """Metrics of the test split, mean ± standard deviation over seeds; the best seed's validation metric last."""
    first = runs[0].results
    metrics = list(first["test"])
    header = [
        "model",
        "seeds",
        *(metric_title(name) for name in metrics),
        f"validation {metric_title(first['metric'])}",
    ]
    rows = []
    for index, run in enumerate(runs):
        results = run.results
        cells = [spread(name, results["test"].get(name)) for name in metrics]
        title = Markup(f"**{escape(run.title)}** (this model)") if index == 0 else run.title
        validation = spread(first["metric"], results["validation"].get(first["metric"]))
        rows.append([title, len(results["seeds"]), *cells, validation])
    return table(header, rows)


def weights_table(statistics: Mapping[str, Any]) -> Markup:
    rows = [
        [
            expert_title(name),
            f"{x['mean']:.3f}",
            f"{x['std']:.3f}",
            f"{x['quantiles']['0.05']:.3f}",
            f"{x['quantiles']['0.5']:.3f}",
            f"{x['quantiles']['0.95']:.3f}",
        ]
        for name, x in statistics["expert_weights"]["overall"].items()
    ]
    return table(["expert", "mean weight", "standard deviation", "5 %", "median", "95 %"], _in_order(rows, statistics))


def class_table(statistics: Mapping[str, Any]) -> Markup | None:
    """Mean weight of each expert over the samples of each class."""
    per_class = statistics["expert_weights"]["per_class"]
    if per_class is None or len(statistics["expert_names"]) == 1:
        return None
    rows = [
        [
            label,
            x["num_samples"],
            *("–" if x["experts"] is None else f"{x['experts'][e]['mean']:.3f}" for e in statistics["expert_names"]),
        ]
        for label, x in ((label, per_class[label]) for label in statistics["label_names"])
    ]
    return table(["class", "samples", *map(expert_title, statistics["expert_names"])], rows)


def experts_table(statistics: Mapping[str, Any]) -> Markup:
    """Each expert as the only predictor, beside the mixture."""
    metrics = list(statistics["metrics"]["mixture"])
    rows = [["Mixture", *(shown(name, statistics["metrics"]["mixture"][name]) for name in metrics)]]
    rows += [
        [f"{expert_title(e)} alone", *(shown(name, statistics["metrics"]["experts"][e][name]) for name in metrics)]
        for e in statistics["expert_names"]
    ]
    return table(["predicts", *(metric_title(name) for name in metrics)], rows)


def agreement_table(statistics: Mapping[str, Any]) -> Markup | None:
    """Whether the experts agree, against whether the mixture is right."""
    agreement = statistics["agreement"]
    if agreement is None or len(statistics["expert_names"]) == 1:
        return None
    units = {"per_sample": "whole samples", "per_label": "single yes-or-no decisions"}
    rows = [
        [
            f"{units[unit]} ({part['num_decisions']:,})",
            *(
                f"{part['table'][cell]['share']:.1%}".replace("%", " %")
                for cell in ("agree_right", "agree_wrong", "disagree_right", "disagree_wrong")
            ),
        ]
        for unit, part in agreement.items()
        if part is not None
    ]
    header = ["", "agree, mixture right", "agree, mixture wrong", "disagree, mixture right", "disagree, mixture wrong"]
    return table(header, rows)


def encoders_table(config: FLI2MoEConfig) -> Markup:
    rows = []
    for name in config.modality_order:
        x = (config.encoders or {}).get(name)
        if x is None:
            continue
        if x["kind"] not in RAW_KINDS:  # arrays, which are features already
            layer, special, number_format = "–", "–", "–"
        else:
            layer = "last" if x["hidden_layer"] is None else x["hidden_layer"]
            special, number_format = x["special_features"], x["dtype"]
        modality = config.modalities[name]
        shape = f"{modality['max_features']} × {modality['feature_size']}"
        commit = x["revision"][:12] if x.get("revision") else "–"
        rows.append([name, x["name"], commit, layer, special, shape, number_format])
    header = ["modality", "frozen encoder", "commit", "layer", "special features", "features at most", "number format"]
    return table(header, rows, text_columns=len(header))


def faithfulness_table(run: Run) -> dict[str, Any] | None:
    """What masking important features costs, per method, of the mixture's importance."""
    measured = run.explanation("faithfulness.json")
    if not measured:
        return None
    own = next((x for name, x in measured.items() if (name == "dense Transformer") == (len(x["experts"]) == 1)), None)
    if own is None or own["experts"] != run.config.expert_names:
        return None
    metric = run.results["metric"]
    who = "mixture" if len(own["experts"]) > 1 else own["experts"][0]
    rows = []
    for method in own["methods"]:
        drops = own["deletion"][method]
        cell = drops.get(who, next(iter(drops.values())))[metric]
        rows.append(
            [METHODS.get(method, method), spread(metric, {"mean": cell["mean_drop"], "std": cell["mean_drop_std"]})]
        )
    return {
        "table": table(["importance by", f"mean drop of {metric_title(metric)}"], rows),
        "num_samples": own["num_samples"],
        "base": shown(metric, own["base"][metric]),
        "shares": (f"{own['shares'][0]:.0%}".rstrip("%"), f"{own['shares'][-1]:.0%}".rstrip("%")),
    }


def pair_masking_table(run: Run) -> dict[str, Any] | None:
    """What masking the strongest pairs costs beyond masking random pairs with as many features."""
    measured = run.explanation("pair_masking.json")
    if not measured:
        return None
    metric, rows = run.results["metric"], []
    for expert, x in measured.items():
        part = x["metrics"][metric]
        beyond, interval = part["ranked_minus_random"]["value"], part["ranked_minus_random"]["interval"]
        around = f" [{shown(metric, interval[0])}, {shown(metric, interval[1])}]" if interval else ""
        rows.append(
            [
                expert_title(expert),
                shown(metric, part["none"]),
                shown(metric, part["ranked"]),
                spread(metric, part["random_same_features"]),
                f"{shown(metric, beyond)}{around}",
            ]
        )
    header = ["pairs of", "nothing masked", "strongest pairs masked", "random pairs masked", "costs beyond random"]
    return {"table": table(header, rows), "num_samples": next(iter(measured.values()))["num_samples"]}


def strongest_pairs(run: Run) -> dict[str, Any] | None:
    """The strongest pair of each explained sample, the strongest of these first, for synergy and redundancy."""
    files = sorted((run.folder / "explanations" / "samples").glob("*.json"))
    found: dict[str, list[tuple[float, list[Any]]]] = {}
    for file in files:
        explanation = Explanation.load(file)
        for expert in explanation.pair_tables:
            for pair in explanation.pairs(expert, top=1):
                ends = f"{_end(pair.first)} × {_end(pair.second)}"
                score = f"{pair.score:.3f} ± {pair.standard_error:.3f}"
                row = [explanation.sample_id, explanation.target_name, ends, score]
                found.setdefault(expert, []).append((pair.score, row))
    if not found:
        return None
    scores = {"redundancy": "redundancy gap, published"}
    return {
        expert_title(expert): table(
            ["sample", "class", "pair", f"{scores.get(expert, 'Shapley interaction index')} ± standard error"],
            [row for _, row in sorted(rows, key=lambda x: -x[0])[:NUM_PAIRS]],
            text_columns=3,
        )
        for expert, rows in found.items()
    }


def spread(metric: str, value: Mapping[str, float | None] | None) -> str:
    """Mean ± standard deviation."""
    if value is None or value["mean"] is None:
        return "–"
    around = "" if value.get("std") is None else f" ± {shown(metric, value['std'])}"
    return shown(metric, value["mean"]) + around


def shown(metric: str, value: float | None) -> str:
    """Shares in per cent, the metrics of a regression as they are."""
    if value is None:
        return "–"
    scale, digits = (1, 3) if metric in METRICS_BY_PROBLEM["regression"] and metric != "sign_accuracy" else (100, 1)
    return f"{scale * value:.{digits}f}".replace("-", "−")


def _check_comparable(run: Run, other: Run) -> None:
    """
    Raises:
        ValueError: the other run has other classes, metrics or test samples, so that its numbers say nothing beside.
    """
    for what, own, its in (
        ("classes", run.config.id2label, other.config.id2label),
        ("metrics", sorted(run.results["test"]), sorted(other.results["test"])),
        ("test samples", run.results["samples"]["test"], other.results["samples"]["test"]),
    ):
        if own != its:
            raise ValueError(f"{other.folder} cannot stand beside {run.folder}: it has other {what}.")


def _does(config: FLI2MoEConfig) -> str:
    inputs = " + ".join(config.modality_order)
    if config.problem_type == "regression":
        return f"predicts {config.num_labels} numbers from {inputs}"
    kind = ", of which a sample may have several," if config.problem_type == "multi_label_classification" else ""
    return f"classifies {inputs} into {config.num_labels} classes{kind}"


def _settings(run: Run) -> dict[str, Any]:
    """Of the training, where the run or its configuration tells them."""
    settings = {name: run.results["settings"].get(name, getattr(run.config, name, None)) for name in SETTINGS}
    return {name: value for name, value in settings.items() if value is not None}


def _minutes(seconds: Sequence[float]) -> str:
    low, high = (round(value / 60) for value in (min(seconds), max(seconds)))
    return "under 1" if high == 0 else f"{low} to {high}" if low < high else str(high)


def _in_order(rows: list[list[Any]], statistics: Mapping[str, Any]) -> list[list[Any]]:
    """In the order of the experts: `config.json` and its kin are written with sorted keys."""
    titles = [expert_title(name) for name in statistics["expert_names"]]
    return sorted(rows, key=lambda row: titles.index(row[0]))


def _end(feature: Any) -> str:
    return f"“{feature.token}”" if feature.token is not None else f"{feature.modality} {feature.name}"


def _example(config: FLI2MoEConfig) -> str:
    """Keyword arguments of a call in Python."""
    if all(name.isidentifier() and not iskeyword(name) for name in config.modality_order):
        return ", ".join(f"{name}={value}" for name, value in _values(config).items())
    return "**{" + _example_values(config) + "}"


def _example_values(config: FLI2MoEConfig) -> str:
    return ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in _values(config).items())


def _values(config: FLI2MoEConfig) -> dict[str, str]:
    kinds = {name: (config.encoders or {}).get(name, {}).get("kind") for name in config.modality_order}
    return {
        name: f'"{re.sub("[^A-Za-z0-9]+", "-", name)}.jpg"' if kind == "image" else '"A pianist …"'
        for name, kind in kinds.items()
    }
