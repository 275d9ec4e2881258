"""These are the calls most people want: run a benchmark, edit one prompt pair, generate one image."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from riebench.backbones.loading import choose_device, choose_dtype
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.core.pictures import mask_picture, to_picture
from riebench.core.values import Seed, check_value
from riebench.edits.edit import Edit, set_sha256
from riebench.generation.interventions import Intervention
from riebench.methods.method import Method, uses_sae
from riebench.runs import run as runs
from riebench.runs.config import MethodConfig, RunConfig, build_config, read_config
from riebench.runs.dictionaries import check_dictionaries
from riebench.runs.engine import Engine, open_engine
from riebench.runs.folder import default_folder, folder_of_config
from riebench.runs.limits import refuse_impossible
from riebench.runs.needs import missing_need
from riebench.runs.plan import find_donor, kind_of_donor, variant_of
from riebench.runs.reference import open_generation
from riebench.runs.setup import Setup
from sae_models.tensors import dtype_name

LABEL_SHARE = 0.11  # height of a line of text above a picture, of its width
STRIP_LABELS = (("original", "edited prompt", "intervened"), ("region in original", "region in edited"))
BATCH = 2  # the most images generated at once: original and edited


@dataclass(frozen=True)
class Edited:
    """One edit, done: three pictures from one noise, and the scores of the intervened one."""

    original: Image.Image
    edited: Image.Image
    """The edited prompt's picture: where the edit wants to go."""
    intervened: Image.Image
    masks: tuple[Image.Image, Image.Image]
    """The region in the original and in the edited picture, white."""
    features: Mapping[str, Mapping[str, list[int]]]
    """Block -> the numbers of its features that were turned "on" and "off", where the method chose some."""
    scores: dict[str, Any]
    """One row as in `scores.parquet`."""

    def strip(self, scale: int = 0) -> Image.Image:
        """Returns original, edited and intervened picture side by side, the regions below the first two, each under
        its name in a line of `LABEL_SHARE` of a picture's width.

        scale: width of a pixel; 0 makes small pictures about 256 pixels wide.
        """
        scale = scale or max(1, 256 // self.original.width)
        width, height = (side * scale for side in self.original.size)
        line = round(LABEL_SHARE * width)
        sheet = Image.new("RGB", (3 * width + 2 * scale, 2 * (line + height) + scale), "white")
        font, draw = ImageFont.load_default(0.6 * line), ImageDraw.Draw(sheet)
        for row, pictures in enumerate(((self.original, self.edited, self.intervened), self.masks)):
            for i, picture in enumerate(pictures):
                large = picture.resize((width, height), Image.Resampling.NEAREST)
                left, top = i * (width + scale), row * (line + height + scale)
                draw.text((left + width // 2, top + line // 2), STRIP_LABELS[row][i], "black", font, anchor="mm")
                sheet.paste(large, (left, top + line))
        return sheet


def run(
    config: RunConfig | str | Path | Mapping[str, Any] = "quickstart",
    out: str | Path | None = None,
    *,
    device: str = "auto",
    methods: Sequence[Method | str | Mapping[str, Any] | MethodConfig] = (),
    edits: Sequence[Edit] | None = None,
    **overrides: Any,
) -> runs.Run:
    """Runs a benchmark, writes its folder, and returns the finished run.

    config: a preset, a YAML file, a RunConfig, or the keys and values of a YAML file; `overrides` replace its fields.
    out: by default `runs/<name>` with what differs from a preset or file, or `runs/custom-<digest>`.
    methods: where names, or `{"name": "sae", "k": 64}` as in YAML, are among them, these in place of the configured
    ones, and attributed to blocks are those that still are there; methods of one's own are beside the others.
    edits: one's own, in place of the configured set. Raises `UserError` for anything wrong with them.
    """
    named = [item for item in methods if isinstance(item, str | Mapping | MethodConfig)]
    own = [item for item in methods if not isinstance(item, str | Mapping | MethodConfig)]
    further = [] if edits is None else [f"edits={set_sha256(edits)[:8]}"]
    further += [f"methods={'+'.join(method.name for method in own)}"] if own else []
    plain = (
        config if isinstance(config, str | Path) else vars(config) if isinstance(config, RunConfig) else dict(config)
    )

    def configure(**over: Any) -> RunConfig:
        if isinstance(plain, str | Path):
            return read_config(str(plain), over)
        return build_config({**plain, **over}, "the configuration")

    if named:
        overrides = _attributed(named, configure().subsets_of) | overrides | {"methods": tuple(named)}
    settings = configure(**overrides)
    if out is not None:
        folder = named_path(out)
    elif isinstance(plain, str | Path):
        folder = default_folder(str(plain), overrides, further)
    else:
        folder = folder_of_config(settings, further)
    return runs.run(settings, folder, device=device, methods=own, edits=edits)


def edit(
    original_prompt: str,
    edited_prompt: str,
    *,
    region: str | np.ndarray = "everything",
    edited_region: str | np.ndarray | None = None,
    method: str | Method = "sae",
    blocks: Sequence[str] = (),
    seed: int = 42,
    category: str = "change_object",
    backbone: str | Mapping[str, Any] = "tinyworld-turbo@1",
    dictionaries: str | Path = "",
    device: str = "auto",
    engine: Engine | None = None,
    **settings: Any,
) -> Edited:
    """Edits one prompt pair of one's own, and returns what came of it.

    region: a noun in the original picture, `everything`, `background`, `not <noun>`, `mask:<file>`, or a mask itself,
    `[height, width]` of bools; `edited_region` is the same for the edited picture where it differs. method: a name,
    with its settings as further arguments (`strength=2`, `on="up.0.1:12,55"`; others as suit the backbone,
    `riebench.runs.suited`), or a Method. category: `add_object` and `delete_object` have one region on both pictures.
    backbone: a name, or one's own as in a run's YAML. dictionaries: folder of one's own. engine: an open one, to spare
    loading again, in place of these two and `device`. Raises `UserError` when a name is unknown, something is missing
    that the method needs, or the region is not found in a picture.
    """
    if not isinstance(method, str) and settings:
        raise UserError(f"{', '.join(settings)} cannot be given beside a method", remedy="set them in the method")
    model, setup = (engine.backbone, engine.setup) if engine else _asked(backbone, dictionaries, device, blocks)
    chosen = MethodConfig(method, settings).build(model.judges) if isinstance(method, str) else method
    if error := missing_need(chosen, model, setup):
        raise error
    refuse_impossible(chosen, model, setup)
    check_value("seed", seed, Seed)
    if engine is None:
        check_dictionaries([chosen], model, setup)
    elif uses_sae(chosen):
        for block in model.blocks:
            engine.generation.dictionary(block)
    with tempfile.TemporaryDirectory() as folder:
        original = _phrase(region, Path(folder) / "original.png")
        edited = original if edited_region is None else _phrase(edited_region, Path(folder) / "edited.png")
        item = Edit("custom", category, original_prompt, edited_prompt, original, edited)
        engine = engine or open_engine(model, device, setup=setup, batch_size=BATCH)
        kind = kind_of_donor(chosen)
        cases = [(item, seed), *([find_donor((item, seed), kind, ())] if kind else [])]
        reference, *donors = engine.references(cases, [chosen])
    reference = dataclasses.replace(reference, donors=dict(zip([kind], donors, strict=False)))
    wanted = engine.backbone.family.in_order(blocks or engine.backbone.blocks)
    (result,) = engine.results([(reference, [variant_of(chosen, wanted)])])
    if result.image is None:
        raise UserError(f"this edit cannot be made: {result.row['reason']}", remedy="change the region or the seed")
    pictures = reference.pictures
    in_original, in_edited = (Image.fromarray(mask.cpu().numpy()).convert("L") for mask in pictures.regions)
    return Edited(
        to_picture(pictures.original),
        to_picture(pictures.edited),
        to_picture(result.image),
        masks=(in_original, in_edited),
        features=result.chosen,
        scores=result.row,
    )


def generate(
    prompt: str,
    *,
    seed: int = 42,
    intervention: Intervention | None = None,
    backbone: str | Mapping[str, Any] = "tinyworld-turbo@1",
    device: str = "auto",
    engine: Engine | None = None,
) -> Image.Image:
    """Returns one image of a prompt, with what is added while it is generated; no grounder and no judge is loaded.

    intervention: for instance of `Engine.generation.intervention({"up.0.1": {12: 3.0}})`. engine: an open one, to spare
    loading again, in place of `backbone` and `device`. Raises `UserError` where a name is unknown or weights are
    missing.
    """
    check_value("seed", seed, Seed)
    if engine is None:
        model, setup = _asked(backbone, "", device, ())
        generation = open_generation(model, device, setup=setup, batch_size=BATCH)
    else:
        generation = engine.generation
    return to_picture(generation.image(prompt, seed, intervention))


def _attributed(
    named: Sequence[str | Mapping[str, Any] | MethodConfig], subsets_of: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns which of the methods that are named are run on every subset of blocks: those of the configuration, or the
    first that edits."""
    labels = [
        item
        if isinstance(item, str)
        else item.label or item.name
        if isinstance(item, MethodConfig)
        else str(item.get("label") or item.get("name"))
        for item in named
    ]
    found = [label for label in dict.fromkeys(labels) if label in subsets_of]
    found = found or [label for label in labels if label not in ("noop", "oracle-prompt")][:1]
    return {"subsets_of": tuple(found)}


def _asked(
    backbone: str | Mapping[str, Any], dictionaries: str | Path, device: str, blocks: Sequence[str]
) -> tuple[Backbone, Setup]:
    config = RunConfig(backbone=backbone, dictionaries=str(dictionaries), blocks=tuple(blocks) or None)
    found = config.open_backbone()
    return found, config.setup(dtype_name(choose_dtype(found, choose_device(device))))


def _phrase(region: str | np.ndarray, path: Path) -> str:
    """Returns the region's phrase; a mask is written to `path` for it."""
    if isinstance(region, str):
        return region
    mask_picture(region).save(path)
    return f"mask:{path}"
