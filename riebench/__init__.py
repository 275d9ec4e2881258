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

from riebench.errors import UserError

if TYPE_CHECKING:
    from riebench.api import edit, run
    from riebench.config import RunConfig, read_config
    from riebench.edits import Edit, load_edits
    from riebench.engine import open_engine
    from riebench.interventions import Intervention
    from riebench.methods import METHODS, Case
    from riebench.metrics import METRICS

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
    "METHODS": "methods",
    "METRICS": "metrics",
    "Case": "methods",
    "Edit": "edits",
    "Intervention": "interventions",
    "RunConfig": "config",
    "edit": "api",
    "load_edits": "edits",
    "open_engine": "engine",
    "read_config": "config",
    "run": "api",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
