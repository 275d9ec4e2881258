"""How fast sparse autoencoders are trained: ours beside others, on the same rows, in one run.

    pip install "riebench[interop]" && python benchmarks/sae_training.py [--json] [--counts 1 4 16]

Peers: `sparsify`, `sae-lens` and `dictionary-learning`, each by its own step (its module, its loss, its optimiser),
and a plain re-writing of the loop that the published SAEs of SDXL Turbo were trained with (arXiv 2410.22366). Peers
train S autoencoders one after the other on each batch, as their own multi-trainers do. Every trainer runs in a process
of its own. Rows are drawn from a planted dictionary, so all trainers see a task that can be solved.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH, FEATURES, ROWS, LR = 1280, 5120, 4096, 1e-4
CALIBRATION = 32_768 // ROWS  # batches that our trainer looks at first
TRUE_FEATURES, TRUE_ACTIVE = 4096, 24  # of the planted dictionary
TRAINERS = {"ours": "", "ours, bfloat16": "", "plain": "", "sparsify": "sparsify", "sae-lens": "sae_lens"}
TRAINERS["dictionary-learning"] = "dictionary_learning"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16], help="autoencoders trained at once")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 160], help="active features")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement, at least two steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", nargs=3, metavar=("TRAINER", "K", "COUNT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.one:
        name, k, count = asked.one
        print(json.dumps(measure(name, int(k), int(count), asked.seconds, asked.device)))
        return
    rows = []
    for k in asked.k:
        for count in asked.counts:
            for name in asked.trainers:
                module = TRAINERS[name]
                if module and importlib.util.find_spec(module) is None:
                    print(f"{name} is not installed: left out", file=sys.stderr)
                    continue
                command = [sys.executable, __file__, "--one", name, str(k), str(count)]
                command += ["--seconds", str(asked.seconds), "--device", asked.device, "--threads", str(asked.threads)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{name}, k={k}, S={count}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], file=sys.stderr, flush=True)
    rate = matmul_rate(asked.device)
    found = {
        "machine": f"{platform.machine()}, {asked.threads} threads, torch {torch.__version__}",
        "rows": rows,
    } | rate
    print(json.dumps(found, indent=2) if asked.json else table(found))


def measure(name: str, k: int, count: int, seconds: float, device: str) -> dict:
    """Trains for some seconds after a first step, and looks at the loss on rows that were not trained on."""
    data = Rows(device)
    if name.startswith("ours"):
        return measure_ours(name, k, count, seconds, data)
    step, evaluate = START[name](k, count, data, device)
    step(0)
    _wait(device)
    started, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - started < seconds:
        done += 1
        step(done)
        _wait(device)
    return _measured(name, k, count, done, time.perf_counter() - started, device, evaluate(data.held_out))


def measure_ours(name: str, k: int, count: int, seconds: float, data: Rows) -> dict:
    """The same of our trainer, which takes the batches and makes all steps: timed between draws of a batch, but for the
    first ones, which it looks at before it starts."""
    from sae_models import Architecture, TopK, TrainConfig, train

    architectures = [Architecture(WIDTH, FEATURES, TopK(k), seed=seed) for seed in range(count)]
    compute = "bfloat16" if "bfloat16" in name else "float32"
    drawn: list[float] = []

    def batches():
        step = 0
        while True:
            drawn.append(time.perf_counter())
            yield data[step]
            step += 1

    def run(steps: int):
        drawn.clear()
        return train(batches(), architectures, TrainConfig(steps=steps, lr=LR, compute=compute, report_every=10_000))

    started = time.perf_counter()
    run(2)
    steps = max(3, int(2 * seconds / (time.perf_counter() - started)))
    saes = run(steps + CALIBRATION + 2)
    times = drawn[-(steps + 1) :]
    held_out = fvu(data.held_out, saes[0](data.held_out))
    return _measured(name, k, count, steps, times[-1] - times[0], str(data.held_out.device), held_out)


def _measured(name: str, k: int, count: int, done: int, taken: float, device: str, found: float) -> dict:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {
        "trainer": name,
        "k": k,
        "count": count,
        "steps": done,
        "seconds_a_step": taken / done,
        "rows_x_saes_a_second": done * ROWS * count / taken,
        "peak_mb": peak,
        "fvu": found,
    }


class Rows:
    """Batches of rows `[4096, 1280]` from a planted dictionary; the same ones for every trainer."""

    def __init__(self, device: str, batches: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        atoms = nn.functional.normalize(torch.randn(TRUE_FEATURES, WIDTH, generator=generator), dim=-1)
        made = []
        for _ in range(batches + 1):
            chosen = torch.randint(TRUE_FEATURES, (ROWS, TRUE_ACTIVE), generator=generator)
            weights = torch.rand(ROWS, TRUE_ACTIVE, generator=generator) + 0.5
            rows = nn.functional.embedding_bag(chosen, atoms, per_sample_weights=weights, mode="sum")
            made.append((rows + 0.05 * torch.randn(ROWS, WIDTH, generator=generator) + 0.5).to(device))
        self.batches, self.held_out = made[:-1], made[-1]

    def __getitem__(self, step: int) -> Tensor:
        return self.batches[step % len(self.batches)]


Step = Callable[[int], None]
Evaluate = Callable[[Tensor], float]


@torch.no_grad()
def fvu(rows_nd: Tensor, reconstructed_nd: Tensor) -> float:
    """Share of variance that is not explained, pooled."""
    return float((rows_nd - reconstructed_nd).square().sum() / (rows_nd - rows_nd.mean(0)).square().sum())


def start_plain(k: int, count: int, data: Rows, device: str) -> tuple[Step, Evaluate]:
    """The published loop: one autoencoder after the other, dense throughout, counters read at every step."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pre_bias, self.latent_bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(FEATURES))
            self.encoder = nn.Linear(WIDTH, FEATURES, bias=False)
            self.decoder = nn.Linear(FEATURES, WIDTH, bias=False)
            self.decoder.weight.data = self.encoder.weight.data.T.clone()
            self.decoder.weight.data /= self.decoder.weight.data.norm(dim=0)
            self.idle = torch.zeros(FEATURES, dtype=torch.long)

        def forward(self, x):
            h = self.encoder(x - self.pre_bias) + self.latent_bias
            top = h.topk(k, dim=-1)
            z = torch.zeros_like(h).scatter(-1, top.indices, top.values.relu())
            return self.decoder(z) + self.pre_bias, z, h

    models = [Plain().to(device) for _ in range(count)]
    optimisers = [torch.optim.Adam(model.parameters(), lr=LR, eps=6.25e-10) for model in models]

    def step(number: int) -> None:
        x = data[number]
        for model, optimiser in zip(models, optimisers, strict=True):
            reconstructed, z, h = model(x)
            loss = (reconstructed - x).square().mean() / x.var()
            model.idle = torch.where((z > 0).any(0).cpu(), 0, model.idle + len(x))
            dead = model.idle > 10_000_000
            if dead.any():
                auxiliary = h.masked_fill(~dead.to(device), -torch.inf).topk(min(256, int(dead.sum())), dim=-1)
                z_aux = torch.zeros_like(h).scatter(-1, auxiliary.indices, auxiliary.values.relu())
                residual = (x - reconstructed).detach()
                loss = loss + (model.decoder(z_aux) - residual).square().mean() / residual.var() / 32
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            model.decoder.weight.data /= model.decoder.weight.data.norm(dim=0)
            loss.item()

    return step, lambda rows: fvu(rows, models[0](rows)[0])


