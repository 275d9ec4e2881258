"""Selection and static transport against a slow second implementation written from the protocol, in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from slow_sae import slow_encode

from baselines import METHODS
from baselines.dense import Dense
from baselines.neurons import Neurons
from baselines.random_features import RandomFeatures
from baselines.sae import SAE
from riebench.backbones.family import KINDS, LAYERED, Site
from riebench.core.errors import UserError
from riebench.edits.edit import Edit
from riebench.generation.interventions import Addition
from riebench.methods.method import Case, Method
from riebench.methods.published import select_published
from riebench.methods.selection import mean_features, select
from riebench.methods.text_index import TextIndex
from sae_models.pca import PCA
from sae_models.topk import TopKConfig, TopKSAE

BLOCKS = ("mid.0", "up.0.1")
STEPS, WIDTH, GRID = 2, 6, (3, 4)
EDIT = Edit("e", "change_colour", "a red star", "a blue star", "star", "star")


def from_maps(value_tchw: torch.Tensor) -> torch.Tensor:
    """`[steps, cells, C]`, cells in reading order."""
    return value_tchw.flatten(2).transpose(1, 2).contiguous()


def maps(value_tnc: torch.Tensor) -> np.ndarray:
    """Float64 `[steps, C, h, w]` of a trace, in which the slow implementations think."""
    return value_tnc.double().numpy().transpose(0, 2, 1).reshape(len(value_tnc), -1, *GRID)


def on_grid(cells: torch.Tensor) -> np.ndarray:
    """A region as `[h, w]`."""
    return cells.numpy().reshape(GRID)


def added_maps(added: Addition) -> np.ndarray:
    """`[steps, C, h, w]` of what is added, cell by cell, each of which may stand there once."""
    steps, _, width = added.values.shape
    channels = range(width) if added.channels is None else added.channels.tolist()
    found = np.zeros((steps, added.width or width, *GRID), dtype=np.float32)
    assert len(set(added.cells.tolist())) == len(added.cells) and len(set(channels)) == width
    for i, cell in enumerate(added.cells.tolist()):
        for j, channel in enumerate(channels):
            found[:, channel, cell // GRID[1], cell % GRID[1]] = added.values[:, i, j].numpy()
    return found


def make_case(sites: list[Site], seed: int = 0, width: int = WIDTH) -> Case:
    generator = torch.Generator().manual_seed(seed)
    original, edited = (
        {site: from_maps(torch.randn(STEPS, width, *GRID, generator=generator)) for site in sites} for _ in "oe"
    )
    cells_o = {block: (torch.rand(*GRID, generator=generator) < 0.5).flatten() for block in BLOCKS}
    cells_e = {block: (torch.rand(*GRID, generator=generator) < 0.5).flatten() for block in BLOCKS}
    saes = {block: random_sae(i) for i, block in enumerate(BLOCKS)}
    words = TextIndex(torch.randn(10, 3, generator=generator), torch.ones(10), torch.ones(10))
    text = {EDIT.original_prompt: torch.zeros(3), EDIT.edited_prompt: torch.ones(3)}
    return Case(
        EDIT,
        seed,
        original,
        edited,
        cells_o,
        cells_e,
        saes.__getitem__,
        text=text.__getitem__,
        text_index=lambda _: words,
    )


def random_sae(seed: int) -> TopKSAE:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKConfig(width=WIDTH, num_features=10, k=4), seed=seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return sae


def slow_mu(sae: TopKSAE, trace: np.ndarray, cells: np.ndarray, steps: str) -> np.ndarray:
    total = []
    for r, c in zip(*np.nonzero(cells), strict=True):
        per_step = [slow_encode(sae, trace[t, :, r, c]) for t in range(STEPS)]
        total.append(per_step[0] if steps == "first" else np.mean(per_step, axis=0))
    return np.mean(total, axis=0)


def slow_selection(case: Case, k: int, pool: str, steps: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    numpy = {name: {s.block: maps(v) for s, v in getattr(case, name).items()} for name in ("original", "edited")}
    mu_e = {b: slow_mu(case.sae(b), numpy["edited"][b], on_grid(case.edited_cells[b]), steps) for b in BLOCKS}
    mu_o = {b: slow_mu(case.sae(b), numpy["original"][b], on_grid(case.original_cells[b]), steps) for b in BLOCKS}
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
    return on, off


SLOW_STATISTICS = {
    "mean": lambda values: sum(values) / len(values),
    "max": max,
    "quantile": lambda values: float(np.quantile(values, 0.95)),
}


def slow_sae_plan(
    case: Case,
    k: int,
    strength: float,
    pool: str,
    steps: str,
    *,
    keep_spatial: bool = True,
    statistic: str = "mean",
    placement: str = "edited",
    only_add: bool = False,
) -> dict[str, np.ndarray]:
    """D of protocol §6, cell by cell and feature by feature."""
    on, off = slow_selection(case, k, pool, steps)
    out = {}
    for b in BLOCKS:
        site = Site(b)
        w_dec = case.sae(b).W_dec.detach().double().numpy()
        d = np.zeros((STEPS, WIDTH, *GRID))
        cells_e = list(zip(*np.nonzero(on_grid(case.edited_cells[b])), strict=True))
        cells_o = list(zip(*np.nonzero(on_grid(case.original_cells[b])), strict=True))
        for t in range(STEPS):
            z_e, z_o = (
                {(r, c): slow_encode(case.sae(b), maps(trace[site])[t, :, r, c]) for r, c in cells}
                for trace, cells in ((case.edited, cells_e), (case.original, cells_o))
            )
            for numbers, z, goes_to, sign in (
                (on[b], z_e, cells_e if placement == "edited" else cells_o, strength),
                ([] if only_add else off[b], z_o, cells_o, -strength),
            ):
                own = keep_spatial and (sign == -strength or placement == "edited")
                for i in numbers:
                    whole = SLOW_STATISTICS[statistic]([values[i] for values in z.values()])
                    for cell in goes_to:
                        d[(t, slice(None), *cell)] += sign * (z[cell][i] if own else whole) * w_dec[i]
        out[b] = d
    return out


@pytest.mark.parametrize("pool", ["block", "all"])
@pytest.mark.parametrize("steps", ["first", "mean"])
@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_static_sae_transport_equals_the_slow_one(pool, steps, strength):
    for seed in range(5):
        case = make_case([Site(block) for block in BLOCKS], seed)
        plan = SAE(strength=strength, k=2, pool=pool, aggregation=steps).plan(case)
        slow = slow_sae_plan(case, 2, strength, pool, steps)
        for site, added in plan.additions.items():
            np.testing.assert_allclose(added_maps(added), slow[site.block], atol=1e-5)


@pytest.mark.parametrize("statistic", ["mean", "quantile", "max"])
@pytest.mark.parametrize("keep_spatial", [True, False])
@pytest.mark.parametrize("placement", ["edited", "original"])
@pytest.mark.parametrize("only_add", [True, False])
def test_statistics_and_placement_equal_the_slow_ones(statistic, keep_spatial, placement, only_add):
    how = {"keep_spatial": keep_spatial, "statistic": statistic, "placement": placement, "only_add": only_add}
    for seed in range(3):
        case = make_case([Site(block) for block in BLOCKS], seed)
        plan = SAE(strength=1.5, k=2, **how).plan(case)
        slow = slow_sae_plan(case, 2, 1.5, "block", "first", **how)
        for site, added in plan.additions.items():
            np.testing.assert_allclose(added_maps(added), slow[site.block], atol=1e-5)
        assert set(plan.features.values()) == {2 if only_add else 4}


def test_adaptive_takes_away_what_is_there_at_that_moment():
    """With the original's own update running, the static part and the adaptive one together are the static plan; at
    another running value the subtracted part follows it."""
    case = make_case([Site(block) for block in BLOCKS], seed=6)
    static, adaptive = SAE(k=2, strength=1.5).plan(case), SAE(k=2, strength=1.5, mode="adaptive").plan(case)
    added_only = SAE(k=2, strength=1.5, only_add=True).plan(case)
    for site, trace in case.original.items():
        added, only, whole = (added_maps(plan.additions[site]) for plan in (adaptive, added_only, static))
        np.testing.assert_array_equal(added, only)
        added, whole = torch.from_numpy(added), torch.from_numpy(whole)
        for step in range(STEPS):
            live = sum(rewrite.delta(trace[step], step) for rewrite in adaptive.rewrites[site])
            found = added[step] + live.T.unflatten(1, GRID)
            torch.testing.assert_close(found, whole[step], atol=1e-5, rtol=1e-5)
        other = sum(rewrite.delta(trace[0] + 1.0, 0) for rewrite in adaptive.rewrites[site])
        assert not torch.allclose(added[0] + other.T.unflatten(1, GRID), whole[0], atol=1e-2)


def test_replace_sets_on_features_to_the_edited_images_and_off_features_to_nothing():
    case = make_case([Site(block) for block in BLOCKS], seed=7)
    plan = SAE(k=2, mode="replace").plan(case)
    on, off = slow_selection(case, 2, "block", "first")
    assert not plan.additions and {site.block for site in plan.rewrites} == set(BLOCKS)
    for site, rewrites in plan.rewrites.items():
        sae, running = (
            case.sae(site.block),
            torch.randn(GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(1)),
        )
        w_dec = sae.W_dec.detach().double().numpy()
        expected = np.zeros((GRID[0] * GRID[1], WIDTH))
        for r in range(GRID[0]):
            for c in range(GRID[1]):
                cell = r * GRID[1] + c
                z = slow_encode(sae, running[cell].double().numpy())
                if on_grid(case.edited_cells[site.block])[r, c]:
                    target = slow_encode(sae, maps(case.edited[site])[1, :, r, c])
                    expected[cell] += sum((target[i] - z[i]) * w_dec[i] for i in on[site.block])
                if on_grid(case.original_cells[site.block])[r, c]:
                    expected[cell] -= sum(z[i] * w_dec[i] for i in off[site.block])
        found = sum(rewrite.delta(running, 1) for rewrite in rewrites)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_features_are_selected_on_the_case_that_is_given_for_it():
    case, other = (make_case([Site(block) for block in BLOCKS], seed) for seed in (8, 9))
    plan = METHODS.get("mismatched")(k=2).plan(dataclasses.replace(case, select_on=other))
    on, off = slow_selection(other, 2, "block", "first")
    assert {b: sorted(plan.chosen[b]["on"]) for b in BLOCKS} == {b: sorted(on[b]) for b in BLOCKS}
    assert {b: sorted(plan.chosen[b]["off"]) for b in BLOCKS} == {b: sorted(off[b]) for b in BLOCKS}
    assert plan.chosen != SAE(k=2).plan(case).chosen
    for site, added in plan.additions.items():  # but the values are the case's own
        cells = on_grid(case.edited_cells[site.block] | case.original_cells[site.block])
        found = added_maps(added)
        assert (found[:, :, ~cells] == 0).all() and np.linalg.norm(found) > 0


def test_chosen_features_are_those_that_were_asked_for():
    case = make_case([Site(block) for block in BLOCKS], seed=10)
    plan = METHODS.get("chosen")(on="mid.0:3,1 mid.0:3", off="up.0.1:2").plan(case)
    assert plan.chosen == {"mid.0": {"on": [3, 1], "off": []}, "up.0.1": {"on": [], "off": [2]}}
    for t, r, c in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        expected = np.zeros(WIDTH)
        if on_grid(case.edited_cells["mid.0"])[r, c]:
            z = slow_encode(case.sae("mid.0"), maps(case.edited[Site("mid.0")])[t, :, r, c])
            expected = z[[3, 1]] @ case.sae("mid.0").W_dec.detach().double().numpy()[[3, 1]]
        np.testing.assert_allclose(added_maps(plan.additions[Site("mid.0")])[t, :, r, c], expected, atol=1e-5)
    for words, message in (
        ({}, "no feature was chosen"),
        ({"on": "mid.0:10"}, "mid.0 has no feature 10"),
        ({"on": "mid.0:x"}, "names no features"),
        ({"on": "mid.9:1"}, "unknown block"),
    ):
        with pytest.raises(UserError, match=message):
            METHODS.get("chosen")(**words).plan(case)


@pytest.mark.parametrize("placement", ["edited", "original"])
@pytest.mark.parametrize("only_add", [False, True])
def test_chosen_features_may_be_moved_by_their_mean(placement, only_add):
    """As the demo does: strength times the mean of a feature, the same in every cell and step."""
    case, means = make_case([Site(block) for block in BLOCKS], seed=10), torch.arange(10.0)
    case = dataclasses.replace(case, means={"mid.0": means, "up.0.1": 10 * means}.__getitem__)
    method = METHODS.get("chosen")(
        on="mid.0:3,1 up.0.1:4", off="mid.0:2", unit="mean", strength=0.5, placement=placement, only_add=only_add
    )
    assert method.means_of == ("mid.0", "up.0.1")
    plan = method.plan(case)
    assert plan.chosen["mid.0"] == {"on": [3, 1], "off": [] if only_add else [2]}
    for block, on, off in (("mid.0", {3: 3.0, 1: 1.0}, {} if only_add else {2: 2.0}), ("up.0.1", {4: 40.0}, {})):
        rows = case.sae(block).W_dec.detach().numpy()
        cells_o, cells_e = (on_grid(cells[block]) for cells in (case.original_cells, case.edited_cells))
        expected = np.zeros((STEPS, WIDTH, *GRID))
        for values, cells, sign in ((on, cells_e if placement == "edited" else cells_o, 1), (off, cells_o, -1)):
            for number, value in values.items():
                expected += sign * 0.5 * value * rows[number][:, None, None] * cells
        np.testing.assert_allclose(added_maps(plan.additions[Site(block)]), expected, atol=1e-5)
        assert np.abs(expected).max() > 0.1


def test_means_that_are_zero_or_not_there_and_settings_of_traces_are_refused():
    case, make = make_case([Site(block) for block in BLOCKS]), METHODS.get("chosen")
    with pytest.raises(UserError, match="does not know how strong"):
        make(on="mid.0:3", unit="mean").plan(case)
    case = dataclasses.replace(case, means=lambda block: torch.arange(10.0))
    for side in ("on", "off"):
        with pytest.raises(UserError, match="feature 0 of mid.0 has a mean of zero.*leave it out, or use unit trace"):
            make(**{side: "mid.0:2,0"}, unit="mean").plan(case)
    assert make(on="mid.0:0").plan(case).norm >= 0
    assert make(on="mid.0:0").means_of == ()
    for setting, value in (("mode", "adaptive"), ("keep_spatial", False), ("statistic", "max"), ("unit", "median")):
        with pytest.raises(UserError, match=setting):
            make(**{"on": "mid.0:2", "unit": "mean", setting: value})


def test_principal_components_are_those_of_the_two_traces():
    """Against numpy's singular value decomposition of the centred rows."""
    case = make_case([Site("mid.0")], seed=11)
    rows = np.concatenate(
        [
            maps(side[Site("mid.0")]).transpose(0, 2, 3, 1).reshape(-1, WIDTH).astype(np.float32)
            for side in (case.original, case.edited)
        ]
    )
    found = PCA.fit(torch.from_numpy(rows))
    _, sizes, vt = np.linalg.svd(rows - rows.mean(axis=0))
    assert (np.diff(sizes) < 0).all()
    similar = np.abs((found.components_fd.numpy() * vt).sum(axis=1))
    np.testing.assert_allclose(similar, 1, atol=1e-4)
    np.testing.assert_allclose(found.decode(found.encode(torch.from_numpy(rows))).numpy(), rows, atol=1e-4)
    plan = METHODS.get("pca")(k=2).plan(case)
    moved = added_maps(plan.additions[Site("mid.0")]).transpose(0, 2, 3, 1).reshape(-1, WIDTH)
    kept = [i for side in plan.chosen["mid.0"].values() for i in side]
    assert len(set(kept)) == 4 and np.linalg.matrix_rank(moved, tol=1e-4) == 4
    np.testing.assert_allclose(moved @ vt[kept].T @ vt[kept], moved, atol=1e-4)


