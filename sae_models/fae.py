"""The SAEs of arXiv 2505.24360 on FLUX's streams are read here, as the code neverix/fae saves them.

An Orbax checkpoint (`sae_models.orbax`) with, among what its training needs: sae_params.W_enc [d, f], W_dec [f, d],
b_pre [d] and b_post [d]; info.feature_means [d], feature_square_means [d] and whitening_matrix W [d, d], orthogonal.
With sigma = sqrt(max(square mean - mean^2, 1e-6)) they compute y = clip((x W - mean) / sigma, -10, 10), z = the k
largest of (y - b_post + b_pre) W_enc, without a ReLU, and x_hat = ((z W_dec + b_post) sigma + mean) W^T, which is
`WhitenedTopK`.

The files state neither k nor the clip, nor that rows are whitened: these are the published settings, and k is another
one where a folder's name says so (`sae_double_l9_img-k32`). One trained on text tokens (`..._txt`, `..._both`) is
refused by that name, since riebench reads the tokens of the image.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from riebench.core.errors import UserError
from sae_models.entry import Shape
from sae_models.orbax import array_shape, read_arrays
from sae_models.tensors import AGAIN, refuse_misfit, refuse_not_finite
from sae_models.whitened import KIND, WhitenedTopK

K, CLIP, LEAST_VARIANCE = 64, 10.0, 1e-6
#: sae_double_l9_img-k64: the folder around a checkpoint's steps.
FOLDER = re.compile(r"sae_(?:double|single)_l\d+_(?P<tokens>img|txt|both)(?:-k(?P<k>\d+))?")
PARAMS, INFO = "sae_params.", "info."
NAMES = (
    *(PARAMS + name for name in ("W_enc", "W_dec", "b_pre", "b_post")),
    *(INFO + name for name in ("feature_means", "feature_square_means", "whitening_matrix")),
)


@torch.no_grad()
def load(folder: Path, *, device: str | torch.device = "cpu") -> WhitenedTopK:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` as `orbax.read_arrays` does, for weights whose shapes or values do not fit, and for one of text
    tokens.
    """
    shape = read_shape(folder)
    tensors = read_arrays(folder, NAMES)
    d, f = shape.width, shape.num_features
    shapes = {
        **{PARAMS + "W_enc": (d, f), PARAMS + "W_dec": (f, d), PARAMS + "b_pre": (d,), PARAMS + "b_post": (d,)},
        **{INFO + "feature_means": (d,), INFO + "feature_square_means": (d,), INFO + "whitening_matrix": (d, d)},
    }
    refuse_misfit(tensors, shapes, str(folder), f"own {PARAMS}W_enc", AGAIN)
    refuse_not_finite(tensors, str(folder), AGAIN)
    w_enc_df, w_dec_fd, pre_d, post_d, mean_d, square_d, rotation_dd = (tensors[name] for name in NAMES)
    sigma_d = (square_d - mean_d.square()).clamp_min(LEAST_VARIANCE).sqrt()
    return WhitenedTopK(
        whitening_dd=(rotation_dd / sigma_d).to(device),
        mean_d=(mean_d / sigma_d).to(device),
        W_enc=w_enc_df.to(device),
        b_enc=((pre_d - post_d) @ w_enc_df).to(device),
        W_dec=((w_dec_fd * sigma_d) @ rotation_dd.T).to(device),
        b_dec=((post_d * sigma_d + mean_d) @ rotation_dd.T).to(device),
        k=shape.k,
        clip=CLIP,
    )


def read_shape(folder: Path) -> Shape:
    """Returns what an index says of a checkpoint, without its values. Raises `UserError` as `load` does."""
    named = next(filter(None, (FOLDER.fullmatch(part) for part in reversed(Path(folder).parts))), None)
    if named and named["tokens"] != "img":
        raise UserError(
            f"{folder} codes text tokens ({named['tokens']}), and riebench reads those of the image",
            remedy="take one whose folder is called ..._img",
        )
    found = array_shape(folder, PARAMS + "W_enc")
    if len(found) != 2:
        raise UserError(f"{folder}: {PARAMS}W_enc has the shape {list(found)}, not [d, f]", remedy=AGAIN)
    return Shape(KIND, int(named["k"]) if named and named["k"] else K, found[1], found[0])
