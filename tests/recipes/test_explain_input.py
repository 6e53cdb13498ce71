"""`recipes/explain.py` on words and cells, which are taken out before the encoders: what is written, kept, refused."""

import json
import os
from dataclasses import replace

import pytest
from accelerate import Accelerator
from published import make_published

from fl_i2moe.evaluation.run import explanations
from fl_i2moe.evaluation.run import sample as run_sample
from fl_i2moe.evaluation.run.arguments import ExplainArguments
from fl_i2moe.evaluation.run.explanations import run_explanations
from fl_i2moe.evaluation.run.sample import maskings
from fl_i2moe.explain import Explanation
from fl_i2moe.explain.input_sample import MaskedModality

QUICK = {"num_threads": 1, "num_coalitions": 1, "num_draws": 2, "num_samples": 2, "num_pages": 1, "classes": "best"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model, _, cache = make_published(folder)
    model.save_pretrained(folder / "model")
    return cache, {"model": str(folder / "model"), "cache_dir": str(cache.path)}


def started(folders, **changes):
    arguments = ExplainArguments(**{**folders, **QUICK, **changes})
    run_explanations(arguments, Accelerator(cpu=True))
    return arguments.folder


def test_a_run_on_the_input_and_what_a_second_start_keeps(trained, run_here, tmp_path, monkeypatch):
    _, folders = trained
    folders = {**folders, "output_dir": str(tmp_path / "out")}
    for module in (run_sample, explanations):  # metrics of many maskings take long
        monkeypatch.setattr(module, "maskings", lambda *x: replace(maskings(*x), shares=(0.1,)))
    run_here(
        "recipes/explain.py", *(f"--{name}={value}" for name, value in {**folders, **QUICK}.items()), "--cells", 2, 2
    )
    folder = tmp_path / "out"
    [data] = (folder / "samples").glob("*.json")
    explanation = Explanation.load(data)
    assert explanation.method == "shapley"
    assert explanation.settings["units"] == "input"
    assert explanation.settings["encodings"] > 0
    assert {name: x.noun for name, x in explanation.modalities.items()} == {"text": "words", "image": "cells"}
    [result] = json.loads((folder / "faithfulness.json").read_text()).values()
    methods = ["shapley", "leave_one_out", "rollout", "grad_attnroll", "attnroll", "ig", "random"]
    assert result["methods"] == methods
    assert result["num_samples"] == 2
    table = (folder / "erasure.md").read_text()
    assert "Leave one out | Mixture" in table
    # of each expert, the mixture's and random
    assert table.count("\n|") == 2 + 6 * 5 + 1
    page = (folder / "index.html").read_text()
    for name in ("faithfulness.png", "faithfulness_insertion.png", "erasure.png", "alignment.png", "pair_curves.png"):
        assert f'src="{name}"' in page
        assert (folder / name).is_file()
    assert "of each modality’s parts by what they do to the expert, at most 16" in page
    masking = json.loads((folder / "pair_masking.json").read_text())
    assert masking["synergy"]["num_samples"] == 2

    # nothing is encoded again
    def refuse(*_):
        raise AssertionError("encoded again")

    before = {path: path.stat().st_mtime_ns for path in (folder / "measured").rglob("*") if path.is_file()}
    assert len(before) == 4
    again = {**folders, "cells": [2, 2], "measurements": ["faithfulness"]}
    with monkeypatch.context() as patched:
        patched.setattr(MaskedModality, "_encode", refuse)
        (folder / "faithfulness.json").unlink()
        started(again)
    assert json.loads((folder / "faithfulness.json").read_text())["FL-I²MoE"] == result
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # but what is lost, alone
    [lost, damaged] = sorted(path for path in before if path.suffix == ".npz")
    lost.unlink()
    encoded = []
    encode = MaskedModality._encode
    with monkeypatch.context() as patched:
        patched.setattr(MaskedModality, "_encode", lambda self, kept: encoded.append(kept) or encode(self, kept))
        started(again)
    assert encoded
    assert lost.is_file()
    damaged.write_bytes(damaged.read_bytes()[:100])
    (folder / "faithfulness.json").unlink()
    with pytest.raises(ValueError, match=rf"{damaged.name} is damaged: remove it, and start again"):
        started(again)
    for changes, message in (
        (
            {"units": "features", "cells": []},
            r"units: 'input' then, 'features' now\n  cells: .*\n  method: 'shapley' then, 'grad_attnroll' now",
        ),
        ({"cells": [2, 1]}, r"cells: \[2, 2\] then, \[2, 1\] now"),
        ({"removal": ["text=mask"]}, r"removal: \[\] then, \['text=mask'\] now"),
    ):
        with pytest.raises(ValueError, match=rf"other settings:\n  {message}"):
            started(again, **changes)


def test_explanations_of_features_by_version_0_1_0_go_on(trained, tmp_path):
    """Its settings name no units."""
    _, folders = trained
    how = {"units": "features", "measurements": ["none"], "interactions": "none", "output_dir": str(tmp_path / "out")}
    folder = started(folders, **how)
    settings = json.loads((folder / "run.json").read_text())
    for name in ("units", "cells", "text_units", "removal"):
        del settings[name]
    (folder / "run.json").write_text(json.dumps(settings))
    started(folders, **how)
    with pytest.raises(ValueError, match="units: 'features' then, 'input' now"):
        started(folders, **(how | {"units": "input"}))


def test_cells_sentences_and_removals_are_those_asked_for(trained, tmp_path):
    _, folders = trained
    how = {"cells": [2, 1], "text_units": "sentences", "removal": ["image=blur"], "method": "leave_one_out"}
    folder = started(
        folders, **how, measurements=["none"], interactions="none", output_dir=str(tmp_path), num_samples=1
    )
    [data] = (folder / "samples").glob("*.json")
    explanation = Explanation.load(data)
    assert {name: x.num_features for name, x in explanation.modalities.items()} == {"text": 1, "image": 2}
    assert any("image" in x and "blurred" in x for x in explanation.remarks)
    assert explanation.method == "leave_one_out"


def test_what_cannot_be_explained_is_said_at_the_start(trained, tmp_path, monkeypatch, capsys):
    cache, folders = trained
    folders = {**folders, "output_dir": str(tmp_path / "out")}
    for changes, message in (
        ({"method": "ig"}, r"'ig' is not for --units input .*: give --method shapley or leave_one_out or rollout"),
        (
            {"method": "shapley", "units": "features"},
            r"'shapley' is not for --units features .* --method grad_attnroll",
        ),
        ({"removal": ["sound=silence"]}, r"`removals` names \['sound'\]; this model has \['text', 'image'\]"),
        ({"removal": ["image=burn"]}, "no removal 'burn' of this image encoder; there are"),
        ({"cells": [9, 9]}, "Sample sample-0: The image cannot be cut .* 4 x 4 patches; 9 x 9 cells are finer"),
    ):
        with pytest.raises(ValueError, match=message):
            started(folders, **changes)
    for wrong, message in (
        ({"cells": [3]}, r"`cells` takes two numbers from 1, rows and columns, got \[3\]"),
        ({"cells": [0, 3]}, "two numbers from 1"),
        ({"removal": ["blur"]}, "modality=way, such as image=blur, got 'blur'"),
        ({"removal": ["image="]}, "modality=way"),
        ({"removal": ["image=blur", "image=drop"]}, "names a modality twice"),
        ({"units": "features", "cells": [2, 2]}, "`cells` needs `units` input"),
        ({"units": "features", "text_units": "sentences"}, "`text_units` needs `units` input"),
    ):
        with pytest.raises(ValueError, match=message):
            ExplainArguments(**{**folders, **QUICK, **wrong})

    # a picture that is gone, or another one, in the second sample
    split = cache.splits["test"]
    place = split[1]["image"]["path"]
    os.rename(place, place + ".away")
    try:
        with pytest.raises(ValueError, match=r"Sample sample-1: The image is not at .*--units features .* skip"):
            started(folders)
        started(folders, on_bad_sample="skip", measurements=["none"], interactions="none")
        assert "Sample sample-1: The image is not at" in capsys.readouterr().out
        assert [path.name for path in (tmp_path / "out" / "measured").iterdir()] == ["sample-0.json"]
    finally:
        os.rename(place + ".away", place)

    without = split.remove_columns(["image"])
    monkeypatch.setattr(explanations, "find_cache", lambda *_: replace(cache, splits={"test": without}))
    with pytest.raises(ValueError, match=r"has no image, only its features.* --units features needs neither"):
        started(folders, overwrite=True)
    monkeypatch.undo()
    encoder = cache.path.parent / "encoder-text"
    encoder.rename(encoder.with_name("away"))
    try:
        with pytest.raises(ValueError, match=r"encoder-text does not exist.* --units features needs neither"):
            started(folders, overwrite=True)
    finally:
        encoder.with_name("away").rename(encoder)
