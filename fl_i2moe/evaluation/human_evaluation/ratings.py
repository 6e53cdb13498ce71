"""
Answers to a questionnaire about expert weights: read and checked, counted as in I²MoE's Table 11, and told in Markdown.

Shapes: R raters, I items, N samples, K = 5 ratings of the scale, B resamples.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...explain.wording import signed
from ...metrics.markdown import escape, estimate, table
from ...metrics.summaries import CONFIDENCE, plain, resample, spread, with_interval
from ...metrics.tasks import FloatArray
from .questionnaire import FORMAT_VERSION, SCALE, Key

POSITIVE, NEGATIVE = (5, 4), (2, 1)
"""Ratings that speak for the weights, and against them."""

CONDITIONS = {"model": "the model’s weights", "control": "another sample’s weights (control)"}


@dataclass(frozen=True)
class Answers:
    """One rater's file."""

    rater: str
    file: Path
    ratings: FloatArray
    """(I,), 1 to 5; NaN where the rater gave none."""


def read_answers(files: Sequence[str | Path], key: Key) -> list[Answers]:
    """Reads answer files, or all `.json` files in a folder; `ValueError` that names every file that cannot be used, or
    is of a rater with another one, and why; or where there is none."""
    paths = [path for file in map(Path, files) for path in (sorted(file.glob("*.json")) if file.is_dir() else [file])]
    answers: dict[str, Answers] = {}
    problems: list[str] = []
    for path in paths:
        try:
            one = _read(path, key)
            if (earlier := answers.setdefault(one.rater.casefold(), one)) is not one:
                raise ValueError(f"is of rater {one.rater!r}, as {earlier.file} is: keep the one that counts")
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError("These answers cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    if not answers:
        raise ValueError(f"There are no answer files in {', '.join(map(str, files))}.")
    return list(answers.values())


def _read(path: Path, key: Key) -> Answers:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is no JSON ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("answers"), dict) or "questionnaire" not in values:
        raise ValueError("holds no answers: a questionnaire's page writes `questionnaire`, `rater` and `answers`")
    if values.get("format") != FORMAT_VERSION:
        raise ValueError(f"`format` is {values.get('format')!r}, not {FORMAT_VERSION}")
    if values["questionnaire"] != key.questionnaire:
        raise ValueError(f"answers another questionnaire, {values['questionnaire']!r}, not {key.questionnaire!r}")
    rater = values.get("rater")
    if not isinstance(rater, str) or not rater.strip():
        raise ValueError(f"`rater` must be a code, got {rater!r}")
    given, ids = values["answers"], [item.item_id for item in key.items]
    if unknown := sorted(set(given) - set(ids)):
        raise ValueError(f"answers items that the questionnaire does not have: {', '.join(unknown)}")
    for number, item_id in enumerate(ids, 1):
        rating = given.get(item_id)
        if rating is not None and (type(rating) is not int or rating not in SCALE):
            raise ValueError(f"the answer to item {number} ({item_id}) must be a whole number 1 to 5, got {rating!r}")
    return Answers(rater.strip(), path, np.array([given.get(x) for x in ids], np.float64))


