"""What explanations work on: projected samples, and their candidate features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.modeling_fl_i2moe import FLI2MoEModel


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
    """Modality → (B, T_m), true where a feature is real and not special: what can be masked and have importance."""

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
                "Explanations need a feature-level model; this one is pooled; its inputs are not patches and tokens."
            )
        check_batch(batch, config.modality_order)
        features, masks, special = (
            {name: batch[kind][name].to(model.device) for name in config.modality_order}
            for kind in ("features", "feature_masks", "special_masks")
        )
        candidates = {name: masks[name] & ~special[name] for name in config.modality_order}
        return cls(model.embed(features, masks), masks, candidates)

    def __len__(self) -> int:
        return next(iter(self.projected.values())).shape[0]

    def select(self, rows: Sequence[int] | Tensor) -> "Inputs":
        """The samples in these rows, in their order; a row may come twice."""
        fields = (self.projected, self.feature_masks, self.candidate_masks)
        return Inputs(*({name: x[rows] for name, x in field.items()} for field in fields))


def check_batch(batch: dict[str, Any], modality_order: Sequence[str]) -> None:
    """`ValueError` that names a sample of the batch without a candidate in some modality, or with features that are not
    finite."""

    def check(good: Tensor, problem: str) -> None:
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(f"Sample {batch['ids'][row] if 'ids' in batch else f'in row {row}'} has {problem}.")

    for name in modality_order:
        candidates = batch["feature_masks"][name] & ~batch["special_masks"][name]
        check(candidates.any(dim=1), f"no {name} feature that is not special: nothing to explain")
    for name in modality_order:
        finite = batch["features"][name].isfinite().all(dim=2) | ~batch["feature_masks"][name]
        check(finite.all(dim=1), f"{name} features that are NaN or infinite")
