"""
From dataclasses of options to one command line, in which an objective's own options replace defaults, a preset replaces
both, and what the user writes replaces the preset.
"""

import os
import re
import sys
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

from transformers import HfArgumentParser

from ..model.configuration_fl_i2moe import check_given, check_options
from ..utils.machine import tell_launcher
from .arguments import EncodingArguments, training_defaults


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        tell_launcher(f"error: {message}")
        super().error(message)


class _Collect(Action):
    """`--image front --image back` is `--image front back`."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        earlier = getattr(namespace, self.dest)
        is_first = earlier is None or earlier is self.default
        setattr(namespace, self.dest, [*([] if is_first else earlier), *values])


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """The description as it is written; one spelling of each option, and its default where it has one."""

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy(action)
        shown.option_strings = [x for x in action.option_strings if "-" not in x.lstrip("-")]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: Action) -> str | None:
        if action.option_strings and action.option_strings[0] == f"--no_{action.dest}":
            return f"Not --{action.dest}."
        if action.required:
            return f"{action.help} (required)"
        if action.default is None or action.default == []:
            return action.help
        return super()._get_help_string(action)


def parse_arguments(
    types: Sequence[type],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    default_preset: Callable[[Namespace], str] | None = None,
    description: str | None = None,
    arguments: Sequence[str] | None = None,
) -> tuple:
    """
    Reads the command line into one instance of each dataclass in `types`.

    Args:
        types: dataclasses whose fields become options.
        presets: name → option → value; `--preset` chooses among them.
        default_preset: names the preset that holds where none is given, from the arguments parsed without one; the
            first one if not given.
        description: what the job does, for `--help`.
        arguments: the command line; `sys.argv` if not given.

    Returns:
        The instances, in the order of `types`. Wrong values end the program with a message, as argparse does.
    """
    usage = "%(prog)s [options]"  # argparse would list a hundred of them in front of every message
    shown: Any = [_for_parser(kind) for kind in types]
    parser = _Parser(shown, description=description, usage=usage, formatter_class=HelpFormatter)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    before_help = ArgumentParser(usage=usage, add_help=False)
    preset: Mapping[str, Any] = {}
    if presets:
        choices: dict[str, Any] = {
            "choices": list(presets),
            "help": "Set of defaults to start from; with --help, it is shown.",
        }
        for one in (parser, before_help):
            one.add_argument("--preset", **choices)
        name = before_help.parse_known_args(arguments)[0].preset
        if name is None:
            name = default_preset(parser.parse_args(arguments)) if default_preset else next(iter(presets))
        preset = presets[name]
        parser.set_defaults(**preset)
    known = {x.dest for x in parser._actions}
    for name in known & {"objective", "architecture", "regulariser"}:
        before_help.add_argument(f"--{name}", default=parser.get_default(name))
    by_model = training_defaults(vars(before_help.parse_known_args(arguments)[0]))
    parser.set_defaults(**{name: x for name, x in by_model.items() if name in known and name not in preset})
    namespace = parser.parse_args(arguments)
    # argparse leaves alone what a namespace has already, unless the command line says otherwise
    unset = Namespace(**dict.fromkeys(vars(namespace)))
    given = frozenset(name for name, value in vars(parser.parse_args(arguments, unset)).items() if value is not None)
    parts = _instances(parser, types, namespace)
    for part in parts:
        if isinstance(part, EncodingArguments):
            part.given = given  # type: ignore[misc]  # a field would be an option
    return tuple(parts)


def parse_command(
    commands: Mapping[str, type], description: str, arguments: Sequence[str] | None = None
) -> tuple[str, Any]:
    """
    Reads a command line whose first word is one of `commands`: word → dataclass, whose fields become its options, and
    whose docstring its help. Returns the word and the instance; otherwise as [`parse_arguments`].
    """
    parser = ArgumentParser(description=description, formatter_class=HelpFormatter)
    words = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    parsers = {}
    for word, kind in commands.items():
        texts: dict[str, Any] = {"description": kind.__doc__, "help": kind.__doc__, "formatter_class": HelpFormatter}
        parsers[word] = words.add_parser(word, dataclass_types=_for_parser(kind), **texts)
    namespace = parser.parse_args(arguments)
    word = namespace.command
    [instance] = _instances(parsers[word], [commands[word]], namespace)
    return word, instance


def given_path(text: str) -> Path:
    """A path of a command line that has no dataclass, as argparse's `type`."""
    try:
        check_given("path", text)
        return Path(_from_home("path", text))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _for_parser(kind: type) -> type:
    """
    A dataclass as `HfArgumentParser` takes it: all metadata go to argparse, which knows no bounds; choices are a type,
    a number has one type, and a list that is `repeatable` may be given in parts. What it inherits comes last.
    """
    hints, shown = get_type_hints(kind), []
    own = kind.__annotations__
    for item in sorted(fields(kind), key=lambda item: item.name not in own):
        hint = hints[item.name]
        if choices := item.metadata.get("choices"):
            hint = Literal[choices]
        elif hint == float | int:
            hint = float
        kept: dict[str, Any] = {"default": item.default, "default_factory": item.default_factory}
        metadata = {"help": item.metadata["help"]}
        if item.metadata.get("repeatable"):
            metadata["action"] = _Collect
        shown.append((item.name, hint, field(**kept, metadata=metadata)))
    heading = re.split("[.;]", kind.__doc__ or "")[0]
    return make_dataclass(kind.__name__, shown, kw_only=True, namespace={"_argument_group_name": heading})


def _instances(parser: ArgumentParser, types: Sequence[type], namespace: Namespace) -> list[Any]:
    parts = []
    try:
        for kind in types:
            for item in fields(kind):
                setattr(namespace, item.name, _from_home(item.name, getattr(namespace, item.name)))
            check_options(namespace, kind)  # before anything is done with them
            parts.append(kind(**{item.name: getattr(namespace, item.name) for item in fields(kind)}))
    except ValueError as error:
        parser.error(str(error))
    return parts


def _from_home(name: str, value: Any) -> Any:
    """A path that begins with `~`, which shells leave alone behind an equals sign, with the home folder instead."""
    if isinstance(value, list):
        return [_from_home(name, entry) for entry in value]
    if not isinstance(value, str) or not re.match("~[^/]*/|~$", value):
        return value
    if (path := os.path.expanduser(value)) == value:
        raise ValueError(f"`{name}` {value} begins with a home folder that is not known: write it out.")
    return path
