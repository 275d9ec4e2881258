"""The lens on a dummy U-Net of plain modules and on tinyworld's."""

from __future__ import annotations

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES
from torch import nn

from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.generation.lens import Lens


class Layer(nn.Module):
    """A transformer layer as diffusers lays it out: `ff.net[0]` is the neurons, `ff.net[2]` reads them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([nn.Linear(width, 3 * width), nn.Identity(), nn.Linear(3 * width, width)])

    def forward(self, tokens):
        for module in self.ff.net:
            tokens = module(tokens)
        return tokens


class Block(nn.Module):
    """output = input + layers(input), as `Transformer2DModel` with `return_dict=False`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Layer(width), Layer(width)])

    def forward(self, hidden_states, return_dict=False):
        b, c, h, w = hidden_states.shape
        tokens = hidden_states.flatten(2).transpose(1, 2)
        for layer in self.transformer_blocks:
            tokens = tokens + layer(tokens)
        return (hidden_states + tokens.transpose(1, 2).reshape(b, c, h, w),)


class DummyUNet(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.mid_block = nn.Module()
        self.mid_block.attentions = nn.ModuleList([Block(width)])

    def forward(self, x):
        return self.mid_block.attentions[0](x, return_dict=False)[0]


def hook_count(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return DummyUNet()


def test_update_is_output_minus_input_and_additions_add(unet):
    x, added = torch.randn(2, 4, 3, 5), torch.randn(2, 1, 4, 3, 5)
    site = Site("mid.0")
    plain = unet(x)
    with Lens(unet, [site], {site: added}) as lens:
        edited = unet(x)
    trace = lens.trace.stacked()[site]
    torch.testing.assert_close(trace[:, 0], plain - x)
    torch.testing.assert_close(lens.trace.inputs[site][0], x)
    assert torch.equal(edited, plain + added[:, 0])


def test_neurons_are_on_the_grid_and_their_additions_pass_through_the_layer(unet):
    x = torch.randn(2, 4, 3, 5)  # not square: the grid is read from the block's input
    site = Site("mid.0", "neurons", 1)
    net = unet.mid_block.attentions[0].transformer_blocks[1].ff.net
    added = torch.zeros(2, 1, 12, 3, 5)
    added[1, 0, 7, 2, 4] = 3.0
    plain = unet(x)
    with Lens(unet, [site], {site: added}) as lens:
        edited = unet(x)
    assert lens.trace.stacked()[site].shape == (2, 1, 12, 3, 5)
    expected = torch.zeros_like(x)
    expected[1, :, 2, 4] = 3.0 * net[2].weight[:, 7]
    torch.testing.assert_close(edited - plain, expected, atol=1e-6, rtol=1e-5)


def test_the_step_comes_from_the_sampler_not_from_the_number_of_calls(unet):
    x, site = torch.zeros(1, 4, 2, 2), Site("mid.0")
    added = torch.stack([torch.full((4, 2, 2), float(step)) for step in range(3)])[None]
    plain = unet(x)
    with Lens(unet, additions={site: added}) as lens:
        for step in (2, 2, 0, 1):
            lens.step = step
            torch.testing.assert_close(unet(x) - plain, torch.full_like(x, step), atol=1e-6, rtol=0)


def test_hooks_leave_no_trace(unet):
    x, sites = torch.randn(1, 4, 2, 2), [Site("mid.0"), Site("mid.0", "neurons", 0)]
    before = unet(x)
    with Lens(unet, sites):
        unet(x)
        assert hook_count(unet) > 0
    assert hook_count(unet) == 0
    with pytest.raises(RuntimeError, match="boom"), Lens(unet, sites):
        raise RuntimeError("boom")
    assert hook_count(unet) == 0
    assert torch.equal(unet(x), before)


def test_hooks_come_off_when_one_of_them_cannot_be_put_on(unet):
    with pytest.raises(UserError, match=r"no block 'up.0.1'"), Lens(unet, [Site("mid.0"), Site("up.0.1")]):
        pass
    assert hook_count(unet) == 0


def test_additions_for_another_batch_are_refused(unet):
    site = Site("mid.0")
    with Lens(unet, additions={site: torch.zeros(3, 1, 4, 2, 2)}), pytest.raises(ValueError, match="3 rows"):
        unet(torch.zeros(2, 4, 2, 2))
    assert hook_count(unet) == 0


def test_sites_are_where_sdxl_has_them(sampler):
    updates = sampler.blocks.sites(BLOCK_NAMES, "update")
    neurons = sampler.blocks.sites(BLOCK_NAMES, "neurons")
    assert [site.name for site in updates] == list(BLOCK_NAMES)
    assert {site.block for site in neurons} == set(BLOCK_NAMES)
    with pytest.raises(UserError, match="update"):
        sampler.blocks.sites(BLOCK_NAMES, "attention")
