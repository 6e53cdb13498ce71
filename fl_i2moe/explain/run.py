"""
Explanations of many samples: a page, a figure and the data of each, and what the explanations are worth on the data.

    output_dir/
      run.json              what the explanations depend on; a folder with another one is refused
      samples/              <sample>-<class>.html, .png and .json
      measured/             what a sample gives to the measurements; with the page's data, what a second start keeps
      faithfulness.json, faithfulness.png (the FL-I²MoE paper's Figure 3), faithfulness_insertion.png
      alignment.json, alignment.png (Figure 4)
      pair_masking.json, pair_masking.md (Table 1)
      pair_curves.json, pair_curves.png
      index.html
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from rich.console import Console
from tqdm.auto import tqdm
from transformers import AutoModel

from ..arguments import option
from ..batching import FeatureRows, create_data_loader
from ..cache import FeatureCache, open_cache
from ..cache_key import key_digest
from ..data.raw import SampleError
from ..metrics import default_metric
from ..modeling_fl_i2moe import FLI2MoEModel
from ..run_folder import SETTINGS_FILE, begin_run_folder, check_run_folder, replace_files, write_json
from ..sample_encoders import user_cache_dir
from ..shared_features import open_features
from .attribution import METHODS, attribute
from .explain_sample import UNIVERSE_METHOD, explain, feature_batch, true_targets
from .explanation import Explanation, PairTable
from .figures import (
    draw_alignment,
    draw_faithfulness,
    draw_pair_curves,
    markdown_table,
    metric_title,
    pair_masking_rows,
)
from .inputs import Inputs, check_cache
from .interactions import PairScores, SamplePairs, score_pairs
from .masking import DIRECTIONS, faithfulness, masked_logits
from .pairs import (
    alignment,
    importance_bins,
    pair_bins,
    pair_curve_logits,
    pair_curves,
    pair_masking_logits,
    pair_masking_table,
)
from .report import IndexEntry, RunFigure, RunTable, render_page, save_index

MEASUREMENTS = ("faithfulness", "alignment", "pair_masking", "pair_curves")
# They decide how much is explained or where it goes, not what an explanation says.
UNBINDING = {"output_dir", "overwrite", "num_samples", "sample_ids", "num_pages", "measurements", "batch_size"}
UNBINDING |= {"faithfulness_samples", "num_threads", "cache_dir", "features", "classes", "on_bad_sample", "dense_model"}
CURVE_DRAWS = 3
"""Random orders that the curves of pairs are compared with, at most: each takes a pass of the model for every share."""
KIND_TITLES = {"sii": "Shapley interaction index", "published": "redundancy gap"}


@dataclass
class ExplainArguments:
    """What is explained, and how."""

    model: str = field(metadata={"help": "Folder of a trained model, as recipes/train_mmimdb.py leaves it."})
    split: str = option("test", "Split of the feature cache.")
    num_samples: int | None = option(64, "Samples to explain, from the start of the split.")
    sample_ids: list[str] = option([], "Explain these samples instead.")
    num_pages: int | None = option(None, "How many of the samples get pages and figures; all if not given.")
    classes: Literal["true", "best"] = option(
        "true", "Explain each true class of a sample, or of these the one with the highest logit."
    )
    output_dir: str | None = option(None, "Folder of the explanations; `explanations` in the model's if not given.")
    overwrite: bool = option(False, "Replace the explanations in --output_dir.")
    cache_dir: str | None = option(None, "Folder of the feature cache; the one of the training run if not given.")
    features: str | None = option(None, "Explain on these features: the folder of a cache, or a data set on the Hub.")
    dense_model: str | None = option(None, "Folder of a dense model whose faithfulness is shown beside.")
    method: Literal["grad_attnroll", "attnroll", "ig", "random"] = option(
        "grad_attnroll", "How the importance of patches and tokens is computed."
    )
    interactions: Literal["shared_context", "per_pair", "exact", "none"] = option(
        "shared_context", "How pairs are scored; exact takes at most 16 features a sample, none leaves them out."
    )
    num_coalitions: int = option(16, "Coalitions that a pair's score is a mean of, at least.")
    universe_share: float = option(0.3, "Share of each modality's features, by Grad×AttnRoll, whose pairs are scored.")
    measurements: list[str] = option(
        list(MEASUREMENTS), f"What to measure on the data: {', '.join(MEASUREMENTS)}; or none."
    )
    faithfulness_samples: int | None = option(
        None, "Samples of the split that faithfulness is measured on; all if not given."
    )
    num_draws: int = option(10, "Random draws that masking is compared with.")
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop",
        "What to do with a sample that lacks a modality or whose features are NaN or infinite. One that is not "
        "explained but only measured on stops the run after the explanations, where faithfulness is measured.",
    )
    seed: int = option(0, "Seed of everything random.")
    batch_size: int = option(32, "Samples at once where faithfulness is measured.")
    num_threads: int | None = option(None, "CPU threads a process; all cores if not given.")

    def __post_init__(self):
        for name in ("num_samples", "num_coalitions", "faithfulness_samples", "num_draws", "batch_size", "num_threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_pages is not None and self.num_pages < 0:
            raise ValueError(f"`num_pages` must not be negative, got {self.num_pages}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}.")
        if not 0 < self.universe_share <= 1:
            raise ValueError(f"`universe_share` must lie in (0, 1], got {self.universe_share}.")
        if self.measurements == ["none"]:
            self.measurements = []
        if unknown := set(self.measurements) - set(MEASUREMENTS):
            raise ValueError(f"Unknown `measurements` {sorted(unknown)}; there are {', '.join(MEASUREMENTS)} or none.")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) if self.output_dir else Path(self.model) / "explanations"


def load_model(folder: str | Path) -> FLI2MoEModel:
    """
    Raises:
        ValueError: there is no model of this package in the folder, or it cannot be explained.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: it has no config.json.")
    model = AutoModel.from_pretrained(folder)
    if not isinstance(model, FLI2MoEModel):
        raise ValueError(f"{folder} holds a {type(model).__name__}, not an {FLI2MoEModel.__name__}.")
    if model.config.level != "feature":
        raise ValueError(f"The model in {folder} is pooled: it sees no patches and tokens that could be explained.")
    return model.eval()


