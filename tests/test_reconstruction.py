"""What images lose by reconstruction, against updates replaced by hooks put on by hand."""

from __future__ import annotations

from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from riebench.backbones import BLOCKS, Backbone
from riebench.errors import UserError
from riebench.lens import Site
from riebench.metrics.models import ScoringModels
from riebench.prompts import world_prompts
from riebench.reconstruction import reconstruction_effect, summarise
from riebench.rewriting import Reconstruct
from riebench.sampling import Request, Sampler
from sae_models.dictionary import Identity
from sae_models.topk import TopKConfig, TopKSAE

GUIDED = Backbone("guided@3", "tinyworld/turbo", steps=3, guidance=3.0, grounder="tinyworld", judges="tinyworld")
PROMPTS, SEEDS = world_prompts(3, 1, "held_out"), [70, 7, 700]


@pytest.fixture(scope="module")
def models() -> ScoringModels:
    return ScoringModels("tinyworld", "cpu")


def untrained(seed: int) -> TopKSAE:
    return TopKSAE(TopKConfig(96, 192, 6), seed=seed).requires_grad_(False)


@contextmanager
def replaced(unet, blocks, function):
    """While open, each block's output is its input + function(update, block), for all rows of the batch."""

    def hook(block):
        def on(_module, args, kwargs, output):
            hidden = args[0] if args else kwargs["hidden_states"]
            changed = hidden + function(output[0] - hidden, block)
            return (changed, *output[1:])

        return on

    handles = [
        unet.get_submodule(BLOCKS[block]).register_forward_hook(hook(block), with_kwargs=True) for block in blocks
    ]
    yield
    for handle in handles:
        handle.remove()


def by_cells(sae: TopKSAE, update_bchw: torch.Tensor) -> torch.Tensor:
    """decode(encode(x)), one cell of one row at a time."""
    found = torch.empty_like(update_bchw)
    for b, _, y, x in torch.cartesian_prod(*map(torch.arange, (len(update_bchw), 1, *update_bchw.shape[2:]))).tolist():
        found[b, :, y, x] = sae(update_bchw[b, :, y, x][None])[0]
    return found


