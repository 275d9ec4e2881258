"""Interventions: windows of steps, latents rewritten from the running activation, and the file they are saved in."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES, BLOCKS

from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.generation.interventions import Addition, Intervention, Push, window_steps
from riebench.generation.live import Rewrite
from riebench.generation.sampler import Request, Sample, Sampler, load_sampler
from sae_models.dictionary import Identity
from sae_models.itda import ITDA
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.nonnegative_itda import NonNegativeITDA
from sae_models.pca import PCA
from sae_models.saved import AUTOENCODERS, DATACLASSES
from sae_models.topk import TopKConfig, TopKSAE
from sae_models.whitened import WhitenedTopK

PROMPT = "flat poster of a standing red plain heart in the sky"
SEED, GRID, CELLS = 3, (8, 8), 64


@pytest.fixture(scope="module")
def four(sampler):
    """Four steps, in batches of two."""
    return Sampler(BACKBONES.get("tinyworld-turbo@4"), sampler.pipeline, batch_size=2)


@pytest.fixture(scope="module")
def guided():
    """tinyworld-base in two steps with guidance."""
    backbone = dataclasses.replace(BACKBONES.get("tinyworld-base@25"), name="tinyworld-base@2", steps=2)
    return load_sampler(backbone, torch.device("cpu"), 2)


def random_sae(width: int) -> TopKSAE:
    sae = TopKSAE(TopKConfig(width=width, num_features=40, k=12), seed=1).requires_grad_(False)
    sae.b_enc.data.normal_(generator=torch.Generator().manual_seed(2))
    sae.b_dec.data.normal_(generator=torch.Generator().manual_seed(3))
    return sae


def region() -> torch.Tensor:
    """Some cells, in reading order."""
    return torch.rand(CELLS, generator=torch.Generator().manual_seed(4)) < 0.4


def channels(sampler, block: str) -> int:
    return sampler.denoiser.get_submodule(BLOCKS[block]).out_channels


def push(sampler, steps: int, size: float = 1.0) -> dict[Site, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        Site(block): size * torch.randn(steps, CELLS, channels(sampler, block), generator=generator)
        for block in BLOCK_NAMES
    }


@cache
def original(sampler) -> Sample:
    return sampler.generate([Request(PROMPT, SEED)], record=True)[0]


def image(sampler, intervention: Intervention | None) -> torch.Tensor:
    if intervention is None:
        return original(sampler).image
    return sampler.generate([Request(PROMPT, SEED, intervention)])[0].image


def replayed(sampler, intervention: Intervention) -> torch.Tensor:
    return next(sampler.regenerate([Request(PROMPT, SEED, intervention)], [original(sampler)]))


@pytest.mark.parametrize(
    ("window", "steps"),
    [
        ("all", (0, 1, 2, 3)),
        ("first", (0,)),
        ("first 3", (0, 1, 2)),
        ("last", (3,)),
        ("last 2", (2, 3)),
        ("2,0", (0, 2)),
        ("1", (1,)),
    ],
)
def test_windows_name_steps(window, steps):
    assert window_steps(window, 4) == steps


@pytest.mark.parametrize("window", ["", "late", "first x", "last 5", "first 0", "0,4", "-1", "1;2", "first 1 2"])
def test_what_is_no_window_of_four_steps_is_refused(window):
    with pytest.raises(UserError, match="window"):
        window_steps(window, 4)


@pytest.mark.slow
@pytest.mark.parametrize("window", ["first", "last 2", "1,3"])
def test_outside_its_window_nothing_is_added(four, window):
    """The same as additions that are zero there, in a whole pass and in a replayed one, to the bit."""
    additions = push(four, 4)
    inside = window_steps(window, 4)
    zeroed = {site: value.clone() for site, value in additions.items()}
    for value in zeroed.values():
        value[[step for step in range(4) if step not in inside]] = 0
    windowed, spelt_out = Intervention(additions, window=window), Intervention(zeroed)
    shown = image(four, windowed)
    assert torch.equal(shown, image(four, spelt_out)) and torch.equal(shown, replayed(four, windowed))
    assert not torch.equal(shown, image(four, None)) and not torch.equal(shown, image(four, Intervention(additions)))
    assert windowed.norm == pytest.approx(spelt_out.norm, rel=1e-6) and windowed.norm < Intervention(additions).norm


def slow_replace(sampler, site: Site, sae: TopKSAE, numbers, target, cells, strength=1.0, row=0) -> torch.Tensor:
    """The image when the chosen latents of a block's update are set and the reconstruction error is kept: encode, set,
    decode, add the error, cell by cell, by a plain hook on the pipeline."""
    w_enc, b_enc, w_dec, b_dec = (p.detach() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    state = {"step": 0}

    def hook(_module, args, output):
        edited = output[0].clone()
        cell = 0
        for r in range(GRID[0]):
            for c in range(GRID[1]):
                if not cells[r * GRID[1] + c]:
                    continue
                x = output[0][row, :, r, c] - args[0][row, :, r, c]
                before = (x - b_dec) @ w_enc + b_enc
                z = torch.zeros_like(before)
                kept = before.argsort(descending=True)[: sae.config.k]
                z[kept] = before[kept].clamp_min(0)
                new = z.clone()
                new[numbers] = z[numbers] + strength * (target[state["step"], cell] - z[numbers])
                error = x - (z @ w_dec + b_dec)
                edited[row, :, r, c] = args[0][row, :, r, c] + new @ w_dec + b_dec + error
                cell += 1
        state["step"] += 1
        return (edited, *output[1:])

    handle = sampler.denoiser.get_submodule(BLOCKS[site.block]).register_forward_hook(hook)
    try:
        return Sampler(sampler.backbone, sampler.pipeline, batch_size=1).generate([Request(PROMPT, SEED)])[0].image
    finally:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_replacing_latents_keeps_the_reconstruction_error(four, strength):
    site, cells, numbers = Site("up.0.1"), region(), torch.tensor([3, 17, 30])
    sae = random_sae(channels(four, "up.0.1"))
    target = 60 * torch.rand(4, int(cells.sum()), 3, generator=torch.Generator().manual_seed(6))
    rewrite = Rewrite(sae, numbers, cells, target, strength)
    shown = image(four, Intervention(rewrites={site: (rewrite,)}))
    expected = slow_replace(four, site, sae, numbers, target, cells, strength)
    assert (expected - image(four, None)).abs().max() > 0.05
    torch.testing.assert_close(shown, expected, atol=5e-4, rtol=0)
    assert torch.equal(shown, replayed(four, Intervention(rewrites={site: (rewrite,)})))


def test_replaced_latents_are_what_they_were_set_to():
    """x + (z' - z) W_dec, encoded again without top-k competition, has the chosen latents."""
    sae = TopKSAE(TopKConfig(width=6, num_features=4, k=4)).requires_grad_(False)
    sae.W_dec.data = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0][:4]
    sae.W_enc.data = sae.W_dec.data.T.clone()  # orthonormal: latents do not disturb each other
    x = (torch.tensor([1.5, 0.2, 3.0, 0.7]) @ sae.W_dec).expand(2, 6)  # every latent is active
    cells = torch.tensor([True, False])
    target = torch.tensor([[[2.0, 0.5]]])
    added = Rewrite(sae, torch.tensor([0, 2]), cells, target).delta(x, 0)
    after = sae.encode((x + added)[0])
    before = sae.encode(x[0])
    torch.testing.assert_close(after[[0, 2]], target[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(after[[1, 3]], before[[1, 3]], atol=1e-5, rtol=0)
    assert added.shape == x.shape and (added[1] == 0).all()


def test_mean_takes_the_regions_mean_latent_from_every_cell():
    x = torch.tensor([[1.0], [5.0], [9.0]])
    rewrite = Rewrite(Identity(1), torch.tensor([0]), torch.tensor([True, True, False]), strength=2.0, mean=True)
    assert rewrite.delta(x, 0).tolist() == [[-6.0], [-6.0], [0.0]]
    own = dataclasses.replace(rewrite, mean=False)
    assert own.delta(x, 0).tolist() == [[-2.0], [-10.0], [0.0]]


@pytest.mark.slow
def test_rewriting_neurons_with_zero_clamps_them(four):
    """Neurons set to zero by a rewrite, and by a hook that writes zeros."""
    site = four.blocks.sites(["mid.0"], "neurons")[0]
    width, numbers = four.denoiser.get_submodule(BLOCKS["mid.0"]).transformer_blocks[0].ff.net[2].in_features, [1, 5, 8]
    rewrite = Rewrite(Identity(width), torch.tensor(numbers), torch.ones(CELLS, dtype=torch.bool))
    shown = image(four, Intervention(rewrites={site: (rewrite,)}))

    def hook(_module, _args, output):
        output = output.clone()
        output[..., numbers] = 0
        return output

    neurons = four.denoiser.get_submodule(BLOCKS["mid.0"]).transformer_blocks[0].ff.net[0]
    handle = neurons.register_forward_hook(hook)
    try:
        expected = four.generate([Request(PROMPT, SEED)])[0].image
    finally:
        handle.remove()
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_zero_strength_and_a_window_gone_by_give_the_original_exactly(four):
    sae, cells = random_sae(channels(four, "up.0.0")), region()
    target = torch.rand(4, int(cells.sum()), 2)
    still = Intervention(rewrites={Site("up.0.0"): (Rewrite(sae, torch.tensor([0, 1]), cells, target, 0.0),)})
    assert torch.equal(image(four, still), image(four, None))


@pytest.mark.slow
@pytest.mark.parametrize("window", ["first", "1"])
def test_rewrites_keep_to_their_window(four, window):
    sae, cells = random_sae(channels(four, "up.0.0")), region()
    target = 5 * torch.rand(4, int(cells.sum()), 2)
    rewrites = {Site("up.0.0"): (Rewrite(sae, torch.tensor([0, 1]), cells, target),)}
    steps = window_steps(window, 4)
    sites = [Site("up.0.1")]  # behind the edited block
    plain, windowed = four.generate(
        [Request(PROMPT, SEED), Request(PROMPT, SEED, Intervention(rewrites=rewrites, window=window))], sites
    )
    changed = [not torch.equal(plain.trace[sites[0]][t], windowed.trace[sites[0]][t]) for t in range(4)]
    assert changed == [t >= steps[0] for t in range(4)]
    always = image(four, Intervention(rewrites=rewrites))
    assert not torch.equal(always, windowed.image)


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "signs"), [("cond", (0, 1)), ("uncond", (1, 0)), ("both", (-1, 1))])
def test_each_row_under_guidance_reads_and_gets_its_own(guided, branch, signs):
    """At the first step, where both rows are still undisturbed, the block behind the edited one sees what a hand-made
    addition from each row's own trace makes of it."""
    site, behind = Site("down.2.1"), Site("mid.0")
    width = channels(guided, "down.2.1")
    sae, cells, numbers = random_sae(width), region(), torch.tensor([2, 9])
    (plain,) = guided.generate([Request(PROMPT, SEED)], [site])
    rewrites = {site: (Rewrite(sae, numbers, cells, None, 3.0),)}
    request = Request(PROMPT, SEED, Intervention(rewrites=rewrites, branch=branch, window="first"))
    (live,) = guided.generate([request], [behind])
    for trace, live_trace, sign in zip(
        (plain.uncond_trace, plain.trace), (live.uncond_trace, live.trace), signs, strict=True
    ):
        added = torch.zeros(2, CELLS, width)
        z = sae.encode(trace[site][0][cells])[:, numbers]
        added[0][cells] = -3.0 * z @ sae.W_dec[numbers]
        static = Intervention({site: sign * added}, branch="cond" if trace is plain.trace else "uncond")
        (by_hand,) = guided.generate([Request(PROMPT, SEED, static)], [behind])
        seen = by_hand.trace if trace is plain.trace else by_hand.uncond_trace
        torch.testing.assert_close(live_trace[behind][0], seen[behind][0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_rows_of_one_batch_are_rewritten_each_by_its_own(four):
    of_three = Sampler(four.backbone, four.pipeline, batch_size=3)
    sae, cells = random_sae(channels(four, "up.0.1")), region()
    one = Intervention(rewrites={Site("up.0.1"): (Rewrite(sae, torch.tensor([0]), cells, strength=4.0),)})
    two = Intervention(rewrites={Site("up.0.1"): (Rewrite(sae, torch.tensor([1, 2]), cells, strength=4.0),)})
    asked = [Request(PROMPT, SEED, one), Request(PROMPT, 8), Request(PROMPT, SEED, two)]
    together = [sample.image for sample in of_three.generate(asked)]
    alone = [of_three.generate([request])[0].image for request in asked]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0], together[2])


