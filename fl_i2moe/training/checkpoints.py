"""Checkpoints of a training run: written whole or not at all, few of them kept, found again by a resumed run."""

import hashlib
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..utils.checked_json import read_json
from ..utils.files import UNFINISHED, bring_to_disk, explaining_full_disk, remove, replace_files, write_json

STATE_FILE, CHECKSUMS_FILE = "trainer_state.json", "checksums.json"
MODEL_FOLDER = "model"
NAME = re.compile(r"step-(\d{8,})-epoch-(\d{4,})")


@dataclass
class TrainerState:
    """Where a run stands; everything else lies in Accelerate's own files beside it."""

    epoch: int = 0
    step_in_epoch: int = 0
    """Batches of `epoch` that are done."""
    optimizer_step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    finished: bool = False
    loss_sums: dict[str, float] = field(default_factory=dict)
    """Sums of the running epoch's losses over its batches so far."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an epoch: mean losses and validation metrics."""
    run: str | None = None
    """Digest of what decides the run's result; earlier versions wrote none."""


class Checkpoints:
    """
    The folder `checkpoints/` of a run: `step-00000200-epoch-0003/` and so on, newest last. Each holds Accelerate's
    files, the trainer's state, the model that the run keeps so far, and the checksums of all these.

    Args:
        keep: how many there are at most.
        run: digest of what decides the run's result; a checkpoint with another one is not used.
    """

    def __init__(self, run_dir: str | os.PathLike, keep: int, run: str | None = None):
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / "checkpoints"
        self.keep, self.run = keep, run

    def save(self, accelerator: Accelerator, state: TrainerState) -> None:
        """
        Writes under another name and renames, so that a killed run leaves no half checkpoint under a valid name. Raises
        `OSError` if the disk is full; earlier checkpoints are as they were.
        """
        # the epoch tells the checkpoint at its end from one that fell on its last step
        target = self.folder / f"step-{state.optimizer_step:08d}-epoch-{state.epoch:04d}"
        unfinished = self.folder / (UNFINISHED + target.name)
        if accelerator.is_main_process:
            remove(unfinished)
        accelerator.wait_for_everyone()
        explanation = (
            f"the checkpoint {target.name} cannot be written. "
            "Earlier ones are kept: make room and run again with --resume"
        )
        try:
            with explaining_full_disk(self.folder, explanation):
                accelerator.save_state(str(unfinished))
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    write_json(unfinished / STATE_FILE, {**asdict(state), "run": self.run})
                    self._add_model(unfinished / MODEL_FOLDER)
                    for path in _files(unfinished):
                        bring_to_disk(path)
                    write_json(unfinished / CHECKSUMS_FILE, _checksums(unfinished))
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if accelerator.is_main_process:
            _put_aside(target)
            unfinished.rename(target)
            found = self._all()
            until_now = found[: found.index(target) + 1]  # what follows was not whole when the run went on
            for outdated in [*until_now[: -self.keep], *found[len(until_now) :]]:
                _put_aside(outdated)
        accelerator.wait_for_everyone()

    def _add_model(self, target: Path) -> None:
        """The kept model takes no more room here: a later one takes its place, not its bytes."""
        kept = self.run_dir / MODEL_FOLDER
        if kept.is_dir():
            target.mkdir()
            # every save writes the code anew, and someone may have explained the model already
            for path in (x for x in kept.iterdir() if x.is_file() and x.suffix != ".py"):
                try:
                    os.link(path, target / path.name)
                except OSError:  # a file system without links
                    shutil.copyfile(path, target / path.name)

    def load_latest(self, accelerator: Accelerator) -> TrainerState:
        """
        Restores weights, optimizer, schedule, random states and the kept model of the newest checkpoint that is whole,
        and says what was wrong with newer ones; a fresh state where there is none.
        """
        found: list[Path | None] = [None]
        if accelerator.is_main_process:
            found = [self._newest_whole(accelerator)]
        broadcast_object_list(found)
        if (checkpoint := found[0]) is None:
            return TrainerState()
        accelerator.load_state(str(checkpoint))
        if accelerator.is_main_process and (model := checkpoint / MODEL_FOLDER).is_dir():
            copy = partial(shutil.copytree, model, dirs_exist_ok=True)
            replace_files(self.run_dir / MODEL_FOLDER, copy)
        accelerator.wait_for_everyone()
        return TrainerState(**read_json(checkpoint / STATE_FILE, dict))

    def _newest_whole(self, accelerator: Accelerator) -> Path | None:
        checkpoints = self._all()
        for checkpoint in reversed(checkpoints):
            if (damage := find_damage(checkpoint, self.run)) is None:
                accelerator.print(f"Going on from {checkpoint}.")
                return checkpoint
            accelerator.print(f"{checkpoint} is not used: {damage}.")
        if checkpoints:
            accelerator.print(f"No checkpoint in {self.folder} is whole: this seed's training starts anew.")
        return None

    def remove(self) -> None:
        _put_aside(self.folder)

    def _all(self) -> list[Path]:
        """Not what others put beside them, such as a copy under another name."""
        numbers = {path: NAME.fullmatch(path.name) for path in self.folder.glob("step-*") if path.is_dir()}
        found = {path: [int(digits) for digits in name.groups()] for path, name in numbers.items() if name}
        return sorted(found, key=found.__getitem__)


def find_damage(checkpoint: Path, run: str | None) -> str | None:
    """
    What is wrong with a checkpoint, in words; `None` where its files are those that were written, by this `run` as far
    as it says so.
    """
    try:
        expected = read_json(checkpoint / CHECKSUMS_FILE, dict)
        found = _checksums(checkpoint)
        stored = read_json(checkpoint / STATE_FILE, dict).get("run")
    except (OSError, ValueError) as error:
        return str(error)
    for name in sorted({**expected, **found}):
        if name not in found or name not in expected:
            return f"{name} is missing" + f" in {CHECKSUMS_FILE}" * (name in found)
        if found[name] != expected[name]:
            return f"{name} is not as it was written"
    return None if stored in (None, run) else "it is of another seed, or of a run with other settings"


def _checksums(folder: Path) -> dict[str, str]:
    """Name → sha256 of each file."""
    sums = {}
    for path in _files(folder):
        with path.open("rb") as file:
            sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _files(folder: Path) -> list[Path]:
    """Those that have a checksum: all but hidden ones, which systems put into folders."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [path for path in found if path.name != CHECKSUMS_FILE]


def _put_aside(folder: Path) -> None:
    """Removes a folder under another name, so that a kill leaves no half of it under a valid one."""
    if os.path.lexists(folder):
        aside = folder.with_name(f"{UNFINISHED}removed-{folder.name}")
        remove(aside)
        folder.rename(aside)
        remove(aside)
