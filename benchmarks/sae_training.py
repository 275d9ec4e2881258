"""How fast sparse autoencoders are trained: ours beside others, on the same rows, in one run.

    pip install "riebench[interop]" && python benchmarks/sae_training.py [--json]        half an hour on two cores

At d=1280, f=5120, 4096 rows a step, for k active features and S autoencoders. Peers are those of `sae_peers.py`. Every
trainer runs in a process of its own. Rows are drawn from a planted dictionary, so all trainers see a task that can be
solved; with S=1 each makes the same number of steps on the same batches, and the share of variance that it leaves (FVU)
on rows that were not trained on says whether they did the same work.

The share of the matmul rate counts the five products of a dense step, 10 x rows x d x f x S operations, whatever was
computed: a trainer that leaves out products with zeros may come above 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import time

import pandas as pd
import torch
from sae_peers import PEERS, Task
from torch import Tensor, nn

from riebench.core.json_text import json_text

CALIBRATION = 32_768 // Task.rows  # batches that our trainer looks at before its first step
TRUE_FEATURES, TRUE_ACTIVE = 4096, 24  # of the planted dictionary
OURS = {"ours": "float32", "ours, bfloat16": "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16], help="autoencoders trained at once, S")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 160], help="active features")
    parser.add_argument("--steps", type=int, default=24, help="of each trainer with S=1")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each with S above 1, at least two steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--trainers", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", nargs=3, metavar=("TRAINER", "K", "COUNT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.one:
        name, k, count = asked.one
        print(json_text(measure(name, Task(int(k), int(count), asked.device), asked.steps, asked.seconds)))
        return
    rates = matmul_rates(asked.device)
    rows = []
    for k in asked.k:
        for count in asked.counts:
            for name in asked.trainers:
                if row := measured_apart(name, k, count, asked):
                    rate = rates["bfloat16" if "bfloat16" in name else "float32"]
                    row["matmul_share"] = dense_flops(Task(k, count)) / row["seconds_a_step"] / rate
                    rows.append(row)
                    print(row, file=sys.stderr, flush=True)
    found = {
        "machine": f"{platform.machine()}, {asked.device}, {asked.threads} threads, torch {torch.__version__}",
        "matmul_flops": rates,
        "rows": rows,
        "times_best_peer": times_best_peer(rows),
    }
    print(json_text(found, indent=2) if asked.json else table(found))


def measured_apart(name: str, k: int, count: int, asked: argparse.Namespace) -> dict | None:
    """`measure` in a process of its own; None, with the reason on stderr, where it cannot run."""
    module = PEERS[name][1] if name in PEERS else ""
    if module and importlib.util.find_spec(module) is None:
        print(f"{name} is not installed: left out", file=sys.stderr)
        return None
    command = [sys.executable, __file__, "--one", name, str(k), str(count), "--steps", str(asked.steps)]
    command += ["--seconds", str(asked.seconds), "--device", asked.device, "--threads", str(asked.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}, k={k}, S={count}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, task: Task, steps: int, seconds: float) -> dict:
    """With S=1 `steps` steps, the first ones not timed; else for some seconds."""
    data = Rows(task)
    if name in OURS:
        taken, done, left = time_ours(OURS[name], task, data, steps, seconds)
    else:
        taken, done, left = time_peer(name, task, data, steps, seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if task.device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {
        "trainer": name,
        "k": task.k,
        "count": task.count,
        "steps": done,
        "seconds_a_step": taken / done,
        "rows_x_saes_a_second": done * task.rows * task.count / taken,
        "peak_mb": peak,
        "fvu": left,
    }


def time_peer(name: str, task: Task, data: Rows, steps: int, seconds: float) -> tuple[float, int, float | None]:
    """(Seconds, steps in them, FVU after the same number of steps as all)."""
    step, reconstruct = PEERS[name][0](task)
    first = CALIBRATION if task.count == 1 else 1
    for number in range(first):
        step(data[number])
    _wait(task.device)
    started, done = time.perf_counter(), 0
    while (first + done < steps) if task.count == 1 else (done < 2 or time.perf_counter() - started < seconds):
        step(data[first + done])
        done += 1
        _wait(task.device)
    taken = time.perf_counter() - started
    return taken, done, fvu(data.held_out, reconstruct(data.held_out)) if task.count == 1 else None


def time_ours(compute: str, task: Task, data: Rows, steps: int, seconds: float) -> tuple[float, int, float | None]:
    """The same of our trainer, which takes the batches and makes all steps: timed between draws of a batch, but for the
    first ones, which it looks at before it starts."""
    from sae_models import Architecture, TopK, TrainConfig, train

    architectures = [Architecture(task.width, task.features, TopK(task.k), seed=seed) for seed in range(task.count)]
    drawn: list[float] = []

    def batches():
        drawn.clear()
        step = 0
        while True:
            _wait(task.device)
            drawn.append(time.perf_counter())
            yield data[step]
            step += 1

    def run(steps: int):
        config = TrainConfig(steps=steps, lr=task.lr, compute=compute, report_every=10_000)
        return train(batches(), architectures, config)

    if task.count > 1:
        run(CALIBRATION + 2)
        steps = CALIBRATION + 1 + max(2, int(seconds / (drawn[-1] - drawn[CALIBRATION])))
    saes = run(steps)
    times = drawn[CALIBRATION:]
    left = fvu(data.held_out, saes[0](data.held_out)) if task.count == 1 else None
    return times[-1] - times[0], len(times) - 1, left


class Rows:
    """Batches of rows from a planted dictionary; the same ones for every trainer."""

    def __init__(self, task: Task, batches: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        atoms = nn.functional.normalize(torch.randn(TRUE_FEATURES, task.width, generator=generator), dim=-1)
        made = []
        for _ in range(batches + 1):
            chosen = torch.randint(TRUE_FEATURES, (task.rows, TRUE_ACTIVE), generator=generator)
            weights = torch.rand(task.rows, TRUE_ACTIVE, generator=generator) + 0.5
            rows = nn.functional.embedding_bag(chosen, atoms, per_sample_weights=weights, mode="sum")
            noise = 0.05 * torch.randn(task.rows, task.width, generator=generator)
            made.append((rows + noise).to(task.device))
        self.batches, self.held_out = made[:-1], made[-1]

    def __getitem__(self, step: int) -> Tensor:
        return self.batches[step % len(self.batches)]


@torch.no_grad()
def fvu(rows_nd: Tensor, reconstructed_nd: Tensor) -> float:
    """Share of variance that is not explained, pooled."""
    return float((rows_nd - reconstructed_nd).square().sum() / (rows_nd - rows_nd.mean(0)).square().sum())


def dense_flops(task: Task) -> float:
    """Of a step: preactivations, reconstructions, and the gradients of both weights and of the latents."""
    return 5 * 2.0 * task.rows * task.width * task.features * task.count


def matmul_rates(device: str) -> dict[str, float]:
    """Measured FLOP a second of the encoder's product, in float32 (the faster of the ways torch has) and bfloat16."""
    task = Task(1)
    x, w = (torch.randn(*shape, device=device) for shape in ((task.rows, task.width), (task.features, task.width)))
    ways = {"float32": [(x, w)], "bfloat16": [(x.bfloat16(), w.bfloat16())]}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        ways["float32"].append((x.to_mkldnn(), w.to_mkldnn()))
    operations = 2.0 * task.rows * task.width * task.features
    return {name: max(operations / _seconds(*each, device) for each in pairs) for name, pairs in ways.items()}


