"""
Do expert weights make sense to people? A questionnaire about a trained model's samples, and what readers answer
(I²MoE, appendix H).

    questionnaire/
      run.json              what the questionnaire depends on
      questionnaire.html    for the readers, who send back a file of answers each
      key.json              which sample and whose weights each question shows: not for the readers
      ratings/              from the answers: ratings.json, ratings.md (Table 11), run.json
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console

from ...cache import FeatureCache
from ...cache.batching import FeatureRows
from ...cache.key import key_digest
from ...explain.explain_sample import true_targets
from ...explain.explanation_data import notes_on
from ...explain.wording import signed
from ...model.configuration_fl_i2moe import FLI2MoEConfig
from ...model.kinds import KINDS, places_in
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...model.probabilities import probabilities
from ...training.arguments import check_options, option
from ...training.runs import check_cache, find_cache, fingerprint, load_model
from ...utils.files import write_json, write_text
from ...utils.run_folder import SETTINGS_FILE, JobFiles, begin_run_folder, check_run_folder
from ..run.explanations import say_what_is_bad, say_what_is_not_shown, split_of
from .questionnaire import (
    Item,
    Key,
    Subject,
    describe_questions,
    exchange_weights,
    item_ids,
    order_of_questions,
    questionnaire_id,
    render_questionnaire,
    stratified_order,
)
from .ratings import read_answers, summarise_ratings, to_markdown

PAGE_FILE, KEY_FILE = "questionnaire.html", "key.json"
TABLE_FILES = ("ratings.json", "ratings.md")
QUESTIONS, RATINGS = JobFiles("questionnaire", (PAGE_FILE, KEY_FILE)), JobFiles("ratings", TABLE_FILES)


@dataclass
class DrawArguments:
    """Draw samples of a trained model and write a questionnaire about their expert weights."""

    model: str = field(metadata={"help": "Folder of a trained mixture of experts, at feature level or pooled."})
    output_dir: str | None = option(
        None, "Folder of the questionnaire and its key; `questionnaire` in the model's if not given."
    )
    overwrite: bool = option(False, "Replace the questionnaire in --output_dir.")
    split: str = option("test", "Split of the feature cache.")
    num_samples: int = option(20, "Samples to ask about; the paper's readers saw 20.", at_least=1)
    sampling: Literal["random", "stratified"] = option(
        "random", "Draw from all samples alike, or from the true classes in turn."
    )
    num_controls: int = option(
        0,
        "How many of these samples come a second time with the expert weights of another one: a control that readers "
        "cannot recognise, to compare ratings with.",
    )
    show_true: bool = option(False, "Show what is true beside what the model says.")
    title: str = option("Do these expert weights make sense?", "Title of the page.")
    cache_dir: str | None = option(
        None,
        "Folder of the feature cache, or a data set on the Hub, of which --split is fetched; the one of the training "
        "run if not given.",
    )
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop", "What to do with a sample that cannot be shown or read: stop, or draw another one."
    )
    seed: int = option(0, "Seed of the draw, the controls and the order.", at_least=0)

    def __post_init__(self):
        check_options(self)
        if self.num_controls == 1 or not 0 <= self.num_controls <= self.num_samples:
            raise ValueError(
                "`num_controls` must be 0 or from 2, which exchange their weights, to the number of samples "
                f"({self.num_samples}), got {self.num_controls}."
            )
        if not self.title.strip():
            raise ValueError("`title` must not be empty.")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) if self.output_dir else Path(self.model) / "questionnaire"


@dataclass
class SummarizeArguments:
    """Summarise readers' answer files as a table of how their ratings are distributed."""

    questionnaire: str = field(metadata={"help": "Folder that `draw` left: the answers are read by its key."})
    answers: list[str] = option([], "Answer files, or folders of them.")
    output_dir: str | None = option(None, "Folder of the table; `ratings` in the questionnaire's if not given.")
    overwrite: bool = option(False, "Replace the table in --output_dir.")
    num_resamples: int = option(1000, "Bootstrap samples behind an interval.", at_least=1)
    seed: int = option(0, "Seed of the bootstrap.", at_least=0)

    def __post_init__(self):
        check_options(self)
        if not self.answers:
            raise ValueError("`answers` names no file: give --answers answers/*.json.")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) if self.output_dir else Path(self.questionnaire) / "ratings"


