"""What images lose by reconstruction, against updates replaced by hooks put on by hand."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import torch
from sdxl_blocks import BLOCKS

from riebench.backbones.family import Site
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.dictionaries.prompts import world_prompts
from riebench.dictionaries.reconstruction import CONDITION, reconstruction_effect, summarise
from riebench.generation.live import Reconstruct
from riebench.generation.replacement import Scope
from riebench.generation.sampler import Request, Sampler
from riebench.metrics.models import ScoringModels
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
        block: torch.cat([t[Site(block)].flatten(0, 1) for s in samples for t in (s.trace, s.uncond_trace) if t]).mean(
            dim=0
        )[:, None, None]
        for block in saes
    }
    functions = {
        "reconstruction": lambda update, block: by_cells(saes[block], update),
        "zero": lambda update, block: 0 * update,
        "mean": lambda update, block: means[block].expand_as(update),
    }
    found = {}
    for place, blocks in {**{block: [block] for block in saes}, "mid.0+up.0.1": list(saes)}.items():
        for name, function in functions.items():
            with torch.no_grad(), replaced(sampler.denoiser, blocks, function):
                images = [sample.image for sample in sampler.generate(requests)]
            scores = []
            for image, sample in zip(images, samples, strict=True):
                pair = [(each.clamp(0, 1) * 255).round()[None] / 255 for each in (image, sample.image)]
                a, b = (models["clip"].images(each)[0] for each in pair)
                scores.append([float(models["lpips"].distance(*pair)), float(a @ b)])
            found[place, name] = scores
    return found


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
def test_images_and_scores_are_those_of_hooks_put_on_by_hand(guided, sampler, models):
    """Under guidance both rows of every step have their own reconstruction, with the same sign. By cells the sums round
    otherwise, and now and then another feature is among the k largest."""
    backbone = replace(GUIDED, name="guided@2", steps=2) if guided else sampler.backbone
    here = Sampler(backbone, sampler.pipeline, batch_size=2)  # three prompts: a whole batch and a part of one
    saes = {"up.0.1": untrained(2), "mid.0": untrained(1)}
    effect = reconstruction_effect(here, {"a": saes}, PROMPTS, SEEDS, models)
    wanted = slow_effect(Sampler(backbone, sampler.pipeline, batch_size=2), saes, models)
    assert len(effect) == 3 * 3 * 3
    assert set(effect["branch"]) == {"both"} and set(effect["window"]) == {"all"}
    for (place, name), scores in wanted.items():
        rows = effect[(effect["blocks"] == place) & (effect["replacement"] == name)]
        assert set(rows["dictionary"]) == {"a" if name == "reconstruction" else ""}
        assert rows["prompt"].tolist() == PROMPTS and rows["seed"].tolist() == SEEDS
        tolerance = 2e-3 if name == "reconstruction" else 1e-4
        for (_, row), (lpips, clip) in zip(rows.iterrows(), scores, strict=True):
            assert (row["lpips"], row["clip_image"]) == pytest.approx((lpips, clip), abs=tolerance), (place, name)
    assert effect.groupby("replacement")["lpips"].mean().min() > 0.01


@pytest.mark.slow
def test_hooks_are_gone_and_the_images_undisturbed_afterwards(sampler, models):
    before = sampler.generate([Request(PROMPTS[0], 5)])[0].image
    scopes = [Scope(), Scope(window="0")]
    reconstruction_effect(sampler, {"a": {"mid.0": untrained(1)}}, PROMPTS[:1], [5], models, scopes)
    assert torch.equal(sampler.generate([Request(PROMPTS[0], 5)])[0].image, before)


@pytest.mark.slow
def test_a_dictionary_that_loses_nothing_moves_no_image(sampler, models):
    """Exactly: what is added is zero. In two batches, each with its own recorded steps before the window."""
    guided = Sampler(GUIDED, sampler.pipeline, batch_size=1)
    dictionaries = {"exact": {"up.0.0": Identity(96)}, "poor": {"up.0.0": untrained(1)}}
    scopes = [Scope(), Scope("uncond"), Scope(window="1")]
    effect = reconstruction_effect(guided, dictionaries, PROMPTS[:2], SEEDS[:2], models, scopes)
    assert set(effect["blocks"]) == {"up.0.0"}, "one block alone is not said twice"
    means = summarise(effect).set_index(["dictionary", "replacement", "branch", "window"])
    assert len(means) == 3 * 4, "zero and mean are made once for both"
    for scope in scopes:
        where = scope.branch, scope.window
        exact = means.loc[("exact", "reconstruction", *where)]
        assert (exact["lpips"], exact["recovered"]) == (0, 1) and exact["clip_image"] == pytest.approx(1)
        assert means.loc[("poor", "reconstruction", *where), "lpips"] > 0
        assert means.loc[("", "zero", *where), "recovered"] == 0


@pytest.mark.slow
def test_a_scope_alone_finds_what_it_finds_among_others(sampler, models):
    """Steps that are taken from the undisturbed generation are as if they were computed."""
    guided = Sampler(GUIDED, sampler.pipeline, batch_size=1)
    dictionaries = {"a": {"up.0.0": untrained(1), "up.0.1": untrained(2)}}
    scopes = [Scope("uncond"), Scope(), Scope("cond", "2"), Scope(window="0,2")]
    asked = dictionaries, PROMPTS[2:], SEEDS[2:], models
    together = reconstruction_effect(guided, *asked, scopes)
    for scope in scopes:
        alone = reconstruction_effect(guided, *asked, [scope])
        rows = together[(together["branch"] == scope.branch) & (together["window"] == scope.window)]
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone)
    means = summarise(together).query("replacement == 'zero'").groupby(["branch", "window"])["lpips"].mean()
    assert means["both", "all"] > max(means["both", "0,2"], means["cond", "2"])
    assert min(means["both", "0,2"], means["cond", "2"]) > 0


def test_the_share_recovered_worked_by_hand():
    """Means of LPIPS of three scopes of a block: zero 0.4, then 0.2, then 0, where nothing is to be recovered."""
    scopes = {("both", "all"): 1.0, ("both", "3"): 0.5, ("cond", "all"): 0.0}
    effect = pd.DataFrame(
        [
            ("up", dictionary, replacement, branch, window, scale * lpips, 0.5)
            for (branch, window), scale in scopes.items()
            for dictionary, replacement, values in (
                ("good", "reconstruction", (0.0, 0.2)),
                ("bad", "reconstruction", (0.4, 0.8)),
                ("", "zero", (0.3, 0.5)),
                ("", "mean", (0.5, 0.5)),
            )
            for lpips in values
        ],
        columns=[*CONDITION, "lpips", "clip_image"],
    )
    found = summarise(effect)
    assert found["dictionary"].tolist() == ["good", "bad", "", ""] * 3
    assert found["lpips"].tolist() == pytest.approx([0.1, 0.6, 0.4, 0.5, 0.05, 0.3, 0.2, 0.25, 0, 0, 0, 0])
    assert found["recovered"].tolist()[:8] == pytest.approx([0.75, -0.5, 0, -0.25] * 2)
    assert found["recovered"][8:].isna().all()


def test_reconstruct_adds_what_takes_each_cell_to_its_reconstruction():
    sae, update = untrained(3), torch.randn(2, 96, 3, 4, generator=torch.Generator().manual_seed(0))
    value, wanted = (each.flatten(2).mT for each in (update, by_cells(sae, update)))
    torch.testing.assert_close(value + Reconstruct(sae).delta(value, 0), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(Reconstruct(sae).delta(value[1], 7), Reconstruct(sae).delta(value, 0)[1])
    assert Reconstruct(sae).delta(value.bfloat16(), 0).dtype == torch.bfloat16


def test_what_cannot_be_evaluated_is_told(sampler, models):
    exact = {"a": {"mid.0": Identity(96)}}
    with pytest.raises(UserError, match="a of mid.0 codes 95 values, the block's update has 96"):
        reconstruction_effect(sampler, {"a": {"mid.0": Identity(95)}}, PROMPTS, SEEDS, models)
    for dictionaries, prompts, seeds in (({}, PROMPTS, SEEDS), ({**exact, "b": {}}, PROMPTS, SEEDS), (exact, [], []),
                                         (exact, PROMPTS, SEEDS[:2])):  # fmt: skip
        with pytest.raises(UserError, match="cannot be evaluated.*give at least"):
            reconstruction_effect(sampler, dictionaries, prompts, seeds, models)
    for scope, message in (
        (Scope("con"), "did you mean 'cond'.*use one of cond, uncond, both"),
        (Scope("uncond"), "without guidance.*use branch 'cond' or 'both'"),
        (Scope(window="1"), "beyond the 1 steps.*use steps 0 to 0"),
        (Scope(window="third"), "no window of steps"),
    ):
        with pytest.raises(UserError, match=message):
            reconstruction_effect(sampler, exact, PROMPTS, SEEDS, models, [scope])
