"""Doctor: what this machine has, beside what each model needs."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from riebench.backbones.folders import backbone_folder, fetch_name, is_shipped, weights_for
from riebench.backbones.released import VAES
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.hub import Weights, fetched_revision, missing_files
from riebench.core.memory import host_memory
from riebench.core.text_tables import aligned
from riebench.metrics.networks.table import METRIC_WEIGHTS, NETWORKS
from riebench.regions.grounders import GROUNDER_WEIGHTS, GROUNDERS, SHIPPED_WEIGHTS
from sae_models.index import default_name
from sae_models.released import RELEASED_WEIGHTS

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "lpips")


def fetch_names() -> dict[str, tuple[Weights, ...]]:
    """Returns all that `riebench fetch` can fetch, by name.

    A model's name, without its steps, stands for its half-precision files, and with `:float32` behind it for the
    float32 ones.
    """
    found: dict[str, tuple[Weights, ...]] = {}
    for backbone in _backbones():
        if backbone.weights is not None:
            for dtype in ("float16", "float32"):
                found[fetch_name(backbone, dtype)] = (weights_for(backbone, dtype),)
    found |= {name: (weights,) for name, weights in VAES.items()}
    return found | GROUNDER_WEIGHTS | METRIC_WEIGHTS | RELEASED_WEIGHTS


def examine() -> dict[str, Any]:
    """Returns what was found on this machine, as plain values, sizes in 10^9 bytes. Nothing is loaded or downloaded."""
    import torch
    from huggingface_hub import constants

    memory = host_memory()
    devices = [_cuda_device(index) for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": {"total": memory.total / 1e9, "free": memory.free / 1e9},
        "cuda": devices,
        "hub": {
            "home": str(constants.HF_HOME),
            "offline": bool(constants.HF_HUB_OFFLINE),
            "disk_free": _disk_free(Path(constants.HF_HUB_CACHE)),
        },
    }
    free = max((device["free"] for device in devices), default=found["memory"]["free"])
    dtype = "float16" if devices else "float32"
    return found | {
        "backbones": {backbone.name: _examine_backbone(backbone, dtype, free) for backbone in _backbones()},
        "grounders": {name: _examine_grounder(name) for name in GROUNDERS.names()},
        "judges": {name: _presence(weights, name) for name, weights in METRIC_WEIGHTS.items()},
        "SAEs": {name: _presence(weights, name) for name, weights in RELEASED_WEIGHTS.items()},
    }


def format_doctor(found: dict[str, Any]) -> str:
    """Returns what `examine` found, for people: one screen, with the command that fetches what is missing."""
    memory, hub = found["memory"], found["hub"]
    lines = [
        f"python {found['python']} on {found['platform']}",
        ", ".join(f"{name} {version}" for name, version in found["libraries"].items()),
        f"CPU: {found['cores']} cores, {memory['free']:.1f} of {memory['total']:.1f} GB memory free",
    ]
    for device in found["cuda"]:
        bf16 = "has" if device["bfloat16"] else "no"
        lines.append(f"GPU: {device['name']}, {device['free']:.1f} of {device['total']:.1f} GB free, {bf16} bfloat16")
    if not found["cuda"]:
        lines.append("GPU: none that torch can use; SDXL on a CPU is slow")
    offline = ", offline (HF_HUB_OFFLINE)" if hub["offline"] else ""
    lines.append(f"weights from the Hub: {hub['home']}, {hub['disk_free']:.1f} GB of disk free{offline}")
    rows = [("backbone", "weights", "memory, judges and all", "to fetch")]
    rows += [
        (name, item["weights"], _memory_words(item), _fetch_words(item)) for name, item in found["backbones"].items()
    ]
    lines += ["", *aligned(rows)]
    for kind in ("grounders", "judges", "SAEs"):
        rows = [(kind.removesuffix("s"), "weights", "to fetch")]
        rows += [(name, item["weights"], _fetch_words(item)) for name, item in found[kind].items()]
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def _backbones() -> list[Backbone]:
    return [BACKBONES.get(name) for name in BACKBONES.names()]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda_device(index: int) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    major, _ = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    return {"name": name, "total": total / 1e9, "free": free / 1e9, "bfloat16": major >= 8}  # from Ampere on


def _disk_free(folder: Path) -> float:
    """Returns the free 10^9 bytes on the disk of a folder that need not exist yet."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def _examine_backbone(backbone: Backbone, dtype: str, free: float) -> dict[str, Any]:
    """Returns weights: in words; missing: files; fetch: (what `riebench fetch` takes, its 10^9 bytes) or None; dtype:
    what it would be computed in; needs: 10^9 bytes of a run that generates one picture at a time, the grounder, the
    judges and the dictionaries with it, 0 where it is not known; fits: beside what is free, None where that is not
    known."""
    dtype = backbone.dtype if backbone.dtype != "auto" else dtype
    needs = backbone.gigabytes(dtype)
    needs += _beside(backbone) if needs else 0
    memory = {"dtype": dtype, "needs": needs, "free": free, "fits": needs <= free if needs else None}
    if backbone.weights is None:
        try:
            backbone_folder(backbone)
            presence = {"weights": "shipped" if is_shipped(backbone) else "present", "missing": 0, "fetch": None}
        except UserError:
            presence = {"weights": "missing", "missing": 1, "fetch": None}
        return presence | memory
    missing = {kind: len(missing_files(weights_for(backbone, kind))) for kind in ("float16", "float32")}
    words = [word for kind, word in (("float16", "half precision"), ("float32", "float32")) if not missing[kind]]
    wanted = weights_for(backbone, dtype)
    presence = {
        "weights": " and ".join(words) or f"missing {missing[dtype]} of {len(wanted.files)} files",
        "missing": missing[dtype],
        "fetch": (fetch_name(backbone, dtype), wanted.gigabytes) if missing[dtype] else None,
    }
    return presence | memory


