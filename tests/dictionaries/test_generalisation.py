"""How dictionaries carry over, against figures computed slowly from the sampler's own traces."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.dictionaries.generalisation import FIRST_SEED, evaluate_steps, find_entries, generalise
from riebench.dictionaries.prompts import world_prompts
from riebench.generation.sampler import Request, Sampler
from riebench.tinyworld.captions import parse
from sae_models import checkpoint, index
from sae_models.evaluation import evaluate
from sae_models.topk import TopKConfig, TopKSAE

GUIDED = Backbone("guided@3", "tinyworld/turbo", steps=3, guidance=3.0, grounder="tinyworld", judges="tinyworld")
TURBO = "tinyworld-turbo@1"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An index of three untrained dictionaries, listed out of order, and one of another backbone."""
    root = tmp_path_factory.mktemp("dictionaries")
    for backbone, block, k, expansion in (
        (TURBO, "up.0.1", 8, 1), (TURBO, "mid.0", 8, 2), (TURBO, "mid.0", 4, 1), ("another@1", "mid.0", 4, 1),
    ):  # fmt: skip
        sae = TopKSAE(TopKConfig(96, 96 * expansion, k), seed=k)
        name = f"topk-k{k}-x{expansion}"
        folder = f"{backbone}/{block}/{name}"
        sha256 = checkpoint.save(root / folder, sae, {})
        index.register(index.Entry(name, backbone, block, "topk", k, 96 * expansion, 96, folder, sha256), root=root)
    return root


def in_maps(value_tnc: torch.Tensor) -> torch.Tensor:
    """`[steps, C, 8, 8]`."""
    return value_tnc.transpose(1, 2).unflatten(2, (8, 8))


def slow_figures(traces: list[np.ndarray], sae: TopKSAE) -> dict[str, list[float]]:
    """traces: `[steps, C, h, w]` a prompt. Formulas as the page states them, a cell and a channel at a time."""
    steps = len(traces[0])
    rows = [[trace[t, :, y, x] for trace in traces for y in range(8) for x in range(8)] for t in range(steps)]
    latents, pooled, mean, active = [], [], [], []
    for x in (np.array(cells, dtype=np.float64) for cells in rows):
        z = sae.encode(torch.from_numpy(x)).double().numpy()
        r = x - (z @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy())
        pooled.append(1 - (r**2).sum() / ((x - x.mean(0)) ** 2).sum())
        mean.append(np.mean([1 - np.var(r[:, c]) / np.var(x[:, c]) for c in range(x.shape[1])]))
        latents.append(z)
        active.append([set(np.flatnonzero(cell)) for cell in z])
    cosine = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(now, then, strict=True)])
        for now, then in zip(latents[:-1], latents[1:], strict=True)
    ]
    overlap = [
        np.mean([len(a & b) / len(a | b) for a, b in zip(now, then, strict=True)])
        for now, then in zip(active[:-1], active[1:], strict=True)
    ]
    return {
        "explained_variance_pooled": pooled,
        "explained_variance_mean": mean,
        "feature_cosine": cosine,
        "feature_overlap": overlap,
    }


