"""CLIPSeg: one soft mask a noun phrase, of 352 px, cut at a threshold. It does not tell instances apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from riebench.regions.grounders import grounder_settings
from riebench.regions.segmenters.inputs import load_pair, pil_images, rounds, to_model


class CLIPSeg:
    """Is a `riebench.regions.grounders.Grounder`. settings: threshold, on the probability of a pixel."""

    def __init__(
        self, model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, settings: Mapping[str, object]
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings

    @torch.no_grad()
    def detections(self, images_bchw: Tensor, phrases: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Returns a mask for each noun that has a pixel above the threshold, bool `[n, h, w]`."""
        pixels = self.processor(images=pil_images(images_bchw), return_tensors="pt")
        found: list[list[Tensor]] = [[] for _ in phrases]
        for nouns, are_new in rounds(phrases):
            # Padded to the full length, so that an image's mask does not depend on the other phrases.
            text = self.processor(text=nouns, padding="max_length", truncation=True, return_tensors="pt")
            logits = self.model(**to_model({**pixels, **text}, self.model)).logits.float()
            logits = logits.reshape(len(nouns), 1, *logits.shape[-2:])  # the model squeezes a batch of one
            size = images_bchw.shape[-2:]
            likely = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0].sigmoid()
            for masks, mask, is_new in zip(found, likely > self.settings["threshold"], are_new, strict=True):
                if is_new and mask.any():
                    masks.append(mask)
        empty = torch.zeros(0, *images_bchw.shape[-2:], dtype=torch.bool)
        return [(torch.stack(masks) if masks else empty).to(images_bchw.device) for masks in found]


def load(device: torch.device | str = "cpu", **settings: object) -> CLIPSeg:
    """Returns the refined CLIPSeg from this machine's cache. Raises `UserError` where it is missing, or for wrong
    settings."""
    chosen = grounder_settings("clipseg", settings)
    return CLIPSeg(*load_pair("clipseg", 0, CLIPSegForImageSegmentation, CLIPSegProcessor, device), chosen)
