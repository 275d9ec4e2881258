"""torch.compile of the parts of a pipeline that no hook looks into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline

from riebench.backbones.family import Family

RECOMPILATIONS = 64  # torch gives up after 8 of one function; a pipeline's blocks come in more shapes


def compile_parts(family: Family, pipeline: DiffusionPipeline, **options: Any) -> None:
    """Compiles the modules that the family names (`Family.compilable`). What is traced, edited or replayed stays as it
    is, so hooks go on working.

    options: of `torch.compile`. The first batch takes minutes; images differ from uncompiled ones by rounding.
    """
    for module in family.compilable(pipeline):
        module.forward = _patient(torch.compile(module.forward, **options))


def _patient(compiled: Callable) -> Callable:
    """Returns the function with torch's limit of recompilations raised while it runs, and at no other time."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)):
            return compiled(*args, **kwargs)

    return forward
