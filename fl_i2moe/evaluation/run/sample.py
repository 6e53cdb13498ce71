"""One sample of a run: its page, figure and data for each class, and what it gives to the measurements."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from ...cache import FeatureCache
from ...explain.explain_sample import UNITS, explain, most_players, open_sample, true_targets
from ...explain.explanation import Explanation
from ...explain.feature_sample import FeatureSample
from ...explain.interactions import cross_modal_pairs, sample_seed, score_pairs
from ...explain.pair_table import published_kind
from ...explain.subject import Subject
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...utils.checked_json import read_json
from ...utils.files import write_file, write_json
from ..alignment import pair_bins, universe_bins
from ..masking import DIRECTIONS, Maskings, subject_logits
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

    def logits(self, model_id: str) -> Path:
        """Where its logits by this model under masking lie, see [`measure_masking`]."""
        return self.measured.with_suffix("") / f"{model_id}.npz"

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


def open_subject(model: FLI2MoEModel, sample: Sample) -> Subject:
    """The sample's units; `ValueError` as [`~fl_i2moe.explain.explain_sample.open_sample`]."""
    arguments = sample.arguments
    row = sample.cache.splits[arguments.split][sample.number]
    return open_sample(model, row, arguments.units, cache=sample.cache, cut=arguments.cut, removals=arguments.removals)


def explain_sample(model: FLI2MoEModel, sample: Sample, with_page: bool, logits: Path | None = None) -> None:
    """Writes the sample's pages and what it gives to the measurements, and with `logits` what [`measure_masking`]
    writes there, unless they are there."""
    arguments, record = sample.arguments, sample.record()
    if record is not None:
        due = sample.classes_due(record["target"], record.get("predicted"))
        if not with_page or (due is not None and set(due) <= set(record["pages"])):
            if logits is not None and not logits.is_file():
                measure_masking(open_subject(model, sample), sample, logits)
            return
    row, subject = sample.cache.splits[arguments.split][sample.number], open_subject(model, sample)
    how: dict[str, Any] = {
        "units": arguments.units,
        "method": arguments.method,
        "interactions": None if arguments.interactions == "none" else arguments.interactions,
        "num_coalitions": arguments.num_coalitions,
        "target_error": arguments.target_error,
        "universe_share": arguments.universe_share,
        "seed": arguments.seed,
        "cache": sample.cache,
        "sample_number": sample.number,
        "subject": subject,
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
            record["experts"] = _measure_pairs(subject, sample, explanation)
    write_json(sample.measured, record | {"predicted": predicted, "pages": pages})
    if logits is not None and not logits.is_file():
        measure_masking(subject, sample, logits)


def maskings(model: FLI2MoEModel, arguments: ExplainArguments) -> Maskings:
    """Of units: by all methods of theirs, and by those of features."""
    methods = [*UNITS[arguments.units].methods_of(model), *FeatureSample.methods_of(model)]
    # random last, where figures and tables have it
    methods = [*dict.fromkeys(method for method in methods if method != "random"), "random"]
    return Maskings(methods=methods, num_random=arguments.num_draws, seed=arguments.seed)


def measure_masking(subject: Subject, sample: Sample, path: Path) -> None:
    """Writes the logits of the sample under all maskings, for [`~fl_i2moe.evaluation.masking.faithfulness_of`]."""
    how = maskings(subject.model, sample.arguments)
    logits = subject_logits(subject, sample.labels, how, (how.seed, sample.number))
    arrays: dict[str, Any] = {name: x.numpy() for name, x in logits.items()}
    write_file(path, lambda unfinished: np.savez_compressed(unfinished, **arrays))


def load_logits(path: Path) -> dict[str, torch.Tensor]:
    """What [`measure_masking`] has written; `ValueError` where the file is damaged."""
    try:
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is damaged: remove it, and start again to measure the sample anew.") from error


def _measure_pairs(subject: Subject, sample: Sample, explanation: Explanation) -> dict[str, dict[str, Any]]:
    """Per expert: what alignment, masking and curves of pairs need of one sample, as plain JSON."""
    arguments, target, number = sample.arguments, explanation.target, sample.number
    candidates = {name: places.candidates for name, places in subject.places.items()}
    measured = {}
    for expert, chosen in explanation.pair_tables.items():
        most = most_players(arguments.units)
        bins = universe_bins(explanation.importance[expert], candidates, arguments.universe_share, most)
        game = subject.game(expert, target, list(bins))
        pairs = cross_modal_pairs([player.modality for player in game.players])
        bin_of = pair_bins([(game.players[u], game.players[v]) for u, v in pairs], bins)
        inside = bin_of >= 0
        # twice, so that the best of the first are not valued by their luck
        first, second = (
            score_pairs(
                game,
                pairs[inside],
                estimator=arguments.interactions,
                num_coalitions=arguments.num_coalitions,
                seed=sample_seed(arguments.seed + again, number),
            )
            for again in (0, 1)
        )
        kind = published_kind(expert)
        how: dict[str, Any] = {"seed": arguments.seed, "num_draws": arguments.num_draws}
        masked = pair_masking_logits(subject, first.select(bin_of[inside] == 0), number, kind, **how)
        how["num_draws"] = min(CURVE_DRAWS, arguments.num_draws)
        curves = {x: pair_curve_logits(subject, chosen, number, kind, direction=x, **how) for x in DIRECTIONS}
        measured[expert] = {
            "scores": first.score(kind).tolist(),
            "values": second.score(kind).tolist(),
            "bins": bin_of[inside].tolist(),
            "masking": _plain(masked),
            "curves": {x: _plain(arrays) for x, arrays in curves.items()},
        }
    return measured


def _plain(arrays: Mapping[str, NDArray[Any]]) -> dict[str, list]:
    return {name: values.tolist() for name, values in arrays.items()}
