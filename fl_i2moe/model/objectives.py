"""All objectives by the names that a configuration gives them."""

from transformers import PreTrainedConfig

from .objective import Objective
from .objective_published import PublishedObjective
from .objective_specialised import SpecialisedObjective

OBJECTIVES: dict[str, type[Objective]] = {"published": PublishedObjective, "specialised": SpecialisedObjective}


def create_objective(config: PreTrainedConfig) -> Objective:
    """The objective of a model; a dense one has none beside its task."""
    return (Objective if config.architecture == "dense" else OBJECTIVES[config.objective])(config)