@pytest.mark.slow
def test_live_and_static_requests_come_back_in_their_order(four):
    sae, cells = random_sae(channels(four, "up.0.1")), region()
    live = Intervention(rewrites={Site("up.0.1"): (Rewrite(sae, torch.tensor([0]), cells, strength=4.0),)})
    static = Intervention(push(four, 4))
    requests = [Request(PROMPT, SEED, item) for item in (live, static, live, static, static)]
    found = list(four.regenerate(requests, [original(four)] * 5))
    expected = {id(live): image(four, live), id(static): image(four, static)}
    assert all(torch.equal(f, expected[id(r.intervention)]) for f, r in zip(found, requests, strict=True))


def test_interventions_survive_the_disk(tmp_path, four):
    cells, width = region(), channels(four, "up.0.1")
    sae, neurons = random_sae(width), Site("mid.0", "neurons", 1)
    made = Intervention(
        push(four, 4),
        {
            Site("up.0.1"): (
                Rewrite(sae, torch.tensor([1, 4]), cells, torch.rand(4, int(cells.sum()), 2), 0.5),
                Rewrite(sae, torch.tensor([7]), cells, None, 2.0, mean=True),
            ),
            neurons: (Rewrite(Identity(12), torch.tensor([3]), cells),),
        },
        features={"mid.0": 4},
        chosen={"up.0.1": {"on": [1, 4], "off": [7]}},
        branch="cond",
        window="last 2",
    )
    made.save(tmp_path / "one.safetensors")
    back = Intervention.load(tmp_path / "one.safetensors")
    for name in ("features", "chosen", "prompt", "branch", "window"):
        assert getattr(back, name) == getattr(made, name)
    assert back.additions.keys() == made.additions.keys() and back.sites == made.sites
    for site, added in made.additions.items():
        assert torch.equal(back.additions[site].values, added.values)
        assert torch.equal(back.additions[site].cells, added.cells) and back.additions[site].cells.dtype == torch.int64
    value = torch.randn(CELLS, width)
    for ours, read in zip(made.rewrites[Site("up.0.1")], back.rewrites[Site("up.0.1")], strict=True):
        assert torch.equal(ours.delta(value, 3), read.delta(value, 3)) and ours.delta(value, 3).abs().max() > 0
    assert back.rewrites[neurons][0].dictionary == Identity(12)