def test_region_means_move_the_mean_difference_to_the_originals_region():
    case = make_case([Site(block) for block in BLOCKS], seed=12)
    plan = METHODS.get("region-means")(strength=2.0).plan(case)
    for site, added in plan.additions.items():
        e, o = on_grid(case.edited_cells[site.block]), on_grid(case.original_cells[site.block])
        for t in range(STEPS):
            mean_e = maps(case.edited[site])[t][:, e].mean(axis=1)
            mean_o = maps(case.original[site])[t][:, o].mean(axis=1)
            expected = np.where(o, 2 * (mean_e - mean_o)[:, None, None], 0)
            np.testing.assert_allclose(added_maps(added)[t], expected, atol=1e-5)


@pytest.mark.parametrize("word", ["mode", "statistic", "placement", "branch"])
def test_unknown_settings_of_transport_say_what_there_is(word):
    with pytest.raises(UserError, match=f"{word} holds 'meen'"):
        SAE(**{word: "meen"})
    with pytest.raises(UserError, match="static"):
        RandomFeatures(mode="adaptive")


def test_dense_moves_the_whole_update():
    case = make_case([Site(block) for block in BLOCKS])
    plan = Dense(strength=0.5).plan(case)
    for site, added in plan.additions.items():
        inside_e, inside_o = on_grid(case.edited_cells[site.block]), on_grid(case.original_cells[site.block])
        expected = 0.5 * (maps(case.edited[site]) * inside_e - maps(case.original[site]) * inside_o)
        np.testing.assert_allclose(added_maps(added), expected, rtol=1e-6, atol=1e-6)


