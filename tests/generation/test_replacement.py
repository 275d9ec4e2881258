"""Updates replaced in some rows and at some steps, against what the sampler traces there."""

from __future__ import annotations

import pytest
import torch

from riebench.backbones.family import Site
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.dictionaries.prompts import world_prompts
from riebench.generation.replacement import Scope, recorded_outputs, replaced
from riebench.generation.sampler import Request, Sampler
from sae_models.pca import PCA
from sae_models.topk import TopKConfig, TopKSAE

GUIDED = Backbone("guided@4", "tinyworld/turbo", steps=4, guidance=3.0, grounder="tinyworld", judges="tinyworld")
SITES = [Site("mid.0"), Site("up.0.1")]
REQUESTS = [Request(prompt, 70 + i) for i, prompt in enumerate(world_prompts(3, 1, "held_out"))]
ZERO = {"mid.0": PCA(torch.zeros(0, 96), torch.zeros(96))}


@pytest.fixture(scope="module")
def guided(sampler) -> Sampler:
    return Sampler(GUIDED, sampler.pipeline, batch_size=3)


@pytest.fixture(scope="module")
def undisturbed(guided):
    with recorded_outputs(guided.denoiser) as outputs:
        samples = guided.generate(REQUESTS, SITES)
    return samples, outputs


def branches(sample, site: Site) -> dict[str, torch.Tensor]:
    return {"cond": sample.trace[site], "uncond": sample.uncond_trace[site]}


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_only_the_rows_of_the_branch_are_replaced(branch, guided, undisturbed):
    """What the sampler traces is what the U-Net goes on with. At the first step the rows do not know of one another."""
    with replaced(guided, ZERO, Scope(branch)):
        samples = guided.generate(REQUESTS, SITES)
    for before, after in zip(undisturbed[0], samples, strict=True):
        assert not torch.equal(before.image, after.image)
        for name in ("cond", "uncond"):
            (mid, up), (mid_before, up_before) = (
                [branches(sample, site)[name] for site in SITES] for sample in (after, before)
            )
            if branch in (name, "both"):
                torch.testing.assert_close(mid, torch.zeros_like(mid), atol=1e-5, rtol=0)
                assert not torch.equal(up[0], up_before[0])
            else:
                assert torch.equal(mid[0], mid_before[0]) and torch.equal(up[0], up_before[0])
                assert all(value.abs().mean() > 0.1 for value in mid), "nor at a later step"


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("known", [False, True])
def test_up_to_a_single_step_the_generation_is_the_undisturbed_one(step, known, guided, undisturbed):
    samples, outputs = undisturbed
    with replaced(guided, ZERO, Scope(window=str(step)), outputs if known else ()):
        changed = guided.generate(REQUESTS)
    with replaced(guided, ZERO, Scope(window=str(step))):
        traced = guided.generate(REQUESTS, SITES)
    for before, after, image in zip(samples, traced, changed, strict=True):
        assert torch.equal(after.image, image.image), "steps that are known are as if they were computed"
        assert not torch.equal(before.image, after.image)
        for site in SITES:
            for name, trace in branches(before, site).items():
                there = branches(after, site)[name]
                assert torch.equal(trace[:step], there[:step])
                assert not any(torch.equal(trace[t], there[t]) for t in range(step, GUIDED.steps))
                if site == SITES[0]:
                    zero = [t for t in range(GUIDED.steps) if there[t].abs().max() < 1e-5]
                    assert zero == [step], "at the other steps the update is the U-Net's own"


@pytest.mark.slow
def test_a_row_gets_its_own_reconstruction(guided):
    """The block's output moves by decode(encode(x)) - x of the row's own update, seen by a hook behind the block."""
    sae = TopKSAE(TopKConfig(96, 192, 6), seed=1).requires_grad_(False)
    block, outputs = guided.denoiser.mid_block.attentions[0], []
    for open_ in (False, True):
        with replaced(guided, {"mid.0": sae} if open_ else {}, Scope("both", "0")):
            handle = block.register_forward_hook(lambda _m, args, out: outputs.append((args[0], out[0])))
            guided.generate(REQUESTS, decode=False)
            handle.remove()
    (hidden, before), (_, after) = outputs[0], outputs[GUIDED.steps]
    rows = (before - hidden).permute(0, 2, 3, 1)
    torch.testing.assert_close(after - hidden, sae(rows).permute(0, 3, 1, 2), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_known_outputs_of_another_batch_are_not_taken(guided, undisturbed):
    with replaced(guided, ZERO, Scope(window="3"), [output[:2] for output in undisturbed[1]]):
        samples = guided.generate(REQUESTS)
    with replaced(guided, ZERO, Scope(window="3")):
        wanted = guided.generate(REQUESTS)
    assert all(torch.equal(a.image, b.image) for a, b in zip(samples, wanted, strict=True))


def test_nothing_stays_behind_an_exception(guided, undisturbed):
    with pytest.raises(ZeroDivisionError), replaced(guided, ZERO, Scope(window="2"), undisturbed[1]):
        raise ZeroDivisionError
    assert "forward" not in vars(guided.denoiser)
    again = guided.generate(REQUESTS)
    assert all(torch.equal(a.image, b.image) for a, b in zip(again, undisturbed[0], strict=True))


def test_a_scope_that_is_not_there_is_told(guided, sampler):
    assert Scope().steps(GUIDED) == (0, 1, 2, 3) and Scope("uncond", "3").steps(GUIDED) == (3,)
    with pytest.raises(UserError, match="did you mean 'uncond'"):
        Scope("unconde").steps(GUIDED)
    with pytest.raises(UserError, match="use steps 0 to 3"):
        Scope(window="4").steps(GUIDED)
    with pytest.raises(UserError, match="without guidance"), replaced(sampler, ZERO, Scope("uncond")):
        pass
