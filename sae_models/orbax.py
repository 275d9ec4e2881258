"""Arrays of an Orbax checkpoint, which JAX's programs write, are read here without JAX.

A folder with `_METADATA`, JSON on the tree of names, and an OCDBT database (`manifest.ocdbt`, and files in `d` and
`ocdbt.process_*`), in which the array a.b of the tree is the zarr array of that name. The package tensorstore reads it,
of the extra `orbax`. Nothing in such a folder is a pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import read_json
from sae_models.layouts import FAE, refuse_missing
from sae_models.tensors import AGAIN

FLOATS = ("float16", "bfloat16", "float32", "float64")


def array_shape(folder: Path, name: str) -> tuple[int, ...]:
    """Returns the shape of an array, without its values. Raises `UserError` as `read_arrays` does."""
    return tuple(_open(Path(folder), name).shape)


def read_arrays(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Returns arrays of a checkpoint by name, in float32.

    Raises `UserError` where tensorstore is not installed, for files that are missing or truncated, and for an array
    that is not there or holds no floating point numbers.
    """
    return {name: _read(Path(folder), name) for name in names}


def _read(folder: Path, name: str) -> Tensor:
    opened = _open(folder, name)
    if opened.dtype.name not in FLOATS:
        raise UserError(
            f"{folder}: {name} is of type {opened.dtype.name}, not of numbers to compute with", remedy=AGAIN
        )
    try:
        return torch.from_numpy(np.array(opened.read().result(), dtype=np.float32))
    except ValueError as error:
        raise _broken(folder, name, error) from error


def _open(folder: Path, name: str) -> Any:
    """Returns tensorstore's view of an array."""
    for file in FAE.files:
        refuse_missing(folder / file, FAE)
    zarr3 = read_json(folder / FAE.config, "Orbax's tree").get("use_zarr3") is True
    try:
        import tensorstore
    except ImportError as error:
        raise UserError(
            f"{folder} is an Orbax checkpoint, which the package tensorstore reads, and that is not installed",
            remedy='pip install "riebench[orbax]"; `riebench convert` then makes a checkpoint that needs no package',
        ) from error
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    place = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    try:
        return tensorstore.open(
            {"driver": "zarr3" if zarr3 else "zarr", "kvstore": place}, open=True, read=True
        ).result()
    except ValueError as error:
        raise _broken(folder, name, error) from error


def _broken(folder: Path, name: str, error: ValueError) -> UserError:
    told = str(error).partition(":")[0]
    if told == "NOT_FOUND":
        return UserError(f"{folder} holds no array {name}, or lacks a file of it", remedy=AGAIN)
    return UserError(f"{folder} is not a whole Orbax checkpoint: {name} cannot be read ({told})", remedy=AGAIN)
