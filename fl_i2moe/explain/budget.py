"""
What an explanation of the input costs, and how much of it fits into a given time.

Nearly all that is asked of an [`~fl_i2moe.explain.input_sample.InputSample`] is *contexts*: a coalition, and the same
one with each single unit put in or taken out. For U units of a modality that is U + 1 encodings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.places import Places
from .attribution import count_share
from .input_attribution import num_contexts
from .interactions import ESTIMATORS, cross_modal_pairs

if TYPE_CHECKING:
    from .input_sample import InputSample

ENDS = 2
"""Contexts that the choice of players needs: nothing and everything."""

LEAST_UNITS = 16
"""Of a modality that has them, however little time there is: 4 × 4 cells of a picture."""

PAIR_PLANS = ((16, 16), (16, 8), (12, 8), (8, 8), (8, 4), (6, 4), (4, 4), (3, 4), (3, 2))
"""Players of a modality and coalitions of a pair, down to the least that is worth an answer."""

MEASURING = 0.05
"""Share of the time in which the speed is measured."""


@dataclass(frozen=True)
class Work:
    """What is asked of a sample."""

    encodings: Mapping[str, int]
    """Modality → its subsets that are encoded."""

    runs: int
    """Coalitions that an expert answers, over the experts."""

    @property
    def num_encodings(self) -> int:
        return sum(self.encodings.values())

    def seconds(self, sample: "InputSample") -> float:
        """By the sample's clocks."""
        encoding = sum(number * sample.modalities[name].clock.each for name, number in self.encodings.items())
        return encoding + self.runs * sample.run_clock.each


@dataclass(frozen=True)
class Plan:
    """How much of an explanation is computed."""

    method: str
    """Of importance."""

    num_experts: int
    """Of the model."""

    num_pair_experts: int
    """Those whose pairs are scored."""

    estimator: str | None
    """Of pairs."""

    share: float
    """Of each modality's units whose pairs are scored …"""

    most_players: int | None
    """… and how many at most."""

    num_coalitions: int
    """For each pair."""

    draws: int = 4
    """Coalitions that Shapley values are estimated from, see [`attribute_input`]."""

    @property
    def contexts(self) -> int:
        """Of all units: what importance and the choice of players share is asked for once."""
        return max(num_contexts(self.method, self.draws), ENDS if self.num_pair_experts else 0)

    def importance(self, num_units: Mapping[str, int]) -> Work:
        encodings = {name: _subsets(units, self.contexts * (units + 1)) for name, units in num_units.items()}
        return Work(encodings, self.contexts * (sum(num_units.values()) + 1) * self.num_experts)

    def players(self, num_units: Mapping[str, int]) -> dict[str, int]:
        """Modality → how many of its units make pairs."""
        most = self.most_players
        return {name: min(count_share(self.share, units), most or units) for name, units in num_units.items()}

    def pairs(self, num_units: Mapping[str, int]) -> Work:
        """Of one expert: the choice of its players, whose encodings importance has, and what the estimator asks for
        when it is run on a game of zeros."""
        if self.estimator is None or not num_units:
            return Work({}, 0)
        players = self.players(num_units)
        owners = np.repeat(list(players), list(players.values()))
        asked: list[Any] = []

        def value(coalitions: Any) -> Any:
            asked.append(np.asarray(coalitions, np.bool_))
            return np.zeros(len(coalitions))

        ESTIMATORS[self.estimator](value, len(owners), cross_modal_pairs(owners.tolist()), self.num_coalitions, 0)
        distinct = np.unique(np.concatenate(asked), axis=0)
        choosing = 2 * sum(num_units.values()) + 2
        encodings = {name: len(np.unique(distinct[:, owners == name], axis=0)) for name in players}
        return Work(encodings, choosing + len(distinct))

    def encodings(self, num_units: Mapping[str, int]) -> int:
        """In all, at most."""
        return self.importance(num_units).num_encodings + self.num_pair_experts * self.pairs(num_units).num_encodings

    def note(self, places: Mapping[str, Places], seconds: float) -> str:
        """What was chosen, as a sentence."""
        units = {name: len(x.candidates) for name, x in places.items()}
        players = self.players(units)
        in_pairs = {name: f" ({players[name]} in pairs)" if self.num_pair_experts else "" for name in units}
        parts = [f"{x.noun} of the {name}: {units[name]}{in_pairs[name]}" for name, x in places.items()]
        if num_contexts(self.method, self.draws):
            parts.append(f"coalitions for importance: {self.contexts}")
        if self.num_pair_experts:
            parts.append(f"coalitions a pair: {self.num_coalitions}")
        return f"Chosen to answer in about {seconds:g} s: {', '.join(parts)}."


