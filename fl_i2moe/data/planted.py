"""The built-in sample: films in the MM-IMDb layout in which it is known how picture and plot tell each genre.

A genre is told by an object on the poster, by a word of the plot, or by both. Every film has an object of each family
of objects and a word of each family of words; half of each family counts as *on*:

- `unique_image`: the genre is there when the object is on; `unique_text`: when the word is on;
- `redundancy`: object and word are both on or both off, and the genre with them: either suffices;
- `synergy`: the genre is there when exactly one of object and word is on (exclusive-or): each alone says nothing.

`planted.json`, beside `split.json`, holds the truth: see `load_planted_truth`.
"""

import itertools
import json
import random
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets.utils import tqdm

from .planted_objects import OBJECTS
from .planted_plots import WORDS, compose_plot, compose_title
from .planted_posters import render_poster

FORMAT_VERSION = 1
TRUTH_FILE = "planted.json"
SPLIT_SHARES = {"train": 0.7, "dev": 0.1, "test": 0.2}
PREVALENCE = 0.45  # of every genre that is no exclusive-or (those are at 0.5)
MIN_FILMS = 20


class Evidence(NamedTuple):
    """What a film shows of one genre; None on a side where the genre has nothing."""

    object: str | None
    word: str | None


@dataclass(frozen=True)
class PlantedGenre:
    """How one genre is told; its name means nothing here."""

    interaction: Literal["unique_image", "unique_text", "redundancy", "synergy"]
    object_family: str | None = None
    objects_on: tuple[str, ...] = ()
    word_family: str | None = None
    words_on: tuple[str, ...] = ()

    def present(self, evidence: Evidence) -> bool:
        object_on, word_on = evidence.object in self.objects_on, evidence.word in self.words_on
        return object_on != word_on if self.interaction == "synergy" else object_on or word_on


PLANTED_GENRES = {
    "Drama": PlantedGenre("unique_image", "vehicle", ("car", "balloon")),
    "Comedy": PlantedGenre("unique_image", "clothing", ("hat", "umbrella")),
    "Romance": PlantedGenre("unique_text", None, (), "animal", ("fox", "horse", "crow")),
    "Thriller": PlantedGenre("unique_text", None, (), "food", ("honey", "soup", "chocolate")),
    "Crime": PlantedGenre("redundancy", "building", ("house", "windmill"), "instrument", ("violin", "drum", "harp")),
    "Action": PlantedGenre("redundancy", "household", ("mug", "clock"), "trade", ("baker", "dentist", "sailor")),
    "Adventure": PlantedGenre("synergy", "plant", ("mushroom", "tree"), "place", ("harbor", "castle", "museum")),
    "Horror": PlantedGenre("synergy", "animal", ("fish", "snail"), "thing", ("ladder", "lantern", "mirror")),
}