def _beside(backbone: Backbone) -> float:
    """Returns the 10^9 bytes that the weights of a backbone's grounder, of its CLIP, which is all that is large among
    the judges of every run, and of its published dictionaries take beside the model; in float32, as their files are."""
    judges = [network for network in NETWORKS[backbone.judges] if network.key == "clip"]
    parts = [*GROUNDER_WEIGHTS.get(backbone.grounder, ()), *(item for network in judges for item in network.weights)]
    parts += RELEASED_WEIGHTS.get(default_name(backbone.trained_on[-1], backbone.family.default_site), ())
    return sum(item.gigabytes for item in parts)


def _examine_grounder(name: str) -> dict[str, Any]:
    if name in GROUNDER_WEIGHTS:
        return _presence(GROUNDER_WEIGHTS[name], name)
    return {"weights": "shipped" if name in SHIPPED_WEIGHTS else "none to fetch", "missing": 0, "fetch": None}


def _presence(weights: Sequence[Weights], name: str) -> dict[str, Any]:
    """Returns what `_examine_backbone` does of weights, of files that are all of one name; revisions: the commits of
    those that are there."""
    revisions = {"revisions": [fetched_revision(item) for item in weights]}
    lacking = [(item, len(missing_files(item))) for item in weights]
    missing = sum(count for _, count in lacking)
    if not missing:
        return {"weights": "present", "missing": 0, "fetch": None} | revisions
    words = f"missing {missing} of {sum(len(item.files) for item in weights)} files"
    fetch = name, sum(item.gigabytes for item, n in lacking if n)
    return {"weights": words, "missing": missing, "fetch": fetch} | revisions


def _memory_words(item: dict[str, Any]) -> str:
    if item["fits"] is None:
        return "unknown"
    return f"{item['needs']:.2g} GB in {item['dtype']}: {'fits' if item['fits'] else 'too big'}"


def _fetch_words(item: dict[str, Any]) -> str:
    if item["fetch"] is None:
        return ""
    name, gigabytes = item["fetch"]
    return f"riebench fetch {name} ({gigabytes:.3g} GB)"
