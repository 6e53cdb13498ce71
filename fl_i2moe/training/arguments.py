"""
The options of a run, each with its help, default and check, and their way from the command line.

A dataclass holds the options of one part. [`parse_arguments`] turns them into one command line, in which a preset
replaces defaults and what the user writes replaces the preset.
"""

import math
import re
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal

from transformers import HfArgumentParser

from ..data.raw import ProblemType
from ..metrics.tasks import METRICS_BY_PROBLEM, default_metric
from ..model.configuration_fl_i2moe import FLI2MoEConfig, checked_config


def option(default: Any, text: str, **metadata) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **metadata})
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class CacheArguments:
    """Where feature sequences are kept, and how they get there."""

    cache_dir: str | None = option(
        None, "Folder of the feature cache; by default one in the user's cache, named after data and encoders."
    )
    encoding_batch_size: int = option(32, "Samples an encoder sees at once.")
    encoding_workers: int = option(1, "Processes that decode pictures and tokenize texts while the encoders run.")
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop", "What to do with a sample that cannot be read: stop, or leave it out and write it to skipped.jsonl."
    )

    def __post_init__(self):
        _at_least(self, 1, "encoding_batch_size")
        _at_least(self, 0, "encoding_workers")


@dataclass
class EncodingArguments(CacheArguments):
    """How raw samples become feature sequences, and where these are kept."""

    given: ClassVar[frozenset[str]] = frozenset()
    """The options, of all parts, that stand on the command line; not those that a preset sets."""

    features: str | None = option(
        None, "Start from these features instead of raw samples: the folder of a cache, or a data set on the Hub."
    )
    stream_features: bool = option(
        False,
        "Read the training split of --features from the Hub in every epoch instead of fetching it; the other splits "
        "are fetched.",
    )
    shuffle_buffer_size: int = option(
        1024, "Samples in memory that are shuffled, and sorted by --bucket_by_length, where features are streamed."
    )
    text_max_length: int = option(128, "Tokens of a text that are kept, special ones included; longer texts are cut.")
    special_features: Literal["keep", "drop"] = option("keep", "Keep CLS, BOS and SEP in the sequences, or drop them.")
    image_resize: Literal["whole", "crop"] = option("whole", "Resize pictures whole, or resize and crop their centre.")
    encoding_dtype: Literal["float32", "float16", "bfloat16"] = option("float32", "Number format the encoders run in.")
    trust_remote_code: bool = option(False, "Run code that an encoder's repository brings along.")

    def __post_init__(self):
        super().__post_init__()
        _at_least(self, 1, "text_max_length", "shuffle_buffer_size")
        if self.stream_features and not self.features:
            raise ValueError("`stream_features` needs `features`, a data set on the Hub.")
        if not self.stream_features and self.shuffle_buffer_size != type(self).shuffle_buffer_size:
            raise ValueError("`shuffle_buffer_size` needs `stream_features`: other data are shuffled as a whole.")


@dataclass
class ImageEncoderArguments:
    """Which encoder pictures go through."""

    image_encoder: str | None = option(None, "Hub id or folder of a vision model; the data set's own if not given.")
    image_revision: str | None = option(None, "Commit, tag or branch of the vision model.")
    image_hidden_layer: int | None = option(None, "Hidden layer of the vision model (0: embeddings); the last.")


@dataclass
class TextEncoderArguments:
    """Which encoder texts go through."""

    text_encoder: str | None = option(None, "Hub id or folder of a text model; the data set's own if not given.")
    text_revision: str | None = option(None, "Commit, tag or branch of the text model.")
    text_hidden_layer: int | None = option(None, "Hidden layer of the text model (0: embeddings); the last.")


