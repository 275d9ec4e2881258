"""The CLIPs: tinyworld's own, and any of open_clip. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from riebench.core.files import data_folder, read_json
from riebench.core.hub import Weights
from riebench.metrics.networks.base import Description, Network

if TYPE_CHECKING:
    import torch

    from riebench.metrics.networks.embeddings import Embeddings
    from riebench.metrics.networks.openclip import Preprocessing


class TinyworldClip(Network):
    """tinyworld's CLIP, which is shipped."""

    key, label = "clip", "CLIP"

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
    """A model of open_clip, in float32, whose weights open_clip downloads when they are first loaded."""

    model: str
    """"architecture/weights"."""
    key: str = "clip"
    label: str = "CLIP"
    fetch_name: str = ""
    weights: tuple[Weights, ...] = ()

    def describe(self) -> Description:
        """Returns what open_clip knows of the model. Raises `UserError` as `check_model` does."""
        from riebench.metrics.networks.openclip import model_preprocessing, weights_file

        words, file = str(model_preprocessing(self.model)), weights_file(self.model)
        return Description(self.model, [file] if file else [], words, fetch=self.fetch_name or self.model)

    def load(self, device: torch.device | str, batch_size: int, keep_marks: bool) -> Embeddings:
        from riebench.metrics.networks import openclip
        from riebench.metrics.networks.embeddings import Embeddings

        remedy = f"run `riebench fetch {self.fetch_name}`" if self.fetch_name else "try again"
        encoder = openclip.Encoder(self.model, device, remedy=f"{remedy}, where there is a network")
        return Embeddings(encoder, device, keep_marks, batch_size, encoder.preprocessing.resize)


#: The CLIP that judges SDXL's pictures. Plain ViT-L-14 would run the wrong activation on those weights. open_clip 3
#: looks for them on the Hub, at the branch "main"; its folder `~/.cache/clip` is read only where huggingface_hub is
#: not installed.
OPENAI_CLIP = OpenClip(
    "ViT-L-14-quickgelu/openai",
    fetch_name="clip-vit-l-14",
    weights=(Weights("timm/vit_large_patch14_clip_224.openai", "main", ("open_clip_model.safetensors",), 1.71),),
)
