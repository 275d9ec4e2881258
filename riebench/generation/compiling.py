"""torch.compile of the parts of a pipeline that no hook looks into."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

RECOMPILATIONS = 64  # torch gives up after 8 of one function; SDXL's blocks come in more shapes


def compile_parts(pipeline: StableDiffusionXLPipeline, **options) -> None:
    """Compiles the residual blocks and attentions of the U-Net, and the decoder. What is traced, edited or replayed,
    the transformers with their feed-forwards and the U-Net as a whole, stays as it is, so hooks go on working.

    options: of `torch.compile`. The first batch takes minutes; images differ from uncompiled ones by rounding.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
    parts = [module for module in pipeline.unet.modules() if isinstance(module, ResnetBlock2D | Attention)]
    for module in [*parts, pipeline.vae.decoder]:
        module.forward = torch.compile(module.forward, **options)
