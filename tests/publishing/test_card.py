import json
import re
import shutil

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.errors import HFValidationError
from markdown_it import MarkdownIt
from published import make_published, write_run
from safetensors.torch import load_file, save_file
from tiny_models import make_config, make_model
from transformers.pipelines import get_supported_tasks

from fl_i2moe.evaluation.information.bits import create_systems, information_rows
from fl_i2moe.explain import Explanation
from fl_i2moe.metrics.markdown import escape
from fl_i2moe.publishing.card import CardOptions, build_card, evaluation_results
from fl_i2moe.training.runs import Run
from fl_i2moe.utils.files import write_json

NASTY = [
    "<script>alert(1)</script>",
    "[click](https://evil.example) | **bold**",
    "`code` $x$ ~~gone~~ ![i](a.png) https://evil.example",
]


def card_of(folder, model, figures=False, **options):
    results = write_run(folder, model, figures=figures)
    options = CardOptions("someone/fl-i2moe-films", "apache-2.0", **options)
    return str(build_card(Run.open(folder), options)), results


def rows(card, heading):
    """Cells of the first table behind a heading."""
    text = card.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    model, *_ = make_published(folder, names={"text": "sample:minilm"})
    model.config.encoders["image"].update(
        name="openai/clip-vit-base-patch16", revision="0123456789abcdef" * 2 + "01234567"
    )
    card, results = card_of(
        folder / "run", model, True, dataset_name="Films", dataset_id="someone/films", language=["en"]
    )
    return card, results, model, folder / "run"


def test_head_is_what_the_hub_understands(films):
    card, results, _, _ = films
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "other",
    )
    # what the Hub shows a pipeline of, which would not take several modalities
    assert data.pipeline_tag not in get_supported_tasks()
    assert data.base_model == ["openai/clip-vit-base-patch16"]  # the other encoder has no hub id
    assert data.datasets == ["someone/films"]
    assert set(data.metrics) == {"f1", "mean_average_precision", "roc_auc", "accuracy"}
    published = results["seeds"]["1"]["test"]
    found = {result.metric_name: result for result in data.eval_results}
    assert {"micro-F1", "macro-F1", "mAP", "AUROC", "subset accuracy"} == set(found)
    assert found["micro-F1"].metric_value == pytest.approx(published["micro_f1"])
    assert found["AUROC"].metric_value == pytest.approx(published["auroc"])
    assert (found["mAP"].dataset_type, found["mAP"].dataset_name) == ("someone/films", "Films")


def test_evaluation_results(films):
    _, results, _, folder = films
    run = Run.open(folder)
    entries = parse_eval_result_entries(
        yaml.safe_load(evaluation_results(run, CardOptions("someone/model", "mit", dataset_id="someone/films")))
    )
    assert {entry.task_id: entry.value for entry in entries} == pytest.approx(results["seeds"]["1"]["test"])
    assert {entry.dataset_id for entry in entries} == {"someone/films"}
    assert evaluation_results(run, CardOptions("someone/model", "mit", dataset_name="Films")) is None


def test_results_and_weights_are_those_of_the_files(films):
    card, results, _, folder = films
    header, row = rows(card, "## Results")
    micro = results["test"]["micro_f1"]
    unbroken = f"{100 * micro['mean']:.1f}\u00a0±\u00a0{100 * micro['std']:.1f}"
    assert row[header.index("micro-F1")] == unbroken == "11.5\u00a0±\u00a02.1"
    statistics = json.loads((folder / "interaction_statistics.json").read_text())
    header, *lost = rows(card, "### What each label loses without each expert")
    assert header == ["label", "carried by", "log loss (nats)", "F1 (%)", "average precision (%)"]
    assert [x[0] for x in lost] == statistics["label_names"]
    heading = "<summary>How much the log loss grows without each expert, and without all of them</summary>"
    _, *lost = rows(card, heading)
    loss = statistics["carriers"]["labels"]["Thriller"]["losses"]["synergy"]["log_loss"]
    ends = ", ".join(f"{x:.3f}" for x in loss["interval"])
    assert lost[2][3].replace("\\", "").replace("−", "-") == f"{loss['value']:.3f} [{ends}]"
    order = [card.index(f"### {x}") for x in ("What each label", "Experts alone", "Do the experts", "How much each")]
    assert order == sorted(order)
    _, *experts = rows(card, "### How much each expert counts")
    assert [x[0] for x in experts] == ["Uniqueness: text", "Uniqueness: image", "Synergy", "Redundancy"]
    weights = statistics["expert_weights"]["overall"]
    assert experts[1][1] == f"{weights['uniqueness_image']['mean']:.3f}"
    assert experts[2][5] == f"{weights['synergy']['quantiles']['0.95']:.3f}"
    _, mixture, *alone = rows(card, "### Experts alone against the mixture")
    assert mixture[1] == f"{100 * statistics['metrics']['mixture']['micro_f1']:.1f}"
    assert alone[3][2] == f"{100 * statistics['metrics']['experts']['redundancy']['macro_f1']:.1f}"
    _, *classes = rows(card, "<summary>Mean weight over the samples of each class</summary>")
    assert classes[2][0] == "Thriller"
    per_class = statistics["expert_weights"]["per_class"]["Thriller"]
    assert classes[2][1:3] == [str(per_class["num_samples"]), f"{per_class['experts']['uniqueness_text']['mean']:.3f}"]
    _, whole, _ = rows(card, "### Do the experts agree?")
    share = statistics["agreement"]["per_sample"]["table"]["disagree_wrong"]["share"]
    assert whole[4] == f"{100 * share:.1f} %"


