"""Where a prompt enters tinyworld-turbo: some attentions are given the edited prompt, all others the original one.

Prints the oracle's success by category and group of spatial transformers, on 20 edits a category with seed 42. It says
what an intervention in the four blocks of the benchmark can hope for, without any dictionary.

    python benchmarks/where_text_enters.py
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from riebench.backbones.table import BACKBONES
from riebench.edits.edit import Edit, load_edits
from riebench.generation.sampler import Request, Sampler, load_sampler
from riebench.metrics import ScoreBatch, scorers

EDITS_PER_CATEGORY, SEED, BATCH = 20, 42, 30


def attention_groups(sampler: Sampler) -> dict[str, list[nn.Module]]:
    """The spatial transformers by where they are: the benchmark's four, the others on their grid, the 16x16 level."""
    every = {block: sampler.blocks.module(block) for block in sampler.backbone.family.places}
    coarse = {block for block, grid in sampler.grids(every).items() if grid == (8, 8)}
    return {
        "the four blocks": [every[block] for block in sampler.backbone.blocks],
        "other 8x8": [module for block, module in every.items() if block in coarse - set(sampler.backbone.blocks)],
        "16x16": [module for block, module in every.items() if block not in coarse],
    }


@torch.no_grad()
def success(sampler: Sampler, modules: Sequence[nn.Module], edits: Sequence[Edit]) -> pd.Series:
    """Category -> share of edits that the oracle sees done when only `modules` read the edited prompt."""
    (metric,) = scorers(["oracle_success"], sampler.backbone.judges, sampler.device)
    found = []
    for start in range(0, len(edits), BATCH):
        batch = edits[start : start + BATCH]
        states = sampler.pipeline.encode_prompt([edit.edited_prompt for edit in batch])[0]

        def read_edited(_module, args, kwargs, states=states):
            return args, {**kwargs, "encoder_hidden_states": states}

        hooks = [module.register_forward_pre_hook(read_edited, with_kwargs=True) for module in modules]
        try:
            samples = sampler.generate([Request(edit.original_prompt, SEED) for edit in batch])
        finally:
            for hook in hooks:
                hook.remove()
        images = torch.stack([sample.image for sample in samples])
        inside = torch.zeros(len(batch), *images.shape[-2:], dtype=torch.bool)
        regions = torch.zeros(len(batch), 2, *images.shape[-2:], dtype=torch.bool)
        found += metric.score(ScoreBatch(images, images, images, batch, inside, regions)).tolist()
    return pd.Series(found).groupby([edit.category for edit in edits], sort=False).mean()


def main() -> None:
    edits = [edit for edit in load_edits("tinyworld") if int(edit.id.rsplit("-", 1)[1]) < EDITS_PER_CATEGORY]
    sampler = load_sampler(BACKBONES.get("tinyworld-turbo@1"), torch.device("cpu"), BATCH)
    groups = attention_groups(sampler)
    print(pd.DataFrame({name: success(sampler, modules, edits) for name, modules in groups.items()}).round(2))


if __name__ == "__main__":
    main()