def test_what_is_no_intervention_is_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="is not an intervention"):
        Intervention.load(tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match="at mid.0: an addition holds NaN"):
        Intervention({Site("mid.0"): torch.full((1, 4, 2), float("nan"))})
    with pytest.raises(UserError, match=r"at mid.0/stream: .*shape \[1, 2, 2, 2\].* -> give \[steps, cells, C\]"):
        Intervention({Site("mid.0", "stream"): torch.zeros(1, 2, 2, 2)})
    cells = torch.ones(4, dtype=torch.bool)
    with pytest.raises(UserError, match="NaN"):
        Rewrite(Identity(3), torch.tensor([0]), cells, torch.full((1, 4, 1), float("inf")))
    with pytest.raises(UserError, match=r"give \[steps, 4, 1\]"):
        Rewrite(Identity(3), torch.tensor([0]), cells, torch.zeros(1, 3, 1))


def test_a_restricted_intervention_keeps_what_is_said_of_its_blocks(four):
    cells = region()
    made = Intervention(
        push(four, 4),
        {Site("up.0.1"): (Rewrite(Identity(3), torch.tensor([0]), cells),)},
        features={"up.0.1": 2, "mid.0": 1},
        chosen={"up.0.1": {"on": [0], "off": []}, "mid.0/neurons.1": {"on": [4], "off": []}},
        branch="cond",
        window="first",
    )
    only = made.restricted(("mid.0",))
    assert only.blocks == ("mid.0",) and not only.rewrites and only.features == {"mid.0": 1}
    assert list(only.chosen) == ["mid.0/neurons.1"] and (only.branch, only.window) == ("cond", "first")
    assert only.norm > 0 and made.norm != made.norm  # what is read while generating has no norm beforehand


