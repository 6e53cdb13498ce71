"""Text of any origin as Markdown, and tables of it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup


def escape(value: Any) -> Any:
    """Text as Markdown that shows it letter by letter, in one line; what is Markdown already (`Markup`) as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = "".join(x if x.isprintable() else " " for x in value)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#!|~$@]|:(?=//)|^[-+=])", r"\\\1", text)  # emphasis, links, lists, tables, formulas
    text = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)  # a numbered list
    return Markup(re.sub(r"(?i)(www)\.", r"\1&#46;", text))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], text_columns: int = 1) -> Markup:
    """A Markdown table; cells are escaped, behind the first columns there are numbers."""
    lines = [header, ["---"] * text_columns + ["---:"] * (len(header) - text_columns), *rows]
    cells = [[cell if index == 1 else escape(cell) for cell in line] for index, line in enumerate(lines)]
    return Markup("".join("| " + " | ".join(map(str, line)) + " |\n" for line in cells))
