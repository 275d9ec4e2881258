"""Checkpoints of EleutherAI's sparsify (package `eai-sparsify`, 1.3) are read and written here.

A folder with `cfg.json`: `d_in`, `k`, `num_latents` or, where that is 0, `expansion_factor` times d_in, `activation`,
and settings of the training; and `sae.safetensors`: encoder.weight [f, d], encoder.bias [f], W_dec [f, d], b_dec [d].

They compute z = topk(relu(encoder.weight (x - b_dec) + encoder.bias)), x_hat = z W_dec + b_dec, which is `TopKSAE`.
Transcoders, skip connections, lookups, groupmax and the signed latents of early versions are other functions, and
refused; so is a setting that is not known, unless it is off.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import read_json, write_bytes, write_json
from sae_models.layouts import SPARSIFY, refuse_missing
from sae_models.tensors import AGAIN, SAE, read_safetensors, renamed_topk, shape_from
from sae_models.topk import TopKConfig, TopKSAE

SHAPE = {"width": "d_in", "num_features": "num_latents", "k": "k"}
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
NEVER = {
    "activation": "topk",
    "transcode": False,
    "skip_connection": False,
    "signed": False,
    "embed_skip": False,
    "gram_lookup": False,
}
"""What may not be otherwise; each may be missing, since other versions do not know it."""
UNREAD = ("normalize_decoder", "multi_topk", "train_post_encoder", "lookup_max_order", "gram_table_hash")
"""Settings of the training, and of what is off in `NEVER`."""
KNOWN = ("d_in", "k", "num_latents", "expansion_factor", *NEVER, *UNREAD)
OFF: tuple[Any, ...] = (False, None, 0, "", "none", [], {})
"""Values at which a setting that is not known, as forks of sparsify have them, does nothing."""


def load(folder: Path, *, device: str | torch.device = "cpu") -> TopKSAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing or truncated, for a configuration that is another function, and for
    weights whose names, shapes or values do not fit it.
    """
    config = read_config(folder)
    path = Path(folder) / SPARSIFY.weights
    refuse_missing(path, SPARSIFY)
    return renamed_topk(config, read_safetensors(path), NAMES, ("W_enc",), path, SPARSIFY.config, AGAIN, device)


def read_config(folder: Path) -> TopKConfig:
    """Returns what `cfg.json` says of the shape. Raises `UserError` where it is broken or another function's."""
    path = Path(folder) / SPARSIFY.config
    settings = read_json(path, "SAE configuration")
    for name in sorted(settings.keys() - set(KNOWN)):
        if settings[name] not in OFF:
            raise UserError(
                f"{path} has, at the value {settings[name]!r}, an unknown key {name!r}{did_you_mean(name, KNOWN)}",
                remedy=f"only sparsify's TopK autoencoders with {', '.join(KNOWN)} can be read",
            )
    for name, value in NEVER.items():
        if settings.get(name, value) != value and not (value is False and settings[name] is None):
            raise UserError(
                f"{path}: {name} is {settings[name]!r}, and only {value!r} can be read",
                remedy="use a TopK autoencoder without a skip connection",
            )
    return shape_from(_with_num_latents(settings), SHAPE, TopKConfig, path)


def save(folder: Path, sae: SAE) -> str:
    """Writes a checkpoint that sparsify loads, and returns the sha256 of its weight file.

    Raises `UserError` for an SAE that is not TopK, and where the folder cannot be written.
    """
    if not isinstance(sae, TopKSAE):
        raise UserError("sparsify has TopK autoencoders alone, and this is a JumpReLU one", remedy="write SAELens's")
    folder = Path(folder)
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_bytes(folder / SPARSIFY.weights, data)
    settings = {"activation": "topk", "transcode": False, "skip_connection": False, "d_in": sae.width}
    write_json(folder / SPARSIFY.config, settings | {"num_latents": sae.num_features, "k": sae.config.k})
    return hashlib.sha256(data).hexdigest()


def _with_num_latents(settings: dict[str, Any]) -> dict[str, Any]:
    width, factor = settings.get("d_in"), settings.get("expansion_factor")
    if settings.get("num_latents") or not (isinstance(width, int) and isinstance(factor, int)):
        return settings
    return settings | {"num_latents": width * factor}