def find_cache(model_dir: str | Path, cache_dir: str | Path | None = None) -> FeatureCache:
    """
    Opens the feature cache that a model was trained on.

    Args:
        model_dir: of the model; its run's settings lie there, or (of one seed's model) above.
        cache_dir: the cache's folder, where it is not in the user's cache; or a data set on the Hub.

    Raises:
        ValueError: there is none.
    """
    if cache_dir is not None:
        return open_features(cache_dir)
    model_dir = Path(model_dir).resolve()
    for folder in (model_dir, *list(model_dir.parents)[:2]):
        if (folder / SETTINGS_FILE).is_file():
            digest = json.loads((folder / SETTINGS_FILE).read_text()).get("features")
            if digest is None:
                break
            if (path := user_cache_dir() / "features" / digest).is_dir():
                return open_cache(path)
            raise ValueError(
                f"The feature cache {digest} that the run in {folder} was trained on is not in {user_cache_dir()}: "
                "give its folder by --cache_dir."
            )
    raise ValueError(f"No {SETTINGS_FILE} says which features {model_dir} was trained on: give --cache_dir.")


def run_explanations(arguments: ExplainArguments, accelerator: Accelerator) -> None:
    """
    Explains samples, measures, and writes everything into the output folder. What is there already is kept.

    Raises:
        ValueError: model, cache, samples or the output folder do not fit.
    """
    console = Console(quiet=not accelerator.is_main_process, highlight=False, markup=False)
    folder, flags = arguments.folder, {"resume": not arguments.overwrite, "overwrite": arguments.overwrite}
    if accelerator.is_main_process:
        check_run_folder(folder, **flags)
    model = load_model(arguments.model)
    cache = find_cache(arguments.model, arguments.features or arguments.cache_dir)
    check_cache(model, cache)
    models = {"dense Transformer" if model.config.architecture == "dense" else "FL-I²MoE": model}
    if arguments.dense_model:
        dense = load_model(arguments.dense_model)
        if dense.config.architecture != "dense" or model.config.architecture == "dense":
            raise ValueError("`dense_model` is a dense model beside a mixture of experts.")
        check_cache(dense, cache)
        models["dense Transformer"] = dense
    rows = _choose(arguments, cache, model.config.modality_order, console)
    settings = {name: value for name, value in asdict(arguments).items() if name not in UNBINDING}
    settings |= {"model": _fingerprint(model), "features": key_digest(cache.key)}
    if accelerator.is_main_process:
        begin_run_folder(folder, settings, **flags)
    accelerator.wait_for_everyone()
    for one in models.values():
        one.to(accelerator.device)

    names = _file_names(cache.splits[arguments.split]["id"])
    samples = [_Sample(row, cache, arguments, folder, names) for row in rows]
    num_pages = len(samples) if arguments.num_pages is None else arguments.num_pages
    own = range(accelerator.process_index, len(samples), accelerator.num_processes)
    for number in tqdm(own, desc="Explaining", unit=" samples", disable=not accelerator.is_local_main_process):
        _explain_sample(model, samples[number], with_page=number < num_pages)
    accelerator.wait_for_everyone()

    if "faithfulness" in arguments.measurements:
        _measure_faithfulness(models, cache, arguments, accelerator, console)
    if accelerator.is_main_process:
        _gather(model, samples, num_pages, arguments, cache, console)
    accelerator.wait_for_everyone()


