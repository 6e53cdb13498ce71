"""The ground-truth table as Markdown, and the carriers as a heat map."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...explain.wording import signed
from ...metrics.figures import draw_losses, expert_columns, expert_title, frame_cells, new_figure, titled
from ...metrics.markdown import estimate

SHOWN_SCORES = {"synergy": ("sii_absolute", "sii_signed"), "redundancy": ("redundancy_published", "redundancy_both")}
"""Group → the scores that its labels' pairs are ranked by."""


def to_markdown(report: Mapping[str, Any]) -> str:
    """Tables of a report of [`evaluate_runs`]: `settings` (name → value), `groups` (label → expert that should carry
    it), `ceiling` and `chance` of evidence and, by name, the `models`."""
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    explained = (
        "Below, values are the mean of the seeds, ± their standard deviation where there are two, and in brackets the "
        "95 % interval of a bootstrap over samples."
    )
    lines = ["# Explanations against a known truth", "", f"{settings}.", "", *_summary(report), explained, ""]
    for name, model in report["models"].items():
        lines += [f"## {name}", "", f"Experts: {', '.join(model['experts'])}. Seeds: {len(model['seeds'])}.", ""]
        lines += [*_right_experts(model), *_evidence(model, report["ceiling"]), *_pairs(model)]
    return "\n".join(lines).rstrip() + "\n"


def draw_carriers(report: Mapping[str, Any]) -> Figure:
    """A panel for each mixture: what each label's F1 loses when an expert is replaced by its mean (mean of the seeds);
    `ValueError` if no model has several experts."""
    models = {name: model for name, model in report["models"].items() if model["right_experts"]}
    if not models:
        raise ValueError("no mixture among the models: a dense model has no experts to compare")
    groups = report["groups"]
    width = 2.6 + sum(1.05 * len(model["experts"]) for model in models.values())
    figure = new_figure(width, 2.2 + 0.38 * len(groups))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, (name, model) in zip(panels, models.items(), strict=True):
        result, experts = model["right_experts"]["logits"]["f1"], model["experts"]
        costs = np.array([[entry["costs"][e]["mean"] for e in experts] for entry in result["labels"].values()])
        labels = list(result["labels"])
        carriers = [(row, int(cost.argmax())) for row, cost in enumerate(costs) if cost.max() > 0]
        image = draw_losses(axes, costs, costs, lambda x: signed(x, 2).lstrip("+"), carriers)
        frame_cells(axes, [(row, experts.index(groups[x])) for row, x in enumerate(labels) if groups[x] in experts])
        expert_columns(axes, experts)
        axes.set_yticks(range(len(costs)), [f"{label} ({expert_title(groups[label])})" for label in labels])
        short = name if len(name) <= 40 else f"…{name[-39:]}"
        axes.set_title(f"{short}\n{_value(result['share_right'], '{:.0%}'.format)} right", fontsize=10)
    figure.colorbar(image, ax=panels, label="loss of F1", shrink=0.8, aspect=25)
    note = "Frame: the expert that should carry the label. Bold: the one that does, on the mean of the seeds."
    return titled(figure, "What a label loses when an expert is replaced by its mean", note)


def _summary(report: Mapping[str, Any]) -> list[str]:
    """A row a model."""
    models, chance = report["models"], report["chance"]
    shown = {group: [s for s in scores if s != "sii_signed"] for group, scores in SHOWN_SCORES.items()}
    groups = [group for group in shown if any(group in model["pairs"] for model in models.values())]
    header = ["model", f"{report['settings']['split']} micro-F1", "right expert (F1)", "right expert (AP)", "chance"]
    header += [f"{name} evidence" for name in chance] + [f"chance ({', '.join(chance)})"]
    for group in groups:
        for score in shown[group]:
            variant = f" ({score.removeprefix('redundancy_')})" if group == "redundancy" else ""
            header += [f"P@5 {group} pairs{variant}", "best wrong expert"]
        header.append("chance")
    rows = []
    for name, model in models.items():
        row = [name, _plain(model["micro_f1"])]
        if carried := model["right_experts"]:
            row += [_plain(part["share_right"]) for part in carried["logits"].values()] + [_number(carried["chance"])]
        else:
            row += ["–"] * 3
        by_modality = model["right_evidence"].get(_method(model), {})
        row += [_plain(by_modality[m]["k"]) if m in by_modality else "–" for m in chance]
        row.append(", ".join(_mean(chance[m]["k"]) for m in chance))
        for group in groups:
            experts = model["pairs"][group]
            right = group if group in experts else next(iter(experts)) if len(experts) == 1 else None
            for score in shown[group]:
                found = {expert: universes["top"][score]["5"] for expert, universes in experts.items()}
                wrong = [value for expert, value in found.items() if expert != right]
                row.append(_plain(found[right]) if right else "–")
                row.append(_plain(max(wrong, key=lambda value: value["mean"])) if wrong else "–")
            row.append(_mean(experts[right]["top"]["universe"]["chance"]) if right else "–")
        rows.append(row)
    method = " or ".join(dict.fromkeys(_method(model) for model in models.values()))
    pairs = (
        "- *P@5*: share of true pairs among the right expert's five best pairs; beside it, that of the wrong expert "
        "that does best. Synergy is scored by the absolute Shapley interaction index, redundancy by the published gap "
        "and by the variant that wants both ends."
    )
    legend = [
        "- *Right expert*: share of labels whose F1 or average precision (AP) drops most when the expert that should "
        "carry them is replaced by its mean.",
        f"- *Evidence*: precision of the right expert's best features ({method}), as many as hold evidence; a patch "
        "beside it counts.",
        *([pairs] if groups else []),
        "- Values are mean ± standard deviation over seeds. A dense model's only expert counts as the right one.",
    ]
    return ["## Summary", "", *_table(header, rows), *legend, ""]


