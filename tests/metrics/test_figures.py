import itertools

import numpy as np
import pytest
from drawn import shown_texts
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from fl_i2moe.metrics.classes import confusion
from fl_i2moe.metrics.figures import expert_colors, expert_title, save_statistics_figures
from fl_i2moe.metrics.statistics import compute_statistics
from fl_i2moe.utils.files import UNFINISHED

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"
ALL_FILES = {
    "carriers.png",
    "expert_weights.png",
    "expert_weights_per_class.png",
    "experts_vs_mixture.png",
    "agreement.png",
}


def fake_statistics(problem_type, modalities, label_names, num_samples=50, seed=0):
    rng = np.random.default_rng(seed)
    expert_names = [f"uniqueness_{name}" for name in modalities] + ["synergy", "redundancy"]
    weights = rng.dirichlet(np.full(len(expert_names), 4.0), size=num_samples)
    expert_logits = rng.normal(size=(num_samples, len(expert_names), len(label_names)))
    labels = {
        MULTI: rng.integers(2, size=(num_samples, len(label_names))),
        SINGLE: rng.integers(len(label_names), size=num_samples),
        REGRESSION: rng.normal(size=(num_samples, len(label_names))),
    }[problem_type]
    if problem_type == MULTI:
        labels[:, -1] = 0
    statistics = compute_statistics(
        logits=np.einsum("ne,nec->nc", weights, expert_logits),
        expert_logits=expert_logits,
        expert_weights=weights,
        labels=labels,
        expert_names=expert_names,
        label_names=label_names,
        problem_type=problem_type,
    )
    return statistics, weights


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, by file name."""
    figures = {}
    savefig = Figure.savefig

    def record(figure, path, **options):
        figures[path.name.removeprefix(UNFINISHED)] = figure
        savefig(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


CASES = [
    (MULTI, ["image", "text"], [f"Genre {i}" for i in range(23)], ALL_FILES),
    (
        MULTI,
        ["image", "text", "synthesized_audio", "wireframe_screenshot", "metadata"],
        [*(f"Class {i} with a rather long descriptive name" for i in range(28)), "US$ to €$", "x" * 80],
        ALL_FILES,
    ),
    (SINGLE, ["image", "text"], ["hateful", "not hateful"], ALL_FILES),
    (
        REGRESSION,
        ["vision", "audio", "text"],
        ["sentiment"],
        {"carriers.png", "expert_weights.png", "experts_vs_mixture.png"},
    ),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("problem_type", "modalities", "labels", "files"), CASES)
def test_figures_are_readable(problem_type, modalities, labels, files, tmp_path, drawn):
    statistics, weights = fake_statistics(problem_type, modalities, labels)
    paths = save_statistics_figures(statistics, weights, tmp_path / "figures")

    assert paths[0].name == "carriers.png"
    assert {path.name for path in paths} == files == {path.name for path in (tmp_path / "figures").iterdir()}
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert max(picture.size) <= 2000
    for name, figure in drawn.items():
        assert_readable(figure, name)


def assert_readable(figure, name):
    """Nothing is cut, and no text lies on another."""
    texts, boxes = zip(*shown_texts(figure), strict=True)
    low, high = np.array([box.min for box in boxes]), np.array([box.max for box in boxes])
    cut = ((low < 0) | (high > figure.bbox.size)).any(1)
    assert [texts[i] for i in np.flatnonzero(cut)] == [], name
    overlap = ((low[:, None] < high) & (low < high[:, None])).all(2)
    assert [(texts[i], texts[j]) for i, j in np.argwhere(np.triu(overlap, 1))] == [], name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("num_classes", "num_samples", "name"),
    [
        (2, 60, "{}"),
        (12, 30_000, "Topic {}"),
        (50, 400, "Class {} with a rather long descriptive $name$"),
        (90, 900, "{}"),
    ],
)
def test_a_confusion_matrix_is_readable(num_classes, num_samples, name, tmp_path, drawn):
    rng = np.random.default_rng(0)
    names = [name.format(number) for number in range(num_classes)]
    labels = rng.integers(num_classes, size=num_samples)
    said = np.where(rng.random(num_samples) < 0.6, labels, rng.integers(num_classes, size=num_samples))
    said[labels == 1] = 0
    table = confusion(np.eye(num_classes)[said], labels, names)
    statistics = {"num_samples": 1, "expert_names": ["dense"], "label_names": names}
    [path] = save_statistics_figures(statistics, np.ones((1, 1)), tmp_path, table)
    assert path.name == "confusion_matrix.png"
    with Image.open(path) as picture:
        assert max(picture.size) <= 2000
    figure = drawn[path.name]
    assert_readable(figure, path.name)
    texts = [text for text, _ in shown_texts(figure)]
    cells = {tuple(x.get_position()[::-1]): x.get_text() for x in figure.axes[0].texts}
    count = int(((labels == 1) & (said == 0)).sum())
    assert cells[1, 0] == (str(count) if count < 1000 else f"{count // 1000}k")
    if num_classes == 90:
        errors = {c: int(((labels != said) & ((labels == c) | (said == c))).sum()) for c in range(90)}
        worst = sorted(errors.values(), reverse=True)[29]
        shown = [x.get_text() for x in figure.axes[0].get_yticklabels()]
        assert shown[-1] == "all others"
        assert len(shown) == 31
        assert all(errors[int(c)] >= worst for c in shown[:-1])
        assert any(text.startswith("The 30 classes with most errors, of 90.") for text in texts)


def test_figures_show_the_numbers(tmp_path, drawn):
    statistics, weights = fake_statistics(MULTI, ["image", "text"], ["comedy", "drama", "noir"])
    save_statistics_figures(statistics, weights, tmp_path)
    texts = {name: [text for text, _ in shown_texts(figure)] for name, figure in drawn.items()}

    assert f"mean {weights[:, 2].mean():.3f}" in texts["expert_weights.png"]
    carriers = statistics["carriers"]["labels"]
    shown = f"{carriers['drama']['losses']['synergy']['log_loss']['value']:.3f}"
    assert shown.replace("-", "−") in texts["carriers.png"]
    assert f"{carriers['comedy']['all_experts']['log_loss']['value']:.3f}".replace("-", "−") in texts["carriers.png"]
    per_class = statistics["expert_weights"]["per_class"]
    assert f"{per_class['drama']['experts']['redundancy']['mean']:.3f}" in texts["expert_weights_per_class.png"]
    assert f"drama (n = {per_class['drama']['num_samples']})" in texts["expert_weights_per_class.png"]
    assert texts["expert_weights_per_class.png"].count("–") == 4  # noir has no samples
    assert f"{statistics['metrics']['mixture']['micro_f1']:.3f}" in texts["experts_vs_mixture.png"]
    cell = statistics["agreement"]["per_label"]["table"]["disagree_right"]
    assert f"{100 * cell['share']:.1f} %" in texts["agreement.png"]
    assert str(cell["count"]) in texts["agreement.png"]


@pytest.mark.filterwarnings("error")
def test_undefined_metrics_and_constant_weights_can_be_drawn(tmp_path, drawn):
    statistics, weights = fake_statistics(SINGLE, ["image", "text"], ["a", "b"], num_samples=1)
    save_statistics_figures(statistics, weights, tmp_path)
    assert "undefined" in [text for text, _ in shown_texts(drawn["experts_vs_mixture.png"])]


def test_rows_of_carriers_lie_below_their_experts(tmp_path, drawn, monkeypatch):
    """Each of 16 labels is told by one expert alone; the 12 that lose most are shown, what was planted is framed."""
    monkeypatch.setattr("fl_i2moe.metrics.figures._MOST_CLASSES", 12)
    rng = np.random.default_rng(0)
    names, told_by = [f"label {c}" for c in range(16)], np.arange(16) % 4
    labels = rng.integers(2, size=(80, 16))
    expert_logits = np.zeros((80, 4, 16))
    strength = np.linspace(0.5, 6, 16)
    expert_logits[:, told_by, range(16)] = (2 * labels - 1) * strength
    experts = ["uniqueness_image", "uniqueness_text", "synergy", "redundancy"]
    statistics = compute_statistics(
        logits=expert_logits.mean(axis=1),
        expert_logits=expert_logits,
        expert_weights=np.full((80, 4), 0.25),
        labels=labels,
        expert_names=experts,
        label_names=names,
        problem_type=MULTI,
        truth={"label 15": "synergy", "label 13": "synergy"},
    )
    statistics |= {"agreement": None, "expert_weights": statistics["expert_weights"] | {"per_class": None}}
    save_statistics_figures(statistics, np.full((80, 4), 0.25), tmp_path)
    axes = drawn["carriers.png"].axes[0]
    shown = [x.get_text() for x in axes.get_yticklabels()]
    assert set(shown) == set(names[4:])
    assert [told_by[names.index(x)] for x in shown] == sorted(told_by[4:])
    bold = {x.get_position()[::-1] for x in axes.texts if x.get_weight() == "bold"}
    assert bold == {(row, told_by[names.index(name)]) for row, name in enumerate(shown)}
    frames = {tuple(np.round(x.get_center()).astype(int)[::-1]) for x in axes.patches}
    assert frames == {(shown.index(name), 2) for name in ("label 15", "label 13")}
    assert_readable(drawn["carriers.png"], "carriers.png")


def test_dense_model_has_nothing_to_draw(tmp_path):
    statistics, _ = fake_statistics(SINGLE, ["image", "text"], ["a", "b"])
    assert save_statistics_figures(statistics | {"expert_names": ["dense"]}, np.ones((50, 1)), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_weights_of_another_split_are_refused(tmp_path):
    statistics, weights = fake_statistics(SINGLE, ["image", "text"], ["a", "b"])
    with pytest.raises(ValueError, match=r"expert_weights must have shape \(50, 4\).*got \(49, 4\)"):
        save_statistics_figures(statistics, weights[:49], tmp_path)


def test_titles():
    assert expert_title("uniqueness_full_text") == "Uniqueness: full text"
    assert expert_title("synergy") == "Synergy"


def test_an_expert_keeps_its_color():
    two = expert_colors(["uniqueness_image", "uniqueness_text", "synergy", "redundancy"])
    three = expert_colors(["uniqueness_image", "uniqueness_text", "uniqueness_audio", "synergy", "redundancy"])
    assert two.items() <= three.items()


# Machado, Oliveira and Fernandes 2009, severity 1.0.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("vision", VISION)
def test_colors_are_told_apart_with_every_color_vision(vision):
    """CIELAB distance of every two colours of six modalities, as seen with that vision; 10 is plain at a glance."""
    names = [f"uniqueness_{i}" for i in range(6)] + ["synergy", "redundancy"]
    srgb = np.array([to_rgb(color) for color in expert_colors(names).values()])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.transpose(to_xyz) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 15
