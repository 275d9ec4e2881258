"""The models under test, as a frozen table. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from riebench.backbones.family import Family
from riebench.backbones.released import SDXL_BASE, SDXL_TURBO
from riebench.backbones.sdxl import SDXL
from riebench.backbones.worlds import CHANGED, ROLES
from riebench.core.hub import Weights
from riebench.core.registry import Registry

#: What a backbone may be computed in. "auto" is float32 on a CPU and float16 on a GPU.
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Backbone:
    """A diffusion model, and how the benchmark samples it."""

    name: str
    """Its name, as in `riebench run`: the model, `@`, its number of steps."""
    folder: str
    """Folder of a pipeline, relative to the shipped data or absolute; empty for `weights`."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Classifier-free guidance scale; 0 samples without it."""
    grounder: str
    """Name of the grounder that finds regions in its pictures."""
    judges: str
    """Family of the networks that score its pictures (`riebench.metrics.networks.table.NETWORKS`)."""
    summary: str = ""
    dictionaries: str = ""
    """The backbone whose dictionaries are used on this one where there are none of its own: SAEs of one step carry over
    to more steps and to the model it was distilled from."""
    weights: Weights | None = None
    """The pipeline on the Hub with its half-precision files, where it has no folder."""
    weights_full: Weights | None = None
    """The same with its float32 files; given where `weights` is."""
    vae: str = ""
    """Name in `VAES` of the VAE in place of the pipeline's own."""
    height: int = 0
    """Height of its pictures, in pixels; 0 is the model's own size."""
    width: int = 0
    """Width of its pictures, likewise."""
    dtype: str = "auto"
    """What it is computed in where nothing else is asked for, out of `DTYPES`."""
    parameters: float = 0.0
    """Parameters of the whole pipeline, in 10^9; 0 where that is not known."""
    family: Family = SDXL
    """The kind of model that it is."""
    blocks: tuple[str, ...] = ()
    """The blocks under test, in the order in which the model runs them; the family's own where none are named."""

    world: str = ""
    """The world of tinyworld whose structure it has, out of `ROLES`; empty where it is not known what enters where."""

    def __post_init__(self) -> None:
        named = self.blocks or self.family.default_blocks
        object.__setattr__(self, "blocks", self.family.in_order(named))

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The backbones whose dictionaries are used on this one, the first that has any for a block: itself, then
        `dictionaries`."""
        return tuple(dict.fromkeys((self.name, self.dictionaries or self.name)))

    @property
    def roles(self) -> Mapping[str, str]:
        """Attribute -> the one block that its words enter in; empty where that is not known, or is no one block."""
        return ROLES.get(self.world, {})

    def planted_block(self, category: str) -> str:
        """Returns the block that carries a category's edits by the weights' own structure; "" where that is not
        known."""
        return self.roles.get(CHANGED.get(category, ""), "")

    def planted_blocks(self, categories: Iterable[str]) -> dict[str, str]:
        """Returns category -> its planted block, for those of the categories whose block is known and under test."""
        blocks = {category: self.planted_block(category) for category in categories}
        return {category: block for category, block in blocks.items() if block in self.blocks}

    @property
    def guided(self) -> bool:
        """Returns whether each step runs every row twice, without and with its prompt (diffusers: guidance above 1)."""
        return self.guidance > 1

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of guidance, in the order of their rows in a call of the denoiser; "cond" alone without."""
        return self.family.guided_rows if self.guided else ("cond",)

    def gigabytes(self, dtype: str) -> float:
        """Returns the memory that generating one picture at a time takes, an estimate in 10^9 bytes; 0 where it cannot
        be estimated.

        dtype: "float32", "float16" or "bfloat16". Counted are all parameters in that type, and what decoding a picture
        takes (`Family.decoding_bytes` a pixel, half of that for a VAE that decodes in half precision). What CUDA itself
        takes, some 0.5 GB, the networks that judge, and more pictures at once come on top.
        """
        if not (self.parameters and self.height and self.width):
            return 0.0
        size = 4 if dtype == "float32" else 2
        decoding = self.family.decoding_bytes * (size / 4 if self.vae else 1)
        return size * self.parameters + decoding * self.height * self.width / 1e9


BACKBONES: Registry[Backbone] = Registry("backbone", "riebench.backbones")
for _model, _world, _steps, _guidance, _summary in (
    ("turbo", "planted", 1, 0.0, "the embedded small SDXL Turbo, one step, 64 px"),
    ("turbo", "planted", 4, 0.0, "the same model, four Euler ancestral steps"),
    ("base", "planted", 25, 1.5, "the embedded small SDXL that turbo was distilled from, 25 Euler steps with guidance"),
    ("permuted", "permuted", 1, 0.0, "a control for verdicts: the same words enter in other blocks, one step"),
    ("everywhere", "everywhere", 1, 0.0, "a control for verdicts: every block reads every word, one step"),
):
    _name = f"tinyworld-{_model}@{_steps}"
    BACKBONES.add(
        _name,
        Backbone(
            _name,
            f"tinyworld/{_model}",
            _steps,
            _guidance,
            grounder="tinyworld",
            judges="tinyworld",
            summary=_summary,
            dictionaries="tinyworld-turbo@1" if _world == "planted" else _name,
            height=64,
            width=64,
            dtype="float32",
            parameters=0.0033,
            world=_world,
        ),
        summary=_summary,
    )

for _model, _steps, _guidance, _pixels, _weights, _summary in (
    ("turbo", 1, 0.0, 512, SDXL_TURBO, "SDXL Turbo, one step, 512 px; wants a GPU"),
    ("turbo", 4, 0.0, 512, SDXL_TURBO, "the same model, four Euler ancestral steps"),
    ("base", 25, 8.0, 1024, SDXL_BASE, "SDXL base, 25 Euler steps with guidance, 1024 px; wants a GPU"),
):
    _name = f"sdxl-{_model}@{_steps}"
    BACKBONES.add(
        _name,
        Backbone(
            _name,
            "",
            _steps,
            _guidance,
            grounder="grounding-dino+sam2",
            judges="sdxl",
            summary=_summary,
            dictionaries="sdxl-turbo@1",
            height=_pixels,
            width=_pixels,
            parameters=3.47,  # U-Net 2.567, text encoders 0.123 and 0.695, VAE 0.084
            **_weights,
        ),
        summary=_summary,
    )
