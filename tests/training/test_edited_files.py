"""Files of a run that were edited, are damaged or come from elsewhere: a sentence with file and key, no traceback."""

import json
import random
import shutil
from copy import deepcopy

import pytest
from explained import make_explanation
from published import write_run
from tiny_models import make_config, make_model

from fl_i2moe.evaluation.run.files import FAITHFULNESS_FILE, PAIR_MASKING_FILE
from fl_i2moe.explain import Explanation
from fl_i2moe.explain.pages.sample_page import render_page
from fl_i2moe.metrics.tasks import METRICS_BY_PROBLEM
from fl_i2moe.publishing.card import CardOptions, build_card
from fl_i2moe.training.results import read_seed_results
from fl_i2moe.training.runs import Run, find_cache, load_model

SAMPLE = "explanations/samples/film.json"
FILES = [
    "config.json",
    "results.json",
    "interaction_statistics.json",
    "run.json",
    f"explanations/{FAITHFULNESS_FILE}",
    f"explanations/{PAIR_MASKING_FILE}",
    SAMPLE,
]
REMOVED, ADDED = object(), object()
CONTENTS = ["", "{", "[]", "null", "3", '"a"', "{}", "\x00", "NaN", '{"a": 1, "a": 2}']
VALUES = [None, "x", 1.5, -3, [], {}, True, 10**400, REMOVED, ADDED]
OPTIONS = CardOptions("someone/model", "mit")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was explained."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = make_config(encoders={name: {"kind": "array", "name": name} for name in ("text", "image")})
    write_run(folder, make_model(config))
    make_explanation().save(folder / SAMPLE)
    metrics = METRICS_BY_PROBLEM[config.problem_type]
    lists = {name: [0.1, 0.2] for name in ("values", "values_std", "drops", "drops_std")}
    curve = lists | dict.fromkeys(("mean_drop", "mean_drop_std", "auc", "auc_std"), 0.1)
    curves = dict.fromkeys(metrics, curve)
    faithfulness = {
        "methods": ["ig"],
        "experts": config.expert_names,
        **{"num_random": 5, "seed": 0, "target": "true", "num_samples": 3, "shares": [0.1, 0.2]},
        "problem_type": config.problem_type,
        **dict.fromkeys(("base", "emptied"), dict.fromkeys(metrics, 0.5)),
        "deletion": {"ig": dict.fromkeys([*config.expert_names, "mixture"], curves)},
    }
    draws, interval = dict.fromkeys(("mean", "std", "min", "max"), 0.1), {"value": 0.1, "interval": [0.0, 0.2]}
    masked = {"none": 0.5, "ranked": 0.4, "drop": {"ranked": interval}, "ranked_minus_random": interval}
    masked |= dict.fromkeys(("random_same_features", "random_same_pairs"), draws)
    counts = dict.fromkeys(("num_samples", "num_pairs", "num_features", "num_features_same_pairs"), 3)
    masking = {"synergy": {**counts, "confidence": 0.95, "metrics": dict.fromkeys(metrics, masked)}}
    for name, content in (
        (f"explanations/{FAITHFULNESS_FILE}", {"FL-I²MoE": faithfulness}),
        (f"explanations/{PAIR_MASKING_FILE}", masking),
        ("run.json", {"features": "abc", "threshold": 0.5, "data_dir": "films"}),
        ("explanations/run.json", {}),  # as an earlier version wrote it, which names no weights
    ):
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def use(folder):
    """All that reads a run's files."""
    found = Run.open(folder)
    return str(build_card(found, OPTIONS)), render_page(Explanation.load(folder / SAMPLE))


def places(content, path=()):
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else [])
    for key, part in items:
        yield from places(part, (*path, key))


def change(content, path, value):
    content = deepcopy(content)
    above = content
    for key in path[:-1]:
        above = above[key]
    if value is REMOVED:
        del above[path[-1]]
    elif value is ADDED:
        above[path[-1]] = {**above[path[-1]], "foreign": 1} if isinstance(above[path[-1]], dict) else {"foreign": 1}
    else:
        above[path[-1]] = value
    return content


