"""Configuration of FL-I²MoE."""

import math
import re
from collections.abc import Iterable
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .fusions import FUSIONS
from .objectives import OBJECTIVES
from .regularisers import REGULARISERS

# Keywords that transformers itself puts into a config beside the declared fields.
TRANSFORMERS_KEYS = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "dtype",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "torch_dtype",
        "transformers_version",
    }
)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
MODALITY_KEYS = {"feature_size", "max_features", "pooling"}
FILLS = ("random", "zero", "mean")
"""What can stand for a modality that a sample lacks."""

SHARE = "[0, 1)"


def option(default: Any, help: str, **metadata: Any) -> Any:
    """
    A dataclass field with its help, and with bounds that [`check_options`] reads.

    Args:
        default: a list is copied for every instance.
        metadata: `choices`, a tuple of values; `at_least`, a number; `positive=True`; `within`, an interval such as
            `"[0, 1)"`; `internal=True` for what is no option of the command line; `repeatable=True` for a list that may
            be given in parts there.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_given(name: str, value: Any) -> None:
    """
    Raises `ValueError` for an empty text, one that is no UTF-8, or a list that holds one: what is given must be meant,
    and files that name it are UTF-8.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(text, str) and not text.strip() for text in texts):
        raise ValueError(
            f"`{name}` {'has an empty entry' if texts is value else 'is empty'}; leave it out, or give a value. (A "
            "variable of the shell that is not set is empty.)"
        )
    for text in texts:
        if isinstance(text, str) and text.encode("utf-8", "replace").decode("utf-8") != text:
            raise ValueError(
                f"`{name}` {text!r} is no UTF-8: give another name, or set PYTHONUTF8=1 where the locale is poorer."
            )


def check_options(options: Any, kind: type | None = None) -> None:
    """
    Args:
        options: an instance of a dataclass; or any object with the values of the dataclass `kind`.

    Raises:
        ValueError: an option is empty; a field is NaN, infinite, too large, or outside the bounds of its [`option`].
    """
    for item in fields(kind or options):
        name, value, bounds = item.name, getattr(options, item.name), item.metadata
        if "help" in bounds and not bounds.get("internal"):
            check_given(name, value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value}.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"`{name}` must be smaller than 2⁶³, got {value}.")
        if "choices" in bounds and (value, item.default) != (None, None):
            check_choice(name, value, bounds["choices"])
        if value is None:
            continue
        if "at_least" in bounds and value < bounds["at_least"]:
            raise ValueError(f"`{name}` must be at least {bounds['at_least']}, got {value}.")
        if bounds.get("positive") and value <= 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
        if "within" in bounds and not _lies_within(value, bounds["within"]):
            raise ValueError(f"`{name}` must lie in {bounds['within']}, got {value}.")


