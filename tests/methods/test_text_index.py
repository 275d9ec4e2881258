"""The text index against a slow numpy computation and planted truths, and the method that chooses features with it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from rows import rows_of
from safetensors.torch import save_file
from sdxl_blocks import BLOCK_NAMES
from slow_sae import slow_encode

from baselines.text_selected import TextSelected
from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.pictures import eight_bits
from riebench.dictionaries.edit_prompts import edit_prompts
from riebench.dictionaries.prompts import world_prompts
from riebench.dictionaries.text_index import FIRST_SEED, RIDGE, build_text_index, index_text
from riebench.edits.edit import Edit, load_edits
from riebench.generation.sampler import Request
from riebench.methods.method import Case
from riebench.methods.text_index import (
    TextIndex,
    find_text_index,
    load_text_index,
    save_text_index,
    score_features,
    text_index_path,
)
from sae_models import index
from sae_models.topk import TopKConfig, TopKSAE

STEPS, WIDTH, GRID, TEXT = 2, 6, (3, 4), 5
WORDS = ("red", "blue", "sea", "hat", "star")
EDIT = Edit("e", "change_colour", "a red star", "a blue star", "star", "star")


def in_cells(value_tchw: torch.Tensor) -> torch.Tensor:
    """`[steps, cells, C]`, cells in reading order."""
    return value_tchw.flatten(2).transpose(1, 2)


class Widths(Blocks):
    """Blocks without a denoiser, which are as wide as any dictionary."""

    def width(self, site):
        return ANY


class Bags:
    """A sampler whose text vectors say which of `WORDS` a prompt holds, mixed by a fixed matrix, and whose updates are
    what `update(word counts, noise)` makes of them, `[steps, C, h, w]`."""

    device, backbone, blocks = torch.device("cpu"), SimpleNamespace(family=SDXL, name="bags"), Widths(SDXL, None)

    def __init__(self, update, batch_size: int = 3) -> None:
        self.update, self.batch_size = update, batch_size
        self.mixing = torch.randn(len(WORDS), TEXT, generator=torch.Generator().manual_seed(0))

    def text_vector(self, prompt):
        return self.counts(prompt) @ self.mixing

    def counts(self, prompt):
        return torch.tensor([float(word in prompt.split()) for word in WORDS])

    def trace(self, requests, capture):
        return [
            {
                site: in_cells(self.update(self.counts(r.prompt), torch.Generator().manual_seed(r.seed)))
                for site in capture
            }
            for r in requests
        ]


class Rectified:
    """The dictionary whose features are the positive parts of the coordinates."""

    num_features = width = len(WORDS)

    def encode(self, x_nd):
        return x_nd.clamp_min(0)


def random_prompts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(word for word in WORDS if rng.random() < 0.5) or "nothing" for _ in range(count)]


def random_sae(seed: int = 0) -> TopKSAE:
    sae = TopKSAE(TopKConfig(width=WIDTH, num_features=10, k=4), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.b_enc[7] = -1e3  # never fires
    return sae


def test_the_index_equals_a_slow_regression():
    def update(counts, generator):
        return torch.randn(STEPS, WIDTH, *GRID, generator=generator) + counts.sum()

    sampler, sae, prompts = Bags(update), random_sae(), random_prompts(20)
    found = build_text_index(sampler, {"mid.0": sae}, prompts, seed=5)["mid.0"]

    z_pnf = np.array(
        [
            [slow_encode(sae, row) for row in update(sampler.counts(prompt), torch.Generator().manual_seed(5 + p))
             .double().numpy().transpose(0, 2, 3, 1).reshape(-1, WIDTH)]
            for p, prompt in enumerate(prompts)
        ]
    )  # fmt: skip
    t_pe = np.array([sampler.text_vector(prompt).double().numpy() for prompt in prompts])
    t_pe = t_pe - t_pe.mean(axis=0)
    a_pf = z_pnf.mean(axis=1) - z_pnf.mean(axis=(0, 1))
    fired = z_pnf > 0
    ridge = RIDGE * (t_pe**2).sum() / TEXT
    for f in range(sae.num_features):
        # ridge regression as least squares with TEXT more rows, which ask for zero
        rows = np.concatenate([t_pe, np.sqrt(ridge) * np.eye(TEXT)])
        slope = np.linalg.lstsq(rows, np.concatenate([a_pf[:, f], np.zeros(TEXT)]), rcond=None)[0]
        expected = slope / np.linalg.norm(slope) if fired[..., f].any() else np.zeros(TEXT)
        np.testing.assert_allclose(found.directions[f].numpy(), expected, atol=1e-4)
        assert found.active[f] == pytest.approx(np.mean([fired[p, :, f].any() for p in range(len(prompts))]))
        if fired[..., f].any():
            assert found.typical[f] == pytest.approx(z_pnf[..., f][fired[..., f]].mean(), rel=1e-4)
    assert not fired[..., 7].any() and found.active[7] == found.typical[7] == 0


def plant(counts, generator):
    """Channel w of every cell is word w's count, in a fraction of the cells."""
    cells = torch.rand(1, 1, *GRID, generator=generator) < 0.7
    return counts[None, :, None, None] * cells - 0.1


