"""Tables of several systems: trained through the same code, gone on with, and told right."""

import json
import runpy
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from fake_encoders import fake_encoders, write_raw
from rich.console import Console

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.cache import build_cache
from fl_i2moe.cache.batching import create_data_loader
from fl_i2moe.comparison.measurements import add_noise, measure_overhead, measure_robustness
from fl_i2moe.comparison.systems import System, choose_systems, compare_systems, render_markdown
from fl_i2moe.metrics import markdown
from fl_i2moe.metrics.tasks import METRICS_BY_PROBLEM, compute_metrics
from fl_i2moe.training import experiment
from fl_i2moe.training import features as run_features
from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.features import EncoderChoice
from fl_i2moe.training.recipe import create_accelerator

SIZES = {"train": 48, "validation": 16, "test": 20}
SYSTEMS = {
    "mult": System("MulT", {"architecture": "dense"}),
    "switch": System("I²MoE-SwitchGate", {"fusion": "switch"}, against="mult"),
    "views": System("fewer views", {"num_perturbed_views": 2}, against="mult", min_modalities=3),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake")
    raw = write_raw(folder / "raw", SIZES)
    return build_cache(raw, fake_encoders(), folder / "cache", num_workers=0, progress=False)


@pytest.fixture
def compare(cache, tmp_path, fresh_accelerate, no_figures):
    def start(systems=SYSTEMS, measure=None, resume=False, overwrite=False, model=None, **training):
        options = {"num_epochs": 1, "batch_size": 16, "learning_rate": 1e-2, "num_threads": 1, "seeds": [0, 1]}
        job = Job(
            EncodingArguments(),
            ModelArguments(hidden_size=8, num_attention_heads=2, num_fusion_layers=1, **(model or {})),
            TrainingArguments(**{**options, **training}),
            OutputArguments(str(tmp_path / "table"), resume, overwrite),
        )
        accelerator = create_accelerator(job.training, job.output.output_dir)
        return compare_systems(systems, cache, job, accelerator, Console(quiet=True), measure)

    return start


def test_table_tells_what_the_runs_gave(compare, tmp_path):
    table = compare()
    folder = tmp_path / "table"
    assert [row["system"] for row in table["rows"]] == ["mult", "switch"]  # two modalities: no fewer views than two
    for row in table["rows"]:
        results = json.loads((folder / row["system"] / "results.json").read_text())
        assert results["settings"]["architecture"] == ("dense" if row["system"] == "mult" else "moe")
        for metric in METRICS_BY_PROBLEM["multi_label_classification"]:
            values = [results["seeds"][seed]["test"][metric] for seed in "01"]
            entry = row["metrics"][metric]
            assert list(entry["values"].values()) == values
            if None not in values:
                assert entry["mean"] == pytest.approx(statistics.mean(values))
                assert entry["std"] == pytest.approx(statistics.stdev(values))
        model = FLI2MoEModel.from_pretrained(folder / row["system"])
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
    first, second = (row["metrics"]["micro_f1"] for row in table["rows"])
    assert first["difference"] is None
    assert second["difference"] == pytest.approx(second["mean"] - first["mean"])

    assert json.loads((folder / "table.json").read_text()) == table
    text = (folder / "table.md").read_text()
    assert text == render_markdown(table)
    header, _, mult, switch = text.splitlines()[:4]
    assert header.startswith("| system | micro_f1 |")
    assert mult.split(" | ")[1] == f"{100 * first['mean']:.1f}\u00a0±\u00a0{100 * first['std']:.1f}"
    assert switch.split(" | ")[1].endswith(f"({markdown.signed('micro_f1', second['difference'])})")
    history = json.loads((folder / "switch" / "seed-0" / "history.json").read_text())
    assert history[0]["auxiliary_loss"] >= 1  # the balance loss is told


@pytest.mark.parametrize(
    ("load_best", "said"),
    [(True, "the epoch is picked by the validation split's mAP"), (False, "the last epoch is kept")],
)
def test_the_table_says_which_epoch_is_kept(compare, tmp_path, load_best, said):
    compare({"mult": SYSTEMS["mult"]}, seeds=[0], metric="mAP", load_best_model_at_end=load_best)
    assert f"; {said}." in (tmp_path / "table" / "table.md").read_text()


def test_a_stopped_comparison_goes_on(compare, tmp_path, monkeypatch):
    """Systems that are done are not trained again; new ones may join; other options are refused."""
    from fl_i2moe.comparison import systems as comparison

    run, trained = comparison.fit, []

    def stop_at_second(cache, job, *others, **flags):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(job.output.output_dir)
        return run(cache, job, *others, **flags)

    monkeypatch.setattr(comparison, "fit", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        compare(seeds=[0])
    assert [row["system"] for row in json.loads((tmp_path / "table" / "table.json").read_text())["rows"]] == ["mult"]
    monkeypatch.undo()
    weights = tmp_path / "table" / "mult" / "seed-0" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    with pytest.raises(ValueError, match="--resume"):
        compare(seeds=[0])
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01 then, 0\.1 now"):
        compare(resume=True, learning_rate=0.1, seeds=[0])
    table = compare(
        {**SYSTEMS, "late": System("LF", {"architecture": "dense", "fusion": "late"})}, resume=True, seeds=[0]
    )
    assert [row["system"] for row in table["rows"]] == ["mult", "switch", "late"]
    assert weights.stat().st_mtime_ns == before


def test_robustness_is_measured_on_the_test_split(compare, cache, tmp_path):
    table = compare(
        {"mult": SYSTEMS["mult"]}, measure_robustness, model={"keep_feature_means": True}, seeds=[3], num_epochs=2
    )
    measured = table["rows"][0]["measured"]
    assert len(measured) == 2 * 5
    whole = table["rows"][0]["metrics"]["micro_f1"]["mean"]
    stored = json.loads((tmp_path / "table" / "mult" / "robustness.json").read_text())
    model = FLI2MoEModel.from_pretrained(tmp_path / "table" / "mult" / "seed-3" / "model").eval()
    (batch,) = create_data_loader(cache.splits["test"], ["image", "text"], batch_size=20, shuffle=False)
    for name in ("image", "text"):
        for by in ("zero", "mean"):
            with torch.no_grad():
                projected = model.embed(batch["features"], batch["feature_masks"])
                stem = model.stems[model.config.modality_order.index(name)]
                value = torch.zeros(1, 8) if by == "zero" else stem.projection(stem.feature_mean)
                projected[name] = value.expand_as(projected[name])
                logits = model.run_mixture(projected, batch["feature_masks"]).logits
            expected = compute_metrics(logits, batch["labels"], "multi_label_classification")["micro_f1"]
            assert stored[f"without {name} ({by})"]["3"]["micro_f1"] == pytest.approx(expected)
            told = measured[f"without {name} ({by})"]["metrics"]["micro_f1"]
            assert told["mean"] == told["values"]["3"] == pytest.approx(expected)
            assert told["difference"] == pytest.approx(expected - whole)
    systems, conditions, _ = render_markdown(table).split("\n\n")
    assert len(systems.splitlines()) == 2 + 1
    rows = [line.strip("| ").split(" | ") for line in conditions.splitlines()]
    assert rows[0] == ["system", "condition", *METRICS_BY_PROBLEM["multi_label_classification"]]
    assert [row[:2] for row in rows[2:]] == [["MulT", name] for name in ("none", *measured)]
    assert rows[2][2] == f"{100 * whole:.1f}"
    noise = measured["noise 0.5 on text"]["metrics"]["micro_f1"]
    told = f"{100 * noise['mean']:.1f} ({markdown.signed('micro_f1', noise['difference'])})"
    assert next(row for row in rows if row[1] == "noise 0.5 on text")[2] == told


def test_noise_has_the_size_of_the_sample():
    x = torch.randn(2, 5000, 16) * torch.tensor([1.0, 10.0])[:, None, None]
    mask = torch.arange(5000) < torch.tensor([5000, 2500])[:, None]
    x[1, 2500:] = 1e4  # padding plays no part
    added = add_noise(x, mask, 0.5) - x
    torch.testing.assert_close(added[:, :2500].std(dim=(1, 2)), torch.tensor([0.5, 5.0]), rtol=0.03, atol=0)


def test_overhead_is_measured_once(compare, tmp_path):
    table = compare({"mult": SYSTEMS["mult"]}, measure_overhead, seeds=[0])
    measured = table["rows"][0]["measured"]
    stored = json.loads((tmp_path / "table" / "mult" / "overhead.json").read_text())
    assert len(stored["train_seconds"]) == len(stored["inference_seconds"]) == 3
    assert measured["train s / epoch"]["mean"] == pytest.approx(statistics.mean(stored["train_seconds"]))
    assert 0 < measured["inference s"]["mean"] < measured["train s / epoch"]["mean"]
    again = compare({"mult": SYSTEMS["mult"]}, measure_overhead, seeds=[0], resume=True)
    assert again["rows"][0]["measured"] == measured


def test_a_regression_has_one_share():
    told = {"mean": 0.8123, "std": 0.01, "difference": -0.02}
    cells = {"sign_accuracy": "81.2 ± 1.0 (−2.0)", "mae": "0.812 ± 0.010 (−0.020)", "pearson": "0.812 ± 0.010 (−0.020)"}
    cells = {name: cell.replace(" ± ", "\u00a0±\u00a0") for name, cell in cells.items()}
    row = {"title": "MulT", "against": "mult", "metrics": dict.fromkeys(cells, told), "measured": {}}
    row |= {"system": "mult", "parameters": 10, "seconds_per_epoch": 1.0}
    table = {"metrics": [*cells], "rows": [row], "tables": [{"title": "", "systems": {"mult": "MulT"}}], "seeds": [0]}
    table |= {"samples": {"test": 3}, "picked_by": "mae", "machine": {"device": "a CPU"}}
    assert render_markdown(table).splitlines()[2] == f"| MulT | {' | '.join(cells.values())} | 10 | 1.00 |"
    assert [markdown.spread(name, told) for name in cells] == [x.split(" (")[0] for x in cells.values()]


def test_a_modality_is_called_as_users_like():
    told = {"mean": -0.5, "std": None, "difference": -0.25}
    row = {"title": "MulT", "against": None, "metrics": {"mae": told}, "system": "mult", "parameters": 1}
    row |= {"seconds_per_epoch": 1.0, "measured": {"without left|right_eye (zero)": {"metrics": {"mae": told}}}}
    table = {"metrics": ["mae"], "rows": [row], "tables": [{"title": "", "systems": {"mult": "MulT"}}], "seeds": [0]}
    table |= {"samples": {"test": 3}, "picked_by": "mae", "machine": {"device": "a CPU"}}
    conditions = render_markdown(table).split("\n\n")[1].splitlines()
    assert conditions[0] == "| system | condition | mae |"
    assert conditions[1] == "| --- | --- | ---: |"
    assert conditions[3] == r"| MulT | without left\|right\_eye (zero) | −0.500 (−0.250) |"


def test_a_comparison_that_is_overwritten_keeps_what_others_put_there(compare, tmp_path):
    systems = {"mult": SYSTEMS["mult"]}
    compare(systems, seeds=[0])
    (own := tmp_path / "table" / "mult" / "notes.txt").write_text("mine")
    table = compare(systems, seeds=[1], overwrite=True)
    assert table["seeds"] == ["1"]
    assert [path.name for path in own.parent.glob("seed-*")] == ["seed-1"]
    assert own.read_text() == "mine"


def test_names_are_checked():
    assert list(choose_systems(SYSTEMS, ["views", "mult"])) == ["views", "mult"]
    for names, message in ((["mul"], "Unknown systems"), ([], "at least one"), (["mult", "mult"], "different")):
        with pytest.raises(ValueError, match=message):
            choose_systems(SYSTEMS, names)


def test_recipe(cache, tmp_path, run_here, no_figures):
    command = ["recipes/compare.py", f"--data={cache.path}", f"--output_dir={tmp_path / 'out'}", "--num_threads=1"]
    command += ["--hidden_size=8", "--num_attention_heads=2", "--num_epochs=1", "--seeds=0"]
    output = run_here(*command, "--preset=table1", "--systems", "ef", "i2moe-mult")
    assert "| EF |" in output
    assert "| I²MoE-MulT |" in output
    assert "one seed" in output
    rows = ["--systems", "i2moe-mult", "latent-contrastive", "less-forward"]
    command[1] = f"--features={cache.path}"
    output = run_here(*command, *rows, "--resume")
    assert "(4) Less-Forward" in output.split("| system |")[0]  # left out, and said
    assert "| (2) Latent-Contrastive |" in output


def test_all_tables_come_from_one_set_of_runs(tmp_path, run_here, no_figures, monkeypatch):
    """Arrays of three modalities: the four tables of the paper, each system trained once, in whatever way they are
    asked for."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    views = {name: rng.normal(size=(40, 6)) + labels[:, None] for name in ("mrna", "methylation", "mirna")}
    split = np.repeat(["tr", "te"], 20)
    arrays = {
        f"{name}_{end}": x[split == end] for name, x in {**views, "labels": labels}.items() for end in ("tr", "te")
    }
    np.savez(tmp_path / "views.npz", **arrays)
    trained = []
    train = experiment.train
    monkeypatch.setattr(experiment, "train", lambda *args, **others: trained.append(args[3]) or train(*args, **others))
    out = tmp_path / "out"
    command = ["recipes/compare.py", f"--data={tmp_path / 'views.npz'}", f"--output_dir={out}", "--num_threads=1"]
    command += ["--modalities", "mirna", "mrna", "methylation", "--validation_share=0.2", "--level=pooled"]
    command += ["--hidden_size=8", "--num_attention_heads=2", "--num_epochs=1", "--seeds=0", "--encoding_workers=0"]

    run_here(*command, "--preset=table5")
    assert [path.parent.name for path in trained] == ["i2moe-mult", "mean-vector", "zero-vector", "shuffle-vector"]
    output = run_here(*command, "--preset=tables", "--resume")
    names = [path.parent.name for path in trained]
    assert len(set(names)) == len(names) == 7 + 7 + 5 + 3
    for path in trained:
        config = FLI2MoEConfig.from_pretrained(path.parent)
        assert (config.level, config.modality_order) == ("pooled", ["mirna", "mrna", "methylation"])
    tables = output.split("### ")[1:]
    assert [table.split(":")[0] for table in tables] == ["Table 1", "Table 2", "Table 4", "Table 5"]
    rows = [[line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:] for table in tables]
    assert [len(table) for table in rows] == [8, 14, 6, 4]
    full = [next(row for row in table if row[0] in ("| I²MoE-MulT", "| random vector")) for table in rows]
    plain = [[cell.split(" (")[0] for cell in row[1:]] for row in full]
    assert plain == plain[:1] * 4  # one system in four tables
    assert ["(" in row[1] for row in full] == [True, True, False, False]  # it is compared with MulT where MulT stands
    assert all("(" in row[1] for row in [*rows[2][1:], *rows[3][1:]])

    table = json.loads((out / "table.json").read_text())
    assert (len(table["rows"]), table["samples"]) == (22, {"train": 16, "validation": 4, "test": 20})
    before = len(trained)
    for preset in ("table1", "table2", "table4", "robustness"):
        output = run_here(*command, f"--preset={preset}", "--resume")
        assert "| I²MoE-MulT |" in output
    assert len(trained) == before
    output = run_here(*command, "--preset=objectives", "--resume")
    assert [path.parent.name for path in trained[before:]] == ["specialised"]
    assert FLI2MoEConfig.from_pretrained(out / "specialised").objective == "specialised"
    titles = [line.split(" | ")[0] for line in output.splitlines() if line.startswith("| ")][2:]
    assert titles == ["| MulT", "| I²MoE-MulT, published", "| I²MoE-MulT, specialised"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "nosuch"], "Unknown systems ['nosuch']"),
        (["--tables", "table3"], "Unknown tables ['table3']"),
        (["--min_label_count=3"], "`data` and `min_label_count` exclude each other"),
        (["--data=nowhere", "--label_field=y"], "`label_field` says nothing about a folder of raw data"),
        (["--data=nowhere.npz", "--image_encoder=x"], "`image_encoder` says nothing about a file of arrays"),
        (["--data=nowhere.npz", "--split_seed=-1"], "`split_seed` must be at least 0"),
        (["--data=nowhere"], "nowhere is no folder, or is not there"),
        (
            ["--objective=specialised", "--systems", "i2moe-ef"],
            'The system i2moe-ef does not go with the options: `objective="specialised"` needs `fusion=',
        ),
        (["--preset=table5", "--objective=specialised"], "The system mean-vector does not go with the options: `obj"),
        (["--metric=accuracy"], "`metric` must be one of micro_f1"),
        (["--measure=robustness", "--keep_feature_means=false"], "needs `keep_feature_means`"),
        (["--preset=objectives", "--objective=specialised"], "`objective` is what the table of objectives compares"),
        (["--features=someone/features"], "`features` and `data` exclude each other"),
    ],
)
def test_wrong_options_end_at_the_start(cache, tmp_path, monkeypatch, capsys, fresh_accelerate, options, message):
    command = ["recipes/compare.py", f"--data={cache.path}", f"--output_dir={tmp_path / 'out'}", *options]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    assert message in (capsys.readouterr().err if ended.value.code == 2 else ended.value.code)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_before_anything_is_encoded(tmp_path, monkeypatch, fresh_accelerate):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "split.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    command = ["recipes/compare.py", f"--data={tmp_path / 'raw'}", f"--output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="holds other files and no run"):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")


def test_what_the_papers_have_for_a_data_set(tmp_path, monkeypatch, fresh_accelerate):
    """The encoders of MMHS150K, and hyper-parameters for each fusion; what stands on the command line holds for all."""
    (tmp_path / "MMHS150K_GT.json").write_text("{}")
    modalities = {"image": "image", "text": "text"}
    given = {}

    def encode(raw, encoders, job, *others):
        given.update(encoders=encoders, length=job.encoding.text_max_length)
        return SimpleNamespace(modalities=modalities)

    def stop(systems, *others):
        given.update(systems, arguments=others)
        raise SystemExit

    monkeypatch.setattr("fl_i2moe.data.layouts.load_layout", lambda *_, **__: SimpleNamespace(modalities=modalities))
    monkeypatch.setattr(run_features, "encode", encode)
    monkeypatch.setattr("fl_i2moe.comparison.systems.compare_systems", stop)
    command = ["recipes/compare.py", f"--data={tmp_path}", f"--output_dir={tmp_path / 'out'}", "--image_hidden_layer=3"]
    systems = ["--systems", "switchgate", "i2moe-switchgate", "i2moe-lf", "zero-vector"]
    monkeypatch.setattr("sys.argv", [*command, "--hyperparameters=enrico", *systems])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    clip = "openai/clip-vit-base-patch32"
    assert given["encoders"] == {"image": EncoderChoice(clip, None, 3), "text": EncoderChoice(clip)}
    assert given["length"] == 77
    told = ("architecture", "fusion", "hidden_size", "num_attention_heads", "perturbation")
    assert {name: [given[name].model.get(x) for x in told] for name in systems[1:]} == {
        "switchgate": ["dense", "switch", 128, 2, None],
        "i2moe-switchgate": ["moe", "switch", 128, 2, None],
        "i2moe-lf": ["moe", "late", 256, 4, None],
        "zero-vector": [None, "transformer", 256, 4, "zero"],
    }
    assert [given[name].training["batch_size"] for name in systems[1:]] == [8, 8, 32, 32]

    options = ["--hyperparameters=enrico", "--batch_size=7", "--num-patches", "3", *systems]
    monkeypatch.setattr("sys.argv", [*command, *options])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    _, job, *_ = given["arguments"]
    assert (job.training.batch_size, job.model.num_patches) == (7, 3)
    for name in systems[1:]:
        assert "batch_size" not in given[name].training
        assert "num_patches" not in given[name].model
        assert given[name].training["num_epochs"] in (30, 50)


def test_every_preset_names_systems_that_fit_a_model():
    recipe = runpy.run_path(str(ROOT / "recipes" / "compare.py"))
    for preset in recipe["PRESETS"].values():
        assert "systems" not in preset  # which would take the place of the tables that a user names
        names = dict.fromkeys(name for table in preset["tables"] for name in recipe["TABLES"][table].systems)
        for system in choose_systems(recipe["SYSTEMS"], list(names)).values():
            ModelArguments(**{"hidden_size": 8, **system.model})
            assert system.against is None or system.against in recipe["SYSTEMS"]
