"""
Masking of pairs: the ones that score highest, and random ones to compare them with (FL-I²MoE, Table 1).

Logits of single samples come first, as batches of B = 1; joined along B to those of all G samples, they give the
model's metrics. Intervals are of a bootstrap over samples, the same for all conditions; without resamples there are
none.

Shapes: N players of a sample, P pairs, C classes, Q shares, D random draws, R resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..explain.attribution import count_share
from ..explain.pair_table import PairTable
from ..explain.subject import Subject
from ..metrics.summaries import CONFIDENCE, area_under, describe_draws, drop, plain, resample, spread, with_interval
from ..metrics.tasks import METRICS_BY_PROBLEM, FloatArray, IntArray, compute_metrics
from ..metrics.weighted import weighted_metrics
from ..model.configuration_fl_i2moe import check_choice
from .masking import DIRECTIONS

BoolArray = NDArray[np.bool_]

CURVE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
MAX_REDRAWS = 1000


def top_pairs(scores: FloatArray, share: float) -> IntArray:
    """Indexes of the highest max(1, ⌈share · P⌉) of (P,) scores, best first; ties go to the earlier pair."""
    if not 0 < share <= 1:
        raise ValueError(f"a share of pairs must lie in (0, 1], got {share}")
    return (-scores).argsort(kind="stable")[: count_share(share, len(scores))]


def random_pairs(pairs: IntArray, num_features: int, rng: np.random.Generator) -> IntArray:
    """
    Indexes of random pairs that have `num_features` distinct ends between them.

    Pairs come in random order; one with too many new ends is passed over, one without new ends is taken. `ValueError`
    if no choice is found, which cannot be where each feature pairs with all of another modality, from 2 features on.
    """
    for _ in range(MAX_REDRAWS):
        covered: set[int] = set()
        chosen = []
        for index in rng.permutation(len(pairs)):
            together = covered | set(pairs[index].tolist())
            if len(together) <= num_features:
                covered = together
                chosen.append(index)
            if len(covered) == num_features:
                return np.array(chosen)
    raise ValueError(f"found no choice among {len(pairs)} pairs that has {num_features} distinct features")


def pair_masking_logits(
    subject: Subject,
    table: PairTable,
    number: int,
    kind: str = "sii",
    *,
    share: float = 0.05,
    num_draws: int = 10,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """
    The whole model's logits without the pairs that score highest, and without random ones (Table 1). Both ends of a
    pair are taken out.

    Args:
        subject: one sample.
        table: its candidate pairs; the paper takes all between the top 10 % of each modality.
        number: seeds the sample's random numbers together with `seed`.
        kind: of score, as `PairTable.score` takes it.
        share: of the pairs, rounded up, at least one.

    Returns:
        `none` and `ranked` (B, C); `random_same_features` (D, B, C): random pairs with as many distinct units as the
        ranked ones; `random_same_pairs` (D, B, C): as many pairs, the paper's comparison, which takes more units out
        where ranked pairs share their ends; `num_pairs`, `num_features` (B,) of the ranked, and
        `num_features_same_pairs` (D, B).

    Raises:
        ValueError: no draws, no such kind; and as [`top_pairs`] and [`random_pairs`].
    """
    _check_draws(num_draws)
    rng, chosen = np.random.default_rng([seed, number]), top_pairs(table.score(kind), share)
    ranked, same_features, same_pairs = _ends(table, chosen), [], []
    for _ in range(num_draws):
        same_features.append(_ends(table, random_pairs(table.pairs, int(ranked.sum()), rng)))
        same_pairs.append(_ends(table, rng.permutation(len(table.pairs))[: len(chosen)]))
    logits, counts = _run(subject, table, [np.zeros_like(ranked), ranked, *same_features, *same_pairs])
    return {
        "none": logits[0],
        "ranked": logits[1],
        "random_same_features": logits[2 : 2 + num_draws],
        "random_same_pairs": logits[2 + num_draws :],
        "num_pairs": np.array([len(chosen)]),
        "num_features": counts[1],
        "num_features_same_pairs": counts[2 + num_draws :],
    }


def pair_curve_logits(
    subject: Subject,
    table: PairTable,
    number: int,
    kind: str = "sii",
    *,
    direction: Literal["deletion", "insertion"] = "deletion",
    shares: Sequence[float] = CURVE_SHARES,
    num_draws: int = 5,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """
    Logits as pairs go ("deletion": the ends of the first share of pairs are taken out) or come ("insertion": of all
    ends only those of the first share are there), the highest scores first and in random order.

    Args:
        shares: Q rising shares of the pairs in [0, 1]; 0 takes none.
        num_draws: D random orders. All others are as [`pair_masking_logits`] takes them.

    Returns:
        `ranked` (Q, B, C), `random` (D, Q, B, C), and how many units are taken out: `num_features` (Q, B) and
        `num_features_random` (D, Q, B).

    Raises:
        ValueError: an unknown direction, invalid shares; no draws, no such kind.
    """
    _check_draws(num_draws)
    check_choice("direction", direction, DIRECTIONS)
    if list(shares) != sorted(set(shares)) or len(shares) < 2 or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"shares must be two or more that rise within [0, 1], got {list(shares)}")
    rng, by_score = np.random.default_rng([seed, number]), (-table.score(kind)).argsort(kind="stable")
    orders = [by_score, *(rng.permutation(len(by_score)) for _ in range(num_draws))]
    taken = [_ends(table, order[: count_share(q, len(order)) if q else 0]) for order in orders for q in shares]
    everything = _ends(table, by_score)
    masked = taken if direction == "deletion" else [everything & ~ends for ends in taken]
    logits, counts = (x.reshape(-1, len(shares), *x.shape[1:]) for x in _run(subject, table, masked))
    return {"ranked": logits[0], "random": logits[1:], "num_features": counts[0], "num_features_random": counts[1:]}


def pair_masking_table(
    logits: dict[str, NDArray[Any]],
    labels: NDArray[Any],
    problem_type: str,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Table 1, from the logits of [`pair_masking_logits`] for all G samples.

    Args:
        labels, problem_type: as in `compute_metrics`, whose errors are raised.
        num_resamples, seed: of the bootstrap.

    Returns:
        JSON: `num_samples`, `confidence`, `num_pairs`, `num_features`, `num_features_same_pairs` (means over samples),
        and `metrics`: metric → {`none`, `ranked`: value; `random_same_features`, `random_same_pairs`: {`mean`, `std`,
        `min`, `max`} over draws; `drop` of each of the three, {`value`, `interval`}; `ranked_minus_random`: how much
        more the metric drops without the ranked pairs than without random ones with as many features, {`value`,
        `interval`}}. A greater drop is always worse, of errors too. None for what is undefined.
    """
    measure = _make_measure(labels, problem_type, num_resamples, seed)
    none, ranked = measure(logits["none"]), measure(logits["ranked"])
    names = ("random_same_features", "random_same_pairs")
    randoms = {name: np.stack([measure(draw) for draw in logits[name]]) for name in names}  # (D, metrics, 1 + R)
    table = {}
    for m, (metric, greater_is_better) in enumerate(METRICS_BY_PROBLEM[problem_type].items()):
        drops = {"ranked": drop(none[m], ranked[m], greater_is_better)}
        for name, draws in randoms.items():
            drops[name] = drop(none[m], draws[:, m].mean(axis=0), greater_is_better)
        table[metric] = {
            "none": plain(none[m, 0]),
            "ranked": plain(ranked[m, 0]),
            **{name: describe_draws(draws[:, m, 0]) for name, draws in randoms.items()},
            "drop": {name: with_interval(values) for name, values in drops.items()},
            "ranked_minus_random": with_interval(drops["ranked"] - drops["random_same_features"]),
        }
    counts = {name: float(np.mean(x)) for name, x in logits.items() if name.startswith("num_")}
    return {"num_samples": len(labels), "confidence": CONFIDENCE, **counts, "metrics": table}


