"""
What a step learns from: the task loss of the mixture, and the terms that an objective adds to it.

An objective decides what makes the experts of a mixture differ. It names the fusion that its experts are made of, and
the options that it takes for granted; it asks for views of the batch, and makes named losses of what the experts say of
them.

Shapes: V views (view 0 is the full input) · B samples · E experts · M modalities · C classes.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from .fusion import Fusion, FusionExtra
from .fusions import FUSIONS

View = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]
"""Modality → projected features (…, B, T_m, H), and → mask (B, T_m) of the real ones, `None` where all are."""


class ViewedModel(Protocol):
    """What an objective asks of a model."""

    experts: Fusion

    def without(self, index: int, view: View, perturbation: str) -> View: ...

    def join(self, views: list[View]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]: ...


@dataclass
class Step:
    """What a training step knows, for the terms of its loss."""

    full: View
    """The full view."""

    labels: torch.Tensor | None
    is_whole: torch.Tensor | None
    """(B, M), false where a sample shows only a part of a modality, or none of it; `None` if all are whole."""

    replaced: list[int]
    """The modality that each of the views behind the first lacks."""

    view_logits: torch.Tensor
    """(V, B, E, C)"""

    extra: FusionExtra
    """What the fusion gives beside the logits, for V · B rows."""


@dataclass
class Term:
    """One term of a step's loss."""

    total: torch.Tensor
    """What it adds to the loss, its weight included: a scalar."""

    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    """What it is made of: name → scalar, as training logs it."""


class Objective:
    """
    No objective: one expert, or several that learn from the task alone.

    A subclass is stateless but for the configuration.
    """

    needs: ClassVar[dict[str, Any]] = {}
    """Field of the configuration → the only value that this objective takes."""

    training_defaults: ClassVar[dict[str, Any]] = {}
    """Option of training → what it is with this objective where nothing else is asked for."""

    masked_copies: ClassVar[int] = 0
    """Masked copies of a training sample, where nothing else is asked for and features are dropped."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @property
    def adds_loss(self) -> bool:
        """Whether its terms weigh anything; training leaves them, and their views, out if not."""
        return self.config.interaction_loss_weight > 0

    def create_fusion(self) -> Fusion:
        """The experts."""
        return FUSIONS[self.config.fusion](self.config)

    def views(self, model: ViewedModel, full: View) -> tuple[list[int], list[View]]:
        """The views to run beside the full one, and the modality that each of them lacks."""
        return [], []

    def task_logits(self, expert_weights: torch.Tensor, expert_logits: torch.Tensor) -> torch.Tensor:
        """The logits (B, C) that the task loss is taken of, from weights (B, E) and logits (B, E, C)."""
        return weigh(expert_weights, expert_logits)

    def terms(self, model: ViewedModel, step: Step) -> list[Term]:
        """What is added to the task loss."""
        return []

    def by_expert(self, name: str, losses: torch.Tensor) -> dict[str, torch.Tensor]:
        """(E,) → `<name>/<expert>` → scalar."""
        return {f"{name}/{expert}": loss for expert, loss in zip(self.config.expert_names, losses, strict=True)}


def weigh(expert_weights: torch.Tensor, expert_logits: torch.Tensor) -> torch.Tensor:
    """The mixture (B, C) of logits (B, E, C) under weights (B, E)."""
    # not a matrix product, which autocast would round
    return (expert_weights.unsqueeze(-1) * expert_logits).sum(dim=1)


def task_loss(logits: torch.Tensor, labels: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    r"""
    Cross-entropy, binary cross-entropy with logits, or smooth L1, by `config.problem_type`: a plain mean over the
    samples (and labels), so that batches of any sizes add up exactly, whatever `config.class_weights` are:

    - of classes, \\(\frac{1}{B} \sum_b w_{y_b} \mathrm{CE}_b\\), not divided by the batch's \\(\sum_b w_{y_b}\\).
      Weights whose mean over the training samples is 1 leave the loss its scale;
    - of labels, \\(w_c\\) is the `pos_weight` of label c.

    Of `config.label_smoothing` ε, a class's target is 1 − ε + ε/C and the others' ε/C; a label's is 1 − ε/2 or ε/2.

    Args:
        logits: (B, C).
        labels: (B,) class indexes; (B, C) multi-hot; (B, C) or, for one target, (B,) real numbers.

    Raises:
        ValueError: when the labels do not fit the logits.
    """
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"`labels` must be a tensor, got {type(labels).__name__}: use `torch.as_tensor`.")
    weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    if config.problem_type == "single_label_classification":
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"Single labels must have shape {tuple(logits.shape[:1])}, got {tuple(labels.shape)}.")
        classes = logits.shape[1]
        # of other devices, it would have to be waited for
        if labels.device.type == "cpu" and (bad := labels[(labels < 0) | (labels >= classes)]).numel():
            raise ValueError(f"Single labels must lie in 0 … {classes - 1}, got {bad[0].item()}.")
        smoothing = config.label_smoothing
        total = F.cross_entropy(logits, labels.long(), weights, reduction="sum", label_smoothing=smoothing)
        return total / len(labels)
    if config.problem_type == "regression" and labels.dim() == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"`labels` of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}.")
    if labels.device.type == "cpu" and not labels.isfinite().all():
        raise ValueError("`labels` has NaN or infinite values.")
    if config.problem_type == "regression":
        return F.smooth_l1_loss(logits, labels.to(logits.dtype))
    targets = labels.to(logits.dtype)
    if smoothing := config.label_smoothing:
        targets = targets * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
