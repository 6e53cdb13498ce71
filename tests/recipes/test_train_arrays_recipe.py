"""`recipes/train_arrays.py`, and the recipes that come after it."""

import json
import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT
from transformers import AutoModel

import fl_i2moe  # noqa: F401

RECIPE = "recipes/train_arrays.py"
TINY = ["--hidden_size=8", "--num_attention_heads=2", "--num_fusion_layers=1", "--reweighting_hidden_size=8"]
TINY += ["--num_epochs=1", "--batch_size=16", "--num_threads=1", "--encoding_workers=0"]


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys, fresh_accelerate):
    """Runs the recipe in this process and returns what it says against its options."""
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path / "user-cache"))

    def run(*options):
        monkeypatch.setattr(sys, "argv", [RECIPE, f"--output_dir={tmp_path / 'bad'}", *TINY, *options])
        with pytest.raises((ValueError, SystemExit)) as error:
            runpy.run_path(str(ROOT / RECIPE), run_name="recipe")["main"]()
        assert not (tmp_path / "bad").exists()
        return str(error.value) + capsys.readouterr().err

    return run


def test_three_modalities_from_training_to_truth(run_here, no_figures, tmp_path):
    """The built-in sample, trained on, held against its truth, explained."""
    run = tmp_path / "run"
    sample = ["--num_modalities=3", "--num_samples=80", "--num_tokens=12", "--evidence_tokens=2"]
    output = run_here(RECIPE, *TINY, *sample, f"--output_dir={run}")
    assert "built-in sample" in output
    assert "--data_file" in output
    assert " of 10 labels are carried by the expert named after their interaction; chance is 2." in output
    planted = json.loads((run / "interaction_statistics.json").read_text())["carriers"]["labels"]
    assert planted["alpha_1"]["planted"] == "uniqueness_alpha"
    assert planted["alpha_or_beta_or_gamma_1"]["planted"] == "redundancy"
    model = AutoModel.from_pretrained(run)
    experts = [*(f"uniqueness_{name}" for name in ("alpha", "beta", "gamma")), "synergy", "redundancy"]
    assert model.config.expert_names == experts
    assert model.config.encoders["beta"]["kind"] == "array"
    assert json.loads((run / "results.json").read_text())["samples"] == {"train": 56, "validation": 8, "test": 16}
    assert len(model.config.encoders["gamma"]["scale"]) == 24

    small = ["--num_samples=10", "--num_pair_samples=2", "--num_coalitions=1", "--num_steps=1", "--num_resamples=20"]
    models = ["--models", str(run), f"--output_dir={tmp_path / 'truth'}"]
    run_here("recipes/evaluate_explanations.py", *models, *small)
    report = json.loads((tmp_path / "truth" / "ground_truth.json").read_text())
    assert report["groups"]["alpha_1"] == "uniqueness_alpha"
    assert report["groups"]["beta_xor_gamma_1"] == "synergy"
    assert report["groups"]["alpha_or_beta_or_gamma_1"] == "redundancy"
    assert set(report["ceiling"]["uniqueness_gamma"]["probe"]) == {"gamma"}
    assert report["ceiling"]["synergy"]["probe"]["alpha"]["k"]["mean"] > 0.8  # tokens give their evidence away
    measured = report["models"]["run"]
    assert set(measured["right_experts"]["logits"]["f1"]["labels"]) == set(report["groups"])
    assert measured["pairs"]["synergy"]["synergy"]["oracle"]["universe"]["any"]["mean"] == 1

    run_here(
        "recipes/explain.py",
        f"--model={run}",
        "--num_samples=1",
        "--classes=best",
        "--num_coalitions=1",
        "--measurements=none",
    )
    pages = list((run / "explanations" / "samples").glob("*.html"))
    assert pages
    text = pages[0].read_text()
    assert "numeric arrays, 12 features" in text
    assert any(f"{name} feature " in text for name in ("alpha", "beta", "gamma"))


def test_own_arrays_with_the_papers_settings(run_here, no_figures, tmp_path):
    """Vectors of four modalities, pooled; the same arrays under another name need no second cache."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    fields = {
        name: rng.normal(size=(60, size)) + labels[:, None] for name, size in zip("IGCB", (5, 17, 3, 4), strict=True)
    }
    np.savez(tmp_path / "patients.npz", labels=labels, label_names=np.array(["CN", "MCI", "AD"]), **fields)
    run = tmp_path / "run"
    options = ["--preset=adni", f"--data_file={tmp_path / 'patients.npz'}", "--modalities", "B", "C", "G", "I"]
    output = run_here(RECIPE, *options, *TINY, f"--output_dir={run}")
    assert "single label classification" in output
    config = AutoModel.from_pretrained(run).config
    assert config.modality_order == ["B", "C", "G", "I"]
    assert (config.level, config.num_patches, config.reweighting_temperature) == ("pooled", 16, 1.0)
    assert list(config.id2label.values()) == ["CN", "MCI", "AD"]
    results = json.loads((run / "results.json").read_text())
    assert results["metric"] == "accuracy"
    assert results["samples"] == {"train": 42, "validation": 6, "test": 12}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_file=nowhere.npz"], "nowhere.npz is not there"),
        (["--test_share=1"], "`test_share` must lie"),
        (["--num_modalities=4"], "`num_modalities` must be 2 or 3"),
        (["--num_tokens=4"], "do not fit 4 positions"),
        (["--num_samples=40", "--modalities", "alpha", "delta"], "no ['delta']; its fields are alpha"),
        (["--num_samples=40", "--problem_type=regression", "--metric=accuracy"], "`metric` must be one of mae"),
    ],
)
def test_bad_input_is_told_at_once(refusal, options, message):
    assert message in refusal(*options)
