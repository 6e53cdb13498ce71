import json
import pickle

import pytest
import torch
import transformers as hf
from tiny_encoders import MAKERS, VISION, make_tokenizer, noise
from tokenizers import processors
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from fl_i2moe.model.encoders import hash_weights, load_encoder


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    """Saves a random model with what prepares its inputs, once per name; gives the folder."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            for part in MAKERS[name]():
                part.save_pretrained(made[name])
        return str(made[name])

    return make


# ---- image encoders ------------------------------------------------------------------------------------------------


def pixel_values(folder, images):
    """What the Hugging Face processor makes of pictures that already have the input's size."""
    processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(
    ("name", "model_class", "num_special", "grid"),
    [
        ("clip", hf.CLIPVisionModel, 1, (4, 4)),
        ("vit", hf.ViTModel, 1, (4, 4)),
        ("vit-classifier", hf.ViTModel, 1, (4, 4)),
        ("dinov2", hf.Dinov2Model, 1, (4, 4)),
        ("dinov2-registers", hf.Dinov2WithRegistersModel, 5, (4, 4)),
        ("siglip", hf.SiglipVisionModel, 0, (4, 4)),
        ("swin", hf.SwinModel, 0, (4, 4)),
    ],
)
def test_patch_sequences(make_folder, name, model_class, num_special, grid):
    folder, images = make_folder(name), [noise(32, 32), noise(32, 32, seed=1)]
    model = model_class.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(pixel_values(folder, images)).last_hidden_state

    encoder = load_encoder(folder, "image")
    encoded = encoder.encode(encoder.preprocess(images).inputs)
    assert type(encoder.model) is model_class
    assert (encoder.grid, encoder.feature_size, encoder.max_features) == (grid, 16, num_special + 16)
    torch.testing.assert_close(encoded.features, expected, atol=1e-5, rtol=1e-4)
    assert encoded.feature_mask.all()
    assert encoded.special_mask.tolist() == [[True] * num_special + [False] * 16] * 2

    dropping = load_encoder(folder, "image", special_features="drop")
    dropped = dropping.encode(dropping.preprocess(images).inputs)
    assert dropping.max_features == 16
    torch.testing.assert_close(dropped.features, expected[:, num_special:], atol=1e-5, rtol=1e-4)
    assert not dropped.special_mask.any()


@pytest.mark.parametrize(("name", "grid"), [("efficientnet", (2, 2)), ("convnext", (2, 2)), ("resnet", (8, 8))])
def test_feature_maps_are_read_row_by_row(make_folder, name, grid):
    folder = make_folder(name)
    images = [noise(64, 64), noise(64, 64, seed=1)]
    model = hf.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        map_BDhw = model(pixel_values(folder, images)).last_hidden_state

    encoder = load_encoder(folder, "image")
    encoded = encoder.encode(encoder.preprocess(images).inputs)
    assert (encoder.grid, encoder.feature_size) == (grid, map_BDhw.shape[1])
    assert encoder.max_features == encoded.features.shape[1] == grid[0] * grid[1]
    assert map_BDhw.std() > 1e-3
    for row in range(grid[0]):
        for col in range(grid[1]):
            patch = encoded.features[:, row * grid[1] + col]
            torch.testing.assert_close(patch, map_BDhw[:, :, row, col], atol=1e-4, rtol=1e-4)
    assert not encoded.special_mask.any()


