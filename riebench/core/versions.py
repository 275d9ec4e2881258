"""Versions stand in a key for code, for files and for weights. Imports no torch."""

from __future__ import annotations

import dis
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache, cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from types import CellType, CodeType, FunctionType

from riebench.core.errors import UserError
from riebench.core.files import file_sha256
from riebench.core.keys import describe, digest, is_builtin, name_of

PACKAGES = ("riebench", "sae_models", "baselines")


def folder_digest(path: Path) -> str:
    """Returns the digest of the names and bytes of a folder's files, but hidden ones and `__pycache__`; or of one file.

    Files are read once a process for each state of names, sizes and times. Raises `UserError` where nothing is there,
    or a file cannot be read.
    """
    path = Path(path).resolve()
    if not path.exists():
        raise UserError(f"{path} does not exist", remedy="check the path, or install riebench again")
    if path.is_file():
        return _digest_files(path.parent, (_state(path, path.parent),))
    inside = sorted(file for file in path.rglob("*") if _counts(file, path))
    return _digest_files(path, tuple(_state(file, path) for file in inside))


@cache
def installed_sources() -> str:
    """Returns the digest of every source of ours, by which machines tell whether they run the same code."""
    return sources_digest(PACKAGES)


def sources_digest(names: Iterable[str], root: Path | None = None) -> str:
    """Returns the digest of the names and bytes of the .py files that are named, or lie in a folder that is.

    names: "riebench/generation", "sae_models/topk.py". root: where they lie; None is where each package is installed.
    Raises `UserError` for a name where nothing lies: a list of names is to be kept true.
    """
    sources = {}
    for name in names:
        top, _, rest = name.partition("/")
        folder = root / top if root else _folder_of(top)
        place = folder / rest
        files = [place] if place.is_file() else [path for path in place.rglob("*.py") if _counts(path, place)]
        if not files:
            raise UserError(f"there are no sources {name} in {folder}", remedy="install riebench again")
        for path in files:
            sources[path.relative_to(folder.parent).as_posix()] = file_sha256(path)
    return digest(sources)


def _folder_of(package: str) -> Path:
    """Returns the folder where a package is installed. Raises `UserError` where it is not."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"there is no package {package}", remedy="install riebench again")
    return Path(spec.origin).parent


@cache
def library_version(package: str) -> str:
    """Returns the version of a library, which is looked up once a process. Raises `PackageNotFoundError` where it is
    not installed."""
    return metadata.version(package)


def library_versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the installed version of each library."""
    return {name: library_version(name) for name in packages}


def _counts(path: Path, folder: Path) -> bool:
    """Returns whether a path in a folder is a file that counts: neither hidden nor a by-product."""
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") or part == "__pycache__" for part in parts) and path.is_file()


