"""Checkpoints of dictionary_learning (package `dictionary-learning`, 0.1) are read here.

A folder with `config.json`: under `trainer` the `dict_class`, `activation_dim` (d), `dict_size` (f), for the classes
that have it `k`, and settings of the training; and `ae.pt`, a pickle by torch of named tensors. What is read, and as
what (weights as by `torch.nn.Linear`: encoder [f, d], decoder [d, f]):

- AutoEncoder: encoder.weight, encoder.bias, decoder.weight, bias [d]. ReLU, so `JumpReLUSAE` with threshold 0. The
  norms of the decoder's columns go into the encoder, as they do when the package loads one.
- AutoEncoderTopK: the same with b_dec for bias, k, and a threshold that is not used at inference: `TopKSAE`.
- BatchTopKSAE: the same, with that one threshold used for all features: `JumpReLUSAE`. Below zero, as it is until the
  training sets it, there is a ReLU alone.
- JumpReluAutoEncoder: W_enc [d, f], b_enc, W_dec [f, d], b_dec, threshold [f]; the encoder reads x, not x - b_dec.

Pickles are read by torch's loader of weights alone, which refuses one with code in it and runs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import read_json
from sae_models.jumprelu import JumpReLUConfig
from sae_models.layouts import DICTIONARY_LEARNING, refuse_missing
from sae_models.tensors import (
    AGAIN,
    SAE,
    Config,
    for_inference,
    read_pickle,
    refuse_misfit,
    refuse_not_finite,
    refuse_strange,
    shape_from,
    unit_rows,
    whole_input,
)
from sae_models.topk import TopKConfig

CLASSES = ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder")
SHAPE = {"width": "activation_dim", "num_features": "dict_size"}


def load(folder: Path, *, device: str | torch.device = "cpu") -> SAE:
    """Reads a checkpoint for inference, in float32.

    Raises `UserError` for files that are missing, truncated or hold code, for a class that is not read, and for weights
    whose names, shapes or values do not fit the configuration.
    """
    trainer = _read_trainer(folder)
    config = read_config(folder)
    path = Path(folder) / DICTIONARY_LEARNING.weights
    refuse_missing(path, DICTIONARY_LEARNING)
    content = read_pickle(path, AGAIN)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no dictionary of tensors", remedy=AGAIN)
    tensors = dict(content)
    stated_k = tensors.pop("k", None)  # a count, of no use but to disagree
    if stated_k is not None and "k" in trainer and not _is_count(stated_k, trainer["k"]):
        raise UserError(f"{path} has another k than its {DICTIONARY_LEARNING.config}: {trainer['k']}", remedy=AGAIN)
    refuse_strange(tensors, str(path), AGAIN)
    tensors = {name: value.detach().float() for name, value in tensors.items()}
    kind = trainer["dict_class"]
    if kind == "AutoEncoderTopK":
        tensors.pop("threshold", None)
    refuse_misfit(tensors, _shapes(kind, config), str(path), DICTIONARY_LEARNING.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    return for_inference(config, _ours(kind, tensors, config), device)


def read_config(folder: Path) -> Config:
    """Returns what `config.json` says of the shape. Raises `UserError` where it is broken or of a class that is not
    read."""
    trainer = _read_trainer(folder)
    path = Path(folder) / DICTIONARY_LEARNING.config
    if trainer["dict_class"] == "AutoEncoderTopK":
        return shape_from(trainer, SHAPE | {"k": "k"}, TopKConfig, path)
    return shape_from(trainer, SHAPE, JumpReLUConfig, path)


def _read_trainer(folder: Path) -> dict[str, Any]:
    path = Path(folder) / DICTIONARY_LEARNING.config
    trainer = read_json(path, "SAE configuration").get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise UserError(f"{path} names no dict_class under trainer", remedy=AGAIN)
    kind = trainer["dict_class"]
    if kind not in CLASSES:
        raise UserError(
            f"{path}: the class {kind!r} cannot be read{did_you_mean(kind, CLASSES)}",
            remedy=f"use one of {', '.join(CLASSES)}",
        )
    return trainer


def _shapes(kind: str, config: Config) -> dict[str, tuple[int, ...]]:
    d, f = config.width, config.num_features
    if kind == "JumpReluAutoEncoder":
        return {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,), "threshold": (f,)}
    linear = {"encoder.weight": (f, d), "encoder.bias": (f,), "decoder.weight": (d, f)}
    match kind:
        case "AutoEncoder":
            return linear | {"bias": (d,)}
        case "BatchTopKSAE":
            return linear | {"b_dec": (d,), "threshold": ()}
    return linear | {"b_dec": (d,)}


def _ours(kind: str, tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Returns the tensors under our names, with what else the class computes folded in."""
    if kind == "JumpReluAutoEncoder":
        return whole_input(tensors)
    named = {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["bias" if kind == "AutoEncoder" else "b_dec"],
    }
    match kind:
        case "AutoEncoder":
            return unit_rows(named) | {"threshold": torch.zeros(config.num_features)}
        case "BatchTopKSAE":
            return named | {"threshold": tensors["threshold"].expand(config.num_features)}
    return named


def _is_count(value: object, count: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.item() == count
