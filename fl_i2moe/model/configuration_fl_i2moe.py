"""Configuration of FL-I²MoE."""

import math
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

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
        "transformers_weights",
    }
)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
MODALITY_KEYS = {"feature_size", "max_features", "pooling"}
FUSION_NAMES = ("transformer", "switch", "moe++", "interpretcc", "early", "late", "low_rank")


def _check_choice(field: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"`{field}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


@strict
class FLI2MoEConfig(PreTrainedConfig):
    r"""
    Everything that decides the shape and the objective of an [`FLI2MoEModel`].

    Defaults are the published MM-IMDb settings (I²MoE, table 7) where the paper gives them. `E` is the number of
    experts, `M` the number of modalities.

    Args:
        modalities (`dict[str, dict]`):
            Name → `{"feature_size": D, "max_features": T}` with an optional `"pooling"`, `"mean"` (default) or `"cls"`
            (the first feature), which pooled mode uses. At least two.
        modality_order (`list[str]`, *optional*):
            Order of the modalities in every loop; filled from `modalities`. It is a field because `config.json` is
            written with sorted keys, which would otherwise exchange the experts.
        level (`str`, defaults to `"feature"`):
            `"feature"`: experts see every patch and token (FL-I²MoE). `"pooled"`: each modality is one vector, cut into
            `num_patches` pieces (I²MoE).
        architecture (`str`, defaults to `"moe"`):
            `"moe"`: interaction experts and reweighting. `"dense"`: one expert, no interaction loss.
        fusion (`str`, defaults to `"transformer"`):
            What an expert is made of: `"transformer"` (MulT in the papers' tables), `"switch"` and `"moe++"` (the same
            with routed feed-forward layers), `"late"` (without attention between modalities), `"early"` (a perceptron
            on the modalities' vectors side by side), `"low_rank"` (LMF), `"interpretcc"` (gated modalities).
        problem_type (`str`, defaults to `"multi_label_classification"`):
            Or `"single_label_classification"`, `"regression"`.
        hidden_size, num_attention_heads, num_fusion_layers (`int`):
            Width H, heads A and layers L of an expert.
        intermediate_size (`int`, *optional*):
            Feed-forward width, `2 * hidden_size` if not given.
        layer_norm_eps (`float`):
            Epsilon of the layer normalisations.
        attention_dropout (`float`): on attention probabilities.
        residual_dropout (`float`): on what attention and feed-forward add to the residual stream.
        activation_dropout (`float`): on the feed-forward's hidden activations.
        embedding_dropout (`float`): on projected features, behind the position embeddings.
        feature_dropout (`float`):
            Probability that a modality of a training sample is thinned: a share of its features, drawn from U(0, 1),
            is zeroed at random, as explanations by masking zero them. The training loop sets in with it late, see
            `TrainingArguments.feature_dropout_start`.
        reweighting_dropout (`float`): in the reweighting MLP.
        num_patches (`int`):
            Pseudo-patches that a pooled vector is cut into.
        num_routed_experts (`int`):
            Feed-forward networks of a routed layer (Switch, MoE++).
        capacity_factor, eval_capacity_factor (`float`):
            Switch: room in each network for so many times its even share of a modality's tokens, in training and
            outside it; the tokens beyond pass by.
        balance_loss_weight (`float`):
            Weight of the auxiliary loss, which keeps the routers of Switch and MoE++ from sending all to one network.
        zero_computation_balance (`float`):
            MoE++: weight, within that loss, of the choices that compute nothing (its τ).
        gate_temperature, gate_threshold (`float`), hard_gate (`bool`):
            InterpretCC: temperature of the gates' sigmoid, value above which a gate is open, and whether gates are
            open or closed rather than in between.
        fusion_rank (`int`):
            Rank of low-rank fusion.
        layer_arithmetic (`str`, defaults to `"pre_norm"`):
            `"published"` computes Transformer layers as the published I²MoE code does: no skip around attention, whose
            output is added to itself.
        position_embeddings (`str`, defaults to `"shared"`):
            `"per_expert"`: each expert has its own, as in the published I²MoE code.
        identical_experts_init (`bool`):
            Experts start as copies of one another, as in I²MoE.
        objective (`str`, defaults to `"published"`):
            `"published"`: experts that differ in how their answers change when a modality is replaced (I²MoE).
            `"specialised"`: experts that differ in what they see and in what is left to them, see
            `specialised_losses`.
        interaction_experts (`str`, defaults to `"all"`):
            `"synergy_redundancy"`: no uniqueness experts (ablation).
        interaction_loss_weight (`float`):
            λ in `L = task + λ · mean over experts of their interaction loss`.
        interaction_loss_on (`str`, defaults to `"logits"`):
            `"latents"`: the interaction losses compare what an expert's head reads, not what it says (ablation).
        triplet_margin (`float`):
            Margin of the uniqueness loss, and of the bounded losses of regression.
        regression_interaction_loss (`str`, defaults to `"bounded"`):
            `"bounded"` hinges uniqueness and synergy at the margin; `"published"` leaves them as in the I²MoE code
            (uniqueness unbounded below, synergy pulls the views together).
        perturbation (`str`, defaults to `"random"`):
            What replaces a modality in its view: `"random"` N(0, 1), `"zero"`, `"mean"` (of the training set),
            `"shuffle"` (another sample's features; noise where a batch holds one sample).
        num_perturbed_views (`int`, *optional*):
            Perturbed views per step, drawn anew each step; all M if not given.
        keep_feature_means (`bool`):
            Keep the training set's mean features in the model, which can then stand in for a missing modality.
            `perturbation="mean"` keeps them anyway.
        reweighting (`str`, defaults to `"mlp"`):
            `"mlp"`: expert weights per sample. `"global"`: one learned weight vector.
        reweighting_temperature (`float`): of the softmax over expert weights.
        reweighting_hidden_size, num_reweighting_layers (`int`): width and depth of the MLP.
        encoders (`dict[str, dict]`, *optional*):
            Identity of the frozen encoder that each modality's features come from.
        interaction_statistics (`dict`, *optional*):
            Statistics of a data set that were measured with the trained model.

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

    modalities: dict | None = None
    modality_order: list | None = None
    level: str = "feature"
    architecture: str = "moe"
    fusion: str = "transformer"
    problem_type: str | None = "multi_label_classification"

    hidden_size: int = 256
    num_attention_heads: int = 4
    num_fusion_layers: int = 2
    intermediate_size: int | None = None
    layer_norm_eps: float | int = 1e-5
    attention_dropout: float | int = 0.5
    residual_dropout: float | int = 0.5
    activation_dropout: float | int = 0.5
    embedding_dropout: float | int = 0.0
    feature_dropout: float | int = 0.0
    reweighting_dropout: float | int = 0.5
    num_patches: int = 4
    identical_experts_init: bool = True

    num_routed_experts: int = 4
    capacity_factor: float | int = 1.25
    eval_capacity_factor: float | int = 2.0
    balance_loss_weight: float | int = 0.01
    zero_computation_balance: float | int = 0.75
    gate_temperature: float | int = 1.0
    gate_threshold: float | int = 0.5
    hard_gate: bool = True
    fusion_rank: int = 4
    layer_arithmetic: str = "pre_norm"
    position_embeddings: str = "shared"

    objective: str = "published"
    interaction_experts: str = "all"
    interaction_loss_on: str = "logits"
    interaction_loss_weight: float | int = 0.5
    triplet_margin: float | int = 1.0
    regression_interaction_loss: str = "bounded"
    perturbation: str = "random"
    num_perturbed_views: int | None = None
    keep_feature_means: bool = False

    reweighting: str = "mlp"
    reweighting_temperature: float | int = 2.0
    reweighting_hidden_size: int = 256
    num_reweighting_layers: int = 3

    encoders: dict | None = None
    interaction_statistics: dict | None = None

    def __post_init__(self, **kwargs):
        known = set(self.__dataclass_fields__)
        for key in kwargs:
            if key not in TRANSFORMERS_KEYS:
                close = get_close_matches(key, known, n=1)
                own = sorted(known - set(PreTrainedConfig.__dataclass_fields__))
                raise ValueError(
                    f"Unknown keyword `{key}` for {type(self).__name__}."
                    + (f" Did you mean `{close[0]}`?" if close else f" It knows {', '.join(own)}.")
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
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(
                f"{error} If a newer version of fl_i2moe saved this configuration, update fl_i2moe to load it."
            ) from error

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
    def has_uniqueness(self) -> bool:
        """Whether the mixture has uniqueness experts."""
        return self.interaction_experts == "all"

    @property
    def is_specialised(self) -> bool:
        """Whether experts differ in what they see."""
        return self.objective == "specialised" and self.architecture == "moe"

    @property
    def keeps_means(self) -> bool:
        """Whether the model has a place for the training set's mean features."""
        return self.keep_feature_means or self.perturbation == "mean"

    @property
    def num_experts(self) -> int:
        return len(self.expert_names)

    def validate_architecture(self):
        """Part of `@strict` validation: checks the fields against one another."""
        _check_choice("level", self.level, ("feature", "pooled"))
        _check_choice("architecture", self.architecture, ("moe", "dense"))
        _check_choice("fusion", self.fusion, FUSION_NAMES)
        _check_choice("layer_arithmetic", self.layer_arithmetic, ("pre_norm", "published"))
        _check_choice("position_embeddings", self.position_embeddings, ("shared", "per_expert"))
        _check_choice("interaction_experts", self.interaction_experts, ("all", "synergy_redundancy"))
        _check_choice("interaction_loss_on", self.interaction_loss_on, ("logits", "latents"))
        _check_choice("objective", self.objective, ("published", "specialised"))
        _check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        _check_choice("perturbation", self.perturbation, ("random", "zero", "mean", "shuffle"))
        _check_choice("reweighting", self.reweighting, ("mlp", "global"))
        _check_choice("regression_interaction_loss", self.regression_interaction_loss, ("bounded", "published"))
        self._validate_modalities()
        self._validate_numbers()
        self._validate_combinations()

    def _validate_combinations(self):
        if self.layer_arithmetic == "published" and self.fusion != "transformer":
            raise ValueError(f'`layer_arithmetic="published"` needs `fusion="transformer"`, got {self.fusion!r}.')
        widest = max(modality["feature_size"] for modality in self.modalities.values())
        if self.level == "pooled" and self.num_patches > widest:
            raise ValueError(
                f"`num_patches` must be at most {widest}, the numbers of the widest pooled vector, got "
                f"{self.num_patches}: further pieces would be empty."
            )
        if not self.is_specialised:
            return
        # what the specialised objective takes for granted, and what plays no part in it
        needed = {
            "fusion": "transformer",
            "layer_arithmetic": "pre_norm",
            "position_embeddings": "shared",
            "interaction_experts": "all",
            "interaction_loss_on": "logits",
            "triplet_margin": 1.0,
            "regression_interaction_loss": "bounded",
            "perturbation": "random",
            "num_perturbed_views": None,
        }
        for field, value in needed.items():
            if getattr(self, field) != value:
                raise ValueError(
                    f'`objective="specialised"` needs `{field}={value!r}`, got {getattr(self, field)!r}; '
                    '`objective="published"` supports it.'
                )

    def _validate_modalities(self):
        if len(self.modalities) < 2:
            raise ValueError(f"`modalities` needs at least two entries, got {list(self.modalities)}.")
        if sorted(self.modality_order) != sorted(self.modalities):
            raise ValueError(
                f"`modality_order` {self.modality_order} must name each of `modalities` {list(self.modalities)} once."
            )
        for name, modality in self.modalities.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"A modality's name must be a non-empty string, got {name!r}.")
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
            _check_choice(f"modalities[{name!r}]['pooling']", modality.get("pooling", "mean"), ("mean", "cls"))

    def _validate_numbers(self):
        for field in self.__dataclass_fields__:
            if isinstance(value := getattr(self, field), float) and not math.isfinite(value):
                raise ValueError(f"`{field}` must be a finite number, got {value}.")
        for field in (
            "hidden_size",
            "num_attention_heads",
            "num_fusion_layers",
            "intermediate_size",
            "num_patches",
            "reweighting_hidden_size",
            "num_reweighting_layers",
            "num_routed_experts",
            "fusion_rank",
        ):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be divisible by `num_attention_heads` (got {self.hidden_size} and "
                f"{self.num_attention_heads})."
            )
        for field in self.__dataclass_fields__:
            if field.endswith("_dropout") and not 0 <= getattr(self, field) < 1:
                raise ValueError(f"`{field}` must lie in [0, 1), got {getattr(self, field)}.")
        for field in ("interaction_loss_weight", "balance_loss_weight", "zero_computation_balance"):
            if getattr(self, field) < 0:
                raise ValueError(f"`{field}` must not be negative, got {getattr(self, field)}.")
        for field in ("reweighting_temperature", "capacity_factor", "eval_capacity_factor", "gate_temperature"):
            if getattr(self, field) <= 0:
                raise ValueError(f"`{field}` must be positive, got {getattr(self, field)}.")
        if not 0 < self.gate_threshold < 1:
            raise ValueError(f"`gate_threshold` must lie in (0, 1), got {self.gate_threshold}.")
        if self.num_perturbed_views is not None and not 2 <= self.num_perturbed_views <= self.num_modalities:
            raise ValueError(
                f"`num_perturbed_views` must lie in 2 … {self.num_modalities} (the number of modalities), "
                f"got {self.num_perturbed_views}."
            )
        if self.num_labels == 1 and self.problem_type != "regression":
            # the cosine of two numbers is ±1: no gradient
            raise ValueError(f'`num_labels=1` needs `problem_type="regression"`, got {self.problem_type!r}.')


def checked_config(**values: Any) -> FLI2MoEConfig:
    """
    A configuration.

    Raises:
        ValueError: a field, or how fields go together, is wrong; says so in one sentence.
    """
    try:
        return FLI2MoEConfig(**values)
    except StrictDataclassError as error:  # its last line alone is for people
        raise ValueError(str(error).splitlines()[-1].strip().removeprefix("ValueError: ")) from error


def _default_modalities() -> dict[str, dict[str, int]]:
    """CLIP ViT-B/16 patches and RoBERTa-base tokens, the encoders of the paper."""
    return {
        "image": {"feature_size": 768, "max_features": 197},
        "text": {"feature_size": 768, "max_features": 512},
    }


__all__ = ["FLI2MoEConfig"]
