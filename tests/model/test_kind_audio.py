"""Sounds, from a file to features that lie somewhere in time, beside the models of transformers called by hand."""

import io
import json
import pickle
from hashlib import sha256

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers as hf
from datasets import Audio as Sounds
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.table import InMemoryTable
from pyarrow import Table
from tiny_encoders import MAKERS

from fl_i2moe.cache import build_cache
from fl_i2moe.cache.key import cache_key
from fl_i2moe.data.raw import RawDataset, SampleError
from fl_i2moe.explain.explanation_data import notes_on
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.kind_audio import AudioPlaces
from fl_i2moe.model.kinds import ENCODED_KINDS, KINDS, places_from_dict, places_in
from fl_i2moe.model.pinned_encoders import PinnedEncoders
from fl_i2moe.model.processing_fl_i2moe import FLI2MoEProcessor


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            for part in MAKERS[name]():
                part.save_pretrained(made[name])
        return str(made[name])

    return make


@pytest.fixture(scope="module")
def load(make_folder):
    """Loads an encoder by the name of its maker, once."""
    loaded = {}

    def once(name, **options):
        key = name, json.dumps(options)
        if key not in loaded:
            loaded[key] = load_encoder(make_folder(name), "audio", **options)
        return loaded[key]

    return once


@pytest.fixture(scope="module")
def speech(load):
    """8,000 samples a second, one feature each 128, from 130 samples on."""
    return load("wav2vec2", max_seconds=3)


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def write(path, samples, rate=8000, **options):
    soundfile.write(path, samples, rate, **options)
    return str(path)


def features_of(encoder, values):
    """The real features of each sound."""
    encoded = encoder.encode(encoder.preprocess(values).inputs)
    return [features[mask] for features, mask in zip(encoded.features, encoded.feature_mask, strict=True)]


def by_hand(folder, sounds):
    """The last hidden states of each sound alone, from the classes of transformers."""
    extractor = hf.AutoFeatureExtractor.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder).eval()
    if isinstance(model, hf.ClapModel):
        model = model.audio_model
    model = getattr(model, "encoder", model) if model.config.is_encoder_decoder else model
    for sound in sounds:
        inputs = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        with torch.no_grad():
            yield model(**inputs).last_hidden_state[0]


def mean_over_rows(hidden, rows):
    """(rows · columns, D), row by row → (columns, D)."""
    columns = len(hidden) // rows
    return torch.stack([sum(hidden[row * columns + column] for row in range(rows)) / rows for column in range(columns)])


