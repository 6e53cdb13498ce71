"""A questionnaire's page: one HTML file that works from disk, without any network, and saves a reader's answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...explain.pages.display import modality_title
from ...explain.pages.drawing import drawing_of
from ...explain.pages.sample_page import environment
from ...metrics.figures import expert_colors, expert_title
from ...model.kind import Places
from .questionnaire import FORMAT_VERSION, SCALE, Item, percentages


@dataclass(frozen=True)
class Subject:
    """A sample as readers see it."""

    sample_id: str
    modalities: Mapping[str, Places]
    true: list[str] | None
    """Classes, or values in a regression; None: not to be shown."""

    predicted: list[str] = field(default_factory=list)
    """Classes with their probabilities, or values."""


def describe_questions(
    items: Sequence[Item], subjects: Mapping[str, Subject], expert_names: Sequence[str]
) -> list[dict[str, Any]]:
    """All that the page says of each item, in their order: what [`questionnaire_id`] is taken of."""
    colors = expert_colors(expert_names)
    shown = {
        sample_id: [{"title": modality_title(name), **drawing_of(x).question(x)} for name, x in one.modalities.items()]
        for sample_id, one in subjects.items()
    }
    return [
        {
            "id": item.item_id,
            "modalities": shown[item.sample_id],
            "predicted": subjects[item.sample_id].predicted,
            "true": subjects[item.sample_id].true,
            "experts": [
                {"title": expert_title(name), "color": colors[name], "percentage": percentage}
                for name, percentage in zip(expert_names, percentages(item.weights), strict=True)
            ],
        }
        for item in items
    ]


def questionnaire_id(questions: Sequence[Mapping[str, Any]]) -> str:
    """Of the questions and their order: answers to one questionnaire are none to another."""
    return hashlib.sha256(json.dumps([SCALE, questions]).encode()).hexdigest()[:16]


def render_questionnaire(
    questions: Sequence[Mapping[str, Any]],
    expert_names: Sequence[str],
    modality_names: Sequence[str],
    *,
    title: str,
    samples_return: bool,
    is_regression: bool = False,
) -> str:
    """
    Args:
        questions: from [`describe_questions`].
        samples_return: whether there are controls, so that samples come twice, which readers are told.
    """
    template = environment("fl_i2moe.evaluation").get_template("questionnaire.html.jinja")
    return template.render(
        format=FORMAT_VERSION,
        id=questionnaire_id(questions),
        title=title,
        questions=questions,
        scale=SCALE,
        experts=describe_experts(expert_names, modality_names),
        modalities=_listed([modality_title(name) for name in modality_names]),
        even=100 / len(expert_names),
        samples_return=samples_return,
        is_regression=is_regression,
    )


def describe_experts(expert_names: Sequence[str], modality_names: Sequence[str]) -> dict[str, str]:
    """Title of an expert → which interaction it was trained for, in words for readers who know none of this."""
    titles = {name: modality_title(name) for name in modality_names}
    listed = _listed(list(titles.values()))
    described = {
        "synergy": f"what only {listed} together tell",
        "redundancy": f"what {listed} tell alike, each by itself",
    }
    for name, own in titles.items():
        others = [title for other, title in titles.items() if other != name]
        rest = f"the {others[0]} does" if len(others) == 1 else "the others do"
        described[f"uniqueness_{name}"] = f"what the {own} tells and {rest} not"
    return {expert_title(name): described[name] for name in expert_names}


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
