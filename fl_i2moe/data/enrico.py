"""ENRICO as published: `design_topics.csv` beside `screenshots/<id>.jpg` and `wireframes/<id>.png`.

Leiva et al., "Enrico: A Dataset for Topic Modeling of Mobile UI Designs" (2020). The split is MultiBench's.
"""

import csv
import io
import random
from pathlib import Path
from typing import Any

from . import files
from .raw import OnBadSample, RawDataset, check_ids

BROKEN_WIREFRAMES = ("50105", "50109")
PICTURES = {"screenshot": "screenshots/{}.jpg", "wireframe": "wireframes/{}.png"}
MODALITIES = dict.fromkeys(PICTURES, "image")
TOPICS_FILE = "design_topics.csv"
LAYOUT = f"ENRICO layout: {TOPICS_FILE}, screenshots/<id>.jpg and wireframes/<id>.png"


def load_enrico(data_dir: str | Path, *, on_bad_sample: OnBadSample = "stop") -> RawDataset:
    """Reads a folder in the raw ENRICO layout; pictures are checked to be there, but not decoded.

    The two screens whose published wireframes are broken are left out before the split, as MultiBench does, and named
    in `notes`. The split does not depend on what else is left out.

    Args:
        on_bad_sample: `"stop"` raises the first `SampleError`, `"skip"` collects them in `bad_samples`.

    Returns:
        A single-label `RawDataset` with the columns `id`, `screenshot`, `wireframe` and `labels` (classes of the topics
        in alphabetical order).

    Raises:
        SampleError: a picture is missing or empty.
        ValueError: the folder does not have the layout, an id is there twice, a topic is missing, or nothing is left.
    """
    data_dir = files.require_folder(data_dir, (TOPICS_FILE, "screenshots", "wireframes"), LAYOUT)
    topics = _read_topics(data_dir / TOPICS_FILE)
    broken = [screen for screen in BROKEN_WIREFRAMES if topics.pop(screen, None) is not None]
    label_names = sorted(set(topics.values()))
    if len(label_names) < 2:
        raise ValueError(f"{data_dir / TOPICS_FILE} has the topics {label_names}: at least two are needed")

    def read(split: str, screen: str) -> dict[str, Any]:
        pictures = {name: data_dir / file.format(screen) for name, file in PICTURES.items()}
        for name, path in pictures.items():
            files.check_picture(split, screen, name, path)
        return {"id": screen, **pictures, "labels": label_names.index(topics[screen])}

    samples, bad_samples = files.read_samples(data_dir, _split(list(topics)), read, on_bad_sample)
    notes = [f"Left out for their broken wireframes: {', '.join(broken)}."] if broken else []
    return files.raw_dataset(samples, MODALITIES, label_names, "single_label_classification", bad_samples, notes)


def _read_topics(file: Path) -> dict[str, str]:
    """Screen → topic, in the file's order."""
    reader = csv.DictReader(io.StringIO(files.read_text(file), newline=""))
    topics: dict[str, str] = {}
    try:
        names = reader.fieldnames or []
        if missing := {"screen_id", "topic"} - set(names):
            raise ValueError(
                f"{file} lacks the columns {sorted(missing)}; its first line must be screen_id,topic with commas, it "
                f"names {names}"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{file} has two columns of one name: {names}")
        for row in reader:
            screen, topic = (row[name] or "" for name in ("screen_id", "topic"))
            if not screen or not topic or None in row:  # None: what is behind the last column
                values = [value for value in row.values() if value is not None]
                raise ValueError(f"{file}, line {reader.line_num}: a screen_id and a topic are needed, got {values}")
            if screen in topics:
                raise ValueError(f"{file}, line {reader.line_num}: screen {screen!r} occurs twice, take one out")
            topics[screen] = topic
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num + 1} cannot be read as CSV: {error}") from error
    check_ids({"screen_id": list(topics)}, {"screen_id": file})
    return topics


def _split(screens: list[str]) -> dict[str, list[str]]:
    """MultiBench's: shuffled by its seed, then cut at 65 and 80 per cent."""
    random.Random(42).shuffle(screens)
    train, validation = int(len(screens) * 0.65), int(len(screens) * (0.65 + 0.15))
    return {"train": screens[:train], "validation": screens[train:validation], "test": screens[validation:]}
