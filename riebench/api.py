"""The two calls most people want: run a benchmark, and edit one prompt pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from riebench import runs
from riebench.backbones import BLOCK_NAMES, check_blocks
from riebench.config import MethodConfig, RunConfig, read_config
from riebench.edits import Edit
from riebench.engine import Engine, open_engine
from riebench.errors import UserError
from riebench.methods import Method
from riebench.plan import variant_of


@dataclass(frozen=True)
class Edited:
    """One edit, done: three pictures from one noise, and the scores of the intervened one."""

    original: Image.Image
    edited: Image.Image
    """The edited prompt's picture: where the edit wants to go."""
    intervened: Image.Image
    scores: dict[str, Any]
    """One row as in `scores.parquet`."""

    def strip(self, scale: int = 4) -> Image.Image:
        """Original, edited and intervened picture side by side, each pixel `scale` pixels wide."""
        width, height = (side * scale for side in self.original.size)
        sheet = Image.new("RGB", (3 * width + 2 * scale, height), "white")
        for i, picture in enumerate((self.original, self.edited, self.intervened)):
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (i * (width + scale), 0))
        return sheet


def run(
    config: RunConfig | str = "quickstart",
    out: str | Path | None = None,
    *,
    device: str = "auto",
    methods: Sequence[Method] = (),
    edits: Sequence[Edit] | None = None,
    **overrides: Any,
) -> runs.Run:
    """Runs a benchmark and writes its folder (default `runs/<name>`).

    config: a preset, a YAML file or a RunConfig; `overrides` replace its fields. methods: one's own, beside the
    configured ones. edits: one's own, in place of the configured set. Raises `UserError` for anything wrong with them.
    """
    if isinstance(config, RunConfig):
        config, name = dataclasses.replace(config, **overrides), "custom"
    else:
        config, name = read_config(config, overrides), Path(config).stem
    return runs.run(config, Path(out or Path("runs") / name), device=device, methods=methods, edits=edits)


def edit(
    original_prompt: str,
    edited_prompt: str,
    *,
    region: str = "everything",
    edited_region: str | None = None,
    method: str | Method = "sae",
    blocks: Sequence[str] = BLOCK_NAMES,
    seed: int = 42,
    backbone: str = "tinyworld-turbo@1",
    engine: Engine | None = None,
) -> Edited:
    """Edits one prompt pair of one's own.

    region: a noun in the original picture, `everything`, `background` or `not <noun>`; `edited_region` is the same
    for the edited picture where it differs. method: a name or a Method. engine: an open one, to spare loading again.
    Raises `UserError` when a name is unknown or the region is not found in a picture.
    """
    item = Edit("custom", "change_object", original_prompt, edited_prompt, region, edited_region or region)
    engine = engine or open_engine(backbone, batch_size=2)
    chosen = MethodConfig(method).build() if isinstance(method, str) else method
    (reference,) = engine.references([(item, seed)], [chosen])
    (result,) = engine.results([(reference, [variant_of(chosen, check_blocks(list(blocks)))])])
    if result.image is None:
        raise UserError(f"this edit cannot be made: {result.row['reason']}", remedy="change the region or the seed")
    shown = (reference.pictures.original, reference.pictures.edited, result.image)
    pictures = (runs.to_picture(image) for image in shown)
    return Edited(*pictures, result.row)
