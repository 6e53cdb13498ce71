"""The tables of a model card: results, interaction statistics, encoders, and what the explanations are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..evaluation.information.report import (
    INFORMATION_FIGURE,
    INFORMATION_FILE,
    INFORMATION_FOLDER,
    find_information,
    information_table,
    notes,
    read_information,
)
from ..evaluation.run.files import FAITHFULNESS, FAITHFULNESS_FILE, PAIR_MASKING, PAIR_MASKING_FILE
from ..explain import Explanation
from ..explain.pages.display import METHOD_NAMES
from ..explain.wording import number
from ..metrics.carrier_table import carrier_table, carriers_in_words, loss_table, what
from ..metrics.carriers import MEASURES
from ..metrics.figures import expert_title, metric_title
from ..metrics.markdown import escape, shown, spread, table
from ..model.kinds import ENCODED_KINDS
from ..training.runs import Run

NUM_PAIRS = 5
"""Strongest pairs that the card lists for an expert."""
MOST_OPEN = 30
"""Rows of a table that is not folded up."""


def results_table(runs: Sequence[Run]) -> Markup:
    """Metrics of the test split, mean ± standard deviation over seeds; the best seed's validation metric last."""
    first = runs[0].results
    metrics = list(first["test"])
    header = ["model", "seeds", *map(metric_title, metrics), f"validation {metric_title(first['metric'])}"]
    rows = []
    for index, run in enumerate(runs):
        results = run.results
        cells = [spread(name, results["test"].get(name)) for name in metrics]
        title = Markup(f"**{escape(run.title)}** (this model)") if index == 0 else run.title
        validation = spread(first["metric"], results["validation"].get(first["metric"]))
        rows.append([title, len(results["seeds"]), *cells, validation])
    return table(header, rows)


def own_thresholds_table(results: Mapping[str, Any]) -> Markup | None:
    """Metrics of the test split with one threshold for all labels, and with each label's own."""
    if "own_thresholds" not in results:
        return None
    own = results["own_thresholds"]["test"]
    rows = [
        [which, *(spread(name, metrics.get(name)) for name in own)]
        for which, metrics in (("one for all", results["test"]), ("its own for each label", own))
    ]
    return table(["threshold", *map(metric_title, own)], rows)


def per_class_table(run: Run) -> Markup | None:
    """Metrics of each class, label or target by the best seed's model on the test split, and thresholds of labels."""
    if not (per_class := run.best.get("per_class")):
        return None
    metrics = list(next(iter(per_class.values())))
    thresholds = dict(zip(run.config.label_names, run.config.thresholds or [], strict=False))
    rows = []
    for name, values in per_class.items():
        cells = [values[x] if x == "support" else shown(x, values[x]) for x in metrics]
        rows.append([name, *cells, *([f"{thresholds.get(name, 0.5):.3f}"] if thresholds else [])])
    titles = ["samples" if x == "support" else metric_title(x) for x in metrics]
    return table(["", *titles, *(["threshold"] if thresholds else [])], rows)


def calibration_text(run: Run) -> Markup:
    """Whether probabilities are calibrated, and what that changed for the best seed's model on the test split."""
    if (measured := run.best.get("calibration")) is None or run.config.temperature is None:
        return Markup("They are not calibrated.")
    before, after = measured["test"]["before"], measured["test"]["after"]
    loss, error = (f"from {shown(x, before[x])} to {shown(x, after[x])}" for x in ("log_loss", "ece"))
    return Markup(
        f"Logits are divided by `config.temperature`, {run.config.temperature:.2f}, chosen by the log loss on "
        f"the validation split. On the test split the log loss went {loss}, the expected calibration error {error} %."
    )


