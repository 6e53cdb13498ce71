"""
Importance of features for an expert's decision (FL-I²MoE, section 3.2.1).

Shapes: B samples · T_m features of modality m · T features of the joint sequence · A attention heads · L layers ·
E' experts asked for · C classes · K classes of interest, over all samples.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..model.configuration_fl_i2moe import check_choice
from ..model.modeling_fl_i2moe import FLI2MoEModel
from .inputs import Inputs

METHODS = ("attnroll", "grad_attnroll", "ig", "random")
MIXTURE = "mixture"
"""Name of the importance that is averaged over the experts by their weights."""


@dataclass(frozen=True)
class Importance:
    """Scores of every feature for E' experts, modalities in the order of `config.modality_order`."""

    scores: dict[str, Tensor]
    """Modality → (B, E', T_m): `raw`, min–max normalised over the candidates of the modality (all 0 where those are
    all equal), 0 elsewhere."""

    experts: list[str]
    raw: dict[str, Tensor]
    """Modality → (B, E', T_m), special features too. Signed for integrated gradients: positive where a feature
    supports the class."""

    completeness_gap: Tensor | None
    """Integrated gradients: (B, E'), |sum of all attributions − (f(x) − f(0))|."""

    candidate_masks: dict[str, Tensor]
    """Modality → (B, T_m), true where a feature can have importance."""


@contextmanager
def evaluating(model: FLI2MoEModel) -> Iterator[FLI2MoEModel]:
    """The model in evaluation mode; each part's own mode comes back afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextmanager
def explaining(model: FLI2MoEModel) -> Iterator[FLI2MoEModel]:
    """The model in evaluation mode under eager attention; its own mode and attention come back afterwards."""
    attention = model.config._attn_implementation
    with evaluating(model):
        try:
            model.set_attn_implementation("eager")
            yield model
        finally:
            model.set_attn_implementation(attention)


def methods_of(model: FLI2MoEModel) -> list[str]:
    """The methods that a model's fusion allows: rollouts need attention."""
    return list(METHODS) if model.experts.has_attention else ["ig", "random"]


def check_methods(model: FLI2MoEModel, methods: Iterable[str], argument: str) -> None:
    """`ValueError` for a method that does not fit the model's fusion; says which do, and the option that takes them."""
    if wrong := [method for method in methods if method not in methods_of(model)]:
        raise ValueError(
            f"The fusion {model.config.fusion!r} has no attention, which {', '.join(wrong)} needs: give "
            f"--{argument} {' or '.join(methods_of(model))}."
        )


def universe_method(model: FLI2MoEModel) -> str:
    """Whose importance chooses the features whose pairs are scored."""
    return "grad_attnroll" if model.experts.has_attention else "ig"


def attribute(
    model: FLI2MoEModel,
    inputs: Inputs,
    targets: Tensor,
    method: str = "grad_attnroll",
    *,
    experts: list[str] | None = None,
    of: Literal["expert", "mixture"] = "expert",
    num_steps: int = 32,
    seed: int | Sequence[int | Sequence[int]] = 0,
) -> Importance:
    """
    Scores every feature by its part in one class's logit, for each expert separately.

    - `"attnroll"`: attention rollout. A layer is `0.5·A + 0.5·I`, A the mean over heads, whose rows sum to 1 as A's
      do. It does not depend on the target.
    - `"grad_attnroll"`: `R ← R + Ā·R` from `R = I`, `Ā` = mean over heads of `relu(∂logit/∂A ⊙ A)`.
    - `"ig"`: integrated gradients over the projected features (special ones too) from a baseline of zeros,
      Gauss–Legendre nodes, summed over the hidden width. Signed: features that speak against the class rank last.
    - `"random"`: uniform in [0, 1), by `seed`: one number for the batch, or for each sample one (or several numbers).

    The published layer arithmetic has no skip around attention: its layers are `A`, and `R ← Ā·R`. A rollout scores a
    feature by the mean of its column over the rows that the expert's head reads, with the head's weights: every
    modality that it reads counts alike.

    Args:
        targets: (B,), a class for each sample; 0 in regression with one output.
        experts: all by default.
        of: the logit that is explained: the expert's own, or (as in the paper) the mixture's, of which the expert
            gives `w_e · logit_e`, the weight w_e held as it is for the sample.
        num_steps: nodes of integrated gradients.

    Raises:
        ValueError: an unknown method, expert or `of`; targets that do not fit; a rollout of a fusion that has no
            attention; no step.
    """
    experts = list(experts or model.config.expert_names)
    check_choice("method", method, METHODS)
    check_choice("of", of, ("expert", "mixture"))
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if unknown := set(experts) - set(model.config.expert_names):
        raise ValueError(f"Unknown experts {sorted(unknown)}; this model has {model.config.expert_names}.")
    if targets.shape != (len(inputs),):
        raise ValueError(f"`targets` must have shape {(len(inputs),)}, got {tuple(targets.shape)}.")
    num_classes = model.config.num_labels
    if not ((targets >= 0) & (targets < num_classes)).all():
        raise ValueError(f"`targets` must be classes 0 to {num_classes - 1}, got {targets.tolist()}.")

    gap = None
    if method == "random":
        raw = _random(inputs, len(experts), seed)
    else:
        with explaining(model), torch.enable_grad():
            weights: Tensor | float = 1.0
            if of == "mixture":
                mixture = model.run_mixture(inputs.projected, inputs.feature_masks)
                own = [model.config.expert_names.index(name) for name in experts]
                weights = mixture.expert_weights[:, own].detach()
            targets, rows = targets.to(model.device), torch.arange(len(inputs), device=model.device)

            def select(logits: Tensor) -> Tensor:
                return logits[rows, :, targets] * weights

            if method == "ig":
                raw, gap = _integrated_gradients(model, inputs, experts, select, num_steps)
            else:
                raw = _rollout(model, inputs, experts, select, with_gradient=method == "grad_attnroll")
    scores = {name: normalize(x, inputs.candidate_masks[name].unsqueeze(1)) for name, x in raw.items()}
    return Importance(scores, experts, raw, gap, inputs.candidate_masks)


