"""Vectors a second of `harvest_to_store` beside the published way of collecting them, on the same prompts and noise.

    python benchmarks/harvest.py [--json]                  some minutes on one core
    python benchmarks/harvest.py --full-size [--json]      SDXL, random weights, two prompts: 17 GB, some minutes

The published way (sdxl-unbox, `collect_latents_dataset`), written out plainly: 50 prompts a batch, a noise stream each,
through the whole pipeline in float32, with torch's own memory layout and a thread for each free core (with one for a
busy core it takes 14 times as long). Hooks on all four blocks keep their inputs and outputs in one pass: several blocks
need no more passes there than here. The images are decoded, to PIL's; then the images (one array), and each block's
output and its update, float32, go into one tar file for each block and one for the images, each beside the settings.

Lines named "variant" are not that: the published way in channels last, as ours is; with the hook of one block alone,
so that a block costs a pass; and one prompt at a time. Ours computes in float32; in bfloat16 it is a line of its own,
whose updates differ by more than the rounding of what is stored. That the float32 ones agree up to that rounding is
the precondition.

Then: where the processor's time goes in one thread, and the arithmetic of tinyworld and of SDXL at 512 px, counted on
the meta device.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # SDXL's configuration stands there
from sdxl_configs import FULL, build_text_encoders, build_unet, build_vae, random_pipeline

from riebench.backbones.loading import weights_sha256
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES
from riebench.core.json_text import json_text
from riebench.core.threads import threads, usable_cores
from riebench.dictionaries import harvest
from riebench.dictionaries.harvest import harvest_to_store, rows_per_prompt
from riebench.dictionaries.prompts import world_prompts
from riebench.generation.sampler import Sampler, load_sampler
from sae_models import activation_store
from sae_models.activation_store import ActivationStore, Rows

BLOCK_NAMES = SDXL.default_blocks
BLOCKS = {block: SDXL.places[block].path for block in SDXL.default_blocks}

BACKBONE, SEED, BATCH, PUBLISHED_BATCH, BAR, REPEATS = "tinyworld-turbo@1", 0, 64, 50, 5.0, 3
PUBLISHED, OURS, OURS_HALF = "published", "ours, float32", "ours, bfloat16"
ONE_BLOCK = BLOCK_NAMES[-1:]
RATES = ("vectors_per_second", "vectors_per_processor_second")
Way = Callable[..., object]  # collects into `folder`


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--prompts", type=int, default=0, help="(default: 500, and 2 at full size)")
    parser.add_argument("--full-size", action="store_true", help="SDXL turbo with random weights, 512 px, on the CPU")
    asked = parser.parse_args()
    torch.set_num_threads(usable_cores())
    found = full_size(asked.prompts or 2) if asked.full_size else tinyworld(asked.prompts or 500)
    print(json_text(found, indent=2) if asked.json else describe(found))
    return 0 if found["equal"] else 1


def tinyworld(count: int) -> dict:
    """All ways in turn, medians of `REPEATS` rounds; then parts and arithmetic."""
    prompts = world_prompts(count, seed=1)
    backbone, cpu = BACKBONES.get(BACKBONE), torch.device("cpu")
    single, half, plain = (
        load_sampler(backbone, cpu, BATCH, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)
    )
    for part in (plain.denoiser, plain.pipeline.vae):
        part.to(memory_format=torch.contiguous_format)
    ways = {
        OURS: ours(single, prompts),
        OURS_HALF: ours(half, prompts, torch.bfloat16),
        PUBLISHED: lambda: partial(published, plain, prompts, PUBLISHED_BATCH),
        "variant: channels last": lambda: partial(published, single, prompts, PUBLISHED_BATCH),
        "variant: one block a pass": lambda: partial(published, plain, prompts, PUBLISHED_BATCH, blocks=ONE_BLOCK),
        "variant: one prompt at a time": lambda: partial(published, plain, prompts, 1),
    }
    found = compare(ways, single, prompts, REPEATS)
    found["parts"] = {name: parts(ways[name](), count) for name in (OURS, OURS_HALF, PUBLISHED)}
    whole = sum(found["parts"][PUBLISHED].values())
    own = {name: found["parts"][name] for name in (OURS, OURS_HALF)}
    found["at_most"] = {name: whole / (each["text encoders"] + each["U-Net"]) for name, each in own.items()}
    pipeline, text_encoders = plain.pipeline, (plain.pipeline.text_encoder, plain.pipeline.text_encoder_2)
    found["mflop"] = {
        BACKBONE: arithmetic(pipeline.unet, pipeline.vae, text_encoders, plain.height // pipeline.vae_scale_factor),
        "sdxl-turbo@1": arithmetic(build_unet(), build_vae(), build_text_encoders(), 64),
    }
    return found


def full_size(count: int) -> dict:
    """SDXL turbo with random weights: one pipeline in float32, as published and ours, then in bfloat16. A batch is one
    prompt in all of them, since 50 do not fit. Ours hashes the weights once a harvest, which here would be most of its
    time: that is measured by itself."""
    prompts = world_prompts(count, seed=1)
    sampler = Sampler(BACKBONES.get("sdxl-turbo@1"), random_pipeline(FULL, "turbo", "cpu", torch.float32), 1)
    ways = {
        PUBLISHED: lambda: partial(published, sampler, prompts, 1),
        OURS: ours(sampler, prompts),
        OURS_HALF: ours(sampler, prompts, torch.bfloat16),
    }
    start = time.process_time()
    digest = weights_sha256(sampler.denoiser, sampler.pipeline.text_encoder, sampler.pipeline.text_encoder_2)
    once = time.process_time() - start
    with mock.patch.object(harvest, "weights_sha256", lambda *_: digest):
        return compare(ways, sampler, prompts, 1) | {"processor_seconds_once": once}


def ours(sampler: Sampler, prompts: Sequence[str], dtype: torch.dtype = torch.float32) -> Callable[[], Way]:
    """Makes the sampler's networks of that type, then gives the way."""

    def prepare() -> Way:
        if sampler.denoiser.dtype != dtype:
            for part in (sampler.denoiser, sampler.pipeline.text_encoder, sampler.pipeline.text_encoder_2):
                part.to(dtype)
        return partial(harvest_to_store, sampler, BLOCK_NAMES, prompts, SEED)

    return prepare


