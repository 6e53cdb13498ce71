"""What a run of explanations is asked for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...model.places import UnitOptions
from ...training.arguments import check_options, option

MEASUREMENTS = ("faithfulness", "alignment", "pair_masking", "pair_curves")
UNBINDING = {"output_dir", "overwrite", "num_samples", "sample_ids", "num_pages", "measurements", "batch_size"}
UNBINDING |= {"faithfulness_samples", "num_threads", "cache_dir", "features", "classes", "on_bad_sample", "dense_model"}
"""They decide how much is explained or where it goes, not what an explanation says."""


@dataclass
class ExplainArguments:
    """What is explained, and how."""

    model: str = field(metadata={"help": "Folder of a trained model, as recipes/train.py leaves it."})
    split: str = option("test", "Split of the feature cache.")
    num_samples: int | None = option(16, "Samples to explain, from the start of the split.", at_least=1)
    sample_ids: list[str] = option([], "Explain these samples instead.")
    num_pages: int | None = option(None, "How many of the samples get pages and figures; all if not given.", at_least=0)
    classes: Literal["predicted_and_true", "true", "best"] = option(
        "predicted_and_true",
        "Explain each class of a sample that is predicted or true, each true class, or of the true ones the one with "
        "the highest logit.",
    )
    output_dir: str | None = option(None, "Folder of the explanations; `explanations` in the model's if not given.")
    overwrite: bool = option(False, "Replace the explanations in --output_dir.")
    cache_dir: str | None = option(None, "Folder of the feature cache; the one of the training run if not given.")
    features: str | None = option(
        None, "Explain on these features: the folder of a cache, or a data set on the Hub; of that, --split is fetched."
    )
    dense_model: str | None = option(None, "Folder of a dense model whose faithfulness is shown beside.")
    units: Literal["input", "features"] = option(
        "input",
        "What is explained: words, cells of pictures and stretches of sounds, taken out before the encoders, which are "
        "run again; or features, tokens and patches as the encoders mixed them, as in the paper, which needs none.",
    )
    cells: list[int] = option([], "Rows and columns that pictures are cut into; the encoder's own grid if not given.")
    text_units: Literal["words", "sentences"] = option("words", "What texts are cut into.")
    removal: list[str] = option(
        [], "How units are taken out, modality=way, such as image=blur; what the encoder does best if not given."
    )
    method: Literal["shapley", "leave_one_out", "rollout", "grad_attnroll", "attnroll", "ig", "random"] | None = option(
        None,
        "How importance is computed: shapley (default), leave_one_out, rollout or random for the input; grad_attnroll "
        "(default), attnroll, ig or random for features. A fusion without attention takes no rollout: its features ig.",
    )
    interactions: Literal["shared_context", "per_pair", "exact", "none"] = option(
        "shared_context", "How pairs are scored; exact takes at most 16 units a sample, none leaves them out."
    )
    num_coalitions: int = option(16, "Coalitions that a pair's score is a mean of.", at_least=1)
    target_error: float | None = option(
        None, "Go on, for pairs whose rank is open, until the strongest are known to ± so many logits.", positive=True
    )
    universe_share: float = option(
        0.3,
        "Share of each modality's units, those that do most to the expert, whose pairs are scored.",
        within="(0, 1]",
    )
    measurements: list[str] = option(
        list(MEASUREMENTS), f"What to measure on the data: {', '.join(MEASUREMENTS)}; or none."
    )
    faithfulness_samples: int | None = option(
        None,
        "Samples that faithfulness is measured on; if not given, for features all of the split, for the input those "
        "that are explained.",
        at_least=1,
    )
    num_draws: int = option(10, "Random draws that masking is compared with.", at_least=1)
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop",
        "What to do with a sample that lacks a modality or whose features are NaN or infinite. One that only "
        "faithfulness is measured on stops the run after the explanations.",
    )
    seed: int = option(0, "Seed of everything random.", at_least=0)
    batch_size: int = option(32, "Samples at once where faithfulness is measured.", at_least=1)
    num_threads: int | None = option(None, "CPU threads a process; all cores if not given.", within="[1, 1024]")

    def __post_init__(self):
        check_options(self)
        if self.features and self.cache_dir:
            raise ValueError("`features` and `cache_dir` exclude each other: give one of them.")
        if len(self.cells) not in (0, 2) or not all(number > 0 for number in self.cells):
            raise ValueError(f"`cells` takes two numbers from 1, rows and columns, got {self.cells}.")
        self.removal = sorted(self.removal)
        if len(self.removals) < len(self.removal):
            raise ValueError(f"`removal` names a modality twice: {self.removal}.")
        given = [name for name in ("cells", "removal") if getattr(self, name)]
        if self.units == "features" and (given or self.text_units != "words"):
            raise ValueError(f"`{(*given, 'text_units')[0]}` needs `units` input: features are what they are.")
        if self.measurements == ["none"]:
            self.measurements = []
        if unknown := set(self.measurements) - set(MEASUREMENTS):
            raise ValueError(f"Unknown `measurements` {sorted(unknown)}; there are {', '.join(MEASUREMENTS)} or none.")

    @property
    def cut(self) -> UnitOptions:
        return UnitOptions(cells=(self.cells[0], self.cells[1]) if self.cells else None, text=self.text_units)

    @property
    def removals(self) -> dict[str, str]:
        """Modality → how its units are taken out; `ValueError` for an entry that is no modality=way."""
        entries = [entry.partition("=") for entry in self.removal]
        if wrong := ["".join(parts) for parts in entries if not all(parts)]:
            raise ValueError(f"`removal` takes modality=way, such as image=blur, got {wrong[0]!r}.")
        return {name: way for name, _, way in entries}

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) if self.output_dir else Path(self.model) / "explanations"

    @property
    def binding(self) -> dict[str, Any]:
        """What decides what an explanation says, as plain JSON; not how much is explained, or where it goes."""
        return {name: value for name, value in asdict(self).items() if name not in UNBINDING}