def test_the_whole_run_is_read(run):
    card, page = use(run)
    assert "What explanations of this model are worth" in card
    assert "**Pair masking.**" in card
    assert "film &lt;1&gt;" in page
    assert load_model(run).config.expert_names == Run.open(run).config.expert_names


@pytest.mark.parametrize("file", FILES)
def test_whatever_stands_in_a_file(run, file):
    """Either it does not matter, or the message names the file."""
    file = run / file
    content, rng = json.loads(file.read_text()), random.Random(0)
    changes = [(path, value) for path in places(content) if path for value in VALUES]
    texts = [json.dumps(change(content, *x)) for x in rng.sample(changes, min(50, len(changes)))]
    messages = []
    for text in (*CONTENTS, *texts):
        file.write_text(text)
        try:
            use(run)
        except (ValueError, OSError) as error:
            messages.append(str(error))
    assert len(messages) > len(CONTENTS)
    assert [message for message in messages if file.name not in message] == []


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("results.json", ("best_seed",), 7, "`best_seed` is 7, which is none of `seeds`: 0, 1"),
        ("results.json", ("best_seed",), "0", '`best_seed` must be a whole number, got "0"'),
        ("results.json", ("seeds",), {}, "`best_seed` is 1"),
        ("results.json", ("seeds", "0", "epochs"), REMOVED, r"`seeds\.0\.epochs` is missing"),
        (
            "results.json",
            ("seeds", "1", "test", "micro_f1"),
            "1",
            r"`seeds\.1\.test\.micro_f1` must be a number",
        ),
        (
            "results.json",
            ("test", "accuracy"),
            {"mean": 1, "std": None},
            r"`test\.accuracy` is no metric of multi",
        ),
        ("results.json", ("seeds", "0", "test", "mAP"), REMOVED, r"`seeds\.0\.test` lacks mAP"),
        ("results.json", ("seeds", "0", "per_class", "LABEL_1", "f1"), REMOVED, r"per_class\.LABEL_1` lacks f1"),
        ("results.json", ("seeds", "0", "per_class", "LABEL_1", "mae"), 1.0, r"LABEL_1\.mae` is no metric of multi"),
        (
            "results.json",
            ("seeds", "1", "own_thresholds", "test", "mAP"),
            "1",
            r"own_thresholds\.test\.mAP` must be a num",
        ),
        ("results.json", ("own_thresholds", "test", "accuracy"), {"mean": 1, "std": None}, "` is no metric of multi"),
        ("results.json", ("seeds", "1", "own_thresholds", "test", "micro_f1"), REMOVED, r"test` lacks micro_f1"),
        ("results.json", ("seeds", "1", "calibration", "test", "after", "ece"), None, r"after\.ece` must be a number"),
        ("results.json", ("seeds", "1", "confusion_matrix"), {"a": [1]}, r"confusion_matrix\.a` must be an object"),
        ("results.json", ("samples", "test"), REMOVED, r"`samples\.test` is missing"),
        ("results.json", ("machine", "device"), REMOVED, r"`machine\.device` is missing"),
        ("interaction_statistics.json", ("expert_names", 0), "other", "`expert_names` names other, .*; the model has"),
        ("interaction_statistics.json", ("label_names",), [], "`label_names` names "),
        ("interaction_statistics.json", ("metrics", "experts", "synergy"), REMOVED, r"`metrics\.experts` names"),
        (
            "interaction_statistics.json",
            ("agreement", "per_sample", "table", "agree_right"),
            1,
            "agree_right` must be",
        ),
        ("interaction_statistics.json", ("problem_type",), "ranking", "`problem_type` must be 'multi_label"),
        ("interaction_statistics.json", ("carriers", "labels", "LABEL_1"), REMOVED, r"`carriers\.labels` names "),
        (
            "interaction_statistics.json",
            ("carriers", "labels", "LABEL_1", "losses", "synergy"),
            REMOVED,
            r"`carriers\.labels\.LABEL_1\.losses` names ",
        ),
        (
            "interaction_statistics.json",
            ("carriers", "labels", "LABEL_1", "losses", "synergy", "f1", "interval"),
            [1.0],
            r"LABEL_1\.losses\.synergy\.f1\.interval` must hold two numbers",
        ),
        (
            "interaction_statistics.json",
            ("carriers", "labels", "LABEL_1", "score", "f1"),
            REMOVED,
            r"LABEL_1\.score` names log_loss, average_precision; there are log_loss, f1",
        ),
        (
            "interaction_statistics.json",
            ("carriers", "labels", "LABEL_1", "carrier"),
            "dense",
            r"LABEL_1\.carrier` is dense, which is no expert",
        ),
        ("run.json", ("features",), 5, "`features` must be a text, got 5"),
        ("run.json", ("threshold",), "a half", '`threshold` must be a number, got "a half"'),
        ("config.json", ("hidden_size",), "8", r"config\.json: .*'hidden_size' expected int, got str"),
        ("config.json", ("hiden_size",), 8, r"config\.json: Unknown keyword `hiden_size`.*Did you mean `hidden_size`"),
        ("config.json", ("id2label", "1"), REMOVED, r"config\.json: `id2label` must name classes by 0, 1"),
        ("config.json", ("id2label",), 3, r"config\.json"),
        ("config.json", ("encoders", "text"), "some", r"config\.json: `encoders\['text'\]` must have texts"),
        ("config.json", ("thresholds", 1), 1.5, r"config\.json: `thresholds` must hold 3 probabilities"),
        ("config.json", ("temperature",), -1, r"config\.json: `temperature` must be positive, got -1"),
        ("config.json", ("model_type",), "bert", "of type 'bert' by `model_type` in config.json"),
        ("config.json", ("problem_type",), "ranking", "`problem_type` must be one of .* got 'ranking'"),
        ("config.json", ("dtype",), "float23", r"config\.json"),
        ("config.json", ("dtype",), "load", r"config\.json: `dtype` must name a type of floating point numbers"),
        ("config.json", ("dtype",), 5, r"config\.json"),
        (SAMPLE, ("logits",), [1.0], r"`logits` does not fit the rest: it is 1, expected 3"),
        (SAMPLE, ("pair_tables", "synergy", "scores", "sii"), [0.5], r"`pair_tables\.synergy` does not fit the rest"),
        (SAMPLE, ("pair_tables", "synergy", "ends", 0), ["image", 99, "text", 1], r"`pair_tables\.synergy\.ends` has"),
        (SAMPLE, ("modalities", "text", "offsets", 2), None, r"`modalities\.text` does not say where features lie"),
        (SAMPLE, ("modalities", "image", "grid"), [0, 0], r"`modalities\.image` does not say where features lie"),
        (SAMPLE, ("target",), -1, "`target_name` does not fit the rest"),
        (f"explanations/{FAITHFULNESS_FILE}", ("FL-I²MoE", "base"), {}, "faithfulness.json lacks `micro_f1`"),
    ],
)
def test_what_is_wrong_is_named(run, file, path, value, message):
    content = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps(change(content, path, value)))
    with pytest.raises(ValueError, match=message) as caught:
        use(run)
    assert file.rpartition("/")[2] in str(caught.value)


@pytest.mark.parametrize("text", CONTENTS)
def test_a_model_with_such_a_configuration(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json|holds a model of type None"):
        load_model(run)


def test_results_of_one_seed(whole, tmp_path):
    file, content = tmp_path / "results.json", json.loads((whole / "results.json").read_text())["seeds"]["0"]
    file.write_text(json.dumps(content))
    assert read_seed_results(file, "multi_label_classification") == content
    for problem_type, message in (("regression", r"results\.json: `test\.\w+` is no metric of regression"),):
        with pytest.raises(ValueError, match=message):
            read_seed_results(file, problem_type)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json .*`best_epoch` is missing"):
        read_seed_results(file, "multi_label_classification")


def test_features_of_another_type(run):
    (run / "run.json").write_text('{"features": {"text": 1}}')
    with pytest.raises(ValueError, match=r"run\.json, .*, is damaged or was changed: `features` must be a text"):
        find_cache(run)
