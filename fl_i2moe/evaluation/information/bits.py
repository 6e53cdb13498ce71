r"""
Usable information and its parts, from the log losses of plain models.

What a model tells of a label is V-information (Xu et al., 2020, arXiv 2002.10689): the log loss of a prediction that is
the same for all samples, less the model's, on held-out samples. With \\(I_m\\) of modality m alone, \\(I_+\\) of the
additive model of all modalities, \\(I_{+ \setminus m}\\) of that without m, and \\(I\\) of the model that sees
everything together,

- unique to m is \\(U_m = I_+ - I_{+ \setminus m}\\),
- synergistic is \\(S = I - I_+\\), what no sum of evidence tells,
- redundant is the rest, \\(R = I_+ - \sum_m U_m\\); of two modalities \\(I_1 + I_2 - I_+\\).

They sum to \\(I\\). Any of them can be negative.

Shapes: N samples · C labels · R rows (each label, and all together) · B draws of a bootstrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...metrics.tasks import FloatArray, IntArray
from .tasks import LabelKind

CALIBRATIONS = 30
"""How many sets of seeds and validation samples a bootstrap draws; each is calibrated anew."""
_CHUNK = 2**22
"""Numbers of a bootstrap's weights that are held at once."""


@dataclass(frozen=True)
class System:
    """One of the plain models."""

    name: str
    modalities: tuple[str, ...]
    """What it sees."""
    fusion: str
    holds: tuple[str, ...] = ()
    """Smaller systems whose predictions it may fall back on: its calibration weighs them against its own."""


def create_systems(modalities: Sequence[str]) -> dict[str, System]:
    """
    Name → model: each modality alone; of three and more modalities, the additive model without each of them; the
    additive model of all; and all together. A model comes behind those that it holds.
    """
    systems = [System(f"alone_{name}", (name,), "transformer") for name in modalities]
    additive = [(name, tuple(x for x in modalities if x != name)) for name in modalities if len(modalities) > 2]
    for name, seen in [*((f"without_{name}", others) for name, others in additive), ("additive", tuple(modalities))]:
        systems.append(System(name, seen, "late", tuple(f"alone_{x}" for x in seen)))
    systems.append(System("together", tuple(modalities), "transformer", ("additive",)))
    return {x.name: x for x in systems}


def decompose_information(information: Mapping[str, FloatArray], modalities: Sequence[str]) -> dict[str, Any]:
    """
    Name of a system → its information (…), in any unit. Returns `alone` and `unique`, by modality, `additive`,
    `together`, `redundant` and `synergistic`.
    """
    alone = {name: information[f"alone_{name}"] for name in modalities}
    additive, together = information["additive"], information["together"]
    without = dict(zip(modalities, reversed(list(alone.values())), strict=True))
    if len(modalities) > 2:
        without = {name: information[f"without_{name}"] for name in modalities}
    unique = {name: additive - x for name, x in without.items()}
    synergistic = together - additive
    redundant = together - synergistic - sum(unique.values())
    return {
        "alone": alone,
        "additive": additive,
        "together": together,
        "unique": unique,
        "redundant": redundant,
        "synergistic": synergistic,
    }


