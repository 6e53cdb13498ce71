"""
The options of a run, each with its help, default and check. A dataclass holds those of one part; how they come from the
command line is in `command_line.py`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..data.raw import ProblemType
from ..metrics.tasks import METRICS_BY_PROBLEM, default_metric
from ..model.configuration_fl_i2moe import (
    SHARE,
    FLI2MoEConfig,
    check_model_options,
    check_options,
    checked_config,
    option,
)
from ..model.objective import Objective
from ..model.objectives import OBJECTIVES
from ..model.regularisers import REGULARISERS

# Settings that may change between a run and its resumption: they decide how a result is computed, not which.
UNBINDING = {"output_dir", "resume", "overwrite", "report_to", "checkpoint_steps", "keep_checkpoints", "num_workers"}
UNBINDING |= {"tracker_project", "run_name", "num_threads", "cache_dir", "encoding_batch_size", "encoding_workers"}


@dataclass
class CacheArguments:
    """Where feature sequences are kept, and how they get there."""

    cache_dir: str | None = option(
        None, "Folder of the feature cache; by default one in the user's cache, named after data and encoders."
    )
    encoding_batch_size: int = option(32, "Samples an encoder sees at once.", at_least=1)
    encoding_workers: int = option(1, "Processes that read pictures, texts and sounds meanwhile.", within="[0, 1024]")
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop", "What to do with a sample that cannot be read: stop, or leave it out and write it to skipped.jsonl."
    )

    def __post_init__(self):
        check_options(self)


@dataclass
class EncodingArguments(CacheArguments):
    """How raw samples become feature sequences, and where these are kept."""

    given: ClassVar[frozenset[str]] = frozenset()
    """The options, of all parts, that stand on the command line; not those that a preset sets."""

    features: str | None = option(None, "Features instead of raw samples: folder of a cache, or data set on the Hub.")
    stream_features: bool = option(
        False, "Read the training split of --features from the Hub in every epoch; the other splits are fetched."
    )
    shuffle_buffer_size: int = option(
        1024, "Streamed samples in memory that are shuffled, and sorted by --bucket_by_length.", at_least=1
    )
    text_max_length: int = option(128, "Tokens of a text that are kept, special ones included.", at_least=1)
    masked_copies: int | None = option(
        None,
        "How often each training sample is encoded again without a random share of its words, cells or stretches, for "
        "--feature_dropout to take. Explanations become truer; encoding takes that much longer. The objective decides "
        "if not given: 3 for specialised, else none.",
        within="[0, 100]",
    )
    special_features: Literal["keep", "drop"] = option("keep", "Keep CLS, BOS and SEP in the sequences, or drop them.")
    image_resize: Literal["whole", "crop"] = option("whole", "Resize pictures whole, or resize and crop their centre.")
    audio_max_seconds: float = option(30.0, "Seconds of a sound that are kept.", positive=True)
    audio_frames_per_feature: int = option(
        1, "Time steps of a sound's encoder whose mean is one feature: shorter sequences.", at_least=1
    )
    encoding_dtype: Literal["float32", "float16", "bfloat16"] = option("float32", "Number format the encoders run in.")
    trust_remote_code: bool = option(False, "Run code that an encoder's repository brings along.")

    def __post_init__(self):
        super().__post_init__()
        if self.stream_features and not self.features:
            raise ValueError("`stream_features` needs `features`, a data set on the Hub.")
        if not self.stream_features and self.shuffle_buffer_size != type(self).shuffle_buffer_size:
            raise ValueError("`shuffle_buffer_size` needs `stream_features`: other data are shuffled as a whole.")


@dataclass
class ImageEncoderArguments:
    """Which encoder pictures go through."""

    image_encoder: str | None = option(None, "Hub id or folder of a vision model; the data set's own if not given.")
    image_revision: str | None = option(None, "Commit, tag or branch of the vision model.")
    image_hidden_layer: int | None = option(None, "Hidden layer taken, 0 for embeddings; the last if not given.")


@dataclass
class TextEncoderArguments:
    """Which encoder texts go through."""

    text_encoder: str | None = option(None, "Hub id or folder of a text model; the data set's own if not given.")
    text_revision: str | None = option(None, "Commit, tag or branch of the text model.")
    text_hidden_layer: int | None = option(None, "Hidden layer taken, 0 for embeddings; the last if not given.")


@dataclass
class ArrayArguments:
    """How a file of arrays is read, see [`~fl_i2moe.data.arrays.load_arrays`], and what is done with its numbers."""

    modalities: list[str] | None = option(None, "Fields that are modalities, in the experts' order; all if not given.")
    label_field: str = option("labels", "Field of the labels.")
    label_names: list[str] | None = option(None, "Names of the classes; the file's, or else the labels' values.")
    problem_type: ProblemType | None = option(None, "What is predicted; what the labels look like if not given.")
    label_threshold: float | None = option(None, "Make two classes of one number: up to this, and above.")
    split_field: str = option("split", "Field of the splits.")
    id_field: str | None = option(None, "Field of the ids; ids or id if not given.")
    validation_share: float = option(0.1, "Share of training samples to validate on, if none are given.", within=SHARE)
    test_share: float = option(0.2, "Share of training samples to test on, if none are given.", within=SHARE)
    split_seed: int = option(0, "Seed of that draw.", at_least=0)
    standardize: bool = option(True, "Scale every number to mean 0 and standard deviation 1 over the training split.")
    replace_non_finite: bool = option(False, "Put zero in place of NaN and infinite numbers.")
    mask_zero_vectors: bool = option(False, "Take vectors of zeros for padding.")

    def __post_init__(self):
        check_options(self)

    @property
    def reading(self) -> dict[str, Any]:
        """The options of `load_arrays`."""
        return {item.name: getattr(self, item.name) for item in fields(ArrayArguments) if item.name != "standardize"}


def defaults_of(arguments: Any) -> dict[str, Any]:
    """Those of a dataclass's fields."""
    return {x.name: x.default if x.default_factory is MISSING else x.default_factory() for x in fields(arguments)}


