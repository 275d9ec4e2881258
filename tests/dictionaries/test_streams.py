"""Dictionaries of what blocks put out: harvested, trained, found, evaluated and used beside those of updates."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.dictionaries.data import Generated
from riebench.dictionaries.evaluate import evaluate
from riebench.dictionaries.harvest import harvest_to_store
from riebench.dictionaries.prompts import world_prompts
from riebench.dictionaries.settings import defaults_for, make_config, make_grid
from riebench.dictionaries.train import train_dictionaries
from riebench.generation.interventions import Intervention
from riebench.generation.live import Reconstruct
from riebench.generation.replacement import Scope, replaced
from riebench.generation.sampler import Request, Sampler
from riebench.runs.setup import Setup
from sae_models import index

TURBO, BLOCKS = "tinyworld-turbo@1", ("mid.0", "up.0.1")


@pytest.fixture(scope="module")
def trained(sampler, tmp_path_factory):
    """A folder with small dictionaries of updates and of streams of two blocks."""
    folder = tmp_path_factory.mktemp("saes")
    grid = make_grid(defaults_for(TURBO), k=(4,), expansions=(1,))
    for site in ("update", "stream"):
        data = Generated(Sampler(sampler.backbone, sampler.pipeline, 16), BLOCKS, world_prompts(32, 5), 5, site=site)
        config, batch_size = make_config(defaults_for(TURBO), data, steps=8, batch_size=256)
        train_dictionaries(data, grid, folder, config, batch_size)
    return folder


def test_rows_of_streams_are_what_the_lens_sees(sampler, tmp_path):
    few, prompts = Sampler(sampler.backbone, sampler.pipeline, 4), world_prompts(3, 9)
    store = harvest_to_store(few, BLOCKS, prompts, 70, tmp_path, site="stream")
    assert store.origin.made_by["site"] == "stream"
    sites = [Site(block, "stream") for block in BLOCKS]
    traces = few.trace([Request(prompt, 70 + i) for i, prompt in enumerate(prompts)], sites)
    for site in sites:
        rows = torch.cat(list(store.values_from(site.block, 0)))
        seen = torch.cat([trace[site][0] for trace in traces])  # prompts are encoded alone here: rounding differs
        torch.testing.assert_close(rows.float(), seen, atol=0.02, rtol=2**-7)


@pytest.mark.slow
def test_both_kinds_stand_beside_each_other_and_are_found_by_what_they_code(trained):
    entries = index.entries(trained)
    assert sorted((entry.block, entry.name, entry.site) for entry in entries) == [
        ("mid.0", "topk-k4-x1", "update"),
        ("mid.0", "topk-k4-x1-stream", "stream"),
        ("up.0.1", "topk-k4-x1", "update"),
        ("up.0.1", "topk-k4-x1-stream", "stream"),
    ]
    assert index.find(TURBO, "mid.0", root=trained).name == "topk-k4-x1"
    assert index.find(TURBO, "mid.0", root=trained, site="stream").name == "topk-k4-x1-stream"
    with pytest.raises(UserError, match="no dictionary of the stream is known for tinyworld-turbo@1 mid.0"):
        index.find(TURBO, "mid.0", site="stream")


def test_a_run_s_methods_get_those_of_its_site(sampler, trained):
    for site in ("update", "stream"):
        setup = Setup(dictionaries=str(trained), site=site)
        entry, _ = setup.dictionary_of(sampler.backbone, "up.0.1")
        assert entry.site == site


@pytest.mark.slow
def test_streams_are_evaluated_as_streams(trained, monkeypatch):
    monkeypatch.setattr("riebench.dictionaries.evaluate.OWN_ROWS", 4 * 64)
    found = evaluate(TURBO, [], 2, 0, root=trained, site="stream", device="cpu")
    own = evaluate(TURBO, [], 2, 0, root=trained, device="cpu")
    assert {row["name"] for row in found["dictionaries"]} == {"topk-k4-x1-stream"}
    assert {row["name"] for row in own["dictionaries"]} == {"topk-k4-x1"}
    figures = [row["dictionaries"][0]["on"][TURBO]["cond"]["all_steps"] for row in (found, own)]
    assert figures[0]["explained_variance_pooled"] != figures[1]["explained_variance_pooled"]


def test_a_replaced_stream_is_the_whole_output_of_the_block(sampler, trained):
    entry = index.find(TURBO, "mid.0", root=trained, site="stream")
    sae, site = index.open(entry, root=trained), Site("mid.0", "stream")
    few, request = Sampler(sampler.backbone, sampler.pipeline, 2), Request("a red heart", 3)
    (plain,) = few.generate([request], [site])
    with replaced(few, {"mid.0": sae}, Scope(), site="stream"):
        (changed,) = few.generate([request])
    by_hand = Intervention({site: Reconstruct(sae).delta(plain.trace[site], 0)})
    (expected,) = few.generate([dataclasses.replace(request, intervention=by_hand)])
    torch.testing.assert_close(changed.image, expected.image, atol=1e-4, rtol=0)
    assert not torch.equal(changed.image, plain.image)
