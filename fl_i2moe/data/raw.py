"""What every raw data set looks like before it is encoded, and how a bad sample is reported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import DatasetDict, List, Value

OnBadSample = Literal["stop", "skip"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class SampleError(ValueError):
    """One sample cannot be used; says which one, in which file, why, and what to do about it."""

    def __init__(self, split: str, sample_id: str, field: str, file: str | Path, reason: str) -> None:
        super().__init__(split, sample_id, field, str(file), reason)  # all five: it is unpickled as SampleError(*args)
        self.split = split
        self.sample_id = sample_id
        self.field = field
        self.file = str(file)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"sample {self.sample_id!r} of split {self.split!r} has a bad {self.field!r}: {self.reason} "
            f"(file {self.file}). Mend the file, take the sample out of its split, or "
            "leave such samples out with on_bad_sample='skip'."
        )


@dataclass
class RawDataset:
    """
    A data set as people see it: pictures, texts and labels, not yet encoded.

    Args:
        splits: `train`, `validation` and `test`, with the columns `id` (string), one per modality, and `labels`.
        modalities: modality column → name of its kind in `KINDS`, whose `raw_type` is the column's.
        label_names: of the C classes, in the order of the labels.
        bad_samples: with `on_bad_sample="skip"`, what was left out and why.
        notes: counts that a user should read, as sentences.
    """

    splits: DatasetDict
    modalities: dict[str, str]
    label_names: list[str]
    problem_type: ProblemType
    bad_samples: list[SampleError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def label_column(problem_type: ProblemType, num_labels: int) -> Value | List:
    """The type of a label: a class, or float32 numbers, one for each of C labels."""
    is_class = problem_type == "single_label_classification"
    return Value("int64") if is_class else List(Value("float32"), length=num_labels)
