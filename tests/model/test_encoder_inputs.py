import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fl_i2moe.model.kind_image import ImagePreprocessor, open_image
from fl_i2moe.model.kind_text import TextPreprocessor

SQUARE = {"height": 32, "width": 32}


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def transparent_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return encode(image, "PNG", transparency=1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(Image.new("L", (2, 1), 100), "PNG"), [(100, 100, 100)] * 2),
        (encode(Image.new("1", (2, 1), 1), "PNG"), [(255, 255, 255)] * 2),
        (encode(Image.new("LA", (2, 1), (0, 0)), "PNG"), [(255, 255, 255)] * 2),
        (encode(Image.new("RGBA", (2, 1), (255, 0, 0, 51)), "PNG"), [(255, 204, 204)] * 2),
        (transparent_palette(), [(255, 0, 0), (255, 255, 255)]),
        (encode(Image.fromarray(np.array([[0, 257 * 80]], np.uint16)), "PNG"), [(0, 0, 0), (80, 80, 80)]),
        (encode(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "JPEG"), [(255, 0, 0)] * 2),
    ],
    ids=["grey", "black-white", "grey-alpha", "rgba", "palette-transparent", "16-bit", "cmyk"],
)
def test_open_image_modes(content, expected):
    image = open_image({"path": None, "bytes": content})
    assert image.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(image)[0]] == expected


def test_open_image_takes_paths_pictures_and_arrays(tmp_path):
    picture = noise(5, 4)
    picture.save(tmp_path / "a.png")
    for value in (tmp_path / "a.png", str(tmp_path / "a.png"), {"path": str(tmp_path / "a.png"), "bytes": None}):
        np.testing.assert_array_equal(np.asarray(open_image(value)), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(open_image(np.asarray(picture))), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(open_image(picture)), np.asarray(picture))


def test_open_image_turns_as_exif_says(tmp_path):
    picture = Image.new("RGB", (6, 4))
    picture.paste((255, 255, 255), (0, 0, 6, 2))  # white on top
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to display"
    picture.save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(open_image(tmp_path / "a.png"))[..., 0]
    assert turned.shape == (6, 4)
    assert (turned == np.array([0, 0, 255, 255])).all()  # the top is now on the right


JPEG = encode(noise(64, 64), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify|empty"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encode(noise(64, 64), "PNG")[:3000], "truncated"),
        (b"<html>not found</html>", "cannot identify"),
        (encode(Image.new("F", (2, 2)), "TIFF"), "32 bits"),
        (None, "missing"),
    ],
    ids=["empty", "half-jpeg", "half-png", "html", "float", "missing"],
)
def test_open_image_names_a_bad_file_and_the_reason(tmp_path, content, reason):
    path = tmp_path / "poster.jpeg"
    if content is not None:
        path.write_bytes(content)
    for value in (str(path), {"path": str(path), "bytes": None}):
        with pytest.raises(ValueError, match=rf"poster\.jpeg: cannot be read as a picture: .*({reason})"):
            open_image(value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [64 * 64 - 1, 64 * 64 // 3])  # Pillow warns at the first, refuses at the second
def test_open_image_refuses_a_bomb(tmp_path, monkeypatch, limit):
    (tmp_path / "bomb.jpeg").write_bytes(JPEG)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"bomb\.jpeg: cannot be read as a picture: .*pixels"):
        open_image(tmp_path / "bomb.jpeg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    assert open_image(tmp_path / "bomb.jpeg").size == (64, 64)


PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "vit": ViTImageProcessorPil(),
    "vit-nearest": ViTImageProcessorPil(resample=0, do_normalize=False),
    "efficientnet": EfficientNetImageProcessorPil(),
    "efficientnet-offset": EfficientNetImageProcessorPil(
        rescale_offset=True, rescale_factor=1 / 127.5, include_top=False
    ),
    "efficientnet-crop": EfficientNetImageProcessorPil(do_center_crop=True),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "convnext-384": ConvNextImageProcessorPil(),
}


def final_pixels(preprocess, images):
    return preprocess(images).inputs["pixels"].numpy() * np.float32(preprocess.scale) + np.float32(preprocess.offset)


@pytest.mark.parametrize("name", PROCESSORS)
def test_crop_equals_the_image_processor(name):
    images = [noise(300, 431), noise(391, 260, seed=1)]
    expected = PROCESSORS[name](images, return_tensors="pt")["pixel_values"].permute(0, 2, 3, 1).numpy()
    preprocess = ImagePreprocessor.from_processor(PROCESSORS[name], None, "crop", name)
    np.testing.assert_allclose(final_pixels(preprocess, images), expected, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in PROCESSORS if not name.startswith("convnext")])
def test_whole_equals_the_image_processor_without_its_crop(name):
    images = [noise(300, 431), noise(391, 260, seed=1)]
    processor = PROCESSORS[name]
    size = dict(processor.crop_size if processor.do_center_crop else processor.size)
    expected = processor(images, size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]
    preprocess = ImagePreprocessor.from_processor(processor, None, "whole", name)
    np.testing.assert_allclose(final_pixels(preprocess, images), expected.permute(0, 2, 3, 1).numpy(), atol=2e-5)


def test_geometry_is_the_region_that_the_grid_covers():
    sizes = [(100, 150), (300, 100), (64, 64)]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    values = [noise(*size) for size in sizes]
    whole = ImagePreprocessor.from_processor(processor, None, "whole", "x")(values).annotations
    crop = ImagePreprocessor.from_processor(processor, None, "crop", "x")(values).annotations
    names = ("width", "height", "left", "top", "right", "bottom")
    assert [tuple(g[name] for name in names) for g in whole] == [(w, h, 0, 0, w, h) for w, h in sizes]
    assert [tuple(g[name] for name in names) for g in crop] == [
        (100, 150, 0, 25, 100, 125),
        (300, 100, 100, 0, 200, 100),
        (64, 64, 0, 0, 64, 64),
    ]


def test_a_processor_that_does_more_is_refused():
    flips_channels = MobileViTImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    with pytest.raises(ValueError, match=r"'mobilevit'.*MobileViTImageProcessorPil.*does more"):
        ImagePreprocessor.from_processor(flips_channels, None, "whole", "mobilevit")


def test_slow_tokenizers_are_refused():
    with pytest.raises(ValueError, match="slow tokenizer"):
        TextPreprocessor.from_tokenizer(SimpleNamespace(is_fast=False), nn.Identity(), None, True, "x")
