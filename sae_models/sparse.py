"""Rows are encoded and decoded by the latents that are active, with backward passes that touch nothing else.

Shapes: n rows, S autoencoders in a stack, f features and width d each; b = S n codes, the first n of the first
autoencoder; F = S f features of the stack; m active latents, grouped by code.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

CPU_BLOCK, GPU_BLOCK = 2**22, 2**29  # preactivations computed at a time: those of a CPU stay in its cache


DENSE_SHARE = {  # (what, device, whether in bfloat16) -> share of the features above which products are faster
    ("sums", "cpu", False): 1 / 5,
    ("sums", "cpu", True): 1 / 16,
    ("inner", "cpu", False): 1 / 11,
    ("inner", "cpu", True): 1 / 45,
    ("sums", "cuda", False): 1 / 32,
    ("sums", "cuda", True): 1 / 256,
    ("inner", "cuda", False): 1 / 32,
    ("inner", "cuda", True): 1 / 256,
}


def is_dense_faster(what: str, active: int, num_features: int, device: torch.device, compute: torch.dtype) -> bool:
    """Returns whether products of whole matrices are faster than work on the `active` latents of a row alone.

    what: "sums" of rows (decoding, and the gradients of both weights), or "inner" products of rows (the gradient of
    the latents). Measured on one core of an AMD EPYC with AVX-512, 4,096 rows, d = 1,280, f = 5,120: the three sums
    take 0.9 ms for each active latent in float32 and 0.4 in bfloat16, inner products 1.2; a product of matrices takes
    540 and 120 ms, and latents have to be written out. For a GPU estimated from an H100's bandwidth and arithmetic.
    """
    device_type = "cpu" if device.type == "cpu" else "cuda"
    return active > DENSE_SHARE[what, device_type, compute == torch.bfloat16] * num_features


class Active:
    """This says which latents are active. Those of code b are at `offsets[b] : offsets[b + 1]`."""

    def __init__(
        self, features_m: Tensor, codes_m: Tensor, offsets: Tensor, num_rows: int, stack: int, compute: torch.dtype
    ) -> None:
        """Takes features_m, in 0..F, and codes_m, in 0..b and ascending. Each autoencoder has as many."""
        self.features_m, self.codes_m, self.offsets = features_m, codes_m, offsets
        self.num_rows, self.stack, self.compute = num_rows, stack, compute

    def is_dense(self, what: str, num_features: int) -> bool:
        """Returns `is_dense_faster` for the mean number of active latents, of F features."""
        each = len(self.features_m) // (self.stack * self.num_rows)
        return is_dense_faster(what, each, num_features // self.stack, self.features_m.device, self.compute)

    @cached_property
    def by_feature(self) -> Tensor:
        """The order of the active latents by feature."""
        return self.features_m.argsort(stable=True)

    def feature_offsets(self, num_features: int) -> Tensor:
        """Returns where each of F features begins in that order, and the end."""
        counts = torch.zeros(num_features, dtype=torch.int64, device=self.features_m.device)
        counts.index_add_(0, self.features_m, torch.ones_like(self.features_m))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def sum_by_feature(self, table_rd: Tensor, rows_m: Tensor, values_m: Tensor, num_features: int) -> Tensor:
        """Returns `[F, d]`: for each feature, the sum of its latents' `values_m * table_rd[rows_m]`."""
        order_m = self.by_feature
        return _bags(rows_m[order_m], self.feature_offsets(num_features), table_rd, values_m[order_m], self.compute)

    def written_out(self, values_m: Tensor, num_features: int) -> Tensor:
        """Returns values `[m]` as `[S, n, f]`, zero where no latent is active."""
        f = num_features // self.stack
        dense = values_m.new_zeros(self.stack * self.num_rows * f)
        dense[self.codes_m * f + self.features_m % f] = values_m
        return dense.view(self.stack, self.num_rows, f).to(self.compute)

    def inner_products(self, grad_bd: Tensor, weight: Tensor) -> Tensor:
        """Returns the products `[m]` of each active latent's row of `[b, d]` with its row of `[F, d]`, out of all."""
        f, n = len(weight) // self.stack, self.num_rows
        found = []
        for s, (features, codes) in enumerate(
            zip(self.features_m.chunk(self.stack), self.codes_m.chunk(self.stack), strict=True)
        ):
            grad_nd, weight_fd = grad_bd[s * n : (s + 1) * n], weight[s * f : (s + 1) * f]
            products_nf = grad_nd.to(self.compute) @ weight_fd.to(self.compute).T
            found.append(products_nf.flatten()[(codes - s * n) * f + features - s * f])
        return torch.cat(found).float()