def _fingerprint(model: FLI2MoEModel) -> str:
    """Of the weights: a model's folder can be trained anew."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _choose(
    arguments: ExplainArguments, cache: FeatureCache, modality_order: Sequence[str], console: Console
) -> list[int]:
    """The rows to explain."""
    if arguments.split not in cache.splits:
        raise ValueError(f"The feature cache has no split {arguments.split!r}; it has {list(cache.splits)}.")
    split = cache.splits[arguments.split]
    ids = list(split["id"])
    if arguments.sample_ids:
        if missing := [sample_id for sample_id in arguments.sample_ids if sample_id not in ids]:
            raise ValueError(f"The split {arguments.split!r} has no samples {missing}; its ids look like {ids[:3]}.")
        rows = [ids.index(sample_id) for sample_id in dict.fromkeys(arguments.sample_ids)]
    else:
        rows = list(range(min(len(split), arguments.num_samples or len(split))))
    return _good_rows(split, modality_order, rows, arguments.on_bad_sample, console)


def _good_rows(
    split: Dataset, modality_order: Sequence[str], rows: Sequence[int], on_bad_sample: str, console: Console
) -> list[int]:
    """
    The rows without the bad samples, which lack a modality's candidates or have features that are NaN or infinite.

    Raises:
        ValueError: names the first bad sample, if none may be skipped; or all are bad.
    """
    reader, good = FeatureRows(split, modality_order), []
    for row in rows:
        try:
            batch = reader[[row]]
            bad = [name for name, mask in batch["special_masks"].items() if mask.all()]
            message = (
                bad and f"Sample {batch['ids'][0]} has no {bad[0]} feature that is not special: nothing to explain."
            )
        except SampleError as error:
            message = f"Sample {error.sample_id} has {error.field} features that are NaN or infinite."
        if not message:
            good.append(row)
        elif on_bad_sample == "stop":
            raise ValueError(f"{message} Leave it out by --on_bad_sample skip.")
        else:
            console.print(f"{message} It is left out.", soft_wrap=True)
    if not good:
        raise ValueError("No sample is left to explain.")
    return good


class _Sample:
    """A row of the split, and the files that are made of it."""

    def __init__(
        self, number: int, cache: FeatureCache, arguments: ExplainArguments, folder: Path, names: dict[str, str]
    ):
        self.number, self.cache, self.arguments, self.folder = number, cache, arguments, folder
        split = cache.splits[arguments.split]
        self.sample_id = split.select_columns(["id"])[number]["id"]
        self.labels = split.select_columns(["labels"])[number]["labels"]
        self.name = names[self.sample_id]
        # without a hyphen, so that the last one ends the sample's name
        self.class_names = _file_names(cache.label_names, allowed="A-Za-z0-9._")

    def row(self) -> dict[str, Any]:
        return self.cache.splits[self.arguments.split][self.number]

    @property
    def measured(self) -> Path:
        return self.folder / "measured" / f"{self.name}.json"

    def page(self, class_name: str) -> Path:
        return self.folder / "samples" / f"{self.name}-{self.class_names[class_name]}.html"

    def explanation_files(self) -> list[Path]:
        """Of the explained classes, which are told by what was measured."""
        if not self.measured.is_file():
            return []
        names = json.loads(self.measured.read_text())["pages"]
        return [self.page(name).with_suffix(".json") for name in names]


def _file_names(names: Iterable[str], allowed: str = "A-Za-z0-9._-") -> dict[str, str]:
    """
    Name → a name that is safe in every file system and in a link.

    Different names stay different, also where a file system takes upper and lower case for the same.
    """
    safe = {name: re.sub(f"[^{allowed}]", "_", name)[:80].lstrip(".") for name in names}
    lower = Counter(file.lower() for file in safe.values())
    return {
        name: file
        if file == name and lower[file.lower()] == 1
        else f"{file}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, file in safe.items()
    }


def _explain_sample(model: FLI2MoEModel, sample: _Sample, with_page: bool) -> None:
    """Writes the sample's pages and what it gives to the measurements, unless they are there."""
    arguments = sample.arguments
    record = json.loads(sample.measured.read_text()) if sample.measured.is_file() else None
    wanted = true_targets(sample.labels, sample.cache.problem_type) if arguments.classes == "true" else []
    names = sample.cache.label_names
    if record is not None:
        due = [names[index] for index in wanted] or [record["target"]]
        if not with_page or set(due) <= set(record["pages"]):
            return
    row = sample.row()
    how = {
        "method": arguments.method,
        "interactions": None if arguments.interactions == "none" else arguments.interactions,
        "num_coalitions": arguments.num_coalitions,
        "universe_share": arguments.universe_share,
        "seed": arguments.seed,
        "cache": sample.cache,
        "sample_number": sample.number,
    }
    explanation = explain(model, row, **how)
    pages = record["pages"] if record else []
    if with_page:
        others = [index for index in wanted if index != explanation.target]
        for one in (explanation, *(explain(model, row, index, **how) for index in others)):
            _save(one, sample.page(one.target_name))
            pages = list(dict.fromkeys([*pages, one.target_name]))
    if record is None:
        record = {"id": sample.sample_id, "target": explanation.target_name}
        if arguments.interactions != "none":
            record["experts"] = _measure_pairs(model, sample, row, explanation)
    write_json(sample.measured, record | {"pages": pages})