def compare(ways: dict[str, Callable[[], Way]], sampler: Sampler, prompts: Sequence[str], repeats: int) -> dict:
    """Medians of so many rounds of all ways. Where others use the machine, processor seconds say more; there the waits
    of torch's threads for each other count as work."""
    vectors = {
        name: len(prompts) * sum(rows_per_prompt(sampler, block) for block in BLOCK_NAMES)
        if "one block" not in name
        else len(prompts) * rows_per_prompt(sampler, ONE_BLOCK[0])
        for name in ways
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if repeats > 1:
            published(sampler, prompts[:2], 2, out / "warm")
        for number in range(repeats):
            for name, prepare in ways.items():
                way = prepare()
                start, start_of_processor = time.perf_counter(), time.process_time()
                way(folder=out / f"{name} {number}")
                taken[name].append((time.perf_counter() - start, time.process_time() - start_of_processor))
                print(f"{name}: {taken[name][-1][0]:.1f} s", file=sys.stderr, flush=True)
        differences = {
            name: differ(ActivationStore.open(out / f"{name} 0"), out / f"{PUBLISHED} 0") for name in (OURS, OURS_HALF)
        }
        sizes = {name: folder_bytes(out / f"{name} 0") for name in ways}
    rows = {}
    for name in ways:
        seconds, busy = (statistics.median(each) for each in zip(*taken[name], strict=True))
        rows[name] = {
            "seconds": seconds,
            "processor_seconds": busy,
            "vectors_per_second": vectors[name] / seconds,
            "vectors_per_processor_second": vectors[name] / busy,
            "bytes_per_vector": sizes[name] / vectors[name],
        }
    return {
        "machine": f"{processor()}, {torch.get_num_threads()} free core(s), torch {torch.__version__}",
        "backbone": sampler.backbone.name,
        "blocks": list(BLOCK_NAMES),
        "prompts": len(prompts),
        "equal": differences[OURS]["largest"] <= 2**-8,
        "differences": differences,
        "ways": rows,
        "ratios": {
            own: {
                name: {rate: rows[own][rate] / row[rate] for rate in RATES}
                for name, row in rows.items()
                if name not in (OURS, OURS_HALF)
            }
            for own in (OURS, OURS_HALF)
        },
        "bar": BAR,
    }


@torch.no_grad()
def published(
    sampler: Sampler, prompts: Sequence[str], batch: int, folder: Path, *, blocks: Sequence[str] = BLOCK_NAMES
) -> None:
    """The published way, into `folder`."""
    pipeline, kept = sampler.pipeline, {}

    def keep(block: str) -> Callable:
        def hook(_module, args, kwargs, output):
            before, after = kept.setdefault(block, ([], []))
            before.append(args[0] if args else kwargs["hidden_states"])
            after.append(output[0])

        return hook

    folder.mkdir()
    with ExitStack() as stack:
        tars = {name: stack.enter_context(tarfile.open(folder / f"{name}.tar", "w")) for name in (*blocks, "images")}
        for block in blocks:
            module = pipeline.unet.get_submodule(BLOCKS[block])
            stack.enter_context(module.register_forward_hook(keep(block), with_kwargs=True))
        for number, first in enumerate(range(0, len(prompts), batch)):
            some = list(prompts[first : first + batch])
            settings = {"num_inference_steps": sampler.backbone.steps, "guidance_scale": sampler.backbone.guidance}
            seeds = [SEED + first + i for i in range(len(some))]
            images = pipeline(
                some,
                **settings,
                height=sampler.height,
                width=sampler.width,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            ).images
            said = json_text({"prompt": some, "seeds": seeds, "blocks": list(blocks), **settings}).encode()
            add(tars["images"], f"{number}.npy", np.stack([np.array(image) for image in images]))
            add(tars["images"], f"{number}.json", said)
            for block in blocks:
                before, after = (torch.stack(steps, dim=1) for steps in kept.pop(block))
                add(tars[block], f"{number}.output.pth", after)
                add(tars[block], f"{number}.update.pth", after - before)
                add(tars[block], f"{number}.json", said)


def add(tar: tarfile.TarFile, name: str, value: torch.Tensor | np.ndarray | bytes) -> None:
    data = io.BytesIO(value if isinstance(value, bytes) else b"")
    if isinstance(value, np.ndarray):
        np.save(data, value)
    elif not isinstance(value, bytes):
        torch.save(value, data)
    item = tarfile.TarInfo(name)
    item.size = data.getbuffer().nbytes
    data.seek(0)
    tar.addfile(item, data)


def differ(store: ActivationStore, folder: Path) -> dict[str, float]:
    """largest: difference of any number, relative to the greatest of its block. variance: of the differences, relative
    to that of the published numbers, of the block where it is most."""
    largest, variance = 0.0, 0.0
    for block in store.blocks:
        ours = torch.cat([store.read(block, shard).values for shard in range(store.shards)]).float()
        with tarfile.open(folder / f"{block}.tar") as tar:
            members = [member for member in tar.getmembers() if ".update." in member.name]
            theirs = torch.cat([torch.load(io.BytesIO(tar.extractfile(member).read())) for member in members])
        theirs = theirs.permute(0, 1, 3, 4, 2).flatten(0, 3)
        largest = max(largest, float((ours - theirs).abs().max() / theirs.abs().max()))
        variance = max(variance, float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()))
    return {"largest": largest, "variance": variance}


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