def test_the_contrast_of_a_word_finds_the_feature_that_fires_with_it():
    sampler = Bags(plant)
    found = build_text_index(sampler, {"mid.0": Rectified()}, random_prompts(200), seed=0)["mid.0"]
    for number, word in enumerate(WORDS):
        score = score_features(found, sampler.text_vector(f"a {word}"), sampler.text_vector("a"))
        assert score.argmax() == number
        assert score_features(found, sampler.text_vector("a"), sampler.text_vector(f"a {word}")).argmin() == number


def test_words_that_mostly_stand_together_are_told_apart():
    rng = np.random.default_rng(1)
    prompts = []
    for _ in range(400):  # the sea is blue nine times out of ten, and what is blue is mostly the sea
        sea = rng.random() < 0.5
        blue = sea if rng.random() < 0.9 else not sea
        prompts.append(" ".join(["a", *(["sea"] if sea else []), *(["blue"] if blue else []), "star"]))
    sampler = Bags(plant)
    found = build_text_index(sampler, {"mid.0": Rectified()}, prompts, seed=0)["mid.0"]
    score = score_features(found, sampler.text_vector("a blue star"), sampler.text_vector("a star"))
    assert score[WORDS.index("blue")] > 5 * abs(score[WORDS.index("sea")])


def test_an_index_does_not_depend_on_the_batches():
    one, other = (
        build_text_index(Bags(plant, size), {"mid.0": Rectified()}, random_prompts(11), seed=3)["mid.0"]
        for size in (2, 11)
    )
    for field in dataclasses.fields(TextIndex):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name))


def test_one_prompt_is_refused():
    with pytest.raises(UserError, match="contrast"):
        build_text_index(Bags(plant), {"mid.0": Rectified()}, ["a red star"], seed=0)


def small_index() -> TextIndex:
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator))
    return TextIndex(directions, torch.rand(4, generator=generator), torch.rand(4, generator=generator))


def test_an_index_survives_its_file(tmp_path):
    saved = small_index()
    save_text_index(tmp_path / "i.safetensors", saved)
    loaded = load_text_index(tmp_path / "i.safetensors")
    torch.testing.assert_close(loaded.directions, saved.directions, atol=1e-3, rtol=0)
    assert torch.equal(loaded.typical, saved.typical) and torch.equal(loaded.active, saved.active)
    assert loaded.directions.dtype == torch.float32


@pytest.mark.parametrize("how", ["truncated", "no safetensors", "a name too few", "shapes", "NaN"])
def test_a_broken_index_is_a_user_error(tmp_path, how):
    path = tmp_path / "i.safetensors"
    save_text_index(path, small_index())
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "no safetensors":
        path.write_bytes(b"directions")
    elif how == "a name too few":
        save_file({"directions": torch.zeros(4, 3), "typical": torch.zeros(4)}, path)
    elif how == "shapes":
        save_file({"directions": torch.zeros(4, 3), "typical": torch.zeros(5), "active": torch.zeros(4)}, path)
    else:
        save_text_index(path, dataclasses.replace(small_index(), typical=torch.full((4,), torch.nan)))
    with pytest.raises(UserError, match="i.safetensors.* -> delete"):
        load_text_index(path)


def test_an_index_is_found_in_the_cache_and_a_missing_one_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fingerprint = "0123456789abcdef" * 4
    assert text_index_path(fingerprint) == tmp_path / "riebench" / "text_index" / "0123456789abcdef.safetensors"
    with pytest.raises(UserError, match="riebench index-text --backbone"):
        find_text_index(fingerprint)
    with pytest.raises(UserError, match="riebench index-text --backbone"):
        load_text_index(text_index_path(fingerprint))
    save_text_index(text_index_path(fingerprint), small_index())
    assert torch.equal(find_text_index(fingerprint).typical, small_index().typical)


