"""SAE features chosen on another case than the one they are turned on and off in.

`sae` chooses on the very images that it is scored on, so it is an oracle. Choosing on another seed's images of the
same prompts keeps what belongs to the edit and not to the picture; choosing for another edit says what any features
would do.
"""

from dataclasses import dataclass
from typing import ClassVar

from baselines.sae import SAE


@dataclass(frozen=True)
class OtherSeed(SAE):
    """Chooses features on the same edit with another seed."""

    name: str = "other-seed"
    select_on: ClassVar[str] = "seed"


@dataclass(frozen=True)
class Mismatched(SAE):
    """Chooses features on another edit."""

    name: str = "mismatched"
    select_on: ClassVar[str] = "edit"
