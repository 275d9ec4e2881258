"""The command line: one file a family of verbs. Each verb parses its words, calls one function and prints; nothing
here imports torch or pandas before a verb that needs it is run."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from riebench.cli import dictionaries, edits, leaderboard, listing, runs, selftest, weights, world
from riebench.cli.flags import Verb
from riebench.core.errors import UserError

FAMILIES = (runs, weights, selftest, edits, leaderboard, listing, dictionaries, world)
VERBS: tuple[Verb, ...] = tuple(verb for family in FAMILIES for verb in family.VERBS)
#: Words that stand before verbs of their own.
GROUPS = {world.NAME: world.SUMMARY}


def main(argv: list[str] | None = None) -> int:
    """Runs a verb and returns the exit status, which is 1 where the doctor finds that something is missing, the
    self-test that something is wrong, or a method of a run has no valid case. A user's error is one line on stderr and
    2; Ctrl-C is 130."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.verb.run(arguments)
    except UserError as error:
        print(f"riebench: {' '.join(str(error).split())}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # as by `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stopped:
        print(f"riebench: {str(stopped) or 'stopped'}", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs."""
    parser = argparse.ArgumentParser(
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


class _VerbParser(argparse.ArgumentParser):
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
