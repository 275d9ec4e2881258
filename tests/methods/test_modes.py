"""The two modes: every member of `Mode`, on both, beside values worked out here; nothing else asks which it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import riebench
from baselines.dense import Dense
from baselines.sae import SAE
from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.methods.method import Case
from riebench.methods.modes import MODES, Mode, mode_named
from riebench.methods.transport import Transport, select_features
from riebench.regions.find import masks_of, whole_cells
from riebench.runs.setup import Setup
from sae_models.topk import TopKConfig, TopKSAE

STRICT, REFERENCE = MODES["strict"], MODES["reference"]
SITES = [Site("mid.0"), Site("up.0.1")]
ONE = torch.ones(1, 1, 4)


def test_there_are_two_and_each_has_every_member():
    assert list(MODES) == ["strict", "reference"]
    members = {name for name in (*Mode.__annotations__, *vars(Mode)) if not name.startswith("_")}
    assert members >= {"name", "summary", "keeps_marks", "look", "select", "settings", "off_scale"}
    for name, mode in MODES.items():
        assert mode.name == name and mode_named(name) is mode and mode.summary
        assert all(hasattr(mode, member) for member in members), name
    assert STRICT.summary != REFERENCE.summary


def test_an_unknown_mode_says_which_there_are():
    with pytest.raises(UserError, match="unknown mode 'refrence'.*did you mean 'reference'.*strict or reference"):
        mode_named("refrence")
    with pytest.raises(UserError, match="unknown mode 'Strict'"):
        Setup(mode="Strict")


def test_marks_and_seeds():
    assert (STRICT.keeps_marks, REFERENCE.keeps_marks) == (False, True)
    assert (STRICT.seeds, REFERENCE.seeds) == ((), (42,))
    for name, mode in MODES.items():
        setup = Setup(mode=name, mask_rule=mode.mask_rules[0])
        assert setup.rules is mode and setup.keeps_marks == mode.keeps_marks


def test_mask_rules():
    assert STRICT.mask_rules[0] == "touched" and REFERENCE.mask_rules == ("published",)
    for name, mode in MODES.items():
        for rule in (*STRICT.mask_rules, *REFERENCE.mask_rules):
            if rule in mode.mask_rules:
                assert Setup(mode=name, mask_rule=rule).mask_rule == rule
            else:
                with pytest.raises(UserError, match=f"does not go with mode '{name}'"):
                    Setup(mode=name, mask_rule=rule)


def make_case(mode: Mode, category: str = "change_colour") -> Case:
    """Two blocks, two steps, a grid of 3 x 4, random traces and regions."""
    generator = torch.Generator().manual_seed(3)
    original, edited = ({site: torch.randn(2, 12, 6, generator=generator) for site in SITES} for _ in "oe")
    cells_o, cells_e = ({site.block: torch.rand(12, generator=generator) < 0.5 for site in SITES} for _ in "oe")
    edit = riebench.Edit("e", category, "a red star", "a blue star", "star", "star")
    saes = {site.block: sae_of(number) for number, site in enumerate(SITES)}
    return Case(edit, 42, original, edited, cells_o, cells_e, saes.__getitem__, mode)


def sae_of(seed: int) -> TopKSAE:
    sae, generator = TopKSAE(TopKConfig(width=6, num_features=8, k=4), seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae.requires_grad_(False)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("statistic", ["mean", "max"])
def test_dense_has_a_choice_of_statistic_in_strict_mode_alone(mode, statistic):
    assert (STRICT.dense_statistic, REFERENCE.dense_statistic) == ("", "mean")
    case = make_case(mode)
    plan = Dense(keep_spatial=False, statistic=statistic, only_add=True).plan(case)
    wanted = "mean" if mode is REFERENCE else statistic
    for site, added in plan.additions.items():
        rows = case.edited[site][:, case.edited_cells[site.block]].numpy()
        value = {"mean": rows.mean(axis=1), "max": rows.max(axis=1)}[wanted]
        expected = np.zeros((2, 12, 6))
        expected[:, np.flatnonzero(case.edited_cells[site.block])] = value[:, None]
        np.testing.assert_allclose(added.dense(12).numpy(), expected, atol=1e-6)


class Corner:
    """Finds the top left pixel, whatever it is asked for."""

    settings: dict = {}

    def detections(self, images_bchw, phrases):
        mask = torch.zeros(1, *images_bchw.shape[-2:], dtype=torch.bool)
        mask[0, 0, 0] = True
        return [mask for _ in phrases]


def test_look_is_pixels_or_whole_cells():
    assert STRICT.look is masks_of and REFERENCE.look is whole_cells
    images = torch.zeros(1, 3, 512, 512)
    strict, published = (mode.look(Corner(), images, ["star"], (16, 16))[0] for mode in (STRICT, REFERENCE))
    assert strict.nonzero().tolist() == [[0, 0]]
    cells = published.reshape(16, 32, 16, 32)
    assert published.dtype == torch.bool and cells[0, :, 0].all() and published.sum() % (32 * 32) == 0
    (rest,) = REFERENCE.look(Corner(), images, ["not star"], (16, 16))
    assert torch.equal(rest, ~published)


def features(*rows) -> torch.Tensor:
    """`[1 step, cells, F]`."""
    return torch.tensor([rows], dtype=torch.float32)


#: Values of one cell: the scores of both blocks together are led by the second, whose values are larger.
EDITED = {SITES[0]: features([3.0, 1.0, 0.0]), SITES[1]: features([10.0, 40.0, 10.0])}
ORIGINAL = {SITES[0]: features([1.0, 1.0, 2.0]), SITES[1]: features([30.0, 10.0, 20.0])}


def chosen(mode: Mode, pool: str, k: int = 1, edited=EDITED, original=ORIGINAL, unit_norm: bool = False):
    found = mode.select(edited, original, k, pool, "first", unit_norm)
    return {site.block: (found[site].on.tolist(), found[site].off.tolist()) for site in found}


def test_select_takes_its_own_pool_where_none_is_given():
    """Scores are 1/2, 0, -1/2 and -1/3, 1/2, -1/6 block by block; of both, over 64: 2, 0, -2, -20, 30, -10."""
    by_block = {"mid.0": ([0], [2]), "up.0.1": ([1], [0])}
    together = {"mid.0": ([], []), "up.0.1": ([1], [0])}
    for mode in MODES.values():
        assert chosen(mode, "block") == by_block and chosen(mode, "all") == together
    assert chosen(STRICT, "") == by_block and chosen(REFERENCE, "") == together


@pytest.mark.parametrize("pool", ["", "all", "block"])
def test_blocks_may_have_regions_of_different_numbers_of_cells(pool):
    """As blocks of unlike grids have: what counts is the mean over a block's own cells."""
    for mode in MODES.values():
        twice = {
            site: torch.cat([z_tnf, z_tnf], dim=1) if site.block == "mid.0" else z_tnf for site, z_tnf in EDITED.items()
        }
        assert chosen(mode, pool, edited=twice) == chosen(mode, pool)