class Decode(torch.autograd.Function):
    """Makes reconstructions `[b, d]`, without the bias, of values `[m]` of active latents and decoder rows `[F, d]`."""

    @staticmethod
    def forward(ctx: Any, values_m: Tensor, weight: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(values_m, weight)
        ctx.active = active
        if active.is_dense("sums", len(weight)):
            w_sfd = weight.view(active.stack, -1, weight.shape[-1]).to(active.compute)
            return (active.written_out(values_m, len(weight)) @ w_sfd).flatten(0, 1).float()
        if active.is_dense("inner", len(weight)):
            return _bags(active.features_m, active.offsets, weight, values_m, active.compute)
        with torch.enable_grad():  # a graph for the values alone: embedding_bag's own inner products are fast
            ctx.values_m = values_m.detach().requires_grad_()
            ctx.sum_bd = _bags(active.features_m, active.offsets, weight.detach(), ctx.values_m, active.compute)
        return ctx.sum_bd.detach()

    @staticmethod
    def backward(ctx: Any, grad_bd: Tensor) -> tuple[Tensor, Tensor, None]:
        (values_m, weight), active = ctx.saved_tensors, ctx.active
        if active.is_dense("sums", len(weight)):
            grad_snd = grad_bd.view(active.stack, -1, grad_bd.shape[-1]).to(active.compute)
            grad_weight = (active.written_out(values_m, len(weight)).mT @ grad_snd).flatten(0, 1).float()
        else:
            grad_weight = active.sum_by_feature(grad_bd, active.codes_m, values_m, len(weight))
        if active.is_dense("inner", len(weight)):
            return active.inner_products(grad_bd, weight), grad_weight, None
        (grad_values_m,) = torch.autograd.grad(ctx.sum_bd, ctx.values_m, grad_bd.contiguous())
        del ctx.sum_bd
        return grad_values_m, grad_weight, None


class Preactivation(torch.autograd.Function):
    """Gives chosen preactivations `[m]`, computed before, the gradients of h = (x - b_dec) W_enc + b_enc.

    The weight is `[F, d]`, a row for each feature; the rows x `[n, d]` are data and get none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chosen_m: Tensor,
        x_nd: Tensor,
        weight: Tensor,
        b_enc_sf: Tensor,
        b_dec_sd: Tensor,
        active: Active,
    ) -> Tensor:
        ctx.save_for_backward(x_nd, weight, b_enc_sf, b_dec_sd)
        ctx.active = active
        return chosen_m.clone()

    @staticmethod
    def backward(ctx: Any, grad_m: Tensor) -> tuple[Tensor | None, ...]:
        (x_nd, weight, b_enc_sf, b_dec_sd), active = ctx.saved_tensors, ctx.active
        grad_b_enc_sf = grad_m.new_zeros(len(weight)).index_add_(0, active.features_m, grad_m).view_as(b_enc_sf)
        if active.is_dense("sums", len(weight)):
            grad_weight = active.written_out(grad_m, len(weight)).mT @ x_nd.to(active.compute)
            grad_weight = grad_weight.flatten(0, 1).float()
        else:
            rows_m = active.codes_m % active.num_rows if active.stack > 1 else active.codes_m
            grad_weight = active.sum_by_feature(x_nd, rows_m, grad_m, len(weight))
        w_sfd = weight.view(*b_enc_sf.shape, -1)
        grad_weight.view_as(w_sfd).baddbmm_(grad_b_enc_sf[:, :, None], b_dec_sd[:, None], alpha=-1)
        grad_b_dec_sd = -(grad_b_enc_sf[:, None] @ w_sfd)[:, 0]
        return None, None, grad_weight, grad_b_enc_sf, grad_b_dec_sd, None


def _bags(rows_m: Tensor, offsets: Tensor, table_rd: Tensor, values_m: Tensor, compute: torch.dtype) -> Tensor:
    """Returns `[len(offsets) - 1, d]` in float32: sums of `values_m * table_rd[rows_m]` between offsets."""
    return embedding_bag(
        rows_m,
        table_rd.to(compute),
        offsets,
        per_sample_weights=values_m.to(compute),
        mode="sum",
        include_last_offset=True,
    ).float()


class Preactivations:
    """This computes h = x W_enc^T + bias of a stack, block by block, without a graph.

    On a CPU float32 goes through oneDNN, which is 1.5 times as fast as MKL on a core that is not Intel's.
    """

    def __init__(self, x_nd: Tensor, weight_sfd: Tensor, bias_sf: Tensor, compute: torch.dtype) -> None:
        self.one_dnn = x_nd.device.type == "cpu" and compute == torch.float32 and torch.backends.mkldnn.is_available()
        self.x_nd, self.weight_sfd, self.bias_sf = (value.to(compute) for value in (x_nd, weight_sfd, bias_sf))
        self.block = CPU_BLOCK if x_nd.device.type == "cpu" else GPU_BLOCK

    def blocks(self, whole_rows: bool = False) -> list[tuple[slice, slice]]:
        """Returns (autoencoders, rows) of each block. whole_rows: the rows of an autoencoder are never split."""
        stack, f = self.bias_sf.shape
        n = len(self.x_nd)
        rows = n if whole_rows else min(n, max(1, self.block // f))
        together = max(1, self.block // (rows * f))
        return [
            (slice(s, min(s + together, stack)), slice(r, min(r + rows, n)))
            for s in range(0, stack, together)
            for r in range(0, n, rows)
        ]

    def of(self, autoencoders: slice, rows: slice) -> Tensor:
        """Returns h of a block, `[S', n', f]`."""
        weight, bias, x_nd = self.weight_sfd[autoencoders], self.bias_sf[autoencoders], self.x_nd[rows]
        stack, f = bias.shape
        weight, bias = weight.flatten(0, 1), bias.flatten()
        if self.one_dnn:
            h = linear(x_nd.to_mkldnn(), weight.to_mkldnn(), bias.to_mkldnn()).to_dense()
        else:
            h = linear(x_nd, weight, bias)
        return h.view(len(x_nd), stack, f).transpose(0, 1)
