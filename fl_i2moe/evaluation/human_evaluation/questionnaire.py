"""
A questionnaire about expert weights (I²MoE, appendix H): which samples it shows in which order, with whose weights; the
key that says so, which readers do not get; and the page that they get, which works from disk and saves their answers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...explain.pages.drawing import drawing_of
from ...explain.pages.sample_page import environment
from ...explain.wording import modality_title
from ...metrics.figures import expert_colors, expert_title
from ...model.places import Places
from ...utils.checked_json import parse_json
from ...utils.files import write_json

FORMAT_VERSION = 1
SCALE = {
    5: "Completely makes sense",
    4: "Mostly makes sense",
    3: "Neutral",
    2: "Makes little sense",
    1: "Makes no sense at all",
}
"""Rating → what a reader chooses, in the words and the order of Table 11."""

_TRIES = 1000


@dataclass(frozen=True)
class Item:
    """One question."""

    item_id: str
    """Under which answers name it; tells nothing."""

    sample_id: str
    weights_of: str
    """The sample whose expert weights are shown; another than `sample_id` in a control."""

    weights: list[float]
    """(E,), as they are shown."""

    @property
    def is_control(self) -> bool:
        return self.weights_of != self.sample_id


_KEY = {
    "format": FORMAT_VERSION,
    "questionnaire": str,
    "expert_names": [str],
    "items": [{"item_id": str, "sample_id": str, "weights_of": str, "weights": [float]}],
}


@dataclass(frozen=True)
class Key:
    """What stands behind a questionnaire's items, in the order in which they are asked."""

    questionnaire: str
    """Its id, a digest of all that it shows."""

    expert_names: list[str]
    items: list[Item]

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """`ValueError` where the file is not there or holds no key."""
        if not path.is_file():
            raise ValueError(f"{path.parent} holds no questionnaire: it has no {path.name}.")
        try:
            values = parse_json(path.read_text(encoding="utf-8"), _KEY)
        except ValueError as error:
            raise ValueError(f"{path} holds no key of a questionnaire: {error}.") from error
        return cls(values["questionnaire"], values["expert_names"], [Item(**item) for item in values["items"]])


def percentages(weights: Sequence[float]) -> list[int]:
    """(E,) as a reader sees them."""
    return [round(100 * weight) for weight in weights]


def stratified_order(has_class_NC: NDArray[np.bool_], rng: np.random.Generator) -> list[int]:
    """All N samples in an order in which classes take turns: each gives a sample of its own, drawn at random, as long
    as it has one left. Samples without a class come last."""
    shuffled = rng.permutation(len(has_class_NC)).tolist()
    waiting = [[row for row in shuffled if has_class_NC[row, c]] for c in rng.permutation(has_class_NC.shape[1])]
    order: dict[int, None] = {}
    while any(waiting):
        for rows in waiting:
            while rows:
                if (row := rows.pop()) not in order:
                    order[row] = None
                    break
    return list(order | dict.fromkeys(shuffled))


def exchange_weights(weights: Sequence[Sequence[float]], rng: np.random.Generator) -> list[int]:
    """For each sample the one whose weights (N, E) it gets, so that controls together have the weights of the samples:
    a random permutation in which no sample gets weights that look like its own. `ValueError` if none was found."""
    shown = [percentages(row) for row in weights]
    for _ in range(_TRIES):
        givers = rng.permutation(len(shown)).tolist()
        if all(shown[row] != shown[giver] for row, giver in enumerate(givers)):
            return givers
    raise ValueError(
        f"The expert weights of the {len(shown)} samples that are to have a control are so much alike, in whole per "
        "cent, that none would differ from its control: ask for fewer or no controls, or for more samples."
    )


def order_of_questions(
    num_samples: int, with_control: Sequence[int], rng: np.random.Generator
) -> list[tuple[int, bool]]:
    """The questions in random order, as (sample, whether it is its control). Of the samples that come twice one version
    lies in the first half and one in the second, the control first in every other."""
    twice = rng.permutation(np.asarray(with_control, np.int64)).tolist()
    once = rng.permutation(sorted(set(range(num_samples)) - set(twice))).astype(np.int64).tolist()
    halves: tuple[list[tuple[int, bool]], ...] = ([], [])
    for place, sample in enumerate(twice):
        halves[place % 2].append((sample, False))
        halves[1 - place % 2].append((sample, True))
    for place, sample in enumerate(once):
        halves[place % 2].append((sample, False))
    return [half[i] for half in halves for i in rng.permutation(len(half))]


def item_ids(count: int, rng: np.random.Generator) -> list[str]:
    """Different ones, in random order."""
    numbers = rng.choice(2**24, size=count, replace=False)
    return [f"{number:06x}" for number in numbers.tolist()]


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
    """The page, from [`describe_questions`]; readers are told if samples return, that is, if there are controls."""
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
