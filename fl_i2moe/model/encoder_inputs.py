"""Raw pictures and texts → the small CPU tensors that a frozen encoder takes.

The preprocessors carry no weights, so that data-loading workers can be sent them.

Shape letters: B samples, T tokens, C colour channels, H and W pixel rows and columns.
"""

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tokenizers
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

DEFAULT_MAX_LENGTH = 512
# What Pillow raises for bytes that are no sound picture.
_PICTURE_ERRORS = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass
class Preprocessed:
    """A preprocessed batch.

    Args:
        inputs: what `encode` takes; every tensor has B rows.
        annotations: one per sample. Image: `width` and `height` of the picture as displayed (EXIF rotation applied)
            and `left`, `top`, `right`, `bottom`, its region in pixels that the grid covers. Text: `offsets`, the
            (start, end) characters of every feature, (0, 0) for a special one; `num_tokens` before the cut, special
            ones included; `truncated`.
    """

    inputs: dict[str, Tensor]
    annotations: list[dict[str, Any]]


def as_batch(value: Any) -> list[Any]:
    """A list of raw values as it is, one value (or an array of several pictures) as a list."""
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 4):
        return list(value)
    return [value]


def open_image(value: Any) -> Image.Image:
    """Opens a picture as 8-bit RGB, as it is displayed: EXIF rotation applied, transparency on white.

    Args:
        value: a path, a `PIL.Image`, a uint8 array (H, W) or (H, W, 3 or 4), or the dictionary of an undecoded
            `datasets.Image`: `{"path": ..., "bytes": ...}`.

    Raises:
        ValueError: the file is missing, empty, truncated, no picture, or larger than `PIL.Image.MAX_IMAGE_PIXELS`; the
            message names the file and the reason.
    """
    if isinstance(value, Mapping):
        source, name = value.get("bytes"), value.get("path") or "a picture given as bytes"
        source = io.BytesIO(source) if source is not None else value.get("path")
    else:
        source, name = value, value if isinstance(value, (str, Path)) else f"a picture given as {type(value).__name__}"
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        if isinstance(source, np.ndarray):
            return _to_rgb(Image.fromarray(source))
        if not isinstance(source, (str, Path, io.BytesIO)):
            raise ValueError("give a path, a PIL image, a uint8 array or {'path': ..., 'bytes': ...}")
        with Image.open(source) as image:
            # Pillow warns from this size on and refuses only twice as much.
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than the {limit} that Pillow deems safe"
                )
            return _to_rgb(image)
    except _PICTURE_ERRORS as error:
        reason = "the file is missing" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise ValueError(
            f"{name}: cannot be read as a picture: {reason.rstrip('.')}. Replace or leave out this picture."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); convert it to 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImagePreprocessor:
    """Pictures to uint8 pixels (B, H, W, C) of the encoder's input size.

    Only the resizing happens here. What a processor does after it is affine per channel, `pixels * scale + offset`, and
    costs less in one go on the device (`FrozenImageEncoder.encode`).

    Args:
        input_size: rows and columns of the encoder's input.
        resize_to: rows and columns to resize to before the centre crop, or the length of the shorter edge.
        resample: a `PIL.Image.Resampling`.
        scale, offset: one value per channel.
    """

    input_size: tuple[int, int]
    resize_to: int | tuple[int, int]
    resample: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, values: Sequence[Any]) -> Preprocessed:
        pixels, annotations = zip(*(self._one(open_image(value)) for value in values), strict=True)
        return Preprocessed({"pixels": torch.from_numpy(np.stack(pixels))}, list(annotations))

    def _one(self, image: Image.Image) -> tuple[np.ndarray, dict[str, int]]:
        (rows, cols), (height, width) = self._resized_size(image), self.input_size
        top, left = (rows - height) // 2, (cols - width) // 2
        pixels = np.asarray(image.resize((cols, rows), self.resample))[top : top + height, left : left + width]
        geometry = {
            "width": image.width,
            "height": image.height,
            "left": round(left * image.width / cols),
            "top": round(top * image.height / rows),
            "right": round((left + width) * image.width / cols),
            "bottom": round((top + height) * image.height / rows),
        }
        return pixels, geometry

    def _resized_size(self, image: Image.Image) -> tuple[int, int]:
        if not isinstance(self.resize_to, int):
            return self.resize_to
        shorter, longer = sorted(image.size)
        other = int(self.resize_to * longer / shorter)
        return (other, self.resize_to) if image.width <= image.height else (self.resize_to, other)

    @classmethod
    def from_processor(cls, processor: Any, config: Any, image_resize: str, name: str) -> "ImagePreprocessor":
        """Reads off a Hugging Face image processor what it does to a picture.

        Args:
            processor: an image processor of the PIL backend.
            config: the model's, asked for `image_size` where the processor has no fixed size.
            image_resize: `"whole"` or `"crop"`, see `load_encoder`.
            name: of the encoder, for messages.

        Raises:
            ValueError: the processor does more than resize, centre crop, rescale and normalise.
        """
        input_size = _input_size(processor, config, name)
        resize_to = input_size if image_resize == "whole" else _size_before_crop(processor, input_size)
        as_is = {"do_resize": False, "do_center_crop": False}
        black, white = (_process(processor, np.full((*input_size, 3), level, np.uint8), as_is) for level in (0, 255))
        offset = black[0, 0].astype(np.float64)
        scale = (white[0, 0] - offset) / 255
        resample = Image.Resampling.BILINEAR if processor.resample is None else processor.resample
        preprocessor = cls(input_size, resize_to, int(resample), tuple(scale.tolist()), tuple(offset.tolist()))

        shape = input_size if image_resize == "whole" else (171, 233)
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = _process(processor, noise, as_is if image_resize == "whole" else {})
        found = preprocessor([noise]).inputs["pixels"][0].numpy() * scale + offset
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3):
            raise ValueError(
                f"encoder {name!r}: image_resize={image_resize!r} cannot follow its image processor "
                f"({type(processor).__name__}), which does more than resize, centre crop, rescale and normalise"
            )
        return preprocessor

    def identity(self) -> dict[str, Any]:
        """What decides the pixels, as plain JSON."""
        return json.loads(json.dumps(asdict(self))) | {"pillow": PIL.__version__}


