"""A small run of the quickstart: what must hold whatever the weights are, and that it can be repeated."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sdxl_blocks import BLOCK_NAMES

from baselines import METHODS
from riebench.analysis.frames import read_scores
from riebench.core.errors import UserError
from riebench.edits import edit as edit_files
from riebench.edits.edit import Edit, load_edits
from riebench.metrics import default_metrics
from riebench.runs.run import run


def rows_of(run_, method, blocks=None):
    scores = run_.scores[run_.scores.method == method]
    return scores if blocks is None else scores[scores.blocks == blocks]


def picture(run_, row):
    return np.asarray(Image.open(run_.folder / row.image))


def paired(run_, method, blocks):
    """(row of the method, noop row of the same case), for cases that did not fail."""
    left = rows_of(run_, method, blocks).set_index(["edit", "seed"])
    right = rows_of(run_, "noop").set_index(["edit", "seed"])
    return [(left.loc[case], right.loc[case]) for case in left.index if left.loc[case].status == "ok"]


def test_the_folder_holds_what_is_promised(small_run):
    names = {path.name for path in small_run.folder.iterdir()}
    assert {"manifest.json", "scores.parquet", "summary.json", "report.html", "images"} <= names
    manifest = json.loads((small_run.folder / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["results"] == len(small_run.scores)
    frame = pd.read_parquet(small_run.folder / "scores.parquet")
    wanted = {"edit", "category", "seed", "backbone", "steps", "method", "strength", "blocks", "status", "reason"}
    assert wanted | set(default_metrics("tinyworld")) <= set(frame.columns)
    pd.testing.assert_frame_equal(read_scores(small_run.folder / "scores.parquet"), frame)


def test_every_case_has_every_setting(small_run):
    per_case = small_run.scores.groupby(["edit", "seed"]).size()
    assert set(per_case) == {2 ** len(BLOCK_NAMES) - 1 + 5}
    assert len(per_case) == 9 * 2
    assert set(small_run.scores.method) == {"noop", "oracle-prompt", "sae", "dense", "neurons", "random"}


def test_results_name_their_edits_by_content_and_their_set_by_version(small_run):
    known = {edit.id: edit for edit in load_edits("tinyworld")}
    for row in small_run.scores.drop_duplicates("edit").itertuples():
        edit = known[row.edit]
        assert row.edit_sha256 == edit_files.edit_sha256(edit)
        other = Edit(edit.id, edit.category, edit.original_prompt + " too", *list(vars(edit).values())[3:6])
        assert row.edit_sha256 != edit_files.edit_sha256(other)
    said = read_scores(small_run.folder / "scores.parquet").attrs["edits"]
    assert (said["name"], said["version"]) == ("tinyworld", "1")
    assert said["sha256"] == edit_files.set_sha256(list(known.values())) == small_run.manifest["edits"]["set"]["sha256"]


def test_noop_is_the_original_image_exactly_and_scores_so(small_run):
    noop = rows_of(small_run, "noop")
    ok = noop[noop.status == "ok"]
    assert len(ok) > 0
    assert (ok.lpips_original == 0).all() and (ok.injected_norm == 0).all()
    np.testing.assert_allclose(ok.clip_image_original, 1, atol=1e-5)
    assert (ok.oracle_preservation == 1).all()


def test_oracle_prompt_is_the_edited_image_and_has_the_highest_oracle_success(small_run):
    scores = small_run.scores[small_run.scores.status == "ok"]
    oracle = scores[scores.method == "oracle-prompt"]
    assert (oracle.lpips_edited == 0).all()
    np.testing.assert_allclose(oracle.clip_image_edited, 1, atol=1e-5)
    success = scores.groupby(["method", "blocks"]).oracle_success.mean()
    assert success.max() == success["oracle-prompt", ""], success.nlargest(5).to_dict()
    assert success["oracle-prompt", ""] > success["noop", ""]


def test_random_features_have_the_norm_and_count_of_sae(small_run):
    everything = "+".join(BLOCK_NAMES)
    sae, random = (rows_of(small_run, m, everything).set_index(["edit", "seed"]) for m in ("sae", "random"))
    ok = sae.index[sae.status == "ok"]
    np.testing.assert_allclose(random.loc[ok].injected_norm, sae.loc[ok].injected_norm, rtol=1e-4)
    assert (random.loc[ok].num_features == sae.loc[ok].num_features).all()
    assert (sae.loc[ok].injected_norm > 0).all()


def test_a_subset_of_blocks_is_restricted_to_it(small_run):
    for row, original in paired(small_run, "sae", "mid.0")[:4]:
        assert set(json.loads(row.features)) == {"mid.0"}
        assert not np.array_equal(picture(small_run, row), picture(small_run, original))


@pytest.mark.slow
def test_the_same_command_twice_gives_equal_scores(small_run, small_config, tmp_path):
    import dataclasses

    config = dataclasses.replace(small_config, categories=("change_colour", "add_object"))
    again = run(config, tmp_path / "again", device="cpu")
    keys = ["edit", "seed", "method", "blocks"]
    first = small_run.scores[small_run.scores.category.isin(config.categories)].sort_values(keys)
    second = again.scores.sort_values(keys)
    assert len(first) == len(second)
    scores = list(default_metrics("tinyworld"))
    pd.testing.assert_frame_equal(
        first[keys + scores].reset_index(drop=True), second[keys + scores].reset_index(drop=True), rtol=1e-4, atol=1e-5
    )
    third = run(config, tmp_path / "third", device="cpu")
    pd.testing.assert_frame_equal(second, third.scores.sort_values(keys))


@pytest.mark.slow
def test_a_region_that_is_not_there_is_a_recorded_failure_of_its_case_alone(tmp_path, small_config):
    import dataclasses

    good = load_edits("tinyworld")[0]
    plain = "flat poster of a standing red plain circle in the sky"
    hatless = Edit("hatless", "change_object", plain, plain.replace("circle", "square"), "hat", "hat")
    config = dataclasses.replace(small_config, categories=("change_object",), edits_per_category=0, seeds=(42,))
    done = run(config, tmp_path, device="cpu", edits=[hatless, good])
    failed = done.scores[done.scores.edit == "hatless"]
    assert (failed.status == "failed").all() and failed.reason.str.contains("no region found").all()
    assert failed[list(default_metrics("tinyworld"))].isna().all().all()
    assert (done.scores[done.scores.edit == good.id].status == "ok").all()


def test_nothing_left_to_run_and_twice_the_same_method_are_user_errors(tmp_path, small_config):
    from baselines.dense import Dense

    with pytest.raises(UserError, match="no edit"):
        run(small_config, tmp_path, device="cpu", edits=[])
    with pytest.raises(UserError, match="share name and strength: .*dense at 1.0"):
        run(small_config, tmp_path, device="cpu", methods=[Dense()])


def test_edit_files_say_where_they_are_wrong(tmp_path):
    path = tmp_path / "mine.jsonl"
    edit_files.write_edits(load_edits("tinyworld")[:2], path)
    assert edit_files.read_edits(path) == load_edits("tinyworld")[:2]
    good = path.read_text()
    for broken, message in (
        (good + "{", "line 3: not JSON"),
        (good.replace('"instruction"', '"instrction"', 1), "line 1: unknown key 'instrction'; did you mean"),
        (good.replace("change_object", "chnge_object", 1), "line 1"),
        (good + good, "stands twice"),
        ('{"id": "a"}', "line 1"),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match=message):
            edit_files.read_edits(path)
    with pytest.raises(UserError, match="no edits at"):
        edit_files.read_edits(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="did you mean 'tinyworld'"):
        load_edits("tinywrld")


def test_regions_follow_the_category(engine):
    edits = {edit.category: edit for edit in load_edits("tinyworld") if edit.id.endswith("-02")}
    categories = ("add_object", "delete_object", "change_background", "change_style")
    added, deleted, background, style = engine.references([(edits[name], 42) for name in categories])
    for reference in (added, deleted):  # the accessory is in one of the two images; its region counts for both
        case = reference.case
        for block in BLOCK_NAMES:
            assert (case.original_cells[block] == case.edited_cells[block]).all()
            assert 0 < case.original_cells[block].sum() < 40
        assert reference.failure == "" and 0.3 < reference.pictures.outside.float().mean() < 1
    assert style.case.original_cells["mid.0"].all() and not style.pictures.outside.any()
    assert 0.3 < background.case.original_cells["mid.0"].float().mean() <= 1


@pytest.mark.slow
def test_scores_are_the_same_alone_and_in_company(engine):
    from baselines.sae import SAE
    from riebench.runs.plan import Variant

    edits = [edit for edit in load_edits("tinyworld") if edit.id.endswith("-05")]
    variants = [Variant(SAE(), ("up.0.1",)), Variant(SAE(), BLOCK_NAMES)]
    references = engine.references([(edit, 42) for edit in edits])
    together = list(engine.results([(reference, variants) for reference in references]))
    alone = list(engine.results([(engine.references([(edits[3], 42)])[0], variants)]))
    for a, b in zip(together[6:8], alone, strict=True):
        assert str(a.row) == str(b.row) and torch.equal(a.image, b.image)  # NaN, as of efficiency, is NaN


@pytest.mark.slow
def test_all_subsets_are_made_by_replay_and_references_once(tmp_path, small_config, monkeypatch):
    """Counted where images are made: two per case, and every other one from the case's recorded first step."""
    import dataclasses

    from riebench.generation.sampler import Sampler
    from riebench.runs import local as workers

    whole, replayed = [], []
    generate, regenerate = Sampler.generate, Sampler.regenerate
    monkeypatch.setattr(Sampler, "generate", lambda s, r, *a, **k: whole.extend(r) or generate(s, r, *a, **k))
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)  # a second engine begins with an image of its own
    monkeypatch.setattr(Sampler, "regenerate", lambda s, r, o: replayed.extend(r) or regenerate(s, r, o))
    config = dataclasses.replace(small_config, categories=("change_pose", "change_style"))
    done = run(config, tmp_path, device="cpu")
    cases = 2 * 2
    assert len(whole) == len(set(whole)) == 2 * cases
    assert len(replayed) == cases * (15 + 3)
    assert done.manifest["forwards"] == pytest.approx(cases * (2 + 7.69 + 3 * 0.7), rel=0.1)


