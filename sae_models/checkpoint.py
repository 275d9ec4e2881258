"""The checkpoint on disk, as SAELens lays it out: a folder with `cfg.json` and `sae_weights.safetensors`.

cfg.json: `architecture` "topk", `d_in`, `d_sae`, `k`, `dtype`, `apply_b_dec_to_input` true, `metadata` (free), and the
settings at which SAELens has nothing else to do. The weights: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in]
with unit rows, b_dec [d_in]. Pickles are never read.
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
from sae_models.topk import TopKConfig, TopKSAE

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SETTINGS = {
    "architecture": "topk",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
}  # what `TopKSAE` computes; a checkpoint that says otherwise is another function
OPTIONAL_SETTINGS = ("normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm")


def save(folder: Path, sae: TopKSAE, metadata: dict[str, Any]) -> str:
    """Writes a checkpoint and returns the sha256 of its weight file. Same weights, same bytes.

    `metadata` holds what JSON can: the model, the block, the training. Raises `UserError` when the folder cannot be
    written or the weights are not finite.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in sae.state_dict().items()}
    _refuse_not_finite(tensors, "the SAE to save")
    folder = Path(folder)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_bytes(folder / WEIGHTS_FILE, data)
    config = SETTINGS | {
        "d_in": sae.config.width,
        "d_sae": sae.config.num_features,
        "k": sae.config.k,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "metadata": metadata,
    }
    write_json(folder / CONFIG_FILE, config)
    return hashlib.sha256(data).hexdigest()


def load(folder: Path, *, device: str | torch.device = "cpu") -> TopKSAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing, truncated or pickled, for a configuration that `TopKSAE` does not
    compute, and for weights whose names, shapes or values do not fit it.
    """
    config = _read_config(Path(folder) / CONFIG_FILE)
    path = Path(folder) / WEIGHTS_FILE
    tensors = _read_weights(path)
    shapes = {
        "W_enc": (config.width, config.num_features),
        "b_enc": (config.num_features,),
        "W_dec": (config.num_features, config.width),
        "b_dec": (config.width,),
    }
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != shapes:
        wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        told = "; ".join(
            f"{name} is {found.get(name, 'missing')}, should be {shapes.get(name, 'absent')}" for name in wrong
        )
        raise UserError(f"{path} does not fit its {CONFIG_FILE}: {told}", remedy="fetch or save the checkpoint again")
    _refuse_not_finite(tensors, str(path))
    with torch.device("meta"):
        sae = TopKSAE(config)
    sae.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return sae.to(device).eval().requires_grad_(False)


def weights_sha256(folder: Path) -> str:
    """sha256 of a checkpoint's weight file, in hex. Raises `UserError` where it is missing."""
    path = Path(folder) / WEIGHTS_FILE
    _refuse_missing(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        raise UserError(f"{path} lacks {', '.join(missing)}", remedy="fetch or save the checkpoint again")
    return TopKConfig(width=config["d_in"], num_features=config["d_sae"], k=config["k"])


def _read_weights(path: Path) -> dict[str, Tensor]:
    _refuse_missing(path)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error})",
            remedy="fetch or save the checkpoint again; pickles are not read",
        ) from error


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy=f"a checkpoint holds {CONFIG_FILE} and {WEIGHTS_FILE}")


def _refuse_not_finite(tensors: dict[str, Tensor], where: str) -> None:
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"{where} holds NaN or infinite values in {', '.join(bad)}", remedy="train it again")
