"""What a run's samples tell together: tables and figures of what was measured, and the page that links everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...cache import FeatureCache
from ...explain.explain_sample import most_players
from ...explain.explanation import Explanation
from ...explain.explanation_data import notes_on
from ...explain.pages.display import METHOD_NAMES, SCORE_TITLES, layer_text
from ...explain.pages.drawing import data_uri, drawing_of
from ...explain.pages.sample_page import environment
from ...explain.pair_table import published_kind
from ...explain.wording import number, standing
from ...metrics.figures import expert_colors, expert_title, metric_title, save_figure
from ...metrics.markdown import table
from ...metrics.tasks import default_metric
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...utils.checked_json import read_json
from ...utils.files import write_json, write_text
from ..alignment import alignment, bin_edges
from ..erasure import LARGEST_SHARE
from ..masking import DIRECTIONS
from ..pairs import pair_curves, pair_masking_table
from .arguments import ExplainArguments
from .figures import (
    NOUNS,
    draw_alignment,
    draw_erasure,
    draw_faithfulness,
    draw_pair_curves,
    erasure_rows,
    pair_masking_rows,
)
from .files import FAITHFULNESS, FAITHFULNESS_FILE, PAIR_MASKING_FILE
from .sample import Sample

THUMBNAIL_PIXELS = 64
EXCERPT = 160
"""Characters of a text that stand in the list of samples."""


@dataclass(frozen=True)
class IndexEntry:
    """One sample on the page of a run."""

    sample_id: str
    expert_names: list[str]
    true: list[str]
    predicted: list[str]
    pages: dict[str, str]
    """Class → relative link to the page that explains it."""

    standings: dict[str, str]
    """Class → whether it is predicted or true, in words."""

    weights: list[float]
    thumbnail: str | None = None
    """Data URI."""

    excerpts: Sequence[str] = ()
    """Beginnings of its texts."""

    notes: Sequence[str] = ()
    """See `notes_on`."""

    @classmethod
    def of(cls, explanations: Sequence[Explanation], pages: Sequence[str]) -> "IndexEntry":
        """From the explanations of one sample, one for each explained class, and the relative links to their pages."""
        first = explanations[0]
        pictures = (drawing_of(x).thumbnail(x, THUMBNAIL_PIXELS) for x in first.modalities.values())
        texts = filter(None, (drawing_of(x).excerpt(x, EXCERPT) for x in first.modalities.values()))
        picture = next((picture for picture in pictures if picture is not None), None)
        return cls(
            sample_id=first.sample_id,
            expert_names=first.expert_names,
            true=[first.label_names[index] for index in first.true_classes],
            predicted=[first.label_names[index] for index in first.predicted_classes],
            pages={x.target_name: page for x, page in zip(explanations, pages, strict=True)},
            standings={x.target_name: standing(x) for x in explanations},
            weights=first.expert_weights.tolist(),
            thumbnail=None if picture is None else data_uri(picture, 70),
            excerpts=list(texts),
            notes=notes_on(first.modalities),
        )


@dataclass(frozen=True)
class RunFigure:
    """A picture of a whole run on its page."""

    title: str
    file: str
    description: str
    """What it shows, also for those who do not see it."""


@dataclass(frozen=True)
class RunTable:
    """A table of a whole run on its page."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def save_index(
    path: Path,
    title: str,
    entries: Sequence[IndexEntry],
    *,
    facts: Mapping[str, str],
    figures: Sequence[RunFigure],
    tables: Sequence[RunTable],
) -> None:
    """Writes the page of a run, which links its samples and shows its figures, by relative links."""
    experts = expert_colors(entries[0].expert_names if entries else [])
    template = environment("fl_i2moe.evaluation").get_template("index.html.jinja")
    text = template.render(
        title=title,
        entries=entries,
        facts=facts,
        figures=figures,
        tables=tables,
        experts=[(expert_title(name), color) for name, color in experts.items()],
    )
    write_text(path, text)