def test_hidden_layer_of_a_feature_map(make_folder):
    folder, images = make_folder("resnet"), [noise(64, 64)]
    with torch.no_grad():
        states = (
            hf.AutoModel.from_pretrained(folder)
            .eval()(pixel_values(folder, images), output_hidden_states=True)
            .hidden_states
        )
    encoder = load_encoder(folder, "image", hidden_layer=1)
    features = encoder.encode(encoder.preprocess(images).inputs).features
    assert encoder.grid == tuple(states[1].shape[2:])
    torch.testing.assert_close(features[0, 1], states[1][0, :, 0, 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [None, 1])
def test_patches_before_detection_tokens(make_folder, layer):
    folder, images = make_folder("yolos"), [noise(32, 32), noise(32, 32, seed=1)]
    model = hf.YolosModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(pixel_values(folder, images), output_hidden_states=True).hidden_states[layer or -1]
        expected = expected if layer else model.layernorm(expected)
    encoder = load_encoder(folder, "image", hidden_layer=layer)
    encoded = encoder.encode(encoder.preprocess(images).inputs)
    assert (encoder.grid, encoder.max_features) == ((4, 4), 21)
    torch.testing.assert_close(encoded.features, expected, atol=1e-5, rtol=1e-4)
    assert encoded.special_mask.tolist() == [[True] + [False] * 16 + [True] * 4] * 2
    assert encoder.identity()["patches"] == "found by painting"
    dropping = load_encoder(folder, "image", hidden_layer=layer, special_features="drop")
    dropped = dropping.encode(dropping.preprocess(images).inputs).features
    torch.testing.assert_close(dropped, expected[:, 1:17], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [None, 0, 1, 2, 3])
def test_hidden_layers_in_another_order_are_put_into_reading_order(make_folder, layer):
    folder, images = make_folder("hiera"), [noise(64, 64)]
    with torch.no_grad():
        outputs = hf.HieraModel.from_pretrained(folder).eval()(pixel_values(folder, images), output_hidden_states=True)
    expected = outputs.last_hidden_state if layer is None else outputs.reshaped_hidden_states[layer].flatten(1, 2)
    encoder = load_encoder(folder, "image", hidden_layer=layer)
    features = encoder.encode(encoder.preprocess(images).inputs).features
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    assert encoder.grid == {None: (4, 4), 0: (16, 16), 1: (16, 16), 2: (8, 8), 3: (4, 4)}[layer]
    assert ("patches" in encoder.identity()) == (layer in (0, 1, 2))


def test_hidden_layers_with_channels_last(make_folder):
    folder, images = make_folder("sam"), [noise(64, 64)]
    with torch.no_grad():
        outputs = hf.SamVisionModel.from_pretrained(folder).eval()(
            pixel_values(folder, images), output_hidden_states=True
        )
    for layer, expected in (
        (1, outputs.hidden_states[1].flatten(1, 2)),
        (None, outputs.last_hidden_state.flatten(2).transpose(1, 2)),
    ):
        encoder = load_encoder(folder, "image", hidden_layer=layer)
        features = encoder.encode(encoder.preprocess(images).inputs).features
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
        assert encoder.grid == (8, 8)


def test_a_sequence_that_a_convolution_made(make_folder):
    encoder = load_encoder(make_folder("dinov3-convnext"), "image")
    encoded = encoder.encode(encoder.preprocess([noise(128, 128)]).inputs)
    assert (encoder.grid, encoder.max_features) == ((4, 4), 17)
    assert encoded.special_mask.tolist() == [[True] + [False] * 16]


@pytest.mark.parametrize(
    ("name", "message"),
    [("vit-mae", "gives other features in every call"), ("siglip2", "names one input size")],
)
def test_image_encoders_without_places_are_refused(make_folder, name, message):
    with pytest.raises(ValueError, match=rf"encoder '.*{name}\d*'?.*{message}"):
        load_encoder(make_folder(name), "image")


def test_a_batch_equals_single_pictures(make_folder):
    encoder = load_encoder(make_folder("clip"), "image")
    images = [noise(40, 60), noise(70, 30, seed=1)]
    together = encoder.encode(encoder.preprocess(images).inputs).features
    alone = torch.cat([encoder.encode(encoder.preprocess([image]).inputs).features for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


# ---- text encoders -------------------------------------------------------------------------------------------------

TEXTS = ["the quick brown fox jumps", "a dog", "lazy"]


@pytest.mark.parametrize(
    ("name", "model_class"),
    [("bert", hf.BertModel), ("roberta", hf.RobertaModel), ("mpnet", hf.MPNetModel), ("clip", hf.CLIPTextModel)],
)
def test_token_sequences_do_not_feel_the_padding(make_folder, name, model_class):
    folder = make_folder(name)
    model = model_class.from_pretrained(folder).eval()
    tokenizer = make_tokenizer(20)
    encoder = load_encoder(folder, "text")
    assert type(encoder.model) is model_class
    assert encoder.grid is None
    encoded = encoder.encode(encoder.preprocess(TEXTS).inputs)
    assert encoded.features.shape == (3, 7, 16)
    assert encoded.feature_mask.sum(1).tolist() == [7, 4, 3]
    assert encoded.special_mask.int().tolist() == [[1, 0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0]]
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            alone = model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        torch.testing.assert_close(encoded.features[i, : len(alone)], alone, atol=1e-5, rtol=1e-4)
        assert not encoded.features[i, len(alone) :].any()


@pytest.mark.parametrize("name", ["siglip-both", "fnet"])
def test_an_encoder_that_takes_no_mask_sees_full_padding(make_folder, name):
    folder = make_folder(name)
    encoder, limit = load_encoder(folder, "text"), {"siglip-both": 10, "fnet": 20}[name]
    model = hf.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "text_model", model)
    assert type(encoder.model) is type(model)
    expected = hf.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", max_length=limit, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(input_ids=expected["input_ids"], output_hidden_states=True)
    encoded = encoder.encode(encoder.preprocess(TEXTS).inputs)
    assert encoded.feature_mask.sum(1).tolist() == [7, 4, 3]
    for i, length in enumerate([7, 4, 3]):
        torch.testing.assert_close(
            encoded.features[i, :length], states.last_hidden_state[i, :length], atol=1e-5, rtol=1e-4
        )
        assert not encoded.features[i, length:].any()
    inner = load_encoder(folder, "text", hidden_layer=1, max_length=6)
    features = inner.encode(inner.preprocess(TEXTS[1:]).inputs).features
    torch.testing.assert_close(features[0, :4], states.hidden_states[1][1, :4], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("siglip-both", "text", lambda folder: hf.SiglipModel.from_pretrained(folder).text_model),
        ("siglip-both", "image", hf.SiglipVisionModel.from_pretrained),
        ("llava", "text", lambda folder: hf.LlavaModel.from_pretrained(folder).language_model),
        ("llava", "image", lambda folder: hf.LlavaModel.from_pretrained(folder).vision_tower),
        ("t5-encoder", "text", lambda folder: hf.T5EncoderModel.from_pretrained(folder).encoder),
    ],
    ids=["siglip-text", "siglip-image", "llava-text", "llava-image", "t5-encoder"],
)
def test_a_part_of_a_model(make_folder, name, kind, part):
    encoder, expected = load_encoder(make_folder(name), kind), part(make_folder(name))
    assert type(encoder.model) is type(expected)
    assert encoder.identity()["weights_sha256"] == hash_weights(expected)


def test_a_part_that_lacks_weights_is_refused(make_folder, tmp_path):
    model = hf.SiglipModel.from_pretrained(make_folder("siglip-both"))
    lost = "text_model.encoder.layers.1."
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if not k.startswith(lost)})
    for part in MAKERS["siglip-both"]()[1:]:
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 16 weights of SiglipTextModel, such as encoder\.layers\.1\."):
        load_encoder(tmp_path, "text")
    load_encoder(tmp_path, "image")


