"""Renders the posters of the planted sample with Pillow alone: a scene, a title, and coloured objects."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .planted_objects import OBJECTS, RGB, draw_object, hsv_to_rgb

WIDTH, HEIGHT = 240, 360
GAP = 3  # pixels that stay free around an object

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom lie just outside

INK, PAPER = (25, 22, 28), (250, 246, 236)


def render_poster(rng: random.Random, title: str, objects: Mapping[str, str]) -> tuple[Image.Image, dict[str, Box]]:
    """Draws a poster that shows each of the objects once, none over another or over the title.

    Args:
        objects: family → which of its objects to show (keys of `OBJECTS` and of `OBJECTS[family]`); up to four.

    Returns:
        The RGB picture, and for each family the tight box around its object.

    Raises:
        ValueError: so many objects do not fit on a poster.
    """
    for _ in range(100):  # a title in the middle may leave too little room: then another poster
        dark = rng.random() < 0.5
        line = PAPER if dark else INK
        poster = _draw_background(rng, dark)
        blocked = [_draw_title(rng, poster, title, line), _draw_credits(rng, poster, line)]
        sprites = {family: draw_object(rng, OBJECTS[family][name], line) for family, name in objects.items()}
        boxes = _place(rng, {family: sprite.size for family, sprite in sprites.items()}, blocked)
        if boxes is not None:
            for family, sprite in sprites.items():
                poster.paste(sprite, boxes[family][:2], sprite)
            return poster, boxes
    raise ValueError(f"{len(objects)} objects do not fit on a poster")


def _place(rng: random.Random, sizes: Mapping[str, tuple[int, int]], blocked: Sequence[Box]) -> dict[str, Box] | None:
    """Random positions without overlap, the largest object first; None when none were found."""
    names = sorted(sizes, key=lambda name: -math.prod(sizes[name]))
    for _ in range(20):
        boxes: dict[str, Box] = {}
        for name in names:
            width, height = sizes[name]
            for _ in range(30):
                left, top = rng.randint(GAP, WIDTH - width - GAP), rng.randint(GAP, HEIGHT - height - GAP)
                box = (left, top, left + width, top + height)
                if not any(_overlap(box, other) for other in (*blocked, *boxes.values())):
                    boxes[name] = box
                    break
            else:
                break
        else:
            return boxes
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _draw_background(rng: random.Random, dark: bool) -> Image.Image:
    """A gradient with one of several scenes, in muted colours of a random hue."""

    def muted() -> RGB:
        value = rng.uniform(0.15, 0.4) if dark else rng.uniform(0.75, 0.95)
        return hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.25), value)

    ends = Image.new("RGB", (2, 2))
    ends.putdata([muted() for _ in range(4)])
    poster = ends.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(poster)
    scene, fill = rng.choice(["hills", "skyline", "dots", "rays", "frame", "stripes", "plain"]), muted()
    if scene == "hills":
        for base in (230, 290):
            phase, wave = rng.uniform(0, 6), rng.uniform(30, 70)
            ridge = [(x, base + 22 * math.sin(phase + x / wave)) for x in range(0, WIDTH + 8, 8)]
            draw.polygon([(0, HEIGHT), *ridge, (WIDTH, HEIGHT)], fill=muted())
    elif scene == "skyline":
        left = 0
        while left < WIDTH:
            right = left + rng.randint(14, 40)
            draw.rectangle((left, HEIGHT - rng.randint(50, 190), right, HEIGHT), fill=fill)
            left = right + rng.randint(0, 5)
    elif scene == "dots":
        for _ in range(60):
            x, y, radius = rng.randrange(WIDTH), rng.randrange(HEIGHT), rng.choice([1, 1, 2, 6, 14])
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif scene == "rays":
        x, y = rng.randrange(WIDTH), rng.randrange(HEIGHT)
        for angle in range(rng.randrange(20), 360, 30):
            draw.pieslice((x - 450, y - 450, x + 450, y + 450), angle, angle + 14, fill=fill)
    elif scene == "frame":
        draw.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline=fill, width=rng.randint(6, 16))
    elif scene == "stripes":
        step, slope = rng.randint(24, 60), rng.randint(-120, 120)
        for x in range(-120, WIDTH + 120, step):
            draw.line([(x, 0), (x + slope, HEIGHT)], fill=fill, width=rng.randint(2, step // 3))
    return poster


def _draw_title(rng: random.Random, poster: Image.Image, title: str, fill: RGB) -> Box:
    """Prints the title in one or two lines at a random height; returns the band it takes."""
    words = title.split()
    if rng.random() < 0.5 and len(words) > 1:
        middle = (len(words) + 1) // 2
        title = " ".join(words[:middle]) + "\n" + " ".join(words[middle:])
    if rng.random() < 0.5:
        title = title.upper()
    draw = ImageDraw.Draw(poster)
    layout: dict[str, Any] = {"spacing": 2, "align": rng.choice(["left", "center"]), "stroke_width": rng.randint(0, 1)}
    size = rng.randint(22, 34)
    while draw.multiline_textbbox((0, 0), title, ImageFont.load_default(size), **layout)[2] > WIDTH - 16:
        size -= 2
    font = ImageFont.load_default(size)
    text_width, text_height = map(math.ceil, draw.multiline_textbbox((0, 0), title, font, **layout)[2:])
    left = rng.randint(8, WIDTH - 8 - text_width)
    top = rng.choice([8, rng.randint(8, HEIGHT // 2), HEIGHT - 28 - text_height])
    draw.multiline_text((left, top), title, fill, font, **layout)
    return (0, top, WIDTH, top + text_height)


def _draw_credits(rng: random.Random, poster: Image.Image, fill: RGB) -> Box:
    """A line of small print, as on every poster; returns the band it takes."""
    letters = "".join(rng.choice("abcdefghiklmnoprstuvw   ") for _ in range(rng.randint(26, 38)))
    ImageDraw.Draw(poster).text((rng.randint(8, 24), HEIGHT - 16), letters, fill=fill, font=ImageFont.load_default(9))
    return (0, HEIGHT - 16, WIDTH, HEIGHT)
