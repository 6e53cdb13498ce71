"""What a training recipe leaves, as publishing reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.configuration_fl_i2moe import FLI2MoEConfig

FUSIONS = {
    "transformer": "Transformer",
    "switch": "Switch Transformer",
    "moe++": "MoE++ Transformer",
    "interpretcc": "InterpretCC",
    "early": "early fusion",
    "late": "late fusion",
    "low_rank": "low-rank fusion",
}


@dataclass
class Run:
    """What lies in the folder of a training run."""

    folder: Path
    config: FLI2MoEConfig
    results: dict[str, Any]
    statistics: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """
        Raises:
            ValueError: a file is missing.
        """
        folder = Path(folder)
        for name in ("config.json", "results.json", "interaction_statistics.json"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} is no finished training run: it has no {name}. Give a folder that a recipe made."
                )
        results, statistics = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("results.json", "interaction_statistics.json")
        )
        return cls(folder, FLI2MoEConfig.from_pretrained(folder), results, statistics)

    @property
    def title(self) -> str:
        """What kind of model it is."""
        fusion, level = FUSIONS[self.config.fusion], ", pooled" if self.config.level == "pooled" else ""
        if self.config.architecture == "dense":
            return f"dense {fusion}{level}"
        name = "I²MoE, pooled" if level else "FL-I²MoE"
        if self.config.interaction_experts != "all":
            name += ", no uniqueness experts"
        experts = "" if self.config.fusion == "transformer" else f", experts: {fusion}"
        if self.config.interaction_loss_weight == 0:
            return f"{name}, no interaction losses{experts}"
        return f"{name}, {self.config.objective} objective{experts}"

    def explanation(self, name: str) -> Any:
        """A JSON file of `explanations/`, or `None`."""
        file = self.folder / "explanations" / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
