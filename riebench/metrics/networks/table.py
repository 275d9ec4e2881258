"""Which networks score the pictures of which family. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from riebench.core.hub import Weights
from riebench.metrics.networks.base import Network
from riebench.metrics.networks.clip import OPENAI_CLIP, OPENAI_CLIP_GELU, OpenClip, TinyworldClip
from riebench.metrics.networks.dino import DINO
from riebench.metrics.networks.lpips import ALEX, SQUEEZE, VGG
from riebench.metrics.networks.oracle import ORACLE
from riebench.metrics.networks.siglip import SIGLIP2

_ALL = (SIGLIP2, DINO, ALEX, VGG, SQUEEZE)
#: Family of judges (`Backbone.judges`) -> the networks that may score its pictures, each of another key.
NETWORKS: dict[str, tuple[Network, ...]] = {
    "tinyworld": (TinyworldClip(), ORACLE, *_ALL),
    "sdxl": (OPENAI_CLIP, *_ALL),
}
#: What `riebench fetch` calls them -> the weights on the Hub.
METRIC_WEIGHTS: dict[str, tuple[Weights, ...]] = {
    network.fetch_name: network.weights for network in (OPENAI_CLIP, *_ALL) if network.weights
}


def other_clip(model: str) -> OpenClip:
    """Returns the open_clip model of a name "architecture/weights", to be used in the place of a family's CLIP."""
    known = {network.model: network for network in (OPENAI_CLIP, OPENAI_CLIP_GELU, SIGLIP2)}
    return replace(known.get(model, OpenClip(model)), key="clip", label="CLIP")
