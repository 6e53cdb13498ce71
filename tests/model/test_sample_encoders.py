import dataclasses
import importlib.util
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kills import killed_before

from fl_i2moe.model import sample_encoders
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.sample_encoders import SAMPLE_ENCODERS, find_in_user_cache, resolve_encoder, user_cache_dir


def package_dir(name):
    spec = importlib.util.find_spec(SAMPLE_ENCODERS[name].package)
    if spec is None:
        pytest.skip(f'{SAMPLE_ENCODERS[name].package} is not installed (pip install -e ".[sample]")')
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def conv_same(x, weight, stride=1, groups=1):
    """A convolution with TensorFlow's "SAME" padding: the odd pixel goes to the right and the bottom."""
    kernel, size = weight.shape[-1], x.shape[-1]
    pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return F.conv2d(F.pad(x, [pad // 2, pad - pad // 2] * 2), weight, stride=stride, groups=groups)


def efficientnet_lite0(state, x):
    """EfficientNet-Lite0 written down from its paper's table, reading the original state dict; gives the last map."""

    def norm(x, name):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    def conv(x, name, **options):
        return conv_same(x, state[f"{name}.weight"], **options)

    x = F.relu6(norm(conv(x, "_conv_stem", stride=2), "_bn0"))
    block = 0
    for repeats, first_stride in zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1), strict=True):
        for repeat in range(repeats):
            name, skip = f"_blocks.{block}", x
            if f"{name}._expand_conv.weight" in state:
                x = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
            stride = 1 if repeat else first_stride
            x = F.relu6(norm(conv(x, f"{name}._depthwise_conv", stride=stride, groups=x.shape[1]), f"{name}._bn1"))
            x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + skip if repeat else x
            block += 1
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1"))


def test_converted_efficientnet_equals_the_original(cache_dir):
    weights = package_dir("sample:efficientnet-lite0") / "models" / "efficientnet-lite0-57934424.pth"
    encoder = load_encoder(resolve_encoder("sample:efficientnet-lite0", cache_dir), "image")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 224, 224, 3), generator=generator, dtype=torch.uint8)

    normalised = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
    expected = efficientnet_lite0(torch.load(weights, weights_only=True), normalised)
    assert expected.shape == (2, 1280, 7, 7)
    assert expected.std() > 0.1

    features = encoder.encode({"pixels": pixels}).features
    assert encoder.grid == (7, 7)
    torch.testing.assert_close(features, expected.permute(0, 2, 3, 1).reshape(2, 49, 1280), atol=1e-4, rtol=1e-4)


def test_minilm_is_copied_as_it_is(cache_dir):
    original = package_dir("sample:minilm") / "model"
    folder = Path(resolve_encoder("sample:minilm", cache_dir))
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / file).read_bytes() == (original / file).read_bytes()

    encoder = load_encoder(str(folder), "text", name="sample:minilm", max_length=12)
    assert (encoder.feature_size, encoder.max_features) == (384, 12)
    assert encoder.identity()["name"] == "sample:minilm"
    text = "A thief in Paris"
    (annotation,) = encoder.preprocess([text]).annotations
    assert [text[start:end] for start, end in annotation["offsets"]] == ["", "A", "thief", "in", "Paris", ""]
    # The package itself would import half the ecosystem.
    assert SAMPLE_ENCODERS["sample:minilm"].package not in sys.modules


def listing(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_converted_once(cache_dir):
    package_dir("sample:efficientnet-lite0")
    first = Path(resolve_encoder("sample:efficientnet-lite0", cache_dir))
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve_encoder("sample:efficientnet-lite0", cache_dir) == str(first)
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    assert [name for name in listing(first.parent) if name.startswith(".")] == []


def test_cache_dir_from_the_environment(tmp_path, monkeypatch):
    package_dir("sample:efficientnet-lite0")
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path))
    assert Path(resolve_encoder("sample:efficientnet-lite0")).is_relative_to(tmp_path)


def test_the_users_cache_lies_where_the_ecosystem_puts_it(tmp_path, monkeypatch):
    names = ("FL_I2MOE_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    old = tmp_path / ".cache" / "fl_i2moe"
    assert user_cache_dir() == old
    places = [tmp_path / "own", tmp_path / "hf" / "fl_i2moe", tmp_path / "xdg" / "fl_i2moe"]
    for name, place in list(zip(names, places, strict=True))[::-1]:
        monkeypatch.setenv(name, str(place if name == names[0] else place.parent))
        assert user_cache_dir() == place
    monkeypatch.setenv("HF_HOME", "~/hf")
    (old / "features" / "abc").mkdir(parents=True)  # by an older version
    assert find_in_user_cache("features", "abc") == places[0] / "features" / "abc"  # what the user says holds
    monkeypatch.delenv("FL_I2MOE_CACHE")
    assert find_in_user_cache("features", "abc") == old / "features" / "abc"
    assert find_in_user_cache("features", "new") == places[1] / "features" / "new"
    (places[1] / "features" / "abc").mkdir(parents=True)
    assert find_in_user_cache("features", "abc") == places[1] / "features" / "abc"
    monkeypatch.setenv("HF_HOME", "")  # as if it were not set
    assert user_cache_dir() == places[2]


def test_changed_file_is_refused(tmp_path, monkeypatch):
    name = "sample:efficientnet-lite0"
    package_dir(name)
    (file,) = SAMPLE_ENCODERS[name].files
    changed = dataclasses.replace(SAMPLE_ENCODERS[name], files={file: "0" * 64})
    monkeypatch.setitem(SAMPLE_ENCODERS, name, changed)
    with pytest.raises(ValueError, match=rf"{re.escape(Path(file).name)} is not the file .* expected 0000"):
        resolve_encoder(name, tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_missing_package(tmp_path, monkeypatch):
    name = "sample:minilm"
    monkeypatch.setitem(SAMPLE_ENCODERS, name, dataclasses.replace(SAMPLE_ENCODERS[name], package="not_installed_xyz"))
    with pytest.raises(ValueError, match=r'not_installed_xyz: pip install -e "\.\[sample\]"'):
        resolve_encoder(name, tmp_path)


def test_unknown_and_other_names():
    with pytest.raises(ValueError, match=r"sample:minilmm.*sample:efficientnet-lite0, sample:minilm"):
        resolve_encoder("sample:minilmm")
    assert resolve_encoder("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"


def test_two_writers_at_the_same_time(tmp_path):
    """The second waits, and leaves what the first wrote."""
    folder, written = tmp_path / "encoder", []

    def write(temporary):
        written.append(temporary)
        time.sleep(0.3)
        (temporary / "a").write_text(str(len(written)))

    writers = [threading.Thread(target=sample_encoders._write_whole, args=(folder, write)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert (folder / "a").read_text() == "1"
    assert len(written) == 1
    assert listing(tmp_path) == ["encoder"]


def test_a_failed_conversion_leaves_nothing_and_a_killed_one_is_cleared(tmp_path):
    def fail(temporary):
        (temporary / "half").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        sample_encoders._write_whole(tmp_path / "encoder", fail)
    assert listing(tmp_path) == []

    def write(temporary):
        (temporary / "a").write_text("1")
        (temporary / "b").write_text("2")

    number = 0
    while killed_before(number, lambda: sample_encoders._write_whole(tmp_path / "encoder", write), tmp_path):
        if not (tmp_path / "encoder").exists():
            sample_encoders._write_whole(tmp_path / "encoder", write)
        assert listing(tmp_path) == ["encoder"]
        assert listing(tmp_path / "encoder") == ["a", "b"]
        shutil.rmtree(tmp_path / "encoder")
        number += 1
    assert number > 3
