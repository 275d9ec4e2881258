"""Structure distance: how far the layout of an image is from the original's, whatever its colours (protocol §7).

Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022 (arXiv 2201.00424), eq. 3 and 4: the
cosines of the keys of DINO's deepest layer (ViT-B/8, Caron et al. 2021, arXiv 2104.14294), each token's of all heads
together and the [CLS] token's among them, with one another. The distance is the mean of the squared differences of two
images' cosines, as PIE-Bench reports it (Ju et al. 2023, arXiv 2310.01506). Images are in [0, 1] before DINO's
normalisation, as it was trained; PIE-Bench's published code gives it 0 to 255, so values do not compare with its table.
"""

from __future__ import annotations

import numpy as np

from riebench.metrics.base import ScoreBatch
from riebench.metrics.networks.dino import DINO
from riebench.metrics.shared import SharedMetric


class StructureDistance(SharedMetric):
    """Mean squared difference of the intervened and the original image's key self-similarity."""

    name, label = "structure_distance", "Structure distance"
    uses = (DINO.key,)
    source = "Tumanyan et al. 2022 (arXiv 2201.00424)"
    always = True
    higher_is_better = False
    bounds = (0.0, 4.0)

    def score(self, batch: ScoreBatch) -> np.ndarray:
        ours_bnn, original_bnn = (self.models[DINO.key](images)[0] for images in (batch.intervened, batch.original))
        return (ours_bnn - original_bnn).square().double().mean(dim=(1, 2)).cpu().numpy()
