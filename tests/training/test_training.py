"""The training loop on a small cache of numbers whose truth is known."""

import errno
import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from fake_encoders import FakeTextEncoder, fake_encoders, write_raw
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.metrics import log_loss

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.cache import build_cache
from fl_i2moe.cache.batching import create_data_loader, feature_means
from fl_i2moe.training import loop as training
from fl_i2moe.training.arguments import TrainingArguments
from fl_i2moe.training.checkpoints import Checkpoints, find_damage
from fl_i2moe.training.loop import create_optimizer, predict, train
from fl_i2moe.utils.files import replace_files

SIZES = {"train": 96, "validation": 32, "test": 20}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Label a: the text has more than six words; b: the first pixel is bright; c: a and not b."""
    folder = tmp_path_factory.mktemp("fake")
    raw = write_raw(folder / "raw", SIZES)
    for split, rows in raw.splits.items():
        labels = []
        for row in rows:
            long = len(row["text"].split()) > 6
            with open(row["image"]["path"], "rb") as file:
                bright = file.read()[0] > 127
            labels.append([float(long), float(bright), float(long and not bright)])
        raw.splits[split] = rows.remove_columns("labels").add_column("labels", labels, feature=rows.features["labels"])
    encoders = {**fake_encoders(), "text": FakeTextEncoder(max_length=16, max_features=16)}
    encoders["text"].preprocess = lambda values: FakeTextEncoder.preprocess(values, 16)
    return build_cache(raw, encoders, folder / "cache", num_workers=0, progress=False)


def make_config(cache, **changes):
    values = {
        "modalities": {
            name: {"feature_size": x["feature_size"], "max_features": x["max_features"]}
            for name, x in cache.modalities.items()
        },
        "num_labels": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_fusion_layers": 1,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
        "activation_dropout": 0.1,
        "reweighting_hidden_size": 16,
    }
    return FLI2MoEConfig(**{**values, **changes})


def fit(cache, run_dir, *, config=None, resume=False, seed=0, metric="micro_f1", **options):
    arguments = TrainingArguments(**{"num_epochs": 2, "batch_size": 16, "learning_rate": 1e-2, **options})
    accelerator = Accelerator(
        cpu=True,
        step_scheduler_with_optimizer=False,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )
    return train(
        config or make_config(cache), cache, arguments, run_dir, accelerator, seed=seed, metric=metric, resume=resume
    )


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run with no options, not stopped."""
    return fit(cache, tmp_path_factory.mktemp("whole"))


