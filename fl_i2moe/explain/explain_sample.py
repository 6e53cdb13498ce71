"""From a sample to the explanation of its prediction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from operator import index
from typing import Any, Literal

import numpy as np
import torch

from ..cache import FeatureCache
from ..model.configuration_fl_i2moe import check_choice
from ..model.modeling_fl_i2moe import FLI2MoEModel
from ..model.places import UnitOptions
from ..training.runs import check_cache
from .attribution import evaluating, scores_by_expert
from .budget import Budget, Plan
from .explanation import Explanation
from .explanation_data import true_classes
from .feature_sample import FeatureSample
from .input_attribution import LOGIT_METHODS, contributed_scores
from .input_sample import InputSample, OnProgress
from .inputs import Inputs, check_model, feature_batch, sample_row
from .interactions import ESTIMATORS, sample_seed, score_pairs
from .pair_table import kind_of_expert
from .players import strongest_players
from .subject import Subject

UNITS: dict[str, Any] = {"input": InputSample, "features": FeatureSample}
"""What has importance and makes pairs → what a sample is then, a [`Subject`]."""

MOST_PLAYERS = 16
"""Words, cells or stretches of a modality whose pairs are scored, at most."""

OnStage = Callable[[str, int, int], None]
"""Told what is done now, how many subsets of the sample's modalities have been encoded so far, and how many there will
be at most; 0 where that is not known."""


def explain(
    model: FLI2MoEModel,
    sample: Mapping[str, Any],
    target: int | str | None = None,
    *,
    units: Literal["input", "features"] = "input",
    method: str | None = None,
    interactions: str | None = "shared_context",
    pair_experts: Sequence[str] | None = None,
    num_coalitions: int = 16,
    target_error: float | None = None,
    universe_share: float = 0.3,
    seed: int = 0,
    cache: FeatureCache | None = None,
    sample_number: int = 0,
    batch_size: int | None = None,
    cut: UnitOptions | None = None,
    removals: Mapping[str, str] | None = None,
    on_stage: OnStage | None = None,
    subject: Subject | None = None,
    max_seconds: float | None = None,
    **options: Any,
) -> Explanation:
    """
    Explains the prediction of one class for one sample: importance of its parts for every expert, and how pairs of them
    interact.

    ```python
    >>> explanation = explain(model, {"image": "poster.jpg", "text": "A pianist …"}, "music")
    >>> explanation.pairs("synergy", top=10)
    >>> explain(pipe.model, sample, pipe(sample)[0]["label"]).save("page.html")  # of a transformers pipeline's answer
    ```

    Args:
        sample: modality → raw value; a row of a raw data set; or a row of a feature cache, `cache.splits["test"][5]`.
        target: class, by name or index. By default the true one, of several the one with the highest logit; where none
            is true the one with the highest logit; the first output of a regression.
        units: what has importance and makes pairs. `"input"`: words, cells of pictures, stretches of sounds, columns
            and positions of arrays, which are taken out *before* the frozen encoders, so that nothing of them is left.
            `"features"`: tokens and patches, as in the paper, which are zeroed behind encoders that have mixed them.
        method: of importance: one of `input_attribution.INPUT_METHODS`, or of `attribution.METHODS` for features. By
            default Shapley values for the input and Grad×AttnRoll for features (integrated gradients where the fusion
            has no attention).
        interactions: how pairs are scored, one of `interactions.ESTIMATORS`; not at all if None.
        pair_experts: whose pairs are scored; by default those of synergy and redundancy, or the dense model's one.
        num_coalitions: coalitions for each pair.
        target_error: go on until the strongest pairs are known so well, in logits, see [`score_pairs`].
        universe_share: share of each modality's units, those with the largest effect on the expert
            ([`strongest_players`]), whose pairs are scored, in (0, 1]; of the input at most 16.
        seed, sample_number: what is random importance and which coalitions are drawn follows from the two; the number
            is the sample's place in its split.
        cache: where the row comes from: its grid of patches, and its encoders' names instead of the model's.
        batch_size: coalitions of features in one pass.
        cut: what raw values are cut into, where that can be chosen: cells, words or sentences.
        removals: modality → how its units are taken out, one of its encoder's `removals`; the first one if not named.
        max_seconds: how long it may take, about, where units are of the input. The speed of this sample's first
            encodings is measured; then words and cells are put together, and draws, players and coalitions left out, as
            far as it needs (`budget`); `settings` and `remarks` say what was chosen. A floor remains, so that a slow
            machine takes longer. What is found then depends on the machine's speed, too.
        on_stage: told what is being done.
        subject: the sample from [`open_sample`], with the same units: what it has encoded is not encoded again.
        options: of the method: see `attribute_input` and `attribute`.

    Raises:
        ValueError: it is no model, or one that runs older code; an unknown class, method, estimator, expert or removal;
            a negative seed; a cache that does not fit the model; the sample lacks a modality, has one without
            candidates, or features that do not fit the model or are not finite; an encoder that cannot be loaded, or a
            raw value that is not there; a share outside (0, 1]; `exact` with more than 16 players; no positive
            `max_seconds`, or one for features or beside `target_error`.
    """
    check_model(model)
    check_choice("units", units, UNITS)
    if interactions is not None:
        check_choice("interactions", interactions, ESTIMATORS)
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    budget = None if max_seconds is None else Budget(max_seconds)
    if budget is not None and (units != "input" or target_error is not None):
        raise ValueError("`max_seconds` needs units='input', and excludes `target_error`.")
    config = model.config
    experts = _pair_experts(config.expert_names, pair_experts) if interactions else []
    if cache is not None:
        check_cache(model, cache)

    stage, expected = "Encoding the sample", 0
    encoded = 0 if subject is None else subject.encodings

    def done() -> int:
        return 0 if subject is None else subject.encodings - encoded

    def say() -> None:
        if on_stage is not None:
            on_stage(stage, done(), expected)

    with evaluating(model):
        say()
        row = sample_row(model, sample)
        inputs = Inputs.from_batch(model, feature_batch(row, config.modality_order))
        with torch.no_grad():
            output = model.run_mixture(inputs.projected, inputs.feature_masks)
        labels, logits = _labels(row.get("labels")), _array(output.logits[0])
        target = _target(target, config.label_names, labels, logits, config.problem_type)
        is_new = subject is None
        if subject is None:
            how: dict[str, Any] = {"cache": cache, "batch_size": batch_size, "cut": cut, "removals": removals}
            subject = open_sample(model, row, units, **how, on_progress=lambda _: say())
        methods = subject.methods_of(model)
        method = method or methods[0]
        check_choice("method", method, methods)
        most, num_experts = most_players(units), len(config.expert_names)
        draws: dict[str, int] = {}
        plan = asked = Plan(method, num_experts, len(experts), interactions, universe_share, most, num_coalitions)
        if budget is not None and isinstance(subject, InputSample):
            stage = "Measuring the speed"
            say()
            plan = budget.fit(asked, subject, may_cut=is_new)
            draws = {"num_coalitions": plan.draws}
        stage = "Importance"
        if on_stage is not None:
            expected = done() + plan.encodings(subject.num_units)
        say()
        importance = subject.attribute(target, method, seed=(seed, sample_number), **options, **draws)
        if budget is not None and isinstance(subject, InputSample):
            plan = replace(budget.fit_pairs(asked, subject), draws=plan.draws)
        of_an_expert = 0 if on_stage is None else plan.pairs(subject.num_units).num_encodings
        tables = {}
        for number, expert in enumerate(experts):
            stage = f"Pairs of the {expert.replace('_', ' ')} expert"
            expected = done() + of_an_expert * (len(experts) - number)
            say()
            players = strongest_players(subject.game(expert, target), universe_share, plan.most_players)
            tables[expert] = score_pairs(
                subject.game(expert, target, players),
                estimator=interactions,
                num_coalitions=plan.num_coalitions,
                seed=sample_seed(seed, sample_number),
                target_error=target_error,
                kind=kind_of_expert(expert),
            )
    in_logits = method in LOGIT_METHODS
    scores = (contributed_scores if in_logits else scores_by_expert)(importance, output.expert_weights)
    settings: dict[str, Any] = {"units": units, "seed": seed, **options}
    if max_seconds is not None:
        settings["max_seconds"] = max_seconds
    if done():
        settings["encodings"] = done()
    if importance.completeness_gap is not None:
        settings["completeness_gap"] = round(float(importance.completeness_gap.max()), 6)
    if interactions:
        settings |= {"universe_share": universe_share, "num_coalitions": plan.num_coalitions}
    if target_error is not None:
        settings["target_error"] = target_error
    chosen = [] if budget is None else [plan.note(subject.places, budget.seconds)]
    short = [
        f"Pairs of the {name.replace('_', ' ')} expert: {table.note}" for name, table in tables.items() if table.note
    ]
    return Explanation(
        sample_id=str(row.get("id", "sample")),
        target=target,
        label_names=config.label_names,
        problem_type=config.problem_type,
        labels=labels,
        modalities=subject.places,
        expert_names=list(config.expert_names),
        expert_weights=_array(output.expert_weights[0]),
        expert_logits=_array(output.expert_logits[0]),
        logits=logits,
        method=method,
        importance={expert: {name: _array(x[0]) for name, x in of.items()} for expert, of in scores.items()},
        pair_tables=tables,
        settings=settings,
        remarks=[*chosen, *subject.notes, *short],
        temperature=config.temperature,
        thresholds=config.thresholds,
        reads=_reads(model),
    )


def open_sample(
    model: FLI2MoEModel,
    row: Mapping[str, Any],
    units: str = "input",
    *,
    cache: FeatureCache | None = None,
    batch_size: int | None = None,
    cut: UnitOptions | None = None,
    removals: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Subject:
    """
    A row of a feature cache as what several explanations and measurements of it can share, see [`explain`].

    Raises:
        ValueError: as [`InputSample`] and [`FeatureSample`].
    """
    how: dict[str, Any] = {"batch_size": batch_size}
    if units == "input":
        how = {"options": cut, "removals": removals, "on_progress": on_progress}
    return UNITS[units](model, row, described(model, cache), **how)


def most_players(units: str) -> int | None:
    """How many players a modality can have in a game of pairs: each costs encodings of the input."""
    return MOST_PLAYERS if units == "input" else None


def described(model: FLI2MoEModel, cache: FeatureCache | None) -> dict[str, dict[str, Any]]:
    """Modality → `encoder`, its identity, and of a cache `grid`."""
    known = {name: {"encoder": (model.config.encoders or {}).get(name)} for name in model.config.modality_order}
    return {name: {**x, **(cache.modalities[name] if cache is not None else {})} for name, x in known.items()}


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


def _reads(model: FLI2MoEModel) -> dict[str, list[str]]:
    """See `ExplanationData.reads`."""
    order, shares = model.config.modality_order, model.experts.modality_shares()
    return {
        name: [x for x, share in zip(order, shares[e], strict=True) if share > 0 or model.experts.attends_across(e)]
        for e, name in enumerate(model.config.expert_names)
    }


def _labels(labels: Any) -> list[float] | None:
    return None if labels is None else np.atleast_1d(np.asarray(labels, dtype=np.float64)).tolist()


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
