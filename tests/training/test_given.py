"""What is given must be meant: an empty text, an unset variable of a shell most often, is refused everywhere."""

import os
import runpy
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

from fl_i2moe import FLI2MoEModel
from fl_i2moe.cache import open_cache, open_features
from fl_i2moe.cache.building import build_cache
from fl_i2moe.comparison.runs import RunComparisonArguments
from fl_i2moe.data.enrico import load_enrico
from fl_i2moe.data.layouts import find_layout, load_layout
from fl_i2moe.data.mmhs150k import load_mmhs150k
from fl_i2moe.data.mmimdb import load_mmimdb
from fl_i2moe.data.raw import RawDataset
from fl_i2moe.evaluation.ground_truth.run import EvaluationArguments
from fl_i2moe.evaluation.human_evaluation.study import DrawArguments, SummarizeArguments
from fl_i2moe.evaluation.run.arguments import ExplainArguments
from fl_i2moe.explain import Explanation
from fl_i2moe.model.configuration_fl_i2moe import checked_config
from fl_i2moe.model.encoders import load_encoder
from fl_i2moe.model.sample_encoders import resolve_encoder, user_cache_dir
from fl_i2moe.publishing.card import CardOptions
from fl_i2moe.publishing.repository import choose_license, make_empty_folder, publish, push
from fl_i2moe.training import arguments as options
from fl_i2moe.training.command_line import parse_arguments
from fl_i2moe.training.runs import Run, find_cache, find_runs, load_model

SIZE = {"feature_size": 2, "max_features": 2}
RECIPES = [*(ROOT / "recipes").glob("[c-t]*.py"), *(ROOT / "hub").glob("*.py")]
OF_RECIPES = {
    f"{path.stem}.{kind.__name__}": kind
    for path in RECIPES
    for kind in runpy.run_path(str(path)).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__name__.endswith("Arguments")
}
KINDS = OF_RECIPES | {
    x.__name__: x
    for x in (*vars(options).values(), ExplainArguments, EvaluationArguments, RunComparisonArguments, DrawArguments)
    if isinstance(x, type) and is_dataclass(x) and x.__name__.endswith("Arguments")
}
KINDS["SummarizeArguments"] = SummarizeArguments


def text_options():
    for kind, kind_name in {kind: name for name, kind in KINDS.items()}.items():
        for item in fields(kind):
            if "str" in str(item.type) and "Literal" not in str(item.type) and not item.metadata.get("choices"):
                yield pytest.param(kind, item, id=f"{kind_name}-{item.name}")


@pytest.mark.parametrize(("kind", "option"), text_options())
def test_every_option_of_a_text(kind, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where "" would be looked for
    needed = [x.name for x in fields(kind) if x.default is MISSING and x.default_factory is MISSING]
    line = [part for name in needed if name != option.name for part in (f"--{name}", "someone/some")]
    given, said = (["a", ""], "has an empty entry") if "list" in str(option.type) else ([""], "is empty")
    with pytest.raises(SystemExit) as ended:
        parse_arguments((kind,), arguments=[*line, f"--{option.name}", *given])
    assert ended.value.code == 2
    assert f"`{option.name}` {said}" in capsys.readouterr().err
    assert not os.listdir()


def test_there_are_options():
    names = {parameter.id.partition("-")[2] for parameter in text_options()}
    assert len(names) > 40
    known = {"data_dir", "features", "output_dir", "cache_dir", "model", "dry_run", "repo_id", "labels", "dataset_id"}
    assert known <= names


@pytest.mark.parametrize("recipe", ["convert_i2moe_checkpoint", "convert_mmimdb_hdf5"])
@pytest.mark.parametrize("paths", [("", "out"), ("in", " ")])
def test_recipes_without_a_dataclass(recipe, paths, run_here, capsys):
    more = ["--modalities", "a", "b", "--num_attention_heads", "1"] if "i2moe" in recipe else []
    with pytest.raises(SystemExit):
        run_here(f"recipes/{recipe}.py", *paths, *more)
    assert "`path` is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    {
        "load_model": load_model,
        "Run.open": Run.open,
        "find_runs": lambda x: find_runs(["runs/a", x]),
        "find_cache, model": find_cache,
        "find_cache, cache": lambda x: find_cache("runs/a", x),
        "from_pretrained": FLI2MoEModel.from_pretrained,
        "open_cache": open_cache,
        "open_features": open_features,
        "build_cache": lambda x: build_cache(RawDataset({}, [], "regression", {}, {}), {}, x, key={}),
        "load_encoder": lambda x: load_encoder(x, "image"),
        "resolve_encoder": resolve_encoder,
        "resolve_encoder, cache": lambda x: resolve_encoder("sample:minilm", x),
        "load_mmimdb": load_mmimdb,
        "load_enrico": load_enrico,
        "load_mmhs150k": load_mmhs150k,
        "load_layout": load_layout,
        "find_layout": find_layout,
        "Explanation.load": Explanation.load,
        "Explanation.save": partial(Explanation.save, None),
        "publish, dry run": lambda x: publish(Path.mkdir, "a/b", dry_run=x),
        "push": lambda x: push(x, "a/b"),
        "make_empty_folder": make_empty_folder,
        "choose_license": lambda x: choose_license("mit", x, "the weights"),
        "CardOptions, id": lambda x: CardOptions(x, "mit"),
        "CardOptions, data": lambda x: CardOptions("a/b", "mit", dataset_id=x),
        "encoding": lambda x: options.EncodingArguments(features=x),
        "output": options.OutputArguments,
        "a choice of the model": lambda x: checked_config(level=x),
        "a modality": lambda x: checked_config(modalities=dict.fromkeys(("image", x), SIZE)),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_functions(call, empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is empty|has an empty entry|[Rr]epo id|non-empty"):
        call[1](empty)
    assert not os.listdir()


def test_the_variable_of_the_cache(monkeypatch):
    monkeypatch.setenv("FL_I2MOE_CACHE", "")
    with pytest.raises(ValueError, match="`FL_I2MOE_CACHE` is empty"):
        user_cache_dir()
    monkeypatch.delenv("FL_I2MOE_CACHE")
    assert user_cache_dir().name == "fl_i2moe"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # neither $HOME nor a user of this number
    with pytest.raises(ValueError, match=r"home folder .* is not known: set FL_I2MOE_CACHE"):
        user_cache_dir()
