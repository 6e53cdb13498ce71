"""
The specialised objective: experts that are what their names say, by what they can see and by what is left to explain.

A uniqueness expert reads its own modality alone. The redundancy expert reads each modality alone and learns from each
what the *others* tell of the label. The synergy expert reads everything together. Uniqueness and synergy share what
redundancy leaves unexplained, and two penalties keep an expert to its own part: a uniqueness expert is penalised for
evidence that the other modalities also carry (class priors are exempt), and synergy for what does not average out over
the other modalities.

A regulariser reaches the layers of the uniqueness and redundancy experts alone, which it drives away from one another
and from synergy's, by what each head reads: a uniqueness expert's latent is 0 where other modalities' means would be.

Shapes: N rows or B samples · E experts · M modalities · C classes · H hidden width.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from .fusion import FusionExtra, GroupedLinear, GroupedTransformer, attend_within
from .objective import Objective, Step, Term, View, ViewedModel, task_loss, weigh


@dataclass
class Readings:
    """What the specialised objective asks beside the experts' logits."""

    redundancy: torch.Tensor
    """(N, M, C), what the redundancy expert reads in each modality."""

    alone: torch.Tensor
    """(N, M, C), what each modality tells of the label by itself, read from its uniqueness expert's means."""

    together: torch.Tensor
    """(N, C), what all modalities tell of the label, read from the synergy expert's means."""


class SpecialisedTransformer(GroupedTransformer):
    """
    MulT whose experts differ in what they see: a uniqueness expert attends to and reads its own modality alone; the
    synergy expert all of them; the redundancy expert reads each modality alone and says what any of its readings says,
    see [`either`].
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        # only training asks for them
        self.alone = GroupedLinear(config.num_modalities, config.hidden_size, config.num_labels)
        self.together = GroupedLinear(1, config.num_modalities * config.hidden_size, config.num_labels)

    def attends_across(self, expert: int) -> bool:
        return expert == self.config.num_modalities

    def modality_shares(self) -> torch.Tensor:
        shares = super().modality_shares()
        shares[: self.config.num_modalities] = torch.eye(self.config.num_modalities)
        return shares

    def attention_mask(
        self, feature_mask: torch.Tensor | None, readout: torch.Tensor, experts: list[int] | None
    ) -> torch.Tensor:
        """True where to attend, (E, N, T, T): only synergy looks across modalities."""
        own = attend_within(readout)
        everything = ((readout > 0).any(dim=1, keepdim=True)).expand_as(own)
        synergy = self.config.num_modalities
        indexes = range(self.config.num_experts) if experts is None else experts
        return torch.stack([everything if expert == synergy else own for expert in indexes])

    def for_experts(self, x: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
        if not self.training or experts is not None or x.dim() == 4:
            return super().for_experts(x, experts)
        # of the experts, synergy alone shapes what all read, as a dense model does
        synergy = self.config.num_modalities
        return torch.stack([x if expert == synergy else x.detach() for expert in range(self.config.num_experts)])

    def read(self, means: torch.Tensor, experts: list[int] | None) -> tuple[torch.Tensor, FusionExtra]:
        num_modalities = self.config.num_modalities
        indexes = list(range(self.config.num_experts)) if experts is None else experts
        read = means
        if self.training and num_modalities in indexes:
            # its layers learn from `together` alone
            read = torch.stack([x.detach() if e == num_modalities else x for e, x in zip(indexes, means, strict=True)])
        joint, extra = super().read(read, experts)
        only = torch.eye(num_modalities, dtype=means.dtype, device=means.device).unsqueeze(-1)
        readings = self.head((read.unsqueeze(2) * only).flatten(-2), experts)  # (E, N, M, C)
        logits = list(joint.unbind(1))
        for place, expert in enumerate(indexes):
            if expert < num_modalities:
                logits[place] = readings[place, :, expert]
            elif expert > num_modalities:
                logits[place] = either(readings[place], self.config)
        if experts is None:
            # a uniqueness expert's head reads its own modality alone
            seen = torch.cat([only, torch.ones_like(only[:2])]).unsqueeze(1)  # (E, 1, M, 1)
            extra.latents = (read * seen).flatten(-2)
            own_means = means[:num_modalities].diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (M, N, H)
            synergy_means = means[num_modalities : num_modalities + 1].flatten(-2)
            extra.readings = Readings(
                readings[-1], self.alone(own_means).transpose(0, 1), self.together(synergy_means)[0]
            )
        return torch.stack(logits, dim=1), extra


def either(readings: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    r"""
    What any of the readings (N, M, C) says, (N, C): a soft "or", \\(E (\log \sum_m e^{z_m / E} - \log M)\\), so that
    one modality suffices; of real numbers their mean. Readings that agree are left as they are (of single labels, but
    for their mean over the classes).

    The unit is an expert's contribution to the mixture, a logit divided by E.
    """
    if config.problem_type == "regression":
        return readings.mean(dim=1)
    readings = without_constant(readings, config)
    softened = (readings.float() / config.num_experts).logsumexp(dim=1) - math.log(readings.shape[1])
    return (config.num_experts * softened).to(readings.dtype)


def without_constant(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Logits (…, C) of single labels less their mean over the classes, to which the softmax is blind."""
    if config.problem_type != "single_label_classification":
        return logits
    return logits - logits.mean(dim=-1, keepdim=True)


