"""Units of raw values, and features taken out before an encoder: beside transformers' models called by hand."""

import json

import numpy as np
import pytest
import torch
from tiny_encoders import MAKERS, noise

from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.kind_array import ArrayEncoder
from fl_i2moe.model.kinds import places_in
from fl_i2moe.model.places import UnitOptions, merge_neighbours

TEXT = "the quick brown fox jumps over"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    loaded = {}

    def once(name, kind, **options):
        key = name, kind, json.dumps(options)
        if key not in loaded:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(name)
            for part in MAKERS[name]():
                part.save_pretrained(folder)
            loaded[key] = load_encoder(folder, kind, **options)
        return loaded[key]

    return once


# ---- texts


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
@pytest.mark.parametrize("special", ["keep", "drop"])
def test_removed_tokens_are_left_out_of_attention(load, name, special):
    encoder = load(name, "text", special_features=special)
    inputs = encoder.preprocess([TEXT]).inputs
    whole = encoder.encode(inputs)
    is_special = inputs["special_tokens_mask"][0].bool()
    length = whole.features.shape[1]
    kept = torch.ones(1, length, dtype=torch.bool)
    first = int(whole.special_mask[0, 0])  # behind BOS, where there is one
    kept[0, [first, first + 3]] = False
    found = encoder.encode(inputs, kept)
    mask = inputs["attention_mask"].clone()
    own = (~is_special).nonzero()[:, 0]
    mask[0, own[[0, 3]]] = 0
    ids = inputs["input_ids"]
    with torch.no_grad():
        by_hand = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
    by_hand = by_hand if special == "keep" else by_hand[~is_special]
    torch.testing.assert_close(found.features[0], by_hand * kept[0, :, None], atol=1e-6, rtol=0)
    assert (found.feature_mask == whole.feature_mask).all()
    assert not (found.features[0, first + 1] - whole.features[0, first + 1]).abs().max() < 1e-4
    other = encoder.preprocess([TEXT.replace("the ", "dog ").replace("fox", "lazy")]).inputs
    torch.testing.assert_close(encoder.encode(other, kept).features, found.features)  # nothing of them is left


@pytest.mark.parametrize("special", ["keep", "drop"])
def test_a_text_of_which_nothing_is_left(load, special):
    encoder = load("roberta", "text", special_features=special)
    inputs = encoder.preprocess([TEXT]).inputs
    whole = encoder.encode(inputs)
    found = encoder.encode(inputs, torch.zeros(whole.feature_mask.shape, dtype=torch.bool))
    assert found.features.isfinite().all()
    assert (found.features.abs().sum(dim=2) > 0).equal(whole.special_mask)


def test_tokens_are_replaced_by_one_that_says_nothing(load):
    encoder = load("roberta", "text")
    inputs = encoder.preprocess([TEXT]).inputs
    kept = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    kept[0, 2] = False
    ids = inputs["input_ids"].clone()
    ids[0, 2] = encoder.preprocess.tokenizer.unk_token_id  # this tokenizer has no mask token
    expected = encoder.encode({**inputs, "input_ids": ids}).features * kept[..., None]
    torch.testing.assert_close(encoder.encode(inputs, kept, "mask").features, expected)


def test_an_encoder_without_attention_mask_replaces_tokens(load):
    encoder = load("siglip-text", "text") if "siglip-text" in MAKERS else load("fnet", "text")
    assert list(encoder.removals) == ["mask"]
    inputs = encoder.preprocess([TEXT]).inputs
    kept = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    kept[0, 1] = False
    found = encoder.encode(inputs, kept).features
    assert found[0, 1].abs().sum() == 0
    with pytest.raises(ValueError, match="no removal 'attention' of this text encoder; there are mask"):
        encoder.encode(inputs, kept, "attention")


# ---- pictures


def painted(encoder, pixels, kept_cells, fill):
    """By a plain loop over the cells."""
    (rows, columns), (height, width) = encoder.grid, pixels.shape[1:3]
    pixels = pixels.clone()
    for row in range(rows):
        for column in range(columns):
            if not kept_cells[row * columns + column]:
                top, bottom = row * height // rows, (row + 1) * height // rows
                left, right = column * width // columns, (column + 1) * width // columns
                pixels[0, top:bottom, left:right] = fill
    return pixels