def start_sparsify(k: int, count: int, data: Rows, device: str) -> tuple[Step, Evaluate]:
    if device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are for GPUs
    from sparsify import SparseCoder, SparseCoderConfig

    models = [SparseCoder(WIDTH, SparseCoderConfig(num_latents=FEATURES, k=k), device=device) for _ in range(count)]
    optimisers = [torch.optim.Adam(model.parameters(), lr=LR) for model in models]

    def step(number: int) -> None:
        for model, optimiser in zip(models, optimisers, strict=True):
            model.set_decoder_norm_to_unit_norm()
            model(data[number], dead_mask=None).fvu.backward()
            model.remove_gradient_parallel_to_decoder_directions()
            optimiser.step()
            optimiser.zero_grad()

    return step, lambda rows: fvu(rows, models[0](rows).sae_out)


def start_sae_lens(k: int, count: int, data: Rows, device: str) -> tuple[Step, Evaluate]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=10_000_000,
        train_batch_size_samples=ROWS,
        lr=LR,
        lr_end=LR,
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainers = []
    for _ in range(count):
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=k, device=device))
        trainers.append(SAETrainer(cfg=config, sae=sae, data_provider=iter(())))

    def step(number: int) -> None:
        for trainer in trainers:
            trainer._train_step(sae=trainer.sae, sae_in=data[number])

    return step, lambda rows: fvu(rows, trainers[0].sae(rows))


def start_dictionary_learning(k: int, count: int, data: Rows, device: str) -> tuple[Step, Evaluate]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    words = {"steps": 100_000, "activation_dim": WIDTH, "dict_size": FEATURES, "k": k, "layer": 0, "lm_name": "none"}
    trainers = [TopKTrainer(**words, lr=LR, warmup_steps=1, seed=i, device=device) for i in range(count)]

    def step(number: int) -> None:
        for trainer in trainers:
            trainer.update(number, data[number].clone())

    return step, lambda rows: fvu(rows, trainers[0].ae(rows))


START: dict[str, Callable[[int, int, Rows, str], tuple[Step, Evaluate]]] = {
    "plain": start_plain,
    "sparsify": start_sparsify,
    "sae-lens": start_sae_lens,
    "dictionary-learning": start_dictionary_learning,
}


def matmul_rate(device: str) -> dict[str, float]:
    """Measured FLOP a second of the encoder's product, in float32 and bfloat16: 2 x 4096 x 1280 x 5120 each."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = (torch.randn(*shape, device=device).to(dtype) for shape in ((ROWS, WIDTH), (WIDTH, FEATURES)))
        x @ w
        _wait(device)
        started = time.perf_counter()
        for _ in range(3):
            x @ w
        _wait(device)
        found[f"matmul_flops_{str(dtype).removeprefix('torch.')}"] = (
            3 * 2 * ROWS * WIDTH * FEATURES / (time.perf_counter() - started)
        )
    return found


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def table(found: dict) -> str:
    lines = [found["machine"], "", "| k | S | trainer | rows x SAEs a second | s a step | peak MB | FVU |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {row['k']} | {row['count']} | {row['trainer']} | {row['rows_x_saes_a_second']:.0f} "
        f"| {row['seconds_a_step']:.2f} | {row['peak_mb']:.0f} | {row['fvu']:.3f} |"
        for row in found["rows"]
    ]
    rates = ", ".join(f"{key.removeprefix('matmul_flops_')} {found[key] / 1e9:.0f}" for key in found if "flops" in key)
    return "\n".join([*lines, "", f"matmul rate of the encoder's product, GFLOP a second: {rates}"])


if __name__ == "__main__":
    main()