def _save(explanation: Explanation, page: Path) -> None:
    html = render_page(explanation, index_href="../index.html")
    replace_files(page.parent, lambda unfinished: (unfinished / page.name).write_text(html, encoding="utf-8"))
    explanation.save(page.with_suffix(".png"))
    explanation.save(page.with_suffix(".json"))


def _edges(universe_share: float) -> list[float]:
    """Three bins of importance."""
    return [universe_share / 3, 2 * universe_share / 3, universe_share]


def _kind(expert: str) -> str:
    return "published" if expert == "redundancy" else "sii"


def _measure_pairs(
    model: FLI2MoEModel, sample: _Sample, row: dict[str, Any], explanation: Explanation
) -> dict[str, dict[str, Any]]:
    """Per expert: what alignment and pair masking need of one sample, as plain JSON."""
    arguments = sample.arguments
    inputs = Inputs.from_batch(model, feature_batch(row, model.config.modality_order))
    targets = torch.tensor([explanation.target])
    importance = attribute(model, inputs, targets, UNIVERSE_METHOD, experts=list(explanation.pair_tables))
    measured = {}
    for e, (expert, table) in enumerate(explanation.pair_tables.items()):
        scores = {name: x[:, e] for name, x in importance.scores.items()}
        bins = importance_bins(scores, inputs.candidate_masks, _edges(arguments.universe_share))
        first = _as_sample_pairs(table, sample.number)
        bin_of = pair_bins(first.players, first.scores.pairs, {name: x[0] for name, x in bins.items()})
        inside = np.flatnonzero(bin_of >= 0)
        # scores of their own, so that the best of the first are not valued by their luck
        [second] = score_pairs(
            model,
            inputs,
            expert,
            targets,
            {name: bin_of_feature >= 0 for name, bin_of_feature in bins.items()},
            bins=bins,
            estimator=arguments.interactions,
            num_coalitions=arguments.num_coalitions,
            seed=arguments.seed + 1,
            numbers=[sample.number],
        )
        kind = _kind(expert)
        masked = pair_masking_logits(
            partial(masked_logits, model),
            inputs,
            [_select(first, np.flatnonzero(bin_of == 0))],
            kind,
            num_draws=arguments.num_draws,
            seed=arguments.seed,
        )
        curves = {}
        for direction in DIRECTIONS:
            logits = pair_curve_logits(
                partial(masked_logits, model),
                inputs,
                [first],
                kind,
                direction=direction,
                num_draws=min(CURVE_DRAWS, arguments.num_draws),
                seed=arguments.seed,
            )
            curves[direction] = {name: values.tolist() for name, values in logits.items()}
        measured[expert] = {
            "scores": first.scores.score(kind)[inside].tolist(),
            "values": second.scores.score(kind).tolist(),
            "bins": bin_of[inside].tolist(),
            "masking": {name: np.asarray(values).tolist() for name, values in masked.items()},
            "curves": curves,
        }
    return measured