def write_results(
    model: FLI2MoEModel, samples: Sequence[Sample], num_pages: int, arguments: ExplainArguments, cache: FeatureCache
) -> tuple[Path, list[IndexEntry]]:
    """Writes tables and figures of what was measured on the samples, of which the first `num_pages` have pages, and
    the page of the run, which it returns with what it says of each sample."""
    results = _Results(samples, arguments, cache)
    measured, figures, tables = set(arguments.measurements), [], []
    if "faithfulness" in measured:
        figures += [results.draw_faithfulness(direction) for direction in DIRECTIONS]
        if figure := results.draw_erasure():
            figures.append(figure)
            tables.append(results.tabulate_erasure())
    if results.experts and "alignment" in measured:
        figures.append(results.align())
    if results.experts and "pair_masking" in measured:
        tables.append(results.tabulate_pair_masking())
    if results.experts and "pair_curves" in measured:
        figures.append(results.draw_pair_curves())
    entries = []
    for sample in samples[:num_pages]:
        if pages := [sample.page(name) for name in sample.record()["pages"]]:
            explanations = [Explanation.load(page.with_suffix(".json")) for page in pages]
            entries.append(IndexEntry.of(explanations, [f"samples/{page.name}" for page in pages]))
    facts = _facts(model, len(samples), arguments, cache)
    title = f"Explanations of {Path(arguments.model).resolve().name}"
    page = arguments.folder / "index.html"
    save_index(page, title, entries, facts=facts, figures=figures, tables=tables)
    return page, entries


class _Results:
    """What was measured on each sample of a run, and what is made of it in the run's folder."""

    def __init__(self, samples: Sequence[Sample], arguments: ExplainArguments, cache: FeatureCache):
        self.samples, self.arguments, self.problem_type = samples, arguments, cache.problem_type
        self.folder, self.metric = arguments.folder, default_metric(cache.problem_type)[0]
        self.labels = np.array([sample.labels for sample in samples])
        records = [sample.record() for sample in samples]
        # expert whose pairs were measured → what each sample gave
        self.experts = {name: [record["experts"][name] for record in records] for name in records[0].get("experts", {})}
        self.score_titles = {expert: SCORE_TITLES[published_kind(expert)] for expert in self.experts}

    def draw_faithfulness(self, direction: str) -> RunFigure:
        results = read_json(self.folder / FAITHFULNESS_FILE, FAITHFULNESS)
        name = "faithfulness.png" if direction == "deletion" else f"faithfulness_{direction}.png"
        save_figure(draw_faithfulness(results, self.metric, direction), self.folder / name)
        parts = []
        for model, result in results.items():
            # the last one is the whole model's
            drops = {method: list(x.values())[-1][self.metric]["mean_drop"] for method, x in result[direction].items()}
            shown = [f"{method} {drop:.3f}" for method, drop in drops.items() if drop is not None]
            parts.append(f"{model}: {', '.join(shown)}")
        description = f"Mean drop of {metric_title(self.metric)} over the shares, by method. {'; '.join(parts)}."
        return RunFigure(f"Faithfulness: {direction}", name, description)

    def draw_erasure(self) -> RunFigure | None:
        """None of a regression, and of results that were measured before there was any."""
        results = self._erasure()
        if not results:
            return None
        save_figure(draw_erasure(results), self.folder / "erasure.png")
        parts = []
        for name, result in results.items():
            shown = []
            for method, by_expert in result["comprehensiveness"].items():
                enough = list(result["sufficiency"][method].values())[-1]["aopc"]
                shown.append(f"{method} {number(list(by_expert.values())[-1]['aopc'])} and {number(enough)}")
            parts.append(f"{name}: {', '.join(shown)}")
        description = f"Comprehensiveness and sufficiency, AOPC, by method. {'; '.join(parts)}."
        return RunFigure("What the probability of the explained class rests on", "erasure.png", description)

    def tabulate_erasure(self) -> RunTable:
        results = self._erasure()
        header, rows = erasure_rows(results, self.metric)
        _, all_rows = erasure_rows(results, self.metric, experts=True)
        first = next(iter(results.values()))
        note = (
            f"{first['num_samples']:,} samples. Comprehensiveness: what the probability of the explained class loses "
            f"without the most important {NOUNS[self.arguments.units]}, higher is better; sufficiency: what it loses "
            f"with them alone, lower is better; beyond random: by how much it is better than {first['num_random']} "
            f"random draws. AOPC: mean over shares up to {100 * LARGEST_SHARE:g} %. Brackets: "
            f"{100 * first['confidence']:g} % bootstrap intervals over samples."
        )
        if self.arguments.units == "input":
            note += (
                " What is masked is taken out before the encoders, whoever names it. The importance of features is "
                "summed over each part."
            )
        title = "Comprehensiveness and sufficiency"
        text = table(header, all_rows, text_columns=2)
        write_text(self.folder / "erasure.md", f"# {title}\n\n{text}\n{note}\n")
        return RunTable(title, header, rows, note)

    def _erasure(self) -> dict[str, dict[str, Any]]:
        results = read_json(self.folder / FAITHFULNESS_FILE, FAITHFULNESS)
        return {name: x for name, x in results.items() if x.get("comprehensiveness") and x.get("sufficiency")}

    def align(self) -> RunFigure:
        results, shown = {}, []
        for expert, parts in self.experts.items():
            scores, values, bins = ([np.array(part[name]) for part in parts] for name in ("scores", "values", "bins"))
            result = results[expert] = alignment(scores, bins, values=values, seed=self.arguments.seed)
            [share, *_] = result["bins"][0]["top"]
            means = [entry["top"][share]["mean"] for entry in result["bins"]]
            shown.append(f"{expert}: " + ", ".join("no pair" if mean is None else f"{mean:.3f}" for mean in means))
        edges = bin_edges(self.arguments.universe_share)
        write_json(self.folder / "alignment.json", {"edges": edges, "experts": results})
        save_figure(draw_alignment(results, self.score_titles, edges), self.folder / "alignment.png")
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
        write_json(self.folder / PAIR_MASKING_FILE, results)
        header, rows = pair_masking_rows(results, self.metric)
        best = bin_edges(self.arguments.universe_share)[0]
        confidence, nouns = next(iter(results.values()))["confidence"], NOUNS[self.arguments.units]
        note = (
            f"{len(self.samples):,} samples, each explained for its true class with the highest logit. Candidates are "
            f"the pairs between the top {100 * best:g} % {nouns} of each modality; the 5 % with the highest scores "
            f"are masked, both ends. ±: standard deviation over {self.arguments.num_draws} draws; brackets: "
            f"{100 * confidence:g} % bootstrap interval over samples."
        )
        title = "Pair masking"
        write_text(self.folder / "pair_masking.md", f"# {title}\n\n{table(header, rows)}\n{note}\n")
        return RunTable(title, header, rows, note)

    def draw_pair_curves(self) -> RunFigure:
        results: dict[str, dict[str, Any]] = {expert: {} for expert in self.experts}
        areas = []
        for expert, parts in self.experts.items():
            for direction in DIRECTIONS:
                logits = _join([part["curves"][direction] for part in parts])
                result = pair_curves(logits, self.labels, self.problem_type, num_resamples=0)
                results[expert][direction] = result
                curves = result["metrics"][self.metric]
                ranked, random = curves["ranked"]["area"], curves["random"]["area"]["mean"]
                if ranked is not None and random is not None:
                    areas.append(f"{expert}, {direction}: {ranked:.3f} by score, {random:.3f} at random")
        write_json(self.folder / "pair_curves.json", results)
        save_figure(draw_pair_curves(results, self.score_titles, self.metric), self.folder / "pair_curves.png")
        description = f"Mean {metric_title(self.metric)} along the curves. {'; '.join(areas)}."
        return RunFigure("Pairs masked and kept in order of their scores", "pair_curves.png", description)


