"""Checkpoints are read and written here. `save` lays them out as SAELens does: a folder with `cfg.json` and
`sae_weights.safetensors`.

cfg.json: `architecture` ("topk", with `k`; "jumprelu"; or, read alone, "standard", which is ReLU), `d_in`, `d_sae`,
`dtype`, `metadata` (free), and what SAELens 6.54 computes beside `TopKSAE`'s and `JumpReLUSAE`'s formulas, which `load`
folds into the weights: `apply_b_dec_to_input` false, an encoder that reads x instead of x - b_dec; and
`rescale_acts_by_decoder_norm` true, of topk alone, latents times the norms of their decoder rows.
The weights: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], and of jumprelu threshold [d_sae].
No pickle is read in this layout; `load` also takes those of `sparsify`, `sdxl_unbox` and `dictionary_learning`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import read_json, write_bytes, write_json
from sae_models import dictionary_learning, layouts, sdxl_unbox, sparsify
from sae_models.itda import ITDA
from sae_models.jumprelu import JumpReLUConfig
from sae_models.layouts import SAELENS, layout_of
from sae_models.pca import PCA
from sae_models.tensors import (
    AGAIN,
    SAE,
    Config,
    dtype_name,
    for_inference,
    read_safetensors,
    refuse_misfit,
    refuse_not_finite,
    shape_from,
    unit_rows,
    whole_input,
)
from sae_models.topk import TopKConfig

LINEAR: dict[str, type[PCA] | type[ITDA]] = {
    "pca": PCA,
    "itda": ITDA,
}  # architectures that SAELens does not know, by what cfg.json calls them
PLAIN = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
}  # the settings at which SAELens has nothing to do but the formula
FORMAT = "6.0.0"
"""The SAELens version whose configuration this is; without it SAELens takes the file for an older one and drops the
metadata."""
ACTIVATIONS = {"topk": "topk", "jumprelu": "relu", "standard": "relu"}
"""Architecture -> what `activation_fn` may be, which SAELens wrote before version 6."""
NEVER = {"normalize_activations": "none", "reshape_activations": "none", "finetuning_scaling_factor": False}
EXPORT = "load it with SAELens, fold that into the weights and save it again for inference (save_inference_model)"


@dataclass(frozen=True)
class Shape:
    """This is what an index says of a dictionary."""

    kind: str
    """topk, jumprelu, pca or itda."""
    k: int
    """The most latents active on a row; 0 where there is no such number."""
    num_features: int
    width: int


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


def load(folder: Path, *, device: str | torch.device = "cpu") -> SAE | PCA | ITDA:
    """Reads a checkpoint of any layout for inference, in float32; where two lie in a folder, the first of `LAYOUTS`.
    PCA and ITDA dictionaries lie in ours.

    Raises `UserError` for a folder that is no checkpoint, for files that are missing, truncated or hold code, for a
    configuration that neither SAE computes, and for weights whose names, shapes or values do not fit it.
    """
    match layout_of(folder):
        case layouts.SPARSIFY:
            return sparsify.load(folder, device=device)
        case layouts.SDXL_UNBOX:
            return sdxl_unbox.load_released(folder, device=device)
        case layouts.DICTIONARY_LEARNING:
            return dictionary_learning.load(folder, device=device)
    linear = LINEAR.get(_architecture(Path(folder)))
    return linear.load(folder, device=device) if linear else _load_saelens(Path(folder), device)


def shape_of(folder: Path) -> Shape:
    """Returns what an index says of a checkpoint of any layout, without its weights. Raises `UserError` as `load`
    does."""
    if layout_of(folder) is SAELENS and (kind := _architecture(Path(folder))) in LINEAR:
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
    """Returns the shape of a checkpoint of any layout, without its weights. Raises `UserError` as `load` does."""
    match layout_of(folder):
        case layouts.SPARSIFY:
            return sparsify.read_config(folder)
        case layouts.SDXL_UNBOX:
            return sdxl_unbox.read_config(folder)
        case layouts.DICTIONARY_LEARNING:
            return dictionary_learning.read_config(folder)
    path = Path(folder) / SAELENS.config
    return _shape(_read_settings(path), path)


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


def _load_saelens(folder: Path, device: str | torch.device) -> SAE:
    settings = _read_settings(folder / SAELENS.config)
    config = _shape(settings, folder / SAELENS.config)
    path = folder / SAELENS.weights
    tensors = {name: value.float() for name, value in read_safetensors(path).items()}
    d, f = config.width, config.num_features
    shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    if settings["architecture"] == "jumprelu":
        shapes["threshold"] = (f,)
    refuse_misfit(tensors, shapes, str(path), SAELENS.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    if settings["architecture"] == "standard":
        tensors["threshold"] = torch.zeros(f)
    if not settings["apply_b_dec_to_input"]:
        tensors = whole_input(tensors)
    if settings.get("rescale_acts_by_decoder_norm"):
        tensors = unit_rows(tensors)
    return for_inference(config, tensors, device)


def _read_settings(path: Path) -> dict[str, Any]:
    """Reads a cfg.json whose function `load` can give. Raises `UserError` for others."""
    settings = PLAIN | read_json(path, "SAE configuration")
    architecture = settings.get("architecture")
    if not isinstance(architecture, str) or architecture not in ACTIVATIONS:
        raise UserError(
            f"{path}: architecture is {architecture!r}{did_you_mean(architecture, ACTIVATIONS)}",
            remedy=f"only {', '.join(ACTIVATIONS)} can be read; a batchtopk SAE becomes jumprelu when SAELens saves it "
            "for inference (save_inference_model)",
        )
    activation = ACTIVATIONS[architecture]
    for name, value in (NEVER | {"activation_fn": activation, "activation_fn_str": activation}).items():
        if name in settings and settings[name] != value:
            raise UserError(f"{path}: {name} is {settings[name]!r}, and only {value!r} can be read", remedy=EXPORT)
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(settings.get(name, False), bool):
            raise UserError(f"{path}: {name} is {settings[name]!r}, not true or false", remedy=AGAIN)
    if architecture != "topk" and settings.get("rescale_acts_by_decoder_norm"):
        raise UserError(
            f"{path}: rescale_acts_by_decoder_norm is set, which SAELens knows of topk alone", remedy=EXPORT
        )
    return settings


def _shape(settings: dict[str, Any], path: Path) -> Config:
    is_topk = settings["architecture"] == "topk"
    names = {"width": "d_in", "num_features": "d_sae"} | ({"k": "k"} if is_topk else {})
    return shape_from(settings, names, TopKConfig if is_topk else JumpReLUConfig, path)
