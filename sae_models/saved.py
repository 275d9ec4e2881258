"""Dictionaries of every kind become words and tensors here, for files that hold more than a dictionary."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from riebench.core.errors import UserError
from sae_models.checkpoint import OURS, Ours
from sae_models.dictionary import Dictionary, Identity
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.topk import TopKConfig, TopKSAE

#: Name in a file -> (class, its configuration), of autoencoders: modules that are made of a configuration.
AUTOENCODERS: dict[str, tuple[type[TopKSAE | JumpReLUSAE], type[TopKConfig | JumpReLUConfig]]] = {
    "topk": (TopKSAE, TopKConfig),
    "jumprelu": (JumpReLUSAE, JumpReLUConfig),
}
#: Name in a file -> class, of dictionaries that are dataclasses of tensors and plain values.
DATACLASSES: dict[str, type[Ours | Identity]] = {**OURS, "identity": Identity}


def describe_dictionary(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what JSON can hold of a dictionary, and its tensors. Raises `UserError` for a kind that is not ours."""
    for name, (autoencoder, _) in AUTOENCODERS.items():
        if type(dictionary) is autoencoder:
            return {"kind": name, **asdict(dictionary.config)}, dict(dictionary.state_dict())
    for name, dataclass in DATACLASSES.items():
        if type(dictionary) is dataclass:
            values = {field.name: getattr(dictionary, field.name) for field in fields(dataclass)}
            tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
            return {"kind": name, **{key: values[key] for key in values.keys() - tensors.keys()}}, tensors
    raise UserError(
        f"a dictionary of kind {type(dictionary).__name__} cannot be written",
        remedy=f"use one of the kinds {', '.join([*AUTOENCODERS, *DATACLASSES])}",
    )


def rebuild_dictionary(words: dict[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    """Returns the dictionary that `describe_dictionary` described. Raises `UserError` for an unknown kind, and
    `TypeError`, `KeyError` or `RuntimeError` where words or tensors are not those of its kind."""
    settings = {key: value for key, value in words.items() if key != "kind"}
    if words["kind"] in AUTOENCODERS:
        _, config = AUTOENCODERS[words["kind"]]
        module = config(**settings).sae()
        module.load_state_dict(tensors)
        return module.eval().requires_grad_(False)
    if words["kind"] in DATACLASSES:
        return DATACLASSES[words["kind"]](**settings, **tensors)
    raise UserError(f"a dictionary of kind {words['kind']!r} is unknown", remedy="use a newer riebench")
