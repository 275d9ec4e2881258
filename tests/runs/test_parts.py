"""`riebench doctor --run`: every part that a named run is short of, with the command that gets it."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import constants
from test_doctor import put

from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.doctor import fetch_names
from riebench.methods.text_index import TextIndex, index_file, save_text_index
from riebench.metrics.networks.clip import OPENAI_CLIP
from riebench.regions.grounders import GROUNDER_WEIGHTS
from riebench.runs.config import build_config, read_config
from riebench.runs.parts import parts_of
from sae_models import index
from sae_models.released import RELEASED_WEIGHTS

QUICK = ("doctor", "--run", "quickstart", "--backbone", "sdxl-turbo@4", "--device", "cpu")
BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "hub"


def missing(config, device="cpu") -> list[tuple[str, str]]:
    return [(part.kind, part.command) for part in parts_of(config, device) if part.missing]


def test_every_missing_part_comes_with_a_command_that_gets_it(cache, capsys):
    assert main([*QUICK, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    parts = {(part["kind"], part["name"]): part for part in found["parts"]}
    commands = {key: part["command"] for key, part in parts.items() if part["missing"]}
    assert commands == {
        ("backbone", "sdxl-turbo@4 in float32"): "riebench fetch sdxl-turbo:float32",
        **{("SAE", block): "riebench fetch released-k160-x4" for block in BLOCKS},
        ("text index", "for text-selected"): "riebench index-text --backbone sdxl-turbo@4",
        ("grounder", "grounding-dino+sam2"): "riebench fetch grounding-dino+sam2",
        ("judge", "ViT-L-14-quickgelu/openai"): "riebench fetch clip-vit-l-14",
    }
    assert found["run"] == "quickstart" and found["missing"] == len(commands)
    assert all(command.split()[2] in fetch_names() for command in commands.values() if " fetch " in command)
    assert not parts["edits", "riebench"]["missing"] and not parts["judge", "LPIPS v0.1, AlexNet"]["missing"]
    assert main([*QUICK]) == 1
    text = capsys.readouterr().out
    assert all(command in text for command in commands.values()) and "18 of 18 files" in text


def test_one_part_after_another_is_found(cache, capsys):
    config = read_config("quickstart", {"backbone": "sdxl-turbo@4"})
    turbo = BACKBONES.get("sdxl-turbo@4")
    for weights, kind in (
        ([turbo.weights_full], "backbone"),
        (GROUNDER_WEIGHTS["grounding-dino+sam2"], "grounder"),
        (OPENAI_CLIP.weights, "judge"),
        (RELEASED_WEIGHTS["released-k160-x4"], "SAE"),
    ):
        assert kind in dict(missing(config))
        for one in weights:
            put(cache, one)
        assert kind not in dict(missing(config))
    assert missing(config) == [("text index", "riebench index-text --backbone sdxl-turbo@4")]
    for block in BLOCKS:
        name = index_file(index.fingerprint(index.find("sdxl-turbo@1", block)))
        empty = TextIndex(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
        save_text_index(cache.parent / "cache" / "riebench" / "text_index" / name, empty)
    assert missing(config) == []
    assert main([*QUICK]) == 0 and "missing" not in capsys.readouterr().out


def test_the_dtype_of_the_device_decides_which_files_count(cache, monkeypatch):
    put(cache, BACKBONES.get("sdxl-turbo@4").weights)
    config = read_config("quickstart", {"backbone": "sdxl-turbo@4"})
    assert ("backbone", "riebench fetch sdxl-turbo:float32") in missing(config)
    assert "backbone" not in dict(missing(read_config("quickstart", {"backbone": "sdxl-turbo@4", "dtype": "bfloat16"})))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "backbone" not in dict(missing(config, "auto"))
    assert ("backbone", "riebench fetch sdxl-turbo:float32") in missing(read_config("reference"), "auto")


def test_parts_are_those_of_the_run(cache, tmp_path):
    words = {
        "backbone": {"name": "mine@4", "like": "sdxl-turbo@4", "vae": "sdxl-vae-fp16-fix", "folder": str(tmp_path)},
        "methods": ["noop", "dense"],
        "subsets_of": "dense",
        "edits": "riebench",
        "grounder": "clipseg",
        "metrics": ["structure_distance", "lpips_vgg_original"],
    }
    found = parts_of(build_config(words, "here"), "cpu")
    lacking = {(part.kind, part.command) for part in found if part.missing}
    assert lacking >= {
        ("backbone", ""),  # nothing fetches a folder of one's own
        ("VAE", "riebench fetch sdxl-vae-fp16-fix"),
        ("grounder", "riebench fetch clipseg"),
        ("judge", "riebench fetch dino-vitb8"),
        ("judge", "riebench fetch clip-vit-l-14"),
    }
    assert {part.kind for part in found} == {"backbone", "VAE", "grounder", "judge", "edits"}  # dense needs no SAE
    (backbone,) = [part for part in found if part.kind == "backbone"]
    assert "model_index.json" in backbone.remedy
    gone = parts_of(build_config(words | {"edits": str(tmp_path / "none.jsonl")}, "here"), "cpu")
    assert "there is no edit set" in next(part.missing for part in gone if part.kind == "edits")


def test_all_of_tinyworlds_quickstart_is_shipped(cache, capsys):
    assert main(["doctor", "--run", "quickstart", "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 11 and all(" yes" in row for row in rows[1:])


def test_settings_want_a_run_and_the_plain_doctor_mentions_it(cache, capsys):
    assert main(["doctor", "--backbone", "sdxl-turbo@4"]) == 2
    assert "--backbone is a setting of a run -> add --run" in capsys.readouterr().err
    assert main(["doctor", "--run", "quickstrat"]) == 2 and "did you mean 'quickstart'" in capsys.readouterr().err
    assert main(["doctor"]) == 0
    assert "riebench doctor --run quickstart --backbone sdxl-turbo@4" in capsys.readouterr().out
