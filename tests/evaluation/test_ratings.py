"""Answers to a questionnaire: read, counted and told."""

import json
import re
import statistics
from itertools import permutations

import numpy as np
import pytest
from questioned import make_key, write_answers

from fl_i2moe.evaluation.human_evaluation.questionnaire import SCALE
from fl_i2moe.evaluation.human_evaluation.ratings import (
    krippendorff_alpha,
    read_answers,
    summarise_ratings,
    to_markdown,
)

NAN = np.nan


def plain_alpha(ratings):
    """Ordinal alpha pair by pair, after its definition: observed over expected disagreement."""
    units = [[x for x in column if not np.isnan(x)] for column in np.transpose(ratings)]
    units = [unit for unit in units if len(unit) > 1]
    values = [x for unit in units for x in unit]

    def disagreement(a, b):
        low, high = min(a, b), max(a, b)
        between = sum(low <= x <= high for x in values)
        return (between - (values.count(low) + values.count(high)) / 2) ** 2 if low < high else 0

    def over_pairs(numbers):
        return sum(disagreement(a, b) for a, b in permutations(numbers, 2))

    observed = sum(over_pairs(unit) / (len(unit) - 1) for unit in units) / len(values)
    return 1 - observed / (over_pairs(values) / len(values) / (len(values) - 1))


