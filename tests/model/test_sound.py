"""Sounds as people have them: other formats, rates and channels, and files that are damaged or empty."""

import builtins
import io

import numpy as np
import pytest
import soundfile

from fl_i2moe.model.kind_file import fetch
from fl_i2moe.model.sound import open_sound, resample

RATE = 16000


def tone(num_samples, pitch=440, rate=RATE):
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(num_samples) / rate)).astype(np.float32)


def encode(samples, rate=RATE, form="WAV", subtype=None):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 2 / 128),
        ("WAV", "PCM_16", 2 / 32768),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 1e-7),
        ("WAV", "ULAW", 0.02),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 2 / 32768),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.1),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_formats(form, subtype, error):
    samples = tone(RATE)
    sound = open_sound({"path": None, "bytes": encode(samples, form=form, subtype=subtype)})
    assert (len(sound.samples), sound.rate, sound.seconds) == (RATE, RATE, 1)
    assert sound.samples.dtype == np.float32
    middle = slice(2000, -2000)
    assert np.abs(sound.samples - samples)[middle].max() <= error


def test_channels_are_averaged():
    five = np.stack([tone(RATE, 200 * (channel + 1)) for channel in range(5)], axis=1)
    expected = sum(five[:, channel] for channel in range(5)) / 5
    content = {"bytes": encode(five, subtype="FLOAT")}
    for value in (content, (five, RATE), (five.T, RATE), {"array": five.astype(np.float64), "sampling_rate": 16000.0}):
        np.testing.assert_allclose(open_sound(value).samples, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [100, 8000, 44100, 96000, 192000])
def test_rates(rate):
    """A tone that both rates can hold is the same tone, of the same length."""
    pitch = 20
    sound = open_sound({"bytes": encode(tone(2 * rate, pitch, rate), rate)})
    found = resample(sound.samples, sound.rate, RATE)
    assert len(found) == 2 * RATE
    middle = slice(RATE // 2, -RATE // 2)
    assert np.abs(found - tone(2 * RATE, pitch))[middle].max() < 0.01


def test_integers_are_scaled_by_their_type():
    for kind in (np.int8, np.int16, np.int32):
        limit = -int(np.iinfo(kind).min)
        found = open_sound((np.array([-limit, 0, limit // 2], kind), 8000)).samples
        assert found.tolist() == [-1, 0, 0.5]
    assert open_sound((np.array([0, 128, 192], np.uint8), 8000)).samples.tolist() == [-1, 0, 0.5]


def test_only_what_is_asked_for_is_read(tmp_path):
    path = tmp_path / "langes Stück ♫.flac"
    soundfile.write(path, tone(10 * RATE), RATE)
    sound = open_sound(path, max_seconds=1.5)
    assert (len(sound.samples), sound.seconds) == (1.5 * RATE, 10)
    np.testing.assert_array_equal(sound.samples, open_sound(path).samples[: int(1.5 * RATE)])
    again = open_sound(open_sound(path), max_seconds=1.5)  # by a worker whole, cut later
    np.testing.assert_array_equal(again.samples, sound.samples)
    assert again.seconds == 10


def test_silence_is_a_sound():
    assert not open_sound({"bytes": encode(np.zeros(RATE))}).samples.any()


WAV, FLAC, MP3, AIFF, OGG = (encode(tone(RATE), form=form) for form in ("WAV", "FLAC", "MP3", "AIFF", "OGG"))
NAN = tone(RATE)
NAN[77] = np.nan


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes|Format not recognised"),
        (b"This is a letter, not a sound. " * 9, "Format not recognised"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "Format not recognised"),
        (encode(np.zeros(0)), r"it has no samples \(0 s\)"),
        (WAV[:20], "Error"),
        (WAV[:44], r"it is truncated: it has 0 of 32,000 bytes"),
        (WAV[: len(WAV) // 2], "it is truncated: it has 15,978 of 32,000 bytes"),
        (AIFF[: len(AIFF) // 2], "it is truncated"),
        (FLAC[: len(FLAC) // 2], "lost sync|truncated"),
        (FLAC[:2000] + bytes(3000) + FLAC[5000:], "lost sync|truncated"),
        (MP3[: len(MP3) // 2], "it is truncated"),
        (OGG[: len(OGG) // 3], "no samples|truncated|malformed"),
        (encode(NAN, subtype="FLOAT"), "sample 77 is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("given_as", ["file", "bytes"])
def test_damaged_files(tmp_path, content, reason, given_as):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    value = path if given_as == "file" else {"path": str(path), "bytes": content}
    with pytest.raises(
        ValueError, match=rf"clip\.wav: cannot be read as a sound: .*({reason}).* Replace or leave out this sound\."
    ) as error:
        open_sound(value)
    assert "BytesIO" not in str(error.value)


def test_a_stream_whose_header_promises_nothing():
    """As ffmpeg writes it to a pipe."""
    content = bytearray(WAV)
    content[40:44] = b"\xff\xff\xff\xff"
    assert len(open_sound({"bytes": bytes(content)}).samples) == RATE


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gone/clip.wav", r"gone/clip\.wav: .*the file is missing"),
        (".", "cannot be read as a sound"),
        ("x" * 5000, "cannot be read as a sound"),
        ("nul\0byte.wav", "cannot be read as a sound"),
        ({"path": None, "bytes": None}, "give a path"),
        (None, "given as NoneType: .*give a path"),
        (np.zeros(100), "given as ndarray: .*give a path"),
        ({"array": np.zeros(100)}, "sampling rate is None"),
        ({"array": np.zeros(100), "sampling_rate": 0}, "sampling rate is 0"),
        ({"array": np.zeros(100), "sampling_rate": "fast"}, "sampling rate is 'fast'"),
        ((np.zeros(100), float("nan")), "sampling rate is nan"),
        ((np.zeros(100), 0.2), "sampling rate is 0.2"),
        ((np.zeros((2, 3, 4)), 8000), "one or two dimensions"),
        ((np.array(["a"]), 8000), "must be numbers"),
        ((np.zeros(0), 8000), r"no samples \(0 s\)"),
        (([0.0, float("inf")], 8000), "sample 1 is NaN or infinite"),
    ],
)
def test_values_that_are_no_sound(value, reason):
    with pytest.raises(ValueError, match=reason):
        open_sound(value)


@pytest.mark.parametrize(("package", "call"), [("soundfile", lambda: open_sound({"bytes": WAV})), ("soxr", None)])
def test_without_the_packages_a_sentence_says_what_to_install(monkeypatch, package, call):
    real = builtins.__import__

    def refuse(name, *more, **options):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[audio\]"'):
        (call or (lambda: resample(tone(100), 8000, 16000)))()


def test_addresses_are_fetched_and_nothing_else(tmp_path):
    import http.server
    import threading

    (tmp_path / "clip.wav").write_bytes(WAV)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **options):
            super().__init__(*args, directory=str(tmp_path), **options)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert len(open_sound(fetch(f"{address}/clip.wav")).samples) == RATE
        with pytest.raises(ValueError, match=r"gone\.wav: could not be fetched: .*404"):
            fetch(f"{address}/gone.wav")
        server.shutdown()
    assert fetch("clip.wav") == "clip.wav"
