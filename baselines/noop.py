"""No change: what every other method is measured against."""

from dataclasses import dataclass
from typing import ClassVar

from riebench.generation.interventions import Intervention
from riebench.methods.method import Case, check_settings


@dataclass(frozen=True)
class NoOp:
    """Changes nothing."""

    name: str = "noop"
    strength: float = 0.0
    sites: ClassVar[str] = ""
    sees_edited_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention that adds nothing."""
        return Intervention()
