"""A questionnaire's key, and files of answers to it."""

import json

from fl_i2moe.evaluation.human_evaluation.questionnaire import Item, Key

EXPERTS = ["uniqueness_image", "uniqueness_text", "synergy", "redundancy"]


def make_key():
    """Samples x, y and z, of which x and y have a control."""
    weights = {"x": [0.5, 0.2, 0.2, 0.1], "y": [0.1, 0.2, 0.2, 0.5], "z": [0.25] * 4}
    pairs = [("x", "x"), ("y", "x"), ("z", "z"), ("y", "y"), ("x", "y")]
    items = [Item(f"i{n}", sample, giver, weights[giver]) for n, (sample, giver) in enumerate(pairs)]
    return Key("0123456789abcdef", EXPERTS, items)


def write_answers(folder, rater, ratings, changes=()):
    folder.mkdir(exist_ok=True)
    answers = {f"i{n}": rating for n, rating in enumerate(ratings)}
    content = {"format": 1, "questionnaire": "0123456789abcdef", "rater": rater, "answers": answers, **dict(changes)}
    path = folder / f"{rater}.json"
    path.write_text(json.dumps(content))
    return path
