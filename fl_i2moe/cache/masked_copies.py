"""
Masked copies: training samples encoded again, each time without a random share of their words, cells or stretches.

Explanations ask a model about inputs of which parts are missing. One that has seen such inputs in training, through the
same frozen encoder, answers them better. Every sequence of the training split has N copies; which units a copy lacks
follows from the sample's id alone. Modalities are copied apart, so that any whole one goes with any copy of the others.

Columns, per modality `m`: `m_masked_features` (N·T, D), copy by copy, and `m_masked_kept` (N·T,), false where a feature
was taken out and is zero. Of arrays and columns of a table there are none: a feature of theirs knows of no other, so
that leaving one out needs no encoder.

Shape letters: B samples, N copies, T features of a sequence, D encoder width, M modalities.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Array2D, Features, List, Value
from numpy.typing import NDArray

from ..model.kind import EncodedFeatures, FittedEncoder, FrozenEncoder, encode_given
from ..model.places import Places, UnitOptions

MASKED_SPLIT = "train"


def has_copies(encoder: FrozenEncoder | FittedEncoder) -> bool:
    return isinstance(encoder, FrozenEncoder)


def copy_columns(name: str, feature_size: int) -> Features:
    return Features(
        {
            f"{name}_masked_features": Array2D((None, feature_size), "float16"),
            f"{name}_masked_kept": List(Value("bool")),
        }
    )


def draw_kept(places: Places, sample_id: str, name: str, num_copies: int) -> NDArray[np.bool_]:
    """(N, T): of each copy the features that stay. A share of the units, drawn from U(0, 1), does not."""
    units = places.units(UnitOptions())
    seed = int.from_bytes(hashlib.sha256(f"{name}\n{sample_id}".encode()).digest()[:16])
    rng = np.random.default_rng(seed)
    stays = rng.random((num_copies, len(units.features))) >= rng.random((num_copies, 1))
    return units.of_features(torch.from_numpy(stays), places.num_features).numpy()


def encode_copies(
    encoder: FrozenEncoder,
    inputs: Mapping[str, torch.Tensor],
    kept: Sequence[NDArray[np.bool_]],
    whole: EncodedFeatures,
) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.bool_]]:
    """
    Args:
        inputs: of a preprocessed batch.
        kept: of each sample (N, T), from [`draw_kept`]; (N, 0) of one that lacks the modality.
        whole: what the encoder makes of the batch.

    Returns:
        All features of all copies (total, D), sample by sample; how many each sample has, (B,); which of them are kept,
        (total,).
    """
    longest, num_copies = whole.features.shape[1], len(kept[0])
    padded = np.stack([np.pad(x, ((0, 0), (0, longest - x.shape[1])), constant_values=True) for x in kept])
    copies = [
        encode_given(encoder, inputs, torch.from_numpy(padded[:, copy])).features.to(torch.float16).cpu()
        for copy in range(num_copies)
    ]
    is_real = whole.feature_mask.cpu()[:, None].expand(-1, num_copies, -1)
    values = torch.stack(copies, dim=1)[is_real].numpy()
    return values, is_real.sum(dim=(1, 2)).numpy(), padded[is_real.numpy()]


@dataclass(frozen=True)
class CopyDraw:
    """How training takes masked copies: from `first_epoch` on one stands for a share of all sequences."""

    num_copies: int
    share: float
    first_epoch: int

    def draw(self, num_rows: int, copied: Sequence[bool], rng: np.random.Generator) -> NDArray[np.int64]:
        """
        For an epoch, (rows, M): the number of the copy, from 1, that stands for a row's modality; 0 for the whole one.
        `copied` says which of the M modalities have copies.
        """
        shape = (num_rows, len(copied))
        drawn = np.where(rng.random(shape) < self.share, rng.integers(1, self.num_copies + 1, shape), 0)
        return np.where(copied, drawn, 0)
