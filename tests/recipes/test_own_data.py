"""From a user's table to predictions of new rows, by the recipes and from Python."""

import csv
import inspect
import json
import re
from dataclasses import fields

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_encoders import MAKERS

from fl_i2moe import train
from fl_i2moe.training import new_rows
from fl_i2moe.training.arguments import EncodingArguments, ModelArguments, TrainingArguments
from fl_i2moe.training.runs import Run
from fl_i2moe.training.tables import ReadingArguments

TINY = {"hidden_size": 8, "num_attention_heads": 2, "num_fusion_layers": 1, "num_epochs": 2, "num_threads": 1}
TINY |= {"encoding_workers": 0, "batch_size": 16, "learning_rate": 1e-2}
COLUMNS = {"picture": "image", "words": "text", "signal": "array", "facts": ["price", "colour"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A table with everything in it, and the folder of an encoder for pictures and texts."""
    folder = tmp_path_factory.mktemp("shop")
    torch.manual_seed(0)
    model, image_processor, tokenizer = MAKERS["clip"]()
    for part in (model, image_processor, tokenizer):
        part.save_pretrained(folder / "encoder")
    rng, rows = np.random.default_rng(0), []
    (folder / "pictures").mkdir()
    for number in range(60):
        is_red = number % 2 == 0
        shade = int(rng.integers(120, 255))
        Image.new("RGB", (40, 30), (shade, 0, 0) if is_red else (0, 0, shade)).save(folder / f"pictures/{number}.png")
        signal = [[float(x) for x in rng.normal(size=2).round(3)] for _ in range(int(rng.integers(1, 4)))]
        rows.append(
            {
                "number": f"p{number}",
                "picture": f"pictures/{number}.png",
                "words": " ".join(rng.choice(["quick", "brown", "lazy", "dog"], 3)),
                "signal": json.dumps(signal),
                "price": round(float(rng.normal(10, 3)), 2),
                "colour": str(rng.choice(["green", "black"])),
                "kind": "red" if is_red else "blue",
            }
        )
    write_csv(folder / "products.csv", rows)
    return folder, rows


def write_csv(file, rows):
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def flags(**options):
    return [f"--{name}={value}" for name, value in {**TINY, **options}.items()]


@pytest.fixture
def trained(shop, run_here, no_figures, tmp_path):
    folder, _ = shop
    said = run_here(
        "recipes/train.py",
        *("--dataset", folder / "products.csv", "--image", "picture", "--text", "words", "--array", "signal"),
        *("--tabular", "facts=price,colour", "--label", "kind", "--id", "number"),
        *("--encoder", f"picture={folder / 'encoder'}", f"words={folder / 'encoder'}", "--text_max_length=8"),
        *flags(output_dir=tmp_path / "run"),
    )
    return tmp_path / "run", said


def test_a_table_of_everything(shop, trained, run_here, tmp_path):
    (folder, rows), (output_dir, said) = shop, trained
    assert "'quick" in said or "'lazy" in said or "'brown" in said or "'dog" in said  # examples of what columns hold
    run = Run.open(output_dir)
    assert run.config.modality_order == list(COLUMNS)
    assert run.config.label_names == ["blue", "red"]
    assert run.results["samples"] == {"train": 42, "validation": 6, "test": 12}

    # the rows that it was tested on, as new ones
    known = pq.read_table(output_dir / "predictions.parquet").to_pylist()
    new = [{name: x for name, x in row.items() if name != "kind"} for row in rows]
    new[3]["picture"] = "pictures/none.png"
    new[4]["words"] = " "
    (folder / "pictures/broken.png").write_bytes(b"no picture")
    new[5]["picture"] = "pictures/broken.png"
    write_csv(folder / "new.csv", new)
    file = tmp_path / "predictions.parquet"
    options = [f"--model={output_dir}", f"--dataset={folder / 'new.csv'}", "--id=number", "--num_workers=0"]
    said = run_here("recipes/predict.py", *options, f"--output={file}")
    found = {row["id"]: row for row in pq.read_table(file).to_pylist()}
    assert len(found) == 57
    for row in known:
        if row["id"] in ("p3", "p4", "p5"):
            continue
        twin = found[row["id"]]
        assert twin["predicted"] == row["predicted"]
        for name in ("probability_red", "weight_synergy", "contribution_redundancy"):
            np.testing.assert_allclose(twin[name], row[name], atol=1e-4)
    skipped = [json.loads(x) for x in file.with_name(file.name + ".skipped.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["field"]) for entry in skipped] == [
        ("p3", "picture"),
        ("p4", "words"),
        ("p5", "picture"),
    ]
    assert "3 rows" in said

    run_here("recipes/predict.py", *options, f"--output={tmp_path / 'predictions.csv'}")
    table = pyarrow.csv.read_csv(tmp_path / "predictions.csv").to_pylist()
    for row in table:
        np.testing.assert_allclose(json.loads(row["contribution_synergy"]), found[row["id"]]["contribution_synergy"])


def test_wrong_options_of_predictions(shop, trained, run_here, tmp_path):
    (folder, rows), (output_dir, _) = shop, trained
    text = "".join(json.dumps({**row, "signal": [1.0]}) + "\n" for row in rows[:3])
    table = tmp_path / "table.jsonl"
    table.write_text(text, encoding="utf-8")
    cheap = "".join(json.dumps({**row, "price": "cheap"}) + "\n" for row in rows[:3])
    (folder / "cheap.jsonl").write_text(cheap, encoding="utf-8")
    (tmp_path / "folder.csv").mkdir()
    options = {"model": output_dir, "dataset": folder / "products.csv", "output": tmp_path / "new.csv"}
    for changes, message in (
        ({"model": tmp_path / "no/model"}, "no/model is no folder here, and cannot be had from the Hub"),
        ({"missing": "fill"}, "the model has not learnt to stand in for a modality"),
        ({"output": tmp_path / "folder.csv"}, "folder.csv is a folder"),
        ({"output": table / "new.csv"}, "table.jsonl, which is a file"),
        ({"dataset": table, "output": table}, "is the table that is read"),
        (
            {"dataset": table, "root": folder},
            "0: signal: row 0 (counted from 0): its vectors have 1 numbers",
        ),
        ({"dataset": folder / "cheap.jsonl"}, "No row of .*0: facts: column 'price' takes numbers, got 'cheap'"),
    ):
        given = [f"--{name}={value}" for name, value in {**options, **changes}.items()]
        with pytest.raises(SystemExit, match=message if ".*" in message else re.escape(message)):
            run_here("recipes/predict.py", *given, "--overwrite", "--num_workers=0")
        assert not (tmp_path / "new.csv").exists()
        assert not list(tmp_path.glob(".unfinished-*"))
    assert table.read_text(encoding="utf-8") == text


def test_a_stopped_prediction_goes_on(shop, trained, run_here, tmp_path, monkeypatch):
    (folder, _), (output_dir, _) = shop, trained
    monkeypatch.setattr(new_rows, "PART_ROWS", 20)
    options = [f"--model={output_dir}", f"--dataset={folder / 'products.csv'}", "--id=number", "--num_workers=0"]
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    run_here("recipes/predict.py", *options, f"--output={whole}")
    write, calls = new_rows.write_predictions, []

    def stop_at_second(path, tables):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, tables)

    monkeypatch.setattr(new_rows, "write_predictions", stop_at_second)
    with pytest.raises(SystemExit):
        run_here("recipes/predict.py", *options, f"--output={stopped}")
    assert not stopped.exists()
    said = run_here("recipes/predict.py", *options, f"--output={stopped}")
    assert "20 of 60 rows are predicted already" in said
    assert len(calls) == 4  # the second and third part alone
    assert stopped.read_text() == whole.read_text()
    assert not list(tmp_path.glob(".unfinished-*"))


def test_python_and_the_command_line_are_one(shop, trained, tmp_path, fresh_accelerate, monkeypatch, no_figures):
    """Also from a data set in memory, whose rows are those of the file."""
    (folder, rows), (output_dir, _) = shop, trained
    monkeypatch.setenv("FL_I2MOE_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.chdir(folder)
    fresh_accelerate()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    run = train(
        Dataset.from_dict(columns),
        COLUMNS,
        "kind",
        encoders={"picture": str(folder / "encoder"), "words": str(folder / "encoder")},
        output_dir=tmp_path / "python",
        id="number",
        text_max_length=8,
        **TINY,
    )
    assert run.results["seeds"]["0"]["weights"] == Run.open(output_dir).results["seeds"]["0"]["weights"]
    assert set(run.statistics["metrics"]["experts"]) == set(run.model.config.expert_names)
    assert run.cache.path == Run.open(output_dir).cache.path


def test_the_docstring_has_every_option():
    for part in (ReadingArguments, EncodingArguments, ModelArguments, TrainingArguments):
        for item in fields(part):
            if item.name not in ("features", "stream_features", "shuffle_buffer_size"):
                assert f"{item.name} = " in train.__doc__
                assert item.name in inspect.signature(train).parameters


def test_rows_that_lack_a_modality(run_here, no_figures, tmp_path):
    """The model stands in for one, and says so; a row without any is left out."""
    rows = [{"size": i % 7, "weight": i % 5, "colour": "rg"[i % 2], "kind": "ab"[i % 2]} for i in range(40)]
    rows[1]["colour"], rows[2]["size"], rows[2]["weight"] = "", "", ""
    write_csv(tmp_path / "table.csv", rows)
    options = ("--tabular", "amounts=size,weight", "look=colour", "--label=kind", "--missing=fill")
    run_here("recipes/train.py", f"--dataset={tmp_path / 'table.csv'}", *options, *flags(output_dir=tmp_path / "run"))
    rows[3] |= {"size": "", "weight": "", "colour": ""}
    write_csv(tmp_path / "table.csv", rows)
    file = tmp_path / "new.parquet"
    paths = [
        f"--model={tmp_path / 'run'}",
        f"--dataset={tmp_path / 'table.csv'}",
        f"--output={file}",
        "--num_workers=0",
    ]
    said = run_here("recipes/predict.py", *paths)
    found = {row["id"]: row["missing"] for row in pq.read_table(file).to_pylist()}
    assert found == {str(i): {1: ["look"], 2: ["amounts"]}.get(i, []) for i in range(40) if i != 3}
    assert "1 row" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "learning_rate"),
        ({"encoders": {"pictur": "x"}}, "'pictur'"),
        ({"encoders": {"signal": "x"}, "modalities": COLUMNS}, "needs no encoder"),
        ({"modalities": {"picture": "image"}}, "at least two modalities"),
        ({"modalities": {"picture": "image", "words": "txt"}}, "txt"),
        ({"modalities": ["picture", "words"]}, "dictionary"),
        ({"label": "kinds"}, "kind"),
        ({"label": 3}, "`label` must be the name of a column"),
        ({"label": []}, "`label` must be the name of a column"),
        ({"batch_size": 0}, "batch_size"),
        ({"output_dir": " "}, "output_dir"),
    ],
)
def test_wrong_arguments_of_train(shop, tmp_path, fresh_accelerate, changes, message):
    folder, _ = shop
    given = {"data": folder / "products.csv", "modalities": {"picture": "image", "words": "text"}, "label": "kind"}
    given |= {"output_dir": tmp_path / "run", "num_threads": 1}
    with pytest.raises(ValueError, match=message):
        train(**{**given, **changes})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset=x.csv", "--image=a", "--text=b"], "label"),
        (["--dataset=x.csv", "--image=a", "--label=c"], "at least two modalities"),
        (["--dataset=x.csv", "--image=a", "--text=a", "--label=c"], "'a' is named twice"),
        (["--dataset=x.csv", "--image=a", "--text=b", "--label=c", "--encoder=clip"], "column=value"),
        (["--dataset=x.csv", "--image=a", "--text=b", "--label=c", "--hidden_layer=a=last"], "column=number"),
        (["--image=a", "--text=b", "--label=c"], "dataset"),
        (["--dataset=none.csv", "--image=a", "--text=b", "--label=c"], "none.csv"),
    ],
)
def test_wrong_options(run_here, capsys, tmp_path, options, message):
    with pytest.raises(SystemExit) as end:
        run_here("recipes/train.py", *options, f"--output_dir={tmp_path / 'run'}")
    assert message in f"{end.value} {capsys.readouterr().err}"
