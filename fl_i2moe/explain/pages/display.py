"""What the pages and the figures say and show alike: titles, numbers as text, the mixture's colour."""

import math
from collections.abc import Sequence

from ...metrics.figures import expert_title
from ...model.kind import Places
from ..attribution import MIXTURE
from ..explanation_data import ExplanationData, Feature, Pair
from ..interactions import PairKind
from .drawing import drawing_of

MIXTURE_COLOR = "#222222"
SHOWN_FEATURES = 3
"""The most important ones of a modality, which get a rank."""

METHOD_NAMES = {
    "grad_attnroll": "Grad×AttnRoll",
    "attnroll": "AttnRoll",
    "ig": "Integrated gradients",
    "random": "Random",
}
METHOD_TITLES = {
    "attnroll": "attention rollout (AttnRoll), the same for every class",
    "grad_attnroll": "gradient-weighted attention rollout (Grad×AttnRoll)",
    "ig": "integrated gradients",
    "random": "random numbers, a baseline",
}
SCORE_TITLES: dict[PairKind, str] = {"sii": "Shapley interaction index", "redundancy": "redundancy gap"}
PAIR_NOTES: dict[PairKind, str] = {
    "sii": "Logits that the two features add together beyond what each adds alone; negative where one makes the other "
    "superfluous. The largest come first, whatever their sign.",
    "redundancy": "Logits that the better of the two features adds and the other then adds no more, the largest first. "
    "As published, the score also rewards a pair of which only one end tells anything; “both” asks it of both.",
}


def signed(value: float, digits: int = 3) -> str:
    """`+0.250`, `−1.000`, `0.000`."""
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if not float(text) else text.replace("-", "−")


def number(value: float | None) -> str:
    """`0.250`, `−1.000`; `undefined` for None."""
    return "undefined" if value is None else signed(value).lstrip("+")


def score_text(pair: Pair) -> str:
    """`+0.320 ± 0.051`; a redundancy gap, which is never negative, without its sign."""
    score = signed(pair.score) if pair.kind == "sii" else f"{pair.score:.3f}"
    return f"{score} ± {'?' if math.isnan(pair.standard_error) else f'{pair.standard_error:.3f}'}"


def card_titles(explanation: ExplanationData, name: str) -> tuple[str, list[str]]:
    """Of an expert its title, weight and logit; of the mixture its title alone."""
    if name == MIXTURE:
        return "Mixture", []
    row = explanation.expert_names.index(name)
    logit = explanation.expert_logits[row, explanation.target]
    return expert_title(name), [f"weight {explanation.expert_weights[row]:.3f}", f"logit {signed(logit)}"]


def feature_ranks(explanation: ExplanationData, expert: str, modality: str) -> dict[int, str]:
    """The most important features → their ranks."""
    best = explanation.top_features(expert, modality, SHOWN_FEATURES)
    return {feature.index: str(rank) for rank, (feature, _) in enumerate(best, 1)}


def pair_ranks(pairs: Sequence[Pair], modality: str) -> dict[int, list[int]]:
    """Features of the modality → the ranks of their pairs."""
    ranks: dict[int, list[int]] = {}
    for rank, pair in enumerate(pairs, 1):
        for end in (pair.first, pair.second):
            if end.modality == modality:
                ranks.setdefault(end.index, []).append(rank)
    return ranks


def modality_title(name: str) -> str:
    return name.replace("_", " ")


def end_name(explanation: ExplanationData, end: Feature) -> str:
    """The feature's name, with its modality where the name alone does not tell it: `“soup”`, `alpha feature 3`."""
    modalities = explanation.modalities.values()
    told = len(modalities) == 2 and len({x.kind for x in modalities}) == 2
    return end.name if told else f"{modality_title(end.modality)} {end.name}"


def layer_text(hidden_layer: int | None) -> str:
    return "last hidden layer" if hidden_layer is None else f"hidden layer {hidden_layer}"


def encoder_text(places: Places) -> str:
    """`openai/clip-vit-base-patch16, last hidden layer, 7 × 7 patches`."""
    drawing = drawing_of(places)
    parts = [places.encoder or "unknown encoder"]
    if drawing.has_layers:
        parts.append(layer_text(places.hidden_layer))
    parts.append(drawing.extent(places))
    if places.special:
        parts.append(f"{len(places.special)} special, never blamed")
    return ", ".join(parts)
