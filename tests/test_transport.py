"""Selection and static transport against a slow second implementation written from the protocol, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.dense import Dense
from baselines.neurons import Neurons
from baselines.random_features import RandomFeatures
from baselines.sae import SAE
from riebench.edits import Edit
from riebench.errors import UserError
from riebench.lens import Site
from riebench.methods import METHODS, Case, Method
from riebench.selection import mean_features, select
from sae_models.topk import TopKConfig, TopKSAE

BLOCKS = ("mid.0", "up.0.1")
STEPS, WIDTH, GRID = 2, 6, (3, 4)
EDIT = Edit("e", "change_colour", "a red star", "a blue star", "star", "star")


def make_case(sites: list[Site], seed: int = 0, width: int = WIDTH) -> Case:
    generator = torch.Generator().manual_seed(seed)
    original, edited = ({site: torch.randn(STEPS, width, *GRID, generator=generator) for site in sites} for _ in "oe")
    cells_o = {block: torch.rand(*GRID, generator=generator) < 0.5 for block in BLOCKS}
    cells_e = {block: torch.rand(*GRID, generator=generator) < 0.5 for block in BLOCKS}
    saes = {block: random_sae(i) for i, block in enumerate(BLOCKS)}
    return Case(EDIT, seed, original, edited, cells_o, cells_e, saes.__getitem__)


def random_sae(seed: int) -> TopKSAE:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKConfig(width=WIDTH, num_features=10, k=4), seed=seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return sae


def slow_encode(sae: TopKSAE, x: np.ndarray) -> np.ndarray:
    w_enc, b_enc, b_dec = (p.detach().double().numpy() for p in (sae.W_enc, sae.b_enc, sae.b_dec))
    before = (x - b_dec) @ w_enc + b_enc
    z = np.zeros_like(before)
    for i in np.argsort(-before)[: sae.config.k]:
        z[i] = max(before[i], 0.0)
    return z


def slow_mu(sae: TopKSAE, trace: np.ndarray, cells: np.ndarray, steps: str) -> np.ndarray:
    total = []
    for r, c in zip(*np.nonzero(cells), strict=True):
        per_step = [slow_encode(sae, trace[t, :, r, c]) for t in range(STEPS)]
        total.append(per_step[0] if steps == "first" else np.mean(per_step, axis=0))
    return np.mean(total, axis=0)


def slow_sae_plan(case: Case, k: int, strength: float, pool: str, steps: str) -> dict[str, np.ndarray]:
    numpy = {
        name: {s.block: v.double().numpy() for s, v in getattr(case, name).items()} for name in ("original", "edited")
    }
    mu_e = {b: slow_mu(case.sae(b), numpy["edited"][b], case.edited_cells[b].numpy(), steps) for b in BLOCKS}
    mu_o = {b: slow_mu(case.sae(b), numpy["original"][b], case.original_cells[b].numpy(), steps) for b in BLOCKS}
    groups = [BLOCKS] if pool == "all" else [(b,) for b in BLOCKS]
    on, off = {b: [] for b in BLOCKS}, {b: [] for b in BLOCKS}
    for group in groups:
        sum_e, sum_o = sum(mu_e[b].sum() for b in group), sum(mu_o[b].sum() for b in group)
        scored = [(mu_e[b][i] / sum_e - mu_o[b][i] / sum_o, b, i) for b in group for i in range(len(mu_e[b]))]
        scored.sort(key=lambda item: item[0])
        for _, b, i in scored[:k]:
            off[b].append(i)
        for _, b, i in scored[-k:]:
            on[b].append(i)
    out = {}
    for b in BLOCKS:
        w_dec = case.sae(b).W_dec.detach().double().numpy()
        d = np.zeros((STEPS, WIDTH, *GRID))
        for t in range(STEPS):
            for r in range(GRID[0]):
                for c in range(GRID[1]):
                    if case.edited_cells[b][r, c]:
                        z = slow_encode(case.sae(b), numpy["edited"][b][t, :, r, c])
                        d[t, :, r, c] += strength * sum((z[i] * w_dec[i] for i in on[b]), np.zeros(WIDTH))
                    if case.original_cells[b][r, c]:
                        z = slow_encode(case.sae(b), numpy["original"][b][t, :, r, c])
                        d[t, :, r, c] -= strength * sum((z[i] * w_dec[i] for i in off[b]), np.zeros(WIDTH))
        out[b] = d
    return out


@pytest.mark.parametrize("pool", ["block", "all"])
@pytest.mark.parametrize("steps", ["first", "mean"])
@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_static_sae_transport_equals_the_slow_one(pool, steps, strength):
    for seed in range(5):
        case = make_case([Site(block) for block in BLOCKS], seed)
        plan = SAE(strength=strength, k=2, pool=pool, steps=steps).plan(case)
        slow = slow_sae_plan(case, 2, strength, pool, steps)
        for site, added in plan.additions.items():
            np.testing.assert_allclose(added.numpy(), slow[site.block], atol=1e-5)


def test_dense_moves_the_whole_update():
    case = make_case([Site(block) for block in BLOCKS])
    plan = Dense(strength=0.5).plan(case)
    for site, added in plan.additions.items():
        inside_e, inside_o = case.edited_cells[site.block], case.original_cells[site.block]
        expected = 0.5 * (case.edited[site] * inside_e - case.original[site] * inside_o)
        torch.testing.assert_close(added, expected)


def test_random_features_have_the_count_and_norm_of_sae_but_not_its_directions():
    case = make_case([Site(block) for block in BLOCKS], seed=3)
    sae, random = SAE(k=3).plan(case), RandomFeatures(k=3).plan(case)
    assert random.features == sae.features
    for site, added in sae.additions.items():
        assert added.norm() > 0
        torch.testing.assert_close(random.additions[site].norm(), added.norm())
        assert not torch.allclose(random.additions[site], added)


def test_neurons_are_scored_by_unit_norm_and_moved_as_they_are():
    sites = [Site("mid.0", layer) for layer in range(2)]
    case = make_case(sites, seed=4, width=5)
    plan = Neurons(k=3).plan(case)
    cells_e, cells_o = case.edited_cells["mid.0"].numpy(), case.original_cells["mid.0"].numpy()
    mus = []
    for trace, cells in ((case.edited, cells_e), (case.original, cells_o)):
        rows = np.concatenate([trace[site][0].numpy()[:, cells] for site in sites])  # [layers * width, cells]
        mus.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=1))
    score = mus[0] / np.abs(mus[0]).sum() - mus[1] / np.abs(mus[1]).sum()
    on, off = set(np.argsort(-score)[:3]), set(np.argsort(score)[:3])
    for layer, site in enumerate(sites):
        expected = np.zeros((STEPS, 5, *GRID))
        for i in range(5):
            if layer * 5 + i in on:
                expected[:, i] += case.edited[site].numpy()[:, i] * cells_e
            if layer * 5 + i in off:
                expected[:, i] -= case.original[site].numpy()[:, i] * cells_o
        np.testing.assert_allclose(plan.additions[site].numpy(), expected, atol=1e-6)
    assert plan.features == {"mid.0": 6}


def test_pool_block_gives_every_block_its_own_k_and_pool_all_lets_scale_decide():
    sites = [Site("mid.0"), Site("up.0.1")]
    mu_o = {site: torch.ones(8) for site in sites}
    mu_e = {sites[0]: torch.arange(8.0), sites[1]: 100 * torch.arange(8.0)}
    block = select(mu_e, mu_o, k=2, pool="block")
    assert [len(block[site].on) for site in sites] == [2, 2]
    everything = select(mu_e, mu_o, k=2, pool="all")
    assert [len(everything[site].on) for site in sites] == [0, 2]
    assert everything[sites[1]].on.tolist() == [6, 7]


def test_on_and_off_never_overlap_when_k_is_large():
    site = Site("mid.0")
    chosen = select({site: torch.rand(7)}, {site: torch.rand(7)}, k=50)[site]
    assert len(chosen.on) == len(chosen.off) == 3
    assert not set(chosen.on.tolist()) & set(chosen.off.tolist())


def test_wrong_settings_are_user_errors():
    with pytest.raises(UserError, match="pool"):
        select({}, {}, 1, "blocks")
    with pytest.raises(UserError, match="k = 0"):
        select({}, {}, 0)
    with pytest.raises(UserError, match="aggregation"):
        mean_features(torch.zeros(1, 1, 1), "last")


@pytest.mark.parametrize("name", METHODS.names())
def test_every_registered_method_plans_finite_restrictable_interventions(name):
    method = METHODS.get(name)()
    assert isinstance(method, Method) and method.name == name
    sites = [Site(block, 0 if method.sites == "neurons" else None) for block in BLOCKS]
    plan = method.plan(make_case(sites if method.sites else []))
    assert plan.restricted(()).additions == {}
    assert set(plan.restricted(("mid.0",)).blocks) <= {"mid.0"}
    assert plan.norm == pytest.approx(sum(float((v**2).sum()) for v in plan.additions.values()) ** 0.5, rel=1e-5)
    if method.sites:
        assert set(plan.blocks) == set(BLOCKS) and plan.norm > 0
        zero = METHODS.get(name)(strength=0.0).plan(make_case(sites))
        assert zero.norm == 0
