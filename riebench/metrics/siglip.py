"""The cosines of an image with prompts and images, by SigLIP 2 in CLIP's place.

Tschannen et al., "SigLIP 2", 2025 (arXiv 2502.14786). Its cosines are smaller than CLIP's and compare only with each
other; the learned scale and bias of its sigmoid are left out, so that they are cosines.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from riebench.metrics.clip import Side
from riebench.metrics.clip_image import ImageCosine
from riebench.metrics.clip_text import TextCosine
from riebench.metrics.networks.siglip import SIGLIP2

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

SOURCE = "Tschannen et al. 2025 (arXiv 2502.14786)"


class SiglipText(TextCosine):
    """`TextCosine` by SigLIP 2."""

    uses = (SIGLIP2.key,)
    source = SOURCE

    def __init__(self, models: ScoringModels, side: Side) -> None:
        super().__init__(models, side)
        self.base, self.label = f"{SIGLIP2.key}_text_{side}", f"{SIGLIP2.label}, {side} prompt"


class SiglipImage(ImageCosine):
    """`ImageCosine` by SigLIP 2."""

    uses = (SIGLIP2.key,)
    source = SOURCE

    def __init__(self, models: ScoringModels, side: Side) -> None:
        super().__init__(models, side)
        self.base, self.label = f"{SIGLIP2.key}_image_{side}", f"{SIGLIP2.label}, {side} image"


text_edited = partial(SiglipText, side="edited")
text_original = partial(SiglipText, side="original")
image_edited = partial(SiglipImage, side="edited")
image_original = partial(SiglipImage, side="original")