def _join(parts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Samples' logits and counts as one batch: B is the last axis but one of logits, and the last of counts."""
    return {
        name: np.concatenate([np.array(part[name]) for part in parts], axis=-1 if name.startswith("num_") else -2)
        for name in parts[0]
    }


def _facts(model: FLI2MoEModel, num_samples: int, arguments: ExplainArguments, cache: FeatureCache) -> dict[str, str]:
    num_experts = model.config.num_experts
    pairs = {"none": "not scored", "exact": "exact, all coalitions"}.get(
        arguments.interactions, f"{arguments.interactions}, {arguments.num_coalitions} coalitions a pair"
    )
    if arguments.interactions != "none":
        most = most_players(arguments.units)
        pairs += (
            f", the top {100 * arguments.universe_share:g} % of each modality’s {NOUNS[arguments.units]} by what they "
            f"do to the expert{f', at most {most}' if most else ''}"
        )
    encoders = {f"Encoder of {name}": x["encoder"] for name, x in cache.modalities.items()}
    return {
        "Model": f"{Path(arguments.model).resolve()}, {model.config.architecture}, "
        f"{num_experts} expert{'s' if num_experts > 1 else ''}",
        "Samples": f"{num_samples:,} of the {len(cache.splits[arguments.split]):,} of split {arguments.split}",
        "Explained": "words, cells and stretches, taken out before the encoders"
        if arguments.units == "input"
        else "features",
        "Importance": METHOD_NAMES[arguments.method],
        "Pairs": pairs,
        **{title: f"{x.get('name')}, {layer_text(x.get('hidden_layer'))}" for title, x in encoders.items()},
    }