class SpecialisedObjective(Objective):
    """See the module's text, and [`specialised_losses`]."""

    needs: ClassVar = {
        "fusion": "transformer",
        "layer_arithmetic": "pre_norm",
        "position_embeddings": "shared",
        "interaction_experts": "all",
        "interaction_loss_on": "logits",
        "triplet_margin": 1.0,
        "regression_interaction_loss": "bounded",
        "perturbation": "random",
        "num_perturbed_views": None,
    }
    training_defaults: ClassVar = {
        "feature_dropout": 0.5,
        "ema_decay": 0.98,
        "lr_scheduler": "cosine",
        "best_epoch_by": "log_loss",
    }
    masked_copies = 3
    adds_loss = True  # experts learn from its terms alone

    def create_fusion(self) -> SpecialisedTransformer:
        return SpecialisedTransformer(self.config)

    def task_logits(self, expert_weights: torch.Tensor, expert_logits: torch.Tensor) -> torch.Tensor:
        # experts learn from their own losses; the mixture's loss trains the weights alone
        return weigh(expert_weights, expert_logits.detach())

    def terms(self, model: ViewedModel, step: Step) -> list[Term]:
        if step.labels is None:
            return []
        exchanged = self._exchange(model, step.full)
        fitted, interaction = specialised_losses(
            step.view_logits[0], step.extra.readings, exchanged, step.labels, self.config, step.is_whole
        )
        return [
            Term(fitted.sum(), self.by_expert("fitted_loss", fitted)),
            Term(
                self.config.interaction_loss_weight * interaction.mean(),
                self.by_expert("interaction_loss", interaction),
            ),
        ]

    def _exchange(self, model: ViewedModel, full: View) -> torch.Tensor:
        """
        The synergy expert's logits when all modalities but one come from other samples of the batch, each from one of
        its own, (M, B, C); they are noise where a batch has one sample.
        """
        views, count = [], self.config.num_modalities
        for kept in range(count):
            view = full
            for index in range(count):
                if index != kept:
                    view = model.without(index, view, "shuffle")
            views.append(view)
        experts = cast(SpecialisedTransformer, model.experts)
        with torch.no_grad():  # its layers do not learn from it
            means, _ = experts.means(*model.join(views), experts=[count])
        logits, _ = experts.read(means, [count])
        return logits[:, 0].float().unflatten(0, (len(views), -1))


