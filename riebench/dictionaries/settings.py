"""From words to what `train_dictionaries` takes: data, grid and configuration, with defaults for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from riebench.backbones.loading import choose_device
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.dictionaries.data import BUFFER_ROWS, Generated, Stored, TrainingData
from riebench.dictionaries.options import TrainSettings
from riebench.dictionaries.prompts import read_prompts
from riebench.dictionaries.train import Grid
from riebench.generation.sampler import load_sampler
from sae_models.activation_store import ActivationStore
from sae_models.architectures import L1, AuxK, BatchTopK, JumpReLU, Matryoshka, Restart, TopK
from sae_models.trainer import TrainConfig

HARVEST_BATCH = 64  # prompts generated at once: fixed, since it decides the last bits of the rows
ARCHITECTURES: dict[str, Callable] = {"topk": TopK, "batch-topk": BatchTopK, "l1": L1, "jumprelu": JumpReLU}
BY_WEIGHT = ("l1", "jumprelu")  # whose sparsity is set by a weight in the loss


@dataclass(frozen=True)
class Defaults:
    """Holds what is taken where nothing is said."""

    prompts: int
    steps: int
    """0 takes each vector once."""
    batch_size: int
    lr: float
    report_every: int
    k: tuple[int, ...]
    expansions: tuple[int, ...]
    revival: AuxK | Restart


#: By the family of a backbone's judges. Those of SDXL are the recipe of the published SAEs (arXiv 2410.22366), with the
#: k of RIEBench's; those of tinyworld suit 384 to 1,536 features and a training of minutes.
DEFAULTS = {
    "tinyworld": Defaults(4_096, 1_200, 2_048, 4e-3, 25, (4, 8, 16), (4, 8, 16), AuxK(48, dead_after=25_000)),
    "sdxl": Defaults(1_500_000, 0, 4_096, 1e-4, 100, (160,), (4,), AuxK(256, dead_after=10_000_000)),
}


def generated_data(
    backbone: str | Backbone,
    blocks: Sequence[str] = (),
    *,
    prompts: str = "",
    column: str = "",
    count: int = 0,
    branch: str = TrainSettings.branch,
    site: str = "",
    seed: int = 0,
    buffer_rows: int = BUFFER_ROWS,
    device: str = "auto",
) -> Generated:
    """Returns the activations of a backbone's blocks (default: its own), at sites of a kind (default: its family's),
    for prompts as `read_prompts` takes them (default: how many suits the backbone). Raises `UserError` as that, and
    as `Generated` does."""
    backbone = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone
    count = count or (0 if prompts else DEFAULTS[backbone.judges].prompts)
    texts = read_prompts(prompts, column=column, count=count, seed=seed, family=backbone.judges)
    sampler = load_sampler(backbone, choose_device(device), HARVEST_BATCH)
    blocks, site = tuple(blocks) or backbone.blocks, site or backbone.family.default_site
    return Generated(sampler, blocks, texts, seed, branch=branch, site=site, buffer_rows=buffer_rows)


def stored_data(
    folder: Path, blocks: Sequence[str] = (), *, backbone: str | None = None, seed: int = 0, device: str = "auto"
) -> Stored:
    """Returns rows of a store's blocks (default: all). backbone: the one that the store must be of. Raises `UserError`
    as `ActivationStore.open`, its `expect` and `Stored` do."""
    store = ActivationStore.open(folder)
    store.expect(backbone=backbone)
    return Stored(store, blocks, seed=seed, device=choose_device(device))


def defaults_for(backbone: str) -> Defaults:
    """Returns the defaults of a backbone by name; those of SDXL where it is not known here."""
    known = BACKBONES.get(backbone).judges if backbone in BACKBONES.names() else "sdxl"
    return DEFAULTS[known]


def make_grid(
    defaults: Defaults,
    *,
    architecture: str = TrainSettings.architecture,
    k: Sequence[int] = (),
    weights: Sequence[float] = (),
    expansions: Sequence[int] = (),
    prefixes: Sequence[float] = (),
    seeds: Sequence[int] = TrainSettings.seeds,
    revival: str = "",
    dead_after: int = 0,
) -> Grid:
    """Returns a grid of one kind of architecture. weights: of l1 and jumprelu, in the place of k. revival: auxk,
    restart, none, or "" for the default. Raises `UserError` for an unknown word, and for values that cannot be
    meant."""
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"unknown architecture {architecture!r}{did_you_mean(architecture, ARCHITECTURES)}",
            remedy=f"use {', '.join(ARCHITECTURES)}",
        )
    by_weight = architecture in BY_WEIGHT
    if by_weight and (k or not weights):
        raise UserError(f"{architecture} has no k, and needs a weight in the loss", remedy="give --weight 0.001, say")
    if weights and not by_weight:
        raise UserError(f"{architecture} has no weight", remedy="give --k")
    values = weights if by_weight else tuple(k) or defaults.k
    revivals = {
        "": lambda: defaults.revival,
        "none": lambda: None,
        "auxk": lambda: AuxK(256, dead_after=dead_after or AuxK.dead_after),
        "restart": lambda: Restart(dead_after or 25_000),
    }
    if revival not in revivals:
        raise UserError(
            f"unknown revival {revival!r}{did_you_mean(revival, revivals)}", remedy="use auxk, restart or none"
        )
    if dead_after and revival in ("", "none"):
        raise UserError("dead_after says when features are dead, and of what use?", remedy="name auxk or restart too")
    return Grid(
        tuple(ARCHITECTURES[architecture](value) for value in values),
        tuple(expansions) or defaults.expansions,
        tuple(seeds),
        Matryoshka(prefixes=tuple(prefixes)) if prefixes else None,
        revivals[revival](),
    )


def make_config(
    defaults: Defaults,
    data: TrainingData,
    *,
    steps: int | None = None,
    batch_size: int = 0,
    lr: float = 0.0,
    normalisation: str = TrainConfig.normalisation,
    compute: str = TrainConfig.compute,
    compile: bool = False,
) -> tuple[TrainConfig, int]:
    """Returns (configuration, batch size). 0 and None take the default, and 0 steps as many as take each vector."""
    batch_size = batch_size or defaults.batch_size
    steps = defaults.steps if steps is None else steps
    return (
        TrainConfig(
            steps=steps or max(1, data.rows() // batch_size),
            lr=lr or defaults.lr,
            report_every=defaults.report_every,
            normalisation=normalisation,
            compute=compute,
            compile=compile,
        ),
        batch_size,
    )
