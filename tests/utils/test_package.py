"""What an installed package holds."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import fl_i2moe

PACKAGE = Path(fl_i2moe.__file__).parent


def test_a_wheel_holds_every_file():
    """Files that are not Python have to be named. Without its templates an installed package writes no page or card."""
    pyproject = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = pyproject["tool"]["setuptools"]["package-data"]["fl_i2moe"]
    others = [file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]

    assert [file.name for file in others if file.suffix == ".jinja"]
    for file in others:
        assert any(fnmatch(file.relative_to(PACKAGE).as_posix(), pattern) for pattern in patterns), file


def test_every_folder_is_a_package():
    for folder in {file.parent for file in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), folder
