"""What the pages and the figures say and show alike: titles, numbers as text, the mixture's colour."""

import math
from collections.abc import Sequence

from ...metrics.figures import expert_title
from ...model.places import Places
from ..attribution import MIXTURE
from ..explanation_data import ExplanationData, Pair
from ..pair_table import PairKind
from ..summary import by_chance
from ..wording import isolated, number, quoted, signed
from .drawing import drawing_of

MIXTURE_COLOR = "#222222"
SHOWN_FEATURES = 3
"""The most important ones of a modality, which get a rank."""

METHOD_NAMES = {
    "shapley": "Shapley values",
    "leave_one_out": "Leave one out",
    "rollout": "Grad×AttnRoll through the encoder",
    "grad_attnroll": "Grad×AttnRoll",
    "attnroll": "AttnRoll",
    "ig": "Integrated gradients",
    "random": "Random",
}
METHOD_TITLES = {
    "shapley": "Shapley values, with what is left encoded anew",
    "leave_one_out": "what is lost without it, with the rest encoded anew",
    "rollout": "gradient-weighted attention rollout of the expert, times that of the encoder",
    "attnroll": "attention rollout (AttnRoll), the same for every class",
    "grad_attnroll": "gradient-weighted attention rollout (Grad×AttnRoll)",
    "ig": "integrated gradients",
    "random": "random numbers, a baseline",
}
SCORE_TITLES: dict[PairKind, str] = {
    "sii": "Shapley interaction index",
    "redundancy": "redundancy gap",
    "redundancy_both": "redundancy gap of both ends",
}
PAIR_NOTES: dict[PairKind, str] = {
    "sii": "Logits that the two features add together beyond what each adds alone; negative where one makes the other "
    "superfluous. The largest come first, whatever their sign.",
    "redundancy_both": "Logits that either of the two adds where the other is missing and no more where it is there, "
    "the largest first. The gap “as published” also rewards a pair of which only one end tells anything.",
}


def score_text(pair: Pair) -> str:
    """`+0.320 [+0.220, +0.420]`, with its 95 % interval; a redundancy gap, which is never negative, without signs."""
    write = signed if pair.kind == "sii" else number
    low, high = pair.interval
    if math.isnan(low):
        return f"{write(pair.score)} [?]"
    return write(pair.score) if low == high else f"{write(pair.score)} [{write(low)}, {write(high)}]"


def doubt(pair: Pair) -> str:
    """Why a pair is not said to interact; empty where it is."""
    if pair.is_found:
        return ""
    return "error unknown" if math.isnan(pair.interval[0]) else "the interval holds 0"


def found_text(explanation: ExplanationData, expert: str) -> str:
    """How many of an expert's pairs have an interval that leaves out 0."""
    pairs = explanation.pairs(expert, None)
    found, count = sum(pair.is_found for pair in pairs), f"{len(pairs):,}"
    if all(math.isnan(pair.interval[0]) for pair in pairs):
        return f"Not known: the {count} scores are of one coalition each, which tells no error."
    if not found:
        return f"None found: the 95 % intervals of all {count} pairs hold 0."
    return f"{found:,} of {count} pairs found: their 95 % intervals leave out 0{by_chance(expert, len(pairs), found)}."


def heading(explanation: ExplanationData) -> str:
    """`Why “Drama” for film 1?`, `Why not “Drama” …` of a class that is not predicted."""
    is_number = explanation.problem_type == "regression"
    why = "Why" if is_number or explanation.target in explanation.predicted_classes else "Why not"
    return f"{why} {quoted(explanation.target_name)} for {isolated(explanation.sample_id)}?"


def contribution_note(explanation: ExplanationData) -> str:
    """What the experts' contributions sum to."""
    target, total = quoted(explanation.target_name), signed(explanation.contributions.sum())
    if explanation.problem_type == "regression":
        return f"The parts sum to what the model says, {total}: each is an expert’s weight times its answer."
    if explanation.rival is None:
        return (
            f"The parts sum to the logit of {target}, {total}; above 0 it is more likely than not. Each is an expert’s "
            "weight times its logit."
        )
    return (
        f"The parts sum to how far {target} is ahead of {quoted(explanation.rival_name)}, the best of the other "
        f"classes: {total}. Each is an expert’s weight times the difference between its logits of the two."
    )


def card_titles(explanation: ExplanationData, name: str) -> tuple[str, list[str]]:
    """Of an expert its title, weight and contribution; of the mixture its title alone."""
    if name == MIXTURE:
        return "Mixture", []
    row = explanation.expert_names.index(name)
    facts = [f"weight {explanation.expert_weights[row]:.3f}", f"contributes {signed(explanation.contributions[row])}"]
    return expert_title(name), facts


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
