"""
Regularisers: they keep what the experts of a mixture know apart, whatever its objective.

They are those of "Does Role Specialization Matter for Explanation Faithfulness in Mixture-of-Experts?" (arXiv
2606.29613), of the experts' latents, which are what their heads read of the full input. Each is a mean over all pairs
of experts, of one batch: of one process, where there are several.

Shapes: E experts · B samples · F width of a latent.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Regulariser(NamedTuple):
    loss: Callable[[torch.Tensor], torch.Tensor]
    """Latents (E, B, F) in float32, of two experts or more → a scalar."""

    warmup_epochs: int = 0
    """The option of training, where nothing else is asked for."""


def rep_cos(latents: torch.Tensor) -> torch.Tensor:
    r"""
    The mean over pairs and samples of \\(\cos^2(z_i, z_j)\\), in 0 … 1. It has no gradient where two latents have one
    direction: experts that start identical part by dropout and their other losses.
    """
    unit = F.normalize(latents, dim=-1).transpose(0, 1)  # (B, E, F)
    return _over_pairs((unit @ unit.mT).square()).mean()


def rep_cka(latents: torch.Tensor) -> torch.Tensor:
    r"""
    The mean over pairs of linear CKA, in 0 … 1: \\(\|Z_i^T Z_j\|^2 / (\|Z_i^T Z_i\| \|Z_j^T Z_j\|)\\), with latents
    less their mean over the batch. It does not change where one is turned or scaled. 0 of one sample.
    """
    grams = _grams(latents - latents.mean(dim=1, keepdim=True))
    norms = grams.norm(dim=-1)
    return _over_pairs(grams @ grams.mT / (norms.unsqueeze(0) * norms.unsqueeze(1) + 1e-8)).mean()


def rep_barlow(latents: torch.Tensor) -> torch.Tensor:
    r"""
    The mean over pairs, and over places f ≠ g of their latents, of \\(r^2(z_{i,f}, z_{j,g})\\), the correlation over
    the batch, which is 0 of a place that does not vary; so 0 of one sample.
    """
    _, num_samples, width = latents.shape
    spread = latents.std(dim=1, correction=0, keepdim=True)
    standard = (latents - latents.mean(dim=1, keepdim=True)) / (spread + 1e-5)
    grams = _grams(standard)
    same_place = torch.einsum("ibf,jbf->fij", standard, standard).square().sum(dim=0)
    num_correlations = max(width * (width - 1), 1)
    return _over_pairs(grams @ grams.mT - same_place).mean() / (num_samples**2 * num_correlations)


def _grams(latents: torch.Tensor) -> torch.Tensor:
    """The samples' products (E, B · B): those of two experts give |Z_iᵀ Z_j|² without a matrix (F, F) for each pair."""
    return (latents @ latents.mT).flatten(1)


def _over_pairs(values: torch.Tensor) -> torch.Tensor:
    """(…, E, E) → (…, pairs i < j)."""
    num_experts = values.shape[-1]
    i, j = torch.triu_indices(num_experts, num_experts, offset=1, device=values.device)
    return values[..., i, j]


REGULARISERS: dict[str, Regulariser] = {
    "rep_cos": Regulariser(rep_cos),
    "rep_cka": Regulariser(rep_cka),
    "rep_barlow": Regulariser(rep_barlow, warmup_epochs=5),
}
"""All regularisers by the names that a configuration gives them."""


def regularise(latents: torch.Tensor, name: str) -> torch.Tensor:
    """
    The regulariser's loss, a scalar in float32.

    Args:
        latents: (E, B, F), of any float type.
        name: of [`REGULARISERS`].
    """
    with torch.autocast(latents.device.type, enabled=False):  # it would round the products
        return REGULARISERS[name].loss(latents.float())