def given_options(arguments: Any, names: Iterable[str]) -> list[str]:
    """Those of these options of a dataclass that are not at their defaults."""
    defaults = defaults_of(arguments)
    return [name for name in names if getattr(arguments, name) != defaults[name]]


def starts_from_features(encoding: EncodingArguments, data: Any, needs: str | None = None) -> bool:
    """
    Whether a run starts from features instead of raw samples, whose options are `data`, a dataclass. Raises
    `ValueError` where neither features nor samples, which have the option `needs`, are given; or both.
    """
    if not encoding.features:
        if needs is not None and getattr(data, needs) is None:
            raise ValueError(f"`{needs}` is needed, the folder of the raw data; or `features`.")
        return False
    refuse_raw_options(encoding, data, "features")
    return True


def refuse_raw_options(encoding: EncodingArguments, data: Any, instead: str) -> None:
    """
    Raises `ValueError` where an option of raw samples is given, which would change nothing: `instead` names the option
    that says where the features are.
    """
    of_features = ("features", "stream_features", "shuffle_buffer_size", instead)
    for part in (data, encoding):
        for name in [x.name for x in fields(part) if x.name not in of_features]:
            is_changed = name != "text_max_length" and given_options(part, [name])  # a length that presets set
            if is_changed or name in encoding.given:
                raise ValueError(
                    f"`{instead}` and `{name}` exclude each other: features are taken as they are, and not encoded "
                    "again."
                )


def _model_options() -> Iterator[tuple[str, Any, Any]]:
    """Those fields of [`FLI2MoEConfig`] that users choose; one dropout stands for those of the experts."""
    for item in fields(FLI2MoEConfig):
        if item.name == "attention_dropout":
            text = "Dropout in the experts: on attention, residual and feed-forward activations."
            yield "dropout", float, option(item.default, text, within=SHARE)
            text = "Dropout on attention alone, if it is to differ from --dropout."
            yield item.name, float | None, option(None, text, within=SHARE)
        elif "help" in item.metadata and not item.metadata.get("internal"):
            yield item.name, item.type, field(default=item.default, metadata=item.metadata)


_ModelOptions: Any = make_dataclass("_ModelOptions", _model_options())


