"""The built-in sample: films in the MM-IMDb layout in which it is known how picture and plot tell each genre.

On every poster there is an object of each of three families, in every plot a word of each of three families. For a
genre, half of a family counts as *on*:

- `unique_image`: the genre is there when the object is on; `unique_text`: when the word is on;
- `redundancy`: object and word are both on or both off, and the genre with them: either suffices;
- `synergy`: the genre is there when exactly one of object and word is on (exclusive-or): each alone says nothing.

Colours, further objects and further words tell nothing. Every genre is there in half of the films, and any two genres
are independent. The object and the word of an exclusive-or also tell a genre each: with objects and words of its own,
a model learns 1,400 films by heart before it finds the rule. `planted.json`, beside `split.json`, holds the truth: see
`load_planted_truth`.
"""

import itertools
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datasets.utils import tqdm

from .planted_objects import OBJECTS
from .planted_plots import WORDS, compose_plot, compose_title
from .planted_posters import render_poster
from .truth_files import TruthFile

FORMAT_VERSION = 2  # of what is written: raise it with every change to films or truth
TRUTH = TruthFile("planted.json", FORMAT_VERSION, kind="planted sample", writer="write_planted")
SPLIT_SHARES = {"train": 0.7, "dev": 0.1, "test": 0.2}
MIN_FILMS = 20

Chosen = dict[str, str]  # family → the object or word of it that a film has


@dataclass(frozen=True)
class PlantedGenre:
    """How one genre is told; its name means nothing here."""

    interaction: Literal["unique_image", "unique_text", "redundancy", "synergy"]
    object_family: str | None = None
    objects_on: tuple[str, ...] = ()
    word_family: str | None = None
    words_on: tuple[str, ...] = ()

    def is_present(self, object_: str | None, word: str | None) -> bool:
        object_on, word_on = object_ in self.objects_on, word in self.words_on
        return object_on != word_on if self.interaction == "synergy" else object_on or word_on

    def allows(self, object_: str, word: str) -> bool:
        """Redundancy wants object and word to agree; nothing else binds them."""
        return self.interaction != "redundancy" or (object_ in self.objects_on) == (word in self.words_on)


PLANTED_GENRES = {
    "Drama": PlantedGenre("unique_image", "vehicle", ("car", "balloon")),
    "Comedy": PlantedGenre("unique_image", "clothing", ("shirt", "boot")),
    "Romance": PlantedGenre("unique_text", word_family="animal", words_on=("fox", "donkey", "rabbit")),
    "Thriller": PlantedGenre("unique_text", word_family="place", words_on=("harbor", "castle", "museum")),
    "Crime": PlantedGenre(
        "redundancy", "building", ("house", "tent"), "instrument", ("violin", "drum", "flute", "piano")
    ),
    "Action": PlantedGenre(
        "redundancy", "building", ("house", "lighthouse"), "instrument", ("violin", "trumpet", "flute", "banjo")
    ),
    "Adventure": PlantedGenre("synergy", "vehicle", ("car", "balloon"), "animal", ("fox", "donkey", "rabbit")),
    "Horror": PlantedGenre("synergy", "clothing", ("shirt", "boot"), "place", ("harbor", "castle", "museum")),
}
EVIDENCE = [("vehicle", "animal"), ("clothing", "place"), ("building", "instrument")]  # families that belong together


def planted_folder_name(num_films: int, seed: int) -> str:
    """Names the sample, where samples lie side by side."""
    return f"v{FORMAT_VERSION}-{num_films}-films-seed-{seed}"


def write_planted(output_dir: str | Path, *, num_films: int = 2000, seed: int = 0) -> Path:
    """Writes the sample, or reuses it where the same one has been written before.

    The same arguments and library versions give the same bytes. The folder appears only when it is complete.

    Args:
        output_dir: a folder that does not exist yet, or is empty, or holds this very sample.
        num_films: films in all: 70 % train, 10 % dev, 20 % test. 1 film in 64 happens to have no genre.
        seed: of everything that is drawn.

    Returns:
        `output_dir`, to be read by `load_mmimdb` and `load_planted_truth`.

    Raises:
        ValueError: the folder holds something else, or `num_films` is too small.
    """
    output_dir = Path(output_dir).expanduser().absolute()
    if num_films < MIN_FILMS:
        raise ValueError(f"num_films must be at least {MIN_FILMS}, got {num_films}")
    parameters = {"format_version": FORMAT_VERSION, "seed": seed, "num_films": num_films}
    TRUTH.write_sample(output_dir, parameters, lambda truth: truth, lambda folder: _write_films(folder, parameters))
    return output_dir


