"""Autoencoders of one architecture but for their seeds, as stacked weights: S of them are trained at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import embedding_bag, normalize

from riebench.core.errors import UserError
from sae_models.architectures import L1, Architecture, AuxK, BatchTopK, JumpReLU, Restart, TopK
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.normalisation import Normalisation
from sae_models.sparse import Active, Decode, Preactivation, Preactivations
from sae_models.topk import TopKConfig, TopKSAE, top

THRESHOLD_RATE = 0.05  # at which BatchTopK's running threshold follows that of the batch, a step
CALIBRATION_CODES = 2_048  # rows coded to find the length of the encoder
RECOMPILATIONS = 64  # torch gives up after 8 of one function; each kind of architecture is one


@dataclass(frozen=True)
class Losses:
    """Of one batch, for each autoencoder of a stack; on the device."""

    loss_s: Tensor
    """What is minimised."""
    statistics_s4: Tensor
    """The loss, explained variance, L0, and the share of dead features. Without a graph."""
    residual_snd: Tensor | None
    """What the whole code leaves of the rows, where a `Restart` may ask for it. Without a graph."""


class Stack(nn.Module):
    """Parameters `W_enc` and `W_dec` [S, f, d], a row for each feature, `b_enc` [S, f], `b_dec` [S, d], and JumpReLU's
    `log_threshold` [S, f]. Rows of `W_dec` have unit norm.

    Buffers: `rows_since_active` [S, f]; `threshold` [S], the running mean of BatchTopK's least latent kept.
    """

    def __init__(self, architectures: Sequence[Architecture], compute: torch.dtype = torch.float32) -> None:
        """Weights are zero until `start` or `load_state_dict`. compute: of the products; weights stay float32."""
        super().__init__()
        self.architectures, self.compute = list(architectures), compute
        self.architecture = architecture = architectures[0]
        stack, f, d = len(architectures), architecture.num_features, architecture.width
        self.W_enc = nn.Parameter(torch.zeros(stack, f, d))
        self.W_dec = nn.Parameter(torch.zeros(stack, f, d))
        self.b_enc = nn.Parameter(torch.zeros(stack, f))
        self.b_dec = nn.Parameter(torch.zeros(stack, d))
        if isinstance(architecture.sparsity, JumpReLU):
            self.log_threshold = nn.Parameter(torch.zeros(stack, f))
        self.register_buffer("rows_since_active", torch.zeros(stack, f, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(stack))
        self.register_buffer("unit", torch.ones(()))
        self.dead: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * stack

    def get_extra_state(self) -> list[Tensor]:
        return self.dead

    def set_extra_state(self, state: list[Tensor]) -> None:
        self.dead = state

    @torch.no_grad()
    def start(self, rows_nd: Tensor, bias_d: Tensor, k: int) -> None:
        """Decoder rows in random directions; the encoder so long that codes have the magnitude of what they code (Gao
        et al., appendix A.1); the bias as given. Latents' unit is the rows' rms norm.

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
        if isinstance(self.architecture.sparsity, JumpReLU):
            self.log_threshold.copy_((self.architecture.sparsity.bandwidth * self.unit).log().expand_as(self.b_enc))
        some_nd = centred_nd[:CALIBRATION_CODES]
        coded_snd = self._coded(some_nd + bias_d, k)[0][-1] - self.b_dec[:, None]
        self.W_enc *= (some_nd.norm(dim=1).mean() / coded_snd.norm(dim=-1).mean(1))[:, None, None]
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
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
        self._unexplained = torch.compile(self._unexplained)
        self._coded_by_threshold = torch.compile(self._coded_by_threshold)

    def losses(self, x_nd: Tensor, k: int) -> Losses:
        """Of normalised rows; k is TopK's and BatchTopK's at this step.

        The loss is the mean, over nested codes and the whole, of sum ||x - x_hat||^2 / sum ||x - mean||^2, plus what
        the architecture asks for latents, plus AuxK's. Counts the rows since each feature was active.
        """
        nested, penalty_s, active_sf, l0_s = self._coded(x_nd, k)
        unexplained = self._unexplained(x_nd, nested)
        loss_s = torch.stack(unexplained).mean(0) + penalty_s
        revival = self.architecture.revival
        residual_snd = (x_nd - nested[-1]).detach() if revival is not None else None
        if isinstance(revival, AuxK):
            loss_s = loss_s + revival.weight * self._auxiliary(x_nd, residual_snd, revival.k)
        with torch.no_grad():
            self.rows_since_active.add_(len(x_nd)).masked_fill_(active_sf, 0)
            statistics = (loss_s, 1 - unexplained[-1], l0_s, self._is_dead().float().mean(1))
            return Losses(
                loss_s, torch.stack(statistics, dim=1), residual_snd if isinstance(revival, Restart) else None
            )

    def _unexplained(self, x_nd: Tensor, nested: list[Tensor]) -> list[Tensor]:
        """`[S]` of each nested code: the share of the rows' variance that its reconstruction leaves."""
        square = (x_nd - x_nd.mean(0)).pow(2).sum().clamp_min(torch.finfo(x_nd.dtype).tiny)
        return [(x_nd - x_hat_snd).pow(2).sum((1, 2)) / square for x_hat_snd in nested]

    def _is_dead(self) -> Tensor:
        """`[S, f]`"""
        revival = self.architecture.revival
        return self.rows_since_active >= (AuxK.dead_after if revival is None else revival.dead_after)

    @torch.no_grad()
    def list_dead(self) -> None:
        """Reads which features are dead, for `restart` and AuxK until it is called again. Waits for the device."""
        if self.architecture.revival is not None:
            self.dead = [dead_f.nonzero().flatten() for dead_f in self._is_dead()]

    @torch.no_grad()
    def restart(self, residual_snd: Tensor, optimiser: torch.optim.Adam, step: int) -> None:
        """Points dead features along residuals, drawn without repetition in proportion to their squares; their encoder
        is as long as the mean. In Adam they get the mean second moment: from zero their first steps would be three
        times too long."""
        for s, (architecture, dead) in enumerate(zip(self.architectures, self.dead, strict=True)):
            weight_n = residual_snd[s].pow(2).sum(1).cpu()
            dead = dead[: int((weight_n > 0).sum())]
            if len(dead) == 0:
                continue
            generator = torch.Generator().manual_seed(architecture.seed + step)
            drawn = torch.multinomial(weight_n, len(dead), generator=generator).to(dead.device)
            direction_fd = normalize(residual_snd[s, drawn], dim=-1)
            self.W_dec[s, dead] = direction_fd
            self.W_enc[s, dead] = direction_fd * self.W_enc[s].norm(dim=-1).mean()
            self.b_enc[s, dead] = 0
            self.rows_since_active[s, dead] = 0
            for parameter in (self.W_dec, self.W_enc, self.b_enc):
                moments = optimiser.state[parameter]
                moments["exp_avg"][s, dead] = 0
                moments["exp_avg_sq"][s, dead] = moments["exp_avg_sq"][s].mean()

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Takes out of the decoder's gradient what points along each row: the step does not go into its length."""
        grad_sfd = self.W_dec.grad
        grad_sfd.addcmul_(self.W_dec, (grad_sfd * self.W_dec).sum(-1, keepdim=True), value=-1)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Gives the decoder's rows unit norm again."""
        self.W_dec.div_(self.W_dec.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def exported(self, normalisation: Normalisation) -> list[TopKSAE | JumpReLUSAE]:
        """Autoencoders of raw rows, for inference: `TopKSAE` of TopK, `JumpReLUSAE` of all others."""
        is_topk = type(self.architecture.sparsity) is TopK
        found = []
        for s, architecture in enumerate(self.architectures):
            weights = {
                "W_enc": self.W_enc[s].T.contiguous(),
                "b_enc": self.b_enc[s].clone(),
                "W_dec": self.W_dec[s].clone(),
                "b_dec": self.b_dec[s].clone(),
            }
            width, num_features = architecture.width, architecture.num_features
            if is_topk:
                sae = TopKSAE(TopKConfig(width, num_features, architecture.sparsity.k))
            else:
                sae = JumpReLUSAE(JumpReLUConfig(width, num_features))
                weights["threshold"] = self._thresholds()[s].clone()
            sae.load_state_dict(normalisation.fold(weights, rescale=not is_topk))
            found.append(sae.to(self.W_dec.device).eval().requires_grad_(False))
        return found

    def _thresholds(self) -> Tensor:
        """`[S, f]`: a latent is active above it."""
        if isinstance(self.architecture.sparsity, JumpReLU):
            return self.log_threshold.exp()
        return self.threshold[:, None].expand_as(self.b_enc)

    def _coded(self, x_nd: Tensor, k: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Reconstructions `[S, n, d]` of each nested code, the whole one last; the penalty on latents `[S]`; which
        features were active `[S, f]`; and L0 `[S]`."""
        if isinstance(self.architecture.sparsity, TopK):
            return self._coded_by_largest(x_nd, k)
        return self._coded_by_threshold(x_nd)

    def _coded_by_largest(self, x_nd: Tensor, k: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        stack, f, d = self.W_enc.shape
        chosen_m, active = self._chosen(x_nd, k)
        h_m = Preactivation.apply(chosen_m, x_nd, self.W_enc.view(-1, d), self.b_enc, self.b_dec, active)
        z_m = h_m.relu()
        nested = [
            Decode.apply(z_m * mask_m, self.W_dec.view(-1, d), active).view(stack, -1, d) + self.b_dec[:, None]
            for mask_m in self._nested(z_m.detach(), active, k)
        ]
        nested.append(Decode.apply(z_m, self.W_dec.view(-1, d), active).view(stack, -1, d) + self.b_dec[:, None])
        with torch.no_grad():
            positive_m = (z_m > 0).float()
            count_sf = positive_m.new_zeros(stack * f).index_add_(0, active.features_m, positive_m).view(stack, f)
        return nested, count_sf.new_zeros(stack), count_sf > 0, count_sf.sum(1) / len(x_nd)

    def _nested(self, z_m: Tensor, active: Active, k: int) -> list[Tensor]:
        """Which active latents each nested code has, but for the whole one: 0 or 1, `[m]`."""
        stack, f = self.b_enc.shape
        masks = [active.features_m % f < size for size in self.architecture.prefix_sizes]
        ks = self.architecture.matryoshka.ks if self.architecture.matryoshka else ()
        batched = isinstance(self.architecture.sparsity, BatchTopK)
        for nested_k in ks:
            groups, rows = (stack, active.num_rows) if batched else (stack * active.num_rows, 1)
            by_group = z_m.view(groups, -1)
            least = by_group.topk(nested_k * rows, dim=-1, sorted=True).values[:, -1:]
            masks.append((by_group >= least).flatten())
        return [mask_m.float() for mask_m in masks]

    @torch.no_grad()
    def _chosen(self, x_nd: Tensor, k: int) -> tuple[Tensor, Active]:
        """The largest preactivations `[m]`: k of each row, or with BatchTopK n k of each autoencoder's batch."""
        stack, f, _ = self.W_enc.shape
        n, device = len(x_nd), x_nd.device
        bias_sf = self.b_enc - (self.W_enc @ self.b_dec[:, :, None])[..., 0]
        preactivations = Preactivations(x_nd, self.W_enc, bias_sf, self.compute)
        batched = isinstance(self.architecture.sparsity, BatchTopK)
        values = torch.empty(stack, n, k, device=device)
        features = torch.empty(stack, n, k, dtype=torch.int64, device=device)
        codes_m = torch.arange(stack * n, device=device).repeat_interleave(k)
        for autoencoders, rows in preactivations.blocks(whole_rows=batched):
            h_snf = preactivations.of(autoencoders, rows)
            if batched:
                h_snf = h_snf.reshape(len(h_snf), n * f)
                found, place = top(h_snf, n * k)
                order = place.argsort(dim=-1)
                values[autoencoders] = found.gather(1, order).view(-1, n, k).float()
                features[autoencoders] = place.gather(1, order).view(-1, n, k)
            else:
                found, place = top(h_snf, k)
                values[autoencoders, rows], features[autoencoders, rows] = found.float(), place
        first_s = torch.arange(stack, device=device)[:, None, None]
        if batched:
            codes_m = (features // f + first_s * n).flatten()
            self._follow_threshold(values.view(stack, -1))
        offsets = torch.searchsorted(codes_m, torch.arange(stack * n + 1, device=device))
        features_m = (features % f + first_s * f).flatten()
        return values.flatten(), Active(features_m, codes_m, offsets, n, stack, self.compute)

    def _follow_threshold(self, values_sm: Tensor) -> None:
        least_s = values_sm.masked_fill(values_sm <= 0, torch.inf).amin(1)
        least_s = torch.where(least_s.isfinite(), least_s, self.threshold)
        self.threshold.copy_(torch.where(self.threshold > 0, self.threshold.lerp(least_s, THRESHOLD_RATE), least_s))

    def _coded_by_threshold(self, x_nd: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        sparsity = self.architecture.sparsity
        with torch.autocast(x_nd.device.type, self.compute, enabled=self.compute != torch.float32):
            bias_sf = self.b_enc - (self.W_enc @ self.b_dec[:, :, None])[..., 0]
            h_snf = (x_nd @ self.W_enc.mT).float() + bias_sf[:, None]
            if isinstance(sparsity, L1):
                z_snf = h_snf.relu()
                penalty_s = sparsity.weight * z_snf.sum(-1).mean(1) / self.unit
            else:
                threshold_sf = self.log_threshold.exp()
                width = sparsity.bandwidth * self.unit
                z_snf, gate_snf = Jump.apply(h_snf, threshold_sf[:, None], width)
                penalty_s = sparsity.l0_weight * gate_snf.sum(-1).mean(1)
            sizes = (*self.architecture.prefix_sizes, self.architecture.num_features)
            nested = [(z_snf[..., :size] @ self.W_dec[:, :size]).float() + self.b_dec[:, None] for size in sizes]
        active_snf = z_snf.detach() > 0
        return nested, penalty_s, active_snf.any(1), active_snf.sum((1, 2)) / len(x_nd)

    def _auxiliary(self, x_nd: Tensor, residual_snd: Tensor, k: int) -> Tensor:
        """`[S]`: the share of the residual's squares that the k largest latents of the dead features leave."""
        left = []
        for s, dead in enumerate(self.dead):
            if len(dead) == 0:
                left.append(residual_snd.new_zeros(()))
                continue
            h_nf = (x_nd - self.b_dec[s].detach()) @ self.W_enc[s, dead].T + self.b_enc[s, dead]
            values_nk, features_nk = top(h_nf, min(k, len(dead)))
            coded_nd = embedding_bag(features_nk, self.W_dec[s, dead], per_sample_weights=values_nk, mode="sum")
            square = residual_snd[s].pow(2).sum().clamp_min(torch.finfo(coded_nd.dtype).tiny)
            left.append((residual_snd[s] - coded_nd).pow(2).sum() / square)
        return torch.stack(left)


class Jump(torch.autograd.Function):
    """JumpReLU of h `[S, n, f]` at thresholds `[S, 1, f]`: latents h [h > threshold], and [h > threshold] itself.

    The gradient goes to h where it is above, and to thresholds through a rectangle of the given width around them, as
    the expectation over h would have it (arXiv 2407.14435, equations 11 and 12).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, h_snf: Tensor, threshold_s1f: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        gate_snf = (h_snf > threshold_s1f).to(h_snf.dtype)
        ctx.save_for_backward(h_snf, threshold_s1f, gate_snf, width)
        return h_snf * gate_snf, gate_snf

    @staticmethod
    def backward(ctx: FunctionCtx, grad_z_snf: Tensor, grad_gate_snf: Tensor) -> tuple[Tensor, Tensor, None]:
        h_snf, threshold_s1f, gate_snf, width = ctx.saved_tensors
        near_snf = ((h_snf - threshold_s1f).abs() < width / 2) / width
        grad_threshold = -(near_snf * (threshold_s1f * grad_z_snf + grad_gate_snf)).sum(1, keepdim=True)
        return grad_z_snf * gate_snf, grad_threshold, None
