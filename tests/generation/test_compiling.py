"""What is compiled, and that torch's settings are as they were before, during other work and afterwards."""

from __future__ import annotations

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES
from torch import nn

from riebench.backbones.loading import load_pipeline
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES
from riebench.generation.compiling import RECOMPILATIONS, compile_parts
from riebench.generation.sampler import Request, Sampler

TURBO = BACKBONES.get("tinyworld-turbo@1")
REQUEST = Request("flat poster of a standing red plain heart in the sky", 3)


@pytest.fixture
def compiled(monkeypatch):
    """(A sampler whose parts are "compiled", the functions that were given to torch.compile, the limits of
    recompilations seen while they ran): torch.compile itself takes minutes."""
    given, limits, options = [], [], []

    def stand_in(function, **kwargs):
        given.append(function)
        options.append(kwargs)

        def run(*args, **kwargs):
            limits.append(torch._dynamo.config.recompile_limit)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    pipeline = load_pipeline(TURBO, torch.device("cpu"), torch.float32)
    compile_parts(SDXL, pipeline, mode="default")
    assert options == [{"mode": "default"}] * len(given)
    return Sampler(TURBO, pipeline, 1), given, limits


def test_the_limit_of_recompilations_is_raised_only_while_a_compiled_part_runs(compiled):
    sampler, _, limits = compiled
    before, outside = torch._dynamo.config.recompile_limit, []
    assert before < RECOMPILATIONS and limits == []
    hook = sampler.blocks.module("mid.0").register_forward_hook(
        lambda *_args: outside.append(torch._dynamo.config.recompile_limit)
    )
    sampler.generate([REQUEST])
    hook.remove()
    assert len(limits) > 10 and set(limits) == {RECOMPILATIONS} and outside == [before]
    assert torch._dynamo.config.recompile_limit == before
    with torch._dynamo.config.patch(recompile_limit=1000):
        limits.clear()
        sampler.generate([REQUEST])
        assert set(limits) == {1000}, "a limit that is higher stays"


def test_the_limit_is_as_it_was_after_a_failure(compiled):
    sampler, *_ = compiled
    before = torch._dynamo.config.recompile_limit
    with pytest.raises(RuntimeError):
        sampler.pipeline.vae.decoder(torch.zeros(1, 999, 2, 2))
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.slow
def test_what_is_traced_edited_or_replayed_is_not_compiled(compiled):
    sampler, given, _ = compiled
    own = {id(function.__self__) for function in given}
    assert len(own) == len(given) > 10 and id(sampler.pipeline.vae.decoder) in own
    assert id(sampler.denoiser) not in own
    there = dict(sampler.denoiser.named_modules())
    blocks = [block for block, place in SDXL.places.items() if place.path in there]
    assert set(BLOCK_NAMES) < set(blocks)
    for block in blocks:
        module = sampler.blocks.module(block)
        feed_forwards = [layer.ff for layer in module.transformer_blocks]
        looked_into = [module, *module.transformer_blocks, *(m for ff in feed_forwards for m in ff.modules())]
        looked_into += [layer.attn2 for layer in module.transformer_blocks]
        assert not own & {id(m) for m in looked_into}
    for name, module in SDXL.units(sampler.denoiser, [SDXL.places[block].path for block in BLOCK_NAMES]).items():
        assert isinstance(module, nn.Module)
        if id(module) in own:
            assert "resnets" in name, "a residual block is compiled, and replayed as a whole"
    plain = Sampler(TURBO, load_pipeline(TURBO, torch.device("cpu"), torch.float32), 1)
    (original,) = plain.generate([REQUEST], record=True)
    (same,) = sampler.generate([REQUEST], record=True)
    assert torch.equal(original.image, same.image)