# ---------------------------------------------------------------- additions


def test_cells_without_anything_are_dropped_and_come_back_as_zeros():
    dense = torch.zeros(3, 6, 2)
    dense[0, 4, 1], dense[2, 1, 0] = -2.0, 5.0  # at one step each
    added = Addition.of(dense)
    assert added.cells.tolist() == [1, 4] and added.values.shape == (3, 2, 2)
    assert torch.equal(added.values[:, 0], dense[:, 1]) and torch.equal(added.values[:, 1], dense[:, 4])
    assert torch.equal(added.dense(6), dense)
    assert added.dense(9).shape == (3, 9, 2) and torch.equal(added.dense(9)[:, :6], dense)
    nothing = Addition.of(torch.zeros(3, 6, 2))
    assert len(nothing.cells) == 0 and torch.equal(nothing.dense(6), torch.zeros(3, 6, 2))
    assert torch.equal(added.scaled(-0.5).dense(6), -0.5 * dense) and torch.equal(added.dense(6), dense)
    unordered = Addition(torch.tensor([4, 1]), added.values.flip(1))
    assert torch.equal(unordered.dense(6), dense)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_additions_that_are_not_finite_or_of_other_shapes_are_refused(bad):
    with pytest.raises(UserError, match="an addition holds NaN or infinite values -> check"):
        Addition(torch.tensor([0, 1]), torch.full((1, 2, 3), bad))
    with pytest.raises(UserError, match="NaN or infinite"):
        Addition.of(torch.full((1, 2, 3), bad))
    with pytest.raises(UserError, match=r"shape \[1, 2, 3\] is for \[3\] cells -> give values \[steps, n, C\]"):
        Addition(torch.tensor([0, 1, 2]), torch.zeros(1, 2, 3))
    with pytest.raises(UserError, match=r"shape \[2, 3\]"):
        Addition(torch.tensor([0, 1]), torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"shape \[2, 3\] -> give \[steps, cells, C\]"):
        Addition.of(torch.zeros(2, 3))
    for numbers, width in (([0, 1], 9), ([0, 1, 9], 9), ([-1, 0, 1], 9), ([0, 1, 2], 0)):
        with pytest.raises(UserError, match=r"names \d of \d channels -> give values \[steps, n, m\]"):
            Addition(torch.tensor([0]), torch.zeros(2, 1, 3), torch.tensor(numbers), width)


