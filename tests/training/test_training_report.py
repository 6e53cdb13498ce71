"""What a finished training prints."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fl_i2moe.metrics.statistics import compute_statistics
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.report import report, warning

EXPERTS = ["uniqueness_synthesized_speech", "uniqueness_text", "synergy", "redundancy"]


def printed(num_labels, seeds=("0",), truth=None, dense=False, **terminal):
    """The report of a run with so many labels, of long names, each told by one expert alone."""
    rng = np.random.default_rng(0)
    experts = EXPERTS[:1] if dense else EXPERTS
    labels = rng.integers(2, size=(30, num_labels))
    told = np.arange(num_labels) % len(experts)
    logits = np.zeros((30, len(experts), num_labels))
    logits[:, told, range(num_labels)] = 8 * labels - 4
    names = [f"Label {c} with a rather long name" for c in range(num_labels)]
    statistics = compute_statistics(
        logits=logits.mean(axis=1),
        expert_logits=logits,
        expert_weights=np.full((30, len(experts)), 1 / len(experts)),
        labels=labels,
        expert_names=experts,
        label_names=names,
        problem_type="multi_label_classification",
        truth=truth and dict.fromkeys(names, truth),
    )
    metrics = {"micro_f1": {"mean": 0.5, "std": None}}
    results = {"seeds": dict.fromkeys(seeds), "best_seed": seeds[-1], "metric": "micro_f1"}
    results |= {"samples": {"test": 30, "validation": 500}, "test": metrics, "validation": metrics}
    output = StringIO()
    console = Console(file=output, markup=False, highlight=False, soft_wrap=True, color_system=None, **terminal)
    report(console, results, statistics, Path("runs/films"))
    return output.getvalue()


@pytest.mark.parametrize("truth", [None, "synergy"])
def test_23_labels_fit_100_columns(truth):
    lines = printed(23, truth=truth).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("What each label loses without the expert"))
    assert max(map(len, lines[start:-10])) <= 100  # sentences below may be longer, as those of other jobs
    rows = [line.rstrip() for line in lines[start:] if line.startswith(" Label ")]
    assert len(rows) == 23
    assert all(row.endswith("]") and row.count("[") == 2 for row in rows)
    if truth is None:
        assert "planted as" not in "".join(lines)
        told = "6 by Uniqueness: synthesized speech, 6 by Uniqueness: text, 6 by Synergy, 5 by Redundancy."
        assert f"Carried, of 23 labels: {told}" in "\n".join(lines)
    else:
        [header] = [line.split() for line in lines if "planted as" in line]
        assert header[:5] == ["label", "planted", "as", "carried", "by"]
        said = "6 of 23 labels are carried by the expert named after their interaction; chance is 5.8."
        assert said in lines


def test_numbers_stay_whole_in_a_narrow_terminal():
    lines = printed(4, truth="synergy", force_terminal=True, width=80).splitlines()
    rows = [line for line in lines if line.strip().startswith("Label ")]
    assert len(rows) == 4
    assert all(len(row) <= 80 and row.rstrip().endswith("]") and row.count("[") == 2 for row in rows)


def test_very_many_labels_are_cut_and_several_seeds_named():
    said = printed(60, seeds=("0", "3"))
    assert said.count("\n Label ") == 40
    assert "20 more are in interaction_statistics.json." in said
    assert "(test split, best seed 3):" in said
    assert "carried" not in printed(3, dense=True)


def test_a_run_that_a_constant_prediction_beats():
    def told(before, after, constant):
        losses = {"before": {"log_loss": before, "ece": 0.1}, "after": {"log_loss": after, "ece": 0.1}}
        frequencies = {"validation": constant, "test": None}
        run = {"calibration": {"validation": losses}, "log_loss_of_frequencies": frequencies}
        assert warning(7, run, TrainingArguments(class_weights="balanced")) is None  # which bias it on purpose
        return warning(7, run, TrainingArguments())

    numbers = (
        "Seed 7: the validation log loss is 1.480 as trained and {} calibrated; predicting the class frequencies of"
    )
    assert told(1.48, 0.95, 0.9).startswith(numbers.format("0.950"))
    assert told(1.48, 0.95, 0.9).endswith("has 0.900: a constant prediction does better.")
    assert "without the temperature a constant prediction does better" in told(1.48, 0.8, 0.9)
    assert told(0.85, 0.8, 0.9) is None
    assert told(1.48, 0.95, None) is None  # the frequencies' is infinite
    assert warning(7, {}, TrainingArguments()) is None  # of a regression, a streamed training split, an earlier version
