"""SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786), a model of open_clip. Imports no torch."""

from __future__ import annotations

from riebench.core.hub import Weights
from riebench.metrics.networks.clip import OpenClip

SIGLIP2 = OpenClip(
    "ViT-B-16-SigLIP2/webli",
    key="siglip2",
    label="SigLIP 2",
    fetch_name="siglip2-vit-b-16",
    weights=(
        Weights(
            repo="timm/ViT-B-16-SigLIP2",
            revision="eee10eff6dd8cabae2d7f379d4e8cfcd352030aa",  # that of public caches of these files
            files=(
                "open_clip_model.safetensors",
                "open_clip_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ),
            gigabytes=1.54,
        ),
    ),
    # in lower case and without punctuation, <eos> at the end and no <bos>, filled up on the right: as it was trained
    text="A photo of a Cat!",
    tokens=(235250, 2686, 576, 476, 4401, 1, *[0] * 58),
)
