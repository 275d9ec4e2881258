"""What memory layout, precision, batch size, threads and torch.compile do to speed and to pixels, on this machine.

    python benchmarks/arithmetic.py [--compile]     two minutes on two cores; with --compile three more

The figures of `docs/performance.md`. Pixels are compared with float32 in the usual layout; one level of an 8-bit image
is 0.0039.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from pathlib import Path

import torch

from riebench.backbones.table import BACKBONES
from riebench.core.threads import count_free_cores, machine_cores
from riebench.edits.edit import load_edits
from riebench.generation.compiling import compile_parts
from riebench.generation.sampler import Request, Sampler, load_sampler
from riebench.runs import local as workers
from riebench.runs.config import read_config
from riebench.runs.engine import GROUP
from riebench.runs.plan import plan, plan_variants

CORES = machine_cores()
BACKBONE = "tinyworld-turbo@1"
PROMPT = "flat poster of a standing red plain heart in the sky"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
IMAGES, REPEATS, GROUPS = 32, 5, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {CORES} cores, {BACKBONE}")
    one_thread(asked.compile)
    engines_and_threads()


def one_thread(with_compile: bool) -> None:
    """A whole generation without tracing or scoring, on one thread."""
    torch.set_num_threads(1)
    print(f"\n{'one thread':44}{'ms an image':>12}{'largest change of a pixel':>27}")
    expected = None
    for batch_size, (layout, memory_format), bf16 in itertools.product((16, 8, 32), LAYOUTS.items(), (False, True)):
        sampler = load_sampler(BACKBONES.get(BACKBONE), torch.device("cpu"), batch_size)
        for part in (sampler.denoiser, sampler.pipeline.vae):
            part.to(memory_format=memory_format)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            seconds, images = generate(sampler)
        expected = images if expected is None else expected
        name = f"batch {batch_size}, {layout}, {'bfloat16' if bf16 else 'float32'}"
        print(f"{name:44}{1000 * seconds / IMAGES:>12.2f}{(images - expected).abs().max():>27.5f}")
    if with_compile:
        sampler = load_sampler(BACKBONES.get(BACKBONE), torch.device("cpu"), 16)
        compile_parts(sampler.backbone.family, sampler.pipeline)
        start = time.perf_counter()
        generate(sampler, repeats=1)
        first = time.perf_counter() - start
        seconds, images = generate(sampler)
        name = f"batch 16, channels last, compiled in {first:.0f} s"
        print(f"{name:44}{1000 * seconds / IMAGES:>12.2f}{(images - expected).abs().max():>27.5f}")


def generate(sampler: Sampler, repeats: int = REPEATS) -> tuple[float, torch.Tensor]:
    """(seconds of the quickest repeat after a first one, images)."""
    requests = [Request(PROMPT, seed) for seed in range(IMAGES)]
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        images = torch.stack([sample.image for sample in sampler.generate(requests)])
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), images


def engines_and_threads() -> None:
    """Results a second, scores and all, of one engine or several, with and without another busy process."""
    config = read_config(str(Path(__file__).with_name("settings.yaml")))
    methods = [method.build() for method in config.methods]
    cases = [(edit, 42) for edit in load_edits()[:: 540 // (GROUP * GROUPS)]][: GROUP * GROUPS]
    backbone = BACKBONES.get(BACKBONE)
    tasks = plan(backbone, cases, plan_variants(methods, config.subsets_of, backbone.blocks), config.setup("float32"))
    print(f"\n{'':44}{'results a second':>16}")
    for name, engines, threads in (
        ("1 engine of 1 thread", 1, 1),
        (f"1 engine of {CORES} threads", 1, CORES),
        (f"{CORES} engines of 1 thread", CORES, 1),
    ):
        print(f"{name:44}{speed(tasks, engines, threads):>16.1f}", flush=True)
    busy = multiprocessing.get_context("spawn").Process(target=count_up, daemon=True)
    busy.start()
    time.sleep(2)
    fitted = count_free_cores()
    for name, engines, threads in (
        (f"beside a busy process: 1 engine of {CORES} threads", 1, CORES),
        (f"beside a busy process: {CORES} engines of 1 thread", CORES, 1),
        (f"beside a busy process, fitted: {fitted} engine of 1 thread", fitted, 1),
    ):
        print(f"{name:44}{speed(tasks, engines, threads):>16.1f}", flush=True)
    busy.terminate()


def speed(tasks: list, engines: int, threads: int) -> float:
    started: list[float] = []

    def groups():
        for first in range(0, len(tasks), GROUP):
            started.append(time.perf_counter())  # the networks are loaded when the first group is asked for
            yield tasks[first : first + GROUP]

    workers.usable_cores, workers.MOST_ENGINES = lambda: engines * threads, engines
    results = sum(len(batch.rows) for batch in workers.work_here(groups(), "", BACKBONES.get(BACKBONE), "cpu", {}))
    return results / (time.perf_counter() - started[0])


def count_up() -> None:
    """Keeps one core busy for good."""
    number = 0
    while True:
        number += 1


if __name__ == "__main__":
    main()
