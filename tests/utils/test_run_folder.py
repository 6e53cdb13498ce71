"""The folder of a run: what it keeps, and that one run at a time writes into it."""

import itertools
import json
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT
from kills import killed_before

from fl_i2moe.evaluation.run.explanations import OUTPUT_FILES
from fl_i2moe.training.experiment import TRAINING_FILES
from fl_i2moe.utils.files import remove_unfinished, replace_files, write_json, write_new_folder
from fl_i2moe.utils.run_folder import JobFiles, begin_run_folder, check_run_folder, held_run_folder

HOLD = """
import sys, time
from fl_i2moe.utils.run_folder import JobFiles, held_run_folder
with held_run_folder(sys.argv[1], {"seed": 0}, JobFiles("training", ("seed-*",)), resume=True, overwrite=False):
    print("held", flush=True)
    time.sleep(600)
"""
NEW = {"resume": False, "overwrite": False}
RESUME = {"resume": True, "overwrite": False}
OVERWRITE = {"resume": False, "overwrite": True}
FILES = JobFiles("training", ("seed-*", "*.safetensors", "zzz.json"))


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists(), process.communicate()


def test_it_keeps_what_is_not_its_own(tmp_path):
    settings = {"seed": 0, "layers": [1, 2]}
    run = tmp_path / "run"
    check_run_folder(run, FILES, **NEW)
    assert not run.exists()
    begin_run_folder(run, settings, FILES, **NEW)
    (run / "model.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="already holds a run"):
        begin_run_folder(run, settings, FILES, **NEW)
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        begin_run_folder(run, {**settings, "seed": 1}, FILES, **RESUME)
    begin_run_folder(run, settings, FILES, **RESUME)
    assert (run / "model.safetensors").exists()
    begin_run_folder(run, {**settings, "seed": 1}, FILES, **OVERWRITE)
    assert not (run / "model.safetensors").exists()

    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.jpg").write_text("precious")
    for flags in (OVERWRITE, RESUME):
        with pytest.raises(ValueError, match="no run"):
            begin_run_folder(other, settings, FILES, **flags)
    assert (other / "me.jpg").exists()
    with pytest.raises(ValueError, match="is a file"):
        begin_run_folder(other / "me.jpg", settings, FILES, **NEW)


def count_kills(job, place, prepare, check):
    """Kills the job before each of its file operations, and checks what is left."""
    for number in itertools.count():
        shutil.rmtree(place, ignore_errors=True)
        prepare()
        if not killed_before(number, job, place):
            return number
        check()


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "run.lock")


@pytest.mark.parametrize("earlier", [None, OVERWRITE, RESUME])
def test_a_kill_at_any_file_operation_blocks_no_start(tmp_path, earlier):
    """Of a new run, one that is replaced, and one that goes on; what others put there stays."""
    run, settings = tmp_path / "place" / "run", {"seed": 1}
    flags = earlier or NEW

    def prepare():
        if earlier is None:
            return
        begin_run_folder(run, settings if earlier is RESUME else {"seed": 0}, FILES, **NEW)
        for name in ("seed-0/model/config.json", "seed-1/x", "zzz.json", "explanations/run.json", "notes.txt"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("{}")

    def begin(**flags):
        with held_run_folder(run, settings, FILES, **flags):
            write_json(run / "seed-1" / "results.json", [])

    def check():
        assert not (run / "seed-0").exists() or (run / "seed-0" / "model" / "config.json").exists()
        begin(**(RESUME if earlier is None else flags))
        theirs = ["explanations", "explanations/run.json", "notes.txt"] if earlier else []
        own = ["seed-0", "seed-0/model", "seed-0/model/config.json", "seed-1/x", "zzz.json"] * (earlier is RESUME)
        assert listing(run) == sorted([*own, *theirs, "run.json", "seed-1", "seed-1/results.json"])

    assert count_kills(lambda: begin(**flags), tmp_path / "place", prepare, check) > 5


@pytest.mark.parametrize("write", ["json", "folder", "files"])
def test_a_kill_at_any_file_operation_leaves_whole_files(tmp_path, write):
    place = tmp_path / "place"

    def fill(folder, text="new"):
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)

    def job():
        match write:
            case "json":
                write_json(place / "file.json", ["new"])
            case "folder":
                write_new_folder(place / "folder", fill)
            case "files":
                replace_files(place / "files", fill)

    def prepare():
        place.mkdir()
        if write == "json":
            (place / "file.json").write_text('["old"]')
        if write == "files":
            (place / "files").mkdir()
            fill(place / "files", "old")

    def check():
        if write == "json":
            assert json.loads((place / "file.json").read_text()) in (["old"], ["new"])
        elif write == "folder":
            assert not (place / "folder").exists() or listing(place / "folder") == ["a", "b"]
        else:
            assert {(place / "files" / name).read_text() for name in "ab"} <= {"old", "new"}
        if write == "files":
            remove_unfinished(place)
        if write != "folder" or not (place / "folder").exists():
            job()
        own = {"json": ["file.json"], "folder": ["folder", "folder/a", "folder/b"]}
        own["files"] = ["files", "files/a", "files/b"]
        assert listing(place) == own[write]

    assert count_kills(job, place, prepare, check) >= 2


