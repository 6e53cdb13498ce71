"""An explanation in a few plain sentences, made of its numbers alone: what it does not say is not known."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.tasks import FloatArray
from .attribution import MIXTURE
from .pair_table import kind_of_expert
from .wording import end_name, isolated, listed, modality_title, probability_text, quoted, signed, whole_word

if TYPE_CHECKING:
    from .explanation_data import ExplanationData, Pair

LEADING = 0.75
"""Share of what speaks for the prediction that the experts named first make up, at least."""

OPPOSING, NEGLIGIBLE = 0.2, 0.05
"""What speaks against is told from the first share on of what speaks for; less than the second one, of the sum of all
contributions' sizes, is next to nothing."""

NAMED_WORDS = 3


def summarise(explanation: "ExplanationData") -> str:
    """See `ExplanationData.summary`."""
    leading = _leading(explanation.contributions)
    sentences = [*_carriers(explanation, leading), _evidence(explanation, leading), *_pairs(explanation)]
    return " ".join(sentences)


# ---- what carries the prediction -------------------------------------------------------------------------------------


def _leading(contributions: FloatArray) -> list[int]:
    """The experts that make up most of what has the sum's sign, the largest first."""
    side = contributions * _side(contributions)
    order = np.argsort(-side, kind="stable")
    reached = side[order].clip(min=0).cumsum()
    if not reached[-1] > 0:
        return []
    return order[: 1 + int(np.argmax(reached >= LEADING * reached[-1]))].tolist()


def _side(contributions: FloatArray) -> int:
    return -1 if contributions.sum() < 0 else 1


def _carriers(explanation: "ExplanationData", leading: Sequence[int]) -> list[str]:
    parts = explanation.contributions
    told, size, side = _prediction(explanation), np.abs(parts).sum(), _side(parts)
    if len(parts) == 1:
        return [f"{told}. The model is one expert: how much each modality adds is not known."]
    if not leading:
        return [f"{told}: no expert contributes anything."]
    agreeing, opposed = (
        [e for e in np.argsort(-sign * parts, kind="stable").tolist() if sign * parts[e] > 0] for sign in (side, -side)
    )
    named = leading
    if abs(parts[opposed].sum()) >= OPPOSING * abs(parts[agreeing].sum()):
        named = agreeing + opposed
        verb = "outweighs" if len(agreeing) == 1 else "outweigh"
        sentence = f"{told}: {_named(explanation, agreeing)} {verb} {_named(explanation, opposed)}"
    elif len(leading) < 3:
        sentence = f"{told}, mostly from {_named(explanation, leading)}"
    else:
        sentence = f"{told}, spread over {_named(explanation, leading)}"
    rest = [e for e in range(len(parts)) if e not in named and _only(explanation, e)]
    little = [e for e in rest if abs(parts[e]) < NEGLIGIBLE * size]
    sentences = [f"{sentence}."]
    if little:
        more = _named(explanation, little)
        sentences.append(f"{more[0].upper()}{more[1:]} {'adds' if len(little) == 1 else 'add'} next to nothing.")
    return sentences


def _prediction(explanation: "ExplanationData") -> str:
    target, logit = quoted(explanation.target_name), float(explanation.logits[explanation.target])
    if explanation.problem_type == "regression":
        return f"The model says {logit:.4g} for {target}".replace("-", "−", 1 if logit < 0 else 0)
    if explanation.rival is None:
        return f"The logit of {target} is {signed(logit, 2)} (probability {probability_text(explanation)})"
    lead, rival = logit - float(explanation.logits[explanation.rival]), quoted(explanation.rival_name)
    if abs(lead) < 0.005:
        return f"{target} is level with {rival}"
    if lead < 0:
        return f"{target} is {-lead:.2f} logits behind {rival}"
    return f"{target} is {lead:.2f} logits ahead of the runner-up, {rival}"


def _named(explanation: "ExplanationData", experts: Sequence[int]) -> str:
    """`the text alone (+2.10) and the expert named “synergy” (+0.30)`: the former of an expert that reads nothing else,
    the latter since a name is no finding."""
    parts, alone, named = explanation.contributions, [], []
    for e in experts:
        only, size = _only(explanation, e), f"({_amount(parts[e], np.abs(parts).max())})"
        if only:
            alone.append(f"the {modality_title(only)} alone {size}")
        else:
            named.append(f"{quoted(explanation.expert_names[e])} {size}")
    group = [f"the expert{'s' * (len(named) > 1)} named {listed(named)}"] if named else []
    return listed(alone + group if not experts or _only(explanation, experts[0]) else group + alone)


def _amount(value: float, largest: float) -> str:
    """`+0.25`; with two figures that count where even the largest number would be lost."""
    return signed(value, 2) if largest >= 0.05 else f"{value:+.2g}".replace("-", "−")


