"""The published SAEs: of the narrow U-Net's channels, with the true number of features and the true k, in the folders
and files of the true repositories."""

from __future__ import annotations

from pathlib import Path

import torch
from rehearsal.small_pipelines import CHANNELS
from rehearsal.small_tokenizers import write_json

FEATURES = 5120
PATHS = ("down_blocks.2.attentions.1", "mid_block.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")


def k160(folder: Path) -> None:
    _save(folder, 160)


def k10(folder: Path) -> None:
    _save(folder, 10)


def _save(folder: Path, k: int) -> None:
    for path in PATHS:
        there = folder / f"unet.{path}_k{k}_hidden{FEATURES}_auxk256_bs4096_lr0.0001" / "final"
        config = {"auxk": 256, "d_model": CHANNELS, "dead_steps_threshold": 2441, "k": k, "n_dirs_local": FEATURES}
        write_json(there / "config.json", config)
        decoder = torch.nn.functional.normalize(torch.randn(CHANNELS, FEATURES), dim=0)
        tensors = {
            "encoder.weight": decoder.T.contiguous() / 2,
            "latent_bias": torch.zeros(FEATURES),
            "decoder.weight": decoder,
            "pre_bias": 0.1 * torch.randn(CHANNELS),
            "stats_last_nonzero": torch.zeros(FEATURES, dtype=torch.long),
        }
        torch.save({"state_dict": tensors}, there / "state_dict.pth")
        for name in ("mean.pt", "std.pt") if k == 10 else ():
            torch.save(torch.rand(FEATURES), there / name)