def attribute_classes(
    model: FLI2MoEModel, inputs: Inputs, classes: Tensor, method: str = "grad_attnroll", **options
) -> Importance:
    """
    Importance for several classes of a sample at once: means of its `scores` and `raw` for each; no completeness gap.

    `classes` (B, C) are true for those of interest; `ValueError` if a sample has none, and as [`attribute`], which
    takes the `options`.
    """
    classes, expected = classes.to(model.device).bool(), (len(inputs), model.config.num_labels)
    if classes.shape != expected:
        raise ValueError(f"`classes` must have shape {expected}, got {tuple(classes.shape)}.")
    counts = classes.sum(dim=1)
    if not (counts > 0).all():
        raise ValueError(f"`classes` names none in rows {(counts == 0).nonzero().flatten().tolist()}.")
    if method in ("attnroll", "random"):  # they depend on no class
        return attribute(model, inputs, classes.int().argmax(dim=1), method, **options)
    rows, targets = classes.nonzero(as_tuple=True)
    each = attribute(model, inputs.select(rows), targets, method, **options)

    def mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
        sums = {name: x.new_zeros(len(inputs), *x.shape[1:]).index_add_(0, rows, x) for name, x in values.items()}
        return {name: x / counts[:, None, None] for name, x in sums.items()}

    return Importance(mean(each.scores), each.experts, mean(each.raw), None, inputs.candidate_masks)


def mixture_importance(importance: Importance, expert_weights: Tensor) -> dict[str, Tensor]:
    """Importance for the whole mixture, modality → (B, T_m): the mean of the experts' normalised scores with their
    weights (B, E'), normalised again; `ValueError` for weights of another shape."""
    expected = next(iter(importance.scores.values())).shape[:2]
    if expert_weights.shape != expected:
        raise ValueError(f"`expert_weights` must have shape {tuple(expected)}, got {tuple(expert_weights.shape)}.")
    mixed = {name: torch.einsum("bet,be->bt", x, expert_weights.to(x)) for name, x in importance.scores.items()}
    return {name: normalize(x, importance.candidate_masks[name]) for name, x in mixed.items()}


def scores_by_expert(importance: Importance, expert_weights: Tensor) -> dict[str, dict[str, Tensor]]:
    """Normalised scores, expert (and, of several, the mixture) → modality → (B, T_m)."""
    scores = {
        expert: {name: x[:, e] for name, x in importance.scores.items()} for e, expert in enumerate(importance.experts)
    }
    if len(importance.experts) > 1:
        scores[MIXTURE] = mixture_importance(importance, expert_weights)
    return scores


