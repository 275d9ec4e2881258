"""The SAEs published for SDXL Turbo are read here, as the code surkovv/sdxl-unbox saves them.

(Surkov et al. 2024, arXiv 2410.22366.) A folder with `config.json`: `n_dirs_local` (f), `d_model` (d), `k`, and
`auxk`, `dead_steps_threshold` of its training; `state_dict.pth`, a pickle by torch of {"state_dict": tensors}:
encoder.weight [f, d], latent_bias [f], decoder.weight [d, f], pre_bias [d], and stats_last_nonzero [f], a count of the
training that is not read; and often `mean.pt` [f], the mean of each latent where it is active (`load_means`), and
`std.pt` [f], which is not read.

They compute z = relu(topk(encoder.weight (x - pre_bias) + latent_bias)), x_hat = decoder.weight z + pre_bias, which is
`TopKSAE` under other names. Columns of the decoder may differ a little from unit norm, since they were normalised
before the optimiser's step; they are left as they are.

Pickles are read by torch's loader of weights alone, which refuses one with code in it and runs nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from riebench.core.errors import UserError
from sae_models.layouts import MEANS_FILE, SDXL_UNBOX, refuse_missing
from sae_models.tensors import is_plain, read_pickle, refuse_strange, renamed_topk, shape_of_known
from sae_models.topk import TopKConfig, TopKSAE

SHAPE = {"width": "d_model", "num_features": "n_dirs_local", "k": "k"}
NAMES = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight", "b_dec": "pre_bias"}
OF_TRAINING = ("auxk", "dead_steps_threshold")
UNREAD = "stats_last_nonzero"
AGAIN = "remove it, with the file that it may link to, and fetch it again"


def load_released(folder: Path, *, device: str | torch.device = "cpu") -> TopKSAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing, truncated or hold code, for a configuration with other keys, and for
    weights whose names, shapes or values do not fit it.
    """
    config = read_config(folder)
    path = Path(folder) / SDXL_UNBOX.weights
    refuse_missing(path, SDXL_UNBOX)
    content = read_pickle(path, AGAIN)
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise UserError(f'{path} is not {{"state_dict": tensors}}', remedy=AGAIN)
    tensors = {name: value for name, value in tensors.items() if name != UNREAD}
    refuse_strange(tensors, str(path), AGAIN)
    return renamed_topk(config, tensors, NAMES, ("W_enc", "W_dec"), path, SDXL_UNBOX.config, AGAIN, device)


def load_means(folder: Path, num_features: int) -> torch.Tensor | None:
    """Returns the mean of each latent where it is active, float32 `[f]`, of the `mean.pt` beside a checkpoint; None
    where there is none. One that was never active has 0: its 0/0 is NaN in the file.

    Raises `UserError` for a file that is truncated, holds code, or is of another number of latents.
    """
    path = Path(folder) / MEANS_FILE
    if not path.is_file():
        return None
    means = read_pickle(path, AGAIN)
    if not is_plain(means) or means.numel() != num_features:
        raise UserError(f"{path} is not one number for each of {num_features} features", remedy=AGAIN)
    return means.detach().float().flatten().nan_to_num(nan=0.0)


def read_config(folder: Path) -> TopKConfig:
    """Returns what `config.json` says of the shape. Raises `UserError` where it is broken or has other keys than
    expected."""
    return shape_of_known(Path(folder) / SDXL_UNBOX.config, SHAPE, OF_TRAINING)