def test_inputs_and_packages_are_those_of_the_kinds(films, tmp_path):
    card, _, model, _ = films
    assert "Its inputs are the\ntokens and patches of frozen encoders." in card
    assert 'pip install torch "transformers>=5.23" pillow\n' in card
    preprocessing = {"max_samples": 16000, "feature_extractor": {"sampling_rate": 16000}}
    sound = {"kind": "audio", "name": "a/b", "revision": "0" * 40, "preprocessing": preprocessing}
    sound |= {"hidden_layer": None, "special_features": "keep", "dtype": "float32"}
    columns = {
        "kind": "tabular",
        "name": "columns of a table",
        "columns": [{"column": "age", "mean": 0.0, "scale": 1.0, "has_missing": False}],
    }
    model = make_model(model.config)
    values = {**model.config.to_dict(), "encoders": {"image": sound, "text": columns}}
    model = make_model(type(model.config).from_dict(values))
    card, _ = card_of(tmp_path / "run", model)
    assert "Its inputs are the\ncolumns and stretches of its modalities." in card
    assert 'pip install torch "transformers>=5.23" pillow soundfile soxr\n' in card


def test_results_of_each_class_thresholds_and_temperature(films):
    card, results, model, _ = films
    best, config = results["seeds"]["1"], model.config
    header, *classes = rows(card, "<summary>Results of each class</summary>")
    assert header == ["", "precision", "recall", "F1", "samples", "average precision", "threshold"]
    for (name, x), cells, threshold in zip(best["per_class"].items(), classes, config.thresholds, strict=True):
        assert cells[0] == name
        assert cells[1:4] == [f"{100 * x[metric]:.1f}" for metric in ("precision", "recall", "f1")]
        assert cells[4:] == [str(x["support"]), f"{100 * x['average_precision']:.1f}", f"{threshold:.3f}"]
    header, one, own = rows(
        card,
        "`config.thresholds` holds one for each label, which had the best F1 on the validation split:",
    )
    assert header[1:] == ["micro-F1", "macro-F1", "subset accuracy"]
    assert one[1].startswith(f"{100 * results['test']['micro_f1']['mean']:.1f}")
    assert own[2].startswith(f"{100 * best['own_thresholds']['test']['macro_f1']:.1f}")
    before, after = (best["calibration"]["test"][when] for when in ("before", "after"))
    assert f"divided by `config.temperature`, {config.temperature:.2f}, chosen" in card
    assert f"log loss went from {before['log_loss']:.3f} to {after['log_loss']:.3f}, the expected" in card
    assert f"calibration error from {100 * before['ece']:.1f} to {100 * after['ece']:.1f} %." in card
    assert "not calibrated" not in card


