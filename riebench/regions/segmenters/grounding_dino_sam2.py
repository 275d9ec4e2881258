"""GroundingDINO finds boxes for the nouns, SAM 2.1 turns every box into a mask: the published detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, Sam2Model, Sam2Processor

from riebench.regions.grounders import grounder_settings
from riebench.regions.segmenters.inputs import load_pair, pil_images, to_model


class GroundingDinoSam2:
    """Is a `riebench.regions.grounders.Grounder`.

    settings: box_threshold, on a box's score; text_threshold, on the score of a word of its label: transformers keeps a
    box whose label is empty, so it changes no mask.
    """

    def __init__(
        self,
        detector: GroundingDinoForObjectDetection,
        detector_processor: GroundingDinoProcessor,
        segmenter: Sam2Model,
        segmenter_processor: Sam2Processor,
        settings: Mapping[str, object],
    ) -> None:
        self.detector, self.detector_processor = detector, detector_processor
        self.segmenter, self.segmenter_processor = segmenter, segmenter_processor
        self.settings = settings

    @torch.no_grad()
    def detections(self, images_bchw: Tensor, phrases: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Returns a mask for each box, bool `[n, h, w]`; the nouns of an image are asked for at once."""
        images = pil_images(images_bchw)
        found = []
        for image, boxes in zip(images, self._boxes(images, phrases), strict=True):
            found.append(self._masks(image, boxes).to(images_bchw.device))
        return found

    def _boxes(self, images: Sequence[Image], phrases: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Returns for each image its boxes `[n, 4]`: left, top, right, bottom in pixels."""
        texts = [" . ".join(noun.lower() for noun in nouns) + " ." for nouns in phrases]
        inputs = self.detector_processor(images=list(images), text=texts, padding=True, return_tensors="pt")
        outputs = self.detector(**to_model(inputs, self.detector))
        results = self.detector_processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.settings["box_threshold"],
            text_threshold=self.settings["text_threshold"],
            target_sizes=[(image.height, image.width) for image in images],
        )
        return [result["boxes"].float().cpu() for result in results]

    def _masks(self, image: Image, boxes: Tensor) -> Tensor:
        """Returns the mask of each box, bool `[n, h, w]`."""
        if not len(boxes):
            return torch.zeros(0, image.height, image.width, dtype=torch.bool)
        inputs = self.segmenter_processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
        sizes = inputs.pop("original_sizes")
        outputs = self.segmenter(**to_model(inputs, self.segmenter), multimask_output=False)
        return self.segmenter_processor.post_process_masks(outputs.pred_masks.float().cpu(), sizes)[0][:, 0]


def load(device: torch.device | str = "cpu", **settings: object) -> GroundingDinoSam2:
    """Returns the grounder of both models from this machine's cache. Raises `UserError` where one is missing, or for
    wrong settings."""
    name = "grounding-dino+sam2"
    chosen = grounder_settings(name, settings)
    detector = load_pair(name, 0, GroundingDinoForObjectDetection, GroundingDinoProcessor, device)
    segmenter = load_pair(name, 1, Sam2Model, Sam2Processor, device)
    return GroundingDinoSam2(*detector, *segmenter, chosen)
