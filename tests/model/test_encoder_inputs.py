import io
import pickle
import random
import struct
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import transformers as hf
from PIL import Image, ImageOps
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fl_i2moe.model.kind_image import ImagePreprocessor, open_image
from fl_i2moe.model.kind_text import TextPreprocessor, hash_tokenizer

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


def exif_of(*entries, data=b""):
    """A directory of (tag, type, count, 4 bytes), and what lies behind it."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + data


TURN = (0x0112, 3, 1, b"\x06\0\0\0")  # to be turned a quarter clockwise
BEHIND = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # where data of two entries lie


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (exif_of(TURN, (0x9204, 10, 1, BEHIND), data=struct.pack("<ii", -1, 0)), (40, 30)),  # exposure bias -1/0
        (exif_of(TURN, (0x011A, 5, 1, BEHIND), data=bytes(8)), (40, 30)),
        (exif_of(TURN, (0x8825, 4, 1, b"\xff\xff\0\0")), (40, 30)),  # a directory behind the end
        (exif_of(TURN, (0x010E, 2, 2**31, BEHIND)), (40, 30)),
        (exif_of(TURN, (0x9999, 77, 1, bytes(4))), (40, 30)),
        (exif_of((0x0112, 3, 1, b"\x09\0\0\0")), (30, 40)),
        (exif_of((0x0112, 2, 2, b"6\0\0\0")), (30, 40)),
        (b"no exif at all", (30, 40)),
        (b"II*\0", (30, 40)),
    ],
    ids=["1/0", "0/0", "gps", "huge", "type", "turn-9", "turn-text", "garbage", "head"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_refuses_no_picture(exif, size, format):
    exif = b"Exif\0\0" * (format == "JPEG") + exif
    assert open_image({"path": None, "bytes": encode(noise(30, 40), format, exif=exif)}).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_as_pillow_turns_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(noise(30, 40), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(open_image({"path": None, "bytes": content})), np.asarray(expected))


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


def saved(format, mode):
    try:
        return encode(noise(24, 20).convert(mode), format)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # not a mode, or not a format that is written
        return b""


def test_damaged_pictures_of_every_format_are_named():
    """Cut, flipped and shortened anywhere, whatever Pillow raises."""
    Image.init()
    contents = [x for format in sorted(Image.SAVE) for mode in ("RGB", "L", "P", "RGBA") if (x := saved(format, mode))]
    assert len(contents) > 40
    rng, num_bad = random.Random(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in contents:
            for _ in range(6):
                damaged = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
                for _ in range(rng.randrange(1, 4) if damaged else 0):
                    damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
                try:
                    open_image({"path": "a.picture", "bytes": bytes(damaged)})
                except ValueError as error:
                    num_bad += str(error).startswith("a.picture: cannot be read as a picture: ")
    assert num_bad > len(contents)


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyError, IndexError, AttributeError, MemoryError, NotImplementedError, ZeroDivisionError]
)
def test_whatever_pillow_raises_is_a_bad_picture(monkeypatch, error):
    def load(image):
        raise error

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ValueError, match=rf"numbers: cannot be read as a picture: {error.__name__}"):
        open_image({"path": "numbers", "bytes": JPEG})


@pytest.mark.parametrize(
    "value",
    [
        *(np.zeros(shape, np.uint8) for shape in ((0, 5, 3), (5, 0, 3), (0, 0))),
        *({"path": "a.png", "bytes": content} for content in ("text", [1, 2], 5)),
    ],
)
def test_what_is_no_picture_is_refused(value):
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        open_image(value)


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


CLIP = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE)


@pytest.mark.parametrize(("size", "largest"), [((597, 30), 0), ((30, 597), 0), ((600, 30), 1), ((9, 890), 1)])
def test_of_long_pictures_only_what_is_kept_is_resized(monkeypatch, size, largest):
    expected = CLIP([noise(*size)], do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    preprocess = ImagePreprocessor.from_processor(CLIP, None, "crop", "x")
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, *args: sizes.append(args[0]) or resize(image, *args))
    found = preprocess([noise(*size)]).inputs["pixels"].permute(0, 3, 1, 2).numpy()
    assert abs(found.astype(int) - expected).max() <= largest  # levels of 255
    assert max(sizes[0]) < 40 * 20


@pytest.mark.parametrize("size", [(10000, 3), (3, 10000), (65000, 1), (1, 100), (400, 4)])
def test_a_picture_too_thin_to_crop_is_a_bad_one(size):
    crop, whole = (ImagePreprocessor.from_processor(CLIP, None, resize, "x") for resize in ("crop", "whole"))
    picture = Image.new("RGB", size)
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels is too thin .*--image_resize whole"):
        crop([noise(5, 5), picture])
    assert whole([picture]).annotations[0]["width"] == size[0]


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


def word_piece():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "[", "]", "sep", "mask"]
    model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    return model, normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer(), ("[CLS]", "[SEP]"), names


def unigram():
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u2581a", "\u2581b", "\u2581", *"<>/smak"]
    model = models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=3)
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return model, normalizers.Lowercase(), pre_tokenizers.Metaspace(), ("<s>", "</s>"), names


def word_level():
    model = models.WordLevel(
        {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", "a", "b", "<", "/s>"])}, "<unk>"
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return model, normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit(), ("<s>", "</s>"), names


def byte_pairs():
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [])
    return (
        model,
        normalizers.NFC(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        None,
        {"eos_token": "<|endoftext|>"},
    )


@pytest.mark.parametrize("make", [word_piece, unigram, word_level, byte_pairs])
def test_control_tokens_in_a_text_are_text(make):
    model, normalizer, pre_tokenizer, around, names = make()
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    if around:
        ends = [(token, backend.token_to_id(token)) for token in around]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{around[0]} $A {around[1]}", special_tokens=ends
        )
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)
    sha256, plain = hash_tokenizer(tokenizer), tokenizer(["a b", "b"])["input_ids"]
    model = nn.Identity()
    model.config = SimpleNamespace()
    preprocess = TextPreprocessor.from_tokenizer(tokenizer, model, None, True, "x")
    assert preprocess.tokenizer_sha256 == sha256
    assert [
        row[: len(ids)] for row, ids in zip(preprocess(["a b", "b"]).inputs["input_ids"].tolist(), plain, strict=True)
    ] == plain

    control = [token for key, token in names.items() if key != "unk_token"]
    text = "a " + " b".join(control) + " a"
    for reader in (preprocess, pickle.loads(pickle.dumps(preprocess))):
        batch = reader([text])
        ends = 1 if around else 0
        ids = batch.inputs["input_ids"][0].tolist()
        inside = ids[ends : len(ids) - ends]
        assert not set(inside) & {tokenizer.convert_tokens_to_ids(token) for token in control}
        assert not batch.inputs["special_tokens_mask"][0, ends : len(ids) - ends].any()
        spans = batch.annotations[0]["offsets"][ends : len(ids) - ends]
        assert set(range(len(text))) - {i for span in spans for i in range(*span)} <= {
            i for i, x in enumerate(text) if x == " "
        }
