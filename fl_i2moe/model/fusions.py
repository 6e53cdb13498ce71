"""All fusions by the names that a configuration gives them."""

from torch import nn

from .configuration_fl_i2moe import FLI2MoEConfig
from .fusion import GroupedTransformer
from .fusion_late import LateFusion
from .fusion_published import PublishedTransformer
from .fusion_routed import RoutedTransformer
from .fusion_specialised import SpecialisedTransformer
from .fusion_vectors import EarlyFusion, InterpretCCFusion, LowRankFusion

FUSIONS = {
    "transformer": GroupedTransformer,
    "switch": RoutedTransformer,
    "moe++": RoutedTransformer,
    "interpretcc": InterpretCCFusion,
    "early": EarlyFusion,
    "late": LateFusion,
    "low_rank": LowRankFusion,
}


def create_fusion(config: FLI2MoEConfig) -> nn.Module:
    """The experts of a model. The interface is that of [`GroupedTransformer.forward`]."""
    if config.is_specialised:
        return SpecialisedTransformer(config)
    if config.layer_arithmetic == "published":
        return PublishedTransformer(config)
    return FUSIONS[config.fusion](config)