def _subsets(num_units: int, most: int) -> int:
    return min(2 ** min(num_units, 62), most)


class Budget:
    """
    A time from now on, and what fits into it.

    Raises:
        ValueError: the time is no positive number.
    """

    def __init__(self, seconds: float):
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ValueError(f"`max_seconds` must be a positive number, got {seconds!r}.")
        self.seconds, self._start = seconds, perf_counter()

    @property
    def left(self) -> float:
        return self.seconds - (perf_counter() - self._start)

    def fit(self, plan: Plan, sample: "InputSample", may_cut: bool = True) -> Plan:
        """
        Measures the speed, puts units together if it may and has to, and takes as many draws as fit. Importance has
        half of the time if pairs are scored, otherwise all.
        """
        measure(sample, MEASURING * self.seconds)
        share = 0.5 if plan.num_pair_experts else 1
        if may_cut:
            fit_units(plan, sample, share * self.left)
        plan = fit_draws(plan, sample, share * self.left)
        importance = plan.importance(sample.num_units).seconds(sample)
        return fit_pairs(plan, sample, self.left - importance)

    def fit_pairs(self, plan: Plan, sample: "InputSample") -> Plan:
        """The players and coalitions for which there is time now."""
        return fit_pairs(plan, sample, self.left)


def measure(sample: "InputSample", seconds: float) -> None:
    """
    Sets the sample's clocks by coalitions drawn at random, twice as many each time, up to 16, until so much time is
    spent. Only the last ones count, since the first of all pay for warming up.
    """
    start, number, rng = perf_counter(), 1, np.random.default_rng(0)
    while True:
        sample.restart_clocks()
        sample.expert_logits(rng.random((number, len(sample.players))) < 0.5, sample.players)
        if number == 16 or perf_counter() - start > seconds:
            return
        number *= 2


def fit_units(plan: Plan, sample: "InputSample", seconds: float) -> None:
    """Cuts the sample coarser where the contexts of its units, without draws, would take longer. Modalities have the
    same time each; what one does not need the others have."""
    contexts = replace(plan, draws=0).contexts
    runs = plan.num_experts * sample.run_clock.each
    prices = {name: contexts * (x.clock.each + runs) for name, x in sample.modalities.items()}
    needs = {name: prices[name] * (units + 1) for name, units in sample.num_units.items()}
    for number, name in enumerate(sorted(needs, key=needs.__getitem__)):
        each = seconds / (len(needs) - number)
        seconds -= min(each, needs[name])
        if needs[name] > each and sample.num_units[name] > LEAST_UNITS:
            sample.coarsen(name, max(LEAST_UNITS, int(each / prices[name]) - 1))


def fit_draws(plan: Plan, sample: "InputSample", seconds: float) -> Plan:
    """As many draws of Shapley values as fit; with its complement a draw errs less, so their number is even."""
    for draws in range(plan.draws - plan.draws % 2, 0, -2):
        fitting = replace(plan, draws=draws)
        if fitting.importance(sample.num_units).seconds(sample) <= seconds:
            return fitting
    return replace(plan, draws=0)


def fit_pairs(plan: Plan, sample: "InputSample", seconds: float) -> Plan:
    """The best of [`PAIR_PLANS`] that fits, or the last one, but never more than was planned."""
    fitting = plan
    for players, coalitions in PAIR_PLANS:
        fitting = replace(
            plan,
            most_players=min(players, plan.most_players or players),
            num_coalitions=min(coalitions, plan.num_coalitions),
        )
        if plan.num_pair_experts * fitting.pairs(sample.num_units).seconds(sample) <= seconds:
            break
    return fitting
