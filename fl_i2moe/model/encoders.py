"""A frozen Hugging Face encoder turns pictures or texts into feature sequences.

`load_encoder` gives a [`FrozenEncoder`] with two steps:

- `encoder.preprocess(values)`: raw values → small CPU tensors and what explanations need to know (`encoder_inputs.py`);
- `encoder.encode(inputs)`: those tensors → features, on the encoder's device, without gradients.

Shape letters: B samples, T features of a sequence, D encoder width, C colour channels, H and W pixel rows and columns.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils.hub import resolve_revision

from .encoder_inputs import ImagePreprocessor, Preprocessed, TextPreprocessor, open_image

__all__ = [
    "EncodedFeatures",
    "FrozenEncoder",
    "FrozenImageEncoder",
    "FrozenTextEncoder",
    "Preprocessed",
    "hash_weights",
    "load_encoder",
    "open_image",
]

KINDS = {"image": "pixel_values", "text": "input_ids"}  # kind → the main input of its models
WEIGHTS_FILE = "model.safetensors"


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
        kind: `"image"` or `"text"`.
        preprocess: callable, raw values → [`Preprocessed`]; picklable and without the weights.
        feature_size: D.
        max_features: the longest T, kept special features included.
        grid: (rows, columns) of the image patches, which are in reading order; None for text.
    """

    kind: str
    preprocess: ImagePreprocessor | TextPreprocessor
    feature_size: int
    max_features: int
    grid: tuple[int, int] | None = None

    def __init__(self, model: nn.Module, origin: dict[str, Any], hidden_layer: int | None, special_features: str):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.hidden_layer = hidden_layer
        self.special_features = special_features
        self._origin = origin
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Does nothing: a frozen encoder stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Tensor]) -> EncodedFeatures:
        """Encodes what `preprocess` made of a batch.

        Args:
            inputs: `Preprocessed.inputs`, on any device.
        """
        encoded = self._encode({key: value.to(self.device, non_blocking=True) for key, value in inputs.items()})
        if self.special_features == "drop":
            encoded = _drop_special(encoded)
        encoded.features = encoded.features.masked_fill(~encoded.feature_mask[..., None], 0.0)
        return encoded

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

    def _hidden_state(self, inputs: dict[str, Tensor]) -> Tensor:
        outputs = self.model(**inputs, output_hidden_states=self.hidden_layer is not None)
        if self.hidden_layer is None:
            return outputs.last_hidden_state
        last = len(outputs.hidden_states) - 1
        if not 0 <= self.hidden_layer <= last:
            raise ValueError(
                f"hidden_layer={self.hidden_layer} is out of range: {self._origin['name']} has {last} layers; give 0 "
                f"(the embeddings) to {last}, or None for its last hidden state"
            )
        return outputs.hidden_states[self.hidden_layer]


