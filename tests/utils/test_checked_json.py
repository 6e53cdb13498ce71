"""JSON held against a shape: what fits is given as it is; of what does not, the message names file and key."""

import json
import re
from typing import Any

import pytest

from fl_i2moe.utils.checked_json import read_json

PART = {"size": int, "share?": float}
SHAPE = {
    "name": str,
    "task": ("a", "b"),
    "parts": {str: PART},
    "grid": ([int], None),
    "about": dict,
    "seen?": bool,
    "level?": (int, str),
    "inner?": (PART, None),
    "format?": 1,
    "open?": {"size": int, str: Any},
}
GOOD = {"name": "x", "task": "a", "parts": {"p": {"size": 1, "share": 2}}, "grid": [1, 2], "about": {"any": [None]}}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"grid": None},
        {"seen": False},
        {"level": "x"},
        {"level": 1},
        {"format": 1},
        {"inner": None},
        {"open": {"size": 1, "x": []}},
    ],
)
def test_what_fits_is_given_as_it_is(tmp_path, more):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(GOOD | more), encoding="utf-8")
    assert read_json(file, SHAPE) == GOOD | more


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD | {"name": 1}, "`name` must be a text, got 1"),
        (GOOD | {"name": "x", "task": "c"}, "`task` must be 'a' or 'b', got \"c\""),
        (GOOD | {"parts": []}, "`parts` must be an object, got []"),
        (GOOD | {"parts": {"p": {"size": True}}}, "`parts.p.size` must be a whole number, got true"),
        (GOOD | {"parts": {"p": {"size": 1.0}}}, "`parts.p.size` must be a whole number, got 1.0"),
        (GOOD | {"parts": {"p": {"size": 1, "share": "1"}}}, '`parts.p.share` must be a number, got "1"'),
        (GOOD | {"parts": {"p": {}}}, "`parts.p.size` is missing"),
        (GOOD | {"parts": {"p": {"size": 1, "sise": 1}}}, "`parts.p.sise` is unknown, known are share, size"),
        (GOOD | {"grid": [1, None]}, "`grid[1]` must be a whole number, got null"),
        (GOOD | {"grid": {}}, "`grid` must be a list or null, got {}"),
        (GOOD | {"seen": 0}, "`seen` must be true or false, got 0"),
        (GOOD | {"level": 1.5}, "`level` must be a whole number or a text, got 1.5"),
        (GOOD | {"format": 2}, "`format` must be 1, got 2"),
        (GOOD | {"format": True}, "`format` must be 1, got true"),
        (GOOD | {"inner": {"size": None}}, "`inner.size` must be a whole number, got null"),
        (GOOD | {"open": {"size": "1", "x": []}}, '`open.size` must be a whole number, got "1"'),
        (GOOD | {"open": {"x": []}}, "`open.size` is missing"),
        ({"name": "x"}, "`about` is missing"),
        ([], "its content must be an object, got []"),
        (None, "its content must be an object, got null"),
        (GOOD | {"name": ["x" * 100]}, f'`name` must be a text, got ["{"x" * 77}…'),
        (b"", "Expecting value"),
        (b"\xff", "can't decode byte"),
        (b"\x00" * 8, "Expecting value"),
        (b'{"name": 1, "name": 2}', "it has 'name' twice"),
        (b'{"name": NaN}', "NaN is no number that JSON can hold"),
        (b'{"name": -1e400}', "-1e400 is no number that JSON can hold"),
        ('{"name": "x"}'.encode("utf-16"), "can't decode byte"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"name": "x"} {}', "Extra data"),
        (b'{"name": "x",}', "property name"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"name": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_what_does_not_is_named_with_its_key(tmp_path, content, reason):
    file = tmp_path / "x.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{file} is damaged or was changed: ')}.*{re.escape(reason)}"):
        read_json(file, SHAPE)
