"""From a sample, raw or of a feature cache, to what explanations work on: projected, candidate features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..model.configuration_fl_i2moe import did_you_mean
from ..model.kind import FrozenEncoder, check_removal, checksum, is_missing
from ..model.kinds import ENCODED_KINDS, KINDS
from ..model.modeling_fl_i2moe import FLI2MoEModel

ONLY_WHOLE = "only samples with all modalities can be explained"
ONLY_FEATURES = "explain the features (units='features')"
OLD_CODE = "The model runs the code of its repository, which is older than this package: import fl_i2moe, then load it."


def sample_row(model: FLI2MoEModel, sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    A sample as a row of a feature cache, encoded by the model's frozen encoders if it is none.

    Args:
        sample: a row of a feature cache; or modality → a picture (path, PIL image, uint8 array), a text, a sound (path,
            or samples and rate), an array (D,) or (T, D), or columns of a table (column → value). A row of a raw data
            set is such a sample, too: its `id` and `labels` are kept, other columns are not looked at.

    Raises:
        ValueError: it is no dictionary; a modality is missing, or a value or an encoder cannot be read.
    """
    order = model.config.modality_order
    if not isinstance(sample, Mapping):
        raise ValueError(f"A sample is a dictionary with {order}, or a row of a feature cache; got {sample!r:.80}.")
    if any(f"{name}_features" in sample for name in order):
        return sample
    given = {name: value for name, value in sample.items() if not (isinstance(value, str) and is_missing(value))}
    if missing := [name for name in order if given.get(name) is None]:
        close = "".join(did_you_mean(name, sample) for name in missing[:1])
        raise ValueError(f"The sample has no {missing[0]}, only {', '.join(given) or 'nothing'}: {ONLY_WHOLE}.{close}")
    row: dict[str, Any] = {"id": "sample"} | {key: sample[key] for key in ("id", "labels") if key in sample}
    if nameless := [name for name in order if (model.config.encoders or {}).get(name, {}).get("kind") not in KINDS]:
        raise ValueError(
            f"The model's configuration names no encoder of {nameless[0]!r}: give a row of a feature cache, and "
            f"{ONLY_FEATURES}."
        )
    for name in order:
        encoder = model.raw_inputs.load(name).to(model.device)
        kind = KINDS[encoder.kind]
        value = kind.cell(sample[name]) if kind.keeps_raw else sample[name]
        prepared = encoder.preprocess([value])
        encoded = encoder.encode(prepared.inputs)
        if kind.keeps_raw:
            row[name] = value
            row[f"{name}_sha256"] = checksum(kind.content(value))
        row[f"{name}_features"] = encoded.features[0].half().cpu().numpy()
        row[f"{name}_special_mask"] = encoded.special_mask[0].cpu().numpy()
        [annotation] = prepared.annotations
        row |= {f"{name}_{suffix}": cell for suffix, cell in kind.annotation_cells(annotation).items()}
    return row


def check_model(model: Any) -> None:
    """`ValueError` for what is no model, and for one whose code, that of its repository, is older than this package."""
    if isinstance(model, FLI2MoEModel):
        return
    if type(model).__name__ != FLI2MoEModel.__name__:
        raise ValueError(f"An FLI2MoEModel is explained, no {type(model).__name__}; of a pipeline give its `model`.")
    if not all(hasattr(model, name) for name in vars(FLI2MoEModel) if not name.startswith("_")):
        raise ValueError(OLD_CODE)


def find_encoders(model: FLI2MoEModel, row: Mapping[str, Any]) -> dict[str, FrozenEncoder | None]:
    """
    The encoders that a row's units can be taken out before; None for a modality whose features know nothing of each
    other, so that zeroing them is the same.

    Raises:
        ValueError: an encoder cannot be loaded, or is not the one of the training; or the row lacks the raw value.
    """
    encoders: dict[str, FrozenEncoder | None] = {}
    for name in model.config.modality_order:
        identity = (model.config.encoders or {}).get(name, {})
        if identity.get("kind") not in ENCODED_KINDS:
            if identity.get("kind") not in KINDS:
                raise ValueError(f"The model's configuration names no encoder of {name!r}: {ONLY_FEATURES}.")
            encoders[name] = None
        elif row.get(name) is None:
            raise ValueError(f"The sample has no {name}, only its features: give it, or {ONLY_FEATURES}.")
        else:
            try:
                encoder = model.raw_inputs.load(name).to(model.device)
            except ValueError as error:
                raise ValueError(f"{error} Without it {ONLY_FEATURES}.") from error
            if not hasattr(encoder, "removals"):
                raise ValueError(OLD_CODE)
            encoders[name] = cast(FrozenEncoder, encoder)  # perhaps that of the model's own code
    return encoders


def check_removals(encoders: Mapping[str, FrozenEncoder | None], removals: Mapping[str, str]) -> None:
    """`ValueError` where `removals` names a modality that is not there, or a way that its encoder does not know."""
    if unknown := set(removals) - set(encoders):
        raise ValueError(f"`removals` names {sorted(unknown)}; this model has {list(encoders)}.")
    for name, way in removals.items():
        if (encoder := encoders[name]) is not None:
            check_removal(encoder, way)
        elif way != "zero":
            raise ValueError(f"There is no removal {way!r} of {name}, whose features are set to zero: give 'zero'.")


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


def check_features(features: Tensor, what: str) -> None:
    """`ValueError` where the encoder gives NaN or infinite numbers."""
    if not features.isfinite().all():
        raise ValueError(f"{what} has features that are NaN or infinite in its encoder: explain the features instead.")
