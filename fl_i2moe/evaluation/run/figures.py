"""Figures and a table of a whole run: the FL-I²MoE paper's Figures 3 and 4, curves of pairs, its Table 1."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...explain.attribution import METHODS, MIXTURE
from ...explain.pages.display import METHOD_NAMES
from ...explain.pages.sheet import INK, MUTED
from ...explain.wording import number, signed
from ...metrics.figures import expert_title, keep_bottom_spine, metric_title, new_figure, titled
from ...metrics.markdown import estimate
from ...metrics.summaries import from_plain
from ...metrics.tasks import METRICS_BY_PROBLEM, default_metric
from ..erasure import MEASURES

# colour, marker, line
_METHOD_STYLES = {
    "shapley": ("#000000", "D", "-"),
    "leave_one_out": ("#CC79A7", "v", "--"),
    "rollout": ("#E69F00", "P", "-."),
    "grad_attnroll": ("#D55E00", "o", "-"),
    "attnroll": ("#0072B2", "s", "--"),
    "ig": ("#009E73", "^", "-."),
    "random": ("#666666", "x", ":"),
}
NOUNS = {"input": "parts", "features": "features"}
"""What units are called in a figure of all modalities."""

_TOP_COLORS = ("#08519C", "#4292C6", "#9ECAE1")
_TOP_HATCHES = ("", "///", "...")
_NOTE: dict[str, Any] = {"size": 8.5, "color": MUTED}
_BESIDE: dict[str, Any] = {"frameon": False, "fontsize": 9, "loc": "upper left", "bbox_to_anchor": (1.01, 1)}
"""A legend beside the last panel: seven lines leave no room in it."""

_RANDOM = "Random: mean of its draws ± one standard deviation."


def draw_faithfulness(
    results: Mapping[str, Mapping[str, Any]], metric: str | None = None, direction: str = "deletion"
) -> Figure:
    """
    The paper's Figure 3: how far a metric drops when what a method holds for important is masked.

    Above, the drop against the share of masked features, one panel per model (of a mixture, by the weight-averaged
    importance); below, its mean over the shares for every expert and method. From name of a model → result of
    `faithfulness`, the task's first metric if none is given, and `"deletion"` or `"insertion"`; `ValueError` if a
    result lacks one of these.
    """
    names = list(results)
    first = results[names[0]]
    metric = metric or default_metric(first["problem_type"])[0]
    for name in names:
        if direction not in results[name] or metric not in results[name]["base"]:
            raise ValueError(f"The result of {name!r} has no {direction} of {metric!r}.")
    rows = [(name, expert) for name in names for expert in _experts_of(results[name])]
    figure = new_figure(3.8 + 4.6 * max(2, len(names)), 5.4 + 0.36 * len(rows))
    ratios = [4.2, 1.2 + 0.36 * len(rows)]
    curves, means = figure.subfigures(2, 1, height_ratios=ratios)  # type: ignore[misc]  # it is an array of two
    panels = np.atleast_1d(curves.subplots(1, len(names), sharey=True))
    for axes, name in zip(panels, names, strict=True):
        _draw_drops(axes, results[name], metric, direction)
        base = results[name]["base"][metric]
        axes.set_title(f"{name} ({metric_title(metric)} {number(base)} unmasked)", fontsize=10.5, loc="left")
        masked = "masked" if direction == "deletion" else "kept"
        axes.set_xlabel(f"most important {_noun_of(results[name])} of each modality {masked} (%)")
    panels[0].set_ylabel(f"drop of {metric_title(metric)}")
    panels[-1].legend(**_BESIDE)
    _draw_mean_drops(means.subplots(), results, rows, metric, direction)
    size = ", ".join(f"{name}: n = {results[name]['num_samples']:,}" for name in names)
    higher = METRICS_BY_PROBLEM[first["problem_type"]][metric]
    meaning = "metric without masking minus with" if higher else "error with masking minus without"
    title = f"What {direction} by importance does to the prediction ({size})"
    return titled(figure, title, f"Drop: {meaning}. {_RANDOM}", **_NOTE)


def _noun_of(result: Mapping[str, Any]) -> str:
    return NOUNS[result.get("units", "features")]


def _method_name(result: Mapping[str, Any], method: str) -> str:
    is_summed = result.get("units") == "input" and method in METHODS and method != "random"
    return METHOD_NAMES[method] + (" of features" if is_summed else "")


def draw_erasure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Comprehensiveness and sufficiency against the share of units, a row for each model, of a mixture by the
    weight-averaged importance, from name of a model → result of `faithfulness`."""
    figure = new_figure(3.6 + 4.6 * len(MEASURES), 0.9 + 3.2 * len(results))
    panels = figure.subplots(len(results), len(MEASURES), squeeze=False, sharex=True)
    for row, (name, result) in enumerate(results.items()):
        whole, shares = _experts_of(result)[-1], 100 * np.array(result["shares"])
        for axes, (measure, direction) in zip(panels[row], MEASURES.items(), strict=True):
            for method in _METHOD_STYLES:
                if method in result[measure]:
                    curve = result[measure][method][whole]
                    spread = from_plain(curve["values_std"])
                    _draw_curve(axes, shares, curve["values"], method, _method_name(result, method), spread)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            masked = "masked" if direction == "deletion" else "kept"
            axes.set_xlabel(f"most important {_noun_of(result)} of each modality {masked} (%)")
            axes.set_ylabel(measure)
            axes.set_title(f"{name} (n = {result['num_samples']:,})", fontsize=10.5, loc="left")
            axes.set_xticks(shares)
            axes.xaxis.set_major_formatter("{x:g}")
    panels[0, -1].legend(**_BESIDE)
    note = (
        "Comprehensiveness: what the probability of the explained class loses without them, higher is better.\n"
        f"Sufficiency: what it loses with them alone, lower is better. {_RANDOM}"
    )
    return titled(figure, "What the probability of the explained class rests on", note, **_NOTE)


