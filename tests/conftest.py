import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# one thread a process: the tests run side by side, and waiting threads would only be in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # a job takes all cores that it may: so it takes one, also in a process of its own
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def threads_given_back():
    """A job takes all cores if nobody says how many, and would leave them to the tests behind it."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture
def launch(tmp_path):
    """
    Starts a recipe in processes of its own, with a cache folder of its own; returns the finished process.

    With `num_processes` by `accelerate launch`, as a user does, which takes seconds to start; with `forked` that many
    processes that share their imports; with neither one process.
    """

    def start(
        *arguments,
        num_processes=None,
        forked=None,
        cache=tmp_path / "user-cache",
        check=True,
        wait=True,
        variables=(),
    ):
        command = [sys.executable]
        if forked is not None:
            command += [str(TESTS / "forked.py"), str(forked)]
        if num_processes is not None:
            command += ["-m", "accelerate.commands.launch", "--num_machines=1", f"--num_processes={num_processes}"]
            command += ["--mixed_precision=no", "--dynamo_backend=no"]
            # with --cpu, Accelerate 1.15 starts one process whatever --num_processes says
            command += ["--cpu"] if num_processes == 1 else ["--multi_gpu", "--main_process_port=0"]
        environment = {**os.environ, "FL_I2MOE_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
        environment |= dict(variables)
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if not wait:
            return process
        output, _ = process.communicate(timeout=300)
        result = subprocess.CompletedProcess(command, process.returncode, output)
        assert not check or result.returncode == 0, output
        return result

    return start


def reset_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def fresh_accelerate(monkeypatch):
    """Lets a test set up Accelerate in this process, on the CPU, as if it were the first."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    reset_accelerate()
    yield reset_accelerate
    reset_accelerate()


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """The code of repositories is imported from a folder of the test's own, and forgotten afterwards."""

    def forget():
        for name in [x for x in sys.modules if x.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    forget()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield
    forget()


@pytest.fixture
def no_figures(monkeypatch):
    """Training in this process draws nothing: with tiny models that is half of the time."""
    monkeypatch.setattr("fl_i2moe.training.experiment.save_statistics_figures", lambda *_: None)


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys, fresh_accelerate):
    """Runs a recipe in this process, with the cache folder of `launch`; returns what it prints, on request with the
    progress that it writes to stderr. A new process costs more than a tiny run: start one where that is what is
    tested."""

    def start(recipe, *arguments, cache=tmp_path / "user-cache", with_progress=False):
        fresh_accelerate()
        monkeypatch.setenv("FL_I2MOE_CACHE", str(cache))
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
        runpy.run_path(str(ROOT / recipe), run_name="__main__")
        said = capsys.readouterr()
        return said.out + said.err if with_progress else said.out

    return start
