"""Networks of other libraries out of folders, each tensor of them: what a folder lacks is refused, not made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from riebench.core.errors import UserError
from riebench.core.memory import is_out_of_memory

SHOWN = 3  # names of tensors in an error


class Incomplete(ValueError):
    """An error of weights that do not fill their network."""


@contextmanager
def fetched(name: str, snapshot: Path) -> Iterator[None]:
    """Makes one line with its remedy out of what goes wrong while weights of the Hub's cache are read in here.

    name: what `riebench fetch` calls them. snapshot: their folder, as `riebench.core.hub.weights_folder` returns it.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        words = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} cannot be loaded: {words}", remedy=remedy_for(name, snapshot)) from error


def remedy_for(name: str, snapshot: Path) -> str:
    """Returns what to do about weights that do not fill their network: libraries of other versions call tensors
    otherwise, or the files are not those of the Hub. name, snapshot: as in `fetched`."""
    return (
        "`pip install -U riebench`, which brings the libraries that read them; if those are there, delete"
        f" {snapshot.parents[1]} and run `riebench fetch {name}`"
    )


def load_whole(kind: Any, folder: Path, *, strict: bool = False, **options: Any) -> Any:
    """Returns the network that a class of transformers or diffusers reads from a folder of this machine.

    Both libraries fill what a file lacks with random numbers and say so in a line of their log, or in none. strict:
    whether a file must hold nothing else either; some hold more networks than the one that is read. Raises
    `Incomplete` where tensors are missing, of another shape or, if strict, too many, and what the library raises.
    """
    model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    words = {"missing_keys": "lack", "mismatched_keys": "have in another shape"}
    words |= {"unexpected_keys": "have beside what is read"} if strict else {}
    found = {word: sorted(map(str, info.get(key) or ())) for key, word in words.items()}
    faults = [f"{word} {_some(names)}" for word, names in found.items() if names]
    if faults:
        raise Incomplete(f"the weights in {folder} {' and '.join(faults)} ({kind.__name__})")
    return model


def _some(names: list[str]) -> str:
    """Returns the first names, and how many there are where those are not all."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} tensors)" if len(names) > SHOWN else "")