# Which of the last hidden states are features of a sound that ends after `seconds`.
FAMILIES = {
    "wav2vec2": lambda hidden, seconds: hidden,
    "wav2vec2-layer-norm": lambda hidden, seconds: hidden,
    "wavlm": lambda hidden, seconds: hidden,
    "hubert": lambda hidden, seconds: hidden,
    "moonshine": lambda hidden, seconds: hidden,
    # 15 time steps over the 128 spectra, of which the last begins after 127 · 160 and has 400 samples; two special ones
    "ast": lambda hidden, seconds: torch.cat(
        [hidden[:2], mean_over_rows(hidden[2:], 3)[: int(np.ceil(seconds / ((127 * 160 + 400) / 16000 / 15)))]]
    ),
    "whisper": lambda hidden, seconds: hidden[: int(np.ceil(seconds / 0.02))],
    "clap": lambda hidden, seconds: hidden.mean(1).T[: int(np.ceil(seconds / (1 / 32)))],  # (D, bands, time)
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_features_are_the_models_own_and_no_sound_changes_another(make_folder, load, name):
    folder, encoder = make_folder(name), load(name, max_seconds=3)
    rate = encoder.preprocess.rate
    seconds = [0.9, 0.3, 0.9, 0.5]
    sounds = [noise(round(x * rate), seed) for seed, x in enumerate(seconds)]
    found = features_of(encoder, [(sound, rate) for sound in sounds])
    for features, hidden, length in zip(found, by_hand(folder, sounds), seconds, strict=True):
        expected = FAMILIES[name](hidden, length)
        assert features.shape == expected.shape
        assert len(features) <= encoder.max_features
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    alone = features_of(encoder, [(sounds[1], rate)])[0]
    torch.testing.assert_close(found[1], alone, atol=1e-6, rtol=0)
    special = encoder.encode(encoder.preprocess([(sounds[1], rate)]).inputs).special_mask[0]
    assert special.nonzero().flatten().tolist() == ([0, 1] if name == "ast" else [])


@pytest.mark.parametrize("name", list(FAMILIES))
def test_seconds_lie_where_a_burst_changes_most(load, name):
    """A burst is another noise: louder ones change all that a model divides by."""
    encoder = load(name, max_seconds=3)
    rate = encoder.preprocess.rate
    sound = noise(round(0.9 * rate))
    burst = sound.copy()
    start, end = 0.5, 0.56
    burst[round(start * rate) : round(end * rate)] = noise(round(end * rate) - round(start * rate), 1)
    before, after = features_of(encoder, [(sound, rate), (burst, rate)])
    [annotation] = encoder.preprocess([(sound, rate)]).annotations
    seconds = annotation["seconds"]
    assert len(seconds) == len(before)
    special = encoder.preprocess.layout.num_special
    assert seconds[special][0] == 0
    assert seconds[-1][1] == pytest.approx(0.9)
    assert all(one[1] == other[0] for one, other in zip(seconds[special:-1], seconds[special + 1 :], strict=True))
    change = (after - before).norm(dim=1)[special:]
    middle = np.mean(seconds[special + int(change.argmax())])
    length = seconds[special][1]
    assert start - length < middle < end + length


def test_time_steps_are_averaged_in_stretches(load, speech):
    sound = noise(3000)  # 23 time steps
    steps = features_of(speech, [(sound, 8000)])[0]
    encoder = load("wav2vec2", frames_per_feature=5)
    features = features_of(encoder, [(sound, 8000)])[0]
    assert (len(steps), len(features)) == (23, 5)
    expected = torch.stack([steps[first : first + 5].mean(0) for first in range(0, 23, 5)])
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)
    [annotation] = encoder.preprocess([(sound, 8000)]).annotations
    edges = [0, 5, 10, 15, 20, 23]
    for (start, end), first, last in zip(annotation["seconds"], edges, edges[1:], strict=False):
        assert (start, end) == pytest.approx((first * 0.375 / 23, last * 0.375 / 23), abs=1e-6)


def test_special_features_are_dropped_on_request(load):
    sound = noise(8000), 16000
    kept, dropped = load("ast", max_seconds=3), load("ast", max_seconds=3, special_features="drop")
    torch.testing.assert_close(features_of(dropped, [sound])[0], features_of(kept, [sound])[0][2:])
    assert dropped.max_features == kept.max_features - 2
    (of_kept,), (of_dropped,) = (x.preprocess([sound]).annotations for x in (kept, dropped))
    assert of_kept["seconds"] == [(0, 0), (0, 0), *of_dropped["seconds"]]


