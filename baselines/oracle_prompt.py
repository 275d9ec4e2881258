"""The edited prompt itself: the ceiling of the edit and the floor of preservation."""

from dataclasses import dataclass
from typing import ClassVar

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case


@dataclass(frozen=True)
class OraclePrompt:
    name: str = "oracle-prompt"
    strength: float = 1.0
    sites: ClassVar[str] = ""

    def plan(self, case: Case) -> Intervention:
        return Intervention(prompt="edited")
