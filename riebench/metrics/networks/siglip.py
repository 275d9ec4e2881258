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
            revision="main",  # where open_clip looks
            files=(
                "open_clip_config.json",
                "open_clip_model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ),
            gigabytes=1.54,
        ),
    ),
)
