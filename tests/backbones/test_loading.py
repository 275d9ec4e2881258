"""Pipelines in every precision, from folders and from the Hub's cache, and the sizes of what they make."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from sdxl_blocks import BLOCK_NAMES, BLOCKS
from sdxl_configs import TINY, build_unet, random_pipeline, run_unet
from transformers.utils import logging as transformers_logging

from riebench.backbones.blocks import Blocks
from riebench.backbones.loading import choose_device, choose_dtype, load_pipeline, quiet
from riebench.backbones.released import VAES
from riebench.backbones.sdxl import SDXL, cast_decoder_input
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.hub import Weights
from riebench.core.pictures import unusable
from riebench.generation.sampler import Request, Sampler

CPU = torch.device("cpu")
TINYWORLD = BACKBONES.get("tinyworld-turbo@1")
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SDXL-shaped pipeline, with its float32 and its half-precision files as the Hub has them."""
    made = tmp_path_factory.mktemp("tiny")
    pipeline = random_pipeline(TINY, "turbo", "cpu", torch.float32)
    pipeline.save_pretrained(made)
    pipeline.to(torch.float16).save_pretrained(made, variant="fp16")
    return made


@pytest.fixture(scope="module")
def tiny(folder):
    return Backbone("tiny@1", str(folder), 1, 0.0, "tinyworld", "sdxl", height=64, width=64)


def test_the_dtype_is_asked_for_or_the_backbones_own_or_the_devices():
    sdxl, gpu = BACKBONES.get("sdxl-turbo@1"), torch.device("cuda")
    assert choose_dtype(sdxl, gpu) == torch.float16 and choose_dtype(sdxl, CPU) == torch.float32
    assert choose_dtype(TINYWORLD, gpu) == choose_dtype(TINYWORLD, CPU) == torch.float32
    mine = dataclasses.replace(sdxl, dtype="bfloat16")
    assert choose_dtype(mine, gpu) == choose_dtype(mine, CPU) == torch.bfloat16
    assert choose_dtype(mine, gpu, "float32") == torch.float32
    with pytest.raises(UserError, match="unknown dtype 'float61'; did you mean 'float16'"):
        choose_dtype(sdxl, CPU, "float61")


def test_the_device_is_one_that_is_there(monkeypatch):
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device("cuda")
    with pytest.raises(UserError, match="unknown device 'cudda'; did you mean 'cuda'"):
        choose_device("cudda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_float32_is_what_diffusers_loads_by_itself():
    plain = StableDiffusionXLPipeline.from_pretrained(
        data_folder() / TINYWORLD.folder, low_cpu_mem_usage=False, add_watermarker=False
    )
    plain.set_progress_bar_config(disable=True)
    ours = load_pipeline(TINYWORLD, CPU, torch.float32)
    assert ours.watermark is None and type(ours.scheduler) is type(plain.scheduler)
    images = [
        pipeline(
            "a red heart", num_inference_steps=1, guidance_scale=0.0, output_type="pt", generator=torch.manual_seed(1)
        ).images
        for pipeline in (plain, ours)
    ]
    torch.testing.assert_close(images[1], images[0], atol=1e-5, rtol=0)  # ours is laid out channels last


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_in_half_precision_the_vae_stays_float32_and_decodes_the_same_latents_alike(tiny, folder, dtype):
    pipeline = load_pipeline(tiny, CPU, dtype)
    parts = pipeline.components
    assert {parts[name].dtype for name in ("unet", "text_encoder", "text_encoder_2")} == {dtype}
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float32}
    full, rounded = (
        AutoencoderKL.from_pretrained(folder / "vae", variant=variant, low_cpu_mem_usage=False).eval()
        for variant in (None, "fp16")
    )

    def make(output_type):
        words = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 64, "width": 96}
        return pipeline("a red heart", generator=torch.manual_seed(1), output_type=output_type, **words).images

    latents, image = make("latent"), make("pt")
    assert latents.dtype == dtype and image.dtype == torch.float32 and image.isfinite().all()
    scale = full.config.scaling_factor
    with torch.no_grad():
        exact, same = (
            (vae.decode(scaled).sample / 2 + 0.5).clamp(0, 1)
            for vae, scaled in ((full, latents.float() / scale), (rounded, (latents / scale).float()))
        )
    # weights come from a half-precision file, and the pipeline scales latents in half precision; the rest is float32
    torch.testing.assert_close(image, same, atol=1e-5, rtol=0)
    torch.testing.assert_close(image, exact, atol=8 * torch.finfo(dtype).eps, rtol=0)


