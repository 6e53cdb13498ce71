"""The folder of a run: what it keeps, and that one run at a time writes into it."""

import shutil
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT

from fl_i2moe.utils.files import write_new_folder
from fl_i2moe.utils.run_folder import begin_run_folder, check_run_folder, held_run_folder

HOLD = """
import sys, time
from fl_i2moe.utils.run_folder import held_run_folder
with held_run_folder(sys.argv[1], {"seed": 0}, resume=True, overwrite=False):
    print("held", flush=True)
    time.sleep(600)
"""
NEW = {"resume": False, "overwrite": False}
RESUME = {"resume": True, "overwrite": False}
OVERWRITE = {"resume": False, "overwrite": True}


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists(), process.communicate()


def test_it_keeps_what_is_not_its_own(tmp_path):
    settings = {"seed": 0, "layers": [1, 2]}
    run = tmp_path / "run"
    check_run_folder(run, **NEW)
    assert not run.exists()
    begin_run_folder(run, settings, **NEW)
    (run / "model.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="already holds a run"):
        begin_run_folder(run, settings, **NEW)
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        begin_run_folder(run, {**settings, "seed": 1}, **RESUME)
    begin_run_folder(run, settings, **RESUME)
    assert (run / "model.safetensors").exists()
    begin_run_folder(run, {**settings, "seed": 1}, **OVERWRITE)
    assert not (run / "model.safetensors").exists()

    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.jpg").write_text("precious")
    for flags in (OVERWRITE, RESUME):
        with pytest.raises(ValueError, match="no run"):
            begin_run_folder(other, settings, **flags)
    assert (other / "me.jpg").exists()
    with pytest.raises(ValueError, match="is a file"):
        begin_run_folder(other / "me.jpg", settings, **NEW)


def test_a_kill_while_it_is_replaced_does_not_block_the_next_start(tmp_path, monkeypatch):
    run = tmp_path / "run"
    begin_run_folder(run, {"seed": 0}, **NEW)
    (run / "seed-0").mkdir()
    (run / "zzz.json").write_text("{}")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        begin_run_folder(run, {"seed": 1}, **OVERWRITE)
    monkeypatch.undo()
    begin_run_folder(run, {"seed": 1}, **OVERWRITE)
    assert [path.name for path in run.iterdir()] == ["run.json"]


def test_one_process_holds_it_until_it_ends(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    for flags in (NEW, RESUME, OVERWRITE):
        with pytest.raises(ValueError, match=rf"another run \(process {process.pid}\) is writing into {run}: wait"):
            check_run_folder(run, **flags)
    with (
        pytest.raises(ValueError, match="another run"),
        held_run_folder(run, {"seed": 1}, **OVERWRITE),
    ):
        pass
    assert (run / "run.json").is_file()
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match="already holds a run"):
        check_run_folder(run, **NEW)
    with held_run_folder(run, {"seed": 1}, **OVERWRITE), pytest.raises(ValueError, match="another run"):
        check_run_folder(run, **RESUME)
    with held_run_folder(run, {"seed": 1}, **RESUME):  # it was let go
        pass
    (run / "run.json").unlink()  # killed before there were settings
    check_run_folder(run, **NEW)


def test_a_run_outlives_its_launcher_and_is_not_disturbed(launch, run_here, tmp_path):
    """`kill -9` of `accelerate launch` leaves what it started."""
    run = tmp_path / "run"
    command = ["recipes/train_arrays.py", "--num_samples=40", "--hidden_size=8", "--num_attention_heads=2"]
    command += ["--num_epochs=100000", "--num_threads=1", f"--output_dir={run}"]
    process = launch(*command, num_processes=1, wait=False)
    wait_for(run / "seed-0" / "checkpoints", process)
    [worker] = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    try:
        for flag in ("--resume", "--overwrite"):
            said = rf"^error: another run \(process {worker.pid}\) is writing into {run}: wait until"
            with pytest.raises(SystemExit, match=said):
                run_here(*command, flag)
        assert worker.is_running()
    finally:
        worker.kill()
    worker.wait(60)
    check_run_folder(run, **RESUME)


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    def write(folder):
        (folder / "a").write_text("1")

    def fail(folder):
        write(folder)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        write_new_folder(tmp_path / "above" / "new", fail)
    assert list((tmp_path / "above").iterdir()) == []
    (tmp_path / "above" / "new").mkdir()
    write_new_folder(tmp_path / "above" / "new", write)
    assert (tmp_path / "above" / "new" / "a").read_text() == "1"
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["new"]