@pytest.mark.parametrize("name", ["clip", "efficientnet", "dinov2-registers"])
@pytest.mark.parametrize("special", ["keep", "drop"])
def test_removed_patches_have_the_mean_colour(load, name, special):
    encoder = load(name, "image", special_features=special)
    pixels = encoder.preprocess([noise(64, 48)]).inputs["pixels"]
    whole = encoder.encode({"pixels": pixels})
    is_special = whole.special_mask[0]
    kept = torch.ones(1, whole.features.shape[1], dtype=torch.bool)
    patches = (~is_special).nonzero()[:, 0]
    kept[0, patches[[0, 3]]] = False
    found = encoder.encode({"pixels": pixels}, kept)
    mean = pixels.float().mean(dim=(0, 1, 2)).round().to(torch.uint8)
    by_hand = encoder.encode({"pixels": painted(encoder, pixels, kept[0, patches], mean)})
    torch.testing.assert_close(found.features, by_hand.features * kept[..., None], atol=1e-5, rtol=1e-5)


def test_a_blurred_patch_says_little_of_itself_and_nothing_else_changes(load):
    encoder = load("clip", "image", hidden_layer=0)  # patches alone: nothing mixes
    pixels = encoder.preprocess([noise(64, 64)]).inputs["pixels"]
    kept = torch.ones(1, encoder.max_features, dtype=torch.bool)
    kept[0, 6] = False
    blurred = encoder._remove({"pixels": pixels}, kept, "blur")["pixels"]
    changed = (blurred != pixels).any(dim=3)[0].nonzero()
    assert changed.min(dim=0).values.tolist() == [8, 8]
    assert changed.max(dim=0).values.tolist() == [15, 15]
    assert blurred[0, 8:16, 8:16].float().std() < 0.3 * pixels[0, 8:16, 8:16].float().std()


@pytest.mark.parametrize("name", ["clip", "vit", "dinov2"])
def test_dropped_patches_are_never_seen(load, name):
    encoder = load(name, "image")
    pixels = encoder.preprocess([noise(64, 64), noise(64, 64, seed=1)]).inputs["pixels"]
    kept = torch.ones(2, encoder.max_features, dtype=torch.bool)
    kept[0, [2, 5]] = kept[1, 1] = False
    found = encoder.encode({"pixels": pixels}, kept, "drop").features
    changed = pixels.clone()
    for row in range(2):
        changed[row] = painted(encoder, pixels[row : row + 1], kept[row, 1:], 0)[0]
    torch.testing.assert_close(encoder.encode({"pixels": changed}, kept, "drop").features, found)
    everything = encoder.encode({"pixels": pixels}, torch.ones_like(kept), "drop").features
    torch.testing.assert_close(everything, encoder.encode({"pixels": pixels}).features)


def test_an_encoder_that_cannot_drop_patches_says_so(load):
    for name in ("efficientnet", "swin"):
        encoder = load(name, "image")
        kept = torch.ones(1, encoder.max_features, dtype=torch.bool)
        kept[0, 1] = False
        with pytest.raises(ValueError, match="cannot leave out patches of its sequence: choose another removal"):
            encoder.encode(encoder.preprocess([noise(32, 32)]).inputs, kept, "drop")