@pytest.mark.parametrize(("name", "layer"), [("whisper", 1), ("clap", 0)])
def test_hidden_layers(make_folder, name, layer):
    """CLAP's have the time in four chunks, one below another."""
    folder, sound = make_folder(name), noise(16000)
    extractor, model = hf.AutoFeatureExtractor.from_pretrained(folder), hf.AutoModel.from_pretrained(folder).eval()
    tower = model.encoder if name == "whisper" else model.audio_model
    inputs = extractor(sound, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        hidden = tower(**inputs, output_hidden_states=True).hidden_states[layer][0]
    if name == "clap":  # (D, chunks · bands, width)
        width = hidden.shape[2]
        hidden = torch.stack(
            [hidden.unflatten(1, (4, -1))[:, t // width, :, t % width].mean(1) for t in range(4 * width)]
        )
    encoder = load_encoder(folder, "audio", hidden_layer=layer, max_seconds=1)
    torch.testing.assert_close(features_of(encoder, [(sound, 16000)])[0], hidden[: 50 if name == "whisper" else None])


def test_sounds_are_cut_and_resampled_and_made_one_channel(speech, tmp_path):
    """Beside soxr and NumPy by hand."""
    stereo = np.stack([noise(5 * 16000), noise(5 * 16000, 1)], axis=1)
    path = write(tmp_path / "clip.wav", stereo, 16000, subtype="FLOAT")
    mono = (stereo[:, 0] + stereo[:, 1]) / 2
    expected = soxr.resample(mono[: 3 * 16000], 16000, 8000)
    prepared = speech.preprocess([path])
    found = prepared.inputs["input_values"][0].numpy()
    np.testing.assert_allclose(found, (expected - expected.mean()) / np.sqrt(expected.var() + 1e-7), atol=1e-5)
    [annotation] = prepared.annotations
    assert (annotation["encoded"], annotation["total"]) == (3, 5)
    kind = ENCODED_KINDS["audio"]
    assert kind.cut_share(annotation) == pytest.approx(0.4)
    [short] = speech.preprocess([(noise(11025), 11025)]).annotations
    assert kind.cut_share(short) is None


def test_every_form_of_a_sound_is_the_same(speech, tmp_path):
    samples = (noise(4000) * 32767).round().astype(np.int16)
    path = write(tmp_path / "clip.wav", samples)
    content = (tmp_path / "clip.wav").read_bytes()
    floats = samples / 32768

    class Decoded:  # as torchcodec's
        def get_all_samples(self):
            return type("", (), {"data": torch.from_numpy(floats)[None], "sample_rate": 8000})

    forms = [path, tmp_path / "clip.wav", {"path": path, "bytes": None}, {"path": None, "bytes": content}, Decoded()]
    forms += [
        (samples, 8000),
        (8000, samples),
        {"array": floats, "sampling_rate": 8000},
        (np.stack([floats] * 2), 8000),
    ]
    kind = ENCODED_KINDS["audio"]
    forms += [kind.open(path), *(kind.cell(form) for form in forms if not isinstance(form, Decoded))]
    found = speech.preprocess(forms).inputs["input_values"]
    assert (found - found[0]).abs().max() < 1e-6
    assert KINDS["audio"].as_batch((samples, 8000)) == [(samples, 8000)]
    assert len(KINDS["audio"].as_batch([path, path])) == 2
    assert kind.cell((samples, 8000)) == kind.cell((samples, 8000))  # byte by byte, whenever it is written


def test_what_an_identity_says_is_enough(speech, load):
    """Preprocessing and encoder are made again from it, through JSON, and give the same."""
    for encoder in (speech, load("ast", frames_per_feature=2, max_seconds=1.1)):
        identity = json.loads(json.dumps(encoder.identity()))
        assert identity["kind"] == "audio"
        rate = encoder.preprocess.rate
        values = [(noise(round(0.7 * rate)), rate), (noise(4 * rate), rate)]
        expected = features_of(encoder, values)
        pinned = PinnedEncoders({"sound": identity})
        features, mask = pinned.encode("sound", values, torch.device("cpu"), torch.float32)
        for row, one in enumerate(expected):
            torch.testing.assert_close(features[row][mask[row]], one.half())
        processor = FLI2MoEProcessor({"sound": identity})
        prepared = processor.preprocess(sound=values)["sound"]
        assert prepared.annotations == encoder.preprocess(values).annotations
        again, _ = pinned.encode("sound", processor(sound=values)["sound"], torch.device("cpu"), torch.float32)
        torch.testing.assert_close(again, features)
        one = processor(sound=values[0])["sound"]  # samples and rate are one sound, not two
        assert len(one["num_samples"]) == 1
        assert pickle.loads(pickle.dumps(encoder.preprocess)).identity() == encoder.preprocess.identity()
    assert "8,000 samples a second, and cut after 3 s" in ENCODED_KINDS["audio"].describe_preprocessing(
        speech.identity()
    )


def raw_sounds(cells):
    features = Features({"id": Value("string"), "sound": Sounds(decode=False), "labels": List(Value("float32"), 2)})
    rows = [{"id": name, "sound": cell, "labels": [0, 1]} for name, cell in cells.items()]
    split = Dataset(InMemoryTable(Table.from_pylist(rows, schema=features.arrow_schema)))
    return RawDataset(DatasetDict(train=split), {"sound": "audio"}, ["a", "b"], "multi_label_classification")


def test_a_cache_of_sounds(speech, tmp_path):
    """What is in it, what was left out and why, what was cut, and that it is known again."""
    cells = {"good": {"path": write(tmp_path / "good ♪.flac", noise(4000)), "bytes": None}}
    stream = io.BytesIO()
    soundfile.write(stream, noise(40000, 1), 8000, format="OGG")
    cells["long"] = {"path": None, "bytes": stream.getvalue()}
    cells["short"] = {"path": write(tmp_path / "short.wav", noise(100)), "bytes": None}
    (tmp_path / "text.wav").write_text("not a sound")
    cells["text"] = {"path": str(tmp_path / "text.wav"), "bytes": None}
    cells["gone"] = {"path": str(tmp_path / "gone.wav"), "bytes": None}
    raw = raw_sounds(cells)
    with pytest.raises(SampleError, match=r"'short' of split 'train' has a bad 'sound': .*0\.0125 s is too short"):
        build_cache(raw, {"sound": speech}, tmp_path / "stopped", num_workers=0, progress=False)
    options = {"num_workers": 0, "progress": False, "on_bad_sample": "skip"}
    cache = build_cache(raw, {"sound": speech}, tmp_path / "cache", **options)
    assert list(cache.splits["train"]["id"]) == ["good", "long"]
    skipped = [json.loads(line) for line in (tmp_path / "cache" / "skipped.jsonl").read_text().splitlines()]
    assert [(x["id"], x["file"].rpartition("/")[2]) for x in skipped] == [
        ("short", "short.wav"),
        ("text", "text.wav"),
        ("gone", "gone.wav"),
    ]
    assert any("40 %" in note or "40%" in note for note in cache.notes)  # 2 of 5 seconds
    for row, cell in zip(cache.splits["train"], cells.values(), strict=False):
        [expected] = features_of(speech, [cell])
        np.testing.assert_array_equal(np.asarray(row["sound_features"], np.float16), expected.half().numpy())
        assert row["sound_seconds"] == [list(x) for x in speech.preprocess([cell]).annotations[0]["seconds"]]
        assert row["sound"] == cell
    again = json.loads(json.dumps(cache.key))
    assert again == cache_key(raw, {"sound": speech})


def test_places_of_a_sound(speech, tmp_path):
    path = write(tmp_path / "clip.wav", noise(4000))
    [annotation] = speech.preprocess([path]).annotations
    kind = ENCODED_KINDS["audio"]
    content = kind.content({"path": path, "bytes": None})
    row = {
        "sound": {"path": path, "bytes": None},
        "sound_special_mask": [False] * len(annotation["seconds"]),
        "sound_seconds": kind.annotation_cells(annotation)["seconds"],
        "sound_sha256": sha256(content).hexdigest(),
    }
    places = places_in(row, "sound", speech.identity())
    assert type(places) is AudioPlaces
    start, end = annotation["seconds"][20]
    assert places.name_of(20) == f"{start:.2f}–{end:.2f} s"
    assert places.place_of(20) == {"seconds": (start, end)}
    assert places.end == 0.5
    assert not notes_on({"sound": places})
    saved = json.loads(json.dumps(places.to_dict()))
    assert places_from_dict(saved) == places
    write(tmp_path / "clip.wav", noise(4000, 1))
    changed = places_from_dict(saved)
    assert changed.sound() is None
    assert notes_on({"sound": changed}) == [
        f"The sound is not the one that was encoded: {path} has changed; put the encoded one back, or encode anew."
    ]
    (tmp_path / "clip.wav").unlink()
    assert "is not at" in places_from_dict(saved).missing()
    assert "to hear it" in places_from_dict(saved).missing()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seconds": 0}, "max_seconds=0 must be a number of seconds above 0"),
        ({"max_seconds": float("nan")}, "max_seconds=nan must be"),
        ({"max_seconds": "30"}, "max_seconds='30' must be"),
        ({"max_seconds": 0.03}, r"gives 1 features for a sound of 240 samples, too few .*\(max_seconds\)"),
        ({"frames_per_feature": 0}, "frames_per_feature=0 must be a whole number, at least 1"),
        ({"resize": "crop"}, "'audio', which has max_seconds, frames_per_feature"),
        ({"hidden_layer": 9}, "hidden_layer=9 is out of range"),
    ],
)
def test_options_that_do_not_fit(make_folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(make_folder("wav2vec2"), "audio", **options)


def test_encoders_of_other_kinds_are_refused(make_folder):
    with pytest.raises(ValueError, match=r"is of kind 'text', not 'audio'"):
        load_encoder(make_folder("bert"), "audio")
    with pytest.raises(ValueError, match=r"is of kind 'audio', not 'image'"):
        load_encoder(make_folder("ast"), "image")


def test_a_model_that_forgets_the_order_is_refused(make_folder, monkeypatch):
    forward = hf.Wav2Vec2Model.forward

    def shuffled(self, input_values, **options):
        outputs = forward(self, input_values, **options)
        order = torch.randperm(outputs.last_hidden_state.shape[1], generator=torch.Generator().manual_seed(0))
        outputs.last_hidden_state = outputs.last_hidden_state[:, order]
        return outputs

    monkeypatch.setattr(hf.Wav2Vec2Model, "forward", shuffled)
    with pytest.raises(ValueError, match="does not show which of the output's positions"):
        load_encoder(make_folder("wav2vec2"), "audio")
