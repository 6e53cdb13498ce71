"""MMHS150K as published: `MMHS150K_GT.json` beside `img_resized/<id>.jpg`, `img_txt/<id>.json` and `splits/`.

Gomez et al., "Exploring Hate Speech Detection in Multimodal Publications" (2020).
"""

import os
from pathlib import Path
from typing import Any

from . import files
from .raw import OnBadSample, RawDataset, SampleError, check_ids, names_of_splits

SPLITS = {"train": "train", "val": "validation", "test": "test"}  # in the files' names → in the DatasetDict
LABELS = ["not_hate", "hate"]
NUM_ANNOTATORS = 3
NOT_HATE, NUM_KINDS = 0, 6  # each annotator says 0, not hate, or one of five kinds of hate
MODALITIES = {"image": "image", "text": "text"}
LIST_END = "_ids.txt"
TRUTH_FILE = "MMHS150K_GT.json"
LAYOUT = f"MMHS150K layout: {TRUTH_FILE}, img_resized/<id>.jpg, img_txt/<id>.json and splits/{{train,val,test}}_ids.txt"


def load_mmhs150k(
    data_dir: str | Path, *, append_image_text: bool = False, on_bad_sample: OnBadSample = "stop"
) -> RawDataset:
    """Reads a folder in the raw MMHS150K layout; pictures are checked to be there, but not decoded.

    A tweet is hate where at least two of its three annotators say so, of whatever kind.

    Args:
        append_image_text: put the text that was read in the picture (`img_txt/`, where it has one) behind the tweet's.
        on_bad_sample: `"stop"` raises the first `SampleError`, `"skip"` collects them in `bad_samples`.

    Returns:
        A single-label `RawDataset` with the columns `id`, `image`, `text` and `labels` (0 not hate, 1 hate).

    Raises:
        SampleError: an id of a split has no entry, no text, no picture, or labels that are not three numbers 0 … 5.
        ValueError: the folder does not have the layout, an id is in two places, or nothing is left.
    """
    folders = ["img_resized", *(["img_txt"] if append_image_text else [])]
    lists = {name: f"splits/{name}{LIST_END}" for name in SPLITS}
    data_dir = files.require_folder(data_dir, (TRUTH_FILE, *folders, *lists.values()), LAYOUT)
    truth = files.read_json(data_dir / TRUTH_FILE)
    if not isinstance(truth, dict):
        raise ValueError(f"{data_dir / TRUTH_FILE} must hold an object: tweet id → its text and labels")
    ids = {name: files.read_text(data_dir / file).split() for name, file in lists.items()}
    names_of_splits((x.name.removesuffix(LIST_END) for x in (data_dir / "splits").glob("*" + LIST_END)), data_dir)
    check_ids(ids, {name: data_dir / file for name, file in lists.items()})
    ids = {split: ids[name] for name, split in SPLITS.items()}
    with_image_text = 0

    def read(split: str, tweet: str) -> dict[str, Any]:
        nonlocal with_image_text
        text, label = _read_tweet(truth, split, tweet, data_dir / TRUTH_FILE)
        picture = data_dir / "img_resized" / f"{tweet}.jpg"
        files.check_picture(split, tweet, "image", picture)
        if append_image_text:
            image_text = _read_image_text(split, tweet, data_dir / "img_txt" / f"{tweet}.json")
            with_image_text += bool(image_text)
            text = f"{text} {image_text}".strip()
        files.check_text(split, tweet, "text", data_dir / TRUTH_FILE, text)
        return {"id": tweet, "image": picture, "text": text, "labels": label}

    samples, bad_samples = files.read_samples(data_dir, ids, read, on_bad_sample)
    notes = [f"{with_image_text:,} tweets have text in their pictures, which follows theirs."] * append_image_text
    return files.raw_dataset(samples, MODALITIES, list(LABELS), "single_label_classification", bad_samples, notes)


def _read_tweet(truth: dict[str, Any], split: str, tweet: str, file: Path) -> tuple[str, int]:
    """The tweet's text, and whether most annotators call it hate."""
    entry = truth.get(tweet)
    if not isinstance(entry, dict):
        raise SampleError(split, tweet, "labels", file, "the id has no entry")
    labels = entry.get("labels")
    is_list = isinstance(labels, list) and len(labels) == NUM_ANNOTATORS
    if not is_list or not all(type(label) is int and 0 <= label < NUM_KINDS for label in labels):
        reason = f"labels must be {NUM_ANNOTATORS} numbers 0 … {NUM_KINDS - 1}, got {labels!r}"
        raise SampleError(split, tweet, "labels", file, reason)
    text = entry.get("tweet_text")
    if not isinstance(text, str):
        raise SampleError(split, tweet, "text", file, "there is no tweet_text")
    return text.strip(), int(sum(label != NOT_HATE for label in labels) >= 2)


def _read_image_text(split: str, tweet: str, file: Path) -> str:
    """The text in the picture; empty where there is no file, as published."""
    if not os.path.exists(file):
        return ""
    text = files.read_sample_json(split, tweet, "text", file).get("img_text")
    if not isinstance(text, str):
        raise SampleError(split, tweet, "text", file, "there is no img_text")
    return text.strip()
