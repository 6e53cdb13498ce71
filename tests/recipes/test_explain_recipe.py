"""`recipes/explain.py` as users run it, and the run it starts: what is written, kept, refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from explained import make_explainable

from fl_i2moe import FLI2MoEModel
from fl_i2moe.evaluation.run import explanations
from fl_i2moe.evaluation.run import sample as run_sample
from fl_i2moe.evaluation.run.arguments import ExplainArguments
from fl_i2moe.evaluation.run.explanations import run_explanations
from fl_i2moe.evaluation.run.sample import file_names
from fl_i2moe.explain import Explanation, explain

QUICK = {
    "units": "features",
    "num_coalitions": 1,
    "num_draws": 2,
    "faithfulness_samples": 4,
    "classes": "true",
}


@pytest.fixture
def trained(tmp_path):
    model, cache = make_explainable(tmp_path)
    model.save_pretrained(tmp_path / "model")
    return model, cache, {"model": str(tmp_path / "model"), "cache_dir": str(cache.path)}


def started(folders, **changes):
    arguments = ExplainArguments(**{**folders, **QUICK, **changes})
    run_explanations(arguments, Accelerator(cpu=True))
    return arguments.folder


def check_close(one, other):
    """Equal JSON, numbers to what products on differently aligned memory leave equal."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            check_close(a, b)
    else:
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-5) if isinstance(other, float) else other)


def test_the_recipe_in_two_processes_explains_what_one_does(launch, trained, tmp_path):
    _, _, folders = trained
    options = [f"--{name}={value}" for name, value in {**folders, **QUICK, "num_threads": 1}.items()]
    launch("recipes/explain.py", *options, "--num_samples=3", "--num_pages=2", forked=2)
    folder = tmp_path / "model" / "explanations"
    expected = started(folders, num_samples=3, num_pages=2, output_dir=str(tmp_path / "one"))
    names = {str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file()}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names
    for name in ("alignment.json", "pair_masking.json", "pair_curves.json", "faithfulness.json"):
        one, two = (json.loads((x / name).read_text()) for x in (expected, folder))
        check_close(one, two)
    index = (folder / "index.html").read_text()
    pages = sorted(path.name for path in (folder / "samples").glob("*.html"))
    assert all(f'href="samples/{page}"' in index for page in pages)
    assert 'src="pair_curves.png"' in index
    curves, table = (json.loads((folder / f"{name}.json").read_text()) for name in ("pair_curves", "pair_masking"))
    for expert, by_direction in curves.items():
        deletion, insertion = (by_direction[name]["metrics"]["micro_f1"] for name in ("deletion", "insertion"))
        assert deletion["ranked"]["values"][0] == pytest.approx(table[expert]["metrics"]["micro_f1"]["none"])
        assert insertion["ranked"]["values"][-1] == deletion["ranked"]["values"][0]
        for curve in (deletion, insertion):  # where nothing or everything is masked, the order plays no part
            for end in (0, -1):
                assert curve["random"]["values"][end] == pytest.approx(curve["ranked"]["values"][end])


def test_each_true_class_has_the_pages_that_explain_gives(trained):
    model, cache, folders = trained
    folder = started(folders, num_samples=3, measurements=["none"])
    assert sum(map(sum, cache.splits["test"]["labels"][:3])) > 3  # samples with several classes
    for number, row in enumerate(cache.splits["test"].select(range(3))):
        for index in [i for i, label in enumerate(row["labels"]) if label]:
            saved = Explanation.load(folder / "samples" / f"{row['id']}-{cache.label_names[index]}.json")
            how = {"units": "features", "num_coalitions": 1, "sample_number": number, "cache": cache}
            check_close(saved.to_dict(), json.loads(json.dumps(explain(model, row, index, **how).to_dict())))
    assert not (folder / "faithfulness.json").exists()
    assert not (folder / "alignment.json").exists()


def test_predicted_classes_are_explained_beside_true_ones(trained, monkeypatch):
    """By default, each once, and the index says which they are; a run of true classes is added to."""
    model, cache, folders = trained
    assert ExplainArguments(model="x").classes == "predicted_and_true"
    quick = {"num_samples": 2, "measurements": ["none"], "interactions": "none"}
    names, rows = cache.label_names, cache.splits["test"].select(range(2))

    def pages(folder, number):
        return {path.stem.rsplit("-", 1)[1] for path in (folder / "samples").glob(f"test-{number}-*.html")}

    folder = started(folders, **quick)
    for number, row in enumerate(rows):
        true = {name for name, label in zip(names, row["labels"], strict=True) if label}
        assert pages(folder, number) == (true or pages(folder, number))
    started(folders, **quick, classes="predicted_and_true")
    index = (folder / "index.html").read_text()
    for number, row in enumerate(rows):
        logits = explain(model, row, units="features", interactions=None).logits
        expected = {names[i] for i in range(3) if logits[i] > 0 or row["labels"][i]}
        assert pages(folder, number) == expected
        for i, name in enumerate(names):
            if name in expected:
                said = {(True, True): "predicted and true", (True, False): "predicted, but not true"}
                said = said.get((logits[i] > 0, bool(row["labels"][i])), "true, but not predicted")
                assert re.search(rf'test-{number}-{name}\.html".*</a> {said}<', index)
    monkeypatch.setattr(run_sample, "explain", None)  # nothing is left to explain
    started(folders, **quick, classes="predicted_and_true")


