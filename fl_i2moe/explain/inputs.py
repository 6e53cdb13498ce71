"""What explanations work on: projected samples, and which of their features may be blamed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..modeling_fl_i2moe import FLI2MoEModel


@dataclass(frozen=True)
class Inputs:
    """
    Samples behind the stem, on the model's device. Shapes: B samples, T_m features of modality m, H hidden width.

    Dictionaries are in the order of `config.modality_order`.
    """

    projected: dict[str, Tensor]
    """Modality → (B, T_m, H), from `FLI2MoEModel.embed`."""

    feature_masks: dict[str, Tensor]
    """Modality → (B, T_m), true where a feature is real."""

    candidate_masks: dict[str, Tensor]
    """Modality → (B, T_m), true where a feature is real and not special: what may be masked and blamed."""

    @classmethod
    @torch.no_grad()
    def from_batch(cls, model: FLI2MoEModel, batch: dict[str, Any]) -> "Inputs":
        """
        Args:
            batch: `features`, `feature_masks` and `special_masks` by modality, as `FeatureRows` gives them.

        Raises:
            ValueError: the model is pooled; features do not fit it or are not finite; a sample has no candidate in
                some modality.
        """
        config = model.config
        if config.level != "feature":
            raise ValueError(
                "Explanations need a feature-level model; this one is pooled, its inputs are no patches and tokens."
            )
        features, masks, special = (
            {name: batch[kind][name].to(model.device) for name in config.modality_order}
            for kind in ("features", "feature_masks", "special_masks")
        )
        candidates = {name: masks[name] & ~special[name] for name in config.modality_order}
        for name, candidate in candidates.items():
            if not (rows := candidate.any(dim=1)).all():
                row = int((~rows).nonzero()[0])
                sample = batch["ids"][row] if "ids" in batch else f"in row {row}"
                raise ValueError(f"Sample {sample} has no {name} feature that is not special: nothing to explain.")
        return cls(model.embed(features, masks), masks, candidates)

    def __len__(self) -> int:
        return next(iter(self.projected.values())).shape[0]
