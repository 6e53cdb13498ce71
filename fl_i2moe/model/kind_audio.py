"""
Sounds: resampled, cut, encoded as time steps, and found again as seconds.

Shape letters: B samples, N numbers of a sound, T features of a sequence, D encoder width.
"""

from __future__ import annotations

import inspect
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, FeatureExtractionMixin

from .kind import EncodedFeatures, FrozenEncoder, Preprocessed
from .kind_file import FileKind, FilePlaces, fetch
from .places import UnitOptions, Units, merge_neighbours
from .sound import Sound, import_soundfile, import_soxr, open_sound, resample
from .time_layout import StepCount, TimeLayout, find_time_layout, find_window, first_enough

PROBE_SECONDS = 2.0
MAX_STRETCHES = 64
"""Units of a sound: some encoders have 50 features a second, of which none tells much."""
SPECIAL_TOKENS = ("cls_token", "distillation_token", "register_tokens")
"""Parameters of models whose outputs begin with positions of no time."""

Seconds = tuple[float, float]
"""Start and end, from the beginning of the sound."""


@dataclass(frozen=True)
class AudioPreprocessor:
    """
    Sounds to the encoder's inputs, each by itself: many encoders see the silence that a longer one beside it would
    bring. An annotation is `seconds`, the (start, end) of every feature, (0, 0) for a special one; `encoded` and
    `total`, seconds of the sound.

    `inputs` are the model's, filled up with zeros to one shape, the size of each of them (`<name>_size`), and what they
    were made of, `waves` (B, N) and `num_samples` (B,).

    Args:
        extractor: a feature extractor of transformers.
        input_names: what of its outputs the model takes, the main one first.
        max_seconds: where sounds are cut.
        max_samples, min_samples: of a sound at the encoder's rate.
        count: time steps in so many samples.
        window: samples that the encoder always sees; None if it sees the sound alone.
        layout: where time lies in the encoder's output.
        frames_per_feature: time steps whose mean is one feature.
        keep_special: whether special positions are features.
    """

    extractor: Any
    input_names: tuple[str, ...]
    max_seconds: float
    max_samples: int
    min_samples: int
    count: StepCount
    window: int | None
    layout: TimeLayout
    frames_per_feature: int
    keep_special: bool

    @property
    def rate(self) -> int:
        return self.extractor.sampling_rate

    def __call__(self, values: Sequence[Any]) -> Preprocessed:
        waves, annotations = zip(*(self._one(value) for value in values), strict=True)
        return Preprocessed(self.extract(waves), list(annotations))

    def extract(self, waves: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The inputs of sounds (N,) at the encoder's rate."""
        extracted = [extract(self.extractor, wave) for wave in waves]
        inputs = {"num_samples": torch.tensor([len(wave) for wave in waves])}
        inputs["waves"] = nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
        for name in self.input_names:
            inputs[name], inputs[f"{name}_size"] = _stack([x[name] for x in extracted])
        return inputs

    def _one(self, value: Any) -> tuple[np.ndarray, dict[str, Any]]:
        sound = open_sound(value, self.max_seconds)
        wave = resample(sound.samples, sound.rate, self.rate)[: self.max_samples]
        if len(wave) < self.min_samples:
            raise ValueError(
                f"{_name(value)}: a sound of {sound.seconds:.3g} s is too short for its encoder, which needs "
                f"{self.min_samples / self.rate:.3g} s. Replace or leave out this sound."
            )
        encoded = len(wave) / self.rate
        edges = [round(edge / self.rate, 6) for edge in self.edges(len(wave))]
        special = [(0.0, 0.0)] * (self.layout.num_special if self.keep_special else 0)
        return wave, {
            "seconds": [*special, *itertools.pairwise(edges)],
            "encoded": encoded,
            "total": max(sound.seconds, encoded),
        }

    def edges(self, num_samples: int) -> list[float]:
        """Where the features of so many samples begin, in samples, and where the last one ends."""
        num_steps = self.count(num_samples)
        step = (num_samples if self.window is None else self.window / self.count(self.window) * num_steps) / num_steps
        return [min(first * step, num_samples) for first in (*range(0, num_steps, self.frames_per_feature), num_steps)]

    @property
    def max_features(self) -> int:
        """The longest sequence that comes out."""
        special = self.layout.num_special if self.keep_special else 0
        return special + math.ceil(self.count(self.max_samples) / self.frames_per_feature)

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> AudioPreprocessor:
        """The inverse of [`identity`]; `ValueError` where transformers has no such feature extractor."""
        values = {key: x for key, x in identity.items() if key not in ("feature_extractor", "soxr")}
        values["input_names"] = tuple(values["input_names"])
        values["count"], values["layout"] = StepCount(*values["count"]), TimeLayout(*values["layout"])
        settings = identity["feature_extractor"]
        extractor = extractor_class(settings["feature_extractor_type"]).from_dict(dict(settings))
        return cls(extractor=extractor, **values)

    def identity(self) -> dict[str, Any]:
        """What decides the inputs, and what lies where in the outputs, as plain JSON."""
        values = {x.name: getattr(self, x.name) for x in fields(self) if x.name != "extractor"}
        values |= {"count": astuple(self.count), "layout": astuple(self.layout)}
        settings = json.loads(self.extractor.to_json_string())
        return json.loads(json.dumps(values)) | {"feature_extractor": settings, "soxr": import_soxr().__version__}


def extract(extractor: Any, wave: np.ndarray) -> dict[str, Tensor]:
    """The tensors (1, …) that a feature extractor makes of one sound."""
    extracted = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {name: torch.as_tensor(x) for name, x in extracted.items()}


def extractor_class(name: str) -> type[FeatureExtractionMixin]:
    found = getattr(transformers, name, None)
    if not (inspect.isclass(found) and issubclass(found, FeatureExtractionMixin)):
        raise ValueError(f"transformers {transformers.__version__} has no feature extractor {name!r}")
    return found


def _name(value: Any) -> str:
    return str((value.get("path") if isinstance(value, Mapping) else value) or "a sound given as bytes")


def _stack(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors (1, …) as one (B, …), zeros behind the shorter ones, and the size of each (B, dimensions)."""
    sizes = torch.tensor([x.shape[1:] for x in tensors]).view(len(tensors), -1)
    stacked = tensors[0].new_zeros(len(tensors), *sizes.amax(0).tolist())
    for row, x in zip(stacked, tensors, strict=True):
        row[tuple(map(slice, x.shape[1:]))] = x[0]
    return stacked, sizes


def _unstack(inputs: Mapping[str, Tensor], name: str, rows: list[int]) -> Tensor:
    """Rows of one size, without what fills them up."""
    size = inputs[f"{name}_size"][rows[0]].tolist()
    return inputs[name][rows][(slice(None), *map(slice, size))]


class FrozenAudioEncoder(FrozenEncoder):
    """
    Sounds → time steps, behind special features (AST's two). Sounds of one length are encoded together, others one by
    one: no feature depends on the sounds beside it.

    Raises:
        ValueError: the model gives no features that can be placed in time.
    """

    kind = "audio"
    preprocess: AudioPreprocessor
    removals: Mapping[str, str] = {"silence": "silenced"}

    def __init__(self, *args: Any, extractor: Any, max_seconds: float, frames_per_feature: int):
        super().__init__(*args)
        self.preprocess = self._find_out(extractor, max_seconds, frames_per_feature)
        self.max_features = self.preprocess.max_features
        self._is_tried = True

    def _find_out(self, extractor: Any, max_seconds: float, frames_per_feature: int) -> AudioPreprocessor:
        """How long sounds may be, how many time steps they have, and where these lie in the output."""
        rate, longest = extractor.sampling_rate, int(max_seconds * extractor.sampling_rate)
        noise = np.random.default_rng(0).normal(0, 0.1, min(longest, int(PROBE_SECONDS * rate))).astype(np.float32)
        takes = inspect.signature(self.model.forward).parameters
        names = tuple(name for name in extract(extractor, noise) if name in takes)
        main = next((name for name in names if name in AudioKind.main_inputs), None)
        if main is None:
            raise ValueError(
                f"{self._title} takes {', '.join(takes)}, of which its feature extractor ({type(extractor).__name__}) "
                "makes none; use another encoder"
            )
        names = (main, *(name for name in names if name != main))

        def hidden_state(sound: np.ndarray) -> Tensor:
            inputs = extract(extractor, sound)
            return self._hidden_state(self._cast({name: inputs[name] for name in names}))

        def num_steps(num_samples: int) -> int:
            steps = layout.arrange(hidden_state(noise[:num_samples]))[1]
            return steps.shape[1] if steps.isfinite().all() else 0  # one spectrum has no standard deviation

        def is_extracted(num_samples: int) -> bool:
            return bool(extract(extractor, noise[:num_samples])[main].isfinite().all())

        window = find_window(lambda sound: extract(extractor, sound)[main], rate, len(noise))
        if window is not None:
            longest = min(longest, window)
            noise = np.random.default_rng(0).normal(0, 0.1, longest).astype(np.float32)
        tokens = [x for name, x in self.model.named_parameters() if name.endswith(SPECIAL_TOKENS)]
        num_special = sum(x.shape[-2] for x in tokens)
        layout = find_time_layout(hidden_state, noise, window or len(noise), num_special, self._origin["name"])
        self.feature_size = layout.arrange(hidden_state(noise))[1].shape[2]
        try:
            if window is None:
                count, shortest = StepCount.measured(_or_zero(num_steps), len(noise))
            else:
                count = StepCount.in_window(num_steps(len(noise)), window)
                shortest = first_enough(lambda n: _or_zero(is_extracted)(n) > 0, len(noise))
        except ValueError as error:
            raise ValueError(f"{self._title} {error}; use another encoder") from error
        keep_special = self.special_features == "keep"
        return AudioPreprocessor(
            extractor, names, max_seconds, longest, shortest, count, window, layout, frames_per_feature, keep_special
        )

    def _cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, numbers in its format."""
        moved = {name: x.to(self.device) for name, x in inputs.items()}
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in moved.items()}

    def _encode(self, inputs: dict[str, Tensor]) -> EncodedFeatures:
        preprocess, layout = self.preprocess, self.preprocess.layout
        sizes = [tuple(size) for size in inputs[f"{preprocess.input_names[0]}_size"].tolist()]
        sequences: dict[int, Tensor] = {}
        for size in dict.fromkeys(sizes):
            rows = [row for row, other in enumerate(sizes) if other == size]
            of_one_size = self._cast({name: _unstack(inputs, name, rows) for name in preprocess.input_names})
            special, steps = layout.arrange(self._hidden_state(of_one_size))
            for place, row in enumerate(rows):
                num_samples = int(inputs["num_samples"][row])
                num_steps = preprocess.count(num_samples)
                if steps.shape[1] < num_steps or (preprocess.window is None and steps.shape[1] > num_steps):
                    raise ValueError(
                        f"{self._title} gives {steps.shape[1]} features for a sound of {num_samples:,} samples, not "
                        f"{num_steps}; use another encoder"
                    )
                parts = steps[place, :num_steps].split(preprocess.frames_per_feature)
                sequences[row] = torch.cat([special[place], torch.stack([part.mean(0) for part in parts])])
        features = nn.utils.rnn.pad_sequence([sequences[row] for row in range(len(sizes))], batch_first=True)
        lengths = torch.tensor([len(sequences[row]) for row in range(len(sizes))], device=features.device)
        places = torch.arange(features.shape[1], device=features.device)
        feature_mask = places < lengths[:, None]
        return EncodedFeatures(features, feature_mask, feature_mask & (places < layout.num_special))

    def _remove(self, inputs: dict[str, Tensor], kept: Tensor, removal: str) -> dict[str, Tensor]:
        waves = []
        for wave, num_samples, kept_T in zip(
            inputs["waves"].cpu().numpy(), inputs["num_samples"].tolist(), kept.cpu().tolist(), strict=True
        ):
            wave = wave[:num_samples].copy()
            num_special = self.preprocess.layout.num_special if self.special_features == "keep" else 0
            edges = [round(edge) for edge in self.preprocess.edges(num_samples)]
            for is_kept, (start, end) in zip(kept_T[num_special:], itertools.pairwise(edges), strict=False):
                if not is_kept:
                    wave[start:end] = 0
            waves.append(wave)
        return self.preprocess.extract(waves)


def _or_zero(of: Callable[[int], int]) -> Callable[[int], int]:
    """0 where the model or its feature extractor cannot do with so few samples."""

    def count(num_samples: int) -> int:
        try:
            return of(num_samples)
        except (ValueError, RuntimeError, AssertionError):
            return 0

    return count


@dataclass
class AudioPlaces(FilePlaces):
    """A sound, and its time steps."""

    kind: ClassVar[str] = "audio"
    feature_noun: ClassVar[str] = "stretches"
    sense: ClassVar[str] = "hear"

    seconds: list[Seconds] | None = None
    """Of every feature, special ones too."""

    @property
    def is_placed(self) -> bool:
        return self.seconds is not None

    def stretch(self, index: int) -> Seconds | None:
        """The feature's start and end; None for a special one."""
        return None if self.seconds is None or index in self.special else self.seconds[index]

    @property
    def end(self) -> float:
        """Seconds of the sound that were encoded."""
        return max((end for _, end in self.seconds or ()), default=0.0)

    def name_of(self, index: int) -> str:
        """`1.20–1.45 s`."""
        stretch = self.stretch(index)
        return super().name_of(index) if stretch is None else f"{stretch[0]:.2f}–{stretch[1]:.2f} s"

    def place_of(self, index: int) -> dict[str, Any]:
        stretch = self.stretch(index)
        return {} if stretch is None else {"seconds": stretch}

    def units(self, options: UnitOptions) -> Units:
        """Stretches; neighbours are put together where there are many."""
        if self.seconds is None:
            raise ValueError("it is not known which seconds of the sound its features are: encode anew")
        groups = merge_neighbours([[index] for index in self.candidates], min(options.most, MAX_STRETCHES))
        seconds = [(self.seconds[run[0]][0], self.seconds[run[-1]][1]) for run in groups]
        places = replace(self, num_features=len(groups), special=[], seconds=seconds, unit="stretches")
        return Units(places, groups)

    def misfit(self, content: bytes) -> str | None:
        try:
            open_sound({"path": self.path, "bytes": content}, max_seconds=self.end)
        except ValueError:
            return "is no sound"
        return None

    def sound(self) -> Sound | None:
        """What was encoded, at the file's own rate; None where it is [`missing`]."""
        return None if self.file is None else open_sound(self.file, max_seconds=self.end)

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], name: str, encoder: Mapping[str, Any], grid: Sequence[int] | None
    ) -> Self:
        places = super().from_row(row, name, encoder, grid)
        places.seconds = [(float(start), float(end)) for start, end in row[f"{name}_seconds"]]
        return places

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "seconds": self.seconds and [list(stretch) for stretch in self.seconds]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        places = super().from_dict(values)
        places.seconds = values["seconds"] and [(start, end) for start, end in values["seconds"]]
        return places


