"""Text index: which features of a dictionary go with which words.

With it features can be chosen for an edit from its two prompts, without its edited picture (protocol §10). It is learnt
from pictures and their prompts alone (`riebench.dictionaries.text_index`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from riebench.core.errors import UserError
from riebench.core.files import data_folder, write_bytes
from sae_models.tensors import refuse_not_finite


@dataclass(frozen=True)
class TextIndex:
    """Says what the features of one block's dictionary have to do with text. All float32."""

    directions: Tensor
    """`[F, e]`: the unit vector in the space of text vectors along which a feature fires more; zero where it never
    fired."""
    typical: Tensor
    """`[F]`: its mean value over the cells and steps where it is active."""
    active: Tensor
    """`[F]`: the share of prompts whose picture has it active anywhere."""


def score_features(index: TextIndex, edited_e: Tensor, original_e: Tensor) -> Tensor:
    """Returns `[F]`, how far each feature's direction goes from the original prompt's vector to the edited one's."""
    return index.directions @ (edited_e - original_e).to(index.directions)


def save_text_index(path: Path, index: TextIndex) -> None:
    """Writes an index as safetensors, whole; directions in half precision, the rest in float32."""
    tensors = {"directions": index.directions.half(), "typical": index.typical, "active": index.active}
    write_bytes(path, save({name: value.contiguous() for name, value in tensors.items()}))


def load_text_index(path: Path) -> TextIndex:
    """Returns the index that a file holds. Raises `UserError` for a file that is missing, broken, or not an index."""
    again = f"delete {path} and run `riebench index-text --backbone NAME`"
    if not Path(path).is_file():
        raise UserError(f"there is no text index {path}", remedy="run `riebench index-text --backbone NAME`")
    try:
        tensors = {name: value.float() for name, value in load_file(path).items()}
        found = TextIndex(**tensors)
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(f"{path} is not a text index: {error}", remedy=again) from error
    features = len(found.directions)
    if found.directions.ndim != 2 or found.typical.shape != (features,) or found.active.shape != (features,):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
        raise UserError(f"{path} is not a text index: {shapes} do not fit each other", remedy=again)
    refuse_not_finite(tensors, str(path), again)
    return found


def text_index_path(fingerprint: str) -> Path:
    """Returns where the index of a dictionary lies, or would: the shipped one where there is one, else in the user's
    cache.

    fingerprint: of the dictionary, `sae_models.index.fingerprint`.
    """
    name = index_file(fingerprint)
    shipped = data_folder() / "tinyworld" / "text_index" / name
    return shipped if shipped.is_file() else cache_folder() / name


def index_file(fingerprint: str) -> str:
    """Returns the name of the file that holds a dictionary's index."""
    return f"{fingerprint[:16]}.safetensors"


def cache_folder() -> Path:
    """Returns where a user's own indices lie."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "riebench" / "text_index"


def find_text_index(
    fingerprint: str, remedy: str = "run `riebench index-text --backbone NAME`", *, num_features: int = 0
) -> TextIndex:
    """Returns the index of a dictionary. Raises `no_text_index` where there is none, and `UserError` where it is broken
    or, where their number is given, of another number of features."""
    path = text_index_path(fingerprint)
    if not path.is_file():
        raise no_text_index(fingerprint, remedy)
    found = load_text_index(path)
    if num_features and len(found.directions) != num_features:
        raise UserError(
            f"{path} is of {len(found.directions)} features, and its dictionary has {num_features}",
            remedy=f"delete it and {remedy}",
        )
    return found


def no_text_index(fingerprint: str, remedy: str) -> UserError:
    """Returns the error that a dictionary has no index. remedy: what to do."""
    return UserError(f"there is no text index for the dictionary {fingerprint[:16]}", remedy=remedy)
