"""One sample of a run: its page, figure and data for each class, and what it gives to the measurements."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ...cache import FeatureCache
from ...explain.attribution import attribute, universe_method
from ...explain.explain_sample import explain, true_targets
from ...explain.explanation import Explanation
from ...explain.feature_game import feature_game
from ...explain.inputs import Inputs, feature_batch
from ...explain.interactions import sample_seed, score_pairs
from ...explain.pair_table import kind_of_expert
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...utils.checked_json import read_json
from ...utils.files import write_json
from ..alignment import bin_edges, importance_bins, pair_bins
from ..masking import DIRECTIONS, masked_logits
from ..pairs import pair_curve_logits, pair_masking_logits
from .arguments import ExplainArguments
from .files import MEASURED

CURVE_DRAWS = 3
"""Random orders that the curves of pairs are compared with, at most: each takes a pass of the model for every share."""


@dataclass(frozen=True)
class Sample:
    """A row of the split, by its number, and the files that are made of it."""

    number: int
    sample_id: str
    labels: Any
    file_name: str
    class_file_names: Mapping[str, str]
    arguments: ExplainArguments
    cache: FeatureCache

    @property
    def measured(self) -> Path:
        return self.arguments.folder / "measured" / f"{self.file_name}.json"

    def record(self) -> dict[str, Any] | None:
        """What was measured, and the classes that have pages; None before that."""
        return read_json(self.measured, MEASURED) if self.measured.is_file() else None

    def classes_due(self, target: str, predicted: Sequence[str] | None) -> list[str] | None:
        """Names of the classes that pages are due for, where the `target` is what `explain` takes by default; None
        where that depends on what is `predicted` and this is not known."""
        names, classes = self.cache.label_names, self.arguments.classes
        true = [names[index] for index in true_targets(self.labels, self.cache.problem_type)]
        if classes == "predicted_and_true" and self.cache.problem_type != "regression":
            return None if predicted is None else list(dict.fromkeys([*predicted, *true])) or [target]
        return [target] if classes == "best" or not true else true

    def page(self, class_name: str) -> Path:
        return self.arguments.folder / "samples" / f"{self.file_name}-{self.class_file_names[class_name]}.html"


def list_samples(rows: Sequence[int], cache: FeatureCache, arguments: ExplainArguments) -> list[Sample]:
    """The samples in these rows of the split."""
    split = cache.splits[arguments.split]
    ids = list(split["id"])
    names = file_names(ids)
    # without a hyphen, so that the last one ends the sample's name
    class_names = file_names(cache.label_names, allowed="A-Za-z0-9._")
    labels = split.select_columns(["labels"])[list(rows)]["labels"]
    return [
        Sample(row, ids[row], label, names[ids[row]], class_names, arguments, cache)
        for row, label in zip(rows, labels, strict=True)
    ]


def file_names(names: Iterable[str], allowed: str = "A-Za-z0-9._-") -> dict[str, str]:
    """Name → a name that is safe in every file system and in a link. Different names stay different, also where a file
    system takes upper and lower case for the same."""
    safe = {name: re.sub(f"[^{allowed}]", "_", name)[:80].lstrip(".") for name in names}
    lower = Counter(file.lower() for file in safe.values())
    for name, file in safe.items():
        if file != name or lower[file.lower()] > 1:
            safe[name] = f"{file}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return safe


def explain_sample(model: FLI2MoEModel, sample: Sample, with_page: bool) -> None:
    """Writes the sample's pages and what it gives to the measurements, unless they are there."""
    arguments, record = sample.arguments, sample.record()
    if record is not None:
        due = sample.classes_due(record["target"], record.get("predicted"))
        if not with_page or (due is not None and set(due) <= set(record["pages"])):
            return
    row = sample.cache.splits[arguments.split][sample.number]
    how: dict[str, Any] = {
        "units": "features",
        "method": arguments.method,
        "interactions": None if arguments.interactions == "none" else arguments.interactions,
        "num_coalitions": arguments.num_coalitions,
        "universe_share": arguments.universe_share,
        "seed": arguments.seed,
        "cache": sample.cache,
        "sample_number": sample.number,
    }
    explanation = explain(model, row, **how)
    predicted = [explanation.label_names[index] for index in explanation.predicted_classes]
    pages = record["pages"] if record else []
    if with_page:
        for name in sample.classes_due(explanation.target_name, predicted):
            one = explanation if name == explanation.target_name else explain(model, row, name, **how)
            page = sample.page(name)
            one.save(page, index_href="../index.html")
            one.save(page.with_suffix(".png"))
            one.save(page.with_suffix(".json"))
            pages = list(dict.fromkeys([*pages, name]))
    if record is None:
        record = {"id": sample.sample_id, "target": explanation.target_name}
        if arguments.interactions != "none":
            record["experts"] = _measure_pairs(model, sample, row, explanation)
    write_json(sample.measured, record | {"predicted": predicted, "pages": pages})


def _measure_pairs(
    model: FLI2MoEModel, sample: Sample, row: dict[str, Any], explanation: Explanation
) -> dict[str, dict[str, Any]]:
    """Per expert: what alignment, masking and curves of pairs need of one sample, as plain JSON."""
    arguments, evaluate = sample.arguments, partial(masked_logits, model)
    inputs = Inputs.from_batch(model, feature_batch(row, model.config.modality_order))
    targets = torch.tensor([explanation.target])
    importance = attribute(model, inputs, targets, universe_method(model), experts=list(explanation.pair_tables))
    measured = {}
    for e, (expert, first) in enumerate(explanation.pair_tables.items()):
        scores = {name: x[:, e] for name, x in importance.scores.items()}
        bins = importance_bins(scores, inputs.candidate_masks, bin_edges(arguments.universe_share))
        bin_of = pair_bins(first.ends, {name: x[0] for name, x in bins.items()})
        inside = bin_of >= 0
        # scores of their own, so that the best of the first are not valued by their luck
        second = score_pairs(
            feature_game(model, inputs, expert, explanation.target, first.players),
            first.pairs[inside],
            estimator=arguments.interactions,
            num_coalitions=arguments.num_coalitions,
            seed=sample_seed(arguments.seed + 1, sample.number),
        )
        kind, seed, numbers = kind_of_expert(expert), arguments.seed, [sample.number]
        best = first.select(bin_of == 0)
        masked = pair_masking_logits(evaluate, inputs, [best], numbers, kind, num_draws=arguments.num_draws, seed=seed)
        num_draws = min(CURVE_DRAWS, arguments.num_draws)
        curve = partial(pair_curve_logits, evaluate, inputs, [first], numbers, kind, num_draws=num_draws, seed=seed)
        measured[expert] = {
            "scores": first.score(kind)[inside].tolist(),
            "values": second.score(kind).tolist(),
            "bins": bin_of[inside].tolist(),
            "masking": _plain(masked),
            "curves": {x: _plain(curve(direction=x)) for x in DIRECTIONS},
        }
    return measured


def _plain(arrays: Mapping[str, NDArray[Any]]) -> dict[str, list]:
    return {name: values.tolist() for name, values in arrays.items()}
