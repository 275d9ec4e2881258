"""Checkpoints lie on disk in seven layouts, told apart by the names of files or by a key. No torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from riebench.core.errors import UserError
from riebench.core.files import file_sha256, read_json


@dataclass(frozen=True)
class Layout:
    """A layout is a folder with these two files."""

    name: str
    """What the package is called that writes it."""
    config: str
    weights: str
    key: str = ""
    """What the JSON object in `config` has, where another layout has these files too."""

    @property
    def files(self) -> tuple[str, str]:
        """The names of both files."""
        return self.config, self.weights

    def lies_in(self, folder: Path) -> bool:
        """Returns whether a folder holds both files, and the key."""
        if not all((folder / file).is_file() for file in self.files):
            return False
        try:
            return not self.key or self.key in read_json(folder / self.config, "configuration")
        except UserError:
            return False


SAELENS = Layout("SAELens", "cfg.json", "sae_weights.safetensors")
"""Ours: what `riebench train` writes (`sae_models.checkpoint`)."""
FLUX_ITDA = Layout("ITDA", "cfg.json", "sae.safetensors", key="target_l0")
"""The ITDA dictionaries of arXiv 2505.24360 (`sae_models.flux_itda`)."""
SPARSIFY = Layout("sparsify", "cfg.json", "sae.safetensors")
"""EleutherAI's (`sae_models.sparsify`)."""
SDXL_UNBOX = Layout("sdxl-unbox", "config.json", "state_dict.pth")
"""What was published for SDXL Turbo (`sae_models.sdxl_unbox`)."""
MEANS_FILE = "mean.pt"
STATISTICS_FILES = (MEANS_FILE, "std.pt")
"""Statistics of the latents that may lie beside those."""
DICTIONARY_LEARNING = Layout("dictionary_learning", "config.json", "ae.pt")
"""`sae_models.dictionary_learning`."""
FINEBOORU = Layout("finebooru", "config.json", "model.safetensors")
"""What RE-N-Y published for FLUX (`sae_models.finebooru`)."""
FAE = Layout("fae", "_METADATA", "manifest.ocdbt")
"""The SAEs of arXiv 2505.24360, an Orbax tree whose other files are named by chance (`sae_models.fae`)."""
LAYOUTS = (SAELENS, FLUX_ITDA, SPARSIFY, SDXL_UNBOX, DICTIONARY_LEARNING, FINEBOORU, FAE)


def layout_of(folder: Path) -> Layout:
    """Returns the first of `LAYOUTS` that lies in the folder.

    Raises `UserError` naming all of them where there is none.
    """
    folder = Path(folder)
    for layout in LAYOUTS:
        if layout.lies_in(folder):
            return layout
    there = sorted({file for layout in LAYOUTS for file in layout.files if (folder / file).is_file()})
    alone = f": it has {' and '.join(there)} alone" if there else ""
    layouts = ", or ".join(f"{layout.config} and {layout.weights} ({layout.name})" for layout in LAYOUTS)
    raise UserError(f"{folder} is no checkpoint or lacks a part of it{alone}", remedy=f"a checkpoint holds {layouts}")


def holds_part(folder: Path) -> bool:
    """Returns whether any file of any layout lies in the folder."""
    return any(os.path.lexists(folder / file) for layout in LAYOUTS for file in layout.files)


def weights_sha256(folder: Path) -> str:
    """Returns the sha256 of a checkpoint's weight file, in hex. Raises `UserError` where it is missing or cannot be
    read."""
    return file_sha256(Path(folder) / layout_of(folder).weights, remedy="check who may read it")


def refuse_missing(path: Path, layout: Layout) -> None:
    """Raises `UserError` where a checkpoint's file is not there."""
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy=f"a checkpoint holds {layout.config} and {layout.weights}")
