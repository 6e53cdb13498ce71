"""Checkpoints of a training run: written whole or not at all, few of them kept, found again by a resumed run."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..utils.files import explaining_full_disk, read_json, write_json

STATE_FILE = "trainer_state.json"


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


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-00000200-epoch-0003/` and so on, newest last."""

    def __init__(self, run_dir: str | os.PathLike, keep: int):
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep

    def save(self, accelerator: Accelerator, state: TrainerState) -> None:
        """
        Writes under another name and renames, so that a killed run leaves no half checkpoint under a valid name. Raises
        `OSError` if the disk is full; earlier checkpoints are as they were.
        """
        # the epoch tells the checkpoint at its end from one that fell on its last step
        target = self.folder / f"step-{state.optimizer_step:08d}-epoch-{state.epoch:04d}"
        unfinished = self.folder / f"unfinished-{target.name}"
        if accelerator.is_main_process and unfinished.exists():
            shutil.rmtree(unfinished)
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
                    write_json(unfinished / STATE_FILE, asdict(state))
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if accelerator.is_main_process:
            if target.exists():
                shutil.rmtree(target)
            unfinished.rename(target)
            for outdated in self._all()[: -self.keep]:
                shutil.rmtree(outdated)
        accelerator.wait_for_everyone()

    def load_latest(self, accelerator: Accelerator) -> TrainerState:
        """Restores weights, optimizer, schedule and random states; a fresh state where there is no checkpoint."""
        found = self._all()
        if not found:
            return TrainerState()
        accelerator.load_state(str(found[-1]))
        return TrainerState(**read_json(found[-1] / STATE_FILE))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE_FILE).is_file())
