"""Checkpoints of SAELens, from version 1 of 2024 on, are read here; ours are laid out in the same way.

A folder with `cfg.json`: `d_in` (d), `d_sae` (f), and what the function is made of; and `sae_weights.safetensors`:
W_enc [d, f], b_enc [f], W_dec [f, d], b_dec [d], of jumprelu threshold [f] too, and of gated r_mag, b_mag and b_gate
[f] in the place of b_enc. Over the years the same function was written in several ways. Where the file says nothing,
the first value is meant:

- `architecture`: "standard", which is ReLU, "topk", "jumprelu" or "gated".
- `activation_fn_str`, before `activation_fn`: "relu", or "topk" with `activation_fn_kwargs.k`, which makes a TopK
  autoencoder of a standard one; since version 6 that is architecture "topk" with `k`.
- `apply_b_dec_to_input`: true; or false, an encoder that reads x instead of x - b_dec.
- `normalize_activations`: "none", also written false or null.
- `scaling_factor` or `finetuning_scaling_factor` [f] among the weights: latents are multiplied by it before they are
  decoded. `finetuning_scaling_factor` true says that it is there; it was written beside others too.
- `rescale_acts_by_decoder_norm`, of topk alone: false; or true, latents times the norms of their decoder rows.

All of that goes into the weights. Other keys tell of the training, and are not read. What is another function than
`TopKSAE`'s and `JumpReLUSAE`'s is refused by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import read_json
from sae_models.jumprelu import JumpReLUConfig
from sae_models.layouts import SAELENS
from sae_models.tensors import (
    AGAIN,
    SAE,
    Config,
    for_inference,
    read_safetensors,
    refuse_misfit,
    refuse_not_finite,
    shape_from,
    ungated,
    unit_rows,
    whole_input,
)
from sae_models.topk import TopKConfig

PLAIN = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
}  # the settings at which SAELens has nothing to do but the formula
ACTIVATIONS = {"topk": "topk", "jumprelu": "relu", "standard": "relu", "gated": "relu"}
"""Architecture -> what its activation function is called, where that is written."""
_TRANSCODER = "a transcoder, from the rows of one place to those of another"
_BATCH = "whose training keeps the largest latents of a whole batch"
OTHERS = {
    "abstopk": "whose latents may be negative",
    "batchtopk": _BATCH,
    "matryoshka_batchtopk": _BATCH,
    "matching_pursuit": "which finds latents by a pursuit",
    "temporal": "which reads rows in their order",
    "transcoder": _TRANSCODER,
    "skip_transcoder": _TRANSCODER,
    "jumprelu_transcoder": _TRANSCODER,
    "jumprelu_skip_transcoder": _TRANSCODER,
}
"""Architectures that SAELens has besides -> what they are."""
NORMALISATIONS = {
    "expected_average_only_in": "the rows times a number that is not in the file",
    "constant_norm_rescale": "each row divided by its own norm",
    "layer_norm": "each row less its own mean, divided by its own deviation",
    "covariance_whitening": "the rows whitened by a matrix that is not in the file",
}
"""What `normalize_activations` may ask for -> what the encoder reads then."""
FACTORS = ("scaling_factor", "finetuning_scaling_factor")
EXPORT = "load it with SAELens, fold that into the weights and save it again for inference (save_inference_model)"


def load(folder: Path, *, device: str | torch.device = "cpu") -> SAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing or truncated, for a configuration of another function, and for weights
    whose names, shapes or values do not fit it.
    """
    config_path, path = Path(folder) / SAELENS.config, Path(folder) / SAELENS.weights
    settings = _read_settings(config_path)
    config = _shape(settings, config_path)
    tensors = {name: value.float() for name, value in read_safetensors(path).items()}
    factor = next((name for name in FACTORS if name in tensors), None)
    if settings.get("finetuning_scaling_factor") and factor is None:
        raise UserError(
            f"{config_path}: finetuning_scaling_factor is True, and {path.name} holds no such factor", remedy=EXPORT
        )
    shapes = _shapes(settings["architecture"], config) | ({factor: (config.num_features,)} if factor else {})
    refuse_misfit(tensors, shapes, str(path), SAELENS.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    ours = _ours(settings, tensors, factor)
    refuse_not_finite(ours, f"what {path} comes to", EXPORT)
    return for_inference(config, ours, device)


def read_config(folder: Path) -> Config:
    """Returns what `cfg.json` says of the shape. Raises `UserError` where it is broken or another function's."""
    path = Path(folder) / SAELENS.config
    return _shape(_read_settings(path), path)


def _shapes(architecture: str, config: Config) -> dict[str, tuple[int, ...]]:
    d, f = config.width, config.num_features
    of_kind = {"jumprelu": ("b_enc", "threshold"), "gated": ("r_mag", "b_mag", "b_gate")}
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, f), "W_dec": (f, d), "b_dec": (d,)}
    return shapes | dict.fromkeys(of_kind.get(architecture, ("b_enc",)), (f,))