def test_without_the_cast_half_latents_do_not_fit_a_float32_vae():
    vae = AutoencoderKL(**TINY[1])
    latents = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    with torch.no_grad(), pytest.raises(RuntimeError):
        vae.decode(latents)
    cast_decoder_input(vae)
    direct = AutoencoderKL(**TINY[1], use_post_quant_conv=False)
    cast_decoder_input(direct)
    with torch.no_grad():
        for model in (vae, direct):
            assert torch.equal(model.decode(latents).sample, model.decode(latents.float()).sample)


def test_a_vae_that_would_overflow_in_half_precision_does_not(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "loud")
    loud = AutoencoderKL.from_pretrained(tmp_path / "loud" / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        loud.post_quant_conv.weight.mul_(1e6)
    loud.save_pretrained(tmp_path / "loud" / "vae")
    (tmp_path / "loud" / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with torch.no_grad():
        assert not loud.half().decode(torch.randn(1, 4, 8, 8).half()).sample.isfinite().all()
    backbone = dataclasses.replace(tiny, folder=str(tmp_path / "loud"))
    image = Sampler(backbone, load_pipeline(backbone, CPU, torch.float16), 1).generate([Request("heart", 1)])[0].image
    assert unusable(image[None], "the image") == [""]


@pytest.mark.slow
def test_another_vae_decodes_in_the_unets_dtype(tiny, tmp_path, monkeypatch):
    weights = Weights("someone/vae", "abc", ("config.json", "diffusion_pytorch_model.safetensors"), 0.1)
    monkeypatch.setitem(VAES, "other", weights)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    torch.manual_seed(5)
    other = AutoencoderKL(**TINY[1]).eval()
    other.save_pretrained(tmp_path / "models--someone--vae" / "snapshots" / "abc")
    pipeline = load_pipeline(dataclasses.replace(tiny, vae="other"), CPU, torch.bfloat16)
    assert pipeline.vae.dtype == torch.bfloat16 and not pipeline.vae.config.force_upcast
    words = {"num_inference_steps": 1, "guidance_scale": 0.0, "height": 64, "width": 64}
    latents, image = (
        pipeline("heart", output_type=kind, generator=torch.manual_seed(1), **words).images for kind in ("latent", "pt")
    )
    assert image.dtype == torch.bfloat16
    with torch.no_grad():
        expected = other.decode(latents.float() / other.config.scaling_factor).sample
    torch.testing.assert_close(image.float(), (expected / 2 + 0.5).clamp(0, 1), atol=0.05, rtol=0)
    file = tmp_path / "models--someone--vae" / "snapshots" / "abc" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="snapshots/abc/diffusion_pytorch_model.safetensors is truncated"):
        load_pipeline(dataclasses.replace(tiny, vae="other"), CPU, torch.bfloat16)


@pytest.mark.slow
def test_each_precision_reads_its_own_files_and_others_where_there_are_no_others(tiny, tmp_path):
    """The half-precision U-Net here says 2 where the float32 one says 1."""
    for kind, names in {"both": ("", ".fp16"), "full": ("",), "half": (".fp16",)}.items():
        shutil.copytree(tiny.folder, tmp_path / kind)
        for name in {"", ".fp16"} - set(names):
            for file in (tmp_path / kind).glob(f"*/*{name}.safetensors"):
                if name or ".fp16" not in file.name:
                    file.unlink()
        for name, said in (("", 1.0), (".fp16", 2.0)):
            file = tmp_path / kind / "unet" / f"diffusion_pytorch_model{name}.safetensors"
            if file.exists():
                _say(file, said)
    found = {}
    for kind in ("both", "full", "half"):
        for dtype in (torch.float32, torch.bfloat16):
            unet = load_pipeline(dataclasses.replace(tiny, folder=str(tmp_path / kind)), CPU, dtype).unet
            assert unet.dtype == dtype
            found[kind, dtype] = unet.conv_out.bias[0].item()
    assert found == {
        **{("both", torch.float32): 1, ("both", torch.bfloat16): 2},
        **{("full", torch.float32): 1, ("full", torch.bfloat16): 1},
        **{("half", torch.float32): 2, ("half", torch.bfloat16): 2},
    }


def _say(file, value):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors["conv_out.bias"].fill_(value)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """(backbone on the Hub, its snapshot): the tiny pipeline as a download leaves it, blobs with links to them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--someone--tiny"
    snapshot = root / "snapshots" / "abc"
    shutil.copytree(tiny.folder, snapshot)
    (root / "blobs").mkdir()
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        path.rename(root / "blobs" / str(number))
        path.symlink_to(root / "blobs" / str(number))
    names = [path.relative_to(snapshot).as_posix() for path in files]
    half, full = ([name for name in names if not name.endswith(end)] for end in ("l.safetensors", ".fp16.safetensors"))
    weights = {
        "weights": Weights("someone/tiny", "abc", tuple(half), 1.0),
        "weights_full": Weights("someone/tiny", "abc", tuple(full), 2.0),
    }
    return dataclasses.replace(tiny, folder="", **weights), snapshot


def test_a_pipeline_in_the_hubs_cache_is_loaded_and_a_broken_file_can_be_fetched_again(hub):
    backbone, snapshot = hub
    assert load_pipeline(backbone, CPU, torch.float16).unet.dtype == torch.float16
    file = snapshot / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert load_pipeline(backbone, CPU, torch.float32).unet.dtype == torch.float32  # which does not read that file
    with pytest.raises(UserError) as caught:
        load_pipeline(backbone, CPU, torch.float16)
    message, _, remedy = str(caught.value).partition(" -> ")
    assert f"{file} is truncated or broken" in message
    assert remedy == f"delete {file.resolve()} and run `riebench fetch tiny`" and "blobs" in remedy
    file.resolve().unlink()  # then the file is missing, so that `riebench fetch` fetches it
    with pytest.raises(UserError, match="unet/diffusion_pytorch_model.fp16.safetensors.* -> run `riebench fetch tiny`"):
        load_pipeline(backbone, CPU, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "cut", "is truncated or broken"),
        ("vae/diffusion_pytorch_model.safetensors", "cut", "is truncated or broken"),
        ("scheduler/scheduler_config.json", "cut", "is truncated or broken"),
        ("model_index.json", "cut", "is not JSON"),
        ("text_encoder/config.json", "remove", "is missing"),
    ],
)
def test_a_broken_file_of_ones_own_is_named(tmp_path, name, harm, said):
    shutil.copytree(data_folder() / TINYWORLD.folder, tmp_path / "mine")
    file = tmp_path / "mine" / name
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        file.unlink()
    backbone = dataclasses.replace(TINYWORLD, folder=str(tmp_path / "mine"))
    with pytest.raises(UserError, match=f"cannot be loaded: {file} {said}.* -> mend the folder"):
        load_pipeline(backbone, CPU, torch.float32)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()]
)
@pytest.mark.parametrize("place", ["to", "from_pretrained"])
def test_no_room_on_the_device_is_said(tiny, monkeypatch, place, error):
    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(StableDiffusionXLPipeline, place, full)
    with pytest.raises(UserError, match="does not fit into the memory of cpu: it takes about 7.0 GB -> free some"):
        load_pipeline(dataclasses.replace(tiny, parameters=3.5), CPU, torch.float16)


@pytest.mark.parametrize("shown", [True, False])
def test_the_bars_of_other_libraries_are_as_they_were_after_loading(tiny, monkeypatch, shown):
    """Also when loading fails; while loading they are off."""
    parts = (diffusers_logging, transformers_logging)
    before = [part.is_progress_bar_enabled() for part in parts]

    def state():
        return [part.is_progress_bar_enabled() for part in parts]

    seen = []
    load = StableDiffusionXLPipeline.from_pretrained
    monkeypatch.setattr(
        StableDiffusionXLPipeline, "from_pretrained", lambda *args, **kw: (seen.append(state()), load(*args, **kw))[1]
    )
    try:
        for part in parts:
            (part.enable_progress_bar if shown else part.disable_progress_bar)()
        pipeline = load_pipeline(tiny, CPU, torch.float32)
        assert state() == [shown, shown] and seen == [[False, False]]
        assert pipeline._progress_bar_config == {"disable": True}
        assert not hasattr(StableDiffusionXLPipeline, "_progress_bar_config")
        with pytest.raises(ZeroDivisionError), quiet():
            assert state() == [False, False]
            raise ZeroDivisionError
        assert state() == [shown, shown]
        monkeypatch.setattr(StableDiffusionXLPipeline, "from_pretrained", lambda *_args, **_kwargs: 1 / 0)
        with pytest.raises(UserError, match="cannot be loaded"):
            load_pipeline(tiny, CPU, torch.float32)
        assert state() == [shown, shown]
    finally:
        for part, was in zip(parts, before, strict=True):
            (part.enable_progress_bar if was else part.disable_progress_bar)()


def test_loading_says_nothing(tiny, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load_pipeline(tiny, CPU, torch.float32)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@contextmanager
def shapes_seen(unet):
    """Yields what plain hooks see in the next calls: block -> (height, width) of its output, and that of "latents"."""
    seen = {}
    places = {"latents": unet} | {block: unet.get_submodule(path) for block, path in BLOCKS.items()}
    hooks = [
        module.register_forward_hook(lambda _m, _args, out, name=name: seen.update({name: tuple(out[0].shape[-2:])}))
        for name, module in places.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


# Odd numbers of cells are where SDXL pads: 9 x 11 cells become 5 x 6 and 3 x 3.
SIZES = [(64, 64), (96, 64), (72, 88), (64, 104), (8, 8)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grids_are_those_that_hooks_see(height, width):
    unet = build_unet(TINY[0], "cpu")
    with shapes_seen(unet) as seen:
        assert run_unet(unet, height, width).shape[2:] == (height // 8, width // 8)
    assert seen.pop("latents") == (height // 8, width // 8)
    assert Blocks(SDXL, unet).grids(BLOCK_NAMES, height, width, 8) == seen


def test_tinyworlds_grids_are_those_of_its_smaller_vae():
    sampler = Sampler(TINYWORLD, load_pipeline(TINYWORLD, CPU, torch.float32), 1)
    sites = sampler.blocks.sites(BLOCK_NAMES, "update")
    with shapes_seen(sampler.denoiser) as seen:
        trace = sampler.trace([Request("a red heart", 1)], sites)[0]
    scale = sampler.pipeline.vae_scale_factor
    assert scale == 2 and seen.pop("latents") == (32, 32)
    assert seen == sampler.grids(BLOCK_NAMES) == sampler.blocks.grids(BLOCK_NAMES, 64, 64, scale)
    assert {site.block: value.shape[1] for site, value in trace.items()} == {b: h * w for b, (h, w) in seen.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["update", "stream", "neurons"])
@pytest.mark.parametrize(("height", "width", "dtype"), [(72, 88, torch.bfloat16), (0, 0, torch.float32)], ids=str)
def test_pictures_and_traces_have_the_size_that_is_asked_for(tiny, kind, height, width, dtype):
    backbone = dataclasses.replace(tiny, steps=2, height=height, width=width)
    sampler = Sampler(backbone, load_pipeline(backbone, CPU, dtype), 1)
    with shapes_seen(sampler.denoiser) as seen:
        sample = sampler.generate([Request("heart", 1)], sampler.blocks.sites(BLOCK_NAMES, kind))[0]
    pixels = (height or 64, width or 64)  # the tiny U-Net's own size is 8 cells
    assert sample.image.shape == (3, *pixels)
    assert (sampler.height, sampler.width) == pixels
    assert seen.pop("latents") == (pixels[0] // 8, pixels[1] // 8)
    assert seen == sampler.grids(BLOCK_NAMES) == sampler.blocks.grids(BLOCK_NAMES, *pixels, 8)
    for site, value in sample.trace.items():
        high, wide = seen[site.block]
        assert value.shape == (2, high * wide, sampler.blocks.width(site))
    held = sum(value.nbytes for value in sample.trace.values())
    scale = sampler.pipeline.vae_scale_factor
    assert scale == 8 and sampler.blocks.trace_bytes(BLOCK_NAMES, kind, 2, pixels, scale, dtype) == held


# ---------------------------------------------------------------- tensors


def without(file, drop=(), add=()):
    """Writes a file of tensors again without some, and with others beside them; returns the names that it had."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    names = list(tensors)
    for name in drop:
        del tensors[name]
    save_file(tensors | dict.fromkeys(add, torch.zeros(1)), file, metadata={"format": "pt"})
    return names


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """tinyworld as a pipeline of one's own: (backbone, folder), small and of the true classes."""
    folder = tmp_path_factory.mktemp("mine") / "turbo"
    shutil.copytree(data_folder() / TINYWORLD.folder, folder)
    return dataclasses.replace(TINYWORLD, folder=str(folder)), folder


@pytest.mark.slow
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_part_that_lacks_a_tensor_is_refused_not_filled_with_noise(mine, part):
    backbone, folder = mine
    (file,) = (folder / part).glob("*.safetensors")
    kept = file.read_bytes()
    names = without(file)
    lost = next(name for name in names if name.endswith("norm1.weight") or name.endswith("layer_norm1.weight"))
    without(file, drop=[lost])
    try:
        with pytest.raises(UserError) as caught:
            load_pipeline(backbone, CPU, torch.float32)
    finally:
        file.write_bytes(kept)
    message, _, remedy = str(caught.value).partition(" -> ")
    assert f"the weights in {folder / part} lack " in message and lost.removeprefix("text_model.") in message
    assert "mend the folder" in remedy
    load_pipeline(backbone, CPU, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "value"), [("unet", float("nan")), ("vae", float("inf")), ("text_encoder_2", -float("inf"))]
)
def test_a_tensor_that_is_not_finite_is_refused_with_its_name(mine, part, value):
    from safetensors.torch import load_file, save_file

    backbone, folder = mine
    (file,) = (folder / part).glob("*.safetensors")
    kept = file.read_bytes()
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    try:
        said = f"hold NaN or infinite values: {name.removeprefix('text_model.')} of its {part} -> mend the folder"
        with pytest.raises(UserError, match="hold NaN") as caught:
            load_pipeline(backbone, CPU, torch.float32)
    finally:
        file.write_bytes(kept)
    assert said.replace("values: ", "values: text_model.") in str(caught.value) or said in str(caught.value)


