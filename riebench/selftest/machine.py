"""Step 0: versions, what the doctor finds, and how torch is set."""

from __future__ import annotations

from typing import Any

import torch

from riebench.core.precision import set_tf32
from riebench.doctor import examine
from riebench.runs.setup import Setup
from riebench.selftest.bench import Bench
from riebench.selftest.step import Check, Found


def look(bench: Bench) -> Found:
    """Returns what the doctor finds, TF32 and attention as torch has them, and how many threads there are."""
    set_tf32(bench.device.type, products=Setup().rules.tf32_products)  # as a run does
    doctor, torch_says = examine(), _torch()
    missing = [name for name, version in doctor["libraries"].items() if version == "not installed"]
    fits = doctor["backbones"].get(bench.backbone.name, {}).get("fits")
    devices = ", ".join(device["name"] for device in doctor["cuda"]) or f"{doctor['cores']} CPU cores, no GPU"
    versions = ", ".join(f"{name} {doctor['libraries'][name]}" for name in ("torch", "diffusers", "transformers"))
    words = [versions, devices]
    if bench.device.type == "cuda":
        words.append("TF32: " + ", ".join(f"{name} {'on' if on else 'off'}" for name, on in torch_says["tf32"].items()))
    words += [f"{name} is not installed" for name in missing]
    words += ["the backbone does not fit into the free memory"] if fits is False else []
    return Found("; ".join(words), not missing and fits is not False, {"doctor": doctor, "torch": torch_says})


def _torch() -> dict[str, Any]:
    backends, cuda = torch.backends, torch.backends.cuda
    return {
        "cuda": torch.version.cuda,
        "cudnn": backends.cudnn.version(),
        "threads": torch.get_num_threads(),
        "tf32": {"products": cuda.matmul.allow_tf32, "convolutions": backends.cudnn.allow_tf32},
        "float32 products": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn benchmark": backends.cudnn.benchmark,
        "attention": {
            "flash": cuda.flash_sdp_enabled(),
            "memory efficient": cuda.mem_efficient_sdp_enabled(),
            "cudnn": cuda.cudnn_sdp_enabled(),
            "math": cuda.math_sdp_enabled(),
        },
    }


CHECK = Check(0, "machine", "every library is installed, and the backbone fits into the free memory", look)
