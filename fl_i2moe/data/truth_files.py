"""Built-in samples: a folder with what was made and one JSON file of truth, by which the very sample is known again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.files import write_new_folder

MIN_SAMPLES = 20


@dataclass(frozen=True)
class TruthFile:
    """
    The truth about one kind of sample.

    Args:
        format_version: of what is written; to be raised with every change to it.
        kind: what such a sample is called.
        writer: the function that makes one.
    """

    name: str
    format_version: int
    kind: str
    writer: str

    def load(self, data_dir: str | Path) -> dict[str, Any]:
        """Raises `ValueError` if the folder holds no such sample, or one of another version."""
        path = Path(data_dir).expanduser() / self.name
        if not path.is_file():
            raise ValueError(f"{path} does not exist: {data_dir} is no {self.kind}; write one with {self.writer}")
        advice = "delete the folder and write the sample again"
        try:
            truth = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); {advice}") from error
        version = truth.get("format_version") if isinstance(truth, dict) else None
        if version != self.format_version:
            raise ValueError(f"{path} has format_version {version}, this version reads {self.format_version}; {advice}")
        return truth

    def write_sample(
        self, folder: str | Path, made_from: dict[str, Any], write: Callable[[Path], dict[str, Any]]
    ) -> Path:
        """
        Lets `write` fill a new or empty folder and return the truth, which `made_from` begins; or finds the same
        sample there. Returns the absolute folder.

        Raises:
            ValueError: the folder holds something else.
        """
        folder = Path(folder).expanduser().absolute()

        def write_all(new: Path) -> None:
            truth = {"format_version": self.format_version, **made_from, **write(new)}
            (new / self.name).write_text(json.dumps(truth), encoding="utf-8")

        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            try:
                write_new_folder(folder, write_all)
                return folder
            except OSError:
                if not (folder / self.name).is_file():  # otherwise another run made it meanwhile
                    raise
        if not (folder / self.name).is_file():
            raise ValueError(f"{folder} already holds something that is no {self.kind}; choose another folder")
        found, asked = (x.get("settings", x) for x in (self.load(folder), json.loads(json.dumps(made_from))))
        different = [f"{name} {found.get(name)} instead of {x}" for name, x in asked.items() if found.get(name) != x]
        if different:
            raise ValueError(f"{folder} holds another {self.kind} ({', '.join(different)}); choose another folder")
        return folder


def split_sizes(num_samples: int, names: tuple[str, str, str] = ("train", "validation", "test")) -> dict[str, int]:
    """70, 10 and 20 per cent of the samples."""
    train, validation = (round(share * num_samples) for share in (0.7, 0.1))
    return dict(zip(names, (train, validation, num_samples - train - validation), strict=True))