def summarise_ratings(key: Key, answers: Sequence[Answers], num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """
    Returns:
        As plain JSON; None where a number is undefined.

        - `questionnaire`, `num_raters`
        - `raters`: code → {`file`, `num_answered`, `missing` (numbers of the items without an answer)}
        - `conditions`: `model` (samples with their own weights) and, if there are any, `control` (with those of
          another sample), each {`num_items`, `num_ratings`, `num_missing`; `options`: for each rating {`rating`,
          `text`, `count`, and its share}; `positive`, `negative`: shares of the two best and the two lowest;
          `mean_rating`; `alpha`, see [`krippendorff_alpha`]}
        - `difference` (with controls, else None): mean rating of a sample with its own weights minus that with another
          sample's, over pairs of answers of one rater; `num_samples`, `num_pairs`, and `moved_weight`, the mean share
          of the weight that lies with other experts in the control
        - `items`: `number`, `item_id`, `sample_id`, `weights_of`, `counts` (of ratings 5 to 1), `ratings` (by rater)

        Shares and means are {`value`: over all answers, `std`: of what single raters' own answers give, `interval`:
        95 %, by a bootstrap over raters and samples}.
    """
    ratings_RI = np.array([one.ratings for one in answers])
    is_control = np.array([item.is_control for item in key.items])
    columns = {"model": ratings_RI[:, ~is_control], "control": ratings_RI[:, is_control]}
    mean = partial(_mean, num_resamples=num_resamples, seed=seed)
    return {
        "questionnaire": key.questionnaire,
        "num_raters": len(answers),
        "raters": {
            one.rater: {
                "file": one.file.name,
                "num_answered": int(np.isfinite(one.ratings).sum()),
                "missing": [i + 1 for i in np.flatnonzero(np.isnan(one.ratings)).tolist()],
            }
            for one in answers
        },
        "conditions": {name: _describe(x, mean) for name, x in columns.items() if x.shape[1]},
        "difference": _compare(key, ratings_RI, mean) if is_control.any() else None,
        "items": [
            {
                "number": i + 1,
                "item_id": item.item_id,
                "sample_id": item.sample_id,
                "weights_of": item.weights_of,
                "counts": [int((ratings_RI[:, i] == rating).sum()) for rating in SCALE],
                "ratings": {one.rater: None if np.isnan(one.ratings[i]) else int(one.ratings[i]) for one in answers},
            }
            for i, item in enumerate(key.items)
        ],
    }


def krippendorff_alpha(ratings: FloatArray) -> float:
    """
    Agreement of ratings (R, I), NaN where there is none, on an ordinal scale: 1 for perfect agreement, 0 for what
    chance gives, negative below it (Krippendorff, Content Analysis, chapter 12). Between two ratings lie as many as
    were given there. NaN if undefined: no item has two ratings, or all that can be compared are equal.
    """
    counts_IK = (ratings[:, :, None] == np.array(sorted(SCALE))).sum(axis=0).astype(np.float64)
    counts_IK = counts_IK[counts_IK.sum(axis=1) > 1]  # a single rating can be compared with none
    pairs_KK = np.zeros((len(SCALE), len(SCALE)))
    for counts in counts_IK:
        pairs_KK += (np.outer(counts, counts) - np.diag(counts)) / (counts.sum() - 1)
    totals = pairs_KK.sum(axis=0)
    ranks = totals.cumsum() - totals / 2
    distances_KK = (ranks[:, None] - ranks) ** 2
    expected = (np.outer(totals, totals) * distances_KK).sum()
    if not expected:
        return np.nan
    return float(1 - (totals.sum() - 1) * (pairs_KK * distances_KK).sum() / expected)


def _mean(values_RI: FloatArray, num_resamples: int, seed: int) -> dict[str, Any]:
    """(R, I), NaN where undefined → `value`, `std`, `interval`, by a bootstrap over raters and items."""
    given = np.isfinite(values_RI)
    filled = np.where(given, values_RI, 0)
    raters, items = (resample(count, num_resamples, seed + axis) for axis, count in enumerate(values_RI.shape))
    sums, counts = (((raters @ x) * items).sum(axis=1) for x in (filled, given))
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    answered = given.any(axis=1)
    of_raters = filled[answered].sum(axis=1) / given[answered].sum(axis=1)
    return {**with_interval(means), "std": plain(spread(of_raters))}


Mean = Callable[[FloatArray], dict[str, Any]]


def _describe(ratings_RI: FloatArray, mean: Mean) -> dict[str, Any]:
    missing = np.isnan(ratings_RI)

    def share(chosen: Sequence[int]) -> dict[str, Any]:
        return mean(np.where(missing, np.nan, np.isin(ratings_RI, chosen)))

    return {
        "num_items": ratings_RI.shape[1],
        "num_ratings": int((~missing).sum()),
        "num_missing": int(missing.sum()),
        "options": [
            {"rating": rating, "text": text, "count": int((ratings_RI == rating).sum()), **share([rating])}
            for rating, text in SCALE.items()
        ],
        "positive": share(POSITIVE),
        "negative": share(NEGATIVE),
        "mean_rating": mean(ratings_RI),
        "alpha": plain(krippendorff_alpha(ratings_RI)),
    }


def _compare(key: Key, ratings_RI: FloatArray, mean: Mean) -> dict[str, Any]:
    own = {item.sample_id: i for i, item in enumerate(key.items) if not item.is_control}
    pairs = [(own[item.sample_id], i) for i, item in enumerate(key.items) if item.is_control]
    difference_RN = np.stack([ratings_RI[:, i] - ratings_RI[:, control] for i, control in pairs], axis=1)
    moved = [0.5 * np.abs(np.subtract(key.items[i].weights, key.items[control].weights)).sum() for i, control in pairs]
    return {
        **mean(difference_RN),
        "num_samples": len(pairs),
        "num_pairs": int(np.isfinite(difference_RN).sum()),
        "moved_weight": float(np.mean(moved)),
    }


def to_markdown(summary: Mapping[str, Any]) -> str:
    """From [`summarise_ratings`]."""
    conditions = summary["conditions"]
    several, raters = summary["num_raters"] > 1, _count(summary["num_raters"], "rater")
    total = sum(x["num_ratings"] for x in conditions.values())
    around = " ± standard deviation over the raters" if several else ""
    drawn = "raters and samples" if several else "samples; one rater tells nothing of others"
    parts = [
        f"Distribution of human ratings for expert weights (n = {total}, {raters}; the form of I²MoE’s Table 11).\n",
        table(["response option", *(CONDITIONS[name] for name in conditions)], _rows(conditions, several)),
        f"Percentages of all responses{around}; in brackets {100 * CONFIDENCE:.0f} % intervals, by a bootstrap over "
        f"{drawn}.\n",
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
