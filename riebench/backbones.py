"""The models under test, as a frozen table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from riebench.errors import UserError
from riebench.files import data_folder
from riebench.registry import Registry

#: Short name of a block -> its module path in the U-Net (protocol §2), in the order in which the U-Net runs them.
BLOCKS = {
    "down.2.1": "down_blocks.2.attentions.1",
    "mid.0": "mid_block.attentions.0",
    "up.0.0": "up_blocks.0.attentions.0",
    "up.0.1": "up_blocks.0.attentions.1",
}
BLOCK_NAMES = tuple(BLOCKS)


@dataclass(frozen=True)
class Backbone:
    """A diffusion model, and how the benchmark samples it."""

    name: str
    """As in `riebench run`: the model, `@`, its number of steps."""
    folder: str
    """Folder of a `StableDiffusionXLPipeline`, relative to the shipped data or absolute."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Classifier-free guidance scale; 0 samples without it."""
    grounder: str
    """Name of the grounder that finds regions in its pictures."""
    judges: str
    """Family of the networks that score its pictures (`riebench.metrics.models.FAMILIES`)."""
    summary: str = ""
    dictionaries: str = ""
    """The backbone whose dictionaries are used on this one, where that is not itself: SAEs of one step carry over to
    more steps and to the model it was distilled from."""

    @property
    def guided(self) -> bool:
        """Whether each step runs every row twice, without and with its prompt (diffusers: guidance above 1)."""
        return self.guidance > 1


BACKBONES: Registry[Backbone] = Registry("backbone", "riebench.backbones")
for _model, _steps, _guidance, _summary in (
    ("turbo", 1, 0.0, "the embedded small SDXL Turbo, one step, 64 px"),
    ("turbo", 4, 0.0, "the same model, four Euler ancestral steps"),
    ("base", 25, 1.5, "the embedded small SDXL that tinyworld-turbo was distilled from, 25 Euler steps with guidance"),
):
    _name = f"tinyworld-{_model}@{_steps}"
    BACKBONES.add(
        _name,
        Backbone(
            _name, f"tinyworld/{_model}", _steps, _guidance, "tinyworld", "tinyworld", _summary, "tinyworld-turbo@1"
        ),
        summary=_summary,
    )


def backbone_folder(backbone: Backbone) -> Path:
    """Where a backbone's pipeline lies. Raises `UserError` when it is not there."""
    folder = Path(backbone.folder) if Path(backbone.folder).is_absolute() else data_folder() / backbone.folder
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the weights of {backbone.name} are not at {folder}",
            remedy="install riebench again, or make them with `riebench tinyworld train`",
        )
    return folder


def check_blocks(names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The given block names in U-Net order. Raises `UserError` for a name that is not a block."""
    for name in names:
        if name not in BLOCKS:
            raise UserError(f"unknown block {name!r}", remedy=f"use blocks out of {', '.join(BLOCKS)}")
    return tuple(name for name in BLOCKS if name in names)


def blocks_text(names: tuple[str, ...]) -> str:
    """As in the `blocks` column: names joined by "+" in U-Net order, "" for none."""
    return "+".join(check_blocks(names))
