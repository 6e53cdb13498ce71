"""
What earlier versions saved still loads, and says the same.

`saved/` holds tiny models, inputs and outputs as version 0.1.0 wrote them, before its modules moved to
`fl_i2moe/model/`. They are never written anew.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor

import fl_i2moe

FOLDER = Path(__file__).parent / "saved"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_model_of_before_says_the_same(name):
    expected = load_file(FOLDER / name / "expected.safetensors")
    given = {
        argument: {modality: expected[f"{argument}.{modality}"] for modality in ("text", "image")}
        for argument in ("features", "feature_masks")
    }

    model, loading = AutoModel.from_pretrained(FOLDER / name, output_loading_info=True)
    with torch.no_grad():
        output = model(**given)

    assert type(model) is fl_i2moe.FLI2MoEModel
    assert not any(loading.values()), loading
    for key in ("logits", "expert_logits", "expert_weights"):
        torch.testing.assert_close(output[key], expected[key])


def test_configuration_and_processor_of_before_keep_what_they_say():
    config = AutoConfig.from_pretrained(FOLDER / "published")
    processor = AutoProcessor.from_pretrained(FOLDER / "published")

    assert config.interaction_statistics == {"split": "test", "num_samples": 3}
    assert config.modality_order == processor.modality_order == ["text", "image"]
    assert processor.encoders == config.encoders
    assert config.encoders["text"]["max_length"] == 128
