"""What a run's samples tell together: tables and figures of what was measured, and the page that links everything."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache import FeatureCache
from ...explain.attribution import universe_method
from ...explain.explanation import Explanation
from ...explain.pages.display import METHOD_NAMES, SCORE_TITLES, layer_text
from ...explain.pair_scores import kind_of_expert
from ...metrics.figures import metric_title, save_figure
from ...metrics.markdown import table
from ...metrics.tasks import default_metric
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...utils.files import read_json, write_json, write_text
from ..alignment import alignment, bin_edges
from ..masking import DIRECTIONS
from ..pairs import pair_curves, pair_masking_table
from .arguments import ExplainArguments
from .figures import draw_alignment, draw_faithfulness, draw_pair_curves, pair_masking_rows
from .page import IndexEntry, RunFigure, RunTable, save_index
from .sample import Sample

FAITHFULNESS_FILE = "faithfulness.json"


def write_results(
    model: FLI2MoEModel, samples: Sequence[Sample], num_pages: int, arguments: ExplainArguments, cache: FeatureCache
) -> Path:
    """
    Writes tables and figures of what was measured on the samples, and the page of the run, which it returns.

    Args:
        samples: those that were explained, the first `num_pages` with pages.
    """
    results = _Results(samples, arguments, cache)
    measured, figures, tables = set(arguments.measurements), [], []
    if "faithfulness" in measured:
        figures += [results.draw_faithfulness(direction) for direction in DIRECTIONS]
    if results.experts and "alignment" in measured:
        figures.append(results.align())
    if results.experts and "pair_masking" in measured:
        tables.append(results.tabulate_pair_masking())
    if results.experts and "pair_curves" in measured:
        figures.append(results.draw_pair_curves())
    entries, facts = list(_entries(samples[:num_pages])), _facts(model, len(samples), arguments, cache)
    title = f"Explanations of {Path(arguments.model).resolve().name}"
    page = arguments.folder / "index.html"
    save_index(page, title, entries, facts=facts, figures=figures, tables=tables)
    return page


class _Results:
    """What was measured on each sample of a run, and what is made of it in the run's folder."""

    def __init__(self, samples: Sequence[Sample], arguments: ExplainArguments, cache: FeatureCache):
        self.samples, self.arguments, self.problem_type = samples, arguments, cache.problem_type
        self.folder, self.metric = arguments.folder, default_metric(cache.problem_type)[0]
        self.labels = np.array([sample.labels for sample in samples])
        records = [sample.record() for sample in samples]
        # expert whose pairs were measured → what each sample gave
        self.experts = {name: [record["experts"][name] for record in records] for name in records[0].get("experts", {})}
        self.score_titles = {expert: SCORE_TITLES[kind_of_expert(expert)] for expert in self.experts}

    def draw_faithfulness(self, direction: str) -> RunFigure:
        results = read_json(self.folder / FAITHFULNESS_FILE)
        name = "faithfulness.png" if direction == "deletion" else f"faithfulness_{direction}.png"
        save_figure(draw_faithfulness(results, self.metric, direction), self.folder / name)
        parts = []
        for model, result in results.items():
            shown = []
            for method, by_expert in result[direction].items():
                drop = list(by_expert.values())[-1][self.metric]["mean_drop"]  # the whole model's
                shown += [] if drop is None else [f"{method} {drop:.3f}"]
            parts.append(f"{model}: {', '.join(shown)}")
        description = f"Mean drop of {metric_title(self.metric)} over the shares, by method. {'; '.join(parts)}."
        return RunFigure(f"Faithfulness: {direction}", name, description)

    def align(self) -> RunFigure:
        results = {}
        for expert, parts in self.experts.items():
            scores, values, bins = ([np.array(part[name]) for part in parts] for name in ("scores", "values", "bins"))
            results[expert] = alignment(scores, bins, values=values, seed=self.arguments.seed)
        edges = bin_edges(self.arguments.universe_share)
        write_json(self.folder / "alignment.json", {"edges": edges, "experts": results})
        save_figure(draw_alignment(results, self.score_titles, edges), self.folder / "alignment.png")
        shown = []
        for expert, result in results.items():
            [share, *_] = result["bins"][0]["top"]
            means = [entry["top"][share]["mean"] for entry in result["bins"]]
            shown.append(f"{expert}: " + ", ".join("no pair" if mean is None else f"{mean:.3f}" for mean in means))
        description = (
            f"Mean score of the top {100 * float(share):g} % pairs of each importance bin, from the most important: "
            f"{'; '.join(shown)}."
        )
        return RunFigure("Alignment of importance and interaction", "alignment.png", description)

    def tabulate_pair_masking(self) -> RunTable:
        results = {}
        for expert, parts in self.experts.items():
            logits = _join([part["masking"] for part in parts])
            results[expert] = pair_masking_table(logits, self.labels, self.problem_type, seed=self.arguments.seed)
        write_json(self.folder / "pair_masking.json", results)
        header, rows = pair_masking_rows(results, self.metric)
        best = bin_edges(self.arguments.universe_share)[0]
        confidence = next(iter(results.values()))["confidence"]
        note = (
            f"{len(self.samples):,} samples, each explained for its true class with the highest logit. Candidates are "
            f"the pairs between the top {100 * best:g} % features of each modality; the 5 % with the highest scores "
            f"are masked, both ends. ±: standard deviation over {self.arguments.num_draws} draws; brackets: "
            f"{100 * confidence:g} % bootstrap interval over samples."
        )
        title = "Pair masking"
        write_text(self.folder / "pair_masking.md", f"# {title}\n\n{table(header, rows)}\n{note}\n")
        return RunTable(title, header, rows, note)

    def draw_pair_curves(self) -> RunFigure:
        results: dict[str, dict[str, Any]] = {expert: {} for expert in self.experts}
        for expert, parts in self.experts.items():
            for direction in DIRECTIONS:
                logits = _join([part["curves"][direction] for part in parts])
                results[expert][direction] = pair_curves(logits, self.labels, self.problem_type, num_resamples=0)
        write_json(self.folder / "pair_curves.json", results)
        save_figure(draw_pair_curves(results, self.score_titles, self.metric), self.folder / "pair_curves.png")
        areas = []
        for expert, directions in results.items():
            for direction, result in directions.items():
                curves = result["metrics"][self.metric]
                ranked, random = curves["ranked"]["area"], curves["random"]["area"]["mean"]
                if ranked is not None and random is not None:
                    areas.append(f"{expert}, {direction}: {ranked:.3f} by score, {random:.3f} at random")
        description = f"Mean {metric_title(self.metric)} along the curves. {'; '.join(areas)}."
        return RunFigure("Pairs masked and kept in order of their scores", "pair_curves.png", description)