def test_random_features_have_the_count_and_norm_of_sae_but_not_its_directions():
    case = make_case([Site(block) for block in BLOCKS], seed=3)
    sae, random = SAE(k=3).plan(case), RandomFeatures(k=3).plan(case)
    assert random.features == sae.features
    for site, added in sae.additions.items():
        ours, others = added_maps(added), added_maps(random.additions[site])
        assert np.linalg.norm(ours) > 0
        np.testing.assert_allclose(np.linalg.norm(others), np.linalg.norm(ours), rtol=1e-5)
        assert not np.allclose(others, ours)


def test_norms_of_half_precision_do_not_overflow():
    """Of updates whose squares, and of neurons whose norm, are more than float16 can hold."""
    case = make_case([Site(block) for block in BLOCKS], seed=3)
    loud = {
        side: {site: (value * 3000).half() for site, value in getattr(case, side).items()}
        for side in ("original", "edited")
    }
    case = dataclasses.replace(case, **loud)
    sae, random = SAE(k=3).plan(case), RandomFeatures(k=3).plan(case)
    for site, added in sae.additions.items():
        values = added.values.double()
        assert added.values.dtype == torch.float16 and torch.isinf(added.values.square()).any()
        assert float(random.additions[site].values.double().norm()) == pytest.approx(float(values.norm()), rel=1e-3)
    rows = torch.tensor([[[60_000.0, 1.0], [60_000.0, 0.0]]]).half()  # [steps, cells, F]
    assert mean_features(rows, unit_norm=True).tolist() == pytest.approx([0.5**0.5, 0.5])
    site = Site("mid.0", "neurons", 0)
    chosen = select_published({site: rows}, {site: rows.flip(-1)}, 1, "all", "first", True)[site]
    assert (chosen.on.tolist(), chosen.off.tolist()) == ([0], [1])