def draw_questionnaire(arguments: DrawArguments, console: Console) -> Path:
    """Writes page and key, returns the page; `ValueError` if model, cache, samples or output folder do not fit."""
    _check_folder(arguments.folder, arguments.overwrite, QUESTIONS)
    model = load_model(arguments.model)
    cache = find_cache(arguments.model, arguments.cache_dir, arguments.split)
    _check_model(model, cache, arguments)
    rng = np.random.default_rng(arguments.seed)
    rows, subjects, batch = _draw(model, cache, arguments, rng, console)
    with torch.no_grad():
        output = model(features=batch["features"], feature_masks=batch["feature_masks"])
    weights = output.expert_weights.double().tolist()

    ids = [subject.sample_id for subject in subjects]
    with_control = rng.permutation(len(rows))[: arguments.num_controls].tolist()
    givers = exchange_weights([weights[row] for row in with_control], rng)
    giver_of = {row: with_control[giver] for row, giver in zip(with_control, givers, strict=True)}
    questions = order_of_questions(len(rows), with_control, rng)
    items = []
    for item_id, (row, is_control) in zip(item_ids(len(questions), rng), questions, strict=True):
        giver = giver_of[row] if is_control else row
        items.append(Item(item_id, ids[row], ids[giver], weights[giver]))

    config = model.config
    predicted = (_predicted(logits, config) for logits in output.logits.double())
    shown = {x.sample_id: replace(x, predicted=told) for x, told in zip(subjects, predicted, strict=True)}
    described = describe_questions(items, shown, config.expert_names)
    page = render_questionnaire(
        described,
        config.expert_names,
        config.modality_order,
        title=arguments.title,
        samples_return=arguments.num_controls > 0,
        is_regression=config.problem_type == "regression",
    )
    unbinding = ("output_dir", "overwrite", "cache_dir")
    settings = {name: x for name, x in asdict(arguments).items() if name not in unbinding}
    settings |= {"weights": fingerprint(model), "features": key_digest(cache.key)}
    begin_run_folder(arguments.folder, settings, QUESTIONS, resume=False, overwrite=arguments.overwrite)
    write_text(arguments.folder / PAGE_FILE, page)
    Key(questionnaire_id(described), list(config.expert_names), items).save(arguments.folder / KEY_FILE)
    console.print(f"{len(items):,} questions: {arguments.folder / PAGE_FILE}")
    console.print(f"Give readers this page alone; what stands behind the questions is in {arguments.folder / KEY_FILE}")
    return arguments.folder / PAGE_FILE


