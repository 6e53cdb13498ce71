"""
Several systems on the same features with the same options and seeds, and the table that compares them.

    output_dir/
      run.json        what holds for all systems
      <system>/       a run as `fit` leaves it
      table.json      means, standard deviations and single values of every system that is done
      table.md        the same for reading, as one table or several
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from markupsafe import Markup
from rich.console import Console

from ..cache import FeatureCache
from ..cache.key import key_digest
from ..metrics import markdown
from ..metrics.tasks import METRICS_BY_PROBLEM, difference
from ..training.arguments import Job, ModelArguments, OutputArguments, check_metric
from ..training.experiment import TRAINING_FILES, fit
from ..training.features import check_splits, model_config
from ..utils.files import write_json, write_text
from ..utils.run_folder import JobFiles, held_run_folder

SYSTEM_FILES = replace(
    TRAINING_FILES, patterns=(*TRAINING_FILES.patterns, "overhead.json", "robustness.json"), are_parts=True
)
COMPARISON_FILES = JobFiles("comparison of systems", ("table.json", "table.md"), SYSTEM_FILES)
Measurement = Callable[[Path, Job, FeatureCache, Accelerator], dict[str, dict[str, Any]]]
"""
(folder of the run, its job, features, processes) → further columns by name, `{"mean", "std", "text"}`; or conditions
under which a system was evaluated again, `{"metrics"}` as a row has them, in a table of their own.
"""


@dataclass(frozen=True)
class System:
    """A row of a table."""

    title: str
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of [`ModelArguments`] that make it what it is."""
    against: str | None = None
    """Name of the system that it is compared with: the table shows the difference."""
    min_modalities: int = 2
    """With fewer it is no other system than the one it is compared with."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of [`TrainingArguments`] in which it differs."""


@dataclass(frozen=True)
class Table:
    """Systems by name, in the order of the rows; one may stand in several tables and is trained once."""

    title: str
    systems: Sequence[str]
    row_titles: Mapping[str, str] = field(default_factory=dict)
    """Name → what the system is called in this table, where that is not its own title."""


def with_options(system: System, options: Mapping[str, Any], but: Collection[str] = ()) -> System:
    """The system with further options, of the model or its training, `but` these; its own options win."""
    of_model = {x.name for x in fields(ModelArguments)}
    model = {name: value for name, value in options.items() if name in of_model and name not in but}
    training = {name: value for name, value in options.items() if name not in of_model and name not in but}
    return replace(system, model={**model, **system.model}, training={**training, **system.training})


def compare_systems(
    systems: Mapping[str, System],
    cache: FeatureCache,
    job: Job,
    accelerator: Accelerator,
    console: Console,
    measure: Measurement | None = None,
    tables: Sequence[Table] = (),
) -> dict[str, Any]:
    """
    Trains every system that is not trained yet, and writes the table anew after each; returns the content of
    `table.json`. With `resume` a stopped comparison goes on; it may name further systems, and nothing else may change.
    Raises `ValueError` where the output folder holds something else, or a system does not fit the data.

    Args:
        systems: name, also of its folder → system, in the table's order.
        job: options of all systems, unless a system has its own.
        measure: what else is reported of a trained system.
        tables: all systems in one table if not given.
    """
    folder = Path(job.output.output_dir)
    systems = {name: x for name, x in systems.items() if x.min_modalities <= len(cache.modalities)}
    jobs = own_jobs(systems, job)
    check_splits(cache.splits, f"The feature cache {cache.path}")
    check_metric(job.training.metric, cache.problem_type)
    for own_job in jobs.values():
        model_config(own_job, cache)
    settings = job.settings(features=key_digest(cache.key))
    results: dict[str, dict[str, Any]] = {}
    measured: dict[str, dict[str, Any]] = {}
    table: dict[str, Any] = {}
    flags = {**job.output.flags, "beside": job.encoding.cache_dir, "is_writer": accelerator.is_main_process}
    flags["defaults"] = job.defaults
    with held_run_folder(folder, settings, COMPARISON_FILES, **flags):
        accelerator.wait_for_everyone()
        for name, own_job in jobs.items():
            console.print(f"{systems[name].title} ({name}), {len(results) + 1} of {len(jobs)}")
            results[name] = fit(cache, own_job, accelerator, own_job.settings(system=name), SYSTEM_FILES, quiet=True)
            if measure is not None:
                measured[name] = measure(folder / name, own_job, cache, accelerator)
            table = make_table({key: systems[key] for key in results}, results, measured, cache.problem_type, tables)
            if accelerator.is_main_process:
                write_json(folder / "table.json", table)
                write_text(folder / "table.md", render_markdown(table))
            accelerator.wait_for_everyone()
    return table


def own_jobs(systems: Mapping[str, System], job: Job) -> dict[str, Job]:
    """Name of a system → its job, in a folder of its own; raises `ValueError` where it does not go with the options."""
    jobs = {}
    for name, system in systems.items():
        try:
            model = replace(job.model, **system.model)
            training = replace(job.training, **system.training)
        except ValueError as error:
            raise ValueError(f"The system {name} does not go with the options: {error}") from error
        output = OutputArguments(str(Path(job.output.output_dir) / name), resume=True)
        jobs[name] = replace(job, model=model, training=training, output=output)
    return jobs


