"""A TopK sparse autoencoder worked out a row at a time in numpy: what tests of methods compare with."""

from __future__ import annotations

import numpy as np

from sae_models.topk import TopKSAE


def slow_encode(sae: TopKSAE, x: np.ndarray) -> np.ndarray:
    """One row `[C]` to its features `[F]`, in float64."""
    w_enc, b_enc, b_dec = (p.detach().double().numpy() for p in (sae.W_enc, sae.b_enc, sae.b_dec))
    before = (x - b_dec) @ w_enc + b_enc
    z = np.zeros_like(before)
    for i in np.argsort(-before)[: sae.config.k]:
        z[i] = max(before[i], 0.0)
    return z