def test_two_writers_of_a_new_folder_do_not_disturb_each_other(tmp_path):
    def write(folder):
        (folder / "a").write_text("outer")
        write_new_folder(tmp_path / "new", lambda other: (other / "b").write_text("inner"))  # meanwhile, by another

    with pytest.raises(OSError, match="not empty"):
        write_new_folder(tmp_path / "new", write)
    assert listing(tmp_path) == ["new", "new/b"]


def test_overwrite_replaces_what_the_same_job_wrote_and_nothing_else(tmp_path):
    run, settings = tmp_path / "run", {"seed": 0}
    begin_run_folder(run, settings, FILES, **NEW)
    (run / "model.safetensors").write_text("weights")
    (run / "notes.txt").write_text("mine")
    other = JobFiles("explanations", ("samples",))
    for flags in (NEW, RESUME, OVERWRITE):
        with pytest.raises(ValueError, match=r"already holds|another job, training, not explanations: give another"):
            check_run_folder(run, other, **flags)
    begin_run_folder(run / "explanations", settings, other, **NEW)
    (run / "explanations" / "samples").mkdir()
    begin_run_folder(run, settings, FILES, **OVERWRITE)
    assert listing(run) == ["explanations", "explanations/run.json", "explanations/samples", "notes.txt", "run.json"]

    write_json(run / "run.json", settings)  # as versions wrote it that named no job
    begin_run_folder(run, settings, FILES, **RESUME)
    with pytest.raises(ValueError, match="does not say which job wrote it"):
        begin_run_folder(run, settings, FILES, **OVERWRITE)


def test_overwrite_spares_what_lies_in_a_systems_folder(tmp_path):
    parts = JobFiles("training", ("seed-*",))
    files, run = JobFiles("comparison", ("table.json",), parts), tmp_path / "run"
    begin_run_folder(run, {}, files, **NEW)
    begin_run_folder(run / "full", {"system": "full"}, parts, **NEW)
    begin_run_folder(run / "mine", {}, parts, **NEW)
    for name in ("full/seed-0", "full/explanations", "mine/seed-0"):
        (run / name).mkdir()
    with held_run_folder(run / "full" / "seed-0", {}, FILES, **NEW), pytest.raises(ValueError, match="another run"):
        begin_run_folder(run, {}, files, **OVERWRITE)
    begin_run_folder(run, {}, files, **OVERWRITE)
    assert listing(run) == ["full", "full/explanations", "mine", "mine/run.json", "mine/seed-0", "run.json"]


def test_what_a_job_below_is_writing_is_spared(tmp_path):
    """Such as explanations of one seed's model, while the training goes on."""
    run, other = tmp_path / "run", JobFiles("explanations", ("samples",))
    begin_run_folder(run, {}, FILES, **NEW)
    below = run / "seed-0" / "model" / "explanations"
    with held_run_folder(below, {}, other, **NEW):
        theirs, left = below / "samples" / ".unfinished-page.html", run / "seed-0" / ".unfinished-figure.png"
        theirs.parent.mkdir()
        theirs.write_text("being written")
        left.write_text("left")
        begin_run_folder(run, {}, FILES, **RESUME)
        assert theirs.exists()
        assert not left.exists()


def test_a_feature_cache_may_lie_in_a_new_run(tmp_path):
    run = tmp_path / "run"
    (run / "features" / "cache").mkdir(parents=True)
    with pytest.raises(ValueError, match="other files and no run, such as features"):
        check_run_folder(run, FILES, **NEW)
    flags = {**NEW, "beside": run / "features" / "cache"}
    check_run_folder(run, FILES, **flags)
    begin_run_folder(run, {}, FILES, **flags)
    begin_run_folder(run, {}, FILES, **{**flags, "overwrite": True})
    assert (run / "features" / "cache").is_dir()