def _only(explanation: "ExplanationData", expert: int) -> str | None:
    """The one modality that an expert's answer can depend on, if it is but one."""
    read = (explanation.reads or {}).get(explanation.expert_names[expert], [])
    return read[0] if len(read) == 1 and len(explanation.modalities) > 1 else None


# ---- evidence --------------------------------------------------------------------------------------------------------


def _evidence(explanation: "ExplanationData", leading: Sequence[int]) -> str:
    if explanation.method == "random":
        return "Importance is drawn at random here, as a baseline, so no evidence is named."
    names = explanation.expert_names
    expert = names[leading[0]] if len(leading) == 1 else names[0] if len(names) == 1 else MIXTURE
    if expert not in explanation.importance:
        return "Where the evidence lies was not computed."
    where = "" if len(names) == 1 or (len(leading) == 1 and _only(explanation, leading[0])) else f" in {quoted(expert)}"
    where = " over all experts" if expert == MIXTURE else where
    read = (explanation.reads or {}).get(expert) or list(explanation.modalities)
    parts = [part for name in read if (part := _best(explanation, expert, name))]
    if not parts:
        return f"No feature has any importance{where}."
    return f"Most important{where}: {'; '.join(parts)}."


def _best(explanation: "ExplanationData", expert: str, modality: str) -> str:
    """`words “happy”, “love” and “sun”`, `row 2, column 3 of the image`"""
    best = explanation.top_features(expert, modality, None)
    title, places = modality_title(modality), explanation.modalities[modality]
    if not best:
        return ""
    if best[0][0].token is None:
        return f"{isolated(best[0][0].name)} of the {title}"
    names = (quoted(whole_word(places, feature.index) or feature.token or feature.name) for feature, _ in best)
    is_only = [x.kind for x in explanation.modalities.values()].count(places.kind) == 1
    return f"words {listed([*dict.fromkeys(names)][:NAMED_WORDS])}" + ("" if is_only else f" of the {title}")


# ---- pairs -----------------------------------------------------------------------------------------------------------


def _pairs(explanation: "ExplanationData") -> list[str]:
    if not explanation.pair_tables:
        return ["Pairs were not scored."]
    sentences: list[str] = []
    little: list[str] = []
    without: list[str] = []
    unknown: list[str] = []
    size = np.abs(explanation.contributions).sum()
    for expert, table in explanation.pair_tables.items():
        pairs = explanation.pairs(expert, None)
        found, scored = [pair for pair in pairs if pair.is_found], f"{quoted(expert)} ({len(pairs):,} scored)"
        if not found:
            is_unknown = all(math.isnan(pair.interval[0]) for pair in pairs)
            (unknown if is_unknown else without).append(scored)
            continue
        weight, first = explanation.expert_weights[explanation.expert_names.index(expert)], found[0]
        names, reach = _ends(explanation, first), _reach(first)
        is_gap = kind_of_expert(expert) != "sii"
        if weight * abs(first.score) < NEGLIGIBLE * size:
            little.append(f"{abs(first.score):.3f} in {scored}")
            continue
        if is_gap:
            told = f"{names} tell most of the same, {reach}"
        else:
            told = f"{names} together say {'more' if first.score > 0 else 'less'} than the sum of each, by {reach}"
        many = "" if table.estimator == "exact" else f"; {len(found):,} leave{'s' * (len(found) == 1)} 0 out"
        sentences.append(f"In {scored} {told}{many}{by_chance(expert, len(pairs), len(found)) if many else ''}.")
    if little:
        sentences.append(f"The pairs tried are worth next to nothing: at most {listed(little)}.")
    if unknown:
        sentences.append(f"Errors of the pairs in {listed(unknown)} are not known, since each has one coalition.")
    if without:
        sentences.append(f"No pair is found to interact beyond its error in {listed(without)}.")
    return sentences


def by_chance(expert: str, num_pairs: int, num_found: int) -> str:
    """How many 95 % intervals around an index of 0 leave 0 out. (A gap is never negative: of it this is not known.)"""
    if kind_of_expert(expert) != "sii":
        return ""
    expected = 0.05 * num_pairs
    if num_found <= expected:
        return ", no more than chance alone would give"
    return f", where chance alone would give about {round(expected):,}" if expected >= 1 else ""


def _ends(explanation: "ExplanationData", pair: "Pair") -> str:
    """`“desert” and row 2, column 3`"""
    ends = sorted((pair.first, pair.second), key=lambda end: end.token is None)
    return " and ".join(end_name(explanation, end) for end in ends)


def _reach(pair: "Pair") -> str:
    """`0.42 (95 % interval 0.20 to 0.64)`, without its sign."""
    side = -1 if pair.score < 0 else 1
    low, high = sorted(side * end for end in pair.interval)
    digits = 2 if abs(pair.score) >= 0.1 else 3
    size = f"{abs(pair.score):.{digits}f}"
    return size if low == high else f"{size} (95 % interval {low:.{digits}f} to {high:.{digits}f})"