@pytest.mark.slow
def test_what_cases_share_is_decoded_and_grounded_once_for_all_methods_also_of_later_runs(
    tmp_path, small_config, monkeypatch
):
    import dataclasses

    from riebench.generation.sampler import Sampler
    from riebench.regions.find import Regions

    config = dataclasses.replace(
        small_config, categories=("change_pose",), seeds=(42,), methods=small_config.methods[:3]
    )
    wider = dataclasses.replace(config, methods=small_config.methods[:5])
    run(config, tmp_path / "run", device="cpu")
    whole = run(wider, tmp_path / "whole", device="cpu")

    decoded = []
    generate = Sampler.generate
    monkeypatch.setattr(
        Sampler,
        "generate",
        lambda self, requests, *a, decode=True, **k: (
            decoded.extend(requests if decode else ()) or generate(self, requests, *a, decode=decode, **k)
        ),
    )
    monkeypatch.setattr(Regions, "find", lambda *_: pytest.fail("grounded again"))
    widened = run(wider, tmp_path / "run", device="cpu")
    assert decoded == [] and widened.manifest["made"] == 2
    pd.testing.assert_frame_equal(widened.scores, whole.scores, check_exact=True)


@pytest.mark.slow
def test_a_run_that_dies_keeps_what_it_had_done(tmp_path, small_config, monkeypatch):
    import dataclasses

    from riebench.generation.interventions import Intervention
    from riebench.runs import run as runs

    edits = load_edits("tinyworld")[:3]

    class Dying:
        name, strength, sites = "dying", 1.0, "update"

        def plan(self, case):
            if case.edit.id == edits[2].id:
                raise RuntimeError("the power fails")
            return Intervention()

    monkeypatch.setattr(runs, "GROUP", 1)
    config = dataclasses.replace(small_config, edits_per_category=0, seeds=(42,), methods=small_config.methods[:3])
    with pytest.raises(RuntimeError, match="the power fails"):
        run(config, tmp_path, device="cpu", edits=edits, methods=[Dying()])
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "running"
    with pytest.raises(UserError, match="18 of 54 results are not in"):
        run(config, tmp_path, device="cpu", edits=edits, methods=[Dying()], cache="only-cache")


def test_the_manifest_says_which_methods_are_told_the_edited_image(small_run):
    told = {method["name"]: method["sees_edited_image"] for method in small_run.manifest["methods"]}
    assert told["sae"] and told["dense"] and told["oracle-prompt"] and not told["noop"]
    blind = {name for name in METHODS.names() if not getattr(METHODS.get(name), "sees_edited_image", True)}
    assert blind == {"noop", "text-selected", "prompt-injection"}