def _as_sample_pairs(table: PairTable, number: int) -> SamplePairs:
    players = list(dict.fromkeys(end for a, i, b, j in table.ends for end in ((a, i), (b, j))))
    place = {player: index for index, player in enumerate(players)}
    pairs = np.array([(place[a, i], place[b, j]) for a, i, b, j in table.ends], np.int64)
    scores, errors = table.scores, table.standard_errors
    return SamplePairs(
        number,
        players,
        PairScores(
            pairs,
            scores["sii"],
            errors["sii"],
            {"published": scores["redundancy"], "both": scores["redundancy_both"]},
            {"published": errors["redundancy"], "both": errors["redundancy_both"]},
            table.num_coalitions,
            table.evaluations,
            table.seed,
            table.estimator,
        ),
    )


def _select(sample: SamplePairs, rows: np.ndarray) -> SamplePairs:
    scores = sample.scores
    chosen = PairScores(
        scores.pairs[rows],
        scores.sii[rows],
        scores.sii_standard_error[rows],
        {name: x[rows] for name, x in scores.redundancy.items()},
        {name: x[rows] for name, x in scores.redundancy_standard_error.items()},
        scores.num_coalitions[rows],
        scores.evaluations,
        scores.seed,
        scores.estimator,
    )
    return SamplePairs(sample.number, sample.players, chosen)


def _measure_faithfulness(
    models: dict[str, FLI2MoEModel],
    cache: FeatureCache,
    arguments: ExplainArguments,
    accelerator: Accelerator,
    console: Console,
) -> None:
    """
    Writes `faithfulness.json`: name of a model → result. What is in it for the same weights and samples stays.

    Raises:
        ValueError: names a bad sample, unless those are skipped. The samples to explain may be others, so that it comes
            to light here only.
    """
    file = arguments.folder / "faithfulness.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    split = cache.splits[arguments.split]
    first = range(min(len(split), arguments.faithfulness_samples or len(split)))
    order = next(iter(models.values())).config.modality_order
    rows = split.select(_good_rows(split, order, first, arguments.on_bad_sample, console))
    for name, model in models.items():
        identity = {"model": _fingerprint(model), "features": key_digest(cache.key), "num_samples": len(rows)}
        if identity.items() <= results.get(name, {}).items():
            continue
        loader = create_data_loader(rows, model.config.modality_order, batch_size=arguments.batch_size, shuffle=False)
        result = faithfulness(
            model,
            accelerator.prepare(loader),
            methods=METHODS,
            num_random=arguments.num_draws,
            seed=arguments.seed,
            accelerator=accelerator,
            progress=accelerator.is_local_main_process,
        )
        results[name] = result | identity
        if accelerator.is_main_process:
            write_json(file, results)
        accelerator.wait_for_everyone()


