"""
A known truth: for each label the expert that should carry it, for each sample and label the features that show it.

Shapes: N samples, E experts, C labels, T features of a modality, R resamples, S seeds.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ...explain.game import Player
from ...metrics.carriers import label_metrics, replace_experts
from ...metrics.summaries import interval, plain, resample, spread
from ...metrics.tasks import FloatArray, predict
from ...metrics.weighted import weighted_f1

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Where one label shows in one sample; modalities without evidence are left out."""

    features: dict[str, BoolArray]
    """Modality → (T,), true where the evidence lies."""

    near: dict[str, BoolArray]
    """Modality → (T,), true where a feature counts as found: the evidence and, in a grid, its neighbours."""

    states: Mapping[str, Hashable]
    """Modality → what the evidence says there; of one label, equal states look alike."""

    def holds(self, player: Player) -> bool:
        """Whether evidence lies in a feature or unit."""
        return player.modality in self.features and bool(self.features[player.modality][player.place])

    def in_units(self, units: Mapping[str, Sequence[Sequence[int]]]) -> "Evidence":
        """The evidence in units, modality → of each unit its features: where any of them holds it."""

        def any_in(masks: Mapping[str, BoolArray]) -> dict[str, BoolArray]:
            return {name: np.array([mask[x].any() for x in map(list, units[name])]) for name, mask in masks.items()}

        return Evidence(any_in(self.features), any_in(self.near), self.states)


# --- where the truth lies in the sequences ----------------------------------------------------------------------------


def patches_in_boxes(boxes: Sequence[Sequence[float]], geometry: Mapping[str, int], grid: tuple[int, int]) -> BoolArray:
    """
    The patches whose centre lies in a box; for a box without any, the patch that its own centre lies in.

    Args:
        boxes: [left, top, right, bottom] in pixels of the picture; right and bottom lie just outside.
        geometry: `left`, `top`, `right`, `bottom` of the region that the grid covers, as in the feature cache.
        grid: rows and columns, the shape of the result.
    """
    rows, columns = grid
    found = np.zeros(grid, np.bool_)
    height, width = geometry["bottom"] - geometry["top"], geometry["right"] - geometry["left"]
    y = geometry["top"] + (np.arange(rows) + 0.5) * height / rows
    x = geometry["left"] + (np.arange(columns) + 0.5) * width / columns
    for left, top, right, bottom in boxes:
        inside = np.outer((y >= top) & (y < bottom), (x >= left) & (x < right))
        row = math.floor(((top + bottom) / 2 - geometry["top"]) * rows / height)
        column = math.floor(((left + right) / 2 - geometry["left"]) * columns / width)
        if not inside.any() and 0 <= row < rows and 0 <= column < columns:
            inside[row, column] = True
        found |= inside
    return found