@dataclass
class ArrayArguments:
    """How a file of arrays is read, see [`~fl_i2moe.data.arrays.load_arrays`], and what is done with its numbers."""

    modalities: list[str] | None = option(None, "Fields that are modalities, in the experts' order; all if not given.")
    label_field: str = option("labels", "Field of the labels.")
    label_names: list[str] | None = option(None, "Names of the classes; the file's, or the labels' values.")
    problem_type: ProblemType | None = option(None, "What is predicted; what the labels look like if not given.")
    label_threshold: float | None = option(None, "Make two classes of one number: up to this, and above.")
    split_field: str = option("split", "Field of the splits.")
    id_field: str | None = option(None, "Field of the ids; ids or id if not given.")
    validation_share: float = option(0.1, "Share of the training samples to validate on, where the file has none.")
    test_share: float = option(0.2, "Share of the training samples to test on, where the file has none.")
    split_seed: int = option(0, "Seed of that draw.")
    standardize: bool = option(
        True, "Give every number of a modality mean 0 and standard deviation 1 over the training split."
    )
    replace_non_finite: bool = option(False, "Put zero in place of NaN and infinite numbers.")
    mask_zero_vectors: bool = option(False, "Take vectors of nothing but zeros for padding.")

    def __post_init__(self):
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}.")
        _at_least(self, 0, "split_seed")

    @property
    def reading(self) -> dict[str, Any]:
        """The options of `load_arrays`."""
        return {item.name: getattr(self, item.name) for item in fields(ArrayArguments) if item.name != "standardize"}


def given_options(arguments: Any, names: Iterable[str]) -> list[str]:
    """Those of these options of a dataclass that are not at their defaults."""
    defaults = {x.name: x.default if x.default_factory is MISSING else x.default_factory() for x in fields(arguments)}
    return [name for name in names if getattr(arguments, name) != defaults[name]]


def starts_from_features(encoding: EncodingArguments, data: Any, needs: str | None = None) -> bool:
    """
    Whether a run starts from features, so that there are no raw samples to read and encode.

    Args:
        data: options of the raw samples, a dataclass.
        needs: that option without which there are none.

    Raises:
        ValueError: neither features nor samples are given; or both, see [`refuse_raw_options`].
    """
    if not encoding.features:
        if needs is not None and getattr(data, needs) is None:
            raise ValueError(f"`{needs}` is needed, the folder of the raw data; or `features`.")
        return False
    refuse_raw_options(encoding, data, "features")
    return True


def refuse_raw_options(encoding: EncodingArguments, data: Any, instead: str) -> None:
    """
    Args:
        data: options of the raw samples, a dataclass.
        instead: the option that says where the features are.

    Raises:
        ValueError: an option is given that raw samples alone have, so that it would change nothing.
    """
    of_features = ("features", "stream_features", "shuffle_buffer_size", instead)
    for part in (data, encoding):
        names = [x.name for x in fields(part) if x.name not in of_features]
        changed = {*given_options(part, names)} - {"text_max_length"}  # which presets set
        for name in names:
            if name in changed or name in encoding.given:
                raise ValueError(
                    f"`{instead}` and `{name}` exclude each other: features are taken as they are, and not encoded "
                    "again."
                )


