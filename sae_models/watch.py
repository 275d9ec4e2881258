"""A training is watched here for values that are no numbers any more, without waiting for the device at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.stack import Losses
from sae_models.training_config import TrainConfig
from sae_models.training_state import Training


class Watch:
    """This remembers, on the device, the first step whose batch and the first whose losses were not finite."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self._batch = torch.full((), config.steps, device=device)
        self._losses = self._batch.clone()

    def see(self, step: int, batch: Tensor, losses: Sequence[Losses]) -> None:
        """Looks at what a step has read, and what came of it. Does not wait for the device."""
        bad = ~torch.isfinite(batch).all()
        self._batch = torch.where(bad, self._batch.clamp(max=step), self._batch)
        bad = ~torch.isfinite(torch.stack([each.statistics_s4.sum() for each in losses]).sum())
        self._losses = torch.where(bad, self._losses.clamp(max=step), self._losses)

    def check(self, training: Training, losses: Sequence[Losses], kept: str) -> None:
        """Raises `UserError` naming the first step that was not finite; waits for the device.

        losses: of the last step. kept: what is said of the state that was saved last.
        """
        batch, lost = int(self._batch), int(self._losses)
        if batch < self.config.steps and batch <= lost:
            raise not_finite(batch, kept)
        healthy = training.in_order(
            [_finite_members(stack, each) for stack, each in zip(training.stacks, losses, strict=True)]
        )
        if lost == self.config.steps and all(healthy):
            return
        which = [str(number) for number, fine in enumerate(healthy) if not fine]
        named = f"SAE {', '.join(which)} of {len(healthy)}" if which and len(healthy) > 1 else "the SAE"
        raise UserError(
            f"the training of {named} came to NaN or infinite values at step {min(lost, training.step - 1)}{kept}",
            remedy=f"lower lr, which is {self.config.lr:g}, or see whether some rows are far longer than the others",
        )


def not_finite(step: int, kept: str = "") -> UserError:
    """Returns what is said of a batch that holds NaN or infinite values."""
    return UserError(
        f"the batch of step {step} holds NaN or infinite values{kept}",
        remedy="check how the rows were captured; half precision overflows where bfloat16 does not",
    )


def _finite_members(stack: torch.nn.Module, losses: Losses) -> list[bool]:
    """Returns of each autoencoder of a stack whether its statistics and its weights are finite."""
    values = [losses.statistics_s4, *stack.parameters()]
    return torch.stack([torch.isfinite(value.detach().flatten(1).sum(1)) for value in values]).all(0).tolist()
