"""From a row of a feature cache to the explanation of its prediction."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from operator import index
from typing import Any

import numpy as np
import torch

from ..cache import FeatureCache
from ..model.configuration_fl_i2moe import check_choice
from ..model.kinds import places_in
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..training.runs import check_cache
from .attribution import attribute, evaluating, scores_by_expert, top_features, universe_method
from .explanation import Explanation
from .explanation_data import true_classes
from .feature_game import feature_game, feature_players
from .inputs import Inputs, feature_batch
from .interactions import ESTIMATORS, sample_seed, score_pairs


def explain(
    model: FLI2MoEModel,
    sample: Mapping[str, Any],
    target: int | str | None = None,
    *,
    method: str = "grad_attnroll",
    interactions: str | None = None,
    pair_experts: Sequence[str] | None = None,
    num_coalitions: int = 16,
    universe_share: float = 0.3,
    seed: int = 0,
    cache: FeatureCache | None = None,
    sample_number: int = 0,
    batch_size: int | None = None,
    **options: Any,
) -> Explanation:
    """
    Explains the prediction of one class for one sample: importance of its features for every expert, and how pairs of
    them interact.

    Args:
        sample: a row of a feature cache, `cache.splits["test"][5]`, or what `inputs.raw_sample` gives.
        target: class, by name or index. By default the true one, of several the one with the highest logit; where none
            is true the one with the highest logit; the first output of a regression.
        method: of importance, one of `attribution.METHODS`.
        interactions: how pairs are scored, one of `interactions.ESTIMATORS`; not at all if not given.
        pair_experts: whose pairs are scored; by default those of synergy and redundancy, or the dense model's one.
        num_coalitions, batch_size: coalitions for each pair, and in one pass.
        universe_share: share of each modality's features, the most important ones for the expert, whose pairs are
            scored, in (0, 1]. They are always chosen by Grad×AttnRoll (by integrated gradients where the fusion has no
            attention), whatever the method: experts and methods are compared on the same pairs.
        seed, sample_number: what is random importance and which coalitions are drawn follows from the two; the number
            is the sample's place in its split.
        cache: where the sample comes from: its grid of patches, and its encoders instead of the model's.
        options: for `attribute`: `of`, `num_steps`.

    Raises:
        ValueError: an unknown class, method, estimator or expert; a negative seed; a cache that does not fit the model;
            the sample lacks a modality, has one without candidates, or features that do not fit the model or are not
            finite; a share outside (0, 1]; `exact` with more than 16 features in the universe.
    """
    if interactions is not None:
        check_choice("interactions", interactions, ESTIMATORS)
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    config = model.config
    experts = _pair_experts(config.expert_names, pair_experts) if interactions else []
    if cache is not None:
        check_cache(model, cache)
    labels = _labels(sample.get("labels"))
    with evaluating(model):
        inputs = Inputs.from_batch(model, feature_batch(sample, config.modality_order))
        with torch.no_grad():
            output = model.run_mixture(inputs.projected, inputs.feature_masks)
        logits = _array(output.logits[0])
        target = _target(target, config.label_names, labels, logits, config.problem_type)
        targets = torch.tensor([target])
        importance = attribute(model, inputs, targets, method, seed=[[seed, sample_number]], **options)
        following = importance
        if experts and method != universe_method(model):
            following = attribute(model, inputs, targets, universe_method(model), of=options.get("of", "expert"))
        tables = {}
        for expert in experts:
            e = following.experts.index(expert)
            of_expert = {name: x[:, e] for name, x in following.scores.items()}
            players = feature_players(top_features(of_expert, inputs.candidate_masks, universe_share))
            tables[expert] = score_pairs(
                feature_game(model, inputs, expert, target, players, batch_size=batch_size),
                estimator=interactions,
                num_coalitions=num_coalitions,
                seed=sample_seed(seed, sample_number),
            )
    scores = scores_by_expert(importance, output.expert_weights)
    settings = {"seed": seed, **options}
    if importance.completeness_gap is not None:
        settings["completeness_gap"] = round(float(importance.completeness_gap.max()), 6)
    if interactions:
        settings |= {"universe_share": universe_share, "num_coalitions": num_coalitions}
        if method != universe_method(model):
            settings["universe_by"] = universe_method(model)
    cached = cache.modalities if cache is not None else {}
    described = {
        name: {"encoder": (config.encoders or {}).get(name), **cached.get(name, {})} for name in inputs.projected
    }
    return Explanation(
        sample_id=str(sample.get("id", "sample")),
        target=target,
        label_names=config.label_names,
        problem_type=config.problem_type,
        labels=labels,
        modalities={name: places_in(sample, name, x["encoder"], x.get("grid")) for name, x in described.items()},
        expert_names=list(config.expert_names),
        expert_weights=_array(output.expert_weights[0]),
        expert_logits=_array(output.expert_logits[0]),
        logits=logits,
        method=method,
        importance={expert: {name: _array(x[0]) for name, x in of.items()} for expert, of in scores.items()},
        pair_tables=tables,
        settings=settings,
        temperature=config.temperature,
        thresholds=config.thresholds,
    )


def true_targets(labels: Any, problem_type: str) -> list[int]:
    """The classes that an explanation of a row with these `labels` is due for: each true one; in a regression each
    output; none where labels are unknown."""
    values = _labels(labels) or []
    return list(range(len(values))) if problem_type == "regression" else true_classes(values, problem_type)


def _target(
    target: int | str | None, label_names: list[str], labels: list[float] | None, logits: np.ndarray, problem_type: str
) -> int:
    if isinstance(target, str):
        if target in label_names:
            return label_names.index(target)
        close = get_close_matches(target.lower(), [name.lower() for name in label_names], n=1)
        hint = f" Did you mean {next(x for x in label_names if x.lower() == close[0])!r}?" if close else ""
        raise ValueError(f"There is no class {target!r}; there are {', '.join(label_names)}.{hint}")
    if target is not None:
        if not hasattr(target, "__index__") or not 0 <= index(target) < len(label_names):
            named = ", ".join(f"{number}: {name}" for number, name in enumerate(label_names))
            raise ValueError(f"There is no class {target}; there are {named}.")
        return index(target)
    if problem_type == "regression":
        return 0
    return max(true_targets(labels, problem_type) or range(len(label_names)), key=lambda label: logits[label])


def _pair_experts(expert_names: Sequence[str], given: Sequence[str] | None) -> list[str]:
    if given is None:
        return [name for name in expert_names if name in ("synergy", "redundancy")] or list(expert_names)
    if unknown := set(given) - set(expert_names):
        raise ValueError(f"Unknown experts {sorted(unknown)} in `pair_experts`; this model has {list(expert_names)}.")
    return list(given)


def _labels(labels: Any) -> list[float] | None:
    return None if labels is None else np.atleast_1d(np.asarray(labels, dtype=np.float64)).tolist()


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