def test_the_card_of_a_run_that_measured_less(films, tmp_path):
    """As 0.1.0 did; and one with a confusion matrix."""
    _, results, _, folder = films
    shutil.copytree(folder, tmp_path / "run")
    new = ("own_thresholds", "calibration", "per_class")
    old = {name: x for name, x in results.items() if name not in new}
    old["seeds"] = {seed: {k: x for k, x in run.items() if k not in new} for seed, run in results["seeds"].items()}
    (tmp_path / "run" / "results.json").write_text(json.dumps(old))
    config = json.loads((folder / "config.json").read_text())
    for name in ("temperature", "thresholds"):
        del config[name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    statistics = json.loads((folder / "interaction_statistics.json").read_text())
    del statistics["carriers"]
    (tmp_path / "run" / "interaction_statistics.json").write_text(json.dumps(statistics))
    (tmp_path / "run" / "figures" / "confusion_matrix.png").write_bytes(b"drawn")
    card = str(build_card(Run.open(tmp_path / "run"), CardOptions("someone/films", "mit")))
    assert "What each label loses" not in card
    assert "an expert with a small weight can carry a class" in card
    assert "Results of each class" not in card
    assert "config.thresholds" not in card
    assert "a label counts as predicted from 0.5. They are not calibrated." in card
    assert "![Confusion matrix](figures/confusion_matrix.png)" in card


def test_warnings_use_and_training(films):
    card, _, _, _ = films
    text = " ".join(card.replace("\n> ", "\n").split())
    assert "need not be what its name says" in text.replace("**", "")
    assert "not how much evidence the expert holds" in text
    assert 'name = "someone/fl-i2moe-films"\nclassify = pipeline("image-text-classification", model=name,' in card
    assert "\n\n## How to use" in card
    assert 'processor(text="A pianist …", image="image.jpg", return_tensors="pt")' in card
    assert "text: sample:minilm, which has no Hub id, from `encoders/` of this repository; its license is" in card
    assert "image: openai/clip-vit-base-patch16 at commit 0123456789abcdef0123456789abcdef01234567." in card
    assert "12,345 trained parameters, 2 minutes a seed" in text
    assert "/home/somebody" not in card
    for figure in ("carriers", "expert_weights", "expert_weights_per_class", "experts_vs_mixture", "agreement"):
        assert f"](figures/{figure}.png)" in card


def test_specialised_experts_get_another_warning(tmp_path):
    card, _ = card_of(tmp_path / "run", make_model(make_config(objective="specialised")))
    text = " ".join(card.replace("\n>", "\n").split())
    assert "specialised objective, which is this package's and not the papers'" in text
    assert (
        "share what redundancy leaves. Uniqueness experts are penalised for evidence that other modalities also carry"
        in text
    )
    assert "Their answers are parts of a sum" in text
    assert "penalties of weight 0.5. Which expert is right" in text
    assert "Made-up data whose interactions are known, in three runs each. Films, two modalities: every genre" in text
    assert "| objective | specialised |" in card
    assert "perturbation" not in card  # which has no part in this objective
    assert "must confirm the names here, too" in text
    assert "need not be what its name says" not in text.replace("**", "")
    card, _ = card_of(
        tmp_path / "no-penalties", make_model(make_config(objective="specialised", interaction_loss_weight=0.0))
    )
    text = " ".join(card.replace("\n>", "\n").split())
    assert "trained without the penalties" in text
    assert "penalties of weight 0.5. Which" in text
    card, _ = card_of(
        tmp_path / "weaker", make_model(make_config(objective="specialised", interaction_loss_weight=0.05))
    )
    assert "penalties of weight 0.5, this one of 0.05. Which" in " ".join(card.replace("\n>", "\n").split())


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        (
            {"interaction_experts": "synergy_redundancy"},
            "one for what the modalities tell only together",
            "(uniqueness)",
        ),
        ({"interaction_loss_weight": 0.0}, "nothing made an expert do what its name says", "its losses reward"),
        (
            {"architecture": "dense", "fusion": "late"},
            "one network over all modalities (late fusion)",
            "Transformer over",
        ),
        ({"architecture": "dense", "fusion": "late"}, "**dense late fusion** (this model)", "dense Transformer"),
        ({"fusion": "early"}, "published objective, experts: early fusion", "\0"),
    ],
)
def test_the_card_says_what_model_it_is(tmp_path, changes, said, unsaid):
    card, _ = card_of(tmp_path, make_model(make_config(**changes)))
    assert said in " ".join(card.split())
    assert unsaid not in card


def test_a_regulariser_is_among_the_settings(films, tmp_path):
    config = make_config(regulariser="rep_cka", regulariser_weight=0.25)
    card, _ = card_of(tmp_path, make_model(config))
    card = card.replace("\\_", "_")
    assert "| regulariser | rep_cka |" in card
    assert "| regulariser_weight | 0.25 |" in card
    assert "published objective, rep_cka 0.25** (this model)" in card
    assert "regulariser" not in films[0]


