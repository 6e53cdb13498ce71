"""An explanation as a page: one self-contained HTML file that works from disk, without any network."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ...metrics.figures import expert_colors, expert_title
from ..attribution import MIXTURE
from ..explanation_data import ExplanationData, Feature, Pair
from ..geometry import Modality
from ..pair_scores import kind_of_expert
from .display import (
    METHOD_TITLES,
    MIXTURE_COLOR,
    PAIR_NOTES,
    SCORE_TITLES,
    encoder_text,
    end_name,
    faded,
    modality_title,
    score_text,
    signed,
)

PICTURE_PIXELS = 640
LONG_TEXT = 700
"""Characters from which a text of a card gets a scroll bar."""


def render_page(explanation: ExplanationData, index_href: str | None = None, top: int = 10) -> str:
    """
    The explanation as one HTML file.

    Args:
        index_href: relative link to the page of the whole run.
        top: pairs shown per expert.
    """
    ids = _Numbers(explanation)
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
            modalities=[_modality(name, x, ids) for name, x in explanation.modalities.items()],
            experts=experts,
            total_weight=explanation.expert_weights.sum(),
            cards=[_card(explanation, name, colors, ids) for name in explanation.importance],
            boards=[_board(explanation, name, colors, ids, top) for name in explanation.pair_tables],
            classes=_classes(explanation),
            settings=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in explanation.settings.items()),
            signed=signed,
        )
    )


def environment() -> Environment:
    """Of the templates of all pages."""
    return Environment(
        loader=PackageLoader("fl_i2moe.explain"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def data_uri(picture: Image.Image, quality: int) -> str:
    """The picture as a JPEG inside a page."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Numbers:
    """Ids of features in a page, which names of modalities could spoil."""

    def __init__(self, explanation: ExplanationData):
        self.of = {name: number for number, name in enumerate(explanation.modalities)}

    def __call__(self, modality: str, index: int) -> str:
        return f"{self.of[modality]}-{index}"


def _modality(name: str, modality: Modality, ids: _Numbers) -> dict[str, Any]:
    picture = modality.picture(PICTURE_PIXELS) if modality.kind == "image" else None
    remark = ""
    if modality.grid and modality.region != (0, 0, *modality.size):
        remark = f"Only the part of the {modality_title(name)} under the patches was encoded."
    return {
        "number": ids.of[name],
        "title": modality_title(name).capitalize(),
        "encoder": encoder_text(modality),
        "size": modality.size,
        "remark": remark,
        "color_uri": None if picture is None else data_uri(picture, 82),
        "gray_uri": None if picture is None else data_uri(faded(picture), 78),
    }


def _card(explanation: ExplanationData, name: str, colors: Mapping[str, str], ids: _Numbers) -> dict[str, Any]:
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
        part = _part(explanation, modality, f"gray-{ids.of[modality]}", ranks, scores)
        part["label"] = f"{part['title']} under its heat map. Strongest patches: {strongest}"
        parts.append(part | {"strongest": strongest})
    return {"title": title, "color": color, "subtitle": subtitle, "parts": parts}


