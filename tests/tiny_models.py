"""Models and inputs of a few numbers, for tests."""

import torch

from fl_i2moe import FLI2MoEConfig, FLI2MoEModel
from fl_i2moe.explain.inputs import Inputs

SIZES = {"text": (6, 7), "image": (10, 5), "audio": (4, 4), "depth": (3, 6)}


def make_config(num_modalities=2, **changes) -> FLI2MoEConfig:
    names = list(SIZES)[:num_modalities]
    values = {
        "modalities": {name: {"feature_size": SIZES[name][0], "max_features": SIZES[name][1]} for name in names},
        "num_labels": 3,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "activation_dropout": 0.0,
        "reweighting_dropout": 0.0,
        "reweighting_hidden_size": 12,
        "num_patches": 3,
        "identical_experts_init": False,
    }
    return FLI2MoEConfig(**{**values, **changes})


def make_model(config: FLI2MoEConfig, seed: int = 0) -> FLI2MoEModel:
    """A model in which no parameter is left at a value (zero, one) that could hide a mistake."""
    torch.manual_seed(seed)
    model = FLI2MoEModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_inputs(config: FLI2MoEConfig, num_samples: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features, masks = {}, {}
    for name in config.modality_order:
        size, longest = SIZES[name]
        features[name] = torch.randn(num_samples, longest, size, generator=generator)
        lengths = torch.randint(1, longest + 1, (num_samples,), generator=generator)
        lengths[0] = longest
        masks[name] = torch.arange(longest) < lengths[:, None]
    labels = torch.randint(0, 2, (num_samples, config.num_labels), generator=generator).float()
    return features, masks, labels


def make_batch(config: FLI2MoEConfig, num_samples: int = 4, seed: int = 0) -> dict:
    """As `FeatureRows` gives it; the first feature is special where there are two or more."""
    features, masks, labels = make_inputs(config, num_samples, seed)
    special = {}
    for name, mask in masks.items():
        special[name] = torch.zeros_like(mask)
        special[name][:, 0] = mask.sum(dim=1) > 1
    if config.problem_type == "single_label_classification":
        labels = labels.argmax(dim=1)
    ids = [f"sample-{seed}-{row}" for row in range(num_samples)]
    return {"features": features, "feature_masks": masks, "special_masks": special, "labels": labels, "ids": ids}


def losses_of(output, name: str) -> torch.Tensor | None:
    """The losses `<name>/<expert>` of an output, (E,); None where there are none."""
    found = [loss for key, loss in output.losses.items() if key.startswith(f"{name}/")]
    return torch.stack(found) if found else None


def one_sample(inputs: Inputs, row: int) -> Inputs:
    """One of several samples, without its padding."""
    parts = (inputs.projected, inputs.feature_masks, inputs.candidate_masks)
    return Inputs(
        *({name: x[row : row + 1, inputs.feature_masks[name][row]] for name, x in values.items()} for values in parts)
    )
