"""This is a table of the SAEs that others published for FLUX.1 schnell. No torch is imported here.

All code what a block puts out for the tokens of the image, and were trained on the one-step model at 256 px. Those of
RE-N-Y (k = 16) have a repository each; in the single blocks they were trained on text tokens too, since these blocks
hold both. Those of arXiv 2505.24360 (k = 64) are Orbax trees with the state of their training in the same files, four
times the weights; the names of these files are not known before.

As in `released`, the revision is "main", there is no sha256, and they were not evaluated here. The SAEs of text tokens
beside them (`...-0`, `..._txt`) are left out: riebench reads the tokens of the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from riebench.core.errors import UserError
from riebench.core.hub import Weights
from sae_models.entry import Entry
from sae_models.layouts import FAE, FINEBOORU, Layout

BACKBONE, SITE, WIDTH = "flux-schnell@1", "stream", 3072
RENY, PAPER = "released-k16-x16-stream", "released-k64-f65536-stream"
#: What `index.find` gives where no name is asked for, without the site.
DEFAULT_NAME = RENY.removesuffix("-stream")
PAPER_REPO = "nev/flux1-saes"
#: cc3m-transformer_blocks.18-1, which is also the repository's name.
PUBLISHED_FOLDER = re.compile(r"cc3m-(?P<single>single_)?transformer_blocks\.(?P<number>\d+)(?:-(?P<stream>[01]))?")
TEXT = "0"


@dataclass(frozen=True)
class Released:
    """This is a set of published SAEs, one for each of some blocks."""

    kind: str
    k: int
    num_features: int
    layout: Layout
    places: Mapping[str, tuple[str, str]]
    """Block -> its repository, and its folder there."""
    gigabytes: float
    """The size of each, in 10^9 bytes."""

    def weights(self, block: str) -> Weights:
        """Returns the files of a block's SAE. Those of `FAE` that are named by chance are optional."""
        repo, folder = self.places[block]
        start = "" if folder == "." else f"{folder}/"
        files = tuple(start + file for file in self.layout.files)
        return Weights(repo, "main", files, self.gigabytes, optional=(f"{start}*",) if self.layout is FAE else ())


SETS = {
    RENY: Released(
        "topk", 16, 49152, FINEBOORU,
        {
            "double.0": ("RE-N-Y/cc3m-transformer_blocks.0-1", "."),
            "double.18": ("RE-N-Y/cc3m-transformer_blocks.18-1", "."),
            "single.9": ("RE-N-Y/cc3m-single_transformer_blocks.9", "."),
            "single.37": ("RE-N-Y/cc3m-single_transformer_blocks.37", "."),
        },
        1.21,
    ),
    PAPER: Released(
        "whitened-topk", 64, 65536, FAE,
        {
            "double.9": (PAPER_REPO, "sae_double_l9_img-k64/30000/default"),
            "double.18": (PAPER_REPO, "sae_double_l18_img/30000/default"),
        },
        6.5,
    ),
}  # fmt: skip
#: Name -> what `riebench fetch NAME` downloads: the weights of all its blocks.
FLUX_WEIGHTS: dict[str, tuple[Weights, ...]] = {
    name: tuple(found.weights(block) for block in found.places) for name, found in SETS.items()
}


def flux_entries() -> list[Entry]:
    """Returns the published SAEs, set by set."""
    return [
        Entry(name, BACKBONE, block, found.kind, found.k, found.num_features, WIDTH, folder, sha256="", site=SITE)
        for name, found in SETS.items()
        for block, (_, folder) in found.places.items()
    ]


def flux_place(folder: str) -> tuple[str, str]:
    """Returns (short name of the block, the rest) of a folder named as a repository of RE-N-Y is; ("", "") for any
    other name. Raises `UserError` for one of text tokens."""
    found = PUBLISHED_FOLDER.fullmatch(folder)
    if not found:
        return "", ""
    if found["stream"] == TEXT and not found["single"]:
        raise UserError(
            f"{folder} codes text tokens, and riebench reads those of the image",
            remedy="move it away; the one that ends in -1 is that of the image",
        )
    return f"{'single' if found['single'] else 'double'}.{found['number']}", "cc3m"
