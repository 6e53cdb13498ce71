"""The explanation of one prediction, and the files that it is saved as."""

import os
from pathlib import Path
from typing import Self

from ..metrics.figures import save_figure
from ..model.configuration_fl_i2moe import check_given
from ..utils.checked_json import read_json
from ..utils.files import write_json, write_text
from .explanation_data import ExplanationData
from .pages.sample_figure import draw_explanation
from .pages.sample_page import render_page


class Explanation(ExplanationData):
    """Why a model gave one class of one sample its logit, as `fl_i2moe.explain.explain` finds it."""

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote as JSON; `ValueError` that names the key for a file of another format or edited."""
        check_given("path", path)
        try:
            return cls.from_dict(read_json(Path(path), dict))
        except ValueError as error:
            raise ValueError(f"{path} holds no explanation that can be read: {error}") from error

    def save(self, path: str | os.PathLike, *, index_href: str | None = None) -> Path:
        """
        Writes a self-contained page (`.html`), a figure laid out like the FL-I²MoE paper's Figure 5 (`.png`) or the
        data (`.json`), by the name's ending; whole or not at all. `index_href` is a page's relative link to that of
        the whole run. `ValueError` for another ending.
        """
        check_given("path", path)
        path = Path(path)
        match path.suffix.lower():
            case ".json":
                write_json(path, self.to_dict())
            case ".html":
                write_text(path, render_page(self, index_href))
            case ".png":
                save_figure(draw_explanation(self), path)
            case ending:
                raise ValueError(f"An explanation is saved as .html, .png or .json, not as {ending!r}: {path}.")
        return path
