"""Ratings of expert weights as Markdown, in the form of I²MoE's Table 11."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from markupsafe import Markup

from ...explain.pages.display import signed
from ...metrics.markdown import escape, estimate, table
from ...metrics.summaries import CONFIDENCE

CONDITIONS = {"model": "the model’s weights", "control": "another sample’s weights (control)"}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """From [`~fl_i2moe.evaluation.human_evaluation.ratings.summarise_ratings`]."""
    conditions = summary["conditions"]
    several, raters = summary["num_raters"] > 1, _count(summary["num_raters"], "rater")
    total = sum(x["num_ratings"] for x in conditions.values())
    parts = [
        f"Distribution of human ratings for expert weights (n = {total}, {raters}; the form of I²MoE’s Table 11).\n",
        table(["response option", *(CONDITIONS[name] for name in conditions)], _rows(conditions, several)),
        _note(several),
    ]
    if summary["difference"]:
        parts.append(_difference(summary["difference"]))
    parts += [_missing(summary), "Ratings of each sample, from 5 (“completely makes sense”) to 1:\n", _samples(summary)]
    return "\n".join(map(str, parts))


def _rows(conditions: Mapping[str, Any], several: bool) -> list[list[str]]:
    columns = list(conditions.values())
    rows = [
        [options[0]["text"], *(_told(option, _percent, " %", with_interval=False) for option in options)]
        for options in zip(*(column["options"] for column in columns), strict=True)
    ]
    asked = [x["num_ratings"] + x["num_missing"] for x in columns]
    rows += [
        ["positive (the two best)", *(_told(x["positive"], _percent, " %") for x in columns)],
        ["negative (the two lowest)", *(_told(x["negative"], _percent, " %") for x in columns)],
        ["mean rating, 5 is best", *(_told(x["mean_rating"], "{:.2f}".format) for x in columns)],
        ["responses, of those asked for", *(f"{x['num_ratings']} of {n}" for x, n in zip(columns, asked, strict=True))],
    ]
    if several:
        alphas = ["undefined" if x["alpha"] is None else signed(x["alpha"], 2).removeprefix("+") for x in columns]
        rows.append(["agreement, Krippendorff’s alpha (ordinal)", *alphas])
    return rows


def _note(several: bool) -> str:
    spread = " ± standard deviation over the raters" if several else ""
    drawn = "raters and samples" if several else "samples; one rater tells nothing of others"
    level = f"{100 * CONFIDENCE:.0f} %"
    return f"Percentages of all responses{spread}; in brackets {level} intervals, by a bootstrap over {drawn}.\n"


def _difference(difference: Mapping[str, Any]) -> str:
    if difference["value"] is None:
        return "No rater rated a sample both with its own and with another sample’s weights.\n"
    told = estimate(difference["value"], None, difference["interval"], partial(signed, digits=2))
    pairs, samples = _count(difference["num_pairs"], "pair"), _count(difference["num_samples"], "sample")
    return (
        f"A sample’s own weights are rated {told} against another sample’s, by the same rater ({pairs} of "
        f"answers to {samples}). Where this is 0, ratings say that weights look sensible, not that they belong to the "
        "sample. Another sample’s weights put "
        f"{100 * difference['moved_weight']:.0f} % of the weight on other experts, on average.\n"
    )


def _missing(summary: Mapping[str, Any]) -> str:
    missing = {rater: ", ".join(map(str, x["missing"])) for rater, x in summary["raters"].items() if x["missing"]}
    if not missing:
        return "Every rater answered every question.\n"
    title = "Not answered, by rater and number of the question (left out of everything above):"
    return "\n".join([title, "", *(f"- {escape(rater)}: {numbers}" for rater, numbers in missing.items()), ""])


def _samples(summary: Mapping[str, Any]) -> Markup:
    samples: dict[str, dict[str, str]] = {}
    for item in summary["items"]:
        given = [rating for rating in item["ratings"].values() if rating is not None]
        condition = "model" if item["weights_of"] == item["sample_id"] else "control"
        mean = f"{sum(given) / len(given):.2f} ({len(given)})" if given else "–"
        samples.setdefault(item["sample_id"], {})[condition] = mean
    conditions = list(summary["conditions"])
    rows = [[sample_id, *(means.get(name, "–") for name in conditions)] for sample_id, means in samples.items()]
    return table(["sample", *(f"{CONDITIONS[name]}, mean (responses)" for name in conditions)], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _told(value: Mapping[str, Any], form: Callable[[float], str], unit: str = "", with_interval: bool = True) -> str:
    ends = value["interval"] if with_interval else None
    return Markup(estimate(value["value"], value["std"], ends, form, unit))  # brackets of numbers are no link


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