def slow_effect(sampler: Sampler, saes: dict[str, TopKSAE], models: ScoringModels) -> dict[tuple, list[list[float]]]:
    """(place, replacement) -> [LPIPS, CLIP cosine] of each prompt, all in one batch."""
    requests = [Request(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    samples = sampler.generate(requests, [Site(block) for block in saes])
    means = {
        block: torch.cat(
            [t[Site(block)].permute(0, 2, 3, 1).flatten(0, 2) for s in samples for t in (s.trace, s.uncond_trace) if t]
        ).mean(dim=0)[:, None, None]
        for block in saes
    }
    functions = {
        "reconstruction": lambda update, block: by_cells(saes[block], update),
        "zero": lambda update, block: 0 * update,
        "mean": lambda update, block: means[block].expand_as(update),
    }
    found = {}
    for place, blocks in {**{block: [block] for block in saes}, "all": list(saes)}.items():
        for name, function in functions.items():
            with torch.no_grad(), replaced(sampler.unet, blocks, function):
                images = [sample.image for sample in sampler.generate(requests)]
            scores = []
            for image, sample in zip(images, samples, strict=True):
                pair = [(each.clamp(0, 1) * 255).round()[None] / 255 for each in (image, sample.image)]
                a, b = (models.clip.images(each)[0] for each in pair)
                scores.append([float(models.lpips.distance(*pair)), float(a @ b)])
            found[place, name] = scores
    return found


@pytest.mark.parametrize("guided", [False, True])
def test_images_and_scores_are_those_of_hooks_put_on_by_hand(guided, sampler, models):
    """Under guidance both rows of every step have their own reconstruction, with the same sign. By cells the sums round
    otherwise, and now and then another feature is among the k largest."""
    backbone = GUIDED if guided else sampler.backbone
    here = Sampler(backbone, sampler.pipeline, batch_size=2)  # three prompts: a whole batch and a part of one
    saes = {"mid.0": untrained(1), "up.0.1": untrained(2)}
    effect = reconstruction_effect(here, saes, PROMPTS, SEEDS, models)
    wanted = slow_effect(Sampler(backbone, sampler.pipeline, batch_size=2), saes, models)
    assert len(effect) == 3 * 3 * 3
    for (place, name), scores in wanted.items():
        rows = effect[(effect["block"] == place) & (effect["replacement"] == name)]
        assert rows["prompt"].tolist() == PROMPTS and rows["seed"].tolist() == SEEDS
        tolerance = 2e-3 if name == "reconstruction" else 1e-4
        for (_, row), (lpips, clip) in zip(rows.iterrows(), scores, strict=True):
            assert (row["lpips"], row["clip_image"]) == pytest.approx((lpips, clip), abs=tolerance), (place, name)
    assert effect.groupby("replacement")["lpips"].mean().min() > 0.01


def test_hooks_are_gone_and_the_images_undisturbed_afterwards(sampler, models):
    before = sampler.generate([Request(PROMPTS[0], 5)])[0].image
    reconstruction_effect(sampler, {"mid.0": untrained(1)}, PROMPTS[:1], [5], models)
    assert torch.equal(sampler.generate([Request(PROMPTS[0], 5)])[0].image, before)


def test_a_dictionary_that_loses_nothing_moves_no_image(sampler, models):
    effect = reconstruction_effect(sampler, {"up.0.0": Identity(96)}, PROMPTS, SEEDS, models)
    assert set(effect["block"]) == {"up.0.0"}, "one block alone is not said twice"
    means = summarise(effect)
    exact = means.loc[("up.0.0", "reconstruction")]
    assert exact["lpips"] == pytest.approx(0, abs=1e-3) and exact["clip_image"] == pytest.approx(1, abs=1e-3)
    assert exact["recovered"] > 0.95 and means.loc[("up.0.0", "zero"), "recovered"] == 0
    assert means.loc[("up.0.0", "zero"), "lpips"] > 0.01


def test_the_share_recovered_worked_by_hand():
    """Means of LPIPS: reconstruction 0.1, zero 0.4, mean 0.5 in one block; in the other zero moves nothing."""
    effect = pd.DataFrame(
        [
            (block, name, lpips, 0.5)
            for block, names in (
                ("up", {"reconstruction": (0.0, 0.2), "zero": (0.3, 0.5), "mean": (0.5, 0.5)}),
                ("mid", {"reconstruction": (0.0, 0.0), "zero": (0.0, 0.0), "mean": (0.1, 0.1)}),
            )
            for name, values in names.items()
            for lpips in values
        ],
        columns=["block", "replacement", "lpips", "clip_image"],
    )
    found = summarise(effect)
    assert list(found.index) == [(b, n) for b in ("up", "mid") for n in ("reconstruction", "zero", "mean")]
    assert found.loc["up", "lpips"].tolist() == pytest.approx([0.1, 0.4, 0.5])
    assert found.loc["up", "recovered"].tolist() == pytest.approx([0.75, 0, -0.25])
    assert found.loc["mid", "recovered"].isna().all()


def test_reconstruct_adds_what_takes_each_cell_to_its_reconstruction():
    sae, value = untrained(3), torch.randn(2, 96, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(value + Reconstruct(sae).delta(value, 0), by_cells(sae, value), atol=1e-5, rtol=0)
    torch.testing.assert_close(Reconstruct(sae).delta(value[1], 7), Reconstruct(sae).delta(value, 0)[1])
    assert Reconstruct(sae).delta(value.bfloat16(), 0).dtype == torch.bfloat16


def test_what_cannot_be_evaluated_is_told(sampler, models):
    with pytest.raises(UserError, match="mid.0 codes 95 values, the block's update has 96"):
        reconstruction_effect(sampler, {"mid.0": Identity(95)}, PROMPTS, SEEDS, models)
    for dictionaries, prompts, seeds in (({}, PROMPTS, SEEDS), ({"mid.0": Identity(96)}, [], []),
                                         ({"mid.0": Identity(96)}, PROMPTS, SEEDS[:2])):  # fmt: skip
        with pytest.raises(UserError, match="cannot be evaluated"):
            reconstruction_effect(sampler, dictionaries, prompts, seeds, models)