def _gather(
    model: FLI2MoEModel,
    samples: Sequence[_Sample],
    num_pages: int,
    arguments: ExplainArguments,
    cache: FeatureCache,
    console: Console,
) -> None:
    """Draws what was measured and writes the page that links everything."""
    folder, measurements = arguments.folder, arguments.measurements
    metric = default_metric(cache.problem_type)[0]
    figures, tables = [], []
    if "faithfulness" in measurements:
        figures += _draw_faithfulness(folder, metric)
    records = [json.loads(sample.measured.read_text()) for sample in samples]
    experts = list(records[0].get("experts", {})) if records else []
    if experts and "alignment" in measurements:
        figures.append(_align(records, experts, arguments, folder))
    if experts and "pair_masking" in measurements:
        tables.append(_tabulate(samples, records, experts, arguments, cache, metric))
    if experts and "pair_curves" in measurements:
        figures.append(_draw_pair_curves(samples, records, experts, arguments, cache, metric))
    entries = list(_entries(samples[:num_pages]))
    save_index(
        folder / "index.html",
        f"Explanations of {Path(arguments.model).resolve().name}",
        entries,
        facts={
            "Model": f"{Path(arguments.model).resolve()}, {model.config.architecture}, "
            f"{model.config.num_experts} expert{'s' if model.config.num_experts > 1 else ''}",
            "Samples": f"{len(samples):,} of the {len(cache.splits[arguments.split]):,} of split {arguments.split}",
            "Importance": arguments.method,
            "Pairs": "not scored"
            if arguments.interactions == "none"
            else f"{arguments.interactions}, {arguments.num_coalitions} coalitions a pair, the top "
            f"{100 * arguments.universe_share:g} % of each modality’s features by Grad×AttnRoll",
            **{
                f"Encoder of {name}": f"{entry['encoder'].get('name')}, "
                + (
                    "last hidden layer"
                    if entry["encoder"].get("hidden_layer") is None
                    else f"hidden layer {entry['encoder']['hidden_layer']}"
                )
                for name, entry in cache.modalities.items()
            },
        },
        figures=figures,
        tables=tables,
    )
    console.print(f"{len(samples):,} samples explained: {folder / 'index.html'}", soft_wrap=True)


def _draw_faithfulness(folder: Path, metric: str) -> list[RunFigure]:
    results = json.loads((folder / "faithfulness.json").read_text())
    figures = []
    for direction, suffix in (("deletion", ""), ("insertion", "_insertion")):
        name = f"faithfulness{suffix}.png"
        figure = draw_faithfulness(results, metric, direction)
        replace_files(folder, lambda unfinished, f=figure, n=name: f.savefig(unfinished / n))
        parts = []
        for model, result in results.items():
            whole = list(next(iter(result[direction].values())))[-1]
            drops = {method: by_expert[whole][metric]["mean_drop"] for method, by_expert in result[direction].items()}
            shown = ", ".join(f"{method} {drop:.3f}" for method, drop in drops.items() if drop is not None)
            parts.append(f"{model}: {shown}")
        description = f"Mean drop of {metric_title(metric)} over the shares, by method. " + "; ".join(parts) + "."
        figures.append(RunFigure(f"Faithfulness: {direction}", name, description))
    return figures


