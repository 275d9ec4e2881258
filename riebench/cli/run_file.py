"""The page on run files, `docs/run-file.md`, of the dataclasses: `python -m riebench.cli.run_file`."""

from __future__ import annotations

import dataclasses
from typing import Any

from baselines import METHODS
from riebench.backbones.own import KEYS
from riebench.cli.flags import field_docs
from riebench.core.values import allowed, field_kinds
from riebench.methods.transport import Transport
from riebench.runs.config import MethodConfig, RunConfig, setting_kinds

HEAD = """# A run file

`riebench run my-run.yaml` does what the file says; a key that it leaves out has its default. Paths in it are relative
to it. The flags of `riebench run` stand in the place of its values, and so do keyword arguments of `riebench.run`,
which takes the same keys as a dictionary. A key that is not known, or a value that it cannot have, is refused before
anything is loaded.

```yaml
backbone: tinyworld-turbo@1
categories: [change_colour]
edits_per_category: 2
seeds: [42]
methods:
  - noop
  - {name: sae, k: 32, strength: [0.5, 1]}           # two methods: a list of strengths is one method each
  - {name: sae, label: sae-first, k: 32, pool: all}  # a second setting of a method wants a label
subsets_of: [sae]
```

This page is made by `python -m riebench.cli.run_file` from the dataclasses that read the file; a test holds it to them.
"""


def page() -> str:
    """Returns the page, as markdown."""
    kinds = field_kinds(RunConfig)
    keys = [(one, kinds[one.name]) for one in dataclasses.fields(RunConfig)]
    parts = [HEAD, "## Keys", _table(RunConfig, keys), "## A backbone of one's own: the keys of `backbone`"]
    rows = [f"| `{key}` | {_cell(remedy)} |" for key, (_, remedy) in KEYS.items()]
    parts.append("\n".join(("| key | what to write |", "|---|---|", *rows)))
    shared = [one.name for one in dataclasses.fields(Transport)]
    parts += [
        "## Methods",
        "`name` is one of `riebench ls methods`, `label` its name in tables; other keys are settings of the method.",
        "### What all methods that move features have",
        _settings(Transport, shared, field_kinds(Transport)),
    ]
    for name in METHODS.names():
        method, kinds = METHODS.get(name), setting_kinds(name) or {}
        own = [key for key in kinds if not (issubclass(method, Transport) and _same(method, key))]
        if own:
            moves = ", beside those above" if issubclass(method, Transport) else ""
            parts += [f"### `{name}`{moves}", _settings(method, own, kinds)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _same(method: type, key: str) -> bool:
    """Returns whether a setting is that of `Transport`, with its default."""
    shared = {one.name: one.default for one in dataclasses.fields(Transport)}
    own = {one.name: one.default for one in dataclasses.fields(method)}
    return key in shared and shared[key] == own[key]


def _settings(method: type, names: list[str], kinds: dict[str, Any]) -> str:
    return _table(method, [(one, kinds[one.name]) for one in dataclasses.fields(method) if one.name in names])


def _table(owner: type, fields: list[tuple[dataclasses.Field, Any]]) -> str:
    docs = field_docs(owner)
    rows = [
        " | ".join(
            (
                f"| `{one.name}`",
                _cell(_allowed(one.name, kind)),
                _cell(_default(one)),
                f"{_cell(docs.get(one.name, ''))} |",
            )
        )
        for one, kind in fields
    ]
    return "\n".join(("| key | value | default | what it is |", "|---|---|---|---|", *rows))


def _allowed(name: str, kind: Any) -> str:
    return "a list of methods" if name == "methods" else allowed(kind)


def _default(one: dataclasses.Field) -> str:
    value = one.default
    if value is dataclasses.MISSING:
        return "must be given"
    if value in ("", (), None):
        return ""
    if isinstance(value, tuple):
        value = ", ".join(item.name if isinstance(item, MethodConfig) else str(item) for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
