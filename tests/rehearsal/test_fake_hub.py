"""The faked cache is whole: every file that riebench names is there, as the true repositories have it, and no other."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from rehearsal import fake_hub
from rehearsal.fake_hub import MAKERS, every_weights
from rehearsal.readme import README, sdxl_commands
from safetensors import safe_open

from riebench.backbones.loading import load_pipeline
from riebench.backbones.own import backbone_from
from riebench.backbones.table import BACKBONES
from riebench.core.hub import missing_files, weights_folder
from riebench.doctor import examine, fetch_names
from riebench.generation.sampler import Request, load_sampler
from riebench.metrics.networks.siglip import SIGLIP2
from riebench.regions.grounders import GROUNDER_WEIGHTS, GROUNDERS, THRESHOLDS
from sae_models import index

pytestmark = pytest.mark.slow  # the cache takes some seconds to make
ROOT = README.parent
#: Repository -> (file, names of tensors as the true file has them).
TENSORS = {
    "stabilityai/sdxl-turbo": (
        "text_encoder/model.fp16.safetensors",
        ("text_model.embeddings.position_ids", "text_model.encoder.layers.0.self_attn.k_proj.weight"),
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "unet/diffusion_pytorch_model.safetensors",
        (
            "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.0.proj.weight",
            "mid_block.attentions.0.proj_in.weight",
            "up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_out.0.weight",
            "add_embedding.linear_1.weight",
        ),
    ),
    "facebook/dino-vitb8": (
        "model.safetensors",
        ("embeddings.cls_token", "encoder.layer.0.attention.attention.key.weight", "pooler.dense.weight"),
    ),
    "timm/vit_large_patch14_clip_224.openai": (
        "open_clip_model.safetensors",
        ("visual.class_embedding", "transformer.resblocks.0.attn.in_proj_weight", "text_projection"),
    ),
    "timm/ViT-B-16-SigLIP2": (
        "open_clip_model.safetensors",
        ("visual.trunk.attn_pool.latent", "text.token_embedding.weight", "logit_bias"),
    ),
    "facebook/sam2.1-hiera-large": ("model.safetensors", ("shared_image_embedding.positional_embedding",)),
}


@pytest.fixture
def hub(hub_home, monkeypatch):
    """The cache, which all weights are taken from."""
    fake_hub.use(hub_home, monkeypatch)
    return hub_home


def files_of(home: Path, repo: str) -> set[str]:
    (snapshot,) = (home / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots").iterdir()
    return {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if not path.is_dir()}


def test_the_cache_holds_what_riebench_names_and_nothing_else(hub):
    required, possible = {}, {}
    for weights in every_weights():
        assert missing_files(weights) == ()
        required.setdefault(weights.repo, set()).update(weights.files)
        possible.setdefault(weights.repo, set()).update((*weights.files, *weights.optional))
    assert set(required) == set(MAKERS)
    for repo in MAKERS:
        found = files_of(hub, repo)
        assert required[repo] <= found, repo
        assert all(any(fnmatch(file, pattern) for pattern in possible[repo]) for file in found), repo


def test_no_weights_are_named_that_cannot_be_fetched():
    """Every call of `Weights` in the code with a repository spelt out is of one that is rehearsed."""
    named = set()
    for package in ("riebench", "sae_models", "baselines"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Weights", "sdxl_weights"):
                    given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "repo")]
                    named |= {one.value for one in given if isinstance(one, ast.Constant)}
    assert len(named) >= 9 and named <= set(MAKERS)


def test_the_cache_lies_as_the_hub_s_own(hub):
    for repo in MAKERS:
        folder = hub / "hub" / f"models--{repo.replace('/', '--')}"
        commit = (folder / "refs" / "main").read_text()
        assert len(commit) == 40 and (folder / "snapshots" / commit).is_dir()
        for path in (folder / "snapshots" / commit).rglob("*"):
            assert path.is_dir() or (path.is_symlink() and path.resolve().parent == folder / "blobs")
    assert sum(path.stat().st_size for path in (hub / "hub").rglob("blobs/*")) < 100e6


def test_doctor_finds_nothing_missing(hub):
    found = examine()
    for kind in ("backbones", "grounders", "judges", "SAEs"):
        for name, item in found[kind].items():
            assert item["missing"] == 0 and item["fetch"] is None, name


@pytest.mark.process
def test_a_process_finds_the_cache_by_its_environment(hub_home):
    """Nothing of the test is in that process: the cache lies where huggingface_hub looks for it."""
    environment = os.environ | {"HF_HOME": str(hub_home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "riebench.cli", "doctor", "--json"]
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert found["hub"] | {"disk_free": 0} == {"home": str(hub_home), "offline": True, "disk_free": 0}
    assert found["backbones"]["sdxl-turbo@4"]["weights"] == "half precision and float32"
    assert {item["weights"] for item in found["SAEs"].values()} == {"present"}


@pytest.mark.parametrize("repo", TENSORS)
def test_tensors_are_called_as_in_the_true_files(hub, repo):
    file, names = TENSORS[repo]
    (weights,) = {one for one in every_weights() if one.repo == repo and file in one.files}
    assert set(names) <= set(safe_open(weights_folder("", weights) / file, "pt").keys())


@pytest.mark.parametrize("name", GROUNDER_WEIGHTS)
def test_every_grounder_looks_at_pictures(hub, name):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sure = dict.fromkeys(THRESHOLDS[name], 0.0)
    for masks in GROUNDERS.get(name)("cpu", **sure).detections(images, [("cat",), ("red dog", "road")]):
        assert masks.dtype == torch.bool and masks.shape[1:] == (64, 64) and len(masks)


def test_every_released_dictionary_and_vae_is_read(hub):
    for entry in index.entries():
        if entry.backbone == "sdxl-turbo@1":
            sae = index.open(entry)
            assert ((sae.encode(torch.randn(3, entry.width)) > 0).sum(-1) <= entry.k).all()
    own = backbone_from({"name": "mine@1", "like": "sdxl-turbo@1", "vae": "sdxl-vae-fp16-fix"}, "test")
    pipeline = load_pipeline(own, torch.device("cpu"), torch.float16)
    assert pipeline.vae.dtype == torch.float16 and not pipeline.vae.config.force_upcast


def test_siglip_s_tokenizer_needs_no_network(hub):
    """By its name transformers asks for a config.json, which the repository has not."""
    assert "config.json" not in files_of(hub, "timm/ViT-B-16-SigLIP2")
    vector = SIGLIP2.load("cpu", 2, False).texts(["a cat", "a red cat"])
    assert vector.shape == (2, 32) and abs(vector[0] - vector[1]).max() > 1e-3


@pytest.mark.parametrize(("backbone", "size"), [("sdxl-turbo@1", 512), ("sdxl-base@25", 1024)])
def test_a_picture_has_the_size_of_the_table(hub_home, monkeypatch, backbone, size):
    fake_hub.use(hub_home, monkeypatch, pixels=0, steps={"sdxl-base@25": 1})
    sampler = load_sampler(BACKBONES.get(backbone), torch.device("cpu"), 1)
    (made,) = sampler.generate([Request("a cat on a road", 0)])
    assert made.image.shape == (3, size, size) and made.image.std() > 0.1


def test_commands_are_read_out_of_fenced_blocks():
    text = """# x
```
riebench run a
riebench run b --backbone sdxl-turbo@1    said
```
## With SDXL
riebench run c
```
riebench edit "a red" b  said
pip install x
riebench doctor
```
## Other
```
riebench doctor
```
"""
    assert sdxl_commands(text) == [
        ["riebench", "run", "b", "--backbone", "sdxl-turbo@1"],
        ["riebench", "edit", "a red", "b"],
        ["riebench", "doctor"],
    ]


def test_the_readme_shows_every_verb_that_takes_sdxl():
    shown = {words[1] for words in sdxl_commands(README.read_text())}
    of_runs = {"run", "edit", "score", "dominance", "submit", "validate"}
    assert of_runs | {"doctor", "fetch", "harvest", "train", "evaluate", "index-text"} <= shown
    assert {name.partition(":")[0] for name in fetch_names()} >= {"sdxl-turbo", "sdxl-base"}
