"""The largest latents of a row (TopK), or of a batch (BatchTopK), are active here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.core.errors import UserError
from sae_models.jumprelu import JumpReLUConfig
from sae_models.normalisation import Normalisation
from sae_models.settings import refuse_unless_whole
from sae_models.sparse import Active, Decode, Preactivation, Preactivations
from sae_models.sparsity import Coded, Nested, Sparsity
from sae_models.tensors import SAE
from sae_models.topk import TopKConfig, top
from sae_models.weights import Weights

THRESHOLD_RATE = 0.05  # at which BatchTopK's running threshold follows that of the batch, a step


@dataclass(frozen=True)
class TopK(Sparsity):
    """The k largest latents of each row are active (Gao et al. 2024, arXiv 2406.04093). Exported as `TopKSAE`."""

    k: int
    """Active latents a row."""
    start_k: int | None = None
    """k at the first step, where it is annealed; else k throughout."""
    anneal: float = 0.0
    """Share of the steps, the first ones, in which k goes linearly from `start_k` to k."""

    def __post_init__(self) -> None:
        refuse_unless_whole(self, "k")
        if self.start_k is not None:
            refuse_unless_whole(self, "start_k")
        if not 0 <= self.anneal <= 1:
            raise UserError(f"anneal is {self.anneal}", remedy="give a share of the steps between 0 and 1")
        if (self.start_k is not None) != (self.anneal > 0):
            raise UserError(
                f"start_k is {self.start_k} and anneal {self.anneal}", remedy="give both to anneal k, or neither"
            )

    @property
    def ks(self) -> tuple[int, ...]:
        return (self.k,) if self.start_k is None else (self.k, self.start_k)

    def k_at(self, step: int, steps: int) -> int:
        if self.start_k is None or step >= self.anneal * steps:
            return self.k
        return round(self.start_k + (self.k - self.start_k) * step / (self.anneal * steps))

    def code(self, weights: Weights, x_nd: Tensor, k: int, nested: Nested) -> Coded:
        stack, f, d = weights.W_enc.shape
        chosen_m, active = self._chosen(weights, x_nd, k)
        h_m = Preactivation.apply(chosen_m, x_nd, weights.W_enc.view(-1, d), weights.b_enc, weights.b_dec, active)
        z_m = h_m.relu()

        def reconstructed(values_m: Tensor) -> Tensor:
            sums_bd = Decode.apply(values_m, weights.W_dec.view(-1, d), active)
            return sums_bd.view(stack, -1, d) + weights.b_dec[:, None]

        masks = [active.features_m % f < size for size in nested.sizes]
        masks += [self._is_largest(z_m.detach(), nested_k, active) for nested_k in nested.ks]
        codes = [reconstructed(z_m * mask_m.float()) for mask_m in masks]
        codes.append(reconstructed(z_m))
        with torch.no_grad():
            positive_m = (z_m > 0).float()
            count_sf = positive_m.new_zeros(stack * f).index_add_(0, active.features_m, positive_m).view(stack, f)
        return Coded(codes, count_sf.new_zeros(stack), count_sf > 0, count_sf.sum(1) / len(x_nd))

    def exported(self, weights: Weights, s: int, normalisation: Normalisation) -> SAE:
        _, f, d = weights.W_enc.shape
        return weights.inference_sae(s, TopKConfig(d, f, self.k), normalisation, rescale=False)

    @torch.no_grad()
    def _chosen(self, weights: Weights, x_nd: Tensor, k: int) -> tuple[Tensor, Active]:
        """Returns the preactivations `[m]` of the latents that are active, and which these are."""
        stack, f, _ = weights.W_enc.shape
        n, device = len(x_nd), x_nd.device
        preactivations = Preactivations(x_nd, weights.W_enc, weights.effective_bias(), weights.compute)
        values_snk, features_snk, codes_m = self._search(preactivations, k)
        features_m = (features_snk + f * torch.arange(stack, device=device)[:, None, None]).flatten()
        offsets = torch.searchsorted(codes_m, torch.arange(stack * n + 1, device=device))
        return values_snk.flatten(), Active(features_m, codes_m, offsets, n, stack, weights.compute)

    def _search(self, preactivations: Preactivations, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the largest preactivations and their features in 0..f, both `[S, n, k]`, and the codes in 0..S n
        that they belong to, ascending, `[S n k]`."""
        stack, n, device = len(preactivations.bias_sf), len(preactivations.x_nd), preactivations.x_nd.device
        values_snk = torch.empty(stack, n, k, device=device)
        features_snk = torch.empty(stack, n, k, dtype=torch.int64, device=device)
        for autoencoders, rows in preactivations.blocks():
            found, place = top(preactivations.of(autoencoders, rows), k)
            values_snk[autoencoders, rows], features_snk[autoencoders, rows] = found.float(), place
        return values_snk, features_snk, torch.arange(stack * n, device=device).repeat_interleave(k)

    def _is_largest(self, z_m: Tensor, k: int, active: Active) -> Tensor:
        """Returns which of the active latents `[m]` are among the k largest of their row."""
        return _above_kth(z_m.view(active.stack * active.num_rows, -1), k)


