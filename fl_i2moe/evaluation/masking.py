"""
Faithfulness: what the metric loses when what an explanation names is masked (FL-I²MoE, section 4.2): features, behind
the encoders, of a whole split in batches; or units of single samples, which are encoded anew.

Shapes: B samples · T_m features of modality m · C classes · K shares of features · R draws.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..explain.attribution import (
    METHODS,
    MIXTURE,
    Importance,
    attribute,
    attribute_classes,
    evaluating,
    scores_by_expert,
    top_features,
)
from ..explain.input_attribution import INPUT_METHODS
from ..explain.inputs import Inputs
from ..explain.subject import Subject
from ..metrics.summaries import area_under, drop, plain, spread
from ..metrics.tasks import METRICS_BY_PROBLEM, compute_metrics, defined
from ..model.configuration_fl_i2moe import FLI2MoEConfig, check_choice, check_options, option
from ..model.modeling_fl_i2moe import FLI2MoEModel
from .erasure import erasure

SHARES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)
DIRECTIONS: tuple[Literal["deletion", "insertion"], ...] = ("deletion", "insertion")
TARGETS = ("true", "predicted")


@torch.no_grad()
def masked_logits(model: FLI2MoEModel, inputs: Inputs, keep: dict[str, Tensor]) -> Tensor:
    """The mixture's logits (B, C), weighted anew, with features zeroed where `keep`, modality → (B, T_m), is false;
    modalities that are not named are kept whole."""
    with evaluating(model):
        return model.run_mixture(inputs.projected, inputs.feature_masks, keep).logits


def target_classes(
    logits: Tensor, labels: Tensor, problem_type: str, target: Literal["true", "predicted"] = "true"
) -> Tensor:
    """
    The classes of each sample that an explanation is about: the mixture's logits (B, C) and labels → boolean (B, C).

    `"true"`: the true class, or each true label; the class with the highest logit if a sample has no true label.
    `"predicted"`: the class with the highest logit. In regression every output counts.
    """
    check_choice("target", target, TARGETS)
    if problem_type == "regression":
        return torch.ones_like(logits, dtype=torch.bool)
    highest = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    if target == "predicted":
        return highest
    labels = labels.to(logits.device)
    if problem_type == "single_label_classification":
        return torch.nn.functional.one_hot(labels.long(), logits.shape[1]).bool()
    return torch.where((labels > 0.5).any(dim=1, keepdim=True), labels > 0.5, highest)


@dataclass(frozen=True)
class Maskings:
    """What is masked, by whose importance, and how often at random."""

    methods: Sequence[str] = METHODS
    """See `attribute`; of units of the input `attribute_input`."""

    shares: Sequence[float] = SHARES
    """Of each modality's candidates, increasing, in (0, 1]."""

    directions: Sequence[str] = DIRECTIONS
    """`"deletion"` masks the top share, `"insertion"` all but the top share. Special features always stay."""

    num_random: int = option(5, "Draws of the random baseline.", at_least=1)
    seed: int = option(0, "Of the random baseline.")
    target: Literal["true", "predicted"] = option(
        "true", "The classes that importance is for, see `target_classes`.", choices=TARGETS
    )
    of: Literal["expert", "mixture"] = option("expert", "As for `attribute`.")
    num_steps: int = option(32, "As for `attribute`.")

    def __post_init__(self):
        check_options(self)
        shares = self.shares
        if not shares or not all(a < b for a, b in zip([0, *shares], [*shares, 2], strict=True)) or shares[-1] > 1:
            raise ValueError(f"`shares` must increase within (0, 1], got {list(shares)}.")
        for name, choices in (("methods", dict.fromkeys((*METHODS, *INPUT_METHODS))), ("directions", DIRECTIONS)):
            if unknown := set(getattr(self, name)) - set(choices):
                raise ValueError(f"Unknown `{name}` {sorted(unknown)}; there are {', '.join(choices)}.")


def faithfulness(
    model: FLI2MoEModel,
    loader: Iterable[dict[str, Any]],
    *,
    accelerator: Accelerator | None = None,
    progress: bool = False,
    **maskings: Any,
) -> dict[str, Any]:
    """
    Masks what each method finds most important and measures the model's metrics (ΔM(K), section 4.2).

    Args:
        loader: batches as `FeatureRows` gives them, in any order; only their logits are kept in memory.
        accelerator: with a prepared `loader`, splits the samples over processes; every process gets the whole result.
        maskings: the fields of [`Maskings`].

    Returns:
        As [`faithfulness_of`].

    Raises:
        ValueError: maskings that select nothing or are unknown; no sample; and as `Inputs.from_batch`.
    """
    how = Maskings(**maskings)
    parts: list[dict[str, Tensor]] = []
    for batch in tqdm(loader, desc="Masking", unit="batch", disable=not progress, leave=False):
        part = faithfulness_logits(model, batch, how)
        part["labels"] = batch["labels"]
        if accelerator is not None:
            part = accelerator.gather_for_metrics({key: x.to(accelerator.device) for key, x in part.items()})
        parts.append({key: x.cpu() for key, x in part.items()})
    if not parts:
        raise ValueError("There is no sample to measure faithfulness on.")
    logits = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return faithfulness_of(logits, logits.pop("labels"), model.config, how)