def test_compared_runs(films, tmp_path):
    _, _, model, folder = films
    same = {"id2label": model.config.id2label, "label2id": model.config.label2id}
    write_run(tmp_path / "dense", make_model(make_config(architecture="dense", **same)), seeds=(4,))
    options = CardOptions("someone/model", "mit", compare=[str(tmp_path / "dense")])
    _, own, dense = rows(str(build_card(Run.open(folder), options)), "## Results")
    assert own[0] == "**FL-I²MoE, published objective** (this model)"
    assert dense[:3] == ["dense Transformer", "1", "22.0"]


def test_runs_that_cannot_be_compared(films, tmp_path):
    _, _, _, folder = films
    write_run(tmp_path / "classes", make_model(make_config(architecture="dense")))
    results = json.loads((folder / "results.json").read_text())
    shutil.copytree(folder, tmp_path / "samples")
    results["samples"]["test"] += 1
    (tmp_path / "samples" / "results.json").write_text(json.dumps(results))
    for name in ("classes", "samples"):
        options = CardOptions("someone/model", "mit", compare=[str(tmp_path / name)])
        with pytest.raises(ValueError, match=f"cannot stand beside .*: it has other .*{name}"):
            build_card(Run.open(folder), options)


def test_what_explanations_are_worth(tmp_path, run_here):
    """Of a model that was explained by the recipe."""
    model, _, cache = make_published(tmp_path)
    card, _ = card_of(tmp_path / "run", model)
    assert "What explanations of this model are worth" not in card
    options = ["--num_pages=2", "--classes=best", "--num_coalitions=2", "--num_draws=2", "--num_threads=1"]
    options.append("--units=features")
    run_here("recipes/explain.py", f"--model={tmp_path / 'run'}", f"--features={cache.path}", *options)
    card = str(build_card(Run.open(tmp_path / "run"), CardOptions("someone/films", "mit")))
    explanations = tmp_path / "run" / "explanations"

    measured = json.loads((explanations / "faithfulness.json").read_text())["FL-I²MoE"]
    _, *lines = rows(card, "## What explanations of this model are worth")
    drops = {method: x["mixture"]["micro_f1"]["mean_drop"] for method, x in measured["deletion"].items()}
    named = {"AttnRoll": "attnroll", "Grad×AttnRoll": "grad_attnroll", "Integrated gradients": "ig", "Random": "random"}
    assert {line[0] for line in lines} == set(named)
    for name, drop in lines:
        assert float(drop.split("\u00a0")[0].replace("−", "-")) == pytest.approx(100 * drops[named[name]], abs=0.051)
    assert "(5 to 30 %), 5\nsamples" in card

    masked = json.loads((explanations / "pair_masking.json").read_text())
    _, *lines = rows(card.replace("**Pair masking.**", "\n### Pairs\n"), "### Pairs")
    assert [line[0] for line in lines] == ["Synergy", "Redundancy"]
    for line in lines:
        part = masked[line[0].lower()]["metrics"]["micro_f1"]
        assert float(line[2]) == pytest.approx(100 * part["ranked"], abs=0.051)
        beyond = float(line[4].split(" ")[0].replace("−", "-"))
        assert beyond == pytest.approx(100 * part["ranked_minus_random"]["value"], abs=0.051)

    pages = [Explanation.load(path) for path in sorted((explanations / "samples").glob("*.json"))]
    assert "**Strongest pairs** of 2 explained samples" in card
    _, *lines = rows(card, "Synergy (Shapley interaction index ± standard error):")
    scores = [page.pair_tables["synergy"].scores["sii"].tolist() for page in pages]
    best = sorted((max(of_page, key=abs) for of_page in scores), key=abs, reverse=True)
    assert [line[3].split("\u00a0")[0] for line in lines] == [f"{score:.3f}".replace("-", "−") for score in best]
    assert {line[0] for line in lines} == {page.sample_id for page in pages}
    for name in ("faithfulness", "alignment", "pair_curves"):
        assert f"](explanations/{name}.png)" in card
        assert (explanations / f"{name}.png").is_file()

    weights = load_file(tmp_path / "run" / "model.safetensors")
    save_file({name: x + 1 for name, x in weights.items()}, tmp_path / "run" / "model.safetensors", {"format": "pt"})
    card = str(build_card(Run.open(tmp_path / "run"), CardOptions("someone/films", "mit")))
    assert "What explanations of this model are worth" not in card
    assert "explanations/" not in card


