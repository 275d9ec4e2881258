"""Vectors a second of `harvest_to_store` beside the published way of collecting them, on the same prompts and noise.

    python benchmarks/harvest.py [--json]        about a minute on one core

The published way, written out plainly: prompts in batches, a noise stream each, through the whole pipeline with hooks
that keep each block's input and output; images decoded; then images (as an array), every block's output and its update,
in the pipeline's own precision, into one tar file for each block and one for the images. Its batch is 50 prompts; one
prompt at a time is measured too. That both have the same updates, up to bfloat16's rounding, is the precondition.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from riebench.backbones import BACKBONES, BLOCK_NAMES, BLOCKS
from riebench.harvest import harvest_to_store, rows_per_prompt
from riebench.prompts import world_prompts
from riebench.sampling import Sampler, load_sampler
from sae_models.activation_store import ActivationStore

BACKBONE, SEED, BATCH, PUBLISHED_BATCH, BAR, REPEATS = "tinyworld-turbo@1", 0, 64, 50, 5.0, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--prompts", type=int, default=500)
    asked = parser.parse_args()
    found = compare(asked.prompts)
    print(json.dumps(found, indent=2) if asked.json else describe(found))
    return 0 if found["equal"] else 1


def compare(count: int) -> dict:
    """Each way in turn, medians of `REPEATS` rounds. Where others use the machine, processor seconds say more."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prompts = world_prompts(count, seed=1)
    sampler = load_sampler(BACKBONES.get(BACKBONE), torch.device("cpu"), BATCH)
    vectors = count * sum(rows_per_prompt(sampler, block) for block in BLOCK_NAMES)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[Path], object]] = {
            "ours": lambda out: harvest_to_store(sampler, BLOCK_NAMES, prompts, SEED, out),
            "published": lambda out: published(sampler, prompts, PUBLISHED_BATCH, out),
            "one prompt at a time": lambda out: published(sampler, prompts, 1, out),
        }
        published(sampler, prompts[:2], 2, Path(folder) / "warm")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        of_processor: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(REPEATS):
            for name, way in ways.items():
                start, start_of_processor = time.perf_counter(), time.process_time()
                way(Path(folder) / f"{name}-{round_number}")
                seconds[name].append(time.perf_counter() - start)
                of_processor[name].append(time.process_time() - start_of_processor)
        difference = differ(ActivationStore.open(Path(folder) / "ours-0"), Path(folder) / "published-0")
        sizes = {name: folder_bytes(Path(folder) / f"{name}-0") for name in ways}
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    busy = {name: statistics.median(each) for name, each in of_processor.items()}
    rows = {
        name: {
            "seconds": middle[name],
            "processor_seconds": busy[name],
            "prompts_per_second": count / middle[name],
            "vectors_per_second": vectors / middle[name],
            "bytes_per_vector": sizes[name] / vectors,
        }
        for name in ways
    }
    others = [name for name in ways if name != "ours"]
    ratios = {name: middle[name] / middle["ours"] for name in others}
    return {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} core(s), torch {torch.__version__}",
        "backbone": BACKBONE,
        "blocks": list(BLOCK_NAMES),
        "prompts": count,
        "vectors": vectors,
        "equal": difference <= 2**-8,
        "largest_relative_difference": difference,
        "ways": rows,
        "ratios": ratios,
        "ratios_of_processor_seconds": {name: busy[name] / busy["ours"] for name in others},
        "bar": BAR,
        "reached": {name: ratio >= BAR for name, ratio in ratios.items()},
    }


@torch.no_grad()
def published(sampler: Sampler, prompts: list[str], batch: int, folder: Path) -> None:
    """The published way, into `folder`."""
    pipeline, kept = sampler.pipeline, {}

    def keep(block: str) -> Callable:
        def hook(_module, args, kwargs, output):
            kept[block] = (args[0] if args else kwargs["hidden_states"]).cpu(), output[0].cpu()

        return hook

    folder.mkdir()
    with ExitStack() as stack:
        tars = {
            name: stack.enter_context(tarfile.open(folder / f"{name}.tar", "w")) for name in (*BLOCK_NAMES, "images")
        }
        for block in BLOCK_NAMES:
            module = pipeline.unet.get_submodule(BLOCKS[block])
            stack.enter_context(module.register_forward_hook(keep(block), with_kwargs=True))
        for number, first in enumerate(range(0, len(prompts), batch)):
            some = prompts[first : first + batch]
            images = pipeline(
                some,
                num_inference_steps=sampler.backbone.steps,
                guidance_scale=sampler.backbone.guidance,
                height=sampler.height,
                width=sampler.width,
                generator=[torch.Generator("cpu").manual_seed(SEED + first + i) for i in range(len(some))],
            ).images
            encoded = io.BytesIO()
            np.save(encoded, np.stack([np.array(image) for image in images]))
            add(tars["images"], f"{number}.npy", encoded)
            for block, (before, after) in kept.items():
                for name, value in (("output", after), ("update", after - before)):
                    encoded = io.BytesIO()
                    torch.save(value, encoded)
                    add(tars[block], f"{number}.{name}.pth", encoded)


def add(tar: tarfile.TarFile, name: str, data: io.BytesIO) -> None:
    item = tarfile.TarInfo(name)
    item.size = data.tell()
    data.seek(0)
    tar.addfile(item, data)


def differ(store: ActivationStore, folder: Path) -> float:
    """The largest difference of any number, relative to the greatest number of its block."""
    worst = 0.0
    for block in store.blocks:
        ours = torch.cat([store.read(block, shard).values for shard in range(store.shards)]).float()
        with tarfile.open(folder / f"{block}.tar") as tar:
            members = [member for member in tar.getmembers() if ".update." in member.name]
            theirs = torch.cat([torch.load(io.BytesIO(tar.extractfile(member).read())) for member in members])
        theirs = theirs.permute(0, 2, 3, 1).flatten(0, 2)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def processor() -> str:
    """The processor's name as Linux knows it, else the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def describe(found: dict) -> str:
    columns = ("seconds", "of processor", "prompts/s", "vectors/s", "bytes a vector", "ours is")
    lines = [
        f"{found['backbone']}, {found['prompts']} prompts, {len(found['blocks'])} blocks, on {found['machine']}",
        f"the same updates: {'yes' if found['equal'] else 'NO'} ({found['largest_relative_difference']:.1e})",
        f"{'':22}" + "".join(f"{name:>16}" for name in columns),
    ]
    for name, row in found["ways"].items():
        ratio = f"{found['ratios'][name]:.1f} x" if name in found["ratios"] else ""
        lines.append(
            f"{name:22}{row['seconds']:>16.1f}{row['processor_seconds']:>16.1f}{row['prompts_per_second']:>16.1f}"
            f"{row['vectors_per_second']:>16,.0f}{row['bytes_per_vector']:>16.0f}{ratio:>16}"
        )
    lines.append(f"the bar of {found['bar']:g} x: " + ", ".join(f"{n}: {r}" for n, r in found["reached"].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