# ---- sounds and numbers


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_removed_stretches_are_silent(load, name):
    pytest.importorskip("soundfile")
    encoder = load(name, "audio")
    rate = encoder.preprocess.rate
    sound = np.random.default_rng(0).normal(0, 0.1, rate // 2).astype(np.float32)
    prepared = encoder.preprocess([(sound, rate)])
    seconds = prepared.annotations[0]["seconds"]
    kept = torch.ones(1, len(seconds), dtype=torch.bool)
    kept[0, 3:6] = False
    silenced = sound.copy()
    silenced[round(seconds[3][0] * rate) : round(seconds[5][1] * rate)] = 0
    by_hand = encoder.encode(encoder.preprocess([(silenced, rate)]).inputs).features
    found = encoder.encode(prepared.inputs, kept).features
    torch.testing.assert_close(found, by_hand * kept[..., None], atol=1e-5, rtol=1e-5)


def test_removed_numbers_are_zero():
    encoder = ArrayEncoder(2, 3)
    inputs = encoder.preprocess([[[1, 2], [3, 4]]])
    found = encoder.encode(inputs.inputs, torch.tensor([[True, False]])).features
    assert found.tolist() == [[[1, 2], [0, 0]]]


# ---- units


def text_row(text, offsets, special):
    return {"text": text, "text_special_mask": special, "text_offsets": offsets}


def test_words_hold_their_tokens():
    text = "Unbelievable, isn't it?"
    offsets = [(0, 0), (0, 2), (2, 12), (12, 13), (14, 16), (16, 17), (17, 19), (20, 22), (22, 23), (0, 0)]
    row = text_row(text, offsets, [True, *[False] * 8, True])
    units = places_in(row, "text").units(UnitOptions())
    assert [units.places.name_of(unit) for unit in range(3)] == ["“Unbelievable,”", "“isn't”", "“it?”"]
    assert units.features == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert units.places.noun == "words"
    assert units.places.candidates == [0, 1, 2]
    mask = units.of_features(torch.tensor([[True, False, True]]), 10)
    assert mask[0].tolist() == [True, True, True, True, False, False, False, True, True, True]
    sentences = places_in(row, "text").units(UnitOptions(text="sentences"))
    assert sentences.features == [list(range(1, 9))]


def test_a_text_of_special_tokens_alone_has_no_units():
    """Its masked copies are whole, and training goes on."""
    units = places_in(text_row(" ", [(0, 0), (0, 0)], [True, True]), "text").units(UnitOptions())
    assert units.features == []
    assert units.of_features(torch.zeros(3, 0, dtype=torch.bool), 2).tolist() == [[True, True]] * 3


def test_words_that_share_a_token_are_one_and_no_token_is_lost():
    text = "你好吗 ok"
    offsets = [(0, 2), (2, 3), (4, 6), (6, 6)]  # the last one covers nothing
    units = places_in(text_row(text, offsets, [False] * 4), "text").units(UnitOptions())
    assert units.features == [[0], [1], [2, 3]]
    assert units.places.name_of(0) == "“你好”"


def test_many_words_are_put_together():
    text = " ".join(f"w{number}" for number in range(50))
    ends = np.cumsum([len(word) + 1 for word in text.split()])
    offsets = [(int(end) - 1 - len(word), int(end) - 1) for end, word in zip(ends, text.split(), strict=True)]
    units = places_in(text_row(text, offsets, [False] * 50), "text").units(UnitOptions(most=20))
    assert units.features == [list(range(start, min(start + 3, 50))) for start in range(0, 50, 3)]
    assert units.places.name_of(1) == "“w3 w4 w5”"
    assert units.note == "has 50 words, of which neighbours are put together"
    assert merge_neighbours([[1], [2], [3]], 2) == [[1, 2], [3]]


def test_cells_hold_the_patches_whose_centre_lies_in_them():
    geometry = {"width": 70, "height": 70, "left": 0, "top": 0, "right": 70, "bottom": 70}
    row = {"image": {"path": None, "bytes": None}, "image_special_mask": [True] + [False] * 49}
    row["image_geometry"] = geometry
    places = places_in(row, "image", grid=[7, 7])
    own = places.units(UnitOptions())
    assert own.features == [[index] for index in range(1, 50)]
    assert own.places.box(0) == places.box(1)
    coarse = places.units(UnitOptions(cells=(2, 4)))
    assert coarse.places.grid == (2, 4)
    for unit, features in enumerate(coarse.features):
        left, top, right, bottom = coarse.places.box(unit)
        for feature in range(1, 50):
            box = places.box(feature)
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            assert (feature in features) == (left <= x < right and top <= y < bottom)
    with pytest.raises(ValueError, match="7 x 7 patches; 8 x 2 cells are finer"):
        places.units(UnitOptions(cells=(8, 2)))


def test_stretches_are_put_together():
    seconds = [(0.0, 0.0), *((x / 10, (x + 1) / 10) for x in range(100))]
    row = {"sound": {"path": None, "bytes": b""}, "sound_special_mask": [True, *[False] * 100]}
    units = places_in({**row, "sound_seconds": seconds}, "sound").units(UnitOptions())
    assert units.features[:2] == [[1, 2], [3, 4]]
    assert units.places.name_of(1) == "0.20–0.40 s"
