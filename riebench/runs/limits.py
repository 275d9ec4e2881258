"""What a method of a run cannot do on its backbone and with its dictionaries, said before anything is generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError, shown
from riebench.generation.interventions import window_steps
from riebench.methods.method import Method, uses_sae
from riebench.methods.modes import Mode
from riebench.methods.transport import Transport
from riebench.runs.setup import Setup


def refuse_impossible(method: Method, backbone: Backbone, setup: Setup) -> None:
    """Raises `UserError` for a window that the backbone's steps have not, a branch that it has not, and features that
    its dictionaries have not, of a method that uses them (`uses_sae`). Where there is no dictionary, that is
    another error, which the plan raises."""
    window, branch = getattr(method, "window", "all"), getattr(method, "branch", "both")
    with _named(method):
        if isinstance(window, str):
            window_steps(window, backbone.steps)
        if branch not in ("both", *backbone.branches):
            known = " or ".join(("both", *backbone.branches))
            raise UserError(f"{backbone.name} has no branch {branch!r}", remedy=f"use {known}")
    if not uses_sae(method):
        return
    try:
        entries = {block: setup.dictionary_of(backbone, block)[0] for block in backbone.blocks}
    except UserError:
        return
    features = {block: entry.num_features for block, entry in entries.items()}
    refuse_many(method, features, setup.rules)
    if hasattr(method, "refuse"):
        with _named(method):
            method.refuse(features)


def refuse_many(method: Method, features: Mapping[str, int], mode: Mode) -> None:
    """Raises `UserError` where a method is to turn on more than half of the features that there are, and as many off:
    the same would go on and off. features: block -> how many there are to choose from."""
    if not isinstance(method, Transport) or not hasattr(method, "k"):
        return
    together = (method.pool or mode.pool) == "all"
    places = {"all blocks together": sum(features.values())} if together else features
    for place, count in places.items():
        if method.k > count // 2:
            with _named(method):
                raise UserError(
                    f"k is {shown(method.k)}, and {place} has {count} features", remedy=f"use k of at most {count // 2}"
                )


@contextmanager
def _named(method: Method) -> Iterator[None]:
    """Puts the method's name before the message of an error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"method {method.name!r}: {error.message}", remedy=error.remedy) from error