def load_planted_truth(data_dir: str | Path) -> dict[str, Any]:
    """What is planted where, read from `planted.json`.

    Returns:
        `{"format_version", "seed", "num_films", "genres", "films"}`. `genres` maps a genre to its `interaction`,
        `object_family`, `objects_on`, `word_family` and `words_on`. `films` maps a film's id and then a genre to

        - `present`: whether the film has the genre,
        - `object` and `word`: what of the genre's families the film shows (None where the genre has no such side),
        - `boxes`: [[left, top, right, bottom]] of the object in the poster, in pixels; empty for `unique_text`,
        - `spans`: [[start, end]] of the word in the plot, in characters; empty for `unique_image`.

        Boxes and spans are given for absent genres too: there they show the object and the word that tell the absence.

    Raises:
        ValueError: the folder holds no planted sample, or one of another version.
    """
    return TRUTH.load(data_dir)


def _write_films(folder: Path, parameters: dict[str, int]) -> None:
    num_films, seed = parameters["num_films"], parameters["seed"]
    (folder / "dataset").mkdir()
    num_train, num_dev = (round(SPLIT_SHARES[name] * num_films) for name in ("train", "dev"))
    sizes = {"train": num_train, "dev": num_dev, "test": num_films - num_train - num_dev}
    split: dict[str, list[str]] = {name: [] for name in sizes}
    films: dict[str, dict[str, Any]] = {}
    with tqdm(total=num_films, desc="Writing the planted sample", unit="film") as progress:
        for name, size in sizes.items():
            for objects, words in _draw_evidence(random.Random(f"{seed} {name}"), size):
                film_id = f"{len(films) + 1:07d}"
                rng = random.Random(f"{seed} {film_id}")
                films[film_id] = _write_film(folder / "dataset", film_id, objects, words, rng)
                split[name].append(film_id)
                progress.update()
    genres = {genre: asdict(spec) for genre, spec in PLANTED_GENRES.items()}
    _write_json(folder / "split.json", split)
    _write_json(folder / TRUTH.name, {**parameters, "genres": genres, "films": films})


def _draw_evidence(rng: random.Random, num_films: int) -> list[tuple[Chosen, Chosen]]:
    """The objects and the words of each film.

    Every object meets every word that it may meet equally often, so that half is half, counted exactly. The pairs are
    ordered by diagonals, on which an exclusive-or is always or never there: a last round cut short moves it little.
    """
    films: list[tuple[Chosen, Chosen]] = [({}, {}) for _ in range(num_films)]
    for object_family, word_family in EVIDENCE:
        all_objects, all_words = list(OBJECTS[object_family]), WORDS[word_family]
        pairs = [
            (object_, word)
            for shift in range(len(all_words))
            for index, object_ in enumerate(all_objects)
            if _is_allowed(object_family, object_, word := all_words[(index + shift) % len(all_words)])
        ]
        drawn = list(itertools.islice(itertools.cycle(pairs), num_films))
        rng.shuffle(drawn)
        for (objects, words), (object_, word) in zip(films, drawn, strict=True):
            objects[object_family], words[word_family] = object_, word
    return films


def _is_allowed(object_family: str, object_: str, word: str) -> bool:
    return all(genre.allows(object_, word) for genre in PLANTED_GENRES.values() if genre.object_family == object_family)


def _write_film(folder: Path, film_id: str, objects: Chosen, words: Chosen, rng: random.Random) -> dict[str, Any]:
    """Writes poster and JSON of one film, with distractors added; returns its truth."""
    shown, told = dict(objects), dict(words)
    for family in rng.sample(sorted(OBJECTS.keys() - objects.keys()), rng.randint(0, 1)):
        shown[family] = rng.choice(list(OBJECTS[family]))
    for family in rng.sample(sorted(WORDS.keys() - words.keys()), rng.randint(0, 2)):
        told[family] = rng.choice(WORDS[family])
    title = compose_title(rng)
    poster, boxes = render_poster(rng, title, shown)
    plot, spans = compose_plot(rng, told)
    truth = {}
    for genre, spec in PLANTED_GENRES.items():
        object_, word = objects.get(spec.object_family or ""), words.get(spec.word_family or "")
        truth[genre] = {
            "present": spec.is_present(object_, word),
            "object": object_,
            "word": word,
            "boxes": [boxes[spec.object_family]] if spec.object_family else [],
            "spans": [spans[spec.word_family]] if spec.word_family else [],
        }
    genres = [genre for genre in PLANTED_GENRES if truth[genre]["present"]]
    poster.save(folder / f"{film_id}.jpeg", quality=90)
    _write_json(folder / f"{film_id}.json", {"title": title, "genres": genres, "plot": [plot]})
    return truth


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
