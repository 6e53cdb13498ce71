"""
Vision Transformers on a part of their patches: the others are taken out behind the embeddings.

Shape letters: B pictures, L positions of the encoder's sequence, special ones included, D encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

HiddenState = Callable[[dict[str, Tensor]], Tensor]
"""The model's inputs → its hidden state, (B, L, D)."""


def encode_without(
    model: nn.Module, inputs: Mapping[str, Tensor], hidden_state: HiddenState, kept: Tensor, title: str
) -> Tensor:
    """
    The hidden state (B, L, D) of pictures of which only the positions `kept` (B, L) are encoded; zeros elsewhere.

    Args:
        model: whose `embeddings` give the sequence that its layers work on.
        inputs: of the model; every tensor has B rows.
        title: of the encoder, for messages.

    Raises:
        ValueError: the encoder cannot do with a part of its sequence: it has no such embeddings, merges patches, or
            adds positions in its layers.
    """
    embeddings = next((x for name, x in model.named_modules() if name.rpartition(".")[2] == "embeddings"), None)
    refusal = f"{title} cannot leave out patches of its sequence: choose another removal"
    if embeddings is None:
        raise ValueError(f"{refusal}. It has no embeddings that could be cut.")
    hidden: Tensor | None = None
    for number in kept.sum(dim=1).unique().tolist():
        rows = (kept.sum(dim=1) == number).nonzero()[:, 0]
        places = kept[rows].nonzero()[:, 1].view(len(rows), number)
        try:
            with _cut(embeddings, places, kept.shape[1]):
                part = hidden_state({name: x[rows] for name, x in inputs.items()})
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{refusal}. The reason: {type(error).__name__}: {error!s:.300}") from error
        if part.shape[:2] != places.shape:
            raise ValueError(f"{refusal}. Of {number} positions it makes {tuple(part.shape)}.")
        if hidden is None:
            hidden = part.new_zeros(*kept.shape, part.shape[2])
        hidden[rows[:, None], places] = part
    assert hidden is not None, "a batch has pictures"
    return hidden


@contextmanager
def _cut(embeddings: nn.Module, places: Tensor, length: int) -> Any:
    """The embeddings give the positions `places` (B, number) of their sequence alone."""

    def take(module: nn.Module, arguments: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[1] != length:
            raise ValueError("its embeddings are no sequence as long as its output")
        return output.gather(1, places[..., None].expand(-1, -1, output.shape[2]))

    handle = embeddings.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()
