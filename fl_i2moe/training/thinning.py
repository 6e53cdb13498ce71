"""
Thinned samples: training input of which a random share of the features is zeroed.

It keeps experts from learning samples by heart, and shows them the inputs that explanations by masking ask about.
"""

import torch

from ..model.configuration_fl_i2moe import FLI2MoEConfig


def draw_thinning(
    features: dict[str, torch.Tensor], config: FLI2MoEConfig
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    With probability `config.feature_dropout` a modality of a sample loses a share of its features, drawn from U(0, 1):
    features, modality → (B, T_m, D_m), to `keep`, modality → (B, T_m), and `is_whole`, (B, M), as
    `FLI2MoEModel.forward` takes them. In pooled mode T_m is the number of pseudo-patches.
    """
    keep, is_whole = {}, []
    for name in config.modality_order:
        x = features[name]
        length = config.num_patches if config.level == "pooled" else x.shape[1]
        whole = torch.rand(len(x), device=x.device) >= config.feature_dropout
        share = torch.rand(len(x), 1, device=x.device)
        keep[name] = (torch.rand(len(x), length, device=x.device) >= share) | whole.unsqueeze(1)
        is_whole.append(whole)
    return keep, torch.stack(is_whole, dim=1)
