"""
Importance of units of the raw sample: what a prediction loses when they are taken out before the encoders.

Shapes: U_m units of modality m, N units of all modalities, E experts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.configuration_fl_i2moe import check_choice
from .attribution import METHODS, MIXTURE, Importance, attribute, normalize
from .inputs import Inputs

if TYPE_CHECKING:
    from .input_sample import InputSample

INPUT_METHODS = ("shapley", "leave_one_out", "rollout", "random")


def num_contexts(method: str, num_coalitions: int) -> int:
    """How many coalitions a method looks at, each with every single unit put in or taken out."""
    return {"shapley": 2 + num_coalitions, "leave_one_out": 1}.get(method, 0)


LOGIT_METHODS = ("shapley", "leave_one_out")
"""Their raw values are logits, which compare across modalities and experts."""


def contributed_scores(importance: Importance, expert_weights: Tensor) -> dict[str, dict[str, Tensor]]:
    """
    Expert (and, of several, the mixture) → modality → (1, U_m), of one of [`LOGIT_METHODS`]: what each unit adds to the
    mixture's logit through the expert, weight × raw value, divided by the largest of all; 0 where it takes away. So a
    unit of an expert that contributes nothing has next to nothing.
    """
    weights = expert_weights.to(next(iter(importance.raw.values())))[:, :, None]
    parts = {name: weights * x for name, x in importance.raw.items()}  # (1, E, U_m)
    if len(importance.experts) > 1:
        parts = {name: torch.cat([x, x.sum(dim=1, keepdim=True)], dim=1) for name, x in parts.items()}
    largest = max(float(x.max()) for x in parts.values())
    scores = {name: x.clip(min=0) / largest if largest > 0 else 0 * x for name, x in parts.items()}
    names = [*importance.experts, MIXTURE][: next(iter(parts.values())).shape[1]]
    return {expert: {name: x[:, e] for name, x in scores.items()} for e, expert in enumerate(names)}


def attribute_input(
    sample: "InputSample",
    target: int,
    method: str = "shapley",
    *,
    num_coalitions: int = 4,
    seed: int | Sequence[int] = 0,
) -> Importance:
    """
    Scores every unit by its part in one class's logit, for each expert separately.

    - `"leave_one_out"`: v(N) − v(N∖i), N all units. It does not see evidence that is there twice.
    - `"shapley"`: the Shapley value, estimated from `num_coalitions` draws, see [`shapley_values`].
    - `"rollout"`: the experts' Grad×AttnRoll times the encoder's own attention rollout, where it has attention. One
      encoding suffices: a first guess.
    - `"random"`: uniform in [0, 1), by `seed`.
    - one of [`~fl_i2moe.explain.attribution.METHODS`]: of features behind the encoder; a unit's is their sum. What
      explanations of features say of units, to hold against the above.

    Returns:
        Scores and raw values modality → (1, E, U_m), of a batch of one.

    Raises:
        ValueError: an unknown method or class.
    """
    check_choice("method", method, dict.fromkeys((*INPUT_METHODS, *METHODS)))
    num_classes = sample.model.config.num_labels
    if not 0 <= target < num_classes:
        raise ValueError(f"There is no class {target}; this model has classes 0 to {num_classes - 1}.")
    experts = list(sample.model.config.expert_names)
    players = sample.players
    if method == "random":
        raw = np.random.default_rng(seed).random((len(experts), len(players)))
    elif method == "leave_one_out":
        raw = _leave_one_out(sample, target)
    elif method == "shapley":
        raw = shapley_values(sample, target, num_coalitions, seed)
    elif method == "rollout":
        raw = _of_features(sample, target, "grad_attnroll", through_encoder=True)
    else:
        raw = _of_features(sample, target, method)
    by_modality: dict[str, torch.Tensor] = {}
    candidates: dict[str, torch.Tensor] = {}
    for name, modality in sample.modalities.items():
        places = modality.units.places
        columns = [number for number, player in enumerate(players) if player.modality == name]
        by_modality[name] = torch.zeros(1, len(experts), places.num_features, dtype=torch.float64)
        by_modality[name][0][:, places.candidates] = torch.from_numpy(raw[:, columns])
        candidates[name] = torch.zeros(1, places.num_features, dtype=torch.bool)
        candidates[name][0, places.candidates] = True
    scores = {name: normalize(x, candidates[name].unsqueeze(1)) for name, x in by_modality.items()}
    return Importance(scores, experts, by_modality, None, candidates)


def _leave_one_out(sample: "InputSample", target: int) -> NDArray[np.float64]:
    """(E, N)"""
    players = sample.players
    everything = np.ones((1, len(players)), np.bool_)
    coalitions = np.concatenate([everything, ~np.eye(len(players), dtype=np.bool_)])
    values = sample.remembered("leave_one_out", lambda: sample.expert_logits(coalitions, players))
    return (values[:1, :, target] - values[1:, :, target]).T


def shapley_values(
    sample: "InputSample", target: int, num_coalitions: int, seed: int | Sequence[int]
) -> NDArray[np.float64]:
    """
    (E, N), unbiased estimates of all units' Shapley values for every expert.

    The value is the mean over q ~ U(0, 1) of m(q), what a unit adds on average when every other one is there with
    probability q. Both ends are computed: m(0), what it adds to nothing, and m(1), what is lost without it. Each draw
    of q and of a coalition S then estimates how far m(q) is from the line between them, (1 − q) m(0) + q m(1), whose
    mean is (m(0) + m(1)) / 2.
    """
    key = ("shapley", num_coalitions, *np.atleast_1d(seed).tolist())
    return sample.remembered(key, lambda: _shapley_values(sample, num_coalitions, seed))[target]


def _shapley_values(sample: "InputSample", num_coalitions: int, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """(C, E, N): the experts answer for all classes at once."""
    players, rng = sample.players, np.random.default_rng(seed)
    num_players = len(players)
    alone = np.eye(num_players, dtype=np.bool_)
    contexts = [np.zeros(num_players, np.bool_), np.ones(num_players, np.bool_)]
    shares: list[float] = []
    for number in range(num_coalitions):
        if number % 2:  # with its complement a draw errs less
            shares.append(1 - shares[-1])
            contexts.append(~contexts[-1])
        else:
            shares.append(rng.random())
            contexts.append(rng.random(num_players) < shares[-1])
    marginals = []
    for context in contexts:
        values = sample.expert_logits(np.concatenate([context | alone, context & ~alone]), players)
        marginals.append((values[:num_players] - values[num_players:]).T)
    nothing, everything, *drawn = marginals
    lines = [(1 - share) * nothing + share * everything for share in shares]
    gaps = [one - line for one, line in zip(drawn, lines, strict=True)]
    return (nothing + everything) / 2 + (np.mean(gaps, axis=0) if gaps else 0)


def _of_features(sample: "InputSample", target: int, method: str, through_encoder: bool = False) -> NDArray[np.float64]:
    """(E, N): of units the sum over their features, which go by the encoder's rollout to where it has seen them."""
    model = sample.model
    inputs = Inputs.from_batch(model, sample.batch)
    importance: Any = attribute(model, inputs, torch.tensor([target]), method)
    columns = []
    for name, modality in sample.modalities.items():
        raw = importance.raw[name][0].double().cpu()
        rollout = modality.encoder_rollout() if through_encoder else None
        if rollout is not None:
            raw = raw @ rollout
        for unit in modality.units.places.candidates:
            columns.append(raw[:, modality.units.features[unit]].sum(dim=1))
    return torch.stack(columns, dim=1).numpy()