def erasure_rows(
    results: Mapping[str, Mapping[str, Any]], metric: str, experts: bool = False
) -> tuple[list[str], list[list[str]]]:
    """
    A line for each method, of a mixture by the weight-averaged importance, then by that of each of the `experts`: AOPC
    of both measures, each with its interval and by how much it is better than at random, and the metric's mean drop.

    Args:
        results: name of a model → result of `faithfulness`.
    """
    header = ["Importance", "of"]
    for measure in MEASURES:
        header += [f"{measure}, AOPC", "beyond random"]
    header.append(f"mean drop of {metric_title(metric)}")
    rows = []
    for name, result in results.items():
        whole, *others = reversed(_experts_of(result))
        for expert in [whole, *(others if experts else [])]:
            for method in result["methods"]:
                if expert not in result["deletion"][method]:
                    continue
                of = "–" if method == "random" else expert_title(expert)
                row = [_method_name(result, method), of if len(results) == 1 else f"{name}: {of}"]
                for measure in MEASURES:
                    loss = result[measure][method][expert]
                    row.append(_with_limits(loss["aopc"], loss["interval"], number))
                    beyond = loss["beyond_random"]
                    row.append("–" if beyond is None else _with_limits(beyond["value"], beyond["interval"], signed))
                rows.append([*row, number(result["deletion"][method][expert][metric]["mean_drop"])])
    return header, rows


def _with_limits(value: float | None, limits: Sequence[float] | None, write: Callable[..., str]) -> str:
    if value is None or limits is None:
        return number(value)
    return Markup(estimate(value, None, limits, write))  # brackets of numbers are no link


def _experts_of(result: Mapping[str, Any]) -> list[str]:
    experts = list(result["experts"])
    return experts if len(experts) == 1 else [*experts, MIXTURE]


def _draw_drops(axes: Axes, result: Mapping[str, Any], metric: str, direction: str) -> None:
    whole = _experts_of(result)[-1]
    shares = 100 * np.array(result["shares"])
    for method in _METHOD_STYLES:
        if method in result[direction]:
            curve = result[direction][method][whole][metric]
            _draw_curve(
                axes, shares, curve["drops"], method, _method_name(result, method), from_plain(curve["drops_std"])
            )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xticks(shares)
    axes.xaxis.set_major_formatter("{x:g}")


