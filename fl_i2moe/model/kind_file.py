"""What pictures and sounds have in common: their raw values lie in files, which may be gone or changed later."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.request import urlopen

from .kind import EncodedKind, checksum, is_missing
from .places import Places


def fetch(value: Any) -> Any:
    """The file at an address, not decoded yet: how large it is must be seen first. What is no address stays as it is.

    Raises:
        ValueError: it could not be fetched.
    """
    if not (isinstance(value, str) and value.startswith(("http://", "https://"))):
        return value
    try:
        with urlopen(value, timeout=60) as answer:
            return {"path": value, "bytes": answer.read()}
    except (OSError, HTTPException) as error:
        raise ValueError(f"{value}: could not be fetched: {error}. Give another address, or a file.") from error


def find_file(path: str, folders: Sequence[Path]) -> str | None:
    """
    A file with at least one byte, by its absolute path or one that begins in one of the folders; None if there is none.
    Raises `ValueError` for an address in the web and for an empty file.
    """
    if re.match(r"data:|\w[\w+.-]*://", path):
        raise ValueError(
            f"{path[:80]!r} is an address; files are not fetched here: download them, and give their paths"
        )
    for folder in folders:
        place = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
        try:
            status = os.stat(place)
        except (OSError, ValueError):  # no file, or no path at all: it is too long, or holds a null character
            continue
        if stat.S_ISREG(status.st_mode):
            if not status.st_size:
                raise ValueError(f"the file {place} has 0 bytes; download or write it again")
            return place
    return None


@dataclass
class FilePlaces(Places):
    """A modality whose raw value is a file."""

    sense: ClassVar[str]
    """What one does with such a file: see or hear it."""

    path: str | None = None
    """The file."""

    content: bytes | None = None
    """What is in it, where it is not read from its path."""

    def misfit(self, content: bytes) -> str | None:
        """Why this content, whose checksum is right or unknown, is not what was encoded; None if it may be."""
        return None

    def missing(self) -> str | None:
        return self._encoded[1]

    def unchecked(self) -> str | None:
        if self.sha256 is not None or self.missing():
            return None
        return "is not known to be the one that was encoded, since the feature cache has no checksum of it: encode anew"

    @property
    def file(self) -> dict[str, Any] | None:
        """What was encoded, as a cell of the raw column with its content; None where it is [`missing`]."""
        content, reason = self._encoded
        return None if reason else {"path": self.path, "bytes": content}

    @cached_property
    def _encoded(self) -> tuple[bytes | None, str | None]:
        """The file's content as it was encoded; where there is none, why. Looked for once."""
        content, place = self.content, "it"
        if content is None:
            if not self.path:
                return None, f"is not in the feature cache: build one from the files to {self.sense} it"
            place = str(Path(self.path).absolute())
            try:
                if not Path(self.path).is_file():
                    return None, f"is not at {place}: put it there, or a link to it, to {self.sense} it"
                content = Path(self.path).read_bytes()
            except OSError as error:
                return None, f"cannot be read at {place} ({error.strerror}): make it readable to {self.sense} it"
        reason: str | None = "changed" if self.sha256 not in (None, checksum(content)) else self.misfit(content)
        if reason == "changed":
            reason = f"is not the one that was encoded: {place} has changed; put the encoded one back, or encode anew"
        elif reason:
            reason = f"cannot be read: {place} {reason}; put the encoded one there"
        return (None, reason) if reason else (content, None)

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], name: str, encoder: Mapping[str, Any], grid: Sequence[int] | None
    ) -> Self:
        places, cell = super().from_row(row, name, encoder, grid), row.get(name) or {}
        places.path, places.content = cell.get("path"), cell.get("bytes")
        return places

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "content": self.content and base64.b64encode(self.content).decode()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        places = super().from_dict(values)
        places.content = values["content"] and base64.b64decode(values["content"])
        return places


class FileKind(EncodedKind):
    """A kind whose raw column holds `{"path", "bytes"}`."""

    ending: ClassVar[str]
    """Of such a file's name."""

    def from_table(self, value: Any, folders: Sequence[Path]) -> dict[str, Any] | None:
        """A path, the bytes, or both as `datasets` has them."""
        if isinstance(value, Mapping):
            content, path = value.get("bytes"), value.get("path")
            if not is_missing(content):
                return {"bytes": content, "path": path}
            value = path
        if is_missing(value):
            return None
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        if not isinstance(value, str | os.PathLike):
            raise ValueError(f"it holds {str(value)[:60]!r}, which is neither a path nor the bytes of a file")
        if (place := find_file(str(value), folders)) is not None:
            return {"bytes": None, "path": place}
        tried = " or ".join(dict.fromkeys(str(Path(folder, value)) for folder in folders))
        raise ValueError(f"there is no file {tried}; mend the path, or say by `root` where such paths begin")

    def file_of(self, cell: Mapping[str, Any]) -> str:
        return cell.get("path") or "-"

    def content(self, cell: Mapping[str, Any]) -> bytes:
        if cell.get("bytes") is not None:
            return cell["bytes"]
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise ValueError(f"{cell['path']}: cannot be read: {error}") from error

    def example(self, modality: str, identity: Mapping[str, Any]) -> str:
        return f'"{"".join(x if x.isascii() and x.isalnum() else "-" for x in modality)}{self.ending}"'

    def published_cell(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        return {"path": re.split(r"[\\/]", cell["path"] or "")[-1] or None, "bytes": None}  # its name alone