@dataclass
class ModelArguments:
    """What the model is; fields of [`FLI2MoEConfig`]."""

    level: Literal["feature", "pooled"] = option(
        "feature", "Experts see every patch and token, or one vector a modality."
    )
    architecture: Literal["moe", "dense"] = option("moe", "Interaction experts, or one expert as a baseline.")
    fusion: Literal["transformer", "switch", "moe++", "interpretcc", "early", "late", "low_rank"] = option(
        "transformer", "What an expert, or the dense baseline, is made of."
    )
    hidden_size: int = option(256, "Width of the experts.")
    num_attention_heads: int = option(4, "Attention heads of the experts.")
    num_fusion_layers: int = option(2, "Transformer layers of an expert.")
    dropout: float = option(0.5, "Dropout in the experts: on attention, residual and feed-forward activations.")
    attention_dropout: float | None = option(None, "Dropout on attention alone, if it is to differ from --dropout.")
    embedding_dropout: float = option(0.0, "Dropout on projected features.")
    feature_dropout: float = option(
        0.0, "Probability that a modality of a training sample is thinned: a random share of its features is zeroed."
    )
    reweighting_dropout: float = option(0.5, "Dropout in the reweighting network.")
    num_patches: int = option(4, "Pieces that a pooled vector is cut into.")
    num_routed_experts: int = option(4, "Feed-forward networks of a routed layer (switch, moe++).")
    capacity_factor: float = option(1.25, "Room in each network for so many times its even share (switch, training).")
    eval_capacity_factor: float = option(2.0, "The same outside training.")
    balance_loss_weight: float = option(0.01, "Weight of the loss that balances the routers (switch, moe++).")
    zero_computation_balance: float = option(0.75, "Weight in it of choices that compute nothing (moe++).")
    gate_temperature: float = option(1.0, "Temperature of the gates (interpretcc).")
    gate_threshold: float = option(0.5, "Value above which a gate is open (interpretcc).")
    hard_gate: bool = option(True, "Gates are open or closed, not in between (interpretcc).")
    fusion_rank: int = option(4, "Rank of low-rank fusion.")
    layer_arithmetic: Literal["pre_norm", "published"] = option(
        "pre_norm", "Transformer layers as usual, or as the published I²MoE code computes them."
    )
    position_embeddings: Literal["shared", "per_expert"] = option("shared", "Who has position embeddings of its own.")
    identical_experts_init: bool = option(True, "Let the experts start as copies of one another, as in I²MoE.")
    objective: Literal["published", "specialised"] = option(
        "published",
        "What makes the experts differ: the papers' losses, or what they see and what is left to them. The latter was "
        "tested with --feature_dropout 0.5 --lr_scheduler cosine --no_load_best_model_at_end and more epochs (README).",
    )
    interaction_experts: Literal["all", "synergy_redundancy"] = option(
        "all", "Which experts there are; synergy_redundancy leaves out uniqueness."
    )
    interaction_loss_on: Literal["logits", "latents"] = option(
        "logits", "What the interaction losses compare: what experts say, or what their heads read."
    )
    interaction_loss_weight: float = option(0.5, "Weight λ of the interaction losses; 0 for none.")
    perturbation: Literal["random", "zero", "mean", "shuffle"] = option(
        "random", "What replaces a modality in its view."
    )
    num_perturbed_views: int | None = option(
        None, "Perturbed views a step, 2 to the number of modalities; all if not given."
    )
    keep_feature_means: bool = option(
        False, "Keep the training set's mean features in the model, to stand in for a missing modality."
    )
    reweighting: Literal["mlp", "global"] = option("mlp", "Expert weights for each sample, or one learned vector.")
    reweighting_temperature: float = option(2.0, "Temperature of the softmax over expert weights.")
    reweighting_hidden_size: int = option(256, "Width of the reweighting network.")
    num_reweighting_layers: int = option(3, "Layers of the reweighting network.")

    def to_config(self, modalities: Mapping[str, dict], **others) -> FLI2MoEConfig:
        """
        The model's configuration; `others` are its fields that the data decide.

        Raises:
            ValueError: a field, or how fields go together, is wrong.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        dropout = values.pop("dropout")
        if values["attention_dropout"] is None:
            values["attention_dropout"] = dropout
        values |= {"modalities": dict(modalities), "residual_dropout": dropout, "activation_dropout": dropout, **others}
        return checked_config(**values)

    def __post_init__(self):
        # all that the configuration can check without the data
        num_modalities = max(2, self.num_perturbed_views or 2)
        self.to_config(self.unread_modalities(map(str, range(num_modalities))))

    def unread_modalities(self, names: Iterable[str]) -> dict[str, dict[str, int]]:
        """For [`to_config`], in the place of modalities whose features are not there yet."""
        return {name: {"feature_size": max(1, self.num_patches), "max_features": 1} for name in names}


@dataclass
class TrainingArguments:
    """How a model is fitted on a feature cache."""

    num_epochs: int = option(40, "Passes over the training split.")
    batch_size: int = option(32, "Samples a step and process.")
    learning_rate: float = option(1e-4, "Peak learning rate.")
    optimizer: Literal["adam", "adamw"] = option("adam", "Adam, or AdamW with --weight_decay.")
    weight_decay: float = option(0.0, "Weight decay (AdamW).")
    lr_scheduler: Literal["constant", "linear", "cosine"] = option("constant", "Course of the learning rate.")
    warmup_ratio: float = option(0.0, "Share of all steps in which the learning rate rises to its peak.")
    feature_dropout_start: float = option(
        0.35, "Share of the epochs before --feature_dropout sets in; the best epoch is one of those behind."
    )
    max_grad_norm: float = option(1.0, "Gradient norm above which gradients are scaled down; 0 for never.")
    gradient_accumulation_steps: int = option(1, "Batches that one optimizer step sums over.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Number format of the step; what Accelerate says if not given."
    )
    seeds: list[int] = option([0], "One training run for each; results are their mean and standard deviation.")
    metric: str | None = option(
        None, "Metric of the validation split that picks the checkpoint; fits the task if not given."
    )
    load_best_model_at_end: bool = option(True, "Keep the epoch that is best by that metric; else the last one.")
    threshold: float = option(0.5, "Probability from which a label counts as predicted (multi-label).")
    early_stopping_patience: int | None = option(None, "Stop after so many epochs without a better validation metric.")
    checkpoint_steps: int = option(
        200, "Optimizer steps between checkpoints; one is written at every epoch's end, too."
    )
    keep_checkpoints: int = option(2, "Checkpoints that are kept.")
    bucket_by_length: bool = option(False, "Put sequences of like length together: less padding, less random batches.")
    report_to: str | None = option(None, "Accelerate's trackers: tensorboard, wandb, … or all.")
    num_workers: int = option(0, "Processes that read the cache; 0 reads between the steps.")
    num_threads: int | None = option(
        None, "CPU threads a process, where it computes on the CPU; all cores if not given."
    )

    def __post_init__(self):
        _at_least(
            self, 1, "num_epochs", "batch_size", "gradient_accumulation_steps", "checkpoint_steps", "keep_checkpoints"
        )
        _at_least(self, 0, "weight_decay", "max_grad_norm", "num_workers")
        for name in ("early_stopping_patience", "num_threads"):
            if getattr(self, name) is not None:
                _at_least(self, 1, name)
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError("`early_stopping_patience` counts from the best epoch: it needs `load_best_model_at_end`.")
        if not 0 <= self.feature_dropout_start < 1:
            raise ValueError(f"`feature_dropout_start` must lie in [0, 1), got {self.feature_dropout_start}.")
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("`weight_decay` needs `optimizer` adamw.")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"`warmup_ratio` must lie in [0, 1], got {self.warmup_ratio}.")
        if not 0 < self.threshold < 1:
            raise ValueError(f"`threshold` must lie in (0, 1), got {self.threshold}.")
        if not all(0 <= seed < 2**32 for seed in self.seeds):  # what NumPy takes
            raise ValueError(f"`seeds` must lie in 0 … 2³² − 1, got {self.seeds}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"`seeds` must be different numbers, at least one, got {self.seeds}.")


@dataclass
class OutputArguments:
    """Where a run leaves what it makes."""

    output_dir: str = option("runs/sample", "Folder for model, results, statistics and figures.")
    resume: bool = option(False, "Go on with the run in --output_dir where it was stopped.")
    overwrite: bool = option(False, "Replace the run in --output_dir.")

    def __post_init__(self):
        if self.resume and self.overwrite:
            raise ValueError("`resume` goes on with a run and `overwrite` replaces it: give one of them.")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """The description as it is written; one spelling of each option, and its default where it has one."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy(action)
        shown.option_strings = [x for x in action.option_strings if "-" not in x.lstrip("-")]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: Action) -> str | None:
        if action.option_strings and action.option_strings[0] == f"--no_{action.dest}":
            return f"Not --{action.dest}."
        if action.required:
            return f"{action.help} (required)"
        if action.default is None or action.default == []:
            return action.help
        return super()._get_help_string(action)


