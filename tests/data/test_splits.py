from collections import Counter

import numpy as np
import pytest

from fl_i2moe.data.splits import check_groups, draw_missing_splits

SHARES = {"validation": 0.1, "test": 0.2}


def draw(num_rows, labels=None, groups=None, seed=0, shares=SHARES, **given):
    rows_of = {"train": np.arange(num_rows), **given}
    notes = draw_missing_splits(rows_of, shares, seed, "t", labels, groups)
    drawn = np.concatenate([rows for split, rows in rows_of.items() if split not in given])
    assert sorted(drawn) == list(range(num_rows))  # each row once
    return rows_of, notes


def test_classes_have_equal_shares_in_all_splits():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    np.random.default_rng(0).shuffle(labels)
    rows_of, notes = draw(1000, labels)
    assert [len(rows) for rows in rows_of.values()] == [700, 100, 200]
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        counts = Counter(labels[rows_of[split]].tolist())
        for label, count in ((0, 500), (1, 300), (2, 200)):
            assert abs(counts[label] - share * count) <= 2
    assert notes[0] == "validation: 100 of the training samples, drawn by seed 0"
    assert all((draw(1000, labels)[0][split] == rows).all() for split, rows in rows_of.items())
    assert (draw(1000, labels, seed=1)[0]["test"] != rows_of["test"]).any()


@pytest.mark.parametrize("seed", range(5))
def test_training_has_every_class_however_rare(seed):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.zeros(40, int), np.arange(1, 12), np.arange(1, 6)])  # many of one or two samples
    generator.shuffle(labels)
    rows_of, _ = draw(len(labels), labels, seed=seed)
    assert set(labels[rows_of["train"]]) == set(labels)
    hot = generator.random((60, 9)) < 0.08
    hot[:, 8] = False  # a label without a sample
    rows_of, _ = draw(60, hot, seed=seed)
    assert (hot[rows_of["train"]].any(axis=0) == hot.any(axis=0)).all()


def test_so_few_samples_that_a_split_takes_all_that_are_left():
    labels = np.array([0, 1, 0, 1])
    rows_of, _ = draw(4, labels, shares={"validation": 0.25, "test": 0.25})
    assert {split: len(rows) for split, rows in rows_of.items()} == {"train": 2, "validation": 1, "test": 1}
    assert set(labels[rows_of["train"]]) == {0, 1}


def test_groups_stay_together_and_classes_even():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    labels = (generator.random(60) < 0.3).astype(int)[groups]
    rows_of, notes = draw(600, labels, groups)
    assert all(note.endswith(", groups kept together") for note in notes)
    assert sum(len(set(groups[rows])) for rows in rows_of.values()) == 60  # each in one split
    for split, share in (("validation", 0.1), ("test", 0.2)):
        assert abs(len(rows_of[split]) - share * 600) <= 10
        assert abs(labels[rows_of[split]].mean() - labels.mean()) < 0.12
    names = [f"g{group}" for group in range(60)]
    check_groups(rows_of, groups, names, "t")
    with pytest.raises(ValueError, match="t: the group 'g3' is in both 'train' and 'test'"):
        check_groups({"train": np.arange(31), "test": np.arange(39, 60)}, groups, names, "t")
    with pytest.raises(ValueError, match="too few groups to draw them from"):
        draw(20, None, np.zeros(20, int))


def test_only_what_is_missing_is_drawn():
    given = {"test": np.arange(100, 130)}
    rows_of, notes = draw(100, np.arange(130) % 3, **given)
    assert rows_of["test"] is given["test"]
    assert len(rows_of["validation"]) == 10
    assert len(notes) == 1
    with pytest.raises(ValueError, match="10% of its 3 training samples make none or leave none"):
        draw(3, np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="make none or leave none"):  # each sample is the only one of its class
        draw(30, np.arange(30))
