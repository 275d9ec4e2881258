"""What a family says: the names of sites, the places of blocks, and blocks in the order in which they run."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest

from riebench.backbones.family import KINDS, Site, blocks_text
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES
from riebench.core.errors import UserError

NAMES = {
    Site("mid.0"): "mid.0",
    Site("up.0.1", "update"): "up.0.1",
    Site("mid.0", "stream"): "mid.0/stream",
    Site("down.2.1", "neurons", 0): "down.2.1/neurons.0",
    Site("mid.0", "neurons", 13): "mid.0/neurons.13",
    Site("up.0.0", "attention", 9): "up.0.0/attention.9",
    Site("mid.0", "text"): "mid.0/text",
}


def test_every_kind_of_site_has_a_name_and_is_read_back_from_it():
    assert {site.kind for site in NAMES} == set(KINDS)
    assert {site: site.name for site in NAMES} == NAMES
    assert {Site.parse(name): name for name in NAMES.values()} == NAMES
    assert Site.parse("mid.0/update") == Site("mid.0"), "spelt out"
    assert len({site.name for site in NAMES}) == len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mid.0/strem", r"no sites of kind 'strem'; did you mean 'stream'.* -> use one of update, stream, neurons"),
        ("", "'' is no site -> write mid.0"),
        ("/stream", "'/stream' is no site"),
        ("mid.0/", "'mid.0/' is no site"),
        ("mid.0/update.1", "a site of kind update has layer 1"),
        ("mid.0/stream.", "'mid.0/stream.' is no site"),
        ("mid.0/neurons.03", "'mid.0/neurons.03' is no site"),
        ("mid.0/neurons", "a site of kind neurons has layer None -> give a layer"),
        ("mid.0/neurons.", "a site of kind neurons has layer None"),
        ("mid.0/neurons.x", "a site of kind neurons has layer None"),
        ("mid.0/neurons.-1", "a site of kind neurons has layer None"),
        ("mid.0/stream.x", "'mid.0/stream.x' is no site -> write mid.0, mid.0/stream or mid.0/neurons.3"),
        ("mid.0/stream.1", "a site of kind stream has layer 1"),
    ],
)
def test_what_is_no_name_of_a_site_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        Site.parse(name)


@pytest.mark.parametrize(("kind", "layer"), [("update", 0), ("stream", 2), ("neurons", None), ("attention", None)])
def test_a_layer_goes_with_neurons_and_with_nothing_else(kind, layer):
    with pytest.raises(UserError, match=" -> "):
        Site("mid.0", kind, layer)


def test_a_site_is_fixed_and_is_a_key():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Site("mid.0").kind = "stream"
    assert {Site("mid.0"): 1}[Site.parse("mid.0")] == 1


def test_blocks_come_in_the_order_in_which_they_run_each_once():
    assert SDXL.in_order(("up.0.1", "mid.0", "up.0.1", "down.1.0")) == ("down.1.0", "mid.0", "up.0.1")
    assert SDXL.in_order(reversed(SDXL.places)) == tuple(SDXL.places) and SDXL.in_order(()) == ()
    assert blocks_text(SDXL.in_order(("up.0.0", "mid.0"))) == "mid.0+up.0.0" and blocks_text(()) == ""


def test_an_unknown_block_is_refused_with_what_was_meant():
    with pytest.raises(UserError, match=r"unknown block 'up.0.7'; did you mean 'up.0.\d'.* -> use blocks out of down"):
        SDXL.place("up.0.7")
    with pytest.raises(UserError, match="unknown block 'middle.0'"):
        SDXL.in_order(("mid.0", "middle.0"))
    turbo = BACKBONES.get("tinyworld-turbo@1")
    with pytest.raises(UserError, match=r"unknown block 'mid.1'; did you mean 'mid.0'"):
        dataclasses.replace(turbo, blocks=("mid.1",))


def test_a_backbone_has_the_blocks_that_are_named_in_order_or_the_familys_own():
    turbo, base = BACKBONES.get("tinyworld-turbo@1"), BACKBONES.get("tinyworld-base@25")
    assert turbo.blocks == base.blocks == SDXL.default_blocks == ("down.2.1", "mid.0", "up.0.0", "up.0.1")
    other = dataclasses.replace(turbo, blocks=("up.0.2", "down.2.0"))
    assert other.blocks == ("down.2.0", "up.0.2") and other != turbo
    assert dataclasses.replace(turbo, blocks=()).blocks == SDXL.default_blocks
    assert turbo.branches == ("cond",) and base.branches == SDXL.guided_rows == ("uncond", "cond")


def test_a_family_is_the_same_object_in_every_copy():
    """A backbone goes to other processes, and its functions cannot be pickled by value."""
    turbo = BACKBONES.get("tinyworld-turbo@1")
    for copied in (pickle.loads(pickle.dumps(turbo)), copy.deepcopy(turbo)):
        assert copied == turbo and copied.family is SDXL


@pytest.mark.process
def test_importing_a_family_imports_no_torch():
    code = "import sys, riebench.backbones.sdxl\nassert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