def _join(parts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Samples' logits and counts as one batch: B is the last axis but one of logits, and the last of counts."""
    return {
        name: np.concatenate([np.array(part[name]) for part in parts], axis=-1 if name.startswith("num_") else -2)
        for name in parts[0]
    }


def _entries(samples: Sequence[Sample]) -> Iterator[IndexEntry]:
    for sample in samples:
        pages = [sample.page(name) for name in sample.record()["pages"]]
        if pages:
            explanations = [Explanation.load(page.with_suffix(".json")) for page in pages]
            yield IndexEntry.of(explanations, [f"samples/{page.name}" for page in pages])


def _facts(model: FLI2MoEModel, num_samples: int, arguments: ExplainArguments, cache: FeatureCache) -> dict[str, str]:
    """What the page of the run says of it."""
    num_experts = model.config.num_experts
    pairs = {"none": "not scored", "exact": "exact, all coalitions"}.get(
        arguments.interactions, f"{arguments.interactions}, {arguments.num_coalitions} coalitions a pair"
    )
    if arguments.interactions != "none":
        by = METHOD_NAMES[universe_method(model)]
        pairs += f", the top {100 * arguments.universe_share:g} % of each modality’s features by {by}"
    encoders = {
        f"Encoder of {name}": f"{x['encoder'].get('name')}, {layer_text(x['encoder'].get('hidden_layer'))}"
        for name, x in cache.modalities.items()
    }
    return {
        "Model": f"{Path(arguments.model).resolve()}, {model.config.architecture}, "
        f"{num_experts} expert{'s' if num_experts > 1 else ''}",
        "Samples": f"{num_samples:,} of the {len(cache.splits[arguments.split]):,} of split {arguments.split}",
        "Importance": arguments.method,
        "Pairs": pairs,
        **encoders,
    }