@dataclass(frozen=True)
class BatchTopK(TopK):
    """The n k largest latents of a batch of n rows are active: k a row on average (Bussmann et al. 2024, arXiv
    2412.06410).

    Exported as a JumpReLU autoencoder with one threshold: the running mean of the least latent kept.
    """

    def exported(self, weights: Weights, s: int, normalisation: Normalisation) -> SAE:
        _, f, d = weights.W_enc.shape
        threshold_f = weights.threshold[s].expand(f)
        return weights.inference_sae(s, JumpReLUConfig(d, f), normalisation, rescale=True, threshold=threshold_f)

    @torch.no_grad()
    def _chosen(self, weights: Weights, x_nd: Tensor, k: int) -> tuple[Tensor, Active]:
        chosen_m, active = super()._chosen(weights, x_nd, k)
        chosen_sm, threshold_s = chosen_m.view(active.stack, -1), weights.threshold
        least_s = chosen_sm.masked_fill(chosen_sm <= 0, torch.inf).amin(1)
        least_s = torch.where(least_s.isfinite(), least_s, threshold_s)
        threshold_s.copy_(torch.where(threshold_s > 0, threshold_s.lerp(least_s, THRESHOLD_RATE), least_s))
        return chosen_m, active

    def _search(self, preactivations: Preactivations, k: int) -> tuple[Tensor, Tensor, Tensor]:
        (stack, f), n = preactivations.bias_sf.shape, len(preactivations.x_nd)
        device = preactivations.x_nd.device
        values_snk = torch.empty(stack, n, k, device=device)
        places_snk = torch.empty(stack, n, k, dtype=torch.int64, device=device)  # in all preactivations of the batch
        for autoencoders, rows in preactivations.blocks(whole_rows=True):
            h_snf = preactivations.of(autoencoders, rows)
            found, place = top(h_snf.reshape(len(h_snf), n * f), n * k)
            order = place.argsort(dim=-1)
            values_snk[autoencoders] = found.gather(1, order).view(-1, n, k).float()
            places_snk[autoencoders] = place.gather(1, order).view(-1, n, k)
        codes_snk = places_snk // f + n * torch.arange(stack, device=device)[:, None, None]
        return values_snk, places_snk % f, codes_snk.flatten()

    def _is_largest(self, z_m: Tensor, k: int, active: Active) -> Tensor:
        return _above_kth(z_m.view(active.stack, -1), k * active.num_rows)


def _above_kth(z_gm: Tensor, k: int) -> Tensor:
    """Returns `[g m]`, in one dimension: which latents are at least the k-th of their group."""
    return (z_gm >= z_gm.topk(k, dim=-1, sorted=True).values[:, -1:]).flatten()
