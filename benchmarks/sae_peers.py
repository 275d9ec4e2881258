"""Other trainers of TopK SAEs, each by its own step (its module, its loss, its optimiser), behind one signature.

`sparsify`, `sae-lens` and `dictionary-learning` from the registry, and a plain re-writing of the loop that the
published SAEs of SDXL Turbo were trained with (arXiv 2410.22366). S autoencoders are trained one after the other on
each batch, as the packages' own multi-trainers do.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Step = Callable[[Tensor], None]
Reconstruct = Callable[[Tensor], Tensor]
"""By the first of the autoencoders."""


@dataclass(frozen=True)
class Task:
    """What is trained."""

    k: int
    count: int = 1
    """S: autoencoders that differ by their seed."""
    device: str = "cpu"
    width: int = 1280
    features: int = 5120
    rows: int = 4096
    """In a batch."""
    lr: float = 1e-4


class Plain(nn.Module):
    """The published autoencoder: dense throughout, latents of zero written out."""

    def __init__(self, width: int, features: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.pre_bias, self.latent_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(features))
        self.encoder = nn.Linear(width, features, bias=False)
        self.decoder = nn.Linear(features, width, bias=False)
        self.decoder.weight.data = self.encoder.weight.data.T.clone()
        self.decoder.weight.data /= self.decoder.weight.data.norm(dim=0)
        self.idle = torch.zeros(features, dtype=torch.long)

    def forward(self, x_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Reconstruction, latents, what they are the largest of)."""
        h = self.encoder(x_nd - self.pre_bias) + self.latent_bias
        top = h.topk(self.k, dim=-1)
        z = torch.zeros_like(h).scatter(-1, top.indices, top.values.relu())
        return self.decoder(z) + self.pre_bias, z, h


def plain_step(model: Plain, optimiser: torch.optim.Optimizer, x_nd: Tensor) -> None:
    """The published step: counters of dead features and the loss are read each time."""
    reconstructed, z, h = model(x_nd)
    loss = (reconstructed - x_nd).square().mean() / x_nd.var()
    model.idle = torch.where((z > 0).any(0).cpu(), 0, model.idle + len(x_nd))
    dead = model.idle > 10_000_000
    if dead.any():
        auxiliary = h.masked_fill(~dead.to(h.device), -torch.inf).topk(min(256, int(dead.sum())), dim=-1)
        z_aux = torch.zeros_like(h).scatter(-1, auxiliary.indices, auxiliary.values.relu())
        residual = (x_nd - reconstructed).detach()
        loss = loss + (model.decoder(z_aux) - residual).square().mean() / residual.var() / 32
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    model.decoder.weight.data /= model.decoder.weight.data.norm(dim=0)
    loss.item()


def plain_optimiser(model: Plain, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr, eps=6.25e-10)


def start_plain(task: Task) -> tuple[Step, Reconstruct]:
    models = [Plain(task.width, task.features, task.k).to(task.device) for _ in range(task.count)]
    optimisers = [plain_optimiser(model, task.lr) for model in models]

    def step(x: Tensor) -> None:
        for model, optimiser in zip(models, optimisers, strict=True):
            plain_step(model, optimiser, x)

    return step, lambda rows: models[0](rows)[0]


def start_sparsify(task: Task) -> tuple[Step, Reconstruct]:
    if task.device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are for GPUs
    from sparsify import SparseCoder, SparseCoderConfig

    models = [
        SparseCoder(task.width, SparseCoderConfig(num_latents=task.features, k=task.k), device=task.device)
        for _ in range(task.count)
    ]
    optimisers = [torch.optim.Adam(model.parameters(), lr=task.lr) for model in models]

    def step(x: Tensor) -> None:
        for model, optimiser in zip(models, optimisers, strict=True):
            model.set_decoder_norm_to_unit_norm()
            model(x, dead_mask=None).fvu.backward()
            model.remove_gradient_parallel_to_decoder_directions()
            optimiser.step()
            optimiser.zero_grad()

    return step, lambda rows: models[0](rows).sae_out


def start_sae_lens(task: Task) -> tuple[Step, Reconstruct]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=10_000_000,
        train_batch_size_samples=task.rows,
        lr=task.lr,
        lr_end=task.lr,
        device=task.device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainers = []
    for _ in range(task.count):
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=task.width, d_sae=task.features, k=task.k, device=task.device))
        trainers.append(SAETrainer(cfg=config, sae=sae, data_provider=iter(())))

    def step(x: Tensor) -> None:
        for trainer in trainers:
            trainer._train_step(sae=trainer.sae, sae_in=x)

    return step, lambda rows: trainers[0].sae(rows)


def start_dictionary_learning(task: Task) -> tuple[Step, Reconstruct]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    words = {
        "steps": 100_000,
        "activation_dim": task.width,
        "dict_size": task.features,
        "k": task.k,
        "layer": 0,
        "lm_name": "none",
    }
    trainers = [TopKTrainer(**words, lr=task.lr, warmup_steps=1, seed=i, device=task.device) for i in range(task.count)]

    numbers = itertools.count()

    def step(x: Tensor) -> None:
        number = next(numbers)
        for trainer in trainers:
            trainer.update(number, x.clone())

    return step, lambda rows: trainers[0].ae(rows)


#: Name -> what makes its step, and the package it needs.
PEERS = {
    "plain": (start_plain, ""),
    "sparsify": (start_sparsify, "sparsify"),
    "sae-lens": (start_sae_lens, "sae_lens"),
    "dictionary-learning": (start_dictionary_learning, "dictionary_learning"),
}
