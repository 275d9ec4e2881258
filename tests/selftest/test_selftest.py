"""The self-test: what it says of a sound machine, and that each step sees the fault that it is for."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image
from sdxl_configs import TINY

import riebench.selftest.bench as benches
import riebench.selftest.run as runner
from riebench.backbones.table import BACKBONES
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.edits.edit import CATEGORIES
from riebench.generation.interventions import Intervention
from riebench.generation.sampler import Sampler
from riebench.runs.plan import variant_of
from riebench.selftest import (
    decoding,
    denoiser,
    dictionaries,
    elsewhere,
    exactness,
    guidance,
    loading,
    machine,
    measure,
    plain_call,
    regions,
    whole_cases,
)
from riebench.selftest.bench import Bench
from riebench.selftest.checks import CHECKS
from riebench.selftest.measure import Clock, in_place
from riebench.selftest.run import FILE, do, format_report, selftest
from riebench.selftest.step import NOT_OK, NOT_POSSIBLE, OK, Check, Found, NotPossible

CPU = torch.device("cpu")


def refuse(_bench):
    raise UserError("a tensor is missing", remedy="fetch it")


def break_down(_bench):
    return {}["key"]


def cannot(_bench):
    raise NotPossible("there is no GPU")


def planned(*does) -> tuple[Check, ...]:
    return tuple(Check(i, f"step {i}", "1.5", does) for i, does in enumerate(does))


SOUND = planned(lambda _bench: Found("1.5", True, {"value": float("nan"), "at": 1.23456789, "type": torch.float16}))


@pytest.fixture
def bench(engine, tmp_path):
    """The shared engine on a bench, in place of one that it loads."""

    class Shared(Bench):
        def open(self, backbone, batch_size):
            return engine

    shared = Shared(engine.backbone, CPU, tmp_path / "out")
    shared.amounts = dataclasses.replace(shared.amounts, decoded=(4,), rows=(1, 2), prompts=8, repeats=1)
    return shared


@pytest.fixture
def bench_of_two(bench):
    """The same with two blocks under test, in batches of four."""
    bench.backbone = dataclasses.replace(bench.backbone, blocks=("up.0.0", "up.0.1"))
    bench.amounts = dataclasses.replace(bench.amounts, batch=4)
    return bench


def test_a_step_that_fails_is_a_line_and_the_next_one_is_done(tmp_path):
    said = []
    checks = planned(refuse, break_down, cannot, lambda _bench: Found("1.5", True, missing="compiled: on a GPU alone"))
    report = selftest("tinyworld-turbo@1", "cpu", tmp_path / "out", checks=(*checks, *SOUND), say=said.append)
    assert [step.status for step in report.steps] == [NOT_OK, NOT_OK, NOT_POSSIBLE, NOT_POSSIBLE, OK]
    figures = [step.figure for step in report.steps]
    assert figures[:2] == ["a tensor is missing -> fetch it", "KeyError: 'key'"]
    assert figures[2:] == ["there is no GPU", "1.5; compiled: on a GPU alone", "1.5"]
    assert report.steps[1].detail["where"][-1].endswith("break_down")
    assert not report.passed and len(said) == 10 and "step 1 ..." in said[2] and "not ok" in said[3]
    text = format_report(report)
    assert "1 step 1 should be: 1.5" in text and "3 step 3 should be" not in text
    assert text.endswith("1 ok, 2 not ok, 2 not possible here")


def test_what_is_printed_and_written_is_json_of_one_schema(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "selftest", partial(selftest, checks=SOUND))
    assert main(["selftest", "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == json.loads((tmp_path / "out" / FILE).read_text())
    assert list(found) == ["riebench", "backbone", "device", "steps"]
    assert (found["backbone"], found["device"]) == ("tinyworld-turbo@1", "cpu")
    (step,) = found["steps"]
    assert list(step) == ["number", "name", "status", "figure", "wanted", "seconds", "detail"]
    assert step["detail"] == {"value": None, "at": 1.2346, "type": "torch.float16"} and step["seconds"] >= 0
    assert "riebench selftest: 0 step 0: ok" in printed.err


@pytest.mark.parametrize(("does", "status"), [(refuse, 1), (cannot, 0)])
def test_the_exit_status_says_whether_a_step_is_not_ok(does, status, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "selftest", partial(selftest, checks=planned(does)))
    assert main(["selftest", "--out", str(tmp_path)]) == status
    assert ("1 not ok" if status else "1 not possible here") in capsys.readouterr().out


def test_what_cannot_be_done_at_all_is_said_before_any_step(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["selftest", "--out", str(tmp_path)]) == 2
    assert "is not empty and no run directory: it holds thesis.tex" in capsys.readouterr().err
    assert main(["selftest", "--backbone", "sdxl-turbo", "--out", str(tmp_path / "out")]) == 2
    assert main(["selftest", "--random", "--out", str(tmp_path / "out")]) == 2
    assert "--backbone sdxl-turbo@1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_steps_are_counted_from_0_to_10():
    assert [check.number for check in CHECKS] == list(range(11)) and len({check.name for check in CHECKS}) == 11


@pytest.mark.slow
def test_the_whole_of_it_on_tinyworld(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["selftest", "--device", "cpu", "--out", str(out)]) == 0
    assert "10 ok, 0 not ok, 1 not possible here" in capsys.readouterr().out or elsewhere_is_possible()
    steps = {step["name"]: step for step in json.loads((out / FILE).read_text())["steps"]}
    status = {name: step["status"] for name, step in steps.items()}
    assert status == {check.name: OK for check in CHECKS} | {
        "elsewhere": OK if elsewhere_is_possible() else NOT_POSSIBLE
    }
    assert sum(step["seconds"] for step in steps.values()) < 120 * 4  # four times as long beside other work
    of = {name: step["detail"] for name, step in steps.items()}
    assert of["machine"]["doctor"]["libraries"]["torch"] == torch.__version__.partition("+")[0]
    assert of["loading"]["parts"]["pipeline"] == of["loading"]["parts"]["judge CLIP"] == "loaded"
    for block in of["dictionaries"]["blocks"].values():
        assert block["active"]["float32"] == block["k"] == 16
        assert block["explained variance"]["float32"] == pytest.approx(block["registered"], abs=0.05)
    assert all(
        block["not finite"] == 0 and block["norm by step"][0] > 0 for block in of["plain call"]["blocks"].values()
    )
    assert [row["rows"] for row in of["decoding"]["sizes"]] == [4, 8]
    assert "compiled" in of["denoiser"]["compiled"] and of["denoiser"]["ms by rows"].keys() == {"2", "4"}
    assert of["exactness"]["in batches of 8"]["subsets"] == of["exactness"]["after a halving"]["subsets"] == 15
    cases = of["whole cases"]
    assert cases["status"] == {"ok": cases["results"]} and cases["results"] == 2 * 35 and cases["left out"] == {}
    parts = {"references", "grounding", "planning", "additions and denoiser", "VAE", "scores", "writing", "other"}
    assert parts <= cases["seconds"].keys() and min(cases["seconds"].values()) > 0
    assert sum(cases["seconds"].values()) == pytest.approx(2 * cases["seconds a case"], rel=1e-3)
    assert sum(cases["seconds"].values()) <= steps["whole cases"]["seconds"]
    assert of["regions"]["cells"].keys() == {category.name for category in CATEGORIES}
    for category in of["regions"]["cells"].values():
        for edit, cells in category.items():
            assert 0 < cells["original"] <= cells["of"] == 64
            shown = np.asarray(Image.open(out / "regions" / f"{edit}.png"))
            assert shown.shape == (128, 128, 3) and set(np.unique(shown[64:])) <= {0, 255}
    assert of["guidance"]["on"] == "tinyworld-base@25"


def elsewhere_is_possible() -> bool:
    return elsewhere.importlib.util.find_spec("ray") is not None


@pytest.mark.slow
def test_random_weights_are_timed_without_grounder_and_judges(tmp_path, monkeypatch):
    monkeypatch.setattr(benches, "random_engine", partial(benches.random_engine, shape=TINY))
    backbone = dataclasses.replace(BACKBONES.get("sdxl-turbo@1"), height=64, width=64)
    bench = Bench(backbone, CPU, tmp_path / "out", random=True)
    bench.amounts = dataclasses.replace(bench.amounts, batch=4, cases=1)
    steps = {check.name: do(check, bench) for check in CHECKS[1:9]}
    assert {name for name, step in steps.items() if step.status == NOT_POSSIBLE} == {"dictionaries", "regions"}
    assert {step.status for step in steps.values()} == {OK, NOT_POSSIBLE}
    found = steps["whole cases"].detail
    assert "no judges with random weights: no scores" in found["not possible here"]
    assert found["status"]["ok"] >= found["results"] - 1 == 41  # `background` is nowhere where everything is an object
    assert "text-selected" in found["left out"]


def test_weights_that_are_not_here_are_one_step_that_is_not_ok(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(loading, "networks", lambda _family: ())  # AlexNet, which is shipped, takes a second to load
    bench = Bench(BACKBONES.get("sdxl-turbo@4"), CPU, tmp_path / "out")
    first, second = do(loading.CHECK, bench), do(plain_call.CHECK, bench)
    assert first.status == NOT_OK and "pipeline: not loaded: 18 of 18 files" in first.figure
    assert first.detail["parts"]["grounder grounding-dino+sam2"] == loading.ABSENT
    assert second.status == NOT_POSSIBLE and "riebench fetch sdxl-turbo" in second.figure


def test_judges_that_are_not_here_are_not_downloaded(bench, monkeypatch):
    monkeypatch.setattr(benches, "absent_from_runs", lambda family: ["CLIP"])
    step = do(whole_cases.CHECK, bench)
    assert step.status == NOT_POSSIBLE and "not on this machine: CLIP -> see `riebench doctor`" in step.figure


def test_a_library_that_is_not_installed_is_named(bench, monkeypatch):
    sound = machine.examine()
    monkeypatch.setattr(
        machine, "examine", lambda: sound | {"libraries": sound["libraries"] | {"lpips": "not installed"}}
    )
    step = do(machine.CHECK, bench)
    assert step.status == NOT_OK and "lpips is not installed" in step.figure


@pytest.mark.slow
def test_dictionaries_of_other_blocks_explain_too_little(bench, engine, monkeypatch):
    own = engine.generation.dictionary
    monkeypatch.setattr(engine.generation, "dictionary", lambda block: own("up.0.0" if block == "up.0.1" else block))
    step = do(dictionaries.CHECK, bench)
    assert step.status == NOT_OK and step.figure.startswith("up.0.1 explains") and "mid.0" not in step.figure


def test_another_image_than_the_pipelines_own_is_seen(bench, engine):
    calls = count()
    hook = engine.sampler.denoiser.register_forward_hook(lambda _m, _a, output: (output[0] + 1e-3 * next(calls),))
    try:
        step = do(plain_call.CHECK, bench)
    finally:
        hook.remove()
    assert step.status == NOT_OK and "the images differ by up to" in step.figure
    assert do(plain_call.CHECK, bench).status == OK


def test_overflow_in_a_block_is_counted(bench, engine):
    block = engine.sampler.blocks.module("up.0.1")

    def overflow(_module, _args, output):
        broken = output[0].clone()
        broken[0, 0, 0, :2] = float("inf")
        return (broken,)

    hook = block.register_forward_hook(overflow)
    try:
        step = do(plain_call.CHECK, bench)
    finally:
        hook.remove()
    assert step.status == NOT_OK and step.detail["blocks"]["up.0.1"]["not finite"] == 2
    assert step.detail["blocks"]["mid.0"]["not finite"] == 0


def test_rows_that_mix_while_they_are_decoded_are_seen(bench, engine):
    vae = engine.sampler.pipeline.vae
    decode = vae.decode
    mixed = lambda rows, **options: decode(rows + 0.1 * rows.mean(dim=0), **options)  # noqa: E731
    with in_place(vae, "decode", mixed):
        step = do(decoding.CHECK, bench)
    assert step.status == NOT_OK and "row 3 of 4 depends on the others" in step.figure


@pytest.mark.slow
def test_a_denoiser_that_is_not_finite_is_seen(bench, engine):
    hook = engine.sampler.denoiser.register_forward_hook(lambda _m, _a, output: (output[0] * float("nan"),))
    try:
        assert do(denoiser.CHECK, bench).status == NOT_OK
    finally:
        hook.remove()


@pytest.mark.slow
def test_replayed_images_that_differ_are_named(bench_of_two, monkeypatch):
    regenerate = Sampler.regenerate

    def wrong(self, requests, originals):
        for i, image in enumerate(regenerate(self, requests, originals)):
            yield image + (i == 3)

    monkeypatch.setattr(Sampler, "regenerate", wrong)
    step = do(exactness.CHECK, bench_of_two)
    assert step.status == NOT_OK and "zero strength changes" not in step.figure
    assert step.detail["in batches of 4"]["differ"] == step.detail["after a halving"]["differ"] == ["up.0.0+up.0.1"]


@pytest.mark.slow
def test_zero_strength_that_is_not_exact_and_a_batch_that_is_not_halved_are_seen(bench_of_two, monkeypatch):
    monkeypatch.setattr(exactness, "_no_room_for", lambda _denoiser, _rows: nullcontext())
    zeros = exactness._zeros
    monkeypatch.setattr(exactness, "_zeros", lambda original: shifted(zeros(original)))
    step = do(exactness.CHECK, bench_of_two)
    assert step.status == NOT_OK and "the batch size is 4 after a halving of 4" in step.figure
    assert "zero strength changes the image in batches of 4" in step.figure


def shifted(intervention: Intervention) -> Intervention:
    additions = {site: dataclasses.replace(a, values=a.values + 1) for site, a in intervention.additions.items()}
    return Intervention(additions)


@pytest.mark.slow
def test_a_method_that_fails_is_named_with_its_reason(bench, monkeypatch):
    class Broken:
        name, strength, sites = "broken", 1.0, "block"

        def plan(self, case):
            raise UserError("the dictionary is of another world")

    def variants(methods, _subsets_of, blocks):
        return [variant_of(method, tuple(blocks)) for method in methods]

    monkeypatch.setattr(whole_cases, "_methods", lambda _bench, _engine, methods: ([methods[0], Broken()], {}))
    monkeypatch.setattr(whole_cases, "plan_variants", variants)
    step = do(whole_cases.CHECK, bench)
    assert step.status == NOT_OK and step.figure.startswith("broken: the dictionary is of another world")
    assert step.detail["status"] == {"ok": 2, "failed": 2}


@pytest.mark.slow
def test_a_category_without_a_region_is_named(bench, engine):
    class Blind:
        settings = {}

        def detections(self, images, phrases):
            return [torch.zeros(0, *images.shape[-2:], dtype=torch.bool) for _ in phrases]

    with in_place(engine.regions, "grounder", Blind()):
        step = do(regions.CHECK, bench)
    assert step.status == NOT_OK and "no region in any edit of change_object" in step.figure
    assert "no region in any edit of change_style" not in step.figure  # the whole image, whatever is in it
    assert (bench.out / "regions" / "change_object-00.png").is_file()


def test_guidance_wants_a_guided_model(bench, monkeypatch):
    monkeypatch.setattr(guidance, "backbone_folder", refuse_folder)
    step = do(guidance.CHECK, bench)
    assert step.status == NOT_POSSIBLE and step.figure == "no weights -> fetch them"


def refuse_folder(*_):
    raise UserError("no weights", remedy="fetch them")


def test_time_of_a_part_within_another_is_its_own():
    now = count()
    clock = Clock(lambda: float(next(now)))  # a second between any two looks
    inner = clock.timed("inner", lambda: "made")

    def made():
        yield inner()
        yield "last"

    steps = clock.timed_steps("steps", made)
    with clock.part("outer"):
        assert list(steps()) == ["made", "last"]
    assert clock.seconds == {"outer": 4.0, "steps": 4.0, "inner": 1.0}
    assert next(now) == 10 and sum(clock.seconds.values()) == 9


def test_sizes_that_do_not_fit_are_said_and_no_fault_but_for_the_smallest():
    def work(size):
        if size > room:
            raise torch.OutOfMemoryError("too large")
        return size * 10

    room = 8
    assert measure.sizes_that_fit((16, 4, 8, 32), work) == ({4: 40, 8: 80}, "16 rows do not fit into memory")
    room = 99
    assert measure.sizes_that_fit((4, 8), work) == ({4: 40, 8: 80}, "")
    room = 1
    with pytest.raises(torch.OutOfMemoryError):
        measure.sizes_that_fit((4, 8), work)


def test_what_stands_in_for_an_attribute_is_gone_afterwards():
    class Owner:
        def name(self):
            return "own"

    owner = Owner()
    with pytest.raises(ValueError), in_place(owner, "name", lambda: "other"):
        assert owner.name() == "other"
        raise ValueError
    assert owner.name() == "own" and vars(owner) == {}
    owner.name = "mine"
    with in_place(owner, "name", "other"):
        assert owner.name == "other"
    assert owner.name == "mine"