@pytest.mark.parametrize("place", ["features", "../run/features", "../link/features", "../x/../run/features/new"])
def test_a_feature_cache_is_found_beside_by_any_path(tmp_path, monkeypatch, place):
    (tmp_path / "run" / "features").mkdir(parents=True)
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path / "run")
    for folder in ("../run", "../link", tmp_path / "link", "."):
        check_run_folder(folder, FILES, **NEW, beside=place)


@pytest.mark.parametrize("place", ["", "seed-0", "seed-0/cache", "../run/seed-12", "x.safetensors", "mult/seed-0/c"])
def test_a_feature_cache_may_not_lie_where_the_job_writes(tmp_path, place):
    """At its end, or with --overwrite, it would be removed; said before anything is encoded."""
    run, files = tmp_path / "run", JobFiles("training", FILES.patterns, FILES)
    with pytest.raises(ValueError, match=r"lies where the job in .* writes.*--cache_dir"):
        check_run_folder(run, files, **NEW, beside=f"{run}/{place}")
    for place in ("mult", "features", "seeds/x", "../seed-0", "features/deep/seed-0"):
        check_run_folder(run, files, **NEW, beside=run / place)


@pytest.mark.parametrize("inner", ["seed-0/model/explanations", "seed-0/x"])
def test_overwrite_removes_no_run_in_a_run(tmp_path, inner):
    """Such as explanations of one seed's model."""
    run = tmp_path / "run"
    begin_run_folder(run, {}, FILES, **NEW)
    begin_run_folder(run / inner, {}, JobFiles("explanations", ()), **NEW)
    with pytest.raises(ValueError, match=rf"{inner} holds a run that --overwrite would remove"):
        check_run_folder(run, FILES, **OVERWRITE)
    check_run_folder(run, FILES, **RESUME)


def test_overwrite_spares_copies_and_notes_of_users(tmp_path):
    """By the patterns of the jobs themselves."""
    mine = ["seed-0-best", "seed-notes.txt", "my.safetensors", "alignment-notes.txt", "faithfulness.csv"]
    for files in (TRAINING_FILES, OUTPUT_FILES):
        begin_run_folder(run := tmp_path / files.job, {}, files, **NEW)
        for name in [*mine, "seed-0", "seed-4294967295", "model-00001-of-00002.safetensors", "alignment.json"]:
            (run / name).mkdir()
        begin_run_folder(run, {}, files, **OVERWRITE)
        assert set(mine) < set(listing(run))
    assert len(listing(tmp_path / "training")) == len(mine) + 2  # run.json, alignment.json


def test_a_link_that_leads_nowhere_and_a_folder_that_is_read_only(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="a link that leads nowhere; give another"):
        check_run_folder(tmp_path / "link", FILES, **NEW)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(ValueError, match="cannot be written into; give another"):
        check_run_folder(tmp_path, FILES, **NEW)


def test_a_new_folder_appears_where_a_link_leads_or_is_refused(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_new_folder(tmp_path / "x" / ".." / "link", lambda folder: (folder / "a").write_text("1"))
    assert (tmp_path / "real" / "a").read_text() == "1"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", "/proc"):  # the working folder would be another one; a disk's cannot be replaced
        with pytest.raises(ValueError, match=r"cannot be made anew.*give a folder below it"):
            write_new_folder(place, None)


def test_one_process_holds_it_until_it_ends(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    for flags in (NEW, RESUME, OVERWRITE):
        with pytest.raises(ValueError, match=rf"another run \(process {process.pid}\) is writing into {run}: wait"):
            check_run_folder(run, FILES, **flags)
    with (
        pytest.raises(ValueError, match="another run"),
        held_run_folder(run, {"seed": 1}, FILES, **OVERWRITE),
    ):
        pass
    assert (run / "run.json").is_file()
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match="already holds a run"):
        check_run_folder(run, FILES, **NEW)
    with held_run_folder(run, {"seed": 1}, FILES, **OVERWRITE), pytest.raises(ValueError, match="another run"):
        check_run_folder(run, FILES, **RESUME)
    with held_run_folder(run, {"seed": 1}, FILES, **RESUME):  # it was let go
        pass
    (run / "run.json").unlink()  # killed before there were settings
    check_run_folder(run, FILES, **NEW)


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
    check_run_folder(run, FILES, **RESUME)


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
