"""The command line: one file a family of verbs. Each verb parses its words, calls one function and prints; nothing
here imports torch or pandas before a verb that needs it is run."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from riebench.cli import dictionaries, edits, leaderboard, listing, runs, selftest, weights, world
from riebench.cli.flags import Verb
from riebench.core.errors import UserError, shown
from riebench.core.text import one_line

FAMILIES = (runs, weights, selftest, edits, leaderboard, listing, dictionaries, world)
VERBS: tuple[Verb, ...] = tuple(verb for family in FAMILIES for verb in family.VERBS)
#: Words that stand before verbs of their own.
GROUPS = {world.NAME: world.SUMMARY}


def main(argv: list[str] | None = None) -> int:
    """Runs a verb and returns the exit status, which is 1 where the doctor finds that something is missing, or the
    self-test that something is wrong. A user's error, and one of the machine's files, is one line on stderr and 2;
    Ctrl-C is 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal's encoding cannot show
    try:
        with _flushed():
            _refuse_half_words(sys.argv[1:] if argv is None else argv)
            arguments = build_parser().parse_args(argv)
            return arguments.verb.run(arguments)
    except UserError as error:
        return _say(error)
    except BrokenPipeError:  # as by `| head`: nobody reads on
        _discard_output()
        return 1
    except OSError as error:
        _discard_output()
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        return _say(f"{said} -> check the path, and that there is room and leave to write")
    except KeyboardInterrupt as stopped:
        _say(str(stopped) or "stopped")
        return 130


def _say(words: object) -> int:
    """Prints a line on stderr, and returns the exit status of an error."""
    print(f"riebench: {one_line(' '.join(str(words).split()))}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Writes out what was printed in here, also by the parser's help, so that a full disk is an error as any other."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _discard_output() -> None:
    """Leads what is still to be printed to nowhere: the interpreter would fail on it again at its end."""
    with contextlib.suppress(OSError, ValueError):  # a test's stream has no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_half_words(words: Sequence[str]) -> None:
    """Raises `UserError` for a word of the command line that is no text in UTF-8, which no file could hold."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{shown(word)} is no text in UTF-8", remedy="rename it, or write it in UTF-8") from error


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs."""
    parser = _Parser(
        prog="riebench", description="Benchmark of representation-based image editing in diffusion models."
    )
    places = {"": parser.add_subparsers(required=True, metavar="verb", parser_class=_VerbParser)}
    for verb in VERBS:
        group, _, name = verb.name.rpartition(" ")
        if group not in places:
            examples = [each.examples[0] for each in VERBS if each.name.startswith(f"{group} ")][:2]
            within = _add(places[""], group, GROUPS[group], examples)
            places[group] = within.add_subparsers(required=True, metavar="verb", parser_class=_VerbParser)
        _add(places[group], name, verb.summary, verb.examples, verb=verb)
    return parser


def _add(place, name: str, summary: str, examples, **options: Any) -> _VerbParser:
    return place.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join(("examples:", *(f"  {line}" for line in examples))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


class _Parser(argparse.ArgumentParser):
    """Says so where its help cannot be written, which argparse keeps to itself, and shows what was given in a line."""

    def _print_message(self, message: str, file=None) -> None:
        (file or sys.stderr).write(message or "")

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


class _VerbParser(_Parser):
    """Takes the flags of its verb when it is first used, so that no other verb costs time."""

    def __init__(self, *args: Any, verb: Verb | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._verb = verb

    def parse_known_args(self, args=None, namespace=None):
        if self._verb is not None:
            self._verb.add_flags(self)
            self.set_defaults(verb=self._verb)
            self._verb = None
        return super().parse_known_args(args, namespace)