def test_neurons_are_scored_by_unit_norm_and_moved_as_they_are():
    sites = [Site("mid.0", "neurons", layer) for layer in range(2)]
    case = make_case(sites, seed=4, width=5)
    plan = Neurons(k=3).plan(case)
    cells_e, cells_o = on_grid(case.edited_cells["mid.0"]), on_grid(case.original_cells["mid.0"])
    mus = []
    for trace, cells in ((case.edited, cells_e), (case.original, cells_o)):
        rows = np.concatenate([maps(trace[site])[0][:, cells] for site in sites])  # [layers * width, cells]
        mus.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=1))
    score = mus[0] / np.abs(mus[0]).sum() - mus[1] / np.abs(mus[1]).sum()
    on, off = set(np.argsort(-score)[:3]), set(np.argsort(score)[:3])
    for layer, site in enumerate(sites):
        expected = np.zeros((STEPS, 5, *GRID))
        for i in range(5):
            if layer * 5 + i in on:
                expected[:, i] += maps(case.edited[site])[:, i] * cells_e
            if layer * 5 + i in off:
                expected[:, i] -= maps(case.original[site])[:, i] * cells_o
        np.testing.assert_allclose(added_maps(plan.additions[site]), expected, atol=1e-6)
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


@pytest.mark.parametrize("pool", ["block", "all"])
def test_rounding_does_not_choose_features_where_both_traces_are_the_same(pool):
    sites, rng = [Site("mid.0"), Site("up.0.1")], torch.Generator().manual_seed(0)
    mu = {site: torch.rand(20, generator=rng) * (torch.rand(20, generator=rng) < 0.5) for site in sites}
    changed = mu | {sites[1]: mu[sites[1]] + torch.eye(20)[7] - mu[sites[1]] * torch.eye(20)[3]}
    found = []
    for _ in range(10):
        noisy = [{s: v * (1 + 1e-6 * torch.randn(20, generator=rng)) for s, v in m.items()} for m in (changed, mu)]
        found.append(select(*noisy, k=3, pool=pool))
    for site in sites:
        assert len({(str(chosen[site].on), str(chosen[site].off)) for chosen in found}) == 1
    if pool == "block":
        assert found[0][sites[0]].on.tolist() == [0, 1, 2] and found[0][sites[0]].off.tolist() == [17, 18, 19]
    assert 7 in found[0][sites[1]].on.tolist()


