"""A whole cache of the Hub, faked: every repository that riebench names, with small random models of the true classes.

Layout, file names and configuration keys are the true repositories' own. Two things are narrower than they say where no
file does: the channels of the published SAEs (`sae_models.released`) and the models of open_clip. `use` tells both, and
the sizes of the pictures, which the table of backbones has; nothing else of riebench is touched. The SAEs of FLUX are
tiny, and say so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import huggingface_hub
import pytest
import torch
from filelock import FileLock
from rehearsal import small_grounders, small_judges, small_pipelines, small_saes

from riebench.backbones.loading import quiet
from riebench.backbones.table import BACKBONES
from riebench.core.hub import Weights
from riebench.doctor import fetch_names
from sae_models import released

#: Repository -> what makes its files.
MAKERS: dict[str, Callable[[Path], None]] = {
    "stabilityai/sdxl-turbo": small_pipelines.turbo,
    "stabilityai/stable-diffusion-xl-base-1.0": small_pipelines.base,
    "madebyollin/sdxl-vae-fp16-fix": small_pipelines.vae_fix,
    "IDEA-Research/grounding-dino-tiny": small_grounders.grounding_dino,
    "facebook/sam2.1-hiera-large": small_grounders.sam2,
    "facebook/sam3": small_grounders.sam3,
    "CIDAS/clipseg-rd64-refined": small_grounders.clipseg,
    "timm/vit_large_patch14_clip_224.openai": small_judges.openai_clip,
    "timm/ViT-B-16-SigLIP2": small_judges.siglip2,
    "facebook/dino-vitb8": small_judges.dino,
    "wendlerc/sdxl-turbo-saes": small_saes.k160,
    "surokpro2/sdxl-saes": small_saes.k10,
    **dict.fromkeys(small_saes.RENY, small_saes.reny),
    "nev/flux1-saes": small_saes.fae,
}
BULKY = (".safetensors", ".pth", ".pt")  # files whose blobs are called by their sha256, as the Hub calls large ones
PIXELS = 64  # of pictures, in the place of 512 and 1024


def every_weights() -> list[Weights]:
    """Returns all that riebench can fetch."""
    return list(chain.from_iterable(fetch_names().values()))


def build(home: Path) -> None:
    """Writes the cache under what `HF_HOME` is to be."""
    revisions = {weights.repo: weights.revision for weights in every_weights()}
    for repo, make in MAKERS.items():
        made = home / "made"
        made.mkdir(parents=True)
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(repo.encode()))
            make(made)
        _put(home / "hub" / f"models--{repo.replace('/', '--')}", revisions[repo], made)
        shutil.rmtree(made)


def _put(folder: Path, revision: str, made: Path) -> None:
    """Moves files to where huggingface_hub keeps those of a commit."""
    commit = revision if len(revision) == 40 else hashlib.sha1(folder.name.encode()).hexdigest()
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs").mkdir()
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest = (
            hashlib.sha256(content) if path.suffix in BULKY else hashlib.sha1(b"blob %d\0" % len(content) + content)
        )
        blob, link = folder / "blobs" / digest.hexdigest(), folder / "snapshots" / commit / path.relative_to(made)
        path.replace(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def shared_hub(base: Path) -> Path:
    """Returns the cache under a folder that all processes of a test session see, made by the first that asks."""
    home = base / "fake-hub"
    with FileLock(base / "fake-hub.lock"):
        if not home.exists():
            part = home.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            with quiet():
                build(part)
            part.rename(home)
    return home


def download_from(home: Path) -> Callable[..., str]:
    """Returns what stands in for `huggingface_hub.snapshot_download`: it takes the files out of a cache."""

    def download(repo: str, *, revision: str, allow_patterns: Sequence[str]) -> str:
        folder = f"models--{repo.replace('/', '--')}"
        there, here = (Path(cache) / folder for cache in (home / "hub", huggingface_hub.constants.HF_HUB_CACHE))
        commit = (there / "refs" / "main").read_text()
        snapshot = there / "snapshots" / commit
        for source in (path for path in snapshot.rglob("*") if path.is_file()):
            file = source.relative_to(snapshot)
            link = here / "snapshots" / commit / file
            if any(fnmatch(str(file), pattern) for pattern in allow_patterns) and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source.resolve())
        (here / "refs").mkdir(exist_ok=True)
        (here / "refs" / "main").write_text(commit)
        return str(here / "snapshots" / commit)

    return download


def use(
    home: Path,
    patch: pytest.MonkeyPatch,
    *,
    pixels: int = PIXELS,
    dtype: str = "auto",
    steps: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Has this process take all weights from a cache, and refuses it the network.

    pixels: height and width of SDXL's pictures; 0 leaves them as they are. dtype: what SDXL is computed in where
    nothing is asked for. steps: backbone -> its steps, where they are to be fewer.
    """
    for name, value in {"HF_HOME": home, "HF_HUB_CACHE": home / "hub"}.items():
        patch.setattr(huggingface_hub.constants, name, str(value))
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    patch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    small_judges.narrow_open_clip(patch)
    patch.setattr(released, "WIDTH", small_pipelines.CHANNELS)
    for name in BACKBONES.names():
        if name.startswith("sdxl-"):
            entry = BACKBONES._entry(name)
            size = {"height": pixels, "width": pixels} if pixels else {}
            row = dataclasses.replace(entry.target, dtype=dtype, steps=steps.get(name, entry.target.steps), **size)
            patch.setitem(BACKBONES._entries, name, dataclasses.replace(entry, target=row))