def _seconds(x: Tensor, w: Tensor, device: str) -> float:
    """Of x w^T, the median of five."""
    nn.functional.linear(x, w)
    _wait(device)
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        nn.functional.linear(x, w)
        _wait(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[2]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def times_best_peer(rows: list[dict]) -> dict[str, dict[str, float]]:
    """ "k=10, S=1" -> ours -> how many times as fast as the fastest peer."""
    found = {}
    for (k, count), group in pd.DataFrame(rows).groupby(["k", "count"]):
        speed = group.set_index("trainer")["rows_x_saes_a_second"]
        if len(peers := speed.drop(OURS, errors="ignore")):
            found[f"k={k}, S={count}"] = {name: speed[name] / peers.max() for name in OURS if name in speed}
    return found


def table(found: dict) -> str:
    lines = [found["machine"], ""]
    lines.append("| k | S | trainer | rows x SAEs a second | s a step | share of matmul rate | peak MB | FVU |")
    lines.append("|---:|---:|---|---:|---:|---:|---:|---:|")
    lines += [
        f"| {row['k']} | {row['count']} | {row['trainer']} | {row['rows_x_saes_a_second']:.0f} "
        f"| {row['seconds_a_step']:.2f} | {row['matmul_share']:.2f} | {row['peak_mb']:.0f} "
        f"| {'' if row['fvu'] is None else format(row['fvu'], '.3f')} |"
        for row in found["rows"]
    ]
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in found["matmul_flops"].items())
    times = "\n".join(
        f"{case}: {', '.join(f'{name} {ratio:.1f}' for name, ratio in ratios.items())} times the best peer"
        for case, ratios in found["times_best_peer"].items()
    )
    return "\n".join([*lines, "", f"matmul rate of the encoder's product, GFLOP a second: {rates}", "", times])


if __name__ == "__main__":
    main()
