"""riebench is a benchmark of representation-based image editing in diffusion models.

    import riebench

    result = riebench.edit("flat poster of a standing red plain heart in the sky",
                           "flat poster of a standing red plain star in the sky", region="heart", edited_region="star")
    result.strip().save("star.png")                    # original | edited | intervened

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
    from baselines import METHODS
    from riebench.analysis.run import Run
    from riebench.api import edit, generate, run
    from riebench.edits.edit import Edit, load_edits
    from riebench.generation.interventions import Addition, Intervention, Push
    from riebench.methods.method import Case
    from riebench.metrics import METRICS
    from riebench.runs.config import RunConfig, read_config
    from riebench.runs.engine import open_engine

__all__ = [
    "METHODS",
    "METRICS",
    "Addition",
    "Case",
    "Edit",
    "Intervention",
    "Push",
    "Run",
    "RunConfig",
    "UserError",
    "edit",
    "generate",
    "load_edits",
    "open_engine",
    "read_config",
    "run",
]

#: Name -> the module that has it.
_ROOMS = {
    "METHODS": "baselines",
    "METRICS": "riebench.metrics",
    "Addition": "riebench.generation.interventions",
    "Case": "riebench.methods.method",
    "Edit": "riebench.edits.edit",
    "Intervention": "riebench.generation.interventions",
    "Push": "riebench.generation.interventions",
    "Run": "riebench.analysis.run",
    "RunConfig": "riebench.runs.config",
    "edit": "riebench.api",
    "generate": "riebench.api",
    "load_edits": "riebench.edits.edit",
    "open_engine": "riebench.runs.engine",
    "read_config": "riebench.runs.config",
    "run": "riebench.api",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
