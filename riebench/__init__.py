"""riebench: a benchmark of representation-based image editing in diffusion models.

    import riebench

    result = riebench.edit("flat poster of a standing red plain heart in the sky",
                           "flat poster of a standing blue plain heart in the sky", region="heart")
    result.strip().save("heart.png")                   # original | edited | intervened

    done = riebench.run("quickstart", out="runs/quickstart")
    done.scores                                        # a pandas data frame, one row a result
    done.summary                                       # per category: which block dominates

Nothing here imports torch until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from riebench.core.errors import UserError

if TYPE_CHECKING:
    from riebench.api import edit, run
    from riebench.edits.edit import Edit, load_edits
    from riebench.generation.interventions import Intervention
    from riebench.methods.method import METHODS, Case
    from riebench.metrics import METRICS
    from riebench.runs.config import RunConfig, read_config
    from riebench.runs.engine import open_engine

__all__ = [
    "METHODS",
    "METRICS",
    "Case",
    "Edit",
    "Intervention",
    "RunConfig",
    "UserError",
    "edit",
    "load_edits",
    "open_engine",
    "read_config",
    "run",
]

_ROOMS = {
    "METHODS": "methods.method",
    "METRICS": "metrics",
    "Case": "methods.method",
    "Edit": "edits.edit",
    "Intervention": "generation.interventions",
    "RunConfig": "runs.config",
    "edit": "api",
    "load_edits": "edits.edit",
    "open_engine": "runs.engine",
    "read_config": "runs.config",
    "run": "api",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