def write_planted(output_dir: str | Path, *, num_films: int = 2000, seed: int = 0) -> Path:
    """Writes the sample, or reuses it where the same one has been written before.

    The same arguments and library versions give the same bytes. The folder appears only when it is complete.

    Args:
        output_dir: a folder that does not exist yet, or is empty, or holds this very sample.
        num_films: films in all: 70 % train, 10 % dev, 20 % test. A few (0.7 %) happen to have no genre.
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
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        _check_same(output_dir, parameters)
        return output_dir

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as unfinished:
        folder = Path(unfinished) / output_dir.name
        _write_films(folder, parameters)
        folder.rename(output_dir)
    return output_dir


def load_planted_truth(data_dir: str | Path) -> dict[str, Any]:
    """What is planted where, read from `planted.json`.

    Returns:
        `{"format_version", "seed", "num_films", "genres", "films"}`. `genres` maps a genre to its `interaction`,
        `object_family`, `objects_on`, `word_family` and `words_on`. `films` maps a film's id and then a genre to

        - `present`: whether the film has the genre,
        - `object` and `word`: what the film shows (None where the genre has no such side),
        - `boxes`: [[left, top, right, bottom]] of the object in the poster, in pixels; empty for `unique_text`,
        - `spans`: [[start, end]] of the word in the plot, in characters; empty for `unique_image`.

        Boxes and spans are given for absent genres too: there they show the object and the word that tell the absence.

    Raises:
        ValueError: the folder holds no planted sample, or one of another version.
    """
    path = Path(data_dir).expanduser() / TRUTH_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {data_dir} is no planted sample; write one with write_planted")
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete the folder and write the sample again") from error
    if truth.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {truth.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "delete the folder and write the sample again"
        )
    return truth


def _check_same(output_dir: Path, parameters: dict[str, int]) -> None:
    if not (output_dir / TRUTH_FILE).is_file():
        raise ValueError(f"{output_dir} already holds something that is no planted sample; choose another folder")
    truth = load_planted_truth(output_dir)
    different = [
        f"{name} {truth.get(name)} instead of {value}" for name, value in parameters.items() if truth.get(name) != value
    ]
    if different:
        raise ValueError(f"{output_dir} holds another planted sample ({', '.join(different)}); choose another folder")


def _write_films(folder: Path, parameters: dict[str, int]) -> None:
    num_films, seed = parameters["num_films"], parameters["seed"]
    (folder / "dataset").mkdir(parents=True)
    num_train, num_dev = (round(SPLIT_SHARES[name] * num_films) for name in ("train", "dev"))
    sizes = {"train": num_train, "dev": num_dev, "test": num_films - num_train - num_dev}
    split: dict[str, list[str]] = {name: [] for name in sizes}
    films: dict[str, dict[str, Any]] = {}
    with tqdm(total=num_films, desc="Writing the planted sample", unit="film") as progress:
        for name, size in sizes.items():
            drawn = {
                genre: _draw_evidence(random.Random(f"{seed} {name} {genre}"), size, spec)
                for genre, spec in PLANTED_GENRES.items()
            }
            for index in range(size):
                film_id = f"{len(films) + 1:07d}"
                evidence = {genre: drawn[genre][index] for genre in PLANTED_GENRES}
                films[film_id] = _write_film(folder / "dataset", film_id, evidence, random.Random(f"{seed} {film_id}"))
                split[name].append(film_id)
                progress.update()
    genres = {genre: asdict(spec) for genre, spec in PLANTED_GENRES.items()}
    _write_json(folder / "split.json", split)
    _write_json(folder / TRUTH_FILE, {**parameters, "genres": genres, "films": films})


def _draw_evidence(rng: random.Random, num_films: int, genre: PlantedGenre) -> list[Evidence]:
    """What tells the genre in each of the films, present in the right number of them."""
    if genre.interaction == "synergy":
        return _draw_exclusive_or(rng, num_films, genre)
    present = [index < round(PREVALENCE * num_films) for index in range(num_films)]
    rng.shuffle(present)

    def pick(values: Iterable[str], on: tuple[str, ...], is_on: bool) -> str:
        return rng.choice([value for value in values if (value in on) == is_on])

    return [
        Evidence(
            object=pick(OBJECTS[genre.object_family], genre.objects_on, is_on) if genre.object_family else None,
            word=pick(WORDS[genre.word_family], genre.words_on, is_on) if genre.word_family else None,
        )
        for is_on in present
    ]


def _draw_exclusive_or(rng: random.Random, num_films: int, genre: PlantedGenre) -> list[Evidence]:
    """Every object with every word equally often, so that neither alone tells anything, counted exactly.

    Each row below pairs every object with one word, and rows without and with the genre take turns, so that a last
    round cut short is off by a few films only.
    """
    assert genre.object_family is not None
    assert genre.word_family is not None
    objects = _take_turns(OBJECTS[genre.object_family], genre.objects_on)
    words = _take_turns(WORDS[genre.word_family], genre.words_on)
    one_round = [
        Evidence(name, words[(index + shift) % len(words)])
        for shift in range(len(words))
        for index, name in enumerate(objects)
    ]
    drawn = list(itertools.islice(itertools.cycle(one_round), num_films))
    rng.shuffle(drawn)
    return drawn


def _take_turns(values: Iterable[str], on: tuple[str, ...]) -> list[str]:
    """The values in an order in which on and off alternate."""
    off = [value for value in values if value not in on]
    return [value for pair in zip(on, off, strict=True) for value in pair]


def _write_film(folder: Path, film_id: str, evidence: dict[str, Evidence], rng: random.Random) -> dict[str, Any]:
    """Writes poster and JSON of one film; returns its truth."""
    shown = [(spec, evidence[genre]) for genre, spec in PLANTED_GENRES.items()]
    objects = {spec.object_family: side.object for spec, side in shown if spec.object_family and side.object}
    words = {spec.word_family: side.word for spec, side in shown if spec.word_family and side.word}
    if rng.random() < 0.5:
        objects["ornament"] = rng.choice(list(OBJECTS["ornament"]))  # tells nothing

    title = compose_title(rng)
    plot, spans = compose_plot(rng, words)
    poster, boxes = render_poster(rng, title, objects)
    truth = {
        genre: {
            "present": spec.present(evidence[genre]),
            **evidence[genre]._asdict(),
            "boxes": [boxes[spec.object_family]] if spec.object_family else [],
            "spans": [spans[spec.word_family]] if spec.word_family else [],
        }
        for genre, spec in PLANTED_GENRES.items()
    }
    genres = [genre for genre in PLANTED_GENRES if truth[genre]["present"]]
    poster.save(folder / f"{film_id}.jpeg", quality=90)
    _write_json(folder / f"{film_id}.json", {"title": title, "genres": genres, "plot": [plot]})
    return truth


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
