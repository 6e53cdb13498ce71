"""From a raw sample, or a row of a feature cache, to what explanations work on: projected, candidate features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.kind import checksum
from ..model.kinds import KINDS
from ..model.modeling_fl_i2moe import FLI2MoEModel

ONLY_WHOLE = "only samples with all modalities can be explained"


def raw_sample(model: FLI2MoEModel, sample_id: str = "sample", **raw: Any) -> dict[str, Any]:
    """
    Encodes one sample, modality → a picture (path, PIL image, uint8 array), a text, a sound (path, or samples and
    rate), an array (D,) or (T, D), or columns of a table (column → value), with the model's frozen encoders, as a row
    that [`~fl_i2moe.explain.explain`] takes. `ValueError` if a modality is missing, or a value or an encoder cannot be
    read.

    ```python
    >>> explanation = explain(model, raw_sample(model, image="poster.jpg", text="A pianist …"), "Drama")
    ```"""
    if sorted(raw) != sorted(model.config.modality_order):
        raise ValueError(f"This model takes {model.config.modality_order}, got {sorted(raw)}.")
    if missing := [name for name, value in raw.items() if value is None]:
        raise ValueError(f"The sample has no {missing[0]}: {ONLY_WHOLE}.")
    row: dict[str, Any] = {"id": sample_id}
    for name in model.config.modality_order:
        encoder = model.raw_inputs.load(name).to(model.device)
        kind = KINDS[encoder.kind]
        prepared = encoder.preprocess([raw[name]])
        encoded = encoder.encode(prepared.inputs)
        if kind.keeps_raw:
            row[name] = kind.cell(raw[name])
            row[f"{name}_sha256"] = checksum(kind.content(row[name]))
        row[f"{name}_features"] = encoded.features[0].half().cpu().numpy()
        row[f"{name}_special_mask"] = encoded.special_mask[0].cpu().numpy()
        [annotation] = prepared.annotations
        row |= {f"{name}_{suffix}": cell for suffix, cell in kind.annotation_cells(annotation).items()}
    return row


def feature_batch(sample: Mapping[str, Any], modality_order: Sequence[str]) -> dict[str, Any]:
    """The row as `FeatureRows` would give it."""
    features, masks, special = {}, {}, {}
    for name in modality_order:
        missing = [key for key in (f"{name}_features", f"{name}_special_mask") if sample.get(key) is None]
        if missing:
            raise ValueError(
                f"The sample lacks {' and '.join(missing)}: give a row of a feature cache; it has {sorted(sample)}."
            )
        features[name] = torch.tensor(np.asarray(sample[f"{name}_features"], dtype=np.float32)).unsqueeze(0)
        special[name] = torch.tensor(np.asarray(sample[f"{name}_special_mask"], dtype=np.bool_)).unsqueeze(0)
        masks[name] = torch.ones_like(special[name])
    ids = {"ids": [str(sample["id"])]} if "id" in sample else {}
    return {"features": features, "feature_masks": masks, "special_masks": special, **ids}


@dataclass(frozen=True)
class Inputs:
    """
    Samples behind the stem, on the model's device, modalities in the order of `config.modality_order`.

    Shapes: B samples, T_m features of modality m, H hidden width.
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
        From `features`, `feature_masks` and `special_masks` by modality, as `FeatureRows` gives them; `ValueError` if
        the model is pooled, features do not fit it or are not finite, or a sample lacks a modality, or has no candidate
        in one.
        """
        config = model.config
        if config.level != "feature":
            raise ValueError("Explanations need a feature-level model; this one is pooled: it sees no single features.")
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
    """`ValueError` that names a sample of the batch that lacks a modality, has no candidate in one, or features that
    are not finite."""

    def check(good: Tensor, problem: str) -> None:
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(f"Sample {batch['ids'][row] if 'ids' in batch else f'in row {row}'} has {problem}.")

    for name in modality_order:
        check(batch["feature_masks"][name].any(dim=1), f"no {name}: {ONLY_WHOLE}")
    for name in modality_order:
        candidates = batch["feature_masks"][name] & ~batch["special_masks"][name]
        check(candidates.any(dim=1), f"no {name} feature that is not special: nothing to explain")
    for name in modality_order:
        finite = batch["features"][name].isfinite().all(dim=2) | ~batch["feature_masks"][name]
        check(finite.all(dim=1), f"{name} features that are NaN or infinite")