def test_select_sums_absolute_values_in_strict_mode_and_signed_ones_in_reference_mode():
    """Strict: 4/9, -4/9, 1/9; less 1/3, 1/3, 1/3. Reference: 4, -4, 1; less the same. With the signs of the edited side
    turned its sum is -1, and the published score turns all signs back, the strict one does not."""
    edited = {SITES[0]: features([-4.0, 4.0, -1.0])}
    original = {SITES[0]: features([1.0, 1.0, 1.0])}
    assert chosen(STRICT, "", edited=edited, original=original) == {"mid.0": ([1], [0])}
    assert chosen(REFERENCE, "", edited=edited, original=original) == {"mid.0": ([0], [1])}


def test_a_unit_that_is_silent_counts_nothing_in_strict_mode_and_makes_every_score_nan_in_reference_mode():
    edited = {SITES[0]: features([3.0, 0.0, 1.0, 2.0], [4.0, 0.0, 1.0, 0.0])}
    original = {SITES[0]: features([0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 3.0])}
    order = np.argsort(np.full(4, np.nan, dtype=np.float32))
    found = chosen(REFERENCE, "", edited=edited, original=original, unit_norm=True)
    assert found == {"mid.0": ([order[-1]], [order[0]])}
    # strict: (.7, 0, .707, .5) / 1.907 less (.5, .707, .671, .632) / 2.510
    assert chosen(STRICT, "", edited=edited, original=original, unit_norm=True) == {"mid.0": ([0], [1])}