def top_features(scores: dict[str, Tensor], candidate_masks: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """
    The most important features of each modality, [`count_share`] of its candidates, the first of equal ones: from
    scores (B, …, T_m) and candidates (B, T_m) by modality to booleans (B, …, T_m). `ValueError` for a share outside
    (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share of features must lie in (0, 1], got {share}.")
    top = {}
    for name, x in scores.items():
        candidates = candidate_masks[name]
        candidates = candidates.view(len(candidates), *[1] * (x.dim() - 2), -1)
        counts = torch.tensor([count_share(share, n) for n in range(x.shape[-1] + 1)], device=x.device)
        order = x.masked_fill(~candidates, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        top[name] = (order.argsort(dim=-1) < counts[candidates.sum(dim=-1, keepdim=True)]) & candidates
    return top


def count_share(share: float, number: int) -> int:
    """⌈share · number⌉, at least one."""
    return max(1, math.ceil(share * number - 1e-9))  # 0.07 · 100 is a little more than 7


Select = Callable[[Tensor], Tensor]
"""Experts' logits (B, E', C) → what is explained, (B, E')."""


def _rollout(
    model: FLI2MoEModel, inputs: Inputs, experts: list[str], select: Select, with_gradient: bool
) -> dict[str, Tensor]:
    # leaves: attention is then on the graph of a model with frozen weights too
    projected = {name: x.detach().requires_grad_(with_gradient) for name, x in inputs.projected.items()}
    with torch.set_grad_enabled(with_gradient):
        logits, attentions = model.run_experts(projected, inputs.feature_masks, experts=experts, output_attentions=True)
    if not attentions or any(attention is None for attention in attentions):
        raise ValueError(
            f"The fusion {model.config.fusion!r} gives no attention probabilities, which a rollout needs; use 'ig'."
        )
    if with_gradient:
        # an expert's logit depends on its own attention alone: one backward pass serves all experts
        gradients = torch.autograd.grad(select(logits).sum(), attentions)
        layers = [(g * a).float().relu().mean(dim=1) for g, a in zip(gradients, attentions, strict=True)]
    else:
        layers = [attention.float().mean(dim=1) for attention in attentions]

    # Only some rows of the T×T rollout count: their mean is a row vector, which goes down the layers.
    masks = [inputs.feature_masks[name] for name in model.config.modality_order]
    means = [mask / mask.sum(dim=1, keepdim=True) for mask in masks]
    shares = model.modality_shares(experts)[:, :, None, None]
    readout = torch.cat([mean * shares[:, m] for m, mean in enumerate(means)], dim=-1)  # (E', B, T)
    row = readout.flatten(0, 1).unsqueeze(1)
    for layer in reversed(layers):
        passed_on = torch.bmm(row, layer.detach())
        if model.config.layer_arithmetic == "published":  # nothing passes by attention there
            row = passed_on
        else:
            row = row + passed_on if with_gradient else 0.5 * row + 0.5 * passed_on
    rollout = row.unflatten(0, (len(experts), len(inputs))).squeeze(2).transpose(0, 1)
    parts = rollout.split([mask.shape[1] for mask in masks], dim=-1)
    return {name: part.contiguous() for name, part in zip(model.config.modality_order, parts, strict=True)}


def _integrated_gradients(
    model: FLI2MoEModel, inputs: Inputs, experts: list[str], select: Select, num_steps: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Attributions, modality → (B, E', T_m), and completeness gaps (B, E')."""

    def outputs(projected: dict[str, Tensor]) -> Tensor:
        return select(model.run_experts(projected, inputs.feature_masks, experts=experts))

    values = {name: x.detach() for name, x in inputs.projected.items()}
    nodes, node_weights = np.polynomial.legendre.leggauss(num_steps)
    sums = {name: x.new_zeros(len(experts), *x.shape) for name, x in values.items()}
    for node, node_weight in zip((1 + nodes) / 2, node_weights / 2, strict=True):
        # a copy for each expert, so that one backward pass keeps their gradients apart
        copies = {name: (x * float(node)).repeat(len(experts), 1, 1, 1).requires_grad_() for name, x in values.items()}
        gradients = torch.autograd.grad(outputs(copies).sum(), list(copies.values()))
        for name, gradient in zip(copies, gradients, strict=True):
            sums[name].add_(gradient, alpha=float(node_weight))
    raw = {name: (sums[name] * x).sum(dim=-1).transpose(0, 1) for name, x in values.items()}
    with torch.no_grad():
        difference = outputs(values) - outputs({name: torch.zeros_like(x) for name, x in values.items()})
    return raw, (sum(x.sum(dim=-1) for x in raw.values()) - difference).abs()


def _random(inputs: Inputs, num_experts: int, seed: int | Sequence[int | Sequence[int]]) -> dict[str, Tensor]:
    """A stream of random numbers for each sample, of its real features alone: padding and neighbours play no part."""
    seeds = [[seed, row] for row in range(len(inputs))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(inputs):
        raise ValueError(f"`seed` must be one number or one for each of the {len(inputs)} samples, got {len(seeds)}.")
    raw = {name: torch.zeros(len(inputs), num_experts, mask.shape[1]) for name, mask in inputs.feature_masks.items()}
    masks = {name: mask.cpu() for name, mask in inputs.feature_masks.items()}
    for row, row_seed in enumerate(seeds):
        rng = np.random.default_rng(row_seed)
        for name, mask in masks.items():
            drawn = rng.random((num_experts, int(mask[row].sum())), dtype=np.float32)
            raw[name][row, :, mask[row]] = torch.from_numpy(drawn)
    return {name: x.to(inputs.projected[name].device) for name, x in raw.items()}


def normalize(x: Tensor, candidates: Tensor) -> Tensor:
    """Min–max over the candidates of the last axis; 0 elsewhere and where they are all equal."""
    low = x.masked_fill(~candidates, torch.inf).amin(dim=-1, keepdim=True)
    high = x.masked_fill(~candidates, -torch.inf).amax(dim=-1, keepdim=True)
    span = high - low
    return torch.where(candidates & (span > 0), (x - low) / torch.where(span > 0, span, 1), 0)