def _ours(settings: dict[str, Any], tensors: dict[str, Tensor], factor: str | None) -> dict[str, Tensor]:
    """Returns the tensors under our names, with what else SAELens computes folded in."""
    named = {name: value for name, value in tensors.items() if name not in FACTORS}
    match settings["architecture"]:
        case "gated":
            biases = {name: named.pop(name) for name in ("r_mag", "b_mag", "b_gate")}
            named = ungated(named, **biases)
        case "standard":
            named["threshold"] = torch.zeros_like(named["b_enc"])
    if not settings["apply_b_dec_to_input"]:
        named = whole_input(named)
    if settings.get("rescale_acts_by_decoder_norm"):
        named = unit_rows(named)
    if factor:
        named["W_dec"] = named["W_dec"] * tensors[factor][:, None]
    return named


def _read_settings(path: Path) -> dict[str, Any]:
    """Returns a cfg.json's settings, each under its one name and at its one spelling, of a function that `load` can
    give. Raises `UserError` for others."""
    settings = {"architecture": "standard"} | PLAIN | read_json(path, "SAE configuration")
    architecture = settings["architecture"]
    if not isinstance(architecture, str) or architecture not in ACTIVATIONS:
        known = (*ACTIVATIONS, *OTHERS)
        what = OTHERS.get(architecture) if isinstance(architecture, str) else None
        raise UserError(
            f"{path}: architecture is {architecture!r}{f', {what}' if what else did_you_mean(architecture, known)}",
            remedy=f"only {', '.join(ACTIVATIONS)} can be read; a batchtopk SAE becomes jumprelu when SAELens saves it "
            "for inference (save_inference_model)",
        )
    activations = {name: settings[name] for name in ("activation_fn", "activation_fn_str") if name in settings}
    if architecture == "standard" and "topk" in activations.values():
        settings["architecture"] = architecture = "topk"
    for name, value in activations.items():
        _refuse_other(path, name, value, ACTIVATIONS[architecture])
    if settings["normalize_activations"] in (None, False):
        settings["normalize_activations"] = "none"
    elif settings["normalize_activations"] is True:
        settings["normalize_activations"] = "expected_average_only_in"
    for name, plain in PLAIN.items():
        if isinstance(plain, str):
            _refuse_other(path, name, settings[name], plain)
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if not isinstance(settings.get(name, False), bool):
            raise UserError(f"{path}: {name} is {settings[name]!r}, not true or false", remedy=AGAIN)
    if architecture != "topk" and settings.get("rescale_acts_by_decoder_norm"):
        raise UserError(
            f"{path}: rescale_acts_by_decoder_norm is set, which SAELens knows of topk alone", remedy=EXPORT
        )
    return settings | _k(settings, path) if architecture == "topk" else settings


def _refuse_other(path: Path, name: str, value: object, wanted: str) -> None:
    if value != wanted:
        what = NORMALISATIONS.get(value) if isinstance(value, str) else None
        told = f" ({what})" if what else ""
        raise UserError(f"{path}: {name} is {value!r}{told}, and only {wanted!r} can be read", remedy=EXPORT)


def _k(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns k by that name, wherever the file has it; nothing where it has none. Raises `UserError` for two that
    differ, and for another setting of the activation function."""
    arguments = settings.get("activation_fn_kwargs") or {}
    others = sorted(arguments.keys() - {"k"}) if isinstance(arguments, dict) else ["no object"]
    if others:
        raise UserError(
            f"{path}: activation_fn_kwargs holds {', '.join(others)}, and only k can be read", remedy=EXPORT
        )
    found = {repr(where["k"]): where["k"] for where in (settings, arguments) if "k" in where}
    if len(found) > 1:
        raise UserError(f"{path}: k is {settings['k']!r}, and {arguments['k']!r} in activation_fn_kwargs", remedy=AGAIN)
    return {"k": next(iter(found.values()))} if found else {}


def _shape(settings: dict[str, Any], path: Path) -> Config:
    is_topk = settings["architecture"] == "topk"
    names = {"width": "d_in", "num_features": "d_sae"} | ({"k": "k"} if is_topk else {})
    return shape_from(settings, names, TopKConfig if is_topk else JumpReLUConfig, path)
