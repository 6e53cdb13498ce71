"""An explanation as a page: one self-contained HTML file that works from disk, without any network."""

from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ...metrics.figures import expert_colors, expert_title
from ..explanation_data import ExplanationData, Pair
from ..pair_table import kind_of_expert, published_kind
from ..wording import end_name, feature_name, listed, modality_title, signed, standing
from .display import (
    METHOD_TITLES,
    MIXTURE_COLOR,
    PAIR_NOTES,
    SCORE_TITLES,
    SHOWN_FEATURES,
    card_titles,
    contribution_note,
    doubt,
    encoder_text,
    feature_ranks,
    found_text,
    heading,
    pair_ranks,
    score_text,
)
from .drawing import Marks, drawing_of


def render_page(explanation: ExplanationData, index_href: str | None = None, top: int = 10) -> str:
    """The explanation as one HTML file, with a relative link to the page of its run, and `top` pairs per expert."""
    page, names = _Page(explanation), explanation.label_names
    template = environment().get_template("explanation.html.jinja")
    return template.render(
        e=explanation,
        index_href=index_href,
        heading=heading(explanation),
        standing=standing(explanation),
        predicted=[names[index] for index in explanation.predicted_classes],
        true_names=[names[index] for index in explanation.true_classes],
        method=METHOD_TITLES.get(explanation.method, explanation.method),
        modalities=[
            {"number": number, "title": modality_title(name).capitalize(), "encoder": encoder_text(places)}
            | drawing_of(places).head(places, modality_title(name))
            for number, (name, places) in enumerate(explanation.modalities.items())
        ],
        nouns=" and ".join(dict.fromkeys(places.noun for places in explanation.modalities.values())),
        contribution_note=contribution_note(explanation),
        parts_of_sum=page.parts_of_sum(),
        experts=[{"title": expert_title(name), "color": page.colors[name]} for name in explanation.expert_names],
        cards=[page.card(name) for name in explanation.importance],
        boards=[page.board(name, top) for name in explanation.pair_tables],
        classes=_classes(explanation),
        settings=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in explanation.settings.items()),
        signed=signed,
    )


def environment(package: str = "fl_i2moe.explain") -> Environment:
    """Of the templates of a package's pages, which may build on those of this one."""
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, "fl_i2moe.explain"))]
    return Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