def faithfulness_of(logits: dict[str, Tensor], labels: Tensor, config: FLI2MoEConfig, how: Maskings) -> dict[str, Any]:
    """
    From the logits of [`faithfulness_logits`] or [`subject_logits`] for all samples together.

    Returns:
        As [`summarise`] and [`~fl_i2moe.evaluation.erasure.erasure`], and `methods`, `num_random`, `seed`, `target`,
        `experts`.
    """
    classes = target_classes(logits["base"], labels, config.problem_type, how.target)
    return {
        "methods": list(how.methods),
        "experts": list(config.expert_names),
        "num_random": how.num_random,
        "seed": how.seed,
        "target": how.target,
        **summarise(logits, labels, config.problem_type, how.shares),
        **erasure(logits, classes, config, how.shares, seed=how.seed),
    }


def summarise(logits: dict[str, Tensor], labels: Tensor, problem_type: str, shares: Sequence[float]) -> dict[str, Any]:
    """
    Metrics under masking, from the logits of a whole split; errors as of `compute_metrics`.

    Args:
        logits: as [`faithfulness_logits`] gives them, all samples together, under the same `shares`.
        labels, problem_type: as in `compute_metrics`.

    Returns:
        JSON, with None for what is undefined:

        - `num_samples`, `problem_type`, `shares`
        - `base`, `emptied`: metric → value
        - `deletion`, `insertion`: method → expert → metric → {`values`, `drops`, `mean_drop`, `auc`}, means over the
          draws, and the same with `_std` behind it, their standard deviation (None of a single draw). `values` and
          `drops` are lists over the shares. A drop is `M_base − M_masked`, or `M_masked − M_base` for an error: greater
          is always worse. `mean_drop` is the mean over the shares, `auc` the area under the metric over the shares
          (trapezoids), which start at 0: with `base` for deletion, `emptied` for insertion.
    """
    measure = partial(compute_metrics, labels=labels, problem_type=problem_type)
    base, emptied = measure(logits["base"]), measure(logits["emptied"])
    result: dict[str, Any] = {
        "num_samples": len(labels),
        "problem_type": problem_type,
        "shares": [float(share) for share in shares],
        "base": defined(base),
        "emptied": defined(emptied),
    }
    for key, masked in logits.items():
        if "/" not in key:
            continue
        direction, method, expert = key.split("/", 2)
        measured = [[measure(at_share) for at_share in draw.unbind(1)] for draw in masked.unbind(1)]
        start = base if direction == "deletion" else emptied
        curves = result.setdefault(direction, {}).setdefault(method, {}).setdefault(expert, {})
        for metric, greater_is_better in METRICS_BY_PROBLEM[problem_type].items():
            values = np.array([[at_share[metric] for at_share in draw] for draw in measured])  # (R, K)
            drops = drop(base[metric], values, greater_is_better)
            starts = np.full((len(values), 1), start[metric])
            statistics = {
                "values": values,
                "drops": drops,
                "mean_drop": drops.mean(axis=1),
                "auc": area_under(np.concatenate([starts, values], axis=1), [0, *shares]),
            }
            curves[metric] = {}
            for name, x in statistics.items():
                curves[metric] |= {name: plain(x.mean(axis=0)), f"{name}_std": plain(spread(x))}
    return result


