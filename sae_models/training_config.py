"""One frozen setting says how autoencoders are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from riebench.core.errors import UserError
from sae_models.normalisation import KINDS

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """This says how autoencoders are trained. Raises `UserError` for values that cannot be meant."""

    steps: int = 20_000
    """Optimiser steps, a batch each."""
    lr: float = 1e-4
    """Adam's peak learning rate. More features want less: 4e-3 suits 768 of them, 1e-4 suits 5,120."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises linearly from zero."""
    decay: float = 0.15
    """Share of the steps, the last ones, in which it falls linearly to zero."""
    normalisation: str = "scale"
    """How rows are normalised: "none", "mean", "scale" or "whiten" (`Normalisation.of`)."""
    compute: str = "float32"
    """The type of the products: "float32" or "bfloat16". Weights and Adam's moments stay in float32."""
    report_every: int = 100
    """Steps between two reads of the statistics, and of which features are dead: each waits for the device. Dead
    features start again (`Restart`) at these steps alone."""
    compile: bool = False
    """Whether parts go through `torch.compile` (`Stack.compile_parts`): the same training but for rounding, so a state
    is resumed with it or without."""

    def __post_init__(self) -> None:
        for name in ("steps", "report_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training {name} is {getattr(self, name)}", remedy="give a whole number of at least 1")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training {name} is {getattr(self, name)}", remedy="give a share between 0 and 1")
        for name, choices in (("normalisation", KINDS), ("compute", tuple(COMPUTE))):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"training {name} is {getattr(self, name)!r}", remedy=f"choose one of {', '.join(choices)}"
                )
        if not 0 < self.lr < math.inf:
            raise UserError(f"training lr is {self.lr}", remedy="give a number above 0")

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, rise, fall)
