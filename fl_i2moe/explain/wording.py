"""How explanations are put into words, in summaries, on pages and figures: names, numbers, what a class is."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..model.places import Places
from ..model.words import direction, words

if TYPE_CHECKING:
    from .explanation_data import ExplanationData, Feature


def standing(explanation: "ExplanationData") -> str:
    """What the explained class is to the model and in truth: `predicted and true`, `true, but not predicted`; of a
    regression the two numbers."""
    target, labels = explanation.target, explanation.labels
    if explanation.problem_type == "regression":
        truth = f"true {number(labels[target])}" if labels else "the truth is not known"
        return f"predicted {number(explanation.logits[target])}, {truth}"
    is_predicted, is_true = target in explanation.predicted_classes, target in explanation.true_classes
    if not labels:
        return f"{'predicted' if is_predicted else 'not predicted'}; the truth is not known"
    match is_predicted, is_true:
        case True, True:
            return "predicted and true"
        case True, False:
            return "predicted, but not true"
        case False, True:
            return "true, but not predicted"
    return "neither predicted nor true"


def modality_title(name: str) -> str:
    """Of a modality."""
    return name.replace("_", " ")


def isolated(text: str) -> str:
    """Set apart from the sentence around it where it is written from right to left (Unicode's FSI and PDI, inside its
    quotation marks, which belong to the sentence)."""
    if direction(text) == "ltr":
        return text
    if text[0] == "“" and text[-1] == "”":
        return quoted(text[1:-1])
    return f"\u2068{text}\u2069"


def quoted(name: str) -> str:
    return f"“{isolated(name)}”"


def signed(value: float, digits: int = 3) -> str:
    """`+0.250`, `−1.000`, `0.000`."""
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if not float(text) else text.replace("-", "−")


def number(value: float | None) -> str:
    """`0.250`, `−1.000`; `undefined` for None."""
    return "undefined" if value is None else signed(value).lstrip("+")


def listed(words: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def probability_text(explanation: "ExplanationData") -> str:
    """`0.774`; `above 0.999` instead of a 1 that was rounded."""
    probability = float(explanation.probabilities[explanation.target])
    if 0.0005 <= probability <= 0.9995:
        return f"{probability:.3f}"
    return "above 0.999" if probability > 0.5 else "below 0.001"


def whole_word(places: Places, index: int) -> str | None:
    """The word that a feature is a piece of, without its punctuation; None where it is a whole one, or no word."""
    text, span = getattr(places, "text", None), places.place_of(index).get("span")
    if text is None or span is None:
        return None
    word = next((text[slice(*word)] for word in _words(text) if word[0] <= span[0] and span[1] <= word[1]), "")
    letters = [place for place, character in enumerate(word) if character.isalnum()]
    is_piece = len(letters) > sum(character.isalnum() for character in text[slice(*span)])
    return word[letters[0] : letters[-1] + 1] if is_piece else None


@lru_cache(maxsize=8)
def _words(text: str) -> list[tuple[int, int]]:
    return words(text)


def feature_name(explanation: "ExplanationData", modality: str, index: int) -> str:
    """`“soup”`, `“ist” in “pianist”`, `row 2, column 3`"""
    places = explanation.modalities[modality]
    word = whole_word(places, index)
    return isolated(places.name_of(index)) + (f" in {quoted(word)}" if word else "")


def end_name(explanation: "ExplanationData", end: "Feature") -> str:
    """The feature's name, with its modality where the name alone does not tell it: `“soup”`, `alpha feature 3`."""
    modalities = explanation.modalities.values()
    told = len(modalities) == 2 and len({x.kind for x in modalities}) == 2
    name = feature_name(explanation, end.modality, end.index)
    return name if told else f"{modality_title(end.modality)} {name}"
