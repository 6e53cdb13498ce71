"""What checks and measurements found: lines of a table as they come, and all of them as JSON."""

import math
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_i2moe.utils.files import write_json

FAILED, MISSED, SKIPPED = "FAILED", "missed", "skipped"


@dataclass
class Line:
    """One finding."""

    name: str
    value: float | str | None = None
    """Of a measurement the median of `values`."""

    unit: str = ""
    bound: str = ""
    """What a check allows, or a measurement's goal."""

    verdict: str = "measured"
    """`ok` or FAILED of a check, `reached` or `missed` of a goal, `measured` without one, or `skipped`."""

    note: str = ""
    """Why the bound is what it is; why something failed or was skipped."""

    values: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.value, float) and not math.isfinite(self.value):
            self.value = str(self.value)  # JSON has no such numbers
        self.values = [x for x in self.values if math.isfinite(x)]

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else "" if self.value is None else f"{self.value:,.3g}"
        if len(self.values) > 1:
            shown += f" ({min(self.values):,.3g} … {max(self.values):,.3g})"
        cells = (self.name, f"{shown} {self.unit}".strip(), self.bound, self.verdict, self.note)
        return f"| {' | '.join(' '.join(cell.replace('|', '∣').split()) for cell in cells)} |"


HEAD = "| what | value | bound or goal | verdict | note |\n|---|---|---|---|---|"


def check(name: str, error: float, at_most: float, why: str) -> Line:
    """Whether an error is at most what it may be; one that is no number is not."""
    return Line(name, error, "", f"≤ {at_most:.2g}", "ok" if error <= at_most else FAILED, why)


def holds(name: str, is_true: bool, why: str) -> Line:
    """A check without a number."""
    return Line(name, "yes" if is_true else "no", "", "yes", "ok" if is_true else FAILED, why)


def measured(
    name: str,
    values: Sequence[float],
    unit: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Line:
    """The median of what was measured, against its goal if there is one."""
    value = statistics.median(values)
    low, high = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    if (at_least, at_most) == (None, None):
        return Line(name, value, unit, note=note, values=list(values))
    bound = f"goal {'≥' if at_most is None else '≤'} {at_least if at_most is None else at_most:g} {unit}".rstrip()
    return Line(name, value, unit, bound, "reached" if low <= value <= high else MISSED, note, list(values))


def skipped(name: str, why: str) -> Line:
    return Line(name, verdict=SKIPPED, note=why)


Step = tuple[str, Callable[[], list[Line]]]
"""What is looked at, and a function that looks."""


@dataclass(frozen=True)
class Section:
    """Steps that belong together, and the minutes that they may take on the machine that they are meant for."""

    name: str
    minutes: float
    steps: Callable[[Any], Iterator[Step]]


@dataclass
class Report:
    """
    Args:
        path: the JSON file, which is written anew after each section.
        head: what stands at its top.
        max_minutes: for all sections together.
        between: called after each step, whatever became of it.
    """

    path: Path
    head: dict[str, Any]
    max_minutes: float
    between: Callable[[], None] = lambda: None
    sections: dict[str, list[Line]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = time.monotonic()

    @property
    def minutes(self) -> float:
        """Since the start."""
        return (time.monotonic() - self._start) / 60

    def run(self, section: Section, about: Any) -> None:
        """
        Takes the steps of a section one after another. One that raises is a failed one. When its minutes are over, the
        step that runs is ended, and those behind it are skipped, as is a section whose minutes are more than are left.
        """
        print(f"\n## {section.name}\n\n{HEAD}", flush=True)
        lines = self.sections[section.name] = []

        def add(found: list[Line]) -> None:
            for line in found:
                known = lines[-1].note if lines else ""
                print(replace(line, note="same") if line.note and line.note == known else line, flush=True)
                lines.append(line)

        end = self.minutes + section.minutes
        if end > self.max_minutes:
            left = max(0.0, self.max_minutes - self.minutes)
            why = f"it may take {section.minutes:g} minutes, {left:.1f} of --max_minutes are left"
            add([skipped("the whole section", why)])
        else:
            try:
                for name, step in section.steps(about):
                    add(self._take(name, step, end, f"the section's {section.minutes:g} minutes are over"))
                    self.between()
            except Exception as error:
                add([_failed("what the section needs", error)])
        self.write()

    def _take(self, name: str, step: Callable[[], list[Line]], end: float, why: str) -> list[Line]:
        seconds = 60 * (end - self.minutes)
        try:
            if seconds > 0:
                with _ended_after(seconds):
                    return step()
        except _OutOfTime:
            why += ", while it ran"
        except Exception as error:  # of any kind: what follows is to be known, too
            return [_failed(name, error)]
        return [skipped(name, why)]

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {name: [asdict(line) for line in lines] for name, lines in self.sections.items()}
        write_json(self.path, {**self.head, "minutes": round(self.minutes, 2), **self.counts(), "sections": found})

    def counts(self) -> dict[str, int]:
        """How many lines of each verdict there are."""
        verdicts = [line.verdict for lines in self.sections.values() for line in lines]
        return {verdict.lower(): verdicts.count(verdict) for verdict in (FAILED, MISSED, SKIPPED)}


class _OutOfTime(BaseException):
    """No `Exception`, which a compiler may take for one of its own."""


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Raises [`_OutOfTime`] in what runs longer; only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise _OutOfTime

    earlier = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def _failed(name: str, error: Exception) -> Line:
    traceback.print_exception(error)
    return Line(name, verdict=FAILED, note=f"{type(error).__name__}: {error!s:.300}")