def choose_epochs(
    outputs: Mapping[str, FloatArray], labels: NDArray[Any], kind: LabelKind
) -> tuple[dict[str, FloatArray], IntArray, FloatArray]:
    """
    For each label, the outputs of the epoch after which the models of all seeds together have the smallest calibrated
    loss on the validation split. An epoch's outputs are their mean with those of its neighbours, which is steadier.

    Args:
        outputs: split → (seeds, epochs, N, C).
        labels: of the validation split.

    Returns:
        Split → (seeds, N, C); the epochs (C,), from 0 on; and (C,) how many bits of validation loss they gained in the
        last third of the training, where there is more to gain by a longer one.
    """
    smoothed = {split: _with_neighbours(x) for split, x in outputs.items()}
    by_epoch = []
    for x in smoothed["validation"].mean(axis=0):
        calibration = kind.calibrate(x[None], labels)
        by_epoch.append(kind.losses(calibration(x[None]), labels, calibration.spread).mean(axis=0))
    losses = np.stack(by_epoch)  # (epochs, R)
    losses = np.repeat(losses[:, -1:], kind.num_labels, axis=1) if kind.is_one_choice else losses[:, :-1]
    chosen = losses.argmin(axis=0)
    late_gain = losses[: 1 + 2 * len(losses) // 3].min(axis=0) - losses.min(axis=0)
    places = np.arange(kind.num_labels)
    taken = {split: x[:, chosen, :, places].transpose(1, 2, 0) for split, x in smoothed.items()}
    return taken, chosen, late_gain


def _with_neighbours(x: FloatArray) -> FloatArray:
    """(seeds, epochs, …): the mean of each epoch and the ones before and after it, as far as there are."""
    epochs = x.shape[1]
    return np.stack([x[:, max(0, e - 1) : e + 2].mean(axis=1) for e in range(epochs)], axis=1)


def calibrated_losses(
    outputs: Mapping[str, Mapping[str, FloatArray]],
    labels: Mapping[str, NDArray[Any]],
    systems: Mapping[str, System],
    kind: LabelKind,
    seeds: IntArray,
    rows: IntArray,
) -> dict[str, FloatArray]:
    """
    Log losses on the test split, in bits, of the mean output of some seeds, calibrated on the validation split.

    Args:
        outputs: system → split → logits or numbers (seeds, N, C).
        labels: split → (N, C), of real numbers scaled; or (N,).
        seeds: which of them; one may count several times.
        rows: samples of the validation split that calibrations see; likewise.

    Returns:
        System → (N, R).
    """
    predicted: dict[str, dict[str, FloatArray]] = {}
    losses = {}
    for name, system in systems.items():
        columns = {
            split: np.stack([x[seeds].mean(axis=0), *(predicted[held][split] for held in system.holds)])
            for split, x in outputs[name].items()
        }
        calibration = kind.calibrate(columns["validation"][:, rows], labels["validation"][rows])
        predicted[name] = {split: calibration(x) for split, x in columns.items()}
        losses[name] = kind.losses(predicted[name]["test"], labels["test"], calibration.spread)
    return losses


def estimate_information(
    outputs: Mapping[str, Mapping[str, FloatArray]],
    labels: Mapping[str, NDArray[Any]],
    systems: Mapping[str, System],
    kind: LabelKind,
    num_resamples: int,
    seed: int = 0,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """
    System → information (R,) on the test split, in bits, and → that of each of B draws of a bootstrap (B, R), which
    takes test samples, seeds and validation samples with replacement. Arguments as of [`calibrated_losses`]; the
    estimate is of all seeds.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_rows = (len(x) for x in (next(iter(outputs.values()))["test"], labels["validation"]))
    prior = kind.prior_losses(labels["validation"], labels["test"])
    losses = calibrated_losses(outputs, labels, systems, kind, np.arange(num_seeds), np.arange(num_rows))
    estimate = {name: (prior - x).mean(axis=0) for name, x in losses.items()}

    gains = {name: np.empty((CALIBRATIONS, *prior.shape)) for name in systems}
    for number in range(CALIBRATIONS):
        seeds, seen = rng.integers(num_seeds, size=num_seeds), rng.integers(num_rows, size=num_rows)
        for name, x in calibrated_losses(outputs, labels, systems, kind, seeds, seen).items():
            gains[name][number] = prior - x
    of_draw = np.arange(num_resamples) % CALIBRATIONS
    draws = {name: np.empty((num_resamples, prior.shape[1])) for name in systems}
    rows = max(1, _CHUNK // len(prior))
    for start in range(0, num_resamples, rows):
        chosen = of_draw[start : start + rows]
        weights = rng.multinomial(len(prior), np.full(len(prior), 1 / len(prior)), len(chosen)) / len(prior)
        for name, x in gains.items():
            for number in np.unique(chosen):
                is_of = np.flatnonzero(chosen == number)
                draws[name][start + is_of] = weights[is_of] @ x[number]
    return estimate, draws


def information_rows(
    estimate: Mapping[str, FloatArray],
    draws: Mapping[str, FloatArray],
    label_names: Sequence[str],
    modalities: Sequence[str],
    entropy: FloatArray | None,
) -> dict[str, Any]:
    """
    What [`estimate_information`] gives, by label, as plain JSON: `labels`, name → row, and `overall`, the row of all
    together. A row has `entropy`, if given (R,), and the parts of [`decompose_information`], each as `value` and
    `interval`, its 95 % interval: the middle 95 % of the draws, moved so that their mean is the value. (A draw has
    some seeds and validation samples several times, and others not: it tells a little less.)
    """
    values, spread = decompose_information(estimate, modalities), decompose_information(draws, modalities)

    def of_row(value: Any, drawn: Any, row: int) -> Any:
        if isinstance(value, dict):
            return {name: of_row(value[name], drawn[name], row) for name in value}
        ends = value[row] + np.quantile(drawn[:, row], [0.025, 0.975]) - drawn[:, row].mean()
        return {"value": float(value[row]), "interval": ends.tolist()}

    rows = [
        {**({} if entropy is None else {"entropy": float(entropy[row])}), **of_row(values, spread, row)}
        for row in range(len(label_names) + 1)
    ]
    return {"labels": dict(zip(label_names, rows, strict=False)), "overall": rows[-1]}
