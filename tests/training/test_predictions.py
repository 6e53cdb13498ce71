"""Tables of predictions: their columns, their sums, and what they are of new data."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import make_config

from fl_i2moe.training.loop import Predictions
from fl_i2moe.training.predictions import prediction_table, write_predictions

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def told(config, labels=None, num_samples=7):
    torch.manual_seed(0)
    weights = torch.rand(num_samples, config.num_experts).softmax(-1)
    expert_logits = torch.randn(num_samples, config.num_experts, config.num_labels)
    logits = (weights[:, :, None] * expert_logits).sum(1)
    return Predictions([f"sample {i}" for i in range(num_samples)], logits, expert_logits, weights, labels)


def test_columns_and_sums(tmp_path):
    config = make_config(problem_type=MULTI, temperature=2.0, thresholds=[0.3, 0.5, 0.7])
    x = told(config, (torch.arange(21).reshape(7, 3) % 2).float())
    path = tmp_path / "new" / "predictions.parquet"
    write_predictions(path, [prediction_table(x, config, "train"), prediction_table(x, config, "test")])
    table = pq.read_table(path)
    labels, experts = config.label_names, config.expert_names
    assert table.column_names == [
        *("id", "split", "label", "predicted"),
        *(f"probability_{name}" for name in labels),
        *(f"weight_{name}" for name in experts),
        *(f"contribution_{name}" for name in experts),
        "most_important_expert",
    ]
    assert table["split"].to_pylist() == ["train"] * 7 + ["test"] * 7
    assert table["label"].to_pylist()[:2] == [["LABEL_1"], ["LABEL_0", "LABEL_2"]]
    summed = np.sum([np.array(table[f"contribution_{name}"].to_pylist()) for name in experts], axis=0)
    probabilities = np.stack([table[f"probability_{name}"].to_numpy() for name in labels], axis=1)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-summed / 2)), rtol=1e-5)
    for row, found in zip(probabilities, table["predicted"].to_pylist(), strict=True):
        assert found == [name for name, p, cut in zip(labels, row, config.thresholds, strict=True) if p > cut]
    # without thresholds and temperature: those of models of earlier versions
    table = prediction_table(x, make_config(problem_type=MULTI))
    assert table["probability_LABEL_1"].to_numpy() == pytest.approx(x.logits[:, 1].sigmoid().numpy())
    assert table["predicted"].to_pylist()[0] == [labels[c] for c in range(3) if x.logits[0, c] > 0]


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_new_data_have_no_label(problem_type):
    config = make_config(problem_type=problem_type)
    x = told(config)
    table = prediction_table(x, config)
    assert not {"label", "split"} & set(table.column_names)
    if problem_type == SINGLE:
        assert table["predicted"].to_pylist() == [f"LABEL_{c}" for c in x.logits.argmax(1)]
    if problem_type == REGRESSION:
        assert np.array(table["predicted"].to_pylist()) == pytest.approx(x.logits.numpy())


def test_dense_models_and_no_samples():
    config = make_config(problem_type=REGRESSION, num_labels=1, architecture="dense")
    table = prediction_table(told(config, torch.ones(7)), config, "test")
    assert table.column_names == [
        "id",
        "split",
        "label",
        "predicted",
        "weight_dense",
        "contribution_dense",
        "most_important_expert",
    ]
    assert table["label"].to_pylist() == [1.0] * 7
    assert prediction_table(told(make_config(), num_samples=0), make_config()).num_rows == 0


def test_predictions_of_another_model_are_refused():
    x = told(make_config())
    with pytest.raises(ValueError, match=r"7 samples, 5 experts and 3 labels need .* \(7, 5, 3\), got \(7, 4, 3\)"):
        prediction_table(x, make_config(3))
    x.ids = x.ids[:3]
    with pytest.raises(ValueError, match=r"3 samples, .* got \(7, 4, 3\)"):
        prediction_table(x, make_config())


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_the_most_important_expert_adds_most_to_what_is_predicted(problem_type):
    config = make_config(problem_type=problem_type)
    labels, experts = config.label_names, config.expert_names
    x = told(config, None)
    for row in prediction_table(x, config).to_pylist():
        adds = {}
        for name in experts:
            by_label = dict(zip(labels, row[f"contribution_{name}"], strict=True))
            if problem_type == SINGLE:
                adds[name] = by_label[row["predicted"]] - sum(by_label.values()) / len(labels)
            elif problem_type == MULTI:
                adds[name] = sum(by_label[x] for x in row["predicted"]) if row["predicted"] else -sum(by_label.values())
            else:
                adds[name] = sum(abs(value) for value in by_label.values())
        assert row["most_important_expert"] == max(adds, key=adds.get)