def test_small_differences_above_rounding_are_still_ranked():
    site, mu = Site("mid.0"), torch.full((1000,), 0.5)
    mu_e = mu.clone()
    mu_e[500:510] += 1e-4 * torch.arange(1, 11)
    assert select({site: mu_e}, {site: mu}, k=4)[site].on.tolist() == [506, 507, 508, 509]


def test_wrong_settings_are_user_errors():
    with pytest.raises(UserError, match="pool"):
        select({}, {}, 1, "blocks")
    with pytest.raises(UserError, match="k = 0"):
        select({}, {}, 0)
    with pytest.raises(UserError, match="aggregation"):
        mean_features(torch.zeros(1, 1, 1), "last")


@pytest.mark.parametrize("name", METHODS.names())
def test_every_registered_method_plans_finite_restrictable_interventions(name):
    settings = {"chosen": {"on": "mid.0:1,2 up.0.1:5", "off": "mid.0:0 up.0.1:3,4"}}.get(name, {})
    method = METHODS.get(name)(**settings)
    assert isinstance(method, Method) and method.name == name
    kind = method.sites if method.sites in KINDS else "update"
    sites = [Site(block, kind, 0 if kind in LAYERED else None) for block in BLOCKS]
    plan = method.plan(make_case(sites if method.sites else []))
    assert plan.restricted(()).additions == {}
    assert set(plan.restricted(("mid.0",)).blocks) <= {"mid.0"}
    squares = sum(float((added_maps(added) ** 2).sum()) for added in plan.additions.values())
    replaces = any(added.replaces for added in plan.additions.values())  # how far from what is there, nobody knows yet
    assert plan.norm == pytest.approx(float("nan") if replaces else squares**0.5, rel=1e-5, nan_ok=True)
    if method.sites:
        assert set(plan.blocks) == set(BLOCKS) and squares > 0
        zero = METHODS.get(name)(strength=0.0, **settings).plan(make_case(sites))
        assert zero.norm == 0


