"""The objects on the posters of the planted sample, each a short list of shapes."""

import colorsys
import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Shape = tuple[str, Sequence[float], str]  # kind, coordinates, fill

SCALE, MARGIN, LINE_WIDTH = 1.6, 16, 4  # pixels for a unit of the coordinates, around the object, and of its outline
HUES = (0, 20, 38, 52, 80, 125, 165, 190, 215, 245, 280, 325)  # degrees; evenly spaced ones would be mostly green
FILLS = {"white": (248, 248, 244), "dark": (48, 46, 52), "wood": (150, 112, 78), "glass": (205, 228, 240)}

# Coordinates run from 0 to 100. A polygon has x, y of each corner; an ellipse, a box and a dome (the upper half of an
# ellipse) have left, top, right, bottom; a line has x, y of each point and takes no fill. The fill "main" is the
# object's random colour, "shade" a darker one of the same hue.
OBJECTS: dict[str, dict[str, list[Shape]]] = {
    "vehicle": {
        "car": [
            ("polygon", (18, 48, 32, 20, 72, 20, 86, 48), "main"),
            ("polygon", (30, 46, 38, 27, 50, 27, 50, 46), "glass"),
            ("polygon", (56, 46, 56, 27, 67, 27, 76, 46), "glass"),
            ("box", (2, 46, 98, 72), "main"),
            ("ellipse", (12, 57, 38, 83), "dark"),
            ("ellipse", (62, 57, 88, 83), "dark"),
        ],
        "sailboat": [
            ("line", (48, 4, 48, 76), ""),
            ("polygon", (52, 6, 92, 66, 52, 66), "white"),
            ("polygon", (44, 16, 44, 66, 12, 66), "main"),
            ("polygon", (3, 74, 97, 74, 80, 97, 20, 97), "shade"),
        ],
        "balloon": [
            ("line", (26, 54, 42, 84), ""),
            ("line", (74, 54, 58, 84), ""),
            ("box", (40, 82, 60, 98), "wood"),
            ("ellipse", (12, 2, 88, 74), "main"),
            ("ellipse", (35, 2, 65, 74), "shade"),
        ],
        "rocket": [
            ("polygon", (34, 62, 8, 92, 34, 84), "shade"),
            ("polygon", (66, 62, 92, 92, 66, 84), "shade"),
            ("polygon", (40, 84, 60, 84, 50, 99), "white"),
            ("polygon", (50, 1, 66, 24, 68, 84, 32, 84, 34, 24), "main"),
            ("ellipse", (40, 30, 60, 50), "glass"),
        ],
    },
    "plant": {
        "mushroom": [
            ("box", (38, 46, 62, 96), "white"),
            ("dome", (3, 6, 97, 104), "main"),
            ("ellipse", (18, 32, 33, 47), "white"),
            ("ellipse", (42, 14, 57, 29), "white"),
            ("ellipse", (68, 30, 83, 45), "white"),
        ],
        "cactus": [
            ("polygon", (40, 60, 14, 60, 14, 28, 26, 28, 26, 48, 40, 48), "main"),
            ("polygon", (60, 50, 86, 50, 86, 18, 74, 18, 74, 38, 60, 38), "main"),
            ("ellipse", (36, 2, 64, 40), "main"),
            ("box", (37, 20, 63, 76), "main"),
            ("line", (50, 12, 50, 70), ""),
            ("polygon", (22, 74, 78, 74, 70, 98, 30, 98), "wood"),
        ],
        "tree": [
            ("box", (43, 72, 57, 98), "wood"),
            ("polygon", (50, 34, 92, 76, 8, 76), "main"),
            ("polygon", (50, 16, 84, 52, 16, 52), "main"),
            ("polygon", (50, 2, 74, 30, 26, 30), "shade"),
        ],
        "flower": [
            ("line", (50, 50, 50, 98), ""),
            ("ellipse", (52, 74, 82, 88), "shade"),
            ("ellipse", (36, 1, 64, 31), "main"),
            ("ellipse", (14, 17, 44, 47), "main"),
            ("ellipse", (56, 17, 86, 47), "main"),
            ("ellipse", (22, 42, 50, 70), "main"),
            ("ellipse", (50, 42, 78, 70), "main"),
            ("ellipse", (37, 26, 63, 52), "white"),
        ],
    },
    "animal": {
        "fish": [
            ("polygon", (70, 50, 98, 22, 90, 50, 98, 78), "shade"),
            ("polygon", (30, 30, 48, 8, 64, 30), "shade"),
            ("ellipse", (2, 22, 80, 80), "main"),
            ("ellipse", (12, 38, 25, 51), "white"),
        ],
        "butterfly": [
            ("ellipse", (2, 8, 48, 58), "main"),
            ("ellipse", (52, 8, 98, 58), "main"),
            ("ellipse", (12, 50, 46, 94), "shade"),
            ("ellipse", (54, 50, 88, 94), "shade"),
            ("ellipse", (16, 22, 32, 40), "white"),
            ("ellipse", (68, 22, 84, 40), "white"),
            ("ellipse", (45, 16, 55, 90), "dark"),
        ],
        "snail": [
            ("polygon", (4, 92, 98, 92, 88, 78, 84, 52, 74, 52, 72, 78, 20, 78), "white"),
            ("line", (76, 52, 72, 34), ""),
            ("line", (82, 52, 90, 34), ""),
            ("ellipse", (8, 14, 72, 80), "main"),
            ("ellipse", (22, 28, 58, 66), "shade"),
            ("ellipse", (32, 39, 48, 55), "main"),
        ],
        "penguin": [
            ("ellipse", (30, 86, 48, 98), "wood"),
            ("ellipse", (52, 86, 70, 98), "wood"),
            ("polygon", (26, 38, 6, 66, 26, 64), "shade"),
            ("polygon", (74, 38, 94, 66, 74, 64), "shade"),
            ("ellipse", (20, 2, 80, 94), "main"),
            ("ellipse", (32, 34, 68, 92), "white"),
            ("ellipse", (34, 16, 46, 28), "white"),
            ("ellipse", (54, 16, 66, 28), "white"),
            ("polygon", (42, 30, 58, 30, 50, 42), "wood"),
        ],
    },
    "clothing": {
        "shirt": [
            ("polygon", (36, 8, 2, 30, 14, 52, 26, 44, 26, 94, 74, 94, 74, 44, 86, 52, 98, 30, 64, 8), "main"),
            ("polygon", (36, 8, 50, 28, 64, 8), "shade"),
        ],
        "hat": [
            ("ellipse", (2, 70, 98, 92), "main"),
            ("box", (24, 12, 76, 80), "main"),
            ("box", (24, 60, 76, 76), "white"),
        ],
        "boot": [
            ("polygon", (28, 4, 66, 4, 66, 56, 96, 70, 96, 88, 28, 88), "main"),
            ("box", (28, 86, 96, 97), "dark"),
            ("box", (24, 4, 70, 20), "white"),
        ],
        "umbrella": [
            ("line", (50, 50, 50, 90, 46, 96, 38, 96, 34, 90), ""),
            ("dome", (2, 6, 98, 98), "main"),
            ("dome", (34, 6, 66, 98), "shade"),
        ],
    },
    "building": {
        "house": [
            ("box", (14, 44, 86, 96), "main"),
            ("polygon", (3, 46, 50, 5, 97, 46), "shade"),
            ("box", (42, 66, 58, 96), "dark"),
            ("box", (21, 56, 35, 72), "white"),
            ("box", (65, 56, 79, 72), "white"),
        ],
        "lighthouse": [
            ("polygon", (36, 30, 64, 30, 74, 97, 26, 97), "white"),
            ("polygon", (34, 46, 66, 46, 68, 60, 32, 60), "main"),
            ("polygon", (29, 76, 71, 76, 73, 90, 27, 90), "main"),
            ("box", (38, 14, 62, 30), "glass"),
            ("polygon", (32, 15, 50, 2, 68, 15), "main"),
        ],
        "tent": [
            ("polygon", (50, 10, 99, 92, 1, 92), "main"),
            ("polygon", (50, 30, 68, 92, 32, 92), "dark"),
            ("line", (50, 10, 50, 2), ""),
        ],
        "windmill": [
            ("polygon", (36, 36, 64, 36, 74, 98, 26, 98), "main"),
            ("box", (43, 76, 57, 98), "dark"),
            ("polygon", (50, 38, 8, 2, 2, 12), "white"),
            ("polygon", (50, 38, 98, 12, 92, 2), "white"),
            ("polygon", (50, 38, 2, 66, 8, 76), "white"),
            ("polygon", (50, 38, 92, 76, 98, 66), "white"),
            ("ellipse", (44, 32, 56, 44), "shade"),
        ],
    },
    "household": {
        "mug": [
            ("ellipse", (54, 34, 97, 78), "main"),
            ("ellipse", (64, 45, 86, 67), "white"),
            ("box", (6, 20, 72, 94), "main"),
            ("ellipse", (6, 10, 72, 30), "wood"),
        ],
        "clock": [
            ("line", (28, 84, 20, 98), ""),
            ("line", (72, 84, 80, 98), ""),
            ("ellipse", (10, 2, 38, 30), "shade"),
            ("ellipse", (62, 2, 90, 30), "shade"),
            ("ellipse", (6, 10, 94, 96), "main"),
            ("ellipse", (18, 22, 82, 84), "white"),
            ("polygon", (47, 30, 53, 30, 53, 50, 70, 58, 67, 64, 47, 55), "dark"),
        ],
        "lamp": [
            ("box", (46, 50, 54, 90), "dark"),
            ("ellipse", (24, 84, 76, 98), "shade"),
            ("polygon", (32, 4, 68, 4, 92, 54, 8, 54), "main"),
        ],
        "chair": [
            ("box", (20, 4, 30, 97), "wood"),
            ("box", (70, 62, 80, 97), "wood"),
            ("box", (18, 6, 38, 58), "main"),
            ("box", (16, 54, 86, 68), "shade"),
        ],
    },
    "ornament": {
        "bell": [
            ("ellipse", (39, 76, 61, 97), "shade"),
            ("polygon", (50, 4, 68, 16, 78, 62, 97, 84, 3, 84, 22, 62, 32, 16), "main"),
            ("line", (22, 62, 78, 62), ""),
        ],
        "star": [
            ("polygon", (50, 3, 62, 37, 98, 38, 69, 60, 80, 95, 50, 74, 20, 95, 31, 60, 2, 38, 38, 37), "main"),
        ],
        "kite": [
            ("polygon", (50, 2, 88, 38, 50, 78, 12, 38), "main"),
            ("line", (50, 2, 50, 78, 62, 86, 48, 92, 58, 98), ""),
            ("line", (12, 38, 88, 38), ""),
        ],
    },
}


