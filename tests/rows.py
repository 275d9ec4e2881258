"""Rows for tests to work on: the updates of some generations, all in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riebench.dictionaries.harvest import stream
from riebench.generation.sampler import Sampler


def rows_of(sampler: Sampler, blocks: Sequence[str], prompts: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Block -> float32 `[n, C]`, prompt by prompt."""
    chunks = list(stream(sampler, blocks, prompts, seed))
    return {block: torch.cat([chunk[block].values for chunk in chunks]).float() for block in chunks[0]}
