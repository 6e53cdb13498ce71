"""JSON that is held against a type, so that an edited or foreign file is named, with the key that is wrong."""

import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints, is_typeddict

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
    list: "a list",
    dict: "an object",
}


def read_checked(path: Path, kind: Any) -> Any:
    """
    The content of a JSON file, which is of the type `kind`, see [`check_json`].

    Raises `ValueError` that names the file, and the key where one is wrong; `OSError` where it cannot be read.
    """
    try:
        return parse_checked(path.read_text(encoding="utf-8"), kind)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or was changed: {error}.") from error


def parse_checked(text: str, kind: Any) -> Any:
    """As [`read_checked`], of a text in JSON; the message begins with what is wrong."""
    try:
        content = json.loads(
            text, object_pairs_hook=_object, parse_float=_number, parse_int=_number, parse_constant=_refuse
        )
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    check_json(content, kind)
    return content


def check_json(value: Any, kind: Any, key: str = "") -> None:
    """
    Raises `ValueError` that names the first key, such as `data.splits.test.samples`, whose value is not of its type, is
    missing, or is unknown.

    Args:
        value: what `json.loads` gave.
        kind: `bool`, `int`, `float` (also whole numbers), `str`, `None`, `list[…]`, `dict[str, …]`, `Any`, a `Literal`,
            a union, or a `TypedDict`, whose keys are all there are.
        key: of the value, where it is a part of something.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (Union, UnionType):
        _check_union(value, arguments, key)
    elif origin is Literal:
        # 1 == True
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise ValueError(f"{_named(key)} must be {' or '.join(map(repr, arguments))}, got {_shown(value)}")
    elif is_typeddict(kind):
        _check_type(value, dict, key)
        types = _types(kind)
        if missing := sorted(kind.__required_keys__ - value.keys()):
            raise ValueError(f"{_named(_below(key, missing[0]))} is missing")
        if unknown := [name for name in value if name not in types]:
            raise ValueError(f"{_named(_below(key, unknown[0]))} is unknown, known are {', '.join(sorted(types))}")
        for name, part in value.items():
            check_json(part, types[name], _below(key, name))
    elif origin is list:
        _check_type(value, list, key)
        for number, part in enumerate(value):
            check_json(part, arguments[0], f"{key}[{number}]")
    elif origin is dict:
        _check_type(value, dict, key)
        for name, part in value.items():
            check_json(part, arguments[1], _below(key, name))
    else:
        _check_type(value, kind or NoneType, key)


_types = lru_cache(get_type_hints)


def _check_union(value: Any, kinds: tuple[Any, ...], key: str) -> None:
    """The message is that of the alternative which the value is nearest to: of an object what is wrong inside it."""
    simple = [kind or NoneType for kind in kinds if kind in _NAMES or kind is None]
    if type(value) in simple or (type(value) is int and float in simple):
        return
    others = [kind for kind in kinds if (kind or NoneType) not in simple]
    if not others or value is None:
        wanted = " or ".join([*(_NAMES[kind] for kind in simple), *map(_name_of, others)])
        raise ValueError(f"{_named(key)} must be {wanted}, got {_shown(value)}")
    errors = []
    for kind in others:
        try:
            return check_json(value, kind, key)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _check_type(value: Any, kind: type, key: str) -> None:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{_named(key)} must be {_NAMES[kind]}, got {_shown(value)}")


def _name_of(kind: Any) -> str:
    return _NAMES[dict if is_typeddict(kind) else get_origin(kind) or kind]


def _named(key: str) -> str:
    return f"`{key}`" if key else "its content"


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{twice}` is there twice")
    return content


def _number(digits: str) -> int | float:
    number = float(digits) if {*digits} & {*".eE"} else int(digits)
    return number if abs(number) <= sys.float_info.max else _refuse(digits[:20])


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON can hold")
