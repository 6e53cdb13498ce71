"""
Kills every job before each of its file operations, starts it again as its user would, and compares the end with that of
a job that nobody killed. Takes an hour or two; pytest does not collect it.

    python tests/kill_everywhere.py              all jobs, one line each
    python tests/kill_everywhere.py train explain --every 5

A job is *refused* where the second start fails, *lost* where files are missing or left over at the end, and *different*
where a file has another content.
"""

import argparse
import gc
import importlib
import itertools
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kills import killed_before
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
# what the forks share: importing takes longer than any job
SHARED = ("comparison.runs", "comparison.systems", "evaluation.ground_truth.run", "evaluation.human_evaluation.study")
SHARED += ("evaluation.run.explanations", "publishing.model", "training.experiment", "training.new_rows")
TINY = ["--num_samples=60", "--num_tokens=6", "--evidence_tokens=1", "--labels_per_kind=1", "--num_epochs=2"]
TINY += ["--batch_size=16", "--hidden_size=8", "--num_attention_heads=2", "--num_threads=1", "--checkpoint_steps=4"]
TABLE = ["--dataset=PLACE/table.csv", "--tabular", "size=width,height", "look=colour,shape"]
EXPLAIN = ["recipes/explain.py", "--model=RUN", "--num_samples=1", "--interactions=none", "--measurements=none"]
MEASURE = ["recipes/explain.py", "--model=RUN", "--num_samples=1", "--method=random", "--num_coalitions=1"]
MEASURE += ["--num_draws=1", "--faithfulness_samples=1", "--output_dir=PLACE/measured"]
# in JSON, and in the last column of a table
TIMES = re.compile(r'"(\w*seconds\w*|machine)": (\{[^}]*\}|[^,\n]*)|\| +\d+\.\d\d +\|$', re.MULTILINE)


@dataclass
class Job:
    command: list[str]
    after: tuple[str, ...] = ()
    """Jobs that come before it."""
    again: str = ""
    """What the second start adds to the command."""
    start_at: int | None = None
    """It goes on with what was killed at this operation of the job before it."""


def train(*options: str) -> list[str]:
    return ["recipes/train_arrays.py", *TINY, *options]


JOBS = {
    "train": Job(train("--output_dir=RUN"), again="--resume"),
    "resume": Job(train("--output_dir=RUN", "--resume"), start_at=100),
    "train table": Job(
        ["recipes/train.py", *TABLE, "--label=kind", *TINY[4:], "--output_dir=PLACE/table"], again="--resume"
    ),
    "predict": Job(
        ["recipes/predict.py", "--model=PLACE/table", "--dataset=PLACE/table.csv", "--output=PLACE/predictions.csv"],
        ("train table",),
    ),
    "overwrite": Job(train("--output_dir=RUN", "--overwrite", "--learning_rate=0.01"), ("train",)),
    "another model": Job(train("--output_dir=PLACE/second", "--architecture=dense"), ("train",), "--resume"),
    "explain": Job(EXPLAIN, ("train",)),
    "explain again": Job([*EXPLAIN, "--overwrite", "--seed=1"], ("train", "explain")),
    "measure": Job(MEASURE, ("train",)),
    "compare runs": Job(
        ["recipes/compare_runs.py", "--runs", "RUN", "PLACE/second", "--num_resamples=5",
         "--output_dir=PLACE/compared"],
        ("train", "another model"),
    ),
    "compare systems": Job(
        ["recipes/compare.py", "--data=FEATURES", *TINY[4:], "--systems", "ef", "i2moe-ef", "--seeds", "0",
         "--output_dir=PLACE/systems"], ("train",), "--resume"
    ),
    "ground truth": Job(
        ["recipes/evaluate_explanations.py", "--models=RUN", "--num_samples=4", "--num_probe_samples=20",
         "--num_pair_samples=2", "--num_resamples=5", "--output_dir=PLACE/truth"],
        ("train",),
    ),
    "publish": Job(
        ["hub/publish.py", "--model=RUN", "--repo_id=a/b", "--license=mit", "--dry_run=PLACE/repository"],
        ("train", "explain"),
    ),
    "publish features": Job(
        ["hub/publish_features.py", "--features=FEATURES", "--repo_id=a/b", "--license=mit",
         "--dry_run=PLACE/features"],
        ("train",),
    ),
}  # fmt: skip


