"""What models of a kind are built of is named in their family's file, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import baselines
import riebench

#: What only `backbones/` may name, and the embedded world, which builds models of SDXL's class.
NAMES = (
    *(r"(?i:\bunets?\b)", r"(?i:\bu-nets?\b)", r"\bStableDiffusionXLPipeline\b", r"\bUNet2DConditionModel\b"),
    *(r"\bGEGLU\b", r"\bdown_blocks\b", r"\bmid_block\b", r"\bup_blocks\b", r"\btransformer_blocks\b"),
    r"\[uncond, cond\]",
)
SUFFIXES = (".py", ".js", ".html", ".css", ".json", ".yaml")
MAY_NAME = ("backbones", "tinyworld", "tinyworld_build")
PACKAGES = [Path(package.__file__).parent for package in (riebench, baselines)]


def places(text: str) -> list[tuple[int, str]]:
    """Every line of a text that names one of `NAMES`: (its number, the first that it names)."""
    found = [
        (number, match.group())
        for number, line in enumerate(text.splitlines(), 1)
        if (match := re.search("|".join(NAMES), line))
    ]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "the U-Net halves it",
        "sampler.unet.config",
        "of two UNets",
        "import UNet2DConditionModel",
        "StableDiffusionXLPipeline(**parts)",
        '"GEGLU\'s outputs"',
        "up_blocks.1",
        "model.mid_block",
        "block.transformer_blocks[0]",
        "rows are [uncond, cond]",
    ],
)
def test_what_is_looked_for_is_found(line):
    assert places(f"a denoiser\n{line}\n")[0][0] == 2


@pytest.mark.parametrize("line", ["a denoiser's blocks", "unethical", "cleanup_blocks_of", "[cond, uncond]", "runets"])
def test_what_is_alike_is_not(line):
    assert places(line) == []


def test_only_backbones_name_what_a_kind_of_model_is_built_of():
    named = [
        f"{path.relative_to(package.parent)}:{number}: {what}"
        for package in PACKAGES
        for path in sorted(path for path in package.rglob("*") if path.suffix in SUFFIXES)
        if path.relative_to(package).parts[0] not in (*MAY_NAME, "_data") or package.name != "riebench"  # as installed
        for number, what in places(path.read_text(encoding="utf-8"))
    ]
    assert not named, "\n".join(["say it in a family (riebench/backbones/), or call it the denoiser:", *named])
