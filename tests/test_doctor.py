"""What the doctor says of this machine, and what can be fetched."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import control_groups
import open_clip
import psutil
import pytest
import torch
from huggingface_hub import constants

from riebench.backbones.table import BACKBONES
from riebench.core import groups
from riebench.core.hub import weights_folder
from riebench.core.memory import host_memory
from riebench.doctor import examine, fetch_names, format_doctor
from riebench.metrics.networks.clip import OPENAI_CLIP
from riebench.metrics.networks.siglip import SIGLIP2
from riebench.regions.grounders import GROUNDER_WEIGHTS, GROUNDERS
from sae_models.released import RELEASED_WEIGHTS

CLIP, (CLIP_WEIGHTS,) = OPENAI_CLIP.fetch_name, OPENAI_CLIP.weights


def put(root, weights, count=None):
    """The first `count` files of some weights, empty, in a Hub cache as a download leaves them."""
    folder = root / f"models--{weights.repo.replace('/', '--')}"
    commit = weights.revision
    if weights.revision == "main":
        commit = "c0ffee"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
    for file in weights.files[:count]:
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{start} ")]
    return line


def test_the_machine_is_described(cache):
    found = examine()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["libraries"]["torch"] == version("torch") and "not installed" not in found["libraries"].values()
    assert found["memory"]["total"] == pytest.approx(host_memory().total / 1e9)
    assert 0 < found["memory"]["free"] < found["memory"]["total"]
    assert len(found["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert found["hub"]["disk_free"] > 0  # of a folder that is not there yet
    assert set(found["backbones"]) == set(BACKBONES.names()) and set(found["grounders"]) == set(GROUNDERS.names())
    text = format_doctor(found)
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 120
    assert str(found["hub"]["home"]) in text and version("diffusers") in text


def test_what_is_missing_comes_with_the_command_that_fetches_it(cache):
    found = examine()
    text = format_doctor(found)
    for name in ("sdxl-turbo@1", "sdxl-turbo@4", "sdxl-base@25", *GROUNDER_WEIGHTS, CLIP, "released-k160-x4"):
        line = line_of(text, name)
        command = line[line.index("riebench fetch ") :].split()[2]
        assert "missing" in line and command in fetch_names()
    for name in ("tinyworld-turbo@1", "tinyworld-base@25", "tinyworld", "everything"):
        assert "riebench fetch" not in line_of(text, name) and "missing" not in line_of(text, name)


def test_what_is_there_is_seen(cache):
    turbo, base = BACKBONES.get("sdxl-turbo@1"), BACKBONES.get("sdxl-base@25")
    put(cache, turbo.weights)
    put(cache, base.weights)
    put(cache, base.weights_full)
    first, *_ = grounder = GROUNDER_WEIGHTS["grounding-dino+sam2"]
    put(cache, first)
    put(cache, CLIP_WEIGHTS)
    found = examine()
    assert found["backbones"]["sdxl-turbo@4"]["weights"] == "half precision"
    assert found["backbones"]["sdxl-base@25"]["weights"] == "half precision and float32"
    assert found["backbones"]["sdxl-base@25"]["fetch"] is None
    assert found["backbones"]["tinyworld-turbo@1"]["weights"] == "shipped"
    lacking = len(grounder[1].files)
    assert found["grounders"]["grounding-dino+sam2"]["missing"] == lacking
    assert found["grounders"]["grounding-dino+sam2"]["fetch"] == ("grounding-dino+sam2", grounder[1].gigabytes)
    assert f"missing {lacking} of {lacking + len(first.files)} files" in line_of(
        format_doctor(found), "grounding-dino+sam2"
    )
    assert found["judges"][CLIP]["weights"] == "present"


def test_a_started_download_counts_as_missing(cache):
    put(cache, GROUNDER_WEIGHTS["clipseg"][0], count=2)
    item = examine()["grounders"]["clipseg"]
    assert item["missing"] == len(GROUNDER_WEIGHTS["clipseg"][0].files) - 2 and item["fetch"][0] == "clipseg"


def test_memory_is_set_beside_what_is_free(cache, monkeypatch, tmp_path):
    """With what the grounder, CLIP and the SAEs take: 0.69 + 0.9 + 1.71 + 0.21 GB."""

    class Memory:
        total, available = 64e9, 48e9

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    limit = {"memory.max": "32000000000", "memory.current": "13000000000"}
    control_groups.make(tmp_path, 2, "/", limit)
    monkeypatch.setattr(groups, "ROOT", tmp_path)
    found = examine()
    text = format_doctor(found)
    assert "19.0 of 32.0 GB memory free" in text and "GPU: none" in text
    assert "18 GB in float32: fits" in line_of(text, "sdxl-turbo@1")
    assert "21 GB in float32: too big" in line_of(text, "sdxl-base@25")
    turbo, tiny = BACKBONES.get("sdxl-turbo@1"), BACKBONES.get("tinyworld-turbo@1")
    assert found["backbones"]["sdxl-turbo@1"]["needs"] == pytest.approx(turbo.gigabytes("float32") + 3.51)
    assert found["backbones"]["tinyworld-turbo@1"]["needs"] == pytest.approx(tiny.gigabytes("float32"))


def test_a_gpu_is_described_and_half_precision_is_what_counts(cache, monkeypatch):
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "mem_get_info": (12.0e9, 16.0e9),
        "get_device_capability": (7, 5),
        "get_device_name": "Turing",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    text = format_doctor(examine())
    assert "GPU: Turing, 12.0 of 16.0 GB free, no bfloat16" in text
    assert "11 GB in float16: fits" in line_of(text, "sdxl-turbo@1")
    assert "14 GB in float16: too big" in line_of(text, "sdxl-base@25")
    assert line_of(text, "sdxl-base@25").endswith("riebench fetch sdxl-base (6.94 GB)")


def test_offline_is_said(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "offline" not in format_doctor(examine())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline (HF_HUB_OFFLINE)" in format_doctor(examine())


def test_every_name_to_fetch_stands_for_weights():
    names = fetch_names()
    models = {"sdxl-turbo", "sdxl-turbo:float32", "sdxl-base", "sdxl-vae-fp16-fix"}
    assert {*models, "released-k160-x4", "clipseg", CLIP} <= set(names)
    assert names["sdxl-turbo"] == (BACKBONES.get("sdxl-turbo@4").weights,)
    assert names["sdxl-base:float32"] == (BACKBONES.get("sdxl-base@25").weights_full,)
    assert not any(name.startswith("tinyworld") for name in names)
    for weights in names.values():
        assert weights and all(item.files and item.gigabytes > 0 for item in weights)


@pytest.mark.parametrize("network", [OPENAI_CLIP, SIGLIP2], ids=["CLIP", "SigLIP 2"])
def test_the_clips_are_open_clip_s_own_files(cache, monkeypatch, network):
    """open_clip finds the same file in the same repository, where the branch "main" stands at our commit."""
    (weights,) = network.weights
    architecture, _, tag = network.model.partition("/")
    entry = open_clip.get_pretrained_cfg(architecture, tag)
    assert entry["hf_hub"].strip("/") == weights.repo
    put(cache, weights)
    refs = weights_folder(network.fetch_name, weights).parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(weights.revision)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = open_clip.download_pretrained(entry)
    assert found == str(weights_folder(network.fetch_name, weights) / weights.files[0])
    assert network.describe().files == [Path(found)]


def test_what_moves_is_told_with_the_commit_that_was_fetched(cache):
    (weights,) = RELEASED_WEIGHTS["released-k160-x4"]
    assert examine()["SAEs"]["released-k160-x4"]["revisions"] == [""]
    put(cache, weights)
    assert not any("mean.pt" in file for file in weights.files)
    found = examine()["SAEs"]["released-k160-x4"]
    assert (found["weights"], found["missing"], found["fetch"]) == ("present", 0, None)
    assert found["revisions"] == ["c0ffee"]
    assert "missing" not in line_of(format_doctor(examine()), "released-k160-x4")
