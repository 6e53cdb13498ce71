"""Which of a game's players are worth a pair."""

import numpy as np

from ..metrics.tasks import FloatArray
from .attribution import count_share
from .game import Game, Player

ROUNDING = 1e-6
"""Of the largest effect: smaller ones are the sums' rounding, which differs between machines."""


def effects(game: Game) -> tuple[FloatArray, FloatArray]:
    """
    What each of N players does at the two ends of the game, (N,) and (N,): v(N) − v(N∖i), what is lost without it, and
    v(i) − v(∅), what it adds to nothing. They are the last and the first term of its Shapley value.

    Evidence that only counts together with other evidence shows in the first, evidence that is there twice in the
    second.
    """
    num_players = len(game.players)
    alone = np.eye(num_players, dtype=np.bool_)
    values = game(np.concatenate([~alone, alone, np.ones((1, num_players)), np.zeros((1, num_players))]))
    without, only, (everything, nothing) = np.split(values, [num_players, 2 * num_players])
    return everything - without, only - nothing


def strongest_players(game: Game, share: float, most: int | None = None) -> list[Player]:
    """
    Of each modality [`count_share`] of the players, but at most so many: those with the largest effect at either end.
    They stay in their order. `ValueError` for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share of players must lie in (0, 1], got {share}.")
    strength = np.abs(np.stack(effects(game))).max(axis=0)
    strength[strength < ROUNDING * strength.max()] = 0
    chosen: set[int] = set()
    for name in dict.fromkeys(player.modality for player in game.players):
        own = [number for number, player in enumerate(game.players) if player.modality == name]
        count = min(count_share(share, len(own)), most or len(own))
        chosen.update(sorted(own, key=lambda number: -strength[number])[:count])
    return [player for number, player in enumerate(game.players) if number in chosen]
