"""The version of what scores."""

from __future__ import annotations

from collections.abc import Sequence

from riebench.core.files import data_folder
from riebench.core.keys import digest
from riebench.core.scores import LEAST_COST
from riebench.core.versions import code_behind, folder_digest, library_versions, sources_digest
from riebench.metrics.table import METRICS, split_name

LIBRARIES = ("torch", "torchvision", "transformers", "open_clip_torch", "lpips", "pillow")


def judge_version(names: Sequence[str], family: str, *, keep_marks: bool = False) -> str:
    """Returns the version of what scores: the metrics of those names and their code, and the shipped networks that
    judge a family; others count by their names, which are in our code or, behind the @, in the metric's.

    keep_marks: whether prompts keep their `[ ]`. Raises `UserError` for an unknown metric, and where shipped weights
    are missing.
    """
    data = data_folder()
    rooms, weights = ["riebench/metrics"], [data / "lpips"]
    if family == "tinyworld":
        rooms.append("riebench/tinyworld")
        weights += [data / "tinyworld" / "clip", data / "tinyworld" / "oracle.safetensors"]
    factories = {name: METRICS.get(split_name(name)[0]) for name in names}
    metrics = {name: code_behind(getattr(factory, "func", factory)) for name, factory in factories.items()}  # partial
    found = [folder_digest(path) for path in weights]
    return digest([family, keep_marks, LEAST_COST, metrics, sources_digest(rooms), found, library_versions(LIBRARIES)])