def draw_object(rng: random.Random, shapes: Sequence[Shape], line: RGB) -> Image.Image:
    """Draws an object in a random colour, size and slant, with outlines in the colour `line`.

    Returns:
        An RGBA sprite without empty margin: its size is that of the object's box.
    """
    hue, saturation, value = rng.choice(HUES) / 360, rng.uniform(0.65, 1.0), rng.uniform(0.65, 0.95)
    fills = FILLS | {"main": hsv_to_rgb(hue, saturation, value), "shade": hsv_to_rgb(hue, saturation, 0.7 * value)}
    side = round(100 * SCALE + 2 * MARGIN)
    image = Image.new("RGBA", (side, side), (*line, 0))
    draw = ImageDraw.Draw(image)
    for kind, coordinates, fill in shapes:
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
            draw.line(points, line, LINE_WIDTH + 1, joint="curve")

    # RGBa (colour already times alpha) is what Pillow transforms in; asking for it once saves a conversion per step.
    sprite = image.convert("RGBa").rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    sprite = sprite.crop(sprite.getbbox())
    zoom = rng.uniform(78, 96) / math.sqrt(sprite.width * sprite.height)
    stretch = rng.uniform(1.0, 1.1)
    size = round(sprite.width * zoom / stretch), round(sprite.height * zoom * stretch)
    return sprite.resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def hsv_to_rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