def test_a_second_start_goes_on_after_what_is_there(trained, monkeypatch):
    _, cache, folders = trained
    folder = started(folders, num_samples=2, measurements=["alignment"])
    before = {path: path.stat().st_mtime_ns for path in (folder / "samples").iterdir()}
    explained = []

    def counting(model, row, *arguments, **options):
        explained.append(row["id"])
        return explain(model, row, *arguments, **options)

    monkeypatch.setattr(run_sample, "explain", counting)
    started(folders, num_samples=3, measurements=["alignment"])
    assert set(explained) == {cache.splits["test"][2]["id"]}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr(explanations, "find_cache", lambda *_: replace(cache, key={**cache.key, "data": "other films"}))
    with pytest.raises(ValueError, match=r"other settings:\n  features: '\w+' then, '\w+' now"):
        started(folders, num_samples=3, measurements=["alignment"])
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other settings:\n  num_coalitions: 1 then, 2 now"):
        started(folders, num_samples=2, num_coalitions=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_only_some_samples_get_pages(trained):
    _, cache, folders = trained
    folder = started(folders, num_samples=3, num_pages=1, classes="best", measurements=["pair_masking"])
    assert len(list((folder / "samples").glob("*.html"))) == 1
    table = json.loads((folder / "pair_masking.json").read_text())
    assert table["synergy"]["num_samples"] == 3
    chosen = cache.splits["test"][4]["id"]
    folder = started(folders, sample_ids=[chosen], overwrite=True, measurements=["none"], interactions="none")
    assert {path.name.rsplit("-", 1)[0] for path in (folder / "samples").iterdir()} == {chosen}
    assert "not scored" in (folder / "index.html").read_text()


def test_exact_scores_rest_on_all_coalitions(trained):
    _, _, folders = trained
    folder = started(folders, num_samples=1, interactions="exact", measurements=["none"])
    page = (folder / "index.html").read_text()
    assert "exact, all coalitions, the top 30 %" in page
    assert "coalitions a pair" not in page


def test_a_dense_model_beside_the_mixture(trained, tmp_path):
    model, _, folders = trained
    dense_config = type(model.config)(**{**model.config.to_dict(), "architecture": "dense"})
    torch.manual_seed(1)
    FLI2MoEModel(dense_config).save_pretrained(tmp_path / "dense")
    folder = started(
        folders, num_samples=1, num_pages=0, dense_model=str(tmp_path / "dense"), measurements=["faithfulness"]
    )
    results = json.loads((folder / "faithfulness.json").read_text())
    assert {name: result["experts"] for name, result in results.items()} == {
        "FL-I²MoE": model.config.expert_names,
        "dense Transformer": ["dense"],
    }
    assert (folder / "faithfulness.png").exists()


def test_a_fusion_without_attention_is_explained_by_gradients(tmp_path):
    """Rollouts are refused at the start; integrated gradients take their place and are held against random masks."""
    model, cache = make_explainable(tmp_path, fusion="low_rank")
    model.save_pretrained(tmp_path / "model")
    folders = {"model": str(tmp_path / "model"), "cache_dir": str(cache.path), "num_samples": 1}
    with pytest.raises(ValueError, match=r"'low_rank' has no attention, which grad_attnroll needs: give --method ig"):
        started(folders, method="grad_attnroll")
    assert not (tmp_path / "model" / "explanations").exists()
    folder = started(folders, classes="best")
    [result] = json.loads((folder / "faithfulness.json").read_text()).values()
    assert result["methods"] == ["ig", "random"]
    page = (folder / "index.html").read_text()
    assert "Integrated gradients" in page
    assert "Grad×AttnRoll" not in page
    [data] = (folder / "samples").glob("*.json")
    assert Explanation.load(data).method == "ig"


def test_bad_input_is_refused_before_anything_is_written(trained, tmp_path):
    model, _, folders = trained
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for changes, message in (
        ({"model": str(tmp_path / "raw")}, "holds no model: it has no config.json"),
        ({"split": "exam"}, r"no split 'exam'; it has \['test'\]"),
        ({"sample_ids": ["nobody"]}, r"no samples \['nobody'\]; its ids look like \['test-0'"),
        ({"cache_dir": None}, "No run.json says which features .* give --cache_dir"),
        ({"cache_dir": str(tmp_path / "raw")}, "is no feature cache"),
        ({"output_dir": str(tmp_path / "full")}, "holds other files and no run"),
        ({"dense_model": folders["model"]}, "`dense_model` is a dense model beside a mixture"),
    ):
        with pytest.raises(ValueError, match=message):
            started(folders, **changes)
    model.config.encoders = {**model.config.encoders, "image": {"name": "fake-image", "revision": "b"}}
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"another encoder of image than the model's:\n  revision: 'a', the model's 'b'"
    ):
        started({**folders, "model": str(tmp_path / "other")})
    assert not (tmp_path / "model" / "explanations").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    for wrong in (
        {"universe_share": 0},
        {"num_coalitions": 0},
        {"measurements": ["luck"]},
        {"num_pages": -1},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ExplainArguments(**folders, **wrong)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        ExplainArguments(**folders, seed=-1)


def test_the_cache_of_the_training_run_is_found(trained, tmp_path, monkeypatch):
    _, cache, folders = trained
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path / "user"))
    (tmp_path / "model" / "run.json").write_text('{"features": "abc"}')
    with pytest.raises(ValueError, match=r"feature cache abc that the run in .* is not in"):
        explanations.find_cache(folders["model"])
    (tmp_path / "user" / "features").mkdir(parents=True)
    (tmp_path / "user" / "features" / "abc").symlink_to(cache.path)
    assert explanations.find_cache(folders["model"]).label_names == cache.label_names


