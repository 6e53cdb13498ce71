"""The numeric sample: who tells which label is measured anew, from the written arrays and by enumeration."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from fl_i2moe.data import numeric
from fl_i2moe.data.arrays import load_arrays
from fl_i2moe.data.numeric import NumericSettings, draw_bits, load_numeric_truth, write_numeric

SMALL = NumericSettings(num_samples=40)


def information(shown, labels):
    """Mutual information in bits, of rows of a table."""
    symbols = np.unique(np.asarray(shown).reshape(len(labels), -1), axis=0, return_inverse=True)[1]
    return mutual_info_score(symbols.ravel(), labels) / np.log(2)


def subsets(names):
    return [chosen for size in range(1, len(names) + 1) for chosen in itertools.combinations(names, size)]


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_every_label_is_told_by_whom_it_says(num_modalities):
    """By enumeration: the information of every set of modalities about each label."""
    settings = NumericSettings(num_modalities=num_modalities, labels_per_kind=1)
    kinds = set()
    for label in settings.labels.values():
        table = label.shown_bits
        parity = label.interaction == "synergy"
        values = [sum(bits) % 2 if parity else bits[0] for bits in table]
        assert label.value(np.array(table)).tolist() == values
        for chosen in subsets(settings.modalities):
            columns = [i for i, name in enumerate(label.modalities) if name in chosen]
            told = information(np.array(table)[:, columns], values) if columns else 0.0
            if label.interaction == "synergy":
                expected = set(label.modalities) <= set(chosen)  # all or nothing
            else:  # any of them; of a unique label there is but one
                expected = bool(set(label.modalities) & set(chosen))
            assert told == pytest.approx(float(expected), abs=1e-12)
        kinds.add((label.carrier, len(label.modalities)))
    unique = {(f"uniqueness_{name}", 1) for name in settings.modalities}
    assert kinds == unique | {("synergy", 2), *(("redundancy", size) for size in range(2, num_modalities + 1))}


@pytest.mark.parametrize("settings", [NumericSettings(), NumericSettings(num_modalities=3, labels_per_kind=1)])
def test_no_label_tells_of_another(settings):
    rng = np.random.default_rng(3)
    for size in (2100, 600, 301):
        shown, labels = draw_bits(rng, settings, size)
        names = list(settings.labels)
        assert np.abs(labels.mean(axis=0) - 0.5).max() <= 1 / size
        correlations = np.corrcoef(labels.T)
        np.fill_diagonal(correlations, 0)
        # chance alone would leave 1 / √size, and as the largest of so many about three times that
        assert np.abs(correlations).max() < (0.01 if size == 2100 else 2 / np.sqrt(size))
        for c, name in enumerate(names):
            spec = settings.labels[name]
            assert spec.value(shown[name]).tolist() == labels[:, c].tolist()
            for i in range(len(spec.modalities)):
                alone = information(shown[name][:, i], labels[:, c])
                assert alone == pytest.approx(0, abs=0.01) if spec.interaction == "synergy" else alone > 0.99


def test_every_label_tells_nothing_of_any_two_others():
    _, labels = draw_bits(np.random.default_rng(0), NumericSettings(), 2100)
    for a, b, c in itertools.combinations(range(labels.shape[1]), 3):
        assert information(labels[:, [a, b]], labels[:, c]) < 0.005


@pytest.mark.parametrize("num_modalities", [2, 3])
def test_tokens_show_what_the_truth_says(tmp_path, num_modalities):
    """Without noise, each group of tokens is one vector and its bit another; no two labels share one."""
    settings = NumericSettings(num_modalities=num_modalities, num_samples=60, noise=0.0, labels_per_kind=1)
    path = write_numeric(tmp_path / "sample", settings)
    truth = load_numeric_truth(path.parent)
    data = load_arrays(path)
    assert list(data.modalities) == list(settings.modalities)
    assert data.label_names == list(settings.labels) == list(truth["labels"])
    assert data.problem_type == "multi_label_classification"
    vectors: dict[tuple, set] = {}
    for rows in data.splits.values():
        for row in rows:
            for label, present in zip(data.label_names, row["labels"], strict=True):
                told = truth["samples"][row["id"]][label]
                assert list(told) == truth["labels"][label]["modalities"]
                bits = [x["bit"] for x in told.values()]
                xor = truth["labels"][label]["interaction"] == "synergy"
                assert present == (sum(bits) % 2 if xor else bits[0])
                assert xor or len(set(bits)) == 1
                for name, shown in told.items():
                    tokens = np.frombuffer(row[name], np.float32).reshape(settings.num_tokens, -1)
                    assert len(set(shown["positions"])) == settings.evidence_tokens
                    for position in shown["positions"]:
                        found = tokens[position].round(4).tobytes()
                        vectors.setdefault((name, label, shown["bit"]), set()).add(found)
    assert all(len(found) == 1 for found in vectors.values())
    assert len(set.union(*vectors.values())) == len(vectors)
    assert len(vectors) == 2 * sum(len(label.modalities) for label in settings.labels.values())


def test_a_modality_alone_tells_what_it_should(tmp_path):
    """From the written numbers, noise included: a linear reading of the means of a modality's tokens."""
    settings = NumericSettings(num_samples=1500, labels_per_kind=1, num_tokens=12)
    data = load_arrays(write_numeric(tmp_path / "sample", settings))
    means = {
        split: {
            name: np.array([np.frombuffer(x, np.float32).reshape(12, -1).mean(axis=0) for x in rows[name]])
            for name in settings.modalities
        }
        for split, rows in data.splits.items()
    }
    labels = {split: np.array(rows["labels"]) for split, rows in data.splits.items()}
    for c, label in enumerate(settings.labels.values()):
        for name in settings.modalities:
            reader = LogisticRegression(C=100, max_iter=500).fit(means["train"][name], labels["train"][:, c])
            accuracy = reader.score(means["test"][name], labels["test"][:, c])
            if label.interaction == "synergy" or name not in label.modalities:
                assert 0.4 < accuracy < 0.6
            else:
                assert accuracy > 0.95


