"""What lies in the folder of a run of explanations, for those who read it again."""

from typing import Any, NotRequired, TypedDict

Values = list[float | None]
FAITHFULNESS_FILE, PAIR_MASKING_FILE = "faithfulness.json", "pair_masking.json"


class Curve(TypedDict):
    """Of one metric, means over the draws and their deviations: over the shares, and for all of them together."""

    values: Values
    values_std: Values
    drops: Values
    drops_std: Values
    mean_drop: float | None
    mean_drop_std: float | None
    auc: float | None
    auc_std: float | None


class Faithfulness(TypedDict):
    """Of one model, as [`~fl_i2moe.evaluation.masking.faithfulness`] gives it, and which model that is."""

    num_samples: int
    problem_type: str
    shares: list[float]
    base: dict[str, float | None]
    emptied: dict[str, float | None]
    deletion: dict[str, dict[str, dict[str, Curve]]]
    insertion: NotRequired[dict[str, dict[str, dict[str, Curve]]]]
    experts: list[str]
    methods: list[str]
    num_random: int
    seed: int
    target: str
    model: NotRequired[str]
    """Its fingerprint."""

    features: NotRequired[str]
    """The key of the cache."""


class Interval(TypedDict):
    value: float | None
    interval: Values | None


class Draws(TypedDict):
    mean: float | None
    std: float | None
    min: float | None
    max: float | None


class MaskedMetric(TypedDict):
    none: float | None
    ranked: float | None
    random_same_features: Draws
    random_same_pairs: Draws
    drop: dict[str, Interval]
    ranked_minus_random: Interval


class PairMasking(TypedDict):
    """Of one expert, as [`~fl_i2moe.evaluation.pairs.pair_masking_table`] gives it."""

    num_samples: int
    confidence: float
    num_pairs: float
    num_features: float
    num_features_same_pairs: float
    metrics: dict[str, MaskedMetric]


class Measured(TypedDict):
    """What was measured on one sample."""

    id: str
    target: str
    pages: list[str]
    experts: NotRequired[dict[str, dict[str, Any]]]
