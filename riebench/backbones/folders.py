"""Where a backbone's files lie, and what they are called when they are to be fetched. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from riebench.backbones.family import Outline
from riebench.backbones.other_files import INDEX, refuse_other_files
from riebench.backbones.released import VAES
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.hub import Weights, missing_files, weights_folder

FULL = ":float32"  # behind a backbone's name: what `riebench fetch` calls its float32 files


def backbone_folder(backbone: Backbone, dtype: str = "float32") -> Path:
    """Returns where a backbone's pipeline lies, with the files that are read for `dtype`: of float32, or of half
    precision.

    Raises `UserError` when it is not there, with what is missing and how to get it, and as `refuse_other_files` does.
    """
    if backbone.weights is not None:
        return _hub_folder(backbone, dtype)
    folder = Path(backbone.folder) if Path(backbone.folder).is_absolute() else data_folder() / backbone.folder
    refuse_other_files(backbone.name, folder, backbone.family)
    if not (folder / INDEX).is_file():
        raise UserError(
            f"the weights of {backbone.name} are not at {folder}",
            remedy="install riebench again, or make them with `riebench tinyworld train`"
            if is_shipped(backbone)
            else "give the folder with the model_index.json that diffusers' save_pretrained writes",
        )
    return folder


def outline_of(backbone: Backbone, dtype: str = "float32") -> Outline:
    """Returns what a backbone's configuration files say, with the size that its pictures have in runs. Raises
    `UserError` as `backbone_folder` does, and where a file is broken."""
    found = backbone.family.outline(backbone_folder(backbone, dtype))
    height, width = found.size
    return replace(found, size=(backbone.height or height, backbone.width or width))


def channels_of(backbone: Backbone, dtype: str = "float32") -> dict[str, int]:
    """Returns block -> channels of its image stream, of the blocks that the model has. Raises `UserError` as
    `outline_of` does."""
    channels = outline_of(backbone, dtype).channels
    return {block: channels[place.path] for block, place in backbone.family.places.items() if place.path in channels}


def is_shipped(backbone: Backbone) -> bool:
    """Returns whether a backbone's pipeline lies in the shipped data."""
    return backbone.weights is None and not Path(backbone.folder).is_absolute()


def weights_for(backbone: Backbone, dtype: str) -> Weights | None:
    """Returns the files on the Hub that are read for `dtype`; None for a backbone that has a folder."""
    return backbone.weights_full if dtype == "float32" else backbone.weights


def vae_folder(backbone: Backbone) -> Path | None:
    """Returns where the VAE lies that stands in the place of the pipeline's own; None where none does.

    Raises `UserError` when it is not there.
    """
    return weights_folder(backbone.vae, VAES[backbone.vae]) if backbone.vae else None


def fetch_name(backbone: Backbone, dtype: str) -> str:
    """Returns what `riebench fetch` calls the files that are read for `dtype`: the model in the table that has them,
    without its steps."""
    weights = weights_for(backbone, dtype)
    entries = (BACKBONES.get(name) for name in BACKBONES.names())
    known = next((entry.name for entry in entries if weights_for(entry, dtype) == weights), backbone.name)
    return known.partition("@")[0] + (FULL if dtype == "float32" else "")


def _hub_folder(backbone: Backbone, dtype: str) -> Path:
    """Returns the folder in the Hub's cache. Raises `UserError` where files are missing, which says so where those of
    the other precision are there."""
    wanted, name = weights_for(backbone, dtype), fetch_name(backbone, dtype)
    other = "float16" if dtype == "float32" else "float32"
    missing = missing_files(wanted)
    if missing and not missing_files(weights_for(backbone, other)):
        kinds = {"float32": "float32", "float16": "half-precision"}
        has, lacks = kinds[other], kinds["float32" if dtype == "float32" else "float16"]
        raise UserError(
            f"of {wanted.repo} this machine has the {has} files and not the {lacks} ones ({', '.join(missing)})",
            remedy=f"run `riebench fetch {name}` ({wanted.gigabytes:g} GB), or use dtype {other}",
        )
    return weights_folder(name, wanted)
