"""The edited prompt, read by the chosen blocks alone: where does a model take an edit from, whatever a dictionary says?

As in LocoGen's search for the layers that control an attribute (Basu et al. 2024, arXiv 2405.01008).
"""

from dataclasses import dataclass
from typing import ClassVar

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case
from riebench.methods.replacing import put_edited


@dataclass(frozen=True)
class PromptInjection:
    """Gives the blocks the states of the edited prompt in place of the original's; all other blocks read the
    original's."""

    strength: float = 1.0
    """The share of the way from the original prompt's states to the edited's."""
    window: str = "all"
    """The steps at which they read it (`Intervention.window`)."""
    name: str = "prompt-injection"
    sites: ClassVar[str] = "text"
    sees_edited_image: ClassVar[bool] = False
    uses_sae: ClassVar[bool] = False

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention that puts the edited prompt's states in the place of the original's, at every token
        and in the rows that see a prompt alone."""
        return put_edited(case, self.strength, self.window)
