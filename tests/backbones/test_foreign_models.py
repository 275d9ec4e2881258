"""What other people have for a backbone: schedulers that call the denoiser twice a step, single files, LoRAs, parts,
and sizes that nothing here reads. All is said when the backbone is opened, or before."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sdxl_configs import TINY, random_pipeline

from riebench import api
from riebench.backbones.folders import backbone_folder
from riebench.backbones.loading import load_pipeline
from riebench.backbones.own import backbone_from
from riebench.backbones.pipeline_checks import refuse_scheduler, refuse_size
from riebench.backbones.sdxl import SDXL
from riebench.backbones.sdxl_shape import NOISE
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.metrics import METRICS, default_metrics
from riebench.metrics import refuse_size as refuse_size_of_scores
from riebench.regions.grounders import refuse_size as refuse_size_of_regions
from riebench.runs.engine import open_engine
from riebench.runs.setup import Setup

CPU = torch.device("cpu")
HEUN = Path(__file__).parents[1] / "data" / "schedulers" / "heun.json"


def backbone(folder: Path | str = "/x", steps: int = 4, **settings) -> Backbone:
    return Backbone(f"mine@{steps}", str(folder), steps, 0.0, "tinyworld", "sdxl", **settings)


# schedulers


@pytest.fixture(scope="module")
def tiny():
    return random_pipeline(TINY, "turbo", "cpu", torch.float32)


def calls_of(pipeline, scheduler, steps: int) -> int:
    """How often diffusers' own pipeline calls its U-Net."""
    seen = []
    hook = pipeline.unet.register_forward_hook(lambda *_: seen.append(1))
    before, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        pipeline("heart", num_inference_steps=steps, guidance_scale=0.0, output_type="latent", height=64, width=64)
    finally:
        pipeline.scheduler = before
        hook.remove()
    return len(seen)


ONCE = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "TCDScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
OFTEN = ("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler")


@pytest.mark.parametrize("name", [*ONCE, *OFTEN])
def test_a_scheduler_is_refused_where_a_step_is_more_than_a_call(tiny, name, steps=4):
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy")
    scheduler = getattr(diffusers, name)(**NOISE, **options)
    calls = calls_of(tiny, scheduler, steps)
    assert (calls == steps) == (name in ONCE)
    if name in ONCE:
        refuse_scheduler(backbone(steps=steps), scheduler)
    else:
        with pytest.raises(UserError, match=rf"mine@{steps} has a {name}, .*{calls} times in {steps} steps -> save"):
            refuse_scheduler(backbone(steps=steps), scheduler)


def test_a_scheduler_is_tried_on_a_copy():
    scheduler = diffusers.EulerDiscreteScheduler(**NOISE)
    before = scheduler.timesteps.clone()
    refuse_scheduler(backbone(), scheduler)
    assert torch.equal(scheduler.timesteps, before) and scheduler.num_inference_steps is None


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        ("HeunDiscreteScheduler", 1, "HeunDiscreteScheduler, which calls the denoiser more than once a step"),
        ("PNDMScheduler", 1, "PNDMScheduler, which "),
        ("LCMScheduler", 60, "LCMScheduler, which cannot make 60 steps: .* -> .*other `steps`"),
        ("FlowMatchEulerDiscreteScheduler", 4, "FlowMatchEulerDiscreteScheduler, which is of another kind of model"),
        ("FlowMatchHeunDiscreteScheduler", 4, "FlowMatchHeunDiscreteScheduler, which is of another kind of model"),
    ],
)
def test_other_schedulers_that_cannot_be_meant(scheduler, steps, message):
    with pytest.raises(UserError, match=message):
        refuse_scheduler(backbone(steps=steps), getattr(diffusers, scheduler)())


@pytest.fixture
def folder(tmp_path):
    """tinyworld's pipeline without its weights, which are not to be read."""
    found = tmp_path / "pipeline"
    source = data_folder() / "tinyworld" / "turbo"
    shutil.copytree(source, found, ignore=shutil.ignore_patterns("*.safetensors"))
    return found


@pytest.mark.parametrize("in_index", [True, False])
def test_a_fine_tune_with_such_a_scheduler_is_refused_before_its_weights_are_read(folder, in_index):
    shutil.copy(HEUN, folder / "scheduler" / "scheduler_config.json")
    index = json.loads((folder / "model_index.json").read_text())
    if in_index:
        index["scheduler"] = ["diffusers", "HeunDiscreteScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"mine@4 has a HeunDiscreteScheduler, .* 7 times in 4 steps -> save .*Euler"):
        load_pipeline(backbone(folder), CPU, torch.float32)


# files that are no folder of a pipeline

CHECKPOINT = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros(1, np.float32)}
LORAS = {
    "diffusers": "unet.down_blocks.1.attentions.0.to_q.lora_A.weight",
    "diffusers of old": "unet.mid_block.attentions.0.processor.to_q_lora.down.weight",
    "peft": "base_model.model.down_blocks.1.to_q.lora_B.default.weight",
    "kohya": "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight",
    "LoHa": "diffusion_model.input_blocks.4.1.proj_in.hada_w1_a",
    "LoKr": "lycoris_unet_down_blocks_1_attentions_0_proj_in.lokr_w1",
}


