"""Step 9: one case of a model that is sampled with guidance, in many steps."""

from __future__ import annotations

from typing import Any

import torch

from baselines import METHODS
from riebench.backbones.folders import backbone_folder
from riebench.backbones.loading import choose_dtype
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.edits.edit import Edit
from riebench.regions.find import Regions
from riebench.regions.grounders import GROUNDERS
from riebench.runs.engine import Engine
from riebench.selftest.bench import SEED, Bench
from riebench.selftest.measure import Peak, finished
from riebench.selftest.step import Check, Found, NotPossible, one_line
from sae_models.tensors import dtype_name


def run_case(bench: Bench) -> Found:
    """Returns what one case of the guided model takes, with a dense addition on all blocks, and whether zero strength
    is exact there too."""
    engine = _guided_engine(bench)
    backbone = engine.backbone
    prompts = bench.prompts[:2]
    edit = Edit("selftest", "change_object", *prompts, "everything", "everything")
    regions = Regions(GROUNDERS.get("everything")(bench.device), engine.setup.rules.look, engine.setup.mask_rule)
    with Peak(bench.device) as peak:
        started = finished(bench.device)
        (reference,) = engine.generation.references([(edit, SEED)], (engine.generation.site,), regions)
        traced = finished(bench.device) - started
        plans = [METHODS.get("dense")(strength=strength).plan(reference.case) for strength in (1, 0)]
        changed, zero = engine.generation.images([reference] * 2, plans)
        seconds = finished(bench.device) - started
    original = reference.sample.image.cpu()
    wrong = [reference.failure] if reference.failure else []
    wrong += [] if torch.equal(zero, original) else ["zero strength changes the image"]
    wrong += [] if torch.isfinite(changed).all() else ["the image is not finite"]
    wrong += [] if not torch.equal(changed, original) else ["an addition changes nothing"]
    words = f"{backbone.name}: {seconds:.1f} s for two references, traced, and two results"
    words += "" if peak.gigabytes is None else f", {peak.gigabytes:.1f} GB"
    detail: dict[str, Any] = {"on": backbone.name, "seconds": seconds, "of these references": traced}
    return Found("; ".join([*wrong, words]), not wrong, detail | {"peak GB": peak.gigabytes})


def _guided_engine(bench: Bench) -> Engine:
    """Returns an engine of this backbone where it is guided, else of the guided one that the same networks judge.
    Raises `NotPossible` where its weights are not here."""
    if bench.backbone.guided:
        return bench.engine
    known = (BACKBONES.get(name) for name in BACKBONES.names())
    other = next((one for one in known if one.guided and one.judges == bench.backbone.judges), None)
    if other is None:
        raise NotPossible("no backbone of this kind is sampled with guidance")
    if not bench.random:
        _check_there(other, bench)
    return bench.open(other, 2)


def _check_there(backbone: Backbone, bench: Bench) -> None:
    """Raises `NotPossible` where weights are not on this machine."""
    try:
        backbone_folder(backbone, dtype_name(choose_dtype(backbone, bench.device)))
    except UserError as error:
        raise NotPossible(one_line(error)) from error


CHECK = Check(9, "guidance", "finite, and zero strength gives the original image to the bit", run_case)
