"""How long an evaluation will take, said before it starts: from the time of one batch and the number of passes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from riebench.backbones.table import Backbone
from riebench.dictionaries.generalisation import FIRST_SEED, evaluate_steps
from riebench.dictionaries.reconstruction import reconstruction_effect
from riebench.generation.replacement import Scope
from riebench.generation.sampler import Sampler
from riebench.metrics.models import ScoringModels
from sae_models.dictionary import Dictionary


@dataclass(frozen=True)
class Work:
    """What is to be done on one backbone, beside what is kept of it."""

    backbone: Backbone
    prompts: int
    images: int
    """Pictures, undisturbed and with updates replaced."""

    def passes(self, count: int) -> int:
        """Returns how many rows the denoiser computes for so many pictures."""
        return count * self.backbone.steps * len(self.backbone.branches)


def said(work: Sequence[Work], per_row: float, per_image: float) -> str:
    """Returns what will be done and about how long it takes.

    per_row: seconds of a row of the denoiser, with what dictionaries say of it. per_image: seconds of a row of it where
    updates are replaced, with its picture's scores.
    """
    seconds = sum(one.passes(one.prompts) * per_row + one.passes(one.images) * per_image for one in work)
    parts = []
    for one in work:
        pictures = f" and {one.images:,} pictures" if one.images else ""
        parts.append(f"{one.prompts:,} prompts{pictures} on {one.backbone.name}")
    return f"evaluating {'; '.join(parts)}: about {in_words(seconds)} (from the time of one batch)"


def in_words(seconds: float) -> str:
    """Returns a time as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5_400 else f"{seconds / 3600:.1f} hours"


def tell(
    work: Sequence[Work],
    sampler: Sampler,
    dictionaries: Sequence[tuple[str, Dictionary]],
    by_name: Mapping[str, Mapping[str, Dictionary]],
    prompts: Sequence[str],
    judges: ScoringModels | None,
    site: str,
) -> None:
    """Times a batch of each kind of work on a sampler's backbone, and says on stderr how long all of it takes.

    dictionaries: (block, dictionary) of those that are evaluated; by_name: name -> block -> dictionary, of those whose
    reconstructions replace updates. judges: None where no pictures are made.
    """
    here = Work(sampler.backbone, 1, 1)
    batch = list(prompts[: sampler.batch_size])
    per_row = _seconds(lambda: evaluate_steps(sampler, dictionaries, batch, FIRST_SEED, site, quiet=True))
    per_image = 0.0
    if judges is not None:
        one = {name: dict([next(iter(of_blocks.items()))]) for name, of_blocks in list(by_name.items())[:1]}
        seeds, scope = [FIRST_SEED + i for i in range(len(batch))], Scope("cond")
        made = _seconds(lambda: reconstruction_effect(sampler, one, batch, seeds, judges, [scope], site, quiet=True))
        per_image = made / (4 * here.passes(len(batch)))  # undisturbed, reconstructed, zero and mean
    print(said(work, per_row / here.passes(len(batch)), per_image), file=sys.stderr, flush=True)


def _seconds(make: Callable[[], object]) -> float:
    started = time.monotonic()
    make()
    return time.monotonic() - started
