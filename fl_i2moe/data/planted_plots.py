"""Composes the plots of the planted sample: a sentence for each word, filler sentences between them."""

import random
import re

# Family → its words. No word begins with a vowel, so that no article tells them apart.
WORDS = {
    "animal": ["fox", "goose", "donkey", "horse", "rabbit", "crow"],
    "place": ["harbor", "desert", "castle", "valley", "museum", "village"],
    "instrument": ["violin", "trumpet", "drum", "harp", "flute", "banjo", "piano", "guitar"],
    "food": ["bread", "honey", "cheese", "soup", "rice", "chocolate"],
    "trade": ["baker", "tailor", "plumber", "gardener", "dentist", "sailor"],
    "thing": ["ladder", "telescope", "compass", "lantern", "hammer", "mirror"],
}


def _sentences(text: str) -> list[str]:
    return re.findall(r"\S[^.]*\.", " ".join(text.split()))


# Each sentence fits every word {x} of its family; {hero} and {friend} are the two people of the plot.
SENTENCES = {
    "animal": _sentences("""
        A stubborn {x} follows {hero} everywhere. {hero} shares the attic with a {x}. At dawn {friend} hears the
        {x} again. Nobody believes what the {x} has seen. One night a {x} turns up at the door. {friend} has
        raised the same {x} for years. Only the old {x} seems to know the way home. The neighbors complain about
        a {x} in the yard.
    """),
    "food": _sentences("""
        There is nothing left but {x} for supper. {hero} trades a coat for some {x}. They hide the money under
        the {x} in the pantry. {friend} will eat only {x} that week. All through winter they live on {x} and
        luck. A crate of {x} goes missing from the cellar. The smell of {x} brings back the past. Over warm {x}
        the two make up.
    """),
    "instrument": _sentences("""
        {hero} learns to play the {x} in secret. In the attic waits a {x} nobody has touched. A broken {x} is
        all that {friend} inherits. Every evening a {x} sounds across the street. {friend} sells the {x} to pay
        the rent. The letter is hidden inside a {x}. For one summer the {x} keeps them together. When the {x}
        falls silent, everybody looks up.
    """),
    "trade": _sentences("""
        {hero} works as a {x} to get by. A retired {x} rents the room upstairs. {friend} falls out with the
        local {x}. They get help from a talkative {x}. The stranger says he used to be a {x}. Long ago her
        mother was a {x} too. Soon a {x} asks too many questions. {hero} owes a great deal to one {x}.
    """),
    "place": _sentences("""
        Their road ends at a {x} in the north. {hero} grew up near the {x}. Something is buried behind the {x}.
        {friend} has never left the {x} before. By noon the whole {x} has heard of it. They agree to meet at the
        {x} in spring. An old map leads them to a {x}. In the middle of a {x} the car breaks down.
    """),
    "thing": _sentences("""
        {hero} finds a {x} under the floor. All they have left is a rusty {x}. {friend} will not part with the
        {x}. A stolen {x} changes hands three times. Somebody has moved the {x} overnight. With only a {x} they
        set to work. The parcel holds a {x} and no note. Behind the curtain stands a {x}.
    """),
}

# Nothing in these depends on a genre; some name colours and objects that posters may show.
FILLERS = _sentences("""
    It has been raining for days. Nothing is as it was ten years ago. {hero} and {friend} have not spoken since.
    {hero} cannot sleep. Then a phone call changes the plan. {friend} keeps a promise made long ago. Both of them
    are running out of time. The town has its own opinion. {hero} leaves a yellow umbrella on the stairs. Someone
    has painted the house green. A red car stops across the road. A blue balloon drifts over the roofs. {friend}
    drops a purple mug. No one mentions the turquoise fish on the wall.
""")

NAMES = [
    *["Ada", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karla", "Leon"],
    *["Mira", "Nils", "Olga", "Pablo", "Rosa", "Samir", "Tilda", "Viktor", "Wanda", "Yusuf", "Zelda", "Milan"],
]

TITLE_ADJECTIVES = ["Silent", "Second", "Golden", "Broken", "Distant", "Hidden", "Late", "Borrowed", "Last", "Crooked"]
TITLE_NOUNS = ["Winter", "Letter", "Promise", "Sunday", "Shadow", "Neighbor", "Bridge", "Morning", "Summer", "Window"]


def compose_title(rng: random.Random) -> str:
    pattern = rng.choice(["The {a} {n}", "{a} {n}", "{n} & {m}", "{n}", "A {a} {n}", "{n} of the {m}"])
    noun, other = rng.sample(TITLE_NOUNS, 2)
    return pattern.format(a=rng.choice(TITLE_ADJECTIVES), n=noun, m=other)


def compose_plot(rng: random.Random, words: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """Writes a plot around `words`, family → one of its words; gives the span (start, end) of each word, too."""
    hero, friend = rng.sample(NAMES, 2)
    sentences = [(family, rng.choice(SENTENCES[family])) for family in words]
    sentences += [("", filler) for filler in rng.sample(FILLERS, rng.randint(1, 3))]
    rng.shuffle(sentences)

    plot, spans = "", {}
    for family, sentence in sentences:
        before, word_slot, after = sentence.format(hero=hero, friend=friend, x="{x}").partition("{x}")
        plot += (" " if plot else "") + before
        if word_slot:
            spans[family] = (len(plot), len(plot) + len(words[family]))
            plot += words[family]
        plot += after
    return plot, spans