def _state(path: Path, folder: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _digest_files(folder: Path, states: tuple[tuple[str, int, int], ...]) -> str:
    """Returns the digest of the names and bytes of a folder's files.

    states: name, size and time of each file, which stand for its bytes among the cache's keys.
    """
    return digest({name: file_sha256(folder / name) for name, _, _ in states})


def code_behind(thing: object) -> list[object]:
    """Returns descriptions of the code that a function, a class or an object runs, but for Python's own.

    The whole file counts of a class, and of each class it inherits from; what is typed in a notebook has no file, and
    counts by its bytecode, with the functions and values that it names. What such a file imports is not looked at.
    """
    kinds = [thing] if isinstance(thing, FunctionType) else (thing if isinstance(thing, type) else type(thing)).__mro__
    code: list[object] = []
    for kind in filter(_is_written, kinds):
        file = _source_file(kind)
        if file is None:
            code.append(_bytecode(kind, set()))
        elif _is_ours(kind):
            code.append(file_sha256(file))
        else:  # and what was loaded of it, which may be older than the file
            functions = [f for item in _items(kind) for f in _functions(item)]
            code.append([file_sha256(file), [_instructions(function.__code__) for function in functions]])
    return code


def _is_ours(thing: FunctionType | type) -> bool:
    return (thing.__module__ or "").partition(".")[0] in PACKAGES


def _is_written(thing: FunctionType | type) -> bool:
    """Returns whether somebody wrote a function or a class who is not Python."""
    top = (thing.__module__ or "").partition(".")[0]
    if top == "builtins":  # also said of what `exec` made without a module's name
        return not is_builtin(thing)
    return top not in sys.stdlib_module_names


def _source_file(thing: FunctionType | type) -> Path | None:
    """Returns the file where a function or class is written; None for one typed elsewhere, if only into that file's
    module."""
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    if file and _is_ours(thing):
        return Path(file)
    functions = [function for item in _items(thing) for function in _functions(item)]
    written_in = {Path(inspect.unwrap(function).__code__.co_filename).name for function in functions}
    return Path(file) if file and Path(file).name in written_in and Path(file).is_file() else None


def _items(thing: FunctionType | type) -> list[object]:
    """Returns what a class holds, or the function itself."""
    return [thing] if isinstance(thing, FunctionType) else list(vars(thing).values())


def _functions(thing: object) -> Iterator[FunctionType]:
    """Returns the functions in a thing: itself, or what a descriptor or a cache around them calls."""
    inner: list[object]
    if isinstance(thing, staticmethod | classmethod):
        inner = [thing.__func__]
    elif isinstance(thing, property):
        inner = [thing.fget, thing.fset, thing.fdel]
    elif isinstance(thing, cached_property):
        inner = [thing.func]
    else:
        inner = [thing if isinstance(thing, FunctionType) else getattr(thing, "__wrapped__", None)]
    return (function for function in inner if isinstance(function, FunctionType))


def _bytecode(thing: object, seen: set[int]) -> object:
    """Returns a description of what was typed, without line numbers and file names, with all it refers to by name.

    Code that has a file is described by its name, and what cannot be described by its class. seen: ids of what is
    described already.
    """
    if not isinstance(thing, FunctionType | type):
        if functions := list(_functions(thing)):
            return [name_of(type(thing)), *(_bytecode(function, seen) for function in functions)]
        try:
            return describe(thing)
        except UserError:
            return [name_of(type(thing)), name_of(thing)]
    if id(thing) in seen or not _is_written(thing) or _is_ours(thing) or _source_file(thing):
        return name_of(thing)
    seen.add(id(thing))
    if isinstance(thing, type):
        described: dict[str, object] = {"bases": [_bytecode(base, seen) for base in thing.__bases__]}
        for name, item in vars(thing).items():
            if not (name.startswith("__") and name.endswith("__")) or list(_functions(item)):
                described[name] = _bytecode(item, seen)  # of the other names with underscores, some hold line numbers
        return described
    named = {name: thing.__globals__[name] for name in _globals_of(thing.__code__) if name in thing.__globals__}
    enclosed = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
    filled = {name: cell.cell_contents for name, cell in enclosed if cell != CellType()}
    defaults = {f"default {i}": default for i, default in enumerate(thing.__defaults__ or ())}
    defaults |= {f"default {name}": default for name, default in (thing.__kwdefaults__ or {}).items()}
    referred = {name: _bytecode(item, seen) for name, item in sorted({**named, **filled, **defaults}.items())}
    return {"code": _instructions(thing.__code__), "refers to": referred}


def _globals_of(code: CodeType) -> set[str]:
    """Returns the names of the globals that a piece of code reads, also in the functions inside it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_of(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _instructions(code: CodeType) -> list[object]:
    """Returns what a function does, without the file and the lines it stands in."""
    arguments = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    names = [list(code.co_names), list(code.co_varnames), list(code.co_freevars), list(code.co_cellvars)]
    constants = [_constant(constant) for constant in code.co_consts]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), arguments, names, constants]


def _constant(constant: object) -> object:
    if isinstance(constant, CodeType):
        return _instructions(constant)
    if isinstance(constant, tuple):
        return [_constant(item) for item in constant]
    if isinstance(constant, frozenset):  # their order differs between processes
        return sorted(repr(_constant(item)) for item in constant)
    return f"{type(constant).__name__} {constant!r}"
