"""This is a table of the SAEs that others published: for SDXL Turbo here, for FLUX in `released_flux`. No torch is
imported here.

Surkov et al. 2024, arXiv 2410.22366: one SAE for each of the four blocks, on updates of the one-step model at 512 px.
Those with k = 160 are RIEBench's own. Neither weights nor statistics are shipped: `riebench fetch NAME` downloads them.

The revision is "main": not pinned, for we could not look the commits up. For the same reason there is no sha256 to hold
the files against, and they were not evaluated here. What stands in keys is the sha256 of the file that was found;
`riebench doctor --json` says which commit was fetched. Statistics are known of the repository of k = 10 only: they are
fetched where they are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from riebench.core.hub import Weights, weights_folder
from sae_models.entry import Entry
from sae_models.layouts import SDXL_UNBOX, STATISTICS_FILES
from sae_models.released_flux import FLUX_WEIGHTS, flux_entries, flux_place
from sae_models.released_flux import SETS as FLUX_SETS

BACKBONE = "sdxl-turbo@1"
DEFAULT_NAME = "released-k160-x4"
WIDTH, NUM_FEATURES = 1280, 5120
#: Short name of a block -> its module path in the U-Net, by which the repositories call it.
BLOCK_PATHS = {
    "down.2.1": "unet.down_blocks.2.attentions.1",
    "mid.0": "unet.mid_block.attentions.0",
    "up.0.0": "unet.up_blocks.0.attentions.0",
    "up.0.1": "unet.up_blocks.0.attentions.1",
}
#: unet.up_blocks.0.attentions.1_k160_...: the checkpoint is in its sub-folder `FINAL`.
PUBLISHED_FOLDER = re.compile(
    r"unet\.(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|mid_block)\.attentions\.(?P<number>\d+)_(?P<rest>.+)"
)
FINAL = "final"
#: Name -> its repository and k.
SETS = {DEFAULT_NAME: ("wendlerc/sdxl-turbo-saes", 160), "released-k10-x4": ("surokpro2/sdxl-saes", 10)}


def _folder(block: str, k: int) -> str:
    """Returns the folder of a checkpoint, relative to its repository."""
    return f"{BLOCK_PATHS[block]}_k{k}_hidden{NUM_FEATURES}_auxk256_bs4096_lr0.0001/{FINAL}"


def published_place(folder: str) -> tuple[str, str]:
    """Returns (short name of the block, the rest) of a folder named as the published code names its checkpoints,
    of whatever block and setting; ("", "") for any other name. Raises `UserError` as `flux_place` does."""
    found = PUBLISHED_FOLDER.fullmatch(folder)
    if not found:
        return flux_place(folder)
    place = (found["side"], found["level"], found["number"]) if found["side"] else ("mid", found["number"])
    return ".".join(place), found["rest"]


def _paths(k: int, files: Iterable[str]) -> tuple[str, ...]:
    """Returns the files of all four checkpoints, relative to their repository."""
    return tuple(f"{_folder(block, k)}/{file}" for block in BLOCK_PATHS for file in files)


#: Name -> what `riebench fetch NAME` downloads: of SDXL Turbo the weights of all four blocks, 52 MB each, and their
#: statistics.
RELEASED_WEIGHTS: dict[str, tuple[Weights, ...]] = {
    name: (Weights(repo, "main", _paths(k, SDXL_UNBOX.files), 0.21, optional=_paths(k, STATISTICS_FILES)),)
    for name, (repo, k) in SETS.items()
} | FLUX_WEIGHTS


def released_entries() -> list[Entry]:
    """Returns the published SAEs, block by block, those of SDXL Turbo first."""
    of_sdxl = [
        Entry(name, BACKBONE, block, "topk", k, NUM_FEATURES, WIDTH, _folder(block, k), sha256="")
        for block in BLOCK_PATHS
        for name, (_, k) in SETS.items()
    ]
    return of_sdxl + flux_entries()


def released_folder(entry: Entry) -> Path:
    """Returns where the checkpoint of a released entry lies in the Hub's cache, without asking the network.

    Raises `UserError` with the command that fetches it where its configuration or weights are missing.
    """
    if entry.name in FLUX_WEIGHTS:
        needed = FLUX_SETS[entry.name].weights(entry.block)
    else:
        (weights,) = RELEASED_WEIGHTS[entry.name]
        needed = replace(weights, files=tuple(f"{entry.folder}/{file}" for file in SDXL_UNBOX.files))
    return weights_folder(entry.name, needed) / entry.folder
