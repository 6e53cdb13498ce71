"""Weights that are missing, left over, of another size, not finite, or no safetensors are refused by name."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_config, make_model
from transformers import AutoModel, BertConfig, BertModel

from fl_i2moe import FLI2MoEModel
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.training.runs import load_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(make_config(perturbation="mean")).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


class Payload:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def spoil(name, value):
    def change(tensors):
        tensors[name].view(-1)[-1] = value

    return change


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, FLI2MoEModel.from_pretrained, load_model])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("experts.head.bias"), r"lack experts\.head\.bias\."),
        (lambda x: x.update(other=torch.zeros(2)), r"have too much: other\."),
        (
            lambda x: x.update({"experts.head.bias": torch.zeros(4, 5)}),
            r"have other sizes: experts\.head\.bias \(4, 5\), here \(4, 3\)\.",
        ),
        (
            lambda x: x.update({"experts.head.biases": x.pop("experts.head.bias")}),
            r"lack experts\.head\.bias; they have too much: experts\.head\.biases\.",
        ),
        (lambda x: [x.pop(name) for name in list(x)[1:]], r"lack .*, .*, .*, .*, .* and \d+ more\."),
        (spoil("experts.head.bias", torch.nan), r"NaN or infinite in experts\.head\.bias:"),
        (spoil("stems.0.positions", -torch.inf), r"NaN or infinite in stems\.0\.positions:"),
    ],
    ids=["missing", "left over", "resized", "renamed", "many", "nan", "infinite"],
)
def test_weights_that_do_not_fit(folder, load, change, message):
    change_weights(folder, change)
    with pytest.raises(ValueError, match=f"The weights of .*model.* {message}"):
        load(folder)


def test_sizes_beyond_all_memory(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 2**40}))
    with pytest.raises(ValueError, match=r"The weights in .*model cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 16}, {"num_fusion_layers": 1}, {"reweighting": "global"}, {"modality_order": None}]
)
def test_a_configuration_of_another_model(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    if "modality_order" in changes:  # a modality too much
        changes = {"modalities": {**config["modalities"], "audio": {"feature_size": 4, "max_features": 4}}}
        changes["modality_order"] = [*config["modality_order"], "audio"]
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=r"do not fit its config\.json: they (lack|have)"):
        load_model(folder)


def test_half_precision_that_overflows(folder):
    change_weights(folder, spoil("experts.head.bias", 1e6))
    with pytest.raises(ValueError, match=r"NaN or infinite in experts\.head\.bias"):
        AutoModel.from_pretrained(folder, dtype=torch.float16)
    assert load_model(folder).dtype == torch.float32


def test_means_that_were_never_set_are_no_fault(folder):
    assert AutoModel.from_pretrained(folder).stems[0].feature_mean.isnan().all()


def test_loading_info_on_request(folder):
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is FLI2MoEModel
    assert not any(loading.values())


def pickle_in_an_index(folder, mark):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"experts.head.bias": "weights.bin"}}))
    write_pickle(folder / "weights.bin", mark)


def pickle_outside_of_the_folder(folder, mark):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"x": "../weights.safetensors"}}))


def pickle_alone(folder, mark):
    (folder / WEIGHTS).unlink()
    write_pickle(folder / "pytorch_model.bin", mark)


def pickle_under_the_name(folder, mark):
    write_pickle(folder / WEIGHTS, mark)


def pickle_in_the_configuration(folder, mark):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    write_pickle(folder / "adapter_model.bin", mark)


def index_in_the_configuration(folder, mark):
    pickle_in_an_index(folder, mark)
    (folder / INDEX).rename(folder / "other.safetensors.index.json")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "other.safetensors.index.json"
    (folder / "config.json").write_text(json.dumps(config))


def write_pickle(path, mark):
    path.write_bytes(pickle.dumps({"experts.head.bias": Payload(mark)}))


PICKLES = [
    pickle_in_an_index,
    pickle_outside_of_the_folder,
    pickle_alone,
    pickle_under_the_name,
    pickle_in_the_configuration,
    index_in_the_configuration,
]


@pytest.mark.parametrize("hide", PICKLES)
def test_pickles_are_never_read(folder, tmp_path, hide):
    hide(folder, tmp_path / "mark")
    for load in (AutoModel.from_pretrained, FLI2MoEModel.from_pretrained, load_model):
        with pytest.raises((ValueError, OSError), match=r"pickles|cannot be read|transformers_weights"):
            load(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("hide", PICKLES)
def test_pickles_of_encoders_are_never_read(tmp_path, hide):
    folder = tmp_path / "encoder"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(folder)
    hide(folder, tmp_path / "mark")
    with pytest.raises(ValueError, match=r"encoder '.*encoder'"):
        load_encoder(folder, "text")
    assert not (tmp_path / "mark").exists()


def test_a_pickle_given_by_its_path(folder, tmp_path):
    write_pickle(tmp_path / "weights.bin", tmp_path / "mark")
    with pytest.raises(ValueError, match=r"weights\.bin is a file; give the folder of the model"):
        FLI2MoEModel.from_pretrained(tmp_path / "weights.bin", config=make_config())
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "null"])
def test_a_broken_index(folder, content):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"index\.json is no index of weights"):
        load_model(folder)


def test_shards_of_safetensors_are_read(folder, tmp_path):
    model = load_model(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert (tmp_path / "sharded" / INDEX).is_file()
    again = load_model(tmp_path / "sharded").state_dict()
    for name, x in model.state_dict().items():
        torch.testing.assert_close(again[name], x, rtol=0, atol=0, equal_nan=True)
    first = sorted((tmp_path / "sharded").glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises((ValueError, OSError), match=first.name):
        load_model(tmp_path / "sharded")


def test_a_model_of_another_kind_is_not_read(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    write_pickle(tmp_path / "pytorch_model.bin", tmp_path / "mark")
    with pytest.raises(ValueError, match="holds a model of type 'bert' by `model_type`"):
        load_model(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("encoder.layer.0.output.dense.bias"), r"lacks 1 weights .* such as encoder\.layer\.0"),
        (lambda x: x.update({"embeddings.LayerNorm.bias": torch.zeros(3)}), r"embeddings\.LayerNorm\.bias"),
        (spoil("embeddings.LayerNorm.bias", torch.nan), r"NaN or infinite in embeddings\.LayerNorm\.bias"),
    ],
)
def test_weights_of_encoders(tmp_path, change, message):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path, "text")
