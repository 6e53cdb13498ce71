"""
Numeric sequences in which it is known how two or three modalities tell each label: a second sample of known truth.

A label is a Boolean function of bits, each of which is 0 or 1 in half of the samples:

- *unique*: one bit, shown in one modality alone;
- *redundancy*: one bit, shown in each of several modalities, so that each of them tells all;
- *synergy*: the exclusive-or of as many bits as modalities, one shown in each: all together tell all, fewer nothing.

On these every account of interactions agrees, so that one expert ought to carry each label. "And", "or" and majority
are left out: how much of them is redundancy depends on the measure.

A modality is a sequence of tokens of `feature_size` numbers. Its evidence for a label is a group of tokens that show
one bit: a direction that says which label they speak of, plus or minus a second one that says the bit, plus
N(0, noise²) on every number. Directions are orthonormal and fixed by the seed, so a token gives its bit away, to one
who knows them, but for an error of Φ(−1 / noise). The remaining tokens speak of labels that do not exist.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..utils.machine import check_memory
from .truth_files import MIN_SAMPLES, TruthFile, split_sizes

TRUTH = TruthFile("truth.json", format_version=1, kind="numeric sample", writer="write_numeric")
ARRAYS_FILE = "arrays.npz"
MODALITIES = ("alpha", "beta", "gamma")
NUM_DISTRACTORS = 2  # kinds of tokens in each modality that speak of no label
NUM_DRAWS = 16  # draws of all bits, of which the least correlated is taken

Interaction = Literal["unique", "redundancy", "synergy"]
Integers = NDArray[np.int64]
Bits = dict[str, Integers]  # label → (N, its modalities)


@dataclass(frozen=True)
class NumericLabel:
    """How one label is told, and by which modalities."""

    interaction: Interaction
    modalities: tuple[str, ...]

    @property
    def carrier(self) -> str:
        """The expert that ought to carry it."""
        return f"uniqueness_{self.modalities[0]}" if self.interaction == "unique" else self.interaction

    @property
    def shown_bits(self) -> list[tuple[int, ...]]:
        """Every equally likely combination of what the modalities show, in an order in which the label alternates."""
        if self.interaction != "synergy":
            return [(bit,) * len(self.modalities) for bit in (0, 1)]
        combinations = list(itertools.product((0, 1), repeat=len(self.modalities)))
        halves = ([bits for bits in combinations if sum(bits) % 2 == label] for label in (0, 1))
        return [bits for pair in zip(*halves, strict=True) for bits in pair]

    def value(self, bits: Integers) -> Integers:
        """(…, modalities) bits → (…) labels."""
        return bits.sum(axis=-1) % 2 if self.interaction == "synergy" else bits[..., 0]


class HasLabels(Protocol):
    """The settings of a sample."""

    @property
    def labels(self) -> Mapping[str, NumericLabel]: ...


@dataclass(frozen=True)
class NumericSettings:
    """
    What decides the sample, bit for bit.

    Args:
        num_tokens: of each modality.
        evidence_tokens: that show one bit.
        labels_per_kind: labels of each interaction and set of modalities.
        evidence_positions: where evidence may lie; anywhere if not given.

    Raises:
        ValueError: the evidence does not fit, or a number is out of range.
    """

    num_modalities: int = 2
    num_samples: int = 3000
    num_tokens: int = 20
    evidence_tokens: int = 3
    noise: float = 0.2
    labels_per_kind: int = 2
    fixed_positions: bool = False
    evidence_positions: list[int] | None = None
    feature_size: int = 24
    sample_seed: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "NumericSettings":
        """From what holds them among other things; others keep their defaults."""
        return cls(**{item.name: options[item.name] for item in fields(cls) if item.name in options})

    def __post_init__(self) -> None:
        if not 2 <= self.num_modalities <= len(MODALITIES):
            raise ValueError(f"`num_modalities` must be 2 or 3, got {self.num_modalities}.")
        positive = dict.fromkeys(("num_tokens", "evidence_tokens", "labels_per_kind", "feature_size"), 1)
        for name, least in {"num_samples": MIN_SAMPLES, **positive, "noise": 0, "sample_seed": 0}.items():
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a number of at least {least}, got {getattr(self, name)}.")
        numbers = self.num_modalities * self.num_samples * self.num_tokens * self.feature_size
        check_memory(8 * numbers, "the sample", "lower `num_samples` or `num_tokens`")
        if self.labels_per_kind > self.feature_size:  # before they are listed
            raise ValueError(f"`labels_per_kind` must be at most {self.feature_size}, got {self.labels_per_kind}.")
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
        return list(range(self.num_tokens) if self.evidence_positions is None else self.evidence_positions)

    @property
    def labels(self) -> dict[str, NumericLabel]:
        """By name: `alpha_1`, `alpha_or_beta_1` (either tells it), `alpha_xor_beta_1`."""
        pairs = list(itertools.combinations(self.modalities, 2))
        several = pairs + [self.modalities] * (self.num_modalities > 2)
        kinds: list[tuple[tuple[str, ...], Interaction, str]] = [((name,), "unique", "") for name in self.modalities]
        kinds += [(chosen, "redundancy", "_or_") for chosen in several]
        kinds += [(pair, "synergy", "_xor_") for pair in pairs]
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
        return hashlib.sha256(json.dumps([TRUTH.format_version, asdict(self)]).encode()).hexdigest()[:8]

    @property
    def folder_name(self) -> str:
        return f"v{TRUTH.format_version}-{self.num_modalities}-modalities-{self.num_samples}-samples-{self.digest}"


def write_numeric(output_dir: str | Path, settings: NumericSettings) -> Path:
    """
    Writes `arrays.npz` and `truth.json` into a folder that is new or empty, or finds the same sample there.

    Returns:
        The file of arrays, for `load_arrays`.

    Raises:
        ValueError: the folder holds something else.
    """
    made_from = {"settings": asdict(settings)}
    return TRUTH.write_sample(output_dir, made_from, lambda folder: _write(folder, settings)) / ARRAYS_FILE


def load_numeric_truth(data_dir: str | Path) -> dict[str, Any]:
    """
    What tells each label, and where, read from `truth.json`.

    Returns:
        `{"format_version", "settings", "labels", "samples"}`. `labels` maps a label to `interaction`, `modalities` and
        `carrier` as of [`NumericLabel`]. `samples` maps a sample's id, a label and each of the label's modalities to
        `bit`, what is shown there, and `positions`, the tokens that show it.

    Raises:
        ValueError: the folder holds no such sample, or one of another version.
    """
    return TRUTH.load(data_dir)


def _write(folder: Path, settings: NumericSettings) -> dict[str, Any]:
    rng = np.random.default_rng(settings.sample_seed)
    shape = (settings.feature_size, settings.feature_size)
    directions = {name: np.linalg.qr(rng.standard_normal(shape))[0] for name in settings.modalities}
    sizes = split_sizes(settings.num_samples)
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
    fields: dict[str, Any] = {name: np.concatenate(parts) for name, parts in arrays.items()}
    fields["label_names"] = np.array(list(settings.labels))
    fields["split"] = np.repeat(list(sizes), list(sizes.values()))
    fields["ids"] = np.array(list(samples))
    np.savez(folder / ARRAYS_FILE, **fields)
    told = {name: {**asdict(label), "carrier": label.carrier} for name, label in settings.labels.items()}
    return {"labels": told, "samples": samples}


def draw_bits(rng: np.random.Generator, settings: HasLabels, num_samples: int) -> tuple[Bits, Integers]:
    """
    What is shown of each label, and the labels (N, C).

    Each label's combinations of bits are dealt out in turn over the samples, those first that agree in all labels
    before: half of the samples have the label, and half of those that have any others, but for a remainder. Of several
    such draws, the one whose labels correlate least is taken: in 2,100 samples by less than 0.01.
    """
    draws = [_deal(rng, settings, num_samples) for _ in range(NUM_DRAWS)]
    return min(draws, key=lambda draw: np.abs(np.triu(np.cov(draw[1].T, ddof=0), k=1)).max())


def _deal(rng: np.random.Generator, settings: HasLabels, num_samples: int) -> tuple[Bits, Integers]:
    shown: Bits = {}
    labels = np.zeros((num_samples, 0), np.int64)
    for name, label in settings.labels.items():
        combinations = label.shown_bits
        cells = np.unique(labels @ 2 ** np.arange(len(shown)), return_inverse=True)[1]
        shuffled = rng.permutation(num_samples)
        order = shuffled[np.argsort(rng.permutation(num_samples)[cells[shuffled]], kind="stable")]
        dealt = (np.arange(num_samples) + rng.integers(len(combinations))) % len(combinations)
        shown[name] = np.empty((num_samples, len(label.modalities)), np.int64)
        shown[name][order] = np.array(combinations)[dealt]
        labels = np.column_stack([labels, label.value(shown[name])])
    return shown, labels


def _tokens(
    rng: np.random.Generator, settings: NumericSettings, directions: NDArray[np.float64], modality: str, shown: Bits
) -> tuple[NDArray[np.float32], dict[str, Integers]]:
    """(N, T, D), and label → (N, evidence tokens) positions; `directions` are (D, D)."""
    names = settings.labels_of(modality)
    num_samples = len(next(iter(shown.values())))
    positions = np.tile(settings.positions, (num_samples, 1))
    if not settings.fixed_positions:
        positions = rng.permuted(positions, axis=1)
    kind = rng.integers(len(names), len(names) + NUM_DISTRACTORS, (num_samples, settings.num_tokens))
    bits = rng.integers(0, 2, kind.shape)
    rows = np.arange(num_samples)[:, None]
    places = {}
    for number, name in enumerate(names):
        start = number * settings.evidence_tokens
        chosen = positions[:, start : start + settings.evidence_tokens]
        kind[rows, chosen] = number
        bits[rows, chosen] = shown[name][:, [settings.labels[name].modalities.index(modality)]]
        places[name] = np.sort(chosen, axis=1)
    # two directions for each label and distractor: that a token speaks of it, and the bit
    tokens = directions[2 * kind] + (2 * bits - 1)[..., None] * directions[2 * kind + 1]
    tokens += settings.noise * rng.standard_normal(tokens.shape)
    return tokens.astype(np.float32), places
