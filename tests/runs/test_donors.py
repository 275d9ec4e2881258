"""Features chosen on another case: which one it is, that it is in the key, and that the engine looks there."""

from __future__ import annotations

import dataclasses

import pytest
from sdxl_blocks import BLOCK_NAMES

from baselines.sae import SAE
from baselines.select_on import Mismatched, OtherSeed
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError
from riebench.edits.edit import Edit, load_edits
from riebench.runs.config import build_config
from riebench.runs.plan import find_donor, plan, plan_variants
from riebench.runs.run import run
from riebench.runs.setup import Setup

BACKBONE = BACKBONES.get("tinyworld-turbo@1")
EDITS = [edit for edit in load_edits() if edit.id.endswith("1")][::7]
CASES = [(edit, seed) for edit in EDITS for seed in (42, 43, 44)]


def test_the_next_seed_of_the_same_edit():
    assert find_donor((EDITS[0], 42), "seed", EDITS) == (EDITS[0], 43)


def test_another_edit_out_of_another_category_hardly_depends_on_what_others_there_are():
    found = {edit: find_donor((edit, 7), "edit", EDITS) for edit in EDITS}
    for edit, (other, seed) in found.items():
        assert other.category != edit.category and seed == 7
    lost = found[EDITS[0]][0]
    fewer = [edit for edit in EDITS if edit != lost]
    same = [find_donor((edit, 7), "edit", fewer) == found[edit] for edit in fewer]
    assert same == [found[edit][0] != lost for edit in fewer] and any(same) and not all(same)
    one_category = [edit for edit in load_edits() if edit.category == "change_pose"][:3]
    assert all(find_donor((edit, 1), "edit", one_category)[0] != edit for edit in one_category)
    with pytest.raises(UserError, match="no other edit"):
        find_donor((EDITS[0], 1), "edit", EDITS[:1])


def test_shards_of_a_run_have_its_keys():
    (variant,) = plan_variants([Mismatched()], "", BLOCK_NAMES)
    whole = plan(BACKBONE, CASES, [variant], Setup(), EDITS)
    for shard in (CASES[:7], CASES[::5]):
        keys = [task.wanted[0].recipe for task in plan(BACKBONE, shard, [variant], Setup(), EDITS)]
        assert set(keys) <= {task.wanted[0].recipe for task in whole} and len(set(keys)) == len(shard)


def recipes(method, cases) -> list[str]:
    (variant,) = plan_variants([method], "", BLOCK_NAMES)
    return [task.wanted[0].recipe for task in plan(BACKBONE, cases, [variant], Setup())]


def test_the_donor_is_part_of_the_key():
    case = [(EDITS[0], 42)]
    assert len({recipes(method, case)[0] for method in (SAE(name="x"), OtherSeed(name="x"))}) == 2
    other = dataclasses.replace(EDITS[1], edited_prompt=EDITS[2].edited_prompt)
    assert recipes(Mismatched(), [*case, (EDITS[1], 42)])[0] != recipes(Mismatched(), [*case, (other, 42)])[0]
    assert recipes(SAE(), [*case, (EDITS[1], 42)])[0] == recipes(SAE(), [*case, (other, 42)])[0]


@pytest.mark.slow
def test_the_engine_chooses_on_the_donor(engine):
    chosen = []
    methods = [SAE(k=5), OtherSeed(k=5), Mismatched(k=5)]
    cases = [(EDITS[0], 42), (EDITS[0], 43), (EDITS[3], 42)]
    here, next_seed, other_edit = engine.references(cases, methods)
    here = dataclasses.replace(here, donors={"seed": next_seed, "edit": other_edit})
    variants = plan_variants(methods, "", BLOCK_NAMES)
    for reference, wanted in ((here, variants), (next_seed, variants[:1]), (other_edit, variants[:1])):
        chosen += [result.chosen for result in engine.results([(reference, wanted)])]
    sae, by_seed, by_edit, sae_of_seed, sae_of_edit = chosen
    assert set(sae) == set(BLOCK_NAMES)
    assert by_seed == sae_of_seed and by_edit == sae_of_edit and sae not in (by_seed, by_edit)


@pytest.mark.slow
def test_a_run_has_them_beside_the_others(tmp_path):
    values = {
        "methods": ["noop", "sae", "other-seed", "mismatched", "text-selected", "pca", "region-means"],
        "categories": ["change_colour", "change_background"],
        "edits_per_category": 1,
        "seeds": [42],
        "resamples": 20,
    }
    done = run(build_config(values, "here"), tmp_path, device="cpu")
    assert (done.scores["status"] == "ok").all(), done.scores[done.scores.status != "ok"].reason.tolist()
    whole = done.scores[done.scores.blocks != ""].drop_duplicates(["edit", "method"], keep="last")
    counted = whole[whole.method.isin(["sae", "other-seed", "mismatched"])]
    assert set(counted.num_features) == {4 * 64}
    components = whole[whole.method == "pca"].num_features  # of the updates in the region, which may have no 32
    assert components.between(1, 4 * 64).all()
    images = whole.groupby("edit")["image"].nunique()
    assert (images == 6).all() and (whole.injected_norm > 0).all()


@pytest.mark.slow
def test_a_donor_without_a_region_is_a_failure_with_its_reason(tmp_path):
    edits = [edit for edit in load_edits() if edit.category == "change_colour"][:1]
    nowhere = Edit("n", "change_pose", edits[0].original_prompt, edits[0].edited_prompt, "crown", "crown")
    config = build_config({"methods": ["noop", "sae", "mismatched"], "seeds": [42], "resamples": 20}, "here")
    done = run(config, tmp_path, device="cpu", edits=[*edits, nowhere])
    row = done.scores[(done.scores.method == "mismatched") & (done.scores.edit == edits[0].id)].iloc[0]
    assert row.status == "failed" and "choose features on" in row.reason and "no region" in row.reason


def test_a_method_that_selects_on_something_unknown_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Odd(SAE):
        select_on: str = "tomorrow"

    with pytest.raises(UserError, match="selects on 'tomorrow'"):
        plan(BACKBONE, [(EDITS[0], 42)], plan_variants([Odd()], "", BLOCK_NAMES), Setup())


def test_steps_and_rows_that_a_backbone_has_not_are_refused_before_it_is_loaded():
    for method, message in ((SAE(window="last 2"), "window 'last 2'"), (SAE(branch="uncond"), "unconditional row")):
        with pytest.raises(UserError, match=message):
            plan(BACKBONE, [(EDITS[0], 42)], plan_variants([method], "", BLOCK_NAMES), Setup())