def grow(patches: BoolArray) -> BoolArray:
    """(rows, columns) → the same with all neighbours, diagonal ones too."""
    rows, columns = patches.shape
    padded = np.pad(patches, 1)
    return np.any([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)


def tokens_in_spans(spans: Sequence[Sequence[int]], offsets: ArrayLike) -> BoolArray:
    """
    The tokens (T,) that share a character with a span; none where the text was cut before the spans.

    Args:
        spans: [start, end] in characters; the end lies just outside.
        offsets: (T, 2), the characters of each token, as in the feature cache; special tokens have none.
    """
    start, end = np.asarray(offsets, np.int64).reshape(-1, 2).T
    found = np.zeros(len(start), np.bool_)
    for first, last in spans:
        found |= np.maximum(start, first) < np.minimum(end, last)
    return found


def stretches_in_seconds(tones: Sequence[Sequence[float]], seconds: ArrayLike) -> BoolArray:
    """
    The stretches of time (T,) whose middle lies in a tone; for a tone without any, the one that shares most with it, if
    any does.

    Args:
        tones: [start, end] in seconds.
        seconds: (T, 2), the seconds of each feature, as in the feature cache; special features have none.
    """
    start, end = np.asarray(seconds, np.float64).reshape(-1, 2).T
    found = np.zeros(len(start), np.bool_)
    for first, last in tones:
        inside = (first <= (start + end) / 2) & ((start + end) / 2 < last) & (end > start)
        shared = np.minimum(end, last) - np.maximum(start, first)
        if not inside.any() and shared.max(initial=0) > 0:
            inside[shared.argmax()] = True
        found |= inside
    return found


def grow_in_time(stretches: BoolArray, special_mask: ArrayLike) -> BoolArray:
    """(T,) → the same with the stretches before and after; a special feature is none."""
    padded = np.pad(stretches, 1)
    return np.any([padded[i : i + len(stretches)] for i in range(3)], axis=0) & ~np.asarray(special_mask, np.bool_)


def patches_to_features(patches: BoolArray, special_mask: ArrayLike) -> BoolArray:
    """(rows, columns) → (T,): the patches, row by row, in a sequence that may hold special features too; `ValueError`
    if the number of its other features is not that of the patches."""
    special = np.asarray(special_mask, np.bool_)
    if (~special).sum() != patches.size:
        raise ValueError(f"{patches.size} patches do not fit a sequence of {(~special).sum()} features")
    features = np.zeros(len(special), np.bool_)
    features[~special] = patches.ravel()
    return features


# --- the right expert -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertOutputs:
    """What one trained mixture says of a split: `expert_logits` (N, E, C) and `expert_weights` (N, E)."""

    expert_logits: FloatArray
    expert_weights: FloatArray


def micro_f1(
    seeds: Sequence[ExpertOutputs], labels: ArrayLike, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Micro-F1 of the whole mixture on (N, C) multi-hot labels, as [`describe`] gives it."""
    weights = resample(len(np.asarray(labels)), num_resamples, seed)
    logits = [(x.expert_weights[:, :, None] * x.expert_logits).sum(axis=1) for x in seeds]
    decided = [predict(x, "multi_label_classification") for x in logits]
    return describe(np.stack([weighted_f1(x, labels, weights, average="micro") for x in decided]))


def replacement_costs(
    outputs: ExpertOutputs, labels: ArrayLike, weights: FloatArray, *, replaced: str
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """
    What each label loses when one expert says the same of every sample.

    Args:
        labels: (N, C) multi-hot.
        weights: (1 + R, N), from `resample`; in every resample the means are those of all N samples.
        replaced: as [`~fl_i2moe.metrics.carriers.replace_experts`] takes it.

    Returns:
        `f1` and `average_precision` → (whole mixture (1 + R, C), drop (1 + R, E, C)).
    """
    variants = replace_experts(outputs.expert_logits, outputs.expert_weights, replaced)[:-1]
    scores = label_metrics(variants, np.asarray(labels), weights)  # (1 + R, 1 + E, C)
    return {metric: (x[:, 0], x[:, :1] - x[:, 1:]) for metric, x in scores.items()}


def find_carriers(costs: FloatArray) -> NDArray[np.int64]:
    """(…, E, C) → (…, C): the expert that a label loses most without; -1 where it loses nothing or two are equal."""
    largest = costs.max(axis=-2, keepdims=True)
    alone = (costs == largest).sum(axis=-2) == 1
    return np.where(alone & (largest.squeeze(-2) > 0), costs.argmax(axis=-2), -1)


def right_experts(
    seeds: Sequence[ExpertOutputs],
    labels: ArrayLike,
    label_names: Sequence[str],
    expert_names: Sequence[str],
    carriers: Mapping[str, str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Whether the right expert carries each label: the one whose replacement by its mean costs the label most.

    Args:
        seeds: one trained mixture each, on the same N samples, with labels (N, C), multi-hot.
        carriers: label → name of the expert that should carry it.

    Returns:
        JSON: `chance` (1 / E), and by what is replaced and by metric, as in [`replacement_costs`], the `share_right`
        of all labels and `labels`: label → `right` (the expert), `score` of the whole mixture, `costs` by expert,
        `margin` (what the right expert costs beyond any other), `carriers` (one a seed, None where no expert stands
        out). Values are as [`describe`] gives them. `ValueError` for carriers of other labels, or unknown experts.
    """
    if wrong := [f"{label}: {name}" for label, name in carriers.items() if name not in expert_names]:
        raise ValueError(f"no such experts: {', '.join(wrong)}; there are {', '.join(expert_names)}")
    if set(carriers) != set(label_names):
        raise ValueError(f"carriers are given for {sorted(carriers)}, the labels are {sorted(label_names)}")
    right = np.array([list(expert_names).index(carriers[label]) for label in label_names])
    weights = resample(len(np.asarray(labels)), num_resamples, seed)
    result: dict[str, Any] = {"chance": 1 / len(expert_names)}
    for replaced in ("logits", "contribution"):
        result[replaced] = {}
        by_seed = [replacement_costs(x, labels, weights, replaced=replaced) for x in seeds]
        for metric in by_seed[0]:
            scores, costs = (np.stack([run[metric][part] for run in by_seed]) for part in (0, 1))  # (S, 1 + R, …)
            found = find_carriers(costs)
            others = np.where(np.arange(len(expert_names))[:, None] == right, -np.inf, costs).max(axis=2)
            margins = costs[:, :, right, np.arange(len(right))] - others
            result[replaced][metric] = {
                "share_right": describe((found == right).mean(axis=-1)),
                "labels": {
                    label: {
                        "right": carriers[label],
                        "score": describe(scores[:, :, c]),
                        "costs": {name: describe(costs[:, :, e, c]) for e, name in enumerate(expert_names)},
                        "margin": describe(margins[:, :, c]),
                        "carriers": [None if e < 0 else expert_names[e] for e in found[:, 0, c]],
                    }
                    for c, label in enumerate(label_names)
                },
            }
    return result


def describe(values: FloatArray) -> dict[str, Any]:
    """
    (S, 1 + R) values of seeds and, in columns from 1, of their resamples → JSON: `mean` over the seeds, `std` between
    them, `interval`, the middle 95 % of the resampled mean, and `seeds`, the values. What is undefined is None.
    """
    seeds = values[:, 0]
    return {
        "mean": plain(seeds.mean()),
        "std": plain(spread(seeds)),
        "interval": interval(values[:, 1:].mean(axis=0)) or [None, None],
        "seeds": plain(seeds),
    }


# --- evidence and pairs -----------------------------------------------------------------------------------------------


def precision_at(scores: ArrayLike, right: ArrayLike, k: int) -> float:
    """
    Share of right ones, `right` (n,), among the k candidates of highest `scores` (n,), or among all if there are fewer.
    Among equal scores at the border it is the expected share of a random choice. `ValueError` without candidates, for
    `k` below 1, and for scores that are NaN.
    """
    scores, right = np.asarray(scores, np.float64), np.asarray(right, np.bool_)
    if scores.size == 0 or k < 1 or scores.shape != right.shape:
        raise ValueError(f"precision needs candidates and k ≥ 1, got shapes {scores.shape}, {right.shape}, k = {k}")
    if np.isnan(scores).any():
        raise ValueError("scores must not be NaN")
    k = min(k, scores.size)
    border = np.partition(scores, -k)[-k]
    above, tied = scores > border, scores == border
    return float((right[above].sum() + (k - above.sum()) * right[tied].mean()) / k)


def right_pairs(pairs: Sequence[tuple[Player, Player]], found: Mapping[str, BoolArray]) -> BoolArray:
    """(P,): whether both ends, which are features, lie where `found` (modality → (T,)) is true."""
    right = [all(end.modality in found and found[end.modality][end.place] for end in pair) for pair in pairs]
    return np.array(right, np.bool_)


class EvidenceProbe:
    """
    How well features alone reveal the evidence of one label in one modality: a ceiling for what can be found.

    A multinomial logistic regression on single positions of the frozen features separates the states of the evidence
    from positions without it. A sample's positions are then ranked by the probability of the state it shows.
    """

    def __init__(self, features: NDArray[np.floating], states: Sequence[Hashable | None]):
        """Positions (n, D) of training samples, and the state of each, None without evidence; `ValueError` if all are
        alike."""
        self.states = sorted({state for state in states if state is not None}, key=str)
        classes = [-1 if state is None else self.states.index(state) for state in states]
        if len(set(classes)) < 2:
            raise ValueError("a probe needs positions with evidence and positions without, or two states")
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1))
        self.model.fit(features, classes)

    def score(self, features: NDArray[np.floating], state: Hashable) -> FloatArray:
        """(T, D) → (T,), the probability that a position shows `state`."""
        column = self.model.classes_.tolist().index(self.states.index(state))
        return self.model.predict_proba(features)[:, column]