def specialised_losses(
    expert_logits: torch.Tensor,
    readings: Readings,
    exchanged: torch.Tensor,
    labels: torch.Tensor,
    config: PreTrainedConfig,
    is_whole: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    With \\(c_e\\) an expert's contribution, `expert_logits / E`, whose sum is the mixture under equal weights, and a
    bar over what sends no gradient back, the task losses are

    - redundancy: how far the reading of each modality, as a contribution, is from what all others tell,
      \\(a_{-i} = \sum_{j \neq i} a_j\\), for which the task loss of \\(a_{-i} + \bar c_s\\) is fitted;
    - uniqueness: the task loss of \\(\bar c_r + \sum_i c_i + \bar c_s\\);
    - synergy: the task loss of \\(\bar c_r + \sum_i \bar c_i + c_s\\), from which its head learns, and that of what
      its means tell of the label together, from which its layers do, and the projections that all experts read (with
      the reweighting network). These learn as a dense model's, and find an exclusive-or where a dense model does: what
      is left to synergy alone sends hardly any gradient to a network that knows neither part.

    Fitting uniqueness alongside synergy, not before it, keeps it from memorising what synergy should explain.

    The interaction losses are

    - uniqueness: the size of what \\(c_i\\) and \\(\bar a_{-i}\\), less their means over the batch, agree on, which
      redundancy should say;
    - synergy: the sum over m of \\(\max(0, \mathrm{mean}_B(c_s \cdot c_s^{(m)}))\\), where all modalities but m of
      \\(c_s^{(m)}\\) come from other samples: an estimate of the square of what \\(c_s\\) says on average, given
      modality m alone, which uniqueness should say. An exclusive-or has none. (A functional analysis of variance
      calls this a main effect; the estimate takes modalities for independent.)

    Both count by class, see [`_strength`]. Of single labels, all logits count less their mean over the classes.

    Args:
        expert_logits: (B, E, C).
        readings: what the modalities tell, see [`Readings`].
        exchanged: (M, B, C), the synergy expert's logits with all modalities but m from other samples.
        labels: as for [`task_loss`].
        is_whole: (B, M), false where features of a modality were dropped: a reading learns only from others that are
            whole. All are if `None`.

    Returns:
        Task losses and interaction losses of the experts, (E,) each, in the order of `config.expert_names`.
    """
    num_modalities = config.num_modalities
    contributions = without_constant(expert_logits, config) / config.num_experts
    unique, synergy, redundancy = contributions[:, :num_modalities], contributions[:, -2], contributions[:, -1]
    by_synergy = synergy.detach()

    alone = without_constant(readings.alone.float(), config)
    by_others = alone.sum(dim=1, keepdim=True) - alone  # (B, M, C)
    told = torch.stack([task_loss(x + by_synergy, labels, config) for x in by_others.unbind(1)]).mean()
    fitted_redundancy = told + _distance(
        readings.redundancy.float() / config.num_experts, by_others.detach(), _others_whole(is_whole, alone), config
    )
    fitted_unique = task_loss(redundancy.detach() + unique.sum(dim=1) + by_synergy, labels, config)
    explained = redundancy.detach() + unique.detach().sum(dim=1)
    fitted_synergy = task_loss(explained + synergy, labels, config) + task_loss(
        readings.together.float(), labels, config
    )
    task = torch.stack([fitted_unique / num_modalities] * num_modalities + [fitted_synergy, fitted_redundancy])

    said = torch.stack([unique, by_others.detach()], dim=1)
    strength = _strength(explained + by_synergy, config)
    # class priors are exempt: that all call a rare label unlikely is no shared evidence
    shared = (strength * agreement(said - said.mean(dim=0)).abs()).mean()
    main_effects = (synergy * without_constant(exchanged, config) / config.num_experts).mean(dim=1)  # (M, C)
    not_pure = (strength * main_effects.clamp(min=0)).mean(dim=1).sum()
    return task, torch.stack([*[shared] * num_modalities, not_pure, torch.zeros_like(shared)])


def _strength(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """
    (C,): 4 p (1 − p), where p is how often each class is predicted in the batch (B, C); 1 of real numbers. It is how
    fast the task loss changes with a logit, so that penalties weigh as much beside it whether a class is rare or not.
    That of single labels is no mean over the classes: it counts C / 2 times.
    """
    if config.problem_type == "regression":
        return logits.new_ones(logits.shape[1])
    is_single = config.problem_type == "single_label_classification"
    p = (logits.detach().softmax(dim=-1) if is_single else logits.detach().sigmoid()).mean(dim=0)
    return 4 * p * (1 - p) * (logits.shape[1] / 2 if is_single else 1)


def agreement(said: torch.Tensor) -> torch.Tensor:
    """What all of (B, M, C) say, (B, C): the smallest of them in size where they have one sign, else 0."""
    return said.amin(dim=1).clamp(min=0) + said.amax(dim=1).clamp(max=0)


def _others_whole(is_whole: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """(B, M): 1 where all modalities but this one are whole."""
    if is_whole is None:
        return like.new_ones(like.shape[:2])
    others_thinned = (~is_whole).sum(dim=1, keepdim=True) - (~is_whole).int()
    return (others_thinned == 0).to(like.dtype)


def _distance(
    logits: torch.Tensor, target_logits: torch.Tensor, weights: torch.Tensor, config: PreTrainedConfig
) -> torch.Tensor:
    """The task loss of (B, M, C) where the label is a prediction; samples count by `weights`, (B, M)."""
    match config.problem_type:
        case "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, target_logits.sigmoid(), reduction="none").mean(dim=-1)
        case "single_label_classification":
            loss = -(target_logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)
        case _:
            loss = F.smooth_l1_loss(logits, target_logits, reduction="none").mean(dim=-1)
    return ((loss * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1)).mean()