def check_model_options(options: Any) -> None:
    """
    Checks how a model's options go together, as far as they do without the data.

    Args:
        options: a configuration, or the options of the command line.

    Raises:
        ValueError: two of them contradict each other.
    """
    if options.hidden_size % options.num_attention_heads:
        raise ValueError(
            f"`hidden_size` must be divisible by `num_attention_heads` (got {options.hidden_size} and "
            f"{options.num_attention_heads})."
        )
    if options.layer_arithmetic == "published" and options.fusion != "transformer":
        raise ValueError(f'`layer_arithmetic="published"` needs `fusion="transformer"`, got {options.fusion!r}.')
    if options.fill_missing == "mean" and not (options.keep_feature_means or options.perturbation == "mean"):
        raise ValueError('`fill_missing="mean"` needs `keep_feature_means=True`, by which a model keeps the means.')
    if options.regulariser is not None and options.architecture == "dense":
        raise ValueError(
            '`regulariser` compares experts, and `architecture="dense"` has one: leave it out, or take '
            '`architecture="moe"`.'
        )
    if (options.regulariser is None) != (options.regulariser_weight == 0):
        raise ValueError(
            f"`regulariser` and a `regulariser_weight` above 0 go together, got {options.regulariser!r} and "
            f"{options.regulariser_weight}: give both, or neither."
        )
    if options.architecture == "dense":  # which has no objective beside its task
        return
    for name, needed in OBJECTIVES[options.objective].needs.items():
        if (value := getattr(options, name, needed)) != needed:
            others = [f'`objective="{x}"`' for x, other in OBJECTIVES.items() if other.needs.get(name, value) == value]
            raise ValueError(
                f'`objective="{options.objective}"` needs `{name}={needed!r}`, got {value!r}; '
                f"{' or '.join(others)} supports it."
            )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that ends a message, with the nearest of the known names; empty where none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def check_choice(name: str, value: Any, choices: Iterable) -> None:
    """Raises `ValueError` for a value that is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _lies_within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")


@strict
class FLI2MoEConfig(PreTrainedConfig):
    r"""
    Everything that decides the shape and the objective of an [`FLI2MoEModel`].

    Defaults are the published MM-IMDb settings (I²MoE, table 7) where the paper gives them. What a field means stands
    in its `metadata["help"]`, below.

    Raises:
        ValueError: for an unknown keyword.
        StrictDataclassError: for a value of the wrong type, or values that contradict each other.

    Example:

    ```python
    >>> from fl_i2moe import FLI2MoEConfig
    >>> config = FLI2MoEConfig(
    ...     modalities={
    ...         "image": {"feature_size": 1280, "max_features": 49},
    ...         "text": {"feature_size": 384, "max_features": 128},
    ...     },
    ...     num_labels=23,
    ... )
    >>> config.expert_names
    ['uniqueness_image', 'uniqueness_text', 'synergy', 'redundancy']
    ```"""

    model_type = "fl_i2moe"

    modalities: dict | None = option(
        None,
        'Name → {"feature_size": D, "max_features": T}, two or more, or one of a dense model; with "pooling", "mean" '
        '(default) or "cls" (the first feature), for pooled mode.',
        internal=True,
    )
    # a field because config.json is written with sorted keys, which would otherwise exchange the experts
    modality_order: list | None = option(None, "Their order in every loop; as they come if not given.", internal=True)
    level: str = option(
        "feature",
        "Experts see every patch and token (FL-I²MoE), or one vector a modality, cut into pieces (I²MoE).",
        choices=("feature", "pooled"),
    )
    architecture: str = option("moe", "Interaction experts, or one expert as a baseline.", choices=("moe", "dense"))
    fusion: str = option(
        "transformer",
        "What an expert, or the dense baseline, is made of: a Transformer (MulT in the papers' tables), without "
        "attention between modalities (late), with routed feed-forward layers (switch, moe++); gated modalities "
        "(interpretcc); a perceptron (early) or a low-rank product (low_rank) of the modalities' vectors.",
        choices=tuple(FUSIONS),
    )
    problem_type: str | None = option(  # type: ignore[assignment]
        "multi_label_classification", "What is predicted.", choices=PROBLEM_TYPES, internal=True
    )

    hidden_size: int = option(256, "Width of the experts.", at_least=1)
    num_attention_heads: int = option(4, "Attention heads of the experts.", at_least=1)
    num_fusion_layers: int = option(2, "Transformer layers of an expert.", within="[1, 1024]")
    intermediate_size: int | None = option(
        None, "Width of the feed-forward layers; twice `hidden_size` if not given.", at_least=1, internal=True
    )
    layer_norm_eps: float | int = option(1e-5, "Epsilon of the layer normalisations.", internal=True)
    attention_dropout: float | int = option(0.5, "Dropout on attention probabilities.", within=SHARE, internal=True)
    residual_dropout: float | int = option(0.5, "Dropout on what a layer adds.", within=SHARE, internal=True)
    activation_dropout: float | int = option(0.5, "Dropout in feed-forward layers.", within=SHARE, internal=True)
    embedding_dropout: float | int = option(0.0, "Dropout on projected features.", within=SHARE)
    feature_dropout: float | int = option(
        0.0,
        "Probability that a modality of a training sample is thinned: a share of its features, drawn from U(0, 1), is "
        "zeroed at random, as explanations zero them.",
        within=SHARE,
    )
    reweighting_dropout: float | int = option(0.5, "Dropout in the reweighting network.", within=SHARE)
    num_patches: int = option(4, "Pieces that a pooled vector is cut into.", at_least=1)
    identical_experts_init: bool = option(True, "Let the experts start as copies of one another, as in I²MoE.")

    num_routed_experts: int = option(4, "Feed-forward networks of a routed layer (switch, moe++).", at_least=1)
    capacity_factor: float | int = option(
        1.25, "Tokens that a network takes in training, as a multiple of its even share (switch).", positive=True
    )
    eval_capacity_factor: float | int = option(2.0, "The same outside training (switch).", positive=True)
    balance_loss_weight: float | int = option(
        0.01, "Weight of the loss that balances routers (switch, moe++).", at_least=0
    )
    zero_computation_balance: float | int = option(
        0.75, "Weight in it of choices that compute nothing (moe++).", at_least=0
    )
    gate_temperature: float | int = option(1.0, "Temperature of the gates' sigmoid (interpretcc).", positive=True)
    gate_threshold: float | int = option(0.5, "Value above which a gate is open (interpretcc).", within="(0, 1)")
    hard_gate: bool = option(True, "Gates are open or closed, not in between (interpretcc).")
    fusion_rank: int = option(4, "Rank of low-rank fusion.", at_least=1)
    layer_arithmetic: str = option(
        "pre_norm",
        "Transformer layers as usual, or as in the published I²MoE code: no skip around attention, whose output is "
        "added to itself.",
        choices=("pre_norm", "published"),
    )
    position_embeddings: str = option(
        "shared",
        "Experts share their position embeddings, or each has its own, as in the published I²MoE code.",
        choices=("shared", "per_expert"),
    )

    objective: str = option(
        "published",
        "What makes the experts differ: how their answers change when a modality is replaced (I²MoE), or what they see "
        "and what is left to them. The latter brings its own --feature_dropout, --masked_copies, --ema_decay, "
        "--lr_scheduler and --best_epoch_by where they are not given.",
        choices=tuple(OBJECTIVES),
    )
    interaction_experts: str = option(
        "all", "Which experts there are (ablation).", choices=("all", "synergy_redundancy")
    )
    interaction_loss_on: str = option(
        "logits",
        "What interaction losses compare: answers, or what heads read (ablation).",
        choices=("logits", "latents"),
    )
    interaction_loss_weight: float | int = option(
        0.5, "Weight λ of the interaction losses' mean; 0 for none.", at_least=0
    )
    regulariser: str | None = option(
        None,
        "What keeps the experts' latents apart, whatever the objective: squared cosines (rep_cos), linear CKA "
        "(rep_cka), or squared correlations of different places (rep_barlow); rep_barlow brings its own "
        "--regulariser_warmup_epochs where they are not given.",
        choices=tuple(REGULARISERS),
    )
    regulariser_weight: float | int = option(0.0, "Weight of the regulariser's loss.", at_least=0)
    triplet_margin: float | int = option(1.0, "Margin of uniqueness, and of regression's losses.", internal=True)
    regression_interaction_loss: str = option(
        "bounded",
        "Hinge uniqueness and synergy of a regression at the margin, or leave them as in the I²MoE code (uniqueness "
        "unbounded below, synergy pulls the views together).",
        choices=("bounded", "published"),
        internal=True,
    )
    perturbation: str = option(
        "random",
        "What replaces a modality in its view: noise from N(0, 1), zeros, the training set's mean, or another sample's "
        "features (noise where a batch holds one sample).",
        choices=("random", "zero", "mean", "shuffle"),
    )
    num_perturbed_views: int | None = option(None, "Perturbed views a step, 2 or more; all if not given.", at_least=2)
    keep_feature_means: bool = option(False, "Keep the mean features, to stand in for a missing modality.")
    fill_missing: str | None = option(
        None,
        "What stands for a modality that a sample lacks: noise, drawn anew each time, zeros, or the training set's "
        "mean, with keep_feature_means; if not given, every sample must have all.",
        choices=FILLS,
    )

    reweighting: str = option("mlp", "Weights for each sample, or one learned vector.", choices=("mlp", "global"))
    reweighting_temperature: float | int = option(2.0, "Temperature of the softmax over expert weights.", positive=True)
    reweighting_hidden_size: int = option(256, "Width of the reweighting network.", at_least=1)
    num_reweighting_layers: int = option(3, "Layers of the reweighting network.", within="[1, 1024]")

    class_weights: list | None = option(
        None, "What a sample of each class, or the positive ones of each label, count in the task loss.", internal=True
    )
    label_smoothing: float | int = option(
        0.0, "Share of a label's probability that goes to all classes alike in the task loss.", within=SHARE
    )
    temperature: float | int | None = option(
        None,
        "What logits are divided by before they become probabilities; 1 if not given.",
        positive=True,
        internal=True,
    )
    thresholds: list | None = option(
        None, "Probability above which each label counts as predicted; 0.5 if not given.", internal=True
    )

    encoders: dict | None = option(None, "Modality → identity of the encoder of its features.", internal=True)
    interaction_statistics: dict | None = option(None, "Statistics of a data set that was predicted.", internal=True)

    def __post_init__(self, **kwargs):
        known = set(self.__dataclass_fields__)
        for key in kwargs:
            if key not in TRANSFORMERS_KEYS:
                own = sorted(known - set(PreTrainedConfig.__dataclass_fields__))
                raise ValueError(
                    f"Unknown keyword `{key}` for {type(self).__name__}."
                    + (did_you_mean(key, known) or f" It knows {', '.join(own)}.")
                )
        # transformers builds a default instance to find out what differs from it
        self.modalities = self.modalities if self.modalities is not None else _default_modalities()
        if self.modality_order is None:
            self.modality_order = list(self.modalities)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, StrictDataclassError, TypeError, AttributeError, OverflowError) as error:
            where = f"{kwargs['name_or_path']}: config.json: " if "name_or_path" in kwargs else ""
            raise ValueError(
                f"{where}{_sentence(error).rstrip('.')}. If a newer version of fl_i2moe saved this configuration, "
                "update fl_i2moe."
            ) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As transformers'; `ValueError` names folder or id, and field, where `config.json` is wrong."""
        check_given("pretrained_model_name_or_path", pretrained_model_name_or_path)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: config.json: {error}") from error

    @property
    def num_modalities(self) -> int:
        return len(self.modality_order)

    @property
    def expert_names(self) -> list[str]:
        """Names of the experts, in the order of `expert_logits`."""
        if self.architecture == "dense":
            return ["dense"]
        return [f"uniqueness_{name}" for name in self.modality_order if self.has_uniqueness] + ["synergy", "redundancy"]

    @property
    def label_names(self) -> list[str]:
        """Names of the C classes or targets, in the order of the logits."""
        names: dict[Any, str] = self.id2label
        return [names[index] for index in range(self.num_labels)]

    @property
    def has_uniqueness(self) -> bool:
        """Whether the mixture has uniqueness experts."""
        return self.interaction_experts == "all"

    @property
    def keeps_means(self) -> bool:
        """Whether the model has a place for the training set's mean features."""
        return self.keep_feature_means or self.perturbation == "mean"

    @property
    def num_experts(self) -> int:
        return len(self.expert_names)

    def validate_architecture(self):
        """Part of `@strict` validation: checks the fields, by themselves and against one another."""
        check_options(self)
        self._validate_modalities()
        check_model_options(self)
        self._validate_sizes()
        self._validate_labels()

    def _validate_modalities(self):
        for name in (*self.modalities, *self.modality_order):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"A modality's name must be a non-empty string, got {name!r}.")
        least, entries = (1, "one entry") if self.architecture == "dense" else (2, "two entries")
        if len(self.modalities) < least:
            raise ValueError(f"`modalities` needs at least {entries}, got {list(self.modalities)}.")
        if sorted(self.modality_order) != sorted(self.modalities):
            raise ValueError(
                f"`modality_order` {self.modality_order} must name each of `modalities` {list(self.modalities)} once."
            )
        for name, modality in self.modalities.items():
            if name.startswith(".") or "/" in name or "\\" in name:  # a published encoder's folder is called so
                raise ValueError(f"A modality's name must not start with a dot or hold slashes, got {name!r}.")
            if not isinstance(modality, dict) or not {"feature_size", "max_features"} <= set(modality) <= MODALITY_KEYS:
                raise ValueError(
                    f"`modalities[{name!r}]` needs `feature_size` and `max_features` (and may have `pooling`), "
                    f"got {modality!r}."
                )
            for key in ("feature_size", "max_features"):
                if not isinstance(modality[key], int) or modality[key] < 1:
                    raise ValueError(f"`modalities[{name!r}][{key!r}]` must be a positive integer: {modality[key]!r}.")
            check_choice(f"modalities[{name!r}]['pooling']", modality.get("pooling", "mean"), ("mean", "cls"))

    def _validate_sizes(self):
        """Checks the options against modalities and labels."""
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype  # either, by turns
        if self.dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"`dtype` must name a type of floating point numbers, got {self.dtype!r}.")
        if [*self.id2label] != [*range(self.num_labels)] or not all(isinstance(x, str) for x in self.id2label.values()):
            raise ValueError(f"`id2label` must name classes by 0, 1, …, got {self.id2label}.")
        for name, identity in (self.encoders or {}).items():
            texts = [identity.get("name"), identity.get("kind", "")] if isinstance(identity, dict) else [None]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"`encoders[{name!r}]` must have texts as `name` and `kind`, got {identity!r}.")
        widest = max(modality["feature_size"] for modality in self.modalities.values())
        if self.level == "pooled" and self.num_patches > widest:
            raise ValueError(
                f"`num_patches` must be at most {widest}, the numbers of the widest pooled vector, got "
                f"{self.num_patches}: further pieces would be empty."
            )
        if self.num_perturbed_views is not None and self.num_perturbed_views > self.num_modalities:
            raise ValueError(
                f"`num_perturbed_views` must lie in 2 … {self.num_modalities} (the number of modalities), "
                f"got {self.num_perturbed_views}."
            )
        if self.num_labels == 1 and self.problem_type != "regression":
            # the cosine of two numbers is ±1: no gradient
            raise ValueError(f'`num_labels=1` needs `problem_type="regression"`, got {self.problem_type!r}.')

    def _validate_labels(self):
        """Checks what belongs to labels against the task and their number."""
        for name, task in (
            ("class_weights", "classification"),
            ("label_smoothing", "classification"),
            ("temperature", "classification"),
            ("thresholds", "multi_label_classification"),
        ):
            value = getattr(self, name)
            if value and not self.problem_type.endswith(task):
                raise ValueError(f"`{name}` is for {task}, this is {self.problem_type}: leave it out.")
        for name, below in (("class_weights", math.inf), ("thresholds", 1)):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != self.num_labels or not all(type(x) in (int, float) and 0 < x < below for x in values):
                wanted = "positive, finite numbers" if below == math.inf else "probabilities between 0 and 1"
                raise ValueError(f"`{name}` must hold {self.num_labels} {wanted}, one for each label, got {values}.")


def checked_config(**values: Any) -> FLI2MoEConfig:
    """
    A configuration.

    Raises:
        ValueError: a field, or how fields go together, is wrong; says so in one sentence.
    """
    try:
        return FLI2MoEConfig(**values)
    except StrictDataclassError as error:
        raise ValueError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    """Of an error of a strict data class the last line alone is for people."""
    if not isinstance(error, StrictDataclassError):
        return str(error)
    return re.sub("^(Value|Type)Error: ", "", str(error).splitlines()[-1].strip())


def _default_modalities() -> dict[str, dict[str, int]]:
    """CLIP ViT-B/16 patches and RoBERTa-base tokens, the encoders of the paper."""
    return {"image": {"feature_size": 768, "max_features": 197}, "text": {"feature_size": 768, "max_features": 512}}


__all__ = ["FLI2MoEConfig"]
