"""What the fuzzers share: how much they try, how inputs are damaged, and what may become of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from riebench.core.errors import UserError

#: Fuzzer -> the least number of bad inputs that it has refused when it is done; how many it tries stands beside it.
LEAST = {
    "text": 45,
    "run files": 120,
    "run files, keys": 200,
    "edit files": 100,
    "edits": 300,
    "lists": 80,
    "prompts": 30,
    "settings": 80,
    "backbones": 60,
    "words": 50,
    "manifests": 40,
    "scores": 30,
    "entries": 45,
    "indices": 100,
    "checkpoints": 80,
    "text indices": 30,
    "pictures": 120,
}


class Tally:
    """Counts what a fuzzer's inputs came to."""

    def __init__(self, name: str) -> None:
        self.name, self.tried, self.bad = name, 0, 0
        self.kilobytes = getrusage(RUSAGE_SELF).ru_maxrss

    def refuses(self, call: Callable[[], object]) -> bool:
        """Returns whether a call refuses its input with words for the user; another exception goes through."""
        self.tried += 1
        try:
            call()
        except UserError as error:
            assert error.message.strip()
            self.bad += 1
            return True
        return False

    def check(self) -> None:
        """Fails where the fuzzer has grown blunt, and where an input took much memory."""
        print(f"{self.name}: {self.tried} tried, {self.bad} refused")  # shown by `pytest -s`
        assert self.bad >= LEAST[self.name]
        assert getrusage(RUSAGE_SELF).ru_maxrss - self.kilobytes < 2**20


def fuzz(examples: int) -> Callable:
    """Returns a decorator for a function with `given`: so many inputs, the same in every run."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


#: Text with what trips programs: marks, ends of lines, half characters, controls, formulas, other scripts.
ODD = [
    "\ufeff",
    "\r",
    "\n",
    "\0",
    "\ud800",
    "\udfff",
    "\x1b[2J",
    "\u202e",
    "=1",
    "🦁",
    "é",
    '"',
    "'",
    ";",
    ",",
    "[",
    "{",
    ":",
]
odd_text = st.lists(st.sampled_from(ODD) | st.text(max_size=3), max_size=6).map("".join)

#: Values that JSON and YAML can hold and that hardly any setting may have.
odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | odd_text
    | st.sampled_from([10**40, -1, 2**63, 1e308, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Bytes of a file that were cut, overwritten, doubled, or had others put between them."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        how = draw(st.sampled_from(("cut", "overwrite", "insert", "double", "drop")))
        put = draw(st.binary(max_size=6) | odd_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
        data = {
            "cut": data[:start],
            "overwrite": data[:start] + put + data[start + len(put) :],
            "insert": data[:start] + put + data[start:],
            "double": data[:end] + data[start:],
            "drop": data[:start] + data[end:],
        }[how]
    return data


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    """The places of all values within a JSON value, those of objects and lists too, but for its own."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in pairs for place in ((*path, key), *leaves(part, (*path, key)))]


def at(value, path):
    for key in path:
        value = value[key]
    return value


@st.composite
def changed(draw, value: dict, places: list[tuple], keeps: Callable[[tuple, object], bool] = lambda *_: False) -> dict:
    """A copy of a JSON object in which one value at one of the places is another, or is gone."""
    value = json.loads(json.dumps(value))
    path = draw(st.sampled_from(places))
    inside, key = at(value, path[:-1]), path[-1]
    if draw(st.booleans()) and draw(st.booleans()):
        del inside[key]
    else:
        old = inside[key]
        inside[key] = draw(odd_values.filter(lambda new: repr(new) != repr(old) and not keeps(path, new)))
    return value


def written(value: object) -> bytes:
    """JSON as a careless program writes it: with NaN, and with half characters as escapes."""
    return json.dumps(value).encode()