#: Part -> functions whose time it is, without that of the parts that they call.
PARTS = {
    "text encoders": [(StableDiffusionXLPipeline, "encode_prompt")],
    "U-Net": [(UNet2DConditionModel, "forward")],
    "decoder": [(AutoencoderKL, "decode")],
    "noise, scheduler, images": [(StableDiffusionXLPipeline, "__call__")],
    "updates to bfloat16 rows": [(harvest, "_chunk")],
    "check for NaN": [(Rows, "refuse_not_finite")],
    "rows into shards": [(Rows, "put")],
    "bytes, hash, file": [(activation_store, "_write_shard"), (sys.modules[__name__], "add")],
    "hash of the weights": [(harvest, "weights_sha256")],
}


def parts(way: Way, count: int) -> dict[str, float]:
    """Part -> processor milliseconds a prompt, all on one thread but for what the writer does."""
    spent = dict.fromkeys(PARTS, 0.0)
    open_parts = threading.local()

    def watch(name: str, function: Callable) -> Callable:
        def watched(*args, **kwargs):
            start, inside = time.thread_time(), getattr(open_parts, "inside", 0.0)
            open_parts.inside = 0.0
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.thread_time() - start
                spent[name] += taken - open_parts.inside
                open_parts.inside = inside + taken

        return watched

    with tempfile.TemporaryDirectory() as folder, threads(1), ExitStack() as stack:
        stack.enter_context(mock.patch.object(harvest, "usable_cores", lambda: 1))
        way(folder=Path(folder) / "warm")
        for name, functions in PARTS.items():
            for owner, function in functions:
                own = watch(name, getattr(owner, function))
                stack.enter_context(mock.patch.object(owner, function, own))
        start = time.process_time()
        way(folder=Path(folder) / "watched")
        spent["rest"] = time.process_time() - start - sum(spent.values())
    return {name: 1000 * seconds / count for name, seconds in spent.items()}


