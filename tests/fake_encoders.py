"""Tiny stand-ins for frozen encoders and raw data: features that anyone can compute again with one line of NumPy."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from torch import Tensor

from fl_i2moe.data.raw import RawDataset


@dataclass
class FakePreprocessed:
    inputs: dict[str, Tensor]
    annotations: list[dict[str, Any]]


@dataclass
class FakeEncoded:
    features: Tensor
    feature_mask: Tensor
    special_mask: Tensor


def image_features(content: bytes) -> np.ndarray:
    """A picture is a file of 4 bytes: features (4, 3), value / 10 + 1, 2, 3."""
    return np.frombuffer(content, np.uint8)[:, None] / np.float32(10) + np.arange(1, 4, dtype=np.float32)


def text_features(text: str, max_length: int = 8) -> np.ndarray:
    """A text's tokens are its words behind a special one: features (T, 2), (length of the word, place)."""
    words = text.split()[: max_length - 1]
    return np.array([[0, 0], *([len(word), place + 1] for place, word in enumerate(words))], np.float32)


def preprocess_image(values: list[dict[str, Any]]) -> FakePreprocessed:
    contents = [Path(value["path"]).read_bytes() for value in values]
    for value, content in zip(values, contents, strict=True):
        if content == b"bad":
            raise ValueError(f"{value['path']} is truncated")
    geometry = {"width": 4, "height": 1, "left": 0, "top": 0, "right": 4, "bottom": 1}
    pixels = torch.tensor([list(content) for content in contents], dtype=torch.float32)
    return FakePreprocessed({"pixels": pixels}, [geometry for _ in values])


def preprocess_text(values: list[str], max_length: int = 8) -> FakePreprocessed:
    rows = [[len(word) for word in value.split()][: max_length - 1] for value in values]
    longest = max(len(row) for row in rows) + 1
    lengths = torch.tensor([[0, *row] + [-1] * (longest - 1 - len(row)) for row in rows])
    annotations = []
    for value, row in zip(values, rows, strict=True):
        starts = [len(" ".join(value.split()[:i])) + (i > 0) for i in range(len(row))]
        offsets = [(0, 0), *((start, start + length) for start, length in zip(starts, row, strict=True))]
        num_tokens = len(value.split()) + 1
        annotations.append({"offsets": offsets, "num_tokens": num_tokens, "truncated": num_tokens > max_length})
    return FakePreprocessed({"lengths": lengths}, annotations)


@dataclass
class FakeImageEncoder:
    kind: str = "image"
    feature_size: int = 3
    max_features: int = 4
    grid: tuple[int, int] | None = (1, 4)
    revision: str = "a"
    calls: int = 0

    preprocess = staticmethod(preprocess_image)

    def encode(self, inputs: dict[str, Tensor]) -> FakeEncoded:
        self.calls += 1
        time.sleep(float(os.environ.get("FAKE_ENCODER_SECONDS", "0")))
        features = inputs["pixels"][:, :, None] / 10 + torch.arange(1.0, 4.0)
        real = torch.ones(features.shape[:2], dtype=torch.bool)
        return FakeEncoded(features, real, ~real)

    def identity(self) -> dict[str, Any]:
        return {"name": "fake-image", "revision": self.revision}


@dataclass
class FakeTextEncoder:
    kind: str = "text"
    feature_size: int = 2
    max_features: int = 8
    grid: tuple[int, int] | None = None
    max_length: int = 8

    preprocess = staticmethod(preprocess_text)

    def encode(self, inputs: dict[str, Tensor]) -> FakeEncoded:
        lengths = inputs["lengths"].float()
        places = torch.arange(lengths.shape[1], dtype=torch.float32).expand_as(lengths)
        mask = lengths >= 0
        features = torch.stack([lengths, places], dim=2)
        # words that stand for what can go wrong inside an encoder
        features[lengths == len("notanumber")] = torch.nan
        features[lengths == len("overflowing")] = 70000.0
        mask = mask & ~(lengths == len("nothing")).any(dim=1, keepdim=True)
        return FakeEncoded(features, mask, mask & (places == 0))

    def identity(self) -> dict[str, Any]:
        return {"name": "fake-text", "max_length": self.max_length, "preprocessing": {"lower": True}}


def fake_encoders() -> dict[str, Any]:
    return {"image": FakeImageEncoder(), "text": FakeTextEncoder()}


def write_raw(folder: Path, sizes: dict[str, int], seed: int = 0) -> RawDataset:
    """Pictures of 4 bytes and texts of 1 to 12 words of 1 to 5 letters, with 3 labels. Pictures that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features(
        {
            "id": Value("string"),
            "image": Image(decode=False),
            "text": Value("string"),
            "labels": List(Value("float32"), length=3),
        }
    )
    rng = np.random.default_rng(seed)
    splits = DatasetDict()
    for split, size in sizes.items():
        rows = []
        for i in range(size):
            path = folder / f"{split}{i}.picture"
            content = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
            if not path.exists():  # another process may be reading it
                path.write_bytes(content)
            text = " ".join("x" * n for n in rng.integers(1, 6, rng.integers(1, 13)))
            labels = rng.integers(0, 2, 3).astype(np.float32).tolist()
            rows.append(
                {"id": f"{split}-{i}", "image": {"path": str(path), "bytes": None}, "text": text, "labels": labels}
            )
        splits[split] = Dataset.from_list(rows, features=features)
    return RawDataset(splits, {"image": "image", "text": "text"}, ["a", "b", "c"], "multi_label_classification")


def replace_text(raw: RawDataset, split: str, row: int, text: str) -> None:
    texts = list(raw.splits[split]["text"])
    texts[row] = text
    columns = raw.splits[split].column_names
    raw.splits[split] = raw.splits[split].remove_columns("text").add_column("text", texts).select_columns(columns)


def take_away(raw: RawDataset, split: str, modality: str, rows: list[int]) -> RawDataset:
    """The same raw data, of which these samples of the split lack the modality."""
    samples = raw.splits[split]
    cells = [None if row in rows else cell for row, cell in enumerate(samples[modality])]
    others = samples.remove_columns(modality)
    changed = others.add_column(modality, cells, feature=samples.features[modality])
    raw.splits[split] = changed.select_columns(samples.column_names)
    return RawDataset(raw.splits, raw.modalities, raw.label_names, raw.problem_type)