def run(job: Job, place: Path, again: bool = False) -> Callable[[], None]:
    def start() -> None:
        os.chdir(ROOT)
        os.environ["FL_I2MOE_CACHE"] = str(place / "cache")
        words = [*job.command, *([job.again] if again and job.again else [])]
        places = {"RUN": place / "run", "PLACE": place, "FEATURES": next((place / "cache" / "features").glob("*"), "")}
        sys.argv = [re.sub("RUN|PLACE|FEATURES", lambda found: str(places[found[0]]), word) for word in words]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise AssertionError(end.code) from None

    return start


def write_table(file: Path) -> None:
    rows = ["width,height,colour,shape,kind"]
    rows += [f"{i % 7},{i % 5},{'rgb'[i % 3]},{'oval' if i % 2 else 'box'},{'ab'[i % 2]}" for i in range(60)]
    file.write_text("\n".join(rows), encoding="utf-8")


def content(place: Path) -> dict[str, bytes]:
    """File → what is in it, without times and the place itself."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and not name.endswith(".lock"):
            data = path.read_bytes().replace(str(place).encode(), b"PLACE")
            if path.suffix in (".json", ".html", ".md"):
                data = TIMES.sub("", data.decode("utf-8")).encode()
            found[name] = data
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def kill(name: str, work: Path, start: int, every: int) -> Counter:
    job, place, before, log = JOBS[name], work / "place", work / "before", work / "log"

    def reset() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(before, place)

    shutil.rmtree(before, ignore_errors=True)
    before.mkdir(parents=True)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    write_table(place / "table.csv")
    never = 10**9
    for earlier in job.after:
        killed_before(never, run(JOBS[earlier], place), place, log)
    if job.start_at is not None:
        assert killed_before(job.start_at, run(JOBS["train"], place), place, log)
    shutil.rmtree(before)
    shutil.copytree(place, before)
    killed_before(never, run(job, place), place, log)
    expected, counts = content(place), Counter()
    for number in itertools.count(start, every):
        reset()
        if not killed_before(number, run(job, place), place, log):
            break
        counts["kills"] += 1
        if counts["kills"] % 50 == 0:
            print(f"  {name}: {counts['kills']} kills so far", flush=True)
        try:
            killed_before(never, run(job, place, again=True), place, log)
        except AssertionError as error:
            counts["refused"] += 1
            print(f"  {name}, operation {number}: refused: {str(error).strip().splitlines()[-1]}", flush=True)
            continue
        found = content(place)
        if names := sorted(expected.keys() ^ found.keys()):
            counts["lost"] += 1
            print(f"  {name}, operation {number}: lost or left over: {names[:4]}", flush=True)
        elif names := [key for key in expected if expected[key] != found[key]]:
            counts["different"] += 1
            print(f"  {name}, operation {number}: different: {names[:4]}", flush=True)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {', '.join(JOBS)}; all if none is named")
    parser.add_argument("--start", type=int, default=0, help="number of the first operation")
    parser.add_argument("--every", type=int, default=1, help="kill before every n-th operation alone")
    arguments = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for module in SHARED:
        importlib.import_module(f"fl_i2moe.{module}")
    Figure.savefig = lambda figure, path, **options: Path(path).write_bytes(b"drawn")  # drawing takes most of the time
    gc.freeze()  # what was imported need not be looked through in every fork
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.jobs or JOBS:
            counts = kill(name, Path(folder), arguments.start, arguments.every)
            words = ", ".join(f"{counts[word]} {word}" for word in ("refused", "lost", "different"))
            print(json.dumps(name), f"{counts['kills']} kills: {words}", flush=True)