@pytest.mark.slow
def test_tensors_of_another_shape_or_too_many_are_refused(mine):
    backbone, folder = mine
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    kept = file.read_bytes()
    try:
        without(file, add=["mid_block.of_another_model"])
        with pytest.raises(UserError, match="have beside what is read mid_block.of_another_model"):
            load_pipeline(backbone, CPU, torch.float32)
        without(file, drop=["conv_out.bias"], add=["conv_out.bias"])
        with pytest.raises(UserError, match="conv_out.bias"):
            load_pipeline(backbone, CPU, torch.float32)
    finally:
        file.write_bytes(kept)


@pytest.mark.slow
def test_a_tensor_that_the_hub_s_files_lack_is_said_with_their_command(hub):
    backbone, snapshot = hub
    without(snapshot / "unet" / "diffusion_pytorch_model.fp16.safetensors", drop=["conv_out.bias"])
    with pytest.raises(UserError) as caught:
        load_pipeline(backbone, CPU, torch.float16)
    message, _, remedy = str(caught.value).partition(" -> ")
    assert f"{snapshot / 'unet'} lack conv_out.bias" in message
    assert "pip install -U riebench" in remedy
    assert f"delete {snapshot.parents[1]} and run `riebench fetch tiny`" in remedy
    load_pipeline(backbone, CPU, torch.float32)  # which does not read that file


@pytest.mark.slow
def test_a_tensor_that_another_vae_lacks_is_said_with_its_command(tiny, folder, tmp_path, monkeypatch):
    weights = Weights("someone/vae", "abc", ("config.json", "diffusion_pytorch_model.safetensors"), 0.1)
    monkeypatch.setitem(VAES, "other", weights)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--vae" / "snapshots" / "abc"
    shutil.copytree(folder / "vae", snapshot)
    without(snapshot / "diffusion_pytorch_model.safetensors", drop=["decoder.conv_in.bias"])
    hub = Weights("someone/tiny", "abc", (), 0.1)
    backbone = dataclasses.replace(tiny, vae="other", folder="", weights=hub, weights_full=hub)
    monkeypatch.setattr("riebench.backbones.loading.backbone_folder", lambda *_: folder)
    with pytest.raises(UserError, match=r"lack decoder.conv_in.bias .*models--someone--vae .*`riebench fetch other`"):
        load_pipeline(backbone, CPU, torch.float32)