@pytest.mark.slow
def test_figures_of_every_step_and_branch_are_those_of_the_slow_formulas(sampler):
    guided = Sampler(GUIDED, sampler.pipeline, batch_size=2)
    prompts = world_prompts(3, 1, "held_out")  # a whole batch and a part of one
    sites = [Site("mid.0"), Site("up.0.1")]
    samples = guided.generate([Request(prompt, 70 + i) for i, prompt in enumerate(prompts)], sites, decode=False)
    dictionaries = [
        ("up.0.1", TopKSAE(TopKConfig(96, 192, 6), seed=1).requires_grad_(False)),
        ("mid.0", TopKSAE(TopKConfig(96, 96, 3), seed=2).requires_grad_(False)),
        ("mid.0", TopKSAE(TopKConfig(96, 96, 9), seed=3).requires_grad_(False)),
    ]
    found = evaluate_steps(guided, dictionaries, prompts, 70)
    for (block, sae), branches in zip(dictionaries, found, strict=True):
        assert list(branches) == ["cond", "uncond"]
        for branch, attribute in (("cond", "trace"), ("uncond", "uncond_trace")):
            traces = [getattr(sample, attribute)[Site(block)] for sample in samples]
            course = branches[branch]
            for figure, values in slow_figures([in_maps(trace).numpy() for trace in traces], sae).items():
                assert course[figure] == pytest.approx(values, abs=1e-4), (block, branch, figure)
            rows = torch.cat([trace.flatten(0, 1) for trace in traces])
            whole = course.pop("all_steps")
            assert whole == pytest.approx(dataclasses.asdict(evaluate(sae, rows)), abs=1e-5)
            assert whole["num_rows"] == sum(course["num_rows"]) == 3 * 3 * 64
            assert [len(values) for values in course.values()] == [3] * 10 + [2, 2]
    assert found[1]["cond"] != found[1]["uncond"]


def test_without_guidance_there_is_one_branch_and_with_one_step_nothing_adjacent(sampler):
    sae = TopKSAE(TopKConfig(96, 96, 3)).requires_grad_(False)
    (found,) = evaluate_steps(sampler, [("mid.0", sae)], world_prompts(2, 1), 70)
    assert list(found) == ["cond"]
    assert found["cond"]["feature_cosine"] == [] == found["cond"]["feature_overlap"]
    whole = found["cond"]["all_steps"]
    assert {name: found["cond"][name][0] for name in whole} == pytest.approx(whole, abs=1e-9), "all steps are the one"


@pytest.mark.slow
def test_the_dictionaries_of_a_backbone_in_the_order_of_blocks_and_sizes(root, sampler):
    """The prompts, seeds and dictionaries are put together again by hand."""
    rows = generalise(TURBO, [BACKBONES.get(TURBO)], 2, root=root, device="cpu")["dictionaries"]
    assert [(row["block"], row["name"]) for row in rows] == [
        ("mid.0", "topk-k4-x1"), ("mid.0", "topk-k8-x2"), ("up.0.1", "topk-k8-x1"),
    ]  # fmt: skip
    prompts = world_prompts(2, FIRST_SEED, "held_out")
    assert all(parse(prompt).held_out for prompt in prompts)
    requests = [Request(prompt, FIRST_SEED + i) for i, prompt in enumerate(prompts)]
    for row in rows:
        sae = index.open(index.find(TURBO, row["block"], row["name"], root=root), root=root)
        site = Site(row["block"])
        traces = [in_maps(trace[site]).numpy() for trace in sampler.trace(requests, [site])]
        wanted = slow_figures(traces, sae)["explained_variance_pooled"]
        assert row["on"][TURBO]["cond"]["explained_variance_pooled"] == pytest.approx(wanted, abs=1e-3)


def test_dictionaries_of_some_names_are_found_and_what_is_not_there_is_told(root):
    assert [entry.name for entry in find_entries(TURBO, ["topk-k8-x1", "topk-k4-x1"], root)] == [
        "topk-k4-x1", "topk-k8-x1",
    ]  # fmt: skip
    on = [BACKBONES.get(TURBO)]
    with pytest.raises(UserError, match="did you mean 'another@1'.*tinyworld-turbo@1, another@1"):
        generalise("nother@1", on, 2, root=root)
    with pytest.raises(UserError, match="did you mean 'topk-k8-x2'"):
        generalise(TURBO, on, 2, name="topk-k8-x22", root=root)
    with pytest.raises(UserError, match="no dictionary 'topk-k9'"):
        find_entries(TURBO, ["topk-k4-x1", "topk-k9"], root)
    with pytest.raises(UserError, match="0 prompts.*use at least 1"):
        generalise(TURBO, on, 0, root=root)
