"""The explanation of one prediction, as data: what a page, a figure or another program reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np

from ..metrics.tasks import FloatArray
from ..model.kind_image import Box
from ..model.kind_text import Span
from ..model.kinds import places_from_dict
from ..model.places import Places
from ..utils.checked_json import check_json
from .input_attribution import LOGIT_METHODS
from .pair_table import PairKind, PairTable, kind_of_expert
from .summary import summarise

FORMAT_VERSION = 1
_ARRAYS = ("expert_weights", "expert_logits", "logits")

ROUNDING = 1e-5
"""Logits of 32 bits differ by as much in two passes."""

_SCORES = {str: [(float, None)]}
_SAVED_PAIRS = {
    "ends": [list],  # modality and place, of either end
    "scores": _SCORES,
    "standard_errors": _SCORES,
    "intervals?": {str: [[(float, None)]]},
    "shapley?": ([list], None),  # modality and place, value, standard error, interval
    "num_coalitions": [int],
    "evaluations": int,
    "estimator": str,
    "seed": (int, None),
    "note?": str,
}
_SAVED_PLACES: dict[Any, Any] = {
    "kind": str,
    "num_features": int,
    "special": [int],
    **dict.fromkeys(("encoder?", "special_features?", "sha256?"), (str, None)),
    "hidden_layer?": (int, None),
    str: Any,  # what a kind has of its own
}
_SAVED = {
    "format": int,
    "sample_id": str,
    "target": int,
    "target_name": str,
    "label_names": [str],
    "problem_type": str,
    "labels": ([float], None),
    "modalities": {str: _SAVED_PLACES},
    "expert_names": [str],
    "reads?": ({str: [str]}, None),
    "expert_weights": [float],
    "expert_logits": [[float]],
    "logits": [float],
    "temperature?": (float, None),
    "thresholds?": ([float], None),
    "method": str,
    "importance": {str: {str: [float]}},
    "pair_tables": {str: _SAVED_PAIRS},
    "settings": dict,
    "remarks?": [str],
    "notes?": [str],
}


@dataclass(frozen=True)
class Feature:
    """One end of a pair."""

    modality: str
    index: int
    """Position in the modality's sequence."""

    name: str
    """What a person calls it: the token's text, row and column of the patch, the seconds of a stretch."""

    place: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Where it lies, in the words of its kind: `box`, `token` and `span`, or `seconds`."""

    @property
    def box(self) -> Box | None:
        """Of a patch: left, top, right, bottom in pixels of the picture."""
        return self.place.get("box")

    @property
    def token(self) -> str | None:
        return self.place.get("token")

    @property
    def span(self) -> Span | None:
        """The token's characters in the text."""
        return self.place.get("span")


