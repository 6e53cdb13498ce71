"""
What a model's explanations find of a known truth: features against evidence, pairs against pairs of evidence.

A case is a sample and one of its labels. A measure is a dict from its name, a tuple, to one number a case, NaN where it
does not apply; [`summarise`] makes means and intervals of it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from ...cache import FeatureCache
from ...cache.batching import FeatureRows
from ...explain.attribution import MIXTURE, evaluating, mixture_importance
from ...explain.explain_sample import UNITS, described, most_players
from ...explain.inputs import Inputs, feature_batch
from ...explain.interactions import sample_seed, score_pairs
from ...explain.pair_table import PairTable
from ...explain.players import strongest_players
from ...metrics.summaries import resample, weighted_means
from ...metrics.tasks import FloatArray
from ...model.modeling_fl_i2moe import FLI2MoEModel
from ...utils.files import write_file
from .truth import BoolArray, Evidence, EvidenceProbe, ExpertOutputs, describe, precision_at, right_pairs

Truth = Mapping[str, Mapping[str, Evidence]]
"""Sample's id → label → where the label shows in the sample."""

Measures = dict[tuple[str, ...], FloatArray]

TOP_PAIRS = (1, 5, 10)
OTHER_POSITIONS = 4
"""Positions without evidence that a probe sees of each sample."""


@dataclass(frozen=True)
class Case:
    """A label that a sample, a row of a split, carries, and where it shows."""

    row: int
    sample_id: str
    target: int
    label: str
    evidence: Evidence


