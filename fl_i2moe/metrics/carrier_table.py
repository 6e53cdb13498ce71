"""Which expert carries each label, as a table and in a sentence: what a console and a model card show of carriers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .carriers import LABEL_NOUNS, MEASURES, OVERALL
from .figures import expert_title, metric_title
from .markdown import estimate, signed
from .tasks import is_share

NOBODY = "none"
_UNITS = {"log_loss": "nats"}


def carrier_table(statistics: Mapping[str, Any], all_measures: bool = False) -> tuple[list[str], list[list[str]]]:
    """
    Header and rows of label, the expert that it was made for where that is known of any, the expert that carries it,
    and what it loses without that expert: by the first two measures, or by all. Of single labels, all samples are the
    first row.

    Args:
        statistics: those of a mixture, with `carriers`.
    """
    carriers, problem_type = statistics["carriers"], statistics["problem_type"]
    measures = MEASURES[problem_type] if all_measures else MEASURES[problem_type][:2]
    header = [what(statistics), "carried by", *map(_loss_title, measures)]
    labels = _labels(statistics)
    rows = [_row(name, entry, measures) for name, entry in labels]
    if any("planted" in entry for _, entry in labels):
        header.insert(1, "planted as")
        for row, (_, entry) in zip(rows, labels, strict=True):
            row.insert(1, expert_title(entry["planted"]) if "planted" in entry else "–")
    if carriers["overall"]:
        all_samples = _row("all (accuracy)", carriers["overall"], OVERALL)
        rows.insert(0, all_samples[:1] + ["–"] * (len(header) - len(all_samples)) + all_samples[1:])
    return header, rows


def loss_table(statistics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what each label loses, by the first measure, without each expert and without all of them."""
    measure, experts = MEASURES[statistics["problem_type"]][0], statistics["expert_names"]
    header = [what(statistics), *map(expert_title, experts), "all experts"]
    rows = [
        [name, *(_loss(measure, x[measure]) for x in (*(entry["losses"][e] for e in experts), entry["all_experts"]))]
        for name, entry in _labels(statistics)
    ]
    return header, rows


def carriers_in_words(statistics: Mapping[str, Any]) -> str:
    """How many labels each expert carries; where it is known what labels were made for, how many the right one does."""
    labels, experts = _labels(statistics), statistics["expert_names"]
    planted = [entry for _, entry in labels if "planted" in entry]
    if planted:
        right = sum(entry["carrier"] == entry["planted"] for entry in planted)
        chance = sum(entry["planted"] in experts for entry in planted) / len(experts)
        return (
            f"{right} of {_count(len(planted), statistics)} are carried by the expert named after their interaction; "
            f"chance is {chance:.2g}."
        )
    counts = Counter(entry["carrier"] for _, entry in labels)
    names = {name: expert_title(name) for name in experts} | {None: NOBODY}
    told = ", ".join(f"{counts[name]} by {title}" for name, title in names.items() if counts[name])
    return f"Carried, of {_count(len(labels), statistics)}: {told}."


def what(statistics: Mapping[str, Any]) -> str:
    """`label`, `class` or `target`."""
    return LABEL_NOUNS[statistics["problem_type"]]


def _count(number: int, statistics: Mapping[str, Any]) -> str:
    plural = {"class": "classes"}.get(what(statistics), f"{what(statistics)}s")
    return f"{number:,} {what(statistics) if number == 1 else plural}"


def _labels(statistics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, statistics["carriers"]["labels"][name]) for name in statistics["label_names"]]


def _row(name: str, entry: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    carrier = entry["carrier"]
    if carrier is None:
        return [name, NOBODY, *["–"] * len(measures)]
    return [name, expert_title(carrier), *(_loss(x, entry["losses"][carrier][x]) for x in measures)]


def _loss(measure: str, loss: Mapping[str, Any]) -> str:
    """`0.412 [0.380, 0.445]`"""
    return estimate(loss["value"], None, loss["interval"], lambda x: signed(measure, x).lstrip("+"))


def _loss_title(measure: str) -> str:
    unit = _UNITS.get(measure) or ("%" if is_share(measure) else "")
    return f"{metric_title(measure)}{unit and f' ({unit})'}"
