"""Traces that are read again where they are wanted: equal to the bit to those that are held, and read together."""

from __future__ import annotations

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES

from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES
from riebench.generation.interventions import Addition, Intervention
from riebench.generation.retrace import Group
from riebench.generation.sampler import Request, Sampler, load_sampler
from riebench.methods.method import Rows

PROMPTS = ("flat poster of a standing red plain heart in the sky", "flat poster of a blue plain star in the sea")
REQUESTS = [Request(prompt, 3) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def four(sampler):
    return Sampler(BACKBONES.get("tinyworld-turbo@4"), sampler.pipeline, batch_size=2)


@pytest.fixture(scope="module")
def sites(four):
    return four.blocks.sites(BLOCK_NAMES, "neurons")


@pytest.fixture(scope="module")
def whole(four, sites):
    return [sample.trace for sample in four.generate(REQUESTS, sites, decode=False)]


def cells_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {block: torch.rand(64, generator=generator) < 0.4 for block in BLOCK_NAMES}


@pytest.fixture
def group(four, sites):
    made = Group(four, sites)
    for seed, request in enumerate(REQUESTS):
        made.add(request, cells_of(seed))
    return made


@pytest.fixture
def calls(four, monkeypatch):
    """What the sampler was asked to read: (pictures, steps) of each call."""
    found, read = [], four.read

    def spy(requests, picks, steps=None):
        found.append((len(requests), steps))
        return read(requests, picks, steps)

    monkeypatch.setattr(four, "read", spy)
    return found


@pytest.mark.slow
def test_the_first_step_and_chosen_units_are_those_of_whole_traces(group, whole, sites, calls):
    members = group.members
    assert all(isinstance(member, Rows) and set(member) == set(sites) for member in members)
    for member, trace in zip(members, whole, strict=True):
        found = member.rows(member.cells, 1, None)
        for site in sites:
            assert torch.equal(found[site], trace[site][:1][:, member.cells[site.block]])
    assert calls == [(2, 1)], "the first step of all pictures is read at once"
    wanted = [{site: torch.tensor([5 + i, 1, 17]) for site in sites} for i in range(2)]
    for member, numbers in zip(members, wanted, strict=True):
        member.expect(numbers)
    for member, trace, numbers in zip(members, whole, wanted, strict=True):
        found = member.rows(member.cells, None, numbers)
        for site in sites:
            assert torch.equal(found[site], trace[site][:, member.cells[site.block]][..., numbers[site]])
    assert calls == [(2, 1), (2, None)], "what is expected is read at once"
    other = {sites[0]: torch.tensor([2])}
    assert torch.equal(
        members[0].rows(members[0].cells, None, other)[sites[0]],
        whole[0][sites[0]][:, members[0].cells[sites[0].block]][..., [2]],
    )
    assert calls[2:] == [(1, None)], "what nobody expected is read alone"


@pytest.mark.slow
def test_a_site_can_be_had_whole_and_other_cells_too(group, whole, sites, calls):
    member = group.members[1]
    for site in sites:
        assert torch.equal(member[site], whole[1][site])
    assert calls == [(1, None)]
    with pytest.raises(KeyError):
        member[Site("mid.0")]
    others = cells_of(9)
    for steps in (1, None):
        found = member.rows(others, steps, None)
        assert all(torch.equal(found[s], whole[1][s][:steps][:, others[s.block]]) for s in sites)
    numbers = {sites[1]: torch.tensor([7, 0])}
    found = member.rows(others, None, numbers)[sites[1]]
    assert torch.equal(found, whole[1][sites[1]][:, others[sites[1].block]][..., [7, 0]])
    assert (member.steps, member.dtype) == (4, torch.float32)
    assert member.widths == {site: trace.shape[-1] for site, trace in whole[1].items()}


@pytest.mark.slow
def test_under_guidance_the_rows_that_see_the_prompt_are_read():
    guided = load_sampler(BACKBONES.get("tinyworld-base@25"), torch.device("cpu"), 2)
    sites = [Site("mid.0"), Site("up.0.1", "neurons", 0)]
    cells = torch.zeros(64, dtype=torch.bool)
    cells[[3, 40]] = True
    before = guided.forwards
    (found,) = guided.read(REQUESTS[:1], [dict.fromkeys(sites, (cells, None))], 2)
    assert guided.forwards - before == 2 * 2, "two steps of two rows, and no more"
    sample = guided.generate(REQUESTS[:1], sites, decode=False)[0]
    for site in sites:
        assert torch.equal(found[site], sample.trace[site][:2][:, cells])
        assert not torch.equal(found[site], sample.uncond_trace[site][:2][:, cells])
    only = guided.generate(REQUESTS[:1], sites, decode=False, branches=("cond",))[0]
    assert not only.uncond_trace and all(torch.equal(only.trace[site], sample.trace[site]) for site in sites)


@pytest.mark.slow
def test_additions_to_some_channels_are_the_dense_ones_to_the_bit(four, sites):
    generator = torch.Generator().manual_seed(1)
    cells, site, update = torch.tensor([2, 9, 33]), sites[-1], Site("mid.0")
    numbers = torch.tensor([4, 0, 11])
    widths = {place: four.blocks.width(place) for place in (site, update)}
    some = Intervention(
        {
            place: Addition(cells, 5 * torch.randn(4, 3, 3, generator=generator), numbers, width)
            for place, width in widths.items()
        }
    )
    dense = Intervention({place: added.dense(64) for place, added in some.additions.items()})
    for place, added in dense.additions.items():
        assert added.channels is None and added.values.shape == (4, 3, widths[place])
        expected = torch.zeros(4, 64, widths[place])
        for i, cell in enumerate(cells.tolist()):
            for j, number in enumerate(numbers.tolist()):
                expected[:, cell, number] = some.additions[place].values[:, i, j]
        assert torch.equal(added.dense(64), expected)
    assert some.norm == pytest.approx(dense.norm, rel=1e-12)
    requests = [Request(PROMPTS[0], 3, change) for change in (some, dense, None)]
    one, other, plain = (sample.image for sample in four.generate(requests))
    assert torch.equal(one, other) and not torch.equal(one, plain)
    (original,) = four.generate(requests[2:], record=True)
    assert all(torch.equal(image, one) for image in four.regenerate(requests[:2], [original] * 2))