class FrozenImageEncoder(FrozenEncoder):
    """Pictures → patches. A feature map (B, D, rows, columns) is read row by row; a sequence has its special features
    (CLS, registers) in front."""

    kind = "image"
    preprocess: ImagePreprocessor

    def __init__(self, *args: Any, preprocess: ImagePreprocessor):
        super().__init__(*args)
        self.preprocess = preprocess
        hidden = self._hidden_state(self._pixel_values(torch.zeros(1, *preprocess.input_size, 3, dtype=torch.uint8)))
        self.grid = self._find_grid(hidden)
        self.num_special = 0 if hidden.ndim == 4 else hidden.shape[1] - math.prod(self.grid)
        self.feature_size = hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2]
        self.max_features = math.prod(self.grid) + (self.num_special if self.special_features == "keep" else 0)

    def _find_grid(self, hidden: Tensor) -> tuple[int, int]:
        if hidden.ndim == 4:
            return hidden.shape[2], hidden.shape[3]
        num_features, patch_size = hidden.shape[1], getattr(self.model.config, "patch_size", None)
        if isinstance(patch_size, int):
            rows, cols = (edge // patch_size for edge in self.preprocess.input_size)
            if rows * cols <= num_features:
                return rows, cols
        side = math.isqrt(num_features)  # hierarchical transformers (Swin) merge patches on the way
        if side * side != num_features:
            raise ValueError(
                f"{self._origin['name']}: its {num_features} features are no grid of patches of {patch_size} pixels"
            )
        return side, side

    def _pixel_values(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        scale, offset = (
            torch.tensor(values, device=self.device) for values in (self.preprocess.scale, self.preprocess.offset)
        )
        return {"pixel_values": (pixels_BHWC.to(self.device) * scale + offset).permute(0, 3, 1, 2).to(self.dtype)}

    def _encode(self, inputs: dict[str, Tensor]) -> EncodedFeatures:
        hidden = self._hidden_state(self._pixel_values(inputs["pixels"]))
        features = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        feature_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=self.device)
        special_mask = feature_mask.clone()
        special_mask[:, self.num_special :] = False
        return EncodedFeatures(features, feature_mask, special_mask)


class FrozenTextEncoder(FrozenEncoder):
    """Texts → tokens, with the tokenizer's special tokens (CLS, BOS, SEP) marked."""

    kind = "text"
    preprocess: TextPreprocessor

    def __init__(self, *args: Any, preprocess: TextPreprocessor):
        super().__init__(*args)
        self.preprocess = preprocess
        self.max_features = preprocess.max_features
        self.feature_size = self.encode(preprocess(["a"]).inputs).features.shape[2]

    def _encode(self, inputs: dict[str, Tensor]) -> EncodedFeatures:
        model_inputs = {key: value for key, value in inputs.items() if key != "special_tokens_mask"}
        feature_mask = inputs["attention_mask"].bool()
        return EncodedFeatures(
            self._hidden_state(model_inputs), feature_mask, inputs["special_tokens_mask"].bool() & feature_mask
        )


def _drop_special(encoded: EncodedFeatures) -> EncodedFeatures:
    """Takes special features out of the sequences and closes the gaps."""
    keep = encoded.feature_mask & ~encoded.special_mask
    lengths = keep.sum(1, keepdim=True)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    features = encoded.features.gather(1, order[..., None].expand(-1, -1, encoded.features.shape[2]))
    feature_mask = torch.arange(order.shape[1], device=order.device) < lengths
    return EncodedFeatures(features, feature_mask, torch.zeros_like(feature_mask))


def load_encoder(
    name_or_path: str | Path,
    kind: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    hidden_layer: int | None = None,
    special_features: str = "keep",
    max_length: int | None = None,
    image_resize: str = "whole",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    client_options: Mapping[str, Any] | None = None,
) -> FrozenEncoder:
    """Loads any Hugging Face vision or text model as a frozen encoder.

    Of a two-tower model (CLIP, SigLIP) only the tower of this `kind` is loaded.

    Args:
        name_or_path: a hub id or a local folder with the model (safetensors) and its image processor or tokenizer.
        kind: `"image"` or `"text"`.
        name: what `identity()` calls the encoder, where that is not `name_or_path`.
        revision: branch, tag or commit of a hub model; `identity()` holds the commit it resolved to.
        hidden_layer: None (or -1) is the last hidden state, as in the paper; 0 … L picks from `hidden_states`, where 0
            is the embeddings.
        special_features: `"keep"`, as in the paper, or `"drop"` CLS, BOS, SEP and registers.
        max_length: of texts, in tokens with the special ones. Default: the model's limit, at most 512.
        image_resize: `"whole"` squeezes the whole picture into the input; `"crop"` does the image processor's own
            resizing and centre crop, which loses a third of a poster.
        device, dtype: where and in which precision it computes.
        trust_remote_code: allows a hub model to bring its own code.
        client_options: `token`, `cache_dir`, `local_files_only`, as `from_pretrained` takes them.

    Raises:
        ValueError: the model cannot be found or read, is of the other kind, has no safetensors or lacks weights, has no
            fast tokenizer, or an option does not fit it.
    """
    _check_options(kind, special_features, image_resize, max_length)
    source = _find(name_or_path)
    name = name or str(name_or_path)
    if revision is not None and Path(source).is_dir():
        raise ValueError(f"encoder {name!r} is no hub model: it has no revision {revision!r}, leave it out")
    options = dict(client_options or {})
    resolved = resolve_revision(source, revision, **options)  # the commit it stands for now, where it can be found out
    hub = {"revision": resolved, "trust_remote_code": trust_remote_code, **options}
    config = _load(AutoConfig, "config.json", name, source, **hub)
    model, sha256 = _load_model(name, source, config, kind, dtype=dtype, **hub)
    model.to(device)
    origin = {
        "name": name,
        "revision": getattr(resolved, "resolved", resolved),
        "weights_sha256": sha256,
        "transformers": transformers.__version__,
    }
    arguments = (model, origin, None if hidden_layer == -1 else hidden_layer, special_features)
    if kind == "image":
        processor = _load(AutoImageProcessor, "preprocessor_config.json", name, source, backend="pil", **hub)
        image_preprocess = ImagePreprocessor.from_processor(processor, model.config, image_resize, name)
        return FrozenImageEncoder(*arguments, preprocess=image_preprocess)
    tokenizer = _load(AutoTokenizer, "tokenizer.json", name, source, **hub)
    text_preprocess = TextPreprocessor.from_tokenizer(tokenizer, model, max_length, special_features == "keep", name)
    return FrozenTextEncoder(*arguments, preprocess=text_preprocess)


def hash_weights(model: nn.Module, leave_out: Sequence[str] = ()) -> str:
    """sha256 over the names, shapes, types and bytes of a model's parameters and saved buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in leave_out:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_options(kind: str, special_features: str, image_resize: str, max_length: int | None) -> None:
    for option, value, choices in (
        ("kind", kind, tuple(KINDS)),
        ("special_features", special_features, ("keep", "drop")),
        ("image_resize", image_resize, ("whole", "crop")),
    ):
        if value not in choices:
            raise ValueError(f"{option}={value!r} is unknown; choose one of {', '.join(choices)}")
    if kind == "image" and max_length is not None:
        raise ValueError(f"max_length={max_length} was given for an image encoder; only texts are cut")


def _find(name_or_path: str | Path) -> str:
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if isinstance(name_or_path, Path) or str(name_or_path).startswith((".", "/", "~")) or len(path.parts) > 2:
        raise ValueError(f"encoder folder {name_or_path} does not exist")
    return str(name_or_path)


def _load(auto_class: Any, file: str, name: str, source: str, **kwargs: Any) -> Any:
    try:
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


def _load_model(name: str, source: str, config: Any, kind: str, **kwargs: Any) -> tuple[nn.Module, str]:
    config = getattr(config, {"image": "vision_config", "text": "text_config"}[kind], config)
    options = {"config": config, "use_safetensors": True, "output_loading_info": True, **kwargs}
    model, loading = _load(AutoModel, WEIGHTS_FILE, name, source, **options)
    if getattr(config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if model.main_input_name != KINDS[kind]:
        other = next((other for other, main_input in KINDS.items() if main_input == model.main_input_name), "another")
        raise ValueError(f"encoder {name!r} ({type(model).__name__}) is of kind {other!r}, not {kind!r}")
    # Many checkpoints come without the pooler; it then holds random numbers, which no feature depends on.
    missing = {key for key in loading["missing_keys"] if "pooler" not in key}
    if missing:
        raise ValueError(
            f"encoder {name!r}: its checkpoint lacks {len(missing)} weights of {type(model).__name__}, "
            f"such as {min(missing)}; they would be random"
        )
    return model, hash_weights(model, leave_out=loading["missing_keys"])
