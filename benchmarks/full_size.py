"""SDXL at its full size with random weights: that every method runs, what it takes, and what the hooks cost.

    python benchmarks/full_size.py sdxl-turbo@1 sdxl-turbo@4 sdxl-base@25 --dtype bfloat16 --device cuda

Random weights make no pictures; time and memory are those of the real ones. Dictionaries are as large as the published
SAEs: 5120 features, 160 active. Prints a table in markdown; --json prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # SDXL's configuration stands there
from sdxl_configs import FULL, cost_of_hooks, random_pipeline

from baselines import METHODS
from riebench.backbones.loading import choose_device
from riebench.backbones.table import BACKBONES
from riebench.core.json_text import json_text
from riebench.edits.edit import Edit
from riebench.generation.sampler import Request, Sampler
from riebench.methods.method import Case
from riebench.runs.plan import site_of
from sae_models.topk import TopKConfig, TopKSAE

EDIT = Edit("e", "change_colour", "a red heart in the sky", "a blue heart in the sky", "heart", "heart")
SETTINGS = {"neurons": {"k": 10_000, "pool": "all"}, "sae": {"k": 160, "pool": "all"}}
LEFT_OUT = ("noop", "oracle-prompt", "chosen", "text-selected")  # without additions, or in need of more than a case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="+", metavar="backbone", help="out of riebench ls backbones")
    parser.add_argument("--dtype", default="bfloat16", help="float32, float16 or bfloat16")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--size", type=int, default=0, help="height and width in pixels (default: the backbone's)")
    parser.add_argument("--steps", type=int, default=0, help="fewer steps than the backbone's")
    parser.add_argument("--methods", default="", help="comma-separated (default: all that add something)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    device, dtype = choose_device(arguments.device), getattr(torch, arguments.dtype)
    names = arguments.methods.split(",") if arguments.methods else [n for n in METHODS.names() if n not in LEFT_OUT]
    rows = []
    for name in arguments.backbones:
        given = {"steps": arguments.steps, "height": arguments.size, "width": arguments.size}
        backbone = dataclasses.replace(BACKBONES.get(name), **{key: value for key, value in given.items() if value})
        model = "base" if backbone.guided else "turbo"
        pipeline = random_pipeline(FULL, model, str(device), dtype)
        rows += measure(Sampler(backbone, pipeline, batch_size=1), names)
        for row in rows[-len(names) - 2 :]:
            row |= {"backbone": backbone.name, "steps": backbone.steps, "px": backbone.height, "dtype": arguments.dtype}
        del pipeline
    print(json_text(rows, indent=2) if arguments.json else table(rows))


def measure(sampler: Sampler, names: list[str]) -> list[dict]:
    """A row for the plain pictures, one for the hooks, and one for each method."""
    kinds = {"update", *(_kind(METHODS.get(name)(**SETTINGS.get(name, {}))) for name in names)}
    sites = [site for kind in sorted(kinds) for site in sampler.blocks.sites(sampler.backbone.blocks, kind)]
    prompts = [EDIT.original_prompt, EDIT.edited_prompt]
    started = time.monotonic()
    original, edited = (sampler.generate([Request(prompt, 42)], sites, record=True)[0] for prompt in prompts)
    rows = [_row("two pictures, traced", started, bool(torch.isfinite(original.image).all()), 0.0, images=2)]
    hooks = cost_of_hooks(sampler.denoiser, sampler.height, sampler.width, repeats=3)
    rows.append({"what": "hooks, share of a forward", "value": hooks})
    saes = {block: _random_sae(trace.shape[2], i) for i, (block, trace) in enumerate(_updates(original).items())}
    for name in names:
        method = METHODS.get(name)(**SETTINGS.get(name, {}))
        case = _case(_kind(method), original, edited, saes, sampler.grids(sampler.backbone.blocks))
        started = time.monotonic()
        plan = method.plan(case)
        planned = time.monotonic() - started
        (image,) = sampler.regenerate([Request(EDIT.original_prompt, 42, plan)], [original])
        finite = bool(torch.isfinite(image).all())
        rows.append(_row(name, started, finite, float((image - original.image).abs().mean()), planned=planned))
        (still,) = sampler.regenerate([_still(method, case)], [original])
        rows[-1]["zero strength exact"] = torch.equal(still, original.image)
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _kind(method) -> str:
    """The kind of site that a method sees here, where dictionaries read updates."""
    return site_of(method, "update")


def _updates(sample) -> dict:
    return {site.block: value for site, value in sample.trace.items() if site.kind == "update"}


def _random_sae(width: int, seed: int) -> TopKSAE:
    return TopKSAE(TopKConfig(width=width, num_features=5120, k=160), seed=seed).requires_grad_(False)


def _case(kind: str, original, edited, saes, grids) -> Case:
    traces = [{site: v for site, v in s.trace.items() if site.kind == kind} for s in (original, edited)]
    maps = {block: torch.zeros(grid, dtype=torch.bool) for block, grid in grids.items()}
    for value in maps.values():
        value[4:12, 4:12] = True
    cells = {block: value.flatten() for block, value in maps.items()}
    return Case(EDIT, 42, *traces, cells, cells, saes.__getitem__, grids=grids)


def _still(method, case: Case) -> Request:
    return Request(EDIT.original_prompt, 42, dataclasses.replace(method, strength=0.0).plan(case))


def _row(what: str, started: float, finite: bool, change: float, *, images: int = 1, planned: float = 0.0) -> dict:
    seconds = time.monotonic() - started
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "what": what,
        "seconds an image": seconds / images,
        "of these planning": planned,
        "peak GB": peak / 1e9,
        "finite": finite,
        "mean change": change,
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| backbone | | s an image | planning, s | peak GB | finite | zero strength exact |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        where = f"{row['backbone']} ({row['steps']} steps, {row['px']} px, {row['dtype']})"
        if "value" in row:
            lines.append(f"| {where} | {row['what']} | {row['value']:.3f} | | | | |")
            continue
        exact = {True: "yes", False: "no"}.get(row.get("zero strength exact"), "")
        lines.append(
            f"| {where} | {row['what']} | {row['seconds an image']:.1f} | {row['of these planning']:.1f} "
            f"| {row['peak GB']:.1f} | {'yes' if row['finite'] else 'no'} | {exact} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
