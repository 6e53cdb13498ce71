"""Class weights and label smoothing: against torch and scikit-learn, through the training loop, and what is refused."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, Value
from fake_encoders import fake_encoders, write_raw
from sklearn.utils.class_weight import compute_class_weight
from tiny_models import make_config, make_model
from torch.nn import functional as F

from fl_i2moe import FLI2MoEModel
from fl_i2moe.cache import build_cache
from fl_i2moe.cache.streaming import StreamedSplit
from fl_i2moe.data.raw import RawDataset
from fl_i2moe.model.objective import task_loss
from fl_i2moe.training.arguments import EncodingArguments, Job, ModelArguments, OutputArguments, TrainingArguments
from fl_i2moe.training.features import balanced_weights, model_config
from fl_i2moe.training.loop import train
from fl_i2moe.utils.run_folder import JobFiles, begin_run_folder

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def labels_of(problem_type, num_samples=19, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if problem_type == SINGLE:
        return torch.randint(3, (num_samples,), generator=generator)
    return (torch.rand((num_samples, 3), generator=generator) < 0.3).float()


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.5]])
def test_the_loss_of_every_sample_by_hand(problem_type, smoothing, weights):
    """A plain mean over the samples, whose losses are written out."""
    config = make_config(problem_type=problem_type, class_weights=weights, label_smoothing=smoothing)
    labels, logits = labels_of(problem_type), torch.randn(19, 3)
    w = weights or [1.0, 1.0, 1.0]
    losses = []
    for z, y in zip(logits.double(), labels, strict=True):
        if problem_type == SINGLE:
            targets = [smoothing / 3 + (1 - smoothing) * (c == y) for c in range(3)]
            losses.append(-sum(w[c] * targets[c] * z.log_softmax(0)[c] for c in range(3)))
        else:
            targets = [(1 - smoothing) * y[c] + smoothing / 2 for c in range(3)]
            p = z.sigmoid()
            parts = [w[c] * targets[c] * p[c].log() + (1 - targets[c]) * (1 - p[c]).log() for c in range(3)]
            losses.append(-sum(parts) / 3)
    assert task_loss(logits, labels, config).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_without_options_the_loss_is_as_it_was_bit_for_bit():
    """Seeded loss curves of earlier versions hang on it."""
    for problem_type, loss in ((SINGLE, F.cross_entropy), (MULTI, F.binary_cross_entropy_with_logits)):
        labels, logits = labels_of(problem_type), torch.randn(19, 3, requires_grad=True)
        found, expected = task_loss(logits, labels, make_config(problem_type=problem_type)), loss(logits, labels)
        assert torch.equal(found, expected)
        assert torch.equal(*(torch.autograd.grad(x, logits)[0] for x in (found, expected)))


@pytest.mark.parametrize("objective", ["published", "specialised"])
def test_every_task_loss_of_an_objective_has_the_weights(objective):
    """With weights of 3 for all classes, three times the loss; of the terms, those that are task losses."""
    features = {"text": torch.randn(5, 7, 6), "image": torch.randn(5, 5, 10)}
    found = []
    for weights in (None, [3.0, 3.0, 3.0]):
        config = make_config(problem_type=SINGLE, class_weights=weights, objective=objective, perturbation="random")
        model = make_model(config).train()
        torch.manual_seed(1)
        found.append(model(features=features, labels=torch.tensor([0, 1, 2, 0, 0])).losses)
    plain, weighted = found
    assert weighted["task_loss"].item() == pytest.approx(3 * plain["task_loss"].item(), rel=1e-5)
    if objective == "specialised":
        for expert in ("uniqueness_text", "synergy"):
            name = f"fitted_loss/{expert}"
            assert weighted[name].item() == pytest.approx(3 * plain[name].item(), rel=1e-5)


def make_raw(folder, labels=None, label_names=("a", "b", "c"), problem_type=SINGLE, sizes=None):
    """Texts and pictures with these training labels; the other splits have the first ones of them."""
    sizes = sizes or {"train": 26, "validation": 8, "test": 8}
    raw = write_raw(folder / "raw", sizes)
    if labels is None:
        return raw
    splits = DatasetDict()
    for split, rows in raw.splits.items():
        features = Features({**rows.features, "labels": Value("int64")})
        column = labels[: len(rows)]
        splits[split] = rows.remove_columns("labels").add_column("labels", column, feature=features["labels"])
    return RawDataset(splits, raw.modalities, list(label_names), problem_type)


def job(**training):
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_fusion_layers": 1, "reweighting_hidden_size": 8}
    arguments = TrainingArguments(num_epochs=1, num_threads=1, **training)
    return Job(EncodingArguments(), ModelArguments(**small, dropout=0), arguments, OutputArguments("unused"))


def test_weights_are_scikit_learns(tmp_path):
    labels = [0] * 17 + [1] * 6 + [2] * 3
    raw = make_raw(tmp_path, labels)
    found = balanced_weights(raw)
    assert found == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert np.mean([found[y] for y in labels]) == pytest.approx(1)
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", num_workers=0, progress=False)
    assert balanced_weights(cache) == found
    assert model_config(job(class_weights="balanced"), cache).class_weights == found
    assert model_config(job(), cache).class_weights is None

    multi = make_raw(tmp_path)
    y = np.array(multi.splits["train"]["labels"])
    assert balanced_weights(multi) == pytest.approx([(y[:, c] == 0).sum() / (y[:, c] == 1).sum() for c in range(3)])


def test_labels_of_a_streamed_split(tmp_path):
    cache = build_cache(
        make_raw(tmp_path), fake_encoders(), tmp_path / "cache", num_workers=0, progress=False, shard_size=10
    )
    streamed = StreamedSplit("train", str(cache.path / "train" / "data-*.arrow"), (10, 10, 6), cache.modalities)
    expected = balanced_weights(cache)
    cache.splits["train"] = streamed
    assert balanced_weights(cache) == expected


def test_a_step_is_one_backward_pass_over_its_samples(tmp_path, monkeypatch):
    """Also of a short last batch, and where batches hold different classes: 26 samples, most of them of class 0."""
    batch_size, steps = 7, 3
    raw = make_raw(tmp_path, ([0, 0, 0, 1, 0, 2, 0] * 4)[:26])
    cache = build_cache(raw, fake_encoders(), tmp_path / "cache", num_workers=0, progress=False)
    own = job(class_weights="balanced", batch_size=batch_size, gradient_accumulation_steps=steps, max_grad_norm=0.0)
    own.model.reweighting_dropout, own.model.perturbation, own.model.label_smoothing = 0.0, "zero", 0.1
    config = model_config(own, cache)
    seen, group, adam_step, forward = [], [], torch.optim.Adam.step, FLI2MoEModel.forward

    def record_batch(self, **inputs):
        if self.training:
            group.append(inputs)
        return forward(self, **inputs)

    def record_step(self, *arguments, **options):
        parameters = [p for part in self.param_groups for p in part["params"]]
        seen.append(([p.detach().clone() for p in parameters], [p.grad.clone() for p in parameters], list(group)))
        group.clear()
        return adam_step(self, *arguments, **options)

    monkeypatch.setattr(FLI2MoEModel, "forward", record_batch)
    monkeypatch.setattr(torch.optim.Adam, "step", record_step)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False, gradient_accumulation_steps=steps)
    train(config, cache, own.training, tmp_path / "run", accelerator, seed=0, metric="accuracy")
    monkeypatch.undo()
    assert [[len(x["labels"]) for x in batches] for *_, batches in seen][-1][-1] != batch_size

    model = FLI2MoEModel(config).train()
    for weights, gradients, batches in seen:
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight
        model.zero_grad()
        losses = [
            model(
                features={k: x[i : i + 1] for k, x in inputs["features"].items()},
                feature_masks={k: x[i : i + 1] for k, x in inputs["feature_masks"].items()},
                labels=inputs["labels"][i : i + 1],
            ).loss
            for inputs in batches
            for i in range(len(inputs["labels"]))
        ]
        torch.stack(losses).mean().backward()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


def test_what_makes_no_sense_is_refused(tmp_path):
    balanced = job(class_weights="balanced")
    sizes = {name: {"feature_size": 3, "max_features": 4} for name in ("image", "text")}
    raw = make_raw(tmp_path, [0] * 20 + [1] * 6)
    with pytest.raises(
        ValueError, match=r"`class_weights` balanced needs .* each of the 3 classes, but .* with c: take"
    ):
        model_config(balanced, raw, sizes)
    y = [[i % 2, 1.0, 1.0] for i in range(26)]
    rows = Dataset.from_dict({"id": [str(i) for i in range(26)], "image": y, "text": y, "labels": y})
    always = RawDataset(DatasetDict(train=rows), raw.modalities, ["a", "b", "c"], MULTI)
    with pytest.raises(ValueError, match=r"none without b, c: take"):
        model_config(balanced, always, sizes)
    reals = RawDataset(DatasetDict(train=rows), raw.modalities, ["a", "b", "c"], REGRESSION)
    with pytest.raises(ValueError, match=r"`class_weights` balanced is for classes and labels; a regression has none"):
        model_config(balanced, reals, sizes)
    smoothed = job()
    smoothed.model.label_smoothing = 0.1
    with pytest.raises(ValueError, match=r"`label_smoothing` is for classification, this is regression"):
        model_config(smoothed, reals, sizes)


def test_a_run_of_an_earlier_version_goes_on_without_the_new_options(tmp_path):
    """Its settings do not name them; one that is given now is another run."""
    own, files = job(), JobFiles("training", ("seed-*",))
    old = {name: value for name, value in own.settings().items() if name not in ("class_weights", "label_smoothing")}
    begin_run_folder(tmp_path, old, files, resume=False, overwrite=False)
    resumed = {"resume": True, "overwrite": False, "defaults": own.defaults}
    begin_run_folder(tmp_path, own.settings(), files, **resumed)
    with pytest.raises(ValueError, match="class_weights: 'none' then, 'balanced' now"):
        begin_run_folder(tmp_path, job(class_weights="balanced").settings(), files, **resumed)
