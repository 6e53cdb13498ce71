"""Renders the posters of the planted sample with Pillow alone: a scene, a title, and coloured objects."""

import colorsys
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 240, 360
GAP = 3  # pixels that stay free around an object

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom lie just outside
Point = tuple[float, float]

# Colour → (hue in degrees, saturation, value); each object gets its own variation of them.
COLOURS = {
    "red": (0, 0.90, 0.85),
    "yellow": (50, 0.90, 0.95),
    "green": (122, 0.75, 0.62),
    "turquoise": (177, 0.80, 0.80),
    "blue": (226, 0.85, 0.85),
    "purple": (287, 0.75, 0.70),
}
INK, PAPER = (25, 22, 28), (250, 246, 236)


def render_poster(rng: random.Random, title: str, objects: Mapping[str, str]) -> tuple[Image.Image, dict[str, Box]]:
    """Draws a poster that shows each of the objects once, none over another or over the title.

    Args:
        title: printed on the poster.
        objects: name of an object (a key of `OBJECTS`) → its colour (a key of `COLOURS`).

    Returns:
        The RGB picture, and for each object the tight box around it.
    """
    boxes: dict[str, Box] = {}
    while not boxes:  # a title in the middle may leave too little room: then another poster
        dark = rng.random() < 0.5
        line = PAPER if dark else INK
        poster = _draw_background(rng, dark)
        blocked = [_draw_title(rng, poster, title, line), _draw_credits(rng, poster, line)]
        sprites = {name: _draw_object(rng, name, colour, line) for name, colour in objects.items()}
        boxes = _place(rng, {name: sprite.size for name, sprite in sprites.items()}, blocked)
    for name, sprite in sprites.items():
        poster.paste(sprite, boxes[name][:2], sprite)
    return poster, boxes


def _place(rng: random.Random, sizes: Mapping[str, tuple[int, int]], blocked: Sequence[Box]) -> dict[str, Box]:
    """Random positions without overlap, the largest object first; empty when they could not be found."""
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
        if len(boxes) == len(sizes):
            return boxes
    return {}


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


# --- objects --------------------------------------------------------------------------------------------------------


class Pen:
    """Draws outlined shapes on a transparent square; coordinates run from 0 to 100."""

    SCALE, MARGIN, LINE = 1.25, 12, 3

    def __init__(self, main: RGB, line: RGB) -> None:
        side = round(100 * self.SCALE + 2 * self.MARGIN)
        self.image = Image.new("RGBA", (side, side), (*line, 0))
        self.main = main
        self.shade = tuple(round(0.72 * value) for value in main)
        self.line = line
        self._draw = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.SCALE + self.MARGIN, y * self.SCALE + self.MARGIN) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: tuple[int, ...]) -> None:
        self._draw.polygon(self._scaled(points), fill=fill)
        self.stroke([*points, points[0]])

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, ...]) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, ...]) -> None:
        self._draw.ellipse(self._scaled([(left, top), (right, bottom)]), fill=fill, outline=self.line, width=self.LINE)

    def half_disc(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, ...]) -> None:
        """The upper half of an ellipse."""
        box = self._scaled([(left, top), (right, bottom)])
        self._draw.chord(box, 180, 360, fill=fill, outline=self.line, width=self.LINE)

    def arc(self, left: float, top: float, right: float, bottom: float, start: float, end: float) -> None:
        self._draw.arc(self._scaled([(left, top), (right, bottom)]), start, end, fill=self.line, width=self.LINE + 2)

    def stroke(self, points: Sequence[Point]) -> None:
        self._draw.line(self._scaled(points), fill=self.line, width=self.LINE, joint="curve")


def _umbrella(pen: Pen) -> None:
    pen.stroke([(50, 50), (50, 86)])
    pen.arc(34, 76, 51, 97, 0, 180)
    pen.half_disc(2, 6, 98, 98, pen.main)
    pen.half_disc(34, 6, 66, 98, pen.shade)


def _fish(pen: Pen) -> None:
    pen.polygon([(70, 50), (98, 22), (90, 50), (98, 78)], pen.shade)
    pen.polygon([(30, 30), (48, 8), (64, 30)], pen.shade)
    pen.ellipse(2, 22, 80, 80, pen.main)
    pen.arc(22, 32, 44, 70, 285, 75)
    pen.ellipse(12, 38, 25, 51, (255, 255, 255))


