"""A raw sample as a row of a feature cache, so that it can be explained without one."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model.encoder_inputs import open_image
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
    order = model.config.modality_order
    if sorted(raw) != sorted(order):
        raise ValueError(f"This model takes {order}, got {sorted(raw)}.")
    row: dict[str, Any] = {"id": sample_id}
    for name in order:
        encoder = model.raw_inputs.load(name).to(model.device)
        prepared = encoder.preprocess([raw[name]])
        encoded = encoder.encode(prepared.inputs)
        [annotation] = prepared.annotations
        row[f"{name}_features"] = encoded.features[0].half().cpu().numpy()
        row[f"{name}_special_mask"] = encoded.special_mask[0].cpu().numpy()
        if encoder.kind == "text":
            row[name] = raw[name]
            row[f"{name}_offsets"] = [list(pair) for pair in annotation["offsets"]]
        else:
            row[name] = _picture(raw[name])
            row[f"{name}_geometry"] = annotation
    return row


def _picture(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (str, Path)):
        return {"path": str(value), "bytes": None}
    stream = io.BytesIO()
    open_image(value).save(stream, "PNG")
    return {"path": None, "bytes": stream.getvalue()}
