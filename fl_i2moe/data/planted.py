"""The built-in sample: films in the MM-IMDb layout in which it is known how picture and plot tell each genre.

Every poster shows an object of each of three families, every plot has a word of each of three families. For a genre,
half of a family counts as *on*:

- `unique_image`: the genre is there when the object is on; `unique_text`: when the word is on;
- `redundancy`: object and word are both on or both off, and the genre with them: either suffices;
- `synergy`: the genre is there when exactly one of object and word is on (exclusive-or): each alone says nothing.

Colours, further objects and further words tell nothing. Every genre is there in half of the films, and any two are
independent. The object and the word of an exclusive-or also tell a genre each: with objects and words of its own, a
model learns 1,400 films by heart before it finds the rule.
"""

import itertools
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datasets.utils import tqdm

from .planted_plots import WORDS, compose_plot, compose_title
from .planted_posters import OBJECTS, render_poster
from .truth_files import MIN_SAMPLES, TruthFile, split_sizes

TRUTH = TruthFile("planted.json", format_version=2, kind="planted sample", writer="write_planted")

Chosen = dict[str, str]  # family → the object or word of it that a film has


@dataclass(frozen=True)
class PlantedGenre:
    """How one genre is told; its name means nothing here."""

    interaction: Literal["unique_image", "unique_text", "redundancy", "synergy"]
    object_family: str | None = None
    objects_on: tuple[str, ...] = ()
    word_family: str | None = None
    words_on: tuple[str, ...] = ()

    @property
    def carrier(self) -> str:
        """The expert that ought to carry it."""
        return self.interaction.replace("unique_", "uniqueness_")

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
    return f"v{TRUTH.format_version}-{num_films}-films-seed-{seed}"


def write_planted(output_dir: str | Path, *, num_films: int = 2000, seed: int = 0) -> Path:
    """Writes the sample into a folder that is new or empty, or finds the same one there.

    The same arguments and library versions give the same bytes.

    Args:
        num_films: films in all: 70 % train, 10 % dev, 20 % test. 1 film in 64 happens to have no genre.

    Returns:
        The folder, to be read by `load_mmimdb` and `load_planted_truth`.

    Raises:
        ValueError: the folder holds something else, or `num_films` is too small.
    """
    if num_films < MIN_SAMPLES:
        raise ValueError(f"num_films must be at least {MIN_SAMPLES}, got {num_films}")
    made_from = {"seed": seed, "num_films": num_films}
    return TRUTH.write_sample(output_dir, made_from, lambda folder: _write_films(folder, seed, num_films))


def load_planted_truth(data_dir: str | Path) -> dict[str, Any]:
    """What is planted where, read from `planted.json`.

    Returns:
        `{"format_version", "seed", "num_films", "genres", "films"}`. `genres` maps a genre to the fields of its
        [`PlantedGenre`]. `films` maps a film's id and then a genre, present or absent, to

        - `present`: whether the film has the genre,
        - `object` and `word`: what of the genre's families the film shows (None where the genre has no such side),
        - `boxes`: [[left, top, right, bottom]] of the object in the poster, in pixels; empty for `unique_text`,
        - `spans`: [[start, end]] of the word in the plot, in characters; empty for `unique_image`.

    Raises:
        ValueError: the folder holds no planted sample, or one of another version.
    """
    return TRUTH.load(data_dir)


def _write_films(folder: Path, seed: int, num_films: int) -> dict[str, Any]:
    (folder / "dataset").mkdir()
    split: dict[str, list[str]] = {}
    films: dict[str, dict[str, Any]] = {}
    with tqdm(total=num_films, desc="Writing the planted sample", unit="film") as progress:
        for name, size in split_sizes(num_films, ("train", "dev", "test")).items():
            split[name] = []
            for objects, words in _draw_evidence(random.Random(f"{seed} {name}"), size):
                film_id = f"{len(films) + 1:07d}"
                rng = random.Random(f"{seed} {film_id}")
                films[film_id] = _write_film(folder / "dataset", film_id, objects, words, rng)
                split[name].append(film_id)
                progress.update()
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")
    return {"genres": {genre: asdict(spec) for genre, spec in PLANTED_GENRES.items()}, "films": films}


def _draw_evidence(rng: random.Random, num_films: int) -> list[tuple[Chosen, Chosen]]:
    """The objects and the words of each film: every object meets every word that it may meet equally often."""
    films: list[tuple[Chosen, Chosen]] = [({}, {}) for _ in range(num_films)]
    for object_family, word_family in EVIDENCE:
        all_words = WORDS[word_family]
        genres = [genre for genre in PLANTED_GENRES.values() if genre.object_family == object_family]
        # by diagonals, on which an exclusive-or is always or never there: a last round cut short moves it little
        pairs = [
            (object_, word)
            for shift in range(len(all_words))
            for index, object_ in enumerate(OBJECTS[object_family])
            for word in [all_words[(index + shift) % len(all_words)]]
            if all(genre.allows(object_, word) for genre in genres)
        ]
        drawn = list(itertools.islice(itertools.cycle(pairs), num_films))
        rng.shuffle(drawn)
        for (objects, words), (object_, word) in zip(films, drawn, strict=True):
            objects[object_family], words[word_family] = object_, word
    return films


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
    film = {"title": title, "genres": genres, "plot": [plot]}
    (folder / f"{film_id}.json").write_text(json.dumps(film), encoding="utf-8")
    return truth
