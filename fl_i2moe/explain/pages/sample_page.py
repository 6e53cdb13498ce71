"""An explanation as a page: one self-contained HTML file that works from disk, without any network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ...metrics.figures import expert_colors, expert_title
from ...model.kind import Places
from ..attribution import MIXTURE
from ..explanation_data import ExplanationData, Pair
from ..pair_scores import kind_of_expert
from .display import (
    METHOD_TITLES,
    MIXTURE_COLOR,
    PAIR_NOTES,
    SCORE_TITLES,
    encoder_text,
    end_name,
    modality_title,
    score_text,
    signed,
)
from .drawing import Ids, drawing_of


def render_page(explanation: ExplanationData, index_href: str | None = None, top: int = 10) -> str:
    """
    The explanation as one HTML file.

    Args:
        index_href: relative link to the page of the whole run.
        top: pairs shown per expert.
    """
    ids = _ids(explanation)
    colors = expert_colors(explanation.expert_names)
    target = explanation.target
    experts = [
        {"title": expert_title(name), "color": colors[name], "weight": weight, "logit": logits[target]}
        for name, weight, logits in zip(
            explanation.expert_names, explanation.expert_weights, explanation.expert_logits, strict=True
        )
    ]
    return (
        environment()
        .get_template("explanation.html.jinja")
        .render(
            e=explanation,
            index_href=index_href,
            predicted=[explanation.label_names[index] for index in explanation.predicted_classes],
            true_names=[explanation.label_names[index] for index in explanation.true_classes],
            method=METHOD_TITLES.get(explanation.method, explanation.method),
            modalities=[_modality(i, *x) for i, x in enumerate(explanation.modalities.items())],
            experts=experts,
            total_weight=explanation.expert_weights.sum(),
            cards=[_card(explanation, name, colors) for name in explanation.importance],
            boards=[_board(explanation, name, colors, ids, top) for name in explanation.pair_tables],
            classes=_classes(explanation),
            settings=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in explanation.settings.items()),
            signed=signed,
        )
    )


def environment(package: str = "fl_i2moe.explain") -> Environment:
    """Of the templates of a package's pages, which may build on those of this one."""
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, "fl_i2moe.explain"))]
    return Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _ids(explanation: ExplanationData) -> dict[str, dict[int, str]]:
    """Modality → feature → its id in the page; names of modalities could spoil it."""
    return {
        name: {index: f"{number}-{index}" for index in range(x.num_features)}
        for number, (name, x) in enumerate(explanation.modalities.items())
    }


def _modality(number: int, name: str, places: Places) -> dict[str, Any]:
    title = modality_title(name)
    head = {"number": number, "title": title.capitalize(), "encoder": encoder_text(places)}
    return head | drawing_of(places).head(places, title)


def _card(explanation: ExplanationData, name: str, colors: Mapping[str, str]) -> dict[str, Any]:
    if name == MIXTURE:
        title, color, subtitle = "Mixture", MIXTURE_COLOR, "importance averaged over the experts by their weights"
    else:
        row = explanation.expert_names.index(name)
        logit = explanation.expert_logits[row, explanation.target]
        title, color = expert_title(name), colors[name]
        subtitle = f"weight {explanation.expert_weights[row]:.3f} · logit {signed(logit)}"
    parts = []
    for modality, scores in explanation.importance[name].items():
        best = explanation.top_features(name, modality, 3)
        ranks = {feature.index: str(rank) for rank, (feature, _) in enumerate(best, 1)}
        strongest = "; ".join(f"{feature.name} ({score:.2f})" for feature, score in best) or "none"
        part = _part(explanation, modality, "gray", ranks, scores)
        part["label"] = f"{part['title']} under its heat map. Strongest patches: {strongest}"
        parts.append(part | {"strongest": strongest})
    return {"title": title, "color": color, "subtitle": subtitle, "parts": parts}


