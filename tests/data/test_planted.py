import itertools
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_i2moe.data import planted
from fl_i2moe.data.mmimdb import GENRES, load_mmimdb
from fl_i2moe.data.planted import load_planted_truth, write_planted
from fl_i2moe.data.planted_plots import FILLERS, NAMES, SENTENCES, TITLE_ADJECTIVES, TITLE_NOUNS, WORDS, compose_plot
from fl_i2moe.data.planted_posters import HEIGHT, OBJECTS, WIDTH, render_poster

NUM_FILMS = 300
KINDS = {"unique_image": 2, "unique_text": 2, "redundancy": 2, "synergy": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "sample", num_films=NUM_FILMS, seed=3)


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Any]:
    return load_planted_truth(folder)


def genres_of(truth: dict[str, Any], kind: str) -> list[str]:
    return [genre for genre, spec in truth["genres"].items() if spec["interaction"] == kind]


def read_film(folder: Path, film_id: str) -> dict[str, Any]:
    return json.loads((folder / "dataset" / f"{film_id}.json").read_text())


def best_guess(films: list[dict[str, Any]], seen: tuple[str, ...]) -> int:
    """How many films the best rule gets right that sees only these entries: a majority vote for each value."""
    votes: defaultdict[tuple[Any, ...], Counter[bool]] = defaultdict(Counter)
    for film in films:
        votes[tuple(film[entry] for entry in seen)][film["present"]] += 1
    return sum(max(count.values()) for count in votes.values())


def test_loads_like_any_other_folder(folder: Path, truth: dict[str, Any]) -> None:
    raw = load_mmimdb(folder, labels=list(truth["genres"]))
    assert raw.bad_samples == []
    films = 0
    for split in raw.splits.values():
        for row in split:
            film = truth["films"][row["id"]]
            assert row["labels"] == [float(film[genre]["present"]) for genre in raw.label_names]
            assert row["text"] == read_film(folder, row["id"])["plot"][0]
            films += 1
    without_genre = sum(not any(entry["present"] for entry in film.values()) for film in truth["films"].values())
    assert films == NUM_FILMS - without_genre
    assert without_genre < 0.04 * NUM_FILMS
    assert len(load_mmimdb(folder).label_names) == 23  # the genres are among the default ones
    assert set(truth["genres"]) <= set(GENRES)


def test_has_two_genres_of_each_kind_as_often_as_it_should(truth: dict[str, Any]) -> None:
    assert Counter(spec["interaction"] for spec in truth["genres"].values()) == KINDS
    for genre, spec in truth["genres"].items():
        assert np.mean([film[genre]["present"] for film in truth["films"].values()]) == pytest.approx(0.5, abs=0.02)
        for family, on, members in (("object_family", "objects_on", OBJECTS), ("word_family", "words_on", WORDS)):
            if spec[family]:
                assert set(spec[on]) < set(members[spec[family]])
                assert len(spec[on]) == len(members[spec[family]]) / 2


def test_labels_follow_from_what_is_shown(folder: Path, truth: dict[str, Any]) -> None:
    """From the word that the span cuts out and the object on the poster, by rules written out here."""
    rules = {
        "unique_image": lambda object_on, word_on: object_on,
        "unique_text": lambda object_on, word_on: word_on,
        "redundancy": lambda object_on, word_on: {(True, True): True, (False, False): False}[object_on, word_on],
        "synergy": lambda object_on, word_on: object_on + word_on == 1,
    }
    for film_id, film in truth["films"].items():
        record = read_film(folder, film_id)
        present = []
        for genre, spec in truth["genres"].items():
            words = [record["plot"][0][start:end] for start, end in film[genre]["spans"]]
            assert words == ([] if spec["word_family"] is None else [film[genre]["word"]])
            object_on = film[genre]["object"] in spec["objects_on"]
            word_on = bool(words) and words[0] in spec["words_on"]
            if rules[spec["interaction"]](object_on, word_on):
                present.append(genre)
        assert record["genres"] == present


