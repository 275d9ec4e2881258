"""`riebench evaluate`: what it puts together, the tables and the words of the command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES

from riebench.backbones.table import BACKBONES, Backbone
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.dictionaries.estimate import Work, said
from riebench.dictionaries.evaluate import evaluate, shown_steps
from riebench.dictionaries.generalisation import FIRST_SEED, evaluate_steps, held_out_captions
from riebench.dictionaries.kept import Kept
from riebench.dictionaries.reconstruction import reconstruction_effect, summarise
from riebench.dictionaries.tables import format_markdown, format_tables
from riebench.generation.replacement import Scope
from riebench.generation.sampler import Sampler
from riebench.metrics.models import ScoringModels
from sae_models import checkpoint, index
from sae_models.evaluation import geometry
from sae_models.topk import TopKConfig, TopKSAE

pytestmark = pytest.mark.slow  # what it runs takes a while, or the run that all its tests look at

TURBO = "tinyworld-turbo@1"
GUIDED = Backbone("guided@5", "tinyworld/turbo", 5, 3.0, "tinyworld", "tinyworld")


def write(root, block: str, k: int, seed: int, name: str) -> None:
    """An untrained dictionary, registered as if it had been trained on turbo."""
    sae = TopKSAE(TopKConfig(96, 192, k), seed=seed)
    folder = f"{block}/{name}"
    entry = index.Entry(name, TURBO, block, "topk", k, 192, 96, folder, checkpoint.save(root / folder, sae, {}))
    index.register(dataclasses.replace(entry, training={"steps": 600, "seed": seed}), root=root)


@pytest.fixture(scope="module", autouse=True)
def few_rows_and_steps():
    """On the backbone trained on three prompts at least, and of five steps three are shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("riebench.dictionaries.evaluate.OWN_ROWS", 3 * 64)
        patch.setattr("riebench.dictionaries.evaluate.SHOWN_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two blocks of one name, one of them trained with two seeds, and a third dictionary of the first block."""
    root = tmp_path_factory.mktemp("dictionaries")
    for block, k, seed, name in (
        ("up.0.1", 8, 0, "eight"), ("mid.0", 8, 0, "eight"), ("mid.0", 8, 5, "eight-s5"), ("mid.0", 4, 0, "four"),
    ):  # fmt: skip
        write(root, block, k, seed, name)
    return root


@pytest.fixture(scope="module")
def found(root):
    """Of two prompts on turbo at one step and on five guided steps; images of one, by one name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "DEFAULT_NAME", "eight")
        return evaluate(TURBO, [GUIDED], 2, 1, root=root, device="cpu")


def rows_of(page: str, title: str) -> list[list[str]]:
    """The cells of the table under a title."""
    table = page.split(f"### {title}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_everything_is_what_json_can_hold(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_dictionaries_are_evaluated_on_their_own_backbone_too_and_there_on_more_rows(found):
    assert [(on["backbone"], on["steps"], on["prompts"]) for on in found["on"]] == [(TURBO, 1, 3), ("guided@5", 5, 2)]
    assert [(row["block"], row["name"]) for row in found["dictionaries"]] == [
        ("mid.0", "four"), ("mid.0", "eight"), ("mid.0", "eight-s5"), ("up.0.1", "eight"),
    ]  # fmt: skip
    for row in found["dictionaries"]:
        own, guided = row["on"][TURBO], row["on"]["guided@5"]
        assert list(own) == ["cond"] and own["cond"]["all_steps"]["num_rows"] == 3 * 64
        assert list(guided) == ["cond", "uncond"] and guided["uncond"]["num_rows"] == [2 * 64] * 5


def test_each_figure_is_of_its_own_dictionary(found, root, sampler):
    for row in found["dictionaries"]:
        sae = index.open(index.find(TURBO, row["block"], row["name"], root=root), root=root)
        assert row["geometry"] == dataclasses.asdict(geometry(sae))
        (course,) = evaluate_steps(sampler, [(row["block"], sae)], held_out_captions(3), FIRST_SEED)
        wanted = course["cond"]["all_steps"]
        assert row["on"][TURBO]["cond"]["all_steps"] == pytest.approx(wanted, abs=1e-3)


def test_effects_are_those_of_the_images_in_every_branch_and_at_the_shown_steps(found, root, sampler):
    """One name of two blocks, alone and together, beside zero and mean."""
    of_guided = [effect for effect in found["effects"] if effect["backbone"] == "guided@5"]
    cases = [(effect["branch"], effect["step"]) for effect in of_guided]
    shown = [1, 2, 5]
    assert list(dict.fromkeys(cases)) == [
        ("both", None), ("cond", None), ("uncond", None), *(("both", step) for step in shown),
    ]  # fmt: skip
    for case in set(cases):
        assert [(e["blocks"], e["dictionary"], e["replacement"]) for e in of_guided if
                (e["branch"], e["step"]) == case] == [
            (blocks, "eight" if name == "reconstruction" else None, name)
            for blocks in ("mid.0", "up.0.1", "mid.0+up.0.1") for name in ("reconstruction", "zero", "mean")
        ]  # fmt: skip
    assert {(e["branch"], e["step"]) for e in found["effects"] if e["backbone"] == TURBO} == {("cond", None)}

    saes = {b: index.open(index.find(TURBO, b, "eight", root=root), root=root) for b in ("mid.0", "up.0.1")}
    here, models = Sampler(GUIDED, sampler.pipeline, 1), ScoringModels("tinyworld", "cpu")
    wanted = summarise(
        reconstruction_effect(here, {"a": saes}, held_out_captions(2)[:1], [FIRST_SEED], models, [Scope(window="1")])
    )
    at_two = [effect for effect in of_guided if effect["step"] == 2]
    for effect, row in zip(at_two, wanted.to_dict("records"), strict=True):
        assert (effect["blocks"], effect["replacement"]) == (row["blocks"], row["replacement"])
        for figure in ("lpips", "clip_image", "recovered"):
            assert effect[figure] == pytest.approx(row[figure], abs=1e-4)


def test_seeds_of_one_folder_are_compared(found):
    (pair,) = found["stability"]
    assert (pair["block"], pair["name"], pair["partner"]) == ("mid.0", "eight", "eight-s5")
    assert 0 < pair["cosine"] < 1 and 0 <= pair["shared_share"] <= 1


def test_names_decide_whose_images_are_made_and_none_are_made_of_no_prompts(root):
    named = evaluate(TURBO, [], 1, 1, names=["four", "eight-s5"], root=root, device="cpu")
    assert {effect["dictionary"] for effect in named["effects"]} == {"four", "eight-s5", None}
    assert {effect["blocks"] for effect in named["effects"]} == {"mid.0"} and named["stability"] == []
    images = rows_of(format_markdown(named), "Share of the LPIPS of zero updates that is recovered")
    assert [line[0] for line in images[3:]] == ["mid.0"] * 3
    assert evaluate(TURBO, [], 1, 0, names=["four"], root=root, device="cpu")["effects"] == []


def test_the_page_shows_the_figures_under_their_steps(found):
    page = format_markdown(found)
    own = rows_of(page, "Figures of the dictionaries")
    assert own[0][:5] == ["block", "dictionary", "EV pooled", "EV mean", "FVU"] and len(own) == 2 + 4
    of_four = found["dictionaries"][0]
    whole = of_four["on"][TURBO]["cond"]["all_steps"]
    assert own[2][2:4] == [f"{whole[name]:.3f}" for name in ("explained_variance_pooled", "explained_variance_mean")]
    assert own[0][8] == "rare" and own[2][8] == "-", "of few rows"
    assert own[2][-1] == f"{of_four['geometry']['nearest_cosine']:.3f}"

    steps = rows_of(page, "Explained variance, pooled")
    assert len({len(line) for line in steps}) == 1
    assert steps[0][2:5] == [TURBO, "guided@5 cond", ""] and steps[0][6] == "guided@5 uncond"
    assert steps[2][2:] == ["1", *2 * ["1", "2", "5"]]
    uncond = found["dictionaries"][1]["on"]["guided@5"]["uncond"]
    assert steps[4][:2] == ["mid.0", "eight"]
    assert steps[4][6:] == [f"{uncond['explained_variance_pooled'][step - 1]:.3f}" for step in (1, 2, 5)]
    overlap = rows_of(page, "Overlap of the active features at adjacent steps")
    assert overlap[2][2:6] == ["1-2", "2-3", "4-5", "1-2"]
    assert overlap[4][5:] == [f"{uncond['feature_overlap'][step - 1]:.3f}" for step in (1, 2, 4)]

    images = rows_of(page, "Share of the LPIPS of zero updates that is recovered")
    assert images[0][2:4] == [TURBO, "guided@5"]
    assert images[2][2:] == ["all", "all", "all cond", "all uncond", "1", "2", "5"]
    assert [line[:2] for line in images[3:]] == [
        [blocks, name] for blocks in ("mid.0", "up.0.1", "all") for name in ("eight", "mean")
    ]
    (effect,) = (
        e["recovered"] for e in found["effects"]
        if (e["backbone"], e["blocks"], e["replacement"], e["step"]) == ("guided@5", "up.0.1", "reconstruction", 5)
    )  # fmt: skip
    assert images[5][8] == f"{effect:.3f}"
    stability = rows_of(page, "Stability over seeds")
    assert stability[2][:3] == ["mid.0", "eight", "eight-s5"]
    assert stability[2][3] == f"{found['stability'][0]['cosine']:.3f}"

    text = format_tables(found)
    assert f"{uncond['feature_overlap'][0]:.3f}" in text and "mean over dimensions" not in text


def test_updates_of_all_blocks_are_called_all_and_what_is_undefined_is_a_dash(found):
    effect = found["effects"][0] | {"blocks": "+".join(BLOCK_NAMES), "recovered": None}
    images = rows_of(
        format_markdown(found | {"effects": [effect]}), "Share of the LPIPS of zero updates that is recovered"
    )
    assert images[3] == ["all", "eight", "-"]


def test_of_many_steps_the_first_and_the_ends_of_equal_parts_are_shown(monkeypatch):
    monkeypatch.setattr("riebench.dictionaries.evaluate.SHOWN_STEPS", 6)
    assert shown_steps(8) == [1, 2, 3, 5, 6, 8]
    assert shown_steps(25) == [1, 5, 10, 15, 20, 25] and shown_steps(4) == [1, 2, 3, 4] and shown_steps(0) == []


def test_the_command_prints_json_and_writes_the_page_it_says_how_to_make(root, tmp_path, capsys):
    words = ["evaluate", "--on", TURBO, "--dictionary", "eight,four", "--dictionaries", root]
    words += ["--count", 2, "--images", 1]
    assert main([str(word) for word in [*words, "--json", "--out", tmp_path / "page.md"]]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in printed["dictionaries"]] == ["four", "eight", "eight"]
    page = (tmp_path / "page.md").read_text()
    value = printed["dictionaries"][2]["on"][TURBO]["cond"]["explained_variance_mean"][0]
    assert ["up.0.1", "eight", f"{value:.3f}"] in rows_of(page, "Explained variance, mean over dimensions")
    assert f"riebench evaluate --trained-on {TURBO} --dictionary eight,four --on {TURBO} --count 2 --images 1" in page


def test_prompts_of_ones_own_are_evaluated_on(root, sampler, tmp_path):
    file, prompts = tmp_path / "prompts.txt", held_out_captions(3)
    file.write_text("\n".join(reversed(prompts)))
    found = evaluate(TURBO, [], 2, 1, source=str(file), names=["four"], root=root, device="cpu")
    assert found["on"][0]["prompts"] == 2 and f"of `{file}`, each with its own noise" in format_markdown(found)
    (row,) = found["dictionaries"]
    sae = index.open(index.find(TURBO, row["block"], "four", root=root), root=root)
    (course,) = evaluate_steps(sampler, [(row["block"], sae)], prompts[:0:-1], FIRST_SEED)
    assert row["on"][TURBO]["cond"]["l0"] == pytest.approx(course["cond"]["l0"])
    assert row["on"][TURBO]["cond"]["fvu_pooled"] == pytest.approx(course["cond"]["fvu_pooled"], rel=1e-4)
    with pytest.raises(UserError, match="holds 3 prompts"):
        evaluate(TURBO, [], 4, 0, source=str(file), names=["four"], root=root, device="cpu")


def test_an_evaluation_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    root, sampler, tmp_path, monkeypatch, capsys
):
    """Every attempt dies at its twelfth generation, of which five are timed and one shows the picture undisturbed."""
    models, calls, generate = ScoringModels("tinyworld", "cpu"), [], Sampler.generate
    monkeypatch.setattr("riebench.dictionaries.kept.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("riebench.dictionaries.evaluate.ScoringModels", lambda *_: models)
    monkeypatch.setattr(
        "riebench.dictionaries.evaluate.load_sampler", lambda backbone, _: Sampler(backbone, sampler.pipeline, 1)
    )
    few = Backbone("few@2", "tinyworld/turbo", 2, 0.0, "tinyworld", "tinyworld")

    def attempt(keep, deadly):
        def counted(self, *words, **more):
            calls.append(self.backbone.name)
            if len(calls) == deadly:
                raise KeyboardInterrupt
            return generate(self, *words, **more)

        calls.clear()
        monkeypatch.setattr(Sampler, "generate", counted)
        return evaluate(TURBO, [few], 2, 1, names=["four"], root=root, device="cpu", keep=keep)

    wanted = attempt(None, 0)
    assert len(calls) == 5 + (3 + 4) + (2 + 10)  # timed; prompts and pictures of each backbone
    said = capsys.readouterr().err
    assert "evaluating 3 prompts and 4 pictures on tinyworld-turbo@1; 2 prompts and 10 pictures on few@2: about" in said
    deaths, found = 0, None
    while found is None and deaths < 9:
        try:
            found = attempt(tmp_path, 12)
        except KeyboardInterrupt:
            deaths += 1
            assert len(list(tmp_path.iterdir())) == 1  # the folder of this evaluation
    assert found == wanted and deaths > 1
    assert not any(tmp_path.iterdir())  # nothing is left of what is done


@pytest.mark.process
def test_an_evaluation_is_known_again_by_another_process(root):
    code = """
import sys
from pathlib import Path
from riebench.backbones.table import BACKBONES
from riebench.dictionaries.evaluate import _key
from sae_models import index
root = Path(sys.argv[1])
backbones = [BACKBONES.get(name) for name in ("tinyworld-turbo@1", "tinyworld-base@25", "sdxl-turbo@4")]
print(_key(backbones, index.entries(root)[:4], {"eight": {}}, ["a cat"], int(sys.argv[2]), root, "update", "cpu"))
"""
    keys = [
        subprocess.run([sys.executable, "-c", code, root, images], stdout=subprocess.PIPE, check=True).stdout
        for images in "112"
    ]
    assert keys[0] == keys[1] != keys[2] and len(keys[0].strip()) == 16


def test_a_broken_part_is_made_again(tmp_path):
    kept = Kept(tmp_path / "one")
    kept.write("rows", [{"lpips": 0.1 + 0.2}])
    kept.write_tensors("sums", {"a": torch.tensor(0.1, dtype=torch.float64), "b": torch.arange(3)})
    assert kept.read("rows") == [{"lpips": 0.1 + 0.2}] and kept.read("others") is None
    assert torch.equal(kept.read_tensors("sums")["b"], torch.arange(3))
    for file in (tmp_path / "one").iterdir():
        file.write_bytes(file.read_bytes()[:9])
    assert kept.read("rows") is None and kept.read_tensors("sums") is None
    kept.clear()
    assert not (tmp_path / "one").exists() and Kept().read("rows") is None


@pytest.mark.parametrize(
    ("prompts", "images", "seconds", "words"),
    [
        (10, 0, 0.1, "about 5 s"),
        (600, 0, 0.1, "about 5 minutes"),
        (60_000, 0, 0.1, "about 8.3 hours"),
        (10, 8, 0.1, "9 s"),
    ],
)
def test_the_time_is_that_of_all_passes(prompts, images, seconds, words):
    """Five rows of the denoiser a picture; under guidance each is computed twice."""
    one = Work(Backbone("plain@5", "tinyworld/turbo", 5, 0.0, "tinyworld", "tinyworld"), prompts, images)
    assert words in said([one], seconds, seconds)
    assert GUIDED.guided and Work(GUIDED, 1, 0).passes(3) == 2 * one.passes(3) == 30


def test_what_cannot_be_evaluated_is_told_before_anything_is_made(root, tmp_path):
    def refused(match: str, *arguments, **settings) -> None:
        with pytest.raises(UserError, match=match):
            evaluate(*arguments, **{"root": root, "device": "cpu"} | settings)

    on = [BACKBONES.get(TURBO)]
    refused("0 prompts.*use at least 1", TURBO, on, 0, 1)
    refused("-1 prompts.*use 0 for none", TURBO, on, 1, -1)
    refused("did you mean 'four'", TURBO, on, 1, 1, names=["fuor"])
    refused("no dictionary was trained on 'tinyworld-turbo@2'", "tinyworld-turbo@2", on, 1, 1)
    write(tmp_path, "mid.0", 2, 0, "two")
    refused("no dictionary of the same.*leave --other out", TURBO, on, 1, 1, other=tmp_path)
    refused("no folder", TURBO, on, 1, 1, other=tmp_path / "nowhere")
