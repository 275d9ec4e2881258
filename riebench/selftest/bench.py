"""Bench: what the steps of the self-test share, loaded when it is first needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.edits.edit import Edit, load_edits, strip_marks
from riebench.generation.sampler import Request, Sampler
from riebench.runs.config import RunConfig, read_config
from riebench.runs.edits import choose_edits
from riebench.runs.engine import Engine, open_engine
from riebench.selftest.judges import absent_from_runs
from riebench.selftest.random_weights import Unscored, random_engine
from riebench.selftest.step import NotPossible, one_line

RUN = "quickstart"  # the run whose methods and edits are tried
SEED = 42


@dataclass(frozen=True)
class Amounts:
    """Says how much of everything is tried."""

    batch: int
    """Images generated at once."""
    decoded: tuple[int, ...]
    """Rows that are decoded at once, one size after the other."""
    rows: tuple[int, ...]
    """Rows of the denoiser, likewise."""
    prompts: int
    """Whose updates dictionaries are tried on."""
    cases: int
    """That go through all methods."""
    each: int
    """Edits of each category whose regions are looked at."""
    repeats: int
    """Of what is timed."""


AMOUNTS = {
    "cpu": Amounts(batch=8, decoded=(4, 8), rows=(2, 4), prompts=16, cases=2, each=1, repeats=2),
    "cuda": Amounts(batch=32, decoded=(4, 8, 16, 32), rows=(8, 16, 32), prompts=32, cases=8, each=3, repeats=10),
}


class Bench:
    """Holds one backbone on one device, with what is tried on it.

    out: the folder that pictures are written to. random: SDXL's networks at their full size with random weights in the
    place of the backbone's own, without a grounder.
    """

    def __init__(self, backbone: Backbone, device: torch.device, out: Path, *, random: bool = False) -> None:
        self.backbone = dataclasses.replace(backbone, grounder="everything") if random else backbone
        self.device, self.out, self.random = device, out, random
        self.amounts = AMOUNTS[device.type]
        self._engine: Engine | Exception | None = None

    @property
    def engine(self) -> Engine:
        """The engine of the backbone. Raises what went wrong where it is first asked for and cannot be had, and
        `NotPossible` from then on."""
        if isinstance(self._engine, Exception):
            raise NotPossible(f"the backbone cannot be loaded: {one_line(self._engine)}")
        if self._engine is None:
            try:
                self._engine = self.open(self.backbone, self.amounts.batch)
            except Exception as error:
                self._engine = error
                raise
        return self._engine

    @property
    def sampler(self) -> Sampler:
        """The engine's sampler. Raises as `engine` does."""
        return self.engine.sampler

    def open(self, backbone: Backbone, batch_size: int) -> Engine:
        """Returns an engine of another backbone. Raises `UserError` where weights are missing or broken."""
        if self.random:
            return random_engine(backbone, self.device, batch_size)
        return open_engine(backbone, self.device.type, batch_size=batch_size)

    def whole_engine(self) -> Engine:
        """Returns the engine with grounder and judges; where weights are random and judges are missing, with one that
        gives no scores. Raises `NotPossible` where one cannot be loaded."""
        engine = self.engine
        absent = absent_from_runs(self.backbone.judges)
        if absent and self.random:
            return Engine(engine.generation, engine.regions, Unscored())
        if absent:
            raise NotPossible(f"what scores is not on this machine: {', '.join(absent)} -> see `riebench doctor`")
        try:
            return engine.load()
        except UserError as error:
            raise NotPossible(one_line(error)) from error

    def config(self, each: int) -> RunConfig:
        """Returns the run whose methods and edits are tried, with so many edits of each category."""
        return read_config(RUN, {"backbone": self.backbone.name, "edits_per_category": each, "seeds": [SEED]})

    def edits(self, each: int) -> list[Edit]:
        """Returns the first edits of each category of that run."""
        config = self.config(each)
        return choose_edits(load_edits(config.edits), config)

    @cached_property
    def prompts(self) -> list[str]:
        """The original prompts of some edits."""
        return list(dict.fromkeys(strip_marks(edit.original_prompt) for edit in self.edits(4)))

    def requests(self, count: int) -> list[Request]:
        """Returns so many images to generate, all different."""
        return [Request(self.prompts[i % len(self.prompts)], SEED + i) for i in range(count)]