def _method(model: Mapping[str, Any]) -> str:
    """The primary one, of those that were tried."""
    methods = list(model["right_evidence"])
    return "grad_attnroll" if "grad_attnroll" in methods else next(iter(methods), "none")


def _plain(value: Mapping[str, Any]) -> str:
    return estimate(value["mean"], value["std"], None, _number)


def _right_experts(model: Mapping[str, Any]) -> list[str]:
    result = model["right_experts"]
    if not result:
        return ["A dense model has one expert: nothing to compare.", ""]
    rows = [
        [kind, metric.replace("_", " "), _value(part["share_right"], "{:.0%}".format), f"{result['chance']:.0%}"]
        for kind in ("logits", "contribution")
        for metric, part in result[kind].items()
    ]
    header = ["replaced by its mean", "measured by", "labels carried by the right expert", "chance"]
    lines = ["### Right expert", "", *_table(header, rows)]
    for metric, title in (("f1", "F1"), ("average_precision", "average precision")):
        rows = []
        for label, entry in result["logits"][metric]["labels"].items():
            costs = entry["costs"].values()
            largest = max(cost["mean"] for cost in costs)
            cells = [_value(entry["score"]), *(_bold(_value(cost), cost["mean"] == largest) for cost in costs)]
            right = f"{sum(carrier == entry['right'] for carrier in entry['carriers'])} of {len(entry['carriers'])}"
            rows.append([label, entry["right"], *cells, _value(entry["margin"]), right])
        explained = f"Loss of {title} when an expert's logits are replaced by their mean; bold: the largest."
        lines += [f"{explained} Margin: of the right expert over all others.", ""]
        lines += _table(["label", "right expert", title, *model["experts"], "margin", "seeds right"], rows)
    return lines


def _evidence(model: Mapping[str, Any], ceiling: Mapping[str, Any]) -> list[str]:
    result = model["evidence"]
    columns = [(group, name) for group, part in ceiling.items() for name in part["probe"]]
    explained = "Precision of as many features as hold evidence, ± 1 patch (in brackets: the evidence alone)."

    def cells(by_group: Mapping[str, Any]) -> list[str]:
        found = (by_group[group][name] for group, name in columns)
        return [f"{_plain(x['k'])} ({_mean(x['k_exact'])})" for x in found]

    rows = []
    for title, key in (("chance", "chance"), ("linear probe", "probe")):
        rows.append([title, "", *cells({group: part[key] for group, part in ceiling.items()})])
    for expert, methods in next(iter(result.values())).items():
        for method in methods:
            rows.append([expert, method, *cells({group: part[expert][method] for group, part in result.items()})])
    table = _table(["expert", "method", *(f"{name} of {group}" for group, name in columns)], rows)
    return ["### Evidence", "", explained, "", *table]


def _pairs(model: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for group, experts in model["pairs"].items():
        lines += [f"### Pairs of labels by {group}", ""]
        rows = []
        shown = list(next(iter(experts.values()))["top"]["sii_absolute"])
        for expert, universes in experts.items():
            for universe, scores in universes.items():
                ends = [_mean(scores["universe"][name]) for name in ("chance", "5", "any")]
                for score in SHOWN_SCORES.get(group, sorted(scores.keys() - {"universe"})):
                    values = [_value(scores[score][k]) if k == "5" else _plain(scores[score][k]) for k in shown]
                    rows.append([_bold(expert, expert == group), universe, score, *values, *ends])
        header = ["expert", "universe", "score", *(f"P@{name.replace('_', ' ')}" for name in shown)]
        lines += _table([*header, "chance", "best P@5", "has a true pair"], rows)
    return lines


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown whose columns line up in a plain terminal too."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:], ""]


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no "-0.00"


def _mean(value: Mapping[str, Any]) -> str:
    return estimate(value["mean"], None, None, _number)


def _value(value: Mapping[str, Any], form: Callable[[float], str] = _number) -> str:
    ends = None if None in value["interval"] else value["interval"]
    return estimate(value["mean"], value["std"], ends, form)


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
