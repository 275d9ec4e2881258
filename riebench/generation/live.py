"""What is computed while the image is generated, from what the U-Net makes at that moment.

`Rewrite` sets latents, for an intervention; `Reconstruct` puts a reconstruction in the value's place, for evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.dictionary import Dictionary, Identity
from sae_models.topk import TopKConfig, TopKSAE


@dataclass(frozen=True)
class Rewrite:
    """At each cell of a region D = strength * (target - z) W_dec, where z are the latents of the running value.

    With strength 1 the chosen latents become `target`, and all that the dictionary does not say of the value stays:
    decode(z') + (x - decode(z)) = x + (z' - z) W_dec (protocol §6, "replace"). With target 0 they are taken away, m
    times (the subtracted part of "adaptive").
    """

    dictionary: Dictionary
    features: Tensor
    """The chosen latents, int64 `[n]`."""
    cells: Tensor
    """The region, bool `[h, w]`."""
    target: Tensor | None = None
    """`[steps, cells, n]`, cells in reading order; None is 0."""
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
    def delta(self, value_chw: Tensor, step: int) -> Tensor:
        """What is added to the running value `[C, h, w]` at a step, of its dtype and on its device."""
        rows_nc = value_chw[:, self.cells.to(value_chw.device)].T
        z_nf = self.dictionary.encode(rows_nc.float().cpu())
        chosen = z_nf[:, self.features]
        if self.mean and len(chosen):
            chosen = chosen.mean(dim=0, keepdim=True)
        change = torch.zeros_like(z_nf)
        change[:, self.features] = self.strength * ((0 if self.target is None else self.target[step]) - chosen)
        added = torch.zeros_like(value_chw)
        added[:, self.cells.to(value_chw.device)] = self.dictionary.decode_linear(change).T.to(value_chw)
        return added

    def describe(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(What JSON can hold, tensors), of which `rebuild` makes the rewrite again."""
        parts = {"features": self.features, "cells": self.cells}
        if self.target is not None:
            parts["target"] = self.target
        words: dict[str, Any] = {"strength": self.strength, "mean": self.mean}
        match self.dictionary:
            case TopKSAE() as sae:
                words["k"] = sae.config.k
                parts |= {f"dictionary.{name}": value for name, value in sae.state_dict().items()}
            case Identity(width=width):
                words["width"] = width
            case other:
                raise UserError(
                    f"a dictionary of kind {type(other).__name__} cannot be written", remedy="use TopKSAE or Identity"
                )
        return words, parts

    @classmethod
    def rebuild(cls, words: dict[str, Any], parts: dict[str, Tensor]) -> Rewrite:
        if "k" in words:
            weights = {name.removeprefix("dictionary."): parts[name] for name in parts if name.startswith("dictionary")}
            num_features, width = weights["W_dec"].shape
            dictionary: Dictionary = TopKSAE(TopKConfig(width=width, num_features=num_features, k=words["k"]))
            dictionary.load_state_dict(weights)
            dictionary.requires_grad_(False)
        else:
            dictionary = Identity(words["width"])
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
    def delta(self, value_chw: Tensor, _step: int) -> Tensor:
        """What is added to the running value `[C, h, w]`, or to each of a batch `[b, C, h, w]`, of its dtype."""
        rows_hwc = value_chw.movedim(-3, -1).float()
        change_hwc = self.dictionary.decode(self.dictionary.encode(rows_hwc)) - rows_hwc
        return change_hwc.movedim(-1, -3).to(value_chw)