@torch.no_grad()
def faithfulness_logits(model: FLI2MoEModel, batch: dict[str, Any], how: Maskings) -> dict[str, Tensor]:
    """
    The mixture's logits of a batch, as `FeatureRows` gives it, under every masking; errors as of `Inputs.from_batch`.

    A sample's importance for several classes is the mean of its importance for each. Random draws depend on the seed
    and the sample's id alone, not on its batch or process.

    Returns:
        `"base"` (nothing masked) and `"emptied"` (every candidate masked), (B, C); and for each
        `"<direction>/<method>/<expert>"` (B, R, K, C), where R is `num_random` for random and otherwise 1. Beside the
        experts there is `"mixture"`, the importance averaged with the expert weights; a dense model has its one expert.
        Random draws, which look at no expert, stand under the last of these alone.
    """
    with evaluating(model):
        inputs = Inputs.from_batch(model, batch)
        whole = model.run_mixture(inputs.projected, inputs.feature_masks)
        classes = target_classes(whole.logits, batch["labels"], model.config.problem_type, how.target)
        candidates = inputs.candidate_masks
        emptied = masked_logits(model, inputs, {name: ~mask for name, mask in candidates.items()})
        logits = {"base": whole.logits, "emptied": emptied}
        for method in how.methods:
            if method == "random":
                names = model.config.expert_names
                scores = {(names[0] if len(names) == 1 else MIXTURE): _random(model, inputs, batch["ids"], how)}
            else:
                importance = attribute_classes(model, inputs, classes, method, of=how.of, num_steps=how.num_steps)
                scores = {name: [x] for name, x in scores_by_expert(importance, whole.expert_weights).items()}
            for expert, draws in scores.items():
                for direction in how.directions:
                    keeps = [_keep(draw, candidates, share, direction) for draw in draws for share in how.shares]
                    masked = torch.stack([masked_logits(model, inputs, keep) for keep in keeps], dim=1)
                    logits[f"{direction}/{method}/{expert}"] = masked.unflatten(1, (len(draws), len(how.shares)))
    return logits


def _random(model: FLI2MoEModel, inputs: Inputs, sample_ids: Sequence[str], how: Maskings) -> list[dict[str, Tensor]]:
    """Draws: modality → (B, T_m)."""
    no_class, any_expert = torch.zeros(len(inputs), dtype=torch.long), model.config.expert_names[:1]
    draws = []
    for draw in range(how.num_random):
        seeds = [[how.seed, zlib.crc32(sample_id.encode()), draw] for sample_id in sample_ids]
        drawn = attribute(model, inputs, no_class, "random", experts=any_expert, seed=seeds)
        draws.append({name: x[:, 0] for name, x in drawn.scores.items()})
    return draws


def _keep(scores: dict[str, Tensor], candidates: dict[str, Tensor], share: float, direction: str) -> dict[str, Tensor]:
    top = top_features(scores, candidates, share)
    if direction == "deletion":
        return {name: ~x for name, x in top.items()}
    return {name: x | ~candidates[name] for name, x in top.items()}


def subject_logits(subject: Subject, labels: Any, how: Maskings, seed: Sequence[int] = (0,)) -> dict[str, Tensor]:
    """
    As [`faithfulness_logits`], of the units of one sample, whatever they are, with the default `of` and `num_steps`.
    All maskings are asked for at once, so that of a modality each distinct subset is encoded once.

    Args:
        labels: of the sample, as a row of a feature cache has them.
        seed: of importance that draws anything; random draws add their number.
    """
    model, players = subject.model, subject.players
    config = model.config
    with evaluating(model):
        base, _, expert_weights = subject.mixture(np.ones((1, len(players)), np.bool_), players)
        whole, weights = torch.from_numpy(base), torch.from_numpy(expert_weights)
        classes = target_classes(whole, torch.tensor([labels]), config.problem_type, how.target)
        targets = classes[0].nonzero()[:, 0].tolist()
        maskings = {"emptied": np.zeros((1, len(players)), np.bool_)}
        for method in how.methods:
            if method == "random":
                drawn = [subject.attribute(targets[0], method, [*seed, draw]) for draw in range(how.num_random)]
                name = config.expert_names[0] if len(config.expert_names) == 1 else MIXTURE
                scores = {name: [{m: x[:, 0].cpu() for m, x in one.scores.items()} for one in drawn]}
                candidates = drawn[0].candidate_masks
            else:
                each = [subject.attribute(target, method, seed) for target in targets]
                importance, candidates = _mean(each), each[0].candidate_masks
                scores = {expert: [x] for expert, x in scores_by_expert(importance, weights).items()}
            candidates = {name: mask.cpu() for name, mask in candidates.items()}
            for expert, draws in scores.items():
                for direction in how.directions:
                    keeps = [_keep(draw, candidates, share, direction) for draw in draws for share in how.shares]
                    maskings[f"{direction}/{method}/{expert}"] = np.array(
                        [[bool(keep[player.modality][0, player.place]) for player in players] for keep in keeps]
                    )
        masked = torch.from_numpy(subject.mixture(np.concatenate(list(maskings.values())), players)[0])
    logits = {"base": whole}
    for name, x in zip(maskings, masked.split([len(rows) for rows in maskings.values()]), strict=True):
        logits[name] = x if name == "emptied" else x.unflatten(0, (-1, len(how.shares))).unsqueeze(0)
    return logits


def _mean(importance: Sequence[Importance]) -> Importance:
    """Of one sample for several classes, on the CPU."""
    first = importance[0]
    mean = {name: torch.stack([x.scores[name].cpu() for x in importance]).mean(dim=0) for name in first.scores}
    candidates = {name: mask.cpu() for name, mask in first.candidate_masks.items()}
    return Importance(mean, first.experts, mean, None, candidates)
