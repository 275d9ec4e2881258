"""YAML is read here, strictly: a key stands once and is text, and what would take all memory or no end is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from riebench.core.text import refuse_half_characters

T = TypeVar("T")

DEEPEST = 100
MOST_NODES = 1_000_000  # of a document, each counted as often as it is named by an alias
#: What PyYAML raises for a scalar that is not what its tag says, beside `yaml.YAMLError` and `ValueError`.
_FAULTS = (LookupError, AttributeError, TypeError, ArithmeticError)


class YamlError(ValueError):
    """An error of a YAML text. `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Shallow(yaml.composer.Composer):
    """A loader's part that refuses what is nested more than `DEEPEST` times, for which it would need minutes."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise YamlError(f"it is nested more than {DEEPEST} times", self.peek_event().start_mark.line + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class TextLoader(_Shallow, yaml.BaseLoader):
    """YAML in which every scalar is text."""


class _Loader(_Shallow, yaml.SafeLoader):
    """YAML in which a key is text: `on`, a setting of `chosen`, is true in YAML 1.1. A whole number is what it looks
    like: 010 and 1:30, which YAML 1.1 reads as 8 and 90, are text."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if not key.tag.endswith(":merge"):
                key.tag = "tag:yaml.org,2002:str"
        return node


_INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != _INT]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def load_yaml(text: str) -> Any:
    """Returns the plain values of a YAML document. Raises `YamlError` for what is no YAML, a key that stands twice or
    is no text, aliases that multiply or hold themselves, what is nested too deeply, and half a character."""

    def read(loader: yaml.SafeLoader, node: yaml.Node | None) -> Any:
        for one in _nodes(node):
            for key in repeated_keys(one) if isinstance(one, yaml.MappingNode) else ():
                raise YamlError(f"{key.value!r} stands twice", key.start_mark.line + 1)
        return None if node is None else loader.construct_document(node)

    return with_yaml(text, _Loader, read)


def with_yaml(text: str, kind: Callable[[str], Any], read: Callable[[Any, yaml.Node | None], T]) -> T:
    """Returns what `read` makes of a loader of that kind and of the root of the document in `text`, which is None where
    that is empty. Raises `YamlError` as `load_yaml` does, but for repeated keys."""
    try:
        loader = kind(text)
        node = loader.get_single_node()
        _refuse_expansion(node)
        found = read(loader, node)
        if "\\" in text:  # only an escape makes half a character
            refuse_half_characters([one.value for one in _nodes(node) if isinstance(one, yaml.ScalarNode)])
        return found
    except YamlError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise YamlError(" ".join(str(said).split()), mark.line + 1 if mark else _line_of(text, error)) from error
    except ValueError as error:
        raise YamlError(str(error), 1) from error
    except _FAULTS as error:
        raise YamlError("a value is not what its tag says", 1) from error


def repeated_keys(node: yaml.MappingNode) -> list[yaml.ScalarNode]:
    """Returns the keys of a mapping that one before them says too."""
    names = [str(key.value) for key, _ in node.value]
    return [key for place, (key, _) in enumerate(node.value) if names[place] in names[:place]]


def _line_of(text: str, error: yaml.YAMLError) -> int:
    """Returns the line of a character that YAML cannot hold."""
    place = getattr(error, "position", 0)
    return text.count("\n", 0, place if isinstance(place, int) else 0) + 1


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _nodes(node: yaml.Node | None) -> list[yaml.Node]:
    """Returns the node and all below it, each once."""
    found = {} if node is None else {id(node): node}
    waiting = list(found.values())
    while waiting:
        for part in _parts(waiting.pop()):
            if id(part) not in found:
                found[id(part)] = part
                waiting.append(part)
    return list(found.values())


def _refuse_expansion(node: yaml.Node | None) -> None:
    """Raises `YamlError` where a node holds itself, or where values, each counted as often as it is named, would be
    more than `MOST_NODES`."""
    sizes: dict[int, int] = {}

    def size(of: yaml.Node) -> int:
        if id(of) not in sizes:
            sizes[id(of)] = 0  # while it is looked at
            sizes[id(of)] = 1 + sum(map(size, _parts(of)))
        if not sizes[id(of)]:
            raise YamlError("an alias names what it stands in", of.start_mark.line + 1)
        return sizes[id(of)]

    if node is not None and size(node) > MOST_NODES:
        raise YamlError(f"its aliases make more than {MOST_NODES} values of it", 1)
