"""A raw sample as a row of a feature cache, so that it can be explained without one."""

from typing import Any

from ..model.kinds import ENCODED_KINDS
from ..model.modeling_fl_i2moe import FLI2MoEModel


def raw_sample(model: FLI2MoEModel, sample_id: str = "sample", **raw: Any) -> dict[str, Any]:
    """
    Encodes one sample with the model's frozen encoders.

    Args:
        raw: modality → a picture (path, PIL image, uint8 array) or a text.

    Returns:
        What `fl_i2moe.explain.explain` takes.

    Raises:
        ValueError: a modality is missing, or a value or an encoder cannot be read.

    Example:

    ```python
    >>> explanation = explain(model, raw_sample(model, image="poster.jpg", text="A pianist …"), "Drama")
    ```"""
    if sorted(raw) != sorted(model.config.modality_order):
        raise ValueError(f"This model takes {model.config.modality_order}, got {sorted(raw)}.")
    row: dict[str, Any] = {"id": sample_id}
    for name in model.config.modality_order:
        encoder = model.raw_inputs.load(name).to(model.device)
        kind = ENCODED_KINDS[encoder.kind]
        prepared = encoder.preprocess([raw[name]])
        encoded = encoder.encode(prepared.inputs)
        row[name] = kind.cell(raw[name])
        row[f"{name}_features"] = encoded.features[0].half().cpu().numpy()
        row[f"{name}_special_mask"] = encoded.special_mask[0].cpu().numpy()
        [annotation] = prepared.annotations
        row |= {f"{name}_{suffix}": cell for suffix, cell in kind.annotation_cells(annotation).items()}
    return row