def _board(
    explanation: ExplanationData, expert: str, colors: Mapping[str, str], ids: Mapping[str, Ids], top: int
) -> dict[str, Any]:
    """The strongest pairs of an expert: pictures to the left, their ranking in the middle, texts to the right."""
    pairs = explanation.pairs(expert, top)
    table = explanation.pair_tables[expert]
    ranks: dict[str, dict[int, list[int]]] = {name: {} for name in explanation.modalities}
    for rank, pair in enumerate(pairs, 1):
        for end in (pair.first, pair.second):
            ranks[end.modality].setdefault(end.index, []).append(rank)
    parts = {}
    for name, of_feature in ranks.items():
        shown = {index: _rank_text(numbers) for index, numbers in of_feature.items()}
        parts[name] = _part(explanation, name, "color", shown, None, ids[name])
        parts[name]["label"] = f"{parts[name]['title']} with the patches of the pairs, numbered by rank"
    left = [name for name, x in explanation.modalities.items() if drawing_of(x).is_picture]
    if len(left) in (0, len(parts)):  # no picture, or nothing else
        left = list(parts)[: len(parts) // 2]
    kind = kind_of_expert(expert)
    twins = {}
    if kind == "redundancy" and "redundancy_both" in table.scores:
        twins = {_ends(x): x for x in explanation.pairs(expert, None, "redundancy_both")}
    return {
        "title": f"{expert_title(expert)} expert: strongest pairs by the {SCORE_TITLES[kind]}",
        "color": colors[expert],
        "note": f"{PAIR_NOTES[kind]} {len(table.pairs):,} pairs scored by the estimator {table.estimator} from "
        f"{table.evaluations:,} evaluations of the expert, at least {table.num_coalitions.min():,} coalitions a pair.",
        "left": [parts[name] for name in left],
        "right": [part for name, part in parts.items() if name not in left],
        "pairs": [_row(explanation, pair, twins.get(_ends(pair)), ids) for pair in pairs],
    }


def _row(explanation: ExplanationData, pair: Pair, twin: Pair | None, ids: Mapping[str, Ids]) -> dict[str, Any]:
    """One of the strongest pairs; its `twin` is the same pair by the redundancy gap of both ends."""
    names = [{"name": end_name(explanation, end), "token": end.token is not None} for end in (pair.second, pair.first)]
    names.sort(key=lambda end: not end["token"])  # the token first: it is what a reader looks for
    more = []
    if twin is not None:
        more.append(f"both {score_text(twin)}")
    if abs(pair.score) < 2 * pair.standard_error:
        more.append("within 2 errors of 0")
    return {
        "ends": " ".join(ids[end.modality][end.index] for end in (pair.first, pair.second)),
        "names": names,
        "score": score_text(pair),
        "more": " · ".join(more),
    }


def _ends(pair: Pair) -> tuple[str, int, str, int]:
    return pair.first.modality, pair.first.index, pair.second.modality, pair.second.index


def _rank_text(ranks: Sequence[int]) -> str:
    return ",".join(map(str, ranks[:3])) + ("…" if len(ranks) > 3 else "")


def _part(
    explanation: ExplanationData,
    name: str,
    tone: str,
    ranks: Mapping[int, str],
    scores: np.ndarray | None,
    ids: Ids | None = None,
) -> dict[str, Any]:
    """One modality on a card (with `scores`) or on a board of pairs (with `ids`, its ranked features alone)."""
    places = explanation.modalities[name]
    drawing, number = drawing_of(places), list(explanation.modalities).index(name)
    part = drawing.part(places, f"{tone}-{number}", ranks, scores, ids)
    return {"title": modality_title(name), "macro": drawing.macro, **part}


def _classes(explanation: ExplanationData) -> list[dict[str, Any]]:
    weighted_EC = explanation.expert_weights[:, None] * explanation.expert_logits
    largest = max(float(np.abs(weighted_EC).max()), 1e-12)
    true, probabilities = explanation.true_classes, explanation.probabilities
    return [
        {
            "name": explanation.label_names[index],
            "is_true": index in true,
            "is_target": index == explanation.target,
            "mixture": explanation.logits[index],
            "probability": None if probabilities is None else probabilities[index],
            "cells": [
                {
                    "weighted": weighted,
                    "logit": logit,
                    "tone": "213 94 0" if weighted > 0 else "0 114 178",
                    "strength": round(0.5 * abs(weighted) / largest, 3),
                }
                for weighted, logit in zip(weighted_EC[:, index], explanation.expert_logits[:, index], strict=True)
            ],
        }
        for index in np.argsort(-explanation.logits, kind="stable").tolist()
    ]
