"""Latents above a threshold are active here, and the loss has a penalty on them: L1 and JumpReLU."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_models.jumprelu import JumpReLUConfig
from sae_models.normalisation import Normalisation
from sae_models.settings import refuse_unless_positive
from sae_models.sparsity import Coded, Nested, Sparsity
from sae_models.tensors import SAE
from sae_models.weights import Weights

LOG_THRESHOLD = "log_threshold"


class Thresholded(Sparsity):
    """This is what settings with a threshold for each feature share. They are exported as a JumpReLU autoencoder."""

    fuses = True

    @abstractmethod
    def latents(self, weights: Weights, h_snf: Tensor) -> tuple[Tensor, Tensor]:
        """Returns latents `[S, n, f]` of preactivations, and the penalty on them `[S]`."""

    @abstractmethod
    def threshold(self, weights: Weights) -> Tensor:
        """Returns the thresholds `[S, f]`: a latent is active above its own."""

    def code(self, weights: Weights, x_nd: Tensor, k: int, nested: Nested) -> Coded:
        with torch.autocast(x_nd.device.type, weights.compute, enabled=weights.compute != torch.float32):
            h_snf = (x_nd @ weights.W_enc.mT).float() + weights.effective_bias()[:, None]
            z_snf, penalty_s = self.latents(weights, h_snf)
            codes = [
                (z_snf[..., :size] @ weights.W_dec[:, :size]).float() + weights.b_dec[:, None]
                for size in (*nested.sizes, z_snf.shape[-1])
            ]
        active_snf = z_snf.detach() > 0
        return Coded(codes, penalty_s, active_snf.any(1), active_snf.sum((1, 2)) / len(x_nd))

    def exported(self, weights: Weights, s: int, normalisation: Normalisation) -> SAE:
        _, f, d = weights.W_enc.shape
        threshold_f = self.threshold(weights)[s]
        return weights.inference_sae(s, JumpReLUConfig(d, f), normalisation, rescale=True, threshold=threshold_f)


@dataclass(frozen=True)
class L1(Thresholded):
    """Latents are a ReLU, and their sum is in the loss. Exported as a JumpReLU autoencoder with threshold 0."""

    weight: float
    """The loss gains weight * (mean over rows of the latents' sum), with latents in units of the rows' rms norm."""

    def __post_init__(self) -> None:
        refuse_unless_positive(self, "weight")

    def latents(self, weights: Weights, h_snf: Tensor) -> tuple[Tensor, Tensor]:
        z_snf = h_snf.relu()
        return z_snf, self.weight * z_snf.sum(-1).mean(1) / weights.unit

    def threshold(self, weights: Weights) -> Tensor:
        return torch.zeros_like(weights.b_enc)


@dataclass(frozen=True)
class JumpReLU(Thresholded):
    """Each feature has a threshold, trained by a straight-through estimator (arXiv 2407.14435)."""

    l0_weight: float
    """The loss gains l0_weight * (mean over rows of the number of active latents)."""
    bandwidth: float = 0.001
    """Width of the estimator's rectangle, in units of the rows' rms norm; also the first value of each threshold."""
    own_parameters: ClassVar[tuple[str, ...]] = (LOG_THRESHOLD,)

    def __post_init__(self) -> None:
        refuse_unless_positive(self, "l0_weight", "bandwidth")

    def start_values(self, weights: Weights) -> dict[str, Tensor]:
        return {LOG_THRESHOLD: (self.bandwidth * weights.unit).log().expand_as(weights.b_enc)}

    def latents(self, weights: Weights, h_snf: Tensor) -> tuple[Tensor, Tensor]:
        width = self.bandwidth * weights.unit
        z_snf, gate_snf = Jump.apply(h_snf, self.threshold(weights)[:, None], width)
        return z_snf, self.l0_weight * gate_snf.sum(-1).mean(1)

    def threshold(self, weights: Weights) -> Tensor:
        return weights.get_parameter(LOG_THRESHOLD).exp()


class Jump(torch.autograd.Function):
    """Computes, of h `[S, n, f]` at thresholds `[S, 1, f]`, latents h [h > threshold], and [h > threshold] itself.

    The gradient goes to h where it is above, and to thresholds through a rectangle of the given width around them, as
    the expectation over h would have it (arXiv 2407.14435, equations 11 and 12).
    """

    @staticmethod
    def forward(ctx: Any, h_snf: Tensor, threshold_s1f: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        gate_snf = (h_snf > threshold_s1f).to(h_snf.dtype)
        ctx.save_for_backward(h_snf, threshold_s1f, gate_snf, width)
        return h_snf * gate_snf, gate_snf

    @staticmethod
    def backward(ctx: Any, grad_z_snf: Tensor, grad_gate_snf: Tensor) -> tuple[Tensor, Tensor, None]:
        h_snf, threshold_s1f, gate_snf, width = ctx.saved_tensors
        near_snf = ((h_snf - threshold_s1f).abs() < width / 2) / width
        grad_threshold = -(near_snf * (threshold_s1f * grad_z_snf + grad_gate_snf)).sum(1, keepdim=True)
        return grad_z_snf * gate_snf, grad_threshold, None
