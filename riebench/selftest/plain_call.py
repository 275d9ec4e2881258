"""Step 3: one prompt through riebench and through the pipeline's own call, and how large the blocks' updates are."""

from __future__ import annotations

import torch

from riebench.backbones.family import Site
from riebench.generation.sampler import Request, Sampler
from riebench.selftest.bench import SEED, Bench
from riebench.selftest.step import Check, Found


@torch.no_grad()
def compare(bench: Bench) -> Found:
    """Returns whether the two images are equal, and norms and numbers that are not finite of each block's update."""
    backbone, own = bench.backbone, bench.sampler
    prompt, sampler = bench.prompts[0], Sampler(backbone, own.pipeline, 1)
    sites = [Site(block) for block in backbone.blocks]
    (sample,) = sampler.generate([Request(prompt, SEED)], sites)
    image = own.pipeline(
        prompt=prompt,
        num_inference_steps=backbone.steps,
        guidance_scale=backbone.guidance,
        height=own.height,
        width=own.width,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pt",
    ).images[0]
    difference = float((image.float().cpu() - sample.image).abs().max())
    blocks = {}
    for site, trace in sample.trace.items():
        update = trace.float()
        norms = update.norm(dim=-1)
        blocks[site.block] = {
            "norm by step": [float(step.mean()) for step in norms],
            "largest value": float(update.abs().max()),
            "not finite": int((~update.isfinite()).sum()),
        }
    overflow = sum(block["not finite"] for block in blocks.values()) + int((~sample.image.isfinite()).sum())
    equal = torch.equal(image.float().cpu(), sample.image)
    shown = "equal to the bit" if equal else f"the images differ by up to {difference:.3g}"
    largest = max(block["largest value"] for block in blocks.values())
    figure = f"{shown}; {overflow} numbers are not finite; largest value of an update {largest:.4g}"
    limit = float(torch.finfo(own.denoiser.dtype).max)
    return Found(figure, equal and not overflow, {"prompt": prompt, "blocks": blocks, "largest of dtype": limit})


CHECK = Check(3, "plain call", "equal to the bit; every number is finite", compare)