def choose_cases(
    ids: Sequence[str], labels: ArrayLike, label_names: Sequence[str], truth: Truth, num_cases: int, seed: int = 0
) -> list[Case]:
    """
    Draws `num_cases` cases, as many of each label (rounded up), whose evidence lies in the sequences in every modality.

    Args:
        ids, labels: of the N samples of a split, labels (N, C) multi-hot.
        label_names: the C names; labels without evidence in `truth` are left out. `ValueError` if no case is left.
    """
    rng = np.random.default_rng(seed)
    possible: dict[str, list[Case]] = defaultdict(list)
    for row, target in np.argwhere(np.asarray(labels) > 0):
        label = label_names[target]
        evidence = truth[ids[row]].get(label)
        if evidence is not None and all(features.any() for features in evidence.features.values()):
            possible[label].append(Case(int(row), ids[row], int(target), label, evidence))
    if not possible:
        raise ValueError("no sample of the split carries a label whose evidence is known and was not cut off")
    share = -(-num_cases // len(possible))
    chosen = []
    for label in label_names:
        if cases := possible.get(label):
            chosen += [cases[i] for i in sorted(rng.permutation(len(cases))[:share])]
    return chosen


def fit_probes(
    rows: FeatureRows, truth: Truth, label_names: Sequence[str], num_samples: int = 600, seed: int = 0
) -> dict[tuple[str, str], EvidenceProbe]:
    """(label, modality) → a probe for each modality with evidence of the label, fitted on the frozen features of
    `num_samples` samples of the training split `rows`, which `truth` must know."""
    rng = np.random.default_rng(seed)
    positions: dict[tuple[str, str], list[NDArray[np.float32]]] = defaultdict(list)
    states: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in rng.permutation(len(rows))[:num_samples].tolist():
        batch = rows[[row]]
        for label in label_names:
            evidence = truth[batch["ids"][0]][label]
            for name, here in evidence.features.items():
                features, candidates = _candidates(batch, name)
                others = rng.permutation(np.flatnonzero(candidates & ~evidence.near[name]))[:OTHER_POSITIONS]
                positions[label, name].append(features[np.concatenate([np.flatnonzero(here), others])])
                states[label, name] += [evidence.states[name]] * int(here.sum()) + [None] * len(others)
    return {key: EvidenceProbe(np.concatenate(positions[key]), states[key]) for key in positions}


def evidence_ceiling(
    rows: FeatureRows, cases: Sequence[Case], probes: Mapping[tuple[str, str], EvidenceProbe]
) -> Measures:
    """Precision of probes and of random features: ("probe" or "chance", modality, measure), as [`found_evidence`]."""
    measures = _Measures(len(cases))
    for i, case in enumerate(cases):
        batch = rows[[case.row]]
        for name in case.evidence.features:
            features, candidates = _candidates(batch, name)
            scores = probes[case.label, name].score(features, case.evidence.states[name])
            for predictor, values in (("probe", scores), ("chance", np.zeros(len(scores)))):
                measures.put(i, (predictor, name), _feature_precisions(values, case.evidence, name, candidates))
    return dict(measures)


def found_evidence(
    model: FLI2MoEModel,
    cache: FeatureCache,
    split: str,
    cases: Sequence[Case],
    *,
    units: str,
    methods: Sequence[str],
    num_steps: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Measures:
    """
    Precision of the features, or units of the input, that score highest for each case's label, per expert and for the
    weighted mixture. A unit holds evidence where one of its features does.

    Returns:
        (expert or "mixture", method, modality, measure) → (cases,), where the modality has evidence of the label. The
        measures `k` and `5` take as many features as hold evidence, or five; a feature is right on the evidence or
        beside it (`Evidence.near`), for `k_exact` and `5_exact` on the evidence alone.
    """
    measures, experts = _Measures(len(cases)), model.config.expert_names
    for number, case in enumerate(tqdm(cases, desc="Evidence", leave=False, disable=not progress)):
        subject, evidence = _open(model, cache, split, case, units)
        inputs = Inputs.from_batch(model, feature_batch(cache.splits[split][case.row], model.config.modality_order))
        with evaluating(model), torch.no_grad():
            weights = model.run_mixture(inputs.projected, inputs.feature_masks).expert_weights
        for method in methods:
            options = {"num_steps": num_steps} if method == "ig" else {}
            importance = subject.attribute(case.target, method, seed=(seed, case.row), **options)
            mixed = mixture_importance(importance, weights)
            for name in evidence.features:
                candidates = importance.candidate_masks[name][0].cpu().numpy()
                scores = torch.cat([importance.scores[name][0], mixed[name]]).cpu().numpy()
                for expert, values in zip([*experts, MIXTURE], scores, strict=True):
                    found = _feature_precisions(values, evidence, name, candidates)
                    measures.put(number, (expert, method, name), found)
    return dict(measures)


def found_pairs(
    model: FLI2MoEModel,
    cache: FeatureCache,
    split: str,
    cases: Sequence[Case],
    carriers: Mapping[str, str],
    *,
    units: str,
    universe_share: float = 0.3,
    estimator: str = "shared_context",
    num_coalitions: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Measures:
    """
    Precision of the pairs that score highest for each case's label; right if both ends lie in or beside the evidence.

    The universe `top` is the share of each modality with the largest effect on the expert ([`strongest_players`]);
    `oracle` adds the evidence to it, which separates a poor estimate from a poor choice of candidates. A user gets no
    such explanation, so only the expert that should carry the label is asked for it (all, if the model lacks that one).

    Args:
        model: in eval mode.
        cases: of labels with evidence in two modalities.
        carriers: label → expert.

    Returns:
        (expert, universe, score, measure) → (cases,). Scores: `sii_absolute` (the primary one: the index of an
        exclusive-or is negative for one polarity), `sii_signed`, `redundancy_published`, `redundancy_both`. Measures:
        `1`, `5`, `10`; `5_exact`, which counts the evidence alone; `5_<modality>`, which asks for that end alone.
        Under the score `universe`: `chance`, the share of right pairs; `any`, whether there is one; `5`, the best
        possible precision at 5.
    """
    measures, experts = _Measures(len(cases)), model.config.expert_names
    how: dict[str, Any] = {"estimator": estimator, "num_coalitions": num_coalitions}
    for number, case in enumerate(tqdm(cases, desc="Pairs", leave=False, disable=not progress)):
        subject, evidence = _open(model, cache, split, case, units)
        for expert in experts:
            players = strongest_players(subject.game(expert, case.target), universe_share, most_players(units))
            universes = {"top": players}
            if carriers[case.label] not in experts or carriers[case.label] == expert:
                own = {player for player in subject.players if evidence.holds(player)}
                universes["oracle"] = [player for player in subject.players if player in own.union(players)]
            for universe, chosen in universes.items():
                game = subject.game(expert, case.target, chosen)
                table = score_pairs(game, **how, seed=sample_seed(seed, case.row))
                measures.put(number, (expert, universe), _pair_precisions(table, evidence))
    return dict(measures)


def of_right_expert(
    measures: Measures, cases: Sequence[Case], carriers: Mapping[str, str], experts: Sequence[str]
) -> Measures:
    """What [`found_evidence`] gives for the expert that should carry each case's label, or for the only one: (method,
    modality, measure) → (cases,), NaN where the model lacks that expert."""
    right = np.array([carriers[case.label] if len(experts) > 1 else experts[0] for case in cases])
    result = _Measures(len(cases))
    for (expert, *rest), values in measures.items():
        if expert in experts:
            own = right == expert
            result[tuple(rest)][own] = values[own]
    return dict(result)


def summarise(
    by_seed: Sequence[Measures],
    cases: Sequence[Case],
    groups: Mapping[str, str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Means over cases, per group of labels; the bootstrap draws samples, with all of their cases.

    Args:
        by_seed: measures of one model each, of the same cases.
        groups: label → its group, for instance the expert that should carry it.

    Returns:
        JSON: group → the parts of a measure's name, nested → what [`describe`] gives, where there is a case.
    """
    samples, sample_of_case = np.unique([case.sample_id for case in cases], return_inverse=True)
    weights = resample(len(samples), num_resamples, seed)[:, sample_of_case]
    group_of_case = np.array([groups[case.label] for case in cases])
    result: dict[str, Any] = {}
    for group in dict.fromkeys(group_of_case.tolist()):
        for key in by_seed[0]:
            values = np.stack([measures[key] for measures in by_seed])
            values = np.where(group_of_case == group, values, np.nan)
            if np.isfinite(values).any():
                place = result.setdefault(group, {})
                for part in key[:-1]:
                    place = place.setdefault(part, {})
                place[key[-1]] = describe(weighted_means(values, weights))
    return result


@dataclass(frozen=True)
class ModelMeasures:
    """What one model gives to the tables."""

    outputs: ExpertOutputs
    evidence: Measures
    pairs: Measures

    def save(self, path: Path) -> None:
        arrays = asdict(self.outputs)
        for kind in ("evidence", "pairs"):
            arrays |= {"/".join((kind, *key)): values for key, values in getattr(self, kind).items()}
        write_file(path, lambda unfinished: np.savez_compressed(unfinished, **arrays))

    @classmethod
    def load(cls, path: Path) -> "ModelMeasures":
        measures: dict[str, Measures] = {"evidence": {}, "pairs": {}}
        with np.load(path) as arrays:
            outputs = ExpertOutputs(arrays["expert_logits"], arrays["expert_weights"])
            for name in arrays.files:
                kind, *key = name.split("/")
                if key:
                    measures[kind][tuple(key)] = arrays[name]
        return cls(outputs, **measures)


class _Measures(defaultdict[tuple[str, ...], FloatArray]):
    def __init__(self, num_cases: int) -> None:
        super().__init__(lambda: np.full(num_cases, np.nan))

    def put(self, case: int, name: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> None:
        """Of one case; the names in `values` are appended to `name`."""
        for more, value in values.items():
            self[*name, *more][case] = value


def _candidates(batch: Mapping[str, Any], name: str) -> tuple[NDArray[np.float32], BoolArray]:
    """Features (T, D) of a single sample's modality, and which of them are real and not special."""
    candidates = batch["feature_masks"][name] & ~batch["special_masks"][name]
    return batch["features"][name][0].numpy().astype(np.float32), candidates[0].numpy()


def _open(model: FLI2MoEModel, cache: FeatureCache, split: str, case: Case, units: str) -> tuple[Any, Evidence]:
    """What a case's sample is to the games, and the evidence in its units."""
    subject = UNITS[units](model, cache.splits[split][case.row], described(model, cache))
    if units == "features":
        return subject, case.evidence
    of_units = {name: modality.units.features for name, modality in subject.modalities.items()}
    return subject, case.evidence.in_units(of_units)


def _feature_precisions(
    scores: FloatArray, evidence: Evidence, name: str, candidates: BoolArray
) -> dict[tuple[str, ...], float]:
    """Scores (T,), which may be longer than the sequence: what lies behind it is no candidate."""
    chosen = np.flatnonzero(candidates[: len(evidence.features[name])])
    here, near = evidence.features[name][chosen], evidence.near[name][chosen]
    precisions: dict[tuple[str, ...], float] = {}
    for measure, k in (("k", int(here.sum())), ("5", 5)):
        precisions[measure,] = precision_at(scores[chosen], near, k)
        precisions[f"{measure}_exact",] = precision_at(scores[chosen], here, k)
    return precisions


def _pair_precisions(table: PairTable, evidence: Evidence) -> dict[tuple[str, ...], float]:
    pairs = table.ends
    precisions: dict[tuple[str, ...], float] = {}
    right, exact = right_pairs(pairs, evidence.near), right_pairs(pairs, evidence.features)
    rankings = {
        "sii_absolute": np.abs(table.score("sii")),
        "sii_signed": table.score("sii"),
        "redundancy_published": table.score("redundancy"),
        "redundancy_both": table.score("redundancy_both"),
    }
    for score, values in rankings.items():
        for k in TOP_PAIRS:
            precisions[score, str(k)] = precision_at(values, right, k)
        precisions[score, "5_exact"] = precision_at(values, exact, 5)
        for name, near in evidence.near.items():
            end = [any(player.modality == name and near[player.place] for player in pair) for pair in pairs]
            precisions[score, f"5_{name}"] = precision_at(values, end, 5)
    precisions["universe", "chance"] = float(right.mean())
    precisions["universe", "any"] = float(right.any())
    precisions["universe", "5"] = min(5, int(right.sum())) / min(5, len(right))
    return precisions
