"""One sample's prediction by one expert, as a game that its features play (design 5.3; FL-I²MoE, section 3.2.2).

Shapes: S coalitions, N players, T_m features of modality m, H hidden width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..model.modeling_fl_i2moe import FLI2MoEModel
from .inputs import Inputs
from .masked_expert import MaskedExpert

Game = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""Coalitions (S, N), true where a player takes part, to values (S,)."""

Player = tuple[str, int]
"""Modality and position in its sequence."""

BATCH_NUMBERS = {"cpu": 2**18, "cuda": 2**23}
"""Numbers of the joint sequence, coalitions × T × H, in one pass. On CPUs for each thread: a core's cache."""


class CachedGame:
    """A game that evaluates every coalition once, also across calls.

    Args:
        game: what is asked for coalitions that are new, each once in a call.
        num_players: N.
    """

    def __init__(self, game: Game, num_players: int) -> None:
        self.num_players = num_players
        self._game = game
        self._values: dict[bytes, float] = {}

    @property
    def evaluations(self) -> int:
        """Distinct coalitions evaluated so far."""
        return len(self._values)

    def __call__(self, coalitions: ArrayLike) -> NDArray[np.float64]:
        """
        Args:
            coalitions: (S, N) booleans, or 0 and 1; true where a player takes part. A single one may be (N,), as
                shapiq asks.

        Returns:
            (S,)

        Raises:
            ValueError: for another shape or other values.
        """
        asked = self._checked(coalitions)
        keys = [row.tobytes() for row in np.packbits(asked, axis=1)]
        new = {key: row for row, key in enumerate(keys) if key not in self._values}
        if new:
            values = self._game(asked[list(new.values())])
            self._values.update(zip(new, np.asarray(values, np.float64).tolist(), strict=True))
        return np.array([self._values[key] for key in keys], np.float64)

    def _checked(self, coalitions: ArrayLike) -> NDArray[np.bool_]:
        array = np.asarray(coalitions)
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.num_players:
            raise ValueError(f"coalitions must have shape (S, {self.num_players}), got {array.shape}")
        if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
            raise ValueError(f"coalitions must be booleans (or 0 and 1), got {array.dtype} with other values")
        return array.astype(np.bool_)


