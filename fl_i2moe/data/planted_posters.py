"""Draws the posters of the planted sample with Pillow alone: a scene, a title, and coloured objects."""

import colorsys
import math
import random
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from typing import Any

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom lie just outside
Shape = tuple[str, str, list[float]]  # kind, fill, coordinates

WIDTH, HEIGHT = 240, 360
GAP = 3  # pixels that stay free around an object
INK, PAPER = (25, 22, 28), (250, 246, 236)
SCALE, MARGIN, LINE_WIDTH = 1.6, 16, 4  # pixels for a unit of the coordinates, around the object, and of its outline
HUES = (0, 20, 38, 52, 80, 125, 165, 190, 215, 245, 280, 325)  # degrees; evenly spaced ones would be mostly green
FILLS = {"white": (248, 248, 244), "dark": (48, 46, 52), "wood": (150, 112, 78), "glass": (205, 228, 240)}

# A shape is its kind, its fill and its coordinates, from 0 to 100. A polygon and a line have x, y of each point; an
# ellipse, a box and a dome (the upper half of an ellipse) have left, top, right, bottom. The fill "main" is the
# object's random colour, "shade" a darker one of the same hue, "ink" the colour of outlines.
DRAWINGS = """
[vehicle]
car = polygon main 18 48 32 20 72 20 86 48; polygon glass 30 46 38 27 50 27 50 46;
    polygon glass 56 46 56 27 67 27 76 46; box main 2 46 98 72; ellipse dark 12 57 38 83; ellipse dark 62 57 88 83
sailboat = line ink 48 4 48 76; polygon white 52 6 92 66 52 66; polygon main 44 16 44 66 12 66;
    polygon shade 3 74 97 74 80 97 20 97
balloon = line ink 26 54 42 84; line ink 74 54 58 84; box wood 40 82 60 98; ellipse main 12 2 88 74;
    ellipse shade 35 2 65 74
rocket = polygon shade 34 62 8 92 34 84; polygon shade 66 62 92 92 66 84; polygon white 40 84 60 84 50 99;
    polygon main 50 1 66 24 68 84 32 84 34 24; ellipse glass 40 30 60 50
[plant]
mushroom = box white 38 46 62 96; dome main 3 6 97 104; ellipse white 18 32 33 47; ellipse white 42 14 57 29;
    ellipse white 68 30 83 45
cactus = polygon main 40 60 14 60 14 28 26 28 26 48 40 48; polygon main 60 50 86 50 86 18 74 18 74 38 60 38;
    ellipse main 36 2 64 40; box main 37 20 63 76; line ink 50 12 50 70; polygon wood 22 74 78 74 70 98 30 98
tree = box wood 43 72 57 98; polygon main 50 34 92 76 8 76; polygon main 50 16 84 52 16 52;
    polygon shade 50 2 74 30 26 30
flower = line ink 50 50 50 98; ellipse shade 52 74 82 88; ellipse main 36 1 64 31; ellipse main 14 17 44 47;
    ellipse main 56 17 86 47; ellipse main 22 42 50 70; ellipse main 50 42 78 70; ellipse white 37 26 63 52
[animal]
fish = polygon shade 70 50 98 22 90 50 98 78; polygon shade 30 30 48 8 64 30; ellipse main 2 22 80 80;
    ellipse white 12 38 25 51
butterfly = ellipse main 2 8 48 58; ellipse main 52 8 98 58; ellipse shade 12 50 46 94; ellipse shade 54 50 88 94;
    ellipse white 16 22 32 40; ellipse white 68 22 84 40; ellipse dark 45 16 55 90
snail = polygon white 4 92 98 92 88 78 84 52 74 52 72 78 20 78; line ink 76 52 72 34; line ink 82 52 90 34;
    ellipse main 8 14 72 80; ellipse shade 22 28 58 66; ellipse main 32 39 48 55
penguin = ellipse wood 30 86 48 98; ellipse wood 52 86 70 98; polygon shade 26 38 6 66 26 64;
    polygon shade 74 38 94 66 74 64; ellipse main 20 2 80 94; ellipse white 32 34 68 92; ellipse white 34 16 46 28;
    ellipse white 54 16 66 28; polygon wood 42 30 58 30 50 42
[clothing]
shirt = polygon main 36 8 2 30 14 52 26 44 26 94 74 94 74 44 86 52 98 30 64 8; polygon shade 36 8 50 28 64 8
hat = ellipse main 2 70 98 92; box main 24 12 76 80; box white 24 60 76 76
boot = polygon main 28 4 66 4 66 56 96 70 96 88 28 88; box dark 28 86 96 97; box white 24 4 70 20
umbrella = line ink 50 50 50 90 46 96 38 96 34 90; dome main 2 6 98 98; dome shade 34 6 66 98
[building]
house = box main 14 44 86 96; polygon shade 3 46 50 5 97 46; box dark 42 66 58 96; box white 21 56 35 72;
    box white 65 56 79 72
lighthouse = polygon white 36 30 64 30 74 97 26 97; polygon main 34 46 66 46 68 60 32 60;
    polygon main 29 76 71 76 73 90 27 90; box glass 38 14 62 30; polygon main 32 15 50 2 68 15
tent = polygon main 50 10 99 92 1 92; polygon dark 50 30 68 92 32 92; line ink 50 10 50 2
windmill = polygon main 36 36 64 36 74 98 26 98; box dark 43 76 57 98; polygon white 50 38 8 2 2 12;
    polygon white 50 38 98 12 92 2; polygon white 50 38 2 66 8 76; polygon white 50 38 92 76 98 66;
    ellipse shade 44 32 56 44
[household]
mug = ellipse main 54 34 97 78; ellipse white 64 45 86 67; box main 6 20 72 94; ellipse wood 6 10 72 30
clock = line ink 28 84 20 98; line ink 72 84 80 98; ellipse shade 10 2 38 30; ellipse shade 62 2 90 30;
    ellipse main 6 10 94 96; ellipse white 18 22 82 84; polygon dark 47 30 53 30 53 50 70 58 67 64 47 55
lamp = box dark 46 50 54 90; ellipse shade 24 84 76 98; polygon main 32 4 68 4 92 54 8 54
chair = box wood 20 4 30 97; box wood 70 62 80 97; box main 18 6 38 58; box shade 16 54 86 68
[ornament]
bell = ellipse shade 39 76 61 97; polygon main 50 4 68 16 78 62 97 84 3 84 22 62 32 16; line ink 22 62 78 62
star = polygon main 50 3 62 37 98 38 69 60 80 95 50 74 20 95 31 60 2 38 38 37
kite = polygon main 50 2 88 38 50 78 12 38; line ink 50 2 50 78 62 86 48 92 58 98; line ink 12 38 88 38
"""


