"""What methods cannot do without, and a machine may lack: a run leaves such a method out, and says how to have it.

What no run can do without (weights, grounder, judges, dictionaries) is not of this kind: where it is missing, the run
is refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.methods.method import Method
from riebench.methods.text_index import no_text_index, text_index_path
from riebench.runs.setup import Setup
from sae_models import index


@dataclass(frozen=True)
class LeftOut:
    """A method that a run was asked for and goes without."""

    method: str
    """Its name in tables."""
    why: str
    """What is missing, and the command that gets it."""


def _text_index(backbone: Backbone, setup: Setup) -> UserError | None:
    """Returns the error of the first dictionary without a text index. Where a dictionary itself is missing, that is
    another error, which the plan raises."""
    for block in backbone.blocks:
        try:
            entry, root = setup.dictionary_of(backbone, block)
            fingerprint = index.fingerprint(entry, root=root)
        except UserError:
            return None
        if not text_index_path(fingerprint).is_file():
            return no_text_index(fingerprint, index_remedy(backbone, setup))
    return None


#: What a method may name in its `needs` -> (backbone, setup) -> the error where it is missing, None where it is there.
NEEDS: dict[str, Callable[[Backbone, Setup], UserError | None]] = {"text index": _text_index}


def missing_need(method: Method, backbone: Backbone, setup: Setup) -> UserError | None:
    """Returns the error that says what a method cannot do without and this machine has not, with the command that gets
    it; None where nothing is missing. Raises `UserError` where the method names a need that there is none of."""
    for name in getattr(method, "needs", ()):
        if name not in NEEDS:
            raise UserError(f"method {method.name!r} needs {name!r}", remedy=f"needs are out of {', '.join(NEEDS)}")
        if error := NEEDS[name](backbone, setup):
            return error
    return None


def leave_out(
    methods: Sequence[Method], backbone: Backbone, setup: Setup, wanted: Collection[str] = ()
) -> tuple[list[Method], list[LeftOut]]:
    """Returns (the methods that have all they need here, those that are left out).

    wanted: names of methods that the run cannot go without. Raises `UserError` where one of them would be left out, and
    where no method would be left that adds anything to a block.
    """
    errors = [missing_need(method, backbone, setup) for method in methods]
    pairs = list(zip(methods, errors, strict=True))
    kept = [method for method, error in pairs if not error]
    left_out = [LeftOut(method.name, str(error)) for method, error in pairs if error]
    edits = any(method.sites for method in kept)
    for method, error in pairs:
        if error and (method.name in wanted or not edits):
            raise error
    return kept, left_out


def index_remedy(backbone: Backbone, setup: Setup) -> str:
    """Returns what to do where the dictionaries of a backbone have no text index: the command that makes one."""
    name = backbone.name if backbone.name in BACKBONES.names() else backbone.dictionaries
    if name not in BACKBONES.names():
        return "call `riebench.dictionaries.text_index.index_text` with this backbone and these dictionaries"
    blocks = "" if set(backbone.blocks) <= set(BACKBONES.get(name).blocks) else ",".join(backbone.blocks)
    words = {"blocks": blocks, "dictionary": setup.dictionary, "dictionaries": setup.dictionaries, "site": setup.site}
    given = "".join(f" --{flag} {shlex.quote(value)}" for flag, value in words.items() if value)
    return f"run `riebench index-text --backbone {name}{given}`"
