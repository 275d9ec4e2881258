"""The CLIPs: tinyworld's own, and any of open_clip. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from riebench.core.files import data_folder, read_json
from riebench.core.hub import Weights, missing_files, weights_folder
from riebench.metrics.networks.base import Description, Network

if TYPE_CHECKING:
    import torch

    from riebench.metrics.networks.embeddings import Embeddings
    from riebench.metrics.networks.openclip import Preprocessing


class TinyworldClip(Network):
    """tinyworld's CLIP, which is shipped."""

    key, label = "clip", "CLIP"
    only = 64

    def describe(self) -> Description:
        weights = data_folder() / "tinyworld" / "clip" / "open_clip_model.safetensors"
        return Description("tinyworld's CLIP", [weights], str(self._preprocessing()))

    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Embeddings:
        from riebench.metrics.networks.embeddings import Embeddings
        from riebench.tinyworld.clip import load_clip

        return Embeddings(load_clip(device), device, keep_marks, batch_size, self._preprocessing().resize)

    def _preprocessing(self) -> Preprocessing:
        """Returns what tinyworld's CLIP says of itself, where open_clip would read it."""
        from riebench.metrics.networks.openclip import Preprocessing

        file = data_folder() / "tinyworld" / "clip" / "open_clip_config.json"
        config = read_json(file, "the configuration of tinyworld's CLIP")
        return Preprocessing.from_config(
            config["preprocess_cfg"] | {"size": config["model_cfg"]["vision_cfg"]["image_size"]}
        )


@dataclass(frozen=True)
class OpenClip(Network):
    """A model of open_clip, in float32. Where it names no weights of its own, open_clip downloads them when they are
    first loaded."""

    model: str
    """"architecture/weights"."""
    key: str = "clip"
    label: str = "CLIP"
    fetch_name: str = ""
    weights: tuple[Weights, ...] = ()
    """One, with the tensors in its first file."""
    text: str = ""
    """What the tokenizer is tried on when the model is loaded."""
    tokens: tuple[int, ...] = ()
    """What it makes of that, padding too."""

    def describe(self) -> Description:
        """Returns what open_clip knows of the model. Raises `UserError` as `check_model` does."""
        from riebench.metrics.networks.openclip import model_preprocessing, weights_file

        words = str(model_preprocessing(self.model))
        if not self.weights:
            file = weights_file(self.model)
        elif missing_files(self.weights[0]):
            file = None
        else:
            file = weights_folder(self.fetch_name, self.weights[0]) / self.weights[0].files[0]
        return Description(self.model, [file] if file else [], words, fetch=self.fetch_name or self.model)

    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Embeddings:
        from riebench.metrics.networks import openclip
        from riebench.metrics.networks.embeddings import Embeddings

        tokens = {self.text: self.tokens} if self.text else {}
        encoder = openclip.Encoder(self.model, device, fetch_name=self.fetch_name, weights=self.weights, tokens=tokens)
        return Embeddings(encoder, device, keep_marks, batch_size, encoder.preprocessing.resize)


#: The CLIP that judges SDXL's pictures, with the activation that its weights were trained with. The commit is
#: the one that public caches of these files show.
OPENAI_CLIP = OpenClip(
    "ViT-L-14-quickgelu/openai",
    fetch_name="clip-vit-l-14",
    weights=(
        Weights(
            "timm/vit_large_patch14_clip_224.openai",
            "18d0535469bb561bf468d76c1d73aa35156c922b",
            ("open_clip_model.safetensors",),
            1.71,
        ),
    ),
    text="A photo of a cat",
    tokens=(49406, 320, 1125, 539, 320, 2368, 49407, *[0] * 70),
)
#: The same weights with GELU, as the published code may have run them (`openclip.PUBLISHED_NAME`).
OPENAI_CLIP_GELU = replace(OPENAI_CLIP, model="ViT-L-14/openai")
