"""TF32: stated for a process with a GPU, in keys and in what a manifest says; nothing of it on a CPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from riebench.backbones.table import BACKBONES
from riebench.core.precision import describe_float32, set_tf32
from riebench.edits.edit import load_edits
from riebench.methods.modes import mode_named
from riebench.runs.plan import plan, plan_variants
from riebench.runs.setup import Setup


@pytest.fixture
def flags(monkeypatch):
    """Convolutions without TF32 and products with it, put back afterwards."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)


def state():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_products_are_computed_as_the_mode_says_and_convolutions_as_torch_does(flags):
    set_tf32("cpu", products=False)
    assert state() == (False, True)  # left alone
    set_tf32("cuda", products=mode_named("reference").tf32_products)
    assert state() == (True, False)
    set_tf32("cuda", products=mode_named("strict").tf32_products)
    assert state() == (True, True)
    assert describe_float32("cuda", products=True) == {"float32": {"convolutions": "tf32", "products": "tf32"}}
    assert describe_float32("cuda", products=False) == {"float32": {"convolutions": "tf32", "products": "ieee"}}
    assert describe_float32("cpu", products=True) == {}


def test_keys_tell_a_gpu_s_float32_from_a_cpu_s(monkeypatch):
    import riebench.runs.plan as plans
    from baselines.noop import NoOp

    backbone, cases = BACKBONES.get("tinyworld-turbo@1"), [(load_edits()[0], 42)]
    variants = plan_variants([NoOp()], "", backbone.blocks)

    def recipe(setup, *device):
        (task,) = plan(backbone, cases, variants, setup, (), *device)
        return task.wanted[0].recipe, task.original.recipe

    strict, reference = Setup(), Setup(mode="reference", mask_rule="published")
    assert recipe(strict) == recipe(strict, "cpu")
    assert not set(recipe(strict, "cuda")) & set(recipe(strict, "cpu"))
    as_in_reference = dataclasses.replace(mode_named("strict"), tf32_products=False)
    there = recipe(strict, "cuda")
    monkeypatch.setattr(Setup, "rules", as_in_reference)
    assert not set(recipe(strict, "cuda")) & set(there) and recipe(strict, "cpu") == recipe(strict)
    monkeypatch.undo()
    monkeypatch.setattr(plans, "describe_float32", lambda *_, **__: {})  # as keys were before
    assert recipe(strict) == recipe(strict, "cuda") != recipe(reference)