def _board(
    explanation: ExplanationData, expert: str, colors: Mapping[str, str], ids: _Numbers, top: int
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
        parts[name] = _part(explanation, name, f"color-{ids.of[name]}", shown, None, ids)
        parts[name]["label"] = f"{parts[name]['title']} with the patches of the pairs, numbered by rank"
    left = [name for name, x in explanation.modalities.items() if x.kind == "image"]
    if len(left) in (0, len(parts)):  # no picture, or nothing else
        left = list(parts)[: len(parts) // 2]
    kind = kind_of_expert(expert)
    twins = {}
    if kind == "redundancy" and "redundancy_both" in table.scores:
        twins = {(x.first, x.second): x for x in explanation.pairs(expert, None, "redundancy_both")}
    return {
        "title": f"{expert_title(expert)} expert: strongest pairs by the {SCORE_TITLES[kind]}",
        "color": colors[expert],
        "note": f"{PAIR_NOTES[kind]} {len(table.pairs):,} pairs scored by the estimator {table.estimator} from "
        f"{table.evaluations:,} evaluations of the expert, at least {table.num_coalitions.min():,} coalitions a pair.",
        "left": [parts[name] for name in left],
        "right": [part for name, part in parts.items() if name not in left],
        "pairs": [_row(explanation, pair, twins.get((pair.first, pair.second)), ids) for pair in pairs],
    }


def _row(explanation: ExplanationData, pair: Pair, twin: Pair | None, ids: _Numbers) -> dict[str, Any]:
    """One of the strongest pairs; its `twin` is the same pair by the redundancy gap of both ends."""
    names = [{"name": end_name(explanation, end), "token": end.token is not None} for end in (pair.second, pair.first)]
    names.sort(key=lambda end: not end["token"])  # the token first: it is what a reader looks for
    more = []
    if twin is not None:
        more.append(f"both {score_text(twin)}")
    if abs(pair.score) < 2 * pair.standard_error:
        more.append("within 2 errors of 0")
    return {
        "ends": " ".join(ids(end.modality, end.index) for end in (pair.first, pair.second)),
        "names": names,
        "score": score_text(pair),
        "more": " · ".join(more),
    }


def _rank_text(ranks: Sequence[int]) -> str:
    return ",".join(map(str, ranks[:3])) + ("…" if len(ranks) > 3 else "")


def _part(
    explanation: ExplanationData,
    name: str,
    uri_id: str,
    ranks: Mapping[int, str],
    scores: np.ndarray | None,
    ids: _Numbers | None = None,
) -> dict[str, Any]:
    """One modality on a card (with `scores`) or on a board of pairs (with `ids`, its ranked features alone)."""
    modality = explanation.modalities[name]
    part = {"title": modality_title(name), "kind": modality.kind, "size": modality.size, "long": False, "uri_id": None}
    shown = list(ranks) if scores is None else modality.candidates
    if modality.kind == "image" and modality.grid:
        width, height = modality.size
        part["unit"] = round(max(width / 330, height / 400), 3)
        if modality.picture() is not None:
            part["uri_id"] = uri_id
        part["patches"] = [
            _patch(explanation.feature(name, index), ranks.get(index), scores, ids) for index in sorted(shown)
        ]
        part["patches"] = [patch for patch in part["patches"] if patch["width"] > 0 and patch["height"] > 0]
    elif modality.kind == "text":
        part["words"] = _words(modality, name, ranks, scores, ids)
        part["long"] = scores is not None and len(modality.text) > LONG_TEXT
    else:
        part["kind"] = "other"
        part["words"] = [
            _word(str(index), name, (index,), ranks, scores, ids, f"feature {index}") for index in sorted(shown)
        ]
    return part


def _patch(feature: Feature, rank: str | None, scores: np.ndarray | None, ids: _Numbers | None) -> dict[str, Any]:
    left, top, right, bottom = feature.box
    score = None if scores is None else round(float(scores[feature.index]), 3)
    return {
        "class": "heat" if ids is None else "patch",
        "id": ids and ids(feature.modality, feature.index),
        "x": round(left, 2),
        "y": round(top, 2),
        "width": round(right - left, 2),
        "height": round(bottom - top, 2),
        "score": score,
        "rank": rank,
        "title": feature.name if score is None else f"{feature.name}: {score:.2f}",
    }


def _words(
    modality: Modality,
    name: str,
    ranks: Mapping[int, str],
    scores: np.ndarray | None,
    ids: _Numbers | None,
) -> list[dict[str, Any]]:
    words = []
    pieces = modality.pieces()
    last_token = max((number for number, piece in enumerate(pieces) if piece.indexes), default=-1)
    for number, piece in enumerate(pieces):
        text = modality.text[piece.start : piece.end]
        if piece.indexes:
            words.append(_word(text, name, piece.indexes, ranks, scores, ids))
        elif number > last_token and text.strip():
            words.append(
                {"text": text, "class": "cut", "id": None, "score": None, "rank": None, "title": "not encoded"}
            )
        else:
            words.append({"text": text, "class": None})
    return words


def _word(
    text: str,
    name: str,
    indexes: tuple[int, ...],
    ranks: Mapping[int, str],
    scores: np.ndarray | None,
    ids: _Numbers | None,
    title: str | None = None,
) -> dict[str, Any]:
    rank = ",".join(ranks[index] for index in indexes if index in ranks) or None
    if ids is not None:
        named = " ".join(ids(name, index) for index in indexes)
        return {
            "text": text,
            "class": "end" if rank else None,
            "id": named,
            "score": None,
            "rank": rank,
            "title": title,
        }
    score = round(max(float(scores[index]) for index in indexes), 3)
    title = f"{title}: {score:.2f}" if title else f"{score:.2f}"
    return {
        "text": text,
        "class": "token top" if rank else "token",
        "id": None,
        "score": score,
        "rank": rank,
        "title": title,
    }


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