@pytest.mark.parametrize(("name", "limit"), [("xlnet", 512), ("gpt2", 20)])
def test_lengths_and_padding_that_an_encoder_leaves_open(make_folder, name, limit):
    encoder = load_encoder(make_folder(name), "text")
    assert encoder.max_features == limit
    together = encoder.encode(encoder.preprocess(TEXTS).inputs)
    assert together.feature_mask.sum(1).tolist() == [7, 4, 3]
    for text, features in zip(TEXTS, together.features, strict=True):
        ids = make_tokenizer(20)(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone = encoder.model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(features[: len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_a_text_without_tokens_is_refused(make_folder):
    encoder = load_encoder(make_folder("gpt2"), "text")
    encoder.preprocess.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(ValueError, match=r"a text has no tokens$"):
        encoder.preprocess(["a dog", ""])


def test_padding_outside_the_vocabulary_is_refused(make_folder, tmp_path):
    tokenizer = make_tokenizer(20, pad_token=None)
    tokenizer.add_tokens([f"x{i}" for i in range(20)])
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    for part in (hf.BertModel.from_pretrained(make_folder("bert")), tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"\(BertModel\) cannot be called with a batch of texts alone.*index out of range"
    ):
        load_encoder(tmp_path, "text")


def test_an_encoder_that_merges_tokens_is_refused(make_folder):
    with pytest.raises(ValueError, match=r"\(FunnelBaseModel\) gives features of shape .* not one a token"):
        load_encoder(make_folder("funnel"), "text")


def test_features_that_change_with_the_batch_are_refused(make_folder, monkeypatch):
    def forward(self, input_ids, attention_mask=None):
        states = self.embeddings(input_ids)
        return BaseModelOutput(states + states.sum(1, keepdim=True))

    monkeypatch.setattr(hf.BertModel, "forward", forward)
    with pytest.raises(
        ValueError, match=r"\(BertModel\): the features of a text change by .* with the texts beside it"
    ):
        load_encoder(make_folder("bert"), "text")


def test_a_model_that_needs_more_than_its_inputs(make_folder, monkeypatch):
    monkeypatch.setattr(hf.ViTModel, "forward", lambda self, pixel_values, shapes, **kwargs: None)
    with pytest.raises(
        ValueError, match=r"vit0'? \(ViTModel\) cannot be called with a batch of images alone.*'shapes'"
    ):
        load_encoder(make_folder("vit"), "image")


def test_dropping_special_tokens_closes_the_gaps(make_folder):
    keeping, dropping = (
        load_encoder(make_folder("bert"), "text", special_features=special, max_length=6)
        for special in ("keep", "drop")
    )
    kept = keeping.encode(keeping.preprocess(TEXTS).inputs)
    batch = dropping.preprocess(TEXTS)
    dropped = dropping.encode(batch.inputs)
    assert (keeping.max_features, dropping.max_features) == (6, 4)
    assert dropped.feature_mask.sum(1).tolist() == [4, 2, 1]
    assert not dropped.special_mask.any()
    for i, length in enumerate([4, 2, 1]):
        torch.testing.assert_close(dropped.features[i, :length], kept.features[i, 1 : 1 + length])
        assert not dropped.features[i, length:].any()
    assert [len(annotation["offsets"]) for annotation in batch.annotations] == [4, 2, 1]
    with pytest.raises(ValueError, match="no tokens but special ones"):
        dropping.preprocess(["a dog", " "])
    assert keeping.encode(keeping.preprocess(["a dog", " "]).inputs).feature_mask.sum(1).tolist() == [4, 2]


def test_long_texts_are_cut_and_counted(make_folder):
    encoder = load_encoder(make_folder("bert"), "text", max_length=5)
    long, short, exact = "the quick, brown fox jumps over a dog", "lazy dog", "a lazy dog"
    batch = encoder.preprocess([long, short, exact])
    expected = make_tokenizer(512)([long, short, exact], truncation=True, max_length=5, padding=True)
    assert batch.inputs["input_ids"].tolist() == expected["input_ids"]
    first, second, third = batch.annotations
    assert (first["num_tokens"], first["truncated"]) == (11, True)  # 8 words, a comma, <s> and </s>
    assert (second["num_tokens"], second["truncated"]) == (4, False)
    assert (third["num_tokens"], third["truncated"]) == (5, False)
    assert [long[start:end] for start, end in first["offsets"]] == ["", "the", "quick", ",", ""]
    assert first["offsets"] == [(0, 0), (0, 3), (4, 9), (9, 10), (0, 0)]
    assert [short[start:end] for start, end in second["offsets"]] == ["", "lazy", "dog", ""]


@pytest.mark.parametrize(("name", "limit"), [("bert", 20), ("roberta", 18), ("mpnet", 18), ("clip", 10)])
def test_the_longest_text(make_folder, name, limit):
    folder = make_folder(name)
    encoder = load_encoder(folder, "text")
    batch = encoder.preprocess(["dog " * 50])
    assert encoder.max_features == batch.inputs["input_ids"].shape[1] == limit
    assert encoder.encode(batch.inputs).features.isfinite().all()
    one_more = {key: torch.cat([value, value[:, -1:]], 1) for key, value in batch.inputs.items()}
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        encoder.encode(one_more)
    with pytest.raises(ValueError, match=rf"max_length={limit + 1} .* takes 3 to {limit} tokens"):
        load_encoder(folder, "text", max_length=limit + 1)
    with pytest.raises(ValueError, match="max_length=2 "):
        load_encoder(folder, "text", max_length=2)


def test_hidden_layers(make_folder):
    folder = make_folder("bert")
    ids = make_tokenizer(20)(TEXTS[0], return_tensors="pt")["input_ids"]
    model = hf.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = [model.embeddings(ids), *model(ids, output_hidden_states=True).hidden_states[1:]]
    for layer in range(4):
        encoder = load_encoder(folder, "text", hidden_layer=layer)
        features = encoder.encode(encoder.preprocess(TEXTS[:1]).inputs).features
        torch.testing.assert_close(features, expected[layer], atol=1e-6, rtol=1e-5)
    last, minus_one = (load_encoder(folder, "text", hidden_layer=layer) for layer in (None, -1))
    assert last.identity() == minus_one.identity()
    for layer in (4, -2):
        with pytest.raises(ValueError, match=rf"hidden_layer={layer} is out of range: .* has 3 layers; give 0 .* to 3"):
            load_encoder(folder, "text", hidden_layer=layer)


@pytest.mark.parametrize(("value", "message"), [(None, "must be a string, got NoneType"), ("a \ud800", "character 2")])
def test_bad_texts(make_folder, value, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(make_folder("bert"), "text").preprocess(["a dog", value])


# ---- frozen, identified, loaded ------------------------------------------------------------------------------------


def test_training_around_it_changes_no_weight(make_folder):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = load_encoder(make_folder("efficientnet"), "image")
            self.head = nn.Linear(self.encoder.feature_size, 2)

    model = Classifier().train()
    before, head_before = hash_weights(model.encoder), hash_weights(model.head)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    inputs = model.encoder.preprocess([noise(64, 64)]).inputs
    features = model.encoder.encode(inputs).features
    model.head(features).sum().backward()
    optimizer.step()

    assert not features.requires_grad
    assert not any(module.training for module in model.encoder.modules())
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert hash_weights(model.encoder) == before
    assert hash_weights(model.head) != head_before


def test_identity_tells_encoders_apart(make_folder):
    def identity(folder="roberta", kind="text", **options):
        return load_encoder(make_folder(folder), kind, **options).identity()

    first = identity()
    assert json.loads(json.dumps(first)) == first
    assert identity() == first
    assert identity("bert")["weights_sha256"] != first["weights_sha256"]
    for option, value in {"hidden_layer": 1, "special_features": "drop", "max_length": 7, "name": "sample:x"}.items():
        changed = identity(**{option: value})
        assert {key for key in first if changed[key] != first[key]} == {option}
    half = identity(dtype=torch.bfloat16)
    assert {key for key in first if half[key] != first[key]} == {"dtype", "weights_sha256"}
    whole, crop = (identity("clip", "image", resize=resize) for resize in ("whole", "crop"))
    assert {key for key in whole if crop[key] != whole[key]} == {"preprocessing"}


def test_hash_feels_every_weight():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = hash_weights(model)
    for tensor in model.state_dict().values():
        tensor.view(-1)[-1] += 1
        changed = hash_weights(model)
        assert changed != before
        before = changed


def test_a_missing_pooler_does_not_matter(make_folder):
    folder = make_folder("roberta-mlm")
    torch.manual_seed(1)
    first = load_encoder(folder, "text")
    torch.manual_seed(2)
    second = load_encoder(folder, "text")
    assert not torch.equal(first.model.pooler.dense.weight, second.model.pooler.dense.weight)
    assert first.identity() == second.identity()


def test_a_missing_layer_is_refused(make_folder, tmp_path):
    model = hf.BertModel.from_pretrained(make_folder("bert"))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("encoder.layer.1.")}
    model.save_pretrained(tmp_path, state_dict=state)
    make_tokenizer(20).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint lacks 16 weights of BertModel, such as encoder\.layer\.1\."):
        load_encoder(tmp_path, "text")


def test_preprocess_travels_to_workers_without_the_weights(make_folder):
    for kind, value in (("image", noise(50, 40)), ("text", "a dog")):
        encoder = load_encoder(make_folder("clip"), kind)
        sent = pickle.dumps(encoder.preprocess)
        weights = sum(parameter.nbytes for parameter in encoder.parameters())
        assert len(sent) < weights / 5
        here, there = encoder.preprocess([value]), pickle.loads(sent)([value])
        assert here.annotations == there.annotations
        for key in here.inputs:
            assert torch.equal(here.inputs[key], there.inputs[key])


def test_wrong_options(make_folder):
    folder = make_folder("clip")
    for options, message in (
        ({"kind": "smell"}, "kind='smell' is unknown; choose one of image, text, audio"),
        ({"kind": "image", "special_features": "no"}, "special_features='no' is unknown"),
        ({"kind": "image", "resize": "pad"}, "resize='pad' is unknown"),
        ({"kind": "image", "max_length": 7}, "max_length=7 was given for an encoder of kind 'image'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_encoder(folder, **options)


def test_kind_mismatch(make_folder):
    with pytest.raises(ValueError, match=r"\(BertModel\) is of kind 'text', not 'image'"):
        load_encoder(make_folder("bert"), "image")
    with pytest.raises(ValueError, match=r"\(ViTModel\) is of kind 'image', not 'text'"):
        load_encoder(make_folder("vit"), "text")


def test_unreadable_folders(make_folder, tmp_path):
    with pytest.raises(ValueError, match="folder /no/such/folder does not exist"):
        load_encoder("/no/such/folder", "image")
    with pytest.raises(ValueError, match=r"config\.json could not be loaded.*must hold a Hugging Face model"):
        load_encoder(tmp_path, "image")
    model = hf.BertModel.from_pretrained(make_folder("bert"))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Only safetensors are read: convert"):
        load_encoder(tmp_path, "text")
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"model\.safetensors could not be loaded"):
        load_encoder(tmp_path, "text")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer has no vocabulary"):
        load_encoder(tmp_path, "text")


def test_missing_image_processor(tmp_path):
    hf.ViTModel(hf.ViTConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json could not be loaded"):
        load_encoder(tmp_path, "image")


def test_hub_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody/no-such-model'.*give the path of a local folder"):
        load_encoder("nobody/no-such-model", "image")