def tensors(fitted):
    return {name: x.clone() for name, x in fitted.model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_it_learns_and_keeps_the_best_epoch(cache, tmp_path):
    fitted = fit(cache, tmp_path, num_epochs=25)
    values = [entry["validation_micro_f1"] for entry in fitted.state.history]
    assert len(values) == 25
    assert fitted.state.best_value == max(values) > 0.75
    assert fitted.state.best_epoch == int(np.argmax(values))
    loader = create_data_loader(cache.splits["validation"], ["image", "text"], batch_size=7, shuffle=False)
    predictions = predict(fitted.model, loader, Accelerator(cpu=True))
    assert predictions.ids == list(cache.splits["validation"]["id"])
    truth = torch.tensor(np.array(cache.splits["validation"]["labels"]))
    assert torch.equal(predictions.labels, truth)
    hits = ((predictions.logits > 0) & (truth == 1)).sum().item()
    micro_f1 = 2 * hits / ((predictions.logits > 0).sum() + truth.sum()).item()
    assert micro_f1 == pytest.approx(fitted.state.best_value)


def test_the_last_epoch_is_kept_where_the_best_is_not_asked_for(cache, tmp_path, monkeypatch):
    """Against the weights of the last checkpoint, with a validation metric that only falls."""
    for is_best in (True, False):
        values = iter([0.9, 0.5, 0.1])
        monkeypatch.setattr(training, "compute_metrics", lambda *args, values=values: {"micro_f1": next(values)})
        folder = tmp_path / str(is_best)
        fitted = fit(cache, folder, num_epochs=3, learning_rate=1e-2, load_best_model_at_end=is_best)
        assert (fitted.state.best_epoch, fitted.state.best_value) == (0, 0.9)
        newest = max((folder / "checkpoints").iterdir())
        last, kept = load_file(newest / "model.safetensors"), tensors(fitted)
        assert_same(load_file(folder / "model" / "model.safetensors"), kept)
        if is_best:
            assert not all(torch.equal(kept[name], last[name]) for name in kept)
        else:
            assert_same(last, kept)


def test_a_seed_decides_everything(cache, whole, tmp_path):
    again = fit(cache, tmp_path / "again")
    assert_same(tensors(whole), tensors(again))
    assert whole.state.history == again.state.history
    other = fit(cache, tmp_path / "other", seed=1)
    assert whole.state.history != other.state.history


@pytest.mark.parametrize(
    ("feature_dropout", "options"),
    [
        (0.0, {}),
        (
            0.4,
            {
                "feature_dropout_start": 0.5,
                "gradient_accumulation_steps": 2,
                "lr_scheduler": "cosine",
                "warmup_ratio": 0.2,
                "ema_decay": 0.9,
            },
        ),
    ],
)
def test_a_run_stopped_at_any_checkpoint_ends_alike(cache, tmp_path, monkeypatch, feature_dropout, options):
    """Stops right after each checkpoint, in the middle of epochs too, by an exception that nothing catches."""
    options = {"config": make_config(cache, feature_dropout=feature_dropout), **options}
    expected = fit(cache, tmp_path / "whole", num_epochs=3, **options)

    save = Checkpoints.save
    stops = 0

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    while True:
        try:
            resumed = fit(cache, tmp_path / "stopped", num_epochs=3, resume=True, checkpoint_steps=2, **options)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 6
    assert_same(tensors(expected), tensors(resumed))
    assert expected.state.history == resumed.state.history


@pytest.fixture(scope="module")
def stopped(cache, tmp_path_factory):
    """A run of `whole` that was stopped after its fourth checkpoint, in the second epoch; two are kept."""
    folder, save = tmp_path_factory.mktemp("stopped"), Checkpoints.save
    saved = itertools.count(1)

    def save_and_stop(*arguments):
        save(*arguments)
        if next(saved) == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            fit(cache, folder, checkpoint_steps=2)
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def folder_instead(path):
    path.unlink()
    path.mkdir()


def link_instead(path, target):
    path.unlink()
    path.symlink_to(target)


CHECKPOINT_FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "trainer_state.json")
CHECKPOINT_FILES += ("checksums.json", "model/model.safetensors", "model/config.json")


