"""A plain loop over the protocol, to measure the engine's speed against and to check its scores by.

It works as the published code does: one result at a time in batches of one; the original and the edited image
generated again for every setting (protocol §11.9); hooks put on and taken off around each generation; nothing
remembered from one scored image to the next. It shares with the engine what the protocol leaves to choice (methods,
dictionaries, grounder, metrics), and none of how images are made. Each network is loaded once, as a published loop
would, and scores one image at a time: what the metrics remember is emptied before each scored image, though within one
image they share it, which is generous to this loop. Guided backbones are refused.

    python benchmarks/naive_loop.py --edits-per-category 1 --seeds 42     half a minute on one core
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from riebench.backbones.family import Site, blocks_text
from riebench.backbones.loading import quiet
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.core.files import data_folder, replacing
from riebench.core.json_text import json_text
from riebench.edits.edit import CATEGORY_NAMES, Edit, load_edits
from riebench.generation.interventions import Addition
from riebench.methods.method import Case, Method
from riebench.metrics import METRICS, ScoreBatch, default_metrics, score_batch
from riebench.metrics.models import ScoringModels
from riebench.regions.grounders import GROUNDERS
from riebench.regions.grounding import ground
from riebench.regions.masks import dilate, mask_to_grid
from riebench.runs.config import RunConfig, read_config
from sae_models import index

BLOCK_NAMES = SDXL.default_blocks
BLOCKS = {block: SDXL.places[block].path for block in SDXL.default_blocks}

OUTSIDE_PX, OUTSIDE_REFERENCE_PX = 12, 512  # protocol §7

Setting = tuple[Method, tuple[str, ...]]
"""A method and the blocks it is run on."""


def naive_rows(
    config: RunConfig, edits: Sequence[Edit], seeds: Sequence[int], *, settings: Sequence[Setting] | None = None
) -> Iterator[dict]:
    """One row a result: what it is of, how it went, and a float a metric (NaN where it failed).

    settings: by default those of the configuration. Raises `UserError` for a guided backbone.
    """
    loop = NaiveLoop(config)
    settings = config_settings(config) if settings is None else settings
    return (loop.row(edit, seed, *setting) for edit in edits for seed in seeds for setting in settings)


def config_settings(config: RunConfig) -> list[Setting]:
    """Every method on all blocks, and `subsets_of` on every subset of them; a method without sites has no blocks."""
    subsets = [subset for size in (1, 2, 3, 4) for subset in itertools.combinations(BLOCK_NAMES, size)]
    settings: list[Setting] = []
    for method in (chosen.build() for chosen in config.methods):
        if not method.sites:
            settings.append((method, ()))
        else:
            settings += [
                (method, blocks) for blocks in (subsets if method.name in config.subsets_of else [BLOCK_NAMES])
            ]
    return settings


class Failed(Exception):
    """Why a result cannot be had; its row says so."""


class NaiveLoop:
    """The loaded networks, on the CPU, and one result at a time from them."""

    def __init__(self, config: RunConfig) -> None:
        self.backbone, self.mask_rule = BACKBONES.get(config.backbone), config.setup("float32").mask_rule
        if self.backbone.guided:
            raise UserError(f"the naive loop samples without guidance, {config.backbone} with it", remedy="use turbo")
        with quiet():
            self.pipeline = StableDiffusionXLPipeline.from_pretrained(
                data_folder() / self.backbone.folder,
                add_watermarker=False,
                local_files_only=True,
                low_cpu_mem_usage=False,
            )
        self.pipeline.set_progress_bar_config(disable=True)
        self.saes = {block: index.open(index.find(self.backbone.trained_on, block)) for block in BLOCK_NAMES}
        self.grids: dict[str, tuple[int, int]] = {}  # block -> its cells (high, wide), as they were seen last
        self.grounder = GROUNDERS.get(self.backbone.grounder)("cpu")
        self.judges = ScoringModels(self.backbone.judges, batch_size=1)
        self.metrics = [METRICS.get(name)(self.judges) for name in default_metrics(self.backbone.judges)]

    def row(self, edit: Edit, seed: int, method: Method, blocks: tuple[str, ...]) -> dict:
        """One result from nothing: both references, regions, plan, intervened image, scores."""
        row = {
            "edit": edit.id,
            "category": edit.category,
            "seed": seed,
            "method": method.name,
            "strength": float(method.strength),
            "blocks": blocks_text(blocks),
        }
        try:
            scores, reason = self.edit_and_score(edit, seed, method, blocks), ""
        except Failed as error:
            scores, reason = dict.fromkeys(default_metrics(self.backbone.judges), float("nan")), str(error)
        return row | {"status": "failed" if reason else "ok", "reason": reason} | scores

    def edit_and_score(self, edit: Edit, seed: int, method: Method, blocks: tuple[str, ...]) -> dict[str, float]:
        """Metric name -> score. Raises `Failed` where there is no region, no plan or no image."""
        kind = {"block": "update"}.get(method.sites, method.sites)
        original, original_trace = self.generate(edit.original_prompt, seed, capture=("update", kind))
        edited, edited_trace = self.generate(edit.edited_prompt, seed, capture=("update", kind))
        if original is None or edited is None:
            raise Failed("a reference image holds NaN")
        mask_o, mask_e = self.regions(edit, original, edited)
        cells_o, cells_e = (
            {block: mask_to_grid(mask[None], grid, self.mask_rule)[0].flatten() for block, grid in self.grids.items()}
            for mask in (mask_o, mask_e)
        )
        sides = (("original", cells_o), ("edited", cells_e))
        empty = [side for side, cells in sides if not cells[BLOCK_NAMES[0]].any()]
        if empty:
            raise Failed(f"no region found in the {' and '.join(empty)} image")

        seen_o, seen_e = (
            {site: value for site, value in trace.items() if site.kind == kind}
            for trace in (original_trace, edited_trace)
        )
        try:
            plan = method.plan(
                Case(edit, seed, seen_o, seen_e, cells_o, cells_e, self.saes.__getitem__, grids=self.grids)
            )
        except UserError as error:
            raise Failed(f"{method.name}: {error}") from error
        additions = {site: value for site, value in plan.additions.items() if site.block in blocks}
        prompt = edit.edited_prompt if plan.prompt == "edited" else edit.original_prompt
        intervened, _ = self.generate(prompt, seed, additions=additions)
        if intervened is None:
            raise Failed("the image holds NaN")
        pixels = round(OUTSIDE_PX * mask_o.shape[-2] / OUTSIDE_REFERENCE_PX)
        outside = ~dilate((mask_o | mask_e)[None], pixels)
        regions = torch.stack([mask_o, mask_e])[None]
        return self.score(ScoreBatch(intervened[None], original[None], edited[None], [edit], outside, regions))

    @torch.no_grad()
    def generate(
        self, prompt: str, seed: int, *, capture: Sequence[str] = (), additions: Mapping[Site, Addition] | None = None
    ) -> tuple[Tensor | None, dict[Site, Tensor]]:
        """An image `[3, h, w]` in [0, 1] of 8 bits, None where it holds NaN, and site -> `[steps, cells, C]`.

        capture: kinds of sites, "update" or "neurons", to trace in all blocks. additions: site -> what is added to some
        of its cells, which are counted row by row, at each step.
        """
        additions, trace, now = additions or {}, {}, {"step": 0}

        def on_block(site: Site, _module, args: tuple, output: tuple) -> tuple | None:
            _, channels, height, width = output[0].shape
            self.grids[site.block] = (height, width)
            if site.kind in capture:
                trace.setdefault(site, []).append((output[0] - args[0])[0].reshape(channels, height * width).T)
            if site in additions:
                stream, added = output[0].clone(), additions[site]
                for cell, value in zip(added.cells.tolist(), added.values[now["step"]], strict=True):
                    stream[0, :, cell // width, cell % width] += value
                return (stream, *output[1:])

        def on_neurons(site: Site, _module, _args, output: Tensor) -> Tensor | None:
            if site.kind in capture:
                trace.setdefault(site, []).append(output[0])
            if site in additions:
                edited, added = output.clone(), additions[site]
                for cell, value in zip(added.cells.tolist(), added.values[now["step"]], strict=True):
                    edited[0, cell, slice(None) if added.channels is None else added.channels] += value
                return edited

        def on_step_end(_pipeline, step: int, _timestep, tensors: dict) -> dict:
            now["step"] = step + 1
            return tensors

        handles = []
        try:
            for block in BLOCK_NAMES:
                module = self.pipeline.unet.get_submodule(BLOCKS[block])
                layers = {
                    Site(block, "neurons", number): layer.ff.net[0]
                    for number, layer in enumerate(module.transformer_blocks)
                }
                for site, place in {Site(block): module, **layers}.items():
                    if site.kind in capture or site in additions:
                        hook = partial(on_block if site.kind == "update" else on_neurons, site)
                        handles.append(place.register_forward_hook(hook))
            image = self.pipeline(
                prompt,
                num_inference_steps=self.backbone.steps,
                guidance_scale=self.backbone.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=on_step_end,
                output_type="pt",
            ).images[0]
        finally:
            for handle in handles:
                handle.remove()
        stacked = {site: torch.stack(steps) for site, steps in trace.items()}
        return (eight_bits(image) if torch.isfinite(image).all() else None), stacked

    def regions(self, edit: Edit, original: Tensor, edited: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of the original and the edited image; one on both where an object comes or goes (protocol §4)."""
        mask_o = ground(self.grounder, original[None], [edit.original_region])[0]
        mask_e = ground(self.grounder, edited[None], [edit.edited_region])[0]
        if edit.category == "add_object":
            return mask_e, mask_e
        if edit.category == "delete_object":
            return mask_o, mask_o
        return mask_o, mask_e

    def score(self, batch: ScoreBatch) -> dict[str, float]:
        """All metrics of one image, from its pixels alone."""
        self.judges.forget()
        return {name: float(values[0]) for name, values in score_batch(self.metrics, batch).items()}


