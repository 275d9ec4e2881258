"""Checkpoints are read and written here. `save` lays them out as SAELens 6 does: a folder with `cfg.json` and
`sae_weights.safetensors`.

cfg.json: `architecture` ("topk", with `k`, or "jumprelu"), `d_in`, `d_sae`, `dtype`, `metadata` (free).
The weights: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], and of jumprelu threshold [d_sae].
No pickle is read in this layout (`sae_models.saelens`); `load` also takes those of `sparsify`, `sdxl_unbox`,
`dictionary_learning`, `finebooru`, `fae` and `flux_itda`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from riebench.core.errors import UserError
from riebench.core.files import read_json, write_bytes, write_json
from sae_models import (
    dictionary_learning,
    fae,
    finebooru,
    flux_itda,
    layouts,
    nonnegative_itda,
    saelens,
    sdxl_unbox,
    sparsify,
    whitened,
)
from sae_models.entry import Shape
from sae_models.itda import ITDA
from sae_models.layouts import SAELENS, layout_of
from sae_models.nonnegative_itda import NonNegativeITDA
from sae_models.pca import PCA
from sae_models.saelens import PLAIN
from sae_models.tensors import AGAIN, SAE, Config, dtype_name, refuse_not_finite
from sae_models.whitened import WhitenedTopK

Ours = PCA | ITDA | NonNegativeITDA | WhitenedTopK
OURS: dict[str, type[Ours]] = {
    "pca": PCA,
    "itda": ITDA,
    nonnegative_itda.KIND: NonNegativeITDA,
    whitened.KIND: WhitenedTopK,
}
"""Architectures that SAELens does not know, by what cfg.json calls them -> their class."""
FORMAT = "6.0.0"
"""The SAELens version whose configuration this is; without it SAELens takes the file for an older one and drops the
metadata."""


def save(folder: Path, sae: SAE, metadata: dict[str, Any]) -> str:
    """Writes a checkpoint and returns the sha256 of its weight file. Same weights, same bytes.

    `metadata` holds what JSON can: the model, the block, the training. Raises `UserError` when the folder cannot be
    written, the weights are not finite, or a threshold is below zero.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in sae.state_dict().items()}
    refuse_not_finite(tensors, "the SAE to save", "train it again")
    if "threshold" in tensors and bool((tensors["threshold"] < 0).any()):
        raise UserError("the SAE to save has thresholds below zero", remedy="raise them to 0")
    folder = Path(folder)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_bytes(folder / SAELENS.weights, data)
    kind, k = sae.config.kind, sae.config.k
    of_kind = {"k": k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}
    config = (PLAIN | of_kind) | {
        "architecture": kind,
        "d_in": sae.width,
        "d_sae": sae.num_features,
        "dtype": dtype_name(sae.W_enc.dtype),
        "device": "cpu",
        "metadata": metadata,
        "sae_lens_version": FORMAT,
    }
    write_json(folder / SAELENS.config, config)
    return hashlib.sha256(data).hexdigest()


def load(folder: Path, *, device: str | torch.device = "cpu") -> SAE | Ours:
    """Reads a checkpoint of any layout for inference, in float32; where two lie in a folder, the first of `LAYOUTS`.
    Dictionaries of the kinds `OURS` lie in ours.

    Raises `UserError` for a folder that is no checkpoint, for files that are missing, truncated or hold code, for a
    configuration that nothing here computes, and for weights whose names, shapes or values do not fit it.
    """
    match layout_of(folder):
        case layouts.SPARSIFY:
            return sparsify.load(folder, device=device)
        case layouts.SDXL_UNBOX:
            return sdxl_unbox.load_released(folder, device=device)
        case layouts.DICTIONARY_LEARNING:
            return dictionary_learning.load(folder, device=device)
        case layouts.FINEBOORU:
            return finebooru.load(folder, device=device)
        case layouts.FAE:
            return fae.load(folder, device=device)
        case layouts.FLUX_ITDA:
            return flux_itda.load(folder, device=device)
    own = OURS.get(_architecture(Path(folder)))
    return own.load(folder, device=device) if own else saelens.load(folder, device=device)


def shape_of(folder: Path) -> Shape:
    """Returns what an index says of a checkpoint of any layout, without its weights. Raises `UserError` as `load`
    does."""
    layout = layout_of(folder)
    if layout is layouts.FAE:
        return fae.read_shape(folder)
    if layout is layouts.FLUX_ITDA:
        return flux_itda.read_shape(folder)
    if layout is SAELENS and (kind := _architecture(Path(folder))) in OURS:
        path = Path(folder) / SAELENS.config
        settings = read_json(path, f"{kind} configuration") | {"k": read_json(path, kind).get("k", 0)}
        names = [name for name in ("d_in", "d_sae", "k") if not isinstance(settings.get(name), int)]
        if names:
            raise UserError(f"{path}: {names[0]} is {settings.get(names[0])!r}", remedy=AGAIN)
        return Shape(kind, settings["k"], settings["d_sae"], settings["d_in"])
    config = read_config(folder)
    return Shape(config.kind, config.k, config.num_features, config.width)


def _architecture(folder: Path) -> str:
    return str(read_json(folder / SAELENS.config, "SAE configuration").get("architecture"))


def read_config(folder: Path) -> Config:
    """Returns the shape of an autoencoder of any layout, without its weights. Raises `UserError` as `load` does, and
    for what is no `Autoencoder`."""
    match layout_of(folder):
        case layouts.SPARSIFY:
            return sparsify.read_config(folder)
        case layouts.SDXL_UNBOX:
            return sdxl_unbox.read_config(folder)
        case layouts.DICTIONARY_LEARNING:
            return dictionary_learning.read_config(folder)
        case layouts.FINEBOORU:
            return finebooru.read_config(folder)
        case layouts.FAE | layouts.FLUX_ITDA:
            raise UserError(f"{folder} holds no sparse autoencoder of one hidden layer", remedy="read its shape_of")
    return saelens.read_config(folder)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Returns what `save` was given to keep beside the weights; nothing in layouts other than ours.

    Raises `UserError` as `load` does.
    """
    if layout_of(folder) is not SAELENS:
        return {}
    path = Path(folder) / SAELENS.config
    metadata = read_json(path, "SAE configuration").get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: metadata is no JSON object", remedy=AGAIN)
    return metadata
