"""An engine of SDXL at its full size with random weights: it makes no pictures, and takes the time of the real one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from riebench.backbones.family import Site
from riebench.backbones.loading import choose_dtype
from riebench.backbones.sdxl_shape import FULL, Shape, random_pipeline
from riebench.backbones.table import Backbone
from riebench.generation.sampler import Sampler
from riebench.runs.engine import Engine
from riebench.runs.reference import Generation
from riebench.runs.setup import Setup
from sae_models.tensors import dtype_name
from sae_models.topk import TopKConfig, TopKSAE

EXPANSION, K = 4, 160  # of the published SAEs


def random_engine(backbone: Backbone, device: torch.device, batch_size: int, shape: Shape = FULL) -> Engine:
    """Returns an engine of a backbone of SDXL's family, of the backbone's own dtype, with random dictionaries of the
    published ones' size."""
    dtype = choose_dtype(backbone, device)
    pipeline = random_pipeline(shape, "base" if backbone.guided else "turbo", device, dtype)
    backbone.family.prepare(pipeline, False)
    sampler = Sampler(backbone, pipeline, batch_size)
    generation = Generation(sampler, Setup(dtype=dtype_name(dtype)))

    def dictionary(block: str) -> TopKSAE:
        width = sampler.blocks.width(Site(block))
        return TopKSAE(TopKConfig(width, EXPANSION * width, min(K, EXPANSION * width))).requires_grad_(False).to(device)

    generation.dictionary = cache(dictionary)
    return Engine(generation)


class Unscored:
    """Stands in the place of a `riebench.runs.scoring.Scorer` whose judges are not there."""

    names: tuple[str, ...] = ()

    def score(self, rows: Sequence, digests: Sequence[bytes] = ()) -> list[dict[str, float]]:
        """Returns no score of any row."""
        return [{} for _ in rows]