@pytest.mark.slow
def test_an_addition_to_a_few_cells_is_the_dense_one_to_the_bit(four):
    cells = region().nonzero().flatten()
    values = {site: dense[:, cells] for site, dense in push(four, 4).items()}
    few = Intervention({site: Addition(cells, value) for site, value in values.items()})
    turned = Intervention({site: Addition(cells.flip(0), value.flip(1)) for site, value in values.items()})
    by_zeros = Intervention({site: Addition(cells, value).dense(CELLS) for site, value in values.items()})
    every = torch.arange(CELLS)  # also those cells where a zero is added
    dense = Intervention({site: Addition(every, Addition(cells, v).dense(CELLS)) for site, v in values.items()})
    expected = image(four, few)
    assert not torch.equal(expected, image(four, None))
    for other in (turned, by_zeros, dense):
        assert torch.equal(image(four, other), expected)
        assert torch.equal(replayed(four, other), expected)
    assert torch.equal(replayed(four, few), expected) and few.norm == pytest.approx(dense.norm, rel=1e-12)
    assert all(added.cells.tolist() == cells.tolist() for added in by_zeros.additions.values())


# ---------------------------------------------------------------- features by number


def dictionaries(sampler) -> dict[Site, object]:
    """One of each kind of site, with biases that must not be added."""
    neurons = sampler.blocks.sites(["mid.0"], "neurons")[0]
    return {
        Site("up.0.1"): random_sae(channels(sampler, "up.0.1")),
        Site("up.0.0", "stream"): PCA.fit(torch.randn(50, channels(sampler, "up.0.0")) + 3, 9),
        neurons: Identity(sampler.blocks.width(neurons)),
    }


