import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

ROOT = Path(__file__).parent.parent
# one thread a process: the tests run side by side, and waiting threads would only be in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def launch(tmp_path):
    """Starts a recipe as a user does, with a cache folder of its own; returns the finished process."""

    def start(*arguments, num_processes=1, cache=tmp_path / "user-cache", check=True, wait=True, variables=()):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1"]
        command += [f"--num_processes={num_processes}", "--mixed_precision=no", "--dynamo_backend=no"]
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


@pytest.fixture
def fresh_accelerate(monkeypatch):
    """Lets a test set up Accelerate in this process, on the CPU, as if it were the first."""

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    reset()
    yield reset
    reset()


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys, fresh_accelerate):
    """Runs a recipe in this process, with the cache folder of `launch`; returns what it prints. A new process costs
    more than a tiny run: start one where that is what is tested."""
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path / "user-cache"))

    def start(recipe, *arguments):
        fresh_accelerate()
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
        runpy.run_path(str(ROOT / recipe), run_name="__main__")
        return capsys.readouterr().out

    return start
