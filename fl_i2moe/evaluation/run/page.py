"""The page of a whole run: its samples with links to their pages, its figures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...explain.explanation_data import ExplanationData
from ...explain.pages.drawing import data_uri, drawing_of
from ...explain.pages.sample_page import environment
from ...metrics.figures import expert_colors, expert_title
from ...utils.files import write_text

THUMBNAIL_PIXELS = 160


@dataclass(frozen=True)
class IndexEntry:
    """One sample on the page of a run."""

    sample_id: str
    expert_names: list[str]
    true: list[str]
    predicted: list[str]
    pages: dict[str, str]
    """Class → relative link to the page that explains it."""

    weights: list[float]
    """(E,)"""

    thumbnail: str | None = None
    """Data URI."""

    @classmethod
    def of(cls, explanations: Sequence[ExplanationData], pages: Sequence[str]) -> "IndexEntry":
        """From the explanations of one sample, one for each explained class, and the relative links to their pages."""
        first = explanations[0]
        pictures = (drawing_of(x).thumbnail(x, THUMBNAIL_PIXELS) for x in first.modalities.values())
        picture = next((picture for picture in pictures if picture is not None), None)
        return cls(
            sample_id=first.sample_id,
            expert_names=first.expert_names,
            true=[first.label_names[index] for index in first.true_classes],
            predicted=[first.label_names[index] for index in first.predicted_classes],
            pages={x.target_name: page for x, page in zip(explanations, pages, strict=True)},
            weights=first.expert_weights.tolist(),
            thumbnail=None if picture is None else data_uri(picture, 70),
        )


@dataclass(frozen=True)
class RunFigure:
    """A picture of a whole run on its page."""

    title: str
    file: str
    """Relative link."""

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
    page = environment("fl_i2moe.evaluation").get_template("index.html.jinja")
    text = page.render(
        title=title,
        entries=entries,
        facts=facts,
        figures=figures,
        tables=tables,
        experts=[(expert_title(name), color) for name, color in experts.items()],
    )
    write_text(path, text)