@pytest.mark.slow
def test_index_text_writes_a_file_for_each_dictionary(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text("\n".join(world_prompts(6, 1)) + "\n\n")
    found = index_text("tinyworld-turbo@1", tmp_path / "prompts.txt", tmp_path / "out", "cpu")
    for block in BLOCK_NAMES:
        entry = index.find("tinyworld-turbo@1", block)
        assert found[block] == tmp_path / "out" / f"{index.fingerprint(entry)[:16]}.safetensors"
        assert len(load_text_index(found[block]).directions) == entry.num_features
    again = index_text("tinyworld-turbo@1", 2, device="cpu")
    assert {path.parent for path in again.values()} == {tmp_path / "cache" / "riebench" / "text_index"}


class Enough(Exception):
    """Ends an indexing once its prompts are read."""


def test_sdxls_prompts_are_those_of_the_shipped_edits_or_ones_own(tmp_path, monkeypatch):
    read = []

    def build(sampler, dictionaries, prompts, seed, site):
        read.extend(prompts)
        raise Enough

    monkeypatch.setattr("riebench.dictionaries.text_index.build_text_index", build)
    monkeypatch.setattr("riebench.dictionaries.text_index.load_sampler", lambda *_: None)
    monkeypatch.setattr("sae_models.index.open", lambda *_, **__: None)
    with pytest.raises(Enough):
        index_text("sdxl-turbo@4", 10, device="cpu")
    assert read == edit_prompts(10, FIRST_SEED)
    (tmp_path / "mine.txt").write_text("a cat\na dog\n")
    for source in (tmp_path / "mine.txt", str(tmp_path / "mine.txt")):
        read.clear()
        with pytest.raises(Enough):
            index_text("sdxl-turbo@1", source, device="cpu")
        assert read == ["a cat", "a dog"]
    with pytest.raises(UserError, match="none.txt"):
        index_text("sdxl-turbo@1", tmp_path / "none.txt")
    with pytest.raises(UserError, match="riebench fetch released-k160-x4"):
        monkeypatch.undo()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        index_text("sdxl-turbo@4", 10, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_the_shipped_index_is_that_of_its_dictionary(sampler, block):
    entry = index.find("tinyworld-turbo@1", block)
    path = text_index_path(index.fingerprint(entry))
    assert path.parent == data_folder() / "tinyworld" / "text_index"
    shipped = load_text_index(path)
    assert shipped.directions.shape == (entry.num_features, len(sampler.text_vector("a circle")))
    fired = shipped.active > 0
    torch.testing.assert_close(shipped.directions.norm(dim=1), fired.float(), atol=2e-3, rtol=0)
    rows = rows_of(sampler, [block], world_prompts(48, 77, "held_out"), seed=77)[block]
    z_nf = index.open(entry).encode(rows)
    often = (z_nf > 0).float().mean(0) > 0.02
    seen = z_nf.sum(0) / (z_nf > 0).sum(0)
    assert often.sum() > 50 and fired[often].all()
    assert ((shipped.typical[often] / seen[often]).log().abs() < 0.5).float().mean() > 0.95


class Unseen:
    """Stands for what may not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError("the edited image was looked at")

    def __getitem__(self, key):
        raise AssertionError("the edited image was looked at")

    __iter__ = __len__ = __contains__ = __getitem__


def blind_case(seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    sites = [Site("mid.0"), Site("up.0.1")]
    original = {site: in_cells(torch.randn(STEPS, WIDTH, *GRID, generator=generator)) for site in sites}
    cells = {site.block: (torch.rand(*GRID, generator=generator) < 0.5).flatten() for site in sites}
    indices = {
        site.block: TextIndex(
            torch.nn.functional.normalize(torch.randn(10, TEXT, generator=generator)),
            torch.rand(10, generator=generator) + 0.5,
            (torch.arange(10) != 7) * 0.5,
        )
        for site in sites
    }
    saes = {site.block: random_sae(number) for number, site in enumerate(sites)}
    text = Bags(plant).text_vector
    return Case(
        EDIT, seed, original, Unseen(), cells, Unseen(), saes.__getitem__, text=text, text_index=indices.__getitem__
    )


def slow_plan(case: Case, k: int, strength: float, pool: str, only_add: bool) -> dict[str, np.ndarray]:
    difference = (case.text(case.edit.edited_prompt) - case.text(case.edit.original_prompt)).double().numpy()
    ranked, values = [], {}
    for site, trace in case.original.items():
        chosen = case.text_index(site.block)
        places = list(zip(*np.nonzero(case.original_cells[site.block].numpy().reshape(GRID)), strict=True))
        for t in range(STEPS):
            for r, c in places:
                row = trace[t, r * GRID[1] + c].double().numpy()
                values[site, t, r, c] = slow_encode(case.sae(site.block), row)
        there = {f for (s, *_), z in values.items() if s == site for f in np.flatnonzero(z)}
        for f in range(10):
            score = float(chosen.directions[f].double().numpy() @ difference)
            ranked.append((score, site, f, chosen.active[f] > 0, f in there))
    groups = [list(case.original)] if pool == "all" else [[site] for site in case.original]
    on, off = set(), set()
    for group in groups:
        inside = sorted((item for item in ranked if item[1] in group), key=lambda item: item[0])
        on |= {item[1:3] for item in [i for i in inside if i[0] > 0 and i[3]][::-1][:k]}
        off |= {item[1:3] for item in [i for i in inside if i[0] < 0 and i[4]][:k]}
    out = {site.block: np.zeros((STEPS, WIDTH, *GRID)) for site in case.original}
    for (site, t, r, c), z in values.items():
        w_dec = case.sae(site.block).W_dec.detach().double().numpy()
        for s, f in on:
            if s == site:
                out[site.block][t, :, r, c] += strength * float(case.text_index(site.block).typical[f]) * w_dec[f]
        for s, f in off if not only_add else ():
            if s == site:
                out[site.block][t, :, r, c] -= strength * z[f] * w_dec[f]
    return out


@pytest.mark.parametrize("pool", ["block", "all"])
@pytest.mark.parametrize("only_add", [False, True])
def test_a_plan_equals_the_slow_one_and_never_looks_at_the_edited_image(pool, only_add):
    for seed in range(4):
        case = blind_case(seed)
        plan = TextSelected(k=2, strength=1.5, pool=pool, only_add=only_add).plan(case)
        slow = slow_plan(case, 2, 1.5, pool, only_add)
        for site, added in plan.additions.items():
            found = added.dense(GRID[0] * GRID[1]).numpy().transpose(0, 2, 1).reshape(STEPS, WIDTH, *GRID)
            np.testing.assert_allclose(found, slow[site.block], atol=1e-4)
        assert any(np.abs(value).max() > 0.1 for value in slow.values())
        counts = {name: sum(map(len, sides.values())) for name, sides in plan.chosen.items()}
        assert counts == plan.features and not any(7 in sides["on"] for sides in plan.chosen.values())


def test_strength_scales_window_and_branch_pass_through_and_equal_prompts_change_nothing():
    case = blind_case()
    one, three = (TextSelected(k=3, strength=m, window="first", branch="cond").plan(case) for m in (1.0, 3.0))
    for site, added in one.additions.items():
        assert torch.equal(added.cells, three.additions[site].cells) and added.values.norm() > 0
        torch.testing.assert_close(3 * added.values, three.additions[site].values)
    assert (one.window, one.branch) == ("first", "cond")
    same = dataclasses.replace(case, edit=dataclasses.replace(EDIT, edited_prompt=EDIT.original_prompt))
    assert TextSelected().plan(same).norm == 0


@pytest.mark.parametrize(
    "settings",
    [{"mode": "replace"}, {"keep_spatial": False}, {"statistic": "max"}, {"placement": "original"}, {"pool": "blocks"}]
    + [{"k": 0}],
)
def test_settings_that_need_an_edited_trace_or_mean_nothing_are_refused(settings):
    with pytest.raises(UserError):
        TextSelected(**settings)


def test_an_index_of_another_dictionary_is_refused():
    with pytest.raises(UserError, match="4 features"):
        TextSelected().plan(dataclasses.replace(blind_case(), text_index=lambda block: small_index()))


def successes(engine, references, plans) -> list[float]:
    """1 for each picture in which tinyworld's oracle reads the edit, else 0."""
    requests = [
        Request(r.case.edit.original_prompt, r.case.seed, plan) for r, plan in zip(references, plans, strict=True)
    ]
    images = engine.sampler.regenerate(requests, [reference.sample for reference in references])
    rows = [(r.case.edit, r.pictures, eight_bits(image)) for r, image in zip(references, images, strict=True)]
    return [row["oracle_success"] for row in engine.scorer.score(rows)]


@pytest.mark.slow
def test_chosen_features_make_more_of_tinyworlds_edits_than_others_of_equal_norm_do(engine):
    kinds = ("change_object", "change_content", "change_pose")
    edits = [edit for kind in kinds for edit in load_edits() if edit.category == kind][::5]
    references = engine.references([(edit, 7) for edit in edits])
    indices = {
        block: find_text_index(index.fingerprint(index.find("tinyworld-turbo@1", block))) for block in BLOCK_NAMES
    }
    generator = torch.Generator().manual_seed(0)
    shuffled = {
        block: dataclasses.replace(i, directions=i.directions[torch.randperm(len(i.directions), generator=generator)])
        for block, i in indices.items()
    }
    chosen, others = [], []
    for reference in references:
        case = dataclasses.replace(
            reference.case, text=engine.sampler.text_vector, text_index=indices.__getitem__, edited={}, edited_cells={}
        )
        chosen.append(TextSelected().plan(case))
        case = dataclasses.replace(case, text_index=shuffled.__getitem__)
        strength = chosen[-1].norm / TextSelected(strength=1.0).plan(case).norm
        others.append(TextSelected(strength=strength).plan(case))
        assert others[-1].norm == pytest.approx(chosen[-1].norm, rel=1e-4)
    made, chance = (sum(successes(engine, references, plans)) for plans in (chosen, others))
    assert made >= chance + 5  # of 36
