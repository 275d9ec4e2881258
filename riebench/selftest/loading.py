"""Step 1: every network that a run of this backbone may need is loaded, and refused where a tensor of it is missing."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from riebench.core.hub import missing_files
from riebench.metrics.models import ScoringModels
from riebench.regions.grounders import GROUNDER_WEIGHTS, GROUNDERS
from riebench.selftest.bench import Bench
from riebench.selftest.judges import is_absent, needed, networks
from riebench.selftest.step import Check, Found, one_line

LOADED, ABSENT, REFUSED = "loaded", "its weights are not on this machine", "not loaded: "


def load(bench: Bench) -> Found:
    """Returns which networks were loaded, which are not on this machine, and which were refused and why."""
    parts = {"pipeline": _try(lambda: bench.engine)}
    if not bench.random:
        parts[f"grounder {bench.backbone.grounder}"] = _grounder(bench)
    wanted, by_runs = {*parts}, needed(bench.backbone.judges)
    for network in networks(bench.backbone.judges):
        name = f"judge {network.label}"
        parts[name] = ABSENT if is_absent(network) else _try(lambda key=network.key: _judge(bench, key))
        if network.key in by_runs and not bench.random:
            wanted.add(name)
        gc.collect()
    refused = [f"{name}: {words}" for name, words in parts.items() if words.startswith(REFUSED)]
    absent = [name for name, words in parts.items() if words == ABSENT]
    figure = f"{sum(words == LOADED for words in parts.values())} of {len(parts)} loaded"
    figure += f"; not on this machine: {', '.join(absent)}" if absent else ""
    figure += " (the pipeline with random weights)" if bench.random else ""
    lacking = [name for name in absent if name in wanted]
    missing = f"a run wants {', '.join(lacking)} -> see `riebench doctor`" if lacking else ""
    if refused:
        return Found("; ".join(refused), False, {"parts": parts})
    return Found(figure, True, {"parts": parts, **_pipeline(bench)}, missing)


def _try(load: Callable[[], Any]) -> str:
    try:
        load()
    except Exception as error:
        return REFUSED + one_line(error)
    return LOADED


def _grounder(bench: Bench) -> str:
    name = bench.backbone.grounder
    if any(missing_files(weights) for weights in GROUNDER_WEIGHTS.get(name, ())):
        return ABSENT
    try:
        engine = bench.engine
    except Exception:  # said of the pipeline
        return _try(lambda: GROUNDERS.get(name)(bench.device))
    return _try(lambda: engine.regions)


def _judge(bench: Bench, key: str) -> None:
    ScoringModels(bench.backbone.judges, bench.device)[key]


def _pipeline(bench: Bench) -> dict[str, Any]:
    """Returns what is known of the loaded pipeline."""
    sampler = bench.sampler
    parts = {name: part for name, part in sampler.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    processors = getattr(sampler.denoiser, "attn_processors", {})
    return {
        "dtypes": {name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()},
        "attention processors": dict(Counter(type(processor).__name__ for processor in processors.values())),
        "scheduler": type(sampler.pipeline.scheduler).__name__,
        "pixels": [sampler.height, sampler.width],
    }


CHECK = Check(
    1,
    "loading",
    "every network is loaded: no tensor is missing, and words get the numbers that they were given in training",
    load,
)
