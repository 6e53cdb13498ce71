"""
What a kind of raw value is: how it is read, encoded, stored in a feature cache, and found again.

A modality of a sample is a picture, a text, an array. All that differs between them is in one object each, a [`Kind`],
in a file of its own; `kinds.py` lists them. How a kind is drawn is the one other place (`explain/pages/drawing.py`).

Shape letters: B samples, T features of a sequence, D encoder width.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from .places import Places
from .weights import refuse_pickles

WEIGHTS_FILE = "model.safetensors"


@dataclass
class Preprocessed:
    """A preprocessed batch.

    Args:
        inputs: what `encode` takes; every tensor has B rows.
        annotations: one dictionary per sample, what explanations need to know; see each kind's `preprocess`.
    """

    inputs: dict[str, Tensor]
    annotations: list[Any]


def checksum(content: bytes) -> str:
    """Of what was encoded, to know it again."""
    return hashlib.sha256(content).hexdigest()


def is_missing(value: Any) -> bool:
    """Whether a cell of a table holds nothing: null, NaN, no byte, or a text of nothing but spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == b"" or (isinstance(value, float) and math.isnan(value))


IS_GIVEN = "is_given"
"""Name among the inputs of an encoder of a mask (B,), false for samples that lack the modality; the other tensors have
rows for the samples that have it."""


def preprocess_given(preprocess: Callable[[list[Any]], Preprocessed], values: list[Any]) -> Preprocessed:
    """`preprocess` of the values that are not None; where some are, the inputs have [`IS_GIVEN`], and of these the
    annotation is None."""
    given = [value for value in values if value is not None]
    if len(given) == len(values):
        return preprocess(values)
    prepared = preprocess(given) if given else Preprocessed({}, [])
    annotations = iter(prepared.annotations)
    is_given = torch.tensor([value is not None for value in values], dtype=torch.bool)
    return Preprocessed(
        {**prepared.inputs, IS_GIVEN: is_given}, [None if value is None else next(annotations) for value in values]
    )


def encode_given(encoder: Any, inputs: Mapping[str, Tensor], kept: Tensor | None = None) -> EncodedFeatures:
    """What the encoder makes of inputs from [`preprocess_given`], see `FrozenEncoder.encode`: the sequences of samples
    that lack the modality are empty, their masks false throughout."""
    if IS_GIVEN not in inputs:
        return encoder.encode(inputs) if kept is None else encoder.encode(inputs, kept)
    is_given = inputs[IS_GIVEN].bool()
    if not is_given.any():
        nothing = torch.zeros(len(is_given), 1, dtype=torch.bool)
        return EncodedFeatures(torch.zeros(len(is_given), 1, encoder.feature_size), nothing, nothing)
    given = {name: x for name, x in inputs.items() if name != IS_GIVEN}
    encoded = encoder.encode(given) if kept is None else encoder.encode(given, kept[is_given.to(kept.device)])

    def spread(x: Tensor) -> Tensor:
        everywhere = x.new_zeros(len(is_given), *x.shape[1:])
        everywhere[is_given.to(x.device)] = x
        return everywhere

    return EncodedFeatures(*(spread(x) for x in (encoded.features, encoded.feature_mask, encoded.special_mask)))


@dataclass
class EncodedFeatures:
    """A batch of feature sequences; where `feature_mask` is false the features are zero (padding, always on the right).

    Args:
        features: (B, T, D).
        feature_mask: (B, T) bool, true for a real feature.
        special_mask: (B, T) bool, true for a special feature (CLS, BOS, SEP, a register).
    """

    features: Tensor
    feature_mask: Tensor
    special_mask: Tensor


