"""The recipe on planted films with tiny encoders and models that nobody trained."""

import json
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fake_encoders import FakeEncoded, FakePreprocessed
from PIL import Image

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.cache import build_cache
from fl_i2moe.data.mmimdb import load_mmimdb
from fl_i2moe.data.planted import PLANTED_GENRES, write_planted
from fl_i2moe.evaluation.ground_truth import run as evaluation_run
from fl_i2moe.evaluation.ground_truth.sample_truth import sample_truth

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/evaluate_explanations.py"
GRID = (6, 5)


def preprocess_posters(values: list[dict[str, Any]]) -> FakePreprocessed:
    """The mean colour of each patch."""
    pictures = [Image.open(value["path"]).convert("RGB") for value in values]
    patches = [np.asarray(picture.resize(GRID[::-1], Image.Resampling.BOX), np.float32) / 255 for picture in pictures]
    sizes = [picture.size for picture in pictures]
    geometry = [{"width": w, "height": h, "left": 0, "top": 0, "right": w, "bottom": h} for w, h in sizes]
    return FakePreprocessed({"patches": torch.tensor(np.stack(patches))}, geometry)


def preprocess_plots(values: list[str], longest: int = 80) -> FakePreprocessed:
    """A special token, then one for each word: numbers that depend on its letters."""
    numbers, annotations = torch.full((len(values), longest, 3), torch.nan), []
    for row, value in enumerate(values):
        offsets, end = [(0, 0)], 0
        for word in value.split()[: longest - 1]:
            start = value.index(word, end)
            end = start + len(word)
            numbers[row, len(offsets)] = torch.tensor([len(word), ord(word[0]) / 100, ord(word[-1]) / 100])
            offsets.append((start, end))
        numbers[row, 0] = 0
        annotations.append({"offsets": offsets, "num_tokens": len(offsets), "truncated": False})
    return FakePreprocessed({"numbers": numbers}, annotations)


@dataclass
class PosterEncoder:
    kind: str = "image"
    feature_size: int = 3
    max_features: int = GRID[0] * GRID[1]
    grid: tuple[int, int] | None = GRID

    preprocess = staticmethod(preprocess_posters)

    def encode(self, inputs):
        features = inputs["patches"].flatten(1, 2)
        real = torch.ones(features.shape[:2], dtype=torch.bool)
        return FakeEncoded(features, real, ~real)

    def identity(self):
        return {"name": "colours"}


