"""
Labels of which it is known, by enumeration, how many bits each modality tells of them, and what the best predictors
say.

Each modality shows one or more signs, −1 or 1 with equal chances. A label is drawn with a probability that is a
function of the signs; with a share `noise` of flipped labels it is told by 1 − h(noise) bits at most.
"""

import itertools

import numpy as np

# label → (the signs that it depends on, by modality; probability of it, from these signs)
LABELS = {
    "unique": (("a",), lambda a: a > 0),
    "redundant": (("r", "s"), lambda r, s: r > 0),  # s is r, in the other modality
    "exclusive_or": (("x", "y"), lambda x, y: x != y),
    "additive": (("v", "w"), lambda v, w: 1 / (1 + np.exp(-1.5 * (v + w)))),
    "nothing": ((), lambda: 0.5),
}
SHOWN = {"alpha": ("a", "r", "x", "v"), "beta": ("s", "y", "w")}


def entropy(p):
    """In bits."""
    p = np.clip(p, 1e-300, 1)
    q = np.clip(1 - p, 1e-300, 1)
    return -(p * np.log2(p) + q * np.log2(q))


def chance(label, signs, noise):
    """Of a label, given arrays of its signs."""
    return (1 - 2 * noise) * (LABELS[label][1](*signs) * 1.0) + noise


def tables(label, noise):
    """Of every equally likely combination of the label's signs: the signs by name, and the label's chance."""
    names = LABELS[label][0]
    for signs in itertools.product((-1, 1), repeat=len(names)):
        if label != "redundant" or signs[0] == signs[1]:
            yield dict(zip(names, signs, strict=True)), float(chance(label, signs, noise))


def told_by(label, noise, seen):
    """Signs that the modalities `seen` show → the label's chance given these."""
    found = {}
    for signs, p in tables(label, noise):
        found.setdefault(tuple((k, v) for k, v in signs.items() if any(k in SHOWN[m] for m in seen)), []).append(p)
    return {key: np.mean(ps) for key, ps in found.items()}


def bits(label, noise, seen):
    """What these modalities tell of a label: its entropy less what is left of it."""
    return entropy(0.5) - np.mean([entropy(p) for p in told_by(label, noise, seen).values()])


def truth(label, noise):
    """The parts of a decomposition. The additive model of an exclusive-or knows nothing, others are additive."""
    alone = {m: bits(label, noise, [m]) for m in SHOWN}
    together = bits(label, noise, list(SHOWN))
    additive = 0.0 if label == "exclusive_or" else together
    unique = {"alpha": additive - alone["beta"], "beta": additive - alone["alpha"]}
    redundant = sum(alone.values()) - additive
    parts = {"unique": unique, "redundant": redundant, "synergistic": together - additive}
    return {"alone": alone, "together": together, "additive": additive, **parts}


def draw(num_samples, noise, rng):
    """Modality → (N, its signs), and labels (N, C)."""
    signs = {name: rng.choice([-1, 1], num_samples) for names in SHOWN.values() for name in names}
    signs["s"] = signs["r"]
    shown = {m: np.column_stack([signs[x] for x in names]).astype(np.float32) for m, names in SHOWN.items()}
    chances = [chance(label, [signs[x] for x in LABELS[label][0]], noise) for label in LABELS]
    labels = np.column_stack([rng.random(num_samples) < p for p in chances])
    return shown, labels.astype(np.float64)


def best_logits(shown, noise, seen, additive=False):
    """What the best predictor that sees these modalities says: (N, C)."""
    signs = {x: shown[m][:, i] for m in SHOWN for i, x in enumerate(SHOWN[m])}
    columns = []
    for label in LABELS:
        told = told_by(label, noise, [] if additive and label == "exclusive_or" else seen)
        column = np.zeros(len(shown["alpha"]))
        for key, p in told.items():
            column[np.all([signs[x] == v for x, v in key], axis=0)] = np.log(p / (1 - p))
        columns.append(column)
    return np.column_stack(columns)
