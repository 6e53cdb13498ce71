"""`benchmark.py gpu` on a CPU in its tiny size: what it finds, and what it says where something is wrong."""

import argparse
import importlib
import json
import os
import sys
import time
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn


@pytest.fixture
def benchmarks(monkeypatch):
    """The recipe's modules, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    return SimpleNamespace(
        **{
            name: importlib.import_module(f"benchmarks.{name}")
            for name in ("gpu", "gpu_losses", "report", "other_code")
        }
    )


@pytest.fixture
def run(benchmarks, tmp_path, fresh_accelerate, capsys):
    """The command with these options: the table that it prints, and its JSON."""

    def start(*options):
        fresh_accelerate()
        parser = argparse.ArgumentParser()
        parser.add_argument("--repetitions", type=int, default=1)
        benchmarks.gpu.add_arguments(parser)
        file = tmp_path / "found" / "gpu.json"
        options = [*options, "--size=tiny", "--device=cpu", f"--output={file}"]
        try:
            benchmarks.gpu.run(parser.parse_args(options))
        finally:
            said = capsys.readouterr().out
        return said, json.loads(file.read_text("utf-8"))

    return start


def test_every_section_runs_on_a_cpu(run, benchmarks, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)  # tracing takes ten seconds
    said, found = run()
    names = [section.name for section in benchmarks.gpu.SECTIONS]
    assert list(found["sections"]) == names
    lines = {line["name"]: line for lines in found["sections"].values() for line in lines}
    assert found["failed"] == 0
    assert {line["note"] for line in lines.values() if line["verdict"] == "skipped"} == {
        "only a GPU has this",
        "--published_code names no checkout of it",
        "--authors_code names no checkout of it",
    }
    for name in (
        "moe++, 2 modalities",
        "pooled, fp16",
        "specialised: resumed as if never stopped",
        "input, shapley, per_pair",
    ):
        assert lines[name]["verdict"] == "ok"
    step = lines["feature, bf16: step of the mixture"]
    assert step["values"] == [step["value"]]
    assert step["value"] > 0
    for line in lines.values():
        assert f"| {line['name']} |" in said
        if "goal" in line["bound"]:
            assert line["verdict"] in ("reached", "missed")
    # the sections fit into the time that the command takes by default
    assert sum(section.minutes for section in benchmarks.gpu.SECTIONS) < 8


def test_a_wrong_device_is_found_out(benchmarks, monkeypatch):
    """One that computes a weight 1 % off, or draws other dropout, or none."""
    bench = SimpleNamespace(size=replace(benchmarks.gpu.SIZES["tiny"], num_draws=20), device=torch.device("cpu"))
    losses = benchmarks.gpu_losses

    def verdicts(step, *arguments):
        return [line.verdict for line in step(bench, *arguments)]

    case = ("transformer", 2, {}, True)
    assert verdicts(losses._compare_losses, *case) == ["ok"]
    assert verdicts(losses._compare_dropout) == ["ok", "ok"]

    def copy_wrongly(model):
        model = deepcopy(model)
        with torch.no_grad():
            model.experts.layers[1].attention.output.weight.mul_(1.01)
        return model

    monkeypatch.setattr(losses, "deepcopy", copy_wrongly)
    assert verdicts(losses._compare_losses, *case) == ["FAILED"]
    copies = iter([deepcopy, *[lambda model: deepcopy(model).eval()] * 2])
    monkeypatch.setattr(losses, "deepcopy", lambda model: next(copies)(model))
    assert verdicts(losses._compare_dropout)[0] == "FAILED"


def test_errors_of_a_pass_by_hand(benchmarks):
    """3-4-5: the whole gradient's norm is 5, a hundredth of it 0.05."""
    Pass = benchmarks.gpu_losses.Pass
    expected = Pass(torch.tensor([2.0, 0.5]), {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})

    def error(losses, **changed):
        return expected.error(Pass(torch.tensor(losses), {**expected.gradients, **changed}))

    assert error([2.0, 0.5]) == 0
    assert error([2.2, 0.5]) == pytest.approx(0.1)
    assert error([2.0, 0.7]) == pytest.approx(0.2)
    assert error([2.0, 0.5], a=torch.tensor([3.0, 0.3])) == pytest.approx(0.3 / 3.05)
    assert not error([2.0, float("nan")]) <= 1


