"""The SAEs that RE-N-Y published for FLUX are read here, as that author's code (finebooru) saves them.

A folder with `config.json`: `features` (d), `pages` (f) and `k`; and `model.safetensors`: encoder.weight [f, d],
encoder.bias [f], decoder.weight [d, f], bias [d].

They compute z = topk(relu(encoder.weight (x - bias) + encoder.bias)), x_hat = decoder.weight z + bias, which is
`TopKSAE` under other names. Columns of the decoder are not of unit norm where they were trained so, and are left as
they are. The other architectures of that code, which have no k, are refused.
"""

from __future__ import annotations

from pathlib import Path

import torch

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import read_json
from sae_models.layouts import FINEBOORU, refuse_missing
from sae_models.tensors import (
    AGAIN,
    for_inference,
    read_safetensors,
    refuse_misfit,
    refuse_not_finite,
    shape_from,
)
from sae_models.topk import TopKConfig, TopKSAE

SHAPE = {"width": "features", "num_features": "pages", "k": "k"}


def load(folder: Path, *, device: str | torch.device = "cpu") -> TopKSAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing or truncated, for a configuration with other keys, and for weights
    whose names, shapes or values do not fit it.
    """
    config = read_config(folder)
    path = Path(folder) / FINEBOORU.weights
    refuse_missing(path, FINEBOORU)
    tensors = {name: value.float() for name, value in read_safetensors(path).items()}
    d, f = config.width, config.num_features
    shapes = {"encoder.weight": (f, d), "encoder.bias": (f,), "decoder.weight": (d, f), "bias": (d,)}
    refuse_misfit(tensors, shapes, str(path), FINEBOORU.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    named = {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["bias"],
    }
    return for_inference(config, named, device)


def read_config(folder: Path) -> TopKConfig:
    """Returns what `config.json` says of the shape. Raises `UserError` where it is broken or has other keys than
    expected."""
    path = Path(folder) / FINEBOORU.config
    config = read_json(path, "SAE configuration")
    known = tuple(SHAPE.values())
    unknown = sorted(config.keys() - set(known))
    if unknown:
        raise UserError(
            f"{path} has an unknown key {unknown[0]!r}{did_you_mean(unknown[0], known)}",
            remedy=f"only TopK SAEs with {', '.join(known)} can be read",
        )
    return shape_from(config, SHAPE, TopKConfig, path)
