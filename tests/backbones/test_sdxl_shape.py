"""What we say of SDXL's shape, against SDXL's own classes: on a meta device, and with random weights on a GPU."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from sdxl_blocks import BLOCK_NAMES, BLOCKS
from sdxl_configs import (
    FULL,
    TINY,
    build_text_encoders,
    build_unet,
    build_vae,
    check_generation,
    cost_of_hooks,
    random_pipeline,
    run_unet,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES
from riebench.generation.lens import Lens, Part, RowAdditions

# Bytes of the half-precision files of stable-diffusion-xl-base-1.0, headers included.
FILE_BYTES = {
    "unet": 5_135_149_760,
    "vae": 167_335_342,
    "text_encoder": 246_144_152,
    "text_encoder_2": 1_389_382_176,
}
HEADER = 250_000  # more than any of those files' headers
SIZES = {
    (512, 512): (16, 16),
    (768, 768): (24, 24),
    (1024, 1024): (32, 32),
    (512, 768): (16, 24),
    (768, 1024): (24, 32),
    (520, 808): (17, 26),  # 65 x 101 cells of latents: every level is padded
}


@pytest.fixture(scope="module")
def unet():
    return build_unet()


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_configurations_have_as_many_parameters_as_the_published_files(unet):
    text_encoder, text_encoder_2 = build_text_encoders()
    models = {"unet": unet, "vae": build_vae(), "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    assert count(unet) == 2_567_463_684
    for name, model in models.items():
        assert 0 < FILE_BYTES[name] - 2 * count(model) < HEADER, name
    backbone = BACKBONES.get("sdxl-base@25")
    assert sum(map(count, models.values())) / 1e9 == pytest.approx(backbone.parameters, abs=0.005)
    assert sum(FILE_BYTES.values()) / 1e9 == pytest.approx(backbone.weights.gigabytes, abs=0.005)
    assert sum(4 * count(model) for model in models.values()) / 1e9 == pytest.approx(
        backbone.weights_full.gigabytes, abs=0.05
    )


def test_the_blocks_are_where_the_protocol_has_them(unet):
    neurons, blocks = 0, Blocks(SDXL, unet)
    for name, path in BLOCKS.items():
        block = unet.get_submodule(path)
        assert isinstance(block, Transformer2DModel) and block.out_channels == 1280
        assert block is blocks.module(name) and blocks.width(Site(name)) == blocks.width(Site(name, "stream")) == 1280
        assert len(block.transformer_blocks) == blocks.num_layers(name) == 10
        widths = [blocks.width(site) for site in blocks.sites([name], "neurons")]
        assert widths == [5120] * 10
        neurons += sum(widths)
    assert neurons == 204_800


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "cells"), SIZES.items(), ids=str)
def test_grids_and_traces_are_those_of_a_forward(unet, pixels, cells):
    blocks = Blocks(SDXL, unet)
    sites = {kind: blocks.sites(BLOCK_NAMES, kind) for kind in ("update", "stream", "neurons")}
    shapes = {}
    hooks = [
        blocks.module(block).register_forward_hook(
            lambda _m, _args, out, block=block: shapes.update({block: tuple(out[0].shape[2:])})
        )
        for block in BLOCK_NAMES
    ]
    with Lens(blocks, [site for of_kind in sites.values() for site in of_kind]) as lens:
        run_unet(unet, *pixels)
    for hook in hooks:
        hook.remove()
    assert shapes == blocks.grids(BLOCK_NAMES, *pixels, 8) == dict.fromkeys(BLOCK_NAMES, cells)
    for kind, count_of_sites, width in (("update", 4, 1280), ("stream", 4, 1280), ("neurons", 40, 5120)):
        seen = {site: lens.seen[site][0] for site in sites[kind]}
        assert len(seen) == count_of_sites
        assert {tuple(value.shape) for value in seen.values()} == {(1, cells[0] * cells[1], width)}
        size = sum(value.numel() for value in seen.values())
        assert blocks.trace_bytes(BLOCK_NAMES, kind, 3, pixels, 8, torch.float32) == 3 * 4 * size
        assert blocks.trace_bytes(BLOCK_NAMES, kind, 25, pixels, 8, torch.bfloat16) == 25 * 2 * size


def rows_of(cells: int, width: int) -> RowAdditions:
    """An addition without memory to all cells of one row."""
    numbers = torch.arange(cells, device="meta")
    return RowAdditions(1, [Part(torch.zeros_like(numbers), numbers, torch.empty(1, cells, width, device="meta"))])


@pytest.mark.slow
def test_additions_of_the_lens_fit_the_shapes(unet):
    blocks = Blocks(SDXL, unet)
    additions = {
        Site("down.2.1"): rows_of(16 * 24, 1280),
        Site("mid.0", "stream"): rows_of(16 * 24, 1280),
        Site("up.0.0", "neurons", 9): rows_of(16 * 24, 5120),
    }
    with Lens(blocks, additions=additions):
        assert run_unet(unet, 512, 768).shape == (1, 4, 64, 96)
    with Lens(blocks, additions={Site("down.2.1"): rows_of(16 * 24, 640)}), pytest.raises(RuntimeError):
        run_unet(unet, 512, 768)


@pytest.mark.slow
def test_every_place_of_the_family_is_a_transformer_of_sdxl_in_the_order_in_which_they_run(unet):
    blocks, ran = Blocks(SDXL, unet), []
    transformers = {name for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)}
    assert {place.path for place in SDXL.places.values()} == transformers
    hooks = [
        blocks.module(block).register_forward_hook(lambda *_args, block=block: ran.append(block))
        for block in SDXL.places
    ]
    run_unet(unet, 512, 512)
    for hook in hooks:
        hook.remove()
    assert ran == list(SDXL.places)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once, of those made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if not self._holders.get(key):
                    self._now += size
                    self.peak = max(self.peak, self._now)
                self._holders[key] = self._holders.get(key, 0) + 1
                weakref.finalize(tensor, self._gone, key, size)
        return output

    def _gone(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self._now -= size


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [512, 1024])
def test_decoding_takes_the_memory_that_is_said_and_the_unet_less(unet, pixels):
    vae = build_vae()
    with torch.no_grad(), Alive() as decoding:
        vae.decode(torch.zeros(1, 4, pixels // 8, pixels // 8, device="meta"))
    assert decoding.peak / pixels**2 == pytest.approx(SDXL.decoding_bytes, rel=0.02)
    with Alive() as denoising:
        run_unet(unet, pixels, pixels, rows=2)
    assert 0 < denoising.peak < decoding.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "dtype"),
    [
        ("sdxl-turbo@1", 1, torch.bfloat16),
        ("sdxl-turbo@4", 4, torch.float16),
        ("sdxl-base@25", 2, torch.float32),
        ("sdxl-base@25", 2, torch.float16),
    ],
    ids=str,
)
def test_what_is_checked_on_a_gpu_holds_for_a_tiny_model(name, steps, dtype):
    backbone = dataclasses.replace(BACKBONES.get(name), steps=steps, height=64, width=96)
    check_generation(random_pipeline(TINY, backbone.name[5:].split("@")[0], "cpu", dtype), backbone)


def test_the_cost_of_hooks_can_be_measured():
    assert cost_of_hooks(build_unet(TINY[0], "cpu"), 64, 64, repeats=2) > -1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_full_size_models_on_a_gpu(dtype):
    """SDXL with random weights: finite images, exact zero edits, hooks that cost less than 5 % of a forward."""
    for model, names in {"turbo": ("sdxl-turbo@1", "sdxl-turbo@4"), "base": ("sdxl-base@25",)}.items():
        pipeline = random_pipeline(FULL, model, "cuda", dtype)
        for name in names:
            check_generation(pipeline, BACKBONES.get(name))
        backbone = BACKBONES.get(names[0])
        assert cost_of_hooks(pipeline.unet, backbone.height, backbone.width, repeats=10) < 0.05
        del pipeline
        torch.cuda.empty_cache()
