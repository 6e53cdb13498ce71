"""Markdown from values: templates, tables and cells, in which text that users chose stays text."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .tasks import is_share


def render_template(template: str | Path, **values: Any) -> str:
    """Fills a Markdown template; every value is escaped, unless it says (`Markup`) that it is Markdown already."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(template).parent),
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(Path(template).name).render(values)


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], text_columns: int = 1) -> Markup:
    """A Markdown table; cells are escaped, behind the first columns there are numbers."""
    lines = [header, ["---"] * text_columns + ["---:"] * (len(header) - text_columns), *rows]
    cells = [[cell if index == 1 else escape(cell) for cell in line] for index, line in enumerate(lines)]
    return Markup("".join("| " + " | ".join(map(str, line)) + " |\n" for line in cells))


def spread(metric: str, value: Mapping[str, float | None] | None) -> str:
    """Mean ± standard deviation, which no line breaks apart."""
    if value is None or value["mean"] is None:
        return "–"
    around = "" if value.get("std") is None else f"\u00a0±\u00a0{shown(metric, value['std'])}"
    return shown(metric, value["mean"]) + around


def estimate(
    value: float | None, std: float | None, ends: Sequence[float] | None, form: Callable[[float], str], unit: str = ""
) -> str:
    """`0.62 ± 0.01 [0.60, 0.64]`, as far as there are a spread and an interval; – without a value."""
    if value is None:
        return "–"
    around = "" if std is None else f" ± {form(std)}"
    return f"{form(value)}{unit}{around}" + (f" [{', '.join(map(form, ends))}]" if ends else "")


def shown(metric: str, value: float | None) -> str:
    """Shares in per cent, other metrics as they are."""
    if value is None:
        return "–"
    scale, digits = (100, 1) if is_share(metric) else (1, 3)
    return f"{scale * value:.{digits}f}".replace("-", "−")


def signed(metric: str, value: float) -> str:
    """A change of a metric, as [`shown`], with its sign; none where it is shown as zero."""
    text = shown(metric, value)
    if not text.strip("−0."):
        return text.removeprefix("−")
    return text if text.startswith("−") else f"+{text}"


def escape(value: Any) -> Any:
    """Text as Markdown that shows it letter by letter, in one line; what is Markdown already (`Markup`) as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = "".join(x if x.isprintable() or x == "\u00a0" else " " for x in value)  # a space that breaks no line
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#!|~$@]|:(?=//)|^[-+=])", r"\\\1", text)  # emphasis, links, lists, tables, formulas
    text = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)  # a numbered list
    return Markup(re.sub(r"(?i)(www)\.", r"\1&#46;", text))