def test_dense_and_regression(tmp_path):
    card, _ = card_of(tmp_path / "dense", make_model(make_config(architecture="dense")))
    assert "## Interaction statistics" not in card
    assert "| fusion | transformer |" in card
    assert "| objective |" not in card
    assert "reweighting" not in card
    config = make_config(problem_type="regression")
    card, _ = card_of(tmp_path / "regression", make_model(config))
    assert "predicts 3 numbers from text + image" in card
    assert ModelCard(card).data.eval_results[0].metric_name == "mean absolute error"


def test_text_of_users_stays_text(tmp_path):
    config = make_config(id2label=dict(enumerate(NASTY)), label2id={name: i for i, name in enumerate(NASTY)})
    card, _ = card_of(
        tmp_path, make_model(config), True, dataset_name=NASTY[1], description="# Big\n<img src=x> " + NASTY[2]
    )
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    inline = [child for token in tokens for child in (token.children or [])]
    links = {x.attrs["href"] for x in inline if x.type == "link_open"}
    assert links == {"https://arxiv.org/abs/2603.13326", "https://arxiv.org/abs/2505.19190"}
    assert all(x.attrs["src"].startswith("figures/") for x in inline if x.type == "image")
    assert not [x for x in inline if x.type in ("html_inline", "s_open")]
    assert {x.content.strip() for x in tokens if x.type == "html_block"} <= {
        "<details>\n<summary>Mean weight over the samples of each class</summary>",
        "<details>\n<summary>How much the log loss grows without each expert, and without all of them</summary>",
        "<details>\n<summary>Results of each class</summary>",
        "</details>",
    }
    # and nothing is lost: a reader sees the very letters
    cells = ["".join(child.content for child in x.children) for x in tokens if x.type == "inline"]
    for label in NASTY:
        assert label in cells
    assert next(x.content for x in tokens if x.type == "inline") == "someone/fl-i2moe-films"


@pytest.mark.parametrize(
    "text",
    ["- item", "1. one", "a_b_c", "2 < 3 & 4", "#tag", "line\nbreak", "\\*", "|", "+", "0.5", "www.evil.example"],
)
def test_escape(text):
    tokens = MarkdownIt("commonmark").enable("table").parse(escape(text))
    assert [x.type for x in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children) == text.replace("\n", " ")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no finished training run: it has no config\.json"):
        Run.open(tmp_path)
    with pytest.raises(HFValidationError):
        CardOptions("not a repository", "mit")


def test_bits_that_the_data_hold(tmp_path):
    model, *_ = make_published(tmp_path, names={"text": "sample:minilm"})
    folder = tmp_path / "run"
    card, _ = card_of(folder, model)
    assert "Which interactions the data hold" not in card
    config, rng = model.config, np.random.default_rng(0)
    systems = create_systems(config.modality_order)
    names = [f"{NASTY[0]} {i}" for i in range(3)]
    estimate = {name: rng.normal(size=4) for name in systems}
    draws = {name: x + rng.normal(size=(9, 4)) for name, x in estimate.items()}
    information = {
        "unit": "bits",
        "problem_type": config.problem_type,
        "modalities": config.modality_order,
        "samples": {"test": 40},
        "seeds": [0, 1],
        "features": "0123456789abcdef",
        "settings": {},
        "best_epochs": {},
        **information_rows(estimate, draws, names, config.modality_order, None),
    }
    write_json(folder / "information" / "information.json", information)
    (folder / "information" / "information.png").write_bytes(b"a figure")
    settings = json.loads((folder / "run.json").read_text()) if (folder / "run.json").is_file() else {}
    write_json(folder / "run.json", {**settings, "features": "0123456789abcdef"})
    options = CardOptions("someone/films", "mit")
    found = rows(str(build_card(Run.open(folder), options)), "## Which interactions the data hold")
    assert len(found) == 1 + len(names) + 2
    told = estimate["together"][0]
    assert found[1][1 + len(config.modality_order)].startswith(f"{told:.2f}".replace("-", "−"))
    assert "<script>" not in str(found)
    write_json(folder / "run.json", {**settings, "features": "of other features"})
    assert "Which interactions the data hold" not in str(build_card(Run.open(folder), options))
    (folder / "information" / "information.json").write_text('{"unit": "nats"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"information.json.*is missing"):
        build_card(Run.open(folder), options)
