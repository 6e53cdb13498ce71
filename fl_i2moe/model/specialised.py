"""
The specialised objective: experts that are what their names say, by what they can see and by what is left to explain.

A uniqueness expert reads its own modality alone. The redundancy expert reads each modality alone and learns from each
what the *others* tell of the label. The synergy expert reads everything together. Uniqueness and synergy share what
redundancy leaves unexplained, and two penalties keep an expert from saying what is another's to say: a uniqueness
expert pays for what the other modalities tell as well, and synergy for what does not average out over them.

Shapes: B samples · E experts · M modalities · C classes.
"""

import torch
import torch.nn.functional as F

from .configuration_fl_i2moe import FLI2MoEConfig
from .fusion_specialised import Readings, without_constant
from .objective import task_loss


def specialised_losses(
    expert_logits: torch.Tensor,
    readings: Readings,
    exchanged: torch.Tensor,
    labels: torch.Tensor,
    config: FLI2MoEConfig,
    is_whole: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    With \\(c_e\\) an expert's contribution, `expert_logits / E`, whose sum is the mixture under equal weights, and a
    bar over what sends no gradient back, the task losses are

    - redundancy: how far the reading of each modality, as a contribution, is from what all others tell,
      \\(a_{-i} = \sum_{j \neq i} a_j\\), for which the task loss of \\(a_{-i} + \bar c_s\\) is fitted;
    - uniqueness: the task loss of \\(\bar c_r + \sum_i c_i + \bar c_s\\);
    - synergy: the task loss of \\(\bar c_r + \sum_i \bar c_i + c_s\\), and that of what its means tell of the label
      together. The latter lets it find the parts of which an interaction is made: an exclusive-or alone sends hardly
      any gradient to a network that knows neither part.

    Fitting uniqueness beside synergy instead of before it keeps it from learning by heart what is synergy's to explain.

    The interaction losses are

    - uniqueness: the size of what \\(c_i\\) and \\(\bar a_{-i}\\), less their means over the batch, agree on, which is
      redundancy's to say;
    - synergy: the sum over m of \\(\max(0, \mathrm{mean}_B(c_s \cdot c_s^{(m)}))\\), where all modalities but m of
      \\(c_s^{(m)}\\) come from other samples: an estimate of the square of what \\(c_s\\) says on average, given
      modality m alone, which is uniqueness's to say. An exclusive-or has none. (A functional analysis of variance
      calls this a main effect; the estimate takes modalities for independent.)

    Of single labels, all logits count less their mean over the classes.

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
    # a prior is nobody's: that all call a rare label unlikely is no evidence that they share
    shared = agreement(said - said.mean(dim=0)).abs().mean()
    main_effects = (synergy * without_constant(exchanged, config) / config.num_experts).mean(dim=1)  # (M, C)
    not_pure = main_effects.clamp(min=0).mean(dim=1).sum()
    return task, torch.stack([*[shared] * num_modalities, not_pure, torch.zeros_like(shared)])


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
    logits: torch.Tensor, target_logits: torch.Tensor, weights: torch.Tensor, config: FLI2MoEConfig
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