def make_table(
    systems: Mapping[str, System],
    results: Mapping[str, dict[str, Any]],
    measured: Mapping[str, dict[str, Any]],
    problem_type: str,
    tables: Sequence[Table] = (),
) -> dict[str, Any]:
    """
    Args:
        results: name → `results.json` of the run.
        measured: name → what a [`Measurement`] gave.

    Returns:
        Plain JSON: the columns; a row for each system with `metrics` (mean, std, values by seed, difference to the
        system it is compared with), `parameters`, `seconds_per_epoch` and `measured`; and `tables`, each with its
        title, its systems and what they are called there.
    """
    names = [*METRICS_BY_PROBLEM[problem_type]]
    rows = []
    for name, system in systems.items():
        seeds, test = results[name]["seeds"], results[name]["test"]
        other = results[system.against]["test"] if system.against in results else None
        metrics = {
            metric: {
                **test[metric],
                "values": {seed: run["test"][metric] for seed, run in seeds.items()},
                "difference": difference(test[metric]["mean"], other and other[metric]["mean"]),
            }
            for metric in names
        }
        epochs = sum(run["epochs"] for run in seeds.values())
        rows.append(
            {
                "system": name,
                **{key: value for key, value in asdict(system).items() if key != "min_modalities"},
                "metrics": metrics,
                "parameters": next(iter(seeds.values()))["parameters"],
                "seconds_per_epoch": round(sum(run["training_seconds"] for run in seeds.values()) / epochs, 3),
                "epochs": {seed: run["epochs"] for seed, run in seeds.items()},
                "measured": measured.get(name, {}),
            }
        )
    first = next(iter(results.values()))
    return {
        "metrics": names,
        "picked_by": first["metric"] if first["settings"].get("load_best_model_at_end", True) else None,
        "seeds": list(first["seeds"]),
        "samples": first["samples"],
        "machine": first["machine"],
        "rows": rows,
        "tables": [
            {
                "title": x.title,
                "systems": {name: x.row_titles.get(name, systems[name].title) for name in x.systems if name in systems},
            }
            for x in tables or [Table("", list(systems))]
        ],
    }


def render_markdown(table: Mapping[str, Any]) -> str:
    """The tables as Markdown: shares in per cent, mean ± standard deviation over the seeds."""
    rows = {row["system"]: row for row in table["rows"]}
    parts = []
    for part in table["tables"]:
        if titles := part["systems"]:
            parts += [f"### {part['title']}"] * bool(part["title"]) + [_render_systems(titles, rows, table["metrics"])]
            if any(_conditions(rows[name]) for name in titles):
                parts.append(_render_conditions(titles, rows, table["metrics"]))
    count = len(table["seeds"])
    spread = f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed"
    picked = f"the epoch is picked by the validation split's {table['picked_by']}"
    note = (
        f"Test split, {table['samples']['test']:,} samples, {spread}; "
        f"{picked if table['picked_by'] else 'the last epoch is kept'}. An epoch includes its validation. "
        f"{table['machine']['device']}."
    )
    return "\n\n".join([*parts, note]) + "\n"


def _render_systems(titles: Mapping[str, str], rows: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A row for each system, with differences where the table also holds the system that it is compared with."""
    extra = dict.fromkeys(column for name in titles for column, x in rows[name]["measured"].items() if "text" in x)
    lines = []
    for name, title in titles.items():
        row = rows[name]
        cells = [_cell(metric, row["metrics"][metric], row["against"] in titles) for metric in metrics]
        cells += [row["measured"].get(column, {}).get("text", "–") for column in extra]
        lines.append([title, *cells, f"{row['parameters']:,}", f"{row['seconds_per_epoch']:.2f}"])
    return _render_table(["system", *metrics, *extra, "parameters", "s / epoch"], lines, text_columns=1)


def _render_conditions(titles: Mapping[str, str], rows: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A row for each system and condition; differences are to the same system without a condition."""
    lines = []
    for name, title in titles.items():
        own = rows[name]["metrics"]
        lines.append([title, "none", *(_cell(metric, own[metric], with_difference=False) for metric in metrics)])
        for condition, x in _conditions(rows[name]).items():
            lines.append([title, markdown.escape(condition), *(_cell(m, x["metrics"][m], True) for m in metrics)])
    return _render_table(["system", "condition", *metrics], lines, text_columns=2)


def _conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in row["measured"].items() if "metrics" in x}


def _render_table(header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int) -> str:
    """Names of systems and metrics are ours and stay as they are, for those who read it on the console."""
    header, *rows = ([Markup(cell) for cell in line] for line in (header, *lines))
    return str(markdown.table(header, rows, text_columns)).rstrip()


def choose_systems(known: Mapping[str, System], names: Sequence[str]) -> dict[str, System]:
    """The systems of these names, in their order; raises `ValueError` where a name is unknown or given twice."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Unknown systems {unknown}; there are {', '.join(known)}.")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"`systems` must be different names, at least one, got {list(names)}.")
    return {name: known[name] for name in names}


def _cell(metric: str, entry: Mapping[str, Any], with_difference: bool) -> str:
    text = markdown.spread(metric, entry)
    if entry["difference"] is None or not with_difference:
        return text
    return f"{text} ({markdown.signed(metric, entry['difference'])})"
