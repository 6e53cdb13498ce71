import json
import shutil

import numpy as np
import pytest
import torch
from published import ARRAY_WIDTH, bare_environment, make_published, run_bare, save_published
from transformers import AutoModel, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from fl_i2moe import FLI2MoEModel
from fl_i2moe.explain import explain

CODE = {
    "configuration_fl_i2moe.py",
    "cpu_training.py",
    "encoders.py",
    "fusion.py",
    "fusions.py",
    "inputs.py",
    "kind_array.py",
    "kind_audio.py",
    "kind_file.py",
    "kind_image.py",
    "kind_tabular.py",
    "kind_text.py",
    "kinds.py",
    "modeling_fl_i2moe.py",
    "objective_published.py",
    "objective_specialised.py",
    "objectives.py",
    "pinned_encoders.py",
    "pipeline_fl_i2moe.py",
    "processing_fl_i2moe.py",
    "regularisers.py",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """
    A model of all kinds, whose encoders have no hub id, as published; its raw samples; an environment without the
    package.
    """
    folder = tmp_path_factory.mktemp("hub")
    modalities = {"text": "text", "image": "image", "specs": "tabular", "visits": "array"}
    names = {"image": "sample:tiny-vit", "text": "sample:tiny-roberta"}
    model, raw, _ = make_published(folder, modalities, names, splits=True)
    repository = save_published(model, folder / "repository")
    for name in names:
        shutil.move(folder / f"encoder-{name}", repository / "encoders" / name)
    return repository, raw, bare_environment(folder / "environment")


def samples(raw):
    split = raw.splits["test"]
    return {
        "image": [x["path"] for x in split["image"]],
        "text": list(split["text"]),
        "specs": [json.loads(x) for x in split["specs"]],
        "visits": [np.frombuffer(x, np.float32).reshape(-1, ARRAY_WIDTH).tolist() for x in split["visits"]],
    }


def test_code_that_is_saved_is_flat_complete_and_small(published):
    repository, _, _ = published
    files = {path.name for path in repository.glob("*.py")}
    assert files >= CODE
    # arrays, columns of a table and sound are kinds beside pictures and texts; each knows how parts of it are left out
    assert sum((repository / name).stat().st_size for name in files) < 365_000
    config = json.loads((repository / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_fl_i2moe.FLI2MoEConfig",
        "AutoModel": "modeling_fl_i2moe.FLI2MoEModel",
    }
    assert config["custom_pipelines"]["image-text-classification"]["impl"] == "pipeline_fl_i2moe.FLI2MoEPipeline"


LOAD = """
import json, sys
try:
    import fl_i2moe
except ImportError:
    pass
else:
    raise SystemExit("this environment has fl_i2moe")
from transformers import AutoModel, AutoProcessor, pipeline
folder, given = sys.argv[1], json.loads(sys.argv[2])
try:
    refused = str(AutoModel.from_pretrained(folder))
except ValueError as error:
    refused = str(error)
assert not [name for name in sys.modules if name.startswith("transformers_modules.")]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
classify = pipeline("image-text-classification", model=folder, trust_remote_code=True)
# what the Hub's page shows
shown = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="auto")
rows = [dict(zip(given, values)) for values in zip(*given.values())]
print()  # behind the question that was not answered
print(json.dumps({
    "refused": refused,
    "raw": model(**given).logits.tolist(),
    "processed": model(**processor(**given, return_tensors="pt")).logits.tolist(),
    "shown": shown.eval()(**given).logits.tolist(),
    "classified": classify(rows, top_k=None, batch_size=2, function_to_apply="none"),
    "by_name": classify(**given, top_k=None, function_to_apply="none"),
}))
model.save_pretrained(sys.argv[3])
"""


def test_an_environment_without_the_package_loads_and_predicts(published, tmp_path):
    repository, raw, environment = published
    output = run_bare(environment, tmp_path / "home", LOAD, repository, json.dumps(samples(raw)), tmp_path / "again")
    found = json.loads(output.splitlines()[-1])
    # the code of a repository never runs unasked
    assert "contains custom code which must be executed to correctly load the model" in found["refused"]
    assert "trust_remote_code=True" in found["refused"]
    model = AutoModel.from_pretrained(repository).eval()
    assert isinstance(model, FLI2MoEModel)  # this package's own class, as it is imported here
    with torch.no_grad():
        expected = model(**samples(raw)).logits
    for name in ("raw", "processed", "shown"):
        torch.testing.assert_close(torch.tensor(found[name]), expected, atol=1e-5, rtol=0)
    for row, result in zip(expected.repeat(2, 1), found["classified"] + found["by_name"], strict=True):
        by_label = {entry["label"]: entry["score"] for entry in result}
        given = torch.tensor([by_label[model.config.id2label[index]] for index in range(3)])
        torch.testing.assert_close(given, row, atol=1e-3, rtol=0)
    # what was loaded from there can be saved again, with its code
    assert {path.name for path in (tmp_path / "again").glob("*.py")} >= CODE - {
        "pipeline_fl_i2moe.py",
        "processing_fl_i2moe.py",
    }


def test_an_answer_of_a_pipeline_is_explained(published, tmp_path, monkeypatch, own_modules):
    """By the package, also where the model runs the code of its repository: the same numbers."""
    repository, raw, _ = published
    sample = {name: values[2] for name, values in samples(raw).items()}
    classify = pipeline("image-text-classification", model=str(repository), trust_remote_code=True)
    how = {"num_coalitions": 1, "pair_experts": ["synergy"], "method": "leave_one_out"}
    own = explain(classify.model, sample, classify(sample)[0]["label"], **how)
    assert own.save(tmp_path / "page.html").stat().st_size > 10_000
    remote = get_class_from_dynamic_module("modeling_fl_i2moe.FLI2MoEModel", str(repository))
    model = remote.from_pretrained(repository).eval()
    assert not isinstance(model, FLI2MoEModel)
    explanation = explain(model, sample, own.target_name, **how)
    assert explanation.remarks == own.remarks
    assert "attention" in " ".join(own.remarks)
    for name, scores in own.importance["synergy"].items():
        np.testing.assert_allclose(explanation.importance["synergy"][name], scores, atol=1e-5)
    for owner, name in ((type(model.raw_inputs.load("text")), "removals"), (remote, "project")):
        with monkeypatch.context() as patch:
            patch.delattr(owner, name)
            with pytest.raises(ValueError, match="older than this package: import fl_i2moe"):
                explain(model, sample, **how)
    with pytest.raises(ValueError, match="is explained, no FLI2MoEPipeline; of a pipeline give its `model`"):
        explain(classify, sample)
