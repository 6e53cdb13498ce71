"""
Numeric sequences in which it is known how two or three modalities tell each label: a second ground truth, of another
kind than the planted films.

A label is a Boolean function of bits, each of which is 0 or 1 in half of the samples:

- *unique*: one bit, shown in one modality alone. That modality tells all, the others nothing.
- *redundancy*: one bit, shown in each of several modalities. Each of them tells all.
- *synergy*: the exclusive-or of as many bits as modalities, one shown in each. All together tell all; fewer tell
  nothing, for given all bits but one the label is still 0 or 1 with even odds.

These are the functions on which every account of interactions agrees, so that each label belongs to one expert: unique
to its modality's uniqueness expert, redundancy and synergy to theirs. "And", "or" and majority are left out on purpose:
of two independent bits, "and" is told in part by each and in part by both together, how much of it is redundancy
depends on the measure, and no expert ought to carry it alone.

A modality is a sequence of tokens of `feature_size` numbers. Its evidence for a label is a group of tokens that show
one bit: a direction that says which label they speak of, plus or minus a second one that says the bit, plus
N(0, noise²) on every number. Directions are orthonormal and fixed by the seed. So a token gives its bit away, to one
who knows the directions, but for an error of Φ(−1 / noise). The remaining tokens are distractors: they speak of labels
that do not exist. Evidence lies in other places in every sample, unless `fixed_positions` keeps it where it is.

    folder/
      arrays.npz    as `arrays.load_arrays` reads it: `alpha`, `beta` (and `gamma`), `labels`, `label_names`, `split`,
                    `ids`
      truth.json    what tells each label, and where in each sample; see `load_numeric_truth`
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .truth_files import TruthFile

FORMAT_VERSION = 1  # of what is written: raise it with every change to arrays or truth
ARRAYS_FILE = "arrays.npz"
TRUTH = TruthFile("truth.json", FORMAT_VERSION, kind="numeric sample", writer="write_numeric")
MODALITIES = ("alpha", "beta", "gamma")
SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
MIN_SAMPLES = 20
NUM_DISTRACTORS = 2
"""Kinds of tokens in each modality that speak of no label."""

NUM_DRAWS = 16

Interaction = Literal["unique", "redundancy", "synergy"]


@dataclass(frozen=True)
class NumericLabel:
    """How one label is told."""

    interaction: Interaction
    modalities: tuple[str, ...]
    """That tell it."""

    @property
    def carrier(self) -> str:
        """The expert that ought to carry it."""
        return f"uniqueness_{self.modalities[0]}" if self.interaction == "unique" else self.interaction

    @property
    def shown_bits(self) -> list[tuple[int, ...]]:
        """Every equally likely combination of what the modalities show, in an order in which the label alternates."""
        if self.interaction != "synergy":
            return [(bit,) * len(self.modalities) for bit in (0, 1)]
        halves = ([], [])
        for bits in itertools.product((0, 1), repeat=len(self.modalities)):
            halves[sum(bits) % 2].append(bits)
        return [bits for pair in zip(*halves, strict=True) for bits in pair]

    def value(self, bits: NDArray[np.int64]) -> NDArray[np.int64]:
        """(…, modalities) bits → (…) labels."""
        return bits.sum(axis=-1) % 2 if self.interaction == "synergy" else bits[..., 0]


@dataclass(frozen=True)
class NumericSettings:
    """What decides the sample, bit for bit."""

    num_modalities: int = 2
    num_samples: int = 3000
    num_tokens: int = 20
    """Of each modality."""

    evidence_tokens: int = 3
    """That show one bit."""

    noise: float = 0.2
    labels_per_kind: int = 2
    """Labels of each interaction and set of modalities."""

    fixed_positions: bool = False
    evidence_positions: list[int] | None = None
    """Where evidence may lie; anywhere if not given."""

    feature_size: int = 24
    sample_seed: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "NumericSettings":
        """From what holds them among other things; what is not there is left at its default."""
        return cls(**{item.name: options[item.name] for item in fields(cls) if item.name in options})

    def __post_init__(self) -> None:
        if not 2 <= self.num_modalities <= len(MODALITIES):
            raise ValueError(f"`num_modalities` must be 2 or 3, got {self.num_modalities}.")
        if self.num_samples < MIN_SAMPLES:
            raise ValueError(f"`num_samples` must be at least {MIN_SAMPLES}, got {self.num_samples}.")
        for name in ("num_tokens", "evidence_tokens", "labels_per_kind", "feature_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"`noise` must be a number of at least 0, got {self.noise}.")
        if self.sample_seed < 0:
            raise ValueError(f"`sample_seed` must not be negative, got {self.sample_seed}.")
        positions = self.positions
        if len(set(positions)) < len(positions) or not all(0 <= x < self.num_tokens for x in positions):
            raise ValueError(
                f"`evidence_positions` must be different numbers in 0 … {self.num_tokens - 1}, got {positions}."
            )
        most = max(len(self.labels_of(name)) for name in self.modalities)
        if most * self.evidence_tokens > len(positions):
            raise ValueError(
                f"{most} labels with {self.evidence_tokens} tokens each (`evidence_tokens`) do not fit "
                f"{len(positions)} positions: give more `num_tokens` or fewer `labels_per_kind`."
            )
        if (least := 2 * (most + NUM_DISTRACTORS)) > self.feature_size:
            raise ValueError(f"`feature_size` must be at least {least} for so many labels, got {self.feature_size}.")

    @property
    def modalities(self) -> tuple[str, ...]:
        return MODALITIES[: self.num_modalities]

    @property
    def positions(self) -> list[int]:
        given = self.evidence_positions
        return list(range(self.num_tokens)) if given is None else list(given)

    @property
    def labels(self) -> dict[str, NumericLabel]:
        """By name: `alpha_1`, `alpha_or_beta_1` (either tells it), `alpha_xor_beta_1`."""
        several = [
            chosen
            for size in range(2, self.num_modalities + 1)
            for chosen in itertools.combinations(self.modalities, size)
        ]
        kinds = [((name,), "unique", "") for name in self.modalities]
        kinds += [(chosen, "redundancy", "_or_") for chosen in several]
        kinds += [(chosen, "synergy", "_xor_") for chosen in several if len(chosen) == 2]
        return {
            f"{joint.join(chosen)}_{number + 1}": NumericLabel(interaction, chosen)
            for chosen, interaction, joint in kinds
            for number in range(self.labels_per_kind)
        }

    def labels_of(self, modality: str) -> list[str]:
        """Labels that the modality shows a bit of."""
        return [name for name, label in self.labels.items() if modality in label.modalities]

    @property
    def digest(self) -> str:
        """Names the sample, in its folder's name and in its samples' ids."""
        return hashlib.sha256(json.dumps([FORMAT_VERSION, asdict(self)]).encode()).hexdigest()[:8]

    @property
    def folder_name(self) -> str:
        return f"v{FORMAT_VERSION}-{self.num_modalities}-modalities-{self.num_samples}-samples-{self.digest}"


def write_numeric(output_dir: str | Path, settings: NumericSettings) -> Path:
    """
    Writes the sample, or reuses it where the same one has been written before.

    Args:
        output_dir: a folder that does not exist yet, or is empty, or holds this very sample.

    Returns:
        The file of arrays, for `load_arrays`; `load_numeric_truth` takes its folder.

    Raises:
        ValueError: the folder holds something else.
    """
    output_dir = Path(output_dir).expanduser().absolute()
    TRUTH.write_sample(
        output_dir, asdict(settings), lambda truth: truth["settings"], lambda folder: _write(folder, settings)
    )
    return output_dir / ARRAYS_FILE


def load_numeric_truth(data_dir: str | Path) -> dict[str, Any]:
    """
    What tells each label, and where, read from `truth.json`.

    Returns:
        `{"format_version", "settings", "labels", "samples"}`. `labels` maps a label to its `interaction`, `modalities`
        and `carrier`, the expert that ought to carry it. `samples` maps a sample's id, a label and each of the label's
        modalities to `bit`, what is shown there, and `positions`, the tokens that show it.

    Raises:
        ValueError: the folder holds no such sample, or one of another version.
    """
    return TRUTH.load(data_dir)


def _write(folder: Path, settings: NumericSettings) -> None:
    rng = np.random.default_rng(settings.sample_seed)
    directions = {name: _directions(rng, settings, name) for name in settings.modalities}
    num_train, num_validation = (round(SPLIT_SHARES[x] * settings.num_samples) for x in ("train", "validation"))
    sizes = {"train": num_train, "validation": num_validation}
    sizes["test"] = settings.num_samples - num_train - num_validation
    arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in (*settings.modalities, "labels")}
    samples: dict[str, Any] = {}
    for size in sizes.values():
        shown, labels = draw_bits(rng, settings, size)
        arrays["labels"].append(labels)
        places = {}
        for name in settings.modalities:
            tokens, places[name] = _tokens(rng, settings, directions[name], name, shown)
            arrays[name].append(tokens)
        for row in range(size):
            samples[f"{settings.digest}-{len(samples):06d}"] = {
                label: {
                    name: {"bit": int(shown[label][row, i]), "positions": places[name][label][row].tolist()}
                    for i, name in enumerate(spec.modalities)
                }
                for label, spec in settings.labels.items()
            }
    np.savez(
        folder / ARRAYS_FILE,
        **{name: np.concatenate(parts) for name, parts in arrays.items()},
        label_names=np.array(list(settings.labels)),
        split=np.repeat(list(sizes), list(sizes.values())),
        ids=np.array(list(samples)),
    )
    told = {name: {**asdict(label), "carrier": label.carrier} for name, label in settings.labels.items()}
    truth = {"format_version": FORMAT_VERSION, "settings": asdict(settings), "labels": told, "samples": samples}
    (folder / TRUTH.name).write_text(json.dumps(truth), encoding="utf-8")


def draw_bits(
    rng: np.random.Generator, settings: NumericSettings, num_samples: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """
    What is shown of each label, and the labels of N samples.

    Each label's combinations of bits are dealt out in turn over the samples, those first that agree in all labels
    before: half of the samples have the label, and half of those that have any others, but for a remainder. Of several
    such draws, the one whose labels correlate least is taken: in 2,100 samples by less than 0.01.

    Returns:
        Label → (N, its modalities), and (N, C).
    """
    draws = [_deal(rng, settings, num_samples) for _ in range(NUM_DRAWS)]
    return min(draws, key=lambda draw: np.abs(np.triu(np.cov(draw[1].T, ddof=0), k=1)).max())


def _deal(
    rng: np.random.Generator, settings: NumericSettings, num_samples: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    shown: dict[str, NDArray[np.int64]] = {}
    labels = np.zeros((num_samples, 0), np.int64)
    for name, label in settings.labels.items():
        combinations = label.shown_bits
        cells = np.unique(labels @ 2 ** np.arange(len(shown)), return_inverse=True)[1]
        shuffled = rng.permutation(num_samples)
        order = shuffled[np.argsort(rng.permutation(num_samples)[cells[shuffled]], kind="stable")]
        dealt = (np.arange(num_samples) + rng.integers(len(combinations))) % len(combinations)
        bits = np.empty((num_samples, len(label.modalities)), np.int64)
        bits[order] = np.array(combinations)[dealt]
        shown[name] = bits
        labels = np.column_stack([labels, label.value(bits)])
    return shown, labels


def _directions(rng: np.random.Generator, settings: NumericSettings, modality: str) -> NDArray[np.float64]:
    """(labels and distractors, 2, D): which one a token speaks of, and the bit."""
    count = len(settings.labels_of(modality)) + NUM_DISTRACTORS
    orthonormal = np.linalg.qr(rng.standard_normal((settings.feature_size, settings.feature_size)))[0]
    return orthonormal[: 2 * count].reshape(count, 2, settings.feature_size)


def _tokens(
    rng: np.random.Generator,
    settings: NumericSettings,
    directions: NDArray[np.float64],
    modality: str,
    shown: dict[str, NDArray[np.int64]],
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int64]]]:
    """(N, T, D), and label → (N, evidence tokens) positions."""
    names = settings.labels_of(modality)
    num_samples, num_tokens = len(next(iter(shown.values()))), settings.num_tokens
    num_evidence = len(names) * settings.evidence_tokens
    positions = np.tile(settings.positions, (num_samples, 1))
    if not settings.fixed_positions:
        positions = rng.permuted(positions, axis=1)
    kind = rng.integers(len(names), len(names) + NUM_DISTRACTORS, (num_samples, num_tokens))
    bits = rng.integers(0, 2, (num_samples, num_tokens))
    rows = np.arange(num_samples)[:, None]
    places = {}
    for number, name in enumerate(names):
        chosen = positions[:, :num_evidence].reshape(num_samples, len(names), -1)[:, number]
        kind[rows, chosen] = number
        bits[rows, chosen] = shown[name][:, [settings.labels[name].modalities.index(modality)]]
        places[name] = np.sort(chosen, axis=1)
    tokens = directions[kind, 0] + (2 * bits - 1)[..., None] * directions[kind, 1]
    tokens += settings.noise * rng.standard_normal(tokens.shape)
    return tokens.astype(np.float32), places
