"""The lens on a dummy U-Net of plain modules and on tinyworld's."""

from __future__ import annotations

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES
from torch import nn

from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL
from riebench.core.errors import UserError
from riebench.generation.lens import Lens, Part, RowAdditions


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


@pytest.fixture
def blocks(unet):
    return Blocks(SDXL, unet)


def on_all_cells(added: torch.Tensor) -> RowAdditions:
    """Additions of `[rows, steps, C, h, w]`, to every cell of every row."""
    batch, steps, channels, height, width = added.shape
    rows = torch.arange(batch).repeat_interleave(height * width)
    cells = torch.arange(height * width).repeat(batch)
    values = added.permute(1, 0, 3, 4, 2).reshape(steps, batch * height * width, channels)
    return RowAdditions(batch, [Part(rows, cells, values)])


def in_reading_order(maps: torch.Tensor) -> torch.Tensor:
    """`[b, C, h, w]` as `[b, cells, C]`, cell by cell."""
    height, width = maps.shape[2:]
    return torch.stack([maps[:, :, row, column] for row in range(height) for column in range(width)], dim=1)


def test_update_is_output_minus_input_stream_is_output_and_additions_add(unet, blocks):
    x, added = torch.randn(2, 4, 3, 5), torch.randn(2, 1, 4, 3, 5)
    update, stream = Site("mid.0"), Site("mid.0", "stream")
    plain = unet(x)
    with Lens(blocks, [update, stream], {update: on_all_cells(added)}) as lens:
        edited = unet(x)
    trace = lens.trace()
    assert trace[update].shape == trace[stream].shape == (2, 1, 15, 4)
    torch.testing.assert_close(trace[update][:, 0], in_reading_order(plain - x))
    assert torch.equal(trace[stream][:, 0], in_reading_order(plain)), "what is recorded holds nothing of what is added"
    torch.testing.assert_close(trace[stream][:, 0], trace[update][:, 0] + in_reading_order(x))
    assert torch.equal(edited, plain + added[:, 0])
    with Lens(blocks, additions={stream: on_all_cells(added)}):
        assert torch.equal(unet(x), edited), "adding to the stream is adding to the update"


def test_additions_to_update_and_stream_of_one_block_add_up(unet, blocks):
    x, one, two = torch.randn(2, 4, 3, 5), torch.randn(2, 1, 4, 3, 5), torch.randn(2, 1, 4, 3, 5)
    plain = unet(x)
    with Lens(blocks, additions={Site("mid.0"): on_all_cells(one), Site("mid.0", "stream"): on_all_cells(two)}):
        assert torch.equal(unet(x), plain + one[:, 0] + two[:, 0])


def test_only_the_cells_and_rows_that_are_named_are_changed(unet, blocks):
    x = torch.randn(3, 4, 3, 5)
    rows, cells = torch.tensor([2, 0, 2]), torch.tensor([14, 6, 1])  # of 3 x 5 cells: (2, 4), (1, 1) and (0, 1)
    values = torch.randn(1, 3, 4)
    plain = unet(x)
    with Lens(blocks, additions={Site("mid.0"): RowAdditions(3, [Part(rows, cells, values)])}):
        edited = unet(x)
    expected = plain.clone()
    for i, (row, high, wide) in enumerate([(2, 2, 4), (0, 1, 1), (2, 0, 1)]):
        expected[row, :, high, wide] += values[0, i]
    assert torch.equal(edited, expected)
    beyond = RowAdditions(3, [Part(rows, torch.tensor([15, 6, 1]), values)])
    with Lens(blocks, additions={Site("mid.0"): beyond}), pytest.raises(IndexError):
        unet(x)