# ---- equal norms


def block_norms(intervention) -> dict[str, float]:
    """By hand: root of the sum of squares of all that is added in a block."""
    totals: dict[str, float] = {}
    for site, added in intervention.additions.items():
        totals[site.block] = totals.get(site.block, 0.0) + float((added_maps(added).astype(float) ** 2).sum())
    return {block: total**0.5 for block, total in totals.items()}


@pytest.mark.parametrize("method", ["sae", "neurons", "random", "dense"])
def test_at_equal_norm_every_block_adds_as_much_and_all_together_what_they_did(method):
    neurons = [Site("mid.0", "neurons", 0), Site("mid.0", "neurons", 1), Site("up.0.1", "neurons", 0)]
    sites = neurons if method == "neurons" else list(map(Site, BLOCKS))
    case, settings = make_case(sites), {"k": 3} if method != "dense" else {}
    plain = METHODS.get(method)(**settings).plan(case)
    equal = METHODS.get(method)(**settings, budget="norm").plan(case)
    before, after = block_norms(plain), block_norms(equal)
    assert before["mid.0"] != pytest.approx(before["up.0.1"], rel=0.01)
    assert after["mid.0"] == pytest.approx(after["up.0.1"], rel=1e-5)
    assert equal.norm == pytest.approx(plain.norm, rel=1e-5)
    for site, added in plain.additions.items():
        expected = added_maps(added) * (after[site.block] / before[site.block])
        np.testing.assert_allclose(added_maps(equal.additions[site]), expected, rtol=1e-4, atol=1e-6)
    alone = equal.restricted(("up.0.1",))
    assert alone.norm == pytest.approx(after["up.0.1"], rel=1e-5)  # a subset's budget is that of its blocks


def test_a_block_that_nothing_is_added_to_stays_so_at_equal_norm():
    case = make_case(list(map(Site, BLOCKS)))
    still = dataclasses.replace(case, edited={**case.edited, Site("mid.0"): case.original[Site("mid.0")]})
    still = dataclasses.replace(still, edited_cells={**case.edited_cells, "mid.0": case.original_cells["mid.0"]})
    plain, equal = (Dense(budget=budget).plan(still) for budget in ("features", "norm"))
    assert block_norms(equal)["mid.0"] < 1e-5 and equal.norm == pytest.approx(plain.norm, rel=1e-5)


def test_equal_norm_wants_a_norm_that_is_known():
    with pytest.raises(UserError, match="budget norm cannot be had in mode replace -> use mode static"):
        SAE(mode="replace", budget="norm")
    with pytest.raises(UserError, match="budget holds 'nrom'; did you mean 'norm'"):
        SAE(budget="nrom")
    adaptive = SAE(k=3, mode="adaptive").plan(make_case(list(map(Site, BLOCKS))))
    with pytest.raises(UserError, match="has no norm yet"):
        adaptive.equalised()
