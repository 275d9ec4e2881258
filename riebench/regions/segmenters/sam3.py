"""SAM 3: every instance of a noun phrase, each with its own mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from riebench.core.errors import UserError
from riebench.regions.grounders import grounder_settings
from riebench.regions.segmenters.inputs import load_pair, pil_images, rounds, to_model

if TYPE_CHECKING:
    from transformers import Sam3Model, Sam3Processor


class Sam3:
    """Is a `riebench.regions.grounders.Grounder`. settings: threshold, on an instance's score; mask_threshold, on a
    pixel's."""

    def __init__(self, model: Sam3Model, processor: Sam3Processor, settings: Mapping[str, object]) -> None:
        self.model, self.processor, self.settings = model, processor, settings

    @torch.no_grad()
    def detections(self, images_bchw: Tensor, phrases: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Returns the instances of every noun, bool `[n, h, w]`, a noun after the other."""
        images, size = pil_images(images_bchw), tuple(images_bchw.shape[-2:])
        found = [[torch.zeros(0, *size, dtype=torch.bool)] for _ in phrases]
        for nouns, are_new in rounds(phrases):
            inputs = self.processor(images=images, text=nouns, return_tensors="pt")
            del inputs["original_sizes"]
            outputs = self.model(**to_model(inputs, self.model))
            results = self.processor.post_process_instance_segmentation(
                outputs,
                threshold=self.settings["threshold"],
                mask_threshold=self.settings["mask_threshold"],
                target_sizes=[size] * len(images),
            )
            for masks, result, is_new in zip(found, results, are_new, strict=True):
                if is_new and len(result["masks"]):
                    masks.append(result["masks"].bool().cpu())
        return [torch.cat(masks).to(images_bchw.device) for masks in found]


def load(device: torch.device | str = "cpu", **settings: object) -> Sam3:
    """Returns SAM 3 from this machine's cache.

    Raises `UserError` where it is missing, for wrong settings, and where the installed transformers has no SAM 3.
    """
    chosen = grounder_settings("sam3", settings)
    if not hasattr(transformers, "Sam3Model"):
        raise UserError(f"transformers {transformers.__version__} has no SAM 3", remedy="install transformers>=5")
    return Sam3(*load_pair("sam3", 0, transformers.Sam3Model, transformers.Sam3Processor, device), chosen)