def test_memory_layouts_give_the_same(unet, blocks):
    x, added = torch.randn(2, 4, 3, 5), torch.randn(2, 1, 4, 3, 5)
    site = Site("mid.0")
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        with Lens(blocks, [site], {site: on_all_cells(added)}) as lens:
            found.append((unet(x.to(memory_format=layout)), lens.trace()[site]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_neurons_are_by_cells_and_their_additions_pass_through_the_layer(unet, blocks):
    x = torch.randn(2, 4, 3, 5)  # not square: cells are in reading order
    site = Site("mid.0", "neurons", 1)
    net = unet.mid_block.attentions[0].transformer_blocks[1].ff.net
    added = torch.zeros(2, 1, 12, 3, 5)
    added[1, 0, 7, 2, 4] = 3.0
    plain = unet(x)
    outputs = []
    handle = net[0].register_forward_hook(lambda _m, _args, out: outputs.append(out))
    with Lens(blocks, [site], {site: on_all_cells(added)}) as lens:
        edited = unet(x)
    handle.remove()
    assert lens.trace()[site].shape == (2, 1, 15, 12)
    assert torch.equal(lens.trace()[site][:, 0], outputs[0])
    expected = torch.zeros_like(x)
    expected[1, :, 2, 4] = 3.0 * net[2].weight[:, 7]
    torch.testing.assert_close(edited - plain, expected, atol=1e-6, rtol=1e-5)


def test_the_step_comes_from_the_sampler_not_from_the_number_of_calls(unet, blocks):
    x, site = torch.zeros(1, 4, 2, 2), Site("mid.0")
    added = torch.stack([torch.full((4, 2, 2), float(step)) for step in range(3)])[None]
    plain = unet(x)
    with Lens(blocks, additions={site: on_all_cells(added)}) as lens:
        for step in (2, 2, 0, 1):
            lens.step = step
            torch.testing.assert_close(unet(x) - plain, torch.full_like(x, step), atol=1e-6, rtol=0)


def test_what_is_live_sees_the_value_that_the_block_itself_made(unet, blocks):
    """Of the update the update, of the stream the stream; what is added there before is not seen."""
    x, added = torch.randn(2, 4, 3, 5), torch.randn(2, 1, 4, 3, 5)
    plain = unet(x)
    for site, value in ((Site("mid.0"), plain - x), (Site("mid.0", "stream"), plain)):
        seen = []

        def live(value_bnc, step, seen=seen):
            seen.append((value_bnc.clone(), step))
            return 2 * value_bnc

        with Lens(blocks, additions={site: on_all_cells(added)}, live={site: [live]}) as lens:
            lens.step = 0
            edited = unet(x)
        (found,) = seen
        assert torch.equal(found[0], in_reading_order(value)) and found[1] == 0
        torch.testing.assert_close(edited, plain + added[:, 0] + 2 * value)


def test_what_was_seen_can_be_taken(unet, blocks):
    site = Site("mid.0", "stream")
    with Lens(blocks, [site]) as lens:
        first, second = unet(torch.randn(1, 4, 2, 2)), unet(torch.randn(1, 4, 2, 2))
        assert torch.equal(lens.trace()[site], torch.stack(list(map(in_reading_order, (first, second))), dim=1))
        assert [len(steps) for steps in lens.take().values()] == [2] and not lens.seen
        third = unet(torch.randn(1, 4, 2, 2))
        (value,) = lens.take()[site]
    assert torch.equal(value, in_reading_order(third))


def test_hooks_leave_no_trace(unet, blocks):
    x, sites = torch.randn(1, 4, 2, 2), [Site("mid.0"), Site("mid.0", "stream"), Site("mid.0", "neurons", 0)]
    before = unet(x)
    with Lens(blocks, sites):
        unet(x)
        assert hook_count(unet) > 0
    assert hook_count(unet) == 0
    with pytest.raises(RuntimeError, match="boom"), Lens(blocks, sites):
        raise RuntimeError("boom")
    assert hook_count(unet) == 0
    assert torch.equal(unet(x), before)


def test_hooks_come_off_when_one_of_them_cannot_be_put_on(unet, blocks):
    with pytest.raises(UserError, match=r"no block 'up.0.1' -> use blocks out of mid.0$"):
        Lens(blocks, [Site("mid.0"), Site("up.0.1")]).__enter__()
    assert hook_count(unet) == 0
    with pytest.raises(UserError, match="mid.0 has no neurons of layer 2 -> it has 2 layers"):
        Lens(blocks, [Site("mid.0"), Site("mid.0", "neurons", 2)]).__enter__()
    assert hook_count(unet) == 0


def test_additions_for_another_batch_are_refused(unet, blocks):
    added = on_all_cells(torch.zeros(3, 1, 4, 2, 2))
    with Lens(blocks, additions={Site("mid.0"): added}), pytest.raises(ValueError, match="3 rows"):
        unet(torch.zeros(2, 4, 2, 2))
    assert hook_count(unet) == 0


def test_sites_are_where_sdxl_has_them(sampler):
    updates, streams, neurons = (sampler.blocks.sites(BLOCK_NAMES, kind) for kind in ("update", "stream", "neurons"))
    assert [site.name for site in updates] == list(BLOCK_NAMES)
    assert [site.name for site in streams] == [f"{block}/stream" for block in BLOCK_NAMES]
    assert {site.block for site in neurons} == set(BLOCK_NAMES)
    for block in BLOCK_NAMES:
        layers = len(sampler.blocks.module(block).transformer_blocks)
        assert [site.layer for site in neurons if site.block == block] == list(range(layers))
        assert sampler.blocks.num_layers(block) == layers
        attention = [site for site in sampler.blocks.sites(BLOCK_NAMES, "attention") if site.block == block]
        assert [site.name for site in attention] == [f"{block}/attention.{layer}" for layer in range(layers)]
        assert [sampler.blocks.width(site) for site in (*attention, Site(block, "text"))] == [96] * layers + [128]
    with pytest.raises(UserError, match="mid.0 has no attention of layer 7 -> it has 1 layers"):
        sampler.blocks.layer(Site("mid.0", "attention", 7))
    with pytest.raises(UserError, match="update"):
        sampler.blocks.sites(BLOCK_NAMES, "atention")