def test_a_side_tells_what_its_kind_says(folder: Path, truth: dict[str, Any]) -> None:
    split = json.loads((folder / "split.json").read_text())
    for ids in split.values():
        for genre, spec in truth["genres"].items():
            films = [truth["films"][film_id][genre] for film_id in ids]
            for side, tells in (
                (("object",), spec["interaction"] in ("unique_image", "redundancy")),
                (("word",), spec["interaction"] in ("unique_text", "redundancy")),
                (("object", "word"), True),
            ):
                guessed = best_guess(films, side)
                if tells:
                    assert guessed == len(films)
                elif spec["interaction"] == "synergy":
                    # Half, exactly; but the last round is cut short, which moves each value by a film or two.
                    assert guessed <= len(films) / 2 + 6
                else:
                    assert guessed == max(Counter(film["present"] for film in films).values())


def test_nothing_else_tells_an_exclusive_or(truth: dict[str, Any]) -> None:
    """Not even all objects of the poster, or all words of the plot, by a linear rule on other films."""
    films = list(truth["films"].values())
    for side, genre in itertools.product(("object", "word"), genres_of(truth, "synergy")):
        shown = [[film[other][side] for other in truth["genres"]] for film in films]
        values = sorted({value for row in shown for value in row if value})
        one_hot = np.array([[value in row for value in values] for row in shown], dtype=float)
        target = np.array([1.0 if film[genre]["present"] else -1.0 for film in films])
        even, odd = slice(0, None, 2), slice(1, None, 2)
        rule = np.linalg.lstsq(one_hot[even], target[even], rcond=None)[0]
        accuracy = np.mean(np.sign(one_hot[odd] @ rule) == target[odd])
        assert accuracy < 0.5 + 3 * 0.5 / np.sqrt(len(target[odd]))  # three standard errors


def test_genres_are_independent(truth: dict[str, Any]) -> None:
    present = np.array([[film[genre]["present"] for genre in truth["genres"]] for film in truth["films"].values()])
    correlation = np.corrcoef(present.T.astype(float)) - np.eye(len(truth["genres"]))
    assert np.abs(correlation).max() < 4 / np.sqrt(NUM_FILMS)


def test_every_object_and_word_is_used(truth: dict[str, Any]) -> None:
    for genre, spec in truth["genres"].items():
        films = [film[genre] for film in truth["films"].values()]
        if spec["object_family"]:
            assert {film["object"] for film in films} == set(OBJECTS[spec["object_family"]])
        if spec["word_family"]:
            assert {film["word"] for film in films} == set(WORDS[spec["word_family"]])


def test_plots_hold_each_evidence_word_once_and_no_other(folder: Path, truth: dict[str, Any]) -> None:
    families = {spec["word_family"] for spec in truth["genres"].values()} - {None}
    evidence_words = set(itertools.chain(*(WORDS[family] for family in families)))
    for film_id, film in truth["films"].items():
        plot = read_film(folder, film_id)["plot"][0]
        found = Counter(word for word in re.findall(r"\w+", plot) if word.lower() in evidence_words)
        assert found == Counter({entry["word"] for entry in film.values() if entry["word"]})
        assert len(plot.split()) <= 80  # so that encoders that cut at 96 tokens see all of it


def test_texts_do_not_hint_at_genres() -> None:
    texts = [*itertools.chain(*SENTENCES.values()), *FILLERS, *NAMES, *TITLE_ADJECTIVES, *TITLE_NOUNS]
    evidence_words = set(itertools.chain(*WORDS.values()))
    hints = {genre.lower() for genre in GENRES} | evidence_words
    for text in texts:
        assert not hints & set(re.findall(r"[\w-]+", text.lower())), text
    for sentence in itertools.chain(*SENTENCES.values()):
        assert sentence.count("{x}") == 1
    assert len(evidence_words) == sum(map(len, WORDS.values()))
    # The article before a word must not tell the word.
    assert not [word for word in evidence_words if word[0] in "aeiou"]


def test_plots_vary_in_order_and_wording() -> None:
    words = {family: choices[0] for family, choices in WORDS.items()}
    plots = [compose_plot(random.Random(seed), words) for seed in range(50)]
    assert len({plot for plot, _ in plots}) == 50
    for family in WORDS:
        starts = [spans[family][0] / len(plot) for plot, spans in plots]
        assert min(starts) < 0.2
        assert max(starts) > 0.8