@pytest.mark.slow
def test_features_of_ones_choice_are_sums_of_decoder_rows(four):
    known, cells = dictionaries(four), region()
    update, stream, neurons = known
    others = torch.zeros(CELLS, dtype=torch.bool)
    others[[0, 9, 63]] = True
    where = {"up.0.1": cells, "up.0.0": others.reshape(GRID), "mid.0": cells}
    features = {
        update: {3: 20.0, 17: Push(-12.5, "first"), 30: Push(7.5, "1,3")},
        "up.0.0/stream": {8: Push(-30.0)},
        neurons: {5: 35.0},
    }
    made = Intervention.from_features(features, where, known, 4, branch="cond")
    w_dec, components = known[update].W_dec, known[stream].components_fd
    by_hand = {update: torch.zeros(4, CELLS, w_dec.shape[1]), stream: torch.zeros(4, CELLS, components.shape[1])}
    by_hand[neurons] = torch.zeros(4, CELLS, known[neurons].width)
    for step in range(4):
        for cell in range(CELLS):
            if cells[cell]:
                by_hand[update][step, cell] = 20.0 * w_dec[3]
                by_hand[update][step, cell] += -12.5 * w_dec[17] if step == 0 else 0
                by_hand[update][step, cell] += 7.5 * w_dec[30] if step in (1, 3) else 0
                by_hand[neurons][step, cell, 5] = 35.0
            if cell in (0, 9, 63):
                by_hand[stream][step, cell] = -30.0 * components[8]
    assert made.sites == (update, stream, neurons) and made.branch == "cond" and made.window == "all"
    for site, dense in by_hand.items():
        torch.testing.assert_close(made.additions[site].dense(CELLS), dense, atol=1e-5, rtol=1e-5)
        region_of = cells if site != stream else others
        assert made.additions[site].cells.tolist() == region_of.nonzero().flatten().tolist()
    assert made.features == {"up.0.1": 3, "up.0.0": 1, "mid.0": 1}
    assert made.chosen == {
        "up.0.1": {"on": [3, 30], "off": [17]},
        "up.0.0/stream": {"on": [], "off": [8]},
        neurons.name: {"on": [5], "off": []},
    }
    expected, shown = image(four, Intervention(by_hand, branch="cond")), image(four, made)
    assert (expected - image(four, None)).abs().max() > 0.05
    torch.testing.assert_close(shown, expected, atol=5e-4, rtol=0)
    assert torch.equal(replayed(four, made), shown)
    one = Intervention.from_features({update: {3: 20.0}}, where, known, 4)
    alone = Intervention(
        {update: Addition(cells.nonzero().flatten(), (20.0 * w_dec[3]).expand(4, int(cells.sum()), -1))}
    )
    torch.testing.assert_close(one.additions[update].values, alone.additions[update].values)
    assert torch.equal(image(four, Intervention(one.additions)), image(four, one))


