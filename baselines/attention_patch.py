"""The output of the chosen blocks' attention to the prompt, taken from the edited image's generation.

As activations are patched between generations to find where knowledge lies (arXiv 2502.09935).
"""

from dataclasses import dataclass
from typing import ClassVar

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.replacing import put_edited


@dataclass(frozen=True)
class AttentionPatch:
    """Puts what the blocks' attention to the prompt puts out for the edited image in its place."""

    strength: float = 1.0
    """The share of the way from the original generation's output to the edited's."""
    window: str = "all"
    """The steps at which it is patched (`Intervention.window`)."""
    name: str = "attention-patch"
    sites: ClassVar[str] = "attention"
    uses_sae: ClassVar[bool] = False

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention that puts the edited generation's output of every layer's attention in the place
        of the running one, at every cell and in the rows that see a prompt alone."""
        return put_edited(case, self.strength, self.window)
