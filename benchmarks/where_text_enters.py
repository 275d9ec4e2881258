"""Where a prompt enters a generator of tinyworld: one block is given the edited prompt, all others the original one.

Prints the oracle's success by category and block, on 20 edits a category with seed 42. It says what an intervention in
a block can hope for, without any dictionary, and shares no code with the methods that do the same.

    python benchmarks/where_text_enters.py [tinyworld-turbo@1]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd
import torch
from diffusers.models import Transformer2DModel
from torch import nn

from riebench.backbones.table import BACKBONES
from riebench.edits.edit import Edit, load_edits
from riebench.generation.sampler import Request, Sampler, load_sampler
from riebench.metrics import ScoreBatch, scorers

EDITS_PER_CATEGORY, SEED, BATCH = 20, 42, 30


def attention_groups(sampler: Sampler) -> dict[str, list[nn.Module]]:
    """The spatial transformers: each of the benchmark's blocks, and all others together."""
    own = {block: sampler.blocks.module(block) for block in sampler.backbone.blocks}
    every = [module for module in sampler.pipeline.unet.modules() if isinstance(module, Transformer2DModel)]
    others = [module for module in every if module not in own.values()]
    return {block: [module] for block, module in own.items()} | {"all others": others}


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
    name = sys.argv[1] if len(sys.argv) > 1 else "tinyworld-turbo@1"
    sampler = load_sampler(BACKBONES.get(name), torch.device("cpu"), BATCH)
    groups = attention_groups(sampler)
    print(pd.DataFrame({name: success(sampler, modules, edits) for name, modules in groups.items()}).round(2))


if __name__ == "__main__":
    main()