@dataclass
class ModelArguments(_ModelOptions):
    """What the model is; fields of [`FLI2MoEConfig`]."""

    def __post_init__(self):
        check_options(self)
        check_model_options(self)

    def to_config(self, modalities: Mapping[str, dict], **others) -> FLI2MoEConfig:
        """
        The model's configuration; `others` are its fields that the data decide. Raises `ValueError` where a field, or
        how fields go together, is wrong.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        dropout = values.pop("dropout")
        if values["attention_dropout"] is None:
            values["attention_dropout"] = dropout
        values |= {"modalities": dict(modalities), "residual_dropout": dropout, "activation_dropout": dropout, **others}
        return checked_config(**values)


@dataclass
class TrainingArguments:
    """How a model is fitted on a feature cache."""

    num_epochs: int = option(40, "Passes over the training split.", at_least=1)
    batch_size: int = option(32, "Samples a step and process.", at_least=1)
    learning_rate: float = option(1e-4, "Peak learning rate.", positive=True)
    optimizer: Literal["adam", "adamw"] = option("adam", "Adam, or AdamW with --weight_decay.")
    weight_decay: float = option(0.0, "Weight decay (AdamW).", at_least=0)
    lr_scheduler: Literal["constant", "linear", "cosine"] = option("constant", "Course of the learning rate.")
    warmup_ratio: float = option(0.0, "Share of all steps in which the learning rate rises.", within="[0, 1]")
    feature_dropout_start: float = option(
        0.35, "Share of epochs before --feature_dropout sets in; the best epoch is one of those after.", within=SHARE
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", "Let rare classes, or the positive samples of rare labels, count more in the task loss."
    )
    regulariser_warmup_epochs: int = option(
        0, "Epochs in which --regulariser_weight rises, from 0 in the first to all of it in the last.", at_least=0
    )
    max_grad_norm: float = option(1.0, "Gradient norm above which gradients are scaled down; 0 for never.", at_least=0)
    ema_decay: float = option(
        0.0,
        "Evaluate and keep an exponential moving average of the weights, of which each step leaves this share, such as "
        "0.98; 0 for the weights themselves.",
        within=SHARE,
    )
    gradient_accumulation_steps: int = option(1, "Batches that one optimizer step sums over.", at_least=1)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "Number format; Accelerate's if not given.")
    seeds: list[int] = option([0], "One training run for each; results are their mean and standard deviation.")
    metric: str | None = option(
        None, "Validation metric that picks the best seed, and the epoch by default; the task's first if not given."
    )
    load_best_model_at_end: bool = option(True, "Keep the best epoch; else the last one.")
    best_epoch_by: Literal["metric", "log_loss"] = option(
        "metric",
        "What tells the best epoch: --metric, or the validation log loss, with --feature_dropout of features thinned "
        "alike in all epochs (of a regression always the metric).",
    )
    threshold: float = option(0.5, "Probability from which a label counts as predicted (multi-label).", within="(0, 1)")
    early_stopping_patience: int | None = option(None, "Stop after so many epochs without a better one.", at_least=1)
    checkpoint_steps: int = option(200, "Steps between checkpoints, beside one at every epoch's end.", at_least=1)
    keep_checkpoints: int = option(2, "Checkpoints that are kept.", at_least=1)
    bucket_by_length: bool = option(False, "Batch sequences of similar length: less padding, less random batches.")
    report_to: str | None = option(None, "Accelerate's trackers: tensorboard, wandb, … or all.")
    tracker_project: str = option("fl_i2moe", "Project, or experiment, that trackers file the run under.")
    run_name: str | None = option(
        None, "The run's name in trackers; that of --output_dir if not given, and always so in TensorBoard."
    )
    num_workers: int = option(0, "Processes that read the cache; 0 reads it between the steps.", within="[0, 1024]")
    num_threads: int | None = option(None, "CPU threads a process; all cores if not given.", within="[1, 1024]")

    def __post_init__(self):
        check_options(self)
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError("`early_stopping_patience` counts from the best epoch: it needs `load_best_model_at_end`.")
        project = Path(self.tracker_project)  # some trackers take it for a folder
        if project.is_absolute() or ".." in project.parts:
            raise ValueError(f"`tracker_project` {project} leads out of the run's folder: give a name.")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("`weight_decay` needs `optimizer` adamw.")
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
        check_options(self)
        if self.resume and self.overwrite:
            raise ValueError("`resume` goes on with a run and `overwrite` replaces it: give one of them.")

    @property
    def flags(self) -> dict[str, bool]:
        """What becomes of a run that is in the folder already."""
        return {"resume": self.resume, "overwrite": self.overwrite}


@dataclass
class Job:
    """The options of a whole job."""

    encoding: Any
    """[`CacheArguments`]; [`EncodingArguments`] where encoders are to be loaded."""
    model: ModelArguments
    training: TrainingArguments
    output: OutputArguments

    def __post_init__(self):
        start = self.training.feature_dropout_start
        if start != TrainingArguments.feature_dropout_start and not self.model.feature_dropout:
            raise ValueError(
                f"`feature_dropout_start` {start} needs `feature_dropout`, which is 0: nothing would start."
            )
        if (warmup := self.training.regulariser_warmup_epochs) and self.model.regulariser is None:
            raise ValueError(f"`regulariser_warmup_epochs` {warmup} needs `regulariser`: no weight would rise.")
        if warmup > self.training.num_epochs:
            raise ValueError(
                f"`regulariser_warmup_epochs` {warmup} must be at most `num_epochs`, {self.training.num_epochs}: "
                "`regulariser_weight` would never be reached."
            )
        copies = getattr(self.encoding, "masked_copies", None)
        if copies and not self.model.feature_dropout:
            raise ValueError("`masked_copies` are what `feature_dropout` takes, which is 0: give it, such as 0.5.")
        if copies and self.model.level == "pooled":
            raise ValueError(
                "`masked_copies` are for `level` feature: pooled models are not explained by words or cells."
            )
        if not isinstance(self.encoding, EncodingArguments) or not self.encoding.stream_features:
            return
        if self.training.num_workers > 1:
            raise ValueError("`stream_features` reads in one process: `num_workers` can be 0 or 1.")
        if self.encoding.shuffle_buffer_size < self.training.batch_size:
            raise ValueError("`shuffle_buffer_size` must be at least `batch_size`.")

    @property
    def masked_copies(self) -> int:
        """Those that are to be encoded; arrays, which no encoder encodes, have none."""
        if not isinstance(self.encoding, EncodingArguments) or self.encoding.features:
            return 0
        if self.encoding.masked_copies is not None:
            return self.encoding.masked_copies
        if not self.model.feature_dropout or self.model.level == "pooled":
            return 0
        objective = chosen_objective(vars(self.model))
        return objective.masked_copies if objective else 0

    def settings(self, **others: Any) -> dict[str, Any]:
        """What decides the result of a run, as plain JSON."""
        merged = {name: value for part in self._parts for name, value in asdict(part).items() if name not in UNBINDING}
        if "masked_copies" in merged:
            merged["masked_copies"] = self.masked_copies
        return {**merged, **others}

    @property
    def defaults(self) -> dict[str, Any]:
        """Of all options: what those mean that the settings of an earlier version do not name."""
        return {**{name: x for part in self._parts for name, x in defaults_of(part).items()}, "masked_copies": 0}

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.encoding, self.model, self.training, self.output


def chosen_objective(options: Mapping[str, Any]) -> type[Objective] | None:
    """The objective that these options of a model name; None for a dense model, and where there are none of a model."""
    if options.get("architecture") == "dense" or "objective" not in options:
        return None
    return OBJECTIVES.get(options["objective"])


def training_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Option → what the objective and the regulariser that these options of a model name make of it where it is not given.
    """
    objective = chosen_objective(options)
    defaults = dict(objective.training_defaults) if objective else {}
    if regulariser := REGULARISERS.get(options.get("regulariser") or ""):
        defaults["regulariser_warmup_epochs"] = regulariser.warmup_epochs
    return defaults


def check_metric(metric: str | None, problem_type: str) -> str:
    """The metric that picks a checkpoint; raises `ValueError` for one that the task does not have."""
    known = METRICS_BY_PROBLEM[problem_type]
    if metric is not None and metric not in known:
        raise ValueError(f"`metric` must be one of {', '.join(known)} for {problem_type}, got {metric!r}.")
    return metric or default_metric(problem_type)[0]