class AudioKind(FileKind):
    """Sounds."""

    name, ending = "audio", ".wav"
    raw_type: ClassVar = {"decode": False, "_type": "Audio"}
    annotation_types: ClassVar = {
        "seconds": {
            "feature": {"feature": {"dtype": "float64", "_type": "Value"}, "length": 2, "_type": "List"},
            "_type": "List",
        }
    }
    can_be_cut = True
    places = AudioPlaces
    packages = ("soundfile", "soxr")
    main_inputs, tower, main_tensor = ("input_values", "input_features"), "audio_config", "num_samples"
    default_options: ClassVar = {"max_seconds": 30.0, "frames_per_feature": 1}

    def cell(self, value: Any) -> dict[str, Any]:
        if isinstance(value, (str, Path)):
            return {"path": str(value), "bytes": None}
        if isinstance(value, Mapping) and value.get("array") is None:
            return {"path": value.get("path"), "bytes": value.get("bytes")}
        sound, stream = open_sound(value), io.BytesIO()
        # AU: a WAV of floats would hold the time at which it is written
        import_soundfile().write(stream, sound.samples, sound.rate, format="AU", subtype="FLOAT")
        return {"path": None, "bytes": stream.getvalue()}

    def annotation_cells(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": [list(stretch) for stretch in annotation["seconds"]]}

    def cut_share(self, annotation: Mapping[str, Any]) -> float | None:
        encoded, total = annotation["encoded"], annotation["total"]
        return 1 - encoded / total if total - encoded > 1e-3 else None  # resampling may lose part of a sample

    def create_encoder(
        self, model: nn.Module, common: tuple[Any, ...], load: Callable[..., Any], options: Mapping[str, Any], name: str
    ) -> FrozenAudioEncoder:
        check_options(**options)
        import_soundfile(), import_soxr()
        extractor = load(AutoFeatureExtractor, "preprocessor_config.json")
        if not isinstance(getattr(extractor, "sampling_rate", None), int):
            raise ValueError(f"encoder {name!r}: its feature extractor ({type(extractor).__name__}) is none of sounds")
        extractor_class(type(extractor).__name__)  # from which it is made again
        return FrozenAudioEncoder(*common, extractor=extractor, **options)

    def options_of(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {name: identity["preprocessing"][name] for name in self.default_options}

    def pin(self, encoder: FrozenEncoder, identity: Mapping[str, Any], modality: str) -> None:
        encoder.preprocess = AudioPreprocessor.from_identity(identity["preprocessing"])

    def load_preprocessor(
        self, identity: Mapping[str, Any], modality: str, load: Callable[..., Any]
    ) -> AudioPreprocessor:
        return AudioPreprocessor.from_identity(identity["preprocessing"])  # nothing is fetched

    def open(self, value: Any) -> Sound:
        return open_sound(fetch(value))

    def is_batch(self, value: Any) -> bool:
        """Samples of a sound and their rate, `(array, rate)`, are one value."""
        is_pair = isinstance(value, tuple) and len(value) == 2 and any(isinstance(x, Number) for x in value)
        return not is_pair and super().is_batch(value)

    def describe_preprocessing(self, identity: Mapping[str, Any]) -> str:
        preprocessing = identity["preprocessing"]
        rate = preprocessing["feature_extractor"]["sampling_rate"]
        seconds = preprocessing["max_samples"] / rate
        return f"Sounds are made one channel of {rate:,} samples a second, and cut after {seconds:g} s."


def check_options(max_seconds: float, frames_per_feature: int) -> None:
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, (int, float)) or not 0 < max_seconds < math.inf:
        raise ValueError(f"max_seconds={max_seconds!r} must be a number of seconds above 0")
    if isinstance(frames_per_feature, bool) or not isinstance(frames_per_feature, int) or frames_per_feature < 1:
        raise ValueError(f"frames_per_feature={frames_per_feature!r} must be a whole number, at least 1")
