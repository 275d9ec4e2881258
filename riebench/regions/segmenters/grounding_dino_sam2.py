"""GroundingDINO finds boxes for the nouns, SAM 2.1 turns every box into a mask: the published detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import transformers
from PIL.Image import Image
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, Sam2Model, Sam2Processor

from riebench.core.errors import UserError
from riebench.regions.grounders import grounder_settings
from riebench.regions.segmenters.inputs import load_pair, pil_images, to_model

#: A sentence and the positions of its words, with [CLS] and [SEP] around it.
SENTENCE, POSITIONS = "a cat . dog .", (0, 0, 1, 2, 0, 1, 0)


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


def check_positions(detector: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor) -> None:
    """Raises `UserError` where the detector counts the words of a sentence otherwise than it was trained to.

    Positions begin anew behind each ".", which itself still counts with the words before it (`POSITIONS`; Liu et al.
    2023, arXiv 2303.05499, of the original code: `generate_masks_with_special_tokens_and_transfer_map`). transformers
    5.0 to 5.22 give every "." position 0, with no other sign than worse boxes. Read is what reaches the embedding of
    positions, in the detector's own forward pass, which goes no further.
    """
    seen: list[int] = []

    def read(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.extend(args[0].flatten().tolist())
        raise _Enough

    text = processor.tokenizer(SENTENCE, return_tensors="pt")
    embedding = detector.model.text_backbone.embeddings.position_embeddings
    handle = embedding.register_forward_pre_hook(read)
    try:
        with torch.no_grad():
            detector(**to_model({**text, "pixel_values": torch.zeros(1, 3, 64, 64)}, detector))
    except _Enough:
        pass
    finally:
        handle.remove()
    if tuple(seen) != POSITIONS:
        raise UserError(
            f"transformers {transformers.__version__} gives GroundingDINO's words wrong positions: {seen} for"
            f" {SENTENCE!r}, where it was trained on {list(POSITIONS)}",
            remedy='`pip install -U "transformers>=5.23"`',
        )


class _Enough(Exception):
    """An end of a forward pass of which nothing more is wanted."""


def load(device: torch.device | str = "cpu", **settings: object) -> GroundingDinoSam2:
    """Returns the grounder of both models from this machine's cache. Raises `UserError` where one is missing, for wrong
    settings, and as `check_positions`."""
    name = "grounding-dino+sam2"
    chosen = grounder_settings(name, settings)
    detector = load_pair(name, 0, GroundingDinoForObjectDetection, GroundingDinoProcessor, device)
    check_positions(*detector)
    segmenter = load_pair(name, 1, Sam2Model, Sam2Processor, device)
    return GroundingDinoSam2(*detector, *segmenter, chosen)
