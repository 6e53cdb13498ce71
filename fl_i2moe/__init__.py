"""
FL-I²MoE: feature-level interpretable multimodal interaction-aware mixture of experts.

`train` fits a model on your own data. Importing the package needs torch, transformers and Pillow alone, and makes the
classes known to `AutoConfig`, `AutoModel`, `AutoProcessor` and `pipeline`. Models that are saved take their code along.
"""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_fl_i2moe import FLI2MoEConfig
from .model.modeling_fl_i2moe import FLI2MoEModel, FLI2MoEOutput
from .model.pipeline_fl_i2moe import TASK, FLI2MoEPipeline
from .model.processing_fl_i2moe import FLI2MoEProcessor

__version__ = "0.1.0"

AutoConfig.register(FLI2MoEConfig.model_type, FLI2MoEConfig, exist_ok=True)
AutoModel.register(FLI2MoEConfig, FLI2MoEModel, exist_ok=True)
AutoProcessor.register(FLI2MoEConfig, FLI2MoEProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=FLI2MoEPipeline, pt_model=AutoModel, type="multimodal")
FLI2MoEConfig.register_for_auto_class()
FLI2MoEModel.register_for_auto_class("AutoModel")
FLI2MoEProcessor.register_for_auto_class()

if TYPE_CHECKING:
    from .training.api import train


def __getattr__(name: str) -> Any:
    if name == "train":  # needs the whole stack
        from .training.api import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["FLI2MoEConfig", "FLI2MoEModel", "FLI2MoEOutput", "FLI2MoEPipeline", "FLI2MoEProcessor", "train"]