DAMAGES = [
    *((file, flip) for file in CHECKPOINT_FILES if file != "checksums.json"),
    ("random_states_0.pkl", truncate),
    ("random_states_0.pkl", Path.unlink),
    ("model.safetensors", truncate),
    ("checksums.json", Path.unlink),
    ("checksums.json", lambda path: path.write_text("[]")),
    ("checksums.json", lambda path: path.write_text("{}")),
    ("scheduler.bin", folder_instead),
    ("optimizer.bin", partial(link_instead, target="nowhere")),
    ("optimizer.bin", partial(link_instead, target="scheduler.bin")),
    ("custom_checkpoint_0.pkl", lambda path: path.write_bytes(b"surplus")),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_damage_of_a_checkpoint_is_named(stopped, tmp_path, file, damage):
    shutil.copytree(max((stopped / "checkpoints").iterdir()), tmp_path / "newest")
    files = {x.relative_to(tmp_path / "newest").as_posix() for x in (tmp_path / "newest").rglob("*") if x.is_file()}
    assert files >= set(CHECKPOINT_FILES)
    run = json.loads((tmp_path / "newest" / "trainer_state.json").read_text())["run"]
    assert find_damage(tmp_path / "newest", run) is None
    damage(tmp_path / "newest" / file)
    assert file in find_damage(tmp_path / "newest", run)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_checkpoint_is_not_used(cache, whole, stopped, tmp_path, capfd, damage):
    """The one before it is, and the end is the same, bit for bit; random states are what Accelerate does without."""
    shutil.copytree(stopped, tmp_path / "run")
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    damage(newest / "random_states_0.pkl")
    resumed = fit(cache, tmp_path / "run", resume=True, checkpoint_steps=2)
    said = capfd.readouterr().out
    assert f"{newest} is not used: random_states_0.pkl" in said
    assert f"Going on from {older}." in said
    assert_same(tensors(whole), tensors(resumed))
    assert whole.state.history == resumed.state.history


@pytest.mark.parametrize("other", [{"seed": 1}, {"learning_rate": 1e-3}, {"feature_dropout": 0.4}])
def test_a_checkpoint_of_another_seed_or_run_is_not_used(cache, whole, tmp_path, capfd, other):
    """Copied by mistake; each of its files is sound."""
    config = {"config": make_config(cache, feature_dropout=0.4)} if "feature_dropout" in other else other
    fit(cache, tmp_path / "run", num_epochs=2, checkpoint_steps=2, **config)
    resumed = fit(cache, tmp_path / "run", resume=True, checkpoint_steps=2)
    assert "is not used: it is of another seed, or of a run with other settings." in capfd.readouterr().out
    assert_same(tensors(whole), tensors(resumed))


def test_what_others_put_beside_checkpoints_is_none(cache, whole, stopped, tmp_path):
    """It is neither gone on from, nor counted, nor removed. An explanation of the model so far is not in the way."""
    shutil.copytree(stopped, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = max(folder.iterdir())
    shutil.copytree(newest, folder / f"{newest.name}-copy")
    flip(folder / f"{newest.name}-copy" / "model.safetensors")
    (folder / "step-notes.txt").write_text("mine")
    (newest / ".DS_Store").write_text("a system's")
    (tmp_path / "run" / "model" / "explanations").mkdir()
    resumed = fit(cache, tmp_path / "run", resume=True, checkpoint_steps=2, keep_checkpoints=1)
    assert_same(tensors(whole), tensors(resumed))
    left = {path.name for path in folder.iterdir()}
    assert left == {"step-00000012-epoch-0002", f"{newest.name}-copy", "step-notes.txt"}


def test_checkpoints_that_are_not_whole_outlive_no_new_one(cache, stopped, tmp_path):
    """A new start takes fewer steps at first than they have: it must not be the one that goes."""
    shutil.copytree(stopped, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for checkpoint in folder.iterdir():
        (checkpoint / "optimizer.bin").write_bytes(b"")
    save = Checkpoints.save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            fit(cache, tmp_path / "run", resume=True, checkpoint_steps=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000001-epoch-0000"]


def test_without_a_whole_checkpoint_training_starts_anew(cache, whole, stopped, tmp_path, capfd):
    shutil.copytree(stopped, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        (checkpoint / "optimizer.bin").write_bytes(b"")
    resumed = fit(cache, tmp_path / "run", resume=True, checkpoint_steps=2)
    assert "No checkpoint in " in capfd.readouterr().out
    assert_same(tensors(whole), tensors(resumed))


def test_the_kept_model_comes_from_the_checkpoint(cache, stopped, tmp_path):
    """Where nothing after it is better, that of the first epoch is the end; damage beside it does no harm."""
    expected = load_file(stopped / "model" / "model.safetensors")
    shutil.copytree(stopped, tmp_path / "run")
    flip(tmp_path / "run" / "model" / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "compute_metrics", lambda *arguments: {"micro_f1": -1.0})
        resumed = fit(cache, tmp_path / "run", resume=True, checkpoint_steps=2)
    assert resumed.state.best_epoch == 0
    assert_same(expected, tensors(resumed))


def test_a_second_seed_resumes_from_its_own_state(cache, tmp_path, monkeypatch, capsys):
    """One accelerator serves all seeds of a job; the job that resumes may start with a later one."""

    def accelerator():
        return Accelerator(cpu=True, step_scheduler_with_optimizer=False)

    def run(seed, accelerator, folder, config, **options):
        arguments = TrainingArguments(num_epochs=2, batch_size=16, learning_rate=1e-2, seeds=[0, 1])
        folder = tmp_path / folder / str(seed)
        return train(config, cache, arguments, folder, accelerator, seed=seed, metric="micro_f1", **options)

    shared, config = accelerator(), make_config(cache)
    run(0, shared, "whole", config)
    expected = run(1, shared, "whole", config)

    shared, config = accelerator(), make_config(cache)
    run(0, shared, "stopped", config)
    save = Checkpoints.save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(1, shared, "stopped", config)
    resumed = run(1, accelerator(), "stopped", make_config(cache), resume=True)
    assert "Going on from" in capsys.readouterr().out
    assert_same(tensors(expected), tensors(resumed))


@pytest.mark.parametrize("lr_scheduler", ["constant", "linear", "cosine"])
def test_warmup_raises_the_learning_rate(cache, tmp_path, monkeypatch, lr_scheduler):
    rates = []
    step = torch.optim.Adam.step

    def record(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    fit(cache, tmp_path, num_epochs=2, learning_rate=1e-3, warmup_ratio=0.5, lr_scheduler=lr_scheduler)
    assert rates[:6] == pytest.approx([1e-3 * i / 6 for i in range(6)])
    assert rates[6] == pytest.approx(1e-3)


def test_accumulated_batches_equal_one_large_batch(cache, tmp_path):
    """With nothing drawn, two batches of 8 give the step of one batch of 16."""
    config = make_config(
        cache,
        perturbation="zero",
        attention_dropout=0.0,
        residual_dropout=0.0,
        activation_dropout=0.0,
        reweighting_dropout=0.0,
    )
    large = fit(cache, tmp_path / "large", config=config, batch_size=16, learning_rate=1e-3)
    small = fit(
        cache, tmp_path / "small", config=config, batch_size=8, gradient_accumulation_steps=2, learning_rate=1e-3
    )
    assert large.state.optimizer_step == small.state.optimizer_step == 12
    for name, x in tensors(large).items():
        torch.testing.assert_close(tensors(small)[name], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "steps"), [(20, 4), (10, 4), (50, 3), (96, 2), (7, 1)])
def test_each_step_is_the_mean_over_its_samples(cache, tmp_path, monkeypatch, batch_size, steps):
    """The gradients of every step, also of the last, short one, against one backward pass over all its samples."""
    nothing_drawn = {f"{name}_dropout": 0.0 for name in ("attention", "residual", "activation", "reweighting")}
    config = make_config(cache, perturbation="zero", **nothing_drawn)
    seen, adam_step, forward = [], torch.optim.Adam.step, FLI2MoEModel.forward
    group = []

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
    options = {"batch_size": batch_size, "gradient_accumulation_steps": steps, "max_grad_norm": 0.0}
    fit(cache, tmp_path, config=config, num_epochs=1, **options)
    monkeypatch.undo()

    per_step = batch_size * steps
    sizes = [sum(len(inputs["labels"]) for inputs in batches) for _, _, batches in seen]
    assert sizes == [min(per_step, 96 - start) for start in range(0, 96, per_step)]
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


def test_early_stopping_and_rotation(cache, tmp_path):
    fitted = fit(cache, tmp_path, num_epochs=30, learning_rate=1e-12, early_stopping_patience=3, checkpoint_steps=2)
    assert fitted.state.epoch == fitted.state.best_epoch + 1 + 3 < 30
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(folders) == 2
    assert folders[-1] == f"step-{fitted.state.optimizer_step:08d}-epoch-{fitted.state.epoch:04d}"
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert_same(weights, tensors(fitted))


def test_the_average_of_the_weights_is_kept_and_evaluated(cache, tmp_path, monkeypatch):
    """Against a plain loop over the weights after each step, and the metric of the kept model."""
    steps, step = [], training._Run._train_step

    def record(run, *args):
        losses = step(run, *args)
        steps.append({name: x.detach().clone() for name, x in run.model.named_parameters()})
        return losses

    monkeypatch.setattr(training._Run, "_train_step", record)
    fitted = fit(cache, tmp_path / "average", ema_decay=0.7, load_best_model_at_end=False)
    shares = [0.7**age for age in reversed(range(len(steps)))]  # each step counts 0.7 times as much as the next
    expected = {
        name: sum(share * weights[name] for share, weights in zip(shares, steps, strict=True)) / sum(shares)
        for name in steps[0]
    }
    for name, x in fitted.model.named_parameters():
        torch.testing.assert_close(x, expected[name], atol=1e-6, rtol=1e-5)
    loader = create_data_loader(cache.splits["validation"], ["image", "text"], batch_size=32, shuffle=False)
    metrics = predict(fitted.model, loader, Accelerator(cpu=True)).metrics("multi_label_classification", 0.5)
    assert metrics == pytest.approx({k: fitted.state.history[-1][f"validation_{k}"] for k in metrics})
    plain, count = fit(cache, tmp_path / "plain", load_best_model_at_end=False), len(steps) // 2
    assert_same(steps[-1], dict(plain.model.named_parameters()))
    for first, second in zip(steps[:count], steps[count:], strict=True):  # it is no part of what is trained
        assert_same(first, second)


def test_the_log_loss_can_tell_the_best_epoch(cache, tmp_path):
    """Against scikit-learn's log loss of what is kept, where the model grows too sure of itself."""
    fitted = fit(cache, tmp_path, num_epochs=25, learning_rate=3e-2, best_epoch_by="log_loss")
    values = [entry["validation_log_loss"] for entry in fitted.state.history]
    assert fitted.state.best_value == min(values) < values[-1]
    assert fitted.state.best_epoch == int(np.argmin(values)) < 24
    loader = create_data_loader(cache.splits["validation"], ["image", "text"], batch_size=32, shuffle=False)
    predictions = predict(fitted.model, loader, Accelerator(cpu=True))
    probabilities, truth = predictions.logits.double().sigmoid().numpy(), predictions.labels.numpy()
    of_labels = [log_loss(truth[:, c], probabilities[:, c], labels=[0, 1]) for c in range(truth.shape[1])]
    assert np.mean(of_labels) == pytest.approx(fitted.state.best_value, rel=1e-5)


def test_the_best_epoch_by_log_loss_knows_thinned_inputs(cache, tmp_path):
    """The kept model's loss of inputs that are thinned by hand, alike in every epoch; training knows nothing of it."""
    options = {"config": make_config(cache, feature_dropout=0.5), "num_epochs": 6, "feature_dropout_start": 0.4}
    fitted = fit(cache, tmp_path / "log_loss", best_epoch_by="log_loss", **options)
    values = [entry["validation_thinned_log_loss"] for entry in fitted.state.history]
    assert fitted.state.best_value == min(values[2:])
    assert fitted.state.best_epoch == 2 + int(np.argmin(values[2:]))
    torch.manual_seed(0)
    losses = []
    for batch in create_data_loader(cache.splits["validation"], ["image", "text"], batch_size=16, shuffle=False):
        keep = {}
        for name, x in batch["features"].items():
            whole, share = torch.rand(len(x)) >= 0.5, torch.rand(len(x), 1)
            kept = (torch.rand(x.shape[:2]) >= share) | whole.unsqueeze(1)
            keep[name] = kept
        with torch.no_grad():
            output = fitted.model(batch["features"], batch["feature_masks"], keep=keep)
        losses.append(F.binary_cross_entropy_with_logits(output.logits, batch["labels"].float(), reduction="none"))
    assert float(torch.cat(losses).mean()) == pytest.approx(fitted.state.best_value, rel=1e-4)
    other = fit(cache, tmp_path / "metric", load_best_model_at_end=False, **options)
    assert [x["validation_micro_f1"] for x in other.state.history] == [
        x["validation_micro_f1"] for x in fitted.state.history
    ]


def test_thinning_sets_in_late_and_the_best_epoch_is_behind(cache, tmp_path, monkeypatch):
    thinned, values = [], iter([0.9, 0.8, 0.3, 0.5, 0.4, 0.2])
    original = FLI2MoEModel.forward

    def forward(self, *args, **kwargs):
        if self.training:
            thinned.append(kwargs["keep"] is not None)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FLI2MoEModel, "forward", forward)
    monkeypatch.setattr(training, "compute_metrics", lambda *args: {"micro_f1": next(values)})
    config = make_config(cache, feature_dropout=0.4)
    fitted = fit(cache, tmp_path, config=config, num_epochs=6, feature_dropout_start=0.4, early_stopping_patience=2)
    steps = 96 // 16
    assert thinned == [False] * 2 * steps + [True] * 4 * steps
    assert (fitted.state.best_epoch, fitted.state.best_value) == (3, 0.5)


def test_the_weight_of_a_regulariser_rises(cache, whole, tmp_path):
    """From 0 in the first epoch, which is one without a regulariser, to all of it in the last of the warm-up."""
    config = make_config(cache, regulariser="rep_cka", regulariser_weight=0.5)
    history = fit(cache, tmp_path, config=config, num_epochs=3, regulariser_warmup_epochs=3).state.history
    first, plain = history[0], whole.state.history[0]
    assert {name: x for name, x in first.items() if name != "regulariser_loss"} == plain
    for entry, scale in zip(history, (0, 0.5, 1), strict=True):
        interaction = [x for name, x in entry.items() if name.startswith("interaction_loss/")]
        expected = entry["task_loss"] + 0.5 * np.mean(interaction) + 0.5 * scale * entry["regulariser_loss"]
        assert entry["loss"] == pytest.approx(expected, abs=1e-5)


def test_lower_is_better_for_errors(cache, tmp_path):
    config = make_config(cache, problem_type="regression")
    fitted = fit(cache, tmp_path, config=config, metric="mae", num_epochs=4)
    values = [entry["validation_mae"] for entry in fitted.state.history]
    assert fitted.state.best_value == min(values)


def test_mean_perturbation_gets_the_training_means(cache, tmp_path):
    rows = cache.splits["train"]
    means = feature_means(rows, ["image", "text"])
    for name, mean in means.items():
        expected = np.concatenate([np.asarray(x, np.float64) for x in rows[f"{name}_features"]]).mean(0)
        np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-4)
    fitted = fit(cache, tmp_path, config=make_config(cache, perturbation="mean"), num_epochs=1)
    torch.testing.assert_close(fitted.model.stems[0].feature_mean, means["image"].float())


def test_a_loss_that_is_not_finite_stops_with_the_samples(cache, tmp_path, monkeypatch):
    forward = FLI2MoEModel.forward

    def spoiled(self, **inputs):
        output = forward(self, **inputs)
        output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(FLI2MoEModel, "forward", spoiled)
    with pytest.raises(FloatingPointError, match=r"train-\d+"):
        fit(cache, tmp_path)


# a full disk, as Python, safetensors and torch.save tell it
NO_SPACE = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1408 vs 1300"),
]


@pytest.mark.parametrize("error", NO_SPACE)
def test_a_full_disk_loses_no_checkpoint(cache, whole, tmp_path, monkeypatch, error):
    save_state = Accelerator.save_state

    def full(self, folder):
        save_state(self, folder)
        if "epoch-0002" in folder:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        with pytest.raises(OSError, match=r"disk is full.*step-00000012-epoch-0002.*--resume") as caught:
            fit(cache, tmp_path / "full")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "full" / "checkpoints")
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-00000006-epoch-0001"]
    resumed = fit(cache, tmp_path / "full", resume=True)
    assert_same(tensors(whole), tensors(resumed))
    assert whole.state.history == resumed.state.history


@pytest.mark.parametrize("error", NO_SPACE)
def test_a_full_disk_keeps_the_best_model_so_far(tmp_path, error):
    def write(content, error, folder):
        (folder / "model").write_text(content)
        if error:
            raise error

    replace_files(tmp_path / "best", partial(write, "first", None))
    with pytest.raises(OSError, match=r"disk is full.*kept.*--resume.*best"):
        replace_files(tmp_path / "best", partial(write, "second", error))
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["model"]
    assert (tmp_path / "best" / "model").read_text() == "first"
    with pytest.raises(RuntimeError, match="another"):
        replace_files(tmp_path / "best", partial(write, "third", RuntimeError("another")))


def test_every_seed_starts_with_a_fresh_loss_scale(cache, tmp_path, monkeypatch):
    """The scaler of fp16, on the CPU: an accelerator that has trained a seed already, against a new one."""

    def scaler(*arguments, **options):
        return torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=4)

    def run(seeds, folder):
        accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
        accelerator.scaler = scaler()
        arguments = TrainingArguments(num_epochs=1, batch_size=16, learning_rate=1e-2)
        for seed in seeds:
            train(make_config(cache), cache, arguments, folder / str(seed), accelerator, seed=seed, metric="micro_f1")
        return accelerator.scaler.state_dict()

    monkeypatch.setattr(training, "get_grad_scaler", scaler)
    alone, after_another = run([1], tmp_path / "alone"), run([0, 1], tmp_path / "both")
    assert alone == after_another
    assert alone["scale"] == 8.0  # grown once in six steps
    saved = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*/1/checkpoints/*/scaler.pt"))]
    assert saved == [alone, alone]


def test_accumulated_gradients_are_clipped_once_a_step(cache, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def record(self, *arguments, **options):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]]).item())
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    options = {"num_epochs": 1, "batch_size": 8, "gradient_accumulation_steps": 2}
    fit(cache, tmp_path / "free", max_grad_norm=0.0, **options)
    fit(cache, tmp_path / "clipped", max_grad_norm=0.1, **options)
    free, clipped = norms[:6], norms[6:]
    assert len(free) == len(clipped) == 6
    assert min(free) > 0.1
    assert clipped == pytest.approx([0.1] * 6, rel=1e-3)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimizer_takes_the_textbook_step(name):
    arguments = TrainingArguments(optimizer=name, learning_rate=0.01, weight_decay=0.1 if name == "adamw" else 0.0)
    layer = torch.nn.Linear(3, 2)
    optimizer = create_optimizer(layer, arguments)
    expected = {key: x.detach().clone() for key, x in layer.named_parameters()}
    first, second = (dict.fromkeys(expected, 0.0) for _ in range(2))
    for step in (1, 2, 3):
        for key, x in layer.named_parameters():
            x.grad = torch.randn_like(x)
            first[key] = 0.9 * first[key] + 0.1 * x.grad
            second[key] = 0.999 * second[key] + 0.001 * x.grad**2
            mean, square = first[key] / (1 - 0.9**step), second[key] / (1 - 0.999**step)
            decay = 0.1 if name == "adamw" and key == "weight" else 0.0
            expected[key] = expected[key] * (1 - 0.01 * decay) - 0.01 * mean / (square.sqrt() + 1e-8)
        optimizer.step()
    for key, x in layer.named_parameters():
        torch.testing.assert_close(x.detach(), expected[key])
