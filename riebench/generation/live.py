"""What is computed while the image is generated, from what the model makes at that moment.

`Rewrite` sets latents, for an intervention; `Reconstruct` puts a reconstruction in the value's place, for evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.dictionary import Dictionary, decode_some
from sae_models.saved import describe_dictionary, rebuild_dictionary

_DICTIONARY = "dictionary."  # before the names of a dictionary's tensors


@dataclass(frozen=True)
class Rewrite:
    """Adds D = strength * (target - z) W_dec at each cell of a region, where z are the latents of the running value.

    With strength 1 the chosen latents become `target`, and all that the dictionary does not say of the value stays:
    decode(z') + (x - decode(z)) = x + (z' - z) W_dec (protocol §6, "replace"). With target 0 they are taken away, m
    times (the subtracted part of "adaptive").
    """

    dictionary: Dictionary
    features: Tensor
    """The chosen latents, int64 `[n]`."""
    cells: Tensor
    """The region, bool `[cells]`."""
    target: Tensor | None = None
    """`[steps, region's cells, n]`; None is 0."""
    strength: float = 1.0
    mean: bool = False
    """Whether z is the region's mean in place of each cell's own value."""

    def __post_init__(self) -> None:
        wanted = (int(self.cells.sum()), len(self.features))
        if self.target is not None and tuple(self.target.shape[1:]) != wanted:
            raise UserError(
                f"the target of a rewrite has shape {list(self.target.shape)}",
                remedy=f"give [steps, {wanted[0]}, {wanted[1]}]: a value for each cell and feature",
            )
        if self.target is not None and not torch.isfinite(self.target).all():
            raise UserError("the target of a rewrite holds NaN or infinite values", remedy="check the dictionary")

    @torch.no_grad()
    def delta(self, value_nc: Tensor, step: int) -> Tensor:
        """Returns what is added to the running value `[cells, C]` at a step, of its dtype and on its device."""
        here = self.cells.device  # where the dictionary is too
        cells = self.cells.to(value_nc.device)
        chosen = self.dictionary.encode(value_nc[cells].float().to(here))[:, self.features]
        if self.mean and len(chosen):
            chosen = chosen.mean(dim=0, keepdim=True)
        change = self.strength * ((0 if self.target is None else self.target[step]) - chosen)
        change = change.expand(int(cells.sum()), -1)
        added = torch.zeros_like(value_nc)
        added[cells] = decode_some(self.dictionary, self.features, change).to(value_nc)
        return added

    def describe(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns what JSON can hold, and tensors, of which `rebuild` makes the rewrite again."""
        words, weights = describe_dictionary(self.dictionary)
        parts = {"features": self.features, "cells": self.cells}
        if self.target is not None:
            parts["target"] = self.target
        parts |= {f"{_DICTIONARY}{name}": value for name, value in weights.items()}
        return {"strength": self.strength, "mean": self.mean, "dictionary": words}, parts

    @classmethod
    def rebuild(cls, words: dict[str, Any], parts: dict[str, Tensor]) -> Rewrite:
        """Returns the rewrite that `describe` described. Raises `UserError` where it is of no kind that is known."""
        weights = {name.removeprefix(_DICTIONARY): parts[name] for name in parts if name.startswith(_DICTIONARY)}
        dictionary = rebuild_dictionary(words["dictionary"], weights)
        return cls(dictionary, parts["features"], parts["cells"], parts.get("target"), words["strength"], words["mean"])


@dataclass(frozen=True)
class Reconstruct:
    """Puts decode(encode(x)) in the place of the running value x, at all cells.

    For a `Lens`, which gives it every row of the batch: an `Intervention` with branch "both" would take away from the
    row without a prompt what it adds to the other, where each row is to have its own reconstruction.
    """

    dictionary: Dictionary
    """On the device of the values."""

    @torch.no_grad()
    def delta(self, value_nc: Tensor, _step: int) -> Tensor:
        """Returns what is added to the running value `[..., cells, C]`, of its dtype."""
        rows_nc = value_nc.float()
        return (self.dictionary.decode(self.dictionary.encode(rows_nc)) - rows_nc).to(value_nc)