def test_what_raises_fails_and_the_rest_goes_on(benchmarks, run, monkeypatch, tmp_path):
    report = benchmarks.report

    def broken():
        raise RuntimeError("no kernel | image")

    def steps(bench):
        yield "first", broken
        yield "second", lambda: [report.check("second", 0.5, 1.0, "why"), report.check("third", float("nan"), 1.0, "")]

    def unfinished(bench):
        yield "fourth", lambda: [report.measured("fourth", [3.0, 1.0, 2.0], "ms", at_most=1.5)]
        raise ValueError("no folder")

    def sound(bench):
        yield "fifth", lambda: [report.holds("fifth", True, "")]

    monkeypatch.setattr(
        benchmarks.gpu, "SECTIONS", [report.Section(x.__name__, 1, x) for x in (steps, unfinished, sound)]
    )
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1
    found = json.loads((tmp_path / "found" / "gpu.json").read_text("utf-8"))
    verdicts = [(line["name"], line["verdict"]) for lines in found["sections"].values() for line in lines]
    assert verdicts == [
        ("first", "FAILED"),
        ("second", "ok"),
        ("third", "FAILED"),
        ("fourth", "missed"),
        ("what the section needs", "FAILED"),
        ("fifth", "ok"),
    ]
    assert found["sections"]["steps"][0]["note"] == "RuntimeError: no kernel | image"
    assert (found["failed"], found["missed"]) == (3, 1)
    said, _ = run("--sections", "3")  # a missed goal alone is no failure, nor is a sound section
    assert "| fifth | yes | yes | ok |  |" in said


def test_lines_and_limits(benchmarks, tmp_path, monkeypatch, capsys):
    report = benchmarks.report
    assert report.measured("a", [3.0, 1.0, 2.0], "ms", at_most=2).verdict == "reached"
    assert report.measured("a", [3.0, 1.0, 2.0], at_least=2.5).verdict == "missed"
    assert str(report.measured("a | b", [3.0, 1.0, 2.0], "ms")) == "| a ∣ b | 2 (1 … 3) ms |  | measured |  |"

    seconds = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: seconds[0])
    found = report.Report(tmp_path / "found.json", {"size": "tiny"}, max_minutes=3)

    def take(minutes):
        def step():
            seconds[0] += 60 * minutes
            return [report.measured("taken", [minutes])]

        return step

    def steps(minutes):
        return lambda _: iter([("a", take(minutes)), ("b", take(minutes)), ("c", take(minutes))])

    found.run(report.Section("fits", 1, steps(0.1)), None)
    found.run(report.Section("is stopped", 1, steps(0.8)), None)  # at 1.1 of its 1 minute
    found.run(report.Section("has no room", 2, steps(0.1)), None)
    found.run(report.Section("has room", 1, steps(0.1)), None)
    written = json.loads((tmp_path / "found.json").read_text("utf-8"))
    verdicts = {name: [line["verdict"] for line in lines] for name, lines in written["sections"].items()}
    assert verdicts == {
        "fits": ["measured"] * 3,
        "is stopped": ["measured", "measured", "skipped"],
        "has no room": ["skipped"],
        "has room": ["measured"] * 3,
    }
    assert (written["size"], written["failed"], written["skipped"]) == ("tiny", 0, 2)
    assert "it may take 2 minutes, 1.1 of --max_minutes are left" in capsys.readouterr().out


def test_a_step_that_takes_too_long_is_ended(benchmarks, tmp_path):
    report = benchmarks.report

    def hang():
        try:
            time.sleep(60)
        except Exception:
            return []

    found = report.Report(tmp_path / "found.json", {}, max_minutes=1)
    started = time.monotonic()
    found.run(report.Section("slow", 0.001, lambda _: iter([("a", hang), ("b", hang)])), None)
    assert time.monotonic() - started < 10
    whys = [line.note for line in found.sections["slow"]]
    assert whys == ["the section's 0.001 minutes are over, while it ran", "the section's 0.001 minutes are over"]
    assert found.counts() == {"failed": 0, "missed": 0, "skipped": 2}