@pytest.mark.parametrize("name", ["merge.safetensors", "merge.ckpt", "model.fp16.safetensors"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_single_file_says_so_and_how_a_folder_is_made_of_it(tmp_path, name, inside):
    path = tmp_path / "models" / name
    path.parent.mkdir()
    save_file(CHECKPOINT, path)
    given = backbone_from({"name": "m@4", "like": "sdxl-turbo@4", "folder": str(path.parent if inside else path)}, "x")
    with pytest.raises(UserError, match="m@4, .* is a single file, not the folder of a pipeline") as caught:
        backbone_folder(given)
    assert f"`pipeline = diffusers.StableDiffusionXLPipeline.from_single_file({str(path)!r})`" in caught.value.remedy
    made = str(path.with_suffix(""))
    assert f"`pipeline.save_pretrained({made!r})`, then give `folder: {made}`" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_what_is_told_of_a_single_file_can_be_run(tmp_path, tiny, monkeypatch):
    """The lines as they stand, with a reader of single files in the place of the one that asks the Hub."""
    save_file(CHECKPOINT, tmp_path / "merge.safetensors")
    asked = []
    kind = SimpleNamespace(from_single_file=lambda path: asked.append(path) or tiny)
    monkeypatch.setattr(diffusers, "StableDiffusionXLPipeline", kind, raising=False)
    with pytest.raises(UserError) as caught:
        backbone_folder(backbone(tmp_path / "merge.safetensors"))
    scope = {"diffusers": diffusers}
    for line in caught.value.remedy.split("`")[1:4:2]:
        exec(line, scope)
    assert asked == [str(tmp_path / "merge.safetensors")]
    assert (tmp_path / "merge" / "model_index.json").is_file()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", LORAS)
def test_a_lora_says_so_and_how_it_is_fused(tmp_path, kind, inside):
    path = tmp_path / "style" / "pytorch_lora_weights.safetensors"
    path.parent.mkdir()
    save_file({LORAS[kind]: np.zeros(1, np.float32)}, path)
    (path.parent / "README.md").write_text("a LoRA")
    with pytest.raises(UserError, match="is a LoRA, which changes a model and is none itself -> fuse it") as caught:
        backbone_folder(backbone(path.parent if inside else path))
    asked = path.parent if inside else path
    assert f"pipeline.load_lora_weights({str(asked)!r})" in caught.value.remedy
    assert "pipeline.fuse_lora()" in caught.value.remedy and "give `folder: fused`" in caught.value.remedy


@pytest.mark.parametrize("key", ["lora", "loras"])
@pytest.mark.parametrize(
    ("values", "base"),
    [
        ({"like": "sdxl-turbo@4"}, "stabilityai/sdxl-turbo"),
        ({"like": "sdxl-turbo@4", "folder": "models/mine"}, "models/mine"),
        ({"like": "tinyworld-turbo@4"}, "BASE"),
        ({"folder": "models/mine", "steps": 4, "guidance": 0}, "models/mine"),
    ],
)
def test_a_lora_beside_a_backbone_is_refused_with_the_lines_that_fuse_it(values, base, key):
    with pytest.raises(UserError, match=f"^run.yaml: a backbone has no {key}: LoRAs are not loaded") as caught:
        backbone_from({"name": "mine@4", **values, key: "style.safetensors"}, "run.yaml")
    assert f".from_pretrained({base!r}); pipeline.load_lora_weights('style.safetensors')`" in caught.value.remedy


def test_one_part_of_a_pipeline_and_other_folders_say_what_they_are(tmp_path, folder):
    with pytest.raises(UserError, match="holds one part of a pipeline, a UNet2DConditionModel -> put it into"):
        backbone_folder(backbone(folder / "unet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"not at .*empty -> give the folder with the model_index\.json"):
        backbone_folder(backbone(tmp_path / "empty"))
    for name in ("a.safetensors", "b.safetensors"):
        save_file(CHECKPOINT, tmp_path / "empty" / name)
    with pytest.raises(UserError, match=r"not at .*empty -> give the folder with the model_index\.json"):
        backbone_folder(backbone(tmp_path / "empty"))
    save_file({LORAS["peft"]: np.zeros(1, np.float32)}, folder / "a.safetensors")
    assert backbone_folder(backbone(folder)) == folder  # a pipeline's own folder is one, whatever lies beside


# sizes


def pipeline_of(cells: object, factor: int) -> SimpleNamespace:
    denoiser = SimpleNamespace(config=SimpleNamespace(sample_size=cells))
    return SimpleNamespace(unet=denoiser, vae_scale_factor=factor)


@pytest.mark.parametrize(
    ("height", "width", "cells", "factor"),
    [(0, 0, 64, 8), (512, 768, 64, 8), (8, 8, 64, 8), (64, 64, 32, 2), (0, 0, 4, 32), (512, 512, [64, 64], 8)],
)
def test_sizes_of_whole_cells_are_taken(height, width, cells, factor):
    refuse_size(backbone(height=height, width=width), pipeline_of(cells, factor))


@pytest.mark.parametrize(
    ("height", "width", "cells", "factor", "message"),
    [
        (500, 512, 64, 8, "height 500 px, and its cells are of 8 px -> give a height that is a multiple of 8, as 496"),
        (512, 4, 64, 8, "width 4 px, .* -> give a width that is a multiple of 8, as 8"),
        (512, 520, 32, 16, "width 520 px, and its cells are of 16 px -> .*multiple of 16, as 512"),
        (72, 64, 8, 32, "height 72 px, .*multiple of 32, as 64"),
        (0, 0, 33, 2, "height 66 px, and its cells are of 2 px -> .*multiple of 8, as 64"),
        (0, 512, None, 8, "the height of mine@4's pictures is not known: its denoiser's sample_size is None"),
        (512, 0, [64, 64], 8, "the width of mine@4's pictures is not known"),
    ],
)
def test_sizes_that_are_no_whole_cells_are_refused(height, width, cells, factor, message):
    with pytest.raises(UserError, match=message):
        refuse_size(backbone(height=height, width=width), pipeline_of(cells, factor))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 64), (128, 128), (512, 512)])
def test_tinyworlds_judges_and_grounder_read_their_size_alone(size):
    said = rf"mine makes pictures of {size[0]} x {size[1]} px, and "
    with pytest.raises(UserError, match=rf"{said}CLIP, which scores, reads 64 x 64 px alone -> "):
        refuse_size_of_scores(default_metrics("tinyworld"), "tinyworld", size, "mine")
    with pytest.raises(UserError, match=rf"{said}the grounder 'tinyworld' reads 64 x 64 px alone"):
        refuse_size_of_regions("tinyworld", size, "mine")
    refuse_size_of_scores(default_metrics("tinyworld"), "tinyworld", (64, 64), "mine")
    refuse_size_of_scores(default_metrics("sdxl"), "sdxl", size, "mine")
    refuse_size_of_regions("clipseg", size, "mine")
    refuse_size_of_regions("one that is not ours", size, "mine")


@pytest.mark.filterwarnings("ignore")  # of torchvision, at how lpips asks it
@pytest.mark.parametrize(("net", "metric"), [("alex", ""), ("vgg", "_vgg"), ("squeeze", "_squeeze")])
def test_lpips_is_refused_where_its_trunk_has_no_cell_left(net, metric):
    """The least size is where the package's own network, on no device, begins to answer."""
    import lpips

    with torch.device("meta"):
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    name = f"lpips{metric}_original"
    assert METRICS.summary(name)

    def answers(pixels: int) -> bool:
        try:
            return all(layer.numel() for layer in network.net(torch.zeros(1, 3, pixels, 64, device="meta")))
        except RuntimeError:
            return False

    def refused(pixels: int) -> bool:
        try:
            refuse_size_of_scores([name], "sdxl", (pixels, 64), "mine")
        except UserError as error:
            assert "reads at least" in str(error)
            return True
        return False

    sizes = range(12, 34)
    assert [not answers(pixels) for pixels in sizes] == [refused(pixels) for pixels in sizes]


def test_an_engine_says_so_before_it_loads_and_a_picture_alone_is_made_all_the_same(monkeypatch, folder):
    wide = {"name": "wide@1", "like": "tinyworld-turbo@1", "height": 32, "width": 48}
    found = backbone_from(wide, "x")
    with pytest.raises(UserError, match="wide@1 makes pictures of 32 x 48 px, and the grounder 'tinyworld' reads"):
        open_engine(dataclasses.replace(found, folder=str(folder)))  # whose weights are not there
    with pytest.raises(UserError, match="wide@1 makes pictures of 32 x 48 px, and CLIP, which scores, reads"):
        open_engine(dataclasses.replace(found, folder=str(folder), grounder="everything"))
    assert api.generate("a red heart", backbone=wide).size == (48, 32)
    own = dataclasses.replace(BACKBONES.get("tinyworld-turbo@1"), name="own@1", height=0, width=0)
    assert open_engine(own, "cpu", setup=Setup()).sampler.height == 64


def test_a_pipelines_own_size_is_looked_at_when_it_is_loaded(tmp_path):
    path = tmp_path / "pipeline"
    shutil.copytree(data_folder() / "tinyworld" / "turbo", path)
    config = json.loads((path / "unet" / "config.json").read_text())
    (path / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 48}))
    mine = dataclasses.replace(BACKBONES.get("tinyworld-turbo@1"), name="own@1", folder=str(path), height=0, width=0)
    with pytest.raises(UserError, match="own@1 makes pictures of 96 x 96 px, and the grounder 'tinyworld' reads 64"):
        open_engine(mine, "cpu")
    assert SDXL.denoiser == "unet"