def _align(
    records: Sequence[dict[str, Any]], experts: Sequence[str], arguments: ExplainArguments, folder: Path
) -> RunFigure:
    results = {}
    for expert in experts:
        parts = [record["experts"][expert] for record in records]
        scores, values, bins = ([np.array(part[name]) for part in parts] for name in ("scores", "values", "bins"))
        results[expert] = alignment(scores, bins, values=values, seed=arguments.seed)
    edges = _edges(arguments.universe_share)
    write_json(folder / "alignment.json", {"edges": edges, "experts": results})
    titles = {expert: KIND_TITLES[_kind(expert)] for expert in experts}
    figure = draw_alignment(results, titles, edges)
    replace_files(folder, lambda unfinished: figure.savefig(unfinished / "alignment.png"))
    tops = {
        expert: [bin_["top"][next(iter(bin_["top"]))]["mean"] for bin_ in result["bins"]]
        for expert, result in results.items()
    }
    shown = "; ".join(
        f"{expert}: " + ", ".join("no pair" if mean is None else f"{mean:.3f}" for mean in means)
        for expert, means in tops.items()
    )
    description = f"Mean score of the top 5 % pairs of each importance bin, from the most important: {shown}."
    return RunFigure("Alignment of importance and interaction", "alignment.png", description)


def _tabulate(
    samples: Sequence[_Sample],
    records: Sequence[dict[str, Any]],
    experts: Sequence[str],
    arguments: ExplainArguments,
    cache: FeatureCache,
    metric: str,
) -> RunTable:
    labels = np.array([sample.labels for sample in samples])
    results = {}
    for expert in experts:
        logits = _join([record["experts"][expert]["masking"] for record in records])
        results[expert] = pair_masking_table(logits, labels, cache.problem_type, seed=arguments.seed)
    write_json(arguments.folder / "pair_masking.json", results)
    header, rows = pair_masking_rows(results, metric)
    confidence = 100 * next(iter(results.values()))["confidence"]
    note = (
        f"{len(records):,} samples, each explained for its true class with the highest logit. Candidates are the pairs "
        f"between the top {100 * _edges(arguments.universe_share)[0]:g} % features of each modality; the 5 % with the "
        f"highest scores are masked, both ends. ±: standard deviation over {arguments.num_draws} draws; brackets: "
        f"{confidence:g} % bootstrap interval over samples."
    )
    title = "Pair masking"
    text = f"# {title}\n\n{markdown_table(header, rows)}\n{note}\n"
    replace_files(arguments.folder, lambda unfinished: (unfinished / "pair_masking.md").write_text(text))
    return RunTable(title, header, rows, note)


def _join(parts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Samples' logits and counts as one batch: B is the last axis but one of logits, and the last of counts."""
    return {
        name: np.concatenate([np.array(part[name]) for part in parts], axis=-1 if name.startswith("num_") else -2)
        for name in parts[0]
    }


def _draw_pair_curves(
    samples: Sequence[_Sample],
    records: Sequence[dict[str, Any]],
    experts: Sequence[str],
    arguments: ExplainArguments,
    cache: FeatureCache,
    metric: str,
) -> RunFigure:
    labels, folder = np.array([sample.labels for sample in samples]), arguments.folder
    results = {
        expert: {
            direction: pair_curves(
                _join([record["experts"][expert]["curves"][direction] for record in records]),
                labels,
                cache.problem_type,
                num_resamples=0,
                seed=arguments.seed,
            )
            for direction in DIRECTIONS
        }
        for expert in experts
    }
    write_json(folder / "pair_curves.json", results)
    figure = draw_pair_curves(results, {expert: KIND_TITLES[_kind(expert)] for expert in experts}, metric)
    replace_files(folder, lambda unfinished: figure.savefig(unfinished / "pair_curves.png"))
    areas = []
    for expert, directions in results.items():
        for direction, result in directions.items():
            curves = result["metrics"][metric]
            ranked, random = curves["ranked"]["area"], curves["random"]["area"]["mean"]
            if ranked is not None and random is not None:
                areas.append(f"{expert}, {direction}: {ranked:.3f} by score, {random:.3f} at random")
    description = f"Mean {metric_title(metric)} along the curves. {'; '.join(areas)}."
    return RunFigure("Pairs masked and kept in order of their scores", "pair_curves.png", description)


def _entries(samples: Sequence[_Sample]) -> Iterator[IndexEntry]:
    for sample in samples:
        files = sample.explanation_files()
        if files:
            explanations = [Explanation.load(file) for file in files]
            yield IndexEntry.of(explanations, [f"samples/{file.with_suffix('.html').name}" for file in files])
