"""The edited prompt itself: the ceiling of the edit and the floor of preservation."""

from dataclasses import dataclass
from typing import ClassVar

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case, check_settings


@dataclass(frozen=True)
class OraclePrompt:
    """Generates from the edited prompt."""

    name: str = "oracle-prompt"
    strength: float = 1.0
    sites: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention that takes the edited prompt in place of the original one, and adds nothing."""
        return Intervention(prompt="edited")
