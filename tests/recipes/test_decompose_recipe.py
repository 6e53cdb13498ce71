"""`recipes/decompose.py`: small models find the bits that are known to be in numbers."""

import json
import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT
from known_bits import LABELS, draw, truth
from PIL import Image

from fl_i2moe.cache import build_cache
from fl_i2moe.cache.fitting import fit_encoders
from fl_i2moe.data.arrays import load_arrays

RECIPE = "recipes/decompose.py"
NOISE = 0.05
SIZES = {"train": 900, "validation": 300, "test": 800}
OPTIONS = ["--seeds=0", "--num_epochs=4", "--hidden_size=16", "--num_attention_heads=2", "--learning_rate=2e-2"]
OPTIONS += ["--dropout=0", "--num_resamples=100", "--num_threads=1", "--batch_size=64", "--num_fusion_layers=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache of arrays, one vector a modality."""
    folder = tmp_path_factory.mktemp("known")
    shown, labels = draw(sum(SIZES.values()), NOISE, np.random.default_rng(0))
    split = np.repeat(list(SIZES), list(SIZES.values()))
    np.savez(
        folder / "known.npz", **shown, labels=labels.astype(np.int64), split=split, label_names=np.array([*LABELS])
    )
    raw = load_arrays(folder / "known.npz")
    build_cache(raw, fit_encoders(raw), folder / "cache", num_workers=0, progress=False)
    return folder


def test_known_bits_are_found(folder, run_here):
    output = run_here(RECIPE, f"--features={folder / 'cache'}", f"--output_dir={folder / 'bits'}", *OPTIONS)
    found = json.loads((folder / "bits" / "information.json").read_text(encoding="utf-8"))
    for label in LABELS:
        known, row = truth(label, NOISE), found["labels"][label]
        for part in ("together", "synergistic", "redundant"):
            assert row[part]["value"] == pytest.approx(known[part], abs=0.05), (label, part)
        for part in ("alone", "unique"):
            values = {name: x["value"] for name, x in row[part].items()}
            assert values == pytest.approx(known[part], abs=0.05), (label, part)
    assert found["labels"]["exclusive_or"]["synergistic"]["value"] >= 0.9 * truth("exclusive_or", NOISE)["together"]
    assert found["labels"]["additive"]["synergistic"]["value"] <= 0.02
    assert "exclusive_or" in output
    assert "mean of all" in output
    with Image.open(folder / "bits" / "information.png") as figure:
        assert figure.width == 1280

    # a second start trains nothing
    models = sorted((folder / "bits" / "models").iterdir())
    assert [x.name for x in models] == [
        f"{x}-seed-0.npz" for x in ("additive", "alone_alpha", "alone_beta", "together")
    ]
    before = {x.name: x.stat().st_mtime_ns for x in models}
    (folder / "bits" / "information.json").unlink()
    run_here(RECIPE, f"--features={folder / 'cache'}", f"--output_dir={folder / 'bits'}", *OPTIONS)
    assert {x.name: x.stat().st_mtime_ns for x in models} == before
    assert json.loads((folder / "bits" / "information.json").read_text(encoding="utf-8")) == found


@pytest.fixture
def refusal(folder, tmp_path, monkeypatch, capsys, fresh_accelerate):
    """Runs the recipe in this process and returns what it says against its options."""
    (tmp_path / "some.txt").write_text("not ours")

    def run(*options):
        monkeypatch.setattr(sys, "argv", [RECIPE, *OPTIONS, *(x.format(folder=folder, tmp=tmp_path) for x in options)])
        with pytest.raises((ValueError, SystemExit)) as error:
            runpy.run_path(str(ROOT / RECIPE), run_name="recipe")["main"]()
        return str(error.value) + capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give `features`"),
        (["--features={folder}/nothing"], "do not exist"),
        (["--features={folder}"], "is no feature cache"),
        (["--features="], "`features` is empty"),
        (["--run={tmp}"], "is no finished training run"),
        (["--features={folder}/cache", "--output_dir={tmp}"], "holds other files"),
        (["--features={folder}/cache", "--output_dir={tmp}/some.txt"], "is a file"),
        (["--features={folder}/cache", "--seeds", "1", "1"], "must be different numbers"),
        (["--features={folder}/cache", "--seeds", "-1"], "must lie in"),
        (["--features={folder}/cache", "--num_epochs=0"], "`num_epochs` must be at least 1"),
        (["--features={folder}/cache", "--hidden_size=15"], "divisible"),
        (["--features={folder}/cache", "--num_resamples=1"], "`num_resamples` must be at least 2"),
        (["--features={folder}/cache", "--dropout=1"], "must lie in"),
        (["--features={folder}/cache", "--learning_rate=nan"], "finite"),
    ],
)
def test_what_is_refused(refusal, tmp_path, options, message):
    assert message in refusal(*options)