def arithmetic(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoders: Sequence, latents: int) -> dict:
    """Part -> MFLOP of one prompt, one step without guidance. latents: cells of their height and width."""
    device, tokens = unet.device, text_encoders[0].config.max_position_embeddings
    words = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    latent = torch.zeros(1, vae.config.latent_channels, latents, latents, device=device)

    def to_the_last_block() -> None:
        def stop(*_args) -> None:
            raise _Enough

        with unet.get_submodule(BLOCKS[BLOCK_NAMES[-1]]).register_forward_hook(stop), suppress(_Enough):
            call_unet()

    def call_unet() -> None:
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        states = torch.zeros(1, tokens, unet.config.cross_attention_dim, device=device)
        more = {
            "text_embeds": torch.zeros(1, pooled, device=device),
            "time_ids": torch.zeros(1, 6, device=device),
        }
        unet(latent, torch.tensor(999.0, device=device), states, added_cond_kwargs=more)

    found = {
        "text encoders": _mflop(lambda: [encoder(words) for encoder in text_encoders]),
        "U-Net to the last block": _mflop(to_the_last_block),
        "U-Net behind it": _mflop(call_unet),
        "decoder": _mflop(lambda: vae.decode(latent)),
    }
    found["U-Net behind it"] -= found["U-Net to the last block"]
    shared = found["text encoders"] + found["U-Net to the last block"]
    return found | {"published": sum(found.values()), "ours": shared, "ratio": sum(found.values()) / shared}


class _Enough(Exception):
    """The last block has run."""


@torch.no_grad()
def _mflop(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e6


def processor() -> str:
    """The processor's name as Linux knows it, else the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def describe(found: dict) -> str:
    columns = ("seconds", "of processor", "vectors/s", "bytes")
    columns += ("float32 is", "by processor", "bfloat16 is", "by processor")
    lines = [
        f"{found['backbone']}, {found['prompts']} prompt(s), {len(found['blocks'])} blocks, on {found['machine']}",
        f"the same updates in float32: {'yes' if found['equal'] else 'NO'}",
    ]
    for name, each in found["differences"].items():
        lines.append(f"{name}: largest difference {each['largest']:.1e}, of the variance {each['variance']:.1e}")
    lines.append(f"{'':32}" + "".join(f"{name:>14}" for name in columns))
    for name, row in found["ways"].items():
        beside = [each[name] for each in found["ratios"].values() if name in each]
        ratios = [ratio[rate] for ratio in beside for rate in RATES]
        lines.append(
            f"{name:32}{row['seconds']:>14.1f}{row['processor_seconds']:>14.1f}{row['vectors_per_second']:>14,.0f}"
            f"{row['bytes_per_vector']:>14,.0f}" + "".join(f"{ratio:>12.1f} x" for ratio in ratios)
        )
    lines.append(f"the bar is {found['bar']:g} x published")
    if "processor_seconds_once" in found:
        lines.append(f"ours hashes the weights, once a harvest: {found['processor_seconds_once']:.1f} s")
    for what, tables in (("processor ms a prompt", "parts"), ("MFLOP a prompt", "mflop")):
        if tables in found:
            shown = found[tables]
            lines += ["", f"{what:28}" + "".join(f"{name:>16}" for name in shown)]
            for part in dict.fromkeys(part for each in shown.values() for part in each):
                lines.append(f"{part:28}" + "".join(f"{each[part]:>16,.2f}" for each in shown.values()))
    if "at_most" in found:
        most = ", ".join(f"{name} {ratio:.1f} x" for name, ratio in found["at_most"].items())
        lines.append(f"published beside U-Net and text encoders alone, by processor: {most}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
