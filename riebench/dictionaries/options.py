"""What harvests, trainings and evaluations of dictionaries are asked to do, with their defaults. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from riebench.core.values import BatchSize, Count, Range, Seed

BACKBONE = "tinyworld-turbo@1"
Branch = Literal["cond", "uncond", "both"]
Engine = Literal["local", "ray"]
Whole = Annotated[int, Range(1, 10**9)]
_ROWS = {"group": "what they are trained on: generated now, or a store that riebench harvest wrote"}
_GRID = {"group": "which SAEs: every combination; lists are comma-separated"}
_HOW = {"group": "how"}


@dataclass(frozen=True, kw_only=True)
class HarvestSettings:
    """Says what `riebench harvest` is asked to do; a field is a flag."""

    backbone: str = BACKBONE
    """A name out of `riebench ls backbones`."""
    blocks: tuple[str, ...] = ()
    """The blocks, comma-separated (default: all four)."""
    prompts: str = ""
    """A .txt, .jsonl or .parquet file, datasets:NAME[:SPLIT], captions of tinyworld, or edits: what the dev split of
    the shipped edits shows (default: captions; SDXL: LAION-COCO's, from the Hub)."""
    column: str = ""
    """Column of the prompts, in a .jsonl, .parquet or data set."""
    count: Count = 0
    """The first so many prompts; 0 for all."""
    site: Literal["", "update", "stream"] = ""
    """What is kept of a block: update, or stream (default: what the backbone's dictionaries read)."""
    branch: Branch = "both"
    """Rows kept under guidance: cond, uncond or both."""
    seed: Seed = 0
    """Seed of the noise, and of captions."""
    out: Path
    """Folder of the store; a killed harvest goes on there."""
    batch_size: BatchSize = 0
    """Prompts at once; 0 (default) finds it."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What the denoiser computes in: auto, float32, float16 or bfloat16."""
    engine: Engine = "local"
    """What does the work: local, or ray: shards are made on each GPU of a cluster, and written here."""
    address: str | None = None
    """Address of a running Ray cluster, or auto (default: start one on this machine)."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Says what `riebench train` is asked to do. A field is a flag; what is None, 0 or empty suits the backbone
    (`riebench.dictionaries.settings.DEFAULTS`)."""

    out: Path
    """Folder for the dictionaries, their index and logs."""
    backbone: str | None = field(default=None, metadata=_ROWS)
    """A name out of `riebench ls backbones` (default: tinyworld-turbo@1, or the store's)."""
    blocks: tuple[str, ...] = field(default=(), metadata=_ROWS)
    """The blocks, comma-separated (default: all four, or all of the store)."""
    prompts: str = field(default="", metadata=_ROWS)
    """Prompts, as in riebench harvest."""
    column: str = field(default="", metadata=_ROWS)
    """Column of the prompts, in a .jsonl, .parquet or data set."""
    site: Literal["", "update", "stream"] = field(default="", metadata=_ROWS)
    """What is read of a block: update, or stream (default: what the backbone's dictionaries read)."""
    count: Count = field(default=0, metadata=_ROWS)
    """The first so many prompts (default: suits the backbone)."""
    branch: Branch = field(default="both", metadata=_ROWS)
    """Rows taken under guidance: cond, uncond or both."""
    buffer_rows: Annotated[int, Range(1, 10**9)] | None = field(default=None, metadata=_ROWS)
    """Room of a block's shuffling buffer (default: 524288)."""
    store: Path | None = field(default=None, metadata=_ROWS)
    """Read a store instead; the prompts and branches are its own then."""
    seed: Seed = field(default=0, metadata=_ROWS)
    """Seed of the noise, and of the order of the rows."""
    architecture: Literal["topk", "batch-topk", "l1", "jumprelu"] = field(default="topk", metadata=_GRID)
    """The kind of SAE: topk, batch-topk, l1 or jumprelu."""
    k: tuple[Whole, ...] = field(default=(), metadata=_GRID)
    """Active features a vector (default: 4,8,16; SDXL 160)."""
    weights: tuple[Annotated[float, Range(0)], ...] = field(default=(), metadata=_GRID | {"flag": "weight"})
    """Weight of the loss of l1 or jumprelu, instead of k: larger is sparser."""
    expansions: tuple[Annotated[int, Range(1, 1024)], ...] = field(default=(), metadata=_GRID | {"flag": "width"})
    """Features, as multiples of the channels (default: 4,8,16; SDXL 4)."""
    prefixes: tuple[Annotated[float, Range(0, 1)], ...] = field(default=(), metadata=_GRID)
    """Matryoshka: shares of the features that code by themselves."""
    seeds: tuple[Seed, ...] = field(default=(0,), metadata=_GRID)
    """Where features start."""
    revival: Literal["", "auxk", "restart", "none"] = field(default="", metadata=_GRID)
    """Revival of dead features: auxk, restart, none (default: suits the model)."""
    dead_after: Annotated[int, Range(0)] = field(default=0, metadata=_GRID)
    """Vectors without the feature, with auxk or restart."""
    steps: Annotated[int, Range(0, 10**9)] | None = field(default=None, metadata=_HOW)
    """Steps of the training; 0 takes each vector once, as SDXL's default is (default: 1200)."""
    batch_size: Annotated[int, Range(0, 2**20)] = field(default=0, metadata=_HOW)
    """Vectors a step (default: 2048; SDXL 4096)."""
    lr: Annotated[float, Range(0, 1)] = field(default=0.0, metadata=_HOW)
    """Peak learning rate (default: 4e-3; SDXL 1e-4)."""
    normalisation: Literal["none", "mean", "scale", "whiten"] = field(default="scale", metadata=_HOW)
    """Normalisation of the rows: none, mean, scale or whiten."""
    compute: Literal["float32", "bfloat16"] = field(default="float32", metadata=_HOW)
    """Precision of the products: float32 or bfloat16."""
    compile: bool = field(default=False, metadata=_HOW)
    """Compile what fuses in a step with torch.compile."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = field(default=(), metadata=_HOW | {"flag": "tracker"})
    """Send the log there too: wandb, tensorboard or both."""
    engine: Engine = field(default="local", metadata=_HOW)
    """What does the work: local, or ray: a group of the SAEs on each GPU of a cluster."""
    address: str | None = field(default=None, metadata=_HOW)
    """Address of a running Ray cluster, or auto (default: start one on this machine)."""
    checkpoint_every: Whole = field(default=1_000, metadata=_HOW)
    """Steps between checkpoints; a killed training goes on from the last."""
    device: str = field(default="auto", metadata=_HOW)
    """The device: auto, cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Says what `riebench evaluate` is asked to do; a field is a flag."""

    trained_on: str = BACKBONE
    """The backbone whose dictionaries are meant."""
    on: tuple[str, ...] | None = None
    """Comma-separated backbones whose updates they are to code, beside their own (default: tinyworld's others; none of
    another model's)."""
    dictionary: tuple[str, ...] = ()
    """Only those of these names, comma-separated (default: all)."""
    dictionaries: Path | None = None
    """Folder that riebench train wrote (default: the shipped)."""
    site: Literal["update", "stream"] = "update"
    """What they code of the blocks: update or stream."""
    other: Path | None = None
    """Folder of dictionaries of another seed, to compare with."""
    prompts: str = ""
    """Prompts, as in riebench harvest (default: held-out captions; SDXL: edits)."""
    count: Annotated[int, Range(1, 10**8)] = 16
    """How many prompts; an evaluation of these and the other defaults takes two to three minutes on one core."""
    images: Count = 2
    """Prompts of which images are made with updates replaced by those of the dictionaries named, or else those that
    runs use; 0 for none."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Also write the tables to this file, as markdown."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""