def parse_arguments(
    types: Sequence[type],
    presets: Mapping[str, Mapping[str, Any]],
    default_preset,
    description: str,
    arguments: Sequence[str] | None = None,
) -> tuple:
    """
    Reads the command line into one instance of each dataclass in `types`.

    Args:
        types: dataclasses whose fields become options.
        presets: name → option → value; `--preset` chooses among them.
        default_preset: called with the arguments parsed without a preset; returns the name that holds if none is given.
        description: what the job does, for `--help`.
        arguments: the command line; `sys.argv` if not given.

    Returns:
        The instances, in the order of `types`. Wrong values end the program with a message, as argparse does.
    """
    for kind in types:
        kind._argument_group_name = re.split("[.;]", kind.__doc__)[0]  # HfArgumentParser's heading
    usage = "%(prog)s [options]"  # argparse would list a hundred of them in front of every message
    parser = HfArgumentParser(types, description=description, usage=usage, formatter_class=HelpFormatter)
    choices = {"choices": list(presets), "help": "Set of defaults to start from; with --help, it is shown."}
    parser.add_argument("--preset", **choices)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    before_help = ArgumentParser(usage=usage, add_help=False)
    before_help.add_argument("--preset", **choices)
    asked, _ = before_help.parse_known_args(arguments)
    parser.set_defaults(**presets.get(asked.preset, {}))
    first = parser.parse_args(arguments)
    parser.set_defaults(**presets[first.preset or default_preset(first)])
    namespace = parser.parse_args(arguments)
    # argparse leaves alone what a namespace has already, unless the command line says otherwise
    unset = Namespace(**dict.fromkeys(vars(namespace)))
    given = frozenset(name for name, value in vars(parser.parse_args(arguments, unset)).items() if value is not None)
    parts = _instances(parser, types, namespace)
    for part in parts:
        if isinstance(part, EncodingArguments):
            part.given = given
    return tuple(parts)


