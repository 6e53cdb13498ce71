"""From logits to probabilities and decisions, by the temperature and the thresholds of a configuration."""

import torch
from transformers import PreTrainedConfig


def probabilities(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """
    Logits (…, C), divided by `config.temperature`, as probabilities of classes or labels; of a regression the numbers
    as they are.
    """
    if config.problem_type == "regression":
        return logits
    scaled = logits / (config.temperature or 1)
    return scaled.softmax(dim=-1) if config.problem_type == "single_label_classification" else scaled.sigmoid()


def decide(probabilities: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """
    What is predicted where [`probabilities`] are (…, C): the classes' indexes (…); of labels whether each is above its
    threshold (…, C); of a regression the numbers themselves.
    """
    if config.problem_type == "regression":
        return probabilities
    if config.problem_type == "single_label_classification":
        return probabilities.argmax(dim=-1)
    return probabilities > probabilities.new_tensor(config.thresholds or 0.5)