def test_alpha_is_krippendorffs():
    # K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E: 0.815 on an ordinal scale
    example = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
    assert krippendorff_alpha(np.array(example)) == pytest.approx(0.815, abs=5e-4)
    # by hand: ratings 1, 2, 2, 2; between 1 and 2 lie (1 + 3) / 2 of them; 2 · 4 observed, 6 · 4 / 3 expected
    assert krippendorff_alpha(np.array([[1.0, 2], [2, 2]])) == pytest.approx(0)
    assert krippendorff_alpha(np.array([[1.0, 3, 5], [1, 3, 5]])) == 1
    assert krippendorff_alpha(np.array([[1.0, 5], [5, 1]])) < 0
    for undefined in ([[4.0, 4], [4, 4]], [[1.0, 2, 3]], [[1.0, NAN], [NAN, 2]]):
        assert np.isnan(krippendorff_alpha(np.array(undefined)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        ratings = rng.integers(1, 6, (4, 7)).astype(float)
        ratings[rng.random((4, 7)) < 0.3] = NAN
        assert krippendorff_alpha(ratings) == pytest.approx(plain_alpha(ratings))


RATINGS = {"r|1": [5, 2, 4, 4, 1], "r2": [4, 3, None, 5, 4], "r3": [None, 1, 2, 3, None]}


@pytest.fixture
def summary(tmp_path):
    for rater, ratings in RATINGS.items():
        write_answers(tmp_path / "answers", rater, ratings)
    return summarise_ratings(make_key(), read_answers([tmp_path / "answers"], make_key()), num_resamples=400)


def test_ratings_are_counted_as_in_table_11(summary):
    own = [[5, 4, 4], [4, 5], [2, 3]]  # by rater
    control = [[2, 1], [3, 4], [1]]
    for name, by_rater in (("model", own), ("control", control)):
        given, told = [x for ratings in by_rater for x in ratings], summary["conditions"][name]
        assert told["num_ratings"] == len(given)
        assert told["num_ratings"] + told["num_missing"] == 3 * told["num_items"]
        assert [x["text"] for x in told["options"]] == list(SCALE.values())
        for option in told["options"]:
            shares = [sum(x == option["rating"] for x in ratings) / len(ratings) for ratings in by_rater]
            assert option["count"] == sum(x == option["rating"] for x in given)
            assert option["value"] == pytest.approx(option["count"] / len(given))
            assert option["std"] == pytest.approx(statistics.stdev(shares))
        assert told["positive"]["value"] == pytest.approx(sum(x >= 4 for x in given) / len(given))
        assert told["negative"]["value"] == pytest.approx(sum(x <= 2 for x in given) / len(given))
        assert told["mean_rating"]["value"] == pytest.approx(statistics.mean(given))
        assert told["mean_rating"]["std"] == pytest.approx(statistics.stdev(map(statistics.mean, by_rater)))
        low, high = told["mean_rating"]["interval"]
        assert low < told["mean_rating"]["value"] < high
    assert summary["conditions"]["model"]["alpha"] == pytest.approx(
        plain_alpha(np.array([[5, 4, 4], [4, NAN, 5], [NAN, 2, 3]]))
    )
    assert summary["items"][1]["counts"] == [0, 0, 1, 1, 1]
    assert summary["items"][2]["ratings"] == {"r2": None, "r3": 2, "r|1": 4}


def test_a_sample_is_compared_with_its_control_by_the_same_rater(summary):
    difference = summary["difference"]
    pairs = [[5 - 1, 4 - 2], [4 - 4, 5 - 3], [3 - 1]]
    assert difference["value"] == pytest.approx(statistics.mean(x for of_rater in pairs for x in of_rater))
    assert difference["std"] == pytest.approx(statistics.stdev(map(statistics.mean, pairs)))
    assert (difference["num_pairs"], difference["num_samples"]) == (5, 2)
    assert difference["moved_weight"] == pytest.approx(0.4)  # 0.5 and 0.1 change places


def test_missing_answers_are_named(summary):
    assert summary["raters"]["r3"] == {"file": "r3.json", "num_answered": 3, "missing": [1, 5]}
    text = to_markdown(summary)
    assert r"- r2: 3" in text
    assert r"- r3: 1, 5" in text
    assert r"- r\|1" not in text
    assert "n = 12, 3 raters" in text
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("|"))
    assert rows["Mostly makes sense"].startswith("42.9 % ± ")
    assert re.match(r"3\.86 ± 1\.11 \[\d\.\d\d, \d\.\d\d\] \| ", rows["mean rating, 5 is best"])
    assert rows["responses, of those asked for"] == "7 of 9 | 5 of 6"
    assert rows["x"] == "4.50 (2) | 2.50 (2)"
    assert rows["z"] == "3.00 (2) | –"
    assert "are rated +2.00 [" in text
    assert "put 40 % of the weight" in text


def test_one_rater_has_no_spread(tmp_path):
    file = write_answers(tmp_path / "answers", "r1", [4, None, 4, 4, None])
    summary = summarise_ratings(make_key(), read_answers([file], make_key()), num_resamples=5)
    told = summary["conditions"]["model"]
    assert told["mean_rating"] == {"value": 4, "interval": [4, 4], "std": None}
    assert told["alpha"] is None
    assert summary["conditions"]["control"]["mean_rating"] == {"value": None, "interval": None, "std": None}
    text = to_markdown(summary)
    assert "one rater tells nothing of others" in text
    assert "±" not in text
    assert "No rater rated a sample both" in text
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questionnaire": "ffff"}, "answers another questionnaire, 'ffff', not '0123456789abcdef'"),
        ({"format": 2}, "`format` is 2, not 1"),
        ({"rater": " "}, "`rater` must be a code"),
        ({"rater": 7}, "`rater` must be a code, got 7"),
        ({"answers": {"i1": 6}}, r"item 2 \(i1\) must be a whole number 1 to 5, got 6"),
        ({"answers": {"i0": 0}}, "got 0"),
        ({"answers": {"i0": 3.5}}, "got 3.5"),
        ({"answers": {"i0": True}}, "got True"),
        ({"answers": {"i0": "4"}}, "got '4'"),
        ({"answers": {"i9": 4}}, "items that the questionnaire does not have: i9"),
        ({"answers": [4, 4]}, "holds no answers"),
    ],
)
def test_wrong_answers_are_refused_by_name(tmp_path, changes, message):
    write_answers(tmp_path / "answers", "r1", [4] * 5)
    path = write_answers(tmp_path / "answers", "r2", [4] * 5, changes)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        read_answers([tmp_path / "answers"], make_key())


def test_all_wrong_files_are_told_at_once(tmp_path):
    folder = tmp_path / "answers"
    files = [write_answers(folder, "r1", [4] * 5), folder / "broken.json", folder / "gone.json", folder / "list.json"]
    files[1].write_text('{"format": 1, "ans')
    files[3].write_text("[1]")
    again = write_answers(folder, "R1 ", [5] * 5)
    with pytest.raises(ValueError, match="cannot be used") as error:
        read_answers([*files, again], make_key())
    for told in (
        f"{files[1]}: is no JSON",
        f"{files[2]}: ",
        f"{files[3]}: holds no answers",
        f"{again}: is of rater 'R1', as {files[0]} is",
    ):
        assert told in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no answer files in"):
        read_answers([tmp_path / "empty"], make_key())
