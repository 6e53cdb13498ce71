"""
Pictures: read as they are displayed, resized, encoded as patches, and found again as boxes in their pixels.

Shape letters: B samples, D encoder width, C colour channels, H and W pixel rows and columns.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn
from transformers import AutoImageProcessor

from .kind import EncodedFeatures, FrozenEncoder, Preprocessed
from .kind_file import FileKind, FilePlaces, fetch
from .patch_dropping import encode_without
from .patch_layout import find_patch_layout
from .places import UnitOptions, Units

GEOMETRY = ("width", "height", "left", "top", "right", "bottom")
RESIZES = ("whole", "crop")

DROPPED = "dropped"
"""Name among the encoder's inputs of a mask (B, L), true for positions of its output that are taken out."""

LONG = 20
"""Longer side by shorter from which only what a crop keeps is resized."""

TOO_LONG = 100
"""Longer side by shorter from which a crop, a hundredth of the picture, is refused."""

_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture."""


def open_image(value: Any) -> Image.Image:
    """Opens a picture as 8-bit RGB, as it is displayed: EXIF rotation applied, transparency on white.

    Args:
        value: a path, a `PIL.Image`, a uint8 array (H, W) or (H, W, 3 or 4), or the dictionary of an undecoded
            `datasets.Image`: `{"path": ..., "bytes": ...}`.

    Raises:
        ValueError: the file is missing, empty, truncated, no picture, has no pixels, or more than
            `PIL.Image.MAX_IMAGE_PIXELS`; the message names the file and the reason.
    """
    content = None
    if isinstance(value, Mapping):
        content, source = value.get("bytes"), value.get("path")
        name = source or "a picture given as bytes"
    else:
        source, name = value, value if isinstance(value, (str, Path)) else f"a picture given as {type(value).__name__}"
    try:
        if content is not None:
            source = io.BytesIO(content)
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
    except Exception as error:  # Pillow's readers of some fifty formats run into errors of any type
        reason = "the file is missing" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise ValueError(
            f"{name}: cannot be read as a picture: {reason.rstrip('.')}. Replace or leave out this picture."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    turn = _TURNS.get(_orientation(image))
    image = image.copy() if turn is None else image.transpose(turn)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); convert it to 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    """As EXIF has it. (`ImageOps.exif_transpose` writes the rest of EXIF anew, too, and fails where it is damaged.)"""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF that nobody can read turns no picture, in no viewer
        return None


@dataclass(frozen=True)
class ImagePreprocessor:
    """Pictures to uint8 pixels (B, H, W, C) of the encoder's input size. An annotation is `width` and `height` of the
    picture as displayed (EXIF rotation applied) and `left`, `top`, `right`, `bottom`, its region that the grid covers.

    Only the resizing happens here. What follows is affine per channel, `pixels * scale + offset`, and costs less on the
    device (`FrozenImageEncoder.encode`).

    Args:
        input_size: rows and columns of the encoder's input.
        resize_to: rows and columns to resize to before the centre crop, or the length of the shorter edge.
        resample: a `PIL.Image.Resampling`.
        scale, offset: one value per channel.

    A call raises `ValueError` where a picture cannot be read, or is too thin to be cut to its centre.
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
        if isinstance(self.resize_to, int) and max(image.size) >= LONG * min(image.size):
            across, down = image.width / cols, image.height / rows
            # the same but for 1 of 255 in a few pixels: Pillow has boxes in 32-bit numbers
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            pixels = np.asarray(image.resize((width, height), self.resample, box))
        else:
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
        if longer >= TOO_LONG * shorter:
            raise ValueError(
                f"a picture of {image.width} x {image.height} pixels is too thin to be cut to its centre, less than a "
                "hundredth of it; cut it yourself, or give its encoder resize='whole' (--image_resize whole)"
            )
        other = int(self.resize_to * longer / shorter)
        return (other, self.resize_to) if image.width <= image.height else (self.resize_to, other)

    @classmethod
    def from_processor(cls, processor: Any, config: Any, resize: str, name: str) -> ImagePreprocessor:
        """Reads off a Hugging Face image processor what it does to a picture.

        Args:
            processor: an image processor of the PIL backend.
            config: the model's, asked for `image_size` where the processor has no fixed size.
            resize: `"whole"` or `"crop"`, see `load_encoder`.
            name: of the encoder, for messages.

        Raises:
            ValueError: the processor does more than resize, centre crop, rescale and normalise.
        """
        input_size = _input_size(processor, config, name)
        resize_to = input_size if resize == "whole" else _size_before_crop(processor, input_size)
        as_is = {"do_resize": False, "do_center_crop": False}
        black, white = (_process(processor, np.full((*input_size, 3), level, np.uint8), as_is) for level in (0, 255))
        offset = black[0, 0].astype(np.float64)
        scale = (white[0, 0] - offset) / 255
        resample = Image.Resampling.BILINEAR if processor.resample is None else processor.resample
        preprocessor = cls(input_size, resize_to, int(resample), tuple(scale.tolist()), tuple(offset.tolist()))

        shape = input_size if resize == "whole" else (171, 233)
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = _process(processor, noise, as_is if resize == "whole" else {})
        found = preprocessor([noise]).inputs["pixels"][0].numpy() * scale + offset
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3):
            raise ValueError(
                f"encoder {name!r}: resize={resize!r} cannot follow its image processor "
                f"({type(processor).__name__}), which does more than resize, centre crop, rescale and normalise"
            )
        return preprocessor

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> ImagePreprocessor:
        """The inverse of [`identity`]."""
        resize_to = identity["resize_to"]
        return cls(
            input_size=tuple(identity["input_size"]),
            resize_to=resize_to if isinstance(resize_to, int) else tuple(resize_to),
            resample=identity["resample"],
            scale=tuple(identity["scale"]),
            offset=tuple(identity["offset"]),
        )

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