class ValueGame(CachedGame):
    """
    `v(S)`: the logit of one class by one expert when every feature that is not special is zeroed but those in S.

    Special features always stay; candidates that do not play are always zeroed. Only the one expert runs. Estimators
    of other packages that take a callable (shapiq's among them) run on it as it is.

    Args:
        model: in eval mode when the game is called.
        inputs: one sample.
        expert: a name from `config.expert_names`.
        target: class index; 0 for a regression with one output.
        players: modality → (T_m,) or (1, T_m) booleans, true for players; or a list of (modality, position).
        batch_size: coalitions in one pass; by default as many as `BATCH_NUMBERS` allows.

    Raises:
        ValueError: several samples; an expert, class or modality that the model does not have; a player that is no
            candidate or comes twice; no player. On a call also a model in training mode.
    """

    def __init__(
        self,
        model: FLI2MoEModel,
        inputs: Inputs,
        expert: str,
        target: int,
        players: dict[str, Tensor] | Sequence[Player],
        *,
        batch_size: int | None = None,
    ) -> None:
        if len(inputs) != 1:
            raise ValueError(f"a game is played on one sample, got {len(inputs)}")
        if expert not in model.config.expert_names:
            raise ValueError(f"there is no expert {expert!r}; this model has {model.config.expert_names}")
        num_classes = model.config.num_labels
        if not 0 <= target < num_classes:
            raise ValueError(f"there is no class {target}; this model has classes 0 to {num_classes - 1}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.players = list_players(players, model.config.modality_order)
        _check_players(self.players, inputs)
        self.model, self.expert, self.target = model, expert, int(target)
        values = _Values(model, inputs, expert, self.target, self.players, batch_size)
        self.batch_size = values.batch_size
        super().__init__(values, len(self.players))


class _Values:
    """
    What a `ValueGame` plays. An object of its own: a game that kept a method of itself would keep its tensors until the
    garbage collector comes, while the games of further samples pile up.
    """

    def __init__(
        self,
        model: FLI2MoEModel,
        inputs: Inputs,
        expert: str,
        target: int,
        players: list[Player],
        batch_size: int | None,
    ) -> None:
        self._model, self._expert, self._target = model, expert, target
        self._masked: MaskedExpert | None = None
        self._projected, self._feature_masks = {}, {}
        always_kept, starts = [], {}
        for name in model.config.modality_order:
            # without padding sequences are shorter, and attention without a mask is faster
            length = int(inputs.feature_masks[name][0].nonzero().max()) + 1
            starts[name] = sum(map(len, always_kept))
            self._projected[name] = inputs.projected[name][:, :length]
            always_kept.append(~inputs.candidate_masks[name][0, :length])
            if not (mask := inputs.feature_masks[name][:, :length]).all():
                self._feature_masks[name] = mask
        self._always_kept = torch.cat(always_kept)
        positions = [starts[name] + position for name, position in players]
        self._positions = torch.tensor(positions, device=model.device)
        self.batch_size = batch_size or self._default_batch_size()

    def _default_batch_size(self) -> int:
        kind = self._model.device.type
        numbers = BATCH_NUMBERS.get(kind, BATCH_NUMBERS["cuda"])
        if kind == "cpu":
            numbers *= torch.get_num_threads()
        return max(1, numbers // sum(x.numel() for x in self._projected.values()))

    @torch.inference_mode()
    def __call__(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self._model.training:
            raise ValueError("the model is in training mode, where its values are random: call `model.eval()` first")
        asked = torch.from_numpy(coalitions).to(self._model.device)
        if not MaskedExpert.supports(self._model):
            logits = torch.cat([self._run_expert(batch) for batch in asked.split(self.batch_size)])
        else:
            if self._masked is None:
                sample = (self._projected, self._feature_masks, self._always_kept, self._positions)
                self._masked = MaskedExpert(self._model, self._expert, *sample)
            logits = self._masked(asked, self.batch_size)
        return logits[:, self._target].double().cpu().numpy()

    def _run_expert(self, coalitions: Tensor) -> Tensor:
        """(S, N) → logits (S, C), by the model itself."""
        num_coalitions = len(coalitions)
        kept = self._always_kept.repeat(num_coalitions, 1)
        kept[:, self._positions] = coalitions
        lengths = [x.shape[1] for x in self._projected.values()]
        keep = dict(zip(self._projected, kept.split(lengths, dim=1), strict=True))
        projected = {name: x.expand(num_coalitions, -1, -1) for name, x in self._projected.items()}
        masks = {name: mask.expand(num_coalitions, -1) for name, mask in self._feature_masks.items()}
        return self._model.run_experts(projected, masks, keep, [self._expert])[:, 0]


def list_players(players: dict[str, Tensor] | Sequence[Player], modality_order: Sequence[str]) -> list[Player]:
    """
    Args:
        players: modality → (T_m,) or (1, T_m) booleans, true for players; or (modality, position) couples.
        modality_order: decides the order of players that come as booleans.

    Returns:
        (modality, position) of each player; couples in the order given, booleans by modality and position.

    Raises:
        ValueError: an unknown modality, or masks that are not boolean or of another shape.
    """
    if not isinstance(players, dict):
        return [(name, int(position)) for name, position in players]
    if unknown := set(players) - set(modality_order):
        raise ValueError(f"players have unknown modalities {sorted(unknown)}; this model has {list(modality_order)}")
    listed = []
    for name in modality_order:
        mask = players.get(name)
        if mask is None:
            continue
        if mask.dtype != torch.bool or mask.dim() not in (1, 2) or (mask.dim() == 2 and mask.shape[0] != 1):
            raise ValueError(f"players[{name!r}] must be booleans (T,) or (1, T), got {mask.dtype} {tuple(mask.shape)}")
        listed += [(name, position) for position in mask.flatten().nonzero().flatten().tolist()]
    return listed


def _check_players(players: list[Player], inputs: Inputs) -> None:
    if not players:
        raise ValueError("the game has no players")
    if len(set(players)) < len(players):
        twice = sorted({player for player in players if players.count(player) > 1})
        raise ValueError(f"players come twice: {twice}")
    candidates = {
        (name, position)
        for name, mask in inputs.candidate_masks.items()
        for position in mask[0].nonzero().flatten().tolist()
    }
    if strangers := [player for player in players if player not in candidates]:
        raise ValueError(f"no candidates (special, padded or not there): {strangers}")