def test_boxes_hold_the_objects_and_nothing_lies_outside() -> None:
    """Objects are in full colours, everything else is muted: so their pixels can be found without the boxes."""
    for seed in range(20):
        rng = random.Random(seed)
        shown = {family: rng.choice(list(OBJECTS[family])) for family in rng.sample(sorted(OBJECTS), 4)}
        poster, boxes = render_poster(rng, "Any Title", shown)
        assert poster.size == (WIDTH, HEIGHT)
        assert boxes.keys() == shown.keys()
        hsv = np.asarray(poster.convert("HSV")) / 255
        colourful = (hsv[..., 1] > 0.5) & (hsv[..., 2] > 0.4)
        outside = np.ones_like(colourful)
        for left, top, right, bottom in boxes.values():
            assert 0 <= left < right <= WIDTH
            assert 0 <= top < bottom <= HEIGHT
            assert outside[top:bottom, left:right].all()  # no overlap
            outside[top:bottom, left:right] = False
            assert 75 <= np.sqrt((right - left) * (bottom - top)) <= 100
            assert colourful[top:bottom, left:right].mean() > 0.06
        assert not colourful[outside].any()


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="7 objects do not fit"):
        render_poster(random.Random(0), "Any Title", {family: next(iter(OBJECTS[family])) for family in OBJECTS})


def test_boxes_are_tight() -> None:
    """Painted twice from the same seed, with one object each way, two posters differ within the box alone."""
    for family, objects in OBJECTS.items():
        first, second = list(objects)[:2]
        (one, one_boxes), (two, two_boxes) = (
            render_poster(random.Random(7), "Any Title", {family: name}) for name in (first, second)
        )
        different = np.argwhere((np.asarray(one) != np.asarray(two)).any(-1))
        (top, left), (bottom, right) = different.min(0), different.max(0) + 1
        boxes = np.array([one_boxes[family], two_boxes[family]])
        union = (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))
        assert np.abs(np.subtract((left, top, right, bottom), union)).max() <= 2


def test_boxes_of_written_films(folder: Path, truth: dict[str, Any]) -> None:
    for film_id in random.Random(0).sample(sorted(truth["films"]), 40):
        with Image.open(folder / "dataset" / f"{film_id}.jpeg") as poster:
            hsv = np.asarray(poster.convert("RGB").convert("HSV")) / 255
        colourful = (hsv[..., 1] > 0.45) & (hsv[..., 2] > 0.4)
        for genre, spec in truth["genres"].items():
            boxes = truth["films"][film_id][genre]["boxes"]
            assert len(boxes) == (spec["object_family"] is not None)
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= WIDTH
                assert 0 <= top < bottom <= HEIGHT
                assert colourful[top:bottom, left:right].mean() > 0.05


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    seeds = {"one": 5, "two": 5, "other": 6}
    one, two, other = (write_planted(tmp_path / name, num_films=20, seed=seed) for name, seed in seeds.items())
    assert len(contents(one)) == 2 * 20 + 2
    assert contents(one) == contents(two)
    assert contents(one).keys() == contents(other).keys()
    assert all(contents(one)[name] != content for name, content in contents(other).items() if name != "split.json")


def test_reuses_the_same_sample_and_refuses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_planted(tmp_path / "sample", num_films=20)
    monkeypatch.setattr(planted, "_write_films", lambda *_: pytest.fail("it was written again"))
    assert write_planted(folder, num_films=20) == folder
    with pytest.raises(ValueError, match="seed 0 instead of 1"):
        write_planted(folder, num_films=20, seed=1)
    with pytest.raises(ValueError, match="num_films 20 instead of 30"):
        write_planted(folder, num_films=30)


def test_refuses_a_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds something"):
        write_planted(tmp_path, num_films=20)
    with pytest.raises(ValueError, match="already holds something"):
        write_planted(tmp_path / "thesis.txt", num_films=20)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_interrupted_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(planted, "compose_plot", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_planted(tmp_path / "sample", num_films=20)
    assert list(tmp_path.iterdir()) == []
    assert load_planted_truth(write_planted(tmp_path / "sample", num_films=20))["num_films"] == 20


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_films must be at least 20, got 3"):
        write_planted(tmp_path / "sample", num_films=3)
    with pytest.raises(ValueError, match="no planted sample"):
        load_planted_truth(tmp_path)
    (tmp_path / "planted.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="format_version 99"):
        load_planted_truth(tmp_path)
    (tmp_path / "planted.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_planted_truth(tmp_path)