class _Page:
    """What cards and boards of one explanation share."""

    def __init__(self, explanation: ExplanationData):
        self.explanation = explanation
        self.colors = expert_colors(explanation.expert_names)
        # names of modalities could spoil ids
        self.ids = {
            name: {index: f"{number}-{index}" for index in range(x.num_features)}
            for number, (name, x) in enumerate(explanation.modalities.items())
        }

    def parts_of_sum(self) -> list[dict[str, Any]]:
        """What each expert contributes, as bars from a common zero: `left` and `width` in percent."""
        explanation, parts = self.explanation, self.explanation.contributions
        low, high = min(0.0, parts.min()), max(0.0, parts.max())
        scale = 100 / max(high - low, 1e-12)
        return [
            {
                "title": expert_title(name),
                "color": self.colors[name],
                "weight": weight,
                "reads": f"reads the {modality_title(read[0])} alone" if len(read) == 1 < len(parts) else None,
                "value": part,
                "left": round(scale * (min(part, 0) - low), 2),
                "width": round(scale * abs(part), 2),
                "zero": round(-scale * low, 2),
            }
            for name, weight, part in zip(explanation.expert_names, explanation.expert_weights, parts, strict=True)
            for read in [(explanation.reads or {}).get(name, [])]
        ]

    def card(self, name: str) -> dict[str, Any]:
        title, facts = card_titles(self.explanation, name)
        parts = []
        read = (self.explanation.reads or {}).get(name) or list(self.explanation.modalities)
        for modality in read:
            scores = self.explanation.importance[name][modality]
            best = self.explanation.top_features(name, modality, SHOWN_FEATURES)
            noun = self.explanation.modalities[modality].noun
            named = [(feature_name(self.explanation, modality, x.index), f"{score:.2f}") for x, score in best]
            strongest = "; ".join(f"{feature} ({score})" for feature, score in named) or "none"
            part = self._part(modality, "gray", Marks(feature_ranks(self.explanation, name, modality), scores))
            part["label"] = f"{part['title']} under its heat map. Strongest {noun}: {strongest}"
            parts.append(part | {"strongest": named})
        unread = [modality_title(x) for x in self.explanation.modalities if x not in read]
        facts += [f"does not read the {listed(unread)}"] if unread else []
        summed = "added" if self.explanation.in_logits else "averaged by their weights"
        subtitle = " · ".join(facts) or f"importance of all experts, {summed}"
        return {"title": title, "color": self.colors.get(name, MIXTURE_COLOR), "subtitle": subtitle, "parts": parts}

    def board(self, expert: str, top: int) -> dict[str, Any]:
        """Pictures to the left, the ranking of the pairs in the middle, texts to the right."""
        modalities, table = self.explanation.modalities, self.explanation.pair_tables[expert]
        pairs, parts = self.explanation.pairs(expert, top), {}
        for name in modalities:
            ranks = {
                index: ",".join(map(str, numbers[:3])) + ("…" if len(numbers) > 3 else "")
                for index, numbers in pair_ranks(pairs, name).items()
            }
            parts[name] = self._part(name, "color", Marks(ranks, ids=self.ids[name]))
            parts[name]["label"] = (
                f"{parts[name]['title']} with the {modalities[name].noun} of the pairs, numbered by rank"
            )
        left = [name for name, x in modalities.items() if drawing_of(x).is_picture]
        if len(left) in (0, len(parts)):  # no picture, or nothing else
            left = list(parts)[: len(parts) // 2]
        kind, twins = kind_of_expert(expert), {}
        if kind != published_kind(expert):
            twins = {(x.first, x.second): x for x in self.explanation.pairs(expert, None, published_kind(expert))}
        return {
            "title": f"{expert_title(expert)} expert: strongest pairs by the size of the {SCORE_TITLES[kind]}",
            "color": self.colors[expert],
            "found": found_text(self.explanation, expert),
            "note": f"{PAIR_NOTES[kind]} Scored by the estimator {table.estimator} from {table.evaluations:,} "
            f"evaluations of the expert, at least {table.num_coalitions.min():,} coalitions a pair.",
            "left": [parts[name] for name in left],
            "right": [part for name, part in parts.items() if name not in left],
            "pairs": [self._row(pair, twins.get((pair.first, pair.second))) for pair in pairs],
        }

    def _row(self, pair: Pair, twin: Pair | None) -> dict[str, Any]:
        """One of the strongest pairs; its `twin` is the same pair by the published redundancy gap."""
        ends = sorted((pair.second, pair.first), key=lambda end: end.token is None)  # what a reader looks for first
        more = [] if twin is None else [f"as published {score_text(twin)}"]
        return {
            "ends": " ".join(self.ids[end.modality][end.index] for end in (pair.first, pair.second)),
            "names": [{"name": end_name(self.explanation, end), "token": end.token is not None} for end in ends],
            "score": score_text(pair),
            "is_found": pair.is_found,
            "more": " · ".join([*more, *filter(None, [doubt(pair)])]),
        }

    def _part(self, name: str, tone: str, marks: Marks) -> dict[str, Any]:
        places = self.explanation.modalities[name]
        drawing, number = drawing_of(places), list(self.explanation.modalities).index(name)
        part = drawing.part(places, f"{tone}-{number}", marks)
        return {"title": modality_title(name), "macro": drawing.macro, **part}


def _classes(explanation: ExplanationData) -> list[dict[str, Any]]:
    logits_EC, logits = explanation.expert_logits, explanation.logits
    if explanation.problem_type == "single_label_classification":  # a softmax is blind to their mean
        logits_EC, logits = logits_EC - logits_EC.mean(axis=1, keepdims=True), logits - logits.mean()
    weighted_EC = explanation.expert_weights[:, None] * logits_EC
    largest = max(float(np.abs(weighted_EC).max()), 1e-12)
    true, predicted, probabilities = explanation.true_classes, explanation.predicted_classes, explanation.probabilities
    return [
        {
            "name": explanation.label_names[index],
            "is_true": index in true,
            "is_predicted": index in predicted,
            "is_target": index == explanation.target,
            "mixture": logits[index],
            "probability": None if probabilities is None else probabilities[index],
            "cells": [
                {
                    "weighted": weighted,
                    "logit": logit,
                    "tone": "213 94 0" if weighted > 0 else "0 114 178",
                    "strength": round(0.5 * abs(weighted) / largest, 3),
                }
                for weighted, logit in zip(weighted_EC[:, index], logits_EC[:, index], strict=True)
            ],
        }
        for index in np.argsort(-explanation.logits, kind="stable").tolist()
    ]