@pytest.mark.parametrize("steps", ["first", "mean"])
def test_methods_are_given_the_mode_s_own_selection(steps):
    for mode in MODES.values():
        case = make_case(mode)
        saes = {site: case.sae(site.block) for site in SITES}
        sides = [
            {site: saes[site].encode(trace[site][:, cells[site.block]]) for site in SITES}
            for trace, cells in ((case.edited, case.edited_cells), (case.original, case.original_cells))
        ]
        wanted = mode.select(*sides, 2, "", steps, False)
        found = select_features(case, saes, k=2, pool="", aggregation=steps)
        assert list(found) == SITES
        for site in SITES:
            assert found[site].on.tolist() == wanted[site].on.tolist()
            assert found[site].off.tolist() == wanted[site].off.tolist()
        assert sum(chosen.count for chosen in found.values()) == (8 if mode is STRICT else 4)


@pytest.mark.parametrize("category", riebench.edits.edit.CATEGORY_NAMES + ("my_own",))
def test_settings_of_categories(category):
    how = SAE(placement="original", only_add=True, strength=1.5, k=3)
    assert STRICT.settings(how, category) is how
    wanted = {
        "add_object": replace(how, placement="edited"),
        "delete_object": replace(how, placement="edited", only_add=False),
    }.get(category, how)
    assert REFERENCE.settings(how, category) == wanted
    assert REFERENCE.settings(Transport(), category) == Transport()
    adaptive, meant = replace(how, mode="adaptive"), replace(wanted, mode="adaptive", only_add=False)
    assert REFERENCE.settings(adaptive, category) == meant and STRICT.settings(adaptive, category) is adaptive


@pytest.mark.parametrize("method", ["sae", "dense", "pca"])
@pytest.mark.parametrize("how", ["static", "adaptive"])
def test_in_reference_mode_objects_come_and_go_in_place(method, how):
    """Whatever was asked for, a plan is that of the settings that count; in strict mode what is asked for counts."""
    make = riebench.METHODS.get(method)
    asked, in_place, moved, taking = (
        make(mode=how, placement=placement, only_add=only)
        for placement, only in (("original", True), ("edited", False), ("edited", True), ("original", False))
    )
    if how == "static":
        categories = {"delete_object": in_place, "add_object": moved, "change_pose": asked}
    else:  # something is always taken away
        categories = {"delete_object": in_place, "add_object": in_place, "change_pose": taking}
    for category, meant in categories.items():
        case = make_case(REFERENCE, category)
        assert same(asked.plan(case), meant.plan(case)), category
        strict = make_case(STRICT, category)
        assert same(asked.plan(strict), meant.plan(strict)) == (meant is asked)


def same(one, other) -> bool:
    if one.chosen != other.chosen or one.features != other.features or list(one.additions) != list(other.additions):
        return False
    if any(len(one.rewrites[site]) != len(other.rewrites[site]) for site in one.rewrites):
        return False
    value = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    return all(
        torch.equal(added.dense(12), other.additions[site].dense(12)) for site, added in one.additions.items()
    ) and all(
        torch.equal(rewrite.delta(value, 0), other.rewrites[site][i].delta(value, 0))
        for site, rewrites in one.rewrites.items()
        for i, rewrite in enumerate(rewrites)
    )


@dataclass
class Rows:
    """A dictionary of given decoder rows."""

    rows: torch.Tensor

    @property
    def num_features(self) -> int:
        return len(self.rows)

    def decode_linear(self, z_nf):
        return z_nf @ self.rows

    def directions(self, numbers):
        return self.rows[numbers]


def test_off_scale_is_a_ratio_of_norms_in_reference_mode_alone():
    dictionary = Rows(torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]))
    on, off, none = torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([], dtype=torch.long)
    assert REFERENCE.off_scale(dictionary, on, off) == pytest.approx(5 / 3)
    assert REFERENCE.off_scale(dictionary, none, off) == 0 and REFERENCE.off_scale(dictionary, on, none) == 0
    for pair in ((on, off), (none, off), (on, none)):
        assert STRICT.off_scale(dictionary, *pair) == 1


ASKED = re.compile(r"""[=!]=\s*["'](strict|reference)["']|["'](strict|reference)["']\s*[=!]=""")
#: What reads or says a mode by its name, and does nothing else with it: a configuration, a file, a table.
BY_NAME = {"riebench/leaderboard/site_board.py"}  # a label


def test_nothing_else_asks_which_mode_it_is():
    root = Path(riebench.__file__).parents[1]
    files = [path for room in ("riebench", "baselines", "sae_models") for path in sorted((root / room).rglob("*.py"))]
    assert len(files) > 100
    asking = {str(path.relative_to(root)) for path in files if ASKED.search(path.read_text())}
    assert asking <= BY_NAME