def _draw_curve(
    axes: Axes,
    shares: NDArray[Any],
    values: Sequence[float | None],
    method: str,
    label: str,
    spread: NDArray[Any] | None = None,
) -> None:
    """In the style of a method, with a band of ± `spread` around it where there is one."""
    (color, marker, style), heights = _METHOD_STYLES[method], from_plain(values)
    axes.plot(shares, heights, style, color=color, marker=marker, markersize=5, label=label)
    if spread is not None and np.isfinite(spread).any():
        axes.fill_between(shares, heights - spread, heights + spread, color=color, alpha=0.18, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_mean_drops(
    axes: Axes, results: Mapping[str, Any], rows: Sequence[tuple[str, str]], metric: str, direction: str
) -> None:
    for row, (name, expert) in enumerate(rows):
        axes.axhline(row, color="#e3e3df", linewidth=0.8, zorder=0)
        for method, (color, marker, _) in _METHOD_STYLES.items():
            curve = results[name][direction].get(method, {}).get(expert, {}).get(metric, {"mean_drop": None})
            if (drop := curve["mean_drop"]) is not None:
                axes.errorbar(drop, row, xerr=curve["mean_drop_std"], fmt=marker, color=color, markersize=6, capsize=3)
    labels = [expert_title(expert) for _, expert in rows]
    if len(results) > 1:
        labels = [f"{name}: {label}" for (name, _), label in zip(rows, labels, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(f"mean drop of {metric_title(metric)} over the shares, by whose importance was followed")
    keep_bottom_spine(axes)


def draw_alignment(
    results: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str], edges: Sequence[float]
) -> Figure:
    """The paper's Figure 4: mean interaction score of the top pairs of every importance bin, with intervals, from
    expert → result of `alignment`, expert → what its score is called, and the bins' edges as shares of a modality's
    features."""
    figure = new_figure(1 + 4.6 * len(results), 4.3)
    panels = np.atleast_1d(figure.subplots(1, len(results)))
    ticks = [f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise([0, *edges])]
    for axes, (expert, result) in zip(panels, results.items(), strict=True):
        shares = list(result["bins"][0]["top"])
        bar = 0.8 / len(shares)
        for n, share in enumerate(shares):
            cells = [entry["top"][share] for entry in result["bins"]]
            places = np.arange(len(cells)) + (n - (len(shares) - 1) / 2) * bar
            heights = from_plain([cell["mean"] for cell in cells])
            ends = np.array([cell["interval"] or [np.nan, np.nan] for cell in cells], dtype=np.float64)
            style = {"color": _TOP_COLORS[n % 3], "edgecolor": "white", "hatch": _TOP_HATCHES[n % 3]}
            label = f"top {100 * float(share):g} % pairs"
            axes.bar(places, np.nan_to_num(heights), bar * 0.92, label=label, **style)
            reach = np.clip(np.stack([heights - ends[:, 0], ends[:, 1] - heights]), 0, None)
            axes.errorbar(places, heights, yerr=reach, fmt="none", color=INK, capsize=3, linewidth=1)
            for place, height in zip(places, heights, strict=True):
                if np.isnan(height):
                    axes.text(place, 0, "no pair", rotation=90, ha="center", va="bottom", fontsize=8, color=MUTED)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel("importance of both ends, by rank")
        axes.set_ylabel(f"mean {kinds[expert]} (logits)")
        axes.set_title(f"{expert_title(expert)} expert", fontsize=10.5, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(frameon=False, fontsize=9)
    any_result = next(iter(results.values()))
    count = max(entry["num_samples"] for entry in any_result["bins"])
    note = f"Lines: {100 * any_result['confidence']:g} % bootstrap intervals over samples."
    if any_result["ranked_and_valued_by"] == "the same scores":
        note += " The top pairs were chosen by the scores that are averaged, which lifts their mean."
    return titled(figure, f"Do important features interact more? (n = {count:,} samples)", note, **_NOTE)


def draw_pair_curves(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], kinds: Mapping[str, str], metric: str
) -> Figure:
    """The metric as pairs are masked or kept, the highest scores first and in random order, a row for each direction,
    from expert → direction → result of `pair_curves`, and expert → what its score is called."""
    directions = list(next(iter(results.values())))
    figure = new_figure(1 + 4.6 * len(results), 0.9 + 2.7 * len(directions))
    panels = figure.subplots(len(directions), len(results), squeeze=False, sharex=True, sharey="row")
    for column, (expert, by_direction) in enumerate(results.items()):
        for row, (direction, result) in enumerate(by_direction.items()):
            axes, shares, curves = panels[row, column], 100 * np.array(result["shares"]), result["metrics"][metric]
            spread = np.nan_to_num(from_plain(curves["random"]["std"]))
            _draw_curve(axes, shares, curves["random"]["values"], "random", "random order", spread)
            _draw_curve(axes, shares, curves["ranked"]["values"], "grad_attnroll", "highest scores first")
            axes.set_xlabel(f"pairs {'masked' if direction == 'deletion' else 'kept'} (%)")
            if row == 0:
                axes.set_title(f"{expert_title(expert)} expert, {kinds[expert]}", fontsize=10.5, loc="left")
            if column == 0:
                axes.set_ylabel(f"{metric_title(metric)}, {direction}")
    panels[0, -1].legend(frameon=False, fontsize=9)
    title = f"Do the pairs that score high carry the prediction? (n = {result['num_samples']:,})"
    return titled(figure, title, f"Both ends of a pair are masked or kept. {_RANDOM}", **_NOTE)


def pair_masking_rows(tables: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[list[str], list[list[str]]]:
    """The paper's Table 1 of one metric, header and rows, from expert → result of `pair_masking_table`."""
    header = ["Masking", *(f"{expert_title(expert)}: {metric_title(metric)}" for expert in tables)]
    parts = [table["metrics"][metric] for table in tables.values()]

    def spread(cell: Mapping[str, Any]) -> str:
        return f"{number(cell['mean'])} ± {number(cell['std'])}"

    def interval(cell: Mapping[str, Any]) -> str:
        return _with_limits(cell["value"], cell["interval"], signed)

    rows = [
        ["none", *(number(part["none"]) for part in parts)],
        ["random pairs, as many distinct features", *(spread(part["random_same_features"]) for part in parts)],
        ["random pairs, as many pairs (the paper’s)", *(spread(part["random_same_pairs"]) for part in parts)],
        ["interaction pairs", *(number(part["ranked"]) for part in parts)],
        ["drop beyond random, as many features", *(interval(part["ranked_minus_random"]) for part in parts)],
        ["features masked per sample", *(f"{x['num_features']:.1f}" for x in tables.values())],
        ["features masked by as many random pairs", *(f"{x['num_features_same_pairs']:.1f}" for x in tables.values())],
    ]
    return header, rows
