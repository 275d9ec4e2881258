"""`riebench evaluate` against explained variance and cosines computed slowly from the sampler's own traces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from riebench.backbones import BACKBONES, Backbone
from riebench.cli import main
from riebench.errors import UserError
from riebench.generalisation import evaluate_steps, format_markdown, format_tables, generalise
from riebench.lens import Site
from riebench.prompts import world_prompts
from riebench.sampling import Request, Sampler
from riebench.tinyworld.captions import parse
from sae_models import checkpoint, index
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


def slow_figures(traces: list[np.ndarray], sae: TopKSAE) -> dict[str, list[float]]:
    """traces: `[steps, C, h, w]` a prompt. Formulas as the page states them, a cell and a channel at a time."""
    steps = len(traces[0])
    rows = [[trace[t, :, y, x] for trace in traces for y in range(8) for x in range(8)] for t in range(steps)]
    latents, pooled, mean = [], [], []
    for x in (np.array(cells, dtype=np.float64) for cells in rows):
        z = sae.encode(torch.from_numpy(x)).double().numpy()
        r = x - (z @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy())
        pooled.append(1 - (r**2).sum() / ((x - x.mean(0)) ** 2).sum())
        mean.append(np.mean([1 - np.var(r[:, c]) / np.var(x[:, c]) for c in range(x.shape[1])]))
        latents.append(z)
    cosine = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(now, then, strict=True)])
        for now, then in zip(latents[:-1], latents[1:], strict=True)
    ]
    return {"explained_variance_pooled": pooled, "explained_variance_mean": mean, "feature_cosine": cosine}


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
            wanted = slow_figures([getattr(sample, attribute)[Site(block)].numpy() for sample in samples], sae)
            for figure, values in wanted.items():
                assert branches[branch][figure] == pytest.approx(values, abs=1e-4), (block, branch, figure)
        assert [len(values) for values in branches["cond"].values()] == [3] * 10 + [2]
    assert found[1]["cond"] != found[1]["uncond"]


def test_without_guidance_there_is_one_branch_and_with_one_step_no_cosine(sampler):
    sae = TopKSAE(TopKConfig(96, 96, 3)).requires_grad_(False)
    (found,) = evaluate_steps(sampler, [("mid.0", sae)], world_prompts(2, 1), 70)
    assert list(found) == ["cond"]
    assert found["cond"]["feature_cosine"] == [] and len(found["cond"]["explained_variance_pooled"]) == 1


@pytest.fixture(scope="module")
def found(root):
    """Of two prompts on turbo at one step and on eight guided steps."""
    eight = Backbone("guided@8", "tinyworld/turbo", 8, 3.0, "tinyworld", "tinyworld")
    return generalise(TURBO, [BACKBONES.get(TURBO), eight], 2, root=root, device="cpu")


def test_all_dictionaries_of_the_backbone_are_evaluated_in_the_order_of_blocks_and_sizes(found, root):
    assert [(row["block"], row["name"]) for row in found["dictionaries"]] == [
        ("mid.0", "topk-k4-x1"), ("mid.0", "topk-k8-x2"), ("up.0.1", "topk-k8-x1"),
    ]  # fmt: skip
    for row in found["dictionaries"]:
        assert {name: list(branches) for name, branches in row["on"].items()} == {
            TURBO: ["cond"],
            "guided@8": ["cond", "uncond"],
        }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_each_row_of_the_tables_is_of_its_own_dictionary(found, root, sampler):
    """The prompts, seeds and dictionaries are put together again by hand."""
    prompts = world_prompts(2, found["first_seed"], "held_out")
    assert all(parse(prompt).held_out for prompt in prompts)
    requests = [Request(prompt, found["first_seed"] + i) for i, prompt in enumerate(prompts)]
    for row in found["dictionaries"]:
        sae = index.open(index.find(TURBO, row["block"], row["name"], root=root), root=root)
        site = Site(row["block"])
        traces = [trace[site].numpy() for trace in sampler.trace(requests, [site])]
        wanted = slow_figures(traces, sae)["explained_variance_pooled"]
        assert row["on"][TURBO]["cond"]["explained_variance_pooled"] == pytest.approx(wanted, abs=1e-3)


def test_the_page_shows_the_figures_under_their_steps(found):
    page = format_markdown(found)
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("| block")]
    assert len(tables) == 3 and page.startswith(f"# How dictionaries of `{TURBO}`")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0]]
    assert len({len(line) for line in cells}) == 1
    assert cells[0][2:5] == [TURBO, "guided@8 cond", ""] and cells[0][9] == "guided@8 uncond"
    assert cells[2][2:] == ["1", *2 * ["1", "2", "3", "5", "6", "8"]]
    uncond = found["dictionaries"][1]["on"]["guided@8"]["uncond"]["explained_variance_pooled"]
    assert cells[4][:2] == ["mid.0", "topk-k8-x2"]
    assert cells[4][9:] == [f"{uncond[step - 1]:.3f}" for step in (1, 2, 3, 5, 6, 8)]
    cosines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[2]]
    assert cosines[2][2:8] == ["1-2", "3-4", "4-5", "6-7", "7-8", "1-2"]
    cond = found["dictionaries"][2]["on"]["guided@8"]["cond"]["feature_cosine"]
    assert cosines[5][2:7] == [f"{cond[step - 1]:.3f}" for step in (1, 3, 4, 6, 7)]
    assert f"{uncond[0]:.2f}" in format_tables(found)


def test_the_command_prints_json_and_writes_the_page(root, tmp_path, capsys):
    words = ["evaluate", "--on", TURBO, "--dictionary", "topk-k8-x1", "--dictionaries", root, "--prompts", 2]
    assert main([str(word) for word in [*words, "--json", "--out", tmp_path / "page.md"]]) == 0
    (row,) = json.loads(capsys.readouterr().out)["dictionaries"]
    assert (row["block"], row["name"]) == ("up.0.1", "topk-k8-x1")
    value = row["on"][TURBO]["cond"]["explained_variance_mean"][0]
    assert f"| up.0.1 | topk-k8-x1 | {value:.3f} |" in (tmp_path / "page.md").read_text()


def test_what_is_not_there_is_told(root):
    on = [BACKBONES.get(TURBO)]
    with pytest.raises(UserError, match="did you mean 'another@1'.*tinyworld-turbo@1, another@1"):
        generalise("nother@1", on, 2, root=root)
    with pytest.raises(UserError, match="did you mean 'topk-k8-x2'"):
        generalise(TURBO, on, 2, name="topk-k8-x22", root=root)
    with pytest.raises(UserError, match="0 prompts"):
        generalise(TURBO, on, 0, root=root)