class FrozenImageEncoder(FrozenEncoder):
    """Pictures → patches in reading order, see [`find_patch_layout`]; special features (CLS, registers) stay where
    they are."""

    kind = "image"
    preprocess: ImagePreprocessor
    removals: Mapping[str, str] = {
        "mean": "painted in the picture's mean colour",
        "blur": "blurred beyond recognition",
        "drop": "taken out of the encoder's sequence",
    }

    def __init__(self, *args: Any, preprocess: ImagePreprocessor):
        super().__init__(*args)
        self.preprocess = preprocess
        patch_size = getattr(self.model.config, "patch_size", None)
        self.layout = find_patch_layout(
            lambda pixels: self._hidden_state(self._pixel_values(pixels)),
            preprocess.input_size,
            patch_size if isinstance(patch_size, int) else None,
            self._origin["name"],
        )
        self.grid, self.feature_size = self.layout.grid, self.layout.feature_size
        left_out = len(self.layout.special) if self.special_features == "drop" else 0
        self.max_features = len(self.layout.order) - left_out
        self._is_tried = True

    def identity(self) -> dict[str, Any]:
        # Versions that took the usual layout for granted gave such encoders' features other places.
        return super().identity() | ({} if self.layout.is_usual else {"patches": "found by painting"})

    def _pixel_values(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        scale, offset = (
            torch.tensor(values, device=self.device) for values in (self.preprocess.scale, self.preprocess.offset)
        )
        return {"pixel_values": (pixels_BHWC.to(self.device) * scale + offset).permute(0, 3, 1, 2).to(self.dtype)}

    def _encode(self, inputs: dict[str, Tensor]) -> EncodedFeatures:
        pixel_values = self._pixel_values(inputs["pixels"])
        if DROPPED in inputs:
            hidden = encode_without(self.model, pixel_values, self._hidden_state, ~inputs[DROPPED], self._title)
        else:
            hidden = self._hidden_state(pixel_values)
        features = self.layout.arrange(hidden)
        feature_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=self.device)
        special_mask = torch.zeros_like(feature_mask)
        special_mask[:, list(self.layout.special)] = True
        return EncodedFeatures(features, feature_mask, special_mask)

    def _remove(self, inputs: dict[str, Tensor], kept: Tensor, removal: str) -> dict[str, Tensor]:
        layout, pixels = self.layout, inputs["pixels"]
        is_special = torch.zeros(len(kept), len(layout.order), dtype=torch.bool, device=kept.device)
        is_special[:, list(layout.special)] = True
        kept = self._kept_positions(kept, is_special)
        if removal == "drop":
            positions = torch.tensor(layout.order, device=kept.device).expand_as(kept)
            return inputs | {DROPPED: ~torch.ones_like(kept).scatter(1, positions, kept)}
        (rows, columns), (height, width) = layout.grid, pixels.shape[1:3]
        cells = kept[~is_special].view(-1, rows, columns)
        down, across = (torch.arange(n, device=kept.device) * k // n for n, k in ((height, rows), (width, columns)))
        is_kept = cells[:, down][:, :, across].unsqueeze(-1)
        channels_first = pixels.float().permute(0, 3, 1, 2)
        size = 1 if removal == "mean" else layout.grid
        instead = nn.functional.adaptive_avg_pool2d(channels_first, size)
        instead = nn.functional.interpolate(instead, (height, width), mode="bilinear").round()
        return inputs | {"pixels": pixels.where(is_kept, instead.permute(0, 2, 3, 1).to(pixels.dtype))}


@dataclass
class ImagePlaces(FilePlaces):
    """A picture, and its grid of patches."""

    kind: ClassVar[str] = "image"
    feature_noun: ClassVar[str] = "patches"
    sense: ClassVar[str] = "see"

    size: tuple[int, int] | None = None
    """Width and height."""

    grid: tuple[int, int] | None = None
    """Rows and columns of patches."""

    region: Box | None = None
    """The part of the picture that the grid covers."""

    @property
    def is_placed(self) -> bool:
        return self.grid is not None

    def cell(self, index: int) -> tuple[int, int] | None:
        """Row and column of a patch, from 0; None where there is no grid or the feature is special."""
        if self.grid is None or index in self.special:
            return None
        place = index - sum(special < index for special in self.special)
        return divmod(place, self.grid[1])

    def box(self, index: int) -> Box | None:
        """The patch in pixels of the picture; what reaches out of the picture (padding) is cut off, and of a patch that
        lies outside nothing is left but an edge."""
        cell = self.cell(index)
        if cell is None or self.region is None or self.size is None:
            return None
        (rows, columns), (left, top, right, bottom) = self.grid, self.region
        width, height = (right - left) / columns, (bottom - top) / rows
        x, y = left + cell[1] * width, top + cell[0] * height
        xs, ys = (
            [min(max(0.0, edge), float(limit)) for edge in edges]
            for edges, limit in zip(((x, x + width), (y, y + height)), self.size, strict=True)
        )
        return xs[0], ys[0], xs[1], ys[1]

    def name_of(self, index: int) -> str:
        """`row 2, column 3`."""
        cell = self.cell(index)
        return super().name_of(index) if cell is None else f"row {cell[0] + 1}, column {cell[1] + 1}"

    def place_of(self, index: int) -> dict[str, Any]:
        box = self.box(index)
        return {} if box is None else {"box": box}

    def units(self, options: UnitOptions) -> Units:
        """Patches, or coarser cells, each with the patches whose centre lies in it."""
        if self.grid is None:
            raise ValueError("it is not known where the patches of the picture lie: encode anew")
        (rows, columns), most = self.grid, options.most
        down, across = options.cells or self.grid
        if down > rows or across > columns:
            raise ValueError(f"the encoder sees {rows} x {columns} patches; {down} x {across} cells are finer")
        while down * across > most:
            down, across = -(-down // 2), -(-across // 2)
        groups: list[list[int]] = [[] for _ in range(down * across)]
        for index in self.candidates:
            row, column = self.cell(index) or (0, 0)
            groups[_part(row, rows, down) * across + _part(column, columns, across)].append(index)
        places = replace(self, num_features=len(groups), special=[], grid=(down, across), unit="cells")
        return Units(places, groups)

    def misfit(self, content: bytes) -> str | None:
        try:
            size = open_image({"path": self.path, "bytes": content}).size
        except ValueError:
            return "is no picture"
        return None if size == self.size else "changed"

    def picture(self, longest_side: int | None = None) -> Image.Image | None:
        """The picture that was encoded, in RGB, at most `longest_side` pixels long; None where it is [`missing`]."""
        if self.file is None:
            return None
        picture = open_image(self.file)
        if longest_side and max(picture.size) > longest_side:
            picture.thumbnail((longest_side, longest_side))
        return picture

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], name: str, encoder: Mapping[str, Any], grid: Sequence[int] | None
    ) -> Self:
        places, geometry = super().from_row(row, name, encoder, grid), row[f"{name}_geometry"]
        num_patches = len(places.candidates)
        grid = grid or _guess_grid(num_patches, (encoder.get("preprocessing") or {}).get("input_size"))
        places.size = geometry["width"], geometry["height"]
        places.grid = (grid[0], grid[1]) if grid and grid[0] * grid[1] == num_patches else None
        left, top, right, bottom = (float(geometry[side]) for side in ("left", "top", "right", "bottom"))
        places.region = (left, top, right, bottom)
        return places

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        places = super().from_dict(values)
        for name in ("size", "grid", "region"):
            setattr(places, name, values[name] and tuple(values[name]))
        return places


