"""This library holds dictionaries of activation vectors: how they are made, evaluated, saved and found again.

It knows tensors, not diffusion. Importing the package, and `sae_models.index`, does not import torch.
"""

from __future__ import annotations

from importlib import import_module

_ROOMS = {
    "Architecture": "architectures",
    "AuxK": "architectures",
    "BatchTopK": "architectures",
    "Dictionary": "dictionary",
    "Evaluation": "evaluation",
    "Identity": "dictionary",
    "JumpReLU": "architectures",
    "JumpReLUConfig": "jumprelu",
    "JumpReLUSAE": "jumprelu",
    "L1": "architectures",
    "Matryoshka": "architectures",
    "Normalisation": "normalisation",
    "Restart": "architectures",
    "TopK": "architectures",
    "TopKConfig": "topk",
    "TopKSAE": "topk",
    "TrainConfig": "training_config",
    "evaluate": "evaluation",
    "load": "checkpoint",
    "save": "checkpoint",
    "shuffled_batches": "batches",
    "train": "trainer",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
