"""What the edited image's generation has at its sites, put in the place of what the original's has there."""

from __future__ import annotations

import torch

from riebench.generation.interventions import Addition, Intervention
from riebench.methods.method import Case


def put_edited(case: Case, strength: float, window: str) -> Intervention:
    """Returns the intervention that puts the edited image's values in the place of the running ones, at every cell of
    every site of a case and in the rows that see a prompt.

    strength: the share of the way from the original generation's values to the edited one's; 1 gives these, to the bit,
    and 0 leaves all as it is. window: the steps at which they are put there.
    """
    if strength == 0:
        return Intervention()
    additions = {
        site: Addition(
            torch.arange(original.shape[1], device=original.device),
            original.lerp(case.edited[site], strength),
            replaces=True,
        )
        for site, original in case.original.items()
    }
    return Intervention(additions, branch="cond", window=window)
