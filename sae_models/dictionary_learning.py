"""Checkpoints of dictionary_learning (package `dictionary-learning`, 0.1) are read here.

A folder with `config.json`: under `trainer` the `dict_class` (early files have a `trainer_class` alone),
`activation_dim` (d), `dict_size` (f), for the classes that have it `k`, and settings of the training, which are not
read: where it scaled its rows, the package saves weights for rows as they are. And `ae.pt`, a pickle by torch of named
tensors. What is read, and as what (weights as by `torch.nn.Linear`: encoder [f, d], decoder [d, f]):

- AutoEncoder: encoder.weight, encoder.bias, decoder.weight, bias [d]. ReLU, so `JumpReLUSAE` with threshold 0. The
  norms of the decoder's columns go into the encoder, as they do when the package loads one.
- AutoEncoderTopK: the same with b_dec for bias, k, and a threshold that is not used at inference: `TopKSAE`.
- BatchTopKSAE: the same, with that one threshold used for all features: `JumpReLUSAE`. Below zero, as it is until the
  training sets it, there is a ReLU alone.
- MatryoshkaBatchTopKSAE: the same, with all groups of features; laid out as the next one, with group_sizes.
- JumpReluAutoEncoder: W_enc [d, f], b_enc, W_dec [f, d], b_dec, threshold [f]; the encoder reads x, not x - b_dec.
- AutoEncoderNew: as AutoEncoder, with decoder.bias for bias; the encoder reads x, and the norms stay where they are.
- GatedAutoEncoder: encoder.weight, decoder.weight, decoder_bias [d], r_mag, mag_bias, gate_bias [f]: `JumpReLUSAE`.

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
    ungated,
    unit_rows,
    whole_input,
)
from sae_models.topk import TopKConfig

TRAINERS = {
    "AutoEncoder": ("StandardTrainer", "StandardTrainerAprilUpdate", "PAnnealTrainer"),
    "AutoEncoderNew": ("StandardTrainerNew", "PAnnealTrainerNew"),
    "GatedAutoEncoder": ("GatedSAETrainer", "GatedAnnealTrainer"),
    "JumpReluAutoEncoder": ("JumpReluTrainer", "TrainerJumpRelu"),
    "AutoEncoderTopK": ("TopKTrainer", "TrainerTopK"),
    "BatchTopKSAE": ("BatchTopKTrainer", "TrainerBatchTopK"),
    "MatryoshkaBatchTopKSAE": ("MatryoshkaBatchTopKTrainer", "MatroyshkaBatchTopKTrainer"),
}
"""Class -> what trains it, where the file names the trainer alone."""
CLASSES = tuple(TRAINERS)
RENAMED = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}  # as it was misspelt at first
OTHERS = {
    "IdentityDict": "which is no dictionary but the rows themselves",
    "CrossCoder": "which reads the rows of several layers",
    "BatchTopKCrossCoder": "which reads the rows of several layers",
}
"""Classes that the package and its forks have besides -> what they are."""
SHAPE = {"width": "activation_dim", "num_features": "dict_size"}
Shapes = dict[str, tuple[int, ...]]


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
    kind = trainer["dict_class"]
    groups = tensors.pop("group_sizes", None) if kind == "MatryoshkaBatchTopKSAE" else None
    if groups is not None and not _is_count(torch.as_tensor(groups).sum(), config.num_features):
        raise UserError(f"{path}: group_sizes does not come to {config.num_features} features", remedy=AGAIN)
    refuse_strange(tensors, str(path), AGAIN)
    tensors = {name: value.detach().float() for name, value in tensors.items()}
    if kind == "AutoEncoderTopK":
        tensors.pop("threshold", None)
    refuse_misfit(tensors, _shapes(kind, config), str(path), DICTIONARY_LEARNING.config, AGAIN)
    refuse_not_finite(tensors, str(path), AGAIN)
    ours = _ours(kind, tensors, config)
    refuse_not_finite(ours, f"what {path} comes to", AGAIN)
    return for_inference(config, ours, device)


def read_config(folder: Path) -> Config:
    """Returns what `config.json` says of the shape. Raises `UserError` where it is broken or of a class that is not
    read."""
    trainer = _read_trainer(folder)
    path = Path(folder) / DICTIONARY_LEARNING.config
    if trainer["dict_class"] == "AutoEncoderTopK":
        return shape_from(trainer, SHAPE | {"k": "k"}, TopKConfig, path)
    return shape_from(trainer, SHAPE, JumpReLUConfig, path)


def _read_trainer(folder: Path) -> dict[str, Any]:
    """Returns the settings under `trainer`, with `dict_class` by today's name. Raises `UserError` for what is not
    read."""
    path = Path(folder) / DICTIONARY_LEARNING.config
    config = read_json(path, "SAE configuration")
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or not trainer.keys() & {"dict_class", "trainer_class"}:
        raise UserError(f"{path} names no dict_class under trainer", remedy=AGAIN)
    by_trainer = {name: kind for kind, names in TRAINERS.items() for name in names}
    named = trainer["dict_class"] if "dict_class" in trainer else trainer["trainer_class"]
    known = RENAMED | {kind: kind for kind in CLASSES} | ({} if "dict_class" in trainer else by_trainer)
    if not isinstance(named, str) or named not in known:
        what = OTHERS.get(named) if isinstance(named, str) else None
        raise UserError(
            f"{path}: the class {named!r} cannot be read{f', {what}' if what else did_you_mean(named, known)}",
            remedy=f"use one of {', '.join(CLASSES)}",
        )
    buffer = config.get("buffer")
    if isinstance(buffer, dict) and buffer.get("io") == "in_and_out":
        raise UserError(
            f"{path}: io of its buffer is 'in_and_out': a transcoder, from the rows of one place to those of another",
            remedy="use an autoencoder, whose io is 'in' or 'out'",
        )
    return trainer | {"dict_class": known[named]}


def _shapes(kind: str, config: Config) -> Shapes:
    d, f = config.width, config.num_features
    plain: Shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    linear: Shapes = {"encoder.weight": (f, d), "decoder.weight": (d, f)}
    biased: Shapes = linear | {"encoder.bias": (f,)}
    shapes: dict[str, Shapes] = {
        "AutoEncoder": biased | {"bias": (d,)},
        "AutoEncoderNew": biased | {"decoder.bias": (d,)},
        "GatedAutoEncoder": linear | {"decoder_bias": (d,), "r_mag": (f,), "mag_bias": (f,), "gate_bias": (f,)},
        "JumpReluAutoEncoder": plain | {"threshold": (f,)},
        "AutoEncoderTopK": biased | {"b_dec": (d,)},
        "BatchTopKSAE": biased | {"b_dec": (d,), "threshold": ()},
        "MatryoshkaBatchTopKSAE": plain | {"threshold": ()},
    }
    return shapes[kind]


def _ours(kind: str, tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Returns the tensors under our names, with what else the class computes folded in."""
    if kind == "JumpReluAutoEncoder":
        return whole_input(tensors)
    if kind == "MatryoshkaBatchTopKSAE":
        return tensors | {"threshold": tensors["threshold"].expand(config.num_features)}
    (bias,) = tensors.keys() & {"bias", "b_dec", "decoder.bias", "decoder_bias"}
    named = {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T, "b_dec": tensors[bias]}
    if kind == "GatedAutoEncoder":
        return ungated(named, r_mag=tensors["r_mag"], b_mag=tensors["mag_bias"], b_gate=tensors["gate_bias"])
    named["b_enc"] = tensors["encoder.bias"]
    zeros_f = torch.zeros(config.num_features)
    match kind:
        case "AutoEncoder":
            return unit_rows(named) | {"threshold": zeros_f}
        case "AutoEncoderNew":
            return whole_input(named) | {"threshold": zeros_f}
        case "BatchTopKSAE":
            return named | {"threshold": tensors["threshold"].expand(config.num_features)}
    return named


def _is_count(value: object, count: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.item() == count