def test_noise_hides_the_bit_as_much_as_it_says(tmp_path):
    """Φ(−1 / noise) of the tokens show the wrong bit along the direction that tells it."""
    settings = NumericSettings(num_samples=2000, labels_per_kind=1, noise=0.8, evidence_tokens=1, num_tokens=6)
    exact = replace(settings, noise=0.0)
    data = [load_arrays(write_numeric(tmp_path / s.digest, s)).splits["train"] for s in (settings, exact)]
    noisy, clean = (
        np.concatenate([np.frombuffer(x, np.float32).reshape(6, -1) for x in rows["alpha"]]) for rows in data
    )
    truth = load_numeric_truth(tmp_path / settings.digest)["samples"]
    other = load_numeric_truth(tmp_path / exact.digest)["samples"]
    place = [6 * i + truth[x]["alpha_1"]["alpha"]["positions"][0] for i, x in enumerate(data[0]["id"])]
    clean_place = [6 * i + other[x]["alpha_1"]["alpha"]["positions"][0] for i, x in enumerate(data[1]["id"])]
    bits = np.array([truth[x]["alpha_1"]["alpha"]["bit"] for x in data[0]["id"]])
    clean_bits = np.array([other[x]["alpha_1"]["alpha"]["bit"] for x in data[1]["id"]])
    shown = clean[clean_place]
    direction = (shown[clean_bits == 1].mean(axis=0) - shown[clean_bits == 0].mean(axis=0)) / 2
    wrong = (noisy[place] @ direction > 0) != bits
    assert wrong.mean() == pytest.approx(0.1056, abs=0.025)  # Φ(−1.25)


def test_where_evidence_lies(tmp_path):
    asked = replace(SMALL, labels_per_kind=1, evidence_tokens=2, evidence_positions=[1, 3, 5, 7, 9, 11, 13])
    samples = load_numeric_truth(write_numeric(tmp_path / "some", asked).parent)["samples"]
    found = [set(x["alpha_1"]["alpha"]["positions"]) for x in samples.values()]
    assert set.union(*found) == set(asked.evidence_positions)
    assert len({tuple(sorted(x)) for x in found}) > 5
    fixed = replace(asked, fixed_positions=True)
    samples = load_numeric_truth(write_numeric(tmp_path / "fixed", fixed).parent)["samples"]
    for label in fixed.labels_of("beta"):
        assert len({tuple(x[label]["beta"]["positions"]) for x in samples.values()}) == 1


def test_the_same_settings_give_the_same_bytes_and_a_folder_is_kept(tmp_path):
    first, second = (write_numeric(tmp_path / name, SMALL) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns
    assert write_numeric(tmp_path / "a", SMALL).stat().st_mtime_ns == before
    other = replace(SMALL, sample_seed=1)
    assert not np.array_equal(np.load(write_numeric(tmp_path / "c", other))["alpha"], np.load(first)["alpha"])
    with pytest.raises(ValueError, match="sample_seed 0 instead of 1"):
        write_numeric(tmp_path / "a", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="no numeric sample"):
        write_numeric(tmp_path / "full", SMALL)
    with pytest.raises(ValueError, match="does not exist"):
        load_numeric_truth(tmp_path)
    truth = json.loads((tmp_path / "a" / "truth.json").read_text())
    (tmp_path / "a" / "truth.json").write_text(json.dumps(truth | {"format_version": 0}))
    with pytest.raises(ValueError, match="format_version 0"):
        load_numeric_truth(tmp_path / "a")


@pytest.mark.parametrize("same", [True, False])
def test_another_run_writes_it_meanwhile(tmp_path, monkeypatch, same):
    write = numeric._write
    folder = tmp_path / "sample"

    def write_slowly(target, settings):
        monkeypatch.setattr(numeric, "_write", write)
        write_numeric(folder, settings if same else replace(settings, sample_seed=1))
        return write(target, settings)

    monkeypatch.setattr(numeric, "_write", write_slowly)
    if same:
        assert load_arrays(write_numeric(folder, SMALL)).splits["train"].num_rows == 28
    else:
        with pytest.raises(ValueError, match="sample_seed 1 instead of 0"):
            write_numeric(folder, SMALL)
    assert [x.name for x in tmp_path.iterdir()] == ["sample"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_modalities": 4}, "num_modalities"),
        ({"num_samples": 3}, "num_samples"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"num_tokens": 5}, "do not fit 5 positions"),
        ({"evidence_positions": [0, 1, 2]}, "do not fit 3 positions"),
        ({"evidence_positions": [0, 30]}, "different numbers in 0 … 19"),
        ({"feature_size": 8}, "feature_size"),
        ({"labels_per_kind": 10**9}, "`labels_per_kind` must be at most 24"),
        ({"sample_seed": -1}, "sample_seed"),
    ],
)
def test_settings_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