def summarise_answers(arguments: SummarizeArguments, console: Console) -> dict[str, Any]:
    """Writes the table, and returns what is written as JSON, see [`summarise_ratings`]; `ValueError` if questionnaire,
    answers or output folder do not fit."""
    _check_folder(arguments.folder, arguments.overwrite, RATINGS)
    key = Key.load(Path(arguments.questionnaire) / KEY_FILE)
    answers = read_answers(arguments.answers, key)
    summary = summarise_ratings(key, answers, arguments.num_resamples, arguments.seed)
    settings: dict[str, Any] = {"questionnaire": key.questionnaire, "answers": [str(one.file) for one in answers]}
    settings |= {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
    begin_run_folder(arguments.folder, settings, RATINGS, resume=False, overwrite=arguments.overwrite)
    write_json(arguments.folder / TABLE_FILES[0], summary)
    write_text(arguments.folder / TABLE_FILES[1], text := to_markdown(summary))
    console.print(text)
    console.print(f"Written to {arguments.folder}")
    return summary


def _check_folder(folder: Path, overwrite: bool, files: JobFiles) -> None:
    """As [`check_run_folder`]; also refuses to replace what has other files beside it, such as readers' answers."""
    if (folder / SETTINGS_FILE).is_file():
        if not overwrite:
            raise ValueError(f"{folder} is not empty: replace it by --overwrite, or give another --output_dir.")
        if others := ", ".join(sorted({x.name for x in folder.iterdir()} - {SETTINGS_FILE, *files.patterns})):
            raise ValueError(
                f"{folder} also holds {others}, which does not go with a new {files.job}: move it, or give another "
                "--output_dir."
            )
    check_run_folder(folder, files, resume=False, overwrite=overwrite)


def _check_model(model: FLI2MoEModel, cache: FeatureCache, arguments: DrawArguments) -> None:
    config = model.config
    if config.num_experts < 2:
        raise ValueError(f"The model in {arguments.model} is dense: it has no expert weights to ask about.")
    if config.reweighting == "global" and arguments.num_controls:
        raise ValueError(
            "The model weighs its experts alike for every sample (`reweighting` global): a control would show the same "
            "weights. Give --num_controls 0."
        )
    check_cache(model, cache)
    if not any(KINDS[cache.modalities[name]["kind"]].keeps_raw for name in config.modality_order):
        raise ValueError(
            f"The model in {arguments.model} reads arrays of numbers ({', '.join(config.modality_order)}): there is no "
            "picture or text that a reader could judge its expert weights by."
        )
    if arguments.num_samples > (size := len(split_of(cache, arguments.split))):
        raise ValueError(f"`num_samples` is {arguments.num_samples}, the split {arguments.split!r} has {size} samples.")
    if arguments.sampling == "stratified" and config.problem_type == "regression":
        raise ValueError("`sampling` stratified goes by classes, and a regression has none: give --sampling random.")


def _draw(
    model: FLI2MoEModel, cache: FeatureCache, arguments: DrawArguments, rng: np.random.Generator, console: Console
) -> tuple[list[int], list[Subject], dict[str, Any]]:
    """Rows that can be shown and read, as subjects without predictions, and as a batch of features."""
    split, order = cache.splits[arguments.split], model.config.modality_order
    features = FeatureRows(split, order)
    rows: list[int] = []
    subjects: list[Subject] = []
    for row in _row_order(split, cache, arguments.sampling, rng):
        try:
            features[[row]]
            subject = _subject(split[row], model, cache, arguments.show_true)
        except ValueError as error:
            bad = say_what_is_bad(error)
            if arguments.on_bad_sample == "stop":
                raise ValueError(f"{bad} Draw another instead by --on_bad_sample skip.") from None
            console.print(f"{bad} Another one is drawn.")
            continue
        rows.append(row)
        subjects.append(subject)
        if len(rows) == arguments.num_samples:
            say_what_is_not_shown([(x.sample_id, note) for x in subjects for note in notes_on(x.modalities)], console)
            return rows, subjects, features[rows]
    raise ValueError(f"Only {len(rows)} samples of the split {arguments.split!r} can be shown.")


def _row_order(split: Dataset, cache: FeatureCache, sampling: str, rng: np.random.Generator) -> list[int]:
    if sampling == "random":
        return rng.permutation(len(split)).tolist()
    labels = np.asarray(split.select_columns(["labels"])["labels"])
    is_single = labels.ndim == 1  # class indexes
    return stratified_order(labels[:, None] == np.arange(len(cache.label_names)) if is_single else labels > 0.5, rng)


def _subject(row: dict[str, Any], model: FLI2MoEModel, cache: FeatureCache, show_true: bool) -> Subject:
    """`ValueError` where the sample's picture or text is not at hand."""
    modalities = {}
    if lacking := [name for name in model.config.modality_order if not row[f"{name}_special_mask"]]:
        raise ValueError(f"Sample {row['id']} has no {lacking[0]}, which a reader would look for.")
    for name in model.config.modality_order:
        described = cache.modalities[name]
        modalities[name] = places_in(row, name, described.get("encoder"), described.get("grid"))
        if (reason := modalities[name].missing()) is not None:
            raise ValueError(f"The {name} of sample {row['id']} {reason}.")
    return Subject(row["id"], modalities, _true(row["labels"], cache) if show_true else None)


def _true(labels: Any, cache: FeatureCache) -> list[str]:
    if cache.problem_type == "regression":
        return _values(np.atleast_1d(np.asarray(labels, np.float64)).tolist(), cache.label_names)
    return [cache.label_names[index] for index in true_targets(labels, cache.problem_type)] or ["no class"]


def _predicted(logits_C: torch.Tensor, config: FLI2MoEConfig) -> list[str]:
    """`Drama 83 %`, the most probable first; of a regression its values."""
    names = config.label_names
    if config.problem_type == "regression":
        return _values(logits_C.tolist(), names)
    told = probabilities(logits_C, config).numpy()
    if config.problem_type == "single_label_classification":
        chosen = [int(told.argmax())]
    else:
        own = config.thresholds or (config.interaction_statistics or {}).get("threshold") or 0.5
        chosen = sorted(np.flatnonzero(told > own).tolist(), key=lambda index: -told[index])
    return [f"{names[index]} {100 * told[index]:.0f} %" for index in chosen] or ["no class"]


def _values(values: list[float], names: list[str]) -> list[str]:
    return [f"{name} {signed(value)}" for name, value in zip(names, values, strict=True)]