def pair_curves(
    logits: dict[str, NDArray[Any]],
    labels: NDArray[Any],
    problem_type: str,
    *,
    shares: Sequence[float] = CURVE_SHARES,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Metrics along the curves and the areas under them, from the logits of [`pair_curve_logits`] for all G samples.

    Args:
        labels, problem_type, num_resamples, seed: as in [`pair_masking_table`].
        shares: those of the logits.

    Returns:
        JSON: `num_samples`, `confidence`, `shares`, `num_features`, `num_features_random` (means over samples, (Q,)),
        and `metrics`: metric → {`ranked`: {`values` (Q,), `area`}; `random`: {`values` (Q,) means over draws, `std`
        (Q,), `area`: {`mean`, `std`, `min`, `max`} over draws}; `area_ranked_minus_random`: {`value`, `interval`}}.
        An area is the mean height of the curve: the area under it, divided by the range of the shares.

    Raises:
        ValueError: logits of another number of shares; and as `compute_metrics`.
    """
    if len(logits["ranked"]) != len(shares):
        raise ValueError(f"the logits are of {len(logits['ranked'])} shares, got {len(shares)}")
    measure = _make_measure(labels, problem_type, num_resamples, seed)

    def curve(points: NDArray[Any]) -> FloatArray:
        """(Q, G, C) → (metrics, 1 + R, Q)."""
        return np.stack([measure(point) for point in points], axis=-1)

    def height(curves: FloatArray) -> FloatArray:
        return area_under(curves, shares) / (shares[-1] - shares[0])

    ranked, randoms = curve(logits["ranked"]), np.stack([curve(draw) for draw in logits["random"]])
    table = {}
    for m, metric in enumerate(METRICS_BY_PROBLEM[problem_type]):
        heights, random_heights = height(ranked[m]), height(randoms[:, m])  # (1 + R,) and (D, 1 + R)
        table[metric] = {
            "ranked": {"values": plain(ranked[m, 0]), "area": plain(heights[0])},
            "random": {
                "values": plain(randoms[:, m, 0].mean(axis=0)),
                "std": plain(spread(randoms[:, m, 0])),
                "area": describe_draws(random_heights[:, 0]),
            },
            "area_ranked_minus_random": with_interval(heights - random_heights.mean(axis=0)),
        }
    return {
        "num_samples": len(labels),
        "confidence": CONFIDENCE,
        "shares": [float(share) for share in shares],
        "num_features": logits["num_features"].mean(axis=-1).tolist(),
        "num_features_random": logits["num_features_random"].mean(axis=(0, 2)).tolist(),
        "metrics": table,
    }


def _ends(table: PairTable, chosen: IntArray) -> BoolArray:
    """(N,) true for the ends of the chosen pairs."""
    ends = np.zeros(len(table.players), np.bool_)
    ends[table.pairs[chosen].ravel()] = True
    return ends


def _run(subject: Subject, table: PairTable, masked: Sequence[BoolArray]) -> tuple[FloatArray, IntArray]:
    """Logits (K, B, C) without what each of K masks (N,) names, and how many players that are (K, B)."""
    players = subject.players
    places = {player: place for place, player in enumerate(players)}
    coalitions = np.ones((len(masked), len(players)), np.bool_)
    coalitions[:, [places[player] for player in table.players]] = ~np.stack(masked)
    logits = subject.mixture(coalitions, players)[0]
    return logits[:, None], np.stack(masked).sum(axis=1)[:, None]


def _check_draws(num_draws: int) -> None:
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")


def _make_measure(
    labels: NDArray[Any], problem_type: str, num_resamples: int, seed: int
) -> Callable[[NDArray[Any]], FloatArray]:
    """Logits (G, C) → all metrics of the samples themselves and of the resamples (metrics, 1 + R)."""
    weights = resample(len(labels), num_resamples, seed)[1:]

    def measure(logits: NDArray[Any]) -> FloatArray:
        themselves = compute_metrics(logits, labels, problem_type)
        resampled = weighted_metrics(logits, labels, problem_type, weights)
        return np.stack([[themselves[m], *resampled[m]] for m in METRICS_BY_PROBLEM[problem_type]])

    return measure