MIXTURE = """
import os
os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
import fmoe_cuda
from torch import nn
class InteractionMoE(nn.Module):
    def __init__(self, fusion_model, num_layer_rw, **options):
        super().__init__()
        self.fusion, self.layers = fusion_model, num_layer_rw
    def forward(self, inputs, masks=None):
        logits = self.fusion(inputs)
        return RESULT
"""
TRANSFORMER = """
from torch import nn
class Transformer(nn.Module):
    def __init__(self, hidden_dim, output_dim, **options):
        super().__init__()
        self.linear = nn.Linear(hidden_dim, output_dim).cuda()
    def forward(self, inputs):
        return SIGN * self.linear(inputs[0].mean(dim=1))
"""


def write_checkout(folder, is_authors):
    for name in ("imoe", "common/fusion_models"):
        (folder / "src" / name).mkdir(parents=True)
    result = "None, None, logits, [logits.sum()], None" if is_authors else "None, None, logits, [logits.sum()]"
    (folder / "src/imoe/InteractionMoE.py").write_text(MIXTURE.replace("RESULT", result))
    text = TRANSFORMER.replace("SIGN", "-1" if is_authors else "1")
    (folder / "src/common/fusion_models/transformer.py").write_text(text)
    if is_authors:
        (folder / "src/imoe/regularizers.py").write_text("")
    return folder


def test_two_checkouts_in_one_process(benchmarks, tmp_path, monkeypatch):
    """Their modules have the same names; nothing of them stays."""
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    code = benchmarks.other_code
    published = code.published_code(str(write_checkout(tmp_path / "published", False)))
    authors = code.authors_code(str(write_checkout(tmp_path / "authors", True)))
    modules, path, to_gpu = set(sys.modules), list(sys.path), nn.Module.cuda
    x = torch.randn(2, 3, 4)
    for checkout, sign, layers in ((published, 1, 3), (authors, -1, 2)):
        mixture = checkout.mixture([3, 5], 4, 6, 0.5)
        logits, losses = checkout.call(mixture, [x, x])
        assert torch.allclose(logits, sign * mixture.fusion.linear(x.mean(dim=1)))
        assert len(losses) == 1
        assert mixture.layers == layers
    assert set(sys.modules) == modules
    assert sys.path == path
    assert nn.Module.cuda is to_gpu
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=gpu"], "'gpu' is neither cuda nor cpu"),
        (["--device=cuda:1"], "neither cuda nor cpu"),
        (["--max_minutes=0"], "'0' is no positive number of minutes"),
        (["--max_minutes=nan"], "no positive number"),
        (["--max_minutes=soon"], "'soon' is no positive number"),
        (["--sections", "99"], "invalid choice: 99"),
        (["--sections"], "expected at least one argument"),
        (["--size=huge"], "invalid choice: 'huge'"),
        (["--output="], "is empty"),
        (["--output={folder}"], "is a folder: give a file"),
        (["--output={file}/gpu.json"], "file.txt is a file"),
        (["--published_code=nowhere"], "it has no src/imoe/InteractionMoE.py"),
        (["--published_code={authors}"], "but of the other one: it has src/imoe/regularizers.py"),
        (["--authors_code={published}"], "but of the other one: it has no src/imoe/regularizers.py"),
    ],
)
def test_bad_options(benchmarks, tmp_path, capsys, options, message):
    (tmp_path / "file.txt").write_text("")
    folders = {"folder": tmp_path, "file": tmp_path / "file.txt"}
    folders |= {name: write_checkout(tmp_path / name, name == "authors") for name in ("authors", "published")}
    parser = argparse.ArgumentParser()
    benchmarks.gpu.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([option.format(**folders) for option in options])
    assert message in capsys.readouterr().err


def test_no_repetitions(run_here, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    for number in ("0", "-1", "2.5"):
        with pytest.raises(SystemExit):
            run_here("recipes/benchmark.py", "gpu", "--repetitions", number)
        assert f"'{number}' is no whole number from 1 on" in capsys.readouterr().err


def test_output_that_cannot_be_written(run, benchmarks, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmarks.report, "write_json", full)
    with pytest.raises(SystemExit, match=r"gpu\.json cannot be written .*No space left.*give another file"):
        run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(benchmarks, capsys):
    parser = argparse.ArgumentParser()
    benchmarks.gpu.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--device=cuda"])
    assert "sees no GPU here; try with --device cpu" in capsys.readouterr().err