class ImageKind(FileKind):
    """Pictures."""

    name, ending = "image", ".jpg"
    raw_type: ClassVar = {"decode": False, "_type": "Image"}
    annotation_types: ClassVar = {"geometry": {key: {"dtype": "int32", "_type": "Value"} for key in GEOMETRY}}
    places = ImagePlaces
    main_inputs, tower, main_tensor = ("pixel_values",), "vision_config", "pixels"
    default_options: ClassVar = {"resize": "whole"}

    def cell(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, (str, Path)):
            return {"path": str(value), "bytes": None}
        stream = io.BytesIO()
        open_image(value).save(stream, "PNG")
        return {"path": None, "bytes": stream.getvalue()}

    def annotation_cells(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        return {"geometry": {key: annotation[key] for key in GEOMETRY}}

    def create_encoder(
        self, model: nn.Module, common: tuple[Any, ...], load: Callable[..., Any], options: Mapping[str, Any], name: str
    ) -> FrozenImageEncoder:
        if options["resize"] not in RESIZES:
            raise ValueError(f"resize={options['resize']!r} is unknown; choose one of {', '.join(RESIZES)}")
        processor = load(AutoImageProcessor, "preprocessor_config.json", backend="pil")
        try:
            preprocess = ImagePreprocessor.from_processor(processor, model.config, options["resize"], name)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"encoder {name!r}: its image processor ({type(processor).__name__}) gives no picture of a fixed size; "
                f"use another encoder. The reason: {type(error).__name__}: {error}"
            ) from error
        return FrozenImageEncoder(*common, preprocess=preprocess)

    def options_of(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        preprocessing = identity["preprocessing"]
        return {"resize": "crop" if preprocessing["resize_to"] != preprocessing["input_size"] else "whole"}

    def pin(self, encoder: FrozenEncoder, identity: Mapping[str, Any], modality: str) -> None:
        encoder.preprocess = ImagePreprocessor.from_identity(identity["preprocessing"])

    def load_preprocessor(
        self, identity: Mapping[str, Any], modality: str, load: Callable[..., Any]
    ) -> ImagePreprocessor:
        return ImagePreprocessor.from_identity(identity["preprocessing"])  # nothing is fetched

    def is_batch(self, value: Any) -> bool:
        return (isinstance(value, np.ndarray) and value.ndim == 4) or super().is_batch(value)

    def open(self, value: Any) -> Image.Image:
        return open_image(fetch(value))

    def describe_preprocessing(self, identity: Mapping[str, Any]) -> str:
        height, width = identity["preprocessing"]["input_size"]
        whole = self.options_of(identity)["resize"] == "whole"
        how = "resized whole, which changes their proportions" if whole else "resized and cut to their centre"
        return f"Pictures are {how}; the encoder sees {height} × {width} pixels."


def _part(place: int, size: int, parts: int) -> int:
    """Which of so many equal parts the middle of a place lies in."""
    return (2 * place + 1) * parts // (2 * size)


def _guess_grid(num_patches: int, input_size: Sequence[int] | None) -> tuple[int, int] | None:
    """The grid whose patches are square in the encoder's input."""
    if not input_size or not num_patches:
        return None
    height, width = input_size
    rows = math.isqrt(num_patches * height // width)
    return (rows, num_patches // rows) if rows and rows * rows * width == num_patches * height else None
