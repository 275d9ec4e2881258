"""Content keys: every generated thing has a key made of all that decides it. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import metadata, util
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from riebench.errors import UserError
from riebench.files import data_folder
from riebench.metrics import METRICS

PACKAGES = ("riebench", "sae_models", "baselines")
#: What reads results, scores them or talks to people: a change there changes no image.
NOT_GENERATING = ("analysis", "report", "metrics", "cli.py", "api.py", "progress.py", "interrupts.py")
GENERATORS = ("torch", "diffusers", "transformers")
JUDGES = ("torch", "open_clip_torch", "lpips")
BLOCK_BYTES = 2**20


def digest(value: object) -> str:
    """32 hex digits that stand for a value's content, see `describe`."""
    text = json.dumps(describe(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def describe(value: object, where: str = "value") -> object:
    """What JSON can hold of a value, equal for equal content: objects by their class and attributes, arrays and tensors
    by their bytes. Raises `UserError` naming the place of what has no content: a function, an open file, NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}, which cannot be part of a key", remedy="use a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((describe(item, where) for item in value), key=repr)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = value
        if hasattr(value, "detach"):  # a tensor; NumPy has no bfloat16
            array = (
                (value.float() if value.is_floating_point() and value.itemsize < 4 else value).detach().cpu().numpy()
            )
        data = hashlib.sha256(array.tobytes()).hexdigest()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": data}
    kind = type(value)
    if isinstance(value, ModuleType | type) or kind.__module__ == "builtins" or not _has_attributes(value):
        raise UserError(
            f"{where} is a {kind.__qualname__}, which has no content to make a key of",
            remedy="keep plain values in it, or a dataclass of them",
        )
    name = f"{kind.__module__}.{kind.__qualname__}"
    return {"class": name} | {key: describe(item, f"{where}.{key}") for key, item in _attributes(value).items()}


def _has_attributes(value: object) -> bool:
    return dataclasses.is_dataclass(value) or hasattr(value, "__dict__")


def _attributes(value: object) -> dict[str, object]:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return vars(value)


@cache
def code_version() -> str:
    """Version of the code that generates: our sources but `NOT_GENERATING`, and the libraries' versions."""
    sources = [_sources(_package_folder(package), NOT_GENERATING) for package in PACKAGES]
    return digest([sources, [metadata.version(name) for name in GENERATORS]])


def judge_version(names: Sequence[str], family: str) -> str:
    """Version of what scores: the metrics by name, their sources, their shipped weights, the libraries' versions."""
    folders = [_package_folder("riebench") / "metrics"]
    weights = [data_folder() / "lpips"]
    if family == "tinyworld":
        folders.append(_package_folder("riebench") / "tinyworld")
        weights += [data_folder() / "tinyworld" / name for name in ("clip", "oracle.safetensors")]
    sources = [_sources(folder) for folder in folders]
    metrics = {name: _foreign_code(METRICS.get(name)) for name in names}
    libraries = [metadata.version(name) for name in JUDGES]
    return digest([family, metrics, sources, [folder_digest(path) for path in weights], libraries])


def code_of(thing: object) -> str:
    """Version of the code that computes with an object, a class or a function: `code_version()` for ours; for somebody
    else's also the files in which it and what it inherits from are written, or its byte code where there is no file, as
    for what is typed into a notebook. What such code calls in turn is not looked at."""
    foreign = _foreign_code(thing)
    return digest([code_version(), foreign]) if foreign else code_version()


def folder_digest(path: Path) -> str:
    """Digest of the names and bytes of a folder's files, or of one file. Computed again only when a size or a time of
    change differs. Raises `UserError` where nothing is there."""
    path = Path(path).resolve()
    if not path.exists():
        raise UserError(f"{path} does not exist", remedy="check the path, or install riebench again")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    shown = [file for file in files if not any(part.startswith((".", "__")) for part in file.relative_to(path).parts)]
    return _digest_files(path, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in shown))


@lru_cache(maxsize=256)
def _digest_files(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    return digest([[file.relative_to(root).as_posix(), file_sha256(file)] for file, *_ in files])


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package_folder(name: str) -> Path:
    return Path(util.find_spec(name).origin).parent


def _sources(folder: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """Name -> sha256 of the Python files of a folder, but those that are or lie in one of `without`."""
    paths = {path.relative_to(folder): path for path in folder.rglob("*.py")}
    return {name.as_posix(): file_sha256(path) for name, path in paths.items() if name.parts[0] not in without}


def _foreign_code(thing: object) -> list:
    """Digest or byte code of each definition behind a thing that is neither ours nor Python's."""
    kinds = [thing] if isinstance(thing, FunctionType) else (thing if isinstance(thing, type) else type(thing)).__mro__
    known = {*PACKAGES, *sys.stdlib_module_names} - {"__main__"}
    found = []
    for kind in kinds:
        if kind.__module__.partition(".")[0] not in known:
            try:
                found.append(file_sha256(Path(inspect.getfile(kind))))
            except (OSError, TypeError):
                functions = [kind] if isinstance(kind, FunctionType) else vars(kind).values()
                found += [_instructions(f.__code__) for f in functions if isinstance(f, FunctionType)]
    return found


def _instructions(code: CodeType) -> list:
    """What a function does, without the file and the lines it stands in."""
    constants = [_instructions(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return [code.co_name, code.co_code.hex(), list(code.co_names), constants]
