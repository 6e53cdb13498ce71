"""How recipes end: what they refuse, what fails them, Ctrl-C, a terminal that lacks letters."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

from fl_i2moe.training.recipe import run_recipe


def allocate_too_much():
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "fail",
    [
        allocate_too_much,
        lambda: torch.empty(2**62, 2**62),
        lambda: np.empty(2**50),
        lambda: bytearray(2**60),
    ],
)
def test_too_little_memory_is_said_in_one_line(fail):
    with pytest.raises(SystemExit, match=r"^error: there is not enough memory.*: lower --batch_size.*[^\n]+$"):
        run_recipe(fail)


def test_a_fault_of_ours_keeps_its_traceback():
    def fail():
        raise RuntimeError("shapes do not go together")

    with pytest.raises(RuntimeError, match="shapes"):
        run_recipe(fail)


def test_a_launcher_is_told_why(monkeypatch, tmp_path):
    """In torchelastic's form, as its own reader takes it."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    def fail():
        raise ValueError("the sentence, in Жанр")

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit, match="the sentence"):
        run_recipe(fail)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(file))
    assert failure.message["message"] == "error: the sentence, in Жанр"


def test_several_processes_say_it_last(launch, tmp_path):
    """Where the command line is refused."""
    said = launch(
        "recipes/train_arrays.py", "--hidden_size=0", f"--output_dir={tmp_path}", num_processes=2, check=False
    )
    assert said.returncode != 0
    assert "error: `hidden_size` must be" in said.stdout.split("Root Cause")[1]


def test_an_interrupt_ends_with_a_sentence(tmp_path):
    command = [sys.executable, "recipes/train_arrays.py", "--num_samples=60", "--num_epochs=100000", "--hidden_size=8"]
    command += ["--num_attention_heads=2", "--num_threads=1", f"--output_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "FL_I2MOE_CACHE": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "seed-0" / "checkpoints").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130
    # a progress bar that is cleared at its end leaves blanks behind it
    assert any(line.startswith("interrupted: what is finished is kept") for line in said.splitlines()), said
    assert "Traceback" not in said


@pytest.mark.parametrize(("target", "when"), [("/dev/full", "first"), ("pipe", "last")])
def test_what_cannot_be_printed_is_said_in_one_line(target, when):
    """At a flush on the way, or when all is done; by a program of its own, since Python speaks again at its exit."""
    script = "from fl_i2moe.training.recipe import run_recipe\nrun_recipe(lambda: print('said', flush={}))"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", script.format(when == "first")]
        output = full if target == "/dev/full" else writer
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: output cannot be written ([Errno ")


CHAIN = """
import os, runpy, sys
import torch
run, data = sys.argv[1:]
train = ["recipes/train_arrays.py", "--data_file", data, "--output_dir", run, "--num_epochs=1", "--hidden_size=8"]
train += ["--num_attention_heads=2", "--num_threads=1"]
explain = ["recipes/explain.py", "--model", run, "--num_samples=1", "--units=features", "--method=ig"]
explain += ["--num_coalitions=1", "--num_draws=1", "--measurements", "faithfulness", "alignment"]
explain += ["--faithfulness_samples=4"]
publish = ["hub/publish.py", "--model", run, "--repo_id=a/b", "--license=mit", "--dry_run", run + "/../repository"]
for command in (train, explain, publish):
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
print("done")
"""


def test_any_locale_will_do(tmp_path):
    """ASCII is the poorest; names of classes and samples have other letters."""
    rng = np.random.default_rng(0)
    arrays = {"звук": rng.normal(size=(40, 3, 4)), "b": rng.normal(size=(40, 3, 4))}
    labels = rng.integers(0, 2, size=(40, 3))
    ids = [f"片-{i}" for i in range(40)]
    names = ["Драма", "漢字", "🙂"]
    np.savez(tmp_path / "data.npz", **arrays, labels=labels, label_names=names, ids=ids)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    environment = {**os.environ, **locale, "FL_I2MOE_CACHE": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", CHAIN, tmp_path / "run", tmp_path / "data.npz"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("done\n")
    statistics = json.loads((tmp_path / "run" / "interaction_statistics.json").read_text("utf-8"))
    assert "Драма" in json.dumps(statistics, ensure_ascii=False)
    assert "漢字" in (tmp_path / "repository" / "README.md").read_text("utf-8")