def eight_bits(image_chw: Tensor) -> Tensor:
    """An image in [0, 1] as it is written: rounded to 8 bits."""
    return (image_chw.clamp(0, 1) * 255).round().byte().float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits-per-category", type=int, default=1, help="0 takes all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--backbone", default="tinyworld-turbo@1")
    parser.add_argument("--categories", nargs="+", help="by default all")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--out", type=Path, help="parquet file for the rows")
    arguments = parser.parse_args()
    overrides = {"backbone": arguments.backbone, "seeds": arguments.seeds}
    if arguments.categories:
        overrides["categories"] = arguments.categories
    try:
        config = read_config(str(Path(__file__).with_name("settings.yaml")), overrides)
        measured = measure(config, arguments.edits_per_category, arguments.out)
    except UserError as error:
        sys.exit(str(error))
    text = "{images} images scored ({failed} failed) in {seconds:.1f} s: {images_per_second:.3f} images a second"
    print(json_text(measured) if arguments.json else text.format(**measured))


def measure(config: RunConfig, edits_per_category: int, out: Path | None) -> dict[str, float]:
    """Runs the first so many edits of each category; how many images were scored, and how fast once loaded."""
    known = load_edits(config.edits)
    by_category = [
        [edit for edit in known if edit.category == category] for category in (config.categories or CATEGORY_NAMES)
    ]
    edits = [edit for of_category in by_category for edit in of_category[: edits_per_category or None]]
    found = naive_rows(config, edits, config.seeds)  # loads the networks
    rows, scored, failed = [], 0, 0
    start = time.perf_counter()
    for row in found:
        scored, failed = scored + (row["status"] == "ok"), failed + (row["status"] != "ok")
        if out:
            rows.append(row)
    seconds = time.perf_counter() - start
    if out:
        with replacing(out) as temporary:
            pd.DataFrame(rows).to_parquet(temporary, index=False)
    return {"images": scored, "failed": failed, "seconds": seconds, "images_per_second": scored / seconds}


if __name__ == "__main__":
    main()