def test_features_that_cannot_be_added_are_refused(four):
    known, where = dictionaries(four), {"up.0.1": region(), "mid.0": region()}
    update = Site("up.0.1")
    for number in (-1, 40):
        with pytest.raises(UserError, match=f"up.0.1 has no feature {number} -> use numbers from 0 to 39"):
            Intervention.from_features({update: {number: 1.0}}, where, known, 4)
    with pytest.raises(UserError, match="no dictionary, or no cell, for up.0.1/stream -> "):
        Intervention.from_features({Site("up.0.1", "stream"): {1: 1.0}}, where, known, 4)
    with pytest.raises(UserError, match="no dictionary, or no cell, for up.0.0/stream"):
        Intervention.from_features({"up.0.0/stream": {1: 1.0}}, where, known, 4)
    with pytest.raises(UserError, match="no sites of kind 'strean'; did you mean 'stream'"):
        Intervention.from_features({"up.0.0/strean": {1: 1.0}}, where, known, 4)
    with pytest.raises(UserError, match="NaN or infinite"):
        Intervention.from_features({update: {1: float("nan")}}, where, known, 4)
    with pytest.raises(UserError, match="window '4' goes beyond the 4 steps"):
        Intervention.from_features({update: {1: Push(1.0, "4")}}, where, known, 4)
    with pytest.raises(UserError, match="branch 'left'"):
        Intervention.from_features({update: {1: 1.0}}, where, known, 4, branch="left")


# ---------------------------------------------------------------- the file, with every kind of dictionary


def every_dictionary(width: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(7)
    jump = JumpReLUSAE(JumpReLUConfig(width, 30), seed=2).requires_grad_(False)
    jump.threshold.data.uniform_(0, 0.5, generator=generator)
    jump.b_dec.data.normal_(generator=generator)
    atoms = torch.nn.functional.normalize(torch.randn(25, width, generator=generator), dim=1)
    return {
        "topk": random_sae(width),
        "jumprelu": jump,
        "pca": PCA.fit(torch.randn(100, width, generator=generator) + 2, 11),
        "itda": ITDA(atoms, 6),
        "nonnegative-itda": NonNegativeITDA(atoms, torch.randn(width, generator=generator), torch.ones(width) * 2, 6),
        "whitened-topk": WhitenedTopK(
            torch.randn(width, width, generator=generator) / width**0.5, torch.zeros(width),
            torch.randn(width, 30, generator=generator), torch.zeros(30), torch.randn(30, width, generator=generator),
            torch.randn(width, generator=generator), 4, 10.0,
        ),
        "identity": Identity(width),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "pca", "itda", "nonnegative-itda", "whitened-topk", "identity"])
@pytest.mark.parametrize("mean", [False, True])
def test_rewrites_with_every_kind_of_dictionary_survive_the_disk(tmp_path, four, kind, mean):
    width, cells = channels(four, "up.0.1"), region()
    dictionary, numbers = every_dictionary(width)[kind], torch.tensor([2, 7])
    assert set(every_dictionary(width)) == {*AUTOENCODERS, *DATACLASSES}
    target = 3 * torch.rand(4, int(cells.sum()), 2, generator=torch.Generator().manual_seed(8))
    rewrites = (
        Rewrite(dictionary, numbers, cells, target, 0.7, mean),
        Rewrite(dictionary, numbers, ~cells, None, 1.5, mean),
    )
    sites = (Site("up.0.1"), Site("up.0.1", "stream"))
    made = Intervention(rewrites={sites[0]: rewrites, sites[1]: rewrites[:1]}, branch="cond", window="0,2")
    made.save(tmp_path / "one.safetensors")
    back = Intervention.load(tmp_path / "one.safetensors")
    assert back.sites == made.sites == sites and (back.branch, back.window) == ("cond", "0,2")
    value = torch.randn(CELLS, width, generator=torch.Generator().manual_seed(9))
    for site in sites:
        assert len(back.rewrites[site]) == len(made.rewrites[site])
        for ours, read in zip(made.rewrites[site], back.rewrites[site], strict=True):
            assert type(read.dictionary) is type(dictionary) and read.mean is mean
            for step in range(4):
                delta = ours.delta(value, step)
                assert delta.abs().max() > 0 and torch.equal(delta, read.delta(value, step))
    assert torch.equal(image(four, back), image(four, made))


def test_a_dictionary_of_ones_own_kind_cannot_be_saved(tmp_path):
    class Own(Identity):
        pass

    made = Intervention(rewrites={Site("mid.0"): (Rewrite(Own(3), torch.tensor([0]), torch.ones(4).bool()),)})
    with pytest.raises(UserError, match="a dictionary of kind Own cannot be written -> use one of the kinds topk"):
        made.save(tmp_path / "one.safetensors")
    assert not list(tmp_path.iterdir())