def carriers_tables(statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What each label loses without the expert that carries it, and without each; None of a dense model, and of
    statistics of 0.1.0."""
    if not statistics.get("carriers"):
        return None
    header, rows = carrier_table(statistics, all_measures=True)
    return {
        "noun": what(statistics),
        "measure": metric_title(MEASURES[statistics["problem_type"]][0]),
        "words": carriers_in_words(statistics),
        "table": table(header, rows, text_columns=2 + ("planted as" in header)),
        "is_long": len(rows) > MOST_OPEN,
        "losses": table(*loss_table(statistics)),
    }


def weights_table(statistics: Mapping[str, Any]) -> Markup:
    rows = []
    for name in statistics["expert_names"]:
        x = statistics["expert_weights"]["overall"][name]
        values = [x["mean"], x["std"], *(x["quantiles"][share] for share in ("0.05", "0.5", "0.95"))]
        rows.append([expert_title(name), *(f"{value:.3f}" for value in values)])
    return table(["expert", "mean weight", "standard deviation", "5 %", "median", "95 %"], rows)


def class_table(statistics: Mapping[str, Any]) -> Markup | None:
    """Mean weight of each expert over the samples of each class."""
    per_class = statistics["expert_weights"]["per_class"]
    if per_class is None or len(statistics["expert_names"]) == 1:
        return None
    rows = []
    for label in statistics["label_names"]:
        experts = per_class[label]["experts"]
        means = ["–" if experts is None else f"{experts[e]['mean']:.3f}" for e in statistics["expert_names"]]
        rows.append([label, per_class[label]["num_samples"], *means])
    return table(["class", "samples", *map(expert_title, statistics["expert_names"])], rows)


def experts_table(statistics: Mapping[str, Any]) -> Markup:
    """Each expert as the only predictor, beside the mixture."""
    metrics = list(statistics["metrics"]["mixture"])
    scores = {"Mixture": statistics["metrics"]["mixture"]}
    scores |= {f"{expert_title(e)} alone": statistics["metrics"]["experts"][e] for e in statistics["expert_names"]}
    rows = [[who, *(shown(name, values[name]) for name in metrics)] for who, values in scores.items()]
    return table(["predicts", *(metric_title(name) for name in metrics)], rows)


def agreement_table(statistics: Mapping[str, Any]) -> Markup | None:
    """Whether the experts agree, against whether the mixture is right."""
    agreement = statistics["agreement"]
    if agreement is None or len(statistics["expert_names"]) == 1:
        return None
    units = {"per_sample": "whole samples", "per_label": "single yes-or-no decisions"}
    cells = [f"{experts}_{mixture}" for experts in ("agree", "disagree") for mixture in ("right", "wrong")]
    rows = [
        [f"{units[unit]} ({part['num_decisions']:,})", *(f"{100 * part['table'][x]['share']:.1f} %" for x in cells)]
        for unit, part in agreement.items()
        if part is not None
    ]
    return table(["", *(cell.replace("_", ", mixture ") for cell in cells)], rows)


def encoders_table(modalities: Mapping[str, Mapping[str, Any]], encoders: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A row for each modality with an encoder: where its features come from, and their sizes, of `modalities`."""
    rows = []
    for name, sizes in modalities.items():
        if (x := encoders.get(name)) is None:
            continue
        layer, special, number_format = "–", "–", "–"  # of arrays, which are features already
        if x.get("kind") in ENCODED_KINDS:
            layer = "last" if x["hidden_layer"] is None else x["hidden_layer"]
            special, number_format = x["special_features"], x["dtype"]
        shape = "{max_features} × {feature_size}".format(**sizes)
        rows.append([name, x["name"], (x.get("revision") or "–")[:12], layer, special, shape, number_format])
    header = ["modality", "frozen encoder", "commit", "layer", "special features", "features at most", "number format"]
    return table(header, rows, text_columns=len(header))


def faithfulness_table(run: Run) -> dict[str, Any] | None:
    """What masking important features costs, per method, of the mixture's importance."""
    measured = run.explanation(FAITHFULNESS_FILE, FAITHFULNESS)
    if not measured:
        return None
    own = next((x for name, x in measured.items() if (name == "dense Transformer") == (len(x["experts"]) == 1)), None)
    if own is None or own["experts"] != run.config.expert_names:
        return None
    metric = run.results["metric"]
    who = "mixture" if len(own["experts"]) > 1 else own["experts"][0]
    rows = []
    for method in own["methods"]:
        drops = _look_up(FAITHFULNESS_FILE, own, "deletion", method)
        x = _look_up(FAITHFULNESS_FILE, drops, who if who in drops else next(iter(drops), who), metric)
        drop = spread(metric, {"mean": x["mean_drop"], "std": x["mean_drop_std"]})
        rows.append([METHOD_NAMES.get(method, method), drop])
    return {
        "table": table(["importance by", f"mean drop of {metric_title(metric)}"], rows),
        "num_samples": own["num_samples"],
        "nouns": "words, cells or stretches" if own.get("units") == "input" else "features",
        "base": shown(metric, _look_up(FAITHFULNESS_FILE, own, "base", metric)),
        "shares": tuple(f"{share:.0%}".rstrip("%") for share in (min(own["shares"]), max(own["shares"]))),
    }


def pair_masking_table(run: Run) -> dict[str, Any] | None:
    """What masking the pairs with the highest scores costs beyond masking random pairs with as many features."""
    measured = run.explanation(PAIR_MASKING_FILE, PAIR_MASKING)
    if not measured:
        return None
    metric, rows = run.results["metric"], []
    for expert, x in measured.items():
        part = _look_up(PAIR_MASKING_FILE, x, "metrics", metric)
        beyond = part["ranked_minus_random"]
        limits = ",\u00a0".join(shown(metric, limit) for limit in beyond["interval"] or [])
        cells = [
            shown(metric, part["none"]),
            shown(metric, part["ranked"]),
            spread(metric, part["random_same_features"]),
        ]
        costs = shown(metric, beyond["value"]) + (f" [{limits}]" if limits else "")
        rows.append([expert_title(expert), *cells, costs])
    header = ["pairs of", "nothing masked", "highest scores masked", "random pairs masked", "costs beyond random"]
    return {"table": table(header, rows), "num_samples": next(iter(measured.values()))["num_samples"]}


def _look_up(file: str, content: Any, *keys: str) -> Any:
    """A value below keys that are names of metrics, methods and experts; `ValueError` where the file lacks one."""
    for key in keys:
        if key not in content:
            raise ValueError(
                f"explanations/{file} lacks `{key}`; it has {', '.join(content)}: explain the model again."
            )
        content = content[key]
    return content


def strongest_pairs(run: Run) -> dict[str, Any] | None:
    """Of each expert, the strongest pair of each sample with a page, the largest scores first, whatever their sign."""
    files = sorted((run.explanations / "samples").glob("*.json")) if run.explanations else []
    found: dict[str, list[tuple[float, list[Any]]]] = {}
    sample_ids = set()
    for file in files:
        explanation = Explanation.load(file)
        for expert in explanation.pair_tables:
            for pair in explanation.pairs(expert, top=1):
                ends = f"{_end(pair.first)} × {_end(pair.second)}"
                score = f"{number(pair.score)}\u00a0±\u00a0{pair.standard_error:.3f}"
                sample_ids.add(explanation.sample_id)
                row = [explanation.sample_id, explanation.target_name, ends, score]
                found.setdefault(expert, []).append((pair.score, row))
    if not found:
        return None
    scores = {"redundancy": "redundancy gap as published"}
    tables = {
        f"{expert_title(expert)} ({scores.get(expert, 'Shapley interaction index')} ± standard error)": table(
            ["sample", "class", "pair", "score"],
            [row for _, row in sorted(rows, key=lambda x: -abs(x[0]))[:NUM_PAIRS]],
            text_columns=3,
        )
        for expert, rows in found.items()
    }
    return {"tables": tables, "num_samples": len(sample_ids)}


def information_parts(run: Run) -> dict[str, Any] | None:
    """What the run's features tell of its labels, whatever its experts say; `None` where nobody asked."""
    if (folder := find_information(run)) is None:
        return None
    information = read_information(folder / INFORMATION_FILE)
    return {
        "seeds": len(information["seeds"]),
        "table": information_table(information),
        "notes": notes(information),
        "figure": Markup(f"{INFORMATION_FOLDER}/{INFORMATION_FIGURE}"),
    }


def _end(feature: Any) -> str:
    return f"“{feature.token}”" if feature.token is not None else f"{feature.modality} {feature.name}"
