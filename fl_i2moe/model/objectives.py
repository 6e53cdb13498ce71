"""All objectives by the names that a configuration gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .objective import Objective
from .objective_published import PublishedObjective
from .objective_specialised import SpecialisedObjective

if TYPE_CHECKING:
    from .configuration_fl_i2moe import FLI2MoEConfig

OBJECTIVES: dict[str, type[Objective]] = {"published": PublishedObjective, "specialised": SpecialisedObjective}


def create_objective(config: FLI2MoEConfig) -> Objective:
    """The objective of a model; a dense one has none beside its task."""
    return (Objective if config.architecture == "dense" else OBJECTIVES[config.objective])(config)
