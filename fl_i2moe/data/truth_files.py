"""
Built-in samples: a folder that holds what was made and, in one JSON file, the truth about it.

The truth has a `format_version`, and what the sample was made from: a folder is reused where it holds the very sample
that is asked for, and is never replaced.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TruthFile:
    """The truth about one kind of sample."""

    name: str
    format_version: int
    kind: str
    """What such a sample is called."""

    writer: str
    """The function that makes one."""

    def load(self, data_dir: str | Path) -> dict[str, Any]:
        """
        Raises:
            ValueError: the folder holds no such sample, or one of another version.
        """
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
        self,
        output_dir: Path,
        expected: Mapping[str, Any],
        made_from: Callable[[dict[str, Any]], Mapping[str, Any]],
        write: Callable[[Path], None],
    ) -> None:
        """
        Lets `write` fill a new folder, which appears when it is complete; or finds the same sample there.

        Args:
            output_dir: a folder that does not exist yet, or is empty, or holds this very sample.
            expected: what the sample is made from.
            made_from: finds that in a truth.

        Raises:
            ValueError: the folder holds something else.
        """
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            self._check_same(output_dir, expected, made_from)
            return
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as unfinished:
            folder = Path(unfinished) / output_dir.name
            folder.mkdir()
            write(folder)
            try:
                folder.rename(output_dir)
            except OSError:  # another run made it meanwhile
                if not (output_dir / self.name).is_file():
                    raise
                self._check_same(output_dir, expected, made_from)

    def _check_same(
        self,
        output_dir: Path,
        expected: Mapping[str, Any],
        made_from: Callable[[dict[str, Any]], Mapping[str, Any]],
    ) -> None:
        if not (output_dir / self.name).is_file():
            raise ValueError(f"{output_dir} already holds something that is no {self.kind}; choose another folder")
        written = made_from(self.load(output_dir))
        expected = json.loads(json.dumps(expected))  # as it comes back from the file
        if different := [
            f"{name} {written.get(name)} instead of {x}" for name, x in expected.items() if written.get(name) != x
        ]:
            raise ValueError(f"{output_dir} holds another {self.kind} ({', '.join(different)}); choose another folder")
