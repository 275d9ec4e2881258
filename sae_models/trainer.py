"""Training of a TopK SAE (Gao et al. 2024, arXiv 2406.04093), with dead features started again; resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from riebench.errors import UserError
from riebench.files import replacing
from riebench.progress import Progress
from sae_models.topk import TopKConfig, TopKSAE, top

CALIBRATION_ROWS = 32_768  # the geometric median and the scale are estimated on up to this many
REPORT_STEPS = 100  # between two reads of the statistics: on a GPU each one waits for the device
STATE_FILE = "training.pt"


@dataclass(frozen=True)
class TrainConfig:
    """How a `TopKSAE` is trained. Raises `UserError` for values that cannot be meant."""

    steps: int = 2_000
    """Optimiser steps."""
    batch_size: int = 2_048
    """Rows a step."""
    lr: float = 2e-3
    """Adam's peak learning rate, for inputs scaled to a root mean square of about 1; more features want less (1e-4 at
    5,120), and too much kills features."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises linearly from zero."""
    decay: float = 0.3
    """Share of the steps, the last ones, in which it falls linearly to zero."""
    dead_after: int = 25_000
    """A feature is dead when it was last active longer ago than this many rows."""
    restart_every: int = 25
    """Steps between two restarts of the dead features; there is none once the learning rate falls."""
    seed: int = 0
    """Of the initial decoder and of the restarts. The order of the rows is the caller's."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "dead_after", "restart_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training {name} is {getattr(self, name)}", remedy="give a whole number of at least 1")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training {name} is {getattr(self, name)}", remedy="give a share between 0 and 1")
        if not self.lr > 0:
            raise UserError(f"training lr is {self.lr}", remedy="give a number above 0")


@dataclass
class _Training:
    """All that a resumed run needs. The SAE is in the space of rows multiplied by `scale`."""

    step: int
    sae: TopKSAE
    optimiser: torch.optim.Adam
    scale: float
    rows_since_active_f: Tensor


def train(
    batch_at: Callable[[int], Tensor],
    config: TrainConfig,
    sae_config: TopKConfig,
    *,
    folder: Path | None = None,
    checkpoint_every: int = 1_000,
) -> TopKSAE:
    """Trains a `TopKSAE` on the device of the batches, in float32.

    batch_at(step) gives raw rows `[batch_size, width]` and depends on the step alone: what makes a resumed run
    bit for bit the run that was never stopped. With a `folder`, the state is kept in `folder/training.pt` every
    `checkpoint_every` steps and at the end, and training goes on from what is found there.

    Loss: sum of squared residuals / sum of squared centred inputs. Inputs are scaled by one number, folded into the
    biases of the SAE returned, which takes raw rows. Features start along rows of the data; those that die start again
    along residuals. Raises `UserError` for rows of a wrong shape, rows that are not finite or all the same, and for a
    state file that is broken or of another configuration.
    """
    state_path = None if folder is None else Path(folder) / STATE_FILE
    if state_path is not None and state_path.exists():
        training = _read_state(state_path, config, sae_config, _batch(batch_at, 0, config, sae_config).device)
    else:
        training = _start(batch_at, config, sae_config)
    first_bad_step = torch.full((), config.steps, device=training.rows_since_active_f.device)
    label = f"training SAE {sae_config.width} -> {sae_config.num_features}, k={sae_config.k}"
    with Progress(label, total=config.steps, done=training.step) as progress:
        while training.step < config.steps:
            step = training.step
            rows_nd = _batch(batch_at, step, config, sae_config)
            bad = ~torch.isfinite(rows_nd).all()
            first_bad_step = torch.where(bad, first_bad_step.clamp(max=step), first_bad_step)
            statistics = _advance(training, rows_nd, config)
            last = training.step == config.steps
            save = state_path is not None and (last or training.step % checkpoint_every == 0)
            if save or last or training.step % REPORT_STEPS == 0:
                if first_bad_step.item() < config.steps:
                    raise _not_finite(int(first_bad_step))
                explained, l0, dead = statistics.tolist()
                progress.update(training.step, f"EV {explained:.3f}, L0 {l0:.1f}, dead {dead:.1%}")
            if save:
                _write_state(state_path, training, config, sae_config)
    return _folded(training)


def shuffled_batches(rows_nd: Tensor, batch_size: int, *, seed: int = 0) -> Callable[[int], Tensor]:
    """`batch_at` for `train`: each epoch goes through the rows in an order of its own, drawn from the seed.

    Rows that do not fill the last batch of an epoch are left out of it. Raises `UserError` with too few for one batch.
    """
    batches = len(rows_nd) // batch_size
    if batches == 0:
        raise UserError(f"{len(rows_nd)} rows do not fill a batch of {batch_size}", remedy="lower batch_size")

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + epoch)
        return torch.randperm(len(rows_nd), generator=generator).to(rows_nd.device)

    def batch_at(step: int) -> Tensor:
        epoch, batch = divmod(step, batches)
        return rows_nd[order(epoch)[batch * batch_size : (batch + 1) * batch_size]]

    return batch_at


def geometric_median(rows_nd: Tensor, *, tolerance: float = 1e-7, max_iterations: int = 500) -> Tensor:
    """The point `[d]` with the least sum of distances to the rows, by Weiszfeld's iteration from the mean, in float64.

    Stops when a step is shorter than `tolerance` times the mean distance. (Weiszfeld 1937)
    """
    rows_nd = rows_nd.double()
    median_d = rows_nd.mean(0)
    for _ in range(max_iterations):
        distance_n = (rows_nd - median_d).norm(dim=1)
        typical = distance_n.mean()
        if typical == 0:
            break
        weight_n = 1 / distance_n.clamp_min(1e-9 * typical)
        moved_d = weight_n @ rows_nd / weight_n.sum()
        shift = (moved_d - median_d).norm()
        median_d = moved_d
        if shift <= tolerance * typical:
            break
    return median_d


def _start(batch_at: Callable[[int], Tensor], config: TrainConfig, sae_config: TopKConfig) -> _Training:
    """Calibrates on the first batches: the bias is their geometric median, the scale makes E||x - mean|| = sqrt(d)."""
    batches = []
    for step in range(min(config.steps, math.ceil(CALIBRATION_ROWS / config.batch_size))):
        batches.append(_batch(batch_at, step, config, sae_config))
        if not torch.isfinite(batches[-1]).all():
            raise _not_finite(step)
    rows_nd = torch.cat(batches)[:CALIBRATION_ROWS]
    spread = (rows_nd - rows_nd.mean(0)).norm(dim=1).mean().item()
    if not spread > 0:
        raise UserError("the rows to train on are all the same", remedy="check how they were captured")
    scale = math.sqrt(sae_config.width) / spread
    sae = TopKSAE(sae_config, seed=config.seed).to(rows_nd.device)
    _initialise(sae, geometric_median(rows_nd) * scale, rows_nd * scale, config)
    return _Training(0, sae, _optimiser(sae, config), scale, _no_rows_yet(sae))


@torch.no_grad()
def _initialise(sae: TopKSAE, bias_d: Tensor, rows_nd: Tensor, config: TrainConfig) -> None:
    """Decoder rows along rows of the data, so that every feature is active somewhere (random directions are not, where
    few directions hold most of the variance); the encoder so long that codes have the magnitude of what they code
    (Gao et al., appendix A.1)."""
    sae.b_dec.copy_(bias_d)
    centred_nd = rows_nd - sae.b_dec
    centred_nd = centred_nd[centred_nd.norm(dim=1) > 0]
    order = torch.randperm(len(centred_nd), generator=torch.Generator().manual_seed(config.seed))
    drawn_fd = normalize(centred_nd[order[: sae.num_features].to(centred_nd.device)], dim=-1)
    sae.W_dec[: len(drawn_fd)] = drawn_fd
    sae.W_enc[:, : len(drawn_fd)] = drawn_fd.T
    some_nd = centred_nd[: config.batch_size]
    coded_nd = sae(some_nd + sae.b_dec) - sae.b_dec
    sae.W_enc *= some_nd.norm(dim=1).mean() / coded_nd.norm(dim=1).mean()


def _optimiser(sae: TopKSAE, config: TrainConfig) -> torch.optim.Adam:
    return torch.optim.Adam(sae.parameters(), lr=config.lr, eps=1e-8)


def _no_rows_yet(sae: TopKSAE) -> Tensor:
    return torch.zeros(sae.num_features, dtype=torch.int64, device=sae.W_dec.device)


def _batch(batch_at: Callable[[int], Tensor], step: int, config: TrainConfig, sae_config: TopKConfig) -> Tensor:
    rows_nd = batch_at(step)
    wanted = (config.batch_size, sae_config.width)
    if tuple(rows_nd.shape) != wanted:
        raise UserError(
            f"the batch of step {step} has shape {tuple(rows_nd.shape)}, not {wanted}",
            remedy="make batch_size and width agree with the rows",
        )
    return rows_nd.float()


def _not_finite(step: int) -> UserError:
    return UserError(
        f"the batch of step {step} holds NaN or infinite values",
        remedy="check how the rows were captured; half precision overflows where bfloat16 does not",
    )


def _advance(training: _Training, rows_nd: Tensor, config: TrainConfig) -> Tensor:
    """One optimiser step in place. Returns [explained variance, L0, share of dead features], still on the device."""
    sae, since_f = training.sae, training.rows_since_active_f
    for group in training.optimiser.param_groups:
        group["lr"] = config.lr * _schedule(training.step, config)
    x_nd = rows_nd * training.scale
    values_nk, features_nk = top(sae.preactivations(x_nd), sae.config.k)
    residual_nd = x_nd - sae.decode_top(values_nk, features_nk)
    unexplained = residual_nd.pow(2).sum() / _centred_square(x_nd)
    training.optimiser.zero_grad(set_to_none=True)
    unexplained.backward()
    project_from_rows(sae.W_dec)
    training.optimiser.step()
    with torch.no_grad():
        sae.W_dec.copy_(normalize(sae.W_dec, dim=-1))
        sum_f = torch.zeros_like(sae.b_enc).index_add_(0, features_nk.flatten(), values_nk.flatten())
        since_f.add_(len(rows_nd)).masked_fill_(sum_f > 0, 0)
        dead_f = since_f > config.dead_after
        training.step += 1
        if training.step % config.restart_every == 0 and training.step <= (1 - config.decay) * config.steps:
            _restart(training, dead_f.nonzero().flatten(), residual_nd, config)
        return torch.stack([1 - unexplained, (values_nk > 0).sum() / len(rows_nd), dead_f.float().mean()])


@torch.no_grad()
def _restart(training: _Training, dead: Tensor, residual_nd: Tensor, config: TrainConfig) -> None:
    """Points dead features along residuals, drawn without repetition in proportion to their squares; their encoder is
    as long as the mean. (After the resampling of Bricken et al. 2023, "Towards Monosemanticity", which takes the rows
    themselves.) In Adam they get the mean second moment: from zero their first steps would be three times too long."""
    sae, weight_n = training.sae, residual_nd.pow(2).sum(1).nan_to_num(0, 0).cpu()  # `train` tells of NaN by itself
    dead = dead[: int((weight_n > 0).sum())]
    if len(dead) == 0:
        return
    generator = torch.Generator().manual_seed(config.seed + training.step)
    drawn = torch.multinomial(weight_n, len(dead), generator=generator).to(dead.device)
    direction_fd = normalize(residual_nd[drawn], dim=-1)
    sae.W_dec[dead] = direction_fd
    sae.W_enc[:, dead] = direction_fd.T * sae.W_enc.norm(dim=0).mean()
    sae.b_enc[dead] = 0
    training.rows_since_active_f[dead] = 0
    for parameter, place in ((sae.W_dec, dead), (sae.W_enc, (slice(None), dead)), (sae.b_enc, dead)):
        moments = training.optimiser.state[parameter]
        moments["exp_avg"][place] = 0
        moments["exp_avg_sq"][place] = moments["exp_avg_sq"].mean()


def _centred_square(x_nd: Tensor) -> Tensor:
    return (x_nd - x_nd.mean(0)).pow(2).sum().clamp_min(torch.finfo(x_nd.dtype).tiny)


@torch.no_grad()
def project_from_rows(weight_fd: Tensor) -> None:
    """Takes out of `weight_fd.grad` what points along each (unit) row, so that the step does not go into its length."""
    weight_fd.grad -= (weight_fd.grad * weight_fd).sum(-1, keepdim=True) * weight_fd


def _schedule(step: int, config: TrainConfig) -> float:
    rise = (step + 1) / max(1.0, config.warmup * config.steps)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return min(1.0, rise, fall)


@torch.no_grad()
def _folded(training: _Training) -> TopKSAE:
    """The same function of raw rows: with s the scale, topk(s h) = s topk(h), so only the biases are divided by s."""
    sae = training.sae
    sae.b_enc /= training.scale
    sae.b_dec /= training.scale
    return sae.eval().requires_grad_(False)


def _description(config: TrainConfig, sae_config: TopKConfig) -> dict[str, int | float]:
    return asdict(config) | asdict(sae_config)


def _write_state(path: Path, training: _Training, config: TrainConfig, sae_config: TopKConfig) -> None:
    state = {
        "description": _description(config, sae_config),
        "step": training.step,
        "sae": training.sae.state_dict(),
        "optimiser": training.optimiser.state_dict(),
        "scale": training.scale,
        "rows_since_active": training.rows_since_active_f,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _read_state(path: Path, config: TrainConfig, sae_config: TopKConfig, device: torch.device) -> _Training:
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        found = state["description"]
    except Exception as error:  # a broken file raises whatever the unpickler meets first
        raise UserError(
            f"{path} cannot be resumed from ({type(error).__name__})", remedy="delete that file to train from nothing"
        ) from error
    wanted = _description(config, sae_config)
    if found != wanted:
        differing = ", ".join(f"{key}={found.get(key)}" for key in wanted if found.get(key) != wanted[key])
        raise UserError(
            f"{path} is of a run with {differing}", remedy="resume with the same configuration or take another folder"
        )
    sae = TopKSAE(sae_config).to(device)
    sae.load_state_dict(state["sae"])
    optimiser = _optimiser(sae, config)
    optimiser.load_state_dict(state["optimiser"])
    return _Training(state["step"], sae, optimiser, state["scale"], state["rows_since_active"])
