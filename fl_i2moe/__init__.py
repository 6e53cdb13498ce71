"""
FL-I²MoE: feature-level interpretable multimodal interaction-aware mixture of experts.

Importing the package needs torch and transformers alone, and makes the classes known to `AutoConfig` and `AutoModel`.
"""

from transformers import AutoConfig, AutoModel

from .configuration_fl_i2moe import FLI2MoEConfig
from .modeling_fl_i2moe import FLI2MoEModel, FLI2MoEOutput

__version__ = "0.1.0"

AutoConfig.register(FLI2MoEConfig.model_type, FLI2MoEConfig, exist_ok=True)
AutoModel.register(FLI2MoEConfig, FLI2MoEModel, exist_ok=True)

__all__ = ["FLI2MoEConfig", "FLI2MoEModel", "FLI2MoEOutput"]