def _car(pen: Pen) -> None:
    pen.polygon([(20, 48), (34, 20), (70, 20), (84, 48)], pen.main)
    pen.polygon([(31, 46), (39, 27), (50, 27), (50, 46)], (215, 230, 238))
    pen.polygon([(56, 46), (56, 27), (66, 27), (74, 46)], (215, 230, 238))
    pen.rectangle(2, 46, 98, 72, pen.main)
    for left in (13, 63):
        pen.ellipse(left, 58, left + 24, 82, (40, 40, 44))
        pen.ellipse(left + 8, 66, left + 16, 74, (200, 200, 200))


def _house(pen: Pen) -> None:
    pen.rectangle(14, 44, 86, 96, pen.main)
    pen.polygon([(3, 46), (50, 5), (97, 46)], pen.shade)
    pen.rectangle(42, 66, 58, 96, (80, 60, 50))
    for left in (21, 65):
        pen.rectangle(left, 56, left + 14, 72, (240, 240, 225))


def _balloon(pen: Pen) -> None:
    pen.stroke([(26, 54), (42, 84)])
    pen.stroke([(74, 54), (58, 84)])
    pen.rectangle(40, 82, 60, 98, (150, 115, 80))
    pen.ellipse(12, 2, 88, 74, pen.main)
    pen.ellipse(35, 2, 65, 74, pen.shade)


def _mug(pen: Pen) -> None:
    pen.ellipse(54, 34, 97, 78, pen.main)
    pen.ellipse(64, 45, 86, 67, (235, 235, 235))
    pen.rectangle(6, 20, 72, 94, pen.main)
    pen.ellipse(6, 10, 72, 30, (90, 65, 50))


def _shirt(pen: Pen) -> None:
    left_half = [(36, 8), (2, 30), (14, 52), (26, 44), (26, 94)]
    pen.polygon([*left_half, *((100 - x, y) for x, y in reversed(left_half))], pen.main)
    pen.polygon([(36, 8), (50, 28), (64, 8)], pen.shade)


def _mushroom(pen: Pen) -> None:
    pen.rectangle(38, 46, 62, 96, (235, 225, 205))
    pen.half_disc(3, 6, 97, 104, pen.main)
    for left, top in ((18, 32), (42, 14), (68, 30)):
        pen.ellipse(left, top, left + 15, top + 15, (250, 250, 250))


def _bell(pen: Pen) -> None:
    pen.ellipse(39, 76, 61, 97, pen.shade)
    pen.polygon([(50, 4), (68, 16), (78, 62), (97, 84), (3, 84), (22, 62), (32, 16)], pen.main)
    pen.stroke([(22, 62), (78, 62)])


OBJECTS: dict[str, Callable[[Pen], None]] = {
    "umbrella": _umbrella,
    "fish": _fish,
    "car": _car,
    "house": _house,
    "balloon": _balloon,
    "mug": _mug,
    "shirt": _shirt,
    "mushroom": _mushroom,
    "bell": _bell,
}


def _draw_object(rng: random.Random, name: str, colour: str, line: RGB) -> Image.Image:
    """A transparent sprite without empty margin: its size is the object's box."""
    hue, saturation, value = COLOURS[colour]
    main = _rgb(hue + rng.uniform(-7, 7), saturation + rng.uniform(-0.1, 0.1), value + rng.uniform(-0.05, 0.05))
    pen = Pen(main, line)
    OBJECTS[name](pen)
    # RGBa (colour already times alpha) is what Pillow transforms in; asking for it once saves a conversion per step.
    sprite = pen.image.convert("RGBa").rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    sprite = sprite.crop(sprite.getbbox())
    zoom = rng.uniform(56, 70) / math.sqrt(sprite.width * sprite.height)
    stretch = rng.uniform(1.0, 1.1)
    size = round(sprite.width * zoom / stretch), round(sprite.height * zoom * stretch)
    return sprite.resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, min(saturation, 1), min(value, 1))
    return round(255 * red), round(255 * green), round(255 * blue)


# --- what is behind them --------------------------------------------------------------------------------------------


def _draw_background(rng: random.Random, dark: bool) -> Image.Image:
    """A gradient with one of several scenes, in muted colours of a random hue."""

    def muted() -> RGB:
        value = rng.uniform(0.15, 0.4) if dark else rng.uniform(0.75, 0.95)
        return _rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.25), value)

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
