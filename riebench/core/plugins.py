"""A user's own file of methods and metrics, loaded by its path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from riebench.core.errors import UserError
from riebench.core.registry import registered

_loaded: dict[str, Path] = {}


def load_plugins(files: Iterable[Path]) -> None:
    """Runs files that register what is theirs, as by `@riebench.METHODS.register("mine")`; each once.

    A file becomes the module of its name, and its folder the last place where modules are looked for, so that workers
    of a cluster find what it defines (`loaded_plugins`). Raises `UserError` for a file that cannot be read, that fails
    or that registers nothing, and for one whose name another module has.
    """
    for file in files:
        path = file.resolve()
        if path not in _loaded.values():
            _load(path, file)
            _loaded[path.stem] = path


def loaded_plugins() -> tuple[str, ...]:
    """Returns the names of the modules that were loaded."""
    return tuple(_loaded)


def _load(path: Path, named: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"there is no Python file {named}", remedy="give the path of a .py file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    found = None if "." in path.stem else importlib.util.find_spec(path.stem)
    if found is None or not found.origin or Path(found.origin).resolve() != path:
        raise UserError(
            f"{named}: another module is called {path.stem!r}", remedy="rename the file, as to my_method.py"
        )
    before = registered()
    try:
        importlib.import_module(path.stem)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a file that calls sys.exit is no reason to leave without a word
        raise UserError(f"{named}{_line(error, path)}: {type(error).__name__}: {error}", remedy="mend it") from error
    if registered() == before:
        raise UserError(
            f"{named} registers nothing", remedy='put @riebench.METHODS.register("its-name") above the class'
        )


def _line(error: BaseException, path: Path) -> str:
    """Returns where in the file it failed, as ", line 3"."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
