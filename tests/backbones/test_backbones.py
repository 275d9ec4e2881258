"""The table of models, one's own entries, and what is said when weights are not there."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from riebench.backbones.folders import backbone_folder, fetch_name, is_shipped, vae_folder, weights_for
from riebench.backbones.own import backbone_from
from riebench.backbones.released import VAES
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.hub import Weights
from riebench.edits.edit import CATEGORIES

TURBO, BASE = BACKBONES.get("sdxl-turbo@1"), BACKBONES.get("sdxl-base@25")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub cache of our own, and a function that puts empty files of some weights there, as a download leaves them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(weights: Weights, *, without: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / "hub" / f"models--{weights.repo.replace('/', '--')}" / "snapshots" / weights.revision
        for file in set(weights.files) - set(without):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        return folder

    return put


def test_the_table_is_the_protocols():
    asked = {
        name: (entry.steps, entry.guidance, entry.guided, entry.height, entry.width)
        for name in BACKBONES.names()
        if name.startswith("sdxl") and (entry := BACKBONES.get(name))
    }
    assert asked == {
        "sdxl-turbo@1": (1, 0.0, False, 512, 512),
        "sdxl-turbo@4": (4, 0.0, False, 512, 512),
        "sdxl-base@25": (25, 8.0, True, 1024, 1024),
    }
    for name in BACKBONES.names():
        entry = BACKBONES.get(name)
        assert entry.name == name and name.endswith(f"@{entry.steps}")
        assert is_shipped(entry) == name.startswith("tinyworld") == (entry.weights is None)
        assert entry.dictionaries in BACKBONES.names()


@pytest.mark.process
def test_importing_the_table_imports_no_torch():
    code = "import sys, riebench.backbones.table\nassert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_are_those_of_a_pipeline_with_and_without_the_variant():
    for entry in (TURBO, BASE):
        tensors = [file for file in entry.weights_full.files if file.endswith(".safetensors")]
        assert {Path(file).parent.name for file in tensors} == {"unet", "vae", "text_encoder", "text_encoder_2"}
        half = [file.replace(".safetensors", ".fp16.safetensors") for file in tensors]
        small = set(entry.weights.files) - set(half)
        assert small == set(entry.weights_full.files) - set(tensors)
        assert {Path(file).parts[0] for file in small} == {
            *("model_index.json", "scheduler", "unet", "vae", "text_encoder", "text_encoder_2"),
            *("tokenizer", "tokenizer_2"),
        }
        assert len(entry.weights.files) == len(set(entry.weights.files)) == 18


def test_memory_is_parameters_and_decoding():
    half, full = TURBO.gigabytes("float16"), TURBO.gigabytes("float32")
    assert full - half == pytest.approx(2 * TURBO.parameters)
    assert BASE.gigabytes("bfloat16") - half == pytest.approx(3 * (half - 2 * TURBO.parameters))  # 4 times the pixels
    other = backbone_from({"name": "fix@1", "like": "sdxl-turbo@1", "vae": "sdxl-vae-fp16-fix"}, "run.yaml")
    assert 0 < half - other.gigabytes("float16") == pytest.approx((half - 2 * TURBO.parameters) / 2)
    assert other.gigabytes("float32") == full
    assert Backbone("mine@1", "/x", 1, 0.0, "tinyworld", "sdxl", height=512, width=512).gigabytes("float32") == 0


def test_a_pipeline_on_the_hub_is_found_by_precision(hub):
    with pytest.raises(UserError, match=r"18 of 18 files .* -> run `riebench fetch sdxl-turbo` \(6.94 GB\)"):
        backbone_folder(TURBO, "float16")
    folder = hub(TURBO.weights)
    assert backbone_folder(TURBO, "float16") == backbone_folder(TURBO, "bfloat16") == folder
    assert backbone_folder(BACKBONES.get("sdxl-turbo@4"), "float16") == folder
    with pytest.raises(UserError) as caught:
        backbone_folder(TURBO, "float32")
    assert "half-precision files and not the float32 ones" in str(caught.value)
    assert "unet/diffusion_pytorch_model.safetensors" in str(caught.value) and ".fp16." not in str(caught.value)
    assert "riebench fetch sdxl-turbo:float32" in str(caught.value) and "dtype float16" in str(caught.value)
    hub(TURBO.weights_full)
    assert backbone_folder(TURBO) == folder


def test_the_other_precision_and_a_file_that_is_missing_are_named(hub):
    hub(BASE.weights_full)
    with pytest.raises(UserError, match="float32 files and not the half-precision ones .*dtype float32"):
        backbone_folder(BASE, "bfloat16")
    hub(TURBO.weights, without=("tokenizer/vocab.json",))
    with pytest.raises(UserError, match=r"1 of 18 files .*tokenizer/vocab.json.* -> run `riebench fetch sdxl-turbo`"):
        backbone_folder(BACKBONES.get("sdxl-turbo@4"), "float16")


def test_fetch_names_are_those_of_the_table():
    mine = backbone_from({"name": "mine@2", "like": "sdxl-turbo@4", "steps": 2}, "run.yaml")
    assert fetch_name(mine, "bfloat16") == "sdxl-turbo"
    assert fetch_name(mine, "float32") == "sdxl-turbo:float32"
    assert weights_for(mine, "float16") == TURBO.weights and weights_for(mine, "float32") == TURBO.weights_full


def test_another_vae_is_looked_for(hub):
    assert vae_folder(TURBO) is None
    mine = backbone_from({"name": "mine@1", "like": "sdxl-turbo@1", "vae": "sdxl-vae-fp16-fix"}, "run.yaml")
    with pytest.raises(UserError, match="riebench fetch sdxl-vae-fp16-fix"):
        vae_folder(mine)
    folder = hub(VAES["sdxl-vae-fp16-fix"])
    assert vae_folder(mine) == folder


def test_ones_own_is_like_another_but_for_what_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mine = backbone_from(
        {
            **{"name": "my-sdxl@4", "like": "sdxl-turbo@4", "folder": "models/mine", "height": 768, "width": 512},
            **{"guidance": 3, "dtype": "bfloat16", "grounder": "clipseg"},
        },
        "run.yaml",
    )
    assert mine == Backbone(
        name="my-sdxl@4",
        folder=str(tmp_path / "models" / "mine"),
        steps=4,
        guidance=3.0,
        grounder="clipseg",
        judges="sdxl",
        dictionaries="sdxl-turbo@1",
        height=768,
        width=512,
        dtype="bfloat16",
        parameters=TURBO.parameters,
    )
    assert isinstance(mine.guidance, float) and mine.guided and not is_shipped(mine)
    at_home = backbone_from({"name": "a@1", "folder": "~/pipe", "steps": 1, "guidance": 0}, "run.yaml")
    assert at_home.folder == str(tmp_path / "home" / "pipe")
    assert (at_home.grounder, at_home.judges, at_home.dtype) == ("grounding-dino+sam2", "sdxl", "auto")
    with pytest.raises(UserError, match="not at .*pipe -> .*model_index.json"):
        backbone_folder(at_home)


def test_a_size_of_ones_own_keeps_the_weights():
    small = backbone_from({"name": "base-512@25", "like": "sdxl-base@25", "height": 512, "width": 512}, "run.yaml")
    assert small.weights == BASE.weights and small.guidance == 8.0 and small.summary == ""
    shipped = backbone_from({"name": "tiny@2", "like": "tinyworld-turbo@4", "steps": 2}, "run.yaml")
    assert backbone_folder(shipped) == data_folder() / "tinyworld" / "turbo"


def test_roles_are_known_of_a_world_alone_and_not_of_other_weights():
    planted = {"name": "a@1", "like": "tinyworld-turbo@1", "world": "planted"}
    mine = backbone_from(planted, "run.yaml")
    assert mine.roles["colour"] == "up.0.1" and set(mine.roles.values()) == set(mine.blocks)
    said = {category.name: mine.planted_block(category.name) for category in CATEGORIES}
    assert said == {
        **{"change_object": "down.2.1", "change_background": "down.2.1", "change_pose": "mid.0"},
        **dict.fromkeys(("add_object", "delete_object", "change_content"), "up.0.0"),
        **dict.fromkeys(("change_colour", "change_material", "change_style"), "up.0.1"),
    }
    assert mine.planted_block("a category of one's own") == ""
    for values in (GOOD, planted | {"world": "everywhere"}):
        other = backbone_from(values, "run.yaml")
        assert other.roles == {} and not any(map(other.planted_block, said))
    permuted = backbone_from(planted | {"world": "permuted"}, "run.yaml")
    assert not any(permuted.planted_block(category) == block for category, block in said.items())


def test_the_world_of_a_row_is_not_that_of_other_weights(monkeypatch):
    row = dataclasses.replace(BACKBONES.get("tinyworld-turbo@1"), world="planted")
    monkeypatch.setattr(BACKBONES, "get", lambda name: row)
    like = {"name": "a@1", "like": "tinyworld-turbo@1"}
    assert backbone_from(like, "run.yaml").world == "planted"
    assert backbone_from(like | {"folder": "elsewhere"}, "run.yaml").world == ""
    assert backbone_from(like | {"folder": "elsewhere", "world": "permuted"}, "run.yaml").world == "permuted"


GOOD = {"name": "mine@4", "like": "sdxl-turbo@4"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidence": 1}, "unknown key 'guidence' of a backbone; did you mean 'guidance'"),
        ({"weights": "x"}, "unknown key 'weights'"),
        ({"like": "sdxl-turbo"}, "like is 'sdxl-turbo'; did you mean 'sdxl-turbo@"),
        ({"like": ["sdxl-turbo@1"]}, "like is "),
        ({"name": "mine"}, "name is 'mine' -> .*as in my-sdxl@4"),
        ({"name": "a/b@4"}, "name is 'a/b@4'"),
        ({"name": "sdxl-turbo@4"}, "name is 'sdxl-turbo@4' -> give a name that is not taken"),
        ({"name": "mine@8"}, "name is 'mine@8', but the backbone has 4 steps -> name it mine@4, or give `steps: 8`"),
        ({"steps": 0}, "steps is 0 -> give a whole number"),
        ({"steps": "4"}, "steps is '4'"),
        ({"steps": True}, "steps is True"),
        ({"guidance": -0.5}, "guidance is -0.5"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": "high"}, "guidance is 'high'"),
        ({"height": 500}, "height is 500 -> .*multiple of 8"),
        ({"width": -8}, "width is -8"),
        ({"width": 512.0}, "width is 512.0"),
        ({"dtype": "bflaot16"}, "dtype is 'bflaot16'; did you mean 'bfloat16'"),
        ({"vae": "fp16-fix"}, "vae is 'fp16-fix'; did you mean 'sdxl-vae-fp16-fix'"),
        ({"vae": {}}, "vae is {}"),
        ({"world": "plantd"}, "world is 'plantd'; did you mean 'planted'"),
        ({"grounder": ""}, "grounder is ''"),
        ({"folder": 3}, "folder is 3"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_a_remedy(values, message):
    assert backbone_from(GOOD, "run.yaml").steps == 4
    with pytest.raises(UserError, match=f"^run.yaml: {message}") as caught:
        backbone_from({**GOOD, **values}, "run.yaml")
    assert " -> " in str(caught.value)


@pytest.mark.parametrize("missing", ["name", "folder", "steps", "guidance"])
def test_what_is_missing_is_named(missing):
    values = {"name": "a@2", "folder": "/a", "steps": 2, "guidance": 0}
    assert backbone_from(values, "x").steps == 2
    del values[missing]
    with pytest.raises(UserError, match=f"^x: the backbone has no {missing} -> give it"):
        backbone_from(values, "x")
