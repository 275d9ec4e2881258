"""The ITDA dictionaries of arXiv 2505.24360 are read here, as the authors' code saves them.

A folder with `cfg.json`: `d_model` (d), `target_l0` (k), `dictionary_size` (f), whether `subtract_mean`, and settings
of the growth, which are not read; and `sae.safetensors`: xs and ys, f rows [d] and then room that was never filled,
mean_x and mean_y [d], and std_x and std_y [d] where rows were divided by a deviation.

They compute z = nonnegative pursuit of x / std_x - mean_x in k steps with the rows of xs, which have unit norm, and the
reconstruction with those of ys. Where ys are xs that is `NonNegativeITDA`. A transcoder, whose ys are others, and one
with a `skip_connection` are other functions, and refused.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import read_json
from sae_models.entry import Shape
from sae_models.layouts import FLUX_ITDA, refuse_missing
from sae_models.nonnegative_itda import KIND, NonNegativeITDA
from sae_models.settings import refuse_unless_whole
from sae_models.tensors import AGAIN, read_safetensors, refuse_misfit, refuse_not_finite

STATISTICS = ("mean", "std")
SKIP = "weight"  # a matrix that is saved, and means nothing, where there is no skip connection
UNIT = 1e-2  # how far from 1 the norm of an atom in half precision may be


@torch.no_grad()
def load(folder: Path, *, device: str | torch.device = "cpu") -> NonNegativeITDA:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing or truncated, for a configuration of another function, and for weights
    whose names, shapes or values do not fit it.
    """
    shape = read_shape(folder)
    path = Path(folder) / FLUX_ITDA.weights
    refuse_missing(path, FLUX_ITDA)
    tensors = {name: value.float() for name, value in read_safetensors(path).items() if name != SKIP}
    _refuse_misfit(tensors, shape, path)
    tensors |= {side: tensors[side][: shape.num_features] for side in ("xs", "ys")}
    refuse_not_finite(tensors, str(path), AGAIN)
    pairs = [("xs", "ys"), *((f"{name}_x", f"{name}_y") for name in STATISTICS if f"{name}_x" in tensors)]
    if not all(torch.equal(tensors[x], tensors[y]) for x, y in pairs):
        raise UserError(
            f"{path} is a transcoder, from the rows of one place to those of another: ys are not xs",
            remedy="use one that was grown on the rows themselves",
        )
    atoms_fd, std_d = tensors["xs"], tensors.get("std_x", torch.ones(shape.width))
    if bool(((atoms_fd.norm(dim=-1) - 1).abs() > UNIT).any()):
        raise UserError(f"{path} has atoms that are not of unit norm", remedy=AGAIN)
    if not bool((std_d > 0).all()):
        raise UserError(f"{path} has deviations in std_x that are not above zero", remedy=AGAIN)
    subtracts = read_json(Path(folder) / FLUX_ITDA.config, "ITDA configuration").get("subtract_mean", False)
    mean_d = tensors["mean_x"] * std_d if subtracts else torch.zeros(shape.width)
    unit_fd = torch.nn.functional.normalize(atoms_fd, dim=-1)
    return NonNegativeITDA(unit_fd.to(device), mean_d.to(device), std_d.to(device), shape.k)


def read_shape(folder: Path) -> Shape:
    """Returns what `cfg.json` says of the shape. Raises `UserError` where it is broken or another function's."""
    path = Path(folder) / FLUX_ITDA.config
    settings = read_json(path, "ITDA configuration")
    missing = [name for name in ("d_model", "target_l0", "dictionary_size") if name not in settings]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}", remedy=AGAIN)
    for name in ("subtract_mean", "skip_connection"):
        if not isinstance(settings.get(name, False), bool):
            raise UserError(f"{path}: {name} is {settings[name]!r}, not true or false", remedy=AGAIN)
    if settings.get("skip_connection"):
        raise UserError(
            f"{path}: skip_connection is True: a part of the reconstruction that no atom has",
            remedy="use one without",
        )
    shape = Shape(KIND, settings["target_l0"], settings["dictionary_size"], settings["d_model"])
    try:
        refuse_unless_whole(shape, "k", "num_features", "width")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return shape


def _refuse_misfit(tensors: dict[str, Tensor], shape: Shape, path: Path) -> None:
    """Raises `UserError` where names and shapes are not those of the configuration; xs and ys may have more rows."""
    d = shape.width
    room = max(shape.num_features, *(len(tensors[side]) for side in ("xs", "ys") if side in tensors), 0)
    names = STATISTICS if "std_x" in tensors or "std_y" in tensors else STATISTICS[:1]
    shapes: dict[str, tuple[int, ...]] = {f"{name}_{side}": (d,) for name in names for side in "xy"}
    refuse_misfit(tensors, {"xs": (room, d), "ys": (room, d)} | shapes, str(path), FLUX_ITDA.config, AGAIN)
