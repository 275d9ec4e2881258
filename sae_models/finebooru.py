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

from sae_models.layouts import FINEBOORU, refuse_missing
from sae_models.tensors import AGAIN, read_safetensors, renamed_topk, shape_of_known
from sae_models.topk import TopKConfig, TopKSAE

SHAPE = {"width": "features", "num_features": "pages", "k": "k"}
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "bias"}


def load(folder: Path, *, device: str | torch.device = "cpu") -> TopKSAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing or truncated, for a configuration with other keys, and for weights
    whose names, shapes or values do not fit it.
    """
    config = read_config(folder)
    path = Path(folder) / FINEBOORU.weights
    refuse_missing(path, FINEBOORU)
    tensors, config_file = read_safetensors(path), FINEBOORU.config
    return renamed_topk(config, tensors, NAMES, ("W_enc", "W_dec"), path, config_file, AGAIN, device)


def read_config(folder: Path) -> TopKConfig:
    """Returns what `config.json` says of the shape. Raises `UserError` where it is broken or has other keys than
    expected."""
    return shape_of_known(Path(folder) / FINEBOORU.config, SHAPE)