def parse_command(
    commands: Mapping[str, type], description: str, arguments: Sequence[str] | None = None
) -> tuple[str, Any]:
    """
    Reads a command line whose first word says what to do.

    Args:
        commands: word → dataclass whose fields become its options and whose docstring its help.
        description: what the job does, for `--help`.
        arguments: the command line; `sys.argv` if not given.

    Returns:
        The word and the instance. Wrong values end the program with a message, as argparse does.
    """
    parser = ArgumentParser(description=description, formatter_class=HelpFormatter)
    words = parser.add_subparsers(dest="command", required=True, parser_class=HfArgumentParser)
    parsers = {
        word: words.add_parser(
            word, dataclass_types=kind, description=kind.__doc__, help=kind.__doc__, formatter_class=HelpFormatter
        )
        for word, kind in commands.items()
    }
    namespace = parser.parse_args(arguments)
    word = namespace.command
    [instance] = _instances(parsers[word], [commands[word]], namespace)
    return word, instance


def _instances(parser: ArgumentParser, types: Sequence[type], namespace: Namespace) -> list[Any]:
    for name, value in vars(namespace).items():
        if isinstance(value, float) and not math.isfinite(value):
            parser.error(f"`{name}` must be a finite number, got {value}.")
    try:
        return [
            kind(**{item.name: getattr(namespace, item.name) for item in fields(kind) if item.init}) for kind in types
        ]
    except ValueError as error:
        parser.error(str(error))


def check_metric(metric: str | None, problem_type: str) -> str:
    """The metric that picks a checkpoint; raises `ValueError` for one that the task does not have."""
    known = METRICS_BY_PROBLEM[problem_type]
    if metric is not None and metric not in known:
        raise ValueError(f"`metric` must be one of {', '.join(known)} for {problem_type}, got {metric!r}.")
    return metric or default_metric(problem_type)[0]


def _at_least(arguments: Any, smallest: float, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) < smallest:
            raise ValueError(f"`{name}` must be at least {smallest}, got {getattr(arguments, name)}.")