@dataclass
class PlotEncoder:
    kind: str = "text"
    feature_size: int = 3
    max_features: int = 80
    grid: tuple[int, int] | None = None

    preprocess = staticmethod(preprocess_plots)

    def encode(self, inputs):
        numbers = inputs["numbers"]
        real = ~numbers.isnan().any(dim=2)
        return FakeEncoded(numbers.nan_to_num(), real, real & (torch.arange(numbers.shape[1]) == 0))

    def identity(self):
        return {"name": "letters"}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Films, their features, a mixture with two seeds and a dense model."""
    folder = tmp_path_factory.mktemp("ground-truth")
    films = write_planted(folder / "films", num_films=60)
    raw = load_mmimdb(films, labels=list(PLANTED_GENRES))
    encoders = {"image": PosterEncoder(), "text": PlotEncoder()}
    build_cache(raw, encoders, folder / "cache", num_workers=0, progress=False)
    modalities = {name: {"feature_size": 3, "max_features": x.max_features} for name, x in encoders.items()}
    labels = {"id2label": dict(enumerate(raw.label_names)), "label2id": {n: i for i, n in enumerate(raw.label_names)}}
    for place, architecture in (("moe/seed-0", "moe"), ("moe/seed-1", "moe"), ("dense/seed-0", "dense")):
        torch.manual_seed(len(place) + int(place[-1]))
        config = FLI2MoEConfig(
            modalities=modalities,
            encoders={name: x.identity() for name, x in encoders.items()},
            hidden_size=8,
            num_attention_heads=2,
            architecture=architecture,
            identical_experts_init=False,
            **labels,
        )
        model = FLI2MoEModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder / place / "model")
    return folder


def arguments(work: Path, *options: str) -> list[str]:
    small = ["--num_samples=16", "--num_pair_samples=4", "--num_coalitions=1", "--universe_share=0.1", "--num_steps=2"]
    where = [f"--data_dir={work / 'films'}", f"--cache_dir={work / 'cache'}"]
    return [RECIPE, *where, *small, "--num_resamples=20", *options]


@pytest.fixture
def refusal(work, monkeypatch, capsys):
    """Runs the recipe in this process and returns what it says against its options."""

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", arguments(work, *options))
        with pytest.raises((ValueError, SystemExit)) as error:
            runpy.run_path(str(ROOT / RECIPE), run_name="recipe")["main"]()
        return str(error.value) + capsys.readouterr().err

    return run


def test_one_command_leaves_table_numbers_and_figure(work, run_here, refusal):
    models = ["--models", str(work / "moe"), str(work / "dense")]
    output = run_here(*arguments(work, *models, f"--output_dir={work / 'out'}"))
    report = json.loads((work / "out" / "ground_truth.json").read_text())
    text = (work / "out" / "ground_truth.md").read_text()
    assert text.splitlines()[0] in output
    assert Image.open(work / "out" / "carriers.png").size[0] > 500
    mixture, dense = report["models"].values()

    carried = mixture["right_experts"]["logits"]["f1"]
    assert set(carried["labels"]) == set(PLANTED_GENRES)
    assert carried["labels"]["Horror"]["right"] == "synergy"
    assert carried["labels"]["Drama"]["right"] == "uniqueness_image"
    shares = carried["share_right"]["seeds"]
    assert len(shares) == 2
    for seed, share in enumerate(shares):  # counted again
        right = sum(entry["carriers"][seed] == entry["right"] for entry in carried["labels"].values())
        assert share == pytest.approx(right / 8)
    assert dense["right_experts"] == {}

    # an untrained model's random features are as good as chance, and every group of labels has its own modalities
    assert {g: set(x["probe"]) for g, x in report["ceiling"].items()} == {
        "uniqueness_image": {"image"},
        "uniqueness_text": {"text"},
        "synergy": {"image", "text"},
        "redundancy": {"image", "text"},
    }
    assert set(mixture["evidence"]["synergy"]) == {*mixture["experts"], "mixture"}
    assert set(dense["evidence"]["synergy"]["dense"]) == {"attnroll", "grad_attnroll", "ig", "random"}
    assert set(mixture["pairs"]) == {"synergy", "redundancy"}
    assert set(mixture["pairs"]["synergy"]["synergy"]) == {"top", "oracle"}
    assert set(mixture["pairs"]["synergy"]["redundancy"]) == {"top"}
    assert set(dense["pairs"]["redundancy"]["dense"]) == {"top", "oracle"}
    assert mixture["pairs"]["synergy"]["synergy"]["oracle"]["universe"]["any"]["mean"] == 1

    assert list(report["models"]) == ["moe", "dense"]
    assert "--overwrite" in refusal(*models, f"--output_dir={work / 'out'}", "--seed=1")


def test_a_second_start_goes_on_after_the_models_that_are_measured(work, tmp_path, monkeypatch):
    models = shutil.copytree(work / "moe", tmp_path / "moe")
    options = ["--num_samples=4", "--num_pair_samples=0", "--methods=attnroll", "--num_probe_samples=40"]
    parts, found_evidence = tmp_path / "out" / "measured", evaluation_run.found_evidence
    asked = []

    def start(*more, fails_at=None):
        def count(*given, **how):
            asked.append(given[0])
            if len(asked) == fails_at:
                raise KeyboardInterrupt
            return found_evidence(*given, **how)

        monkeypatch.setattr(evaluation_run, "found_evidence", count)
        out = [f"--models={models}", f"--output_dir={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", arguments(work, *options, *out, *more))
        asked.clear()
        runpy.run_path(str(ROOT / RECIPE), run_name="recipe")["main"]()
        return json.loads((tmp_path / "out" / "ground_truth.json").read_text())

    with pytest.raises(KeyboardInterrupt):
        start(fails_at=2)
    assert [x.name for x in parts.iterdir()] == ["moe-seed-0.npz"]
    assert not (tmp_path / "out" / "ground_truth.json").exists()
    report = start()
    assert len(asked) == 1
    assert start() == report
    assert len(asked) == 0
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        start("--seed=1")
    model = FLI2MoEModel.from_pretrained(models / "seed-1" / "model")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(models / "seed-1" / "model")
    with pytest.raises(ValueError, match="weights"):
        start()
    # at one go, nothing kept
    shutil.rmtree(models)
    shutil.copytree(work / "moe", models)
    assert start("--overwrite") == report
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "{}/nowhere"], "holds no model"),
        (["--models", "{}/moe", "--universe_share=0"], "universe_share"),
        (["--models", "{}/moe", "--methods", "guessing"], "guessing"),
        (["--models", "{}/moe", "--cache_dir={}/films"], "no feature cache"),
        (["--models", "{}/moe", "--data_dir={}/cache"], "no planted sample"),
        ([], "names no run"),
    ],
)
def test_bad_input_is_told_at_once(work, refusal, options, message):
    assert message in refusal(*(option.format(work) for option in options), f"--output_dir={work / 'bad'}")
    assert not (work / "bad").exists()


def test_several_processes_are_refused(work, refusal, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    assert "One process" in refusal("--models", str(work / "moe"), f"--output_dir={work / 'two'}")
    assert not (work / "two").exists()


def test_films_and_features_must_belong_together(work, refusal, tmp_path):
    others = write_planted(tmp_path / "others", num_films=20)
    assert "other films" in refusal("--models", str(work / "moe"), f"--data_dir={others}")
    config = json.loads((work / "moe" / "seed-0" / "model" / "config.json").read_text())
    shutil.copytree(work / "moe" / "seed-0" / "model", tmp_path / "model")
    config["encoders"]["text"]["name"] = "another"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert "another encoder of text" in refusal("--models", str(tmp_path / "model"), f"--output_dir={tmp_path / 'out'}")


def test_features_of_other_kinds_have_no_truth():
    cache = SimpleNamespace(path="sounds", splits=["test"], modalities={"a": {"kind": "audio"}, "b": {"kind": "image"}})
    with pytest.raises(ValueError, match="sounds is of kind audio and image, the built-in samples are of array or"):
        sample_truth([SimpleNamespace(cache=cache)], None, ["test"])