def _process(processor: Any, image: np.ndarray, options: dict[str, bool]) -> np.ndarray:
    return processor(Image.fromarray(image), return_tensors="pt", **options)["pixel_values"][0].permute(1, 2, 0).numpy()


def _input_size(processor: Any, config: Any, name: str) -> tuple[int, int]:
    size = (processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size) or {}
    if "height" in size:
        return size["height"], size["width"]
    edge = size["shortest_edge"] if "shortest_edge" in size else getattr(config, "image_size", None)
    if not isinstance(edge, int):
        raise ValueError(f"encoder {name!r}: neither its image processor nor its config names one input size ({size=})")
    return edge, edge


def _size_before_crop(processor: Any, input_size: tuple[int, int]) -> int | tuple[int, int]:
    size = processor.size or {}
    if "height" in size:
        return size["height"], size["width"]
    if "shortest_edge" not in size:
        return input_size
    edge = size["shortest_edge"]
    crop_pct = getattr(processor, "crop_pct", None)  # of ConvNext and ResNet, which crop pictures below 384 pixels only
    if crop_pct is None:
        return edge
    return int(edge / crop_pct) if edge < 384 else input_size


@dataclass(frozen=True)
class TextPreprocessor:
    """Texts to token ids, padded on the right to the longest of the batch and cut at `max_length` tokens.

    Args:
        tokenizer: a fast tokenizer (only those know the characters of a token).
        max_length: tokens of a sequence, special ones included.
        keep_special: whether special tokens are features, and so have offsets.
        tokenizer_sha256: of the tokenizer's own description.
    """

    tokenizer: Any
    max_length: int
    keep_special: bool
    tokenizer_sha256: str

    def __call__(self, values: Sequence[str]) -> Preprocessed:
        for value in values:
            _check_text(value)
        batch = self.tokenizer(
            list(values),
            max_length=self.max_length,
            truncation=True,
            padding=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        offsets = batch.pop("offset_mapping").tolist()
        annotations = [self._annotate(encoding, row) for encoding, row in zip(batch.encodings, offsets, strict=True)]
        return Preprocessed(dict(batch), annotations)

    def _annotate(self, encoding: Any, offsets: list[list[int]]) -> dict[str, Any]:
        # What truncation cut off follows in `overflowing`, each part with special tokens of its own.
        cut_off = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
        special, real = encoding.special_tokens_mask, encoding.attention_mask
        kept = [i for i in range(len(real)) if real[i] and (self.keep_special or not special[i])]
        if not kept:
            raise ValueError("a text has no tokens but special ones, which special_features='drop' leaves out")
        return {
            "offsets": [(0, 0) if special[i] else tuple(offsets[i]) for i in kept],
            "num_tokens": sum(real) + cut_off,
            "truncated": cut_off > 0,
        }

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, model: nn.Module, max_length: int | None, keep_special: bool, name: str
    ) -> "TextPreprocessor":
        """Checks a tokenizer and the length asked for.

        Args:
            tokenizer: of the model.
            model: the text model, whose positions limit the length.
            max_length: tokens of a sequence; None for the limit, at most 512.
            keep_special: see the class.
            name: of the encoder, for messages.

        Raises:
            ValueError: a slow or empty tokenizer, or a `max_length` that the encoder does not take.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"encoder {name!r}: {type(tokenizer).__name__} is a slow tokenizer and cannot tell which characters a "
                "token covers; use an encoder with a fast tokenizer (tokenizer.json)"
            )
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers builds an empty one where files are missing
            raise ValueError(f"encoder {name!r}: its tokenizer has no vocabulary; is tokenizer.json missing?")
        limit = min(tokenizer.model_max_length, _position_limit(model))
        num_special = tokenizer.num_special_tokens_to_add(pair=False)
        if max_length is None:
            max_length = min(limit, DEFAULT_MAX_LENGTH)
        if not num_special < max_length <= limit:
            raise ValueError(
                f"max_length={max_length} does not fit encoder {name!r}: it takes {num_special + 1} to {limit} tokens, "
                f"{num_special} special ones included"
            )
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return cls(tokenizer, max_length, keep_special, hash_tokenizer(tokenizer))

    @property
    def max_features(self) -> int:
        """The longest sequence that comes out."""
        return self.max_length - (0 if self.keep_special else self.tokenizer.num_special_tokens_to_add(pair=False))

    def identity(self) -> dict[str, Any]:
        """What decides the token ids besides `max_length`, as plain JSON."""
        return {"tokenizer_sha256": self.tokenizer_sha256, "tokenizers": tokenizers.__version__}


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"a text must be a string, got {type(value).__name__}: {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is no valid Unicode at character {error.start}: {value!r:.80}") from error


def _position_limit(model: nn.Module) -> int:
    """The longest sequence the model has positions for; RoBERTa and its kin count from behind the padding index."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2].startswith("position_embedding"):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None) or 10**9  # relative positions have no limit


def hash_tokenizer(tokenizer: Any) -> str:
    """sha256 of a fast tokenizer's description of itself."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    settings_of_a_call = ("truncation", "padding")
    return hashlib.sha256(
        json.dumps({key: state[key] for key in state if key not in settings_of_a_call}, sort_keys=True).encode()
    ).hexdigest()