def _parse(drawings: str) -> dict[str, dict[str, list[Shape]]]:
    parser = ConfigParser()
    parser.read_string(drawings)
    return {
        family: {name: [_shape(x) for x in shapes.split(";")] for name, shapes in parser.items(family)}
        for family in parser.sections()
    }


def _shape(text: str) -> Shape:
    kind, fill, *coordinates = text.split()
    return kind, fill, [float(x) for x in coordinates]


OBJECTS = _parse(DRAWINGS)
"""Family → object → its shapes."""


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
        sprites = {family: _draw_object(rng, OBJECTS[family][name], line) for family, name in objects.items()}
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
        return _rgb(rng.random(), rng.uniform(0.05, 0.25), value)

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


def _draw_object(rng: random.Random, shapes: list[Shape], line: RGB) -> Image.Image:
    """An RGBA sprite without margin, in a random colour, size and slant, with outlines in the colour `line`."""
    hue, saturation, value = rng.choice(HUES) / 360, rng.uniform(0.65, 1.0), rng.uniform(0.65, 0.95)
    main, shade = (_rgb(hue, saturation, x) for x in (value, 0.7 * value))
    fills = FILLS | {"main": main, "shade": shade, "ink": line}
    side = round(100 * SCALE + 2 * MARGIN)
    image = Image.new("RGBA", (side, side), (*line, 0))
    draw = ImageDraw.Draw(image)
    for kind, fill, coordinates in shapes:
        points = [coordinate * SCALE + MARGIN for coordinate in coordinates]
        if kind == "ellipse":
            draw.ellipse(points, fills[fill], line, LINE_WIDTH)
        elif kind == "dome":
            draw.chord(points, 180, 360, fills[fill], line, LINE_WIDTH)
        elif kind == "box":
            draw.rectangle(points, fills[fill], line, LINE_WIDTH)
        elif kind == "polygon":
            draw.polygon(points, fills[fill])
            draw.line([*points, *points[:2]], line, LINE_WIDTH, joint="curve")
        else:
            draw.line(points, fills[fill], LINE_WIDTH + 1, joint="curve")

    # RGBa (colour already times alpha) is what Pillow transforms in; asking for it once saves a conversion per step.
    sprite = image.convert("RGBa").rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    sprite = sprite.crop(sprite.getbbox())
    zoom = rng.uniform(78, 96) / math.sqrt(sprite.width * sprite.height)
    stretch = rng.uniform(1.0, 1.1)
    size = round(sprite.width * zoom / stretch), round(sprite.height * zoom * stretch)
    return sprite.resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