@dataclass(frozen=True)
class Pair:
    """Two features of different modalities, and how they interact in one expert."""

    expert: str
    kind: PairKind
    first: Feature
    second: Feature
    score: float
    standard_error: float
    """NaN with fewer than two coalitions; 0 where the score was enumerated."""

    interval: tuple[float, float]
    """95 %; NaN with fewer than two coalitions, a point where the score was enumerated."""

    num_coalitions: int
    """Coalitions that this pair's score is a mean of."""

    evaluations: int
    """Distinct coalitions that the expert was run on for all pairs of the sample."""

    @property
    def is_found(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > ROUNDING or high < -ROUNDING


@dataclass
class ExplanationData:
    """
    Why a model gave one class of one sample, the `target`, its logit, by one `method` of importance.

    Shapes: `label_names` and `logits` (C,), `expert_weights` (E,), `expert_logits` (E, C); E experts, C classes, T_m
    features of modality m.
    """

    sample_id: str
    target: int
    label_names: list[str]
    problem_type: str
    labels: list[float] | None
    """What is true: (C,) zeros and ones of a multi-label sample, the one class index, or (C,) numbers of a regression;
    None if unknown."""

    modalities: dict[str, Places]
    expert_names: list[str]
    expert_weights: FloatArray
    expert_logits: FloatArray
    logits: FloatArray
    """The mixture's."""

    method: str
    importance: dict[str, dict[str, FloatArray]]
    """Expert, or `"mixture"`, → modality → (T_m,), from 0 to 1, see [`in_logits`]; special features have 0."""

    pair_tables: dict[str, PairTable] = field(default_factory=dict)
    """Expert → its scored pairs."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What else decided the scores, as plain JSON."""

    remarks: list[str] = field(default_factory=list)
    """What was done to the sample, as sentences."""

    temperature: float | None = None
    thresholds: list[float] | None = None
    """Those of the model's configuration: of its probabilities, and of the labels that it predicts."""

    reads: dict[str, list[str]] | None = None
    """Expert → the modalities that its answer can depend on, by how it is built; None if unknown."""

    @property
    def summary(self) -> str:
        """
        What the class rests on, in two or three sentences made of the numbers: which experts contribute most of it, the
        most important features, and the pairs whose interval leaves out 0.

        A name of an expert is quoted, and not taken for a finding.
        """
        return summarise(self)

    @property
    def in_logits(self) -> bool:
        """Whether importance is what a unit adds to the logit, divided by the largest of all, so that it compares
        across experts and modalities; else it is scaled within each."""
        return self.method in LOGIT_METHODS

    @property
    def target_name(self) -> str:
        return self.label_names[self.target]

    @property
    def true_classes(self) -> list[int]:
        """Indexes of the true classes; none for a regression."""
        return true_classes(self.labels or [], self.problem_type)

    @property
    def probabilities(self) -> FloatArray | None:
        """(C,), the mixture's, under the temperature; None for a regression."""
        if self.problem_type == "regression":
            return None
        logits = self.logits / (self.temperature or 1)
        if self.problem_type == "single_label_classification":
            odds = np.exp(logits - logits.max())
            return odds / odds.sum()
        return 1 / (1 + np.exp(-logits.clip(-700, 700)))

    @property
    def predicted_classes(self) -> list[int]:
        """The class with the highest logit; of a multi-label model those whose probability is above their threshold,
        one half if there is none."""
        if self.problem_type == "single_label_classification":
            return [int(self.logits.argmax())]
        probabilities = self.probabilities
        return [] if probabilities is None else np.flatnonzero(probabilities > (self.thresholds or 0.5)).tolist()

    @property
    def rival(self) -> int | None:
        """Of a single-label model the class that the target is compared with: of all others that with the highest
        logit. None for other tasks, whose logits mean something by themselves."""
        if self.problem_type != "single_label_classification" or len(self.label_names) < 2:
            return None
        others = self.logits.copy()
        others[self.target] = -np.inf
        return int(others.argmax())

    @property
    def rival_name(self) -> str | None:
        return None if self.rival is None else self.label_names[self.rival]

    @property
    def contributions(self) -> FloatArray:
        """(E,), what each expert adds to the prediction: its weight times its logit of the target, for a single-label
        model less that of the [`rival`]. They sum to the mixture's."""
        logits = self.expert_logits[:, self.target]
        if self.rival is not None:
            logits = logits - self.expert_logits[:, self.rival]
        return self.expert_weights * logits

    @property
    def notes(self) -> list[str]:
        """What a reader has to know: raw values that are gone, are not the encoded ones, or could not be compared."""
        return [*self.remarks, *notes_on(self.modalities)]

    def feature(self, modality: str, index: int) -> Feature:
        places = self.modalities[modality]
        return Feature(modality, index, places.name_of(index), places.place_of(index))

    def pairs(self, expert: str, top: int | None = 10, kind: PairKind | None = None) -> list[Pair]:
        """
        The `top` strongest pairs (all if None): those with the largest scores first, whatever their sign; ties in the
        order in which they were scored.

        By default by [`kind_of_expert`]: of the redundancy expert by the redundancy gap of both ends, of all others by
        the Shapley interaction index. `ValueError` for an expert whose pairs were not scored, or an unknown kind.
        """
        kind = kind or kind_of_expert(expert)
        if expert not in self.pair_tables:
            scored = f"only those of {', '.join(self.pair_tables)}" if self.pair_tables else "none"
            raise ValueError(
                f"The pairs of expert {expert!r} were not scored, {scored}: give `explain` an `interactions` estimator "
                "and the expert in `pair_experts`."
            )
        table = self.pair_tables[expert]
        best = table.select(np.argsort(-np.abs(table.score(kind)), kind="stable")[:top])
        arrays = best.scores[kind], best.standard_errors[kind], best.intervals[kind], best.num_coalitions
        pairs = []
        for ends, score, error, interval, count in zip(best.ends, *(x.tolist() for x in arrays), strict=True):
            first, second = (self.feature(end.modality, end.place) for end in ends)
            pairs.append(Pair(expert, kind, first, second, score, error, tuple(interval), count, table.evaluations))
        return pairs

    def top_features(self, expert: str, modality: str, top: int | None = 5) -> list[tuple[Feature, float]]:
        """The most important features with their importance, best first; none that have no importance at all."""
        scores = self.importance[expert][modality]
        important = [index for index in self.modalities[modality].candidates if scores[index] > 0]
        order = sorted(important, key=lambda index: -scores[index])
        return [(self.feature(modality, index), float(scores[index])) for index in order[:top]]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; pictures and sounds by their path, or as they are where they have no file."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {"format": FORMAT_VERSION, "target_name": self.target_name, "notes": self.notes}
        values["modalities"] = {name: places.to_dict() for name, places in self.modalities.items()}
        values |= {name: getattr(self, name).tolist() for name in _ARRAYS}
        values["importance"] = {
            expert: {name: x.tolist() for name, x in scores.items()} for expert, scores in self.importance.items()
        }
        values["pair_tables"] = {expert: table.to_dict() for expert, table in self.pair_tables.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of [`to_dict`]; `ValueError` that names the key for values of another format, or edited."""
        if values.get("format") != FORMAT_VERSION:
            raise ValueError(f"no explanation of format {FORMAT_VERSION}: `format` is {values.get('format')!r}")
        check_json(values, _SAVED)
        _check_sizes(values)
        values = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        values["modalities"] = {name: _places(name, x) for name, x in values["modalities"].items()}
        values |= {name: np.array(values[name], np.float64) for name in _ARRAYS}
        values["importance"] = {
            expert: {name: np.array(x, np.float64) for name, x in scores.items()}
            for expert, scores in values["importance"].items()
        }
        values["pair_tables"] = {expert: PairTable.from_dict(x) for expert, x in values["pair_tables"].items()}
        return cls(**values)


def notes_on(modalities: Mapping[str, Places]) -> list[str]:
    """See `Explanation.notes`."""
    reasons = {name: places.missing() or places.unchecked() for name, places in modalities.items()}
    return [f"The {name.replace('_', ' ')} {reason}." for name, reason in reasons.items() if reason]


def true_classes(labels: Sequence[float], problem_type: str) -> list[int]:
    """Indexes of the true classes among `Explanation.labels`; none for a regression, or where labels are unknown."""
    if problem_type == "regression" or not labels:
        return []
    if problem_type == "single_label_classification":
        return [int(labels[0])]
    return [index for index, label in enumerate(labels) if label > 0.5]


def _places(modality: str, saved: Mapping[str, Any]) -> Places:
    try:
        places = places_from_dict(saved)
        for index in range(places.num_features):
            places.name_of(index)
            places.place_of(index)
        places.missing()
        return places
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"`modalities.{modality}` does not say where features lie: {error!r}") from error


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a part of a saved explanation does not fit the rest."""
    experts, classes, target = values["expert_names"], values["label_names"], values["target"]
    lengths = {name: x["num_features"] for name, x in values["modalities"].items()}
    checks: list[tuple[str, Any, Any]] = [
        ("target_name", values["target_name"], classes[target] if 0 <= target < len(classes) else "no class"),
        ("logits", len(values["logits"]), len(classes)),
        ("thresholds", len(values.get("thresholds") or classes), len(classes)),
        ("expert_weights", len(values["expert_weights"]), len(experts)),
        ("expert_logits", [*map(len, values["expert_logits"])], [len(classes)] * len(experts)),
    ]
    for expert, read in (values.get("reads") or {}).items():
        checks += [("reads", expert in experts, True), (f"reads.{expert}", [x for x in read if x not in lengths], [])]
    for expert, scores in values["importance"].items():
        checks.append((f"importance.{expert}", {name: len(x) for name, x in scores.items()}, lengths))
    for expert, table in values["pair_tables"].items():
        columns = [*table["scores"].values(), *table["standard_errors"].values(), table["num_coalitions"]]
        checks += [
            (f"pair_tables.{expert}", [*map(len, columns)], [len(table["ends"])] * len(columns)),
            (f"pair_tables.{expert}.standard_errors", sorted(table["standard_errors"]), sorted(table["scores"])),
        ]
        if "intervals" in table:
            limits = {kind: [*map(len, x)] for kind, x in table["intervals"].items()}
            expected = {kind: [2] * len(table["ends"]) for kind in table["scores"]}
            checks.append((f"pair_tables.{expert}.intervals", limits, expected))
        ends = [place for end in table["ends"] for place in (end[:2], end[2:])]
        for number, row in enumerate(table.get("shapley") or []):
            is_row = row[:2] in ends and len(row) == 6 and all(x is None or isinstance(x, int | float) for x in row[2:])
            checks.append(
                (f"pair_tables.{expert}.shapley[{number}]", row, row if is_row else "an end and four numbers")
            )
        for first, i, second, j in (end if len(end) == 4 else [""] * 4 for end in table["ends"]):
            places = [(first, i), (second, j)]
            if not all(isinstance(x, int) and 0 <= x < lengths.get(str(name), 0) for name, x in places):
                raise ValueError(f"`pair_tables.{expert}.ends` has {places}, which no modality has")
    for key, found, expected in checks:
        if found != expected:
            raise ValueError(f"`{key}` does not fit the rest: it is {found}, expected {expected}")
