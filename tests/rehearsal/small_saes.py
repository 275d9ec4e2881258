"""The published SAEs, in the folders and files of the true repositories: those of SDXL Turbo of the narrow U-Net's
channels, with the true number of features and the true k; those of FLUX tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from rehearsal.small_pipelines import CHANNELS
from rehearsal.small_tokenizers import write_json
from safetensors.torch import save_file

ORBAX = Path(__file__).parents[1] / "data" / "checkpoints" / "fae-2025" / "sae_double_l18_img" / "30000" / "default"
RENY = (
    "RE-N-Y/cc3m-transformer_blocks.0-1",
    "RE-N-Y/cc3m-transformer_blocks.18-1",
    "RE-N-Y/cc3m-single_transformer_blocks.9",
    "RE-N-Y/cc3m-single_transformer_blocks.37",
)
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


def reny(folder: Path) -> None:
    write_json(folder / "config.json", {"features": 6, "k": 3, "pages": 20})
    tensors = {"encoder.weight": torch.randn(20, 6), "encoder.bias": torch.zeros(20)}
    save_file(tensors | {"decoder.weight": torch.randn(6, 20), "bias": torch.zeros(6)}, folder / "model.safetensors")


def fae(folder: Path) -> None:
    for name in ("sae_double_l9_img-k64", "sae_double_l18_img"):
        shutil.copytree(ORBAX, folder / name / "30000" / "default")
