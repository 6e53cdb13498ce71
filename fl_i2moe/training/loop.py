"""
Training under Accelerate: fit a model on a feature cache, keep its best state, evaluate it.

One seed decides weights, data order, noise and dropout. A run that was killed and resumed ends with the very weights
of one that was not.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import get_grad_scaler, set_seed
from datasets import Dataset
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..cache import FeatureCache
from ..cache.batching import create_data_loader, feature_means, mean_of_batches
from ..cache.key import key_digest
from ..cache.masked_copies import CopyDraw
from ..cache.streaming import FeatureStream, StreamedSplit, create_stream_loader
from ..metrics.calibration import log_losses
from ..metrics.tasks import METRICS_BY_PROBLEM, compute_metrics, defined
from ..model.configuration_fl_i2moe import FLI2MoEConfig
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..utils.files import replace_files
from .arguments import UNBINDING, TrainingArguments
from .checkpoints import Checkpoints, TrainerState


@dataclass
class Predictions:
    """What a model predicts for a split, in its order: N samples, E experts, C classes."""

    ids: list[str]
    logits: torch.Tensor  # (N, C)
    expert_logits: torch.Tensor  # (N, E, C)
    expert_weights: torch.Tensor  # (N, E)
    labels: torch.Tensor | None = None  # (N, C) or (N,); of new data none

    def metrics(self, problem_type: str, threshold: float) -> dict[str, float | None]:
        """[`~fl_i2moe.metrics.tasks.compute_metrics`] of the mixture; None where a metric is undefined."""
        return defined(compute_metrics(self.logits, self.labels, problem_type, threshold))

    def log_loss(self) -> float:
        """Of a classification, the mean over samples (and labels), in nats."""
        return float(log_losses(self.logits.double().numpy(), self.labels.numpy()).mean())


@dataclass
class FittedModel:
    """A trained model in the state that is kept, and how it got there."""

    model: FLI2MoEModel
    state: TrainerState


def predict(
    model: torch.nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    label: str = "",
    thinned: FLI2MoEConfig | None = None,
) -> Predictions:
    """
    Runs a model over a prepared loader; every process gets the whole split, without padded duplicates. With the
    model's configuration as `thinned`, samples lose features as in training, see [`draw_thinning`].
    """
    model.eval()
    rows: list[tuple[torch.Tensor, ...]] = []
    bar = tqdm(loader, desc=label, leave=False, disable=not (label and accelerator.is_local_main_process))
    with torch.no_grad():
        for batch in bar:
            inputs = {name: batch[name] for name in ("features", "feature_masks")}
            if thinned:
                inputs["keep"] = draw_thinning(batch["features"], thinned)[0]
            output = model(**inputs)
            values = (output.logits, output.expert_logits, output.expert_weights, batch["labels"])
            rows.append(tuple(x.cpu() for x in accelerator.gather_for_metrics(values)))
    logits, expert_logits, expert_weights, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
    rows_of_split: Any = loader.dataset
    ids = list(rows_of_split.split["id"])
    return Predictions(ids, logits.float(), expert_logits.float(), expert_weights.float(), labels)


def predict_split(
    model: torch.nn.Module,
    split: Dataset,
    modality_order: list[str],
    accelerator: Accelerator,
    batch_size: int,
    label: str = "",
) -> Predictions:
    """[`predict`] of a split of the feature cache; `label` names the progress bar, without one there is none."""
    loader = create_data_loader(split, modality_order, batch_size=batch_size, shuffle=False)
    return predict(model, accelerator.prepare(loader), accelerator, label)


def train(
    config: FLI2MoEConfig,
    cache: FeatureCache,
    arguments: TrainingArguments,
    run_dir: str | Path,
    accelerator: Accelerator,
    *,
    seed: int,
    metric: str,
    resume: bool = False,
    on_epoch: Callable[[torch.nn.Module, Predictions], None] | None = None,
) -> FittedModel:
    """
    Fits a model on the cache's training split. `run_dir` gets `model/`, the state that is kept (the best by the
    validation `metric` or log loss, as `best_epoch_by` says, or the last without `load_best_model_at_end`), and
    `checkpoints/`, from whose newest `resume` goes on. Raises `FloatingPointError` where the loss is not finite, and
    `OSError` where the disk is full, or a streamed training split cannot be read on. `on_epoch` is given the model
    after each epoch, and what it predicts for the validation split; it may draw no random numbers.
    """
    return _Run(config, cache, arguments, Path(run_dir), accelerator, seed, metric, on_epoch).fit(resume)


@dataclass
class _Run:
    config: FLI2MoEConfig
    cache: FeatureCache
    arguments: TrainingArguments
    run_dir: Path
    accelerator: Accelerator
    seed: int
    metric: str
    on_epoch: Callable[[torch.nn.Module, Predictions], None] | None = None

    def __post_init__(self):
        # saving a model writes into its configuration, and a later seed would no longer be the run that it is alone
        self.config = config = deepcopy(self.config)
        arguments, accelerator = self.arguments, self.accelerator
        accelerator.free_memory()  # of an earlier seed, whose state would be saved and loaded along
        if accelerator.scaler is not None:  # of fp16: it adapts to a run, and would bring an earlier seed's scale along
            options = accelerator.scaler_handler.to_kwargs() if accelerator.scaler_handler else {}
            accelerator.scaler = get_grad_scaler(accelerator.distributed_type, **options)
        self.checkpoints = Checkpoints(self.run_dir, arguments.keep_checkpoints, self._digest())

        set_seed(self.seed)
        model = FLI2MoEModel(config)
        if config.keeps_means:
            model.set_feature_means(_train_means(self.cache, config.modality_order, arguments.batch_size))
        average = None
        if arguments.ema_decay:
            average = AveragedModel(model, multi_avg_fn=partial(_average, arguments.ema_decay))
        optimizer = create_optimizer(model, arguments)
        loading: dict[str, Any] = {
            "batch_size": arguments.batch_size,
            "num_workers": arguments.num_workers,
            "pin_memory": accelerator.device.type == "cuda",
        }
        validation_loader = create_data_loader(
            self.cache.splits["validation"], config.modality_order, shuffle=False, **loading
        )
        self.model, self.optimizer, self.validation_loader = accelerator.prepare(model, optimizer, validation_loader)
        self.average = None
        if average is not None:  # for its state to be in the checkpoints
            self.average = accelerator.prepare_model(average, evaluation_mode=True)
        start = arguments.feature_dropout_start if config.feature_dropout else 0
        self.first_thinned_epoch = int(start * arguments.num_epochs)
        if config.feature_dropout and config.level == "feature" and self.cache.masked_copies:
            share = float(config.feature_dropout)
            loading["copies"] = CopyDraw(self.cache.masked_copies, share, self.first_thinned_epoch)
        self.train_loader = self._train_loader(**loading)
        self.steps_per_epoch = math.ceil(len(self.train_loader) / arguments.gradient_accumulation_steps)
        total_steps = self.steps_per_epoch * arguments.num_epochs
        schedule = "constant_with_warmup" if arguments.lr_scheduler == "constant" else arguments.lr_scheduler
        scheduler = get_scheduler(schedule, optimizer, round(arguments.warmup_ratio * total_steps), total_steps)
        self.scheduler = accelerator.prepare(scheduler)
        # noise and dropout differ between processes, weights and data order do not
        set_seed(self.seed, device_specific=True)

    def _digest(self) -> str:
        """Of what decides the result."""
        model = {name: x for name, x in self.config.to_diff_dict().items() if name != "transformers_version"}
        training = {name: x for name, x in asdict(self.arguments).items() if name not in (*UNBINDING, "seeds")}
        processes = [self.accelerator.num_processes, self.accelerator.mixed_precision]
        content = [self.seed, self.metric, key_digest(self.cache.key), model, training, processes]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _train_loader(self, pin_memory: bool, **options: Any) -> DataLoader:
        """Of this process's share of the training split."""
        rows, order = self.cache.splits["train"], self.config.modality_order
        options |= {"seed": self.seed, "bucket": self.arguments.bucket_by_length}
        if isinstance(rows, StreamedSplit):
            return create_stream_loader(rows, order, self.accelerator, **options)
        return self.accelerator.prepare(create_data_loader(rows, order, shuffle=True, pin_memory=pin_memory, **options))

    def fit(self, resume: bool) -> FittedModel:
        state = self.checkpoints.load_latest(self.accelerator) if resume else TrainerState()
        while not state.finished:
            self._train_epoch(state)
            self._finish_epoch(state)
            self.checkpoints.save(self.accelerator, state)
        self.accelerator.wait_for_everyone()
        model = FLI2MoEModel.from_pretrained(self.run_dir / "model")
        return FittedModel(model.to(self.accelerator.device).eval(), state)

    def _train_epoch(self, state: TrainerState) -> None:
        self.model.train()
        # none at first: an interaction is hard to find where part of its evidence is often missing
        thins = self.config.feature_dropout > 0 and state.epoch >= self.first_thinned_epoch
        rise = self.arguments.regulariser_warmup_epochs - 1
        scale = min(1.0, state.epoch / rise) if rise > 0 else 1.0
        self.train_loader.set_epoch(state.epoch)
        loader = self.train_loader
        if state.step_in_epoch:
            loader = skip_first_batches(loader, state.step_in_epoch)
            loader.set_epoch(state.epoch)
        num_batches = len(self.train_loader)
        bar = tqdm(  # over all epochs: it shows the time left
            total=self.arguments.num_epochs * num_batches,
            initial=state.epoch * num_batches + state.step_in_epoch,
            desc=f"seed {self.seed}, epoch {state.epoch + 1}/{self.arguments.num_epochs}",
            disable=not self.accelerator.is_local_main_process,
            leave=False,
        )
        for batches in _grouped(loader, self.arguments.gradient_accumulation_steps):
            losses = self._train_step(batches, state.step_in_epoch, thins, scale)
            state.step_in_epoch += len(batches)
            for name, value in losses.items():
                state.loss_sums[name] = state.loss_sums.get(name, 0.0) + value * len(batches)
            bar.update(len(batches))
            bar.set_postfix(loss=f"{losses['loss']:.3f}")
            state.optimizer_step += 1
            self._log(losses, state)
            if state.optimizer_step % self.arguments.checkpoint_steps == 0:
                self.checkpoints.save(self.accelerator, state)
        bar.close()

    def _train_step(
        self, batches: list[dict[str, Any]], first: int, thins: bool, regulariser_scale: float
    ) -> dict[str, float]:
        """
        One step of the optimizer on the mean loss over all samples of these batches, in all processes, each of which
        counts once; `first` is the number of the first batch in its epoch. Returns the mean losses.
        """
        accelerator = self.accelerator
        own = [self._own_samples(number, batch) for number, batch in enumerate(batches, first)]
        total = accelerator.reduce(torch.tensor(sum(own), device=accelerator.device), "sum").item()
        sums = torch.zeros((), device=accelerator.device)
        for number, (batch, count) in enumerate(zip(batches, own, strict=True)):
            if 0 < count < len(batch["ids"]):
                batch = _first_samples(batch, count)
            keep, is_whole = None, None
            if thins:
                keep, is_whole = draw_thinning(batch["features"], self.config, batch.get("keep"))
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                output = self.model(
                    features=batch["features"],
                    feature_masks=batch["feature_masks"],
                    labels=batch["labels"],
                    keep=keep,
                    is_whole=is_whole,
                    regulariser_scale=regulariser_scale,
                )
                # gradients are averaged over the processes
                share = count * accelerator.num_processes / total
                # Accelerate divides by the steps it was told of, however many batches there are
                accelerator.backward(output.loss * (share * accelerator.gradient_accumulation_steps))
            losses = {"loss": output.loss, **output.losses}
            sums = sums + share * torch.stack([x.detach().float() for x in losses.values()])
        if self.arguments.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model))
        self.scheduler.step()
        self.optimizer.zero_grad()
        values = accelerator.reduce(sums, "mean").tolist()
        if not math.isfinite(values[0]):
            ids = [sample_id for batch in batches for sample_id in batch["ids"]]
            raise FloatingPointError(
                f"The training loss is {values[0]} for the batch with samples {', '.join(ids[:4])} …: "
                "lower --learning_rate, or check the features."
            )
        return dict(zip(losses, values, strict=True))

    def _own_samples(self, number: int, batch: dict[str, Any]) -> int:
        """
        How many samples of this process's batch of that number in the epoch are its own, from the first on: where the
        samples make no whole step for all processes, Accelerate fills it with samples that the epoch has had already.
        """
        rows = self.cache.splits["train"]
        if isinstance(rows, StreamedSplit):  # each process reads shards of its own
            return len(batch["ids"])
        start = (number * self.accelerator.num_processes + self.accelerator.process_index) * self.arguments.batch_size
        return min(max(len(rows) - start, 0), len(batch["ids"]))

    def _finish_epoch(self, state: TrainerState) -> None:
        """Evaluates, keeps the model if it is to be kept, and moves the state to the next epoch."""
        model = self.model if self.average is None else self.average
        predictions = predict(model, self.validation_loader, self.accelerator)
        if self.on_epoch is not None:
            self.on_epoch(model, predictions)
        metrics = predictions.metrics(self.config.problem_type, self.arguments.threshold)
        if self.config.problem_type != "regression":
            metrics["log_loss"] = predictions.log_loss()
        if self._picked_by == "thinned_log_loss":
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)  # every epoch loses the same
                thinned = predict(model, self.validation_loader, self.accelerator, thinned=self.config)
            metrics["thinned_log_loss"] = thinned.log_loss()
        value = metrics[self._picked_by]
        losses = {name: total / state.step_in_epoch for name, total in state.loss_sums.items()}
        state.history.append({"epoch": state.epoch, **losses, **{f"validation_{k}": v for k, v in metrics.items()}})
        self._log({f"validation/{name}": x for name, x in metrics.items() if x is not None}, state)
        # thinning sets in: what was best before does not count
        is_best = state.epoch == self.first_thinned_epoch or self._is_better(value, state.best_value)
        if is_best:
            state.best_value, state.best_epoch = value, state.epoch
        if is_best or not self.arguments.load_best_model_at_end:
            self._save_model()
        if self.accelerator.is_local_main_process:
            tqdm.write(
                f"seed {self.seed}, epoch {state.epoch + 1}: loss {losses['loss']:.4f}, validation "
                + (f"{self.metric} {_shown(metrics[self.metric])}, " if self._picked_by != self.metric else "")
                + f"{self._picked_by} {_shown(value)} (best {_shown(state.best_value)} in epoch {state.best_epoch + 1})"
            )
        patience = self.arguments.early_stopping_patience
        without_gain = state.epoch - max(state.best_epoch, self.first_thinned_epoch)
        state.epoch, state.step_in_epoch, state.loss_sums = state.epoch + 1, 0, {}
        state.finished = state.epoch == self.arguments.num_epochs or (patience is not None and without_gain >= patience)

    def _log(self, values: dict[str, float], state: TrainerState) -> None:
        """To the trackers; seeds follow one another, since some trackers take no step twice."""
        seeds = self.arguments.seeds
        earlier = seeds.index(self.seed) if self.seed in seeds else 0
        step = earlier * self.steps_per_epoch * self.arguments.num_epochs + state.optimizer_step
        self.accelerator.log({f"seed-{self.seed}/{name}": x for name, x in values.items()}, step=step)

    @property
    def _picked_by(self) -> str:
        """
        The validation metric, of those in the history, that tells the best epoch. A log loss is that of inputs as
        training has them: of whole ones it is best before a model knows the thinned ones.
        """
        if self.arguments.best_epoch_by == "metric" or self.config.problem_type == "regression":
            return self.metric
        return "thinned_log_loss" if self.config.feature_dropout else "log_loss"

    def _is_better(self, value: float | None, best: float | None) -> bool:
        if value is None or best is None:
            return best is None
        greater_is_better = METRICS_BY_PROBLEM[self.config.problem_type].get(self._picked_by, False)
        return value > best if greater_is_better else value < best

    def _save_model(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            if self.average is not None:
                model = self.accelerator.unwrap_model(self.average).module
            replace_files(self.run_dir / "model", model.save_pretrained)
        self.accelerator.wait_for_everyone()


def _grouped(loader: Iterable[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    """The batches of an epoch, `size` for each step; fewer for the last one."""
    group: list[dict[str, Any]] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _first_samples(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """Of a nested dictionary of tensors and lists, whose first dimension is the samples'."""
    return {key: _first_samples(x, count) if isinstance(x, dict) else x[:count] for key, x in batch.items()}


def _train_means(cache: FeatureCache, modality_order: list[str], batch_size: int) -> dict[str, torch.Tensor]:
    rows = cache.splits["train"]
    if isinstance(rows, StreamedSplit):  # one more pass over the network
        return mean_of_batches(FeatureStream(rows, modality_order, batch_size=batch_size), modality_order)
    return feature_means(rows, modality_order)


def _average(
    decay: float, averages: list[torch.Tensor], weights: list[torch.Tensor], count: torch.Tensor | int
) -> None:
    r"""
    Brings averages of `count` steps to those with the next, in place: \\(\sum_i d^{n - i} w_i / \sum_i d^{n - i}\\). A
    plain exponential average would be made of the first step for long.
    """
    torch._foreach_lerp_(averages, weights, (1 - decay) / (1 - decay ** (int(count) + 1)))


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def draw_thinning(
    features: dict[str, torch.Tensor], config: FLI2MoEConfig, masked: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    With probability `config.feature_dropout` a modality of a sample loses a share of its features, drawn from U(0, 1),
    so that experts learn no sample by heart and know the inputs that explanations by masking ask about. Masked copies,
    which lost theirs before the encoder, stay as they are.

    Args:
        features: modality → (B, T_m, D_m).
        masked: modality → (B, T_m), what is kept, of modalities with masked copies.

    Returns:
        `keep`, modality → (B, T_m), and `is_whole`, (B, M), as `FLI2MoEModel.forward` takes them. In pooled mode T_m is
        the number of pseudo-patches.
    """
    keep, whole_rows = {}, []
    for name in config.modality_order:
        x = features[name]
        if masked and name in masked:
            keep[name] = masked[name]
            whole_rows.append(masked[name].all(dim=1))
            continue
        length = config.num_patches if config.level == "pooled" else x.shape[1]
        whole = torch.rand(len(x), device=x.device) >= config.feature_dropout
        share = torch.rand(len(x), 1, device=x.device)
        keep[name] = (torch.rand(len(x), length, device=x.device) >= share) | whole.unsqueeze(1)
        whole_rows.append(whole)
    return keep, torch.stack(whole_rows, dim=1)


def create_optimizer(model: torch.nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Adam; or AdamW, whose weight decay spares biases and norms. Both go over the parameters once, in one kernel."""
    if arguments.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=arguments.learning_rate, fused=True)
    by_decay: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        by_decay[name.endswith("weight") and "norm" not in name].append(parameter)
    groups = [{"params": x, "weight_decay": arguments.weight_decay * decays} for decays, x in by_decay.items()]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)
