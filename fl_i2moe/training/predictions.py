"""What a model predicts for every sample, as a table: probabilities, decisions, and what each expert adds to them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..model.probabilities import decide, probabilities
from ..utils.files import write_file
from .loop import Predictions

PREDICTIONS_FILE = "predictions.parquet"


def prediction_table(predictions: Predictions, config: FLI2MoEConfig, split: str | None = None) -> pa.Table:
    """
    A row for each sample, with the columns

    - `id`, and `split` where it is given
    - `label`, where labels are known, and `predicted`: the class, the list of labels, the number, or the list of
      numbers. A label is predicted above its threshold, `config.thresholds`
    - `probability_<label>` of each of the C labels, under `config.temperature`; none of a regression
    - `weight_<expert>`, which sum to 1, and `contribution_<expert>`, C numbers in the order of the labels: weight times
      the expert's logits. The sum of the contributions is the mixture's logits, before the temperature
    - `most_important_expert`, which adds most to what is predicted: to the class, above what it adds to the mean class;
      to the labels together, or where none is predicted, against all; of a regression, most in size

    Raises:
        ValueError: predictions do not fit the configuration's labels and experts.
    """
    names, num_samples = config.label_names, len(predictions.ids)
    expected = (num_samples, config.num_experts, len(names))
    if tuple(predictions.expert_logits.shape) != expected:
        raise ValueError(
            f"{num_samples} samples, {config.num_experts} experts and {len(names)} labels need expert logits of shape "
            f"{expected}, got {tuple(predictions.expert_logits.shape)}."
        )
    told = probabilities(predictions.logits.double(), config).float()  # what is decided upon is what is shown
    columns: dict[str, pa.Array] = {"id": pa.array(predictions.ids, pa.string())}
    if split is not None:
        columns["split"] = pa.array([split] * num_samples, pa.string())
    if predictions.labels is not None:
        columns["label"] = _in_words(predictions.labels, config)
    columns["predicted"] = _in_words(decide(told, config), config)
    if config.problem_type != "regression":
        columns |= {f"probability_{name}": pa.array(told[:, c].numpy()) for c, name in enumerate(names)}
    weights, experts = predictions.expert_weights, config.expert_names
    contributions = weights.unsqueeze(-1) * predictions.expert_logits
    columns |= {f"weight_{name}": pa.array(weights[:, e].numpy()) for e, name in enumerate(experts)}
    columns |= {f"contribution_{name}": _lists(contributions[:, e]) for e, name in enumerate(experts)}
    most = _towards(contributions, told, config).argmax(dim=1).tolist()
    columns["most_important_expert"] = pa.array([experts[e] for e in most], pa.string())
    return pa.table(columns)


def _towards(contributions: torch.Tensor, told: torch.Tensor, config: FLI2MoEConfig) -> torch.Tensor:
    """(N, E), how much each expert adds to what is predicted, from contributions (N, E, C)."""
    match config.problem_type:
        case "single_label_classification":
            # a softmax does not see what is added to all classes
            centred = contributions - contributions.mean(dim=2, keepdim=True)
            chosen = decide(told, config)[:, None, None].expand(-1, contributions.shape[1], 1)
            return centred.gather(2, chosen).squeeze(2)
        case "multi_label_classification":
            chosen = decide(told, config).unsqueeze(1)
            none = ~chosen.any(dim=2, keepdim=True)
            return torch.where(none, -contributions, contributions * chosen).sum(dim=2)
        case _:
            return contributions.abs().sum(dim=2)


def write_predictions(path: Path, tables: Sequence[pa.Table]) -> None:
    """Writes the file whole or not at all; raises `OSError` as [`~fl_i2moe.utils.files.write_json`]."""
    write_file(path, lambda unfinished: pq.write_table(pa.concat_tables(tables), unfinished))


def _in_words(values: torch.Tensor, config: FLI2MoEConfig) -> pa.Array:
    """Labels or decisions, by the names of classes and labels; numbers of a regression as they are."""
    names = np.array(config.label_names, object)
    match config.problem_type:
        case "single_label_classification":
            return pa.array(names[values.numpy()], pa.string())
        case "multi_label_classification":
            rows: Iterable = (values > 0.5).numpy()
            return pa.array([names[row].tolist() for row in rows], pa.list_(pa.string()))
        case _:
            values = values.float().reshape(len(values), -1)
            return pa.array(values[:, 0].numpy()) if values.shape[1] == 1 else _lists(values)


def _lists(values: torch.Tensor) -> pa.Array:
    """(N, C) → N lists of C numbers."""
    flat = pa.array(values.contiguous().float().numpy().ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
