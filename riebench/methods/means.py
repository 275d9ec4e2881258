"""How strong a feature is as a rule: its mean where it is active, over many pictures."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from riebench.core.errors import UserError
from riebench.methods.text_index import load_text_index, text_index_path
from sae_models import index


def feature_means(entry: index.Entry, root: Path | None, remedy: str = "run `riebench index-text`") -> Tensor:
    """Returns the mean of each feature of a dictionary over the cells and steps where it is active, float32 `[F]`; 0
    for one that never was.

    It is that of the `mean.pt` beside the checkpoint, which some published SAEs have, and else the text index's.
    root: as the entry was found with. Raises `UserError` where there is neither, with what to do: `remedy`.
    """
    found = index.means(entry, root=root)
    if found is not None:
        return found
    path = text_index_path(index.fingerprint(entry, root=root))
    if not path.is_file():
        raise UserError(f"nothing says how strong the features of {entry.name} {entry.block} are", remedy=remedy)
    return load_text_index(path).typical
