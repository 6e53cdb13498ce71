"""All fusions by the names that a configuration gives them."""

from .fusion import Fusion, GroupedTransformer, LateFusion
from .fusion_routed import MoEPlusPlusTransformer, SwitchTransformer
from .fusion_vectors import EarlyFusion, InterpretCCFusion, LowRankFusion

FUSIONS: dict[str, type[Fusion]] = {
    "transformer": GroupedTransformer,
    "switch": SwitchTransformer,
    "moe++": MoEPlusPlusTransformer,
    "interpretcc": InterpretCCFusion,
    "early": EarlyFusion,
    "late": LateFusion,
    "low_rank": LowRankFusion,
}
