"""
JSON that is held against a shape, so that an edited or foreign file is named, with the key that is wrong.

A shape looks like the JSON that it describes:

- `bool`, `int`, `float` (also whole numbers), `str`, `list`, `dict`, `None`: a value of this type; `Any`: any value;
- `"text"`, `1`: this very value;
- `[shape]`: a list of such values;
- `{"name": shape, "other?": shape}`: an object with these keys alone, of which `other` may be missing;
- `{str: shape}`: an object with any keys; beside names, with any further ones;
- `(shape, shape)`: one of these, at most one list and one object among them.
"""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
    list: "a list",
    dict: "an object",
}


def read_json(path: Path, shape: Any = Any, role: str = "") -> Any:
    """
    The content of a JSON file, which has this shape.

    Raises `ValueError` that names the file, its `role` (what it is for), and the key where one is wrong; `OSError`
    where it cannot be read.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"), shape)
    except ValueError as error:
        raise ValueError(f"{path}{role and f', {role},'} is damaged or was changed: {error}.") from error


def parse_json(text: str, shape: Any = Any) -> Any:
    """As [`read_json`], of a text; the message begins with what is wrong."""
    try:
        content = json.loads(
            text, object_pairs_hook=unique_keys, parse_float=_number, parse_int=_number, parse_constant=_refuse
        )
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    check_json(content, shape)
    return content


def check_json(value: Any, shape: Any, key: str = "") -> None:
    """
    Raises `ValueError` that names the first key, such as `data.splits.test.samples`, whose value has another shape, is
    missing, or is unknown; `key` is that of the value itself, where it is a part of something.
    """
    shapes = shape if isinstance(shape, tuple) else (shape,)
    if any(_fits(value, one) for one in shapes):
        return
    inside = next((one for one in shapes if isinstance(one, list | dict) and type(one) is type(value)), None)
    if inside is None:
        wanted = " or ".join(map(_describe, shapes))
        raise ValueError(f"{_named(key)} must be {wanted}, got {_shown(value)}")
    if isinstance(inside, list):
        for number, part in enumerate(value):
            check_json(part, inside[0], f"{key}[{number}]")
        return
    parts = {name.removesuffix("?"): part for name, part in inside.items() if name is not str}
    if missing := sorted(name for name in parts if name in inside and name not in value):
        raise ValueError(f"{_named(_below(key, missing[0]))} is missing")
    for name, part in value.items():
        below = _below(key, name)
        if name not in parts and str not in inside:
            raise ValueError(f"{_named(below)} is unknown, known are {', '.join(sorted(parts))}")
        check_json(part, parts[name] if name in parts else inside[str], below)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that raises `ValueError` for an object with two values of one name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice!r} twice")
    return content


def _fits(value: Any, shape: Any) -> bool:
    """Of a shape without parts."""
    if isinstance(shape, str | int):
        return type(value) is type(shape) and value == shape  # 1 == True
    if shape is float:
        return type(value) in (int, float)
    return shape is Any or type(value) is (type(None) if shape is None else shape)


def _describe(shape: Any) -> str:
    return repr(shape) if isinstance(shape, str | int) else _NAMES[shape if isinstance(shape, type) else type(shape)]


def _named(key: str) -> str:
    return f"`{key}`" if key else "its content"


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _number(digits: str) -> int | float:
    number = float(digits) if {*digits} & {*".eE"} else int(digits)
    return number if abs(number) <= sys.float_info.max else _refuse(digits[:20])


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON can hold")