def test_file_names_are_safe_and_differ():
    names = ["0071411", "a/b", "a_b", "..", "ä", "x" * 200, "x" * 199, "Tt1", "tT1", "a-b", "a"]
    files = list(file_names(names).values())
    assert len({file.lower() for file in files}) == len(names)
    classes = file_names(["b-c", "c", "C"], allowed="A-Za-z0-9._").values()
    assert len({f"{file}-{name}".lower() for file in files for name in classes}) == 3 * len(names)
    assert files[0] == "0071411"
    assert all(file.isascii() and "/" not in file and not file.startswith(".") and len(file) < 100 for file in files)


@pytest.fixture
def spoiled(trained, monkeypatch):
    """The cache as it is read: sample 1 without a word, the second to last with a number that is none."""
    _, cache, folders = trained
    split = cache.splits["test"]

    def spoil(row, number):
        if number == 1:
            row["text_special_mask"] = [True] * len(row["text_special_mask"])
        elif number == 4:
            row["image_features"] = np.full_like(row["image_features"], np.nan)
        return row

    split = split.with_format("numpy").map(spoil, with_indices=True, features=split.features).with_format(None)
    monkeypatch.setattr(explanations, "find_cache", lambda *_: replace(cache, splits={"test": split}))
    return folders


def test_bad_samples_are_left_out_of_everything(spoiled, capsys):
    everything = {"num_samples": None, "faithfulness_samples": None}
    folder = started(spoiled, **everything, on_bad_sample="skip", measurements=["faithfulness", "alignment"])
    assert {path.name.rsplit("-", 1)[0] for path in (folder / "samples").iterdir()} == {
        f"test-{number}" for number in (0, 2, 3, 5)
    }
    [result] = json.loads((folder / "faithfulness.json").read_text()).values()
    assert result["num_samples"] == 4
    aligned = json.loads((folder / "alignment.json").read_text())["experts"]["synergy"]["bins"]
    assert max(entry["num_samples"] for entry in aligned) <= 4
    said = capsys.readouterr().out
    assert "Sample test-1 has no text feature that is not special" in said
    assert "Sample test-4 has image features that are NaN or infinite. It is left out." in said


def test_bad_samples_stop_the_run_by_their_names(spoiled):
    with pytest.raises(ValueError, match=r"Sample test-1 has no text .* skip"):
        started(spoiled, num_samples=2)
    with pytest.raises(ValueError, match="Sample test-4 has image features that are NaN"):
        started(spoiled, sample_ids=["test-4"])
    with pytest.raises(ValueError, match="No sample is left"):
        started(spoiled, sample_ids=["test-4", "test-1"], on_bad_sample="skip")
    # nobody asked for the bad one: it stops what is measured on it, not the explanations
    with pytest.raises(ValueError, match="Sample test-1 has no text"):
        started(spoiled, sample_ids=["test-2"], measurements=["faithfulness"])
    folder = started(spoiled, sample_ids=["test-2"], faithfulness_samples=1, measurements=["faithfulness"])
    assert list((folder / "samples").glob("test-2-*.html"))
