"""The weights behind scores: what `riebench fetch` gets of them, and what is known of a network that is not loaded.
Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from riebench.core.hub import Weights

OPENAI_CLIP = "ViT-L-14-quickgelu/openai"  # plain ViT-L-14 runs the wrong activation on those weights
SIGLIP2 = "ViT-B-16-SigLIP2/webli"
DINO = "dino-vitb8"

#: Name -> weights on the Hub, of the metrics that are scored by name. open_clip looks at the branch "main".
METRIC_WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "siglip2-vit-b-16": (
        Weights(
            repo="timm/ViT-B-16-SigLIP2",
            revision="main",
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
    DINO: (
        Weights(
            repo="facebook/dino-vitb8",
            revision="6bd5b7757e4224b035fe579f31fb816985e18e35",
            files=("config.json", "model.safetensors"),
            gigabytes=0.34,
        ),
    ),
}
#: open_clip model -> what `riebench fetch` calls it.
FETCH_NAMES = {OPENAI_CLIP: "clip-vit-l-14", SIGLIP2: "siglip2-vit-b-16"}

BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Network:
    """What is stored with the scores of a network."""

    name: str
    """Architecture and weights."""
    files: Sequence[Path] = ()
    """Its weights, of which some may not be there."""
    preprocessing: str = ""
    """What is done to an image in [0, 1]."""
    fetch: str = ""
    """What its weights are called where they are not shipped: by `riebench fetch`, or by open_clip."""

    @property
    def weights_sha256(self) -> str:
        """sha256 of the bytes of the files, one after the other; "" where one is not on this machine."""
        if not self.files or not all(file.is_file() for file in self.files):
            return ""
        states = ((file.stat().st_size, file.stat().st_mtime_ns) for file in self.files)
        return _sha256(tuple(self.files), tuple(states))


@lru_cache(maxsize=32)
def _sha256(files: tuple[Path, ...], _states: tuple[tuple[int, int], ...]) -> str:
    """_states: size and time of each file, which stand for its bytes among the cache's keys."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
