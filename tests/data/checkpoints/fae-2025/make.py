"""Writes the checkpoint beside it with the packages that neverix/fae uses (equinox, orbax-checkpoint 0.11.5, jax
0.5.0), and its way of saving, with random weights of small shapes; and `arrays.npz` with what went in.

Run: python make.py. Nothing else needs these packages.
"""

from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

HERE, D, F = Path(__file__).resolve().parent, 8, 64
rng = np.random.default_rng(7)


class SAE(eqx.Module):
    info: None
    b_pre: jnp.ndarray
    W_enc: jnp.ndarray
    b_mid: jnp.ndarray
    W_dec: jnp.ndarray
    b_post: jnp.ndarray


class SAEInfo(eqx.Module):
    avg_norm: jnp.ndarray
    feature_means: jnp.ndarray
    feature_square_means: jnp.ndarray
    whitening_matrix: jnp.ndarray
    feature_density: jnp.ndarray
    activated_in: jnp.ndarray
    n_steps: jnp.ndarray
    weight_norms: dict
    weight_grad_norms: dict
    grad_clip_percent: jnp.ndarray
    grad_global_norm: jnp.ndarray


def normal(*shape: int) -> jnp.ndarray:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def zeros() -> SAE:
    return SAE(None, jnp.zeros(D), jnp.zeros((D, F)), jnp.zeros(F), jnp.zeros((F, D)), jnp.zeros(D))


decoder = normal(F, D)
decoder = decoder / jnp.linalg.norm(decoder, axis=-1, keepdims=True)
params = SAE(None, 0.1 * normal(D), normal(D, F), jnp.zeros(F), decoder, 0.3 * normal(D))
means = rng.normal(size=D)
info = SAEInfo(
    jnp.ones(()),
    jnp.asarray(means, jnp.float32),
    jnp.asarray(means**2 + rng.uniform(0.02, 0.2, size=D), jnp.float32),
    jnp.asarray(np.linalg.qr(rng.normal(size=(D, D)))[0]).astype(jnp.bfloat16),
    jnp.zeros(F),
    jnp.zeros(F, jnp.uint32),
    jnp.full((), 30000.0),
    {"W_enc": jnp.ones(()), "W_dec": jnp.ones(())},
    {"W_enc": jnp.ones(()), "W_dec": jnp.ones(())},
    jnp.zeros(()),
    jnp.zeros(()),
)
manager = ocp.CheckpointManager(
    ocp.test_utils.erase_and_create_empty(HERE / "sae_double_l18_img"),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()),
    options=ocp.CheckpointManagerOptions(max_to_keep=1, save_interval_steps=1000),
)
state = ((), (jnp.zeros((), jnp.int32), zeros(), zeros()))
manager.save(30000, {"sae_params": params, "info": info, "ema": zeros(), "optimizer_state": state})
names = ("b_pre", "W_enc", "W_dec", "b_post")
of_info = ("feature_means", "feature_square_means", "whitening_matrix")
arrays = {name: getattr(params, name) for name in names} | {name: getattr(info, name) for name in of_info}
np.savez(HERE / "arrays.npz", **{name: np.asarray(value, np.float32) for name, value in arrays.items()})
