"""Autoencoders of one architecture but for their seeds are trained at once, as their settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from riebench.core.errors import UserError
from sae_models.architectures import Architecture
from sae_models.normalisation import Normalisation
from sae_models.revival import DEAD_AFTER
from sae_models.tensors import SAE
from sae_models.weights import Weights

P = ParamSpec("P")
T = TypeVar("T")

CALIBRATION_CODES = 2_048  # rows coded to find the length of the encoder
RECOMPILATIONS = 64  # torch gives up after 8 of one function; each kind of architecture is one


@dataclass(frozen=True)
class Losses:
    """This is what one batch gave for each autoencoder of a stack, on the device."""

    loss_s: Tensor
    """What is minimised."""
    statistics_s4: Tensor
    """The loss, explained variance, L0, and the share of dead features. Without a graph."""
    residual_snd: Tensor | None
    """What the whole code leaves of the rows, where a restart may ask for it. Without a graph."""


class Stack(Weights):
    """A stack is S autoencoders of one architecture but for their seeds."""

    def __init__(self, architectures: Sequence[Architecture], compute: torch.dtype = torch.float32) -> None:
        """Sets all weights to zero, until `start` or `load_state_dict`. compute: the type of the products; weights stay
        float32."""
        stack, one = len(architectures), architectures[0]
        super().__init__(stack, one.num_features, one.width, one.sparsity.own_parameters, compute)
        self.architectures, self.architecture = list(architectures), one
        self._code, self._unexplained = one.sparsity.code, unexplained

    @torch.no_grad()
    def start(self, rows_nd: Tensor, bias_d: Tensor, k: int) -> None:
        """Points decoder rows in random directions; makes the encoder so long that codes have the magnitude of what
        they code (Gao et al., appendix A.1); sets the bias as given, and the latents' unit to the rows' rms norm.

        Rows of the data as directions leave fewer features dead at first, but crowd into the few directions that hold
        most of the variance: on tinyworld's updates explained variance then ends 0.001 lower.
        """
        self.b_dec.copy_(bias_d.expand_as(self.b_dec))
        centred_nd = rows_nd - bias_d
        centred_nd = centred_nd[centred_nd.norm(dim=1) > 0]
        self.unit.copy_((rows_nd - rows_nd.mean(0)).pow(2).sum(1).mean().sqrt())
        f, d = self.architecture.num_features, self.architecture.width
        for s, architecture in enumerate(self.architectures):
            generator = torch.Generator().manual_seed(architecture.seed)
            self.W_dec[s] = normalize(torch.randn(f, d, generator=generator), dim=-1)
        self.W_enc.copy_(self.W_dec)
        for name, value in self.architecture.sparsity.start_values(self).items():
            self.get_parameter(name).copy_(value)
        some_nd = centred_nd[:CALIBRATION_CODES]
        coded_snd = self._code(self, some_nd + bias_d, k, self.architecture.nested).nested[-1] - self.b_dec[:, None]
        self.W_enc.mul_((some_nd.norm(dim=1).mean() / coded_snd.norm(dim=-1).mean(1))[:, None, None])
        self.threshold.zero_()

    def compile_parts(self) -> None:
        """Sends through `torch.compile` what fuses: the squared errors, and the latents of L1 and JumpReLU with their
        penalty. The largest latents stay as they are: oneDNN's products, `topk` and sparse sums do not fuse.

        Raises `UserError` where `torch.compile` does not work on this device.
        """
        try:
            torch.compile(lambda x: x.sin() + 1)(self.unit)
        except Exception as error:  # each backend has its own
            raise UserError(
                f"torch.compile does not work on {self.unit.device}: {str(error).strip().splitlines()[0]}",
                remedy="install a C++ compiler, on a GPU Triton too, or train without compile",
            ) from error
        self._unexplained = _compiled(self._unexplained)
        if self.architecture.sparsity.fuses:
            self._code = _compiled(self._code)

    def losses(self, x_nd: Tensor, k: int) -> Losses:
        """Returns what is minimised for normalised rows. k: TopK's and BatchTopK's at this step.

        The loss is the mean, over nested codes and the whole, of sum ||x - x_hat||^2 / sum ||x - mean||^2, plus what
        the architecture asks for latents, plus what its revival adds. Counts the rows since each feature was active.
        """
        coded = self._code(self, x_nd, k, self.architecture.nested)
        unexplained_s = self._unexplained(x_nd, coded.nested)
        loss_s = torch.stack(unexplained_s).mean(0) + coded.penalty_s
        revival, residual_snd = self.architecture.revival, None
        if revival is not None:
            residual_snd = (x_nd - coded.nested[-1]).detach()
            loss_s = loss_s + revival.loss(self, x_nd, residual_snd)
        with torch.no_grad():
            self.rows_since_active.add_(len(x_nd)).masked_fill_(coded.active_sf, 0)
            statistics = (loss_s, 1 - unexplained_s[-1], coded.l0_s, self._is_dead().float().mean(1))
            kept_snd = residual_snd if revival is not None and revival.restarts else None
            return Losses(loss_s, torch.stack(statistics, dim=1), kept_snd)

    def _is_dead(self) -> Tensor:
        """Returns which features are dead, `[S, f]`."""
        revival = self.architecture.revival
        return self.rows_since_active >= (DEAD_AFTER if revival is None else revival.dead_after)

    @torch.no_grad()
    def list_dead(self) -> None:
        """Reads which features are dead, for the revival until it is called again. Waits for the device."""
        if self.architecture.revival is not None:
            self.dead = [dead_f.nonzero().flatten() for dead_f in self._is_dead()]

    def restart(self, residual_snd: Tensor | None, optimiser: torch.optim.Adam, step: int) -> None:
        """Lets dead features start again, where the architecture asks for that. residual_snd: that of `losses`."""
        revival = self.architecture.revival
        if revival is not None and residual_snd is not None:
            seeds = [architecture.seed for architecture in self.architectures]
            revival.restart(self, seeds, residual_snd, optimiser, step)

    def exported(self, normalisation: Normalisation) -> list[SAE]:
        """Returns autoencoders of raw rows, for inference: `TopKSAE` of TopK, `JumpReLUSAE` of all others."""
        sparsity = self.architecture.sparsity
        return [sparsity.exported(self, s, normalisation) for s in range(len(self.architectures))]


def unexplained(x_nd: Tensor, nested: list[Tensor]) -> list[Tensor]:
    """Returns of each nested code the share of the rows' variance that its reconstruction leaves, `[S]`."""
    square = (x_nd - x_nd.mean(0)).pow(2).sum().clamp_min(torch.finfo(x_nd.dtype).tiny)
    return [(x_nd - x_hat_snd).pow(2).sum((1, 2)) / square for x_hat_snd in nested]


def _compiled(part: Callable[P, T]) -> Callable[P, T]:
    """Returns a part that goes through `torch.compile`, with more recompilations while it runs than torch allows."""
    limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
    return torch._dynamo.config.patch(recompile_limit=limit)(torch.compile(part))
