"""Flags that are derived from the dataclass they fill: the name, type, default and docstring of each field."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.core.values import check_value

EXAMPLES = {str: "a,b", int: "4,8,16", float: "0.1,0.4"}


@dataclass(frozen=True)
class Verb:
    """Describes a verb of the command line. Its flags are the fields of the dataclass `words`, an instance of which
    `do` is called with; what that returns is the exit status, None being 0.

    examples: two command lines that its help shows. overrides: a dataclass and the names of some of its fields that
    are flags too; a mapping of those that were given is the second argument of `do`.
    """

    name: str
    summary: str
    words: type
    do: Callable[..., int | None]
    examples: tuple[str, str]
    overrides: tuple[type, tuple[str, ...]] | None = None

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the verb to its parser."""
        add_flags(parser, self.words)
        if self.overrides:
            add_flags(parser, *self.overrides, title="settings of the run, in the place of those in its file")

    def run(self, arguments: argparse.Namespace) -> int:
        """Does what the verb does with the words that were given, and returns the exit status. Raises `UserError` as
        that does."""
        overrides = [read_flags(arguments, *self.overrides)] if self.overrides else []
        return self.do(self.words(**read_flags(arguments, self.words)), *overrides) or 0


def word(
    default: Any = MISSING, *, positional: bool = False, flag: str = "", repeat: bool = False, metavar: str = ""
) -> Any:
    """Returns a field whose word differs from what its annotation says. positional: given without a flag. flag: another
    name than the field's. repeat: the items of a tuple are given one by one, not with commas between."""
    metadata = {"positional": positional, "flag": flag, "repeat": repeat, "metavar": metavar}
    return field(default=default, metadata={key: value for key, value in metadata.items() if value})


def add_flags(parser: argparse.ArgumentParser, settings: type, only: Sequence[str] = (), title: str = "") -> None:
    """Adds a flag for each field of a dataclass.

    A field without a default must be given, a bool is a switch, a tuple is a list with commas between, and a `Path` may
    begin with `~`. only: the fields that are flags, whose defaults lie elsewhere; title: what these stand under in the
    help. The metadata of a field may hold what `word` takes, and the `group` that its flag stands under.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for one, kind, many in _fields(settings, only):
        how, required = one.metadata, one.default is MISSING
        name = _flag(one)
        options = {"default": argparse.SUPPRESS, "help": _help(settings, one, shows_default=not only)}
        if kind is bool:
            options["action"] = "store_true"
        else:
            options["metavar"] = how.get("metavar") or (
                one.name if how.get("positional") else name.upper().replace("-", "_")
            )
        group = how.get("group", title)
        if group and group not in groups:
            groups[group] = parser.add_argument_group(group)
        place = groups.get(group, parser)
        if how.get("positional"):
            nargs = {"nargs": "+" if required else "*"} if many else {}
            place.add_argument(one.name, **options, **nargs)
        else:
            action = {"action": "append"} if how.get("repeat") else {}
            place.add_argument(f"--{name}", dest=one.name, required=required, **options, **action)


def read_flags(arguments: argparse.Namespace, settings: type, only: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields that were given, with lists as tuples. Raises `UserError` for what their annotations do not
    allow."""
    given, hints = {}, get_type_hints(settings, include_extras=True)
    for one, kind, many in _fields(settings, only):
        if not hasattr(arguments, one.name):
            continue
        value, flag = getattr(arguments, one.name), one.name if one.metadata.get("positional") else f"--{_flag(one)}"
        if isinstance(value, str):
            value = _items(value, flag, kind) if many else _read(value, flag, kind)
        elif isinstance(value, list):
            value = tuple(_read(item, flag, kind) for item in value)
        given[one.name] = check_value(flag, value, hints[one.name])
    return given


@cache
def field_docs(settings: type) -> dict[str, str]:
    """Returns the docstring under each field of a dataclass, its own and those that it inherits."""
    found: dict[str, str] = {}
    for base in reversed([base for base in settings.__mro__ if dataclasses.is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def _fields(settings: type, only: Sequence[str]):
    """Yields (field, type of a value or of an item, whether it is a tuple)."""
    hints = get_type_hints(settings, include_extras=True)
    for one in dataclasses.fields(settings):
        if not only or one.name in only:
            yield one, *_type(hints[one.name])


def _flag(one: dataclasses.Field) -> str:
    return one.metadata.get("flag", one.name).replace("_", "-")


def _type(hint: Any) -> tuple[type, bool]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _type(parts[0])[0], True
    if origin is Literal:
        return str, False
    return _type(parts[0]) if origin in (Annotated, Union, types.UnionType) else (hint, False)


def _help(settings: type, one: dataclasses.Field, *, shows_default: bool) -> str:
    text = field_docs(settings).get(one.name, "").replace("`", "").rstrip(".")
    if shows_default and one.default and one.default is not MISSING and "(default" not in text:
        default = ",".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        text += f" (default: {default})"
    return text.replace("%", "%%")


def _read(text: str, flag: str, kind: type) -> Any:
    """Returns the word after a flag as its kind has it; text that is no such number stays text, which is refused later.
    Raises `UserError` for an empty word, as of a variable that is not set."""
    if not text.strip():
        raise UserError(f"{flag} is empty", remedy="leave it out, or say what it is")
    try:
        return named_path(text) if kind is Path else kind(text) if kind in (int, float) else text
    except UserError as error:
        raise UserError(f"{flag}: {error.message}", remedy=error.remedy) from error
    except ValueError:
        return text


def _items(text: str, flag: str, kind: type) -> tuple:
    """Returns the items of a list with commas between. Raises `UserError` for none, for what is no such number, and for
    one that stands twice."""
    is_number = kind in (int, float)
    words = text.split(",") if is_number else [word for word in text.split(",") if word]
    try:
        items = tuple(map(kind, words)) if is_number else tuple(words)
    except ValueError as error:
        remedy = f"give numbers with commas between, as {EXAMPLES[kind]}"
        raise UserError(f"{flag} is {text!r}", remedy=remedy) from error
    if not items:
        raise UserError(f"{flag} is empty", remedy="leave it out, or give some, with commas between")
    for item in items:
        if items.count(item) > 1:
            raise UserError(f"{flag} holds {item} twice", remedy="give each once")
    return items
