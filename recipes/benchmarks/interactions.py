"""Pair interactions: error per evaluation, time against a plain loop, time and memory against the number of samples."""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.explain.feature_game import feature_game, feature_players
from fl_i2moe.explain.game import Player
from fl_i2moe.explain.inputs import Inputs
from fl_i2moe.explain.interactions import (
    ESTIMATORS,
    cross_modal_pairs,
    per_pair,
    sample_seed,
    score_pairs,
    shared_context,
)

from . import measuring
from .features import peak_memory_and_time
from .measuring import ratios, spread

EXPERT, TARGET = "synergy", 0
ENCODER_WIDTHS = {"image": 1280, "text": 384}
PLAYERS = {"image": 13, "text": 20}
"""260 pairs."""

MMIMDB_TEST_SAMPLES = 7799


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_features", type=int, default=49)
    parser.add_argument("--text_features", type=int, default=80)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_coalitions", type=int, default=4)
    parser.add_argument("--num_calls", type=int, default=64, help="of the plain loop that are timed, of a few thousand")
    parser.add_argument("--num_games", type=int, default=100, help="over which errors are averaged")
    parser.add_argument(
        "--num_samples", type=int, default=8, help="of the small run; the large one has four times more"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> None:
    """Pair interactions: error per evaluation, time against a plain loop, time and memory against samples."""
    compare_errors(args)
    compare_with_plain_loop(args)
    compare_numbers_of_samples(args)


# ---- error ---------------------------------------------------------------------------------------------------------


def compare_errors(args: argparse.Namespace) -> None:
    """Squared error of the index on games that are sums of products, whose index is known."""
    num_players = sum(PLAYERS.values())
    pairs = cross_modal_pairs([name for name, number in PLAYERS.items() for _ in range(number)])
    print(f"\nsquared error on {args.num_games} games of {num_players} players, {len(pairs)} pairs")
    for num_coalitions in (args.num_coalitions, 4 * args.num_coalitions):
        errors, evaluations = {"shared": [], "own": []}, {"shared": [], "own": []}
        for seed in range(args.num_games):
            game, index = product_game(num_players, pairs, seed)
            shared = shared_context(game, num_players, pairs, num_coalitions, seed)
            own_coalitions = max(1, round(shared.evaluations / (4 * len(pairs))))
            own = per_pair(game, num_players, pairs, own_coalitions, seed)
            for name, scores in (("shared", shared), ("own", own)):
                errors[name].append(float(np.mean((scores.score("sii") - index) ** 2)))
                evaluations[name].append(scores.evaluations)
        mean = {name: statistics.mean(values) for name, values in evaluations.items()}
        cost = {name: statistics.mean(values) * mean[name] for name, values in errors.items()}
        print(
            f"  {num_coalitions:2} coalitions: {mean['shared']:,.0f} evaluations, per_pair {mean['own']:,.0f}; error × "
            f"evaluations, shared_context ÷ per_pair: {cost['shared'] / cost['own']:.2f} (goal: 0.6)"
        )


def product_game(
    num_players: int, pairs: NDArray[np.int64], seed: int, num_products: int = 150
) -> tuple[Callable[[NDArray[np.bool_]], NDArray[np.float64]], NDArray[np.float64]]:
    """A random sum of products of 1 to 6 players, and the index of each pair: Σ weight / (number of players − 1)."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=num_products)
    members = rng.random((num_products, num_players)).argsort(axis=1).argsort(axis=1) < sizes[:, None]
    weights = rng.normal(size=num_products)
    shares = np.divide(weights, sizes - 1, out=np.zeros(num_products), where=sizes > 1)
    index = shares @ (members[:, pairs[:, 0]] & members[:, pairs[:, 1]])
    return lambda coalitions: (coalitions.astype(np.float64) @ members.T == sizes) @ weights, index


# ---- a plain loop --------------------------------------------------------------------------------------------------


def make_model(args: argparse.Namespace) -> FLI2MoEModel:
    lengths = {"image": args.image_features, "text": args.text_features}
    modalities = {name: {"feature_size": ENCODER_WIDTHS[name], "max_features": lengths[name]} for name in lengths}
    torch.manual_seed(0)
    return FLI2MoEModel(FLI2MoEConfig(modalities=modalities, num_labels=23, hidden_size=args.hidden_size)).eval()


def make_inputs(model: FLI2MoEModel) -> tuple[Inputs, list[Player]]:
    """A random sample without padding, the first feature special, and the players."""
    batch = {"features": {}, "feature_masks": {}, "special_masks": {}}
    universe = {}
    for name, modality in model.config.modalities.items():
        places = torch.arange(modality["max_features"])[None]
        batch["features"][name] = torch.randn(*places.shape, modality["feature_size"])
        batch["feature_masks"][name] = torch.ones_like(places, dtype=torch.bool)
        batch["special_masks"][name] = places == 0
        universe[name] = (places > 0) & (places <= PLAYERS[name])
    return Inputs.from_batch(model, batch), feature_players(universe)


@torch.inference_mode()
def plain_loop(
    model: FLI2MoEModel,
    inputs: Inputs,
    players: list[Player],
    coalitions: NDArray[np.bool_],
    only_expert: bool,
) -> NDArray[np.float64]:
    """The model once per coalition."""
    expert = 0 if only_expert else model.config.expert_names.index(EXPERT)
    values = []
    for coalition in coalitions:
        keep = {name: ~mask for name, mask in inputs.candidate_masks.items()}
        for player, plays in zip(players, coalition.tolist(), strict=True):
            keep[player.modality][0, player.place] = plays
        logits = model.run_experts(inputs.projected, keep=keep, experts=[EXPERT] if only_expert else None)
        values.append(float(logits[0, expert, TARGET]))
    return np.array(values)


def compare_with_plain_loop(args: argparse.Namespace) -> None:
    model = make_model(args).to(args.device)
    inputs, players = make_inputs(model)
    pairs = cross_modal_pairs([player.modality for player in players])
    title = (
        f"{len(pairs)} pairs × {args.num_coalitions} coalitions, {args.image_features} + {args.text_features} features"
    )
    print(f"\n{title}, hidden {args.hidden_size}, {args.device}; of the plain loop {args.num_calls} calls are timed")
    for name in ("per_pair", "shared_context"):
        asked: list[NDArray[np.bool_]] = []

        def record(coalitions: NDArray[np.bool_], asked: list = asked) -> NDArray[np.float64]:
            asked.append(coalitions)
            return np.zeros(len(coalitions))

        recorded = ESTIMATORS[name](record, len(players), pairs, args.num_coalitions, seed=0)
        distinct = np.concatenate(asked)
        some = distinct[np.linspace(0, len(distinct) - 1, args.num_calls).astype(int)]
        num_calls = 4 * int(recorded.num_coalitions.sum())
        seconds: dict[str, list[float]] = {"game": [], "plain": [], "plain, one expert": []}
        for repetition in range(args.repetitions + 1):
            game = feature_game(model, inputs, EXPERT, TARGET, players)
            start = measuring.clock()
            ESTIMATORS[name](game, len(players), pairs, args.num_coalitions, seed=0)
            times = {"game": measuring.clock() - start}
            for loop, only_expert in (("plain", False), ("plain, one expert", True)):
                start = measuring.clock()
                values = plain_loop(model, inputs, players, some, only_expert)
                times[loop] = (measuring.clock() - start) / len(some)
                difference = np.abs(values - game(some)).max()
                if difference > 1e-4:
                    raise SystemExit(f"the plain loop's values differ by {difference:.1e}")
            if repetition:
                for key, value in times.items():
                    seconds[key].append(value)
        print(f"  {name}: {num_calls:,} values, {len(distinct):,} distinct; {spread(seconds['game'], ' s')}")
        print(f"    {forecast(seconds['game'])}")
        for loop in ("plain", "plain, one expert"):
            same = ratios([num_calls * value for value in seconds[loop]], seconds["game"])
            print(f"    loop, {'all experts' if loop == 'plain' else 'one expert'}: a call {ms(seconds[loop])}")
            print(f"      of the {num_calls:,} values ÷ ours  {spread(same)} (goal: 20)")


def forecast(seconds: list[float]) -> str:
    """From the seconds that one sample takes."""
    rate = spread([1 / value for value in seconds], " samples/s", digits=2)
    hours = spread([MMIMDB_TEST_SAMPLES * value / 3600 for value in seconds], " h")
    return f"one expert and one class: {rate}; MM-IMDb's {MMIMDB_TEST_SAMPLES:,} test samples: {hours}"


def ms(seconds: list[float]) -> str:
    return spread([1e3 * value for value in seconds], " ms")


# ---- number of samples ---------------------------------------------------------------------------------------------


def compare_numbers_of_samples(args: argparse.Namespace) -> None:
    small, large = args.num_samples, 4 * args.num_samples
    seconds: dict[int, list[float]] = {small: [], large: []}
    peaks: dict[int, list[float]] = {small: [], large: []}
    for _ in range(args.repetitions):
        for number in (small, large):
            peak, needed = peak_memory_and_time(score_samples, args, number)
            peaks[number].append(peak)
            seconds[number].append(needed)
    print(f"\n{small} and {large} samples in a fresh process (CPU), 1 coalition a pair")
    added = [(b - a) / (large - small) for a, b in zip(seconds[small], seconds[large], strict=True)]
    print(f"  {spread(seconds[small], ' s')} and {spread(seconds[large], ' s')}: {spread(added, ' s')} a sample")
    print(f"  {forecast(added)}")
    memory = spread(ratios(peaks[large], peaks[small]), digits=3)
    print(f"  peak {spread(peaks[small], ' MB')} and {spread(peaks[large], ' MB')}: {memory} (goal: 1.1)")


def score_samples(args: argparse.Namespace, num_samples: int) -> None:
    model = make_model(args)
    for number in range(num_samples):  # one at a time, as from a loader
        inputs, players = make_inputs(model)
        game = feature_game(model, inputs, EXPERT, TARGET, players)
        score_pairs(game, num_coalitions=1, seed=sample_seed(0, number))
