"""Checkpoints on disk. `save` lays them out as SAELens does: a folder with `cfg.json` and `sae_weights.safetensors`.

cfg.json: `architecture` "topk", `d_in`, `d_sae`, `k`, `dtype`, `apply_b_dec_to_input` true, `metadata` (free), and the
settings at which SAELens has nothing else to do. The weights: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in]
with unit rows, b_dec [d_in]. No pickle is read in this layout; `load` also takes that of `sdxl_unbox`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from riebench.errors import UserError
from riebench.files import read_json, write_bytes, write_json
from sae_models import sdxl_unbox
from sae_models.layouts import SAELENS, SDXL_UNBOX, layout_of, refuse_missing
from sae_models.tensors import for_inference, refuse_misfit, refuse_not_finite
from sae_models.topk import TopKConfig, TopKSAE

SETTINGS = {
    "architecture": "topk",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
}  # what `TopKSAE` computes; a checkpoint that says otherwise is another function
OPTIONAL_SETTINGS = ("normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm")
AGAIN = "fetch or save the checkpoint again"


def save(folder: Path, sae: TopKSAE, metadata: dict[str, Any]) -> str:
    """Writes a checkpoint and returns the sha256 of its weight file. Same weights, same bytes.

    `metadata` holds what JSON can: the model, the block, the training. Raises `UserError` when the folder cannot be
    written or the weights are not finite.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in sae.state_dict().items()}
    refuse_not_finite(tensors, "the SAE to save", "train it again")
    folder = Path(folder)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_bytes(folder / SAELENS.weights, data)
    config = SETTINGS | {
        "d_in": sae.config.width,
        "d_sae": sae.config.num_features,
        "k": sae.config.k,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "metadata": metadata,
    }
    write_json(folder / SAELENS.config, config)
    return hashlib.sha256(data).hexdigest()


def load(folder: Path, *, device: str | torch.device = "cpu") -> TopKSAE:
    """Reads a checkpoint of either layout for inference, in float32; where both lie in a folder, SAELens'.

    Raises `UserError` for a folder that is no checkpoint, for files that are missing, truncated or hold code, for a
    configuration that `TopKSAE` does not compute, and for weights whose names, shapes or values do not fit it.
    """
    if layout_of(folder) is SDXL_UNBOX:
        return sdxl_unbox.load_released(folder, device=device)
    config = _read_config(Path(folder) / SAELENS.config)
    path = Path(folder) / SAELENS.weights
    tensors = _read_weights(path)
    shapes = {
        "W_enc": (config.width, config.num_features),
        "b_enc": (config.num_features,),
        "W_dec": (config.num_features, config.width),
        "b_dec": (config.width,),
    }
    refuse_misfit(tensors, shapes, str(path), SAELENS.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    return for_inference(config, tensors, device)


def read_config(folder: Path) -> TopKConfig:
    """The shape of a checkpoint of either layout, without its weights. Raises `UserError` as `load` does."""
    if layout_of(folder) is SDXL_UNBOX:
        return sdxl_unbox.read_config(folder)
    return _read_config(Path(folder) / SAELENS.config)


def _read_config(path: Path) -> TopKConfig:
    config = read_json(path, "SAE configuration")
    for name, value in SETTINGS.items():
        if name in OPTIONAL_SETTINGS and name not in config:
            continue
        if config.get(name) != value:
            raise UserError(
                f"{path}: {name} is {config.get(name)!r}, and only {value!r} can be read",
                remedy="use a TopK SAE saved by sae_models or exported by SAELens for inference",
            )
    missing = [name for name in ("d_in", "d_sae", "k") if name not in config]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}", remedy=AGAIN)
    return TopKConfig(width=config["d_in"], num_features=config["d_sae"], k=config["k"])


def _read_weights(path: Path) -> dict[str, Tensor]:
    refuse_missing(path, SAELENS)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error})",
            remedy=f"{AGAIN}; pickles are not read",
        ) from error