class FrozenEncoder(nn.Module, ABC):
    """A Hugging Face encoder that never trains. Made by [`load_encoder`].

    Attributes:
        kind: name of the kind of its raw values.
        preprocess: callable, raw values → [`Preprocessed`]; picklable and without the weights.
        feature_size: D.
        max_features: the longest T, kept special features included.
        grid: (rows, columns) of patches, which are in reading order; None where features form no grid.
        removals: ways to take features out of a value before it is encoded, name → what happens to them, as the end of
            a sentence. The first one is the default.
    """

    kind: str
    preprocess: Any
    feature_size: int
    max_features: int
    grid: tuple[int, int] | None = None
    removals: Mapping[str, str]

    def __init__(self, model: nn.Module, origin: dict[str, Any], hidden_layer: int | None, special_features: str):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.hidden_layer = hidden_layer
        self.special_features = special_features
        self._origin = origin
        self._is_tried = False
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Does nothing: a frozen encoder stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @property
    def _title(self) -> str:
        return f"encoder {self._origin['name']!r} ({type(self.model).__name__})"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def encode(
        self, inputs: Mapping[str, Tensor], kept: Tensor | None = None, removal: str | None = None
    ) -> EncodedFeatures:
        """Encodes what `preprocess` made of a batch.

        Args:
            inputs: `Preprocessed.inputs`, on any device.
            kept: (B, T) over the features that come out, false where one is taken out of the value before the rest is
                encoded: it is zero, and the others know nothing of it. Special features are always kept.
            removal: how, one of `removals`; the first if not given.

        Raises:
            ValueError: there is no such removal, or it does not work with this encoder.
        """
        inputs = {key: value.to(self.device, non_blocking=True) for key, value in inputs.items()}
        if kept is not None:
            kept, removal = kept.to(self.device), check_removal(self, removal)
            inputs = self._remove(inputs, kept, removal)
        encoded = self._encode(inputs)
        if self.special_features == "drop":
            encoded = _drop_special(encoded)
        is_there = encoded.feature_mask
        if kept is not None:
            is_there = is_there & (_fit(kept, is_there.shape[1]) | encoded.special_mask)
        encoded.features = encoded.features.masked_fill(~is_there[..., None], 0.0)
        return encoded

    @torch.no_grad()
    def rollout(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """
        Attention rollout of one sample, (T, T) float64 with rows that sum to 1: how much each feature is of each
        position of the input, by the product of `0.5 · A + 0.5 · I` over the layers, A the mean over heads. None where
        the encoder has no attention between all of its positions, as convolutions.
        """
        outputs: list[Any] = []
        model: Any = self.model
        hooks = [
            model.register_forward_pre_hook(
                lambda _, arguments, options: (arguments, {**options, "output_attentions": True}), with_kwargs=True
            ),
            model.register_forward_hook(lambda _, arguments, output: outputs.append(output)),
        ]
        implementation = model.config._attn_implementation
        try:
            model.set_attn_implementation("eager")
            encoded = self._encode({key: value.to(self.device) for key, value in inputs.items()})
        except (AttributeError, TypeError, ValueError):  # a model that knows no attention
            return None
        finally:
            model.set_attn_implementation(implementation)
            for hook in hooks:
                hook.remove()
        length = encoded.features.shape[1]
        layers = (getattr(outputs[0], "attentions", None) or ())[: self.hidden_layer]
        if not layers or not all(isinstance(x, Tensor) and x.shape[2:] == (length, length) for x in layers):
            return None
        rollout = torch.eye(length, dtype=torch.float64)
        for layer in layers:
            rollout = (0.5 * layer[0].double().mean(dim=0).cpu() + 0.5 * torch.eye(length)) @ rollout
        if self.special_features == "keep":
            return rollout
        own = (encoded.feature_mask & ~encoded.special_mask)[0].cpu()
        return rollout[own][:, own]

    def identity(self) -> dict[str, Any]:
        """All that decides the features, as plain JSON: for the key of a feature cache and the config of a model."""
        return {
            **self._origin,
            "kind": self.kind,
            "hidden_layer": self.hidden_layer,
            "special_features": self.special_features,
            "max_length": getattr(self.preprocess, "max_length", None),
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": self.preprocess.identity(),
        }

    @abstractmethod
    def _encode(self, inputs: dict[str, Tensor]) -> EncodedFeatures:
        """`encode` before special features are dropped and padding is zeroed."""

    @abstractmethod
    def _remove(self, inputs: dict[str, Tensor], kept: Tensor, removal: str) -> dict[str, Tensor]:
        """The inputs without the features that are not `kept`, see [`encode`]."""

    def _kept_positions(self, kept: Tensor, special_mask: Tensor) -> Tensor:
        """`kept` (B, T) of [`encode`], over all positions of the encoder's output, as `special_mask` (B, L) is."""
        if self.special_features == "keep":
            return _fit(kept, special_mask.shape[1]) | special_mask
        places = (~special_mask).cumsum(dim=1) - 1
        return _fit(kept, special_mask.shape[1]).gather(1, places.clamp(min=0)) | special_mask

    @torch.no_grad()
    def _call(self, inputs: dict[str, Tensor]) -> Any:
        options = {} if self.hidden_layer is None else {"output_hidden_states": True}
        try:
            return self.model(**inputs, **options)
        except Exception as error:
            if self._is_tried:
                raise
            raise ValueError(  # models of any class raise anything where they do not fit
                f"{self._title} cannot be called with a batch of "
                f"{self.kind}s alone; use another encoder. The reason: {type(error).__name__}: {error!s:.300}"
            ) from error

    def _hidden_state(self, inputs: dict[str, Tensor]) -> Tensor:
        outputs = self._call(inputs)
        if self.hidden_layer is None:
            hidden_state = getattr(outputs, "last_hidden_state", None)
        else:
            hidden_states = getattr(outputs, "hidden_states", None) or ()
            last = len(hidden_states) - 1
            if hidden_states and not 0 <= self.hidden_layer <= last:
                raise ValueError(
                    f"hidden_layer={self.hidden_layer} is out of range: {self._origin['name']} has {last} layers; give "
                    f"0 (the embeddings) to {last}, or None for its last hidden state"
                )
            hidden_state = hidden_states[self.hidden_layer] if hidden_states else None
        if not isinstance(hidden_state, Tensor):
            wanted = "last" if self.hidden_layer is None else "other"
            raise ValueError(
                f"{self._title} gives no {wanted} hidden states, from "
                "which features are taken; use another encoder, or another hidden_layer"
            )
        return hidden_state


class FittedEncoder(ABC):
    """
    Stands where a [`FrozenEncoder`] stands, for numbers, which need no model: what it does was fitted to the training
    split and is all in its identity. It computes on the CPU.

    Attributes:
        notes: what was found in the training split, as sentences.
    """

    kind: ClassVar[str]
    feature_size: int
    max_features: int
    grid: ClassVar[None] = None
    removals: ClassVar[Mapping[str, str]] = {"zero": "set to zero"}
    notes: Sequence[str] = ()

    @abstractmethod
    def preprocess(self, values: Sequence[Any]) -> Preprocessed:
        """Raw values, or cells of the raw column, to what `encode` takes; `ValueError` for one that does not fit."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """As a frozen encoder's."""

    @classmethod
    @abstractmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Self:
        """The inverse of [`identity`]."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        return self

    def encode(
        self, inputs: Mapping[str, Tensor], kept: Tensor | None = None, removal: str | None = None
    ) -> EncodedFeatures:
        """As a frozen encoder's; no feature knows of another."""
        features, lengths = inputs["features"], inputs["lengths"]
        mask = torch.arange(features.shape[1], device=lengths.device) < lengths[:, None]
        if kept is not None:
            check_removal(self, removal)
            features = features.masked_fill(~_fit(kept, features.shape[1])[..., None].to(features.device), 0.0)
        return EncodedFeatures(features, mask, torch.zeros_like(mask))


def check_removal(encoder: FrozenEncoder | FittedEncoder, removal: str | None) -> str:
    """The removal asked for, or the default; `ValueError` for one that the encoder does not have."""
    if removal is not None and removal not in encoder.removals:
        known = ", ".join(encoder.removals)
        raise ValueError(f"There is no removal {removal!r} of this {encoder.kind} encoder; there are {known}.")
    return removal or next(iter(encoder.removals))


def _fit(kept: Tensor, length: int) -> Tensor:
    """(B, T) → (B, length): true behind its end, where there is padding."""
    return nn.functional.pad(kept, (0, length - kept.shape[1]), value=True)


def pad_sequences(sequences: Sequence[NDArray[np.float32]]) -> dict[str, Tensor]:
    """What a [`FittedEncoder`] encodes, of sequences (T, D): `features` (B, T, D), padded by zeros, `lengths` (B,)."""
    lengths = [len(x) for x in sequences]
    features = torch.zeros(len(sequences), max(lengths), sequences[0].shape[1])
    for row, x in zip(features.numpy(), sequences, strict=True):
        row[: len(x)] = x
    return {"features": features, "lengths": torch.tensor(lengths)}


def _drop_special(encoded: EncodedFeatures) -> EncodedFeatures:
    """Takes special features out of the sequences and closes the gaps."""
    keep = encoded.feature_mask & ~encoded.special_mask
    lengths = keep.sum(1, keepdim=True)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    features = encoded.features.gather(1, order[..., None].expand(-1, -1, encoded.features.shape[2]))
    feature_mask = torch.arange(order.shape[1], device=order.device) < lengths
    return EncodedFeatures(features, feature_mask, torch.zeros_like(feature_mask))


class Kind(ABC):
    """A kind of raw value. Stateless."""

    name: ClassVar[str]
    raw_type: ClassVar[dict[str, Any]]
    """The column of raw values in a data set, as `datasets` writes a type."""

    keeps_raw: ClassVar[bool] = True
    """Whether a feature cache keeps that column."""

    annotation_types: ClassVar[dict[str, dict[str, Any]]] = {}
    """Suffix → type of the column `<modality>_<suffix>` that a feature cache has of it."""

    can_be_cut: ClassVar[bool] = False
    """Whether an encoder may leave out the end of a value."""

    places: ClassVar[type[Places]] = Places
    """Where its features lie."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What reads its values, beside what every model needs."""

    def from_table(self, value: Any, folders: Sequence[Path]) -> Any:
        """
        A cell of a user's table as `cell` takes it, or None where the value is missing.

        Args:
            value: what `datasets` gives for the cell; a mapping for a modality of several columns.
            folders: where relative paths of files may begin, in this order.

        Raises:
            ValueError: with the reason why the value cannot be used, as the end of a sentence.
        """
        return None if is_missing(value) else value

    def table_columns(self, identity: Mapping[str, Any]) -> str | list[str]:
        """What a table's reader is told of a modality with this encoder: its kind, or the columns that make it up."""
        return self.name

    def feature_size(self, value: Any) -> int | None:
        """D of a value from [`from_table`] that is features already; None for what an encoder encodes."""
        return None

    main_tensor: ClassVar[str]
    """What its preprocessing always gives, by which a preprocessed value is known."""

    def cell(self, value: Any) -> Any:
        """A raw value, from a reader or a user, as the raw column takes it."""
        return value

    def file_of(self, cell: Any) -> str:
        """The file that a cell of the raw column comes from, for messages."""
        return "-"

    def content(self, cell: Any) -> bytes:
        """What a cell of the raw column stands for, byte by byte; `ValueError` where its file cannot be read."""
        return cell

    def published_cell(self, cell: Any) -> Any:
        """A cell of the raw column as it is published beside features."""
        return cell

    def annotation_cells(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        """Suffix → cell of the annotation column."""
        return {}

    def cut_share(self, annotation: Mapping[str, Any]) -> float | None:
        """Which share of a value its encoder left out; None if nothing."""
        return None

    def is_batch(self, value: Any) -> bool:
        """Whether it is several raw values, one a sample: a list, or a column of a data set."""
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)

    def as_batch(self, value: Any) -> list[Any]:
        """Several raw values as a list, one value as a list of one."""
        return list(value) if self.is_batch(value) else [value]

    def open(self, value: Any) -> Any:
        """A raw value as a pipeline's worker reads it."""
        return value

    def needs_features(self, identity: Mapping[str, Any]) -> str | None:
        """Why an encoder with this identity takes no raw values, as the end of a sentence; None if it does."""
        return None

    @abstractmethod
    def pinned_encoder(
        self, identity: Mapping[str, Any], modality: str, load: Callable[..., FrozenEncoder]
    ) -> FrozenEncoder | FittedEncoder:
        """The encoder with this identity; `load` gives the Hugging Face model of one that has any, by its options."""

    @abstractmethod
    def load_preprocessor(self, identity: Mapping[str, Any], modality: str, load: Callable[..., Any]) -> Any:
        """The preprocessing with this identity, without the encoder; `load` gives a part of its repository."""

    @abstractmethod
    def example(self, modality: str, identity: Mapping[str, Any]) -> str:
        """An example value as Python source."""

    @abstractmethod
    def describe_preprocessing(self, identity: Mapping[str, Any]) -> str:
        """What happens to a value before the encoder, in one sentence."""


class FittedKind(Kind):
    """A kind of raw value that a [`FittedEncoder`] encodes."""

    main_tensor = "features"
    encoder: ClassVar[type[FittedEncoder]]

    def pinned_encoder(
        self, identity: Mapping[str, Any], modality: str, load: Callable[..., FrozenEncoder]
    ) -> FittedEncoder:
        return self.encoder.from_identity(identity)

    def load_preprocessor(self, identity: Mapping[str, Any], modality: str, load: Callable[..., Any]) -> Any:
        return self.encoder.from_identity(identity).preprocess


class EncodedKind(Kind):
    """A kind of raw value that a Hugging Face model encodes."""

    main_inputs: ClassVar[tuple[str, ...]]
    """What the main input of its models may be called."""

    tower: ClassVar[str]
    """Its part of a two-tower model's configuration."""

    default_options: ClassVar[dict[str, Any]]
    """Options of its encoders, and their defaults."""

    @abstractmethod
    def create_encoder(
        self, model: nn.Module, common: tuple[Any, ...], load: Callable[..., Any], options: Mapping[str, Any], name: str
    ) -> FrozenEncoder:
        """
        Args:
            common: the first arguments of a [`FrozenEncoder`].
            load: gives a part of the encoder's repository: (auto class, file, further arguments).

        Raises:
            ValueError: an option does not fit the model.
        """

    @abstractmethod
    def options_of(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the encoder with this identity."""

    @abstractmethod
    def pin(self, encoder: FrozenEncoder, identity: Mapping[str, Any], modality: str) -> None:
        """Makes the preprocessing of a loaded encoder that of this identity, or warns where it may differ."""

    def pinned_encoder(
        self, identity: Mapping[str, Any], modality: str, load: Callable[..., FrozenEncoder]
    ) -> FrozenEncoder:
        encoder = load(**self.options_of(identity))
        self.pin(encoder, identity, modality)
        return encoder


def load_part(auto_class: Any, file: str, name: str, source: str, **kwargs: Any) -> Any:
    try:
        if file == WEIGHTS_FILE:
            refuse_pickles(source, kwargs)
        return auto_class.from_pretrained(source, **kwargs)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        advice = (
            f"The folder must hold a Hugging Face model with {file}."
            if Path(source).is_dir()
            else "Check the id; where the hub cannot be reached, give the path of a local folder with the model."
        )
        if file == WEIGHTS_FILE:
            advice += (
                " Only safetensors are read: convert other weights, if you trust them, with "
                "AutoModel.from_pretrained(...).save_pretrained(folder)."
            )
        raise ValueError(f"encoder {name!r}: {file} could not be loaded. {advice} The reason: {error}") from error
